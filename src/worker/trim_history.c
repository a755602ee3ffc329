/*
 * trim_history.c
 *	  What trimmers remember of a stream, in a hash in Redis, and what they tell in the log.
 *
 *		last		the stream's last-generated-id at the last look
 *		added		its entries-added then; Redis 7
 *		gone		there was no stream at the last look, but an earlier one had seen it
 *		refilled	it was deleted and filled again: the first id of its new life.  Goes when no
 *					consumer is left behind it
 *		lost:<consumer>		messages that expired before the consumer had read them, ever
 *		ahead:<consumer>	it is in the log that its offset is ahead of the stream
 *		losing:<consumer>	it is in the log that it loses messages; goes when it has caught up
 *
 * The marks make a warning come once for each occurrence, whichever trimmer meets it.
 * Two trimmers may write at the same time, without a lock: each writes what was true a moment ago, and
 * a history that is a moment old again only makes the next look compare with that.
 *
 * Changes are written by a script, since that gets past a Redis that is full: it may be trimming
 * that makes room.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "settings.h"
#include "stats.h"
#include "worker/trim.h"

/*
 * KEYS: history; ARGV: field and value ("": none), again and again.  The first write needs no memory,
 * see trim_cut.c.
 */
static const char change_script[] =
"redis.call('HDEL', KEYS[1], '')\n"
"for i = 1, #ARGV, 2 do\n"
"  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])\n"
"  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end\n"
"end\n"
"return 1\n";

/* ---- changes ----------------------------------------------------------------------------- */

static List *
set(List *changes, const char *field, const char *value)
{
	return lappend(lappend(changes, (void *) field), (void *) value);
}

static List *
set_id(List *changes, const char *field, const RsStreamId *id)
{
	char		text[RS_STREAM_ID_SIZE];

	rs_redis_id_format(id, text);
	return set(changes, field, pstrdup(text));
}

static List *
clear(List *changes, const char *field)
{
	return set(changes, field, "");
}

static void
queue_changes(RsWork *work, const RsTrimLook *look, List *changes)
{
	const char **words = palloc((4 + list_length(changes)) * sizeof(char *));
	int			count = 0;
	RsKey		key;
	ListCell   *cell;

	rs_redis_history_key(&key, rs_namespace, look->stream->name);
	words[count++] = "EVAL";
	words[count++] = change_script;
	words[count++] = "1";
	words[count++] = key.text;
	foreach(cell, changes)
		words[count++] = lfirst(cell);
	rs_redis_queue(work->connection, count, words, NULL);
	pfree(words);
}

/* Not a reason to leave the stream untrimmed: what could not be remembered is noticed again. */
static bool
hear_change(RsWork *work, RsTrimLook *look, RsError *error)
{
	RsReply		reply;

	if (!rs_trim_next(work, &reply, error))
		return false;
	if (reply.type == RS_REPLY_ERROR)
		rs_work_report_error(look->stream, RS_JOB_TRIMMER,
							 psprintf("history: %.*s", (int) reply.length, reply.text));
	return true;
}

/* ---- the log ----------------------------------------------------------------------------- */

/* A name out of Redis, fit for the log. */
static const char *
shown(const char *name)
{
	char	   *copy;

	if (GetDatabaseEncoding() == PG_UTF8 && pg_verify_mbstr(PG_UTF8, name, strlen(name), true))
		return name;
	copy = pstrdup(name);
	for (char *c = copy; *c != '\0'; c++)
		if (IS_HIGHBIT_SET(*c))
			*c = '?';
	return copy;
}

static void
tell_ahead(const RsTrimLook *look, const RsTrimConsumer *consumer)
{
	char		offset[RS_STREAM_ID_SIZE];
	char		last[RS_STREAM_ID_SIZE];

	rs_redis_id_format(&consumer->offset, offset);
	rs_redis_id_format(&look->last, last);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 look->exists ?
			 errmsg("redstream trimmer: stream %s: consumer %s has committed %s, but the last id of the stream is %s",
					shown(look->stream->name), shown(consumer->name), offset, last) :
			 errmsg("redstream trimmer: stream %s: consumer %s has committed %s, but the stream does not exist",
					shown(look->stream->name), shown(consumer->name), offset),
			 errdetail("The stream was deleted, Redis has an older state of it, or a clock was set back. The consumer gets no messages up to that id, and nothing is trimmed until this is resolved, but what expires."),
			 errhint("Set the offset with redstream.commit_offset(), or drop the consumer.")));
}

static void
tell_refilled(const RsTrimLook *look)
{
	StringInfoData names;
	char		first[RS_STREAM_ID_SIZE];

	initStringInfo(&names);
	for (int i = 0; i < look->nconsumers; i++)
		if (look->consumers[i].stranded)
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", shown(look->consumers[i].name));
	rs_redis_id_format(&look->refilled, first);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("redstream trimmer: stream %s was deleted and filled again",
					shown(look->stream->name)),
			 errdetail("Messages that these consumers had not read may be lost: %s. Nothing is trimmed until they have committed %s or later, but what expires.",
					   names.data, first),
			 errhint("redstream.enqueue() announces rows again.")));
}

static void
tell_losing(const RsTrimLook *look, const RsTrimConsumer *consumer)
{
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("redstream trimmer: stream %s: consumer %s loses messages that expire before it has read them",
					shown(look->stream->name), shown(consumer->name)),
			 errhint("redstream.consumers counts them. redstream.enqueue() announces rows again.")));
}

/* ---- after a look --------------------------------------------------------------------------- */

static bool
has_caught_up(const RsTrimLook *look, const RsTrimConsumer *consumer)
{
	return !look->expires ||
		(consumer->committed &&
		 (rs_redis_id_compare(&consumer->offset, &look->expiry) >= 0 ||
		  rs_redis_id_compare(&consumer->offset, &look->last) >= 0));
}

static List *
note_consumers(List *changes, const RsTrimLook *look)
{
	ListCell   *cell;

	for (int i = 0; i < look->nconsumers; i++)
	{
		const RsTrimConsumer *consumer = &look->consumers[i];
		char	   *ahead = psprintf("ahead:%s", consumer->name);

		if (consumer->ahead && !consumer->ahead_told)
		{
			tell_ahead(look, consumer);
			changes = set(changes, ahead, "1");
		}
		if (!consumer->ahead && consumer->ahead_told)
			changes = clear(changes, ahead);
		if (look->exists && consumer->losing_told && has_caught_up(look, consumer))
			changes = clear(changes, psprintf("losing:%s", consumer->name));
	}
	foreach(cell, look->history.strays)
		changes = clear(changes, lfirst(cell));
	return changes;
}

static List *
note_stream(List *changes, const RsTrimLook *look)
{
	const RsTrimHistory *history = &look->history;

	if (!look->exists)
		return history->known && !history->gone ? set(changes, "gone", "1") : changes;
	if (history->gone)
		changes = clear(changes, "gone");
	if (!history->known || rs_redis_id_compare(&look->last, &history->last) != 0)
		changes = set_id(changes, "last", &look->last);
	if (look->has_added && (!history->has_added || look->added != history->added))
		changes = set(changes, "added", psprintf(UINT64_FORMAT, look->added));
	if (!look->has_added && history->has_added)
		changes = clear(changes, "added");
	if (look->refill && look->has_refilled)
	{
		tell_refilled(look);
		changes = set_id(changes, "refilled", &look->refilled);
	}
	if (!look->has_refilled && history->has_refilled)
		changes = clear(changes, "refilled");
	return changes;
}

bool
rs_trim_remember(RsWork *work, List *looks, RsError *error)
{
	List	   *changed = NIL;
	ListCell   *cell;

	foreach(cell, looks)
	{
		RsTrimLook *look = lfirst(cell);
		List	   *changes;

		if (look->failed)
			continue;
		changes = note_consumers(note_stream(NIL, look), look);
		if (changes == NIL)
			continue;
		queue_changes(work, look, changes);
		changed = lappend(changed, look);
	}
	if (changed != NIL && !rs_redis_flush(work->connection, rs_timeout, error))
		return false;
	foreach(cell, changed)
		if (!hear_change(work, lfirst(cell), error))
			return false;
	return true;
}

/* ---- after a cut -------------------------------------------------------------------------------- */

bool
rs_trim_lost(RsWork *work, RsTrimLook *look, const RsStreamId *point, int64 count, RsError *error)
{
	List	   *changes = NIL;
	bool		lost = false;

	for (int i = 0; i < look->nconsumers; i++)
	{
		RsTrimConsumer *consumer = &look->consumers[i];

		if (rs_redis_id_compare(&consumer->keep, point) >= 0)
			continue;
		lost = true;
		rs_stats_add(RS_COUNT_EXPIRED, count);
		if (consumer->losing_told)
			continue;
		tell_losing(look, consumer);
		consumer->losing_told = true;
		changes = set(changes, psprintf("losing:%s", consumer->name), "1");
	}
	if (lost)
		look->stream->reports[RS_JOB_TRIMMER].expired += count;
	if (changes == NIL)
		return true;
	queue_changes(work, look, changes);
	return rs_redis_flush(work->connection, rs_timeout, error) && hear_change(work, look, error);
}
