/*
 * lease.c
 *	  What a transaction holds that consumes messages, and how that ends with it.
 *
 * A consumer's lock is held until the transaction ends, however long that takes.  It expires after five seconds, so
 * somebody has to extend it while the backend is busy with what its user does, or waits for the client.  The one who
 * always can is the backend itself, in a signal handler: a timer (timeout.c) sends the commands, which lie ready as
 * bytes, with one send(2) that does not block.  The replies are taken later, by whoever uses the connection next.
 * A backend that dies or is stopped extends nothing any more, and that is right: another consumer takes over.
 *
 *		what happens			what is done										may throw
 *
 *		PRE_COMMIT				the locks of who has consumed are extended, and		yes: 55P03 when one is not,
 *								must be ours; the commands for COMMIT are made		io_error without Redis
 *		PRE_PREPARE				refused: a lock cannot wait for COMMIT PREPARED		yes
 *		COMMIT					one send(): offsets, releases						no
 *		ABORT					one send(): releases								no
 *		subtransaction aborts	its marks go; the timer, which an error has			no
 *								stopped (PostgresMain), runs again
 *
 * From COMMIT on nothing may fail or wait.  When that send() fails, the lock expires by itself, and the offset is copied by
 * the next call of consume(): it is in the table (offsets.c), in the same transaction as the work.
 *
 * A transaction that cannot make sure of its locks is rolled back: somebody else may have been given the same messages.
 *
 * The connection stays for the session, as connecting costs five round trips.  It is in one of these states:
 *
 *		none		next use connects
 *		in use		by rs_lease_connection(), until rs_lease_rest(); the timer is off
 *		resting		the timer may send, replies may be outstanding
 *		broken		a send() failed or was cut short; next use connects anew
 *
 * Nothing of this is shared memory, and works without preloading.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "consuming/consuming.h"
#include "settings.h"

#define EXTEND_INTERVAL 1500	/* milliseconds; the contract says: at least every 3 s */
#define GRACE 300				/* milliseconds, see wait_with_grace() */

/*
 * COMMIT cannot wait for room in the socket's buffer, so the buffer is made large enough, as far as an unprivileged process may
 * (net.core.wmem_max is 208 kB), and what is sent is bounded: releases by this, and offsets take three times as much.
 */
#define SOCKET_BUFFER (256 * 1024)
#define RELEASES_MOST (32 * 1024)

/* Commands that lie ready. */
typedef struct Commands
{
	char	   *bytes;			/* in TopTransactionContext */
	size_t		length;
	int			count;
} Commands;

/* Where an offset is to be, as of a nesting level. */
typedef struct RsMark
{
	int			level;
	bool		nothing;		/* to be told */
	RsStreamId	id;
	bool		placed;
} RsMark;

/* The session's. */
static RsConnection *connection;
static volatile sig_atomic_t broken;
static bool suspect;			/* another one may be better */
static volatile int outstanding;	/* replies */
static char *connected_url;		/* what it was made with, in TopMemoryContext */
static char *connected_file;
static char holder[RS_HOLDER_SIZE];
static TimeoutId timer;
static bool timer_known;
static uint64 interrupted_at;	/* 0: no interrupt has been seen in this wait */

/* The transaction's. */
static RsLease *leases;
static bool committing;			/* PRE_COMMIT is over */
static Commands extension;		/* of all locks: the timer's */
static Commands ending;			/* for COMMIT */
static Commands farewell;		/* for ABORT */
static volatile uint64 extended_at;

/* ---- commands ------------------------------------------------------------------------ */

static void
add_command(Commands *commands, int count, const char *const *words)
{
	size_t		size = rs_redis_command_size(count, words, NULL);

	if (commands->bytes == NULL)
		commands->bytes = MemoryContextAlloc(TopTransactionContext, size);
	else
		commands->bytes = repalloc(commands->bytes, commands->length + size);
	rs_redis_command_write(commands->bytes + commands->length, count, words, NULL);
	commands->length += size;
	commands->count++;
}

/* Sends commands without waiting.  Called by signal handlers and callbacks: no allocation, no error. */
static void
send_now(const Commands *commands)
{
	ssize_t		sent;

	if (connection == NULL || broken || commands->count == 0)
		return;
	sent = send(rs_redis_fd(connection), commands->bytes, commands->length,
				MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent == (ssize_t) commands->length)
		outstanding += commands->count;
	else
		broken = true;			/* cut short, perhaps: nothing more can be said on it */
}

static void
add_release(Commands *commands, const RsLease *lease)
{
	const char *words[RS_RELEASE_WORDS];

	rs_redis_release_words(&lease->who.lock, &lease->who.notify, lease->who.holder, words);
	add_command(commands, RS_RELEASE_WORDS, words);
}

static void
add_extension(Commands *commands, const RsLease *lease)
{
	const char *words[RS_EXTEND_WORDS];

	rs_redis_extend_words(&lease->who.lock, lease->who.holder, words);
	add_command(commands, RS_EXTEND_WORDS, words);
}

static void
add_commit(Commands *commands, const RsLease *lease)
{
	const RsMark *mark = lease->nmarks > 0 ? &lease->marks[lease->nmarks - 1] : NULL;
	const char *commit[RS_COMMIT_WORDS];
	const char *place[RS_PLACE_WORDS];
	char		id[RS_STREAM_ID_SIZE];

	if (mark == NULL || mark->nothing)
		return;
	rs_redis_id_format(&mark->id, id);
	if (mark->placed)
	{
		rs_redis_place_words(&lease->who, id, place);
		add_command(commands, RS_PLACE_WORDS, place);
	}
	else
	{
		rs_redis_commit_words(&lease->who, id, false, commit);
		add_command(commands, RS_COMMIT_WORDS, commit);
	}
}

static void
forget_commands(Commands *commands)
{
	if (commands->bytes != NULL)
		pfree(commands->bytes);
	memset(commands, 0, sizeof(Commands));
}

/* After a lease has come or gone.  The timer must be off. */
static void
prepare_commands(void)
{
	forget_commands(&extension);
	forget_commands(&farewell);
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
	{
		add_extension(&extension, lease);
		add_release(&farewell, lease);
	}
}

/* ---- the timer ------------------------------------------------------------------------- */

static bool
has_lock(void)
{
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (lease->locked)
			return true;
	return false;
}

static void
extend_by_timer(void)
{
	send_now(&extension);
	extended_at = rs_now();
}

static void
start_timer(void)
{
	uint64		now = rs_now();
	uint64		due = extended_at + EXTEND_INTERVAL * 1000;
	int64		wait = due > now ? due - now : 0;

	if (!has_lock() || connection == NULL || broken)
		return;
	if (!timer_known)
	{
		timer = RegisterTimeout(USER_TIMEOUT, extend_by_timer);
		timer_known = true;
	}
	enable_timeout_every(timer, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait / 1000),
						 EXTEND_INTERVAL);
}

static void
stop_timer(void)
{
	if (timer_known)
		disable_timeout(timer, false);
}

/* ---- the connection -------------------------------------------------------------------- */

/*
 * Gives up when the session is to be interrupted, but waits a moment longer for what is under way: a connection that
 * is given up with a reply outstanding takes the way to release the lock with it.
 */
static bool
wait_with_grace(void *argument, int fd, bool writable, int timeout_ms)
{
	uint64		now = rs_now();

	if (!QueryCancelPending && !ProcDiePending)
		interrupted_at = 0;
	else if (interrupted_at == 0)
		interrupted_at = now;
	else if (now - interrupted_at > GRACE * 1000)
		return false;
	return rs_redis_wait_poll(argument, fd, writable, Min(timeout_ms, 100));
}

void
rs_lease_lost_connection(void)
{
	stop_timer();
	rs_redis_close(connection, false);
	connection = NULL;
	outstanding = 0;
	broken = false;
	suspect = false;
}

void
rs_lease_suspect_connection(void)
{
	suspect = true;
}

static bool
is_outdated(void)
{
	return strcmp(connected_url, rs_url) != 0 || strcmp(connected_file, rs_password_file) != 0;
}

static char *
remember(char *old, const char *text)
{
	if (old != NULL)
		pfree(old);
	return MemoryContextStrdup(TopMemoryContext, text);
}

static bool
connect_session(RsError *error)
{
	RsServerInfo info;
	int			size = SOCKET_BUFFER;

	connected_url = remember(connected_url, rs_url);
	connected_file = remember(connected_file, rs_password_file);
	connection = rs_connect_configured("redstream-consume", wait_with_grace, NULL, &info, error);
	if (connection == NULL)
		return false;
	(void) setsockopt(rs_redis_fd(connection), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return true;
}

/* What the timer and the ends of transactions have been answered.  Whether a lock is still ours is asked anew where it
 * matters, and what was not committed is committed by the next consume(). */
static bool
take_outstanding(RsError *error)
{
	RsReply		reply;

	while (outstanding > 0)
	{
		if (!rs_redis_next(connection, false, rs_timeout, &reply, error))
			return false;
		outstanding--;
		if (reply.type == RS_REPLY_ERROR)
			suspect = true;
	}
	return true;
}

/* Redis has closed it, as when it was restarted, or says what nobody has asked for. */
static bool
is_closed(void)
{
	RsError		ignored;

	return rs_redis_read(connection, &ignored) != 0;
}

/* As the timer would, if it was off for too long. */
static bool
extend_if_due(RsError *error)
{
	if (!has_lock() || rs_now() - extended_at <= EXTEND_INTERVAL * 1000)
		return true;
	extend_by_timer();
	if (broken)
		return rs_redis_error(error, "the connection was lost");
	return take_outstanding(error);
}

RsConnection *
rs_lease_connection(RsError *error)
{
	stop_timer();
	interrupted_at = 0;
	if (connection != NULL &&
		(broken || is_outdated() || !take_outstanding(error) || is_closed() ||
		 (suspect && !has_lock())))
		rs_lease_lost_connection();
	if (connection == NULL && !connect_session(error))
		return NULL;
	if (!extend_if_due(error))
		rs_lease_lost_connection();
	return connection;
}

void
rs_lease_rest(void)
{
	start_timer();
}

/* ---- leases ---------------------------------------------------------------------------- */

static RsLease *
find_lease(const RsConsumer *who)
{
	for (RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (strcmp(lease->who.lock.text, who->lock.text) == 0)
			return lease;
	return NULL;
}

static void
check_number_of_leases(void)
{
	if (farewell.length < RELEASES_MOST)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("too many consumers in one transaction"),
			 errhint("Commit, and go on with the next ones.")));
}

RsLease *
rs_lease_open(const char *stream, const char *consumer)
{
	RsConsumer *who = palloc(sizeof(RsConsumer));
	RsLease    *lease;

	if (committing)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot consume while the transaction commits")));
	if (holder[0] == '\0' && !rs_redis_holder_draw(holder))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not draw a random number")));
	rs_redis_consumer_set(who, rs_namespace, stream, consumer, holder);
	lease = find_lease(who);
	if (lease != NULL)
		return lease;
	check_number_of_leases();
	lease = MemoryContextAllocZero(TopTransactionContext, sizeof(RsLease));
	lease->who = *who;
	stop_timer();
	if (leases == NULL)
		extended_at = rs_now();
	lease->next = leases;
	leases = lease;
	prepare_commands();
	return lease;
}

void
rs_lease_refused(RsLease *lease)
{
	RsLease   **link = &leases;

	/* what was consumed under a lock that is lost is not to be committed: PRE_COMMIT will find that out */
	if (lease->nmarks > 0)
		return;
	stop_timer();
	while (*link != lease)
		link = &(*link)->next;
	*link = lease->next;
	if (lease->marks != NULL)
		pfree(lease->marks);
	pfree(lease);
	prepare_commands();
}

/* The mark of the present level, a new one if there is none. */
static RsMark *
mark_of_level(RsLease *lease)
{
	int			level = GetCurrentTransactionNestLevel();

	if (lease->nmarks > 0 && lease->marks[lease->nmarks - 1].level == level)
		return &lease->marks[lease->nmarks - 1];
	if (lease->nmarks == lease->max_marks)
	{
		int			more = Max(4, 2 * lease->max_marks);

		if (lease->marks == NULL)
			lease->marks = MemoryContextAlloc(TopTransactionContext, more * sizeof(RsMark));
		else
			lease->marks = repalloc(lease->marks, more * sizeof(RsMark));
		lease->max_marks = more;
	}
	lease->marks[lease->nmarks].level = level;
	return &lease->marks[lease->nmarks++];
}

void
rs_lease_mark(RsLease *lease, const RsStreamId *id, bool placed)
{
	RsMark	   *mark = mark_of_level(lease);

	/* Redis is told after the commit, which must not be forgotten by a crash then */
	ForceSyncCommit();
	lease->marked = true;
	mark->nothing = false;
	mark->id = *id;
	mark->placed = placed;
}

void
rs_lease_unmark(const char *stream, const char *consumer)
{
	RsConsumer *who = palloc(sizeof(RsConsumer));
	RsLease    *lease;

	rs_redis_consumer_set(who, rs_namespace, stream, consumer, holder);
	lease = find_lease(who);
	if (lease != NULL && lease->nmarks > 0)
		mark_of_level(lease)->nothing = true;
}

/* ---- the end of (sub)transactions ------------------------------------------------------ */

static void
raise_lost(const RsLease *lease)
{
	const char *name = lease->who.name;

	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("lost the lock of consumer \"%s\"",
					pg_any_to_server(name, strlen(name), PG_UTF8)),
			 errdetail("Somebody else may have been given the same messages meanwhile."),
			 errhint("Nothing is lost: roll back, and consume again.")));
}

static void
raise_failed(const RsError *error)
{
	CHECK_FOR_INTERRUPTS();
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not make sure of a consumer's lock: %s", error->text),
			 errhint("Nothing is lost: roll back, and consume again.")));
}

/* Makes sure of the locks; they are good for five seconds then. */
static void
confirm_locks(void)
{
	RsError		error;
	RsConnection *redis = rs_lease_connection(&error);

	if (redis == NULL)
		raise_failed(&error);
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
	{
		bool		held;

		if (!lease->locked || lease->nmarks == 0)
			continue;
		if (!rs_redis_lock_extend(redis, &lease->who.lock, holder, rs_timeout, &held, &error))
		{
			rs_lease_lost_connection();
			raise_failed(&error);
		}
		if (error.text[0] != '\0')
		{
			rs_lease_suspect_connection();
			raise_failed(&error);
		}
		if (!held)
			raise_lost(lease);
	}
	extended_at = rs_now();
}

/* Who has got no message, or has rolled that back, need not be sure of anything. */
static bool
has_consumed(void)
{
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (lease->nmarks > 0)
			return true;
	return false;
}

/* A lease without a lock may have one all the same, if Redis was asked for it and did not answer. */
static void
pre_commit(void)
{
	if (leases == NULL)
		return;
	if (has_consumed())
		confirm_locks();
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
	{
		add_commit(&ending, lease);
		add_release(&ending, lease);
	}
	committing = true;
	rs_lease_rest();
}

static void
pre_prepare(void)
{
	if (leases != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has consumed messages or set a consumer's offset")));
}

/* Must not throw, allocate or wait. */
static void
finish(const Commands *commands)
{
	if (leases == NULL)
		return;
	stop_timer();
	send_now(commands);
	leases = NULL;
	committing = false;
	memset(&extension, 0, sizeof(extension));
	memset(&ending, 0, sizeof(ending));
	memset(&farewell, 0, sizeof(farewell));
}

static void
on_transaction_event(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			finish(&ending);
			break;
		case XACT_EVENT_ABORT:
			finish(&farewell);
			break;
		case XACT_EVENT_PRE_PREPARE:
			pre_prepare();
			break;
		default:
			break;
	}
}

/* Marks of the level go up, or go.  Of two at one level the later one counts. */
static void
end_level(RsLease *lease, int level, bool committed)
{
	if (lease->nmarks == 0 || lease->marks[lease->nmarks - 1].level < level)
		return;
	if (!committed)
	{
		lease->nmarks--;
		return;
	}
	lease->marks[lease->nmarks - 1].level = level - 1;
	if (lease->nmarks > 1 && lease->marks[lease->nmarks - 2].level == level - 1)
	{
		lease->marks[lease->nmarks - 2] = lease->marks[lease->nmarks - 1];
		lease->nmarks--;
	}
}

static void
on_subtransaction_event(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
						void *argument)
{
	if (leases == NULL || event == SUBXACT_EVENT_PRE_COMMIT_SUB)
		return;
	if (event != SUBXACT_EVENT_START_SUB)
		for (RsLease *lease = leases; lease != NULL; lease = lease->next)
			end_level(lease, GetCurrentTransactionNestLevel(), event == SUBXACT_EVENT_COMMIT_SUB);

	/* Errors after the first one stop it, too, and no event tells of them: until ROLLBACK TO starts the level anew. */
	if (event != SUBXACT_EVENT_COMMIT_SUB && !committing)
		start_timer();
}

void
rs_consuming_init(void)
{
	RegisterXactCallback(on_transaction_event, NULL);
	RegisterSubXactCallback(on_subtransaction_event, NULL);
}
