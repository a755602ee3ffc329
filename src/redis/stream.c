/*
 * stream.c
 *	  What Redis says of a stream, and what trimmers and consumers remember of it.
 *
 * A stream that was deleted and filled again looks like any other: its ids are newer than every
 * offset, and what was lost is silent.  So whoever looks at a stream leaves in a hash what it saw:
 *
 *		last		the stream's last-generated-id
 *		added		its entries-added; Redis 7
 *		gone		there was no stream at the last look, but an earlier one had seen it
 *		refilled	it was deleted and filled again: the first id of its new life
 *
 * It was filled again if its last id went back; if it was gone; or, since Redis 7 counts the entries ever added, if that
 * number went back, or if all entries are newer than the last id that was seen and yet fewer have been removed
 * than had been added by then.  What cannot be noticed:
 *
 * - on Redis 6.2, which does not count: a stream deleted and filled again between two looks with ids newer
 *	 than before, which is what a clock gives;
 * - on any: a stream that in its new life has lost at least as many entries as it had had in the old one,
 *	 between two looks;
 * - a consumer whose offset, of the old life, lies among the ids of the new one: only with a
 *	 clock set back or ids chosen by hand.
 *
 * Histories are written without a lock: each writer says what was true a moment ago, and who looks next compares with
 * that.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/*
 * KEYS: history; ARGV: field and value ("": none), again and again.  Once a script has run a write that needs no
 * memory, Redis refuses it none of the others for want of memory (scriptVerifyOOM, script.c): it may be a trimmer that
 * writes this, to make room.
 */
static const char change_script[] =
"redis.call('HDEL', KEYS[1], '')\n"
"for i = 1, #ARGV, 2 do\n"
"  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])\n"
"  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end\n"
"end\n"
"return 1\n";

/* ---- replies ------------------------------------------------------------------------ */

const redisReply *
rs_redis_value(const redisReply *pairs, const char *name)
{
	for (size_t i = 0; i + 1 < (size_t) pairs->elements; i += 2)
		if (pairs->element[i]->str != NULL && strcmp(pairs->element[i]->str, name) == 0)
			return pairs->element[i + 1];
	return NULL;
}

bool
rs_redis_value_id(const redisReply *value, RsStreamId *id)
{
	return value != NULL && value->type == REDIS_REPLY_STRING &&
		rs_redis_id_parse(value->str, (size_t) value->len, id);
}

bool
rs_redis_value_integer(const redisReply *value, int64_t *integer)
{
	if (value == NULL || value->type != REDIS_REPLY_INTEGER)
		return false;
	*integer = value->integer;
	return true;
}

bool
rs_redis_error_is(const RsReply *reply, const char *code)
{
	return reply->type == RS_REPLY_ERROR && reply->length >= strlen(code) &&
		memcmp(reply->text, code, strlen(code)) == 0;
}

/* An entry of XINFO's reply: its id, and its size if it is larger than the size known so far. */
static bool
read_entry(const redisReply *entry, RsStreamId *id, size_t *entry_bytes)
{
	size_t		bytes = 0;

	if (entry == NULL || entry->type != REDIS_REPLY_ARRAY || entry->elements != 2 ||
		!rs_redis_value_id(entry->element[0], id))
		return false;
	for (size_t i = 0; i < (size_t) entry->element[1]->elements; i++)
		bytes += (size_t) entry->element[1]->element[i]->len;
	if (*entry_bytes < bytes)
		*entry_bytes = bytes;
	return true;
}

/* Entries-added is Redis 7's. */
bool
rs_redis_stream_read(const RsReply *reply, RsStreamState *state)
{
	int64_t		length;
	int64_t		added;

	memset(state, 0, sizeof(*state));
	if (rs_redis_error_is(reply, RS_NO_SUCH_KEY))
		return true;
	if (reply->type != RS_REPLY_ARRAY ||
		!rs_redis_value_integer(rs_redis_value(reply->tree, "length"), &length) ||
		!rs_redis_value_id(rs_redis_value(reply->tree, "last-generated-id"), &state->last))
		return false;
	state->exists = true;
	state->length = (uint64_t) length;
	state->has_added = rs_redis_value_integer(rs_redis_value(reply->tree, "entries-added"), &added);
	if (state->has_added)
		state->added = (uint64_t) added;
	state->has_first =
		read_entry(rs_redis_value(reply->tree, "first-entry"), &state->first, &state->entry_bytes) &&
		read_entry(rs_redis_value(reply->tree, "last-entry"), &state->last_entry,
				   &state->entry_bytes);
	return true;
}

bool
rs_redis_history_read(const RsReply *reply, RsStreamHistory *history)
{
	const redisReply *added;

	memset(history, 0, sizeof(*history));
	if (reply->type != RS_REPLY_ARRAY)
		return false;
	history->known = rs_redis_value_id(rs_redis_value(reply->tree, "last"), &history->last);
	history->has_refilled = rs_redis_value_id(rs_redis_value(reply->tree, "refilled"),
											  &history->refilled);
	history->gone = rs_redis_value(reply->tree, "gone") != NULL;
	added = rs_redis_value(reply->tree, "added");
	history->has_added = added != NULL && added->type == REDIS_REPLY_STRING;
	if (history->has_added)
		history->added = strtoull(added->str, NULL, 10);
	return true;
}

/* ---- another life --------------------------------------------------------------------- */

static bool
is_refilled(const RsStreamState *state, const RsStreamHistory *history)
{
	bool		counted = state->has_added && history->has_added;
	bool		all_newer = state->has_first &&
		rs_redis_id_compare(&history->last, &state->first) < 0;

	if (!state->exists || !history->known)
		return false;
	if (rs_redis_id_compare(&state->last, &history->last) < 0 ||
		(counted && state->added < history->added))
		return true;
	/* A key that was away, renamed say, may come back as it was. */
	if (history->gone && (all_newer || !state->has_first))
		return true;
	return counted && all_newer && state->added - state->length < history->added;
}

bool
rs_redis_stream_refilled(const RsStreamState *state, const RsStreamHistory *history,
						 RsStreamId *refilled)
{
	if (!is_refilled(state, history))
		return false;
	*refilled = state->has_first ? state->first : state->last;
	if (!state->has_first)
		(void) rs_redis_id_next(refilled);
	return true;
}

/* ---- the history ------------------------------------------------------------------------ */

static void
change(RsHistoryChanges *changes, const char *field, const char *value)
{
	changes->words[changes->count++] = field;
	changes->words[changes->count++] = value;
}

static void
change_id(RsHistoryChanges *changes, const char *field, char *text, const RsStreamId *id)
{
	rs_redis_id_format(id, text);
	change(changes, field, text);
}

void
rs_redis_history_changes(const RsStreamState *state, const RsStreamHistory *history,
						 const RsStreamId *refilled, RsHistoryChanges *changes)
{
	changes->count = 0;
	if (!state->exists)
	{
		if (history->known && !history->gone)
			change(changes, "gone", "1");
		return;
	}
	if (history->gone)
		change(changes, "gone", "");
	if (!history->known || rs_redis_id_compare(&state->last, &history->last) != 0)
		change_id(changes, "last", changes->texts[0], &state->last);
	if (state->has_added && (!history->has_added || state->added != history->added))
	{
		snprintf(changes->texts[1], sizeof(changes->texts[1]), "%" PRIu64, state->added);
		change(changes, "added", changes->texts[1]);
	}
	if (!state->has_added && history->has_added)
		change(changes, "added", "");
	if (refilled != NULL)
		change_id(changes, "refilled", changes->texts[2], refilled);
}

void
rs_redis_history_words(const RsKey *history, const char *words[RS_HISTORY_WORDS])
{
	words[0] = "EVAL";
	words[1] = change_script;
	words[2] = "1";
	words[3] = history->text;
}
