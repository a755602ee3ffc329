/*
 * flight.h
 *	  What the sender has under way: commands queued, written, and not answered.
 *
 * A flight is a run of commands and the number of replies it still expects.
 * Flights are written in the order they were queued, and Redis answers in that
 * order, so that every reply belongs to the flight at the front.  One that is
 * answered stays, until it is acknowledged: with redstream.wait_replicas by the
 * answer to a WAIT behind it, else at once.  A flight does not own its
 * bytes: those of an entry stay in its lane until it is acknowledged, those of
 * a range or of copies in the publication until it is answered.
 */
#ifndef RS_TRANSPORT_FLIGHT_H
#define RS_TRANSPORT_FLIGHT_H

#include "transport/shared.h"

typedef enum RsFlightKind
{
	RS_FLIGHT_ENTRY,			/* an entry of a lane; acknowledged when answered */
	RS_FLIGHT_RANGE,			/* a publication's XRANGE */
	RS_FLIGHT_COPY,				/* a publication's XADDs */
	RS_FLIGHT_CLAIM,			/* of the server key */
	RS_FLIGHT_MARKER,			/* see marker.c */
	RS_FLIGHT_WAIT				/* for the replicas */
} RsFlightKind;

typedef struct RsFlight
{
	RsFlightKind kind;
	uint32		replies;		/* still to come; 0: answered when it is at the front */
	uint32		taken;			/* messages that Redis has taken */
	bool		writes;			/* the replicas have to have it, or what it has read */
	RsLane	   *lane;			/* of an entry */
	RsEntryNumber entry;
	uint32		counted;		/* bytes counted against the main lane's window */
	int			npieces;		/* bytes to write */
	struct iovec pieces[2];
} RsFlight;

/* How many more there is room for. */
extern int	rs_flights_room(void);
/* Is nothing left to be answered? */
extern bool rs_flights_empty(void);
extern void rs_flights_push(const RsFlight *flight);
/* The one whose replies come next; NULL when there is none. */
extern RsFlight *rs_flights_front(void);
/* It is answered. */
extern void rs_flights_answered(void);
/* The first of those that are answered; NULL when there is none. */
extern RsFlight *rs_flights_oldest(void);
/* It is acknowledged. */
extern void rs_flights_pop(void);
/* Forgets all; returns how many messages were written and not acknowledged. */
extern uint64 rs_flights_clear(void);
/* Are bytes left to be written? */
extern bool rs_flights_unwritten(void);
/* Writes what the socket takes; "any" says whether it took some.  False and an error when the connection is lost. */
extern bool rs_flights_write(RsConnection *connection, bool *any, RsError *error);

/* ---- publication.c: a large transaction, from the delay streams to the main ones ---- */

/* Begins, or after a failure takes up again, the publication at "number" of
 * the main lane. */
extern void rs_publication_open(const RsEntry *entry, RsEntryNumber number);
/* Is one open whose last message is not queued yet?  Nothing may be queued from the
 * main lane meanwhile. */
extern bool rs_publication_active(void);
/* The XRANGE for the next messages, or the XREVRANGE for the end of a main stream. */
extern void rs_publication_range(RsFlight *flight);
/* Takes the reply to it and makes the XADDs, possibly none; afterwards either another range
 * is due, or the publication is not active any more. */
extern void rs_publication_receive(const RsReply *reply, RsFlight *flight);
/* Redis has acknowledged the XADDs; false if there were none. */
extern bool rs_publication_copied(void);
/* The connection is gone: whoever opens it again goes on behind the last
 * acknowledged copy. */
extern void rs_publication_suspend(void);

#endif							/* RS_TRANSPORT_FLIGHT_H */
