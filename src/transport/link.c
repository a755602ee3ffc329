/*
 * link.c
 *	  The sender's connection: how it is made, proven and given up.
 *
 * Whatever goes wrong, a lost connection or a refused command, there is one way
 * out: give the connection up, come back, and send everything again from the
 * first entry that was not acknowledged.  So nothing that came after a refused
 * command keeps its place before it.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "identity.h"
#include "processes.h"
#include "settings.h"
#include "stats.h"
#include "transport/sender.h"

#define BACKOFF_FIRST 10000		/* microseconds */
#define BACKOFF_LAST 1000000
#define STEADY_FACTOR 10		/* timeouts: to work for so long is to be well again ... */
#define STEADY_LAST 10000000	/* ... or this long, in microseconds */
#define SUSPECT_TRIES 5
#define SOCKET_BUFFER (256 * 1024)
#define OLD_BYTES_PAUSE 10000	/* microseconds */
#define MILLISECOND_PAUSE 2000

/*
 * The entry that was due for an answer when a connection failed.  Until it is
 * acknowledged nothing else counts as a recovery; and if it fails again and
 * again, alone on a fresh connection, it is the entry and not Redis that is at
 * fault.
 */
typedef struct RsSuspect
{
	RsLane	   *lane;			/* NULL: none */
	RsEntryNumber entry;
	int			tries;			/* failures of its own, alone */
} RsSuspect;

static RsConnection *connection;
static WaitEventSet *events;
static int	socket_event;
static bool awaits_writable;
static bool proven;
static uint64 proven_at;
static int	failures;			/* in a row */
static int	relapses;			/* into silence, soon after it was proven, in a row */
static uint64 retry_at;
static RsSuspect suspect;

RsConnection *
rs_link_connection(void)
{
	return connection;
}

uint64
rs_link_retry_at(void)
{
	return retry_at;
}

bool
rs_link_is_proven(void)
{
	return proven;
}

/* ---- what others are told --------------------------------------------------- */

static void
set_link(RsLink link)
{
	RsLink		old = pg_atomic_read_u32(&rs_shared->link);

	if (old == link)
		return;
	if (link == RS_LINK_UP)
		ereport(LOG, (errmsg("redstream: connected to Redis")));
	if (old == RS_LINK_UP || link == RS_LINK_UP)
	{
		TimestampTz now = GetCurrentTimestamp();

		SpinLockAcquire(&rs_shared->mutex);
		rs_shared->since = now;
		SpinLockRelease(&rs_shared->mutex);
	}
	pg_atomic_write_u32(&rs_shared->link, link);
	if (link == RS_LINK_DOWN)
		rs_lane_wake_all();
}

void
rs_link_note_error(const char *text)
{
	TimestampTz now = GetCurrentTimestamp();

	rs_stats_add(RS_COUNT_ERRORS, 1);
	SpinLockAcquire(&rs_shared->mutex);
	strlcpy(rs_shared->last_error, text, sizeof(rs_shared->last_error));
	rs_shared->last_error_at = now;
	SpinLockRelease(&rs_shared->mutex);
	rs_process_note_error(InvalidOid, RS_PROCESS_SENDER, text);
}

/* ---- the end of a connection --------------------------------------------------- */

static void
drop(bool abort)
{
	if (connection == NULL)
		return;
	rs_redis_close(connection, abort);
	connection = NULL;
	proven = false;
	FreeWaitEventSet(events);
	events = NULL;
	rs_exchange_rewind();
}

void
rs_link_leave(void)
{
	drop(false);
	set_link(pg_atomic_read_u32(&rs_shared->link) == RS_LINK_UP ? RS_LINK_UNKNOWN : RS_LINK_DOWN);
}

void
rs_link_renew(void)
{
	drop(true);
	set_link(RS_LINK_UNKNOWN);
	suspect.lane = NULL;
	failures = 0;
	relapses = 0;
	retry_at = 0;
}

/* Remembers what a failure hit; "own" if the entry itself may be the cause. */
static void
note_suspect(bool own)
{
	const RsFlight *front = rs_flights_front();
	RsLane	   *lane;
	RsEntryNumber entry;

	if (front == NULL || front->kind == RS_FLIGHT_CLAIM || front->kind == RS_FLIGHT_MARKER ||
		front->kind == RS_FLIGHT_WAIT)
		return;
	lane = front->kind == RS_FLIGHT_ENTRY ? front->lane : &rs_shared->main;
	entry = pg_atomic_read_u64(&lane->tail);
	if (suspect.lane != lane || suspect.entry != entry)
	{
		suspect.lane = lane;
		suspect.entry = entry;
		suspect.tries = 0;
	}
	if (own && !proven)
		suspect.tries++;
}

static bool
suspect_is_pending(void)
{
	return suspect.lane != NULL && pg_atomic_read_u64(&suspect.lane->tail) <= suspect.entry;
}

bool
rs_link_serves(const RsLane *lane)
{
	return !suspect_is_pending() || suspect.lane == lane;
}

void
rs_link_absolve(const RsLane *lane, RsEntryNumber entry)
{
	if (suspect.lane == lane && suspect.entry == entry)
		suspect.lane = NULL;
}

bool
rs_link_is_hopeless(const RsLane *lane, RsEntryNumber entry)
{
	return suspect.lane == lane && suspect.entry == entry && suspect.tries >= SUSPECT_TRIES;
}

/*
 * How long is Redis left alone?  One that answers a little and is silent again would have everybody wait for
 * redstream.timeout, again and again.  The more often it does, the longer nobody waits for it: in the end
 * ten times as long as they did.
 */
static uint64
pause_after(RsTrouble trouble)
{
	uint64		steady = Min(STEADY_FACTOR * (uint64) rs_timeout * 1000, STEADY_LAST);

	if (!proven || trouble != RS_TROUBLE_SILENCE)
		return rs_backoff(BACKOFF_FIRST, failures, BACKOFF_LAST);
	relapses = rs_now() < proven_at + steady ? relapses + 1 : 0;
	return rs_backoff(BACKOFF_FIRST, relapses, steady);
}

/* A connection lost or a command refused for the first time is tried again at once
 * before it counts as an outage. */
void
rs_link_give_up(const char *why, RsTrouble trouble)
{
	bool		outage = trouble == RS_TROUBLE_SILENCE || failures > 0;
	uint64		pause = pause_after(trouble);

	if (failures == 0)
		ereport(LOG, (errmsg("redstream: %s", why)));
	rs_link_note_error(why);
	rs_process_set(InvalidOid, RS_PROCESS_SENDER, MyProcPid, RS_PROCESS_FAILING);
	note_suspect(trouble == RS_TROUBLE_ENTRY);
	drop(true);
	failures++;
	retry_at = outage ? rs_now() + pause : 0;
	if (outage)
		set_link(RS_LINK_DOWN);
	else if (pg_atomic_read_u32(&rs_shared->link) == RS_LINK_UP)
		set_link(RS_LINK_UNKNOWN);
}

void
rs_link_prove(void)
{
	if (proven || suspect_is_pending())
		return;
	suspect.lane = NULL;
	proven = true;
	proven_at = rs_now();
	failures = 0;
	set_link(RS_LINK_UP);
	rs_process_set(InvalidOid, RS_PROCESS_SENDER, MyProcPid, RS_PROCESS_IDLE);
}

/* ---- the beginning of a connection ----------------------------------------------- */

/* Waits for the socket while connecting.  Changed settings may say where Redis is instead. */
static bool
wait_connecting(void *argument, int fd, bool writable, int timeout_ms)
{
	if (ShutdownRequestPending)
		timeout_ms = Min(timeout_ms, RS_DRAIN_INTERVAL / 1000);
	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT |
							 (writable ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE),
							 fd, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	return !ConfigReloadPending && !rs_sender_ends();
}

/*
 * Makes sure that nothing of an earlier connection can still be executed, and
 * remembers this one for its successor.  After a restart of Redis the old id
 * may be a stranger's, and nothing is left to be killed; so where we may not
 * learn the run_id (INFO is not permitted), nothing is killed.
 */
static bool
replace_predecessor(RsConnection *fresh, const RsServerInfo *info, RsError *error)
{
	RsReply		reply;

	if (rs_shared->client_id != 0 && info->run_id[0] != '\0' &&
		strcmp(rs_shared->run_id, info->run_id) == 0)
	{
		char		id[24];
		const char *arguments[] = {"CLIENT", "KILL", "ID", id};

		snprintf(id, sizeof(id), INT64_FORMAT, rs_shared->client_id);
		if (!rs_redis_command(fresh, 4, arguments, NULL, rs_timeout, &reply, error))
			return false;
		if (reply.type == RS_REPLY_ERROR)
			return rs_redis_error(error, "CLIENT KILL: %.*s", (int) reply.length, reply.text);
	}
	/* Redis may have lost what it acknowledged, if it is the same one at all. */
	if (info->run_id[0] == '\0' || strcmp(rs_shared->run_id, info->run_id) != 0)
	{
		pg_atomic_fetch_add_u64(&rs_shared->redis, 1);
		rs_transport_doubt();
	}
	rs_shared->client_id = info->client_id;
	strlcpy(rs_shared->run_id, info->run_id, sizeof(rs_shared->run_id));
	return true;
}

static bool
not_ours(RsError *error)
{
	return rs_redis_error(error, "another server with this system identifier and timeline (%s) uses this Redis; a copied data directory needs a namespace of its own",
						  rs_identity_server());
}

/* Nobody else may speak for our transactions. */
static bool
claim(RsConnection *fresh, RsError *error)
{
	RsKey		key;
	bool		ours;

	rs_redis_server_key(&key, rs_namespace, rs_identity_server());
	if (!rs_redis_claim(fresh, &key, rs_identity_token(), rs_timeout, &ours, error))
		return false;
	return ours || not_ours(error);
}

/*
 * Delay messages older than the first connection are of a life of the server before this one.  What a sender that
 * was killed has left in its socket is executed in the meantime; and the millisecond of the answer is over when
 * we send something.
 */
static bool
note_beginning(RsConnection *fresh, RsError *error)
{
	const char *words[] = {"TIME"};
	RsReply		reply;
	int64		now_ms;

	if (rs_transport_has_begun())
		return true;
	pg_usleep(OLD_BYTES_PAUSE);
	if (!rs_redis_command(fresh, 1, words, NULL, rs_timeout, &reply, error) ||
		!rs_redis_time(&reply, &now_ms, error) || !rs_life_note_beginning(now_ms + 1, error))
		return false;
	pg_usleep(MILLISECOND_PAUSE);
	return true;
}

bool
rs_link_judge_claim(bool ours)
{
	RsError		error;

	if (ours)
		return true;
	not_ours(&error);
	rs_link_give_up(error.text, RS_TROUBLE_SILENCE);
	return false;
}

/* What waits in the socket's buffer shows no progress, so that is not to be much (exchange.c, rs_exchange_send). */
static void
watch(void)
{
	int			size = SOCKET_BUFFER;

	(void) setsockopt(rs_redis_fd(connection), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	events = CreateWaitEventSet(TopMemoryContext, 3);
	AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	socket_event = AddWaitEventToSet(events, WL_SOCKET_READABLE, rs_redis_fd(connection),
									 NULL, NULL);
	awaits_writable = false;
}

void
rs_link_open(void)
{
	RsConnection *fresh;
	RsServerInfo info;
	RsError		error;

	if (rs_now() < retry_at)
		return;
	fresh = rs_connect_configured("redstream-sender", wait_connecting, NULL, &info, &error);
	if (fresh != NULL && !(replace_predecessor(fresh, &info, &error) && claim(fresh, &error) &&
							note_beginning(fresh, &error) && rs_marker_check(fresh, &error)))
	{
		rs_redis_close(fresh, true);
		fresh = NULL;
	}
	if (fresh == NULL && (ConfigReloadPending || rs_sender_ends()))
		return;					/* nobody's failure */
	if (fresh == NULL)
	{
		rs_link_give_up(error.text, RS_TROUBLE_SILENCE);
		return;
	}
	connection = fresh;
	watch();
}

/* ---- waiting ---------------------------------------------------------------------- */

static long
milliseconds_until(uint64 time)
{
	uint64		now = rs_now();

	if (time == RS_FOREVER)
		return -1;
	return time > now ? (long) ((time - now + 999) / 1000) : 0;
}

bool
rs_link_wait(uint64 until, bool writing)
{
	WaitEvent	happened[3];
	int			count;
	bool		readable = false;

	if (connection == NULL)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 milliseconds_until(until), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		return false;
	}
	if (awaits_writable != writing)
	{
		ModifyWaitEvent(events, socket_event,
						WL_SOCKET_READABLE | (writing ? WL_SOCKET_WRITEABLE : 0), NULL);
		awaits_writable = writing;
	}
	count = WaitEventSetWait(events, milliseconds_until(until), happened, lengthof(happened),
							 PG_WAIT_EXTENSION);
	for (int i = 0; i < count; i++)
	{
		if (happened[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (happened[i].events & WL_SOCKET_READABLE)
			readable = true;
	}
	return readable;
}
