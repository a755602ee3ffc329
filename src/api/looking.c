/*
 * looking.c
 *	  SQL functions that look: at one stream in Redis, at keys, at the counters.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "api/asking.h"
#include "settings.h"
#include "stats.h"
#include "transport/transport.h"

PG_FUNCTION_INFO_V1(redstream_stream_key);
PG_FUNCTION_INFO_V1(redstream_delay_key);
PG_FUNCTION_INFO_V1(redstream_offset_key);
PG_FUNCTION_INFO_V1(redstream_lock_key);
PG_FUNCTION_INFO_V1(redstream_stream_size);
PG_FUNCTION_INFO_V1(redstream_max_stream_id);
PG_FUNCTION_INFO_V1(redstream_peek);
PG_FUNCTION_INFO_V1(redstream_stats);

#define PEEK_FIRST_PAGE 10		/* entries fetched at a time: grows while they come quickly */
#define PEEK_LAST_PAGE 500

/* ---- names and keys --------------------------------------------------------------- */

static Datum
key_datum(const RsKey *key)
{
	return PointerGetDatum(rs_api_text(key->text, key->length));
}

Datum
redstream_stream_key(PG_FUNCTION_ARGS)
{
	RsKey		key;

	rs_redis_stream_key(&key, rs_namespace, rs_api_stream_argument(fcinfo, 0));
	return key_datum(&key);
}

Datum
redstream_delay_key(PG_FUNCTION_ARGS)
{
	RsKey		key;

	rs_redis_delay_key(&key, rs_namespace, rs_api_stream_argument(fcinfo, 0));
	return key_datum(&key);
}

Datum
redstream_offset_key(PG_FUNCTION_ARGS)
{
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);
	RsKey		key;

	rs_redis_offset_key(&key, rs_namespace, rs_api_stream_argument(fcinfo, 0), consumer);
	return key_datum(&key);
}

Datum
redstream_lock_key(PG_FUNCTION_ARGS)
{
	RsError		error;
	RsKey		key;

	if (!rs_redis_lock_key(&key, rs_namespace, rs_api_utf8_argument(fcinfo, 0), &error))
		rs_api_invalid_name(&error);
	return key_datum(&key);
}

/* ---- streams ------------------------------------------------------------------------ */

Datum
redstream_stream_size(PG_FUNCTION_ARGS)
{
	RsConnection *connection;
	RsReply		reply;
	RsKey		key;
	volatile int64 size = 0;

	rs_redis_stream_key(&key, rs_namespace, rs_api_stream_argument(fcinfo, 0));
	connection = rs_api_connect();
	PG_TRY();
	{
		const char *command[] = {"XLEN", key.text};

		rs_api_ask(connection, 2, command, &reply);
		size = reply.integer;
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	PG_RETURN_INT64(size);
}

/* The id of an entry in the reply to XRANGE. */
static const redisReply *
entry_id(const RsReply *reply, size_t index)
{
	return reply->tree->element[index]->element[0];
}

Datum
redstream_max_stream_id(PG_FUNCTION_ARGS)
{
	RsConnection *connection;
	RsReply		reply;
	RsKey		key;
	text	   *volatile id = NULL;

	rs_redis_stream_key(&key, rs_namespace, rs_api_stream_argument(fcinfo, 0));
	connection = rs_api_connect();
	PG_TRY();
	{
		const char *command[] = {"XREVRANGE", key.text, "+", "-", "COUNT", "1"};

		rs_api_ask(connection, 6, command, &reply);
		if (reply.type == RS_REPLY_ARRAY && reply.tree->elements == 1)
			id = cstring_to_text_with_len(entry_id(&reply, 0)->str, entry_id(&reply, 0)->len);
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	if (id == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(id);
}

/* ---- peek ----------------------------------------------------------------------------- */

/* An end of the range: '-', '+', an id, or '(' and an id. */
static char *
range_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *bound = text_to_cstring(PG_GETARG_TEXT_PP(number));
	const char *id = bound[0] == '(' ? bound + 1 : bound;
	RsStreamId	parsed;

	if (strcmp(bound, "-") != 0 && strcmp(bound, "+") != 0 &&
		!rs_redis_id_parse(id, strlen(id), &parsed))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid stream id: \"%s\"", bound),
				 errhint("Ids look like 1700000000000-0; \"-\" is before and \"+\" is behind all of them, and \"(\" before an id leaves it out.")));
	return bound;
}

static void
peek_context(void *argument)
{
	errcontext("message %s", (const char *) argument);
}

/* One row of the result.  What has no payload, somebody else's entry, gets null. */
static void
put_entry(ReturnSetInfo *result, const redisReply *tree)
{
	const redisReply *id = tree->element[0];
	ErrorContextCallback context = {.callback = peek_context,.arg = id->str};
	RsStreamEntry entry;
	Datum		values[2];
	bool		nulls[2] = {false, true};

	values[0] = PointerGetDatum(cstring_to_text_with_len(id->str, id->len));
	context.previous = error_context_stack;
	error_context_stack = &context;
	if (rs_redis_entry_read(tree, &entry) && entry.payload != NULL)
	{
		values[1] = rs_api_jsonb(entry.payload, entry.length);
		nulls[1] = false;
	}
	error_context_stack = context.previous;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* Fetches page by page, so that the memory for replies is bounded. */
static void
peek(RsConnection *connection, const RsKey *key, const char *start, const char *stop,
	 int64 count, ReturnSetInfo *result)
{
	char		next[RS_STREAM_ID_SIZE + 1];
	int			page = PEEK_FIRST_PAGE;

	for (; count > 0; page = Min(page * 2, PEEK_LAST_PAGE))
	{
		int			wanted = Min(count, page);
		const char *command[] = {"XRANGE", key->text, start, stop, "COUNT", psprintf("%d", wanted)};
		RsReply		reply;
		size_t		entries;

		rs_api_ask(connection, 6, command, &reply);
		entries = reply.type == RS_REPLY_ARRAY ? reply.tree->elements : 0;
		for (size_t i = 0; i < entries; i++)
		{
			CHECK_FOR_INTERRUPTS();
			put_entry(result, reply.tree->element[i]);
		}
		if (entries < (size_t) wanted)
			break;
		snprintf(next, sizeof(next), "(%s", entry_id(&reply, entries - 1)->str);
		start = next;
		count -= entries;
	}
}

Datum
redstream_peek(PG_FUNCTION_ARGS)
{
	char	   *stream = rs_api_stream_argument(fcinfo, 0);
	char	   *start = range_argument(fcinfo, 1);
	char	   *stop = range_argument(fcinfo, 2);
	int			count = PG_GETARG_INT32(3);
	RsConnection *connection;
	RsKey		key;

	if (count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("count must not be negative")));
	InitMaterializedSRF(fcinfo, 0);
	rs_redis_stream_key(&key, rs_namespace, stream);
	connection = rs_api_connect();
	PG_TRY();
	{
		peek(connection, &key, start, stop, count, (ReturnSetInfo *) fcinfo->resultinfo);
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/* ---- stats ------------------------------------------------------------------------------ */

/*
 * One row: connected, since, last_error, last_error_at, delay_bytes, main_bytes and
 * the counters in their order.  All null when the library was not preloaded.
 */
Datum
redstream_stats(PG_FUNCTION_ARGS)
{
	TupleDesc	descriptor;
	Datum		values[6 + RS_COUNTERS] = {0};
	bool		nulls[6 + RS_COUNTERS];
	RsTransportStatus status;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE ||
		descriptor->natts != lengthof(values))
		elog(ERROR, "redstream.stats_row() does not match the library");
	memset(nulls, !rs_transport_ready(), sizeof(nulls));
	if (rs_transport_ready())
	{
		rs_transport_status(&status);
		values[0] = BoolGetDatum(status.connected);
		values[1] = TimestampTzGetDatum(status.since);
		nulls[1] = status.since == 0;
		values[2] = CStringGetTextDatum(status.last_error);
		nulls[2] = nulls[3] = status.last_error_at == 0;
		values[3] = TimestampTzGetDatum(status.last_error_at);
		values[4] = Int64GetDatum(status.delay_bytes);
		values[5] = Int64GetDatum(status.main_bytes);
		for (int i = 0; i < RS_COUNTERS; i++)
			values[6 + i] = Int64GetDatum(rs_stats_get(i));
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}
