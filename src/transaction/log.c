/*
 * log.c
 *	  The log of a transaction.
 *
 * Savepoints cost nothing until a record comes: only then a mark is made for the
 * nesting level.  Rolling back cuts everything to the mark, committing hands
 * the mark to the parent level, unless it has an older one.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "transaction/log.h"

#define INITIAL_SIZE 1024
#define WINDOW_SIZE 8192		/* a power of two */

RsLog *
rs_log_create(MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "redstream transaction log",
												  ALLOCSET_DEFAULT_SIZES);
	RsLog	   *log = MemoryContextAllocZero(context, sizeof(RsLog));

	log->context = context;
	return log;
}

/* Makes an array hold "needed" elements, doubling it. */
static void *
grow(MemoryContext context, void *array, int *size, int needed, size_t element)
{
	int			wanted = Max(needed, *size * 2);

	if (needed <= *size)
		return array;
	array = array == NULL ? MemoryContextAllocHuge(context, wanted * element) :
		repalloc_huge(array, wanted * element);
	*size = wanted;				/* not before it is true: both may throw */
	return array;
}

/* ---- the window ------------------------------------------------------------ */

/* A record not long ago.  The hash spares most looks at the record itself, which is
 * rarely in the processor's cache. */
typedef struct RsWindowCell
{
	uint32		hash;
	uint32		position;		/* of the record in data, plus 1; 0: none */
} RsWindowCell;

static uint32
hash_record(int stream, const char *payload, size_t length)
{
	return hash_combine(hash_bytes((const unsigned char *) payload, length), stream);
}

static void
remember(RsLog *log, uint32 hash, size_t position)
{
	RsWindowCell *cell = &log->window[hash & (WINDOW_SIZE - 1)];

	cell->hash = hash;
	cell->position = position + 1;
}

/* Makes the window; the first record belongs into it. */
static void
open_window(RsLog *log)
{
	const RsRecord *first = (const RsRecord *) log->data;

	log->window = MemoryContextAllocZero(log->context, sizeof(RsWindowCell) * WINDOW_SIZE);
	remember(log, hash_record(first->stream, RS_RECORD_PAYLOAD(first), first->length), 0);
}

static void
clear_window(RsLog *log)
{
	if (log->window != NULL)
		memset(log->window, 0, sizeof(RsWindowCell) * WINDOW_SIZE);
}

bool
rs_log_has(const RsLog *log, int stream, const char *payload, size_t length)
{
	const RsRecord *record;
	size_t		position = 0;	/* without a window there is one record at most */

	if (log->used == 0)
		return false;
	if (log->window != NULL)
	{
		uint32		hash = hash_record(stream, payload, length);
		const RsWindowCell *cell = &log->window[hash & (WINDOW_SIZE - 1)];

		if (cell->position == 0 || cell->hash != hash)
			return false;
		position = cell->position - 1;
	}
	record = (const RsRecord *) (log->data + position);
	return record->stream == stream && record->length == length &&
		memcmp(RS_RECORD_PAYLOAD(record), payload, length) == 0;
}

/* ---- appending ------------------------------------------------------------- */

/* The mark of the level, made when this is its first record. */
static RsMark *
mark_level(RsLog *log, int level)
{
	RsMark	   *mark;

	if (log->nmarks > 0 && log->marks[log->nmarks - 1].level == level)
		return &log->marks[log->nmarks - 1];
	log->marks = grow(log->context, log->marks, &log->marks_size, log->nmarks + 1,
					  sizeof(RsMark));
	mark = &log->marks[log->nmarks++];
	mark->level = level;
	mark->position = log->base + log->used;
	mark->records = log->records;
	mark->nxids = log->nxids;
	mark->last_xid = log->nxids > 0 ? log->xids[log->nxids - 1].last : 0;
	mark->nplaces = log->nplaces;
	mark->listed = 0;
	return mark;
}

static void
list_xid(RsLog *log, RsMark *mark, uint64 xid)
{
	if (mark->listed == xid)
		return;
	log->xids = grow(log->context, log->xids, &log->xids_size, log->nxids + 1,
					 sizeof(RsXidRange));
	if (log->nxids > 0 && log->xids[log->nxids - 1].last + 1 == xid)
		log->xids[log->nxids - 1].last = xid;
	else
	{
		log->xids[log->nxids].first = xid;
		log->xids[log->nxids].last = xid;
		log->nxids++;
	}
	mark->listed = xid;
}

RsRecord *
rs_log_append(RsLog *log, int level, uint64 xid, int stream,
			  const char *payload, size_t length)
{
	size_t		needed = log->used + RS_RECORD_SIZE(length);
	RsRecord   *record;

	list_xid(log, mark_level(log, level), xid);
	if (!bms_is_member(stream, log->streams))
	{
		MemoryContext old = MemoryContextSwitchTo(log->context);

		log->streams = bms_add_member(log->streams, stream);
		MemoryContextSwitchTo(old);
	}
	if (needed > log->size)
	{
		size_t		size = Max(needed, Max(log->size * 2, INITIAL_SIZE));

		log->data = log->data == NULL ? MemoryContextAllocHuge(log->context, size) :
			repalloc_huge(log->data, size);
		log->size = size;
	}
	/* A transaction of one record needs no window. */
	if (log->window == NULL && log->used > 0)
		open_window(log);
	if (log->window != NULL)
		remember(log, hash_record(stream, payload, length), log->used);

	record = (RsRecord *) (log->data + log->used);
	record->xid = xid;
	record->stream = stream;
	record->length = length;
	memcpy(record + 1, payload, length);
	log->used = needed;
	log->records++;
	log->largest = Max(log->largest, record->length);
	return record;
}

/* Counts the records that are still there to those that are forgotten. */
static void
count_forgotten(RsLog *log)
{
	int			old_size = log->forgotten_size;
	size_t		at = 0;

	log->forgotten_of = grow(log->context, log->forgotten_of, &log->forgotten_size,
							 bms_prev_member(log->streams, -1) + 1, sizeof(uint64));
	if (log->forgotten_size > old_size)
		memset(log->forgotten_of + old_size, 0, sizeof(uint64) * (log->forgotten_size - old_size));
	while (at < log->used)
	{
		const RsRecord *record = (const RsRecord *) (log->data + at);

		log->forgotten_of[record->stream]++;
		at += RS_RECORD_SIZE(record->length);
	}
}

void
rs_log_forget(RsLog *log)
{
	Assert(log->streamed == log->used);
	count_forgotten(log);
	log->base += log->used;
	log->forgotten = log->records;
	log->used = log->streamed = 0;
	clear_window(log);
}

uint64
rs_log_forgotten(const RsLog *log, int stream)
{
	if (stream >= log->forgotten_size)
		return 0;
	if (!log->uncounted)
		return log->forgotten_of[stream];
	for (int i = 0; i < log->forgotten_size; i++)
		if (i != stream && log->forgotten_of[i] > 0)
			return 0;
	return log->forgotten;
}

size_t
rs_log_own(const RsLog *log, int level)
{
	const RsMark *mark = log->nmarks > 0 ? &log->marks[log->nmarks - 1] : NULL;

	if (mark == NULL || mark->level != level)
		return log->used;
	return mark->position > log->base ? mark->position - log->base : 0;
}

void
rs_log_cut(RsLog *log, size_t start)
{
	log->used = start;
	log->streamed = Min(log->streamed, start);
	clear_window(log);
}

bool
rs_log_is_empty(const RsLog *log)
{
	return log->nxids == 0;
}

/* ---- savepoints -------------------------------------------------------------- */

void
rs_log_merge(RsLog *log, int level)
{
	RsMark	   *mark = log->nmarks > 0 ? &log->marks[log->nmarks - 1] : NULL;

	if (mark == NULL || mark->level != level)
		return;
	if (log->nmarks > 1 && mark[-1].level == level - 1)
		log->nmarks--;
	else
	{
		mark->level = level - 1;
		mark->listed = 0;
	}
}

int
rs_log_truncate(RsLog *log, int level)
{
	RsMark	   *mark = NULL;

	while (log->nmarks > 0 && log->marks[log->nmarks - 1].level >= level)
		mark = &log->marks[--log->nmarks];
	if (mark == NULL)
		return log->nplaces;
	log->used = mark->position > log->base ? mark->position - log->base : 0;
	log->streamed = Min(log->streamed, log->used);
	log->records = mark->records;
	if (log->forgotten > log->records)
	{
		log->forgotten = log->records;
		log->uncounted = true;
	}
	log->nxids = mark->nxids;
	if (log->nxids > 0)
		log->xids[log->nxids - 1].last = mark->last_xid;
	clear_window(log);
	return mark->nplaces;
}

void
rs_log_reserve_place(RsLog *log)
{
	log->places = grow(log->context, log->places, &log->places_size, log->nplaces + 1,
					   sizeof(RsEntryNumber));
}

static int
compare_ranges(const void *a, const void *b)
{
	const RsXidRange *left = a;
	const RsXidRange *right = b;

	return left->first < right->first ? -1 : left->first > right->first ? 1 : 0;
}

RsXidRange *
rs_log_sorted_xids(const RsLog *log, int *count)
{
	RsXidRange *ranges = MemoryContextAllocHuge(log->context, sizeof(RsXidRange) * log->nxids);
	int			last = 0;

	memcpy(ranges, log->xids, sizeof(RsXidRange) * log->nxids);
	qsort(ranges, log->nxids, sizeof(RsXidRange), compare_ranges);
	for (int i = 1; i < log->nxids; i++)
	{
		if (ranges[i].first <= ranges[last].last + 1)
			ranges[last].last = Max(ranges[last].last, ranges[i].last);
		else
			ranges[++last] = ranges[i];
	}
	*count = last + 1;
	return ranges;
}
