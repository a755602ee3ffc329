/*-------------------------------------------------------------------------
 *
 * redstream_test.c
 *	  Helpers for redstream's tests and benchmark.
 *
 * Transaction callbacks run last-registered first, and a library listed in
 * shared_preload_libraries registers when its turn comes.  So the place of
 * this module in the list decides what its settings test:
 *
 *	 'redstream_test, redstream'	runs after redstream's step: rows that
 *									appear, errors and deaths once redstream
 *									has prepared the commit
 *	 'redstream, redstream_test'	runs before redstream's step: a pause
 *									between the moment others see the commit
 *									and redstream's hearing of it
 *
 * The settings apply to transactions that have a transaction id.  A plain SET
 * is a transaction too; without this rule it would fall into its own trap.
 *
 * redstream_test.sender_error makes each sender fail before its first
 * connection counts.
 *
 * redstream_test.memory() tells what is allocated now.  A backend's peak is
 * in /proc/<pid>/status, line VmHWM.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "postmaster/bgworker.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

PG_FUNCTION_INFO_V1(redstream_test_noop);
PG_FUNCTION_INFO_V1(redstream_test_memory);

static int	commit_pause = 0;
static char *pre_commit_sql = NULL;
static bool pre_commit_kill = false;
static bool pre_commit_error = false;
static bool sender_error = false;
static emit_log_hook_type previous_emit_log;

/*
 * Runs once a transaction: SPI is atomic here, so the statement cannot commit
 * and come back.
 */
static void
run_pre_commit_sql(void)
{
	int			result;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	result = SPI_execute(pre_commit_sql, false, 0);
	if (result < 0)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION),
				 errmsg("redstream_test.pre_commit_sql could not be run: %s",
						SPI_result_code_string(result))));
	SPI_finish();
	PopActiveSnapshot();
}

static void
pre_commit(void)
{
	if (pre_commit_sql != NULL && pre_commit_sql[0] != '\0')
		run_pre_commit_sql();
	if (pre_commit_kill)
		kill(getpid(), SIGKILL);
	if (pre_commit_error)
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("redstream_test.pre_commit_error is on")));
}

/* A signal ends a single pg_usleep early, hence the loop. */
static void
pause_for(int milliseconds)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
	TimestampTz now;

	while ((now = GetCurrentTimestamp()) < end)
		pg_usleep((long) Min(end - now, 100000));
}

static void
xact_callback(XactEvent event, void *arg pg_attribute_unused())
{
	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			if (commit_pause > 0)
				pause_for(commit_pause);
			break;
		default:
			break;
	}
}

/* The sender calls nothing that could be hooked, but it says in the log that it is connected, before it tells others. */
static void
emit_log(ErrorData *message)
{
	if (previous_emit_log)
		previous_emit_log(message);
	if (sender_error && MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry->bgw_type, "redstream sender") == 0 && message->elevel == LOG)
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("redstream_test.sender_error is on")));
}

void
_PG_init(void)
{
	DefineCustomIntVariable("redstream_test.commit_pause",
							"Sleeps so long between a commit's becoming visible and its later callbacks.",
							NULL,
							&commit_pause, 0, 0, 600000,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomStringVariable("redstream_test.pre_commit_sql",
							   "SQL to run in the pre-commit callback.",
							   NULL,
							   &pre_commit_sql, "",
							   PGC_USERSET, 0,
							   NULL, NULL, NULL);
	DefineCustomBoolVariable("redstream_test.pre_commit_kill",
							 "Kills the backend in the pre-commit callback.",
							 NULL,
							 &pre_commit_kill, false,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("redstream_test.pre_commit_error",
							 "Raises an error in the pre-commit callback.",
							 NULL,
							 &pre_commit_error, false,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("redstream_test.sender_error",
							 "Raises an error in the sender when it is connected.",
							 NULL,
							 &sender_error, false,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	/* A misspelt setting would let a test pass for nothing. */
	EmitWarningsOnPlaceholders("redstream_test");

	RegisterXactCallback(xact_callback, NULL);
	previous_emit_log = emit_log_hook;
	emit_log_hook = emit_log;
}

Datum
redstream_test_noop(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("redstream_test.noop must be called as an AFTER ROW trigger")));

	return PointerGetDatum(NULL);
}

Datum
redstream_test_memory(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) MemoryContextMemAllocated(TopMemoryContext, true));
}
