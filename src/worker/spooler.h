/*
 * spooler.h
 *	  The spooler's parts: spooler.c, which buckets are looked at when, and when they close; deliver.c, batches through the
 *	  lanes, or alone.  For these two files.
 */
#ifndef RS_WORKER_SPOOLER_H
#define RS_WORKER_SPOOLER_H

#include "spool/spool.h"
#include "transport/transport.h"
#include "worker/work.h"

/* A batch on its way. */
typedef struct RsSpoolFlight
{
	RsEntryNumber delay;		/* behind its last entry in the lane; 0: it has none */
	RsEntryNumber main;
	bool		alone;			/* Redis may refuse it: it goes row by row when the lanes have passed what is before */
	bool		publication;
} RsSpoolFlight;

typedef enum RsDelivery
{
	RS_DELIVERY_DONE,
	RS_DELIVERY_LATER,			/* Redis has not acknowledged the batch, or the lanes have no room */
	RS_DELIVERY_LOST			/* the connection is */
} RsDelivery;

/* Appends the batch to the lanes, or the first rows of it: the others it has no more.  Or leaves it to go alone.  DONE: it
 * flies.  Tells Redis of its streams before. */
extern RsDelivery rs_deliver_send(RsWork *work, RsSpoolBatch *batch, RsSpoolFlight *flight, RsError *error);

/* Waits a while until the lanes have passed the batch; DONE: Redis has it, or it is to go alone now. */
extern RsDelivery rs_deliver_await(RsSpoolFlight *flight);

/*
 * Delivers row by row on the worker's connection, and marks the rows that Redis has taken.  A stream that is refused is left
 * alone for a while, which its report tells.  False and an error when the connection was lost.
 */
extern bool rs_deliver_alone(RsWork *work, RsSpoolBatch *batch, RsError *error);

#endif							/* RS_WORKER_SPOOLER_H */
