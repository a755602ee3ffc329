/*
 * chunk.h
 *	  Some messages of a delay stream, and what is to become of each.  For chunk.c and
 *	  move.c.
 */
#ifndef RS_WORKER_CHUNK_H
#define RS_WORKER_CHUNK_H

#include "worker/delay.h"

#define RS_CHUNK_MAX 1000		/* messages */

typedef enum RsFate
{
	RS_FATE_MOVE,
	RS_FATE_COMMITTED,			/* becomes one of the others */
	RS_FATE_DROP,
	RS_FATE_STAY
} RsFate;

typedef struct RsMessage
{
	RsStreamId	id;
	RsFate		fate;
	const char *payload;		/* in the reply; NULL: none, somebody else's entry */
	size_t		length;
	bool		ours;			/* a transaction of this server and timeline, xid */
	bool		ancestral;		/* one of this server on another timeline, xid */
	RsVerdict	verdict;		/* of one of ours */
	uint64		xid;
	uint64		top;			/* it stays until this transaction of ours has ended; or 0 */
	char		server[64];		/* another server, or timeline; "" if there is no xact field */
} RsMessage;

/* Why a chunk was cut. */
typedef enum RsCut
{
	RS_CUT_NOT,
	RS_CUT_DUE,					/* what follows is not due */
	RS_CUT_SERVER,				/* a server has to be asked about first */
	RS_CUT_AGAIN,				/* a transaction that messages stay for has just ended */
	RS_CUT_LANE,				/* main messages may be on their way */
	RS_CUT_PREDECESSOR			/* the server that this one was a standby of may still be there */
} RsCut;

/* A chunk, and the stretch of the stream it is read from. */
typedef struct RsChunk
{
	RsStreamId	next;			/* where the stretch goes on */
	RsStreamId	last;			/* where it ends */
	uint32		count;			/* messages to ask for; set to 1 or more at first */
	uint32		requested;		/* asked for */
	size_t		largest;		/* message so far */
	RsCut		cut;
	int			nread;			/* messages that were read ... */
	int			nmessages;		/* ... and that are to be dealt with: the rest is cut off */
	RsMessage	messages[RS_CHUNK_MAX];
} RsChunk;

/* Queues the XRANGE of the next messages of the stretch. */
extern void rs_chunk_request(RsChunk *chunk, RsConnection *connection, const RsKey *delay_key);

/* Takes in the reply, which must live as long as the payloads are used; false when nothing is left of the
 * stretch. */
extern bool rs_chunk_read(RsChunk *chunk, const RsReply *reply);

/*
 * Decides what becomes of each message, and cuts the chunk before the first that is not to be
 * dealt with now.  Opens and closes a transaction.  Begins a flush of the stream when that is needed.
 */
extern void rs_chunk_judge(RsChunk *chunk, RsWork *work, RsDelayState *state, int64 due_ms);

#endif							/* RS_WORKER_CHUNK_H */
