/*
 * trimmer.c
 *	  The trimmer: looks at all streams every redstream.trim_interval, and has what nobody needs
 *	  any more removed.
 *
 * A slice of the streams is asked in two round trips, however many there are in it, so that idle
 * streams cost next to nothing; only those with something to trim are then taken one by one,
 * each under its lock, which is shared with other PostgreSQL servers and with Ruby's trimmers.
 *
 * Everything the trimmer remembers is in Redis (trim_history.c): it does not matter
 * which trimmer looks next.  Delay streams are none of its business: it never names their keys.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "settings.h"
#include "worker/trim.h"

#define ASKED_AT_ONCE 100		/* streams: each answers with two of its entries */

/* One slice.  A look lives as long as the current memory context. */
static bool
trim(RsWork *work, List *looks, RsError *error)
{
	ListCell   *cell;
	int64		now_ms;

	if (!rs_trim_look(work, looks, &now_ms, error))
		return false;
	foreach(cell, looks)
		rs_trim_judge(lfirst(cell), now_ms);
	if (!rs_trim_remember(work, looks, error))
		return false;
	foreach(cell, looks)
	{
		const RsTrimLook *look = lfirst(cell);

		if (look->trims && !rs_trim_cut(work, look->stream, error))
			return false;
	}
	return true;
}

/* All slices; "context" is empty between two of them. */
static bool
trim_all(RsWork *work, MemoryContext context, RsError *error)
{
	int			count = list_length(work->streams);

	for (int from = 0; from < count; from += ASKED_AT_ONCE)
	{
		List	   *looks = NIL;

		MemoryContextReset(context);
		for (int i = from; i < Min(count, from + ASKED_AT_ONCE); i++)
		{
			RsWorkStream *stream = list_nth(work->streams, i);

			(void) rs_work_report_begin(stream, RS_JOB_TRIMMER);
			looks = lappend(looks, rs_trim_look_create(stream));
		}
		if (!trim(work, looks, error))
			return false;
	}
	return true;
}

bool
rs_trimmer_step(RsWork *work, RsError *error)
{
	MemoryContext context = AllocSetContextCreate(work->context, "redstream trimmer",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext outside = MemoryContextSwitchTo(context);
	bool		alive;

	work->trimmed_at = rs_now();
	alive = trim_all(work, context, error);
	MemoryContextSwitchTo(outside);
	MemoryContextDelete(context);
	if (!alive)
		rs_work_disconnect(work);
	return alive;
}

/* Reckoned anew each time, so that a changed interval takes effect at once. */
uint64
rs_trimmer_due(const RsWork *work)
{
	return work->trimmed_at == 0 ? 0 : work->trimmed_at + (uint64) rs_trim_interval * 1000;
}
