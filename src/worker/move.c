/*
 * move.c
 *	  Moves due messages from a delay stream to its main stream.
 *
 * A chunk of messages is read and judged (chunk.c), and one MULTI ... EXEC of Redis adds those
 * to be announced to the main stream, removes what is dealt with from the delay stream, sets the
 * delayer's offset and extends the lock.  EXEC does all or, when somebody else has got the lock
 * since the WATCH, nothing:
 *
 *		WATCH lock, GET lock		is it ours?
 *		MULTI
 *		PEXPIRE lock
 *		XTRIM or XDEL, of nothing	may we remove?
 *		XADD main ...				all messages but one
 *		EVAL						adds the last one, removes, and sets the offset
 *		EXEC
 *
 * Out of memory, a missing permission and their like are refused when a command is queued, and
 * then EXEC does nothing.  What can go wrong in EXEC itself (a main stream of another type) goes
 * wrong for each XADD alike: so the last XADD and what follows from it are one script, which
 * ends before the removal.
 *
 * Reading and moving overlap: while Redis executes one chunk, the next is read, judged and
 * composed, but not sent before the one before it has succeeded.  No PostgreSQL
 * transaction is open while Redis is waited for.
 *
 * After any failure the connection is given up: replies may be outstanding.  What was held and how
 * far we had come is forgotten then, and found again by reading the stream
 * from its beginning.
 */
#include "postgres.h"

#include <limits.h>

#include <hiredis/hiredis.h>

#include "utils/memutils.h"

#include "settings.h"
#include "stats.h"
#include "worker/chunk.h"

#define CHUNK_FIRST 4			/* messages; grows quickly, and a first one may be large */
#define CHUNKS_A_TURN 300		/* before other streams have their turn */
#define WORDS_MAX (RS_CHUNK_MAX + 12)

/* KEYS: main stream, delay stream, offset; ARGV: payload, the new offset or nothing, XTRIM or XDEL, and its
 * arguments. */
static const char move_script[] =
"redis.call('XADD', KEYS[1], '*', 'payload', ARGV[1])\n"
"redis.call(ARGV[3], KEYS[2], unpack(ARGV, 4))\n"
"if ARGV[2] ~= '' then redis.call('SET', KEYS[3], ARGV[2]) end\n";

/* Why a scan of a stretch of the stream ended. */
typedef enum RsScanEnd
{
	RS_SCAN_NOT,				/* it has not */
	RS_SCAN_DONE,
	RS_SCAN_TURN,				/* other streams wait */
	RS_SCAN_SERVER,				/* a server has to be asked about */
	RS_SCAN_AGAIN,				/* a transaction has ended that messages stayed for */
	RS_SCAN_WAIT,				/* the rest has to wait */
	RS_SCAN_LOCKED,				/* the lock is not ours any more */
	RS_SCAN_REFUSED,			/* Redis refused, see the report */
	RS_SCAN_LOST				/* the connection is */
} RsScanEnd;

/* What a transaction of Redis will have done. */
typedef struct RsOutcome
{
	bool		under_way;		/* the replies are still to come */
	int			commands;		/* between MULTI and EXEC */
	int64		moved;
	int64		dropped;
	RsStreamId	done;			/* the last message dealt with */
	RsStreamId	offset;			/* 0-0: not set */
} RsOutcome;

typedef struct RsMover
{
	RsWork	   *work;
	RsWorkStream *stream;
	RsDelayState *state;
	RsJobReport *report;
	int64		due_ms;
	RsKey		delay_key;
	RsKey		main_key;
	RsKey		lock_key;
	RsKey		offset_key;
	RsKey		flush_key;
	RsStreamId	offset;			/* the delayer's, as Redis has it */
	int			turn;			/* chunks left of it */
	bool		prefix;			/* nothing before or in the stretch stays: it may be trimmed */
	bool		main;			/* the stretch is that from the cursor on */
	RsChunk		chunk;
	RsOutcome	composed;
	RsOutcome	sent;
	RsError    *error;			/* of a lost connection */
	int			nwords;			/* of the command being made */
	const char *words[WORDS_MAX];
	size_t		lengths[WORDS_MAX];
	char		ids[RS_CHUNK_MAX][RS_STREAM_ID_SIZE];
} RsMover;

/* ---- moving ----------------------------------------------------------------------------- */

static void
queue(RsMover *mover, int count, const char *const *words)
{
	rs_redis_queue(mover->work->connection, count, words, NULL);
}

/* Asks whether the lock is ours, and has Redis watch it. */
static void
queue_guard(RsMover *mover)
{
	const char *watch[] = {"WATCH", mover->lock_key.text};
	const char *get[] = {"GET", mover->lock_key.text};

	queue(mover, 2, watch);
	queue(mover, 2, get);
}

/* One command of the transaction. */
static void
put(RsMover *mover, int count, const char *const *words, const size_t *lengths)
{
	rs_redis_queue(mover->work->connection, count, words, lengths);
	mover->composed.commands++;
}

static void
put_add(RsMover *mover, const RsMessage *message)
{
	const char *words[] = {"XADD", mover->main_key.text, "*", "payload", message->payload};
	size_t		lengths[] = {4, mover->main_key.length, 1, 7, message->length};

	put(mover, 5, words, lengths);
}

static void
add_word(RsMover *mover, const char *word, size_t length)
{
	mover->words[mover->nwords] = word;
	mover->lengths[mover->nwords++] = length;
}

/* Which messages are removed: XTRIM's or XDEL's arguments behind the key.  When nothing stays and nothing was
 * left before, all up to the chunk's end goes at once. */
static void
add_removed(RsMover *mover)
{
	const RsChunk *chunk = &mover->chunk;
	RsStreamId	end = chunk->messages[chunk->nmessages - 1].id;

	if (mover->prefix)
	{
		(void) rs_redis_id_next(&end);
		add_word(mover, "MINID", 5);
		add_word(mover, mover->ids[0], rs_redis_id_format(&end, mover->ids[0]));
		return;
	}
	for (int i = 0; i < chunk->nmessages; i++)
		if (chunk->messages[i].fate != RS_FATE_STAY)
			add_word(mover, mover->ids[i],
					 rs_redis_id_format(&chunk->messages[i].id, mover->ids[i]));
}

/* The removal and, in one script with it, the XADD of the "last" message, if there is one, and the new offset. */
static void
put_removal(RsMover *mover, const RsMessage *last, const char *offset)
{
	const char *verb = mover->prefix ? "XTRIM" : "XDEL";

	mover->nwords = 0;
	if (last != NULL)
	{
		add_word(mover, "EVAL", 4);
		add_word(mover, move_script, sizeof(move_script) - 1);
		add_word(mover, "3", 1);
		add_word(mover, mover->main_key.text, mover->main_key.length);
		add_word(mover, mover->delay_key.text, mover->delay_key.length);
		add_word(mover, mover->offset_key.text, mover->offset_key.length);
		add_word(mover, last->payload, last->length);
		add_word(mover, offset, strlen(offset));
		add_word(mover, verb, strlen(verb));
	}
	else
	{
		add_word(mover, verb, strlen(verb));
		add_word(mover, mover->delay_key.text, mover->delay_key.length);
	}
	add_removed(mover);
	put(mover, mover->nwords, mover->words, mover->lengths);
	if (last == NULL && offset[0] != '\0')
	{
		const char *set[] = {"SET", mover->offset_key.text, offset};

		put(mover, 3, set, NULL);
	}
}

/* Removes nothing: refused if we may not. */
static void
put_probe(RsMover *mover)
{
	const char *trim[] = {"XTRIM", mover->delay_key.text, "MINID", "0-0"};
	const char *delete[] = {"XDEL", mover->delay_key.text, "0-0"};

	if (mover->prefix)
		put(mover, 4, trim, NULL);
	else
		put(mover, 3, delete, NULL);
}

/* The offset goes up to where everything is dealt with, and never back; "" if it does not move. */
static void
find_offset(RsMover *mover, char text[RS_STREAM_ID_SIZE])
{
	RsStreamId	offset = mover->composed.done;
	RsStreamId	held;

	text[0] = '\0';
	if (rs_held_first(mover->state, &held) && rs_redis_id_compare(&held, &offset) <= 0)
	{
		if (!rs_redis_id_previous(&held))
			return;
		offset = held;
	}
	if (rs_redis_id_compare(&offset, &mover->offset) <= 0)
		return;
	rs_redis_id_format(&offset, text);
	mover->composed.offset = offset;
}

/* Notes what stays, and counts the rest; returns the last one to be announced. */
static const RsMessage *
take_stock(RsMover *mover)
{
	const RsMessage *last = NULL;

	for (int i = 0; i < mover->chunk.nmessages; i++)
	{
		const RsMessage *message = &mover->chunk.messages[i];

		if (message->fate == RS_FATE_STAY)
		{
			rs_held_add(mover->stream, message->top, message->top != 0 ? NULL : message->server,
						&message->id);
			mover->report->held++;
			mover->prefix = false;
		}
		else if (message->fate == RS_FATE_MOVE)
		{
			mover->composed.moved++;
			last = message;
		}
		else
			mover->composed.dropped++;
	}
	return last;
}

/* Queues the transaction for the chunk, and the guard of the next one. */
static void
compose(RsMover *mover)
{
	const RsChunk *chunk = &mover->chunk;
	const char *multi[] = {"MULTI"};
	const char *exec[] = {"EXEC"};
	const char *flush[] = {"SET", mover->flush_key.text, "1"};
	char		offset[RS_STREAM_ID_SIZE];
	char		ttl[12];
	const char *extend[] = {"PEXPIRE", mover->lock_key.text, ttl};
	const RsMessage *last;

	snprintf(ttl, sizeof(ttl), "%d", RS_LOCK_TTL_MS);
	memset(&mover->composed, 0, sizeof(mover->composed));
	mover->composed.done = chunk->messages[chunk->nmessages - 1].id;
	last = take_stock(mover);
	queue(mover, 1, multi);
	put(mover, 3, extend, NULL);
	if (mover->composed.moved + mover->composed.dropped > 0)
	{
		put_probe(mover);
		for (const RsMessage *message = chunk->messages; message < last; message++)
			if (message->fate == RS_FATE_MOVE)
				put_add(mover, message);
		find_offset(mover, offset);
		put_removal(mover, last, offset);
		if (mover->state->flush)
			put(mover, 3, flush, NULL);
	}
	queue(mover, 1, exec);
	queue_guard(mover);
}

/* ---- what Redis answers ------------------------------------------------------------------- */

static bool
next_reply(RsMover *mover, bool tree, RsReply *reply)
{
	return rs_redis_next(mover->work->connection, tree, rs_timeout, reply, mover->error);
}

static RsScanEnd
refused(RsMover *mover, const char *text, size_t length)
{
	rs_work_report_error(mover->stream, RS_JOB_DELAYER, pnstrdup(text, length));
	return RS_SCAN_REFUSED;
}

/* The replies to queue_guard(). */
static RsScanEnd
check_guard(RsMover *mover)
{
	RsReply		reply;

	for (int i = 0; i < 2; i++)
	{
		if (!next_reply(mover, true, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR)
			return refused(mover, reply.text, reply.length);
	}
	return reply.type == RS_REPLY_STRING && reply.length == RS_HOLDER_SIZE - 1 &&
		memcmp(reply.text, mover->work->holder, reply.length) == 0 ? RS_SCAN_NOT : RS_SCAN_LOCKED;
}

/* The reply to EXEC. */
static RsScanEnd
check_exec(RsMover *mover, const RsReply *reply)
{
	if (reply->type == RS_REPLY_ERROR)
		return refused(mover, reply->text, reply->length);
	if (reply->type != RS_REPLY_ARRAY)
		return RS_SCAN_LOCKED;
	for (size_t i = 0; i < (size_t) reply->tree->elements; i++)
	{
		const redisReply *one = reply->tree->element[i];

		if (one->type == REDIS_REPLY_ERROR)
			return refused(mover, one->str, one->len);
	}
	return RS_SCAN_NOT;
}

/* Waits for the transaction that is under way, and the guard behind it. */
static RsScanEnd
settle(RsMover *mover)
{
	RsOutcome  *outcome = &mover->sent;
	RsScanEnd	end = RS_SCAN_NOT;
	RsReply		reply;

	if (!outcome->under_way)
		return RS_SCAN_NOT;
	outcome->under_way = false;
	for (int i = 0; i < outcome->commands + 1; i++)	/* MULTI, and what it queues */
	{
		if (!next_reply(mover, false, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR && end == RS_SCAN_NOT)
			end = refused(mover, reply.text, reply.length);
	}
	if (!next_reply(mover, true, &reply))
		return RS_SCAN_LOST;
	if (end == RS_SCAN_NOT)
		end = check_exec(mover, &reply);
	if (end != RS_SCAN_NOT)
		return end;
	mover->report->moved += outcome->moved;
	mover->report->dropped += outcome->dropped;
	rs_stats_add(RS_COUNT_MOVED, outcome->moved);
	rs_stats_add(RS_COUNT_DROPPED, outcome->dropped);
	if (outcome->offset.ms != 0 || outcome->offset.seq != 0)
		mover->offset = outcome->offset;
	if (mover->main)
	{
		mover->state->cursor = outcome->done;
		(void) rs_redis_id_next(&mover->state->cursor);
	}
	return check_guard(mover);
}

/* ---- a stretch of the stream --------------------------------------------------------------- */

/* Sends what is composed, once the transaction before it has succeeded. */
static RsScanEnd
send_composed(RsMover *mover)
{
	RsScanEnd	end = settle(mover);

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

		if (!next_reply(mover, true, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR)
			return refused(mover, reply.text, reply.length);
		more = rs_chunk_read(chunk, &reply);
		rs_chunk_judge(chunk, mover->work, mover->state, mover->due_ms);
		turn_over = more && --mover->turn <= 0;
		more = more && !turn_over && chunk->cut == RS_CUT_NOT;
		if (more && !request(mover))
			return RS_SCAN_LOST;
		if (chunk->nmessages > 0)
			compose(mover);
		end = send_composed(mover);
		if (end != RS_SCAN_NOT)
			return end;
	}
	end = settle(mover);
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
	queue(mover, 6, words);
	if (!rs_redis_flush(mover->work->connection, rs_timeout, mover->error) ||
		!next_reply(mover, true, &reply))
		return RS_SCAN_LOST;
	if (reply.type == RS_REPLY_ERROR)
		return refused(mover, reply.text, reply.length);
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
	queue_guard(mover);
	if (!rs_redis_flush(mover->work->connection, rs_timeout, mover->error))
		return RS_SCAN_LOST;
	end = check_guard(mover);
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
