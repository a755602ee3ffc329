/*
 * resolve.c
 *	  Addresses of a host, without blocking.
 *
 * getaddrinfo() blocks for as long as a name server is silent, which can be half a minute, and it cannot be
 * interrupted.  So a name is resolved by a thread, and whoever wants to know waits for the end of a pipe, with a
 * deadline, as for everything else.  When it gives up, the thread goes on; the next call for the same name waits for
 * that thread, and does not start another one.  So there is one thread a name at most, however often it is tried, and
 * an answer that takes longer than the deadline is not lost.
 *
 * A thread is safe also in a process of PostgreSQL, which has no others and whose code must not be run by two at
 * once: all signals are blocked in it, so that no handler ever runs there; it calls nothing but getaddrinfo() and
 * touches nothing but its own object, in malloced memory, which nobody else looks at before the pipe says that
 * the thread is done.  It does not keep a process from ending.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

/* An answer that nobody was waiting for any more is worth having for so long. */
#define USABLE_MS 10000

typedef struct Resolution
{
	struct Resolution *next;
	pthread_t	thread;
	int			done[2];		/* a pipe, whose writing end the thread closes as its last act */
	char	   *host;

	/* The thread's, until then. */
	int			problem;		/* what getaddrinfo() returned, and errno */
	int			system_problem;
	struct addrinfo *found;
	RsDeadline	usable;
} Resolution;

/* Those of this process whose answer nobody has taken yet. */
static Resolution *resolutions;

static int
look_up(const char *host, int flags, struct addrinfo **found)
{
	struct addrinfo hints;

	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = flags;
	*found = NULL;
	return getaddrinfo(host, NULL, &hints, found);
}

static void *
resolve(void *argument)
{
	Resolution *resolution = argument;

	resolution->problem = look_up(resolution->host, 0, &resolution->found);
	resolution->system_problem = errno;
	rs_redis_deadline_start(&resolution->usable, USABLE_MS);
	close(resolution->done[1]);
	return NULL;
}

static int
start_thread(Resolution *resolution)
{
	sigset_t	all;
	sigset_t	before;
	int			problem;

	/* It begins with the signals that are blocked here. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	problem = pthread_create(&resolution->thread, NULL, resolve, resolution);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return problem;
}

static void
free_resolution(Resolution *resolution)
{
	free(resolution->host);
	free(resolution);
}

/* NULL, and errno. */
static Resolution *
begin(const char *host)
{
	Resolution *resolution = calloc(1, sizeof(*resolution));
	int			problem;

	if (resolution == NULL)
		return NULL;
	if ((resolution->host = strdup(host)) == NULL || pipe2(resolution->done, O_CLOEXEC) != 0)
	{
		problem = errno;
		free_resolution(resolution);
		errno = problem;
		return NULL;
	}
	problem = start_thread(resolution);
	if (problem != 0)
	{
		close(resolution->done[0]);
		close(resolution->done[1]);
		free_resolution(resolution);
		errno = problem;
		return NULL;
	}
	resolution->next = resolutions;
	resolutions = resolution;
	return resolution;
}

static bool
is_done(const Resolution *resolution)
{
	struct pollfd done = {.fd = resolution->done[0],.events = POLLIN};

	return poll(&done, 1, 0) > 0;
}

/* Takes the answer of one that is done; who calls frees "found". */
static int
take(Resolution *resolution, struct addrinfo **found)
{
	Resolution **link = &resolutions;
	int			problem;
	int			system_problem;

	while (*link != resolution)
		link = &(*link)->next;
	*link = resolution->next;
	pthread_join(resolution->thread, NULL);
	close(resolution->done[0]);
	problem = resolution->problem;
	system_problem = resolution->system_problem;
	*found = resolution->found;
	free_resolution(resolution);
	errno = system_problem;
	return problem;
}

/* The one for this host that is under way, or has an answer that can still be used; others that are done are
 * forgotten. */
static Resolution *
find(const char *host)
{
	Resolution *each = resolutions;
	Resolution *wanted = NULL;

	while (each != NULL)
	{
		Resolution *next = each->next;
		struct addrinfo *found;
		bool		same = strcmp(each->host, host) == 0;

		if (is_done(each) && !(same && rs_redis_deadline_left(&each->usable) > 0))
		{
			if (take(each, &found) == 0)
				freeaddrinfo(found);
		}
		else if (same)
			wanted = each;
		each = next;
	}
	return wanted;
}

bool
rs_redis_resolve(RsConnection *connection, const char *host, const RsDeadline *deadline,
				 struct addrinfo **found, RsError *error)
{
	Resolution *resolution;
	int			problem;

	if (look_up(host, AI_NUMERICHOST, found) == 0)
		return true;
	resolution = find(host);
	if (resolution == NULL && (resolution = begin(host)) == NULL)
		return rs_redis_error(error, "resolve %s: %s", connection->target, strerror(errno));
	while (!is_done(resolution))
	{
		if (!rs_redis_await(connection, resolution->done[0], false, deadline, "resolve", error))
			return false;
	}
	problem = take(resolution, found);
	if (problem != 0)
		return rs_redis_error(error, "resolve %s: %s", connection->target,
							  problem == EAI_SYSTEM ? strerror(errno) : gai_strerror(problem));
	return true;
}
