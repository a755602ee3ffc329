/*
 * store.c
 *	  Rows of redstream.spool, from the transaction that leaves its records there.
 *
 * They are written below the executor, as the server writes its catalogs: rights, row security, triggers,
 * READ ONLY and publications say what users may do with tables, and this is not a user's doing.
 * TABLE_INSERT_NO_LOGICAL keeps them from logical decoding; heap_multi_insert() has no such option, so rows go one by one.
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
#include "catalog/namespace.h"
#include "catalog/pg_control.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "spool/table.h"

#define TABLE "spool"
#define INDEX "spool_order"

static XLogRecPtr last_position;	/* that this process has given out */

struct RsSpoolWriter
{
	Relation	table;
	ResultRelInfo *indexes;
	EState	   *state;
	TupleTableSlot *slot;
	CommandId	command;
	TimestampTz now;
};

/* ---- the table ------------------------------------------------------------------------ */

static Oid
find(const char *name)
{
	Oid			oid = get_relname_relid(name, get_namespace_oid("redstream", false));

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation redstream.%s does not exist", name),
				 errhint("The extension redstream belongs to another version of the library, or is not there.")));
	return oid;
}

Relation
rs_spool_table_open(LOCKMODE mode)
{
	Relation	table = table_open(find(TABLE), mode);

	if (RelationGetNumberOfAttributes(table) != RS_SPOOL_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("table redstream.spool has not the columns that it should have"),
				 errhint("The extension redstream belongs to another version of the library.")));
	return table;
}

Relation
rs_spool_index_open(LOCKMODE mode)
{
	return index_open(find(INDEX), mode);
}

bool
rs_spool_exists(void)
{
	return OidIsValid(get_extension_oid("redstream", true));
}

/*
 * With a snapshot that is no MVCC snapshot nothing is noted for SERIALIZABLE: what is seen here does not decide what the
 * transaction does to its data.
 */
bool
rs_spool_has_rows(RsBuckets bucket)
{
	Relation	table;
	Relation	index;
	TupleTableSlot *slot;
	IndexScanDesc scan;
	ScanKeyData key;
	bool		found;

	table = rs_spool_table_open(AccessShareLock);
	index = rs_spool_index_open(AccessShareLock);
	slot = table_slot_create(table, NULL);
	scan = index_beginscan(table, index, SnapshotSelf, 1, 0);
	ScanKeyInit(&key, RS_SPOOL_BUCKET, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(rs_spool_bucket_number(bucket)));
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(table, AccessShareLock);
	return found;
}

XLogRecPtr
rs_spool_position(uint64 count)
{
	XLogRecPtr	position = Max(last_position + 1, GetXLogInsertRecPtr());

	last_position = position + count;
	return position;
}

/* A row takes more WAL than its position does: there is something to do only if many have been given out for rows that were not written. */
void
rs_spool_settle(void)
{
	static char nothing[BLCKSZ];

	while (GetXLogInsertRecPtr() <= last_position)
	{
		XLogBeginInsert();
		XLogRegisterData(nothing, Min(sizeof(nothing), last_position - GetXLogInsertRecPtr() + 1));
		(void) XLogInsert(RM_XLOG_ID, XLOG_NOOP);
	}
}

/* ---- writing ----------------------------------------------------------------------------- */

RsSpoolWriter *
rs_spool_writer_open(void)
{
	RsSpoolWriter *writer = palloc(sizeof(RsSpoolWriter));

	writer->table = rs_spool_table_open(RowExclusiveLock);
	writer->state = CreateExecutorState();
	writer->indexes = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->indexes, writer->table, 0, NULL, 0);
	ExecOpenIndices(writer->indexes, false);
	writer->slot = table_slot_create(writer->table, NULL);
	writer->command = GetCurrentCommandId(true);
	writer->now = GetCurrentTimestamp();
	return writer;
}

static Datum
text_of(const char *utf8)
{
	char	   *text = pg_any_to_server(utf8, strlen(utf8), PG_UTF8);

	return CStringGetTextDatum(text);
}

static Datum
bytes_of(const char *data, size_t length)
{
	return PointerGetDatum(cstring_to_text_with_len(data, length));
}

void
rs_spool_write(RsSpoolWriter *writer, const RsSpoolRow *row)
{
	TupleTableSlot *slot = writer->slot;
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->state));
	Datum	   *values = slot->tts_values - 1;	/* columns count from 1 */
	bool	   *nulls = slot->tts_isnull - 1;
	int			data = row->publication ? RS_SPOOL_PUBLICATION : RS_SPOOL_PAYLOAD;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, RS_SPOOL_COLUMNS);
	values[RS_SPOOL_BUCKET] = Int16GetDatum(rs_spool_bucket_number(row->bucket));
	values[RS_SPOOL_POSITION] = LSNGetDatum(row->position);
	values[RS_SPOOL_XACT] = FullTransactionIdGetDatum(FullTransactionIdFromU64(row->xact));
	values[RS_SPOOL_NAMESPACE] = text_of(row->ns);
	values[RS_SPOOL_STREAM] = text_of(row->stream);
	nulls[RS_SPOOL_PAYLOAD] = nulls[RS_SPOOL_PUBLICATION] = true;
	values[data] = bytes_of(row->data, row->length);
	nulls[data] = false;
	values[RS_SPOOL_SPOOLED_AT] = TimestampTzGetDatum(writer->now);
	ExecStoreVirtualTuple(slot);

	table_tuple_insert(writer->table, slot, writer->command, TABLE_INSERT_NO_LOGICAL, NULL);
	ExecInsertIndexTuples(writer->indexes, slot, writer->state, false, false, NULL, NIL);
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(writer->state);
}

void
rs_spool_writer_close(RsSpoolWriter *writer)
{
	ExecDropSingleTupleTableSlot(writer->slot);
	ExecCloseIndices(writer->indexes);
	FreeExecutorState(writer->state);
	table_close(writer->table, NoLock);	/* the lock is held until the transaction ends */
	pfree(writer);
}
