/*
 * clients.c - the clients of Redis that test/bench/delayer needs besides the
 * delayer; no process is started to look at Redis while it is being measured.
 *
 *	 clients REDIS_SOCKET ping
 *		asks every millisecond how long Redis takes to answer.  Ends on
 *		SIGTERM, and prints the longest answer and the one that 99 % are
 *		below, in microseconds.
 *
 *	 clients REDIS_SOCKET consume STREAM ROWS
 *		reads the stream from its beginning, as a consumer would.  Ends on
 *		SIGTERM, at the end of the stream, and prints how many messages it has
 *		read, and of the payloads {"id":1} to {"id":ROWS} how many did not
 *		come and how many came again.
 *
 *	 clients REDIS_SOCKET script FROM TO
 *		moves all messages from one stream to the other by a Lua script, 1,000
 *		a call, one call after the other: what the delayer is measured
 *		against.  It has less to do: nobody asks for transactions or locks.
 *
 *	 clients REDIS_SOCKET await STREAM COUNT SECONDS
 *		waits until there are so many messages, and fails after so many
 *		seconds.
 */
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MILLISECOND 1000000		/* nanoseconds */
#define BATCH "1000"			/* messages */

static const char move_script[] =
	"local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])\n"
	"if #entries == 0 then return 0 end\n"
	"for _, entry in ipairs(entries) do\n"
	"  local fields = entry[2]\n"
	"  for i = 1, #fields, 2 do\n"
	"    if fields[i] == 'payload' then\n"
	"      redis.call('XADD', KEYS[2], '*', 'payload', fields[i + 1])\n"
	"    end\n"
	"  end\n"
	"end\n"
	"local ms, seq = entries[#entries][1]:match('^(%d+)-(%d+)$')\n"
	"redis.call('XTRIM', KEYS[1], 'MINID', ms .. '-' .. string.format('%.0f', seq + 1))\n"
	"return #entries\n";

static redisContext *redis;
static volatile sig_atomic_t stopping = 0;

static void
stop(int signal_number)
{
	(void) signal_number;
	stopping = 1;
}

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format,...)
{
	va_list		args;

	fputs("clients: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Nanoseconds of a clock that nobody sets. */
static long long
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000LL * MILLISECOND + time.tv_nsec;
}

static void
pause_briefly(void)
{
	struct timespec time = {.tv_nsec = MILLISECOND};

	nanosleep(&time, NULL);
}

/* Sends one command and returns the reply, which is not an error. */
static redisReply *
ask(int count, const char **words)
{
	redisReply *reply = redisCommandArgv(redis, count, words, NULL);

	if (reply == NULL)
		die("Redis: %s", redis->errstr);
	if (reply->type == REDIS_REPLY_ERROR)
		die("Redis: %s", reply->str);
	return reply;
}

static long long
ask_number(int count, const char **words)
{
	redisReply *reply = ask(count, words);
	long long	number = reply->integer;

	if (reply->type != REDIS_REPLY_INTEGER)
		die("Redis: not a number");
	freeReplyObject(reply);
	return number;
}

/* ---- ping ------------------------------------------------------------------ */

static int
compare(const void *a, const void *b)
{
	long long	left = *(const long long *) a;
	long long	right = *(const long long *) b;

	return (left > right) - (left < right);
}

static void
ping(void)
{
	const char *words[] = {"PING"};
	long long  *times = NULL;
	size_t		count = 0;
	size_t		size = 0;

	do
	{
		long long	start = now();

		freeReplyObject(ask(1, words));
		if (count == size)
		{
			size = size * 2 + 1024;
			times = realloc(times, size * sizeof(*times));
			if (times == NULL)
				die("out of memory");
		}
		times[count++] = now() - start;
		pause_briefly();
	} while (!stopping);
	qsort(times, count, sizeof(*times), compare);
	printf("%lld %lld\n", times[count - 1] / 1000, times[count * 99 / 100] / 1000);
	free(times);
}

/* ---- consume --------------------------------------------------------------- */

/* Which payloads have come. */
typedef struct Tally
{
	long		rows;
	long		messages;
	long		repeated;
	long		distinct;
	char	   *seen;			/* by id */
} Tally;

static void
take(Tally *tally, const redisReply *entry)
{
	const redisReply *fields = entry->element[1];
	long		id;

	tally->messages++;
	if (fields->elements < 2 || sscanf(fields->element[1]->str, "{\"id\":%ld}", &id) != 1 ||
		id < 1 || id > tally->rows)
		return;
	if (tally->seen[id])
		tally->repeated++;
	else
		tally->distinct++;
	tally->seen[id] = 1;
}

/* Reads what comes after "last", and sets it; false when nothing has come. */
static bool
read_batch(Tally *tally, const char *stream, char *last, size_t size)
{
	const char *words[] = {"XREAD", "COUNT", BATCH, "BLOCK", "50", "STREAMS", stream, last};
	redisReply *reply = ask(8, words);
	const redisReply *entries;

	if (reply->type == REDIS_REPLY_NIL)
	{
		freeReplyObject(reply);
		return false;
	}
	entries = reply->element[0]->element[1];
	for (size_t i = 0; i < entries->elements; i++)
		take(tally, entries->element[i]);
	snprintf(last, size, "%s", entries->element[entries->elements - 1]->element[0]->str);
	freeReplyObject(reply);
	return true;
}

static void
consume(const char *stream, long rows)
{
	Tally		tally = {.rows = rows, .seen = calloc(rows + 1, 1)};
	char		last[64] = "0-0";

	if (tally.seen == NULL)
		die("out of memory");
	while (read_batch(&tally, stream, last, sizeof(last)) || !stopping)
		;
	printf("%ld read, %ld missing, %ld repeated\n", tally.messages, rows - tally.distinct, tally.repeated);
	free(tally.seen);
}

/* ---- script ---------------------------------------------------------------- */

static void
move(const char *from, const char *to)
{
	const char *load[] = {"SCRIPT", "LOAD", move_script};
	redisReply *sha = ask(3, load);
	const char *words[] = {"EVALSHA", sha->str, "2", from, to, BATCH};

	while (ask_number(6, words) > 0)
		;
	freeReplyObject(sha);
}

/* ---- await ----------------------------------------------------------------- */

static void
await(const char *stream, long count, long seconds)
{
	const char *words[] = {"XLEN", stream};
	long long	end = now() + seconds * 1000LL * MILLISECOND;
	long long	length;

	while ((length = ask_number(2, words)) != count)
	{
		if (now() > end)
			die("%s has %lld messages after %ld s, expected %ld", stream, length, seconds, count);
		pause_briefly();
	}
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = stop};
	const char *verb = argc > 2 ? argv[2] : "";

	sigaction(SIGTERM, &action, NULL);
	redis = argc > 1 ? redisConnectUnix(argv[1]) : NULL;
	if (redis != NULL && redis->err)
		die("Redis: %s", redis->errstr);
	if (redis != NULL && strcmp(verb, "ping") == 0 && argc == 3)
		ping();
	else if (redis != NULL && strcmp(verb, "consume") == 0 && argc == 5)
		consume(argv[3], atol(argv[4]));
	else if (redis != NULL && strcmp(verb, "script") == 0 && argc == 5)
		move(argv[3], argv[4]);
	else if (redis != NULL && strcmp(verb, "await") == 0 && argc == 6)
		await(argv[3], atol(argv[4]), atol(argv[5]));
	else
	{
		fputs("usage: clients REDIS_SOCKET ping|consume|script|await [ARGUMENT ...]\n", stderr);
		return 2;
	}
	redisFree(redis);
	return 0;
}
