/*
 * lane.c
 *	  The two lanes: appending, waiting for acknowledgement, ending a place.
 *
 * A lane is a ring of bytes and a ring of entries that say which bytes belong
 * together.  Backends append at the head, the sender frees at the tail, in
 * order.  A full lane makes appenders wait: this is the backpressure.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"

#include "settings.h"
#include "transport/shared.h"

#define BYTES_PER_ENTRY 128		/* of lane for each entry of its ring: one short message */
#define ENTRIES_PER_LANE 4		/* of the greatest size still fit into a lane */
#define SMALL_ENTRY 8192		/* bytes that may wait for others, to leave together */
#define CAP_FACTOR 10			/* a wait's total cap, in timeouts */

size_t
rs_lane_size(void)
{
	return (size_t) rs_queue_size * 1024;
}

uint32
rs_lane_entries(void)
{
	return rs_lane_size() / BYTES_PER_ENTRY;
}

size_t
rs_lane_entry_limit(void)
{
	return rs_lane_size() / ENTRIES_PER_LANE;
}

size_t
rs_lane_size_for(size_t entry)
{
	return entry * ENTRIES_PER_LANE;
}

RsEntry *
rs_lane_entry(const RsLane *lane, RsEntryNumber number)
{
	return &lane->entries[number % rs_lane_entries()];
}

int
rs_lane_pieces(const RsLane *lane, const RsEntry *entry, struct iovec pieces[2])
{
	size_t		size = rs_lane_size();
	size_t		offset = entry->start % size;
	size_t		length = entry->length;
	size_t		first = Min(length, size - offset);

	pieces[0].iov_base = lane->bytes + offset;
	pieces[0].iov_len = first;
	pieces[1].iov_base = lane->bytes;
	pieces[1].iov_len = length - first;
	return length > first ? 2 : 1;
}

/* ---- waiting ------------------------------------------------------------- */

static RsSlot *
my_slot(void)
{
	Assert(MyProc->pgprocno < MaxBackends);
	return &rs_shared->slots[MyProc->pgprocno];
}

void
rs_patience_start(RsPatience *patience)
{
	patience->started = rs_now();
}

/*
 * Milliseconds left of an allowance: redstream.timeout from its start or from
 * the last acknowledgement of anything, whichever is later, and never past the cap.
 */
static long
patience_left(const RsPatience *patience)
{
	uint64		timeout = (uint64) rs_timeout * 1000;
	uint64		progress = pg_atomic_read_u64(&rs_shared->progress);
	uint64		end = Max(patience->started, progress) + timeout;
	uint64		now = rs_now();

	end = Min(end, patience->started + CAP_FACTOR * timeout);
	return end > now ? (long) ((end - now + 999) / 1000) : 0;
}

bool
rs_transport_is_down(void)
{
	return pg_atomic_read_u32(&rs_shared->link) == RS_LINK_DOWN;
}

/* May a wait go on, and for how many milliseconds?  RS_WAIT_DONE: yes. */
static RsWaitResult
may_wait(const RsPatience *patience, long *left)
{
	if (rs_transport_is_down())
		return RS_WAIT_DOWN;
	*left = patience_left(patience);
	return *left > 0 ? RS_WAIT_DONE : RS_WAIT_TIMEOUT;
}

RsWaitResult
rs_delay_wait(RsEntryNumber entry, RsPatience *patience)
{
	RsLane	   *lane = &rs_shared->delay;
	RsSlot	   *slot = my_slot();
	RsWaitResult result = RS_WAIT_DONE;
	long		left;

	/* Left set when an interrupt throws: costs a wake-up for nothing. */
	pg_atomic_write_u64(&slot->awaited, entry + 1);
	pg_memory_barrier();
	while (pg_atomic_read_u64(&lane->tail) <= entry &&
		   (result = may_wait(patience, &left)) == RS_WAIT_DONE)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pg_atomic_write_u64(&slot->awaited, 0);
	return result;
}

/* Wakes the sender after a change of a lane, unless it pays that much attention. */
static void
wake_sender(RsAttention enough)
{
	uint32		process = pg_atomic_read_u32(&rs_shared->sender);

	pg_memory_barrier();		/* the change, then whether the sender will look by itself */
	if (pg_atomic_read_u32(&rs_shared->attention) < enough && process != RS_NO_PROCESS)
		SetLatch(&ProcGlobal->allProcs[process].procLatch);
}

/* ---- appending ----------------------------------------------------------- */

/* What an appender brings. */
typedef struct RsFreight
{
	const char *data;
	size_t		length;
	uint32		commands;
	RsEntryKind kind;
	RsEntryState state;
} RsFreight;

static void
copy_in(RsLane *lane, const RsEntry *entry, const char *data)
{
	struct iovec pieces[2];
	int			count = rs_lane_pieces(lane, entry, pieces);

	memcpy(pieces[0].iov_base, data, pieces[0].iov_len);
	if (count == 2)
		memcpy(pieces[1].iov_base, data + pieces[0].iov_len, pieces[1].iov_len);
}

/* Appends if there is room. */
static bool
try_append(RsLane *lane, const RsFreight *freight, RsEntryNumber *number)
{
	RsEntry    *entry;
	RsEntryNumber head;
	bool		fits;

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	head = pg_atomic_read_u64(&lane->head);
	fits = head - pg_atomic_read_u64(&lane->tail) < rs_lane_entries() &&
		lane->head_byte - pg_atomic_read_u64(&lane->tail_byte) + freight->length <= rs_lane_size();
	if (fits)
	{
		pg_memory_barrier();	/* see the tail, then overwrite what it freed */
		entry = rs_lane_entry(lane, head);
		entry->start = lane->head_byte;
		entry->length = freight->length;
		entry->taken_at = rs_now();
		entry->commands = freight->commands;
		entry->owner = MyProc->pgprocno;
		entry->kind = freight->kind;
		pg_atomic_write_u64(&entry->tag, RS_TAG(head, freight->state));
		copy_in(lane, entry, freight->data);
		lane->head_byte += freight->length;
		pg_write_barrier();		/* the entry, then the head that shows it */
		pg_atomic_write_u64(&lane->head, head + 1);
		*number = head;
	}
	LWLockRelease(&lane->lock);
	return fits;
}

static RsWaitResult
append(RsLane *lane, const RsFreight *freight, RsPatience *patience, RsEntryNumber *number)
{
	RsWaitResult result = RS_WAIT_DONE;
	long		left;

	Assert(freight->length <= rs_lane_entry_limit());
	if (!try_append(lane, freight, number))
	{
		ConditionVariablePrepareToSleep(&lane->space);
		while (!try_append(lane, freight, number) &&
			   (result = may_wait(patience, &left)) == RS_WAIT_DONE)
			(void) ConditionVariableTimedSleep(&lane->space, left, PG_WAIT_EXTENSION);
		ConditionVariableCancelSleep();
	}
	return result;
}

RsWaitResult
rs_delay_append(const char *data, size_t length, uint32 commands,
				RsPatience *patience, RsEntryNumber *entry)
{
	RsFreight	freight = {data, length, commands, RS_ENTRY_COMMANDS, RS_ENTRY_READY};

	RsWaitResult result;

	if (rs_transport_is_down())
		return RS_WAIT_DOWN;
	result = append(&rs_shared->delay, &freight, patience, entry);
	if (result == RS_WAIT_DONE)
		wake_sender(length < SMALL_ENTRY ? RS_ATTENTION_REPLY : RS_ATTENTION_NOW);
	return result;
}

RsWaitResult
rs_main_take(const char *data, size_t length, uint32 commands,
			 RsPatience *patience, RsEntryNumber *place)
{
	RsFreight	freight = {data, length, commands, RS_ENTRY_COMMANDS, RS_ENTRY_OPEN};

	return append(&rs_shared->main, &freight, patience, place);
}

static char *
put(char *out, const void *data, size_t length)
{
	memcpy(out, data, length);
	return out + length;
}

char *
rs_publication_encode(const RsPublication *publication, size_t *length)
{
	RsPublicationHeader header;
	char	   *data;
	char	   *out;

	memset(&header, 0, sizeof(header));
	header.version = RS_PUBLICATION_VERSION;
	header.first = publication->first;
	header.last = publication->last;
	header.nstreams = publication->nstreams;
	header.nxids = publication->nxids;
	header.expected = publication->expected;
	header.largest = publication->largest;
	strlcpy(header.xact_field, publication->xact_field, sizeof(header.xact_field));
	*length = sizeof(header) + sizeof(RsXidRange) * publication->nxids;
	for (int i = 0; i < publication->nstreams; i++)
		*length += sizeof(RsPublicationStream) +
			publication->streams[i].delay_key->length + publication->streams[i].stream_key->length;

	data = palloc_extended(*length, MCXT_ALLOC_HUGE);
	out = put(data, &header, sizeof(header));
	for (int i = 0; i < publication->nstreams; i++)
	{
		const RsPublishedStream *stream = &publication->streams[i];
		RsPublicationStream lengths = {stream->delay_key->length, stream->stream_key->length};

		out = put(out, &lengths, sizeof(lengths));
		out = put(out, stream->delay_key->text, stream->delay_key->length);
		out = put(out, stream->stream_key->text, stream->stream_key->length);
	}
	(void) put(out, publication->xids, sizeof(RsXidRange) * publication->nxids);
	return data;
}

bool
rs_publication_is_valid(const char *data, size_t length)
{
	RsPublicationHeader header;
	size_t		expected = sizeof(header);

	if (length < sizeof(header))
		return false;
	memcpy(&header, data, sizeof(header));
	if (header.version != RS_PUBLICATION_VERSION ||
		memchr(header.xact_field, '\0', sizeof(header.xact_field)) == NULL)
		return false;
	for (uint32 i = 0; i < header.nstreams; i++)
	{
		RsPublicationStream lengths;

		if (length < expected + sizeof(lengths))
			return false;
		memcpy(&lengths, data + expected, sizeof(lengths));
		if (lengths.delay_key_length >= RS_KEY_SIZE || lengths.stream_key_length >= RS_KEY_SIZE)
			return false;
		expected += sizeof(lengths) + lengths.delay_key_length + lengths.stream_key_length;
	}
	return length == expected + sizeof(RsXidRange) * header.nxids;
}

RsWaitResult
rs_main_take_publication(const char *data, size_t length, RsPatience *patience,
						 RsEntryNumber *place)
{
	RsFreight	freight = {data, length, 0, RS_ENTRY_PUBLICATION, RS_ENTRY_OPEN};

	return append(&rs_shared->main, &freight, patience, place);
}

void
rs_main_resolve(RsEntryNumber place, bool committed)
{
	RsEntry    *entry = rs_lane_entry(&rs_shared->main, place);
	uint64		expected = RS_TAG(place, RS_ENTRY_OPEN);

	/* Fails when the sender has passed the place: nothing is left to say. */
	(void) pg_atomic_compare_exchange_u64(&entry->tag, &expected,
										  RS_TAG(place, committed ? RS_ENTRY_READY : RS_ENTRY_VOID));
}

void
rs_main_resolved(void)
{
	wake_sender(RS_ATTENTION_SOON);
}

static bool
wait_for_tail(RsLane *lane, RsEntryNumber number, uint64 end)
{
	uint64		now;

	ConditionVariablePrepareToSleep(&lane->space);
	while (pg_atomic_read_u64(&lane->tail) < number && (now = rs_now()) < end)
		(void) ConditionVariableTimedSleep(&lane->space, (end - now + 999) / 1000, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	return pg_atomic_read_u64(&lane->tail) >= number;
}

bool
rs_lanes_wait(RsEntryNumber delay, RsEntryNumber main, int timeout_ms)
{
	uint64		end = rs_now() + (uint64) timeout_ms * 1000;

	return wait_for_tail(&rs_shared->delay, delay, end) && wait_for_tail(&rs_shared->main, main, end);
}

static RsEntryNumber
head_of(RsLane *lane)
{
	pg_memory_barrier();		/* what the caller saw, then the head */
	return pg_atomic_read_u64(&lane->head);
}

RsEntryNumber
rs_delay_head(void)
{
	return head_of(&rs_shared->delay);
}

RsEntryNumber
rs_main_head(void)
{
	return head_of(&rs_shared->main);
}

bool
rs_main_has_passed(RsEntryNumber head)
{
	bool		passed = pg_atomic_read_u64(&rs_shared->main.tail) >= head;

	pg_memory_barrier();		/* the tail, then the doubts about what it passed */
	return passed;
}

uint64
rs_transport_progress(void)
{
	return pg_atomic_read_u64(&rs_shared->progress);
}

void
rs_transport_doubt(void)
{
	pg_atomic_fetch_add_u64(&rs_shared->doubts, 1);
}

uint64
rs_transport_doubts(void)
{
	return pg_atomic_read_u64(&rs_shared->doubts);
}

void
rs_transport_set_busy(bool busy)
{
	pg_atomic_write_u32(&my_slot()->busy, busy);
}

/* ---- what Redis answered to this process's delay messages ----------------- */

void
rs_delay_track(void)
{
	RsSlot	   *slot = my_slot();
	RsEntryNumber delay_head = pg_atomic_read_u64(&rs_shared->delay.head);
	RsEntryNumber main_head = pg_atomic_read_u64(&rs_shared->main.head);

	SpinLockAcquire(&slot->mutex);
	slot->delay_from = delay_head;
	slot->main_from = main_head;
	memset(&slot->outcome, 0, sizeof(slot->outcome));
	SpinLockRelease(&slot->mutex);
}

void
rs_delay_outcome(RsDelayOutcome *outcome)
{
	RsSlot	   *slot = my_slot();

	SpinLockAcquire(&slot->mutex);
	*outcome = slot->outcome;
	SpinLockRelease(&slot->mutex);
}

/* ---- the sender's side ---------------------------------------------------- */

void
rs_lane_acknowledge(RsLane *lane, RsEntryNumber number)
{
	RsEntry    *entry = rs_lane_entry(lane, number);
	uint32		owner = entry->owner;
	uint64		end = entry->start + entry->length;

	pg_memory_barrier();		/* done with the entry before it is free */
	pg_atomic_write_u64(&lane->tail_byte, end);
	pg_atomic_write_u64(&lane->tail, number + 1);
	pg_memory_barrier();		/* the tail, then who waits for it */
	if (lane == &rs_shared->delay &&
		pg_atomic_read_u64(&rs_shared->slots[owner].awaited) == number + 1)
		SetLatch(&ProcGlobal->allProcs[owner].procLatch);
	ConditionVariableBroadcast(&lane->space);
}

void
rs_lane_wake_all(void)
{
	pg_memory_barrier();
	for (int i = 0; i < MaxBackends; i++)
		if (pg_atomic_read_u64(&rs_shared->slots[i].awaited) != 0)
			SetLatch(&ProcGlobal->allProcs[i].procLatch);
	ConditionVariableBroadcast(&rs_shared->delay.space);
	ConditionVariableBroadcast(&rs_shared->main.space);
}
