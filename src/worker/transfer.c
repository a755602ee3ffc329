/*
 * transfer.c
 *	  Moves a chunk of messages from a delay stream to its main stream.
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
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "settings.h"
#include "stats.h"
#include "worker/mover.h"

/* KEYS: main stream, delay stream, offset; ARGV: payload, the new offset or nothing, XTRIM or XDEL, and its
 * arguments. */
static const char move_script[] =
"redis.call('XADD', KEYS[1], '*', 'payload', ARGV[1])\n"
"redis.call(ARGV[3], KEYS[2], unpack(ARGV, 4))\n"
"if ARGV[2] ~= '' then redis.call('SET', KEYS[3], ARGV[2]) end\n";

/* ---- moving ----------------------------------------------------------------------------- */

static void
queue(RsMover *mover, int count, const char *const *words)
{
	rs_redis_queue(mover->work->connection, count, words, NULL);
}

/* Asks whether the lock is ours, and has Redis watch it. */
void
rs_transfer_queue_guard(RsMover *mover)
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
void
rs_transfer_compose(RsMover *mover)
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
	rs_transfer_queue_guard(mover);
}

/* ---- what Redis answers ------------------------------------------------------------------- */

bool
rs_transfer_next(RsMover *mover, bool tree, RsReply *reply)
{
	return rs_redis_next(mover->work->connection, tree, rs_timeout, reply, mover->error);
}

RsScanEnd
rs_transfer_refused(RsMover *mover, const char *text, size_t length)
{
	rs_work_report_error(mover->stream, RS_JOB_DELAYER, pnstrdup(text, length));
	return RS_SCAN_REFUSED;
}

/* The replies to rs_transfer_queue_guard(). */
RsScanEnd
rs_transfer_check_guard(RsMover *mover)
{
	RsReply		reply;

	for (int i = 0; i < 2; i++)
	{
		if (!rs_transfer_next(mover, true, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR)
			return rs_transfer_refused(mover, reply.text, reply.length);
	}
	return reply.type == RS_REPLY_STRING && reply.length == RS_HOLDER_SIZE - 1 &&
		memcmp(reply.text, mover->work->holder, reply.length) == 0 ? RS_SCAN_NOT : RS_SCAN_LOCKED;
}

/* The reply to EXEC. */
static RsScanEnd
check_exec(RsMover *mover, const RsReply *reply)
{
	if (reply->type == RS_REPLY_ERROR)
		return rs_transfer_refused(mover, reply->text, reply->length);
	if (reply->type != RS_REPLY_ARRAY)
		return RS_SCAN_LOCKED;
	for (size_t i = 0; i < (size_t) reply->tree->elements; i++)
	{
		const redisReply *one = reply->tree->element[i];

		if (one->type == REDIS_REPLY_ERROR)
			return rs_transfer_refused(mover, one->str, one->len);
	}
	return RS_SCAN_NOT;
}

/* Waits for the transaction that is under way, and the guard behind it. */
RsScanEnd
rs_transfer_settle(RsMover *mover)
{
	RsOutcome  *outcome = &mover->sent;
	RsScanEnd	end = RS_SCAN_NOT;
	RsReply		reply;

	if (!outcome->under_way)
		return RS_SCAN_NOT;
	outcome->under_way = false;
	for (int i = 0; i < outcome->commands + 1; i++)	/* MULTI, and what it queues */
	{
		if (!rs_transfer_next(mover, false, &reply))
			return RS_SCAN_LOST;
		if (reply.type == RS_REPLY_ERROR && end == RS_SCAN_NOT)
			end = rs_transfer_refused(mover, reply.text, reply.length);
	}
	if (!rs_transfer_next(mover, true, &reply))
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
	return rs_transfer_check_guard(mover);
}
