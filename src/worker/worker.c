/*
 * worker.c
 *	  The background worker of a database: the process and its loop, in which the jobs,
 *	  spooler, delayer and trimmer, take their turns.
 *
 * It begins by finding out whether the database has the extension, and ends without a word
 * when it does not (any more).  A tick reads the list of streams in a transaction, and then
 * does what is due; no transaction is open while Redis is waited for.
 *
 * That Redis cannot be asked is written to the lines of all jobs, and tried again every second.  An
 * ERROR is written there too and ends the process; the launcher starts another one.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "processes.h"
#include "settings.h"
#include "spool/spool.h"
#include "worker/registry.h"
#include "worker/work.h"

#define SECOND 1000000			/* microseconds, as all times here */
#define TICK_LONGEST SECOND		/* so that a DROP EXTENSION is soon noticed */
#define RETRY_INTERVAL SECOND

typedef struct Job
{
	RsJob		job;
	RsProcessKind kind;
	bool		(*step) (RsWork *work, RsError *error);
	uint64		(*due) (const RsWork *work);
} Job;

static const Job jobs[] = {
	{RS_JOB_SPOOLER, RS_PROCESS_SPOOLER, rs_spooler_step, rs_spooler_due},
	{RS_JOB_DELAYER, RS_PROCESS_DELAYER, rs_delayer_step, rs_delayer_due},
	{RS_JOB_TRIMMER, RS_PROCESS_TRIMMER, rs_trimmer_step, rs_trimmer_due}
};

static Oid	database;
static RsWork *work;
static MemoryContext tick_context;	/* what a tick allocates and nobody keeps */
static const Job *running_job;	/* NULL: none */
static bool serving;			/* the extension is there */
static bool failed;				/* an ERROR ends the process */
static bool disconnected;		/* this was logged */
static uint64 retry_at;			/* when Redis may be asked again */

/* ---- the lines of redstream.workers --------------------------------------------- */

static void
set_lines(int pid, RsProcessState state)
{
	for (size_t i = 0; i < lengthof(jobs); i++)
		rs_process_set(database, jobs[i].kind, pid, state);
}

/* Ends the tick of a job, or of all. */
static void
end_tick(const Job *job, const char *error)
{
	for (size_t i = 0; i < lengthof(jobs); i++)
		if (job == NULL || job == &jobs[i])
			rs_process_tick_end(database, jobs[i].kind, error);
}

/* The error of the first stream that the job has trouble with, or NULL. */
static const char *
first_error(RsJob job)
{
	ListCell   *cell;

	foreach(cell, work->streams)
	{
		const RsWorkStream *stream = lfirst(cell);
		const char *error = stream->reports[job].error;

		if (error != NULL)
			return psprintf("stream %s: %s", stream->name, error);
	}
	return NULL;
}

/* ---- waiting and signals -------------------------------------------------------------- */

/* Is Redis not waited for any more?  While it is being connected to, changed settings may say that it is somewhere else. */
static bool
gives_up(void)
{
	return ShutdownRequestPending || (ConfigReloadPending && work->connection == NULL);
}

/* Waits for Redis; this can be long, and others must not wait for us meanwhile. */
static bool
wait_for_redis(void *argument, int fd, bool writable, int timeout_ms)
{
	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT |
							 (writable ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE),
							 fd, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	if (ProcSignalBarrierPending)
		ProcessProcSignalBarrier();
	return !gives_up();
}

/* Takes up changed settings; another address or namespace means another connection. */
static void
reload(void)
{
	char	   *url = pstrdup(rs_url);
	char	   *password_file = pstrdup(rs_password_file);
	int			generation = rs_namespace_generation;

	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	if (strcmp(url, rs_url) == 0 && strcmp(password_file, rs_password_file) == 0 &&
		generation == rs_namespace_generation)
		return;
	rs_work_disconnect(work);
	retry_at = 0;
}

static void
handle_signals(void)
{
	if (ShutdownRequestPending)
		proc_exit(0);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
		reload();
}

/* ---- a tick ------------------------------------------------------------------------------ */

/* Brings the list of streams up to date; does not return when the extension is not there. */
static void
look(void)
{
	bool		found;

	pgstat_report_activity(STATE_RUNNING, "reading the list of streams");
	rs_registry_begin_look(database);
	rs_work_begin(work);
	found = rs_work_refresh(work);
	rs_work_end(work);
	pgstat_report_stat(false);
	if (!found)
	{
		serving = false;
		rs_process_forget(database);
		rs_registry_report(database, RS_FINDING_NO_EXTENSION);
		proc_exit(0);
	}
	if (serving)
		return;
	serving = true;
	rs_spool_serve();
	set_lines(MyProcPid, RS_PROCESS_IDLE);
	rs_registry_report(database, RS_FINDING_EXTENSION);
}

/* Redis cannot be asked; one line in the log for as long as that lasts. */
static void
note_outage(const RsError *error)
{
	if (gives_up())
		return;					/* that is why */
	end_tick(NULL, error->text);
	retry_at = rs_now() + RETRY_INTERVAL;
	if (!disconnected)
		ereport(LOG, (errmsg("redstream: the worker of database \"%s\" cannot ask Redis: %s",
							 MyBgworkerEntry->bgw_extra, error->text)));
	disconnected = true;
}

static void
note_recovery(void)
{
	if (!disconnected)
		return;
	for (size_t i = 0; i < lengthof(jobs); i++)
		end_tick(&jobs[i], first_error(jobs[i].job));
	ereport(LOG, (errmsg("redstream: the worker of database \"%s\" can ask Redis again",
						 MyBgworkerEntry->bgw_extra)));
	disconnected = false;
}

static void
run(const Job *job)
{
	RsError		error;

	rs_process_tick_begin(database, job->kind);
	running_job = job;
	if (job->step(work, &error))
	{
		MemoryContextSwitchTo(tick_context);
		note_recovery();
		end_tick(job, first_error(job->job));
	}
	else
		note_outage(&error);
	running_job = NULL;
	MemoryContextSwitchTo(tick_context);
}

static bool
is_due(const Job *job)
{
	return !ShutdownRequestPending && job->due(work) <= rs_now();
}

/* Asks Redis at every tick, were it only for the streams that no table is attached to. */
static void
run_what_is_due(void)
{
	RsError		error;

	if (rs_now() < retry_at)
		return;
	pgstat_report_activity(STATE_RUNNING, "asking Redis");
	if (!rs_work_connect(work, &error) || !rs_work_know(work, &error))
	{
		note_outage(&error);
		return;
	}
	for (size_t i = 0; i < lengthof(jobs); i++)
		if (work->connection != NULL && is_due(&jobs[i]))
			run(&jobs[i]);
	if (work->connection != NULL)
		note_recovery();
}

static void
tick(void)
{
	MemoryContextSwitchTo(tick_context);
	PG_TRY();
	{
		look();
		run_what_is_due();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(work->context);
		error = CopyErrorData();
		failed = true;
		end_tick(running_job, error->message);
		rs_registry_report(database, RS_FINDING_ERROR);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(work->context);
	MemoryContextReset(tick_context);
}

static void
sleep_until_due(void)
{
	uint64		now = rs_now();
	uint64		due = now + TICK_LONGEST;

	for (size_t i = 0; i < lengthof(jobs); i++)
		due = Min(due, Max(jobs[i].due(work), retry_at));
	pgstat_report_activity(STATE_IDLE, NULL);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 due > now ? (due - now) / 1000 + 1 : 0, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/* ---- the process ---------------------------------------------------------------------------- */

static void
disappear(int code, Datum argument)
{
	if (serving)
		set_lines(0, failed ? RS_PROCESS_FAILING : RS_PROCESS_STARTING);
}

/* What the database or a role may set otherwise and the worker relies on. */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"application_name", "redstream worker"},
		{"default_transaction_isolation", "read committed"},
		{"search_path", "pg_catalog"},
		{"synchronous_commit", "on"},	/* what is deleted from the spool must not come back */
		{"lock_timeout", "3s"}	/* nothing here is worth queueing behind a DDL command */
	};

	for (size_t i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

static void
appear(void)
{
	switch (rs_registry_claim(database))
	{
		case RS_CLAIM_DONE:
			break;
		case RS_CLAIM_REFUSED:
			proc_exit(0);
		case RS_CLAIM_NO_ROOM:
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("redstream: no room for another database, the most are %d",
							RS_REGISTRY_SIZE),
					 errhint("List the databases to serve in redstream.databases.")));
	}
	override_settings();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	before_shmem_exit(disappear, 0);
	work = rs_work_create(TopMemoryContext, wait_for_redis, true);
	tick_context = AllocSetContextCreate(work->context, "redstream tick", ALLOCSET_DEFAULT_SIZES);
}

void
redstream_worker_main(Datum argument)
{
	database = DatumGetObjectId(argument);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, rs_worker_handle_sigterm);
	BackgroundWorkerUnblockSignals();
	appear();
	for (;;)
	{
		handle_signals();
		tick();
		handle_signals();
		sleep_until_due();
	}
}
