/*
 * report.c
 *	  What a log should say of a program that works: who has the lock, how much is done, how far behind it is.
 *
 * Processes that share a name take turns many times a second, and that is no news: standing by is said when it has lasted.
 */
#include <inttypes.h>
#include <stdio.h>

#include "consumer/consumer.h"

#define SUMMARY_MS 10000
#define STANDING_BY_MS 30000

void
rs_consumer_report_begin(RsReport *report)
{
	*report = (RsReport) {.summary_ms = rs_consumer_now_ms()};
}

void
rs_consumer_report_state(RsReport *report, RsState state)
{
	int64_t		now = rs_consumer_now_ms();

	if (state == RS_STATE_WORKING)
		report->turn_ms = now;
	if (state == report->said || (report->said == RS_STATE_WORKING &&
								  now - report->turn_ms < STANDING_BY_MS))
		return;
	report->said = state;
	rs_consumer_log(RS_NORMAL, "%s", state == RS_STATE_WORKING ? "working" :
					"standing by: another process has the lock");
}

/* How far the committed offset is behind the stream as it was when the turn began. */
static void
measure_lag(RsReport *report, const RsBatch *batch, const RsTurn *turn)
{
	const RsStreamId *committed = rs_consumer_batch_last(batch);
	const RsStreamState *stream = &turn->stream;
	bool		behind = rs_redis_id_compare(committed, &stream->last) < 0;
	uint64_t	ms = behind ? stream->last.ms - committed->ms : 0;
	int			length;

	length = snprintf(report->lag, sizeof(report->lag), "lag %" PRIu64 ".%" PRIu64 " s", ms / 1000,
					  ms % 1000 / 100);

	/* All messages there are were to be read: then it is clear how many are left. */
	if (behind && stream->has_first && stream->length >= (uint64_t) batch->count &&
		rs_redis_id_compare(&turn->offset, &stream->first) < 0)
		snprintf(report->lag + length, sizeof(report->lag) - (size_t) length, ", %" PRIu64 " messages",
				 stream->length - (uint64_t) batch->count);
}

void
rs_consumer_report_batch(RsReport *report, const RsBatch *batch, const RsTurn *turn)
{
	char		first[RS_STREAM_ID_SIZE];
	char		last[RS_STREAM_ID_SIZE];

	rs_redis_id_format(rs_consumer_batch_first(batch), first);
	rs_redis_id_format(rs_consumer_batch_last(batch), last);
	measure_lag(report, batch, turn);
	report->batches++;
	report->messages += (uint64_t) batch->count;
	report->last_size = batch->count;
	rs_consumer_log(RS_VERBOSE, "batch of %d from %s to %s committed, %s", batch->count, first, last,
					report->lag);
	rs_consumer_report_summary(report, false);
}

void
rs_consumer_report_summary(RsReport *report, bool now)
{
	int64_t		passed = rs_consumer_now_ms() - report->summary_ms;

	if (report->batches == 0 || (!now && passed < SUMMARY_MS))
		return;
	rs_consumer_log(RS_NORMAL, "batches %" PRIu64 ", messages %" PRIu64 " in %" PRId64 ".%" PRId64 " s, the last batch %d, %s",
					report->batches, report->messages, passed / 1000, passed % 1000 / 100,
					report->last_size, report->lag);
	report->batches = 0;
	report->messages = 0;
	report->summary_ms += passed;
}
