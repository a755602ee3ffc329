/*
 * test_real_redis.c
 *	  The same against a real redis-server, when there is one in PATH: on a
 *	  Unix socket in a directory of its own.
 */
#include <stdlib.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "real_server.h"
#include "unit.h"

static void
test_stream(RsConnection *connection)
{
	RsReply		reply;

	unit_ok(real_command(connection, "XADD s 5-9 payload {\"id\":1}", &reply) &&
			reply.type == RS_REPLY_STRING && client_text_is(&reply, "5-9"), "XADD");
	unit_ok(real_command(connection, "XADD s 5-9 payload x", &reply) && reply.type == RS_REPLY_ERROR,
			"XADD of an id that is not newer");
	unit_ok(real_command(connection, "XRANGE s - +", &reply) && reply.type == RS_REPLY_ARRAY &&
			reply.tree->elements == 1 && reply.tree->element[0]->elements == 2 &&
			strcmp(reply.tree->element[0]->element[1]->element[1]->str, "{\"id\":1}") == 0, "XRANGE");
	unit_ok(real_command(connection, "GET nothing", &reply) && reply.type == RS_REPLY_NIL, "a nil");
	unit_ok(real_command(connection, "CLIENT GETNAME", &reply) && client_text_is(&reply, "redstream"),
			"the client's name");
	unit_ok(real_command(connection, "CLIENT INFO", &reply) && reply.tree != NULL &&
			strstr(reply.tree->str, " db=3 ") != NULL && strstr(reply.tree->str, " user=default ") != NULL,
			"its database and user");
}

/* The ways of the sender: written in one go, replies taken lightly. */
static void
test_pipeline(RsConnection *connection)
{
	size_t		count = 20000;
	char	   *bytes = malloc(count * 80 + 1);
	char	   *end = bytes;
	RsStreamId	last = {0, 0};
	RsReply		reply;
	RsError		error;
	bool		right;
	size_t		i;

	for (i = 0; i < count; i++)
	{
		end = rs_redis_header_write(end, 5);
		end = rs_redis_bulk_write(end, "XADD", 4);
		end = rs_redis_bulk_write(end, "pipeline", 8);
		end = rs_redis_bulk_write(end, "*", 1);
		end = rs_redis_bulk_write(end, "payload", 7);
		end = rs_redis_bulk_write(end, "{}", 2);
	}
	*end = '\0';
	right = client_write(connection, bytes, &error);
	for (i = 0; right && i < count; i++)
	{
		RsStreamId	id = {0, 0};

		right = client_reply(connection, false, &reply, &error) == 1 &&
			reply.type == RS_REPLY_STRING && rs_redis_id_parse(reply.text, reply.length, &id) &&
			rs_redis_id_compare(&last, &id) < 0;
		last = id;
	}
	unit_ok(right, "%zu pipelined XADDs, each id after the last", count);
	free(bytes);
}

static void
test_restricted_user(const RealServer *server, RsConnection *admin)
{
	RsConnectOptions options;
	RsAddress	address;
	RsServerInfo info;
	RsReply		reply;
	RsError		error;
	RsConnection *connection;

	unit_ok(real_command(admin, "ACL SETUSER anna on >other +@all -info -client ~*", &reply) &&
			client_text_is(&reply, "OK"), "a user who may not use INFO and CLIENT");
	memset(&options, 0, sizeof(options));
	memset(&address, 0, sizeof(address));
	address.path = (char *) server->url + strlen("unix://");
	address.user = (char *) "anna";
	address.password = (char *) "other";
	options.address = &address;
	options.client_name = "redstream";
	options.timeout_ms = PATIENCE_MS;
	connection = rs_redis_connect(&options, &info, &error);
	unit_ok(connection != NULL && info.client_id == 0 && info.run_id[0] == '\0' &&
			info.version[0] != '\0', "connects all the same");
	rs_redis_close(connection, false);

	address.password = (char *) "wrong-secret";
	unit_ok(rs_redis_connect(&options, &info, &error) == NULL, "but not with another password");
	unit_has(error.text, "WRONGPASS", "and the error says so");
	unit_ok(strstr(error.text, "wrong-secret") == NULL, "without the password");
}

static void
test_refusals(const RealServer *server)
{
	RsConnectOptions options;
	RsServerInfo info;
	RsError		error;
	char		url[200];

	memset(&options, 0, sizeof(options));
	unit_ok(client_connect(server->url, &options, &info, &error) == NULL, "no password");
	unit_has(error.text, "NOAUTH", "and the error says so");

	options.password = "secret";
	snprintf(url, sizeof(url), "%s?db=99", server->url);
	unit_ok(client_connect(url, &options, &info, &error) == NULL, "no such database");
	unit_has(error.text, "SELECT on unix:", "and the error names the call");
	unit_has(error.text, "DB index is out of range", "and says why");

	options.client_name = "red stream";
	unit_ok(client_connect(server->url, &options, &info, &error) == NULL, "a bad client name");
	unit_has(error.text, "HELLO on unix:", "and the error names the call");
}

int
main(void)
{
	RealServer	server;
	RsConnectOptions options;
	RsServerInfo info;
	RsConnection *connection;
	RsError		error;
	char		url[200];

	if (!real_is_installed())
	{
		printf("1..0 # SKIP no redis-server in PATH\n");
		return 0;
	}
	real_start(&server, "secret");
	memset(&options, 0, sizeof(options));
	options.password = "secret";
	options.client_name = "redstream";
	connection = real_connect(&server, &options, &info, &error);
	if (!unit_ok(connection != NULL, "greeting a real server"))
		printf("# %s\n", error.text);
	rs_redis_close(connection, false);

	snprintf(url, sizeof(url), "%s?db=3", server.url);
	connection = connection != NULL ? client_connect(url, &options, &info, &error) : NULL;
	if (unit_ok(connection != NULL, "with a database"))
	{
		RsReply		reply;

		unit_ok(strlen(info.run_id) == 40, "run id %s", info.run_id);
		unit_ok(real_command(connection, "CLIENT ID", &reply) && reply.integer == info.client_id,
				"client id %lld", (long long) info.client_id);
		test_stream(connection);
		test_pipeline(connection);
		test_restricted_user(&server, connection);
		test_refusals(&server);
		unit_ok(real_command(connection, "SHUTDOWN NOSAVE", &reply) == false, "the server goes away");
	}
	rs_redis_close(connection, true);
	real_stop(&server);
	return unit_done();
}
