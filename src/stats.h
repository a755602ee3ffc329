/*
 * stats.h
 *	  Counters in shared memory, all since the server's start.  A leaf: any
 *	  server file may count.
 */
#ifndef RS_STATS_H
#define RS_STATS_H

#include "port/atomics.h"

/* In the order of the columns of redstream.stats; names are in stats.c. */
typedef enum RsCounter
{
	RS_COUNT_CAPTURED,			/* messages of transactions, rolled back or not */
	RS_COUNT_DELAYED,			/* delay messages Redis acknowledged */
	RS_COUNT_SENT,				/* messages written to Redis, each time counted */
	RS_COUNT_ACKNOWLEDGED,		/* main messages Redis acknowledged */
	RS_COUNT_RESENT,			/* messages that had to be written again */
	RS_COUNT_SPOOLED,			/* messages left in the spool */
	RS_COUNT_SKIPPED,			/* messages given up under on_outage = skip */
	RS_COUNT_PASSED,			/* transactions left to their delay messages: their commit
								 * took too long, or nothing could hold their place */
	RS_COUNT_MOVED,				/* delay messages moved to their main stream */
	RS_COUNT_DROPPED,			/* delay messages removed: rolled back, or confirmed */
	RS_COUNT_TRIMMED,			/* main messages trimmed, expired ones included */
	RS_COUNT_EXPIRED,			/* of those: before every consumer had read them */
	RS_COUNT_ERRORS,			/* connections lost and commands refused */
	RS_COUNT_LOSSES,			/* times that Redis had less than it had acknowledged */
	RS_COUNTERS
} RsCounter;

/* Bytes of shared memory; and taking them, under AddinShmemInitLock. */
extern size_t rs_stats_shmem_size(void);
extern void rs_stats_shmem_init(void);

/* Adds to a counter.  Does not throw, allocate or wait, so that it may be
 * called from commit and abort callbacks. */
extern void rs_stats_add(RsCounter counter, uint64 amount);
extern uint64 rs_stats_get(RsCounter counter);

#endif							/* RS_STATS_H */
