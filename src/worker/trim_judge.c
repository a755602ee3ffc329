/*
 * trim_judge.c
 *	  What follows from a look at a stream: is it still the stream that the consumers have read,
 *	  and what of it may go.
 *
 * A consumer keeps a stream from the id after its offset, and all of it before its first
 * commit; a group from its smallest pending id or, with nothing pending, from the id after the
 * last one delivered.  By the consumers' rule everything before the smallest of these goes, and
 * nothing without any reader, or when something is wrong:
 *
 * - A consumer is ahead: its offset is behind the stream's last id, or not 0-0 though the stream is gone.
 * - A consumer is stranded: the stream was deleted and filled again, and the offset is older than that.
 *
 * That the stream was filled again shows in the history (trim_history.c): the last id went back;
 * or the stream was not there at a look; or, since Redis 7 counts the entries ever added, that number
 * went back, or all entries are newer than the last id that was seen and yet fewer have been
 * removed than had been added by then.  What cannot be noticed:
 *
 * - on Redis 6.2, which does not count: a stream deleted and filled again between two looks with ids newer
 *   than before, which is what a clock gives;
 * - on any: a stream that in its new life has lost at least as many entries as it had had in the old one,
 *   between two looks;
 * - a consumer whose offset, of the old life, lies among the ids of the new one: only with a
 *   clock set back or ids chosen by hand.
 *
 * By the expiry everything older goes, whatever is wrong.
 */
#include "postgres.h"

#include "worker/trim.h"

static const RsStreamId zero = {0, 0};

static bool
is_before(const RsStreamId *a, const RsStreamId *b)
{
	return rs_redis_id_compare(a, b) < 0;
}

/* An offset that says something of a stream: 0-0 is that of who wants to read from the beginning. */
static bool
has_read(const RsTrimConsumer *consumer)
{
	return consumer->committed && is_before(&zero, &consumer->offset);
}

/* ---- another life ----------------------------------------------------------------------- */

static bool
is_refilled(const RsTrimLook *look)
{
	const RsTrimHistory *history = &look->history;
	bool		counted = look->has_added && history->has_added;
	bool		all_newer = look->has_first && is_before(&history->last, &look->first);

	if (!look->exists || !history->known)
		return false;
	if (is_before(&look->last, &history->last) || (counted && look->added < history->added))
		return true;
	/* A key that was away, renamed say, may come back as it was. */
	if (history->gone && (all_newer || !look->has_first))
		return true;
	return counted && all_newer && look->added - look->length < history->added;
}

static void
judge_life(RsTrimLook *look)
{
	look->refill = is_refilled(look);
	look->has_refilled = look->refill || look->history.has_refilled;
	look->refilled = look->history.refilled;
	if (!look->refill)
		return;
	look->refilled = look->has_first ? look->first : look->last;
	if (!look->has_first)
		(void) rs_redis_id_next(&look->refilled);
}

static void
judge_consumers(RsTrimLook *look)
{
	bool		stranded = false;

	for (int i = 0; i < look->nconsumers; i++)
	{
		RsTrimConsumer *consumer = &look->consumers[i];

		consumer->ahead = has_read(consumer) &&
			(!look->exists || is_before(&look->last, &consumer->offset));
		consumer->stranded = look->exists && look->has_refilled && has_read(consumer) &&
			is_before(&consumer->offset, &look->refilled);
		look->problem |= consumer->ahead || consumer->stranded;
		stranded |= consumer->stranded;
	}
	/* While the stream is gone, an earlier refill is not over. */
	if (look->exists && !stranded)
		look->has_refilled = false;
}

/* ---- what may go ---------------------------------------------------------------------------- */

/* Everything before "target", by the consumers' rule; false: nothing. */
static bool
read_by_all(const RsTrimLook *look, RsStreamId *target)
{
	if (look->problem || look->nconsumers + look->ngroups == 0)
		return false;
	*target = look->nconsumers > 0 ? look->consumers[0].keep : look->groups[0].keep;
	for (int i = 0; i < look->nconsumers; i++)
		if (is_before(&look->consumers[i].keep, target))
			*target = look->consumers[i].keep;
	for (int i = 0; i < look->ngroups; i++)
		if (is_before(&look->groups[i].keep, target))
			*target = look->groups[i].keep;
	return true;
}

void
rs_trim_judge(RsTrimLook *look, int64 now_ms)
{
	int64		expiry_ms = look->stream->expiry_ms;
	RsStreamId	read = zero;

	if (look->failed)
		return;
	judge_life(look);
	judge_consumers(look);
	look->expires = expiry_ms >= 0 && now_ms > expiry_ms;
	if (look->expires)
		look->expiry.ms = now_ms - expiry_ms;
	if (read_by_all(look, &read))
		look->target = read;
	if (look->expires && is_before(&look->target, &look->expiry))
		look->target = look->expiry;
	look->trims = look->has_first && is_before(&look->first, &look->target);
}
