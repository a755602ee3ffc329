/*
 * shared.h
 *	  The transport's shared memory, for the files of this directory.
 *
 * Locking.  Appenders of a lane exclude each other by the lane's lwlock.  The
 * sender takes no lwlock: it reads "head" and writes "tail", backends the
 * other way round, both as atomics with barriers between a counter and what it
 * publishes.  An entry's "tag" is changed by compare-and-exchange only, and
 * holds the entry's number, so that a late change cannot hit a successor.
 * Spinlocks guard the few fields named at them.
 */
#ifndef RS_TRANSPORT_SHARED_H
#define RS_TRANSPORT_SHARED_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

#include "clock.h"
#include "transport/transport.h"

/* State of an entry: the two low bits of its tag.  Entries of the delay lane
 * are born READY. */
typedef enum RsEntryState
{
	RS_ENTRY_OPEN,				/* its transaction has not ended */
	RS_ENTRY_READY,				/* committed: to be sent */
	RS_ENTRY_VOID,				/* aborted: nothing to send */
	RS_ENTRY_PASSED				/* given up by the sender, left to the delay messages */
} RsEntryState;

#define RS_TAG(number, state) (((uint64) (number) << 2) | (state))
#define RS_TAG_STATE(tag) ((RsEntryState) ((tag) & 3))

typedef enum RsEntryKind
{
	RS_ENTRY_COMMANDS,			/* encoded commands */
	RS_ENTRY_PUBLICATION		/* an RsPublicationHeader and what follows it */
} RsEntryKind;

typedef struct RsEntry
{
	pg_atomic_uint64 tag;
	uint64		start;			/* position of its bytes in the lane */
	uint64		taken_at;		/* monotonic microseconds */
	uint32		length;
	uint32		commands;		/* replies to expect */
	uint32		owner;			/* process number of who appended */
	RsEntryKind kind;
} RsEntry;

typedef struct RsLane
{
	LWLock		lock;			/* appenders; guards head_byte */
	uint64		head_byte;
	pg_atomic_uint64 head;		/* next entry to be appended */
	pg_atomic_uint64 tail;		/* first entry not acknowledged */
	pg_atomic_uint64 tail_byte;
	ConditionVariable space;	/* the tail moved */
	RsEntry    *entries;		/* rs_lane_entries() of them, a ring */
	char	   *bytes;			/* rs_lane_size() of them, a ring */
} RsLane;

/* What backends know of the connection. */
typedef enum RsLink
{
	RS_LINK_UNKNOWN,			/* no sender, or it is (re)connecting */
	RS_LINK_UP,
	RS_LINK_DOWN				/* known to be away */
} RsLink;

/* When the sender will look at the lanes without being woken. */
typedef enum RsAttention
{
	RS_ATTENTION_NONE,			/* not at all */
	RS_ATTENTION_SOON,			/* within a millisecond: good enough for the end of a place */
	RS_ATTENTION_REPLY,			/* when the next reply to a delay message comes: good
								 * enough for a small one */
	RS_ATTENTION_NOW			/* never promised */
} RsAttention;

#define RS_NO_PROCESS PG_UINT32_MAX

/* One a backend, by process number. */
typedef struct RsSlot
{
	pg_atomic_uint64 awaited;	/* entry of the delay lane it sleeps for, plus 1; 0: none */
	pg_atomic_uint32 busy;
	slock_t		mutex;			/* guards what follows */
	RsEntryNumber delay_from;	/* the outcome is that of these entries on */
	RsEntryNumber main_from;
	RsDelayOutcome outcome;
} RsSlot;

#define RS_LIVES 64

/* From one start or crash of the server to the next. */
typedef struct RsLife
{
	uint64		first_xid;		/* next to be assigned when it began */
	pg_atomic_uint64 began_ms;	/* by Redis's clock, no later than any delay message of it; 0: there is none so far */
} RsLife;

typedef struct RsShared
{
	pg_atomic_uint32 link;		/* RsLink; written by the sender */
	pg_atomic_uint32 sender;	/* process number, or RS_NO_PROCESS */
	pg_atomic_uint32 attention; /* RsAttention; written by the sender */
	pg_atomic_uint64 progress;	/* when Redis last acknowledged something */
	pg_atomic_uint32 nlives;	/* the present one included; 0: nothing is known yet */
	pg_atomic_uint64 redis;		/* counts the times that another Redis was met */
	pg_atomic_uint64 doubts;	/* counts main messages that are not acknowledged though their
								 * entry is gone, or may not be kept */
	slock_t		mutex;			/* guards what follows; the sender writes */
	TimestampTz since;
	char		last_error[sizeof(((RsError *) 0)->text)];
	TimestampTz last_error_at;
	/* Only the sender, and the one that follows it, use these. */
	uint64		sender_started;	/* monotonic microseconds */
	char		run_id[sizeof(((RsServerInfo *) 0)->run_id)];
	int64		client_id;		/* connection to be killed before the next is used */
	uint64		marker_sent;	/* marker.c's: the last number sent, ... */
	uint64		marker;			/* ... and acknowledged; 0: nothing is known */
	RsLife		lives[RS_LIVES];	/* lives.c's; the sender writes */
	RsLane		delay;
	RsLane		main;
	RsSlot		slots[FLEXIBLE_ARRAY_MEMBER];
} RsShared;

extern RsShared *rs_shared;

/* ---- a publication's bytes in the main lane ------------------------------- */

#define RS_PUBLICATION_VERSION 1

typedef struct RsPublicationHeader
{
	uint32		version;		/* of what is in it; some are kept in tables */
	RsStreamId	first;
	RsStreamId	last;
	char		xact_field[64];
	uint32		nstreams;		/* RsPublicationStream and its keys, each */
	uint32		nxids;			/* RsXidRange */
	uint64		expected;		/* delay messages that were not rolled back */
	uint32		largest;		/* payload of the transaction */
} RsPublicationHeader;

typedef struct RsPublicationStream
{
	uint32		delay_key_length;
	uint32		stream_key_length;
} RsPublicationStream;

/* ---- lane.c ----------------------------------------------------------------- */

extern size_t rs_lane_size(void);
extern uint32 rs_lane_entries(void);
extern RsEntry *rs_lane_entry(const RsLane *lane, RsEntryNumber number);

/* The bytes of an entry, as one or two pieces of the ring; returns how many. */
extern int	rs_lane_pieces(const RsLane *lane, const RsEntry *entry, struct iovec pieces[2]);

/* Frees all entries up to and including this one and wakes who waits for that. */
extern void rs_lane_acknowledge(RsLane *lane, RsEntryNumber number);

/* Wakes everyone who waits for the lanes, to look at rs_shared->link again. */
extern void rs_lane_wake_all(void);

/* ---- sender.c ---------------------------------------------------------------- */

extern PGDLLEXPORT void redstream_sender_main(Datum argument);

#endif							/* RS_TRANSPORT_SHARED_H */
