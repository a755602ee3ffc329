/*
 * chunk.c
 *	  Reads messages of a delay stream, and decides what is to become of each.
 *
 * src/README.md draws it.  By the xact field of the protocol: of this server's messages PostgreSQL says whether their
 * transaction is running (they stay), was rolled back (they go) or committed; another
 * server that is there sees to its own; all others go by age.
 *
 * With redstream.repeat = unconfirmed, confirmed messages are removed only.  When one has to be announced
 * all the same, those behind it must not stay unannounced, or an old message would be the
 * last word on a row: then all that is committed is announced, due or not, up to the end of
 * the delay stream (a "flush").  What is written later has its main message later, too.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "identity.h"
#include "settings.h"
#include "transport/transport.h"
#include "worker/chunk.h"

#define CHUNK_BYTES (256 * 1024)	/* aimed at: a millisecond or two of Redis */
#define REPLY_BYTES (4 * 1024 * 1024)	/* if all messages were as large as the largest */
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

/* Whose transaction made the message. */
static void
read_xact(RsMessage *message, const redisReply *name, const redisReply *value)
{
	const char *ours = rs_identity_xact_field();
	size_t		prefix = strlen(XACT_PREFIX);

	if ((size_t) name->len <= prefix || memcmp(name->str, XACT_PREFIX, prefix) != 0)
		return;
	if (is(name, ours, strlen(ours)))
	{
		message->ours = true;
		message->xid = strtou64(value->str, NULL, 10);
	}
	else if ((size_t) name->len - prefix < sizeof(message->server))
		strlcpy(message->server, name->str + prefix, sizeof(message->server));
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
	/* After a crash: rolled back, unless there are commits that nobody waited for. */
	if (rs_transport_is_forgotten(message->xid, message->id.ms))
	{
		message->fate = work->async ? RS_FATE_MOVE : RS_FATE_DROP;
		return;
	}
	if (before != NULL && before->ours && before->xid == message->xid &&
		!rs_transport_is_forgotten(before->xid, before->id.ms))
	{
		message->fate = before->fate;
		message->top = before->top;
		return;
	}
	switch (rs_verdict(message->xid, &message->top))
	{
		case RS_VERDICT_RUNNING:
			message->fate = RS_FATE_STAY;
			break;
		case RS_VERDICT_ABORTED:
			message->fate = RS_FATE_DROP;
			break;
		case RS_VERDICT_COMMITTED:
			message->fate = RS_FATE_CONFIRMED;
			break;
		case RS_VERDICT_UNKNOWN:
			message->fate = RS_FATE_MOVE;
			break;
	}
}

/* Messages of others are moved by age alone, unless their own server is there. */
static RsCut
judge_other(RsMessage *message, RsWork *work, int64 due_ms)
{
	RsServerLife life = message->server[0] == '\0' ? RS_SERVER_GONE :
		rs_server_life(work, message->server);

	if ((int64) message->id.ms > due_ms)
		return RS_CUT_DUE;
	if (life == RS_SERVER_UNKNOWN)
	{
		rs_server_note(work, message->server);
		return RS_CUT_SERVER;
	}
	message->fate = life == RS_SERVER_ALIVE ? RS_FATE_STAY : RS_FATE_MOVE;
	return RS_CUT_NOT;
}

static void
judge_all(RsChunk *chunk, RsWork *work, int64 due_ms)
{
	chunk->cut = RS_CUT_NOT;
	for (int i = 0; i < chunk->nmessages; i++)
	{
		RsMessage  *message = &chunk->messages[i];

		if (message->ours)
			judge_ours(message, i > 0 ? message - 1 : NULL, work);
		else
			chunk->cut = judge_other(message, work, due_ms);
		if (chunk->cut != RS_CUT_NOT)
			chunk->nmessages = i;
	}
}

/* Is one of ours to be announced that is not, for certain, announced already?  Cuts the chunk where it
 * cannot be said yet. */
static bool
has_unconfirmed(RsChunk *chunk, RsWork *work)
{
	bool		certain = false;

	for (int i = 0; i < chunk->nmessages; i++)
	{
		const RsMessage *message = &chunk->messages[i];

		if (message->ours && message->fate == RS_FATE_MOVE)
			return true;
		if (message->fate != RS_FATE_CONFIRMED)
			continue;
		if (message->xid >= work->confirmation->horizon && !certain &&
			!(certain = rs_confirmation_await(work)))
		{
			chunk->cut = RS_CUT_DUE;
			chunk->nmessages = i;
		}
		else if (message->xid < work->confirmation->horizon)
			return true;
	}
	return false;
}

void
rs_chunk_judge(RsChunk *chunk, RsWork *work, int64 due_ms, bool *flush)
{
	RsFate		committed = RS_FATE_MOVE;

	rs_work_begin(work);
	judge_all(chunk, work, due_ms);
	rs_work_end(work);
	if (rs_repeat == RS_REPEAT_UNCONFIRMED)
	{
		*flush = *flush || has_unconfirmed(chunk, work);
		if (!*flush)
			committed = RS_FATE_DROP;
	}
	for (int i = 0; i < chunk->nmessages; i++)
	{
		RsMessage  *message = &chunk->messages[i];

		if (message->fate == RS_FATE_CONFIRMED)
			message->fate = committed;
		if (message->fate == RS_FATE_MOVE && message->payload == NULL)
			message->fate = RS_FATE_DROP;
	}
}
