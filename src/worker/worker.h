/*
 * worker.h
 *	  The door of src/worker: the background side of redstream.  A launcher finds the databases
 *	  that have the extension and starts a worker for each; a worker runs three
 *	  jobs, the spooler, the delayer and the trimmer, over the streams of its database.
 */
#ifndef RS_WORKER_H
#define RS_WORKER_H

#include "redis/redis.h"

/* From _PG_init while preloading: asks for shared memory, registers the launcher and the
 * hooks that keep workers out of the way of DROP DATABASE and its like. */
extern void rs_worker_init(void);

/* The extension was made in this database: the launcher looks at it once this
 * transaction has committed.  Does nothing when the library was not preloaded. */
extern void rs_worker_announce_extension(void);

/* What one step of a job did to a stream. */
typedef struct RsJobReport
{
	const char *stream;			/* in UTF-8 */
	bool		locked;			/* somebody else works on it: nothing was done */
	int64_t		moved;			/* delayer: to the main stream */
	int64_t		dropped;		/* delayer: removed, not announced */
	int64_t		held;			/* delayer: due, and still there */
	int64_t		trimmed;		/* trimmer: in all */
	int64_t		expired;		/* trimmer: of these, before every consumer had read them */
	const char *error;			/* NULL: none */
} RsJobReport;

typedef void (*RsReportTo) (void *argument, const RsJobReport *report);

/*
 * One step of a job now, for all streams of the database, in the calling backend and its transaction;
 * "wait" is how it waits for Redis.  Reports each stream that there was something to do
 * for.  Raises io_error when Redis cannot be asked.
 */
extern void rs_worker_run_delayer(RsWait wait, RsReportTo report, void *argument);
extern void rs_worker_run_trimmer(RsWait wait, RsReportTo report, void *argument);

#endif							/* RS_WORKER_H */
