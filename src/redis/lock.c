/*
 * lock.c
 *	  The locks that consumers, delayers and trimmers share with the Ruby library, and
 *	  the key by which a PostgreSQL server is told from a copy of it.
 *
 * Each step is a script, so that Redis does it as a whole.  Scripts are sent by
 * EVAL: they are short, and a Redis that has forgotten its scripts (SCRIPT
 * FLUSH, a restart, Redis 8 when it has many) is then no case of its own.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

#include "internal.h"

/*
 * KEYS: lock; ARGV: holder, milliseconds.  Once a script has run a write that needs no memory, Redis
 * refuses it none of the others for want of memory (scriptVerifyOOM, script.c): the lock of who trims can be had
 * when Redis is full, which is when it is needed most.
 */
static const char take_script[] =
"local holder = redis.call('GET', KEYS[1])\n"
"if holder and holder ~= ARGV[1] then return 0 end\n"
"redis.call('PEXPIRE', KEYS[1], ARGV[2])\n"
"redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])\n"
"return 1\n";

/* KEYS: lock; ARGV: holder, milliseconds. */
static const char extend_script[] =
"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n"
"return redis.call('PEXPIRE', KEYS[1], ARGV[2])\n";

/* KEYS: lock, its notify list; ARGV: holder.  The list has one element, for one
 * waiter in BRPOP. */
static const char release_script[] =
"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n"
"redis.call('DEL', KEYS[1], KEYS[2])\n"
"redis.call('RPUSH', KEYS[2], '1')\n"
"return 1\n";

bool
rs_redis_holder_draw(char holder[RS_HOLDER_SIZE])
{
	unsigned char bytes[(RS_HOLDER_SIZE - 1) / 2];
	size_t		i;

	/* Up to 256 bytes come whole (getrandom(2)), but for a signal before the
	 * system has collected any. */
	while (getrandom(bytes, sizeof(bytes), 0) != (ssize_t) sizeof(bytes))
	{
		if (errno != EINTR)
			return false;
	}
	for (i = 0; i < sizeof(bytes); i++)
		sprintf(holder + 2 * i, "%02x", bytes[i]);
	return true;
}

/* Runs a script that answers 1 or 0.  An error reply is no, and told in the error. */
static bool
ask(RsConnection *connection, int count, const char *const *words, int timeout_ms, bool *yes,
	RsError *error)
{
	RsReply		reply;

	*yes = false;
	if (!rs_redis_command(connection, count, words, NULL, timeout_ms, &reply, error))
		return false;
	error->text[0] = '\0';
	if (reply.type == RS_REPLY_ERROR)
		rs_redis_error(error, "%.*s", (int) reply.length, reply.text);
	*yes = reply.type == RS_REPLY_INTEGER && reply.integer == 1;
	return true;
}

void
rs_redis_take_words(const RsKey *lock, const char *holder, const char *words[RS_TAKE_WORDS])
{
	words[0] = "EVAL";
	words[1] = take_script;
	words[2] = "1";
	words[3] = lock->text;
	words[4] = holder;
	words[5] = RS_TEXT(RS_LOCK_TTL_MS);
}

bool
rs_redis_lock_take(RsConnection *connection, const RsKey *lock, const char *holder,
				   int timeout_ms, bool *taken, RsError *error)
{
	const char *words[RS_TAKE_WORDS];

	rs_redis_take_words(lock, holder, words);
	return ask(connection, RS_TAKE_WORDS, words, timeout_ms, taken, error);
}

void
rs_redis_extend_words(const RsKey *lock, const char *holder, const char *words[RS_EXTEND_WORDS])
{
	words[0] = "EVAL";
	words[1] = extend_script;
	words[2] = "1";
	words[3] = lock->text;
	words[4] = holder;
	words[5] = RS_TEXT(RS_LOCK_TTL_MS);
}

bool
rs_redis_lock_extend(RsConnection *connection, const RsKey *lock, const char *holder,
					 int timeout_ms, bool *held, RsError *error)
{
	const char *words[RS_EXTEND_WORDS];

	rs_redis_extend_words(lock, holder, words);
	return ask(connection, RS_EXTEND_WORDS, words, timeout_ms, held, error);
}

void
rs_redis_release_words(const RsKey *lock, const RsKey *notify, const char *holder,
					   const char *words[RS_RELEASE_WORDS])
{
	words[0] = "EVAL";
	words[1] = release_script;
	words[2] = "2";
	words[3] = lock->text;
	words[4] = notify->text;
	words[5] = holder;
}

bool
rs_redis_lock_release(RsConnection *connection, const RsKey *lock, const char *holder,
					  int timeout_ms, RsError *error)
{
	const char *words[RS_RELEASE_WORDS];
	RsKey		notify;
	bool		released;

	rs_redis_notify_key(&notify, lock);
	rs_redis_release_words(lock, &notify, holder, words);
	return ask(connection, RS_RELEASE_WORDS, words, timeout_ms, &released, error);
}

void
rs_redis_claim_words(const RsKey *server, const char *token, const char *words[RS_CLAIM_WORDS])
{
	rs_redis_take_words(server, token, words);
	words[5] = RS_TEXT(RS_SERVER_TTL_S) "000";
}

bool
rs_redis_claim(RsConnection *connection, const RsKey *server, const char *token, int timeout_ms,
			   bool *ours, RsError *error)
{
	const char *words[RS_CLAIM_WORDS];

	rs_redis_claim_words(server, token, words);
	return ask(connection, RS_CLAIM_WORDS, words, timeout_ms, ours, error) &&
		error->text[0] == '\0';
}
