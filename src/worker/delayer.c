/*
 * delayer.c
 *	  The delayer: looks at the delay streams, and has what is due moved.
 *
 * A stream is looked at when its first message can be due, and not before: the id of
 * the first message says when it was written, and one that comes into an empty stream is
 * due no earlier than the delay from now.  All streams whose time has come are asked in one
 * pipeline.  Redis's clock decides, which also made the ids; a message is due when it is older than the delay, and the
 * millisecond of the question over, so that none that is written later is among those that are due.
 *
 * The lock of a stream is taken only when there is something to move, and released after it.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "postmaster/interrupt.h"

#include "settings.h"
#include "transport/transport.h"
#include "worker/delay.h"

#define PACE 250000				/* microseconds at least between two looks at a stream */
#define LOOK_INTERVAL 10000000	/* microseconds at most: Redis's clock may have been set */
#define HELD_INTERVAL 1000000	/* microseconds between two looks at held messages */
#define ASKED_AT_ONCE 100		/* streams: each may answer with a large payload */

static int64
delay_of(const RsWorkStream *stream)
{
	return stream->delay_ms >= 0 ? stream->delay_ms : rs_delay;
}

static bool
is_to_be_looked_at(const RsWorkStream *stream)
{
	const RsDelayState *state = stream->delay;

	return state == NULL || state->delay_ms != delay_of(stream) || rs_now() >= state->look_at;
}

/* The next look, in so many milliseconds if nothing changes. */
static void
look_in(RsDelayState *state, int64 milliseconds)
{
	int64		pause = Min(milliseconds, LOOK_INTERVAL / 1000) * 1000;

	state->look_at = rs_now() + Max(pause, PACE);
}

static void
back_off(RsDelayState *state)
{
	state->look_at = rs_now() + rs_work_pause(state->failures++);
}

/* ---- asking ------------------------------------------------------------------------------ */

/* Asks for the clock, and for the first message of each of these streams that is not held. */
static bool
ask(RsWork *work, List *streams, RsError *error)
{
	const char *time[] = {"TIME"};
	ListCell   *cell;

	rs_redis_queue(work->connection, 1, time, NULL);
	foreach(cell, streams)
	{
		const RsWorkStream *stream = lfirst(cell);
		RsKey		key;
		char		from[RS_STREAM_ID_SIZE];
		const char *words[] = {"XRANGE", key.text, from, "+", "COUNT", "1"};

		rs_redis_delay_key(&key, rs_namespace, stream->name);
		rs_redis_id_format(&stream->delay->cursor, from);
		rs_redis_queue(work->connection, 6, words, NULL);
	}
	return rs_redis_flush(work->connection, rs_timeout, error);
}

static bool
has_ended(const RsDelayState *state)
{
	for (int i = 0; i < state->nheld; i++)
		if (state->held[i].ended)
			return true;
	return false;
}

/* What a stream answered: true if there is something to be done. */
static bool
judge(RsWorkStream *stream, const RsReply *reply, int64 now_ms)
{
	RsDelayState *state = stream->delay;
	int64		delay = delay_of(stream);
	int64		due_in = delay;
	RsStreamId	id;

	state->delay_ms = delay;
	if (reply->type == RS_REPLY_ERROR)
	{
		rs_work_report_error(stream, RS_JOB_DELAYER, pnstrdup(reply->text, reply->length));
		back_off(state);
		return false;
	}
	if (reply->type == RS_REPLY_ARRAY && reply->tree->elements > 0)
	{
		(void) rs_redis_id_parse(reply->tree->element[0]->element[0]->str,
								 reply->tree->element[0]->element[0]->len, &id);
		due_in = (int64) id.ms + delay + 1 - now_ms;
		if (due_in <= 0)
			return true;
	}
	look_in(state, due_in);
	return has_ended(state) || state->flush;
}

/* Takes the answers in; returns the streams that have something to be done, or false when the connection
 * was lost. */
static bool
hear(RsWork *work, List *streams, int64 *now_ms, List **due, RsError *error)
{
	RsReply		reply;
	ListCell   *cell;

	*due = NIL;
	if (!rs_redis_next(work->connection, true, rs_timeout, &reply, error) ||
		!rs_redis_time(&reply, now_ms, error))
		return false;
	foreach(cell, streams)
	{
		if (!rs_redis_next(work->connection, true, rs_timeout, &reply, error))
			return false;
		if (judge(lfirst(cell), &reply, *now_ms))
			*due = lappend(*due, lfirst(cell));
	}
	return true;
}

/* ---- a step -------------------------------------------------------------------------------- */

/* Moves what is due of one stream, and says when to look again. */
static bool
move(RsWork *work, RsWorkStream *stream, int64 now_ms, RsError *error)
{
	RsDelayState *state = stream->delay;
	bool		more;

	/* Another stream may have cost us the connection on which this one was looked at. */
	if (state->connection != work->connections)
	{
		state->look_at = 0;
		return true;
	}
	if (!rs_move_due(work, stream, now_ms - 1 - delay_of(stream), &more, error))
	{
		if (ShutdownRequestPending)
			return false;		/* that is why */
		/* If it is this stream that costs the connection, the others must have their turn. */
		rs_work_report_error(stream, RS_JOB_DELAYER, error->text);
		back_off(state);
		return false;
	}
	if (stream->reports[RS_JOB_DELAYER].error != NULL)
		back_off(state);
	else
	{
		state->failures = 0;
		state->look_at = more ? 0 : rs_now() + (has_ended(state) ? HELD_INTERVAL : PACE);
	}
	return true;
}

static bool
look_at(RsWork *work, List *streams, RsError *error)
{
	List	   *due;
	ListCell   *cell;
	int64		now_ms;

	if (!ask(work, streams, error) || !hear(work, streams, &now_ms, &due, error))
	{
		rs_work_disconnect(work);
		return false;
	}
	foreach(cell, due)
		if (!move(work, lfirst(cell), now_ms, error))
			return false;
	return true;
}

/* The stream's turn: with nothing held it is read from its beginning.  So it is on another connection, where
 * there may be another Redis, or the same one with an older state. */
static void
begin_stream(const RsWork *work, RsWorkStream *stream)
{
	if (stream->delay == NULL)
		stream->delay = MemoryContextAllocZero(stream->context, sizeof(RsDelayState));
	if (stream->delay->connection != work->connections || stream->delay->nheld == 0)
		rs_delay_forget(stream->delay);
	stream->delay->connection = work->connections;
	(void) rs_work_report_begin(stream, RS_JOB_DELAYER);
}

bool
rs_delayer_step(RsWork *work, RsError *error)
{
	List	   *streams = NIL;
	ListCell   *cell;

	rs_servers_forget_gone(work);
	if (!rs_servers_ask(work, error))
		return false;
	if (rs_transport_ready() && !rs_transport_knows_lives())
		return true;			/* the sender will know */
	if (rs_repeat == RS_REPEAT_UNCONFIRMED)
		rs_confirmation_refresh(work);
	else if (work->confirmation != NULL)
		work->confirmation->horizon = 0;	/* old messages are announced after confirmed ones */
	work->held_at = rs_now() + HELD_INTERVAL;
	foreach(cell, work->streams)
	{
		RsWorkStream *stream = lfirst(cell);

		if (stream->delay != NULL)
			rs_held_recheck(work, stream->delay);
		if (!is_to_be_looked_at(stream))
			continue;
		begin_stream(work, stream);
		streams = lappend(streams, stream);
		if (list_length(streams) < ASKED_AT_ONCE)
			continue;
		if (!look_at(work, streams, error))
			return false;
		list_free(streams);
		streams = NIL;
	}
	return streams == NIL || look_at(work, streams, error);
}

uint64
rs_delayer_due(const RsWork *work)
{
	uint64		due = PG_UINT64_MAX;
	ListCell   *cell;

	if (rs_transport_ready() && !rs_transport_knows_lives())
		return rs_now() + PACE;
	foreach(cell, work->streams)
	{
		const RsWorkStream *stream = lfirst(cell);

		if (is_to_be_looked_at(stream))
			return 0;
		due = Min(due, stream->delay->look_at);
		if (stream->delay->nheld > 0)
			due = Min(due, work->held_at);
	}
	return due;
}
