/*
 * transport.h
 *	  The door of src/transport: two queues ("lanes") in shared memory and the
 *	  background worker, the sender, that empties them into Redis.
 *
 * src/README.md draws the states of a place and of the sender, and says who
 * changes them under which lock.
 */
#ifndef RS_TRANSPORT_H
#define RS_TRANSPORT_H

#include "datatype/timestamp.h"
#include "redis/redis.h"

/* Number of an entry in a lane; they only grow. */
typedef uint64 RsEntryNumber;

/* How a wait for Redis ended. */
typedef enum RsWaitResult
{
	RS_WAIT_DONE,
	RS_WAIT_DOWN,				/* the sender knows that Redis is away */
	RS_WAIT_REFUSED,			/* Redis will never take one of the messages */
	RS_WAIT_TIMEOUT				/* no progress for redstream.timeout, or the total cap passed */
} RsWaitResult;

/* One allowance of waiting, which several waits may share. */
typedef struct RsPatience
{
	uint64		started;		/* monotonic microseconds */
} RsPatience;

/* What Redis answered to what a process has appended. */
typedef struct RsDelayOutcome
{
	bool		refused;		/* a message of either lane, for good */
	bool		any;			/* taken: first and last are the range of their ids */
	RsStreamId	first;
	RsStreamId	last;
} RsDelayOutcome;

/* Consecutive (sub)transaction ids, both ends included. */
typedef struct RsXidRange
{
	uint64		first;
	uint64		last;
} RsXidRange;

/* The streams of a publication: where its messages are and where they go. */
typedef struct RsPublishedStream
{
	const RsKey *delay_key;
	const RsKey *stream_key;
} RsPublishedStream;

/* Connection and queues, for redstream.stats. */
typedef struct RsTransportStatus
{
	bool		connected;
	TimestampTz since;			/* of the connection or of its loss; 0: never */
	char		last_error[sizeof(((RsError *) 0)->text)];
	TimestampTz last_error_at;	/* 0: none */
	uint64		delay_bytes;	/* queued in each lane */
	uint64		main_bytes;
} RsTransportStatus;

/* From _PG_init while preloading: asks for shared memory, registers the sender. */
extern void rs_transport_init(void);

/* Is there shared memory, i.e. was the library preloaded? */
extern bool rs_transport_ready(void);

/* Starts an allowance of waiting now. */
extern void rs_patience_start(RsPatience *patience);

/* The most bytes one entry may have. */
extern size_t rs_lane_entry_limit(void);
/* The size of the lanes that take one of so many. */
extern size_t rs_lane_size_for(size_t entry);

/*
 * Appends encoded commands ("commands" of them, at most rs_lane_entry_limit()
 * bytes) to the delay lane; waits while the lane is full, and appends nothing while
 * Redis is known to be down.  Throws on cancel and termination only.  "entry" is set
 * when the result is RS_WAIT_DONE.
 */
extern RsWaitResult rs_delay_append(const char *data, size_t length, uint32 commands,
									RsPatience *patience, RsEntryNumber *entry);

/* Waits until Redis has acknowledged that entry and all before it.  Throws on
 * cancel and termination only. */
extern RsWaitResult rs_delay_wait(RsEntryNumber entry, RsPatience *patience);

/*
 * What Redis has answered so far to the messages that this process
 * appended since rs_delay_track(); ids are those of delay messages.
 */
extern void rs_delay_track(void);
extern void rs_delay_outcome(RsDelayOutcome *outcome);

/*
 * Takes a place in the main lane for encoded commands; waits while the lane is
 * full.  Throws on cancel and termination only, and then no place is taken.
 */
extern RsWaitResult rs_main_take(const char *data, size_t length, uint32 commands,
								 RsPatience *patience, RsEntryNumber *place);

/*
 * What announces a transaction whose messages the sender is to copy from the
 * delay streams.
 */
typedef struct RsPublication
{
	RsStreamId	first;			/* those with an id between these, ... */
	RsStreamId	last;
	const char *xact_field;		/* ... and in this field ... */
	const RsXidRange *xids;		/* ... one of these transaction ids, sorted */
	int			nxids;
	const RsPublishedStream *streams;
	int			nstreams;
	uint64		expected;		/* so many there should be; 0: not known */
	uint32		largest;		/* payload */
} RsPublication;

/* The publication as bytes, palloced, for a place or for the spool. */
extern char *rs_publication_encode(const RsPublication *publication, size_t *length);

/* Are these bytes that rs_publication_encode() of this library has made? */
extern bool rs_publication_is_valid(const char *data, size_t length);

/* Takes a place for an encoded publication, of rs_lane_entry_limit() bytes at most, as rs_main_take() does. */
extern RsWaitResult rs_main_take_publication(const char *data, size_t length,
											 RsPatience *patience, RsEntryNumber *place);

/*
 * Says how the transaction of a place ended.  One atomic exchange: does not
 * throw, allocate or wait; for commit and abort callbacks.  Afterwards, once for
 * all places, rs_main_resolved() tells the sender.
 */
extern void rs_main_resolve(RsEntryNumber place, bool committed);
extern void rs_main_resolved(void);

/* Behind the last entry of each lane.  They do not throw. */
extern RsEntryNumber rs_delay_head(void);
extern RsEntryNumber rs_main_head(void);

/* Waits until each lane is done with all entries before that one, for timeout_ms at most; false if one is not.  Throws on cancel
 * and termination only. */
extern bool rs_lanes_wait(RsEntryNumber delay, RsEntryNumber main, int timeout_ms);

/*
 * What is known of main messages, for redstream.repeat = unconfirmed.  Once the main
 * lane's tail has passed the head that rs_main_head() gave, the main messages of every transaction
 * that was seen as committed before are acknowledged by Redis, unless the count of doubts has grown
 * since that transaction began.  rs_transport_doubt() makes it grow: this process's transaction may commit and
 * will have no main message.  They do not throw.
 */
extern bool rs_main_has_passed(RsEntryNumber head);
/* When Redis last acknowledged something, in monotonic microseconds. */
extern uint64 rs_transport_progress(void);
extern uint64 rs_transport_doubts(void);
extern void rs_transport_doubt(void);

/* Is it known with which transaction id this life of the server began? */
extern bool rs_transport_knows_lives(void);

/* Has this life met Redis?  Before it has, nothing that it writes there is told from what earlier ones have written. */
extern bool rs_transport_has_begun(void);

/*
 * Is the transaction of a delay message, written at that time of Redis's clock, one that this server has forgotten
 * by a crash, the last one or one before?  Its id was not assigned yet when a later life of the server began, and may have another
 * transaction now.  It has rolled back, or its commit was asynchronous and is lost.
 */
extern bool rs_transport_is_forgotten(uint64 xid, uint64 written_ms);

/* Does the sender know that Redis is away? */
extern bool rs_transport_is_down(void);

/* Counts the times that another Redis was met, which may not have what the one before had. */
extern uint64 rs_transport_redis(void);

/* Marks this process as having (or no more having) a captured transaction
 * open, which a sender that shuts down waits for.  Does not throw. */
extern void rs_transport_set_busy(bool busy);

/* A snapshot of connection and queues. */
extern void rs_transport_status(RsTransportStatus *status);

#endif							/* RS_TRANSPORT_H */
