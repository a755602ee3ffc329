/*
 * fake_server.h
 *	  A server for one connection that does what a script says, in a child
 *	  process, on a Unix socket or a port of the loopback address.
 *
 * A test begins it, adds steps, runs it, connects to its URL, and ends it.
 * After its last step the server reads until the client closes.
 */
#ifndef RS_FAKE_SERVER_H
#define RS_FAKE_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define FAKE_STEPS 24

typedef enum FakeStepType
{
	FAKE_EXPECT,				/* exactly these bytes come */
	FAKE_SKIP_TO,				/* read until these bytes came */
	FAKE_SEND,
	FAKE_TRICKLE,				/* send, one byte at a time */
	FAKE_TRICKLE_FOREVER,		/* until the client closes */
	FAKE_HOLD,					/* wait for fake_release */
	FAKE_CLOSE					/* and nothing after it */
} FakeStepType;

typedef struct FakeStep
{
	FakeStepType type;
	const char *bytes;			/* the test's own, until fake_run */
	size_t		length;
} FakeStep;

typedef struct FakeServer
{
	char		url[200];
	char		target[200];	/* as errors call it */
	char		directory[64];
	char		path[100];		/* of a Unix socket, else "" */
	int			port;
	int			listener;
	int			release[2];		/* a pipe */
	pid_t		pid;
	int			count;
	FakeStep	steps[FAKE_STEPS];
} FakeServer;

/* How the server ended. */
typedef enum FakeEnd
{
	FAKE_FINE,					/* its script, and then the client closed */
	FAKE_WAS_RESET,				/* as above, but by a reset */
	FAKE_MISMATCH,				/* something else came, or the client was gone */
	FAKE_STUCK					/* it had to be killed */
} FakeEnd;

extern void fake_begin(FakeServer *server, bool tcp);
extern void fake_step(FakeServer *server, FakeStepType type, const char *bytes);
extern void fake_step_bytes(FakeServer *server, FakeStepType type, const char *bytes, size_t length);
extern void fake_run(FakeServer *server);
extern void fake_release(FakeServer *server);
extern FakeEnd fake_end(FakeServer *server);

/* Milliseconds of the monotonic clock. */
extern long long fake_now_ms(void);

#endif							/* RS_FAKE_SERVER_H */
