/*
 * test_greeting.c
 *	  Connecting and greeting: what is sent, which servers are refused, and
 *	  what the errors say and do not say.
 */
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "greeting_script.h"
#include "unit.h"

static void
test_plain(bool tcp)
{
	FakeServer	server;
	RsServerInfo info;
	RsError		error;
	RsConnection *connection;

	fake_begin(&server, tcp);
	fake_step(&server, FAKE_EXPECT, SENT_GREETING);
	fake_step(&server, FAKE_SEND, GREETING_FINE);
	fake_run(&server);
	connection = client_connect(server.url, NULL, &info, &error);
	if (!unit_ok(connection != NULL, "greeting over %s", tcp ? "TCP" : "a Unix socket"))
		printf("# %s\n", error.text);
	unit_same(info.software, "redis", "software");
	unit_same(info.version, "7.0.15", "version");
	unit_same(info.run_id, RUN_ID, "run id");
	unit_ok(info.client_id == 7, "client id");
	if (connection != NULL)
	{
		int			fd = rs_redis_fd(connection);

		unit_ok((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0, "the socket does not block");
		unit_ok((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0, "the socket is closed on exec");
		if (tcp)
		{
			int			keepalive = 0;
			int			nodelay = 0;
			socklen_t	size = sizeof(int);

			getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &keepalive, &size);
			getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &size);
			unit_ok(keepalive != 0 && nodelay != 0, "keepalive and no delay");
		}
		rs_redis_close(connection, false);
	}
	unit_ok(fake_end(&server) == FAKE_FINE, "the server got the greeting and the end");
}

/* One greeting: what must be sent, what is answered, how it must end. */
typedef struct Scene
{
	const char *name;
	const char *query;			/* after a Unix socket's URL */
	const char *password;
	const char *client_name;
	const char *sent;
	const char *answered;
	bool		trickled;
	bool		closing;		/* the server closes after the answer */
	const char *error;			/* NULL: it works; has the target when it has "%s" */
	const char *software;
	const char *version;
	const char *run_id;
	int64_t		client_id;
} Scene;

#define SENT_AUTH "*5\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$6\r\nsecret\r\n"
#define SENT_AUTH_NAME "*7\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$6\r\nsecret\r\n" \
	"$7\r\nSETNAME\r\n$9\r\nredstream\r\n"
#define SENT_NAME "*4\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$7\r\nSETNAME\r\n$9\r\nredstream\r\n"
#define SENT_REST SENT_CLIENT_ID SENT_INFO
#define SENT_SELECT "*2\r\n$6\r\nSELECT\r\n$2\r\n15\r\n"
#define NOPERM "-NOPERM this user has no permissions to run the command\r\n"
#define UNKNOWN "-ERR unknown command `HELLO`, with args beginning with: `2`, `AUTH`, `default`, `secret`, \r\n"
#define NEEDED "Redis 6.2 or Valkey 7.2 or newer is needed, found "

static const Scene scenes[] = {
	{.name = "with a password",.password = "secret",.sent = SENT_AUTH SENT_REST,
	.answered = GREETING_FINE,.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 7},
	{.name = "with a client name",.client_name = "redstream",.sent = SENT_NAME SENT_REST,
	.answered = GREETING_FINE,.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 7},
	{.name = "with all, one byte at a time",.password = "secret",.client_name = "redstream",.query = "?db=15",
		.sent = SENT_AUTH_NAME SENT_SELECT SENT_REST,.answered = HELLO_FINE "+OK\r\n" REST_FINE,.trickled = true,
	.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 7},
	{.name = "Redis 6.2",.answered = HELLO_REPLY("$5\r\nredis\r\n", "$5\r\n6.2.0\r\n") REST_FINE,
	.software = "redis",.version = "6.2.0",.run_id = RUN_ID,.client_id = 7},
	{.name = "Redis 10.0",.answered = HELLO_REPLY("$5\r\nredis\r\n", "$6\r\n10.0.1\r\n") REST_FINE,
	.software = "redis",.version = "10.0.1",.run_id = RUN_ID,.client_id = 7},
	{.name = "Valkey 7.2",.answered = HELLO_REPLY("$6\r\nvalkey\r\n", "$5\r\n7.2.5\r\n") REST_FINE,
	.software = "valkey",.version = "7.2.5",.run_id = RUN_ID,.client_id = 7},
	{.name = "Valkey 8.1",.answered = HELLO_REPLY("$6\r\nvalkey\r\n", "$9\r\n8.1.0-rc1\r\n") REST_FINE,
	.software = "valkey",.version = "8.1.0-rc1",.run_id = RUN_ID,.client_id = 7},
	{.name = "CLIENT ID not permitted",.answered = HELLO_FINE NOPERM INFO_FINE,
	.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 0},
	{.name = "CLIENT ID renamed",.answered = HELLO_FINE "-ERR unknown command 'CLIENT'\r\n" INFO_FINE,
	.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 0},
	{.name = "INFO not permitted",.answered = HELLO_FINE ":7\r\n" NOPERM,
	.software = "redis",.version = "7.0.15",.run_id = "",.client_id = 7},
	{.name = "INFO without a run id",.answered = HELLO_FINE ":7\r\n$9\r\n# Server\n\r\n",
	.software = "redis",.version = "7.0.15",.run_id = "",.client_id = 7},
	{.name = "INFO with a run id that has no end",.answered = HELLO_FINE ":7\r\n$18\r\nxrun_id:1\nrun_id:2\r\n",
	.software = "redis",.version = "7.0.15",.run_id = "2",.client_id = 7},
	{.name = "a server that closes after the greeting",.answered = GREETING_FINE,.closing = true,
	.software = "redis",.version = "7.0.15",.run_id = RUN_ID,.client_id = 7},

	{.name = "Redis 6.0",.answered = HELLO_REPLY("$5\r\nredis\r\n", "$6\r\n6.0.16\r\n") REST_FINE,
	.error = "HELLO on %s: " NEEDED "redis 6.0.16"},
	{.name = "Redis 5",.password = "secret",.sent = SENT_AUTH SENT_REST,
		.answered = UNKNOWN ":7\r\n$23\r\nredis_version:5.0.14\r\n\r\n\r\n",
	.error = "HELLO on %s: " NEEDED "redis 5.0.14, which does not know HELLO"},
	{.name = "Redis 5 with a password",.password = "secret",.sent = SENT_AUTH SENT_REST,
		.answered = UNKNOWN "-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n",
	.error = "HELLO on %s: " NEEDED "a server that does not know HELLO"},
	{.name = "Redis 5 that closes",.password = "secret",.sent = SENT_AUTH SENT_REST,.closing = true,
		.answered = UNKNOWN,
	.error = "HELLO on %s: " NEEDED "a server that does not know HELLO"},
	{.name = "Valkey 7.1",.answered = HELLO_REPLY("$6\r\nvalkey\r\n", "$5\r\n7.1.9\r\n") REST_FINE,
	.error = "HELLO on %s: " NEEDED "valkey 7.1.9"},
	{.name = "other software",.answered = HELLO_REPLY("$7\r\nstrange\r\n", "$5\r\n9.9.9\r\n") REST_FINE,
	.error = "HELLO on %s: " NEEDED "strange 9.9.9"},
	{.name = "a version that is none",.answered = HELLO_REPLY("$5\r\nredis\r\n", "$3\r\nnew\r\n") REST_FINE,
	.error = "HELLO on %s: " NEEDED "redis new"},
	{.name = "an empty HELLO",.answered = "*0\r\n" REST_FINE,
	.error = "HELLO on %s: " NEEDED "unknown software of unknown version"},
	{.name = "an odd HELLO",.answered = "*3\r\n:1\r\n*1\r\n+x\r\n$6\r\nserver\r\n" REST_FINE,
	.error = "HELLO on %s: " NEEDED "unknown software of unknown version"},
	{.name = "NOAUTH",.answered = "-NOAUTH HELLO must be called with the client already authenticated\r\n"
		"-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n",
	.error = "HELLO on %s: NOAUTH HELLO must be called"},
	{.name = "WRONGPASS",.password = "secret",.sent = SENT_AUTH SENT_REST,
		.answered = "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
		"-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n",
	.error = "HELLO on %s: WRONGPASS invalid username-password pair or user is disabled."},
	{.name = "an error that quotes the password",.password = "secret",.sent = SENT_AUTH SENT_REST,
		.answered = "-ERR I do not like 'secret'\r\n",
	.error = "HELLO on %s: refused, with an error that quotes the password"},
	{.name = "LOADING",.answered = HELLO_FINE "-LOADING Redis is loading the dataset in memory\r\n",
	.error = "CLIENT ID on %s: LOADING Redis is loading"},
	{.name = "BUSY at INFO",.answered = HELLO_FINE ":7\r\n-BUSY Redis is busy running a script.\r\n",
	.error = "INFO server on %s: BUSY Redis is busy"},
	{.name = "SELECT out of range",.query = "?db=15",.sent = SENT_HELLO SENT_SELECT SENT_REST,
		.answered = HELLO_FINE "-ERR DB index is out of range\r\n" REST_FINE,
	.error = "SELECT on %s: ERR DB index is out of range"},
	{.name = "+OK to HELLO",.answered = "+OK\r\n" REST_FINE,
	.error = "HELLO on %s: unexpected type of reply"},
	{.name = "a string from CLIENT ID",.answered = HELLO_FINE "+7\r\n" INFO_FINE,
	.error = "CLIENT ID on %s: unexpected type of reply"},
	{.name = "a number from INFO",.answered = HELLO_FINE ":7\r\n:7\r\n",
	.error = "INFO server on %s: unexpected type of reply"},
	{.name = "garbage",.answered = "HTTP/1.1 400 Bad Request\r\n\r\n",
	.error = "HELLO on %s: Protocol error, got \"H\" as reply type byte"},
	{.name = "garbage later",.answered = HELLO_FINE "#\r\n",
	.error = "CLIENT ID on %s: "},
	{.name = "an end at once",.answered = "",.closing = true,
	.error = "HELLO on %s: server closed the connection"},
	{.name = "an end in the middle of a reply",.answered = "*14\r\n$6\r\nserv",.closing = true,
	.error = "HELLO on %s: server closed the connection"},
	{.name = "an end between replies",.answered = HELLO_FINE ":7\r\n",.closing = true,
	.error = "INFO server on %s: server closed the connection"},
};

static void
check_scene_end(const Scene *scene, const FakeServer *server, RsConnection *connection,
				const RsServerInfo *info, const RsError *error)
{
	char		expected[400];

	if (scene->error == NULL)
	{
		if (!unit_ok(connection != NULL, "%s: works", scene->name))
			printf("# %s\n", error->text);
		unit_same(info->software, scene->software, "software");
		unit_same(info->version, scene->version, "version");
		unit_same(info->run_id, scene->run_id, "run id");
		unit_ok(info->client_id == scene->client_id, "client id");
		return;
	}
	unit_ok(connection == NULL, "%s: is refused", scene->name);
	{
		const char *mark = strstr(scene->error, "%s");

		snprintf(expected, sizeof(expected), "%.*s%s%s", (int) (mark - scene->error), scene->error,
				 server->target, mark + 2);
	}
	unit_has(error->text, expected, "and the error says so");
	unit_ok(strstr(error->text, "secret") == NULL, "without the password");
}

static void
test_scene(const Scene *scene)
{
	FakeServer	server;
	RsConnectOptions options;
	RsServerInfo info;
	RsError		error;
	RsConnection *connection;
	char		url[300];

	fake_begin(&server, false);
	fake_step(&server, FAKE_EXPECT, scene->sent != NULL ? scene->sent : SENT_GREETING);
	fake_step(&server, scene->trickled ? FAKE_TRICKLE : FAKE_SEND, scene->answered);
	if (scene->closing)
		fake_step(&server, FAKE_CLOSE, NULL);
	fake_run(&server);

	memset(&options, 0, sizeof(options));
	options.password = scene->password;
	options.client_name = scene->client_name;
	snprintf(url, sizeof(url), "%s%s", server.url, scene->query != NULL ? scene->query : "");
	connection = client_connect(url, &options, &info, &error);
	check_scene_end(scene, &server, connection, &info, &error);
	rs_redis_close(connection, false);
	unit_ok(fake_end(&server) == FAKE_FINE, "and the server got what it expects");
}

/* User and password of the URL, and a password that replaces it. */
static void
test_users(void)
{
	static const struct
	{
		const char *user_info;
		const char *password;
		const char *sent;
	}			cases[] = {
		{"anna:secret@", NULL, "*5\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$4\r\nanna\r\n$6\r\nsecret\r\n"},
		{":secret@", NULL, SENT_AUTH},
		{"anna:other@", "secret", "*5\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$4\r\nanna\r\n$6\r\nsecret\r\n"},
		{"anna@", "secret", "*5\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$4\r\nanna\r\n$6\r\nsecret\r\n"},
		{"anna@", NULL, "*5\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$4\r\nAUTH\r\n$4\r\nanna\r\n$0\r\n\r\n"},
		{"", NULL, SENT_HELLO},
	};
	size_t		i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		FakeServer	server;
		RsConnectOptions options;
		RsServerInfo info;
		RsError		error;
		RsConnection *connection;
		char		url[300];

		fake_begin(&server, true);
		fake_step(&server, FAKE_EXPECT, cases[i].sent);
		fake_step(&server, FAKE_EXPECT, SENT_REST);
		fake_step(&server, FAKE_SEND, GREETING_FINE);
		fake_run(&server);
		memset(&options, 0, sizeof(options));
		options.password = cases[i].password;
		snprintf(url, sizeof(url), "redis://%s127.0.0.1:%d", cases[i].user_info, server.port);
		connection = client_connect(url, &options, &info, &error);
		unit_ok(connection != NULL, "a URL with \"%s\" greets as it should", cases[i].user_info);
		rs_redis_close(connection, false);
		unit_ok(fake_end(&server) == FAKE_FINE, "and the server got what it expects");
	}
}

/* A server that is full says so and closes, before it has read anything. */
static void
test_full(bool tcp)
{
	FakeServer	server;
	RsServerInfo info;
	RsError		error;

	fake_begin(&server, tcp);
	fake_step(&server, FAKE_SEND, "-ERR max number of clients reached\r\n");
	fake_step(&server, FAKE_CLOSE, NULL);
	fake_run(&server);
	unit_ok(client_connect(server.url, NULL, &info, &error) == NULL, "a full server refuses");
	unit_has(error.text, "max number of clients reached", "and the error says why");
	fake_end(&server);
}

static bool
give_up(void *argument, int fd, bool writable, int timeout_ms)
{
	(void) fd;
	(void) writable;
	(void) timeout_ms;
	++*(int *) argument;
	return false;
}

static void
test_silence(const char *name, const char *answered, const char *call, int timeout_ms, RsWait wait)
{
	FakeServer	server;
	RsConnectOptions options;
	RsServerInfo info;
	RsError		error;
	char		expected[400];
	int			waits = 0;
	long long	start = fake_now_ms();

	fake_begin(&server, true);
	fake_step(&server, FAKE_SEND, answered);
	fake_run(&server);
	memset(&options, 0, sizeof(options));
	options.timeout_ms = timeout_ms;
	options.wait = wait;
	options.wait_argument = &waits;
	unit_ok(client_connect(server.url, &options, &info, &error) == NULL, "%s", name);
	if (wait == NULL)
	{
		snprintf(expected, sizeof(expected), "%s on %s: timeout after %d ms", call, server.target, timeout_ms);
		unit_ok(fake_now_ms() - start >= timeout_ms && fake_now_ms() - start < PATIENCE_MS,
				"and not before its time");
	}
	else
	{
		/* The first wait may be that for the connection. */
		snprintf(expected, sizeof(expected), " %s: interrupted", server.target);
		unit_ok(waits == 1, "and asks once");
	}
	unit_has(error.text, expected, "and the error says so");
	fake_end(&server);
}

static void
test_nobody(void)
{
	FakeServer	server;
	RsServerInfo info;
	RsError		error;
	char		expected[400];
	struct sockaddr_in address;
	socklen_t	size = sizeof(address);
	char		url[100];
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	/* A port that is taken, but nobody listens. */
	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &size) != 0)
		exit(2);
	snprintf(url, sizeof(url), "redis://:secret@127.0.0.1:%d", ntohs(address.sin_port));
	snprintf(expected, sizeof(expected), "connect to 127.0.0.1:%d: Connection refused",
			 ntohs(address.sin_port));
	unit_ok(client_connect(url, NULL, &info, &error) == NULL, "nobody listens on the port");
	unit_same(error.text, expected, "and the error says so");
	close(fd);

	unit_ok(client_connect("unix:///nonexistent/redis.sock", NULL, &info, &error) == NULL,
			"no such Unix socket");
	unit_same(error.text, "connect to unix:/nonexistent/redis.sock: No such file or directory",
			  "and the error says so");

	unit_ok(client_connect("redis://:secret@host.invalid:1", NULL, &info, &error) == NULL,
			"no such host");
	unit_has(error.text, "resolve host.invalid:1: ", "and the error says so");

	/* 127.0.0.1 is tried also when localhost is ::1 in the first place. */
	fake_begin(&server, true);
	fake_step(&server, FAKE_SEND, GREETING_FINE);
	fake_run(&server);
	snprintf(url, sizeof(url), "redis://localhost:%d", server.port);
	{
		RsConnection *connection = client_connect(url, NULL, &info, &error);

		if (connection == NULL && strstr(error.text, "resolve") != NULL)
			unit_ok(true, "localhost: skipped, it has no address here");
		else
			unit_ok(connection != NULL, "every address of a host is tried");
		if (connection == NULL)
			connection = client_connect(server.url, NULL, &info, &error);
		rs_redis_close(connection, false);
	}
	fake_end(&server);
}

/* A listener whose queue is full does not answer: connecting has to end too. */
static void
test_full_queue(void)
{
	struct sockaddr_in address;
	socklen_t	size = sizeof(address);
	RsConnectOptions options;
	RsServerInfo info;
	RsError		error;
	char		url[100];
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	int			fillers[8];
	int			i;

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(listener, 0) != 0 || getsockname(listener, (struct sockaddr *) &address, &size) != 0)
		exit(2);
	for (i = 0; i < 8; i++)
	{
		fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void) !connect(fillers[i], (struct sockaddr *) &address, sizeof(address));
	}
	memset(&options, 0, sizeof(options));
	options.timeout_ms = 150;
	snprintf(url, sizeof(url), "redis://127.0.0.1:%d", ntohs(address.sin_port));
	unit_ok(client_connect(url, &options, &info, &error) == NULL, "a listener that never accepts");
	unit_has(error.text, ": timeout after 150 ms", "and the error says so");
	for (i = 0; i < 8; i++)
		close(fillers[i]);
	close(listener);
}

int
main(void)
{
	size_t		i;

	test_plain(false);
	test_plain(true);
	for (i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++)
		test_scene(&scenes[i]);
	test_users();
	test_full(false);
	test_full(true);
	test_silence("silence", "", "HELLO", 150, NULL);
	test_silence("half a reply and silence", "*14\r\n$6\r\nser", "HELLO", 150, NULL);
	test_silence("silence after HELLO", HELLO_FINE, "CLIENT ID", 150, NULL);
	test_silence("a caller that gives up", "", NULL, 5000, give_up);
	test_nobody();
	test_full_queue();
	return unit_done();
}
