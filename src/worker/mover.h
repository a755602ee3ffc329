/*
 * mover.h
 *	  What moves the messages of one stream: transfer.c, one chunk in one transaction of Redis;
 *	  move.c, which messages, in which order.  For these two files.
 */
#ifndef RS_WORKER_MOVER_H
#define RS_WORKER_MOVER_H

#include "worker/chunk.h"

#define RS_WORDS_MAX (RS_CHUNK_MAX + 12)

/* Why a scan of a stretch of the stream ended. */
typedef enum RsScanEnd
{
	RS_SCAN_NOT,				/* it has not */
	RS_SCAN_DONE,
	RS_SCAN_TURN,				/* other streams wait */
	RS_SCAN_SERVER,				/* a server has to be asked about */
	RS_SCAN_AGAIN,				/* a transaction has ended that messages stayed for */
	RS_SCAN_WAIT,				/* the rest has to wait */
	RS_SCAN_LOCKED,				/* the lock is not ours any more */
	RS_SCAN_REFUSED,			/* Redis refused, see the report */
	RS_SCAN_LOST				/* the connection is */
} RsScanEnd;

/* What a transaction of Redis will have done. */
typedef struct RsOutcome
{
	bool		under_way;		/* the replies are still to come */
	int			commands;		/* between MULTI and EXEC */
	int64		moved;
	int64		dropped;
	RsStreamId	done;			/* the last message dealt with */
	RsStreamId	offset;			/* 0-0: not set */
} RsOutcome;

typedef struct RsMover
{
	RsWork	   *work;
	RsWorkStream *stream;
	RsDelayState *state;
	RsJobReport *report;
	int64		due_ms;
	RsKey		delay_key;
	RsKey		main_key;
	RsKey		lock_key;
	RsKey		offset_key;
	RsKey		flush_key;
	RsStreamId	offset;			/* the delayer's, as Redis has it */
	int			turn;			/* chunks left of it */
	bool		prefix;			/* nothing before or in the stretch stays: it may be trimmed */
	bool		main;			/* the stretch is that from the cursor on */
	RsChunk		chunk;
	RsOutcome	composed;
	RsOutcome	sent;
	RsError    *error;			/* of a lost connection */
	int			nwords;			/* of the command being made */
	const char *words[RS_WORDS_MAX];
	size_t		lengths[RS_WORDS_MAX];
	char		ids[RS_CHUNK_MAX][RS_STREAM_ID_SIZE];
} RsMover;

/* ---- transfer.c ---------------------------------------------------------------------- */

/* Asks whether the lock is ours, and has Redis watch it; to be flushed.  The second takes the answers in. */
extern void rs_transfer_queue_guard(RsMover *mover);
extern RsScanEnd rs_transfer_check_guard(RsMover *mover);

/* Queues the transaction for the chunk, and the guard of the next one.  Notes what stays. */
extern void rs_transfer_compose(RsMover *mover);

/* Waits for the transaction that is under way, if one is, and the guard behind it, and counts what it has
 * done.  RS_SCAN_NOT when all is well. */
extern RsScanEnd rs_transfer_settle(RsMover *mover);

/* Waits for the next reply; false when the connection is lost. */
extern bool rs_transfer_next(RsMover *mover, bool tree, RsReply *reply);

/* Redis refused with this text, which goes into the report. */
extern RsScanEnd rs_transfer_refused(RsMover *mover, const char *text, size_t length);

#endif							/* RS_WORKER_MOVER_H */
