/*
 * fetch.c
 *	  Rows of redstream.spool, to the worker that delivers them.
 *
 * The index gives them in their order from a position on, so that rows that are deleted, and that an old snapshot keeps, are
 * not passed again.  A batch does not begin where the one before it ended, if before that there can have been rows that could not be
 * seen then: what comes behind them may be newer.  A row is told by its position and its
 * transaction, wherever VACUUM FULL moves it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/pg_control.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "spool/table.h"

#define ROWS_MAX 4000
#define BYTES_MAX (512 * 1024)	/* of payload, with what a command has around it */
#define BYTES_AROUND 128
#define LOOKS_MAX 100000		/* rows, those that are left out included */

RsSpoolBatch *
rs_spool_batch_create(MemoryContext parent)
{
	RsSpoolBatch *batch = MemoryContextAllocZero(parent, sizeof(RsSpoolBatch));

	batch->context = AllocSetContextCreate(parent, "redstream spool batch", ALLOCSET_DEFAULT_SIZES);
	return batch;
}

static Datum
column(TupleTableSlot *slot, int number, bool *is_null)
{
	return slot_getattr(slot, number, is_null);
}

static const char *
utf8_of(Datum value)
{
	char	   *string = TextDatumGetCString(value);

	return pg_server_to_any(string, strlen(string), PG_UTF8);
}

static XLogRecPtr
position_of(TupleTableSlot *slot)
{
	bool		is_null;

	return DatumGetLSN(column(slot, RS_SPOOL_POSITION, &is_null));
}

static uint64
xact_of(TupleTableSlot *slot)
{
	bool		is_null;

	return U64FromFullTransactionId(DatumGetFullTransactionId(column(slot, RS_SPOOL_XACT, &is_null)));
}

static bool
is_in(const RsSpoolBatch *batch, TupleTableSlot *slot)
{
	XLogRecPtr	position = position_of(slot);

	for (int i = batch != NULL ? batch->nrows : 0; i > 0; i--)
	{
		const RsSpoolRow *row = &batch->rows[i - 1].row;

		if (row->position < position)
			break;
		if (row->position == position && row->xact == xact_of(slot))
			return true;
	}
	return false;
}

/* What publishes a large transaction is a batch of its own. */
static bool
is_publication(TupleTableSlot *slot)
{
	bool		is_null;

	(void) column(slot, RS_SPOOL_PUBLICATION, &is_null);
	return !is_null;
}

/* Adds the row, unless its stream is to be left out; returns the bytes it has. */
static size_t
take(RsSpoolBatch *batch, RsBuckets bucket, TupleTableSlot *slot, RsSpoolLeave leave, void *argument)
{
	RsSpooled  *spooled = &batch->rows[batch->nrows];
	RsSpoolRow *row = &spooled->row;
	bool		is_null;
	Datum		data;
	bytea	   *bytes;

	row->bucket = bucket;
	row->position = position_of(slot);
	row->xact = xact_of(slot);
	row->ns = utf8_of(column(slot, RS_SPOOL_NAMESPACE, &is_null));
	row->stream = utf8_of(column(slot, RS_SPOOL_STREAM, &is_null));
	if (leave(argument, row->ns, row->stream))
	{
		if (batch->first_left == 0)
			batch->first_left = row->position;
		return 0;
	}
	data = column(slot, RS_SPOOL_PAYLOAD, &is_null);
	row->publication = is_null;
	if (is_null)
		data = column(slot, RS_SPOOL_PUBLICATION, &is_null);
	bytes = PG_DETOAST_DATUM_COPY(data);
	row->data = VARDATA(bytes);
	row->length = VARSIZE(bytes) - VARHDRSZ;
	spooled->spooled_at = DatumGetTimestampTz(column(slot, RS_SPOOL_SPOOLED_AT, &is_null));
	spooled->done = false;
	batch->nrows++;
	return row->length + BYTES_AROUND;
}

/*
 * What a crash could still undo must not be announced: commits that do not wait for the disk are there when this returns.
 */
static void
flush_wal(void)
{
	char		nothing = 0;

	if (GetFlushRecPtr(NULL) >= GetXLogInsertRecPtr())
		return;
	XLogBeginInsert();
	XLogRegisterData(&nothing, sizeof(nothing));
	XLogFlush(XLogInsert(RM_XLOG_ID, XLOG_NOOP));
}

void
rs_spool_fetch(RsSpoolBatch *batch, RsBuckets bucket, XLogRecPtr from, XLogRecPtr horizon,
			   const RsSpoolBatch *before, RsSpoolLeave leave, void *argument)
{
	Relation	table = rs_spool_table_open(AccessShareLock);
	Relation	index = rs_spool_index_open(AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	IndexScanDesc scan = index_beginscan(table, index, GetActiveSnapshot(), 2, 0);
	ScanKeyData keys[2];
	MemoryContext old;
	XLogRecPtr	last;			/* that was looked at */
	size_t		bytes = 0;
	int			looks = 0;

	MemoryContextReset(batch->context);
	old = MemoryContextSwitchTo(batch->context);
	batch->rows = palloc(sizeof(RsSpooled) * ROWS_MAX);
	batch->nrows = 0;
	batch->first_left = 0;
	last = from = before != NULL ? Max(from, before->next) : from;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(rs_spool_bucket_number(bucket)));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_PG_LSN_GE, LSNGetDatum(from));
	index_rescan(scan, keys, 2, NULL, 0);
	do
	{
		batch->end = !index_getnext_slot(scan, ForwardScanDirection, slot);
		if (batch->end || is_in(before, slot))
			continue;
		if (batch->nrows > 0 && (is_publication(slot) || batch->rows[0].row.publication))
			break;
		last = position_of(slot);
		bytes += take(batch, bucket, slot, leave, argument);
		CHECK_FOR_INTERRUPTS();
	} while (!batch->end && batch->nrows < ROWS_MAX && bytes < BYTES_MAX && ++looks < LOOKS_MAX);
	batch->next = Min(last, horizon);
	if (batch->nrows > 0)
		flush_wal();
	MemoryContextSwitchTo(old);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(table, AccessShareLock);
}

void
rs_spool_batch_cut(RsSpoolBatch *batch, int nrows)
{
	if (nrows == batch->nrows)
		return;
	batch->next = Min(batch->next, batch->rows[nrows].row.position);
	batch->nrows = nrows;
	batch->end = false;
}

/* The row of the batch that is in the slot, from the one with number "i" on; NULL if there is none. */
static const RsSpooled *
find(const RsSpoolBatch *batch, int *i, TupleTableSlot *slot)
{
	XLogRecPtr	position = position_of(slot);

	while (*i < batch->nrows && batch->rows[*i].row.position < position)
		(*i)++;
	for (int j = *i; j < batch->nrows && batch->rows[j].row.position == position; j++)
		if (batch->rows[j].row.xact == xact_of(slot))
			return &batch->rows[j];
	return NULL;
}

void
rs_spool_delete(const RsSpoolBatch *batch)
{
	Relation	table;
	Relation	index;
	TupleTableSlot *slot;
	IndexScanDesc scan;
	ScanKeyData keys[3];
	CommandId	command = GetCurrentCommandId(true);
	int			i = 0;

	if (batch->nrows == 0)
		return;
	table = rs_spool_table_open(RowExclusiveLock);
	index = rs_spool_index_open(AccessShareLock);
	slot = table_slot_create(table, NULL);
	scan = index_beginscan(table, index, GetActiveSnapshot(), lengthof(keys), 0);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(rs_spool_bucket_number(batch->rows[0].row.bucket)));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_PG_LSN_GE, LSNGetDatum(batch->rows[0].row.position));
	ScanKeyInit(&keys[2], 2, BTLessEqualStrategyNumber, F_PG_LSN_LE,
				LSNGetDatum(batch->rows[batch->nrows - 1].row.position));
	index_rescan(scan, keys, lengthof(keys), NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		const RsSpooled *spooled = find(batch, &i, slot);
		ItemPointerData tid = slot->tts_tid;
		TM_FailureData failure;

		/* whatever it says: a row that is gone need not be deleted */
		if (spooled != NULL && spooled->done)
			(void) table_tuple_delete(table, &tid, command, GetActiveSnapshot(), InvalidSnapshot,
									  true, &failure, false);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(table, NoLock);	/* the lock is held until the transaction ends */
	CommandCounterIncrement();
	UpdateActiveSnapshotCommandId();
}
