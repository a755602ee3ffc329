/*
 * work.h
 *	  What the jobs of a database work with: a connection, and the streams.  For the
 *	  files of this directory.
 *
 * The worker has one for as long as it lives, a backend in redstream.run_delayer() one
 * for the call.
 */
#ifndef RS_WORKER_WORK_H
#define RS_WORKER_WORK_H

#include "nodes/pg_list.h"
#include "clock.h"
#include "worker/worker.h"

typedef enum RsJob
{
	RS_JOB_SPOOLER,
	RS_JOB_DELAYER,
	RS_JOB_TRIMMER
} RsJob;

#define RS_JOBS 3

/* The jobs keep what they remember of a stream in its context. */
typedef struct RsWorkStream
{
	MemoryContext context;
	char	   *name;			/* in UTF-8 */
	int64		delay_ms;		/* -1: redstream.delay */
	int64		expiry_ms;		/* -1: none */
	struct RsDelayState *delay; /* delayer.c's; NULL: nothing remembered */
	int			refusals;		/* spooler.c's: in a row, of spooled messages */
	uint64		refused_until;	/* they are left alone for so long; 0: they are not */
	int			listed;			/* the connection on which Redis was told of the stream; 0: none */
	RsJobReport reports[RS_JOBS];	/* of the last step that looked at the stream */
	char	   *last_errors[RS_JOBS];	/* of the step before */
} RsWorkStream;

typedef struct RsWork
{
	MemoryContext context;		/* of all that follows */
	MemoryContext outside;		/* current before rs_work_begin(); the end of a transaction
								 * would leave TopMemoryContext */
	bool		own_transactions;	/* the worker, which has none open; a backend has */
	RsWait		wait;
	RsConnection *connection;	/* NULL: none */
	RsServerInfo server;		/* that it leads to */
	int			connections;	/* so far */
	uint64		known_at;		/* when rs_work_know() asked last; 0: never */
	bool		async;			/* transactions of this server have committed without waiting for
								 * the disk, some time */
	uint64		claimed_at;		/* when the server key was last found to be ours */
	char		holder[RS_HOLDER_SIZE]; /* of all locks taken here */
	List	   *streams;		/* of RsWorkStream */
	List	   *servers;		/* other servers met in delay streams; servers.c's */
	uint64		trimmed_at;		/* when the trimmer looked last; 0: never */
	uint64		held_at;		/* when to look at held messages again; delayer.c's */
	uint64		settled;		/* the main messages of all committed transactions older than this
								 * are out of the main lane; chunk.c's */
	uint64		stuck_since;	/* when the lane was first waited for in vain; 0: it was not */
	struct RsConfirmation *confirmation;	/* verdict.c's; NULL: none so far */
	struct RsSpooler *spooler;	/* spooler.c's; NULL: nothing remembered */
} RsWork;

/* ---- work.c ----------------------------------------------------------------------- */

/* Lives in a new child of "parent".  Raises internal_error without randomness. */
extern RsWork *rs_work_create(MemoryContext parent, RsWait wait, bool own_transactions);

/* Connects, if there is no connection, and makes sure of the server key.  False and an
 * error when that failed; then there is no connection. */
extern bool rs_work_connect(RsWork *work, RsError *error);
extern void rs_work_disconnect(RsWork *work);

/* A transaction of our own with a snapshot, or nothing when there is one anyway. */
extern void rs_work_begin(RsWork *work);
extern void rs_work_end(RsWork *work);

/*
 * Adds the streams that this database has written to though no table is attached to them (any more): their
 * delay messages are to be seen to all the same.  Asks Redis, now and then.  False and an error when the
 * connection was lost.
 */
extern bool rs_work_know(RsWork *work, RsError *error);

/*
 * Brings the list of streams up to date with the attachments of the database; in a transaction.
 * False when the database has no extension (any more).
 */
extern bool rs_work_refresh(RsWork *work);

/* The stream of this name, which is added if it is not in the list. */
extern RsWorkStream *rs_work_stream(RsWork *work, const char *name);

/* A step looks at the stream: empties its report of the job. */
extern RsJobReport *rs_work_report_begin(RsWorkStream *stream, RsJob job);
/* Something went wrong with the stream: puts it into the report, and into the log unless the step
 * before ended with the same. */
extern void rs_work_report_error(RsWorkStream *stream, RsJob job, const char *error);

/* For how long a stream is left alone that Redis has refused so often in a row before; microseconds. */
extern uint64 rs_work_pause(int refusals);

/* Sends one command and waits, for redstream.timeout; the reply as a tree.  False and an error
 * when the connection failed: then there is none any more.  An error reply is a reply. */
extern bool rs_work_ask(RsWork *work, int count, const char *const *words, RsReply *reply,
						RsError *error);

/* ---- the jobs ----------------------------------------------------------------------- */

/*
 * One look at every stream whose time has come, and what there is to do for it.  Needs the
 * connection; opens and closes transactions as rs_work_begin() does.  What goes wrong with one
 * stream is in its report.  False and an error when the connection was lost: then it is
 * closed, and nothing is lost by that.
 */
extern bool rs_spooler_step(RsWork *work, RsError *error);
extern bool rs_delayer_step(RsWork *work, RsError *error);
extern bool rs_trimmer_step(RsWork *work, RsError *error);

/* When the next step is due, in monotonic microseconds; 0: now. */
extern uint64 rs_spooler_due(const RsWork *work);
extern uint64 rs_delayer_due(const RsWork *work);
extern uint64 rs_trimmer_due(const RsWork *work);

#endif							/* RS_WORKER_WORK_H */
