/*
 * test_reply.c
 *	  Replies taken in the light mode and as trees: whole, in pieces, long,
 *	  nested, and garbage.
 */
#include <stdlib.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "greeting_script.h"
#include "unit.h"

static const struct
{
	const char *bytes;
	RsReplyType type;
	const char *text;			/* or NULL */
	int64_t		integer;
}			replies[] =
{
	{"+OK\r\n", RS_REPLY_STATUS, "OK", 0},
	{"+\r\n", RS_REPLY_STATUS, "", 0},
	{"-OOM command not allowed\r\n", RS_REPLY_ERROR, "OOM command not allowed", 0},
	{":0\r\n", RS_REPLY_INTEGER, NULL, 0},
	{":-12\r\n", RS_REPLY_INTEGER, NULL, -12},
	{":9223372036854775807\r\n", RS_REPLY_INTEGER, NULL, INT64_MAX},
	{"$0\r\n\r\n", RS_REPLY_STRING, "", 0},
	{"$15\r\n1526919030474-5\r\n", RS_REPLY_STRING, "1526919030474-5", 0},
	{"$6\r\na\r\nb\r\n\r\n", RS_REPLY_STRING, "a\r\nb\r\n", 0},
	{"$-1\r\n", RS_REPLY_NIL, NULL, 0},
	{"*-1\r\n", RS_REPLY_NIL, NULL, 0},
	{"*0\r\n", RS_REPLY_ARRAY, NULL, 0},
	{"*2\r\n$1\r\na\r\n:5\r\n", RS_REPLY_ARRAY, NULL, 0},
	{"*3\r\n*2\r\n+a\r\n-ERR b\r\n$-1\r\n*1\r\n*1\r\n*1\r\n$1\r\nc\r\n", RS_REPLY_ARRAY, NULL, 0},
	{"*1\r\n*-1\r\n", RS_REPLY_ARRAY, NULL, 0},
	{"+last\r\n", RS_REPLY_STATUS, "last", 0},
};

#define REPLY_COUNT (sizeof(replies) / sizeof(replies[0]))

/* Starts a server that greets and then answers with these bytes. */
static void
serve(FakeServer *server, FakeStepType type, const char *bytes, size_t length)
{
	fake_begin(server, false);
	fake_step(server, FAKE_EXPECT, SENT_GREETING);
	fake_step(server, FAKE_SEND, GREETING_FINE);
	fake_step_bytes(server, type, bytes, length);
	fake_run(server);
}

static void
check_reply(size_t i, bool tree, const RsReply *reply)
{
	bool		right = reply->type == replies[i].type && reply->integer == replies[i].integer;

	if (replies[i].text == NULL)
		right = right && reply->text == NULL && reply->length == 0;
	else
		right = right && client_text_is(reply, replies[i].text);
	unit_ok(right, "%s as %s", replies[i].bytes, tree ? "a tree" : "light");
	unit_ok((reply->tree != NULL) == tree, "and a tree only when asked for");
}

/* mode: 0 light, 1 trees, 2 in turns. */
static void
test_all(FakeStepType type, int mode)
{
	char		bytes[2000] = "";
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	size_t		i;

	for (i = 0; i < REPLY_COUNT; i++)
		strcat(bytes, replies[i].bytes);
	serve(&server, type, bytes, strlen(bytes));
	connection = client_connect_fake(&server);
	for (i = 0; i < REPLY_COUNT; i++)
	{
		bool		tree = mode == 2 ? i % 2 == 0 : mode == 1;

		if (client_reply(connection, tree, &reply, &error) == 1)
			check_reply(i, tree, &reply);
		else
			unit_ok(false, "%s: %s", replies[i].bytes, error.text);
	}
	unit_ok(rs_redis_reply(connection, mode == 1, &reply, &error) == 0, "nothing is left");
	rs_redis_close(connection, false);
	fake_end(&server);
}

static void
test_tree(void)
{
	static const char bytes[] =
	"*4\r\n$3\r\n1-1\r\n*2\r\n$7\r\npayload\r\n$8\r\n{\"id\":1}\r\n:-7\r\n-OOM no\r\n";
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;

	serve(&server, FAKE_TRICKLE, bytes, strlen(bytes));
	connection = client_connect_fake(&server);
	if (unit_ok(client_reply(connection, true, &reply, &error) == 1 && reply.tree != NULL &&
				reply.tree->elements == 4, "a tree"))
	{
		redisReply **element = reply.tree->element;

		unit_same(element[0]->str, "1-1", "its string");
		unit_ok(element[1]->elements == 2, "its array");
		unit_same(element[1]->element[1]->str, "{\"id\":1}", "a string in that");
		unit_ok(element[2]->integer == -7, "its integer");
		unit_ok(element[3]->type == REDIS_REPLY_ERROR, "its error");
	}
	rs_redis_close(connection, false);	/* with the tree still there */
	fake_end(&server);
}

/* Strings around the sizes of buffers, and one of a megabyte. */
static void
test_long(bool tree)
{
	static const size_t lengths[] = {
		255, 256, 257, 1000, 16383, 16384, 16385, 100, 40000, 7, 1048576, 3
	};
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	char	   *bytes = malloc(2000000);
	char	   *end = bytes;
	size_t		i;

	for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		char	   *data = malloc(lengths[i]);

		memset(data, 'a' + (int) i, lengths[i]);
		end = rs_redis_bulk_write(end, data, lengths[i]);
		free(data);
	}
	serve(&server, FAKE_SEND, bytes, (size_t) (end - bytes));
	connection = client_connect_fake(&server);
	for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		bool		right = client_reply(connection, tree, &reply, &error) == 1 &&
			reply.type == RS_REPLY_STRING && reply.length == lengths[i];
		size_t		at;

		for (at = 0; right && at < lengths[i]; at++)
			right = reply.text[at] == 'a' + (int) i;
		unit_ok(right, "a string of %zu bytes, %s", lengths[i], tree ? "as a tree" : "light");
	}
	rs_redis_close(connection, false);
	free(bytes);
	fake_end(&server);
}

/* As many as the sender may have in flight, more than any buffer holds. */
static void
test_many(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;
	size_t		count = 50000;
	char	   *bytes = malloc(count * 20 + 1);
	char	   *end = bytes;
	bool		right = true;
	size_t		i;

	for (i = 0; i < count; i++)
	{
		char		id[16];

		snprintf(id, sizeof(id), "%zu-%zu", 1000000 + i, i % 10);
		end = rs_redis_bulk_write(end, id, strlen(id));
	}
	serve(&server, FAKE_SEND, bytes, (size_t) (end - bytes));
	connection = client_connect_fake(&server);
	for (i = 0; i < count && right; i++)
	{
		RsStreamId	id;

		right = client_reply(connection, false, &reply, &error) == 1 &&
			rs_redis_id_parse(reply.text, reply.length, &id) && id.ms == 1000000 + i &&
			id.seq == i % 10;
	}
	unit_ok(right, "%zu replies, each in its place", count);
	rs_redis_close(connection, false);
	free(bytes);
	fake_end(&server);
}

static void
test_garbage(bool tree)
{
	static const char *const garbage[] = {
		"GET / HTTP/1.1\r\n", "\r\n", ":abc\r\n", "*x\r\n", "$x\r\n", "$-2\r\n", "*-2\r\n",
		"*2\r\n+a\r\n!\r\n", "$99999999999999999999999\r\n", "%1\r\n+a\r\n+b\r\n", ",1.5\r\n", "#t\r\n",
		"*1\r\n*1\r\n?\r\n",
	};
	size_t		i;

	for (i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++)
	{
		FakeServer	server;
		RsConnection *connection;
		RsReply		reply;
		RsError		error;
		char		expected[300];

		serve(&server, FAKE_SEND, garbage[i], strlen(garbage[i]));
		connection = client_connect_fake(&server);
		unit_ok(client_reply(connection, tree, &reply, &error) == -1, "%s is refused, %s", garbage[i],
				tree ? "as a tree" : "light");
		snprintf(expected, sizeof(expected), "reply from %s: ", server.target);
		unit_has(error.text, expected, "and the error names the server");
		unit_ok(rs_redis_reply(connection, tree, &reply, &error) == -1, "and remains refused");
		rs_redis_close(connection, false);
		fake_end(&server);
	}
}

static void
test_change_of_mode(void)
{
	FakeServer	server;
	RsConnection *connection;
	RsReply		reply;
	RsError		error;

	fake_begin(&server, false);
	fake_step(&server, FAKE_EXPECT, SENT_GREETING);
	fake_step(&server, FAKE_SEND, GREETING_FINE);
	fake_step(&server, FAKE_SKIP_TO, "go");
	fake_step(&server, FAKE_SEND, "*2\r\n+a\r\n");
	fake_step(&server, FAKE_HOLD, NULL);
	fake_step(&server, FAKE_SEND, "+b\r\n+c\r\n");
	fake_run(&server);
	connection = client_connect_fake(&server);
	unit_ok(rs_redis_reply(connection, false, &reply, &error) == 0 &&
			rs_redis_reply(connection, true, &reply, &error) == 0,
			"the mode may change while nothing has come");
	unit_ok(client_write(connection, "go", &error) &&
			rs_redis_wait_poll(NULL, rs_redis_fd(connection), false, PATIENCE_MS) &&
			rs_redis_read(connection, &error) == 1, "a part has come");
	unit_ok(rs_redis_reply(connection, true, &reply, &error) == 0, "which is no reply yet");
	unit_ok(rs_redis_reply(connection, false, &reply, &error) == -1, "now the mode must stay");
	fake_release(&server);
	unit_ok(client_reply(connection, true, &reply, &error) == 1 && reply.tree->elements == 2,
			"and in the old mode it still arrives");
	unit_ok(client_reply(connection, false, &reply, &error) == 1 && client_text_is(&reply, "c"),
			"then the mode may change again");
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server ended well");
}

int
main(void)
{
	int			mode;

	for (mode = 0; mode < 3; mode++)
	{
		test_all(FAKE_SEND, mode);
		test_all(FAKE_TRICKLE, mode);
	}
	test_tree();
	test_long(false);
	test_long(true);
	test_many();
	test_garbage(false);
	test_garbage(true);
	test_change_of_mode();
	return unit_done();
}
