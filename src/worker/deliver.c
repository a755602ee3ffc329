/*
 * deliver.c
 *	  Spooled messages on their way to Redis: through the lanes, as those of a transaction, or one by one.
 *
 * In the main lane they are behind the places that were taken before, and in front of those that will be, so that
 * the sender sees to their order, also when it has to send again.  The copies for the delay stream are there so that an older delay message
 * of the same row, moved later, is not the last word.
 *
 * One by one is for messages that Redis has refused or may refuse: what ends the connection, ends the worker's and nobody else's.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "worker/spooler.h"

#define CHUNK_BYTES (64 * 1024)
#define PATIENCE 200			/* milliseconds; then the other jobs have their turn */

/* The commands that one row becomes. */
typedef struct Commands
{
	RsKey		delay_key;
	RsKey		main_key;
	char		xact[24];
	const char *delay[7];
	size_t		delay_lengths[7];
	const char *main[5];
	size_t		main_lengths[5];
} Commands;

static void
make_commands(Commands *commands, const RsSpoolRow *row)
{
	const char *delay[] = {"XADD", commands->delay_key.text, "*", "payload", row->data,
	rs_identity_xact_field(), commands->xact};
	const char *main[] = {"XADD", commands->main_key.text, "*", "payload", row->data};

	rs_redis_delay_key(&commands->delay_key, row->ns, row->stream);
	rs_redis_stream_key(&commands->main_key, row->ns, row->stream);
	snprintf(commands->xact, sizeof(commands->xact), UINT64_FORMAT, row->xact);
	memcpy(commands->delay, delay, sizeof(delay));
	memcpy(commands->main, main, sizeof(main));
	for (size_t i = 0; i < lengthof(delay); i++)
		commands->delay_lengths[i] = i == 4 ? row->length : strlen(delay[i]);
	for (size_t i = 0; i < lengthof(main); i++)
		commands->main_lengths[i] = i == 4 ? row->length : strlen(main[i]);
}

static size_t
delay_size(const Commands *commands)
{
	return rs_redis_command_size(lengthof(commands->delay), commands->delay, commands->delay_lengths);
}

/* ---- through the lanes ------------------------------------------------------------------- */

/* What is gathered for an entry of each lane: as many commands. */
typedef struct Chunk
{
	StringInfoData delay;
	StringInfoData main;
	uint32		rows;
} Chunk;

static void
add_command(StringInfo to, int count, const char *const *words, const size_t *lengths)
{
	enlargeStringInfo(to, rs_redis_command_size(count, words, lengths));
	to->len = rs_redis_command_write(to->data + to->len, count, words, lengths) - to->data;
}

/* Takes a place, and has nobody to wait for. */
static void
resolve(RsSpoolFlight *flight, RsEntryNumber place)
{
	rs_main_resolve(place, true);
	rs_main_resolved();
	flight->main = place + 1;
}

/* False when there is no room, or Redis is away.  Where delay copies are sent then, Redis may refuse them, and the batch is to go alone. */
static bool
send_chunk(Chunk *chunk, RsSpoolFlight *flight)
{
	RsPatience	patience;
	RsEntryNumber entry;

	if (chunk->rows == 0)
		return true;
	rs_patience_start(&patience);
	if (rs_delay_append(chunk->delay.data, chunk->delay.len, chunk->rows, &patience, &entry) != RS_WAIT_DONE)
		return false;
	flight->delay = entry + 1;
	if (rs_main_take(chunk->main.data, chunk->main.len, chunk->rows, &patience, &entry) != RS_WAIT_DONE)
	{
		flight->alone = true;
		return false;
	}
	resolve(flight, entry);
	resetStringInfo(&chunk->delay);
	resetStringInfo(&chunk->main);
	chunk->rows = 0;
	return true;
}

/* What finds no room is left to the next batch. */
static void
send_messages(RsSpoolBatch *batch, RsSpoolFlight *flight)
{
	Chunk		chunk = {.rows = 0};
	Commands	commands;
	int			sent = 0;
	bool		room = true;

	initStringInfo(&chunk.delay);
	initStringInfo(&chunk.main);
	for (int i = 0; i < batch->nrows && room; i++)
	{
		make_commands(&commands, &batch->rows[i].row);

		/* the main message is the shorter one */
		if (chunk.delay.len + delay_size(&commands) > Min(CHUNK_BYTES, rs_lane_entry_limit()))
		{
			room = send_chunk(&chunk, flight);
			sent = room ? i : sent;
		}
		add_command(&chunk.delay, lengthof(commands.delay), commands.delay, commands.delay_lengths);
		add_command(&chunk.main, lengthof(commands.main), commands.main, commands.main_lengths);
		chunk.rows++;
	}
	if (room && send_chunk(&chunk, flight))
		sent = batch->nrows;
	if (!flight->alone)
		rs_spool_batch_cut(batch, sent);
	pfree(chunk.delay.data);
	pfree(chunk.main.data);
}

/* One that is not this library's, or too large for a place, is left to the delay messages that it is about. */
static void
send_publication(RsSpoolBatch *batch, RsSpoolFlight *flight)
{
	const RsSpoolRow *row = &batch->rows[0].row;
	RsPatience	patience;
	RsEntryNumber place;

	if (!rs_publication_is_valid(row->data, row->length) || row->length > rs_lane_entry_limit())
	{
		ereport(LOG, (errmsg("redstream spooler: stream %s: a large transaction is left to its delay messages", row->stream)));
		rs_transport_doubt();
		return;
	}
	rs_patience_start(&patience);
	if (!rs_transport_is_down() &&
		rs_main_take_publication(row->data, row->length, &patience, &place) == RS_WAIT_DONE)
		resolve(flight, place);
	else
		rs_spool_batch_cut(batch, 0);
}

/* So that the delayer finds the delay messages though no table is attached to the stream (any more). */
static bool
list_streams(RsWork *work, const RsSpoolBatch *batch, RsError *error)
{
	for (int i = 0; i < batch->nrows; i++)
	{
		const RsSpoolRow *row = &batch->rows[i].row;
		RsWorkStream *stream = rs_work_stream(work, row->stream);
		RsKey		key;
		RsReply		reply;
		const char *words[] = {"SADD", key.text, row->stream};

		if (stream->listed == work->connections || strcmp(row->ns, rs_namespace) != 0)
			continue;
		rs_identity_streams_key(&key, rs_namespace);
		if (!rs_work_ask(work, lengthof(words), words, &reply, error))
			return false;
		stream->listed = work->connections;
	}
	return true;
}

static bool
is_too_large(const RsSpoolRow *row)
{
	Commands	commands;

	/* What is around a payload is far from being half of an entry: that spares most rows the rest. */
	if (row->length < rs_lane_entry_limit() / 2)
		return false;
	make_commands(&commands, row);
	return delay_size(&commands) > rs_lane_entry_limit();
}

/* Is one of the streams to be asked again whether Redis takes it, or one of the messages too large for a lane? */
static bool
is_delicate(RsWork *work, const RsSpoolBatch *batch)
{
	for (int i = 0; i < batch->nrows; i++)
	{
		const RsSpoolRow *row = &batch->rows[i].row;

		if (rs_work_stream(work, row->stream)->refusals > 0 || is_too_large(row))
			return true;
	}
	return false;
}

RsDelivery
rs_deliver_send(RsWork *work, RsSpoolBatch *batch, RsSpoolFlight *flight, RsError *error)
{
	memset(flight, 0, sizeof(*flight));
	flight->publication = batch->rows[0].row.publication;
	if (!list_streams(work, batch, error))
		return RS_DELIVERY_LOST;
	if (!flight->publication && is_delicate(work, batch))
	{
		flight->alone = true;
		flight->delay = rs_delay_head();
		flight->main = rs_main_head();
		return RS_DELIVERY_DONE;
	}
	rs_delay_track();
	if (flight->publication)
		send_publication(batch, flight);
	else
		send_messages(batch, flight);
	return batch->nrows > 0 ? RS_DELIVERY_DONE : RS_DELIVERY_LATER;
}

/* A publication that is refused is left to the delay messages that it is about. */
RsDelivery
rs_deliver_await(RsSpoolFlight *flight)
{
	RsDelayOutcome outcome;

	if (!rs_lanes_wait(flight->delay, flight->main, PATIENCE))
		return RS_DELIVERY_LATER;
	if (!flight->alone && !flight->publication)
	{
		rs_delay_outcome(&outcome);
		flight->alone = outcome.refused;
	}

	/* if the sender cannot reach Redis, or Redis its replicas, neither can we; and it comes first */
	return flight->alone && (rs_transport_is_down() || !rs_transport_has_begun()) ? RS_DELIVERY_LATER : RS_DELIVERY_DONE;
}

/* ---- one by one ---------------------------------------------------------------------------- */

static void
note_refusal(RsWorkStream *stream, const char *text)
{
	stream->refused_until = rs_now() + rs_work_pause(stream->refusals++);
	(void) rs_work_report_begin(stream, RS_JOB_SPOOLER);
	rs_work_report_error(stream, RS_JOB_SPOOLER, text);
}

/* Redis closes the connection after this error (networking.c, setProtocolError). */
#define LAST_ERROR "ERR Protocol error"

/* False and an error when the connection was lost; the command may be why. */
static bool
ask(RsWork *work, RsWorkStream *stream, int count, const char *const *words, const size_t *lengths, RsError *error)
{
	RsReply		reply;
	bool		answered = rs_redis_command(work->connection, count, words, lengths, rs_timeout, &reply, error);

	if (answered && reply.type != RS_REPLY_ERROR)
		return true;
	if (answered)
		(void) rs_redis_error(error, "%.*s", (int) reply.length, reply.text);
	note_refusal(stream, error->text);
	if (answered && !rs_redis_error_is(&reply, LAST_ERROR))
		return true;
	rs_work_disconnect(work);
	return rs_redis_error(error, "stream %s: %s", stream->name, error->text);
}

/* Delivers what Redis takes of a batch.  False and an error when the connection was lost. */
static bool
send_alone(RsWork *work, RsSpoolBatch *batch, RsError *error)
{
	for (int i = 0; i < batch->nrows; i++)
	{
		RsSpooled  *spooled = &batch->rows[i];
		RsWorkStream *stream = rs_work_stream(work, spooled->row.stream);
		Commands	commands;

		if (stream->refused_until != 0)
			continue;
		make_commands(&commands, &spooled->row);
		if (!ask(work, stream, lengthof(commands.delay), commands.delay, commands.delay_lengths, error))
			return false;
		if (stream->refused_until == 0 &&
			!ask(work, stream, lengthof(commands.main), commands.main, commands.main_lengths, error))
			return false;
		spooled->done = stream->refused_until == 0;
		if (spooled->done && stream->refusals > 0)
		{
			stream->refusals = 0;
			(void) rs_work_report_begin(stream, RS_JOB_SPOOLER);
		}
	}
	return true;
}

/* As with the sender, delivered is what redstream.wait_replicas have. */
static bool
replicas_have_it(RsWork *work, RsError *error)
{
	RsReplicaWait wait;
	RsReply		reply;

	if (rs_wait_replicas == 0)
		return true;
	rs_replica_wait_set(&wait);
	if (!rs_work_ask(work, RS_WAIT_WORDS, wait.words, &reply, error))
		return false;
	if (rs_replica_wait_check(&reply, error))
		return true;
	rs_work_disconnect(work);
	return false;
}

bool
rs_deliver_alone(RsWork *work, RsSpoolBatch *batch, RsError *error)
{
	if (send_alone(work, batch, error) && replicas_have_it(work, error))
		return true;
	for (int i = 0; i < batch->nrows && rs_wait_replicas > 0; i++)
		batch->rows[i].done = false;
	return false;
}
