/*
 * asking.h
 *	  How the SQL functions of this directory ask Redis, and how they take and give
 *	  names.  For the files of this directory.
 *
 * A call that needs Redis has a connection of its own, non-blocking, so that it can be
 * cancelled.  What is malloced belongs to the connection: close it in PG_FINALLY.
 */
#ifndef RS_API_ASKING_H
#define RS_API_ASKING_H

#include "fmgr.h"
#include "nodes/pg_list.h"

#include "redis/redis.h"

/* ---- arguments and results --------------------------------------------------- */

/* A text argument in UTF-8, as Redis has it.  The second and third raise invalid_name for
 * what is no name of a stream or consumer. */
extern char *rs_api_utf8_argument(FunctionCallInfo fcinfo, int number);
extern char *rs_api_stream_argument(FunctionCallInfo fcinfo, int number);
extern char *rs_api_consumer_argument(FunctionCallInfo fcinfo, int number);
extern void rs_api_invalid_name(const RsError *error) pg_attribute_noreturn();

/*
 * Text of Redis in the database's encoding.  Raises no error for its content, which may be
 * anybody's: where it is not UTF-8, or the encoding lacks a character of it, every
 * byte that is not printable ASCII becomes \x and two hex digits.
 */
extern text *rs_api_text(const char *data, size_t length);

/* A payload, which may be anything.  Raises what jsonb's input function raises, and an error for what is no UTF-8. */
extern Datum rs_api_jsonb(const char *payload, size_t length);

/* ---- asking ------------------------------------------------------------------- */

/* The RsWait of SQL functions: gives up on cancel and termination. */
extern bool rs_api_wait(void *argument, int fd, bool writable, int timeout_ms);

/* Raises the cancellation if that is the reason, else io_error. */
extern void rs_api_failed(const RsError *error) pg_attribute_noreturn();

/* Raises io_error when there is no connection to be had. */
extern RsConnection *rs_api_connect(void);

/*
 * The connection of the transaction's leases (consuming.h); raises io_error.  A command on it that failed is raised by the second,
 * after it has seen to the connection; "refused": Redis has answered, and not done it.
 */
extern RsConnection *rs_api_lease_connection(void);
extern void rs_api_lease_failed(bool refused, const RsError *error) pg_attribute_noreturn();

/* Sends one command of terminated words and waits for the reply, as a tree.  Raises
 * io_error for a failure and for an error reply. */
extern void rs_api_ask(RsConnection *connection, int count, const char *const *words,
					   RsReply *reply);

/*
 * For many commands: rs_redis_queue() each, flush, and take their replies in turn, as
 * trees.  Raises io_error for a failure.  False: Redis refused this command for what it
 * is, such as WRONGTYPE; the reply says why.  A refusal that speaks of the server's
 * state, such as LOADING, is raised.
 */
extern void rs_api_flush(RsConnection *connection);
extern bool rs_api_next(RsConnection *connection, RsReply *reply);

/*
 * The streams of this database, a list of RsAttachedStream (capture.h) in the current memory context: those
 * that tables are attached to, and those that it has written to otherwise or before.  Raises io_error.
 */
extern List *rs_api_streams(RsConnection *connection);

#endif							/* RS_API_ASKING_H */
