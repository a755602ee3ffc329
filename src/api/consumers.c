/*
 * consumers.c
 *	  Which consumers a stream has: the registry that the trimmer goes by, and the offset
 *	  of one.
 *
 * Each change is a script, so that Redis does it as a whole.  It does not wait for the
 * transaction, and is not undone with it.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "api/asking.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(redstream_add_consumer);
PG_FUNCTION_INFO_V1(redstream_drop_consumer);
PG_FUNCTION_INFO_V1(redstream_max_consumer_id);

/* KEYS: registry, offset, history; ARGV: consumer, its field.  The offset last, for the
 * same reason. */
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

/* '$', or an id as Redis writes it. */
static char *
start_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *start = text_to_cstring(PG_GETARG_TEXT_PP(number));
	RsStreamId	id;

	if (strcmp(start, "$") == 0)
		return start;
	if (!rs_redis_id_parse(start, strlen(start), &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid stream id: \"%s\"", start),
				 errhint("Ids look like 1700000000000-0; \"0-0\" is before all messages and \"$\" behind those of now.")));
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
	ask_once(lengthof(words), words, &known);
	PG_RETURN_BOOL(known == 1);
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
