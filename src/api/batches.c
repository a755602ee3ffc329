/*
 * batches.c
 *	  redstream.bulk_update() and redstream.bulk_enqueue(): many rows, in batches that are transactions of their own.
 *
 *	    wait until Redis can be written to, and the queues are not half full
 *	      │
 *	      ▼
 *	    batch: the next rows behind the last key, announced (and locked, and changed)  ◄──┐
 *	      │           in a subtransaction: Redis fails ──► roll back, wait, once more ───┤
 *	      ▼                                                                             │
 *	    commit        Redis fails ──► it is rolled back, wait, once more ───────────────┤
 *	      │                                                                             │
 *	      ▼                                                                             │
 *	    say how far it is; fewer rows than asked for? done; else pause ─────────────────┘
 *
 * Between two batches there is no snapshot and no lock.  Nothing of the table is kept from one to the next but the last key, as text:
 * everything else is looked up again, so that DDL in between does no harm.  Any other error ends the call; its context says
 * behind which key to go on.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "api/condition.h"
#include "api/keyset.h"
#include "api/rows.h"
#include "api/target.h"
#include "progress.h"
#include "settings.h"
#include "transaction/transaction.h"
#include "transport/transport.h"

PG_FUNCTION_INFO_V1(redstream_bulk_update);
PG_FUNCTION_INFO_V1(redstream_bulk_enqueue);

#define WAIT_SLICE 50			/* milliseconds between two looks at the queues */

/* A call. */
typedef struct Run
{
	const char *procedure;
	Oid			table;
	const char *assignments;	/* NULL: nothing is changed */
	const char *matching;
	int			batch_size;
	int64		pause;			/* milliseconds */
	ArrayType  *last;			/* key of the last row that is done, as texts; NULL: none */
	const char *place;			/* the same as a literal */
	MemoryContext context;		/* of both */
	RsProgress	progress;
} Run;

/* What a batch came to. */
typedef struct Batch
{
	int64		chosen;			/* rows that were found */
	int64		rows;			/* of these, the ones that still matched when they were locked */
	ArrayType  *last;			/* key of the last one that was found; NULL: there were none */
	double		expected;		/* rows in all; of the first batch only */
} Batch;

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
	int			result;

	rs_keyset_parameters(keyset, &types, &values);
	/* a line of its own: the assignments may end in a comment */
	result = SPI_execute_with_args(psprintf("%s\nWHERE %s", update, rs_keyset_condition(keyset)),
								   keyset->ncolumns, types, values, NULL, false, 0);
	if (result != SPI_OK_UPDATE)
		elog(ERROR, "could not update a batch: %s", SPI_result_code_string(result));
}

/*
 * Announces the next rows and returns them.  Those that have to be locked are looked for beforehand: somebody may change the
 * key of one while its lock is waited for, and the place to go on from must not go with it.
 */
static RsKeyset *
announce_rows(Run *run, RsRows *rows, RsSelection *selection, Batch *batch)
{
	RsKeyset   *found = rs_keyset_create(rows);
	RsKeyset   *locked;

	selection->looking = selection->lock[0] != '\0';
	batch->chosen = batch->rows = rs_keyset_read(found, rows, selection, run->last,
												 run->batch_size);
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
update_batch(Run *run, RsRows *rows, RsSelection *selection, Batch *batch)
{
	char	   *update = begin_update(rows, run->assignments);
	RsAnnounced *outer = rs_capture_begin_announced();
	RsKeyset   *keyset;

	PG_TRY();
	{
		selection->changing = true;
		selection->lock = "FOR NO KEY UPDATE";
		keyset = announce_rows(run, rows, selection, batch);
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

static void
run_batch(Run *run, Batch *batch)
{
	RsSelection selection = {.lock = ""};
	RsRows	   *rows;

	PushActiveSnapshot(GetTransactionSnapshot());
	rows = rs_rows_open(run->table, run->assignments != NULL);
	selection.where = rs_rows_matching(rows, run->matching,
									   psprintf("condition of %s()", run->procedure));
	if (run->progress.total == 0)
		batch->expected = rs_rows_estimate(rows, selection.where);
	if (run->assignments != NULL)
		update_batch(run, rows, &selection, batch);
	else
	{
		selection.lock = rs_rows_lock(rows);
		(void) announce_rows(run, rows, &selection, batch);
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
try_batch(Run *run, MemoryContext context, Batch *batch)
{
	uint64		outages = rs_transaction_outages();
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool taken = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run_batch(run, batch);
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

/* ---- between two batches ---------------------------------------------------------------- */

static void
set_state(Run *run, RsProgressState state)
{
	run->progress.state = state;
	rs_progress_set(&run->progress);
}

static void
wait_for(int64 milliseconds)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(milliseconds, 60 * 1000), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Do others have to wait for room, or soon will? */
static bool
is_busy(const RsTransportStatus *status)
{
	uint64		half = (uint64) rs_queue_size * 1024 / 2;

	return status->delay_bytes > half || status->main_bytes > half;
}

static void
wait_for_redis(Run *run)
{
	RsTransportStatus status;
	bool		told = false;

	for (;;)
	{
		rs_transport_status(&status);
		if (status.connected && !is_busy(&status))
			break;
		if (!status.connected && !told)
			ereport(NOTICE,
					(errmsg("%s: waiting for Redis", run->procedure)));
		told |= !status.connected;
		set_state(run, RS_PROGRESS_WAITING);
		wait_for(WAIT_SLICE);
	}
	set_state(run, RS_PROGRESS_RUNNING);
}

static void
pause_for(Run *run)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), run->pause);

	set_state(run, RS_PROGRESS_PAUSING);
	for (;;)
	{
		int64		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (left <= 0)
			break;
		wait_for(left);
	}
}

/* Takes note of the place to go on from. */
static void
set_place(Run *run, ArrayType *last)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	MemoryContextReset(run->context);
	run->last = DatumGetArrayTypePCopy(PointerGetDatum(last));
	run->place = quote_literal_cstr(OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(last)));
	MemoryContextSwitchTo(old);
}

static double
seconds_of(const Run *run)
{
	return Max(1, GetCurrentTimestamp() - run->progress.started) / 1000000.0;
}

/* Takes note of a batch that is committed, and says so. */
static void
report(Run *run, const Batch *batch)
{
	RsProgress *progress = &run->progress;

	progress->done += batch->rows;
	set_place(run, batch->last);
	if (progress->total == 0)
		progress->total = (int64) batch->expected;
	progress->total = Max(progress->total, progress->done);
	memset(progress->last_key, 0, sizeof(progress->last_key));
	memcpy(progress->last_key, run->place,
		   pg_mbcliplen(run->place, strlen(run->place), RS_PROGRESS_KEY - 1));
	rs_progress_set(progress);
	ereport(NOTICE,
			(errmsg("%s: " INT64_FORMAT " of about " INT64_FORMAT " rows, %.0f rows/s; to go on behind them: start_after => %s",
					run->procedure, progress->done, progress->total,
					progress->done / seconds_of(run), run->place)));
}

/* ---- the call ------------------------------------------------------------------------------ */

/* Says in every error where to go on.  Called in any state of the transaction: looks nothing up. */
static void
add_context(void *argument)
{
	Run		   *run = argument;

	if (run->last != NULL && geterrcode() != ERRCODE_SUCCESSFUL_COMPLETION)
		errcontext("%s(): " INT64_FORMAT " rows are done; to go on behind them: start_after => %s",
				   run->procedure, run->progress.done, run->place);
}

/* One batch, again and again until Redis takes it. */
static void
do_batch(Run *run, MemoryContext context, Batch *batch)
{
	for (;;)
	{
		bool		done;

		wait_for_redis(run);
		MemoryContextReset(context);
		memset(batch, 0, sizeof(*batch));
		done = try_batch(run, context, batch);
		if (done)
			done = try_commit();
		else
			SPI_rollback();
		if (done)
			return;
		wait_for(WAIT_SLICE);
	}
}

static void
do_batches(Run *run)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "redstream batch",
												  ALLOCSET_DEFAULT_SIZES);
	ErrorContextCallback callback = {error_context_stack, add_context, run};
	MemoryContext old;
	Batch		batch;

	error_context_stack = &callback;
	for (;;)
	{
		do_batch(run, context, &batch);
		old = MemoryContextSwitchTo(context);
		if (batch.last != NULL)
			report(run, &batch);
		MemoryContextSwitchTo(old);
		if (batch.chosen < run->batch_size)
			break;
		if (run->pause > 0)
			pause_for(run);
	}
	error_context_stack = callback.previous;
	ereport(NOTICE,
			(errmsg("%s: done, " INT64_FORMAT " rows in %.1f s", run->procedure,
					run->progress.done, seconds_of(run))));
}

static int64
milliseconds_of(Interval *interval)
{
	/* as EXTRACT(epoch) */
	float8		seconds = DatumGetFloat8(DirectFunctionCall2(interval_part,
															 CStringGetTextDatum("epoch"),
															 IntervalPGetDatum(interval)));

	if (seconds < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("pause must not be negative")));
	return (int64) (seconds * 1000);
}

static void
check_call(FunctionCallInfo fcinfo, const char *procedure)
{
	CallContext *call = (CallContext *) fcinfo->context;

	if (call == NULL || !IsA(call, CallContext) || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s() cannot run inside a transaction block", procedure),
				 errdetail("Each of its batches is a transaction of its own."),
				 errhint("Inside of one use redstream.bulk() or redstream.enqueue().")));
	PreventCommandDuringRecovery(procedure);
	rs_transaction_check_preloaded();
}

/* The arguments from "matching" on are the same for both. */
static void
call(FunctionCallInfo fcinfo, const char *procedure, const char *assignments, int first)
{
	Run			run = {.procedure = procedure,.assignments = assignments};

	check_call(fcinfo, procedure);
	run.table = PG_GETARG_OID(0);
	run.matching = text_to_cstring(PG_GETARG_TEXT_PP(first));
	run.batch_size = PG_GETARG_INT32(first + 1);
	run.pause = milliseconds_of(PG_GETARG_INTERVAL_P(first + 2));
	if (run.batch_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	run.context = AllocSetContextCreate(CurrentMemoryContext, "redstream last key",
										ALLOCSET_SMALL_SIZES);
	if (!PG_ARGISNULL(first + 3))
		set_place(&run, PG_GETARG_ARRAYTYPE_P(first + 3));
	run.progress.database = MyDatabaseId;
	run.progress.table = run.table;
	run.progress.changing = assignments != NULL;
	run.progress.started = GetCurrentTimestamp();
	PG_TRY();
	{
		do_batches(&run);
	}
	PG_FINALLY();
	{
		rs_progress_clear();
	}
	PG_END_TRY();
	SPI_finish();
}

Datum
redstream_bulk_update(PG_FUNCTION_ARGS)
{
	const char *const names[] = {"target", "assignments", "matching", "batch_size", "pause"};

	rs_api_check_nulls(fcinfo, lengthof(names), names);
	call(fcinfo, "redstream.bulk_update", text_to_cstring(PG_GETARG_TEXT_PP(1)), 2);
	PG_RETURN_VOID();
}

Datum
redstream_bulk_enqueue(PG_FUNCTION_ARGS)
{
	const char *const names[] = {"target", "matching", "batch_size", "pause"};

	rs_api_check_nulls(fcinfo, lengthof(names), names);
	call(fcinfo, "redstream.bulk_enqueue", NULL, 1);
	PG_RETURN_VOID();
}
