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

/* A batch in the lanes. */
typedef struct RsSpoolFlight
{
	RsBuckets	bucket;
	RsEntryNumber delay;		/* behind its last entry; 0: it has none */
	RsEntryNumber main;
} RsSpoolFlight;

typedef enum RsDelivery
{
	RS_DELIVERY_DONE,			/* the rows that are marked so are */
	RS_DELIVERY_LATER,			/* Redis has not acknowledged the batch, or the lanes have no room */
	RS_DELIVERY_LOST			/* the connection is */
} RsDelivery;

/* Is one of the messages' streams to be asked again whether Redis takes it, or one of them too large for a lane? */
extern bool rs_deliver_is_delicate(RsWork *work, const RsSpoolBatch *batch);

/* Appends the batch to the lanes, or the first rows of it: the others it has no more.  DONE: it flies.  Tells Redis of its streams before. */
extern RsDelivery rs_deliver_send(RsWork *work, RsSpoolBatch *batch, RsSpoolFlight *flight, RsError *error);

/* Waits a while until the lanes have passed the batch; DONE: "refused" says whether Redis has refused some of it. */
extern RsDelivery rs_deliver_await(const RsSpoolFlight *flight, bool *refused);

/*
 * Delivers row by row on the worker's connection, and marks the rows that Redis has taken.  A stream that is refused is left
 * alone for a while, which its report tells.
 */
extern RsDelivery rs_deliver_alone(RsWork *work, RsSpoolBatch *batch, RsError *error);

#endif							/* RS_WORKER_SPOOLER_H */
