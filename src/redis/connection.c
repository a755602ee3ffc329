/*
 * connection.c
 *	  A socket to Redis: bytes out, bytes in, and one command with its reply.
 *
 * hiredis opens the socket and parses what comes out of it (socket.c, reply.c).
 * The bytes are moved here, because hiredis' own functions copy all output once
 * more and let a broken connection raise SIGPIPE.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "internal.h"

/* Linux takes that many pieces at once. */
#define VECTOR_MAX 1024

/* A reply can be as long as a value of Redis, and no server means more: what
 * comes beyond that must not fill our memory. */
#define UNREAD_MAX ((size_t) 1 << 30)

static int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

void
rs_redis_deadline_start(RsDeadline *deadline, int timeout_ms)
{
	deadline->end_ns = now_ns() + (int64_t) timeout_ms * 1000000;
	deadline->timeout_ms = timeout_ms;
}

int
rs_redis_deadline_left(const RsDeadline *deadline)
{
	int64_t		left = deadline->end_ns - now_ns();

	if (left <= 0)
		return 0;
	left = (left + 999999) / 1000000;
	return left < INT_MAX ? (int) left : INT_MAX;
}

bool
rs_redis_wait_poll(void *argument, int fd, bool writable, int timeout_ms)
{
	struct pollfd wanted;

	(void) argument;
	wanted.fd = fd;
	wanted.events = writable ? POLLOUT : POLLIN;
	wanted.revents = 0;

	/* After a signal the caller looks at its clock and waits again. */
	return poll(&wanted, 1, timeout_ms) >= 0 || errno == EINTR;
}

bool
rs_redis_await(RsConnection *connection, int fd, bool writable, const RsDeadline *deadline,
			   const char *call, RsError *error)
{
	int			left = rs_redis_deadline_left(deadline);

	if (left == 0)
		return rs_redis_error(error, "%s %s: timeout after %d ms", call, connection->target,
							  deadline->timeout_ms);
	if (!connection->wait(connection->wait_argument, fd, writable, left))
		return rs_redis_error(error, "%s %s: interrupted", call, connection->target);
	return true;
}

int
rs_redis_fd(const RsConnection *connection)
{
	return connection->context->fd;
}

void
rs_redis_close(RsConnection *connection, bool abort)
{
	if (connection == NULL)
		return;
	if (connection->context != NULL)
	{
		if (abort)
		{
			struct linger linger = {.l_onoff = 1,.l_linger = 0};

			setsockopt(connection->context->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		}
		redisFree(connection->context);
	}
	rs_redis_forget_reply(connection);
	if (connection->text != connection->text_room)
		free(connection->text);
	free(connection->queue);
	free(connection->target);
	free(connection);
}

ssize_t
rs_redis_write(RsConnection *connection, const struct iovec *vector, int count, RsError *error)
{
	struct msghdr message;
	ssize_t		written;

	memset(&message, 0, sizeof(message));
	message.msg_iov = (struct iovec *) vector;
	message.msg_iovlen = (size_t) (count < VECTOR_MAX ? count : VECTOR_MAX);

	do
	{
		written = sendmsg(connection->context->fd, &message, MSG_NOSIGNAL);
	} while (written < 0 && errno == EINTR);

	if (written >= 0)
		return written;
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return 0;
	rs_redis_error(error, "write to %s: %s", connection->target, strerror(errno));
	return -1;
}

/* rs_redis_read, whose error is only the reason. */
static int
receive(RsConnection *connection, RsError *reason)
{
	redisReader *reader = connection->context->reader;
	ssize_t		got;

	rs_redis_forget_reply(connection);
	do
	{
		got = recv(connection->context->fd, connection->input, sizeof(connection->input), 0);
	} while (got < 0 && errno == EINTR);

	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (got < 0)
		rs_redis_error(reason, "%s", strerror(errno));
	else if (got == 0)
		rs_redis_error(reason, "server closed the connection");
	else if (reader->len - reader->pos > UNREAD_MAX)
		rs_redis_error(reason, "the server sent more than %zu bytes that are no reply", UNREAD_MAX);
	else if (redisReaderFeed(reader, connection->input, (size_t) got) != REDIS_OK)
		rs_redis_error(reason, "%s", reader->errstr);
	else
		return 1;
	return -1;
}

int
rs_redis_read(RsConnection *connection, RsError *error)
{
	int			result = receive(connection, error);

	if (result < 0)
		rs_redis_error(error, "read from %s: %s", connection->target, error->text);
	return result;
}

/*
 * A server that refuses a connection or a command says why and closes.  What
 * it said can still be read when writing has already failed, and is the better
 * error.
 */
static bool
server_said_why(RsConnection *connection)
{
	RsError		ignored;

	return receive(connection, &ignored) == 1;
}

bool
rs_redis_send_all(RsConnection *connection, const char *data, size_t size,
				  const RsDeadline *deadline, const char *call, RsError *error)
{
	while (size > 0)
	{
		struct iovec piece = {.iov_base = (char *) data,.iov_len = size};
		RsError		reason;
		ssize_t		written = rs_redis_write(connection, &piece, 1, &reason);

		if (written < 0 && server_said_why(connection))
			return true;
		if (written < 0)
			return rs_redis_error(error, "%.*s: %s", (int) strcspn(call, " "), call, reason.text);
		if (written == 0 &&
			!rs_redis_await(connection, connection->context->fd, true, deadline, call, error))
			return false;
		data += written;
		size -= (size_t) written;
	}
	return true;
}

/*
 * The deadline is looked at whenever the reply is not complete, so that a
 * server that never stops sending cannot hold us.  What came before the
 * connection was lost may be the reply, so a loss is told last.
 */
bool
rs_redis_await_reply(RsConnection *connection, bool tree, const RsDeadline *deadline,
					 const char *call, RsReply *reply, RsError *error)
{
	for (;;)
	{
		RsError		reason;
		bool		late;
		int			result = rs_redis_take_reply(connection, tree, reply, &reason);

		if (result > 0)
			return true;
		late = rs_redis_deadline_left(deadline) == 0;
		if (result == 0)
			result = receive(connection, &reason);
		if (result < 0)
			return rs_redis_error(error, "%s %s: %s", call, connection->target, reason.text);
		if ((result == 0 || late) &&
			!rs_redis_await(connection, connection->context->fd, false, deadline, call, error))
			return false;
	}
}

bool
rs_redis_command(RsConnection *connection, int count, const char *const *arguments,
				 const size_t *lengths, int timeout_ms, RsReply *reply, RsError *error)
{
	size_t		size = rs_redis_command_size(count, arguments, lengths);
	char	   *data = malloc(size);
	char		call[40];
	size_t		name_length = lengths != NULL ? lengths[0] : strlen(arguments[0]);
	RsDeadline	deadline;
	bool		done;

	if (data == NULL)
		return rs_redis_error(error, "out of memory");
	rs_redis_command_write(data, count, arguments, lengths);

	/* Errors name the command and no argument of it. */
	if (name_length > 32)
		name_length = 32;
	memcpy(call, arguments[0], name_length);
	strcpy(call + name_length, " on");

	rs_redis_deadline_start(&deadline, timeout_ms);
	done = rs_redis_send_all(connection, data, size, &deadline, call, error) &&
		rs_redis_await_reply(connection, true, &deadline, call, reply, error);
	free(data);
	return done;
}
