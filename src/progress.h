/*
 * progress.h
 *	  How far the batch procedures of all sessions are, in shared memory, for redstream.progress.  A leaf: any server
 *	  file may use it.
 *
 * Each backend has a line of its own, which nobody else writes.
 */
#ifndef RS_PROGRESS_H
#define RS_PROGRESS_H

#include "datatype/timestamp.h"

#define RS_PROGRESS_KEY 256

typedef enum RsProgressState
{
	RS_PROGRESS_RUNNING,
	RS_PROGRESS_PAUSING,		/* as its caller asked for */
	RS_PROGRESS_WAITING			/* for Redis */
} RsProgressState;

typedef struct RsProgress
{
	int			pid;			/* 0: nothing runs there */
	Oid			database;
	Oid			table;
	bool		changing;		/* bulk_update, else bulk_enqueue */
	RsProgressState state;
	int64		done;			/* rows, since it began */
	int64		total;			/* as the planner expects, 0: not known */
	TimestampTz started;
	char		last_key[RS_PROGRESS_KEY];	/* as an array's text, maybe cut; "": none yet */
} RsProgress;

/* Bytes of shared memory; and taking them, under AddinShmemInitLock. */
extern size_t rs_progress_shmem_size(void);
extern void rs_progress_shmem_init(void);

/* Writes this backend's line, whose pid is set here, or empties it; the end of the process empties it, too.  They throw
 * nothing. */
extern void rs_progress_set(const RsProgress *progress);
extern void rs_progress_clear(void);

/* Copies the line with this index, from 0; false behind the last, and when the library was not preloaded. */
extern bool rs_progress_get(int index, RsProgress *progress);

#endif							/* RS_PROGRESS_H */
