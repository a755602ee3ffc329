/*
 * lag.c
 *	  redstream.consumers: how far every registered consumer is, and who holds up the
 *	  trimmer.
 *
 * Redis is asked in three stages:
 *
 * 1. who is registered, of all streams in one round trip;
 * 2. offsets, locks and what is lost, and then the streams, in one round trip.  In this
 *	  order: a consumer that commits meanwhile must not look as if it were ahead of its
 *	  stream;
 * 3. what is unread, where that does not follow from the ends of the stream: counted by
 *	  a script, one call at a time, so that others get their turn.
 *
 * What Redis refuses for one stream or consumer is in that one's row.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "api/asking.h"
#include "capture/capture.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(redstream_consumers);

#define LAG_MAX 10000			/* counted no further; in the comment of the column, too */

typedef struct Consumer
{
	char	   *name;			/* NULL: the registry could not be read */
	size_t		name_length;
	bool		named;			/* name is one; Redis is asked about no other */
	char	   *committed;		/* NULL: nothing */
	bool		has_offset;		/* committed is an id */
	RsStreamId	offset;
	bool		bad_offset;		/* problem is about the offset */
	char	   *holder;			/* of the lock; NULL: nobody */
	int64		lost;			/* -1: not known */
	int64		lag;			/* -1: not known */
	RsStreamId	unread;			/* the first one, if there is a lag */
	char	   *problem;		/* NULL: none */
} Consumer;

typedef struct Stream
{
	const char *name;			/* in UTF-8 */
	List	   *consumers;
	bool		known;			/* Redis answered */
	RsStreamState state;
	RsStreamId	refilled;		/* first id after the stream was deleted; 0-0: it was not */
	char	   *problem;		/* of all its consumers */
} Stream;

/*
 * Counts entries behind an id: about a thousand, or 256 kB of them if that is less, which
 * takes Redis 2 ms at most.  In pieces that double, since nobody knows how large they
 * are.  KEYS: stream; ARGV: the id.  Returns how many, the first and the last of them,
 * and whether there may be more.
 */
static const char count_script[] =
"local count, bytes, piece, more = 0, 0, 1, 1\n"
"local first, last = '', ARGV[1]\n"
"while more == 1 and count < 1000 and bytes < 262144 do\n"
"  local entries = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', piece)\n"
"  for _, entry in ipairs(entries) do\n"
"    if first == '' then first = entry[1] end\n"
"    last = entry[1]\n"
"    for _, text in ipairs(entry[2]) do bytes = bytes + #text end\n"
"  end\n"
"  if #entries < piece then more = 0 end\n"
"  count = count + #entries\n"
"  piece = piece * 2\n"
"end\n"
"return {count, first, last, more}\n";

static char *
copy_of(const RsReply *reply)
{
	return pnstrdup(reply->text, reply->length);
}

/* The first problem is the one to tell. */
static void
add_problem(Consumer *consumer, char *problem)
{
	if (consumer->problem == NULL)
		consumer->problem = problem;
}

/* ---- 1: who is registered ------------------------------------------------------------- */

static void
add_consumer(Stream *stream, const char *name, size_t length)
{
	Consumer   *consumer = palloc0(sizeof(Consumer));
	RsError		error;

	/* not pnstrdup(), which ends at a zero byte: this may be anything */
	consumer->name = palloc0(length + 1);
	memcpy(consumer->name, name, length);
	consumer->name_length = length;
	consumer->named = strlen(consumer->name) == length &&
		rs_redis_consumer_name_check(consumer->name, &error);
	if (!consumer->named)
		consumer->problem = "not a consumer's name";
	consumer->lost = consumer->lag = -1;
	stream->consumers = lappend(stream->consumers, consumer);
}

static void
take_names(RsConnection *connection, Stream *stream)
{
	RsReply		reply;

	if (rs_api_next(connection, &reply))
	{
		for (size_t i = 0; i < (size_t) reply.tree->elements; i++)
			add_consumer(stream, reply.tree->element[i]->str, reply.tree->element[i]->len);
	}
	else
	{
		Consumer   *nobody = palloc0(sizeof(Consumer));

		nobody->problem = copy_of(&reply);
		nobody->lost = nobody->lag = -1;
		stream->consumers = list_make1(nobody);
	}
}

/* A list of Stream. */
static List *
list_registered(RsConnection *connection, List *attached)
{
	List	   *streams = NIL;
	ListCell   *cell;

	foreach(cell, attached)
	{
		Stream	   *stream = palloc0(sizeof(Stream));
		RsKey		key;

		stream->name = ((RsAttachedStream *) lfirst(cell))->name;
		streams = lappend(streams, stream);
		rs_redis_consumers_key(&key, rs_namespace, stream->name);
		rs_redis_queue(connection, 2, (const char *[]) {"SMEMBERS", key.text}, NULL);
	}
	rs_api_flush(connection);
	foreach(cell, streams)
		take_names(connection, lfirst(cell));
	return streams;
}

/* ---- 2: offsets, locks, streams ------------------------------------------------------- */

/* In the order in which take_consumer() and take_stream() take the replies. */
static void
queue_questions(RsConnection *connection, const Stream *stream)
{
	RsKey		history;
	RsKey		key;
	ListCell   *cell;

	rs_redis_history_key(&history, rs_namespace, stream->name);
	foreach(cell, stream->consumers)
	{
		Consumer   *consumer = lfirst(cell);

		if (!consumer->named)
			continue;
		rs_redis_offset_key(&key, rs_namespace, stream->name, consumer->name);
		rs_redis_queue(connection, 2, (const char *[]) {"GET", key.text}, NULL);
		rs_redis_consumer_lock_key(&key, rs_namespace, stream->name, consumer->name);
		rs_redis_queue(connection, 2, (const char *[]) {"GET", key.text}, NULL);
		rs_redis_queue(connection, 3, (const char *[])
					   {"HGET", history.text, psprintf("lost:%s", consumer->name)}, NULL);
	}
	rs_redis_queue(connection, 3, (const char *[]) {"HGET", history.text, "refilled"}, NULL);
	rs_redis_stream_key(&key, rs_namespace, stream->name);
	rs_redis_queue(connection, 3, (const char *[]) {"XINFO", "STREAM", key.text}, NULL);
}

static void
take_consumer(RsConnection *connection, Consumer *consumer)
{
	RsReply		reply;

	if (!rs_api_next(connection, &reply))
	{
		consumer->bad_offset = true;
		add_problem(consumer, copy_of(&reply));
	}
	else if (reply.type == RS_REPLY_STRING)
	{
		consumer->committed = copy_of(&reply);
		consumer->has_offset = rs_redis_id_parse(reply.text, reply.length, &consumer->offset);
		consumer->bad_offset = !consumer->has_offset;
		if (consumer->bad_offset)
			add_problem(consumer, "offset is not an id");
	}
	if (!rs_api_next(connection, &reply))
		add_problem(consumer, copy_of(&reply));
	else if (reply.type == RS_REPLY_STRING)
		consumer->holder = copy_of(&reply);
	if (!rs_api_next(connection, &reply))
		add_problem(consumer, copy_of(&reply));
	else
		consumer->lost = reply.type == RS_REPLY_STRING ? strtoll(copy_of(&reply), NULL, 10) : 0;
}

static void
take_stream(RsConnection *connection, Stream *stream)
{
	RsReply		reply;

	/* A refusal here is one of every consumer, too. */
	if (rs_api_next(connection, &reply))
		(void) rs_redis_value_id(reply.tree, &stream->refilled);
	(void) rs_api_next(connection, &reply);
	stream->known = rs_redis_stream_read(&reply, &stream->state);
	if (!stream->known)
		stream->problem = reply.type == RS_REPLY_ERROR ? copy_of(&reply) : "unexpected reply";
}

/* What is wrong with the offset, now that the stream is known. */
static void
judge_offset(const Stream *stream, Consumer *consumer)
{
	static const RsStreamId zero = {0, 0};

	if (stream->problem != NULL)
		add_problem(consumer, stream->problem);
	if (!stream->known || !consumer->has_offset || rs_redis_id_compare(&consumer->offset, &zero) == 0)
		return;
	/* Without a stream, its last id is 0-0. */
	if (rs_redis_id_compare(&consumer->offset, &stream->state.last) > 0)
	{
		consumer->bad_offset = true;
		add_problem(consumer, "offset is ahead of the stream");
	}
	else if (rs_redis_id_compare(&consumer->offset, &stream->refilled) < 0)
	{
		consumer->bad_offset = true;
		add_problem(consumer, "stream was deleted and refilled");
	}
}

static void
ask_all(RsConnection *connection, List *streams)
{
	ListCell   *cell;
	ListCell   *inner;

	foreach(cell, streams)
		queue_questions(connection, lfirst(cell));
	rs_api_flush(connection);
	foreach(cell, streams)
	{
		Stream	   *stream = lfirst(cell);

		foreach(inner, stream->consumers)
			if (((Consumer *) lfirst(inner))->named)
				take_consumer(connection, lfirst(inner));
		take_stream(connection, stream);
		foreach(inner, stream->consumers)
			judge_offset(stream, lfirst(inner));
	}
}

/* ---- 3: what is unread ------------------------------------------------------------------ */

/* Calls the script until it has seen all, or enough. */
static void
count_unread(RsConnection *connection, const Stream *stream, Consumer *consumer)
{
	char		from[RS_STREAM_ID_SIZE];
	int64		count = 0;
	bool		more = true;
	RsKey		key;

	rs_redis_stream_key(&key, rs_namespace, stream->name);
	rs_redis_id_format(&consumer->offset, from);
	while (more && count < LAG_MAX)
	{
		RsReply		reply;

		CHECK_FOR_INTERRUPTS();
		rs_redis_queue(connection, 5, (const char *[]) {"EVAL", count_script, "1", key.text, from}, NULL);
		rs_api_flush(connection);
		if (!rs_api_next(connection, &reply))
		{
			add_problem(consumer, copy_of(&reply));
			return;
		}
		if (count == 0)
			rs_redis_value_id(reply.tree->element[1], &consumer->unread);
		count += reply.tree->element[0]->integer;
		strlcpy(from, reply.tree->element[2]->str, sizeof(from));
		more = reply.tree->element[3]->integer == 1;
	}
	consumer->lag = Min(count, LAG_MAX);
}

static void
measure_lag(RsConnection *connection, const Stream *stream, Consumer *consumer)
{
	bool		from_beginning = consumer->committed == NULL;

	if (!consumer->named || !stream->known || (!consumer->has_offset && consumer->bad_offset))
		return;
	consumer->unread = stream->state.first;
	if (stream->state.length == 0)
		consumer->lag = 0;
	else if (from_beginning || rs_redis_id_compare(&consumer->offset, &stream->state.first) < 0)
		consumer->lag = stream->state.length;
	else if (rs_redis_id_compare(&consumer->offset, &stream->state.last_entry) >= 0)
		consumer->lag = 0;
	else
		count_unread(connection, stream, consumer);
}

/* ---- rows --------------------------------------------------------------------------------- */

/* In milliseconds, by the clock that made the ids. */
static double
redis_time(RsConnection *connection)
{
	RsReply		reply;

	rs_api_ask(connection, 1, (const char *[]) {"TIME"}, &reply);
	return strtod(reply.tree->element[0]->str, NULL) * 1000 +
		strtod(reply.tree->element[1]->str, NULL) / 1000;
}

/* Does the trimmer wait for this one?  Who has no offset yet is slower than all others. */
static bool
blocks_trimming(const Stream *stream, const Consumer *consumer)
{
	ListCell   *cell;

	if (!consumer->has_offset || consumer->bad_offset)
		return true;
	foreach(cell, stream->consumers)
	{
		Consumer   *other = lfirst(cell);

		if (!other->has_offset || rs_redis_id_compare(&other->offset, &consumer->offset) < 0)
			return false;
	}
	return consumer->lag > 0;
}

static Datum
text_datum(const char *string, bool *is_null)
{
	*is_null = string == NULL;
	return string == NULL ? (Datum) 0 : PointerGetDatum(rs_api_text(string, strlen(string)));
}

/* stream, consumer, committed_id, lag, lag_seconds, lock_holder, blocks_trimming, lost, problem. */
static void
put_row(ReturnSetInfo *result, const Stream *stream, const Consumer *consumer, double now)
{
	Datum		values[9] = {0};
	bool		nulls[9] = {0};
	double		age = consumer->lag > 0 ? (now - consumer->unread.ms) / 1000 : 0;

	values[0] = text_datum(stream->name, &nulls[0]);
	nulls[1] = consumer->name == NULL;
	if (consumer->name != NULL)
		values[1] = PointerGetDatum(rs_api_text(consumer->name, consumer->name_length));
	values[2] = text_datum(consumer->committed, &nulls[2]);
	values[3] = Int64GetDatum(consumer->lag);
	values[4] = Float8GetDatum(Max(age, 0));
	nulls[3] = nulls[4] = consumer->lag < 0;
	values[5] = text_datum(consumer->holder, &nulls[5]);
	values[6] = BoolGetDatum(blocks_trimming(stream, consumer));
	values[7] = Int64GetDatum(consumer->lost);
	nulls[7] = consumer->lost < 0;
	values[8] = text_datum(consumer->problem, &nulls[8]);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void
look(RsConnection *connection, List *all, ReturnSetInfo *result)
{
	List	   *streams = list_registered(connection, all);
	double		now;
	ListCell   *cell;
	ListCell   *inner;

	ask_all(connection, streams);
	foreach(cell, streams)
		foreach(inner, ((Stream *) lfirst(cell))->consumers)
			measure_lag(connection, lfirst(cell), lfirst(inner));
	now = redis_time(connection);
	foreach(cell, streams)
		foreach(inner, ((Stream *) lfirst(cell))->consumers)
			put_row(result, lfirst(cell), lfirst(inner), now);
}

Datum
redstream_consumers(PG_FUNCTION_ARGS)
{
	RsConnection *connection;

	InitMaterializedSRF(fcinfo, 0);
	connection = rs_api_connect();
	PG_TRY();
	{
		look(connection, rs_api_streams(connection), (ReturnSetInfo *) fcinfo->resultinfo);
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	return (Datum) 0;
}
