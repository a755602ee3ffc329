/*
 * consume.c
 *	  redstream.consume(): the next batch of a consumer, in the caller's transaction.
 *
 * The offset is in two places: in a table, with the transaction (consuming/offsets.c), and in Redis, where the trimmer and
 * other processes of the same consumer see it.  A batch begins behind the greater of both: the one in Redis is behind
 * when the copy after a commit got lost, the one in the table when a program has worked as this consumer meanwhile.
 *
 *		lock ── somebody else's ──► 55P03
 *		  │
 *		both offsets ── do not fit the stream, or Redis has forgotten the consumer ──► error: messages may be lost
 *		  │
 *		register the consumer; mend the offset in Redis
 *		  │
 *		read ── nothing there, and time left ──► wait with the lock held, read again
 *		  │
 *		rows; the offset is moved in the table, and noted for the end of the transaction (consuming/lease.c)
 *
 * A message whose payload is no jsonb ends the batch before it; when it is the first, that is the error.  So what is in
 * front of it gets done, and it is known which one to go past.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "api/asking.h"
#include "clock.h"
#include "consuming/consuming.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(redstream_consume);

#define WAIT_LONGEST 60000		/* milliseconds */
#define WAIT_SLICE 100

/* How large the entries are that this session has read last. */
static struct
{
	RsKey		stream;
	RsReading	reading;
}			known;

typedef struct Batch
{
	const char *stream;			/* in the database's encoding, as in the arguments */
	const char *consumer;
	RsLease    *lease;
	RsConnection *redis;
	int			size;
	int			wait_ms;
	bool		in_table;		/* there is an offset in the table */
	RsStreamId	table_offset;
	RsStreamId	offset;			/* the batch begins behind it */
	size_t		entry_bytes;	/* about; of the stream */
	ReturnSetInfo *result;
	MemoryContext scratch;		/* of one message */
	int			count;			/* rows */
	RsStreamId	last;			/* row */
	bool		converting;		/* this one: */
	RsStreamId	current;
	int			strange;		/* messages with other fields than payload */
	RsStreamId	first_strange;
} Batch;

static const char *
id_text(const RsStreamId *id)
{
	char	   *text = palloc(RS_STREAM_ID_SIZE);

	rs_redis_id_format(id, text);
	return text;
}

/* ---- the beginning -------------------------------------------------------------------- */

static void
raise_locked(const Batch *batch, const char *message)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg(message, batch->consumer, batch->stream)));
}

/* A lock under which this transaction has consumed must not have been anybody else's since. */
static void
confirm_lock(Batch *batch)
{
	RsError		error;
	bool		held;

	if (!batch->lease->locked || batch->lease->nmarks == 0)
		return;
	if (!rs_redis_lock_extend(batch->redis, &batch->lease->who.lock, batch->lease->who.holder,
							  rs_timeout, &held, &error))
		rs_api_lease_failed(false, &error);
	if (error.text[0] != '\0')
		rs_api_lease_failed(true, &error);
	if (!held)
		raise_locked(batch, "lost the lock of consumer \"%s\" of stream \"%s\" since this transaction had it");
}

static void
raise_bad_offset(const Batch *batch, const RsError *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("consumer \"%s\" cannot go on with stream \"%s\": %s",
					batch->consumer, batch->stream, problem->text),
			 errhint("Somebody else wrote it into Redis. Set it with redstream.commit_offset().")));
}

static void
begin_turn(Batch *batch, RsTurn *turn)
{
	RsError		error;
	bool		refused;
	bool		begun;

	confirm_lock(batch);
	begun = rs_redis_turn_begin(batch->redis, &batch->lease->who, rs_timeout, turn, &refused, &error);
	if (turn->taken)
		rs_lease_locked(batch->lease);	/* with an error, too: it is to be released */
	if (!begun && turn->bad_offset)
		raise_bad_offset(batch, &error);
	if (!begun)
		rs_api_lease_failed(refused, &error);
	if (turn->taken)
		return;
	rs_lease_refused(batch->lease);
	raise_locked(batch, "consumer \"%s\" of stream \"%s\" is at work in another session or process");
}

static void
raise_misfit(const Batch *batch, const RsError *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("consumer \"%s\" cannot go on with stream \"%s\": %s",
					batch->consumer, batch->stream, problem->text),
			 errhint("Bring up to date what it keeps, as by redstream.enqueue(), and tell it where to go on: redstream.add_consumer() with \"0-0\", \"$\" or an id.")));
}

/* Is it still the stream that the offset is about? */
static void
check_offset(Batch *batch, const RsTurn *turn)
{
	RsError		problem;
	RsError		error;
	bool		refused;

	if (!rs_redis_turn_check(turn, &batch->offset, &problem))
	{
		/* others are to learn of it, too; that this is not to be had changes nothing */
		(void) rs_redis_turn_note(batch->redis, &batch->lease->who, turn, false, rs_timeout,
								  &refused, &error);
		raise_misfit(batch, &problem);
	}
	/* what this transaction itself has put there is not told to Redis yet */
	if (batch->in_table && !batch->lease->marked && !turn->registered && !turn->has_offset)
	{
		rs_redis_error(&problem, "it has committed %s here, but Redis does not know it: Redis was emptied or is another one, or drop_consumer() was rolled back",
					   id_text(&batch->table_offset));
		raise_misfit(batch, &problem);
	}
}

/*
 * The copy of an earlier commit may have been lost.  What this transaction itself has put into the table is not committed,
 * and nothing that Redis may be told.
 */
static void
mend_offset(Batch *batch, const RsTurn *turn)
{
	bool		refused;
	bool		committed;
	RsError		error;

	if (!batch->in_table || batch->lease->marked ||
		(turn->has_offset && rs_redis_id_compare(&turn->offset, &batch->table_offset) >= 0))
		return;
	if (!rs_redis_turn_commit(batch->redis, &batch->lease->who, &batch->table_offset, NULL, NULL,
							  rs_timeout, &committed, &refused, &error))
		rs_api_lease_failed(refused, &error);
}

static void
begin_batch(Batch *batch)
{
	RsTurn		turn;
	RsError		error;
	bool		refused;

	batch->redis = rs_api_lease_connection();
	begin_turn(batch, &turn);
	rs_session_rest();			/* the table may have to be waited for */
	batch->in_table = rs_offset_read(batch->stream, batch->consumer, &batch->table_offset);
	batch->redis = rs_api_lease_connection();
	batch->entry_bytes = turn.stream.entry_bytes;
	batch->offset = turn.offset;
	if (batch->in_table && rs_redis_id_compare(&batch->table_offset, &batch->offset) > 0)
		batch->offset = batch->table_offset;
	check_offset(batch, &turn);
	if (!rs_redis_turn_note(batch->redis, &batch->lease->who, &turn, true, rs_timeout, &refused,
							&error))
		rs_api_lease_failed(refused, &error);
	mend_offset(batch, &turn);
}

/* ---- messages --------------------------------------------------------------------------- */

static Datum
payload_datum(const RsStreamEntry *entry)
{
	if (entry->payload == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("it has no field \"payload\"")));
	return rs_api_jsonb(entry->payload, entry->length);
}

static void
put_message(Batch *batch, const RsStreamEntry *entry)
{
	MemoryContext old = MemoryContextSwitchTo(batch->scratch);
	bool		nulls[2] = {false, false};
	Datum		values[2];

	batch->current = entry->id;
	batch->converting = true;
	values[0] = CStringGetTextDatum(id_text(&entry->id));
	values[1] = payload_datum(entry);
	batch->converting = false;
	tuplestore_putvalues(batch->result->setResult, batch->result->setDesc, values, nulls);
	batch->last = entry->id;
	batch->count++;
	if (entry->other_fields && batch->strange++ == 0)
		batch->first_strange = entry->id;
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->scratch);
}

static void
begin_reading(const Batch *batch)
{
	const RsKey *stream = &batch->lease->who.stream;

	if (strcmp(known.stream.text, stream->text) != 0)
	{
		known.stream = *stream;
		known.reading.page = 0;
	}
	rs_redis_reading_begin(&known.reading, &batch->offset, batch->entry_bytes);
}

/* Reads until the batch is full or the stream at its end. */
static void
read_messages(Batch *batch)
{
	begin_reading(batch);
	while (batch->count < batch->size)
	{
		RsReply		reply;
		RsError		error;
		bool		refused;

		batch->redis = rs_api_lease_connection();
		if (!rs_redis_reading_next(batch->redis, &batch->lease->who.stream, &known.reading,
								   batch->size - batch->count, rs_timeout, &reply, &refused, &error))
			rs_api_lease_failed(refused, &error);
		if (reply.tree->elements == 0)
			return;
		for (size_t i = 0; i < (size_t) reply.tree->elements; i++)
		{
			RsStreamEntry entry;

			CHECK_FOR_INTERRUPTS();
			if (!rs_redis_entry_read(reply.tree->element[i], &entry))
				elog(ERROR, "unexpected reply to XRANGE");
			put_message(batch, &entry);
		}
	}
}

/* Is it a payload that is wrong, and not the server that has trouble? */
static bool
is_about_message(const Batch *batch, const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	return batch->converting &&
		(category == ERRCODE_DATA_EXCEPTION || category == ERRCODE_PROGRAM_LIMIT_EXCEEDED);
}

static void
raise_bad_message(const Batch *batch, const ErrorData *error)
{
	const char *id = id_text(&batch->current);

	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg("message %s of stream \"%s\" cannot be consumed: %s",
					id, batch->stream, error->message),
			 error->detail != NULL ? errdetail("%s", error->detail) : 0,
			 errhint("SELECT redstream.commit_offset(%s, %s, '%s') goes past it.",
					 quote_literal_cstr(batch->stream), quote_literal_cstr(batch->consumer), id)));
}

/*
 * The same, in a subtransaction, so that a message that is no jsonb can end the batch without taking with it what was read
 * before.
 */
static void
read_up_to_bad_message(Batch *batch)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		read_messages(batch);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (!is_about_message(batch, error))
			ReThrowError(error);
		if (batch->count == 0)
			raise_bad_message(batch, error);
	}
	PG_END_TRY();
}

/* Waits for messages, with the lock. */
static bool
await_messages(Batch *batch, uint64 until)
{
	for (;;)
	{
		uint64		now = rs_now();
		int			left = until > now ? (until - now) / 1000 : 0;
		bool		there;
		bool		refused;
		RsError		error;

		if (left == 0)
			return false;
		batch->redis = rs_api_lease_connection();
		if (!rs_redis_await_messages(batch->redis, &batch->lease->who.stream, &batch->offset,
									 Min(left, WAIT_SLICE), rs_timeout, &there, &refused, &error))
			rs_api_lease_failed(refused, &error);
		CHECK_FOR_INTERRUPTS();
		if (there)
			return true;
	}
}

static void
consume(Batch *batch)
{
	uint64		until = rs_now() + (uint64) batch->wait_ms * 1000;

	begin_batch(batch);
	do
		read_up_to_bad_message(batch);
	while (batch->count == 0 && await_messages(batch, until));
	if (batch->count == 0)
		return;
	rs_session_rest();			/* the row may have to be waited for */
	rs_offset_move(batch->stream, batch->consumer,
				   batch->in_table ? &batch->table_offset : NULL, &batch->last);
	rs_lease_mark(batch->lease, &batch->last, false);
	if (batch->strange > 0)
		ereport(NOTICE,
				(errmsg_plural("%d message of stream \"%s\" has other fields than \"payload\", which are ignored: %s",
							   "%d messages of stream \"%s\" have other fields than \"payload\", which are ignored; the first is %s",
							   batch->strange, batch->strange, batch->stream,
							   id_text(&batch->first_strange))));
}

/* ---- the SQL function --------------------------------------------------------------------- */

static int
wait_argument(FunctionCallInfo fcinfo, int number)
{
	const Interval *wait = PG_GETARG_INTERVAL_P(number);

	if (wait->month != 0 || wait->day != 0 || wait->time < 0 ||
		wait->time > WAIT_LONGEST * INT64CONST(1000))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait must be between 0 and 60 seconds"),
				 errdetail("A snapshot is held meanwhile."),
				 errhint("For long waits there is the program redstream-consumer.")));
	return wait->time / 1000;
}

Datum
redstream_consume(PG_FUNCTION_ARGS)
{
	Batch		batch = {0};
	char	   *stream = rs_api_stream_argument(fcinfo, 0);
	char	   *consumer = rs_api_consumer_argument(fcinfo, 1);

	batch.stream = text_to_cstring(PG_GETARG_TEXT_PP(0));
	batch.consumer = text_to_cstring(PG_GETARG_TEXT_PP(1));
	batch.size = PG_GETARG_INT32(2);
	batch.wait_ms = wait_argument(fcinfo, 3);
	if (batch.size < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be positive")));
	InitMaterializedSRF(fcinfo, 0);
	batch.result = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.scratch = AllocSetContextCreate(CurrentMemoryContext, "redstream message",
										  ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		batch.lease = rs_lease_open(stream, consumer);
		consume(&batch);
	}
	PG_FINALLY();
	{
		rs_session_rest();
	}
	PG_END_TRY();
	return (Datum) 0;
}
