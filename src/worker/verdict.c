/*
 * verdict.c
 *	  What became of a transaction: did it commit, and are its main messages known to
 *	  have arrived?
 *
 * The first is asked as pg_xact_status() asks it (xid8funcs.c): in progress before
 * committed, under XactTruncationLock, never TransactionIdDidAbort(), since a transaction
 * that a crash ended is marked as nothing.
 *
 * The second is known by what is not confirmed.  A main message is confirmed when
 * Redis has acknowledged it, which is when its place has left the main lane.  The few that leave the lane in
 * another way are counted as doubts (transport.h), without saying whose they
 * are: after a doubt everything up to the newest transaction id is not
 * confirmed.  So is everything before this process first looked, and before it met another Redis.
 */
#include "postgres.h"

#include "access/clog.h"
#include "access/subtrans.h"
#include "access/transam.h"
#include "postmaster/interrupt.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/snapmgr.h"

#include "transport/transport.h"
#include "worker/delay.h"

#define POLL_INTERVAL 500		/* microseconds */
#define LANE_PATIENCE 200000	/* microseconds; normally it takes a few hundred */
#define STUCK_PATIENCE 10000000	/* without progress; then the lane is not waited for any more */

/* The full id of a transaction that is not newer than the other one. */
static uint64
widen(TransactionId xid, uint64 newer)
{
	uint64		epoch = newer >> 32;

	if (xid > (TransactionId) newer)
		epoch--;
	return epoch << 32 | xid;
}

/* Is the id too old for the commit log?  (As TransactionIdInRecentPast(), xid8funcs.c.) */
static bool
is_forgotten(uint64 xid, uint64 next)
{
	return xid < widen(ShmemVariableCache->oldestClogXid, next);
}

RsVerdict
rs_verdict(uint64 xid, uint64 *top)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());
	TransactionId id = (TransactionId) xid;
	RsVerdict	verdict;

	if (xid >= next || !TransactionIdIsNormal(id))
		return RS_VERDICT_UNKNOWN;
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (is_forgotten(xid, next))
		verdict = RS_VERDICT_UNKNOWN;
	else if (TransactionIdIsInProgress(id))
	{
		verdict = RS_VERDICT_RUNNING;
		*top = widen(SubTransGetTopmostTransaction(id), xid);
	}
	else
		verdict = TransactionIdDidCommit(id) ? RS_VERDICT_COMMITTED : RS_VERDICT_ABORTED;
	LWLockRelease(XactTruncationLock);
	return verdict;
}

uint64
rs_oldest_running(void)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());

	return widen(GetActiveSnapshot()->xmin, next);
}

/* ---- main messages ------------------------------------------------------------------- */

bool
rs_lane_await(RsWork *work)
{
	RsEntryNumber head;
	uint64		now = rs_now();
	uint64		end = now + (work->stuck_since == 0 ? LANE_PATIENCE : 0);

	if (!rs_transport_ready())
		return true;
	head = rs_main_head();
	while (!rs_main_has_passed(head))
	{
		now = rs_now();
		if (now > end || ShutdownRequestPending)
		{
			if (work->stuck_since == 0)
				work->stuck_since = now;
			return now > Max(work->stuck_since, rs_transport_progress()) + STUCK_PATIENCE;
		}
		pg_usleep(POLL_INTERVAL);
	}
	work->stuck_since = 0;
	return true;
}

void
rs_confirmation_refresh(RsWork *work)
{
	RsConfirmation *confirmation = work->confirmation;
	const char *run_id = work->server.run_id;
	uint64		doubts;

	if (confirmation == NULL)
		confirmation = work->confirmation =
			MemoryContextAllocZero(work->context, sizeof(RsConfirmation));
	if (!rs_transport_ready() || run_id[0] == '\0' || work->stuck_since != 0)
	{
		confirmation->horizon = PG_UINT64_MAX;
		confirmation->run_id[0] = '\0';
		return;
	}
	doubts = rs_transport_doubts();
	if (confirmation->horizon != 0 && confirmation->doubts == doubts &&
		strcmp(confirmation->run_id, run_id) == 0)
		return;
	confirmation->horizon = U64FromFullTransactionId(ReadNextFullTransactionId());
	confirmation->doubts = doubts;
	strlcpy(confirmation->run_id, run_id, sizeof(confirmation->run_id));
}
