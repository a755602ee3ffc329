/*
 * transaction.c
 *	  The records of a transaction on their way out: the only file that knows
 *	  transaction events.
 *
 * src/README.md has the table of events, what is done at each, and what may
 * throw.  In short: until our PRE_COMMIT step errors are legal and Redis may be
 * waited for; from COMMIT or ABORT on there is one atomic exchange a place.
 *
 * Everything is kept in TopTransactionContext, which outlives the callbacks and
 * then goes by itself.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "settings.h"
#include "stats.h"
#include "transaction/current.h"
#include "transaction/stream.h"
#include "transaction/transaction.h"

#define AROUND_PAYLOAD 4096		/* keys, field names and lengths: a few kilobytes at most */
#define MEGABYTE (1024 * 1024)

/* How far the transaction itself is, whether or not it has records. */
typedef enum RsPhase
{
	RS_PHASE_RUNNING,
	RS_PHASE_COMMITTING,		/* our PRE_COMMIT step is over */
	RS_PHASE_PREPARING			/* our PRE_PREPARE step is over */
} RsPhase;

static RsPhase phase = RS_PHASE_RUNNING;

RsCurrent	rs_current;

void
rs_transaction_check_preloaded(void)
{
	if (!rs_transport_ready())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("redstream must be preloaded to announce changes"),
				 errhint("Put redstream into shared_preload_libraries in postgresql.conf and restart the server.")));
}

/* Another extension's callback made a change after our step of PREPARE. */
static void
refuse_late_record(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot announce a change that is made while the transaction is being prepared"),
			 errhint("Commit in one phase.")));
}

static void
start(void)
{
	memset(&rs_current, 0, sizeof(rs_current));
	rs_current.log = rs_log_create(TopTransactionContext);
	rs_delay_track();
	rs_transport_set_busy(true);
	rs_current.stage = phase == RS_PHASE_COMMITTING ? RS_STAGE_PLACED : RS_STAGE_OPEN;
}

static void
pre_commit(void)
{
	phase = RS_PHASE_COMMITTING;
	if (rs_current.stage != RS_STAGE_OPEN)
		return;
	rs_current.stage = RS_STAGE_PLACED;
	if (rs_current.skipping || rs_log_is_empty(rs_current.log))
		return;
	rs_announce(0, rs_current.large || rs_announce_size(0) > rs_lane_entry_limit());
}

void
rs_transaction_check_size(size_t length)
{
	size_t		limit;
	size_t		needed;

	rs_transaction_check_preloaded();
	limit = rs_lane_entry_limit() - AROUND_PAYLOAD;
	if (length <= limit)
		return;
	needed = rs_lane_size_for(length + AROUND_PAYLOAD);
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("message of %zu bytes is too large to announce", length),
			 errdetail("With the present redstream.queue_size a message has at most %zu bytes.", limit),
			 needed > (size_t) RS_QUEUE_SIZE_MAX * 1024 ? errhint("Announce fewer columns.") :
			 errhint("Announce fewer columns, or set redstream.queue_size to %zuMB at least and restart the server.",
					 (needed + MEGABYTE - 1) / MEGABYTE)));
}

/* Makes the log forget what it has when the next record would make it too large. */
static void
limit_log(size_t length)
{
	RsLog	   *log = rs_current.log;
	size_t		limit = (size_t) rs_transaction_buffer * 1024;

	if (log->used == 0 || log->used + RS_RECORD_SIZE(length) <= limit)
		return;
	rs_announce_settle();
	if (rs_current.spooling)
		rs_spooling_relieve();
	if (rs_current.spooling || rs_current.skipping)
		return;
	rs_log_forget(log);
	rs_delay_outcome(&rs_current.forgotten);
	rs_current.large = true;
}

void
rs_transaction_record(int stream, const char *payload, size_t length, bool repeatable)
{
	RsRecord   *record;
	RsLog	   *log;

	rs_transaction_check_size(length);
	if (phase == RS_PHASE_PREPARING)
		refuse_late_record();
	if (rs_current.stage == RS_STAGE_NONE)
		start();
	log = rs_current.log;
	if (repeatable && !rs_current.skipping && rs_log_has(log, stream, payload, length))
		return;
	rs_current.captured++;
	if (rs_current.stage == RS_STAGE_OPEN && !rs_current.skipping)
		limit_log(length);
	if (rs_current.skipping)
	{
		rs_current.skipped = rs_current.captured;
		return;
	}
	rs_current.buckets |= rs_stream(stream)->bucket;
	if (!rs_current.spooling)
		rs_stream_list(stream);
	record = rs_log_append(log, GetCurrentTransactionNestLevel(),
						   U64FromFullTransactionId(GetCurrentFullTransactionId()),
						   stream, payload, length);
	if (rs_current.numbered)
		record->xid = rs_spool_position(0);
	rs_current.unsent += rs_stream_delay_size(record);
	if (rs_current.stage == RS_STAGE_PLACED)
		rs_announce(log->used - RS_RECORD_SIZE(length), false);
	else if (rs_current.unsent >= RS_CHUNK_SIZE)
		rs_announce_early();
}

void
rs_transaction_flush(void)
{
	if (rs_current.stage == RS_STAGE_OPEN && !rs_current.skipping)
		rs_announce_flush();
}

/* ---- the end -------------------------------------------------------------------------- */

/* The transaction has ended.  Must not throw, allocate or wait. */
static void
finish(bool committed)
{
	phase = RS_PHASE_RUNNING;
	if (rs_current.stage == RS_STAGE_NONE)
		return;
	for (int i = 0; i < rs_current.log->nplaces; i++)
		rs_main_resolve(rs_current.log->places[i], committed);
	if (rs_current.joined != 0)
		rs_spool_leave(!rs_transport_is_down());
	if (committed)
		rs_stats_add(RS_COUNT_SPOOLED, rs_current.spooled);
	rs_stats_add(RS_COUNT_CAPTURED, rs_current.captured);
	if (committed && rs_current.skipped > 0)
		rs_stats_add(RS_COUNT_SKIPPED, rs_current.skipped);
	rs_transport_set_busy(false);
	rs_main_resolved();
	rs_current.stage = RS_STAGE_NONE;
	rs_current.log = NULL;
}

static void
pre_prepare(void)
{
	phase = RS_PHASE_PREPARING;
	if (rs_current.stage == RS_STAGE_NONE || rs_current.skipping || rs_log_is_empty(rs_current.log))
		return;
	rs_spooling_finish(0);
	rs_stats_add(RS_COUNT_SPOOLED, rs_current.spooled);
}

static void
on_transaction_event(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			finish(true);
			break;
		case XACT_EVENT_ABORT:
			finish(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			pre_prepare();
			break;
		case XACT_EVENT_PREPARE:
			finish(false);
			break;
		default:				/* parallel workers write nothing */
			break;
	}
}

static void
on_subtransaction_event(SubXactEvent event, SubTransactionId id,
						SubTransactionId parent, void *argument)
{
	RsLog	   *log = rs_current.log;
	int			level;

	if (rs_current.stage == RS_STAGE_NONE)
		return;
	level = GetCurrentTransactionNestLevel();
	if (event == SUBXACT_EVENT_PRE_COMMIT_SUB)
	{
		/* Its records would be the parent's, and not be written while there is another subtransaction. */
		if (rs_current.spooling && log->used > (size_t) rs_transaction_buffer * 1024 / 2)
			rs_spooling_relieve();
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		rs_log_merge(log, level);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		int			valid = rs_log_truncate(log, level);

		while (log->nplaces > valid)
			rs_main_resolve(log->places[--log->nplaces], false);
	}
}

void
rs_transaction_init(void)
{
	RegisterXactCallback(on_transaction_event, NULL);
	RegisterSubXactCallback(on_subtransaction_event, NULL);
}
