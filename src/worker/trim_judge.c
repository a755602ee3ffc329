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
 * How it shows that the stream was filled again, and when it does not, is said in redis/stream.c.
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

static void
judge_life(RsTrimLook *look)
{
	look->refilled = look->history.refilled;
	look->refill = rs_redis_stream_refilled(&look->state, &look->history, &look->refilled);
	look->has_refilled = look->refill || look->history.has_refilled;
}

static void
judge_consumers(RsTrimLook *look)
{
	bool		stranded = false;

	for (int i = 0; i < look->nconsumers; i++)
	{
		RsTrimConsumer *consumer = &look->consumers[i];

		consumer->ahead = has_read(consumer) &&
			(!look->state.exists || is_before(&look->state.last, &consumer->offset));
		consumer->stranded = look->state.exists && look->has_refilled && has_read(consumer) &&
			is_before(&consumer->offset, &look->refilled);
		look->problem |= consumer->ahead || consumer->stranded;
		stranded |= consumer->stranded;
	}
	/* While the stream is gone, an earlier refill is not over. */
	if (look->state.exists && !stranded)
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
	look->trims = look->state.has_first && is_before(&look->state.first, &look->target);
}
