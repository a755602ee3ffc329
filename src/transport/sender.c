/*
 * sender.c
 *	  The background worker that empties the lanes into Redis: the process and its
 *	  loop.  src/README.md draws its states.
 *
 * Errors thrown here (out of memory, say) end the process.  The postmaster
 * starts it again, and it goes on at the tails of the lanes.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/guc.h"

#include "processes.h"
#include "settings.h"
#include "transport/sender.h"

#define START_INTERVAL 1000000	/* microseconds between two starts of a sender */
static uint64 drain_until;		/* when a shutdown waits no longer; 0: none is pending */

/* Takes up changed settings.  Another address means another connection; so do another namespace, since a connection begins with a
 * look at the keys that are this server's there, and another number of replicas, since what is under way has a WAIT
 * behind it or has not. */
static void
reload(void)
{
	char	   *url;
	char	   *password_file;
	int			namespace_generation = rs_namespace_generation;
	int			wait_replicas = rs_wait_replicas;

	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	url = pstrdup(rs_url);
	password_file = pstrdup(rs_password_file);
	ProcessConfigFile(PGC_SIGHUP);
	if (strcmp(url, rs_url) != 0 || strcmp(password_file, rs_password_file) != 0 ||
		wait_replicas != rs_wait_replicas || namespace_generation != rs_namespace_generation)
	{
		ereport(LOG, (errmsg("redstream: connecting anew, as the settings have changed")));
		rs_link_renew();
	}
	if (namespace_generation != rs_namespace_generation)
		rs_marker_forget();
	pfree(url);
	pfree(password_file);
}

/* ---- shutdown ------------------------------------------------------------------ */

/* Has a shutdown been pending for redstream.timeout? */
static bool
must_stop(void)
{
	if (drain_until == 0)
		drain_until = rs_now() + (uint64) rs_timeout * 1000;
	return rs_now() >= drain_until;
}

static bool
somebody_is_busy(void)
{
	for (int i = 0; i < MaxBackends; i++)
		if (pg_atomic_read_u32(&rs_shared->slots[i].busy) != 0)
			return true;
	return false;
}

static bool
is_empty(RsLane *lane)
{
	return pg_atomic_read_u64(&lane->tail) == pg_atomic_read_u64(&lane->head);
}

/* Is everything sent that can be? */
static bool
is_drained(void)
{
	if (must_stop() || pg_atomic_read_u32(&rs_shared->link) == RS_LINK_DOWN)
		return true;
	return !somebody_is_busy() && is_empty(&rs_shared->delay) && is_empty(&rs_shared->main);
}

bool
rs_sender_ends(void)
{
	return ShutdownRequestPending && is_drained();
}

/* ---- the process ------------------------------------------------------------------ */

/*
 * Which transaction id was next when the server began?  A crash may have made it forget later ones.  Backends are
 * quicker than we are; pg_control tells what the checkpoint at the end of recovery knew.
 */
static uint64
find_first_xid(void)
{
	uint64		first = U64FromFullTransactionId(ReadNextFullTransactionId());
	ControlFileData *control;
	bool		valid;

	LWLockAcquire(ControlFileLock, LW_SHARED);
	control = get_controlfile(DataDir, &valid);
	LWLockRelease(ControlFileLock);
	if (valid)
		first = Min(first, U64FromFullTransactionId(control->checkPointCopy.nextXid));
	pfree(control);
	return first;
}

static void
disappear(int code, Datum argument)
{
	pg_atomic_write_u32(&rs_shared->sender, RS_NO_PROCESS);
	rs_link_leave();
	rs_process_set(InvalidOid, RS_PROCESS_SENDER, 0, RS_PROCESS_STARTING);
}

/* The postmaster restarts the sender at once, so that a single failure holds
 * nobody up; one that keeps failing is slowed down here. */
static void
appear(void)
{
	uint64		earliest = rs_shared->sender_started + START_INTERVAL;

	pg_atomic_write_u32(&rs_shared->sender, MyProc->pgprocno);
	rs_process_set(InvalidOid, RS_PROCESS_SENDER, MyProcPid, RS_PROCESS_STARTING);
	before_shmem_exit(disappear, 0);
	while (rs_shared->sender_started != 0 && rs_now() < earliest && !ShutdownRequestPending)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (earliest - rs_now()) / 1000 + 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	rs_shared->sender_started = rs_now();
	if (!rs_transport_knows_lives())
		rs_life_begin(find_first_xid());
	rs_exchange_rewind();
}

static uint64
next_due(void)
{
	uint64		due = rs_link_connection() == NULL ? rs_link_retry_at() : rs_exchange_due();

	return ShutdownRequestPending ? Min(due, rs_now() + RS_DRAIN_INTERVAL) : due;
}

void
redstream_sender_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	appear();

	while (!rs_sender_ends())
	{
		reload();
		if (rs_link_connection() == NULL)
			rs_link_open();
		if (rs_link_connection() != NULL)
			rs_exchange_send();
		if (rs_link_connection() != NULL)
			rs_exchange_check_silence();
		if (rs_link_wait(next_due(), rs_flights_unwritten()))
			rs_exchange_receive();
	}
	proc_exit(1);				/* 0 would mean never to start again */
}
