/*
 * consuming.h
 *	  The door of src/consuming: what a transaction that consumes messages holds, and how
 *	  that ends with it.
 *
 * A *lease* is a consumer that this transaction works as, or whose offset it sets.  It ends
 * with the transaction: the offset is copied to Redis, and the lock released.  lease.c says
 * how; offsets.c keeps the offsets in a table; session.c is the way to Redis.
 */
#ifndef RS_CONSUMING_H
#define RS_CONSUMING_H

#include "redis/redis.h"

/* ---- session.c ------------------------------------------------------------------------ */

/*
 * The session's connection, ready for a command; NULL and an error when there is none to be had.  A failure of a
 * command on it is told to rs_session_lost(), which closes it.  After the last command rs_session_rest() lets the
 * timer have it again: on the way of an error, too.
 */
extern RsConnection *rs_session_connection(RsError *error);
extern void rs_session_lost(void);
/* Redis has refused a command: another connection may lead to a server that does not.  The next transaction has one. */
extern void rs_session_suspect(void);
extern void rs_session_rest(void);

/* ---- lease.c ------------------------------------------------------------------------ */

typedef struct RsLease
{
	RsConsumer	who;
	bool		locked;			/* we have the consumer's lock, as far as is known */
	bool		marked;			/* it has had a mark: what this transaction sees in the table may be its own */
	struct RsMark *marks;		/* where the offset is to be, the last one on top */
	int			nmarks;
	int			max_marks;
	struct RsLease *next;
} RsLease;

/* Registers the transaction callbacks; from _PG_init. */
extern void rs_consuming_init(void);

/*
 * The transaction's lease of a consumer, made if there is none, without the lock.  The names, in UTF-8, must have passed their
 * checks.  Raises program_limit_exceeded when there are too many, and an error while the transaction commits.
 */
extern RsLease *rs_lease_open(const char *stream, const char *consumer);

/* The lock is ours.  It is extended until the transaction ends. */
extern void rs_lease_locked(RsLease *lease);

/* The lock was refused: it is somebody else's.  A lease without marks is gone then. */
extern void rs_lease_refused(RsLease *lease);

/*
 * At the end of this (sub)transaction the offset is to be this one.  "placed": whatever it is by then and whoever has
 * the lock, as commit_offset() does it; else under the lock, and unless it is greater.
 */
extern void rs_lease_mark(RsLease *lease, const RsStreamId *id, bool placed);

/* From here on Redis is to be told nothing of the consumer's offset, if there is a lease of it: somebody has set it at once. */
extern void rs_lease_unmark(const char *stream, const char *consumer);

/* ---- offsets.c ---------------------------------------------------------------------- */

/*
 * The offset of a consumer in redstream.offsets, as this transaction sees it; false if there is none.  Stream and
 * consumer are names in the database's encoding, here and below.  Needs no rights of the caller.
 */
extern bool rs_offset_read(const char *stream, const char *consumer, RsStreamId *id);

/*
 * Sets it.  "expected" is what rs_offset_read() has found, NULL if nothing: raises serialization_failure when it is another
 * one now.  Raises what a table raises in a transaction that may not write.
 */
extern void rs_offset_move(const char *stream, const char *consumer, const RsStreamId *expected,
						   const RsStreamId *id);

/* Sets it, whatever it is.  Raises errors as above. */
extern void rs_offset_set(const char *stream, const char *consumer, const RsStreamId *id);

/* Forgets it, if there is one.  Raises errors as above, if there is one. */
extern void rs_offset_forget(const char *stream, const char *consumer);

#endif							/* RS_CONSUMING_H */
