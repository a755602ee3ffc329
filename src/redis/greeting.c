/*
 * greeting.c
 *	  From an address to a connection that is ready for work: HELLO, and what
 *	  the server says of itself.
 *
 * All commands of the greeting leave in one write.  Their replies are checked
 * in order, so that the first thing that is wrong is the one the error tells.
 * One deadline holds for everything.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "internal.h"

#define NEEDED "Redis 6.2 or Valkey 7.2 or newer is needed"

typedef struct Command
{
	int			count;
	const char *arguments[7];
} Command;

/* What is sent to greet, and the texts that it is made of. */
typedef struct Greeting
{
	const char *password;		/* NULL: no AUTH */
	const char *user;
	char		database[16];
	bool		select;
	int			count;
	Command		commands[4];
} Greeting;

/* ---- what is sent -------------------------------------------------------- */

static void
add(Command *command, const char *argument)
{
	command->arguments[command->count++] = argument;
}

static void
compose_hello(Command *hello, const Greeting *greeting, const char *client_name)
{
	add(hello, "HELLO");
	add(hello, "2");
	if (greeting->password != NULL)
	{
		add(hello, "AUTH");
		add(hello, greeting->user);
		add(hello, greeting->password);
	}
	if (client_name != NULL)
	{
		add(hello, "SETNAME");
		add(hello, client_name);
	}
}

static void
compose(Greeting *greeting, const RsConnectOptions *options)
{
	const RsAddress *address = options->address;
	Command    *next = greeting->commands;

	memset(greeting, 0, sizeof(*greeting));
	greeting->password = options->password != NULL ? options->password : address->password;
	greeting->user = address->user != NULL ? address->user : "default";

	/* A user without a password may be one that needs none; any will do then. */
	if (greeting->password == NULL && address->user != NULL)
		greeting->password = "";
	greeting->select = address->database != 0;
	snprintf(greeting->database, sizeof(greeting->database), "%d", address->database);

	/* Seven arguments at most: HELLO 2 AUTH user password SETNAME name. */
	compose_hello(next++, greeting, options->client_name);
	if (greeting->select)
	{
		add(next, "SELECT");
		add(next++, greeting->database);
	}
	add(next, "CLIENT");
	add(next++, "ID");
	add(next, "INFO");
	add(next++, "server");
	greeting->count = (int) (next - greeting->commands);
}

static bool
send_greeting(RsConnection *connection, const Greeting *greeting, const RsDeadline *deadline,
			  RsError *error)
{
	size_t		size = 0;
	char	   *data;
	char	   *out;
	bool		sent;
	int			i;

	for (i = 0; i < greeting->count; i++)
		size += rs_redis_command_size(greeting->commands[i].count,
									  greeting->commands[i].arguments, NULL);
	data = out = malloc(size);
	if (data == NULL)
		return rs_redis_error(error, "HELLO on %s: out of memory", connection->target);
	for (i = 0; i < greeting->count; i++)
		out = rs_redis_command_write(out, greeting->commands[i].count,
									 greeting->commands[i].arguments, NULL);
	sent = rs_redis_send_all(connection, data, size, deadline, "HELLO on", error);
	explicit_bzero(data, size);
	free(data);
	return sent;
}

/* ---- what is answered ---------------------------------------------------- */

static bool
begins_with(const RsReply *reply, const char *words)
{
	return reply->length >= strlen(words) &&
		strncasecmp(reply->text, words, strlen(words)) == 0;
}

static bool
command_unknown(const RsReply *reply)
{
	return reply->type == RS_REPLY_ERROR &&
		(begins_with(reply, "ERR unknown command") || begins_with(reply, "ERR unknown subcommand"));
}

/* Refused by an ACL, or taken away by rename-command. */
static bool
not_permitted(const RsReply *reply)
{
	return reply->type == RS_REPLY_ERROR &&
		(begins_with(reply, "NOPERM") || command_unknown(reply));
}

/* The error for a reply that is an error, or of a type that makes no sense. */
static bool
refused(RsConnection *connection, const char *call, const RsReply *reply, RsError *error)
{
	if (reply->type != RS_REPLY_ERROR)
		return rs_redis_error(error, "%s %s: unexpected type of reply", call, connection->target);
	return rs_redis_error(error, "%s %s: %.*s", call, connection->target,
						  (int) (reply->length < 400 ? reply->length : 400), reply->text);
}

/* As above, for the command that has the password: some servers quote what
 * they do not like. */
static bool
hello_refused(RsConnection *connection, const Greeting *greeting, const RsReply *reply,
			  RsError *error)
{
	if (reply->type == RS_REPLY_ERROR && greeting->password != NULL &&
		greeting->password[0] != '\0' && strstr(reply->text, greeting->password) != NULL)
		return rs_redis_error(error, "HELLO on %s: refused, with an error that quotes the password",
							  connection->target);
	return refused(connection, "HELLO on", reply, error);
}

/* Copies the value of a key from HELLO's reply, "" when there is none. */
static void
copy_field(const redisReply *hello, const char *key, char *value, size_t size)
{
	size_t		i;

	value[0] = '\0';
	for (i = 0; i + 1 < hello->elements; i += 2)
	{
		const redisReply *name = hello->element[i];
		const redisReply *content = hello->element[i + 1];

		if (name->type == REDIS_REPLY_STRING && strcmp(name->str, key) == 0 &&
			content->type == REDIS_REPLY_STRING)
			snprintf(value, size, "%s", content->str);
	}
}

/* Copies the value of a line "<key>:<value>" of INFO, "" when there is none. */
static void
copy_line(const RsReply *info, const char *key, char *value, size_t size)
{
	const char *line = info->text;
	const char *end = info->text + info->length;
	size_t		key_length = strlen(key);

	value[0] = '\0';
	while (line < end)
	{
		const char *line_end = memchr(line, '\n', (size_t) (end - line));

		if (line_end == NULL)
			line_end = end;
		if ((size_t) (line_end - line) > key_length && line[key_length] == ':' &&
			memcmp(line, key, key_length) == 0)
		{
			line += key_length + 1;
			while (line_end > line && line_end[-1] == '\r')
				line_end--;
			snprintf(value, size, "%.*s", (int) (line_end - line), line);
			return;
		}
		line = line_end + 1;
	}
}

static bool
version_at_least(const char *version, long major, long minor)
{
	char	   *rest;
	long		found_major = strtol(version, &rest, 10);
	long		found_minor = *rest == '.' ? strtol(rest + 1, NULL, 10) : 0;

	return found_major > major || (found_major == major && found_minor >= minor);
}

static bool
check_version(RsConnection *connection, const RsServerInfo *info, RsError *error)
{
	if (strcasecmp(info->software, "redis") == 0 && version_at_least(info->version, 6, 2))
		return true;
	if (strcasecmp(info->software, "valkey") == 0 && version_at_least(info->version, 7, 2))
		return true;
	return rs_redis_error(error, "HELLO on %s: " NEEDED ", found %s %s", connection->target,
						  info->software[0] != '\0' ? info->software : "unknown software",
						  info->version[0] != '\0' ? info->version : "of unknown version");
}

/*
 * A server that does not know HELLO is too old (before Redis 6.0).  Its answer
 * to INFO, the last of the replies, has the version for the error.  What it said to
 * HELLO is not quoted: it repeats the arguments, the password among them.
 */
static bool
refuse_ancient(RsConnection *connection, const Greeting *greeting, const RsDeadline *deadline,
			   RsError *error)
{
	char		version[32] = "";
	RsReply		reply;
	RsError		ignored;
	int			i;

	for (i = 1; i < greeting->count; i++)
	{
		if (!rs_redis_await_reply(connection, true, deadline, "INFO server on", &reply, &ignored))
			break;
		if (i == greeting->count - 1 && reply.type == RS_REPLY_STRING)
			copy_line(&reply, "redis_version", version, sizeof(version));
	}
	if (version[0] == '\0')
		return rs_redis_error(error, "HELLO on %s: " NEEDED ", found a server that does not know HELLO",
							  connection->target);
	return rs_redis_error(error, "HELLO on %s: " NEEDED ", found redis %s, which does not know HELLO",
						  connection->target, version);
}

static bool
check_hello(RsConnection *connection, const Greeting *greeting, const RsDeadline *deadline,
			RsServerInfo *info, RsError *error)
{
	RsReply		reply;

	if (!rs_redis_await_reply(connection, true, deadline, "HELLO on", &reply, error))
		return false;
	if (command_unknown(&reply))
		return refuse_ancient(connection, greeting, deadline, error);
	if (reply.type != RS_REPLY_ARRAY)
		return hello_refused(connection, greeting, &reply, error);
	copy_field(reply.tree, "server", info->software, sizeof(info->software));
	copy_field(reply.tree, "version", info->version, sizeof(info->version));
	return check_version(connection, info, error);
}

static bool
check_select(RsConnection *connection, const RsDeadline *deadline, RsError *error)
{
	RsReply		reply;

	if (!rs_redis_await_reply(connection, true, deadline, "SELECT on", &reply, error))
		return false;
	return reply.type == RS_REPLY_STATUS || refused(connection, "SELECT on", &reply, error);
}

static bool
check_client_id(RsConnection *connection, const RsDeadline *deadline, RsServerInfo *info,
				RsError *error)
{
	RsReply		reply;

	if (!rs_redis_await_reply(connection, true, deadline, "CLIENT ID on", &reply, error))
		return false;
	if (reply.type == RS_REPLY_INTEGER)
		info->client_id = reply.integer;
	else if (!not_permitted(&reply))
		return refused(connection, "CLIENT ID on", &reply, error);
	return true;
}

static bool
check_info(RsConnection *connection, const RsDeadline *deadline, RsServerInfo *info, RsError *error)
{
	RsReply		reply;

	if (!rs_redis_await_reply(connection, true, deadline, "INFO server on", &reply, error))
		return false;
	if (reply.type == RS_REPLY_STRING)
		copy_line(&reply, "run_id", info->run_id, sizeof(info->run_id));
	else if (!not_permitted(&reply))
		return refused(connection, "INFO server on", &reply, error);
	return true;
}

static bool
greet(RsConnection *connection, const RsConnectOptions *options, const RsDeadline *deadline,
	  RsServerInfo *info, RsError *error)
{
	Greeting	greeting;

	compose(&greeting, options);
	return send_greeting(connection, &greeting, deadline, error) &&
		check_hello(connection, &greeting, deadline, info, error) &&
		(!greeting.select || check_select(connection, deadline, error)) &&
		check_client_id(connection, deadline, info, error) &&
		check_info(connection, deadline, info, error);
}

/* How errors call the address. */
static char *
describe(const RsAddress *address)
{
	const char *host = address->path != NULL ? address->path : address->host;
	size_t		size = strlen(host) + 32;
	char	   *target = malloc(size);

	if (target == NULL)
		return NULL;
	if (address->path != NULL)
		snprintf(target, size, "unix:%s", host);
	else if (strchr(host, ':') != NULL)
		snprintf(target, size, "[%s]:%d", host, address->port);
	else
		snprintf(target, size, "%s:%d", host, address->port);
	return target;
}

RsConnection *
rs_redis_connect(const RsConnectOptions *options, RsServerInfo *info, RsError *error)
{
	RsConnection *connection;
	RsDeadline	deadline;

	rs_redis_deadline_start(&deadline, options->timeout_ms);
	memset(info, 0, sizeof(*info));

	connection = calloc(1, sizeof(*connection));
	if (connection == NULL || (connection->target = describe(options->address)) == NULL)
	{
		free(connection);
		rs_redis_error(error, "out of memory");
		return NULL;
	}
	connection->text = connection->text_room;
	connection->text_size = sizeof(connection->text_room);
	connection->wait = options->wait != NULL ? options->wait : rs_redis_wait_poll;
	connection->wait_argument = options->wait_argument;

	if (rs_redis_open_socket(connection, options->address, &deadline, error) &&
		greet(connection, options, &deadline, info, error))
	{
		rs_redis_forget_reply(connection);
		return connection;
	}
	rs_redis_close(connection, false);
	return NULL;
}
