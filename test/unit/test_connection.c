/*
 * test_connection.c
 *	  Bytes out, bytes in, commands, and the ends of connections.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "greeting_script.h"
#include "unit.h"

#define PING "*1\r\n$4\r\nPING\r\n"

static const char *const ping[] = {"PING"};

/* Begins a server that greets; the caller adds its steps. */
static void
begin(FakeServer *server, bool tcp)
{
	fake_begin(server, tcp);
	fake_step(server, FAKE_EXPECT, SENT_GREETING);
	fake_step(server, FAKE_SEND, GREETING_FINE);
}

static void
test_command(bool tcp)
{
	static const char *const set[] = {"SET", "a\0b", ""};
	static const size_t set_lengths[] = {3, 3, 0};
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;

	begin(&server, tcp);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_TRICKLE, "+PONG\r\n");
	fake_step_bytes(&server, FAKE_EXPECT, "*3\r\n$3\r\nSET\r\n$3\r\na\0b\r\n$0\r\n\r\n", 28);
	fake_step(&server, FAKE_SEND, "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_TRICKLE, "*2\r\n*1\r\n:1\r\n$1\r\nx\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);

	unit_ok(rs_redis_command(connection, 1, ping, NULL, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_STATUS && client_text_is(&reply, "PONG"), "a command");
	unit_ok(rs_redis_command(connection, 3, set, set_lengths, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_ERROR && strncmp(reply.text, "OOM ", 4) == 0,
			"an error reply is a reply");
	unit_ok(rs_redis_command(connection, 1, ping, NULL, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_ARRAY && reply.tree->elements == 2 &&
			reply.tree->element[0]->element[0]->integer == 1, "a tree");
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server got what it expects");
}

static bool
give_up(void *argument, int fd, bool writable, int timeout_ms)
{
	return !*(bool *) argument && rs_redis_wait_poll(NULL, fd, writable, timeout_ms);
}

/* Waits, but always says that nothing was to be waited for. */
static bool
be_nervous(void *argument, int fd, bool writable, int timeout_ms)
{
	++*(int *) argument;
	(void) timeout_ms;
	return rs_redis_wait_poll(NULL, fd, writable, 1);
}

static void
test_command_fails(const char *name, const char *first, FakeStepType type, const char *bytes,
				   const char *error_part)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error = {""};
	char		expected[300];
	long long	start;

	begin(&server, false);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_SEND, first);
	fake_step(&server, type, bytes);
	fake_run(&server);
	connection = client_connect_fake(&server);
	start = fake_now_ms();
	unit_ok(!rs_redis_command(connection, 1, ping, NULL, 200, &reply, &error), "%s", name);
	unit_ok(fake_now_ms() - start < PATIENCE_MS, "and it ends");
	snprintf(expected, sizeof(expected), "PING on %s: ", server.target);
	unit_has(error.text, expected, "and the error names the call");
	unit_has(error.text, error_part, "and says why");
	rs_redis_close(connection, false);
	fake_end(&server);
}

static void
test_waits(void)
{
	FakeServer	server;
	RsConnectOptions options;
	RsConnection *connection;
	RsServerInfo info;
	RsReply		reply;
	RsError		error;
	bool		interrupted = false;
	int			waits = 0;

	memset(&options, 0, sizeof(options));
	options.wait = give_up;
	options.wait_argument = &interrupted;
	begin(&server, false);
	fake_run(&server);
	connection = client_connect(server.url, &options, &info, &error);
	unit_ok(connection != NULL, "a wait of the caller's own");
	interrupted = true;
	unit_ok(!rs_redis_command(connection, 1, ping, NULL, PATIENCE_MS, &reply, &error),
			"a command that is interrupted");
	unit_has(error.text, ": interrupted", "and the error says so");
	rs_redis_close(connection, false);
	fake_end(&server);

	options.wait = be_nervous;
	options.wait_argument = &waits;
	begin(&server, false);
	fake_step(&server, FAKE_HOLD, NULL);
	fake_run(&server);
	connection = client_connect(server.url, &options, &info, &error);
	waits = 0;
	unit_ok(!rs_redis_command(connection, 1, ping, NULL, 100, &reply, &error) && waits > 1,
			"waits that return early are repeated");
	unit_has(error.text, ": timeout after 100 ms", "until the deadline");
	rs_redis_close(connection, false);
	fake_release(&server);
	fake_end(&server);
}

/* More than the socket holds: rs_redis_write has to stop, and to go on. */
static void
test_backpressure(bool tcp)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	struct iovec vector[3];
	char		block[5000];
	ssize_t		written;
	size_t		total = 0;

	begin(&server, tcp);
	fake_step(&server, FAKE_HOLD, NULL);
	fake_step(&server, FAKE_SKIP_TO, "END!");
	fake_step(&server, FAKE_SEND, "+OK\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);

	memset(block, 'x', sizeof(block));
	vector[0].iov_base = block;
	vector[0].iov_len = sizeof(block);
	vector[1].iov_base = NULL;
	vector[1].iov_len = 0;
	vector[2].iov_base = block;
	vector[2].iov_len = 17;
	while ((written = rs_redis_write(connection, vector, 3, &error)) > 0)
		total += (size_t) written;
	unit_ok(written == 0 && total > 0, "writing stops when the socket is full");
	unit_ok(rs_redis_read(connection, &error) == 0, "and reading finds nothing");
	fake_release(&server);
	unit_ok(client_write(connection, "END!", &error), "it goes on when the server reads");
	unit_ok(client_reply(connection, false, &reply, &error) == 1 && client_text_is(&reply, "OK"),
			"and the server got it");
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and ended well");
}

static void
test_many_pieces(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsError		error;
	struct iovec vector[2000];
	char	   *expected = malloc(2001);
	ssize_t		written;
	int			i;

	for (i = 0; i < 2000; i++)
	{
		expected[i] = (char) ('a' + i % 26);
		vector[i].iov_base = &expected[i];
		vector[i].iov_len = 1;
	}
	expected[2000] = '\0';
	begin(&server, false);
	fake_step(&server, FAKE_EXPECT, expected);
	fake_run(&server);
	connection = client_connect_fake(&server);
	written = rs_redis_write(connection, vector, 2000, &error);
	unit_ok(written > 0 && written <= 2000, "more pieces than the kernel takes at once");
	if (written > 0)
		client_write(connection, expected + written, &error);
	unit_ok(rs_redis_write(connection, vector, 0, &error) == 0, "no piece at all");
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server got them in order");
	free(expected);
}

/* A lost connection is an error of reading and writing, and no signal. */
static void
test_loss(bool tcp)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	struct iovec piece = {.iov_base = (char *) PING,.iov_len = strlen(PING)};
	char		expected[300];
	long long	end = fake_now_ms() + PATIENCE_MS;
	ssize_t		written;
	int			result;

	begin(&server, tcp);
	fake_step(&server, FAKE_SEND, "+last\r\n");
	fake_step(&server, FAKE_CLOSE, NULL);
	fake_run(&server);
	connection = client_connect_fake(&server);
	fake_end(&server);

	unit_ok(client_reply(connection, false, &reply, &error) == 1 && client_text_is(&reply, "last"),
			"what came before the end can be read");
	result = rs_redis_read(connection, &error);
	snprintf(expected, sizeof(expected), "read from %s: server closed the connection", server.target);
	unit_ok(result == -1, "then reading fails");
	unit_same(error.text, expected, "and the error says so");

	do
	{
		written = rs_redis_write(connection, &piece, 1, &error);
	} while (written >= 0 && fake_now_ms() < end);
	snprintf(expected, sizeof(expected), "write to %s: ", server.target);
	unit_ok(written == -1, "and so does writing");
	unit_has(error.text, expected, "and the error says so");
	rs_redis_close(connection, false);
}

/* A server that refuses what it has not read to its end. */
static void
test_last_words(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	size_t		length = 4000000;
	char	   *value = calloc(1, length);
	const char *arguments[2] = {"ECHO", value};
	size_t		lengths[2] = {4, length};

	begin(&server, false);
	fake_step(&server, FAKE_SKIP_TO, "ECHO");
	fake_step(&server, FAKE_SEND, "-ERR Protocol error: invalid bulk length\r\n");
	fake_step(&server, FAKE_CLOSE, NULL);
	fake_run(&server);
	connection = client_connect_fake(&server);
	unit_ok(rs_redis_command(connection, 2, arguments, lengths, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_ERROR && strncmp(reply.text, "ERR Protocol", 12) == 0,
			"the last words of a server that closes");
	unit_ok(!rs_redis_command(connection, 2, arguments, lengths, PATIENCE_MS, &reply, &error),
			"there are no more of them");
	unit_has(error.text, "ECHO", "and the error names the command");
	rs_redis_close(connection, false);
	fake_end(&server);
	free(value);
}

static void
test_close(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsError		error;

	begin(&server, true);
	fake_step(&server, FAKE_SKIP_TO, "END!");
	fake_run(&server);
	connection = client_connect_fake(&server);
	client_write(connection, "END!", &error);
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "closing ends the stream of bytes");

	begin(&server, true);
	fake_run(&server);
	connection = client_connect_fake(&server);
	rs_redis_close(connection, true);
	unit_ok(fake_end(&server) == FAKE_WAS_RESET, "aborting resets the connection");

	rs_redis_close(NULL, true);
	unit_ok(true, "closing nothing is harmless");
}

static volatile sig_atomic_t signals = 0;

static void
count_signal(int signal_number)
{
	(void) signal_number;
	signals++;
}

/* Signals all the time, and no system call that is restarted by itself. */
static void
test_signals(void)
{
	struct itimerval often = {{0, 500}, {0, 500}};
	struct itimerval never = {{0, 0}, {0, 0}};
	struct sigaction action;
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	bool		right;

	begin(&server, false);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_HOLD, NULL);
	fake_step(&server, FAKE_TRICKLE, "+PONG\r\n");
	fake_run(&server);
	memset(&action, 0, sizeof(action));
	action.sa_handler = count_signal;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	connection = client_connect_fake(&server);

	/* The reply is held back until signals have come while waiting for it. */
	right = !rs_redis_command(connection, 1, ping, NULL, 100, &reply, &error);
	unit_ok(right && signals > 0 && strstr(error.text, "timeout") != NULL,
			"signals neither shorten nor lengthen a wait");
	fake_release(&server);
	unit_ok(client_reply(connection, true, &reply, &error) == 1 && client_text_is(&reply, "PONG"),
			"nor lose a reply");
	setitimer(ITIMER_REAL, &never, NULL);
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server ended well");
}

int
main(void)
{
	test_command(false);
	test_command(true);
	test_command_fails("silence", "", FAKE_SEND, "", "timeout after 200 ms");
	test_command_fails("half a reply and silence", "$5\r\n", FAKE_SEND, "ab", "timeout after 200 ms");
	test_command_fails("an array that never ends", "*999999\r\n", FAKE_TRICKLE_FOREVER,
					   "*-1\r\n", "timeout after 200 ms");
	test_command_fails("a string that never ends", "", FAKE_TRICKLE_FOREVER, "+",
					   "timeout after 200 ms");
	test_command_fails("a server that closes", "", FAKE_CLOSE, NULL, "server closed the connection");
	test_command_fails("a server that closes in a reply", "*2\r\n+a", FAKE_CLOSE, NULL,
					   "server closed the connection");
	test_command_fails("garbage", "", FAKE_SEND, "PONG\r\n", "Protocol error");
	test_waits();
	test_backpressure(false);
	test_backpressure(true);
	test_many_pieces();
	test_loss(false);
	test_loss(true);
	test_last_words();
	test_close();
	test_signals();
	return unit_done();
}
