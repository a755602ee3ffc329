/*
 * test_turn.c
 *	  A consumer's turn, and what is remembered of a stream, against a real redis-server, when
 *	  there is one in PATH.
 */
#include <stdlib.h>
#include <time.h>

#include <hiredis/hiredis.h>

#include "client.h"
#include "real_server.h"
#include "unit.h"

#define STREAM "redstream:stream:s"
#define OFFSET "redstream:offset:s:c"
#define LOCK "redstream:lock:consumer:s:c"
#define HISTORY "redstream:history:s"

static RsConnection *connection;
static RsConnection *other_connection;
static RsConsumer me;
static RsConsumer you;
static RsTurn turn;
static RsError error;
static bool refused;

static bool
replies(const char *words, const char *text)
{
	RsReply		reply;

	return real_command(connection, words, &reply) && client_text_is(&reply, text);
}

/* The integer that a command replies, or -1. */
static int64_t
number(const char *words)
{
	RsReply		reply;

	if (!real_command(connection, words, &reply) || reply.type != RS_REPLY_INTEGER)
		return -1;
	return reply.integer;
}

static RsStreamId
id_of(const char *text)
{
	RsStreamId	id = {0, 0};

	(void) rs_redis_id_parse(text, strlen(text), &id);
	return id;
}

static bool
is_id(const RsStreamId *id, const char *text)
{
	RsStreamId	wanted = id_of(text);

	return rs_redis_id_compare(id, &wanted) == 0;
}

static bool
begin(const RsConsumer *consumer)
{
	return rs_redis_turn_begin(connection, consumer, PATIENCE_MS, &turn, &refused, &error);
}

static bool
note(void)
{
	return rs_redis_turn_note(connection, &me, &turn, true, PATIENCE_MS, &refused, &error);
}

/* Commits and keeps the lock, or releases it. */
static bool
commit(const RsConsumer *consumer, const char *id, bool *handed_over, bool *committed)
{
	RsStreamId	to = id_of(id);

	return rs_redis_turn_commit(connection, consumer, &to, NULL, handed_over, PATIENCE_MS, committed,
								&refused, &error);
}

static bool
fits(const char *offset)
{
	RsStreamId	id = id_of(offset);

	return rs_redis_turn_check(&turn, &id, &error);
}

static void
forget_everything(void)
{
	unit_ok(replies("FLUSHALL", "OK"), "an empty Redis");
}

/* ---- the lock and the offset ---------------------------------------------------------- */

static void
test_begin(void)
{
	forget_everything();
	unit_ok(begin(&me) && turn.taken && !turn.registered && !turn.has_offset && !turn.stream.exists,
			"a turn where there is nothing");
	unit_ok(replies("GET " LOCK, me.holder), "the lock is ours");
	unit_ok(fits("0-0"), "no offset fits no stream");
	unit_ok(!fits("5-0"), "an offset does not");
	unit_has(error.text, "5-0", "the error has it");
	unit_ok(note() && number("SISMEMBER redstream:consumers:s c") == 1, "the consumer is registered");
	unit_ok(begin(&me) && turn.taken && turn.registered, "a second time it is ours already");
	unit_ok(begin(&you) && !turn.taken && turn.lock_ms > 4000 && turn.lock_ms <= RS_LOCK_TTL_MS,
			"another holder is refused, and told how long");
}

static void
test_commit(void)
{
	static const char *const steps[][3] = {
		/* committed, to be committed, committed then */
		{"5-9", "5-10", "5-10"},
		{"5-10", "5-9", "5-10"},
		{"9-0", "10-0", "10-0"},
		{"10-0", "9-5", "10-0"},
		{"99999999999999999-0", "100000000000000000-0", "100000000000000000-0"},
		{"9007199254740993-1", "9007199254740992-2", "9007199254740993-1"},
		{"9007199254740992-1", "9007199254740993-0", "9007199254740993-0"},
		{"5-18446744073709551614", "5-18446744073709551615", "5-18446744073709551615"},
		{"18446744073709551615-5", "18446744073709551614-6", "18446744073709551615-5"},
		{"0-0", "0-1", "0-1"},
		{"0-1", "0-0", "0-1"},
		{"5", "5-1", "5-1"},
		{"5", "4-9", "5"},
		{"0005-0001", "5-1", "0005-0001"},
		{"5-1", "5-1", "5-1"}
	};
	bool		committed;
	bool		handed_over;
	char		set[100];

	forget_everything();
	unit_ok(begin(&me) && commit(&me, "5-1", NULL, &committed) && committed &&
			replies("GET " OFFSET, "5-1"), "a first commit");
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
	{
		snprintf(set, sizeof(set), "SET " OFFSET " %s", steps[i][0]);
		unit_ok(replies(set, "OK") && commit(&me, steps[i][1], NULL, &committed) && committed &&
				replies("GET " OFFSET, steps[i][2]), "%s after %s", steps[i][1], steps[i][0]);
	}
	unit_ok(number("PEXPIRE " LOCK " 1000") == 1 && commit(&me, "5-1", NULL, &committed) &&
			number("PTTL " LOCK) > 4000, "a commit extends the lock");
	unit_ok(replies("SET " OFFSET " 5-1", "OK") && commit(&you, "6-0", NULL, &committed) &&
			!committed && replies("GET " OFFSET, "5-1"), "who has not the lock commits nothing");
	unit_ok(commit(&me, "7-0", &handed_over, &committed) && committed && !handed_over &&
			number("EXISTS " LOCK) == 0 && number("LLEN " LOCK ".notify") == 1,
			"a commit that releases, and nobody waits");
	unit_ok(commit(&me, "8-0", NULL, &committed) && !committed && replies("GET " OFFSET, "7-0"),
			"nothing is committed without the lock");
	unit_ok(begin(&me) && is_id(&turn.offset, "7-0"), "the next turn has the offset");
	unit_ok(replies("SET " OFFSET " nonsense", "OK") && !begin(&me) && refused, "an offset that is no id");
	unit_has(error.text, "nonsense", "is in the error");
}

static bool
somebody_is_blocked(void)
{
	RsReply		reply;

	return real_command(connection, "INFO clients", &reply) &&
		memmem(reply.text, reply.length, "blocked_clients:1", 17) != NULL;
}

/* Somebody else waits in BRPOP meanwhile. */
static void
test_handing_over(void)
{
	const char *blocking = "*3\r\n$5\r\nBRPOP\r\n$34\r\n" LOCK ".notify\r\n$2\r\n20\r\n";
	struct timespec pause = {0, 5000000};
	bool		handed_over = false;
	RsReply		reply;

	forget_everything();
	unit_ok(begin(&me), "a turn");
	unit_ok(client_write(other_connection, blocking, &error), "somebody waits");
	while (!somebody_is_blocked())
		nanosleep(&pause, NULL);
	unit_ok(rs_redis_turn_release(connection, &me, &handed_over, PATIENCE_MS, &refused, &error) &&
			handed_over, "the lock is handed over");
	unit_ok(client_reply(other_connection, true, &reply, &error) == 1 && reply.type == RS_REPLY_ARRAY,
			"who waits is woken");
	unit_ok(rs_redis_turn_release(connection, &me, &handed_over, PATIENCE_MS, &refused, &error) &&
			!handed_over, "a lock that is not ours is not");
	unit_ok(begin(&me) && rs_redis_turn_release(connection, &me, &handed_over, PATIENCE_MS, &refused, &error) &&
			!handed_over, "nor one that nobody waits for");
	unit_ok(rs_redis_turn_stand_by(connection, &me, 5000, PATIENCE_MS, &refused, &error) &&
			number("EXISTS " LOCK ".notify") == 0, "standing by takes what wakes");
	unit_ok(rs_redis_turn_stand_by(connection, &me, 1, PATIENCE_MS, &refused, &error),
			"and ends by itself");
}

static void
test_dead_letter(void)
{
	RsKey		dead;
	RsDeadLetter letter = {.stream = &dead,.count = 4,.words = {"payload", "a\0b", "reason", "is bad"},
	.lengths = {7, 3, 6, 6}};
	RsStreamId	id = id_of("5-1");
	bool		committed;

	forget_everything();
	rs_redis_stream_key(&dead, "", "dead");
	unit_ok(begin(&me) && rs_redis_turn_commit(connection, &me, &id, &letter, NULL, PATIENCE_MS, &committed, &refused, &error) &&
			committed && replies("GET " OFFSET, "5-1") && number("XLEN redstream:stream:dead") == 1,
			"a message is put aside and passed");
	unit_ok(rs_redis_turn_commit(connection, &you, &id, &letter, NULL, PATIENCE_MS, &committed, &refused, &error) &&
			!committed && number("XLEN redstream:stream:dead") == 1, "not by who has not the lock");
	unit_ok(replies("SET redstream:stream:dead x", "OK"), "a string in the way");
	id = id_of("6-1");
	unit_ok(!rs_redis_turn_commit(connection, &me, &id, &letter, NULL, PATIENCE_MS, &committed, &refused, &error) &&
			refused && replies("GET " OFFSET, "5-1"), "what cannot be put aside is not passed");
	unit_has(error.text, "WRONGTYPE", "the error says why");
}

/* ---- the stream -------------------------------------------------------------------------- */

static void
test_life(void)
{
	forget_everything();
	unit_ok(replies("XADD " STREAM " 5-1 payload 1", "5-1") && replies("XADD " STREAM " 5-2 payload 1", "5-2") &&
			begin(&me) && note() && replies("HGET " HISTORY " last", "5-2"), "a stream is remembered");
	unit_ok(fits("5-1") && fits("5-2") && fits("0-0"), "its offsets fit");
	unit_ok(!fits("5-3"), "one ahead does not");
	unit_has(error.text, "ahead", "the error says so");

	unit_ok(number("XTRIM " STREAM " MAXLEN 0") == 2 && begin(&me) && !turn.refill && note() && fits("5-1"),
			"a stream that was trimmed is still itself");
	unit_ok(number("DEL " STREAM) == 1 && begin(&me) && note() && replies("HGET " HISTORY " gone", "1"),
			"a stream that is gone is remembered");
	unit_ok(!fits("5-1"), "an offset does not fit it");
	unit_ok(replies("XADD " STREAM " 7-1 payload 1", "7-1") && begin(&me) && turn.refill && note() &&
			replies("HGET " HISTORY " refilled", "7-1"), "filled again, that is noticed");
	unit_ok(!fits("5-2"), "an older offset does not fit");
	unit_has(error.text, "7-1", "the error says from where on it was filled");
	unit_ok(fits("7-1") && fits("0-0"), "others do");
	unit_ok(begin(&me) && !turn.refill && !fits("5-2"), "it stays so, and is noticed once");
	unit_ok(number("HDEL " HISTORY " refilled") == 1 && number("DEL " STREAM) == 1 &&
			replies("XADD " STREAM " 8-1 payload 1", "8-1") && begin(&me) && (turn.refill || !turn.stream.has_added),
			"filled again between two looks, with newer ids (Redis 7)");

	unit_ok(replies("SET redstream:stream:s x", "OK") && !begin(&me) && refused, "a key of another type");
	unit_has(error.text, "WRONGTYPE", "is said");
}

static void
test_reading(void)
{
	RsReading	reading = {{0, 0}, 0};
	RsStreamId	start = {0, 0};
	RsReply		reply;
	RsStreamEntry entry;
	size_t		count = 0;
	bool		there = true;
	bool		ordered = true;
	RsStreamId	last = {0, 0};
	char		add[100];

	forget_everything();
	for (int i = 1; i <= 500; i++)
	{
		snprintf(add, sizeof(add), "XADD " STREAM " 5-%d payload {\"id\":%d}", i, i);
		(void) number(add);
	}
	rs_redis_reading_begin(&reading, &start, 2000);
	while (rs_redis_reading_next(connection, &me.stream, &reading, 1000, PATIENCE_MS, &reply, &refused, &error) &&
		   reply.tree->elements > 0)
		for (size_t i = 0; i < (size_t) reply.tree->elements; i++)
		{
			ordered = ordered && rs_redis_entry_read(reply.tree->element[i], &entry) &&
				rs_redis_id_compare(&last, &entry.id) < 0 && !entry.other_fields;
			last = entry.id;
			count++;
		}
	unit_ok(count == 500 && ordered && is_id(&last, "5-500"), "all entries are read, in order: %zu", count);
	unit_ok(rs_redis_await_messages(connection, &me.stream, &last, 1, PATIENCE_MS, &there, &refused, &error) && !there,
			"no more");
	unit_ok(replies("XADD " STREAM " 6-1 other x payload 7 payload 8", "6-1") &&
			rs_redis_await_messages(connection, &me.stream, &last, 1000, PATIENCE_MS, &there, &refused, &error) && there,
			"one more");
	unit_ok(rs_redis_reading_next(connection, &me.stream, &reading, 10, PATIENCE_MS, &reply, &refused, &error) &&
			reply.tree->elements == 1 && rs_redis_entry_read(reply.tree->element[0], &entry) && entry.other_fields &&
			entry.length == 1 && entry.payload[0] == '7', "with other fields, and the first payload");
	unit_ok(replies("XADD " STREAM " 6-2 other x", "6-2") &&
			rs_redis_reading_next(connection, &me.stream, &reading, 10, PATIENCE_MS, &reply, &refused, &error) &&
			rs_redis_entry_read(reply.tree->element[0], &entry) && entry.payload == NULL, "and one without a payload");
}

/* Entries are large where small ones were read before: the next turn knows from the stream. */
static void
test_page(void)
{
	RsReading	reading = {{0, 0}, 0};
	RsStreamId	start = {0, 0};

	rs_redis_reading_begin(&reading, &start, 10);
	unit_ok(reading.page > 100 && reading.page < 1000, "a first page of small entries: %d", reading.page);
	reading.page = 1000;
	rs_redis_reading_begin(&reading, &start, 10);
	unit_ok(reading.page == 1000, "what was found is kept");
	rs_redis_reading_begin(&reading, &start, 1000000);
	unit_ok(reading.page == 1, "but not against what the stream says: %d", reading.page);
}

static void
test_place(void)
{
	const char *words[RS_PLACE_WORDS];
	RsReply		reply;

	forget_everything();
	rs_redis_place_words(&me, "5-1", words);
	unit_ok(rs_redis_command(connection, RS_PLACE_WORDS, words, NULL, PATIENCE_MS, &reply, &error) && reply.integer == 1 &&
			replies("GET " OFFSET, "5-1") && number("SISMEMBER redstream:consumers:s c") == 1, "an offset is placed");
	rs_redis_place_words(&me, "4-1", words);
	unit_ok(rs_redis_command(connection, RS_PLACE_WORDS, words, NULL, PATIENCE_MS, &reply, &error) &&
			replies("GET " OFFSET, "4-1"), "back, too");
	rs_redis_place_words(&me, "$", words);
	unit_ok(replies("XADD " STREAM " 6-2 payload x", "6-2") &&
			rs_redis_command(connection, RS_PLACE_WORDS, words, NULL, PATIENCE_MS, &reply, &error) &&
			replies("GET " OFFSET, "6-2"), "and at the end");
}

int
main(void)
{
	RealServer	server;
	RsConnectOptions options;
	RsServerInfo info;

	if (!real_is_installed())
	{
		printf("1..0 # SKIP no redis-server in PATH\n");
		return 0;
	}
	rs_redis_consumer_set(&me, "", "s", "c", "00000000000000000000000000000001");
	rs_redis_consumer_set(&you, "", "s", "c", "00000000000000000000000000000002");
	real_start(&server, "secret");
	memset(&options, 0, sizeof(options));
	options.password = "secret";
	connection = real_connect(&server, &options, &info, &error);
	other_connection = real_connect(&server, &options, &info, &error);
	if (unit_ok(connection != NULL && other_connection != NULL, "connected"))
	{
		test_begin();
		test_commit();
		test_handing_over();
		test_dead_letter();
		test_life();
		test_reading();
		test_page();
		test_place();
	}
	rs_redis_close(connection, true);
	rs_redis_close(other_connection, true);
	real_stop(&server);
	return unit_done();
}
