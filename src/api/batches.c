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
 * Between two batches there is no snapshot and no lock.  Any other error ends the call; its context says behind which key to
 * go on.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "api/batch.h"
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
	RsBatchTask task;
	int64		pause;			/* milliseconds */
	const char *place;			/* the last row that is done, as a literal; NULL: none */
	MemoryContext context;		/* of it and its key */
	RsProgress	progress;
} Run;

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
					(errmsg("%s: waiting for Redis", run->task.procedure)));
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
	run->task.range.after = DatumGetArrayTypePCopy(PointerGetDatum(last));
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
report(Run *run, const RsBatch *batch)
{
	RsProgress *progress = &run->progress;

	progress->done += batch->rows;
	set_place(run, batch->last);
	if (progress->total == 0)
		progress->total = (int64) run->task.expected;
	progress->total = Max(progress->total, progress->done);
	memset(progress->last_key, 0, sizeof(progress->last_key));
	memcpy(progress->last_key, run->place,
		   pg_mbcliplen(run->place, strlen(run->place), RS_PROGRESS_KEY - 1));
	rs_progress_set(progress);
	ereport(NOTICE,
			(errmsg("%s: " INT64_FORMAT " of about " INT64_FORMAT " rows, %.0f rows/s; to go on behind them: start_after => %s",
					run->task.procedure, progress->done, progress->total,
					progress->done / seconds_of(run), run->place)));
}

/* ---- the call ------------------------------------------------------------------------------ */

/* Says in every error where to go on.  Called in any state of the transaction: looks nothing up. */
static void
add_context(void *argument)
{
	Run		   *run = argument;

	if (run->place != NULL && geterrcode() != ERRCODE_SUCCESSFUL_COMPLETION)
		errcontext("%s(): " INT64_FORMAT " rows are done; to go on behind them: start_after => %s",
				   run->task.procedure, run->progress.done, run->place);
}

/* One batch, again and again until Redis takes it. */
static void
do_batch(Run *run, MemoryContext context, RsBatch *batch)
{
	wait_for_redis(run);
	while (!rs_batch_try(&run->task, context, batch))
	{
		wait_for(WAIT_SLICE);
		wait_for_redis(run);
	}
}

static void
do_batches(Run *run)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "redstream batch",
												  ALLOCSET_DEFAULT_SIZES);
	ErrorContextCallback callback = {error_context_stack, add_context, run};
	MemoryContext old;
	RsBatch		batch;

	SPI_commit();				/* lets go of CALL's snapshot, before Redis is waited for */
	error_context_stack = &callback;
	for (;;)
	{
		do_batch(run, context, &batch);
		old = MemoryContextSwitchTo(context);
		if (batch.last != NULL)
			report(run, &batch);
		MemoryContextSwitchTo(old);
		if (batch.chosen < run->task.batch_size)
			break;
		if (run->pause > 0)
			pause_for(run);
	}
	error_context_stack = callback.previous;
	ereport(NOTICE,
			(errmsg("%s: done, " INT64_FORMAT " rows in %.1f s", run->task.procedure,
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
	Run			run = {.task = {.procedure = procedure,.assignments = assignments}};

	check_call(fcinfo, procedure);
	run.task.table = PG_GETARG_OID(0);
	run.task.matching = text_to_cstring(PG_GETARG_TEXT_PP(first));
	run.task.batch_size = PG_GETARG_INT32(first + 1);
	run.pause = milliseconds_of(PG_GETARG_INTERVAL_P(first + 2));
	if (run.task.batch_size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1")));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	run.task.context = CurrentMemoryContext;
	run.context = AllocSetContextCreate(CurrentMemoryContext, "redstream last key",
										ALLOCSET_SMALL_SIZES);
	if (!PG_ARGISNULL(first + 3))
		set_place(&run, PG_GETARG_ARRAYTYPE_P(first + 3));
	run.progress.database = MyDatabaseId;
	run.progress.table = run.task.table;
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
