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
#include "access/xlog.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"

#include "settings.h"
#include "stats.h"
#include "transaction/stream.h"
#include "transaction/transaction.h"

#define CHUNK_SIZE (64 * 1024)	/* bytes of delay messages sent at a time */
#define CHUNKS_UNDER_WAY 2		/* of one transaction: what others may queue behind */

typedef enum RsStage
{
	RS_STAGE_NONE,				/* no record so far */
	RS_STAGE_OPEN,				/* records are collected */
	RS_STAGE_PLACED				/* committing: a record goes at once */
} RsStage;

/* How far the transaction itself is, whether or not it has records. */
typedef enum RsPhase
{
	RS_PHASE_RUNNING,
	RS_PHASE_COMMITTING,		/* our PRE_COMMIT step is over */
	RS_PHASE_PREPARING			/* our PRE_PREPARE step is over */
} RsPhase;

static RsPhase phase = RS_PHASE_RUNNING;

static struct
{
	RsStage		stage;
	RsLog	   *log;
	bool		large;			/* records were forgotten */
	bool		skipping;		/* an outage, and on_outage = skip: nothing is sent any more */
	uint64		captured;
	uint64		skipped;
	RsEntryNumber sent[CHUNKS_UNDER_WAY];	/* the last chunks' entries, a ring */
	uint64		nsent;
	char	   *buffer;			/* for encoding */
	size_t		buffer_size;
}			current;

static void
check_preloaded(void)
{
	if (!rs_transport_ready())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("redstream must be preloaded to announce changes"),
				 errhint("Put redstream into shared_preload_libraries in postgresql.conf and restart the server.")));
}

static void
refuse_prepare(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot PREPARE a transaction that has changes to announce"),
			 errhint("Commit in one phase, or set redstream.enabled to off and announce the rows otherwise.")));
}

static void
start(void)
{
	memset(&current, 0, sizeof(current));
	current.log = rs_log_create(TopTransactionContext);
	rs_delay_track();
	rs_transport_set_busy(true);
	current.stage = phase == RS_PHASE_COMMITTING ? RS_STAGE_PLACED : RS_STAGE_OPEN;
}

/* ---- outage ------------------------------------------------------------------ */

/*
 * Applies redstream.on_outage: throws, or gives this transaction's messages up.
 * What Redis said is for the log alone: it may tell where Redis is.
 */
static void
outage(RsWaitResult result)
{
	RsTransportStatus status;
	const char *reason = result == RS_WAIT_DOWN ? "Redis is not available" :
		result == RS_WAIT_TIMEOUT ? "Redis did not answer in time" :
		"Redis refused a message for good";

	rs_transport_status(&status);
	if (rs_on_outage == RS_OUTAGE_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR),
				 errmsg("could not announce changes: %s", reason),
				 status.last_error[0] ? errdetail_log("Last error: %s.", status.last_error) : 0,
				 errhint("See redstream.stats. With redstream.on_outage = skip the transaction commits without its messages.")));
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("changes of this transaction are not announced: %s", reason),
			 status.last_error[0] ? errdetail_log("Last error: %s.", status.last_error) : 0));
	current.skipping = true;
	current.skipped = current.captured;
}

/* ---- the delay lane ------------------------------------------------------------ */

/* Room for encoding; what was in it before is gone. */
static char *
buffer_of(size_t size)
{
	if (size > current.buffer_size)
	{
		if (current.buffer != NULL)
			pfree(current.buffer);
		current.buffer = NULL;
		current.buffer_size = 0;
		current.buffer = MemoryContextAlloc(current.log->context, pg_nextpower2_size_t(size));
		current.buffer_size = pg_nextpower2_size_t(size);
	}
	return current.buffer;
}

/* Encodes records from the position on into one chunk; moves the position
 * behind them, and says how many there are and how long they became. */
static char *
encode_chunk(size_t *position, uint32 *records, size_t *length)
{
	RsLog	   *log = current.log;
	size_t		end = *position;
	size_t		size = 0;
	char	   *buffer;
	char	   *out;

	while (end < log->used && size < CHUNK_SIZE)
	{
		const RsRecord *record = (const RsRecord *) (log->data + end);
		size_t		more = rs_stream_delay_size(record);

		if (size > 0 && size + more > CHUNK_SIZE)
			break;
		size += more;
		end += RS_RECORD_SIZE(record->length);
	}
	out = buffer = buffer_of(size);
	*records = 0;
	while (*position < end)
	{
		const RsRecord *record = (const RsRecord *) (log->data + *position);

		out = rs_stream_delay_write(out, record);
		*position += RS_RECORD_SIZE(record->length);
		(*records)++;
	}
	*length = out - buffer;
	return buffer;
}

/*
 * Appends the delay messages of all records that have none yet.  Only so many
 * chunks may be under way, or a large transaction would fill the lane and everyone
 * else's commit would wait behind it.
 */
static RsWaitResult
stream_records(RsPatience *patience)
{
	RsLog	   *log = current.log;

	while (log->streamed < log->used)
	{
		size_t		position = log->streamed;
		size_t		length;
		uint32		records;
		char	   *chunk = encode_chunk(&position, &records, &length);
		RsEntryNumber *cell = &current.sent[current.nsent % CHUNKS_UNDER_WAY];
		RsWaitResult result = RS_WAIT_DONE;

		if (current.nsent >= CHUNKS_UNDER_WAY)
			result = rs_delay_wait(*cell, patience);
		if (result == RS_WAIT_DONE)
			result = rs_delay_append(chunk, length, records, patience, cell);
		if (result != RS_WAIT_DONE)
			return result;
		current.nsent++;
		log->streamed = position;
	}
	return RS_WAIT_DONE;
}

/* Streams while the transaction runs; each wait has an allowance of its own. */
static void
stream_early(void)
{
	RsPatience	patience;
	RsWaitResult result;

	rs_patience_start(&patience);
	result = stream_records(&patience);
	if (result != RS_WAIT_DONE)
		outage(result);
}

static RsWaitResult
await_acknowledgement(RsPatience *patience)
{
	if (current.nsent == 0)
		return RS_WAIT_DONE;
	return rs_delay_wait(current.sent[(current.nsent - 1) % CHUNKS_UNDER_WAY], patience);
}

/* ---- the main lane --------------------------------------------------------------- */

/* Room for a place first, so that one that is taken is always known. */
static RsEntryNumber *
next_place(void)
{
	rs_log_reserve_place(current.log);
	return &current.log->places[current.log->nplaces];
}

/* Takes a place for the main messages of the records from "start" on. */
static RsWaitResult
take_place(size_t start, size_t size, RsPatience *patience)
{
	RsLog	   *log = current.log;
	RsEntryNumber *place = next_place();
	char	   *buffer = buffer_of(size);
	char	   *out = buffer;
	uint32		records = 0;
	RsWaitResult result;

	while (start < log->used)
	{
		const RsRecord *record = (const RsRecord *) (log->data + start);

		out = rs_stream_main_write(out, record);
		start += RS_RECORD_SIZE(record->length);
		records++;
	}
	result = rs_main_take(buffer, out - buffer, records, patience, place);
	if (result == RS_WAIT_DONE)
		log->nplaces++;
	return result;
}

/* Takes a place from which the sender copies the delay messages. */
static RsWaitResult
take_publication(RsPatience *patience)
{
	RsLog	   *log = current.log;
	RsEntryNumber *place = next_place();
	RsPublishedStream *streams;
	RsXidRange *xids;
	RsStreamId	first;
	RsStreamId	last;
	RsWaitResult result;
	int			nstreams = 0;
	int			nxids;
	int			member = -1;
	bool		taken;

	if (!rs_delay_tracked_range(&first, &last))
		return RS_WAIT_REFUSED;
	streams = MemoryContextAlloc(log->context,
								 sizeof(RsPublishedStream) * bms_num_members(log->streams));
	while ((member = bms_next_member(log->streams, member)) >= 0)
	{
		streams[nstreams].delay_key = &rs_stream(member)->delay_key;
		streams[nstreams++].stream_key = &rs_stream(member)->stream_key;
	}
	xids = rs_log_sorted_xids(log, &nxids);
	result = rs_main_take_publication(&first, &last, rs_stream_xact_field(), streams, nstreams,
									  xids, nxids, log->largest, patience, place, &taken);
	if (taken)
		log->nplaces++;
	else if (result == RS_WAIT_DONE)
		rs_stats_add(RS_COUNT_PASSED, 1);	/* too many subtransactions */
	return result;
}

/* ---- announcing -------------------------------------------------------------------- */

/* Bytes of the main messages of the records from "start" on. */
static size_t
main_size(size_t start)
{
	RsLog	   *log = current.log;
	size_t		size = 0;

	while (start < log->used)
	{
		const RsRecord *record = (const RsRecord *) (log->data + start);

		size += rs_stream_main_size(record);
		start += RS_RECORD_SIZE(record->length);
	}
	return size;
}

/*
 * Everything that comes before the commit: delay messages of the records from
 * "start" on acknowledged, a place in the main lane taken.  With "publish" the
 * place is one for the whole transaction, from its delay messages.
 */
static RsWaitResult
announce(size_t start, bool publish)
{
	RsPatience	patience;
	RsWaitResult result;
	bool		wait = rs_wait_for_ack || publish;	/* a publication needs the ids */

	rs_patience_start(&patience);
	result = stream_records(&patience);
	if (result == RS_WAIT_DONE && wait)
		result = await_acknowledgement(&patience);
	if (result == RS_WAIT_DONE && rs_delay_refused())
		result = RS_WAIT_REFUSED;
	if (result != RS_WAIT_DONE)
		return result;

	/* Without WAL of its own a commit is never waited for (xact.c,
	 * RecordTransactionCommit), and a crash could undo what was announced. */
	if (XactLastRecEnd == 0)
		ForceSyncCommit();
	result = publish ? take_publication(&patience) :
		take_place(start, main_size(start), &patience);

	/* The main lane is full for too long: nothing is lost, the delay messages announce it. */
	if ((result == RS_WAIT_DOWN || result == RS_WAIT_TIMEOUT) && wait)
	{
		rs_stats_add(RS_COUNT_PASSED, 1);
		result = RS_WAIT_DONE;
	}
	return result;
}

/* Announces, and applies redstream.on_outage when that fails. */
static void
announce_or_fail(size_t start, bool publish)
{
	RsWaitResult result = announce(start, publish);

	if (result != RS_WAIT_DONE)
		outage(result);
}

static void
pre_commit(void)
{
	phase = RS_PHASE_COMMITTING;
	if (current.stage != RS_STAGE_OPEN)
		return;
	current.stage = RS_STAGE_PLACED;
	if (current.skipping || rs_log_is_empty(current.log))
		return;
	announce_or_fail(0, current.large || main_size(0) > rs_lane_entry_limit());
}

void
rs_transaction_check_size(size_t length)
{
	size_t		limit;

	check_preloaded();
	/* Keys, field names and lengths around a payload are a few kilobytes at most. */
	limit = rs_lane_entry_limit() - 4096;
	if (length > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message of %zu bytes is too large to announce", length),
				 errdetail("With the present redstream.queue_size a message has at most %zu bytes.", limit),
				 errhint("Announce fewer columns, or increase redstream.queue_size.")));
}

void
rs_transaction_record(int stream, const char *payload, size_t length, bool repeatable)
{
	RsLog	   *log;
	size_t		buffer_limit = (size_t) rs_transaction_buffer * 1024;

	rs_transaction_check_size(length);
	if (phase == RS_PHASE_PREPARING)
		refuse_prepare();
	if (current.stage == RS_STAGE_NONE)
		start();
	log = current.log;
	if (repeatable && !current.skipping && rs_log_has(log, stream, payload, length))
		return;
	current.captured++;
	if (current.skipping)
	{
		current.skipped++;
		return;
	}
	if (log->used > 0 && log->used + RS_RECORD_SIZE(length) > buffer_limit &&
		current.stage == RS_STAGE_OPEN)
	{
		stream_early();
		if (current.skipping)
			return;
		rs_log_forget(log);
		current.large = true;
	}
	rs_log_append(log, GetCurrentTransactionNestLevel(),
				  U64FromFullTransactionId(GetCurrentFullTransactionId()),
				  stream, payload, length);
	if (current.stage == RS_STAGE_PLACED)
		announce_or_fail(log->used - RS_RECORD_SIZE(length), false);
	else if (log->used - log->streamed >= CHUNK_SIZE)
		stream_early();
}

/* ---- the end -------------------------------------------------------------------------- */

/* The transaction has ended.  Must not throw, allocate or wait. */
static void
finish(bool committed)
{
	phase = RS_PHASE_RUNNING;
	if (current.stage == RS_STAGE_NONE)
		return;
	for (int i = 0; i < current.log->nplaces; i++)
		rs_main_resolve(current.log->places[i], committed);
	rs_stats_add(RS_COUNT_CAPTURED, current.captured);
	if (committed && current.skipped > 0)
		rs_stats_add(RS_COUNT_SKIPPED, current.skipped);
	rs_transport_set_busy(false);
	rs_sender_wake();
	current.stage = RS_STAGE_NONE;
	current.log = NULL;
}

static void
pre_prepare(void)
{
	phase = RS_PHASE_PREPARING;
	if (current.stage != RS_STAGE_NONE && !rs_log_is_empty(current.log))
		refuse_prepare();
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
	RsLog	   *log = current.log;
	int			level;

	if (current.stage == RS_STAGE_NONE)
		return;
	level = GetCurrentTransactionNestLevel();
	if (event == SUBXACT_EVENT_COMMIT_SUB)
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
