/*
 * test_pipeline.c
 *	  Many commands written together, and their replies.
 */
#include <stdlib.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "greeting_script.h"
#include "unit.h"

#define PING "*1\r\n$4\r\nPING\r\n"
#define GET_NUL "*2\r\n$3\r\nGET\r\n$3\r\na\0b\r\n"

static const char *const ping[] = {"PING"};

static void
begin(FakeServer *server)
{
	fake_begin(server, false);
	fake_step(server, FAKE_EXPECT, SENT_GREETING);
	fake_step(server, FAKE_SEND, GREETING_FINE);
}

static void
finish(FakeServer *server, RsConnection *connection)
{
	rs_redis_close(connection, false);
	unit_ok(fake_end(server) == FAKE_FINE, "and the server ended well");
}

/* The replies come in pieces, and not before all was written. */
static void
test_order(void)
{
	const char *get[] = {"GET", "a\0b"};
	size_t		lengths[] = {3, 3};
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;

	begin(&server);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step_bytes(&server, FAKE_EXPECT, GET_NUL, sizeof(GET_NUL) - 1);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_TRICKLE, "+PONG\r\n-ERR no\r\n*2\r\n$1\r\nx\r\n:7\r\n");
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_SEND, "$-1\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);

	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error), "nothing queued, nothing written");
	rs_redis_queue(connection, 1, ping, NULL);
	rs_redis_queue(connection, 2, get, lengths);
	rs_redis_queue(connection, 1, ping, NULL);
	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error), "three commands");
	unit_ok(rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_STATUS && client_text_is(&reply, "PONG"), "the first reply");
	unit_ok(rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_ERROR && client_text_is(&reply, "ERR no"),
			"an error reply is a reply");
	unit_ok(rs_redis_next(connection, true, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_ARRAY && reply.tree->elements == 2 &&
			reply.tree->element[1]->integer == 7, "an array");
	rs_redis_queue(connection, 1, ping, NULL);
	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error) &&
			rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) &&
			reply.type == RS_REPLY_NIL, "once more");
	finish(&server, connection);
}

/* More than the socket takes at once and than a queue keeps. */
static void
test_large(void)
{
	size_t		size = 3 << 20;
	char	   *large = malloc(size + 1);
	const char *set[] = {"SET", "large", large};
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;

	memset(large, 'x', size);
	large[size] = '\0';
	begin(&server);
	fake_step(&server, FAKE_SKIP_TO, PING);
	fake_step(&server, FAKE_SEND, "+OK\r\n+PONG\r\n");
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_SEND, "+PONG\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);

	rs_redis_queue(connection, 3, set, NULL);
	rs_redis_queue(connection, 1, ping, NULL);
	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error), "three megabytes");
	unit_ok(rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) && client_text_is(&reply, "OK") &&
			rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) && client_text_is(&reply, "PONG"),
			"both replies");
	rs_redis_queue(connection, 1, ping, NULL);
	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error) &&
			rs_redis_next(connection, false, PATIENCE_MS, &reply, &error) && client_text_is(&reply, "PONG"),
			"and a small one after it");
	finish(&server, connection);
	free(large);
}

static void
test_failures(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	bool		right;

	begin(&server);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_SEND, "+PONG\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);
	rs_redis_queue(connection, 1, ping, NULL);
	right = rs_redis_flush(connection, PATIENCE_MS, &error) &&
		rs_redis_next(connection, false, PATIENCE_MS, &reply, &error);
	unit_ok(right && !rs_redis_next(connection, false, 100, &reply, &error), "a reply that does not come");
	unit_has(error.text, "timeout after 100 ms", "and the error says so");
	finish(&server, connection);

	begin(&server);
	fake_step(&server, FAKE_EXPECT, PING);
	fake_step(&server, FAKE_SEND, "+PO");
	fake_step(&server, FAKE_CLOSE, NULL);
	fake_run(&server);
	connection = client_connect_fake(&server);
	rs_redis_queue(connection, 1, ping, NULL);
	unit_ok(rs_redis_flush(connection, PATIENCE_MS, &error) &&
			!rs_redis_next(connection, false, PATIENCE_MS, &reply, &error), "a server that closes in a reply");
	unit_has(error.text, "server closed the connection", "and the error says so");
	finish(&server, connection);
}

int
main(void)
{
	test_order();
	test_large();
	test_failures();
	return unit_done();
}
