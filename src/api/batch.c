/*
 * batch.c
 *	  One batch of redstream.bulk_update() and redstream.bulk_enqueue(), and its end when Redis does not take it.
 *
 * Nothing of the table is kept from one batch to the next but keys, as text: everything else is looked up again, so that DDL in
 * between does no harm.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "api/batch.h"
#include "api/condition.h"
#include "transaction/transaction.h"

/* ---- one batch ------------------------------------------------------------------------- */

static bool
is_in_key(RsRows *rows, const char *name)
{
	ListCell   *cell;

	foreach(cell, rows->key)
		if (strcmp(NameStr(TupleDescAttr(RelationGetDescr(rows->relation),
										 lfirst_int(cell) - 1)->attname), name) == 0)
			return true;
	return false;
}

/* Who assigns to what it is made of, moves the row. */
static bool
has_generated_key(RsRows *rows)
{
	ListCell   *cell;

	foreach(cell, rows->key)
		if (TupleDescAttr(RelationGetDescr(rows->relation), lfirst_int(cell) - 1)->attgenerated != '\0')
			return true;
	return false;
}

/* Our own parameters, the keys, are not the caller's. */
static bool
refuse_parameters(Node *node, void *context)
{
	if (node != NULL && IsA(node, ParamRef))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_PARAMETER),
				 errmsg("there is no parameter $%d", ((ParamRef *) node)->number)));
	return raw_expression_tree_walker(node, refuse_parameters, context);
}

/* The beginning of the UPDATE, up to its WHERE.  Raises an error for more than assignments, and for those that move rows to
 * another place in the order that they are being read in. */
static char *
begin_update(RsRows *rows, const char *assignments)
{
	char	   *query = psprintf("UPDATE %s SET %s", rows->table, assignments);
	List	   *statements = rs_api_parse(query, "assignments of redstream.bulk_update()");
	RawStmt    *raw = linitial_node(RawStmt, statements);
	UpdateStmt *update = (UpdateStmt *) raw->stmt;
	ListCell   *cell;

	if (list_length(statements) != 1 || update->whereClause != NULL ||
		update->fromClause != NIL || update->returningList != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("assignments of redstream.bulk_update() have more than what follows SET: \"%s\"",
						assignments),
				 errhint("Which rows to update is said by \"matching\".")));
	if (has_generated_key(rows))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot update table \"%s\" in batches: a column of its primary key is generated",
						RelationGetRelationName(rows->relation)),
				 errhint("Use redstream.bulk().")));
	foreach(cell, update->targetList)
		if (is_in_key(rows, lfirst_node(ResTarget, cell)->name))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot update primary key column \"%s\" in batches",
							lfirst_node(ResTarget, cell)->name),
					 errhint("Use redstream.bulk().")));
	(void) refuse_parameters((Node *) update, NULL);
	if (raw->stmt_len > 0)
		query[raw->stmt_location + raw->stmt_len] = '\0';
	return query;
}

static void
update_rows(RsKeyset *keyset, const char *update)
{
	Oid		   *types;
	Datum	   *values;
	MemoryContext old = CurrentMemoryContext;
	int			result;

	rs_keyset_parameters(keyset, &types, &values);
	/* a line of its own: the assignments may end in a comment */
	result = SPI_execute_with_args(psprintf("%s\nWHERE %s", update, rs_keyset_condition(keyset)),
								   keyset->ncolumns, types, values, NULL, false, 0);
	MemoryContextSwitchTo(old);	/* SPI returns in its own, which lasts as long as the call */
	if (result != SPI_OK_UPDATE)
		elog(ERROR, "could not update a batch: %s", SPI_result_code_string(result));
}

/*
 * Announces the next rows and returns them.  Those that have to be locked are looked for beforehand: somebody may change the
 * key of one while its lock is waited for, and the place to go on from must not go with it.
 */
static RsKeyset *
announce_rows(RsBatchTask *task, RsRows *rows, RsSelection *selection, RsBatch *batch)
{
	RsKeyset   *found = rs_keyset_create(rows);
	RsKeyset   *locked;

	selection->looking = selection->lock[0] != '\0';
	batch->chosen = batch->rows = rs_keyset_read(found, rows, selection, &task->range,
												 task->batch_size);
	batch->last = rs_keyset_last(found);
	if (!selection->looking || batch->chosen == 0)
		return found;
	selection->looking = false;
	locked = rs_keyset_create(rows);
	batch->rows = rs_keyset_announce(found, rows, selection, locked);
	return locked;
}

/* Announces the next rows, waits until Redis has their delay messages, and updates them. */
static void
update_batch(RsBatchTask *task, RsRows *rows, RsSelection *selection, RsBatch *batch)
{
	char	   *update = begin_update(rows, task->assignments);
	RsAnnounced *outer = rs_capture_begin_announced();
	RsKeyset   *keyset;

	PG_TRY();
	{
		selection->changing = true;
		selection->lock = "FOR NO KEY UPDATE";
		keyset = announce_rows(task, rows, selection, batch);
		rs_transaction_flush();
		if (batch->rows > 0)
			update_rows(keyset, update);
	}
	PG_FINALLY();
	{
		rs_capture_end_announced(outer);
	}
	PG_END_TRY();
}

/* Rows that come behind the last one there is now are not waited for: there may be no end to them. */
static void
find_end(RsBatchTask *task, RsRows *rows, const RsSelection *selection)
{
	ArrayType  *end = rs_keyset_end(rows, selection);
	MemoryContext old = MemoryContextSwitchTo(task->context);

	if (end != NULL)
		task->range.last = DatumGetArrayTypePCopy(PointerGetDatum(end));
	task->expected = rs_rows_estimate(rows, selection->where);
	MemoryContextSwitchTo(old);
}

static void
run_batch(RsBatchTask *task, RsBatch *batch)
{
	RsSelection selection = {.lock = ""};
	RsRows	   *rows;

	PushActiveSnapshot(GetTransactionSnapshot());
	rows = rs_rows_open(task->table, task->assignments != NULL);
	selection.where = rs_rows_matching(rows, task->matching,
									   psprintf("condition of %s()", task->procedure));
	if (task->range.last == NULL)
		find_end(task, rows, &selection);
	if (task->assignments != NULL)
		update_batch(task, rows, &selection, batch);
	else
	{
		selection.lock = rs_rows_lock(rows);
		(void) announce_rows(task, rows, &selection, batch);
	}
	rs_rows_close(rows);
	PopActiveSnapshot();
	rs_transaction_flush();
}

/* ---- when Redis is away ---------------------------------------------------------------- */

/* Takes the error that is being handled; throws it again unless it is one that waiting may heal. */
static void
forgive_outage(ErrorData *error, uint64 outages_before)
{
	if (error->sqlerrcode != ERRCODE_IO_ERROR || rs_transaction_outages() == outages_before)
		ReThrowError(error);
	FreeErrorData(error);
}

static ErrorData *
take_error(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	return error;
}

/* In a subtransaction, since its errors are to be survived.  False: Redis did not take the messages. */
static bool
try_batch(RsBatchTask *task, MemoryContext context, RsBatch *batch)
{
	uint64		outages = rs_transaction_outages();
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool taken = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_batch(task, batch);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error = take_error(old);

		/* first of all: who catches it further up knows nothing of this subtransaction */
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
		forgive_outage(error, outages);
		taken = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return taken;
}

/* SPI_commit() has begun a new transaction when it throws (spi.c). */
static bool
try_commit(void)
{
	uint64		outages = rs_transaction_outages();
	MemoryContext old = CurrentMemoryContext;
	volatile bool committed = true;

	PG_TRY();
	{
		SPI_commit();
	}
	PG_CATCH();
	{
		forgive_outage(take_error(old), outages);
		committed = false;
	}
	PG_END_TRY();
	return committed;
}

bool
rs_batch_try(RsBatchTask *task, MemoryContext context, RsBatch *batch)
{
	MemoryContextReset(context);
	memset(batch, 0, sizeof(*batch));
	if (try_batch(task, context, batch))
		return try_commit();
	SPI_rollback();
	return false;
}
