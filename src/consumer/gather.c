/*
 * gather.c
 *	  Reads a batch: the messages behind the offset, as many as there are and may be; and waits for more of them, when told
 *	  to linger.
 *
 * A batch that was refused is given again as it was, whatever has come since: a handler can know it by its last id.
 */
#include <hiredis/hiredis.h>

#include "consumer/consumer.h"

/* The lock is extended between waits. */
#define LINGER_STEP_MS 1000

typedef struct Gathering
{
	RsRun	   *run;
	int			most;
	bool		repeats;		/* a batch that was refused */
} Gathering;

/* ---- one message -------------------------------------------------------------------------- */

static void
tell_fields(RsRun *run, const RsStreamEntry *entry)
{
	char		id[RS_STREAM_ID_SIZE];

	rs_redis_id_format(&entry->id, id);
	if (!run->told_fields)
		rs_consumer_log(RS_NORMAL, "message %s has other fields than \"payload\": they are ignored, and not mentioned again",
						id);
	else
		rs_consumer_log(RS_VERBOSE, "message %s has other fields than \"payload\"", id);
	run->told_fields = true;
}

static void
tell_left_out(RsRun *run, const RsStreamEntry *entry)
{
	char		id[RS_STREAM_ID_SIZE];

	rs_redis_id_format(&entry->id, id);
	rs_consumer_log(RS_QUIET, "message %s is skipped: %s", id, run->batch.reason);
}

static void
add(Gathering *gathering, const RsStreamEntry *entry)
{
	RsRun	   *run = gathering->run;
	RsBatch    *batch = &run->batch;
	RsAdded		added;

	if (batch->count == 0)
		gathering->repeats = rs_consumer_tries_repeats(&run->tries, &entry->id);
	if (gathering->repeats && rs_redis_id_compare(&entry->id, &run->tries.last) > 0)
	{
		batch->closed = true;
		return;
	}
	added = rs_consumer_batch_add(batch, entry, run->options->skip_invalid &&
								  run->options->dead_letter == NULL);

	/* Once is enough. */
	if (gathering->repeats || added == RS_ADDED_NOT)
		return;
	if (added == RS_ADDED_LEFT_OUT)
		tell_left_out(run, entry);
	else if (entry->other_fields && !batch->unusable)
		tell_fields(run, entry);
}

/* ---- all there are ---------------------------------------------------------------------------- */

static bool
is_full(const Gathering *gathering)
{
	return gathering->run->batch.closed || gathering->run->batch.count >= gathering->most;
}

/* Reads until the batch is full, or the stream ends. */
static bool
read_on(Gathering *gathering)
{
	RsRun	   *run = gathering->run;
	RsBatch    *batch = &run->batch;
	RsReading  *reading = &run->reading;
	bool		at_end = false;
	bool		refused;
	RsError		error;

	while (!is_full(gathering) && !at_end)
	{
		int			page = reading->page;
		int			left = gathering->most - batch->count;
		int			wanted = left < page ? left : page;
		RsReply		reply;

		rs_consumer_keeper_tend(&run->keeper);
		if (run->link.connection == NULL)
			return false;
		if (!rs_redis_reading_next(run->link.connection, &run->consumer.stream, reading, left,
								   RS_TIMEOUT_MS, &reply, &refused, &error))
		{
			rs_consumer_run_failed(run, refused, &error);
			return false;
		}
		at_end = reply.tree->elements < (size_t) wanted;
		for (size_t i = 0; i < reply.tree->elements && !is_full(gathering); i++)
		{
			RsStreamEntry entry;

			if (rs_redis_entry_read(reply.tree->element[i], &entry))
				add(gathering, &entry);
		}
	}
	return true;
}

/* Waits for messages until the batch is full or the time is over, and reads them. */
static bool
linger(Gathering *gathering)
{
	RsRun	   *run = gathering->run;
	int64_t		end = rs_consumer_now_ms() + run->options->linger_ms;
	int64_t		left;
	bool		there;
	bool		refused;
	RsError		error;

	while (!is_full(gathering) && !run->keeper.lost && (left = end - rs_consumer_now_ms()) > 0)
	{
		bool		answered;

		run->link.waiting.idle = true;
		answered = rs_redis_await_messages(run->link.connection, &run->consumer.stream,
										   &run->reading.after,
										   left < LINGER_STEP_MS ? (int) left : LINGER_STEP_MS,
										   RS_TIMEOUT_MS, &there, &refused, &error);
		run->link.waiting.idle = false;
		if (!answered)
		{
			rs_consumer_run_failed(run, refused, &error);
			return false;
		}
		if (there && !read_on(gathering))
			return false;
		rs_consumer_keeper_tend(&run->keeper);
		if (run->link.connection == NULL)
			return false;
	}
	return true;
}

bool
rs_consumer_gather(RsRun *run)
{
	Gathering	gathering = {.run = run,.most = run->tries.limit};

	rs_consumer_batch_begin(&run->batch);
	rs_redis_reading_begin(&run->reading, &run->turn.offset, run->turn.stream.entry_bytes);
	if (!read_on(&gathering))
		return false;
	if (run->options->linger_ms > 0 && !gathering.repeats &&
		(run->batch.count > 0 || run->options->once) && !linger(&gathering))
		return false;
	return true;
}
