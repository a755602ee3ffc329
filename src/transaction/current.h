/*
 * current.h
 *	  The running transaction, and how its records are announced.  For the files
 *	  of this directory.
 */
#ifndef RS_TRANSACTION_CURRENT_H
#define RS_TRANSACTION_CURRENT_H

#include "spool/spool.h"
#include "transaction/log.h"

#define RS_CHUNK_SIZE (64 * 1024)	/* bytes of delay messages sent at a time */
#define RS_CHUNKS_UNDER_WAY 2	/* of one transaction: what others may queue behind */

typedef enum RsStage
{
	RS_STAGE_NONE,				/* no record so far */
	RS_STAGE_OPEN,				/* records are collected */
	RS_STAGE_PLACED				/* committing: a record goes at once */
} RsStage;

typedef struct RsCurrent
{
	RsStage		stage;
	RsLog	   *log;
	bool		large;			/* records were forgotten ... */
	RsDelayOutcome forgotten;	/* ... whose delay messages have these ids */
	bool		skipping;		/* an outage, and on_outage = skip: nothing is sent any more */
	bool		spooling;		/* the records go to the spool: nothing is sent any more */
	bool		numbered;		/* some are there already, and the others have the positions kept for them */
	RsBuckets	buckets;		/* of all streams */
	RsBuckets	joined;			/* rs_spool_join() or rs_spool_begin() was called for these */
	Bitmapset  *published;		/* streams of which records were forgotten before the transaction spooled */
	XLogRecPtr	published_at;	/* positions kept for these; 0: none */
	uint64		spooled;		/* rows written */
	size_t		unsent;			/* bytes of delay messages to be streamed, at most */
	uint64		captured;
	uint64		skipped;
	RsEntryNumber sent[RS_CHUNKS_UNDER_WAY];	/* the last chunks' entries, a ring */
	uint64		nsent;
	char	   *buffer;			/* for encoding */
	size_t		buffer_size;
} RsCurrent;

extern RsCurrent rs_current;

/* Bytes of the main messages of the records from a position of the log on. */
extern size_t rs_announce_size(size_t start);

/*
 * Streams the delay messages of all records that have none yet, while the
 * transaction runs; not if the transaction spools.  On failure applies redstream.on_outage: from now on the transaction spools; or
 * io_error is raised; or it warns and gives this transaction's messages up.
 */
extern void rs_announce_early(void);

/* The same, and waits until Redis has acknowledged them all: then they may be forgotten, if the transaction neither spools nor skips. */
extern void rs_announce_settle(void);

/* The same, and waits until Redis has acknowledged them all, if that is waited for. */
extern void rs_announce_flush(void);

/*
 * Everything that comes before the commit: delay messages of all records
 * acknowledged, a place in the main lane taken for those from "start" on.  With
 * "publish" the place is one for the whole transaction, from its delay
 * messages.  On failure as rs_announce_early().
 */
extern void rs_announce(size_t start, bool publish);

/* ---- spooling.c ---------------------------------------------------------------------- */

/* Do the transaction's records go to the spool, as far as is known before its end? */
extern bool rs_spooling_is_on(void);

typedef enum RsWay
{
	RS_WAY_LANES,
	RS_WAY_SPOOL,
	RS_WAY_BARRED				/* others have spooled, and it may not (redstream.on_outage): nor may it pass them */
} RsWay;

/* Decides that before its end, for good; may wait for redstream.timeout, cancellably. */
extern RsWay rs_spooling_decide(void);

/* Writes the records from "start" on to the spool, and what publishes those that were forgotten.  Raises what writing to a table can
 * raise. */
extern void rs_spooling_finish(size_t start);

/* The log is too large: writes the current level's records to the spool, unless these are few. */
extern void rs_spooling_relieve(void);

#endif							/* RS_TRANSACTION_CURRENT_H */
