/*
 * spooler.c
 *	  The spooler: delivers the rows of redstream.spool, and closes the buckets that are empty.
 *
 * src/README.md has the states of a bucket.  A step first sees to the batch that is in the lanes, if there is one, then
 * looks at each bucket that is ON, for some batches at most.  What the spooler remembers can be lost: a
 * new one begins at the beginning of the table.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "settings.h"
#include "worker/spooler.h"

#define BATCHES_A_TURN 5
#define PACE 50000				/* microseconds between two looks at a bucket that does not close */
#define RESCAN_INTERVAL 5000000 /* between two looks from the beginning */
#define LEAVE_PATIENCE 50		/* milliseconds for who is joined, while others are kept waiting */
#define CLOSE_LONGEST 500000	/* microseconds for which they are, or half of redstream.timeout */
#define CLOSE_BACKOFF_LAST 1000000
#define LAG_INTERVAL 1000000	/* in which the lag should become shorter ... */
#define LAG_LESS 250000			/* ... by so much */

typedef struct RsSpooler
{
	RsSpoolBatch *landed;		/* delivered, and to be deleted where a row is marked */
	RsSpoolBatch *flying;		/* in the lanes */
	RsSpoolBatch *next;
	RsSpoolFlight flight;
	bool		flies;
	bool		caught_up;		/* what was read last was the end of what was visible */
	int64		lag;			/* age of the row that is delivered, microseconds */
	int64		lag_before;		/* the same at lag_at */
	uint64		lag_at;
	RsBuckets	behind;			/* transactions were faster than we are, and are to wait */
	uint64		wishes;			/* rs_spool_wishes() when it last looked from the beginning */
	uint64		rescan_at;
	uint64		news;			/* rs_spool_news() before the last step */
	uint64		look_at;		/* when the next step is due, if there is none */
	XLogRecPtr	from[RS_BUCKETS];	/* nothing is before it but what was refused */
	XLogRecPtr	refused[RS_BUCKETS];	/* position of the first of these; 0: none */
	uint64		close_at[RS_BUCKETS];
	int			close_failures[RS_BUCKETS];
} RsSpooler;

/* How a look at a bucket ended. */
typedef enum Drained
{
	DRAINED,					/* nothing is left but what was refused */
	DRAINED_SOME,
	DRAINED_LATER,				/* Redis, or the lanes, cannot take more now */
	DRAINED_LOST				/* the connection */
} Drained;

static RsSpooler *
spooler_of(RsWork *work)
{
	RsSpooler  *spooler = work->spooler;

	if (spooler != NULL)
		return spooler;
	spooler = work->spooler = MemoryContextAllocZero(work->context, sizeof(RsSpooler));
	spooler->landed = rs_spool_batch_create(work->context);
	spooler->flying = rs_spool_batch_create(work->context);
	spooler->next = rs_spool_batch_create(work->context);
	return spooler;
}

/* ---- one bucket ---------------------------------------------------------------------------- */

static bool
is_refused(void *argument, const char *ns, const char *stream)
{
	return rs_work_stream(argument, stream)->refused_until != 0;
}

static void
note_refused(RsSpooler *spooler, int bucket, XLogRecPtr position)
{
	if (position != 0 && (spooler->refused[bucket] == 0 || position < spooler->refused[bucket]))
		spooler->refused[bucket] = position;
}

/* Deletes what has landed; in a transaction. */
static void
clear_landed(RsSpooler *spooler)
{
	RsSpoolBatch *landed = spooler->landed;

	for (int i = 0; i < landed->nrows; i++)
		if (!landed->rows[i].done)
			note_refused(spooler, rs_spool_bucket_number(landed->rows[i].row.bucket), landed->rows[i].row.position);
	rs_spool_delete(landed);
	landed->nrows = 0;
	MemoryContextReset(landed->context);	/* a row can be large, and the next one far away */
}

/* Deletes what has landed, and reads the next batch, behind "before". */
static void
turn_over(RsWork *work, int bucket, const RsSpoolBatch *before)
{
	RsSpooler  *spooler = work->spooler;
	XLogRecPtr	horizon = rs_spool_horizon();	/* before there is a snapshot */

	rs_work_begin(work);
	clear_landed(spooler);
	rs_spool_fetch(spooler->next, (RsBuckets) 1 << bucket, spooler->from[bucket], horizon, before, is_refused, work);
	rs_work_end(work);
	spooler->caught_up = spooler->next->end;
	if (spooler->next->nrows > 0)
		spooler->lag = GetCurrentTimestamp() - spooler->next->rows[0].spooled_at;
	note_refused(spooler, bucket, spooler->next->first_left);
}

/* Delivers row by row the batch that is to land.  If that is broken off it is read again. */
static Drained
land_alone(RsWork *work, RsError *error)
{
	RsSpooler  *spooler = work->spooler;

	if (rs_deliver_alone(work, spooler->landed, error))
		return DRAINED_SOME;
	spooler->landed->nrows = 0;
	return DRAINED_LOST;
}

/*
 * The batch has flown: it is marked, and lands.  One that was refused in the lanes must not get there again, where it may cost
 * everybody the connection: it stays until it can go alone.
 */
static Drained
land(RsWork *work, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	RsSpoolBatch *batch = spooler->flying;

	if (rs_deliver_await(&spooler->flight) != RS_DELIVERY_DONE)
		return DRAINED_LATER;
	spooler->flies = false;
	spooler->flying = spooler->landed;
	spooler->landed = batch;
	if (spooler->flight.alone)
		return land_alone(work, error);
	for (int i = 0; i < batch->nrows; i++)
		batch->rows[i].done = true;
	return DRAINED;
}

/* Delivers the next batch: DRAINED_SOME when what was read behind it is to be read again. */
static Drained
deliver(RsWork *work, int bucket, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	RsSpoolBatch *batch = spooler->next;
	RsDelivery	delivery = rs_deliver_send(work, batch, &spooler->flight, error);

	if (delivery != RS_DELIVERY_DONE)
		return delivery == RS_DELIVERY_LATER ? DRAINED_LATER : DRAINED_LOST;
	spooler->next = spooler->flying;
	spooler->flying = batch;
	spooler->flies = true;
	turn_over(work, bucket, batch);
	return land(work, error);
}

/*
 * Goes on behind a batch that was read and has no rows: there is nothing but what was refused, and is not read again at the next
 * step.  False when that is no further than before, since who is joined has a position in front of it.
 */
static bool
pass(RsWork *work, int bucket)
{
	RsSpooler  *spooler = work->spooler;
	XLogRecPtr	passed = spooler->next->next;
	bool		further = passed > spooler->from[bucket];

	turn_over(work, bucket, spooler->next);
	spooler->from[bucket] = Max(spooler->from[bucket], passed);
	return further;
}

/* Delivers what is visible, for so many batches at most. */
static Drained
drain(RsWork *work, int bucket, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	XLogRecPtr	horizon = rs_spool_horizon();
	Drained		drained = DRAINED;

	turn_over(work, bucket, NULL);
	for (int i = 0; i < BATCHES_A_TURN; i++)
	{
		if (spooler->next->nrows > 0)
			drained = deliver(work, bucket, error);
		else if (!spooler->next->end)
		{
			if (!pass(work, bucket))
				return DRAINED;
		}
		else if (spooler->landed->nrows > 0)
			turn_over(work, bucket, spooler->landed);
		else
		{
			spooler->from[bucket] = horizon;
			return DRAINED;
		}
		if (drained == DRAINED_LATER || drained == DRAINED_LOST)
			break;
		if (drained == DRAINED_SOME)
			turn_over(work, bucket, spooler->landed);
		drained = DRAINED;
	}
	if (spooler->landed->nrows > 0)
		turn_over(work, bucket, NULL);
	return drained == DRAINED ? DRAINED_SOME : drained;
}

/* ---- closing --------------------------------------------------------------------------------- */

/*
 * Transactions that spool do not wait for Redis, and may be faster than who delivers: then they have to wait
 * though much is left, most of the time until the bucket is empty.
 */
static bool
is_behind(RsSpooler *spooler, int bucket)
{
	RsBuckets	bit = (RsBuckets) 1 << bucket;

	if (rs_now() >= spooler->lag_at + LAG_INTERVAL)
	{
		if (spooler->lag_at != 0 && spooler->lag > spooler->lag_before - LAG_LESS)
			spooler->behind |= bit;
		spooler->lag_at = rs_now();
		spooler->lag_before = spooler->lag;
	}
	return (spooler->behind & bit) != 0;
}

/* The same as drain(), behind what is in the lanes already. */
static Drained
proceed(RsWork *work, int bucket, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	Drained		drained = spooler->flies ? land(work, error) : DRAINED;

	return drained == DRAINED_LATER || drained == DRAINED_LOST ? drained : drain(work, bucket, error);
}

/* If it was only a matter of time, soon again; else others need not be kept waiting as often. */
static void
wait_before_close(RsSpooler *spooler, int bucket, bool soon)
{
	int			times = soon ? 0 : spooler->close_failures[bucket]++;

	spooler->close_at[bucket] = rs_now() + rs_backoff(PACE, times, CLOSE_BACKOFF_LAST);
}

/* Nobody adds to the bucket while it is CLOSING.  If it is empty in time it becomes NORMAL. */
static Drained
try_to_close(RsWork *work, int bucket, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	RsBuckets	bit = (RsBuckets) 1 << bucket;
	Drained		drained = DRAINED_SOME;
	uint64		end = rs_now() + Min(CLOSE_LONGEST, (uint64) rs_timeout * 500);
	bool		left;

	rs_spool_close_begin(bit);
	left = rs_spool_await_leaving(LEAVE_PATIENCE);
	while (left && (drained == DRAINED_SOME || drained == DRAINED_LATER) && rs_now() < end &&
		   !rs_transport_is_down())
		drained = proceed(work, bucket, error);
	if (drained == DRAINED && spooler->refused[bucket] == 0 && rs_spool_close_end(bit))
	{
		spooler->close_failures[bucket] = 0;
		spooler->behind &= ~bit;
		return DRAINED;
	}
	rs_spool_close_abandon(bit);
	wait_before_close(spooler, bucket, left && drained != DRAINED);
	return drained;
}

/* Is nothing acknowledged, of whomever?  Then nobody is to wait until a bucket is empty, though Redis is not known to be away. */
static bool
stands_still(Drained drained)
{
	return drained == DRAINED_LATER && rs_now() >= rs_transport_progress() + (uint64) rs_timeout * 1000;
}

static Drained
see_to(RsWork *work, int bucket, RsError *error)
{
	RsSpooler  *spooler = work->spooler;
	Drained		drained = proceed(work, bucket, error);
	bool		empty = drained == DRAINED || (drained == DRAINED_SOME && spooler->caught_up);

	/* Under load there is always another row: no need to wait for a moment without. */
	if (drained != DRAINED_LOST && !stands_still(drained) && (is_behind(spooler, bucket) || empty) && !rs_transport_is_down() &&
		spooler->refused[bucket] == 0 && rs_now() >= spooler->close_at[bucket])
		drained = try_to_close(work, bucket, error);
	return drained;
}

/* ---- a step ------------------------------------------------------------------------------------ */

/* Streams that Redis has refused, and whose pause is over, are tried again, from their first row on. */
static void
readmit(RsWork *work)
{
	RsSpooler  *spooler = work->spooler;
	bool		some = false;
	ListCell   *cell;

	foreach(cell, work->streams)
	{
		RsWorkStream *stream = lfirst(cell);

		if (stream->refused_until == 0 || stream->refused_until > rs_now())
			continue;
		stream->refused_until = 0;
		some = true;
	}
	for (int i = 0; i < RS_BUCKETS && some; i++)
		if (spooler->refused[i] != 0)
		{
			spooler->from[i] = Min(spooler->from[i], spooler->refused[i]);
			spooler->refused[i] = 0;
		}
}

/* From time to time, and when a prepared transaction has been committed: rows may be anywhere. */
static void
rescan(RsWork *work)
{
	RsSpooler  *spooler = work->spooler;

	if (rs_now() < spooler->rescan_at && spooler->wishes == rs_spool_wishes())
		return;
	spooler->rescan_at = rs_now() + RESCAN_INTERVAL;
	spooler->wishes = rs_spool_wishes();
	memset(spooler->from, 0, sizeof(spooler->from));
	rs_work_begin(work);
	for (int i = rs_spool_exists() ? 0 : RS_BUCKETS; i < RS_BUCKETS; i++)
	{
		RsBuckets	bucket = (RsBuckets) 1 << i;

		if ((rs_spool_buckets() & bucket) == 0 && rs_spool_has_rows(bucket))
			rs_spool_found(bucket);
	}
	rs_work_end(work);
}

static uint64
refused_until(const RsWork *work)
{
	uint64		until = PG_UINT64_MAX;
	ListCell   *cell;

	foreach(cell, work->streams)
	{
		const RsWorkStream *stream = lfirst(cell);

		if (stream->refused_until != 0)
			until = Min(until, stream->refused_until);
	}
	return until;
}

/* What is left, and when to look again. */
static void
conclude(RsWork *work, bool more)
{
	RsSpooler  *spooler = work->spooler;
	RsBuckets	open = rs_spool_buckets();

	for (int i = 0; i < RS_BUCKETS; i++)
		if (spooler->refused[i] != 0)
			open &= ~((RsBuckets) 1 << i);
	spooler->look_at = Min(spooler->rescan_at, refused_until(work));
	if (open != 0 || spooler->flies || more)
		spooler->look_at = rs_now() + (more ? 0 : PACE);
}

bool
rs_spooler_step(RsWork *work, RsError *error)
{
	RsSpooler  *spooler = spooler_of(work);
	Drained		drained = DRAINED;
	bool		more = false;

	spooler->news = rs_spool_news();
	readmit(work);
	rescan(work);
	for (int i = 0; i < RS_BUCKETS && drained != DRAINED_LATER && drained != DRAINED_LOST; i++)
	{
		if ((rs_spool_buckets() & (RsBuckets) 1 << i) == 0)
			continue;
		drained = see_to(work, i, error);
		more |= drained == DRAINED_SOME;
	}
	conclude(work, more && drained != DRAINED_LATER);
	return drained != DRAINED_LOST;
}

uint64
rs_spooler_due(const RsWork *work)
{
	const RsSpooler *spooler = work->spooler;

	if (spooler == NULL || spooler->wishes != rs_spool_wishes() || spooler->news != rs_spool_news())
		return 0;
	return spooler->look_at;
}
