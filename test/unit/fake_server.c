/*
 * fake_server.c
 *	  See fake_server.h.  Trouble of the machine (no socket, no process) ends
 *	  the test program: there is nothing left to test then.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fake_server.h"

/* No script takes nearly that long; it keeps a broken test from hanging. */
#define LONGEST_SECONDS 60

static void
must(bool done, const char *what)
{
	if (!done)
	{
		perror(what);
		exit(2);
	}
}

long long
fake_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long long) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
listen_on_path(FakeServer *server)
{
	struct sockaddr_un address;

	strcpy(server->directory, "/tmp/redstream-unit-XXXXXX");
	must(mkdtemp(server->directory) != NULL, "mkdtemp");
	snprintf(server->path, sizeof(server->path), "%s/socket", server->directory);
	snprintf(server->url, sizeof(server->url), "unix://%s", server->path);
	snprintf(server->target, sizeof(server->target), "unix:%s", server->path);

	memset(&address, 0, sizeof(address));
	address.sun_family = AF_UNIX;
	strcpy(address.sun_path, server->path);
	server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(server->listener >= 0 &&
		 bind(server->listener, (struct sockaddr *) &address, sizeof(address)) == 0, "bind");
}

static void
listen_on_port(FakeServer *server)
{
	struct sockaddr_in address;
	socklen_t	size = sizeof(address);

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(server->listener >= 0 &&
		 bind(server->listener, (struct sockaddr *) &address, sizeof(address)) == 0 &&
		 getsockname(server->listener, (struct sockaddr *) &address, &size) == 0, "bind");
	server->port = ntohs(address.sin_port);
	snprintf(server->url, sizeof(server->url), "redis://127.0.0.1:%d", server->port);
	snprintf(server->target, sizeof(server->target), "127.0.0.1:%d", server->port);
}

void
fake_begin(FakeServer *server, bool tcp)
{
	memset(server, 0, sizeof(*server));
	if (tcp)
		listen_on_port(server);
	else
		listen_on_path(server);
	must(listen(server->listener, 5) == 0, "listen");
	must(pipe(server->release) == 0, "pipe");
}

void
fake_step_bytes(FakeServer *server, FakeStepType type, const char *bytes, size_t length)
{
	FakeStep   *step = &server->steps[server->count++];

	must(server->count <= FAKE_STEPS, "too many steps");
	step->type = type;
	step->bytes = bytes;
	step->length = length;
}

void
fake_step(FakeServer *server, FakeStepType type, const char *bytes)
{
	fake_step_bytes(server, type, bytes, bytes != NULL ? strlen(bytes) : 0);
}

/* ---- in the child --------------------------------------------------------- */

static bool
send_all(int fd, const char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t		sent = send(fd, bytes, length, MSG_NOSIGNAL);

		if (sent <= 0)
			return false;
		bytes += sent;
		length -= (size_t) sent;
	}
	return true;
}

static bool
trickle(int fd, const char *bytes, size_t length)
{
	for (; length > 0; length--)
	{
		if (!send_all(fd, bytes++, 1))
			return false;
	}
	return true;
}

static bool
expect(int fd, const char *bytes, size_t length)
{
	char		c;

	for (; length > 0; length--)
	{
		if (recv(fd, &c, 1, 0) != 1)
			return false;
		if (c != *bytes++)
		{
			fprintf(stderr, "# fake server: unexpected byte \"%c\" before \"%.*s\"\n", c, (int) length, bytes - 1);
			return false;
		}
	}
	return true;
}

/* "bytes" must not repeat their own beginning inside. */
static bool
skip_to(int fd, const char *bytes, size_t length)
{
	size_t		matched = 0;
	char		c;

	while (matched < length)
	{
		if (recv(fd, &c, 1, 0) != 1)
			return false;
		if (c == bytes[matched])
			matched++;
		else
			matched = c == bytes[0] ? 1 : 0;
	}
	return true;
}

static bool
play_step(int fd, int release, const FakeStep *step)
{
	char		c;

	switch (step->type)
	{
		case FAKE_EXPECT:
			return expect(fd, step->bytes, step->length);
		case FAKE_SKIP_TO:
			return skip_to(fd, step->bytes, step->length);
		case FAKE_SEND:
			return send_all(fd, step->bytes, step->length);
		case FAKE_TRICKLE:
			return trickle(fd, step->bytes, step->length);
		case FAKE_TRICKLE_FOREVER:
			while (trickle(fd, step->bytes, step->length))
				;
			return true;
		case FAKE_HOLD:
			return read(release, &c, 1) == 1;
		case FAKE_CLOSE:
			return true;
	}
	return false;
}

static FakeEnd
play(const FakeServer *server)
{
	int			fd = accept(server->listener, NULL, NULL);
	char		rest[4096];
	ssize_t		got;
	int			i;

	close(server->listener);	/* one connection, and no other */
	if (fd < 0)
		return FAKE_MISMATCH;
	for (i = 0; i < server->count; i++)
	{
		if (!play_step(fd, server->release[0], &server->steps[i]))
			return FAKE_MISMATCH;
		if (server->steps[i].type == FAKE_CLOSE)
			return FAKE_FINE;
	}
	do
	{
		got = recv(fd, rest, sizeof(rest), 0);
	} while (got > 0);
	return got == 0 ? FAKE_FINE : FAKE_WAS_RESET;
}

/* ---- in the test ----------------------------------------------------------- */

void
fake_run(FakeServer *server)
{
	fflush(NULL);
	server->pid = fork();
	must(server->pid >= 0, "fork");
	if (server->pid == 0)
	{
		alarm(LONGEST_SECONDS);
		close(server->release[1]);
		_exit(play(server));
	}
	close(server->listener);
	close(server->release[0]);
}

void
fake_release(FakeServer *server)
{
	must(write(server->release[1], "x", 1) == 1, "write");
}

/* A client that never connects would leave the server in accept: the alarm
 * ends it. */
FakeEnd
fake_end(FakeServer *server)
{
	int			status = 0;
	pid_t		ended;

	close(server->release[1]);
	do
	{
		ended = waitpid(server->pid, &status, 0);
	} while (ended < 0 && errno == EINTR);
	must(ended == server->pid, "waitpid");
	if (server->path[0] != '\0')
	{
		unlink(server->path);
		rmdir(server->directory);
	}
	return WIFEXITED(status) ? (FakeEnd) WEXITSTATUS(status) : FAKE_STUCK;
}
