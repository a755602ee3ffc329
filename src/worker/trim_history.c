/*
 * trim_history.c
 *	  What trimmers remember of a stream, in a hash in Redis, and what they tell in the log.
 *
 *		last, added, gone, refilled		what redis/stream.c says; "refilled" goes when no consumer is left behind it
 *		lost:<consumer>		messages that expired before the consumer had read them, ever
 *		ahead:<consumer>	it is in the log that its offset is ahead of the stream
 *		losing:<consumer>	it is in the log that it loses messages; goes when it has caught up
 *
 * The marks make a warning come once for each occurrence, whichever trimmer meets it.
 * Two trimmers may write at the same time, without a lock: each writes what was true a moment ago, and
 * a history that is a moment old again only makes the next look compare with that.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "settings.h"
#include "stats.h"
#include "worker/trim.h"

/* ---- changes ----------------------------------------------------------------------------- */

static List *
set(List *changes, const char *field, const char *value)
{
	return lappend(lappend(changes, (void *) field), (void *) value);
}

static List *
clear(List *changes, const char *field)
{
	return set(changes, field, "");
}

static void
queue_changes(RsWork *work, const RsTrimLook *look, List *changes)
{
	const char **words = palloc((RS_HISTORY_WORDS + list_length(changes)) * sizeof(char *));
	int			count = RS_HISTORY_WORDS;
	RsKey		key;
	ListCell   *cell;

	rs_redis_history_key(&key, rs_namespace, look->stream->name);
	rs_redis_history_words(&key, words);
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
	rs_redis_id_format(&look->state.last, last);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 look->state.exists ?
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
		  rs_redis_id_compare(&consumer->offset, &look->state.last) >= 0));
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
		if (look->state.exists && consumer->losing_told && has_caught_up(look, consumer))
			changes = clear(changes, psprintf("losing:%s", consumer->name));
	}
	foreach(cell, look->strays)
		changes = clear(changes, lfirst(cell));
	return changes;
}

static List *
note_stream(List *changes, const RsTrimLook *look)
{
	RsHistoryChanges *noted = palloc(sizeof(RsHistoryChanges));
	bool		tells = look->refill && look->has_refilled;

	rs_redis_history_changes(&look->state, &look->history, tells ? &look->refilled : NULL, noted);
	for (int i = 0; i < noted->count; i++)
		changes = lappend(changes, (void *) noted->words[i]);
	if (tells)
		tell_refilled(look);
	if (look->state.exists && !look->has_refilled && look->history.has_refilled)
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
