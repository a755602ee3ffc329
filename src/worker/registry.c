/*
 * registry.c
 *	  Which process works for which database, in shared memory.
 *
 * One entry for each database that something is known of, in no order; an entry
 * that says nothing any more is free.  One spinlock guards all entries; it is held for a
 * search and a few stores.  Who writes what:
 *
 *	 pid, evicted		the worker: when it begins (claim) and ends
 *	 finding			the worker, while it runs
 *	 wished				set by a backend that made the extension; cleared by a worker that is
 *						about to look, so that a wish is lost on nobody
 *	 blocks				backends
 *
 * and the launcher clears finding, evicted and wished of a database that has no worker.
 *
 * There is room for as many databases as the board of processes has lines for.  A wish that finds no
 * room is noted for all databases.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "worker/registry.h"
#include "worker/work.h"

#define NO_PROCESS PG_UINT32_MAX
#define SIGNAL_INTERVAL 500		/* milliseconds after which a worker is asked again to end */

typedef struct Registry
{
	pg_atomic_uint32 launcher;	/* process number, or NO_PROCESS */
	ConditionVariable gone;		/* a worker ended */
	slock_t		mutex;			/* guards what follows */
	bool		wish_lost;
	RsRegistered entries[RS_REGISTRY_SIZE];
} Registry;

static Registry *registry;

static shmem_request_hook_type previous_shmem_request;
static shmem_startup_hook_type previous_shmem_startup;

/* ---- memory ---------------------------------------------------------------------- */

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(sizeof(Registry));
}

static void
startup_shmem(void)
{
	bool		found;

	if (previous_shmem_startup)
		previous_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	registry = ShmemInitStruct("redstream registry", sizeof(Registry), &found);
	if (!found)
	{
		memset(registry, 0, sizeof(Registry));
		pg_atomic_init_u32(&registry->launcher, NO_PROCESS);
		ConditionVariableInit(&registry->gone);
		SpinLockInit(&registry->mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
rs_registry_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/* ---- entries, with the mutex held ------------------------------------------------- */

static bool
is_free(const RsRegistered *entry)
{
	return entry->pid == 0 && entry->finding == RS_FINDING_NONE && !entry->evicted &&
		!entry->wished && entry->blocks == 0;
}

/* The entry of a database, or NULL. */
static RsRegistered *
find(Oid database)
{
	for (int i = 0; i < RS_REGISTRY_SIZE; i++)
		if (registry->entries[i].database == database && !is_free(&registry->entries[i]))
			return &registry->entries[i];
	return NULL;
}

/* The same; when there is none, a free one; NULL when there is none of these. */
static RsRegistered *
find_or_make(Oid database)
{
	RsRegistered *entry = find(database);

	for (int i = 0; entry == NULL && i < RS_REGISTRY_SIZE; i++)
		if (is_free(&registry->entries[i]))
		{
			entry = &registry->entries[i];
			entry->database = database;
		}
	return entry;
}

/* ---- the launcher ------------------------------------------------------------------- */

static void
wake_launcher(void)
{
	uint32		process = pg_atomic_read_u32(&registry->launcher);

	if (process != NO_PROCESS)
		SetLatch(&ProcGlobal->allProcs[process].procLatch);
}

static void
dismiss_launcher(int code, Datum argument)
{
	pg_atomic_write_u32(&registry->launcher, NO_PROCESS);
}

void
rs_registry_appoint_launcher(void)
{
	pg_atomic_write_u32(&registry->launcher, MyProc->pgprocno);
	on_shmem_exit(dismiss_launcher, 0);
}

void
rs_registry_look_up(Oid database, RsRegistered *registered)
{
	RsRegistered *entry;

	memset(registered, 0, sizeof(*registered));
	SpinLockAcquire(&registry->mutex);
	entry = find(database);
	if (entry != NULL)
		*registered = *entry;
	SpinLockRelease(&registry->mutex);
}

bool
rs_registry_get(int index, RsRegistered *registered)
{
	if (index >= RS_REGISTRY_SIZE)
		return false;
	SpinLockAcquire(&registry->mutex);
	*registered = registry->entries[index];
	if (is_free(registered))
		registered->database = InvalidOid;
	SpinLockRelease(&registry->mutex);
	return true;
}

static void
clear(Oid database, bool wish)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find(database);
	if (entry != NULL && entry->pid == 0)
	{
		entry->finding = RS_FINDING_NONE;
		entry->evicted = false;
		entry->wished = entry->wished && !wish;
	}
	SpinLockRelease(&registry->mutex);
}

void
rs_registry_settle(Oid database)
{
	clear(database, false);
}

void
rs_registry_forget(Oid database)
{
	clear(database, true);
}

bool
rs_registry_wish_was_lost(void)
{
	bool		lost;

	SpinLockAcquire(&registry->mutex);
	lost = registry->wish_lost;
	registry->wish_lost = false;
	SpinLockRelease(&registry->mutex);
	return lost;
}

/* ---- a worker ---------------------------------------------------------------------------- */

static void
leave(int code, Datum argument)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find(DatumGetObjectId(argument));
	if (entry != NULL && entry->pid == MyProcPid)
	{
		entry->pid = 0;
		entry->evicted = entry->blocks > 0;
	}
	SpinLockRelease(&registry->mutex);
	ConditionVariableBroadcast(&registry->gone);
	wake_launcher();
}

RsClaim
rs_registry_claim(Oid database)
{
	RsClaim		claim = RS_CLAIM_DONE;
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find_or_make(database);
	if (entry == NULL)
		claim = RS_CLAIM_NO_ROOM;
	else if (entry->pid != 0)
		claim = RS_CLAIM_REFUSED;
	else if (entry->blocks > 0)
	{
		entry->evicted = true;
		claim = RS_CLAIM_REFUSED;
	}
	else
	{
		entry->pid = MyProcPid;
		entry->finding = RS_FINDING_NONE;
		entry->evicted = false;
	}
	SpinLockRelease(&registry->mutex);

	/* Registered before the process connects, this is called after it has left the
	 * array of connected processes. */
	if (claim == RS_CLAIM_DONE)
		on_shmem_exit(leave, ObjectIdGetDatum(database));
	return claim;
}

void
rs_registry_begin_look(Oid database)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find(database);
	if (entry != NULL)
		entry->wished = false;
	SpinLockRelease(&registry->mutex);
}

void
rs_registry_report(Oid database, RsFinding finding)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find(database);
	if (entry != NULL && entry->pid == MyProcPid)
		entry->finding = finding;
	SpinLockRelease(&registry->mutex);
	wake_launcher();
}

/* ---- backends ---------------------------------------------------------------------------- */

void
rs_registry_wish(Oid database)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find_or_make(database);
	if (entry != NULL)
		entry->wished = true;
	else
		registry->wish_lost = true;
	SpinLockRelease(&registry->mutex);
	wake_launcher();
}

bool
rs_registry_block(Oid database)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find_or_make(database);
	if (entry != NULL)
		entry->blocks++;
	SpinLockRelease(&registry->mutex);
	return entry != NULL;
}

void
rs_registry_unblock(Oid database)
{
	RsRegistered *entry;

	SpinLockAcquire(&registry->mutex);
	entry = find(database);
	if (entry != NULL && entry->blocks > 0)
		entry->blocks--;
	SpinLockRelease(&registry->mutex);
	wake_launcher();
}

static int
worker_pid(Oid database)
{
	RsRegistered registered;

	rs_registry_look_up(database, &registered);
	return registered.pid;
}

void
rs_registry_evict(Oid database, int timeout_ms)
{
	uint64		deadline = rs_now() + (uint64) timeout_ms * 1000;
	int			pid;

	ConditionVariablePrepareToSleep(&registry->gone);
	while ((pid = worker_pid(database)) != 0 && rs_now() < deadline)
	{
		/* A process that is in the registry has not ended yet. */
		(void) kill(pid, SIGTERM);
		(void) ConditionVariableTimedSleep(&registry->gone, SIGNAL_INTERVAL, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}
