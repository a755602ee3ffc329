/*
 * transaction.h
 *	  The door of src/transaction: the records of the running transaction, from
 *	  the row change to the end of the transaction.
 */
#ifndef RS_TRANSACTION_H
#define RS_TRANSACTION_H

/* Registers the transaction callbacks; from _PG_init while preloading. */
extern void rs_transaction_init(void);

/*
 * The number, in this process, of the stream with this (valid) name under the
 * namespace now set.  It stays good until rs_namespace_generation changes.
 */
extern int	rs_transaction_stream(const char *name);

/* Raises object_not_in_prerequisite_state when nothing can be announced, as the library was not preloaded. */
extern void rs_transaction_check_preloaded(void);

/*
 * Raises an error when a payload of that length cannot be announced (program_limit_exceeded),
 * or nothing can, as the library was not preloaded (object_not_in_prerequisite_state).
 */
extern void rs_transaction_check_size(size_t length);

/*
 * Adds a record to the running transaction: one message, announced when and if the
 * (sub)transaction now current commits.  "payload" is JSON in UTF-8 and is
 * copied.  With "repeatable" the record says nothing that an equal one
 * before it, still in the window, has not said, and is left out.
 *
 * Raises what rs_transaction_check_size() raises; feature_not_supported in a transaction
 * that is being prepared; and, under redstream.on_outage = error, io_error when Redis does not
 * take what has to be sent now.
 */
extern void rs_transaction_record(int stream, const char *payload, size_t length, bool repeatable);

/*
 * Sends the delay messages of all records so far, and waits until Redis has acknowledged them (with
 * redstream.wait_for_ack = off: not for that).  Raises as rs_transaction_record().
 */
extern void rs_transaction_flush(void);

/* Counts the errors of this process that were raised because Redis was away or too slow, so that trying again may
 * help. */
extern uint64 rs_transaction_outages(void);

#endif							/* RS_TRANSACTION_H */
