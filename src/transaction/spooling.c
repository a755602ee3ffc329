/*
 * spooling.c
 *	  From the log to the spool: what becomes of a transaction's records when Redis does not take them, or may not yet.
 *
 * A transaction spools as a whole.  Once it has begun to, it sends no more delay messages; those that it has sent do no harm.
 * Records stay in the log until PRE_COMMIT, unless it grows too large.  Then those of the current
 * (sub)transaction alone are written, since its rollback takes the rows away again, and its rows only.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "spool/spool.h"
#include "transaction/current.h"
#include "transaction/stream.h"
#include "transaction/transaction.h"

#define OWN_PART_MIN RS_CHUNK_SIZE	/* of a level: or its records would be written one by one */

static bool
may_spool(void)
{
	return rs_on_outage == RS_OUTAGE_SPOOL || !rs_transport_is_down();
}

bool
rs_spooling_is_on(void)
{
	if (!rs_current.spooling && may_spool() && rs_spool_is_on(rs_current.buckets))
		rs_current.spooling = true;
	return rs_current.spooling;
}

/* From now on the transaction has to be waited for, in the buckets of all the records that it has so far. */
static void
begin(void)
{
	if ((rs_current.buckets & ~rs_current.joined) == 0)
		return;
	rs_spool_begin(rs_current.buckets);
	rs_current.joined = rs_current.buckets;
}

RsWay
rs_spooling_decide(void)
{
	if (rs_current.joined == 0 && rs_spool_is_on(rs_current.buckets))
	{
		if (!rs_current.spooling && !may_spool())
			return RS_WAY_BARRED;
		if (rs_spool_join(rs_current.buckets, rs_timeout))
		{
			rs_current.joined = rs_current.buckets;
			rs_current.spooling = true;
		}
	}
	if (!rs_current.spooling)
		return RS_WAY_LANES;
	begin();
	return RS_WAY_SPOOL;
}

/* ---- rows ------------------------------------------------------------------------------- */

static uint64
top_transaction(void)
{
	return U64FromFullTransactionId(GetTopFullTransactionId());
}

/* Where the rows of the forgotten records have their place: before all others. */
static void
reserve_publications(void)
{
	MemoryContext old;

	if (!rs_current.large || rs_current.published_at != 0 || rs_current.log->nplaces > 0)
		return;
	old = MemoryContextSwitchTo(rs_current.log->context);
	rs_current.published = bms_copy(rs_current.log->streams);
	MemoryContextSwitchTo(old);
	rs_current.published_at = rs_spool_position(bms_num_members(rs_current.published));
}

/* Writes the records from "start" on, and takes them out of the log. */
static void
write_records(size_t start)
{
	RsLog	   *log = rs_current.log;
	RsSpoolWriter *writer;
	RsSpoolRow	row = {.xact = top_transaction()};
	size_t		at = start;

	reserve_publications();
	if (start == log->used)
		return;
	writer = rs_spool_writer_open();
	while (at < log->used)
	{
		const RsRecord *record = (const RsRecord *) (log->data + at);
		const RsStream *stream = rs_stream(record->stream);

		row.position = rs_current.numbered ? record->xid : rs_spool_position(0);
		row.bucket = stream->bucket;
		row.ns = stream->ns;
		row.stream = stream->name;
		row.data = RS_RECORD_PAYLOAD(record);
		row.length = record->length;
		rs_spool_write(writer, &row);
		rs_current.spooled++;
		at += RS_RECORD_SIZE(record->length);
	}
	rs_spool_writer_close(writer);
	rs_log_cut(log, start);
}

/*
 * The records that were forgotten are in Redis, as delay messages: a row a stream says which these are.  They must
 * be there, or have been announced, when the worker comes to that row: so they do not count as confirmed.
 */
static void
write_publications(void)
{
	RsLog	   *log = rs_current.log;
	RsPublishedStream stream;
	RsPublication publication = {.xact_field = rs_identity_xact_field(),.streams = &stream,.nstreams = 1,.largest = log->largest};
	RsSpoolWriter *writer;
	RsSpoolRow	row = {.xact = top_transaction(),.publication = true};
	int			member = -1;

	if (rs_current.published == NULL)
		return;
	rs_transport_doubt();
	publication.first = rs_current.forgotten.first;
	publication.last = rs_current.forgotten.last;
	publication.xids = rs_log_sorted_xids(log, &publication.nxids);
	row.position = rs_current.published_at;
	writer = rs_spool_writer_open();
	while ((member = bms_next_member(rs_current.published, member)) >= 0)
	{
		char	   *data;

		stream.delay_key = &rs_stream(member)->delay_key;
		stream.stream_key = &rs_stream(member)->stream_key;
		publication.expected = rs_log_forgotten(log, member);
		row.bucket = rs_stream(member)->bucket;
		row.ns = rs_stream(member)->ns;
		row.stream = rs_stream(member)->name;
		row.data = data = rs_publication_encode(&publication, &row.length);
		rs_spool_write(writer, &row);
		row.position++;
		pfree(data);
	}
	rs_spool_writer_close(writer);
	rs_current.published = NULL;
}

void
rs_spooling_finish(size_t start)
{
	write_records(start);
	write_publications();
	rs_spool_settle();
}

/*
 * Records of outer levels are older than those of inner ones that are written before them.  So from now on each has its
 * position at once; which transaction it is of, is not needed any more.
 */
static void
number_records(void)
{
	RsLog	   *log = rs_current.log;
	size_t		at = 0;

	if (rs_current.numbered)
		return;
	reserve_publications();
	while (at < log->used)
	{
		RsRecord   *record = (RsRecord *) (log->data + at);

		record->xid = rs_spool_position(0);
		at += RS_RECORD_SIZE(record->length);
	}
	rs_current.numbered = true;
}

void
rs_spooling_relieve(void)
{
	size_t		own = rs_log_own(rs_current.log, GetCurrentTransactionNestLevel());

	if (rs_current.log->used - own < OWN_PART_MIN)
		return;
	begin();
	number_records();
	write_records(own);
}
