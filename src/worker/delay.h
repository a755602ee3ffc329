/*
 * delay.h
 *	  The delayer's parts: delayer.c, which stream is looked at when; move.c with chunk.c and
 *	  transfer.c, messages from one stream to the other; held.c, messages that stay; servers.c, other
 *	  servers; verdict.c, what became of a transaction.  For these files.
 */
#ifndef RS_WORKER_DELAY_H
#define RS_WORKER_DELAY_H

#include "worker/work.h"

/* Messages that stay though they are due, all for the same reason. */
typedef struct RsHeld
{
	uint64		top;			/* our transaction that has not ended; or 0, and ... */
	char	   *server;			/* ... another server, "<system identifier>:<timeline>", that is
								 * there; "": nobody's, passed by a flush before they are due */
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
	size_t		largest;		/* message lately; halved each time */
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

/* All older transactions have ended; in a transaction with a snapshot. */
extern uint64 rs_oldest_running(void);

/*
 * Are the main messages out of the main lane of all transactions that were seen as committed before this call?
 * False: not now, the sender has not caught up.  After some seconds of that it is true all the same.
 */
extern bool rs_lane_await(RsWork *work);

/*
 * What is certain of main messages: those of transactions that were seen as committed, have left the lane,
 * and are not older than "horizon", have been acknowledged by Redis.
 */
typedef struct RsConfirmation
{
	uint64		horizon;		/* 0: not reckoned yet */
	uint64		doubts;			/* rs_transport_doubts() when that was reckoned */
	char		run_id[sizeof(((RsServerInfo *) 0)->run_id)];
} RsConfirmation;

/* Reckons the horizon anew if there is a new doubt; with a connection. */
extern void rs_confirmation_refresh(RsWork *work);

/* ---- held.c ---------------------------------------------------------------------- */

/* Notes a message that stays, for our transaction "top" or for another server (NULL: ours). */
extern void rs_held_add(RsWorkStream *stream, uint64 top, const char *server, const RsStreamId *id);
/* Notes a stretch that is to be looked at again. */
extern void rs_held_add_ended(RsWorkStream *stream, const RsStreamId *first, const RsStreamId *last);
/* Has one of our transactions ended since they were last marked?  In a transaction with a snapshot. */
extern bool rs_held_has_ended(const RsDelayState *state);
/* Takes out one stretch of those whose reason is gone, the first one, with all others that overlap it; false when
 * there is none. */
extern bool rs_held_take(RsDelayState *state, RsStreamId *first, RsStreamId *last);
/* Marks those whose reason is gone; the stream is then looked at again now.  Opens and closes a transaction. */
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
/* Forgets those that were gone. */
extern void rs_servers_forget_gone(RsWork *work);
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
