/*
 * spool.h
 *	  The door of src/spool: the table redstream.spool, where transactions leave their records while
 *	  Redis does not take them, and the rules that keep these in order with the lanes.
 *
 * src/README.md draws the states of a bucket and says who joins, waits and leaves.
 */
#ifndef RS_SPOOL_H
#define RS_SPOOL_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* A set of buckets, one bit each; every stream belongs to one. */
typedef uint32 RsBuckets;

#define RS_BUCKETS 32

/* ---- book.c: who spools ----------------------------------------------------------- */

/* Bytes of shared memory; and taking them, under AddinShmemInitLock. */
extern size_t rs_spool_shmem_size(void);
extern void rs_spool_shmem_init(void);

/* The bucket of a stream. */
extern RsBuckets rs_spool_bucket(const char *ns, const char *stream);

/* Its number, from 0. */
extern int	rs_spool_bucket_number(RsBuckets bucket);

/* Is one of the buckets not NORMAL? */
extern bool rs_spool_is_on(RsBuckets buckets);

/*
 * Joins if one of the buckets is ON, turns the others ON, and returns true: the transaction's records go to the spool.  Waits while one is
 * CLOSING, for timeout_ms at most.  Throws on cancel and termination only.
 */
extern bool rs_spool_join(RsBuckets buckets, int timeout_ms);

/* Joins unless it has joined before, and turns the buckets ON. */
extern void rs_spool_begin(RsBuckets buckets);

/* The transaction has ended: leaves, and wakes the worker if that is wanted.  Does not throw, allocate or wait. */
extern void rs_spool_leave(bool wake);

/* A prepared transaction has been committed: has the worker look from the beginning.  Does not throw or wait. */
extern void rs_spool_wish(void);

/* ---- book.c: for the worker --------------------------------------------------------- */

/* This process is the one that delivers the database's spool, to its end. */
extern void rs_spool_serve(void);

/* Count the calls of rs_spool_wish(), and of rs_spool_leave(). */
extern uint64 rs_spool_wishes(void);
extern uint64 rs_spool_news(void);

/* The buckets that are not NORMAL. */
extern RsBuckets rs_spool_buckets(void);

/* Turns the bucket ON, without joining: there are rows. */
extern void rs_spool_found(RsBuckets bucket);

/* From ON to CLOSING; from CLOSING to NORMAL, false if it was turned ON meanwhile; from CLOSING back to ON. */
extern void rs_spool_close_begin(RsBuckets bucket);
extern bool rs_spool_close_end(RsBuckets bucket);
extern void rs_spool_close_abandon(RsBuckets bucket);

/*
 * Waits until everybody has left who was joined when it began, for timeout_ms at most; false if somebody has not.  Throws on
 * termination.
 */
extern bool rs_spool_await_leaving(int timeout_ms);

/* No row that becomes visible after this call has a position before this one, but for those of prepared transactions. */
extern XLogRecPtr rs_spool_horizon(void);

/* ---- book.c: for the launcher -------------------------------------------------------- */

/* The databases that have a place in the book, a palloced list of Oid. */
extern List *rs_spool_databases(void);

/* Gives the place of a database back that was dropped.  Does not throw. */
extern void rs_spool_forget(Oid database);

/* ---- store.c: rows, from the transaction that leaves them ------------------------------ */

/* Is the extension there?  Not after this transaction has dropped it. */
extern bool rs_spool_exists(void);

/* Is there a committed row in the bucket?  Raises undefined_table when the extension is not there. */
extern bool rs_spool_has_rows(RsBuckets bucket);

/* A position behind all that this process has given out, and behind the rows of every transaction that has ended; with
 * "count" more behind it that are given out with it. */
extern XLogRecPtr rs_spool_position(uint64 count);

/* Before the transaction ends: has WAL reach all positions given out, so that what others write afterwards has later ones. */
extern void rs_spool_settle(void);

typedef struct RsSpoolWriter RsSpoolWriter;

/* One row: a message, or what publishes a large transaction's delay messages. */
typedef struct RsSpoolRow
{
	RsBuckets	bucket;			/* of the stream */
	XLogRecPtr	position;
	uint64		xact;			/* top transaction, epoch-extended */
	const char *ns;
	const char *stream;			/* in UTF-8 */
	const char *data;			/* payload, JSON in UTF-8; or a publication, see transport.h */
	size_t		length;
	bool		publication;
} RsSpoolRow;

/*
 * Adds rows to redstream.spool in the current (sub)transaction, and locks the table until that ends; it needs no right, and no snapshot.  Raises undefined_table when the
 * extension is not there, and what writing a row can raise.
 */
extern RsSpoolWriter *rs_spool_writer_open(void);
extern void rs_spool_write(RsSpoolWriter *writer, const RsSpoolRow *row);
extern void rs_spool_writer_close(RsSpoolWriter *writer);

/* ---- fetch.c: rows, to the worker that delivers them ------------------------------------- */

typedef struct RsSpooled
{
	RsSpoolRow	row;
	TimestampTz spooled_at;
	bool		done;			/* to be deleted */
} RsSpooled;

/* Rows of one bucket, in order. */
typedef struct RsSpoolBatch
{
	MemoryContext context;		/* of the rows; reset by rs_spool_fetch() */
	RsSpooled  *rows;
	int			nrows;
	XLogRecPtr	next;			/* all rows before this position were looked at */
	XLogRecPtr	first_left;		/* position of the first row that was left out; 0: none was */
	bool		end;			/* nothing is behind them */
} RsSpoolBatch;

/* Is this stream to be left out? */
typedef bool (*RsSpoolLeave) (void *argument, const char *ns, const char *stream);

extern RsSpoolBatch *rs_spool_batch_create(MemoryContext parent);

/*
 * Reads the next rows of the bucket, from the position on, and those behind "before" (NULL: none).  So many, and so many bytes, as
 * can well be sent at once; possibly none, though it is not the end.  In a transaction with a snapshot, which was taken after
 * rs_spool_horizon() gave the horizon.
 */
extern void rs_spool_fetch(RsSpoolBatch *batch, RsBuckets bucket, XLogRecPtr from, XLogRecPtr horizon,
						   const RsSpoolBatch *before, RsSpoolLeave leave, void *argument);

/* Has the batch end before the row with this number, as if it had not been read. */
extern void rs_spool_batch_cut(RsSpoolBatch *batch, int nrows);

/* Deletes the rows that are done, and still there; the snapshot does not show them any more.  In a transaction. */
extern void rs_spool_delete(const RsSpoolBatch *batch);

#endif							/* RS_SPOOL_H */
