/*
 * move.c
 *	  Moves due messages from a delay stream to its main stream: which, in which order.
 *
 * A stream is dealt with in passes; src/README.md says why in this order.  A pass reads stretches of
 * the stream, chunk by chunk.  Reading and moving overlap: while Redis executes one chunk (transfer.c), the next
 * is read, judged (chunk.c) and composed, but not sent before the one before it has succeeded.  No PostgreSQL
 * transaction is open while Redis is waited for.
 *
 * After any failure the connection is given up: replies may be outstanding.  What was held and how
 * far we had come is forgotten then, and found again by reading the stream
 * from its beginning.
 */
#include "postgres.h"

#include <limits.h>

#include <hiredis/hiredis.h>

#include "settings.h"
#include "worker/mover.h"

#define CHUNK_FIRST 4			/* messages; grows quickly, and a first one may be large */
#define CHUNKS_A_TURN 300		/* before other streams have their turn */

/* ---- a stretch of the stream --------------------------------------------------------------- */

/* Sends what is composed, once the transaction before it has succeeded. */
static RsScanEnd
send_composed(RsMover *mover)
{
	RsScanEnd	end = rs_transfer_settle(mover);

	if (end != RS_SCAN_NOT || mover->chunk.nmessages == 0)
		return end;
	if (!rs_redis_flush(mover->work->connection, rs_timeout, mover->error))
		return RS_SCAN_LOST;
	mover->sent = mover->composed;
	mover->sent.under_way = true;
	return RS_SCAN_NOT;
}

/* Asks for the next chunk. */
static bool
request(RsMover *mover)
{
	rs_chunk_request(&mover->chunk, mover->work->connection, &mover->delay_key);
	return rs_redis_flush(mover->work->connection, rs_timeout, mover->error);
}

/* Why the stretch is left, when its last chunk is dealt with. */
static RsScanEnd
scan_end(const RsMover *mover, bool turn_over)
{
	switch (mover->chunk.cut)
	{
		case RS_CUT_SERVER:
			return RS_SCAN_SERVER;
		case RS_CUT_AGAIN:
			return RS_SCAN_AGAIN;
		case RS_CUT_DUE:
		case RS_CUT_LANE:
		case RS_CUT_PREDECESSOR:
			return RS_SCAN_WAIT;
		case RS_CUT_NOT:
			break;
	}
	return turn_over ? RS_SCAN_TURN : RS_SCAN_DONE;
}

static RsScanEnd
scan(RsMover *mover)
{
	RsChunk    *chunk = &mover->chunk;
	RsScanEnd	end = RS_SCAN_NOT;
	bool		more = true;
	bool		turn_over = false;

	if (!request(mover))
		return RS_SCAN_LOST;
	while (more)
	{
		RsReply		reply;

		if (!rs_transfer_next(mover, true, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR)
			return rs_transfer_refused(mover, reply.text, reply.length);
		more = rs_chunk_read(chunk, &reply);
		rs_chunk_judge(chunk, mover->work, mover->state, mover->due_ms);
		turn_over = more && --mover->turn <= 0;
		more = more && !turn_over && chunk->cut == RS_CUT_NOT;
		if (more && !request(mover))
			return RS_SCAN_LOST;
		if (chunk->nmessages > 0)
			rs_transfer_compose(mover);
		end = send_composed(mover);
		if (end != RS_SCAN_NOT)
			return end;
	}
	end = rs_transfer_settle(mover);
	return end != RS_SCAN_NOT ? end : scan_end(mover, turn_over);
}

/* Puts back what is left of a stretch of held messages.  What is not due is not looked at again in this
 * pass: all behind it is not due either. */
static RsScanEnd
put_back(RsMover *mover, const RsStreamId *last, RsScanEnd end)
{
	const RsChunk *chunk = &mover->chunk;
	const RsStreamId *rest = chunk->cut == RS_CUT_NOT ? &chunk->next :
		&chunk->messages[chunk->nmessages].id;

	if (chunk->cut != RS_CUT_NOT && chunk->nread == 0)
		return end;				/* nothing is left */
	if (chunk->cut != RS_CUT_DUE)
	{
		rs_held_add_ended(mover->stream, rest, last);
		return end;
	}
	rs_held_add(mover->stream, 0, "", rest);
	rs_held_add(mover->stream, 0, "", last);
	return RS_SCAN_DONE;
}

/* A stretch of messages that were held and are not any more.  It is taken out before it is read: what has to stay
 * once more is noted anew. */
static RsScanEnd
scan_held(RsMover *mover, const RsStreamId *first, const RsStreamId *last)
{
	RsScanEnd	end;

	mover->main = false;
	mover->prefix = false;
	mover->chunk.next = *first;
	mover->chunk.last = *last;
	end = scan(mover);
	if (end == RS_SCAN_TURN || end == RS_SCAN_SERVER || end == RS_SCAN_AGAIN || end == RS_SCAN_WAIT)
		return put_back(mover, last, end);
	return end;					/* done, or all is forgotten */
}

/* The stretch from the cursor on up to "last", in which nothing was read so far. */
static RsScanEnd
scan_main(RsMover *mover, const RsStreamId *last)
{
	RsDelayState *state = mover->state;
	RsChunk    *chunk = &mover->chunk;

	mover->main = true;
	mover->prefix = state->nheld == 0;
	chunk->next.ms = chunk->next.seq = 0;
	if (state->nheld > 0)
		chunk->next = state->cursor;
	chunk->last = *last;
	if (rs_redis_id_compare(&chunk->next, last) > 0)
		return RS_SCAN_DONE;
	return scan(mover);
}

/* ---- all that is due ------------------------------------------------------------------------- */

/* Up to where messages are looked at: what is due or, in a flush, all that is there now. */
static RsScanEnd
find_last(RsMover *mover, RsStreamId *last)
{
	const char *words[] = {"XREVRANGE", mover->delay_key.text, "+", "-", "COUNT", "1"};
	RsReply		reply;

	last->ms = (uint64) Max(mover->due_ms, 0);
	last->seq = PG_UINT64_MAX;
	if (!mover->state->flush)
		return RS_SCAN_NOT;
	rs_redis_queue(mover->work->connection, 6, words, NULL);
	if (!rs_redis_flush(mover->work->connection, rs_timeout, mover->error) ||
		!rs_transfer_next(mover, true, &reply))
		return RS_SCAN_LOST;
	if (reply.type == RS_REPLY_ERROR)
		return rs_transfer_refused(mover, reply.text, reply.length);
	if (reply.type == RS_REPLY_ARRAY && reply.tree->elements == 1)
		(void) rs_redis_id_parse(reply.tree->element[0]->element[0]->str,
								 reply.tree->element[0]->element[0]->len, last);
	return RS_SCAN_NOT;
}

/*
 * One pass over the stream, in the order of the messages.  First it is settled up to where it goes, then which
 * transactions have ended: what comes from one that waited for another to end lies either behind, or behind that
 * other's.
 */
static RsScanEnd
pass(RsMover *mover)
{
	RsStreamId	first;
	RsStreamId	last;
	RsStreamId	held_last;
	RsScanEnd	end = find_last(mover, &last);

	if (end != RS_SCAN_NOT)
		return end;
	rs_held_recheck(mover->work, mover->state);
	while (rs_held_take(mover->state, &first, &held_last))
	{
		end = scan_held(mover, &first, &held_last);
		if (end != RS_SCAN_DONE)
			return end;
	}
	return scan_main(mover, &last);
}

/* The mark in Redis is for who takes over in the middle. */
static bool
end_flush(RsMover *mover)
{
	const char *words[] = {"DEL", mover->flush_key.text};
	RsReply		reply;

	mover->state->flush = false;
	return rs_work_ask(mover->work, 2, words, &reply, mover->error);
}

/* Passes until all is done, or something is in the way.  A flush is over when a pass has found nothing
 * more. */
static RsScanEnd
pass_until_done(RsMover *mover)
{
	const RsJobReport *report = mover->report;

	for (;;)
	{
		int64		before = report->moved + report->dropped;
		RsScanEnd	end = pass(mover);

		if (end == RS_SCAN_SERVER && !rs_servers_ask(mover->work, mover->error))
			return RS_SCAN_LOST;
		if (end == RS_SCAN_DONE && mover->state->flush &&
			report->moved + report->dropped == before && !end_flush(mover))
			return RS_SCAN_LOST;
		if (end != RS_SCAN_SERVER && end != RS_SCAN_AGAIN &&
			!(end == RS_SCAN_DONE && mover->state->flush))
			return end;
		if (--mover->turn <= 0)
			return RS_SCAN_TURN;
	}
}

/* What a delayer before us has left in Redis: the offset, and whether it has begun a flush. */
static bool
read_marks(RsMover *mover)
{
	const char *get[] = {"GET", mover->offset_key.text};
	const char *exists[] = {"EXISTS", mover->flush_key.text};
	RsReply		reply;

	if (!rs_work_ask(mover->work, 2, get, &reply, mover->error))
		return false;
	if (reply.type == RS_REPLY_STRING)
		(void) rs_redis_id_parse(reply.text, reply.length, &mover->offset);
	if (!rs_work_ask(mover->work, 2, exists, &reply, mover->error))
		return false;
	if (reply.type == RS_REPLY_INTEGER && reply.integer > 0)
		mover->state->flush = true;
	return true;
}

/* With the lock: everything between the first guard and the end of watching. */
static RsScanEnd
move_locked(RsMover *mover)
{
	const char *unwatch[] = {"UNWATCH"};
	RsScanEnd	end;
	RsReply		reply;

	if (!read_marks(mover))
		return RS_SCAN_LOST;
	rs_transfer_queue_guard(mover);
	if (!rs_redis_flush(mover->work->connection, rs_timeout, mover->error))
		return RS_SCAN_LOST;
	end = rs_transfer_check_guard(mover);
	if (end == RS_SCAN_NOT)
		end = pass_until_done(mover);
	if ((end == RS_SCAN_DONE || end == RS_SCAN_TURN || end == RS_SCAN_WAIT) &&
		!rs_work_ask(mover->work, 1, unwatch, &reply, mover->error))
		end = RS_SCAN_LOST;
	return end;
}

static RsMover *
create_mover(RsWork *work, RsWorkStream *stream, int64 due_ms, RsError *error)
{
	RsMover    *mover = palloc(sizeof(RsMover));

	memset(mover, 0, offsetof(RsMover, chunk));
	mover->work = work;
	mover->stream = stream;
	mover->state = stream->delay;
	mover->report = &stream->reports[RS_JOB_DELAYER];
	mover->due_ms = due_ms;
	mover->error = error;
	mover->turn = work->own_transactions ? CHUNKS_A_TURN : INT_MAX;	/* a backend has nothing else to do */
	mover->chunk.count = stream->delay->failures > 0 ? 1 : CHUNK_FIRST;
	mover->chunk.largest = stream->delay->largest / 2;
	mover->sent.under_way = false;
	rs_redis_delay_key(&mover->delay_key, rs_namespace, stream->name);
	rs_redis_stream_key(&mover->main_key, rs_namespace, stream->name);
	rs_redis_delayer_lock_key(&mover->lock_key, rs_namespace, stream->name);
	rs_redis_delayer_offset_key(&mover->offset_key, rs_namespace, stream->name);
	rs_redis_flush_key(&mover->flush_key, rs_namespace, stream->name);
	return mover;
}

/*
 * After a refusal replies may be outstanding: the lock is released on another connection.  If the lock was
 * lost there is none to release.
 */
static bool
leave(RsMover *mover, RsScanEnd end)
{
	RsWork	   *work = mover->work;

	if (end == RS_SCAN_LOCKED || end == RS_SCAN_REFUSED || end == RS_SCAN_LOST)
	{
		rs_delay_forget(mover->state);
		rs_work_disconnect(work);
	}
	if (end == RS_SCAN_LOST || !rs_work_connect(work, mover->error))
		return false;
	if (end == RS_SCAN_LOCKED)
		return true;
	if (rs_redis_lock_release(work->connection, &mover->lock_key, work->holder, rs_timeout,
							  mover->error))
		return true;
	rs_work_disconnect(work);
	return false;
}

bool
rs_move_due(RsWork *work, RsWorkStream *stream, int64 due_ms, bool *more, RsError *error)
{
	RsMover    *mover;
	RsScanEnd	end;
	bool		taken;
	bool		alive;

	*more = false;
	mover = create_mover(work, stream, due_ms, error);
	if (!rs_redis_lock_take(work->connection, &mover->lock_key, work->holder, rs_timeout,
							&taken, error))
	{
		rs_work_disconnect(work);
		pfree(mover);
		return false;
	}
	if (!taken)
	{
		if (error->text[0] != '\0')
			rs_work_report_error(stream, RS_JOB_DELAYER, error->text);
		else
			stream->reports[RS_JOB_DELAYER].locked = true;
		pfree(mover);
		return true;
	}
	end = move_locked(mover);
	stream->delay->largest = mover->chunk.largest;
	stream->reports[RS_JOB_DELAYER].locked = end == RS_SCAN_LOCKED;
	*more = end == RS_SCAN_TURN;
	alive = leave(mover, end);
	pfree(mover);
	return alive;
}
