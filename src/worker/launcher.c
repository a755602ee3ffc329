/*
 * launcher.c
 *	  The background worker that finds the databases with the extension and keeps a worker
 *	  running for each.
 *
 * pg_extension is a database's own, so that only a process connected to the database
 * can see whether the extension is there.  The worker itself looks, and ends when
 * it is not.  src/README.md draws the states of a database.
 *
 * The launcher sees the shared catalogs only, has no transaction open while it
 * sleeps, and keeps nothing that its successor could not find out again: which
 * workers run is in the registry.  Errors thrown here end the process; the postmaster
 * starts it again after a second.
 */
#include "postgres.h"

#include <signal.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "processes.h"
#include "settings.h"
#include "spool/spool.h"
#include "worker/registry.h"
#include "worker/work.h"

#define SECOND INT64CONST(1000000)	/* microseconds, as all times here */
#define INTERVAL (3 * SECOND)	/* between two looks at pg_database */
#define BACKOFF_LAST (30 * SECOND)
#define HEALTHY (60 * SECOND)	/* a worker that ran for that long starts the backoff anew */
#define LOOKS_AT_ONCE 3			/* workers that have not found the extension yet */

/* What is known of a database. */
typedef enum Knowledge
{
	UNSEEN,						/* to be looked at */
	RUNNING,					/* there is a worker, or one is about to begin */
	WITHOUT,					/* has no extension */
	RESTING						/* the worker ended; another one starts at retry_at */
} Knowledge;

typedef struct Database
{
	Oid			oid;			/* hash key */
	NameData	name;
	bool		listed;			/* to be served, as pg_database and the settings say */
	Knowledge	knowledge;
	BackgroundWorkerHandle *handle; /* NULL: no worker, or one of an earlier launcher */
	RsRegistered registered;	/* as of this pass */
	uint64		started_at;
	uint64		retry_at;
	uint64		backoff;		/* 0: none so far */
} Database;

static HTAB *databases;

/* Registering a worker failed: in this pass, and nothing else since the warning. */
static bool full;
static bool warned;

/* ---- the list of databases ------------------------------------------------------------- */

/* redstream.databases as a list of names; NIL: all. */
static List *
wanted_names(void)
{
	List	   *names;

	/* the check hook has seen that it can be split */
	(void) SplitIdentifierString(pstrdup(rs_databases), ',', &names);
	return names;
}

static bool
is_wanted(const FormData_pg_database *form, List *names)
{
	ListCell   *cell;

	if (!form->datallowconn || form->datistemplate || form->datconnlimit == DATCONNLIMIT_INVALID_DB)
		return false;
	foreach(cell, names)
		if (strcmp(lfirst(cell), NameStr(form->datname)) == 0)
			return true;
	return names == NIL;
}

static Database *
find_or_add(Oid oid)
{
	bool		found;
	Database   *database = hash_search(databases, &oid, HASH_ENTER, &found);

	if (!found)
	{
		memset(database, 0, sizeof(*database));
		database->oid = oid;
	}
	return database;
}

/* Reads pg_database, in a transaction of its own.  The spool forgets those that are not there (any more): it was asked before. */
static void
list_databases(void)
{
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *names;
	List	   *spooled;
	ListCell   *cell;

	StartTransactionCommand();
	spooled = rs_spool_databases();
	(void) GetTransactionSnapshot();
	names = wanted_names();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		spooled = list_delete_oid(spooled, form->oid);
		if (is_wanted(form, names))
		{
			Database   *database = find_or_add(form->oid);

			database->listed = true;
			database->name = form->datname;
		}
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	foreach(cell, spooled)
		rs_spool_forget(lfirst_oid(cell));
	CommitTransactionCommand();
}

/* Workers that an earlier launcher started; and what is left of databases not served. */
static void
list_registered(void)
{
	RsRegistered registered;

	for (int i = 0; rs_registry_get(i, &registered); i++)
	{
		Database   *database;

		if (!OidIsValid(registered.database))
			continue;
		database = hash_search(databases, &registered.database, HASH_FIND, NULL);
		if (database == NULL && registered.pid != 0)
			(void) find_or_add(registered.database);
		else if (database == NULL || !database->listed)
			rs_registry_forget(registered.database);
	}
}

/* ---- how a worker ends --------------------------------------------------------------------- */

static void
rest(Database *database)
{
	uint64		now = rs_now();

	if (now >= database->started_at + HEALTHY)
		database->backoff = 0;
	database->backoff = database->backoff == 0 ? SECOND : Min(database->backoff * 2, BACKOFF_LAST);
	database->retry_at = now + database->backoff;
	database->knowledge = RESTING;
}

/* Writes to both lines of a database that has no worker. */
static void
note_trouble(const Database *database, RsProcessState state, const char *error)
{
	for (RsProcessKind kind = RS_PROCESS_SPOOLER; kind <= RS_PROCESS_TRIMMER; kind++)
	{
		rs_process_note_error(database->oid, kind, error);
		rs_process_set(database->oid, kind, 0, state);
	}
}

/* The worker has ended, which what it left in the registry explains. */
static void
conclude(Database *database)
{
	const RsRegistered *registered = &database->registered;

	if (database->handle != NULL)
		pfree(database->handle);
	database->handle = NULL;
	if (registered->finding == RS_FINDING_NO_EXTENSION)
		database->knowledge = WITHOUT;
	else if (registered->evicted)
	{
		database->knowledge = RESTING;
		database->retry_at = 0;
	}
	else
	{
		rest(database);
		if (registered->finding == RS_FINDING_NONE)
			note_trouble(database, RS_PROCESS_FAILING,
						 "the worker ended before it could look for the extension, the server log says why");
	}
	rs_registry_settle(database->oid);
}

/* Brings what is known of a database up to date. */
static void
observe(Database *database)
{
	pid_t		pid;
	bool		running = database->handle != NULL &&
		GetBackgroundWorkerPid(database->handle, &pid) != BGWH_STOPPED;

	/* in this order: what a worker that has ended left is final */
	rs_registry_look_up(database->oid, &database->registered);
	if (running || database->registered.pid != 0)
		database->knowledge = RUNNING;
	else if (database->knowledge == RUNNING)
		conclude(database);
	if (database->knowledge == WITHOUT && database->registered.wished)
		database->knowledge = UNSEEN;
}

/* ---- what is to be done ------------------------------------------------------------------- */

static bool
register_worker(Database *database)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "redstream", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "redstream_worker_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "redstream worker %s", NameStr(database->name));
	strlcpy(worker.bgw_type, "redstream worker", BGW_MAXLEN);
	strlcpy(worker.bgw_extra, NameStr(database->name), BGW_EXTRALEN);	/* for its log */
	worker.bgw_main_arg = ObjectIdGetDatum(database->oid);
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, &database->handle);
}

static void
warn_full(const Database *database)
{
	full = true;
	note_trouble(database, RS_PROCESS_WAITING,
				 "no worker process is free: max_worker_processes are in use");
	if (warned)
		return;
	warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("redstream: no worker process is free for database \"%s\"",
					NameStr(database->name)),
			 errdetail("Its delayed messages are not delivered and its streams are not trimmed until one is."),
			 errhint("Increase max_worker_processes: redstream needs two, and one for each database with the extension.")));
}

static bool
is_due(const Database *database)
{
	return database->listed && database->registered.blocks == 0 &&
		(database->knowledge == UNSEEN ||
		 (database->knowledge == RESTING && rs_now() >= database->retry_at));
}

/* Having failed once in a pass, registering is not tried again in it. */
static void
start(Database *database)
{
	if (full || !register_worker(database))
	{
		warn_full(database);
		return;
	}
	database->knowledge = RUNNING;
	database->started_at = rs_now();
}

/* Ends the worker of a database that is not served; true when nothing is left of it. */
static bool
retire(Database *database)
{
	if (database->knowledge != RUNNING)
	{
		rs_process_forget(database->oid);
		rs_registry_forget(database->oid);
		return true;
	}
	if (database->registered.pid != 0)
		(void) kill(database->registered.pid, SIGTERM);
	else
		TerminateBackgroundWorker(database->handle);
	return false;
}

/* One pass over all databases; returns when the next one is due. */
static uint64
serve(void)
{
	uint64		next = rs_now() + INTERVAL;
	bool		wish_lost = rs_registry_wish_was_lost();
	int			looking = 0;
	HASH_SEQ_STATUS all;
	Database   *database;

	full = false;
	hash_seq_init(&all, databases);
	while ((database = hash_seq_search(&all)) != NULL)
	{
		observe(database);
		if (database->knowledge == WITHOUT && wish_lost)
			database->knowledge = UNSEEN;
		if (database->knowledge == RUNNING &&
			database->registered.finding != RS_FINDING_EXTENSION)
			looking++;
	}
	hash_seq_init(&all, databases);
	while ((database = hash_seq_search(&all)) != NULL)
	{
		if (!database->listed && retire(database))
		{
			hash_search(databases, &database->oid, HASH_REMOVE, NULL);
			continue;
		}
		if (is_due(database) && looking < LOOKS_AT_ONCE)
		{
			start(database);
			looking += database->knowledge == RUNNING;
		}
		if (database->knowledge == RESTING && database->retry_at > rs_now())
			next = Min(next, database->retry_at);
		database->listed = false;	/* until the next look at pg_database */
	}
	warned = warned && full;
	return next;
}

/* ---- the process ------------------------------------------------------------------------------ */

static void
disappear(int code, Datum argument)
{
	rs_process_set(InvalidOid, RS_PROCESS_LAUNCHER, 0, RS_PROCESS_STARTING);
}

static void
appear(void)
{
	HASHCTL		control = {.keysize = sizeof(Oid),.entrysize = sizeof(Database)};

	rs_registry_appoint_launcher();
	rs_process_set(InvalidOid, RS_PROCESS_LAUNCHER, MyProcPid, RS_PROCESS_STARTING);
	before_shmem_exit(disappear, 0);
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	databases = hash_create("redstream databases", 64, &control, HASH_ELEM | HASH_BLOBS);
}

static void
wait_until(uint64 time)
{
	uint64		now = rs_now();

	pgstat_report_activity(STATE_IDLE, NULL);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 time > now ? (time - now) / 1000 + 1 : 0, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	if (ShutdownRequestPending)
		proc_exit(1);			/* 0 would mean never to start again */
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

void
rs_worker_handle_sigterm(SIGNAL_ARGS)
{
	ShutdownRequestPending = true;
	die(postgres_signal_arg);
}

void
redstream_launcher_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, rs_worker_handle_sigterm);
	BackgroundWorkerUnblockSignals();
	appear();
	for (;;)
	{
		uint64		next;

		rs_process_tick_begin(InvalidOid, RS_PROCESS_LAUNCHER);
		pgstat_report_activity(STATE_RUNNING, "looking for databases");
		list_databases();
		list_registered();
		/* handles live here */
		MemoryContextSwitchTo(TopMemoryContext);
		next = serve();
		pgstat_report_stat(false);
		rs_process_tick_end(InvalidOid, RS_PROCESS_LAUNCHER, NULL);
		wait_until(next);
	}
}

static void
register_launcher(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "redstream", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "redstream_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "redstream launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "redstream launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* pg_upgrade starts servers that must not do anything by themselves. */
void
rs_worker_init(void)
{
	rs_registry_init();
	rs_commands_init();
	if (!IsBinaryUpgrade)
		register_launcher();
}
