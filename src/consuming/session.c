/*
 * session.c
 *	  The connection of a session that consumes, and the timer that extends its locks.
 *
 * A lock expires five seconds after it was last extended, and a transaction may be busy with what its user does, or wait for
 * the client, for longer.  The one who always can extend it is the backend itself, in a signal handler: a timer (timeout.c)
 * sends commands that lie ready as bytes, with one send(2) that does not block.  The replies are taken later, by whoever
 * uses the connection next.  A backend that dies or is stopped extends nothing any more, and that is right: another
 * consumer takes over.
 *
 * The connection stays for the session, as connecting costs five round trips.  It is in one of these states:
 *
 *		none		next use connects
 *		in use		by rs_session_connection(), until rs_session_rest(); the timer is off
 *		resting		the timer may send, replies may be outstanding
 *		broken		a send() failed or was cut short; next use connects anew
 */
#include "postgres.h"

#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/procsignal.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "consuming/consuming.h"
#include "consuming/session.h"
#include "settings.h"

#define EXTEND_INTERVAL 1500	/* milliseconds; the contract says: at least every 3 s */
#define GRACE 300				/* milliseconds, see wait_with_grace() */

/*
 * COMMIT cannot wait for room in the socket's buffer, so the buffer is made large enough, as far as an unprivileged process may
 * (net.core.wmem_max is 208 kB).
 */
#define SOCKET_BUFFER (256 * 1024)

static RsConnection *connection;
static volatile sig_atomic_t broken;
static bool suspect;			/* another one may be better */
static volatile int outstanding;	/* replies */
static char *connected_url;		/* what it was made with, in TopMemoryContext */
static char *connected_file;
static uint64 interrupted_at;	/* 0: no interrupt has been seen in this wait */

static TimeoutId timer;
static bool timer_known;
static const RsCommands *extension; /* what the timer sends; NULL: nothing */
static volatile uint64 extended_at;

/* ---- commands ------------------------------------------------------------------------ */

void
rs_commands_add(RsCommands *commands, int count, const char *const *words)
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

void
rs_commands_forget(RsCommands *commands)
{
	if (commands->bytes != NULL)
		pfree(commands->bytes);
	memset(commands, 0, sizeof(RsCommands));
}

void
rs_session_send(const RsCommands *commands)
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

/* ---- the timer ------------------------------------------------------------------------- */

static bool
has_lock(void)
{
	return extension != NULL && extension->count > 0;
}

static void
extend(void)
{
	rs_session_send(extension);
	extended_at = rs_now();
}

void
rs_session_stop_timer(void)
{
	if (timer_known)
		disable_timeout(timer, false);
}

void
rs_session_rest(void)
{
	uint64		now = rs_now();
	uint64		due = extended_at + EXTEND_INTERVAL * 1000;
	int64		wait = due > now ? due - now : 0;

	if (!has_lock() || connection == NULL || broken)
		return;
	if (!timer_known)
	{
		timer = RegisterTimeout(USER_TIMEOUT, extend);
		timer_known = true;
	}
	enable_timeout_every(timer, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait / 1000),
						 EXTEND_INTERVAL);
}

void
rs_session_extends(const RsCommands *commands)
{
	extension = commands;
}

void
rs_session_extended(void)
{
	extended_at = rs_now();
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
	if (ProcSignalBarrierPending)	/* others wait for that */
		ProcessProcSignalBarrier();
	return rs_redis_wait_poll(argument, fd, writable, Min(timeout_ms, 100));
}

void
rs_session_lost(void)
{
	rs_session_stop_timer();
	rs_redis_close(connection, false);
	connection = NULL;
	outstanding = 0;
	broken = false;
	suspect = false;
}

void
rs_session_suspect(void)
{
	suspect = true;
}

static bool
is_outdated(void)
{
	return strcmp(connected_url, rs_url) != 0 || strcmp(connected_file, rs_password_file) != 0;
}

static void
remember(char **what, const char *text)
{
	char	   *copy = MemoryContextStrdup(TopMemoryContext, text);

	if (*what != NULL)
		pfree(*what);
	*what = copy;
}

static bool
connect_to_redis(RsError *error)
{
	RsServerInfo info;
	int			size = SOCKET_BUFFER;

	remember(&connected_url, rs_url);
	remember(&connected_file, rs_password_file);
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
	extend();
	if (broken)
		return rs_redis_error(error, "the connection was lost");
	return take_outstanding(error);
}

RsConnection *
rs_session_connection(RsError *error)
{
	rs_session_stop_timer();
	interrupted_at = 0;
	if (connection != NULL &&
		(broken || is_outdated() || !take_outstanding(error) || is_closed() ||
		 (suspect && !has_lock())))
		rs_session_lost();
	if (connection == NULL && !connect_to_redis(error))
		return NULL;
	if (!extend_if_due(error))
		rs_session_lost();
	return connection;
}
