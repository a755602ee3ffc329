/*
 * log.h
 *	  The log of a transaction: its records, the marks of its savepoints, and the
 *	  (sub)transactions that made them.  For the files of this directory.
 *
 * The log knows nothing of lanes.  It lives in one memory context and goes with it.
 */
#ifndef RS_TRANSACTION_LOG_H
#define RS_TRANSACTION_LOG_H

#include "nodes/bitmapset.h"
#include "transport/transport.h"

typedef struct RsRecord
{
	uint64		xid;			/* epoch-extended, of the (sub)transaction; once some records were written to the
								 * spool: the position kept for this one */
	int			stream;			/* rs_transaction_stream() */
	uint32		length;			/* of the payload that follows */
} RsRecord;

#define RS_RECORD_PAYLOAD(record) ((const char *) ((record) + 1))
#define RS_RECORD_SIZE(length) MAXALIGN(sizeof(RsRecord) + (length))

/* What the log was when the first record of a nesting level came. */
typedef struct RsMark
{
	int			level;
	uint64		position;		/* of the log's end */
	uint64		records;
	int			nxids;
	uint64		last_xid;		/* end of the last of these ranges */
	int			nplaces;
	uint64		listed;			/* the level's own xid, once it is in the ranges; or 0 */
} RsMark;

typedef struct RsLog
{
	MemoryContext context;
	/* Records, back to back.  Those before "base" are forgotten: their
	 * delay messages are in the lane, and the transaction is a large one. */
	char	   *data;
	size_t		used;
	size_t		size;
	size_t		streamed;		/* of data: delay messages are in the lane */
	uint64		base;			/* bytes forgotten */
	uint64		records;		/* that were not rolled back, forgotten ones and those cut out included */
	uint64		forgotten;		/* of these: the delay messages have them, and nothing else */
	uint64	   *forgotten_of;	/* the same by stream, ... */
	int			forgotten_size;
	bool		uncounted;		/* ... unless some were rolled back */
	uint32		largest;		/* payload so far, rolled back or not */
	struct RsWindowCell *window;	/* records in data, by hash; NULL while there is at most one */
	RsMark	   *marks;			/* by level, innermost last */
	int			nmarks;
	int			marks_size;
	RsXidRange *xids;			/* of all records, in the order they came */
	int			nxids;
	int			xids_size;
	Bitmapset  *streams;		/* of all records, rolled back or not */
	RsEntryNumber *places;		/* taken in the main lane */
	int			nplaces;
	int			places_size;
} RsLog;

/* A new log, in a new child of "parent". */
extern RsLog *rs_log_create(MemoryContext parent);

/* Was an equal record appended not long ago, and is it still there? */
extern bool rs_log_has(const RsLog *log, int stream, const char *payload, size_t length);

/* Appends a record made at this nesting level by this (sub)transaction; it stays where
 * it is until the next one. */
extern RsRecord *rs_log_append(RsLog *log, int level, uint64 xid, int stream,
							   const char *payload, size_t length);

/* Forgets the records, all of which must be streamed. */
extern void rs_log_forget(RsLog *log);

/* How many forgotten records of the stream were not rolled back; 0 when that is not known. */
extern uint64 rs_log_forgotten(const RsLog *log, int stream);

/* Where the records of this nesting level begin that are still in data. */
extern size_t rs_log_own(const RsLog *log, int level);

/* Takes the records from "start" on out, which are kept elsewhere now, and go with a rollback by themselves. */
extern void rs_log_cut(RsLog *log, size_t start);

/* Are there any records, forgotten ones and those cut out included, that were not rolled back? */
extern bool rs_log_is_empty(const RsLog *log);

/* The level committed into its parent.  Does not throw. */
extern void rs_log_merge(RsLog *log, int level);

/* The level was rolled back: truncates the log to its mark, and returns how many
 * places remain valid.  Does not throw. */
extern int	rs_log_truncate(RsLog *log, int level);

/* Makes room for one more place.  Throws when out of memory. */
extern void rs_log_reserve_place(RsLog *log);

/* Sorts the ranges of xids and joins neighbours; afterwards nothing may be appended
 * or rolled back any more that belongs to them. */
extern RsXidRange *rs_log_sorted_xids(const RsLog *log, int *count);

#endif							/* RS_TRANSACTION_LOG_H */
