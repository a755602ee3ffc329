/*
 * trim.h
 *	  The trimmer's parts: trimmer.c, which streams are looked at when; trim_look.c, what Redis
 *	  says of them; trim_judge.c, what follows from that; trim_history.c, what is remembered in
 *	  Redis and told in the log; trim_cut.c, the trimming itself.  For these files.
 */
#ifndef RS_WORKER_TRIM_H
#define RS_WORKER_TRIM_H

#include "worker/work.h"

/* A registered consumer. */
typedef struct RsTrimConsumer
{
	const char *name;
	bool		named_well;		/* else it cannot have an offset */
	bool		committed;		/* there is an offset */
	RsStreamId	offset;
	RsStreamId	keep;			/* the first id that it may still read; 0-0 without an offset */
	bool		ahead;			/* its offset is behind the end of the stream, or the stream is gone */
	bool		stranded;		/* its offset is older than the stream, which was refilled */
	bool		ahead_told;		/* marks in the history: it is in the log already */
	bool		losing_told;
} RsTrimConsumer;

/* A consumer group. */
typedef struct RsTrimGroup
{
	const char *name;
	size_t		length;
	int64		pending;
	RsStreamId	keep;			/* as above */
} RsTrimGroup;

/* A stream, as one look found it.  Lives in the memory context that was current then. */
typedef struct RsTrimLook
{
	RsWorkStream *stream;
	bool		failed;			/* an error is in the report, and nothing below can be trusted */

	/* trim_look.c */
	RsStreamState state;
	int			nconsumers;
	RsTrimConsumer *consumers;
	int			ngroups;
	RsTrimGroup *groups;
	RsStreamHistory history;
	List	   *strays;			/* of char *: marks of consumers that are not registered (any more) */

	/* trim_judge.c */
	bool		refill;			/* noticed by this look */
	bool		has_refilled;	/* this one or an earlier one still matters to a consumer */
	RsStreamId	refilled;		/* the first id after it */
	bool		problem;		/* a consumer is ahead or stranded */
	bool		expires;
	RsStreamId	expiry;			/* what is older goes */
	bool		trims;			/* there is something to trim */
	RsStreamId	target;			/* everything before it */
} RsTrimLook;

/* ---- trim_look.c ------------------------------------------------------------------------- */

/* A look at a stream, empty so far. */
extern RsTrimLook *rs_trim_look_create(RsWorkStream *stream);

/* Fills these looks, in two round trips, and tells Redis's clock.  False and an error when the
 * connection is of no more use. */
extern bool rs_trim_look(RsWork *work, List *looks, int64 *now_ms, RsError *error);

/* Takes the next reply of the pipeline.  False as above, and also for an error that speaks of the
 * whole server and not of what was asked. */
extern bool rs_trim_next(RsWork *work, RsReply *reply, RsError *error);

/* The look failed with this error reply, to this command. */
extern void rs_trim_failed(RsTrimLook *look, const char *command, const RsReply *reply);

/* ---- trim_judge.c ------------------------------------------------------------------------ */

extern void rs_trim_judge(RsTrimLook *look, int64 now_ms);

/* ---- trim_history.c ---------------------------------------------------------------------- */

/* Puts what these looks found into the log, as far as it is new, and into the histories, as
 * far as they changed.  False and an error when the connection is of no more use. */
extern bool rs_trim_remember(RsWork *work, List *looks, RsError *error);

/* So many messages are gone, and counted in the history, that nobody who keeps from before
 * "point" had read: counts them here, and tells whose losses begin.  Returns as above. */
extern bool rs_trim_lost(RsWork *work, RsTrimLook *look, const RsStreamId *point, int64 count,
						 RsError *error);

/* ---- trim_cut.c --------------------------------------------------------------------------- */

/* Takes the stream's lock, looks again, and trims what is to be trimmed then.  Fills the
 * stream's report.  False and an error when the connection is of no more use. */
extern bool rs_trim_cut(RsWork *work, RsWorkStream *stream, RsError *error);

#endif							/* RS_WORKER_TRIM_H */
