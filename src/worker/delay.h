/*
 * delay.h
 *	  The delayer's parts: delayer.c, which stream is looked at when; move.c, messages from
 *	  one stream to the other; held.c, messages that stay; verdict.c, what became of a
 *	  transaction.  For these files.
 */
#ifndef RS_WORKER_DELAY_H
#define RS_WORKER_DELAY_H

#include "worker/work.h"

/* Messages that stay though they are due, all for the same reason. */
typedef struct RsHeld
{
	uint64		top;			/* our transaction that has not ended; 0: another server's */
	char	   *server;			/* that server, "<system identifier>:<timeline>"; or NULL */
	bool		ended;			/* the reason is gone: to be looked at again */
	RsStreamId	first;			/* they are among these */
	RsStreamId	last;
} RsHeld;

typedef struct RsDelayState
{
	int			connection;		/* that all this was learnt on */
	uint64		look_at;		/* monotonic microseconds; 0: now */
	int64		delay_ms;		/* that look_at was reckoned with */
	int			failures;		/* in a row */
	bool		flush;			/* see chunk.c */
	RsStreamId	cursor;			/* all before it is gone or held */
	RsHeld	   *held;
	int			nheld;
	int			held_size;
} RsDelayState;

/* ---- verdict.c ------------------------------------------------------------------- */

typedef enum RsVerdict
{
	RS_VERDICT_RUNNING,			/* or prepared */
	RS_VERDICT_COMMITTED,
	RS_VERDICT_ABORTED,			/* as a whole or to a savepoint, also by a crash */
	RS_VERDICT_UNKNOWN			/* too old to be asked about, or not known to this server */
} RsVerdict;

/*
 * What became of a (sub)transaction of this server; in a transaction with a snapshot.  "top" is set for a
 * running one: the transaction whose end is to be waited for.
 */
extern RsVerdict rs_verdict(uint64 xid, uint64 *top);

/*
 * What is certain of main messages: those of transactions that are seen as committed and are not older than
 * "horizon" have been acknowledged by Redis, once rs_confirmation_await() has returned true.
 */
typedef struct RsConfirmation
{
	uint64		horizon;		/* 0: not reckoned yet */
	uint64		doubts;			/* rs_transport_doubts() when that was reckoned */
	char		run_id[sizeof(((RsServerInfo *) 0)->run_id)];
	uint64		stuck_since;	/* when the lane was first waited for in vain; 0: it was not */
} RsConfirmation;

/* Reckons the horizon anew if there is a new doubt; with a connection. */
extern void rs_confirmation_refresh(RsWork *work);

/* Makes it hold for all transactions that were seen as committed before this call.  False: not now, as the
 * sender has not caught up. */
extern bool rs_confirmation_await(RsWork *work);

/* ---- held.c ---------------------------------------------------------------------- */

/* Notes a message that stays, for our transaction "top" or for another server (NULL: ours). */
extern RsHeld *rs_held_add(RsWorkStream *stream, uint64 top, const char *server, const RsStreamId *id);
/* Forgets the one with this index. */
extern void rs_held_remove(RsDelayState *state, int index);
/* Marks those whose reason is gone.  Opens and closes a transaction. */
extern void rs_held_recheck(RsWork *work, RsDelayState *state);
/* Forgets all, and how far the stream was read: it is read from its beginning next time. */
extern void rs_delay_forget(RsDelayState *state);
/* The first message that is held; false if none is. */
extern bool rs_held_first(const RsDelayState *state, RsStreamId *id);

/* ---- servers.c ------------------------------------------------------------------- */

typedef enum RsServerLife
{
	RS_SERVER_UNKNOWN,			/* not asked about yet */
	RS_SERVER_ALIVE,			/* its own delayer sees to its messages */
	RS_SERVER_GONE
} RsServerLife;

/* What is known of another server since the last rs_servers_ask(). */
extern RsServerLife rs_server_life(const RsWork *work, const char *server);
/* Adds a server to those that are asked about. */
extern void rs_server_note(RsWork *work, const char *server);
/* Asks Redis about all of them.  False and an error when the connection was lost. */
extern bool rs_servers_ask(RsWork *work, RsError *error);

/* ---- move.c ---------------------------------------------------------------------- */

/*
 * Takes the stream's lock and deals with the messages that are due: those up to "due_ms", and those whose
 * reason to be held is gone.  Fills the stream's report; "more" if it stopped before all was done, to let
 * other streams have their turn.  False and an error when the connection was lost.
 */
extern bool rs_move_due(RsWork *work, RsWorkStream *stream, int64 due_ms, bool *more, RsError *error);

#endif							/* RS_WORKER_DELAY_H */
