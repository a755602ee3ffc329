/*
 * sender.c
 *	  The background worker that empties the lanes into Redis.
 *
 * src/README.md draws its states.  In short: it connects, kills what is left
 * of the connection before, and then queues, writes and reads without ever
 * blocking.  Whatever goes wrong, a lost connection or a refused command, there is
 * one way out: give the connection up, come back, and send everything again
 * from the first entry that was not acknowledged.  So nothing that came after a refused
 * command keeps its place before it.
 *
 * The exception is WRONGTYPE, which no retry heals: the command counts as
 * answered, and the transaction it belongs to, if it still waits, is told.
 *
 * Errors thrown here (out of memory, say) end the process.  The postmaster
 * starts it again, and it goes on at the tails of the lanes.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "settings.h"
#include "stats.h"
#include "transport/flight.h"

#define MAIN_WINDOW (128 * 1024)	/* bytes of main messages under way: what a
									 * delay message may have to queue behind */
#define BACKOFF_FIRST 10000		/* microseconds */
#define BACKOFF_LAST 1000000
#define START_INTERVAL 1000000	/* between two starts of a sender */
#define FOREVER PG_UINT64_MAX

static RsConnection *connection;
static WaitEventSet *events;
static int	socket_event;
static bool awaits_writable;

static RsEntryNumber next_delay;	/* first entries that are not under way */
static RsEntryNumber next_main;
static size_t main_bytes;		/* of main messages under way */
static bool publishing;			/* a publication is under way, its end not yet */
static bool proven;				/* this connection has done something, or had nothing to do */
static int	failures;			/* in a row */
static uint64 retry_at;
static uint64 heard_at;			/* the last reply, or the first command after none */
static uint64 pass_at;			/* when the first open place is passed */
static uint64 drain_until;		/* when a shutdown waits no longer; 0: none is pending */

/* ---- the end of a connection ---------------------------------------------- */

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
		SpinLockAcquire(&rs_shared->mutex);
		rs_shared->since = GetCurrentTimestamp();
		SpinLockRelease(&rs_shared->mutex);
	}
	pg_atomic_write_u32(&rs_shared->link, link);
	if (link == RS_LINK_DOWN)
		rs_lane_wake_all();
}

static void
note_error(const char *text)
{
	TimestampTz now = GetCurrentTimestamp();

	rs_stats_add(RS_COUNT_ERRORS, 1);
	SpinLockAcquire(&rs_shared->mutex);
	strlcpy(rs_shared->last_error, text, sizeof(rs_shared->last_error));
	rs_shared->last_error_at = now;
	SpinLockRelease(&rs_shared->mutex);
}

static void
drop_connection(bool abort)
{
	if (connection == NULL)
		return;
	rs_redis_close(connection, abort);
	connection = NULL;
	FreeWaitEventSet(events);
	events = NULL;
	rs_stats_add(RS_COUNT_RESENT, rs_flights_clear());
	rs_publication_suspend();
	next_delay = pg_atomic_read_u64(&rs_shared->delay.tail);
	next_main = pg_atomic_read_u64(&rs_shared->main.tail);
	main_bytes = 0;
	publishing = false;
}

/*
 * The one answer to all trouble.  A connection lost or a command refused for
 * the first time is tried again at once before it counts as an outage.
 */
static void
give_up(const char *why, bool outage)
{
	uint64		backoff = BACKOFF_FIRST;

	if (failures == 0)
		ereport(LOG, (errmsg("redstream: %s", why)));
	note_error(why);
	drop_connection(true);
	outage = outage || failures > 0;
	for (int i = 0; i < failures && backoff < BACKOFF_LAST; i++)
		backoff *= 2;
	failures++;
	retry_at = outage ? rs_now() + Min(backoff, BACKOFF_LAST) : 0;
	if (outage)
		set_link(RS_LINK_DOWN);
	else if (pg_atomic_read_u32(&rs_shared->link) == RS_LINK_UP)
		set_link(RS_LINK_UNKNOWN);
}

/* The connection works. */
static void
prove(void)
{
	proven = true;
	failures = 0;
	set_link(RS_LINK_UP);
}

/* ---- the beginning of a connection ----------------------------------------- */

/* Waits for the socket while connecting; a shutdown gives up. */
static bool
wait_connecting(void *argument, int fd, bool writable, int timeout_ms)
{
	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT |
							 (writable ? WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE),
							 fd, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	return !ShutdownRequestPending;
}

/*
 * Makes sure that nothing of an earlier connection can still be executed,
 * and remembers this one for its successor.  After a restart of Redis the old id may be
 * a stranger's, and nothing is left to be killed.
 */
static bool
replace_predecessor(RsConnection *fresh, const RsServerInfo *info, RsError *error)
{
	RsReply		reply;

	if (rs_shared->client_id != 0 && strcmp(rs_shared->run_id, info->run_id) == 0)
	{
		char		id[24];
		const char *arguments[] = {"CLIENT", "KILL", "ID", id};
		size_t		lengths[] = {6, 4, 2, 0};

		lengths[3] = snprintf(id, sizeof(id), INT64_FORMAT, rs_shared->client_id);
		if (!rs_redis_command(fresh, 4, arguments, lengths, rs_timeout, &reply, error))
			return false;
		if (reply.type == RS_REPLY_ERROR)
			return rs_redis_error(error, "CLIENT KILL: %.*s", (int) reply.length, reply.text);
	}
	rs_shared->client_id = info->client_id;
	strlcpy(rs_shared->run_id, info->run_id, sizeof(rs_shared->run_id));
	return true;
}

static void
watch_connection(void)
{
	events = CreateWaitEventSet(TopMemoryContext, 3);
	AddWaitEventToSet(events, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(events, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	socket_event = AddWaitEventToSet(events, WL_SOCKET_READABLE, rs_redis_fd(connection),
									 NULL, NULL);
	awaits_writable = false;
}

static void
open_connection(void)
{
	RsConnection *fresh;
	RsServerInfo info;
	RsError		error;

	fresh = rs_connect_configured("redstream-sender", wait_connecting, NULL, &info, &error);
	if (fresh != NULL && !replace_predecessor(fresh, &info, &error))
	{
		rs_redis_close(fresh, true);
		fresh = NULL;
	}
	if (fresh == NULL)
	{
		if (!ShutdownRequestPending)
			give_up(error.text, true);
		return;
	}
	connection = fresh;
	watch_connection();
	proven = false;
}

/* ---- commands ----------------------------------------------------------------- */

/* May another flight leave?  A connection that follows an outage first has to
 * bring one home. */
static bool
may_queue(void)
{
	return !rs_flights_full() && (proven || rs_flights_empty());
}

static void
queue_flight(const RsFlight *flight)
{
	if (rs_flights_empty())
		heard_at = rs_now();
	rs_flights_push(flight);
}

static void
queue_entry(RsLane *lane, RsEntryNumber number, bool empty)
{
	const RsEntry *entry = rs_lane_entry(lane, number);
	RsFlight	flight = {.kind = RS_FLIGHT_ENTRY,.lane = lane,.entry = number};

	if (!empty)
	{
		flight.replies = entry->commands;
		flight.npieces = rs_lane_pieces(lane, entry, flight.pieces);
		if (lane == &rs_shared->main)
			flight.counted = entry->end - entry->start;
		main_bytes += flight.counted;
	}
	queue_flight(&flight);
}

static void
queue_delay(void)
{
	RsEntryNumber head = pg_atomic_read_u64(&rs_shared->delay.head);

	pg_read_barrier();
	while (next_delay < head && may_queue())
		queue_entry(&rs_shared->delay, next_delay++, false);
}

/* How the place ended, or, after redstream.timeout, that it is passed. */
static RsEntryState
judge_place(RsEntry *entry, RsEntryNumber number)
{
	uint64		tag = pg_atomic_read_u64(&entry->tag);
	uint64		deadline = entry->taken_at + (uint64) rs_timeout * 1000;

	if (RS_TAG_STATE(tag) != RS_ENTRY_OPEN)
		return RS_TAG_STATE(tag);
	if (rs_now() < deadline)
	{
		pass_at = deadline;
		return RS_ENTRY_OPEN;
	}
	if (!pg_atomic_compare_exchange_u64(&entry->tag, &tag, RS_TAG(number, RS_ENTRY_PASSED)))
		return RS_TAG_STATE(tag);
	rs_stats_add(RS_COUNT_PASSED, 1);
	return RS_ENTRY_PASSED;
}

/* The next range of the publication under way or, behind its last copies, its end. */
static void
continue_publication(void)
{
	RsFlight	flight;

	publishing = rs_publication_active();
	if (publishing)
	{
		rs_publication_range(&flight);
		queue_flight(&flight);
	}
	else
		queue_entry(&rs_shared->main, next_main++, true);
}

static void
queue_main(void)
{
	RsEntryNumber head = pg_atomic_read_u64(&rs_shared->main.head);

	pg_read_barrier();
	pass_at = FOREVER;
	while (next_main < head && !publishing && may_queue() && main_bytes < MAIN_WINDOW)
	{
		RsEntry    *entry = rs_lane_entry(&rs_shared->main, next_main);
		RsEntryState state = judge_place(entry, next_main);

		if (state == RS_ENTRY_OPEN)
			break;
		pg_read_barrier();
		if (state == RS_ENTRY_READY && entry->kind == RS_ENTRY_PUBLICATION)
		{
			rs_publication_open(entry, next_main);
			continue_publication();
			continue;
		}
		queue_entry(&rs_shared->main, next_main++, state != RS_ENTRY_READY);
	}
}

/* ---- replies ---------------------------------------------------------------- */

/* Notes the id that a delay message got, for the transaction it belongs to. */
static void
note_id(const RsFlight *flight, const RsReply *reply)
{
	RsSlot	   *slot = &rs_shared->slots[rs_lane_entry(flight->lane, flight->entry)->owner];
	RsStreamId	id;

	if (!rs_redis_id_parse(reply->text, reply->length, &id))
		return;
	SpinLockAcquire(&slot->mutex);
	if (flight->entry >= slot->tracked_from)
	{
		if (!slot->any || rs_redis_id_compare(&id, &slot->first) < 0)
			slot->first = id;
		if (!slot->any || rs_redis_id_compare(&id, &slot->last) > 0)
			slot->last = id;
		slot->any = true;
	}
	SpinLockRelease(&slot->mutex);
}

/* Tells the transaction that a delay message will never be taken. */
static void
note_refusal(const RsFlight *flight)
{
	RsSlot	   *slot = &rs_shared->slots[rs_lane_entry(flight->lane, flight->entry)->owner];

	SpinLockAcquire(&slot->mutex);
	if (flight->entry >= slot->tracked_from)
		slot->refused = true;
	SpinLockRelease(&slot->mutex);
}

static bool
is_delay(const RsFlight *flight)
{
	return flight->kind == RS_FLIGHT_ENTRY && flight->lane == &rs_shared->delay;
}

/* One reply to the flight at the front.  False when it is an outage. */
static bool
handle_reply(RsFlight *flight, const RsReply *reply)
{
	bool		refused = reply->type == RS_REPLY_ERROR;

	if (refused)
	{
		RsError		why;

		rs_redis_error(&why, "%s: %.*s", is_delay(flight) ? "delay message" :
					   flight->kind == RS_FLIGHT_RANGE ? "XRANGE" : "main message",
					   (int) reply->length, reply->text);
		if (reply->length < 9 || memcmp(reply->text, "WRONGTYPE", 9) != 0)
		{
			give_up(why.text, false);
			return false;
		}
		note_error(why.text);
	}
	flight->replies--;
	if (is_delay(flight))
	{
		if (refused)
			note_refusal(flight);
		else
			note_id(flight, reply);
	}
	if (flight->kind == RS_FLIGHT_RANGE)
	{
		RsFlight	copies;

		rs_flights_pop();
		rs_publication_receive(reply, &copies);
		rs_flights_push(&copies);
		continue_publication();
	}
	else if (!refused)
		rs_stats_add(is_delay(flight) ? RS_COUNT_DELAYED : RS_COUNT_ACKNOWLEDGED, 1);
	return true;
}

/* Completes the flights at the front that expect no more replies. */
static void
settle(void)
{
	RsFlight   *flight;

	while ((flight = rs_flights_front()) != NULL && flight->replies == 0)
	{
		if (flight->kind == RS_FLIGHT_COPY)
			rs_publication_copied();
		else
		{
			main_bytes -= flight->counted;
			rs_lane_acknowledge(flight->lane, flight->entry);
		}
		rs_flights_pop();
	}
}

/* Takes in what Redis has answered.  False when the connection was given up. */
static bool
read_replies(void)
{
	RsError		error;
	RsReply		reply;
	RsFlight   *flight;
	bool		heard = false;
	int			result = rs_redis_read(connection, &error);

	while (result >= 0 && (flight = rs_flights_front()) != NULL)
	{
		result = rs_redis_reply(connection, flight->kind == RS_FLIGHT_RANGE, &reply, &error);
		if (result <= 0)
			break;
		if (!handle_reply(flight, &reply))
			return false;
		heard = true;
		settle();
	}
	if (result < 0)
	{
		give_up(error.text, false);
		return false;
	}
	if (heard)
	{
		heard_at = rs_now();
		pg_atomic_write_u64(&rs_shared->progress, heard_at);
		if (!proven)
			prove();
	}
	return true;
}

/* ---- the process --------------------------------------------------------------- */

/* Queues what the lanes have and writes what the socket takes. */
static void
send_commands(void)
{
	RsEntryNumber before;
	RsError		error;

	do
	{
		before = next_main;
		queue_delay();
		queue_main();
		settle();				/* void places complete by themselves */
	} while (rs_flights_empty() && next_main != before);

	if (!proven && rs_flights_empty())
		prove();
	if (!rs_flights_write(connection, &error))
		give_up(error.text, false);
}

static void
check_silence(void)
{
	RsError		why;

	if (rs_flights_empty() || rs_now() < heard_at + (uint64) rs_timeout * 1000)
		return;
	rs_redis_error(&why, "no reply from Redis for %d ms", rs_timeout);
	give_up(why.text, true);
}

/* Milliseconds until something is due by the clock; -1: nothing is. */
static long
next_due(void)
{
	uint64		due = connection == NULL ? retry_at : pass_at;
	uint64		now = rs_now();

	if (connection != NULL && !rs_flights_empty())
		due = Min(due, heard_at + (uint64) rs_timeout * 1000);
	if (drain_until != 0)
		due = Min(due, now + 20000);	/* backends do not say that they are gone */
	if (due == FOREVER)
		return -1;
	return due > now ? (long) ((due - now + 999) / 1000) : 0;
}

/* Sleeps until there is something to do, and reads what has come. */
static void
wait_and_read(void)
{
	WaitEvent	happened[3];
	int			count;
	bool		readable = false;

	if (connection == NULL)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 next_due(), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		return;
	}
	if (awaits_writable != rs_flights_unwritten())
	{
		awaits_writable = rs_flights_unwritten();
		ModifyWaitEvent(events, socket_event,
						WL_SOCKET_READABLE | (awaits_writable ? WL_SOCKET_WRITEABLE : 0), NULL);
	}
	count = WaitEventSetWait(events, next_due(), happened, lengthof(happened), PG_WAIT_EXTENSION);
	for (int i = 0; i < count; i++)
	{
		if (happened[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (happened[i].events & WL_SOCKET_READABLE)
			readable = true;
	}
	if (readable)
		read_replies();
}

/* Takes up changed settings; another address means another connection. */
static void
reload(void)
{
	char	   *url;
	char	   *password_file;

	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	url = pstrdup(rs_url);
	password_file = pstrdup(rs_password_file);
	ProcessConfigFile(PGC_SIGHUP);
	if (strcmp(url, rs_url) != 0 || strcmp(password_file, rs_password_file) != 0)
	{
		ereport(LOG, (errmsg("redstream: connecting anew, as the settings have changed")));
		drop_connection(true);
		set_link(RS_LINK_UNKNOWN);
		failures = 0;
		retry_at = 0;
	}
	pfree(url);
	pfree(password_file);
}

static bool
somebody_is_busy(void)
{
	for (int i = 0; i < MaxBackends; i++)
		if (pg_atomic_read_u32(&rs_shared->slots[i].busy) != 0)
			return true;
	return false;
}

/* At a shutdown: is everything sent that can be within redstream.timeout? */
static bool
is_drained(void)
{
	uint64		now = rs_now();

	if (drain_until == 0)
		drain_until = now + (uint64) rs_timeout * 1000;
	if (connection == NULL || now >= drain_until)
		return true;
	return !somebody_is_busy() &&
		pg_atomic_read_u64(&rs_shared->delay.tail) == pg_atomic_read_u64(&rs_shared->delay.head) &&
		pg_atomic_read_u64(&rs_shared->main.tail) == pg_atomic_read_u64(&rs_shared->main.head);
}

static void
disappear(int code, Datum argument)
{
	pg_atomic_write_u32(&rs_shared->sender, RS_NO_PROCESS);
	if (pg_atomic_read_u32(&rs_shared->link) == RS_LINK_UP)
		set_link(RS_LINK_UNKNOWN);
}

/* The postmaster restarts the sender at once, so that a single failure holds
 * nobody up; one that keeps failing is slowed down here. */
static void
appear(void)
{
	uint64		earliest = rs_shared->sender_started + START_INTERVAL;

	pg_atomic_write_u32(&rs_shared->sender, MyProc->pgprocno);
	before_shmem_exit(disappear, 0);
	while (rs_shared->sender_started != 0 && rs_now() < earliest && !ShutdownRequestPending)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (earliest - rs_now()) / 1000 + 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	rs_shared->sender_started = rs_now();
	next_delay = pg_atomic_read_u64(&rs_shared->delay.tail);
	next_main = pg_atomic_read_u64(&rs_shared->main.tail);
}

void
redstream_sender_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	appear();

	while (!ShutdownRequestPending || !is_drained())
	{
		reload();
		if (connection == NULL && rs_now() >= retry_at)
			open_connection();
		if (connection != NULL)
			send_commands();
		if (connection != NULL)
			check_silence();
		wait_and_read();
	}
	drop_connection(false);
	proc_exit(1);
}
