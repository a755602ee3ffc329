/*
 * test_lock.c
 *	  Locks and the server key, against a real redis-server, when there is one in PATH.
 */
#include <stdlib.h>
#include <time.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "real_server.h"
#include "unit.h"

#define LOCK "redstream:lock:trimmer:s"

static RsConnection *connection;
static RsKey lock;

/* The integer that a command replies, or -1. */
static int64_t
number(const char *words)
{
	RsReply		reply;

	if (!real_command(connection, words, &reply) || reply.type != RS_REPLY_INTEGER)
		return -1;
	return reply.integer;
}

static bool
replies(const char *words, const char *text)
{
	RsReply		reply;

	return real_command(connection, words, &reply) && client_text_is(&reply, text);
}

static bool
take(const char *holder, bool *taken)
{
	RsError		error = {""};

	if (rs_redis_lock_take(connection, &lock, holder, PATIENCE_MS, taken, &error))
		return true;
	printf("# %s\n", error.text);
	return false;
}

static bool
release(const char *holder)
{
	RsError		error = {""};

	if (rs_redis_lock_release(connection, &lock, holder, PATIENCE_MS, &error))
		return true;
	printf("# %s\n", error.text);
	return false;
}

static void
test_holder(void)
{
	char		one[RS_HOLDER_SIZE];
	char		two[RS_HOLDER_SIZE];

	unit_ok(rs_redis_holder_draw(one) && rs_redis_holder_draw(two), "holders are drawn");
	unit_ok(strlen(one) == 32 && strspn(one, "0123456789abcdef") == 32, "32 hex digits: %s", one);
	unit_ok(strcmp(one, two) != 0, "another one each time");
}

static void
test_lock(void)
{
	struct timespec pause = {0, 5000000};
	bool		taken = false;

	unit_ok(take("me", &taken) && taken, "a free lock is taken");
	unit_ok(replies("GET " LOCK, "me"), "it is ours");
	unit_ok(number("PTTL " LOCK) > 4000 && number("PTTL " LOCK) <= RS_LOCK_TTL_MS, "for five seconds");
	unit_ok(take("you", &taken) && !taken, "nobody else gets it");
	unit_ok(replies("GET " LOCK, "me"), "it is still ours");
	unit_ok(number("PEXPIRE " LOCK " 1000") == 1 && take("you", &taken) && !taken &&
			number("PTTL " LOCK) <= 1000, "and no other extends it");
	unit_ok(take("me", &taken) && taken && number("PTTL " LOCK) > 4000, "we do");
	unit_ok(release("you") && replies("GET " LOCK, "me") && number("LLEN " LOCK ".notify") == 0,
			"nobody else releases it");
	unit_ok(release("me") && number("EXISTS " LOCK) == 0, "we do");
	unit_ok(number("LLEN " LOCK ".notify") == 1, "who waits is woken");
	unit_ok(release("me") && number("LLEN " LOCK ".notify") == 1, "releasing twice does no harm");
	unit_ok(take("you", &taken) && taken && release("you") && number("LLEN " LOCK ".notify") == 1,
			"the next release leaves one wake-up, not two");

	unit_ok(take("me", &taken) && taken && number("PEXPIRE " LOCK " 20") == 1, "a lock that expires");
	while (number("EXISTS " LOCK) == 1)
		nanosleep(&pause, NULL);
	unit_ok(take("you", &taken) && taken, "is free");
	unit_ok(release("me") && replies("GET " LOCK, "you"), "and not released by who had it");
	unit_ok(release("you"), "but by who has it");
}

static void
test_refusals(void)
{
	RsReply		reply;
	RsError		error = {""};
	bool		taken;

	unit_ok(replies("CONFIG SET maxmemory 1", "OK") && real_command(connection, "SET a b", &reply) &&
			reply.type == RS_REPLY_ERROR, "Redis is full");
	unit_ok(take("me", &taken) && taken, "a lock is taken all the same");
	unit_ok(release("me") && number("EXISTS " LOCK) == 0 && number("LLEN " LOCK ".notify") == 1,
			"and released");
	unit_ok(replies("CONFIG SET maxmemory 0", "OK"), "it has room again");

	unit_ok(number("RPUSH " LOCK " x") == 1, "a lock that is a list");
	unit_ok(rs_redis_lock_take(connection, &lock, "me", PATIENCE_MS, &taken, &error) && !taken,
			"is refused");
	unit_has(error.text, "WRONGTYPE", "the error says why");
	unit_ok(number("DEL " LOCK) == 1, "and the connection lives");
}

static bool
claim(const char *token, bool *ours)
{
	RsError		error = {""};
	RsKey		key;

	rs_redis_server_key(&key, "", "7:1");
	if (rs_redis_claim(connection, &key, token, PATIENCE_MS, ours, &error))
		return true;
	printf("# %s\n", error.text);
	return false;
}

static void
test_claim(void)
{
	bool		ours = false;

	unit_ok(claim("token", &ours) && ours && replies("GET redstream:server:7:1", "token"),
			"a server key is claimed");
	unit_ok(number("PTTL redstream:server:7:1") > 28000 &&
			number("PTTL redstream:server:7:1") <= RS_SERVER_TTL_S * 1000, "for thirty seconds");
	unit_ok(claim("other", &ours) && !ours && replies("GET redstream:server:7:1", "token"),
			"not by another token");
	unit_ok(number("EXPIRE redstream:server:7:1 5") == 1 && claim("token", &ours) && ours &&
			number("PTTL redstream:server:7:1") > 20000, "and renewed");
	unit_ok(number("DEL redstream:server:7:1") == 1 && claim("other", &ours) && ours,
			"one that is gone is free");
}

int
main(void)
{
	RealServer	server;
	RsConnectOptions options;
	RsServerInfo info;
	RsError		error;

	if (!real_is_installed())
	{
		printf("1..0 # SKIP no redis-server in PATH\n");
		return 0;
	}
	test_holder();
	rs_redis_trimmer_lock_key(&lock, "", "s");
	real_start(&server, "secret");
	memset(&options, 0, sizeof(options));
	options.password = "secret";
	connection = real_connect(&server, &options, &info, &error);
	if (unit_ok(connection != NULL, "connected"))
	{
		test_lock();
		test_refusals();
		test_claim();
	}
	rs_redis_close(connection, true);
	real_stop(&server);
	return unit_done();
}
