/*
 * consumers.c
 *	  Which consumers a stream has: the registry that the trimmer goes by, and the offset
 *	  of one.
 *
 * Each change in Redis is a script, so that Redis does it as a whole.  To add or drop a consumer does not wait for the
 * transaction, and is not undone with it; what the table redstream.offsets has of the consumer goes with the
 * transaction.  It is changed first, since that can fail.
 *
 * An offset that is set by hand moves on with the transaction, so that a rollback skips nothing; back it moves at once:
 * the greater of both counts, and what is read twice does no harm.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "api/asking.h"
#include "consuming/consuming.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(redstream_add_consumer);
PG_FUNCTION_INFO_V1(redstream_drop_consumer);
PG_FUNCTION_INFO_V1(redstream_commit_offset);
PG_FUNCTION_INFO_V1(redstream_max_consumer_id);

/* KEYS: registry, offset, history; ARGV: consumer, its field.  The offset last: one of nobody does not keep the
 * trimmer waiting, a consumer without one does. */
static const char drop_script[] =
"redis.call('HDEL', KEYS[3], ARGV[2])\n"
"local known = redis.call('SREM', KEYS[1], ARGV[1])\n"
"redis.call('DEL', KEYS[2])\n"
"return known\n";

/* Asks for a number, or a text: NULL if the reply is none. */
static text *
ask_once(int count, const char *const *words, int64 *number)
{
	RsConnection *connection = rs_api_connect();
	text	   *volatile answer = NULL;

	PG_TRY();
	{
		RsReply		reply;

		rs_api_ask(connection, count, words, &reply);
		*number = reply.integer;
		if (reply.type == RS_REPLY_STRING)
			answer = rs_api_text(reply.text, reply.length);
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	return answer;
}

/* What the table has of the consumer, and what this transaction would tell Redis of it at its end. */
static void
forget_offset(FunctionCallInfo fcinfo)
{
	rs_offset_forget(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	rs_lease_unmark(rs_api_stream_argument(fcinfo, 0), rs_api_consumer_argument(fcinfo, 1));
}

static void
invalid_id(const char *text, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid stream id: \"%s\"", text),
			 errhint("%s", hint)));
}

/* '$', or an id as Redis writes it. */
static char *
start_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *start = text_to_cstring(PG_GETARG_TEXT_PP(number));
	RsStreamId	id;

	if (strcmp(start, "$") == 0)
		return start;
	if (!rs_redis_id_parse(start, strlen(start), &id))
		invalid_id(start, "Ids look like 1700000000000-0; \"0-0\" is before all messages and \"$\" behind those of now.");
	start = palloc(RS_STREAM_ID_SIZE);
	rs_redis_id_format(&id, start);
	return start;
}

Datum
redstream_add_consumer(PG_FUNCTION_ARGS)
{
	char	   *stream = rs_api_stream_argument(fcinfo, 0);
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);
	char	   *start = start_argument(fcinfo, 2);
	const char *words[RS_PLACE_WORDS];
	RsConsumer *who = palloc(sizeof(RsConsumer));
	int64		ignored;

	forget_offset(fcinfo);
	rs_redis_consumer_set(who, rs_namespace, stream, consumer, "");
	rs_redis_place_words(who, start, words);
	ask_once(lengthof(words), words, &ignored);
	PG_RETURN_VOID();
}

Datum
redstream_drop_consumer(PG_FUNCTION_ARGS)
{
	char	   *stream = rs_api_stream_argument(fcinfo, 0);
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);
	RsKey		registry;
	RsKey		offset;
	RsKey		history;
	const char *words[] = {"EVAL", drop_script, "3", registry.text, offset.text, history.text,
	consumer, psprintf("lost:%s", consumer)};
	int64		known;

	rs_redis_consumers_key(&registry, rs_namespace, stream);
	rs_redis_offset_key(&offset, rs_namespace, stream, consumer);
	rs_redis_history_key(&history, rs_namespace, stream);
	forget_offset(fcinfo);
	ask_once(lengthof(words), words, &known);
	PG_RETURN_BOOL(known == 1);
}

static void
ask_leased(RsConnection *redis, int count, const char *const *words, RsReply *reply)
{
	RsError		error;

	if (!rs_redis_command(redis, count, words, NULL, rs_timeout, reply, &error))
		rs_api_lease_failed(false, &error);
	if (reply->type != RS_REPLY_ERROR)
		return;
	rs_redis_error(&error, "%s: %.*s", words[0], (int) reply->length, reply->text);
	rs_api_lease_failed(true, &error);
}

/* Is the offset in Redis behind this id, or there?  A consumer without one is before all messages. */
static bool
moves_on(RsConnection *redis, const RsLease *lease, const RsStreamId *id)
{
	const char *words[RS_PROBE_WORDS];
	RsReply		reply;
	RsStreamId	now;

	rs_redis_probe_words(&lease->who, words);
	ask_leased(redis, RS_PROBE_WORDS, words, &reply);
	return reply.type == RS_REPLY_NIL ||
		(rs_redis_id_parse(reply.text, reply.length, &now) && rs_redis_id_compare(&now, id) <= 0);
}

static void
commit_offset(FunctionCallInfo fcinfo, const char *stream, const char *consumer,
			  const RsStreamId *id)
{
	RsLease    *lease = rs_lease_open(stream, consumer);
	RsConnection *redis;
	const char *words[RS_PLACE_WORDS];
	char		to[RS_STREAM_ID_SIZE];
	RsReply		reply;

	rs_session_rest();			/* the row may have to be waited for */
	rs_offset_set(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)), id);
	rs_lease_mark(lease, id, true);
	redis = rs_api_lease_connection();
	if (moves_on(redis, lease, id))
		return;
	rs_redis_id_format(id, to);
	rs_redis_place_words(&lease->who, to, words);
	ask_leased(redis, RS_PLACE_WORDS, words, &reply);
}

Datum
redstream_commit_offset(PG_FUNCTION_ARGS)
{
	char	   *stream = rs_api_stream_argument(fcinfo, 0);
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);
	char	   *given = text_to_cstring(PG_GETARG_TEXT_PP(2));
	RsStreamId	id;

	if (!rs_redis_id_parse(given, strlen(given), &id))
		invalid_id(given, "Ids look like 1700000000000-0.");
	PG_TRY();
	{
		commit_offset(fcinfo, stream, consumer, &id);
	}
	PG_FINALLY();
	{
		rs_session_rest();
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

Datum
redstream_max_consumer_id(PG_FUNCTION_ARGS)
{
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);
	RsKey		offset;
	const char *words[] = {"GET", offset.text};
	text	   *id;
	int64		ignored;

	rs_redis_offset_key(&offset, rs_namespace, rs_api_stream_argument(fcinfo, 0), consumer);
	id = ask_once(lengthof(words), words, &ignored);
	if (id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(id);
}
