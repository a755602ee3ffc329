/*
 * exchange.c
 *	  Commands out of the lanes, replies to their entries: all without blocking.
 *
 * Every error is an outage but WRONGTYPE, which no retry heals: such a command
 * counts as answered, and the transaction it belongs to, if it still waits, is
 * told.  So does an entry that has proved to be hopeless.
 *
 * With redstream.wait_replicas what is written together is followed by one WAIT, whose answer
 * acknowledges it.  Redis executes nothing that comes behind a WAIT on its connection before that is
 * answered; so what comes meanwhile stays in the lanes and makes the next group.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "stats.h"
#include "transport/sender.h"

#define MAIN_WINDOW (128 * 1024)	/* bytes of main messages under way: what a
									 * delay message may have to queue behind */
#define POLL_INTERVAL 1000		/* microseconds between two looks at an open place */
#define MAIN_RESERVE 512		/* flights that delay messages leave to main messages */
#define CLAIM_INTERVAL 10000000 /* microseconds between two claims of the server key, which
								 * holds for RS_SERVER_TTL_S */

#define MARKER_INTERVAL 10000	/* microseconds between two writes of the marker */

static RsEntryNumber next_delay;	/* first entries that are not under way */
static RsEntryNumber next_main;
static size_t main_bytes;		/* of main messages under way */
static uint32 delay_flights;	/* delay entries under way */
static bool publishing;			/* nothing of the main lane may be queued behind ... */
static RsEntryNumber published; /* ... this publication until it is acknowledged */
static uint64 heard_at;			/* the last sign that Redis is at it, or the first command after none */
static uint64 look_at = RS_FOREVER; /* when to look at the first open place again */
static uint64 claim_at;			/* when to renew the claim of the server key */
static bool claiming;			/* a claim is under way */
static uint32 unconfirmed;		/* flights that write and are not acknowledged */
static bool waiting;			/* a WAIT is under way */
static bool marking;			/* a marker is under way */
static bool unmarked;			/* something was written since the last one ... */
static uint64 mark_at;			/* ... and then it is due */
static bool marker_due;			/* it is to be looked at in any case */
static bool held;				/* the publication goes on when its copies are acknowledged */

void
rs_exchange_rewind(void)
{
	rs_stats_add(RS_COUNT_RESENT, rs_flights_clear());
	rs_publication_suspend();
	next_delay = pg_atomic_read_u64(&rs_shared->delay.tail);
	next_main = pg_atomic_read_u64(&rs_shared->main.tail);
	main_bytes = 0;
	delay_flights = 0;
	publishing = false;
	claiming = false;
	unconfirmed = 0;
	waiting = false;
	marking = false;
	unmarked = false;
	marker_due = false;
	held = false;

	/* WAIT says nothing on a connection that has written nothing. */
	claim_at = rs_wait_replicas > 0 ? 0 : rs_now() + CLAIM_INTERVAL;
}

/* ---- what a transaction is told ------------------------------------------------ */

/* Notes the id that a delay message got.  False when the connection was given up, as the life could not be noted. */
static bool
note_id(const RsFlight *flight, const RsReply *reply)
{
	RsSlot	   *slot = &rs_shared->slots[rs_lane_entry(flight->lane, flight->entry)->owner];
	RsStreamId	id;
	RsError		error;

	if (!rs_redis_id_parse(reply->text, reply->length, &id))
		return true;
	if (!rs_life_note_id(&id, &error))
	{
		rs_link_give_up(error.text, RS_TROUBLE_SILENCE);
		return false;
	}
	SpinLockAcquire(&slot->mutex);
	if (flight->entry >= slot->delay_from)
	{
		RsDelayOutcome *outcome = &slot->outcome;

		if (!outcome->any || rs_redis_id_compare(&id, &outcome->first) < 0)
			outcome->first = id;
		if (!outcome->any || rs_redis_id_compare(&id, &outcome->last) > 0)
			outcome->last = id;
		outcome->any = true;
	}
	SpinLockRelease(&slot->mutex);
	return true;
}

static bool
is_delay(const RsFlight *flight)
{
	return flight->kind == RS_FLIGHT_ENTRY && flight->lane == &rs_shared->delay;
}

/* Notes that a message of an entry will never be taken. */
static void
note_refusal(const RsFlight *flight)
{
	RsSlot	   *slot = &rs_shared->slots[rs_lane_entry(flight->lane, flight->entry)->owner];

	SpinLockAcquire(&slot->mutex);
	if (flight->entry >= (is_delay(flight) ? slot->delay_from : slot->main_from))
		slot->outcome.refused = true;
	SpinLockRelease(&slot->mutex);
}

/* ---- commands ------------------------------------------------------------------- */

/* May another flight leave?  A connection that is not proven has to bring one
 * home first. */
static bool
may_queue(int reserve)
{
	return !waiting && rs_flights_room() > reserve && (rs_link_is_proven() || rs_flights_empty());
}

static void
queue_flight(const RsFlight *flight)
{
	if (rs_flights_empty())
		heard_at = rs_now();
	unconfirmed += flight->writes;
	unmarked |= flight->writes && (flight->kind == RS_FLIGHT_ENTRY || flight->kind == RS_FLIGHT_COPY);
	rs_flights_push(flight);
}

/* A transaction's main messages are not, or not all, sent. */
static void
leave_to_delay_message(void)
{
	rs_transport_doubt();
	rs_stats_add(RS_COUNT_PASSED, 1);
}

/* Queues an entry; "empty" if there is nothing of it to be sent. */
static void
queue_entry(RsLane *lane, RsEntryNumber number, bool empty)
{
	const RsEntry *entry = rs_lane_entry(lane, number);
	RsFlight	flight = {.kind = RS_FLIGHT_ENTRY,.lane = lane,.entry = number};

	if (!empty && rs_link_is_hopeless(lane, number))
	{
		rs_link_note_error("gave up on messages that Redis refuses again and again");
		note_refusal(&flight);
		if (!is_delay(&flight))
			leave_to_delay_message();
		empty = true;
	}
	if (!empty)
	{
		flight.replies = entry->commands;
		flight.writes = true;
		flight.npieces = rs_lane_pieces(lane, entry, flight.pieces);
		flight.counted = lane == &rs_shared->main ? entry->length : 0;
		main_bytes += flight.counted;
	}
	delay_flights += is_delay(&flight);
	queue_flight(&flight);
}

static void
queue_delay(void)
{
	RsEntryNumber head = pg_atomic_read_u64(&rs_shared->delay.head);

	pg_read_barrier();
	while (next_delay < head && rs_link_serves(&rs_shared->delay) && may_queue(MAIN_RESERVE))
		queue_entry(&rs_shared->delay, next_delay++, false);
}

/* How the place ended, or, after redstream.timeout, that it is passed. */
static RsEntryState
judge_place(RsEntry *entry, RsEntryNumber number)
{
	uint64		tag = pg_atomic_read_u64(&entry->tag);
	uint64		deadline = entry->taken_at + (uint64) rs_timeout * 1000;

	if (RS_TAG_STATE(tag) != RS_ENTRY_OPEN)
		return RS_TAG_STATE(tag);
	if (rs_now() < deadline)
	{
		look_at = Min(deadline, rs_now() + POLL_INTERVAL);
		return RS_ENTRY_OPEN;
	}
	if (!pg_atomic_compare_exchange_u64(&entry->tag, &tag, RS_TAG(number, RS_ENTRY_PASSED)))
		return RS_TAG_STATE(tag);
	leave_to_delay_message();
	return RS_ENTRY_PASSED;
}

/* The next range of the publication or, behind its last copies, its end. */
static void
continue_publication(void)
{
	RsFlight	flight;

	if (rs_publication_active())
	{
		rs_publication_range(&flight);
		queue_flight(&flight);
	}
	else
		queue_entry(&rs_shared->main, next_main++, true);
}

static void
queue_main(void)
{
	RsEntryNumber head = pg_atomic_read_u64(&rs_shared->main.head);

	pg_read_barrier();
	look_at = RS_FOREVER;
	while (next_main < head && !publishing && main_bytes < MAIN_WINDOW &&
		   rs_link_serves(&rs_shared->main) && may_queue(0))
	{
		RsEntry    *entry = rs_lane_entry(&rs_shared->main, next_main);
		RsEntryState state = judge_place(entry, next_main);

		if (state == RS_ENTRY_OPEN)
			break;
		pg_read_barrier();
		if (state == RS_ENTRY_READY && entry->kind == RS_ENTRY_PUBLICATION &&
			!rs_link_is_hopeless(&rs_shared->main, next_main))
		{
			publishing = true;
			published = next_main;
			rs_publication_open(entry, next_main);
			continue_publication();
		}
		else
			queue_entry(&rs_shared->main, next_main++, state != RS_ENTRY_READY);
	}
}

/* The claim of the server key is renewed now and then.  One is made as soon as there is a
 * connection (link.c). */
static void
queue_claim(void)
{
	static StringInfoData command;
	const char *words[RS_CLAIM_WORDS];
	RsFlight	flight = {.kind = RS_FLIGHT_CLAIM,.replies = 1,.writes = true,.npieces = 1};
	RsKey		key;

	if (claiming || rs_now() < claim_at || !may_queue(0))
		return;
	if (command.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&command);
		MemoryContextSwitchTo(old);
	}
	rs_redis_server_key(&key, rs_namespace, rs_identity_server());
	rs_redis_claim_words(&key, rs_identity_token(), words);
	resetStringInfo(&command);
	enlargeStringInfo(&command, rs_redis_command_size(RS_CLAIM_WORDS, words, NULL));
	command.len = rs_redis_command_write(command.data, RS_CLAIM_WORDS, words, NULL) - command.data;
	flight.pieces[0].iov_base = command.data;
	flight.pieces[0].iov_len = command.len;
	claiming = true;
	queue_flight(&flight);
}

/* The marker is written behind what is written, though not more often than makes sense; and looked at with each claim. */
static void
queue_marker(void)
{
	RsFlight	flight = {.kind = RS_FLIGHT_MARKER,.replies = 1};
	bool		writes = unmarked && rs_now() >= mark_at;

	if (marking || !(writes || marker_due) || !may_queue(0))
		return;
	rs_marker_command(&flight, writes);
	marking = true;
	marker_due = false;
	if (writes)
	{
		unmarked = false;
		mark_at = rs_now() + MARKER_INTERVAL;
	}
	queue_flight(&flight);
}

/* Asks whether the replicas have what was written. */
static void
queue_wait(void)
{
	static char command[64];
	RsReplicaWait wait;
	RsFlight	flight = {.kind = RS_FLIGHT_WAIT,.replies = 1,.npieces = 1};

	if (rs_wait_replicas == 0 || waiting || unconfirmed == 0)
		return;
	rs_replica_wait_set(&wait);
	flight.pieces[0].iov_base = command;
	flight.pieces[0].iov_len = rs_redis_command_write(command, RS_WAIT_WORDS, wait.words, NULL) - command;
	waiting = true;
	queue_flight(&flight);
}

/* ---- replies ------------------------------------------------------------------------ */

/* The flight is acknowledged. */
static void
complete(const RsFlight *flight)
{
	unconfirmed -= flight->writes;
	if (flight->kind == RS_FLIGHT_RANGE || flight->kind == RS_FLIGHT_WAIT)
		return;
	if (flight->kind == RS_FLIGHT_CLAIM)
	{
		claiming = false;
		claim_at = rs_now() + CLAIM_INTERVAL;
		marker_due = true;
		return;
	}
	if (flight->kind == RS_FLIGHT_MARKER)
	{
		marking = false;
		rs_marker_acknowledged();
		return;
	}
	if (flight->kind == RS_FLIGHT_COPY)
	{
		/* A long publication need not be over to count as a recovery. */
		if (rs_publication_copied())
			rs_link_absolve(&rs_shared->main, published);
		rs_stats_add(RS_COUNT_ACKNOWLEDGED, flight->taken);
		if (held)
			continue_publication();
		held = false;
		return;
	}
	rs_stats_add(is_delay(flight) ? RS_COUNT_DELAYED : RS_COUNT_ACKNOWLEDGED, flight->taken);
	main_bytes -= flight->counted;
	delay_flights -= is_delay(flight);
	if (publishing && flight->lane == &rs_shared->main && flight->entry == published)
		publishing = false;
	rs_lane_acknowledge(flight->lane, flight->entry);
}

/* Takes the flights off that expect no more replies and, unless the replicas "have" them, no
 * answer to a WAIT either. */
static void
settle(bool have)
{
	RsFlight   *flight;

	for (;;)
	{
		if ((flight = rs_flights_front()) != NULL && flight->replies == 0)
			rs_flights_answered();
		else if ((flight = rs_flights_oldest()) != NULL &&
				 (have || rs_wait_replicas == 0 || !flight->writes))
		{
			complete(flight);
			rs_flights_pop();
		}
		else
			break;
	}
}

/* An error reply.  False when it is an outage, and the connection was given up. */
static bool
survive_error(const RsFlight *flight, const RsReply *reply)
{
	RsError		why;

	rs_redis_error(&why, "%s: %.*s", is_delay(flight) ? "delay message" :
				   flight->kind == RS_FLIGHT_RANGE ? "XRANGE" :
				   flight->kind == RS_FLIGHT_CLAIM ? "server key" :
				   flight->kind == RS_FLIGHT_MARKER ? "marker" :
				   flight->kind == RS_FLIGHT_WAIT ? "WAIT" : "main message",
				   (int) reply->length, reply->text);
	if (!rs_redis_error_is(reply, "WRONGTYPE") || flight->kind == RS_FLIGHT_CLAIM ||
		flight->kind == RS_FLIGHT_MARKER)
	{
		/* Other words than ERR speak of the server's state, not of the command. */
		rs_link_give_up(why.text, rs_redis_error_is(reply, "ERR ") ? RS_TROUBLE_ENTRY : RS_TROUBLE_REDIS);
		return false;
	}
	rs_link_note_error(why.text);
	if (flight->kind == RS_FLIGHT_ENTRY)
		note_refusal(flight);
	if (!is_delay(flight))
		rs_transport_doubt();
	return true;
}

/* Queues the copies that a range brings, and what follows them.  Copies that the replicas have to have are alone until
 * they do: a failure goes on from what is acknowledged. */
static void
handle_range(const RsReply *reply)
{
	RsFlight	copies;

	rs_publication_receive(reply, &copies);
	queue_flight(&copies);
	held = rs_wait_replicas > 0;
	if (!held)
		continue_publication();
}

/* So many replicas have what was written before the WAIT.  False when that is too few: an outage. */
static bool
handle_wait(const RsReply *reply)
{
	RsError		why;

	waiting = false;
	if (rs_replica_wait_check(reply, &why))
		return true;
	rs_link_give_up(why.text, RS_TROUBLE_SILENCE);
	return false;
}

/* One reply to the flight at the front.  False when the connection was given up. */
static bool
handle_reply(RsFlight *flight, const RsReply *reply)
{
	bool		refused = reply->type == RS_REPLY_ERROR;

	if (refused && !survive_error(flight, reply))
		return false;
	flight->replies--;
	if (flight->kind == RS_FLIGHT_RANGE)
		handle_range(reply);
	else if (flight->kind == RS_FLIGHT_WAIT)
		return handle_wait(reply);
	else if (refused)
		return true;
	else if (flight->kind == RS_FLIGHT_CLAIM)
		return rs_link_judge_claim(reply->type == RS_REPLY_INTEGER && reply->integer == 1);
	else if (flight->kind == RS_FLIGHT_MARKER)
		rs_marker_judge(reply);
	else
	{
		if (is_delay(flight) && !note_id(flight, reply))
			return false;
		flight->taken += reply->type == RS_REPLY_STRING;	/* not a stream's listing */
	}
	return true;
}

void
rs_exchange_receive(void)
{
	RsError		error;
	RsReply		reply;
	RsFlight   *flight;
	bool		acknowledges;
	bool		have;
	int			result = rs_redis_read(rs_link_connection(), &error);
	uint64		now = rs_now();

	/* A part of a reply counts only where that is large: others are late if they come in parts. */
	if (result > 0 && (flight = rs_flights_front()) != NULL && flight->kind == RS_FLIGHT_RANGE)
		heard_at = now;
	while (result >= 0 && (flight = rs_flights_front()) != NULL)
	{
		result = rs_redis_reply(rs_link_connection(), flight->kind == RS_FLIGHT_RANGE,
								&reply, &error);
		if (result <= 0)
			break;
		heard_at = now;
		acknowledges = rs_wait_replicas == 0 || !flight->writes;
		have = flight->kind == RS_FLIGHT_WAIT;
		if (!handle_reply(flight, &reply))
			return;
		settle(have);
		if (!acknowledges)
			continue;
		pg_atomic_write_u64(&rs_shared->progress, heard_at);
		rs_link_prove();
	}
	if (result < 0)
		rs_link_give_up(error.text, RS_TROUBLE_ENTRY);
}

/* ---- both ----------------------------------------------------------------------------- */

/*
 * Under load a wake-up for every entry and every commit would cost more than all
 * else here.  While Redis owes an answer to delay messages, what comes meanwhile
 * leaves together when it is there; and an open place is looked at again soon.
 */
static void
promise_attention(void)
{
	RsAttention attention = delay_flights > 0 || waiting ? RS_ATTENTION_REPLY :
		look_at != RS_FOREVER ? RS_ATTENTION_SOON : RS_ATTENTION_NONE;

	pg_atomic_write_u32(&rs_shared->attention, attention);
}

void
rs_exchange_send(void)
{
	bool		was_full = rs_flights_unwritten();
	RsEntryNumber before;
	RsError		error;
	bool		any;

	/* Before the look at the lanes: whoever changes them after it sees that it must wake us. */
	pg_atomic_write_u32(&rs_shared->attention, RS_ATTENTION_NONE);
	pg_memory_barrier();
	do
	{
		before = next_main;
		queue_claim();
		queue_delay();
		queue_main();
		settle(false);			/* void places complete by themselves */
	} while (rs_flights_empty() && next_main != before);
	queue_marker();
	queue_wait();

	if (rs_flights_empty())
		rs_link_prove();
	if (!rs_flights_write(rs_link_connection(), &any, &error))
	{
		rs_link_give_up(error.text, RS_TROUBLE_ENTRY);
		return;
	}
	/* A large message may take long.  What a socket takes that was not full says nothing of Redis. */
	if (was_full && any)
		heard_at = rs_now();
	promise_attention();
}

static uint64
silence_at(void)
{
	return rs_flights_empty() ? RS_FOREVER : heard_at + (uint64) rs_timeout * 1000;
}

void
rs_exchange_check_silence(void)
{
	RsError		why;

	if (rs_now() < silence_at())
		return;
	rs_redis_error(&why, "no reply from Redis for %d ms%s", rs_timeout,
				   waiting ? ", in which it waits for its replicas" : "");
	rs_link_give_up(why.text, RS_TROUBLE_SILENCE);
}

uint64
rs_exchange_due(void)
{
	uint64		due = Min(look_at, silence_at());

	/*
	 * While something is under way, these are looked at after the next reply.  Under load that is earlier, and a short
	 * timeout is not free: in a virtual machine to set the clock for it is left to the host (doc/benchmark.md).
	 */
	if (rs_flights_empty())
		due = Min(due, unmarked ? Min(claim_at, mark_at) : claim_at);
	return due;
}
