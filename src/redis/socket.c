/*
 * socket.c
 *	  Opens the socket of a connection, without blocking.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "internal.h"

static bool
set_options(RsConnection *connection, bool tcp, RsError *error)
{
	int			fd = connection->context->fd;
	int			on = 1;

	/* The client program runs other programs. */
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
		return rs_redis_error(error, "fcntl on %s: %s", connection->target, strerror(errno));
	if (tcp &&
		(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) != 0 ||
		 setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0))
		return rs_redis_error(error, "setsockopt on %s: %s", connection->target, strerror(errno));
	return true;
}

/*
 * Waits until the socket is connected.  SO_ERROR is 0 also while it is not
 * yet, so poll has to say first that it is decided.
 */
static bool
finish_connecting(RsConnection *connection, const RsDeadline *deadline, bool *interrupted,
				  RsError *error)
{
	struct pollfd decided;
	int			problem = 0;
	socklen_t	size = sizeof(problem);

	decided.fd = connection->context->fd;
	decided.events = POLLOUT;
	for (;;)
	{
		int			result = poll(&decided, 1, 0);

		if (result > 0)
			break;
		if (result < 0 && errno != EINTR)
			return rs_redis_error(error, "poll on %s: %s", connection->target, strerror(errno));
		if (!rs_redis_await(connection, decided.fd, true, deadline, "connect to", error))
		{
			*interrupted = rs_redis_deadline_left(deadline) > 0;
			return false;
		}
	}
	if (getsockopt(decided.fd, SOL_SOCKET, SO_ERROR, &problem, &size) != 0)
		problem = errno;
	if (problem != 0)
		return rs_redis_error(error, "connect to %s: %s", connection->target, strerror(problem));
	return true;
}

/* Goes on with a context that hiredis has begun to connect, and owns it. */
static bool
adopt(RsConnection *connection, redisContext *context, bool tcp, const RsDeadline *deadline,
	  bool *interrupted, RsError *error)
{
	if (context == NULL)
		return rs_redis_error(error, "connect to %s: out of memory", connection->target);
	connection->context = context;
	if (context->err != 0)
		rs_redis_error(error, "connect to %s: %s", connection->target, context->errstr);
	else if (set_options(connection, tcp, error) &&
			 finish_connecting(connection, deadline, interrupted, error))
	{
		connection->tree_functions = context->reader->fn;
		context->reader->privdata = connection;
		context->reader->maxbuf = 4 * RS_INPUT_SIZE;
		return true;
	}
	redisFree(context);
	connection->context = NULL;
	return false;
}

/*
 * Tries every address of the host, which hiredis by itself does not do when it
 * must not block: each gets its share of the time that is left.
 */
static bool
connect_tcp(RsConnection *connection, const RsAddress *address, const RsDeadline *deadline,
			RsError *error)
{
	struct addrinfo *found;
	struct addrinfo *each;
	int			untried = 0;
	bool		connected = false;
	bool		interrupted = false;
	int			problem;

	if (!rs_redis_resolve(connection, address->host, deadline, &found, error))
		return false;
	for (each = found; each != NULL; each = each->ai_next)
		untried++;
	for (each = found; each != NULL && !connected && !interrupted; each = each->ai_next)
	{
		char		host[NI_MAXHOST];
		RsDeadline	share;

		rs_redis_deadline_start(&share, rs_redis_deadline_left(deadline) / untried--);
		share.timeout_ms = deadline->timeout_ms;
		problem = getnameinfo(each->ai_addr, each->ai_addrlen, host, sizeof(host), NULL, 0,
							  NI_NUMERICHOST);
		if (problem != 0)
			rs_redis_error(error, "resolve %s: %s", connection->target, gai_strerror(problem));
		else
			connected = adopt(connection, redisConnectNonBlock(host, address->port), true,
							  &share, &interrupted, error);
	}
	freeaddrinfo(found);
	return connected;
}

bool
rs_redis_open_socket(RsConnection *connection, const RsAddress *address,
					 const RsDeadline *deadline, RsError *error)
{
	bool		interrupted;

	if (address->path == NULL)
		return connect_tcp(connection, address, deadline, error);
	return adopt(connection, redisConnectUnixNonBlock(address->path), false, deadline,
				 &interrupted, error);
}
