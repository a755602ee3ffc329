/*
 * announce.c
 *	  From the log to the lanes: delay messages, acknowledgement, the place in the
 *	  main lane, and what is done when Redis does not play its part.
 *
 * All of it happens before the commit; errors and cancellation are legal.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "stats.h"
#include "transaction/current.h"
#include "transaction/stream.h"
#include "transaction/transaction.h"

/* ---- outage ------------------------------------------------------------------ */

static uint64 outages;

uint64
rs_transaction_outages(void)
{
	return outages;
}

/*
 * Applies redstream.on_outage: has the transaction spool, throws, or gives this transaction's messages up.
 * What Redis said is for the log alone: it may tell where Redis is.
 */
static void
outage(RsWaitResult result)
{
	RsTransportStatus status;
	const char *reason = result == RS_WAIT_DOWN ? "Redis is not available" :
		result == RS_WAIT_TIMEOUT ? "Redis did not answer in time" :
		"Redis refused a message for good";

	if (rs_on_outage == RS_OUTAGE_SPOOL)
	{
		rs_current.spooling = true;
		return;
	}
	rs_transport_status(&status);
	if (rs_on_outage == RS_OUTAGE_ERROR)
	{
		outages += result != RS_WAIT_REFUSED;
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR),
				 errmsg("could not announce changes: %s", reason),
				 status.last_error[0] ? errdetail_log("Last error: %s.", status.last_error) : 0,
				 errhint("See redstream.stats. With redstream.on_outage = spool the transaction commits, and its messages are delivered later.")));
	}
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("changes of this transaction are not announced: %s", reason),
			 status.last_error[0] ? errdetail_log("Last error: %s.", status.last_error) : 0));
	rs_transport_doubt();		/* some may have their delay messages */
	rs_current.skipping = true;
	rs_current.skipped = rs_current.captured;
}

/* ---- the delay lane ------------------------------------------------------------ */

/* Room for encoding; what was in it before is gone. */
static char *
buffer_of(size_t size)
{
	if (size > rs_current.buffer_size)
	{
		if (rs_current.buffer != NULL)
			pfree(rs_current.buffer);
		rs_current.buffer = NULL;
		rs_current.buffer_size = 0;
		rs_current.buffer = MemoryContextAlloc(rs_current.log->context, pg_nextpower2_size_t(size));
		rs_current.buffer_size = pg_nextpower2_size_t(size);
	}
	return rs_current.buffer;
}

/* Encodes records from the position on into one chunk; moves the position
 * behind them, and says how many there are and how long they became. */
static char *
encode_chunk(size_t *position, uint32 *records, size_t *length)
{
	RsLog	   *log = rs_current.log;
	size_t		end = *position;
	size_t		size = 0;
	char	   *buffer;
	char	   *out;

	while (end < log->used && size < RS_CHUNK_SIZE)
	{
		const RsRecord *record = (const RsRecord *) (log->data + end);
		size_t		more = rs_stream_delay_size(record);

		if (size > 0 && size + more > rs_lane_entry_limit())
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
	RsLog	   *log = rs_current.log;

	while (log->streamed < log->used)
	{
		size_t		position = log->streamed;
		size_t		length;
		uint32		records;
		char	   *chunk = encode_chunk(&position, &records, &length);
		RsEntryNumber *cell = &rs_current.sent[rs_current.nsent % RS_CHUNKS_UNDER_WAY];
		RsWaitResult result = RS_WAIT_DONE;

		if (rs_current.nsent >= RS_CHUNKS_UNDER_WAY)
			result = rs_delay_wait(*cell, patience);
		if (result == RS_WAIT_DONE)
			result = rs_delay_append(chunk, length, records, patience, cell);
		if (result != RS_WAIT_DONE)
			return result;
		rs_current.nsent++;
		log->streamed = position;
	}
	rs_current.unsent = 0;
	return RS_WAIT_DONE;
}

static RsWaitResult
await_acknowledgement(RsPatience *patience)
{
	if (rs_current.nsent == 0)
		return RS_WAIT_DONE;
	return rs_delay_wait(rs_current.sent[(rs_current.nsent - 1) % RS_CHUNKS_UNDER_WAY], patience);
}

/* ---- the main lane --------------------------------------------------------------- */

/* Room for a place first, so that one that is taken is always known. */
static RsEntryNumber *
next_place(void)
{
	rs_log_reserve_place(rs_current.log);
	return &rs_current.log->places[rs_current.log->nplaces];
}

/* Takes a place for the main messages of the records from "start" on. */
static RsWaitResult
take_place(size_t start, size_t size, RsPatience *patience)
{
	RsLog	   *log = rs_current.log;
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

/* The transaction has no place: its delay messages announce it. */
static void
leave_to_delay_messages(void)
{
	rs_transport_doubt();
	rs_stats_add(RS_COUNT_PASSED, 1);
}

/* Takes a place from which the sender copies the delay messages. */
static RsWaitResult
take_publication(RsPatience *patience)
{
	RsLog	   *log = rs_current.log;
	RsEntryNumber *place = next_place();
	RsPublication publication = {.xact_field = rs_identity_xact_field(),.expected = log->records,.largest = log->largest};
	RsPublishedStream *streams;
	RsDelayOutcome outcome;
	RsWaitResult result = RS_WAIT_DONE;
	char	   *data;
	size_t		length;
	int			member = -1;

	rs_delay_outcome(&outcome);
	if (!outcome.any)
		return RS_WAIT_REFUSED;
	publication.first = outcome.first;
	publication.last = outcome.last;
	publication.streams = streams = MemoryContextAlloc(log->context,
													   sizeof(RsPublishedStream) * bms_num_members(log->streams));
	while ((member = bms_next_member(log->streams, member)) >= 0)
	{
		streams[publication.nstreams].delay_key = &rs_stream(member)->delay_key;
		streams[publication.nstreams++].stream_key = &rs_stream(member)->stream_key;
	}
	publication.xids = rs_log_sorted_xids(log, &publication.nxids);
	data = rs_publication_encode(&publication, &length);
	if (length > rs_lane_entry_limit())
		leave_to_delay_messages();	/* too many subtransactions */
	else if ((result = rs_main_take_publication(data, length, patience, place)) == RS_WAIT_DONE)
		log->nplaces++;
	pfree(data);
	return result;
}

/* ---- announcing -------------------------------------------------------------------- */

size_t
rs_announce_size(size_t start)
{
	RsLog	   *log = rs_current.log;
	size_t		size = 0;

	while (start < log->used)
	{
		const RsRecord *record = (const RsRecord *) (log->data + start);

		size += rs_stream_main_size(record);
		start += RS_RECORD_SIZE(record->length);
	}
	return size;
}

/* Delay messages of all records, acknowledged if that is waited for. */
static RsWaitResult
send_delay_messages(RsPatience *patience, bool wait)
{
	RsDelayOutcome outcome;
	RsWaitResult result;

	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		rs_stream_note_async();
	result = stream_records(patience);

	if (result == RS_WAIT_DONE && wait)
		result = await_acknowledgement(patience);
	if (result != RS_WAIT_DONE)
		return result;
	rs_delay_outcome(&outcome);
	return outcome.refused ? RS_WAIT_REFUSED : RS_WAIT_DONE;
}

static RsWaitResult
announce(size_t start, bool publish)
{
	RsPatience	patience;
	RsWaitResult result;
	bool		wait = rs_wait_for_ack || publish;	/* a publication needs the ids */

	rs_patience_start(&patience);
	result = send_delay_messages(&patience, wait);
	if (result != RS_WAIT_DONE)
		return result;

	/* Without WAL of its own a commit is never waited for (xact.c,
	 * RecordTransactionCommit), and a crash could undo what was announced. */
	if (XactLastRecEnd == 0)
		ForceSyncCommit();
	result = publish ? take_publication(&patience) :
		take_place(start, rs_announce_size(start), &patience);

	/* The main lane is full for too long: nothing is lost, the delay messages announce it; the spool does so in order. */
	if ((result == RS_WAIT_DOWN || result == RS_WAIT_TIMEOUT) && wait &&
		rs_on_outage != RS_OUTAGE_SPOOL)
	{
		leave_to_delay_messages();
		result = RS_WAIT_DONE;
	}
	return result;
}

/* Each wait has an allowance of its own. */
void
rs_announce_early(void)
{
	RsPatience	patience;
	RsWaitResult result;

	if (rs_spooling_is_on())
		return;
	rs_patience_start(&patience);
	result = stream_records(&patience);
	if (result != RS_WAIT_DONE)
		outage(result);
}

static void
flush(bool wait)
{
	RsPatience	patience;
	RsWaitResult result;

	if (rs_spooling_is_on())
		return;
	rs_patience_start(&patience);
	result = send_delay_messages(&patience, wait);
	if (result != RS_WAIT_DONE)
		outage(result);
}

void
rs_announce_settle(void)
{
	flush(true);
}

void
rs_announce_flush(void)
{
	flush(rs_wait_for_ack);
}

void
rs_announce(size_t start, bool publish)
{
	RsWay		way = rs_spooling_decide();

	if (way != RS_WAY_SPOOL)
	{
		RsWaitResult result = way == RS_WAY_BARRED ? RS_WAIT_DOWN : announce(start, publish);

		if (result == RS_WAIT_DONE)
			return;
		outage(result);
	}
	if (rs_current.spooling && rs_spooling_decide() == RS_WAY_SPOOL)
		rs_spooling_finish(start);
}
