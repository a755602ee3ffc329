/*
 * sender.h
 *	  The sender's parts: link.c, the connection and its failures; exchange.c, commands and
 *	  replies; marker.c, whether Redis still has what it acknowledged; lives.c, which transactions crashes have made the server forget; sender.c, the process.  For these files; all
 *	  run in the sender.
 */
#ifndef RS_TRANSPORT_SENDER_H
#define RS_TRANSPORT_SENDER_H

#include "transport/flight.h"

#define RS_FOREVER PG_UINT64_MAX

/* ---- link.c ------------------------------------------------------------------ */

/* Why a connection is given up. */
typedef enum RsTrouble
{
	RS_TROUBLE_ENTRY,			/* refused, or the connection ended: the entry may be why */
	RS_TROUBLE_REDIS,			/* an error that says that Redis is in no state to work */
	RS_TROUBLE_SILENCE			/* no answer, no connection: Redis is away */
} RsTrouble;

/* The connection; NULL while there is none. */
extern RsConnection *rs_link_connection(void);
/* Connects, if it is time to; failing that, says when the next try is due. */
extern void rs_link_open(void);
extern uint64 rs_link_retry_at(void);
/* Closes the connection in peace, when the sender ends.  One that ends without ever having had a connection that works
 * leaves Redis as away: else everybody would wait in vain while one after the other does. */
extern void rs_link_leave(void);
/* Closes it for new settings, and forgets past failures. */
extern void rs_link_renew(void);
/* The one answer to all trouble: closes it, and decides when to try again. */
extern void rs_link_give_up(const char *why, RsTrouble trouble);
/* Redis has answered, or there was nothing to ask.  The connection counts as
 * working, unless what the last one failed with is still to come. */
extern void rs_link_prove(void);
extern bool rs_link_is_proven(void);
/* May this lane be served?  Until the suspect of the last failure is acknowledged only its
 * own lane may, or the other one would keep it from ever having its turn. */
extern bool rs_link_serves(const RsLane *lane);
/* The entry has made progress: it is not suspected any more. */
extern void rs_link_absolve(const RsLane *lane, RsEntryNumber entry);
/* Has the entry failed so often, alone on fresh connections, that it must be the cause? */
extern bool rs_link_is_hopeless(const RsLane *lane, RsEntryNumber entry);
/* The answer to a claim of the server key: gives the connection up, and returns false, if it is not
 * ours. */
extern bool rs_link_judge_claim(bool ours);
/* For redstream.stats: counts an error and keeps its text. */
extern void rs_link_note_error(const char *text);
/* Sleeps until the socket or the latch has something, or the time has come (RS_FOREVER:
 * never), and says whether the socket can be read. */
extern bool rs_link_wait(uint64 until, bool writing);

/* ---- exchange.c --------------------------------------------------------------- */

/* Queues what the lanes have and writes what the socket takes. */
extern void rs_exchange_send(void);
/* Takes in what Redis has answered. */
extern void rs_exchange_receive(void);
/* Gives the connection up if Redis has been silent for too long. */
extern void rs_exchange_check_silence(void);
/* When that, or a look at an open place, is due; RS_FOREVER: not at all. */
extern uint64 rs_exchange_due(void);
/* The connection is gone: everything not acknowledged is to be sent again. */
extern void rs_exchange_rewind(void);

/* ---- marker.c ----------------------------------------------------------------- */

/* What Redis says of the marker is compared with what it has acknowledged.  On a fresh connection, which waits for the
 * reply: false and an error if there was none. */
extern bool rs_marker_check(RsConnection *fresh, RsError *error);
/* The same, as a command for the exchange, which "writes" the next number, too, or only looks; the reply to it; and that
 * the number is acknowledged: what was found counts only when the replicas have it. */
extern void rs_marker_command(RsFlight *flight, bool writes);
extern void rs_marker_judge(const RsReply *reply);
extern void rs_marker_acknowledged(void);
/* Another namespace has another marker. */
extern void rs_marker_forget(void);

/* ---- lives.c ------------------------------------------------------------------- */

/* A life of the server begins, with this as the next transaction id. */
extern void rs_life_begin(uint64 first_xid);
/* By Redis's clock all of its delay messages will be no older than that time: to be called before the
 * first is sent.  False and an error when it could not be written down. */
extern bool rs_life_note_beginning(uint64 began_ms, RsError *error);
/* A delay message has this id; with an older one, should the clock be set back, the life began earlier: to be called before
 * the message counts as acknowledged.  False and an error as above. */
extern bool rs_life_note_id(const RsStreamId *id, RsError *error);

/* ---- sender.c ------------------------------------------------------------------ */

/* Is a shutdown pending, and everything sent that can be, or redstream.timeout over? */
extern bool rs_sender_ends(void);

/* Backends do not say that they are gone: microseconds between two looks while a shutdown is pending. */
#define RS_DRAIN_INTERVAL 20000

#endif							/* RS_TRANSPORT_SENDER_H */
