/*
 * chunk.c
 *	  Reads messages of a delay stream, and decides what is to become of each.
 *
 * src/README.md draws it.  By the xact field of the protocol: of this server's messages PostgreSQL says
 * whether their transaction is running (they stay), was rolled back (they go) or committed; another server
 * that is there sees to its own; all others go by age.
 *
 * Messages must not overtake each other: an old payload announced after a newer one of the same row would be
 * the last word on it.
 *
 * - A message of ours moves only when the transaction's main messages are out of the main lane: acknowledged, or
 *   not to be expected any more.  (Else an older one could still come behind it, and a publication would not
 *   find it.)
 * - All messages of a pass are judged as if at one moment, after the moment up to which they are due.
 *   When a transaction that some of them stay for ends meanwhile, the pass begins anew: behind what it
 *   left there may be more of its own, or of who waited for its locks.
 * - With redstream.repeat = unconfirmed, confirmed messages are removed only.  When one has to be announced all
 *   the same, those behind it must not stay unannounced: then all that is committed is announced, due or not,
 *   up to the end of the delay stream (a "flush").  What is written later has its main
 *   message later, too.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "port/atomics.h"

#include "identity.h"
#include "settings.h"
#include "transport/transport.h"
#include "worker/chunk.h"

#define CHUNK_BYTES (256 * 1024)	/* aimed at: a millisecond or two of Redis */
#define REPLY_BYTES (1024 * 1024)	/* at most, if all messages were as large as the largest */
#define XACT_PREFIX "xact:"

/* ---- reading --------------------------------------------------------------------------- */

void
rs_chunk_request(RsChunk *chunk, RsConnection *connection, const RsKey *delay_key)
{
	char		from[RS_STREAM_ID_SIZE];
	char		to[RS_STREAM_ID_SIZE];
	char		count[12];
	const char *words[] = {"XRANGE", delay_key->text, from, to, "COUNT", count};

	rs_redis_id_format(&chunk->next, from);
	rs_redis_id_format(&chunk->last, to);
	snprintf(count, sizeof(count), "%u", chunk->count);
	chunk->requested = chunk->count;
	rs_redis_queue(connection, 6, words, NULL);
}

static bool
is(const redisReply *text, const char *expected, size_t length)
{
	return text->type == REDIS_REPLY_STRING && (size_t) text->len == length &&
		memcmp(text->str, expected, length) == 0;
}

/* Is "<system identifier>:<timeline>" this server on another timeline? */
static bool
is_ancestral(const char *server)
{
	const char *ours = rs_identity_server();
	size_t		system = strcspn(ours, ":") + 1;

	return strncmp(server, ours, system) == 0;
}

/* Whose transaction made the message. */
static void
read_xact(RsMessage *message, const redisReply *name, const redisReply *value)
{
	const char *ours = rs_identity_xact_field();
	size_t		prefix = strlen(XACT_PREFIX);

	if ((size_t) name->len <= prefix || memcmp(name->str, XACT_PREFIX, prefix) != 0)
		return;
	message->xid = strtou64(value->str, NULL, 10);
	message->ours = is(name, ours, strlen(ours));
	if (!message->ours && (size_t) name->len - prefix < sizeof(message->server))
	{
		strlcpy(message->server, name->str + prefix, sizeof(message->server));
		message->ancestral = is_ancestral(message->server);
	}
}

/* Returns the bytes of its fields. */
static size_t
read_message(RsMessage *message, const redisReply *entry)
{
	const redisReply *fields = entry->element[1];
	size_t		bytes = 0;

	memset(message, 0, offsetof(RsMessage, server) + 1);
	(void) rs_redis_id_parse(entry->element[0]->str, entry->element[0]->len, &message->id);
	for (size_t i = 0; i + 1 < (size_t) fields->elements; i += 2)
	{
		const redisReply *name = fields->element[i];
		const redisReply *value = fields->element[i + 1];

		bytes += name->len + value->len;
		if (is(name, "payload", 7))
		{
			message->payload = value->str;
			message->length = value->len;
		}
		else
			read_xact(message, name, value);
	}
	return bytes;
}

/*
 * Asks for as many next time as make a chunk of the wanted size, judging by those just
 * read, and for fewer if all of them could be as large as the largest so far.
 */
static void
adapt_count(RsChunk *chunk, size_t bytes)
{
	size_t		average = bytes / Max(chunk->nmessages, 1);
	size_t		wanted = CHUNK_BYTES / Max(average, 1);
	size_t		allowed = REPLY_BYTES / Max(chunk->largest, 1);

	wanted = Min(Min(wanted, allowed), Min(chunk->count * 4, RS_CHUNK_MAX));
	chunk->count = Max(wanted, 1);
}

bool
rs_chunk_read(RsChunk *chunk, const RsReply *reply)
{
	size_t		count = reply->type == RS_REPLY_ARRAY ? reply->tree->elements : 0;
	size_t		bytes = 0;

	chunk->nmessages = 0;
	for (size_t i = 0; i < count; i++)
	{
		size_t		size = read_message(&chunk->messages[chunk->nmessages++],
										reply->tree->element[i]);

		bytes += size;
		chunk->largest = Max(chunk->largest, size);
	}
	chunk->nread = chunk->nmessages;
	if (count < chunk->requested)
		return false;
	chunk->next = chunk->messages[count - 1].id;
	adapt_count(chunk, bytes);
	return rs_redis_id_next(&chunk->next) && rs_redis_id_compare(&chunk->next, &chunk->last) <= 0;
}

/* ---- judging ---------------------------------------------------------------------------- */

static void
judge_ours(RsMessage *message, const RsMessage *before, const RsWork *work)
{
	bool		same = before != NULL && before->ours && before->xid == message->xid;

	message->verdict = same ? before->verdict : rs_verdict(message->xid, &message->top);
	if (same)
		message->top = before->top;
	pg_read_barrier();			/* the verdict, then what is known of lives: that was corrected before the commit, if the clock was set back */
	if (message->verdict == RS_VERDICT_RUNNING)
		message->fate = RS_FATE_STAY;
	else if (rs_transport_is_forgotten(message->xid, message->id.ms))	/* rolled back, unless not all commits are waited for */
		message->fate = work->async ? RS_FATE_MOVE : RS_FATE_DROP;
	else if (message->verdict == RS_VERDICT_UNKNOWN)
		message->fate = RS_FATE_MOVE;
	else
		message->fate = message->verdict == RS_VERDICT_COMMITTED ? RS_FATE_COMMITTED : RS_FATE_DROP;
}

/* Is it of the server that this one was a standby of? */
static bool
is_predecessors(const RsMessage *message)
{
	const char *ours = strchr(rs_identity_server(), ':') + 1;

	return message->ancestral &&
		strtoul(strchr(message->server, ':') + 1, NULL, 10) < strtoul(ours, NULL, 10);
}

/*
 * Messages of others are moved by age alone, unless their own server is there.  What runs under the id of an
 * ancestor's transaction can only be that one, prepared before the timelines parted.
 *
 * A predecessor that has died counts as there for RS_SERVER_TTL_S.  What comes behind its messages may be about the same rows, and
 * newer: it waits for as long, or the older one would be the last word.
 */
static RsCut
judge_other(RsMessage *message, RsWork *work, const RsDelayState *state, int64 due_ms)
{
	RsServerLife life = message->server[0] == '\0' ? RS_SERVER_GONE :
		rs_server_life(work, message->server);
	bool		waits = message->ancestral &&
		rs_verdict(message->xid, &message->top) == RS_VERDICT_RUNNING;
	bool		due = (int64) message->id.ms <= due_ms;

	if (life == RS_SERVER_UNKNOWN)
	{
		rs_server_note(work, message->server);
		return RS_CUT_SERVER;
	}
	if (!due && !state->flush)
		return RS_CUT_DUE;
	if (life == RS_SERVER_ALIVE && is_predecessors(message))
		return RS_CUT_PREDECESSOR;
	message->fate = waits || !due || life == RS_SERVER_ALIVE ? RS_FATE_STAY : RS_FATE_MOVE;
	return RS_CUT_NOT;
}

static void
judge_all(RsChunk *chunk, RsWork *work, const RsDelayState *state, int64 due_ms)
{
	chunk->cut = RS_CUT_NOT;
	for (int i = 0; i < chunk->nmessages; i++)
	{
		RsMessage  *message = &chunk->messages[i];

		if (message->ours)
			judge_ours(message, i > 0 ? message - 1 : NULL, work);
		else
			chunk->cut = judge_other(message, work, state, due_ms);
		if (chunk->cut != RS_CUT_NOT)
			chunk->nmessages = i;
	}
}

/* Do all transactions that messages stay for still run, those of this chunk and those that were held before? */
static bool
is_consistent(const RsChunk *chunk, const RsDelayState *state)
{
	uint64		last = 0;
	uint64		ignored;

	for (int i = 0; i < chunk->nmessages; i++)
	{
		uint64		top = chunk->messages[i].top;

		if (chunk->messages[i].fate != RS_FATE_STAY || top == 0 || top == last)
			continue;
		if (rs_verdict(top, &ignored) != RS_VERDICT_RUNNING)
			return false;
		last = top;
	}
	return !rs_held_has_ended(state);
}

/* Cuts the chunk where a committed message's main message may still be on its way. */
static void
cut_at_lane(RsChunk *chunk, RsWork *work, uint64 oldest_running)
{
	for (int i = 0; i < chunk->nmessages; i++)
	{
		const RsMessage *message = &chunk->messages[i];

		if (message->fate != RS_FATE_COMMITTED || message->xid < work->settled)
			continue;
		if (rs_lane_await(work))
		{
			work->settled = Max(work->settled, oldest_running);
			return;
		}
		chunk->cut = RS_CUT_LANE;
		chunk->nmessages = i;
	}
}

/* Is one to be announced that is not, for certain, announced already? */
static bool
has_unconfirmed(const RsChunk *chunk, RsWork *work)
{
	rs_confirmation_refresh(work);
	for (int i = 0; i < chunk->nmessages; i++)
	{
		const RsMessage *message = &chunk->messages[i];

		if (message->fate == RS_FATE_MOVE ||
			(message->fate == RS_FATE_COMMITTED && message->xid < work->confirmation->horizon))
			return true;
	}
	return false;
}

void
rs_chunk_judge(RsChunk *chunk, RsWork *work, RsDelayState *state, int64 due_ms)
{
	RsFate		committed = RS_FATE_MOVE;
	uint64		oldest_running;

	rs_work_begin(work);
	judge_all(chunk, work, state, due_ms);
	oldest_running = rs_oldest_running();
	if (!is_consistent(chunk, state))
	{
		chunk->cut = RS_CUT_AGAIN;
		chunk->nmessages = 0;
	}
	rs_work_end(work);

	cut_at_lane(chunk, work, oldest_running);
	if (rs_repeat == RS_REPEAT_UNCONFIRMED)
	{
		state->flush = state->flush || has_unconfirmed(chunk, work);
		if (!state->flush)
			committed = RS_FATE_DROP;
	}
	for (int i = 0; i < chunk->nmessages; i++)
	{
		RsMessage  *message = &chunk->messages[i];

		if (message->fate == RS_FATE_COMMITTED)
			message->fate = committed;
		if (message->fate == RS_FATE_MOVE && message->payload == NULL)
			message->fate = RS_FATE_DROP;
	}
}
