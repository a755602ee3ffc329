/*
 * turn.c
 *	  A consumer's turn: take the lock, see how far it has come, read a batch, commit.
 *
 *		begin ── refused ──► stand by: wait for the lock's list, or its TTL
 *		  │ taken
 *		  ▼
 *		check ── does not fit the stream ──► note, release, say so
 *		  │
 *		note, read ── nothing there ──► release, wait for messages
 *		  │
 *		work, extending the lock ── lost ──► what was done is not committed
 *		  │
 *		commit and release
 *
 * The offset is committed by a script that looks at the lock, so that a holder that was stopped for longer than its TTL
 * changes nothing when it goes on; and that sets no offset back.
 */
#include <stdio.h>
#include <string.h>

#include "internal.h"

/*
 * KEYS: lock, its list, offset, and perhaps a stream; ARGV: holder, id, 1 to release, milliseconds of the lock, and the
 * fields of an entry for that stream.  Ids are compared as text, digit by digit: Lua's numbers have 53 bits.  The first
 * write needs no memory, so that none of them is refused for want of it: when Redis is full, a commit is what lets the trimmer
 * make room.
 */
static const char commit_script[] =
"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end\n"
"redis.call('PEXPIRE', KEYS[1], ARGV[4])\n"
"local function parts(id)\n"
"  local ms, seq = string.match(id, '^0*(%d*)%-0*(%d*)$')\n"
"  if not ms then ms, seq = string.match(id, '^0*(%d*)$') or '', '' end\n"
"  return ms, seq\n"
"end\n"
"local function less(a, b) return #a < #b or (#a == #b and a < b) end\n"
"local old = redis.call('GET', KEYS[3])\n"
"if KEYS[4] then redis.call('XADD', KEYS[4], '*', unpack(ARGV, 5)) end\n"
"local old_ms, old_seq = parts(old or '')\n"
"local ms, seq = parts(ARGV[2])\n"
"if not old or less(old_ms, ms) or (old_ms == ms and less(old_seq, seq)) then\n"
"  redis.call('SET', KEYS[3], ARGV[2])\n"
"end\n"
"if ARGV[3] == '1' then\n"
"  redis.call('DEL', KEYS[1], KEYS[2])\n"
"  redis.call('RPUSH', KEYS[2], '1')\n"
"end\n"
"return 1\n";

/* KEYS: registry; ARGV: consumer.  A script, to get past a Redis that is full, as above. */
static const char register_script[] =
"redis.call('SREM', KEYS[1], '')\n"
"return redis.call('SADD', KEYS[1], ARGV[1])\n";

/*
 * KEYS: registry, offset, stream; ARGV: consumer, id or '$'.  Registers first: a consumer without an offset keeps the
 * trimmer waiting, an offset of nobody does not.
 */
static const char place_script[] =
"local id = ARGV[2]\n"
"if id == '$' then\n"
"  id = '0-0'\n"
"  if redis.call('EXISTS', KEYS[3]) == 1 then\n"
"    local info = redis.call('XINFO', 'STREAM', KEYS[3])\n"
"    for i = 1, #info, 2 do\n"
"      if info[i] == 'last-generated-id' then id = info[i + 1] end\n"
"    end\n"
"  end\n"
"end\n"
"redis.call('SREM', KEYS[1], '')\n"
"redis.call('SADD', KEYS[1], ARGV[1])\n"
"redis.call('SET', KEYS[2], id)\n"
"return 1\n";

/* KEYS: registry, offset. */
static const char probe_script[] =
"redis.call('SREM', KEYS[1], '')\n"
"local offset = redis.call('GET', KEYS[2])\n"
"if offset then redis.call('SET', KEYS[2], offset) end\n"
"return offset\n";

static const RsStreamId zero = {0, 0};

void
rs_redis_consumer_set(RsConsumer *consumer, const char *ns, const char *stream, const char *name,
					  const char *holder)
{
	rs_redis_stream_key(&consumer->stream, ns, stream);
	rs_redis_offset_key(&consumer->offset, ns, stream, name);
	rs_redis_consumer_lock_key(&consumer->lock, ns, stream, name);
	rs_redis_notify_key(&consumer->notify, &consumer->lock);
	rs_redis_consumers_key(&consumer->registry, ns, stream);
	rs_redis_history_key(&consumer->history, ns, stream);
	snprintf(consumer->name, sizeof(consumer->name), "%s", name);
	snprintf(consumer->stream_name, sizeof(consumer->stream_name), "%s", stream);
	snprintf(consumer->holder, sizeof(consumer->holder), "%s", holder);
}

/* ---- replies ------------------------------------------------------------------------ */

bool
rs_redis_refuse(const char *command, const RsReply *reply, bool *refused, RsError *error)
{
	*refused = true;
	if (reply->type == RS_REPLY_ERROR)
		return rs_redis_error(error, "%s: %.*s", command, (int) reply->length, reply->text);
	return rs_redis_error(error, "%s: unexpected reply", command);
}

/* Goes by the first refusal, and takes the other replies of the pipeline all the same. */
typedef struct Replies
{
	RsConnection *connection;
	int			timeout_ms;
	bool	   *refused;
	bool		lost;
	RsError    *error;
	RsReply		reply;
} Replies;

static bool
take(Replies *replies)
{
	RsError		error;

	if (replies->lost)
		return false;
	replies->lost = !rs_redis_next(replies->connection, true, replies->timeout_ms, &replies->reply, &error);
	if (replies->lost)
		*replies->error = error;
	return !replies->lost;
}

static void
refuse_once(Replies *replies, const char *command)
{
	if (!*replies->refused)
		rs_redis_refuse(command, &replies->reply, replies->refused, replies->error);
}

/* ---- the beginning ---------------------------------------------------------------------- */

static void
queue_look(RsConnection *connection, const RsConsumer *consumer)
{
	const char *take[RS_TAKE_WORDS];
	const char *ttl[] = {"PTTL", consumer->lock.text};
	const char *member[] = {"SISMEMBER", consumer->registry.text, consumer->name};
	const char *get[] = {"GET", consumer->offset.text};
	const char *history[] = {"HGETALL", consumer->history.text};
	const char *info[] = {"XINFO", "STREAM", consumer->stream.text};

	rs_redis_take_words(&consumer->lock, consumer->holder, take);
	rs_redis_queue(connection, RS_TAKE_WORDS, take, NULL);
	rs_redis_queue(connection, 2, ttl, NULL);
	rs_redis_queue(connection, 3, member, NULL);
	rs_redis_queue(connection, 2, get, NULL);
	rs_redis_queue(connection, 2, history, NULL);
	rs_redis_queue(connection, 3, info, NULL);
}

/* What it is instead can be anything. */
static bool
refuse_offset(const RsReply *reply, RsError *error)
{
	char		text[51];
	size_t		length = reply->length < sizeof(text) ? reply->length : sizeof(text) - 1;

	for (size_t i = 0; i < length; i++)
		text[i] = reply->text[i] >= ' ' && reply->text[i] <= '~' ? reply->text[i] : '?';
	text[length] = '\0';
	return rs_redis_error(error, "the committed offset is not an id: \"%s\"", text);
}

static void
hear_offset(Replies *replies, RsTurn *turn)
{
	const RsReply *reply = &replies->reply;

	turn->has_offset = reply->type == RS_REPLY_STRING;
	if (turn->has_offset && rs_redis_id_parse(reply->text, reply->length, &turn->offset))
		return;
	if (turn->has_offset && !*replies->refused)
	{
		*replies->refused = true;
		turn->bad_offset = true;
		refuse_offset(reply, replies->error);
	}
	else if (reply->type != RS_REPLY_NIL)
		refuse_once(replies, "GET");
}

/* The stream last: whatever is committed meanwhile, its last id is behind no offset. */
static void
hear_look(Replies *replies, RsTurn *turn)
{
	const RsReply *reply = &replies->reply;
	RsStreamId	refilled;

	if (take(replies) && reply->type != RS_REPLY_INTEGER)
		refuse_once(replies, "lock");
	turn->taken = !replies->lost && reply->type == RS_REPLY_INTEGER && reply->integer == 1;
	if (take(replies))
		turn->lock_ms = reply->type == RS_REPLY_INTEGER && reply->integer > 0 ? reply->integer : 0;
	if (take(replies) && reply->type != RS_REPLY_INTEGER)
		refuse_once(replies, "SISMEMBER");
	turn->registered = !replies->lost && reply->integer == 1;
	if (take(replies))
		hear_offset(replies, turn);
	if (take(replies) && !rs_redis_history_read(reply, &turn->history))
		refuse_once(replies, "HGETALL");
	if (take(replies) && !rs_redis_stream_read(reply, &turn->stream))
		refuse_once(replies, "XINFO STREAM");
	turn->refill = rs_redis_stream_refilled(&turn->stream, &turn->history, &refilled);
	if (turn->refill)
	{
		turn->history.has_refilled = true;
		turn->history.refilled = refilled;
	}
}

bool
rs_redis_turn_begin(RsConnection *connection, const RsConsumer *consumer, int timeout_ms,
					RsTurn *turn, bool *refused, RsError *error)
{
	Replies		replies = {.connection = connection,.timeout_ms = timeout_ms,.refused = refused,
	.error = error};

	memset(turn, 0, sizeof(*turn));
	*refused = false;
	queue_look(connection, consumer);
	if (!rs_redis_flush(connection, timeout_ms, error))
		return false;
	hear_look(&replies, turn);
	if (replies.lost)
		*refused = false;
	return !replies.lost && !*refused;
}

bool
rs_redis_turn_check(const RsTurn *turn, const RsStreamId *offset, RsError *error)
{
	const RsStreamState *stream = &turn->stream;
	char		committed[RS_STREAM_ID_SIZE];
	char		other[RS_STREAM_ID_SIZE];

	if (rs_redis_id_compare(offset, &zero) == 0)
		return true;
	rs_redis_id_format(offset, committed);
	if (!stream->exists)
		return rs_redis_error(error, "the offset is %s, but the stream does not exist: it was deleted, or Redis has lost it",
							  committed);
	rs_redis_id_format(&stream->last, other);
	if (rs_redis_id_compare(&stream->last, offset) < 0)
		return rs_redis_error(error, "the offset %s is ahead of the stream, whose last id is %s: the stream was deleted, Redis has an older state of it, or a clock was set back",
							  committed, other);
	rs_redis_id_format(&turn->history.refilled, other);
	if (turn->history.has_refilled && rs_redis_id_compare(offset, &turn->history.refilled) < 0)
		return rs_redis_error(error, "the stream was deleted and filled again, from %s on, after the offset %s: messages in between may be lost",
							  other, committed);
	return true;
}

bool
rs_redis_turn_note(RsConnection *connection, const RsConsumer *consumer, const RsTurn *turn,
				   bool registers, int timeout_ms, bool *refused, RsError *error)
{
	const char *add[] = {"EVAL", register_script, "1", consumer->registry.text, consumer->name};
	const char *words[RS_HISTORY_WORDS + 8];
	RsHistoryChanges changes;
	Replies		replies = {.connection = connection,.timeout_ms = timeout_ms,.refused = refused,
	.error = error};
	bool		adds = registers && !turn->registered;

	*refused = false;
	rs_redis_history_changes(&turn->stream, &turn->history,
							 turn->refill ? &turn->history.refilled : NULL, &changes);
	if (!adds && changes.count == 0)
		return true;
	if (adds)
		rs_redis_queue(connection, 5, add, NULL);
	if (changes.count > 0)
	{
		rs_redis_history_words(&consumer->history, words);
		memcpy(words + RS_HISTORY_WORDS, changes.words, (size_t) changes.count * sizeof(char *));
		rs_redis_queue(connection, RS_HISTORY_WORDS + changes.count, words, NULL);
	}
	if (!rs_redis_flush(connection, timeout_ms, error))
		return false;
	if (adds && take(&replies) && replies.reply.type != RS_REPLY_INTEGER)
		refuse_once(&replies, "register");

	/* A history that cannot be written is noticed again, and no reason not to read. */
	if (changes.count > 0)
		(void) take(&replies);
	if (replies.lost)
		*refused = false;
	return !replies.lost && !*refused;
}

/* ---- the end -------------------------------------------------------------------------------- */

void
rs_redis_commit_words(const RsConsumer *consumer, const char *id, bool release,
					  const char *words[RS_COMMIT_WORDS])
{
	words[0] = "EVAL";
	words[1] = commit_script;
	words[2] = "3";
	words[3] = consumer->lock.text;
	words[4] = consumer->notify.text;
	words[5] = consumer->offset.text;
	words[6] = consumer->holder;
	words[7] = id;
	words[8] = release ? "1" : "0";
	words[9] = RS_TEXT(RS_LOCK_TTL_MS);
}

/* The same, and an entry for another stream. */
static void
queue_dead_letter(RsConnection *connection, const char *const commit[RS_COMMIT_WORDS],
				  const RsDeadLetter *letter)
{
	const char *words[RS_COMMIT_WORDS + 1 + RS_LETTER_WORDS];
	size_t		lengths[RS_COMMIT_WORDS + 1 + RS_LETTER_WORDS];
	int			count = 0;

	for (int i = 0; i < RS_COMMIT_WORDS; i++)
	{
		words[count++] = i == 2 ? "4" : commit[i];
		if (i == 5)
			words[count++] = letter->stream->text;
	}
	for (int i = 0; i < count; i++)
		lengths[i] = strlen(words[i]);
	for (int i = 0; i < letter->count; i++, count++)
	{
		words[count] = letter->words[i];
		lengths[count] = letter->lengths[i];
	}
	rs_redis_queue(connection, count, words, lengths);
}

/* Whom the lock's list has woken has taken its element by the time of the next command
 * (handleClientsBlockedOnKeys, server.c). */
static void
queue_list_look(RsConnection *connection, const RsConsumer *consumer)
{
	const char *words[] = {"EXISTS", consumer->notify.text};

	rs_redis_queue(connection, 2, words, NULL);
}

/* Takes the reply of a script that says 1 or 0, and with "handed_over" that to queue_list_look(). */
static bool
hear_end(Replies *replies, const char *command, bool *done, bool *handed_over)
{
	const RsReply *reply = &replies->reply;

	if (take(replies) && reply->type != RS_REPLY_INTEGER)
		refuse_once(replies, command);
	*done = !replies->lost && reply->type == RS_REPLY_INTEGER && reply->integer == 1;
	if (handed_over != NULL)
		*handed_over = take(replies) && *done && reply->type == RS_REPLY_INTEGER &&
			reply->integer == 0;
	if (replies->lost)
		*replies->refused = false;
	return !replies->lost && !*replies->refused;
}

bool
rs_redis_turn_commit(RsConnection *connection, const RsConsumer *consumer, const RsStreamId *id,
					 const RsDeadLetter *letter, bool *handed_over, int timeout_ms, bool *committed,
					 bool *refused, RsError *error)
{
	Replies		replies = {.connection = connection,.timeout_ms = timeout_ms,.refused = refused,
	.error = error};
	const char *words[RS_COMMIT_WORDS];
	char		text[RS_STREAM_ID_SIZE];

	*refused = false;
	rs_redis_id_format(id, text);
	rs_redis_commit_words(consumer, text, handed_over != NULL, words);
	if (letter != NULL)
		queue_dead_letter(connection, words, letter);
	else
		rs_redis_queue(connection, RS_COMMIT_WORDS, words, NULL);
	if (handed_over != NULL)
		queue_list_look(connection, consumer);
	return rs_redis_flush(connection, timeout_ms, error) &&
		hear_end(&replies, "commit", committed, handed_over);
}

bool
rs_redis_turn_release(RsConnection *connection, const RsConsumer *consumer, bool *handed_over,
					  int timeout_ms, bool *refused, RsError *error)
{
	Replies		replies = {.connection = connection,.timeout_ms = timeout_ms,.refused = refused,
	.error = error};
	const char *words[RS_RELEASE_WORDS];
	bool		released;

	*refused = false;
	rs_redis_release_words(&consumer->lock, &consumer->notify, consumer->holder, words);
	rs_redis_queue(connection, RS_RELEASE_WORDS, words, NULL);
	queue_list_look(connection, consumer);
	return rs_redis_flush(connection, timeout_ms, error) &&
		hear_end(&replies, "release", &released, handed_over);
}

bool
rs_redis_turn_stand_by(RsConnection *connection, const RsConsumer *consumer, int wait_ms,
					   int timeout_ms, bool *refused, RsError *error)
{
	char		seconds[24];
	const char *words[] = {"BRPOP", consumer->notify.text, seconds};
	RsReply		reply;

	*refused = false;
	if (wait_ms < 1)
		wait_ms = 1;			/* 0 is for ever */
	snprintf(seconds, sizeof(seconds), "%d.%03d", wait_ms / 1000, wait_ms % 1000);
	if (!rs_redis_command(connection, 3, words, NULL, wait_ms + timeout_ms, &reply, error))
		return false;
	if (reply.type != RS_REPLY_ARRAY && reply.type != RS_REPLY_NIL)
		return rs_redis_refuse("BRPOP", &reply, refused, error);
	return true;
}

void
rs_redis_probe_words(const RsConsumer *consumer, const char *words[RS_PROBE_WORDS])
{
	words[0] = "EVAL";
	words[1] = probe_script;
	words[2] = "2";
	words[3] = consumer->registry.text;
	words[4] = consumer->offset.text;
}

void
rs_redis_place_words(const RsConsumer *consumer, const char *id, const char *words[RS_PLACE_WORDS])
{
	words[0] = "EVAL";
	words[1] = place_script;
	words[2] = "3";
	words[3] = consumer->registry.text;
	words[4] = consumer->offset.text;
	words[5] = consumer->stream.text;
	words[6] = consumer->name;
	words[7] = id;
}
