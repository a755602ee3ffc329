/*
 * rows.c
 *	  Rows of a table, found by a query of the caller's and announced without a change.
 *
 * A message says "fetch this row", and so a row that somebody else changes meanwhile does no harm, whichever of the
 * two is announced first.  Not so where the payload says more than the key: an older one must not be the last word.  Such
 * rows are locked until the transaction ends (rs_rows_lock()).
 *
 * The attachment's condition is not part of the query, which would be parsed with the caller's search_path: printed as SQL, some
 * expressions do not name the operator that they use.  It is evaluated on each row.
 *
 * Of a table with children by inheritance only its own rows are meant, as its triggers see only these.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parser.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "api/condition.h"
#include "api/rows.h"
#include "api/target.h"

#define FETCH_ROWS 256
#define FIRST_COLUMN 3			/* of the query's result, after tableoid and ctid, which may be null */

/* ---- the table ----------------------------------------------------------------------- */

/* The columns of the primary key in the order of its index, by which rows are found fastest. */
static List *
key_in_order(Oid table)
{
	Oid			constraint = InvalidOid;
	List	   *key = NIL;
	HeapTuple	tuple;
	Datum		numbers;
	bool		null;
	Datum	   *elements;
	int			count;

	(void) get_primary_key_attnos(table, true, &constraint);
	if (!OidIsValid(constraint))
		return NIL;
	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for constraint %u", constraint);
	numbers = SysCacheGetAttr(CONSTROID, tuple, Anum_pg_constraint_conkey, &null);
	deconstruct_array(DatumGetArrayTypeP(numbers), INT2OID, 2, true, TYPALIGN_SHORT,
					  &elements, NULL, &count);
	for (int i = 0; i < count; i++)
		key = lappend_int(key, DatumGetInt16(elements[i]));
	ReleaseSysCache(tuple);
	return key;
}

/* The condition of the attachment, and the columns that it looks at. */
static void
prepare_condition(RsRows *rows, Node *condition)
{
	TupleDesc	descriptor = RelationGetDescr(rows->relation);
	Bitmapset  *numbers = NULL;
	int			member = -1;

	if (condition == NULL)
		return;
	rows->estate = CreateExecutorState();
	rows->condition = ExecPrepareQual(make_ands_implicit((Expr *) condition), rows->estate);
	pull_varattnos(condition, 1, &numbers);
	while ((member = bms_next_member(numbers, member)) >= 0)
	{
		AttrNumber	number = member + FirstLowInvalidHeapAttributeNumber;

		if (number > 0)
			rows->columns = bms_add_member(rows->columns, number);
		else if (number == TableOidAttributeNumber)
			rows->placed = true;
		else					/* the whole row */
			for (int i = 0; i < descriptor->natts; i++)
				if (!TupleDescAttr(descriptor, i)->attisdropped)
					rows->columns = bms_add_member(rows->columns, i + 1);
	}
}

RsRows *
rs_rows_open(Oid table, bool changing)
{
	Relation	relation = try_table_open(table, changing ? RowExclusiveLock : AccessShareLock);
	RsRows	   *rows = palloc0(sizeof(RsRows));
	RsAttachment *attachment;

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", table)));
	rs_api_check_table(relation, "announce rows of");
	rows->relation = relation;
	rows->captured = rs_capture_open(relation);
	attachment = rs_capture_attachment(rows->captured);
	if (attachment == NULL)
		rs_api_check_not_taken(relation, list_make1(RelationGetRelationName(relation)));
	rows->name = quote_identifier(RelationGetRelationName(relation));
	rows->table = psprintf("%s%s",
						   relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
						   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
													  RelationGetRelationName(relation)));
	rows->key = key_in_order(table);
	rows->columns = rs_capture_row_columns(rows->captured);
	if (attachment != NULL)
		prepare_condition(rows, attachment->condition);
	/* Without an attachment a partition may still be attached by itself, to another stream.  What a function returns may
	 * depend on what is going to be changed.  And who may only read some columns may not read a row's place: his rows are
	 * announced twice. */
	rows->noting = changing && attachment != NULL && attachment->function == NULL &&
		pg_class_aclcheck(table, GetUserId(), ACL_SELECT) == ACLCHECK_OK;
	rows->placed |= rows->noting;
	return rows;
}

void
rs_rows_close(RsRows *rows)
{
	if (rows->estate != NULL)
		FreeExecutorState(rows->estate);
	table_close(rows->relation, NoLock);
}

char *
rs_rows_matching(RsRows *rows, const char *matching, const char *what)
{
	Node	   *condition = rs_api_parse_condition(rows->relation, matching, EXPR_KIND_WHERE, what);

	return psprintf("(%s)", rs_api_condition_text(rows->relation, condition,
												  RelationGetRelationName(rows->relation)));
}

const char *
rs_rows_column(RsRows *rows, AttrNumber number)
{
	return psprintf("%s.%s", rows->name,
					quote_identifier(NameStr(TupleDescAttr(RelationGetDescr(rows->relation),
														   number - 1)->attname)));
}

const char *
rs_rows_lock(RsRows *rows)
{
	return rs_capture_is_key_only(rows->captured) ? "" : "FOR SHARE";
}

/* ---- the query ------------------------------------------------------------------------- */

/* Without a key the order is that of the rows' places: the same for everybody, at least. */
static void
append_order(StringInfo query, RsRows *rows, bool backwards)
{
	ListCell   *cell;

	if (rows->key == NIL)
		appendStringInfo(query, " ORDER BY %s.tableoid, %s.ctid", rows->name, rows->name);
	foreach(cell, rows->key)
		appendStringInfo(query, "%s%s%s", foreach_current_index(cell) == 0 ? " ORDER BY " : ", ",
						 rs_rows_column(rows, lfirst_int(cell)), backwards ? " DESC" : "");
}

static char *
make_query(RsRows *rows, const RsSelection *selection)
{
	StringInfoData query;
	int			number = -1;

	initStringInfo(&query);
	if (rows->placed)
		appendStringInfo(&query, "SELECT %s.tableoid, %s.ctid", rows->name, rows->name);
	else
		appendStringInfoString(&query, "SELECT NULL, NULL");
	while ((number = bms_next_member(rows->columns, number)) >= 0)
		appendStringInfo(&query, ", %s", rs_rows_column(rows, number));
	appendStringInfo(&query, " FROM %s WHERE %s", rows->table, selection->where);
	if (selection->ordered)
		append_order(&query, rows, selection->backwards);
	if (selection->limit > 0)
		appendStringInfo(&query, " LIMIT " INT64_FORMAT, selection->limit);
	if (!selection->looking)
		appendStringInfo(&query, " %s", selection->lock);
	return query.data;
}

double
rs_rows_estimate(RsRows *rows, const char *where)
{
	char	   *query = psprintf("SELECT FROM %s WHERE %s", rows->table, where);
	List	   *queries = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, pg_parse_query(query)),
															 query, NULL, 0, NULL);
	PlannedStmt *plan = pg_plan_query(linitial_node(Query, queries), query, 0, NULL);

	return plan->planTree->plan_rows;
}

/* ---- the rows ---------------------------------------------------------------------------- */

/* One row of the result, as one of the table: what was not read is null. */
static void
store_row(RsRows *rows, HeapTuple tuple, TupleTableSlot *row)
{
	int			column = FIRST_COLUMN;
	int			number = -1;

	ExecClearTuple(row);
	memset(row->tts_isnull, true, sizeof(bool) * row->tts_tupleDescriptor->natts);
	while ((number = bms_next_member(rows->columns, number)) >= 0)
		row->tts_values[number - 1] = SPI_getbinval(tuple, SPI_tuptable->tupdesc, column++,
													&row->tts_isnull[number - 1]);
	ExecStoreVirtualTuple(row);
}

/* Does the attachment's condition hold for the row? */
static bool
is_announced(RsRows *rows, TupleTableSlot *row)
{
	ExprContext *context;

	if (rows->estate == NULL)
		return true;
	context = GetPerTupleExprContext(rows->estate);
	ResetExprContext(context);
	context->ecxt_scantuple = row;
	return ExecQual(rows->condition, context);
}

static void
announce_row(RsRows *rows, const RsSelection *selection, HeapTuple tuple, TupleTableSlot *row)
{
	TupleDesc	descriptor = SPI_tuptable->tupdesc;
	bool		null;
	Datum		table = SPI_getbinval(tuple, descriptor, 1, &null);
	Datum		place = SPI_getbinval(tuple, descriptor, 2, &null);

	store_row(rows, tuple, row);
	row->tts_tableOid = rows->placed ? DatumGetObjectId(table) : InvalidOid;
	if (selection->looking || !is_announced(rows, row))
		return;
	rs_capture_row(rows->captured, row);
	rows->announced++;
	if (rows->noting && selection->changing)
		rs_capture_note_announced(row->tts_tableOid, (ItemPointer) DatumGetPointer(place));
}

/* SPI returns in its own memory context, which lasts as long as the call of a procedure, and not in its caller's. */
int64
rs_rows_announce(RsRows *rows, const RsSelection *selection, RsRowSeen seen, void *argument)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(old, "redstream row", ALLOCSET_DEFAULT_SIZES);
	TupleTableSlot *row = MakeSingleTupleTableSlot(RelationGetDescr(rows->relation), &TTSOpsVirtual);
	Portal		portal = SPI_cursor_open_with_args(NULL, make_query(rows, selection),
												   selection->nargs, selection->types,
												   selection->values, NULL, false, 0);
	int64		count = 0;

	PinPortal(portal);			/* a function that is called on the way might close it */
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			CHECK_FOR_INTERRUPTS();
			MemoryContextSwitchTo(context);
			announce_row(rows, selection, SPI_tuptable->vals[i], row);
			if (seen != NULL)
				seen(argument, row);
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		count += SPI_processed;
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_freetuptable(SPI_tuptable);
	UnpinPortal(portal);
	SPI_cursor_close(portal);
	MemoryContextSwitchTo(old);
	ExecDropSingleTupleTableSlot(row);
	MemoryContextDelete(context);
	return count;
}
