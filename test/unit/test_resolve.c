/*
 * test_resolve.c
 *	  Names of hosts: what is waited for, what is given up, and that a silent name server costs one
 *	  thread.
 *
 * getaddrinfo() is replaced here: "held" is resolved when the test says so, "fine" at once, and other names not
 * at all.
 */
#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "client.h"
#include "greeting_script.h"
#include "unit.h"

typedef int (*Getaddrinfo) (const char *, const char *, const struct addrinfo *,
							struct addrinfo **);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool released;
static int	lookups;			/* of names */
static bool took_signals;		/* a thread did not block them */

static void
wait_released(void)
{
	pthread_mutex_lock(&mutex);
	while (!released)
		pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
}

static void
set_released(bool value)
{
	pthread_mutex_lock(&mutex);
	released = value;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&mutex);
}

static void
count_lookup(void)
{
	sigset_t	blocked;

	pthread_sigmask(SIG_SETMASK, NULL, &blocked);
	pthread_mutex_lock(&mutex);
	lookups++;
	took_signals |= !sigismember(&blocked, SIGTERM) || !sigismember(&blocked, SIGALRM);
	pthread_mutex_unlock(&mutex);
}

static int
lookups_so_far(void)
{
	int			count;

	pthread_mutex_lock(&mutex);
	count = lookups;
	pthread_mutex_unlock(&mutex);
	return count;
}

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **found)
{
	Getaddrinfo original = (Getaddrinfo) dlsym(RTLD_NEXT, "getaddrinfo");

	if (hints->ai_flags & AI_NUMERICHOST || strcmp(node, "127.0.0.1") == 0)
		return original(node, service, hints, found);
	count_lookup();
	if (strcmp(node, "held") == 0)
		wait_released();
	else if (strcmp(node, "fine") != 0)
		return EAI_NONAME;
	return original("127.0.0.1", service, hints, found);
}

static bool
interrupt(void *argument, int fd, bool writable, int timeout_ms)
{
	(void) argument, (void) fd, (void) writable, (void) timeout_ms;
	return false;
}

/* Tries to connect to port 1 of a host, where nothing listens; the error says how far it came. */
static void
try(const char *host, int timeout_ms, RsWait wait, RsError *error)
{
	RsConnectOptions options = {.timeout_ms = timeout_ms,.wait = wait};
	RsServerInfo info;
	char		url[100];

	snprintf(url, sizeof(url), "redis://%s:1", host);
	unit_ok(client_connect(url, &options, &info, error) == NULL, "%s: no connection", host);
}

static void
test_plain(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsServerInfo info;
	RsError		error;
	char		url[100];
	int			before = lookups_so_far();

	fake_begin(&server, true);
	fake_step(&server, FAKE_EXPECT, SENT_GREETING);
	fake_step(&server, FAKE_SEND, GREETING_FINE);
	fake_run(&server);
	snprintf(url, sizeof(url), "redis://fine:%d", server.port);
	connection = client_connect(url, NULL, &info, &error);
	unit_ok(connection != NULL, "a name");
	unit_ok(lookups_so_far() == before + 1, "it is looked up once");
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server is spoken to");

	try("unknown", PATIENCE_MS, NULL, &error);
	unit_has(error.text, "resolve unknown:1: ", "a name that nobody knows");
	before = lookups_so_far();
	try("127.0.0.1", PATIENCE_MS, NULL, &error);
	unit_has(error.text, "connect to 127.0.0.1:1: ", "an address");
	unit_ok(lookups_so_far() == before, "it is not looked up");
}

/* The thread of the first call is also that of the others. */
static void
test_silence(void)
{
	RsError		error;
	long long	start = fake_now_ms();
	int			before = lookups_so_far();
	int			i;

	for (i = 0; i < 5; i++)
	{
		try("held", 50, NULL, &error);
		unit_same(error.text, "resolve held:1: timeout after 50 ms", "a silent name server: the deadline");
	}
	try("held", PATIENCE_MS, interrupt, &error);
	unit_same(error.text, "resolve held:1: interrupted", "a silent name server: the wait says no");
	unit_ok(fake_now_ms() - start < PATIENCE_MS, "a silent name server: nobody is held up");

	try("unknown", PATIENCE_MS, NULL, &error);
	unit_has(error.text, "resolve unknown:1: ", "a silent name server: others answer");

	set_released(true);
	try("held", PATIENCE_MS, NULL, &error);
	unit_has(error.text, "connect to held:1: ", "it has answered");
	unit_ok(lookups_so_far() == before + 2, "it was asked once, and that is what it has answered");
	try("held", PATIENCE_MS, NULL, &error);
	unit_ok(lookups_so_far() == before + 3, "and taken once");
}

/* An answer that comes when nobody waits any more is there for the next call. */
static void
test_late_answer(void)
{
	RsError		error;
	int			before = lookups_so_far();
	int			tries = 0;

	set_released(false);
	try("held", 50, NULL, &error);
	unit_has(error.text, "timeout", "a late answer: not yet");
	set_released(true);
	do
	{
		try("held", 50, NULL, &error);
	} while (strstr(error.text, "timeout") != NULL && ++tries < PATIENCE_MS / 50);
	unit_has(error.text, "connect to held:1: ", "a late answer: is taken");
	unit_ok(lookups_so_far() == before + 1, "a late answer: to the first question");
}

/* What nobody waits for when the program ends is in nobody's way, and no leak. */
static void
test_end(void)
{
	RsError		error;

	set_released(false);
	try("held", 50, NULL, &error);
	unit_has(error.text, "timeout", "an end while a name is looked up");
}

int
main(void)
{
	test_plain();
	test_silence();
	test_late_answer();
	unit_ok(!took_signals, "the threads block all signals");
	test_end();
	return unit_done();
}
