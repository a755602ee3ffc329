/*
 * bulk.c
 *	  redstream.enqueue() and redstream.bulk(): many rows in one transaction.
 *
 * bulk() locks the rows, writes their delay messages and waits until Redis has them before the statement touches
 * anything: if Redis is away, that is known before the work is done.  The rows are locked, and so they are the
 * same ones when the statement runs, in the same versions; the table's triggers leave out what has been announced already
 * (capture/announced.c), and announce what the statement touches beyond that.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/dest.h"
#include "utils/builtins.h"

#include "api/condition.h"
#include "api/rows.h"
#include "api/target.h"
#include "transaction/transaction.h"

PG_FUNCTION_INFO_V1(redstream_enqueue);
PG_FUNCTION_INFO_V1(redstream_bulk);

/* ---- enqueue --------------------------------------------------------------------------- */

Datum
redstream_enqueue(PG_FUNCTION_ARGS)
{
	RsSelection selection = {.lock = ""};
	RsRows	   *rows;
	int64		count;

	rs_api_check_nulls(fcinfo, 2, (const char *const[]) {"target", "matching"});
	PreventCommandDuringRecovery("redstream.enqueue()");
	SPI_connect();
	rows = rs_rows_open(PG_GETARG_OID(0), false);
	selection.where = rs_rows_matching(rows, text_to_cstring(PG_GETARG_TEXT_PP(1)),
									   "condition of redstream.enqueue()");
	selection.lock = rs_rows_lock(rows);
	(void) rs_rows_announce(rows, &selection, NULL, NULL);
	count = rows->announced;
	rs_rows_close(rows);
	SPI_finish();
	PG_RETURN_INT64(count);
}

/* ---- bulk -------------------------------------------------------------------------------- */

static bool
changes_data(Node *statement)
{
	WithClause *with;
	ListCell   *cell;

	if (IsA(statement, InsertStmt) || IsA(statement, UpdateStmt) || IsA(statement, DeleteStmt) ||
		IsA(statement, MergeStmt))
		return true;
	with = IsA(statement, SelectStmt) ? ((SelectStmt *) statement)->withClause : NULL;
	foreach(cell, with != NULL ? with->ctes : NIL)
	{
		Node	   *query = lfirst_node(CommonTableExpr, cell)->ctequery;

		if (!IsA(query, SelectStmt))
			return true;
	}
	return false;
}

/* The one statement of a text, which changes data. */
static Node *
parse_statement(const char *text)
{
	List	   *statements = rs_api_parse(text, "statement of redstream.bulk()");
	Node	   *statement;

	if (list_length(statements) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("redstream.bulk() takes one statement, not %d", list_length(statements))));
	statement = linitial_node(RawStmt, statements)->stmt;
	if (!changes_data(statement))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the statement of redstream.bulk() changes no data"),
				 errhint("It must be INSERT, UPDATE, DELETE or MERGE, maybe in a WITH.")));
	return statement;
}

/* What it returns is thrown away as it comes. */
static void
run(const char *statement)
{
	SPIExecuteOptions options = {.dest = None_Receiver};
	int			result = SPI_execute_extended(statement, &options);

	if (result < 0)
		elog(ERROR, "could not execute the statement of redstream.bulk(): %s",
			 SPI_result_code_string(result));
}

static int64
announce_and_run(RsRows *rows, const RsSelection *selection, const char *statement)
{
	RsAnnounced *outer = rs_capture_begin_announced();
	volatile int64 count = 0;

	PG_TRY();
	{
		count = rs_rows_announce(rows, selection, NULL, NULL);
		rs_transaction_flush();
		run(statement);
	}
	PG_FINALLY();
	{
		rs_capture_end_announced(outer);
	}
	PG_END_TRY();
	return count;
}

Datum
redstream_bulk(PG_FUNCTION_ARGS)
{
	RsSelection selection = {.changing = true,.ordered = true};
	char	   *statement;
	RsRows	   *rows;
	int64		count;

	rs_api_check_nulls(fcinfo, 3, (const char *const[]) {"target", "matching", "statement"});
	PreventCommandDuringRecovery("redstream.bulk()");
	SPI_connect();
	statement = text_to_cstring(PG_GETARG_TEXT_PP(2));
	/* As PostgreSQL itself does, an UPDATE leaves those alone who refer to the row: should it change the key, it will
	 * take the stronger lock. */
	selection.lock = IsA(parse_statement(statement), UpdateStmt) ? "FOR NO KEY UPDATE" : "FOR UPDATE";
	rows = rs_rows_open(PG_GETARG_OID(0), true);
	selection.where = rs_rows_matching(rows, text_to_cstring(PG_GETARG_TEXT_PP(1)),
									   "condition of redstream.bulk()");
	count = announce_and_run(rows, &selection, statement);
	rs_rows_close(rows);
	SPI_finish();
	PG_RETURN_INT64(count);
}
