/*
 * streams.c
 *	  redstream.streams: what Redis holds of each stream.
 *
 * All streams are asked in one round trip.  What Redis refuses for one of them is
 * in that one's row.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/tuplestore.h"

#include "api/asking.h"
#include "capture/capture.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(redstream_streams);

/* The columns. */
enum
{
	STREAM, SIZE, DELAYED, OLDEST_DELAYED, OLDEST, EXPIRY, DELAY, BYTES, ERROR_TEXT, COLUMNS
};

typedef struct Row
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS];
} Row;

/* In the order in which take_row() takes the replies. */
static void
queue_questions(RsConnection *connection, const char *stream)
{
	RsKey		keys[2];

	rs_redis_stream_key(&keys[0], rs_namespace, stream);
	rs_redis_delay_key(&keys[1], rs_namespace, stream);
	for (int i = 0; i < 2; i++)
	{
		const char *key = keys[i].text;

		rs_redis_queue(connection, 2, (const char *[]) {"XLEN", key}, NULL);
		rs_redis_queue(connection, 6, (const char *[]) {"XRANGE", key, "-", "+", "COUNT", "1"}, NULL);
		rs_redis_queue(connection, 3, (const char *[]) {"MEMORY", "USAGE", key}, NULL);
	}
}

static void
put(Row *row, int column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

/* The next reply.  False when Redis refused; the row tells the first refusal. */
static bool
take(RsConnection *connection, Row *row, RsReply *reply)
{
	if (rs_api_next(connection, reply))
		return true;
	if (row->nulls[ERROR_TEXT])
		put(row, ERROR_TEXT, PointerGetDatum(rs_api_text(reply->text, reply->length)));
	return false;
}

/* When the entry was made, by the clock of Redis; infinity if that is out of range. */
static TimestampTz
time_of(const redisReply *id)
{
	const int64 epoch = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	RsStreamId	parsed;
	TimestampTz time;

	if (!rs_redis_id_parse(id->str, id->len, &parsed) || parsed.ms > PG_INT64_MAX / 1000)
		return DT_NOEND;
	time = (int64) parsed.ms * 1000 - epoch;
	return IS_VALID_TIMESTAMP(time) ? time : DT_NOEND;
}

/* Three replies, about one of the two keys.  Returns its bytes; -1 when refused. */
static int64
take_key(RsConnection *connection, Row *row, int size_column, int oldest_column)
{
	RsReply		reply;

	if (take(connection, row, &reply))
		put(row, size_column, Int64GetDatum(reply.integer));
	if (take(connection, row, &reply) && reply.tree->elements == 1)
		put(row, oldest_column,
			TimestampTzGetDatum(time_of(reply.tree->element[0]->element[0])));
	if (!take(connection, row, &reply))
		return -1;
	return reply.type == RS_REPLY_INTEGER ? reply.integer : 0;
}

static void
take_row(RsConnection *connection, const RsAttachedStream *stream, Row *row)
{
	int64		main_bytes;
	int64		delay_bytes;
	Interval   *delay = stream->delay;

	memset(row->nulls, true, sizeof(row->nulls));
	put(row, STREAM, PointerGetDatum(rs_api_text(stream->name, strlen(stream->name))));
	main_bytes = take_key(connection, row, SIZE, OLDEST);
	delay_bytes = take_key(connection, row, DELAYED, OLDEST_DELAYED);
	if (main_bytes >= 0 && delay_bytes >= 0)
		put(row, BYTES, Int64GetDatum(main_bytes + delay_bytes));
	if (delay == NULL)
	{
		delay = palloc0(sizeof(Interval));
		delay->time = rs_delay * INT64CONST(1000);
	}
	put(row, DELAY, IntervalPGetDatum(delay));
	if (stream->expiry != NULL)
		put(row, EXPIRY, IntervalPGetDatum(stream->expiry));
}

Datum
redstream_streams(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *streams;
	RsConnection *connection;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	connection = rs_api_connect();
	PG_TRY();
	{
		streams = rs_api_streams(connection);
		foreach(cell, streams)
			queue_questions(connection, ((RsAttachedStream *) lfirst(cell))->name);
		rs_api_flush(connection);
		foreach(cell, streams)
		{
			Row			row;

			take_row(connection, lfirst(cell), &row);
			tuplestore_putvalues(result->setResult, result->setDesc, row.values, row.nulls);
		}
	}
	PG_FINALLY();
	{
		rs_redis_close(connection, false);
	}
	PG_END_TRY();
	return (Datum) 0;
}
