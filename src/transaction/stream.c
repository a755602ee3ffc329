/*
 * stream.c
 *	  Streams by number, and records as commands.
 *
 * A process numbers the streams it writes to, so that a record need not carry a
 * name, and keeps the constant part of their commands.  Numbers are never given up:
 * a record made before a change of redstream.namespace keeps its keys.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "transaction/stream.h"
#include "transaction/transaction.h"

static RsStream **streams;
static int	nstreams;
static int	streams_size;

const RsStream *
rs_stream(int number)
{
	Assert(number >= 0 && number < nstreams);
	return streams[number];
}

/* "XADD <key> * payload" of a command with that many words. */
static char *
make_prefix(const RsKey *key, size_t words, size_t *length)
{
	size_t		size = rs_redis_header_size(words) + rs_redis_bulk_size(4) +
		rs_redis_bulk_size(key->length) + rs_redis_bulk_size(1) + rs_redis_bulk_size(7);
	char	   *prefix = MemoryContextAlloc(TopMemoryContext, size);
	char	   *out = rs_redis_header_write(prefix, words);

	out = rs_redis_bulk_write(out, "XADD", 4);
	out = rs_redis_bulk_write(out, key->text, key->length);
	out = rs_redis_bulk_write(out, "*", 1);
	out = rs_redis_bulk_write(out, "payload", 7);
	*length = out - prefix;
	return prefix;
}

static RsStream *
make_stream(const char *name)
{
	RsStream   *stream = MemoryContextAlloc(TopMemoryContext, sizeof(RsStream));

	stream->name = MemoryContextStrdup(TopMemoryContext, name);
	stream->ns = MemoryContextStrdup(TopMemoryContext, rs_namespace);
	stream->bucket = rs_spool_bucket(rs_namespace, name);
	stream->generation = rs_namespace_generation;
	stream->listed = 0;
	rs_redis_stream_key(&stream->stream_key, rs_namespace, name);
	rs_redis_delay_key(&stream->delay_key, rs_namespace, name);
	stream->main_prefix = make_prefix(&stream->stream_key, 5, &stream->main_prefix_length);
	stream->delay_prefix = make_prefix(&stream->delay_key, 7, &stream->delay_prefix_length);
	return stream;
}

int
rs_transaction_stream(const char *name)
{
	for (int i = 0; i < nstreams; i++)
		if (streams[i]->generation == rs_namespace_generation &&
			strcmp(streams[i]->name, name) == 0)
			return i;
	if (nstreams == streams_size)
	{
		int			size = Max(16, streams_size * 2);

		streams = streams == NULL ?
			MemoryContextAlloc(TopMemoryContext, size * sizeof(RsStream *)) :
			repalloc(streams, size * sizeof(RsStream *));
		streams_size = size;
	}
	streams[nstreams] = make_stream(name);
	return nstreams++;
}

/* Was Redis told, and has it not been another one since? */
static bool
is_told(uint64 told)
{
	return told == rs_transport_redis() + 1;
}

/*
 * Has Redis remember something before the delay messages that follow: once a process and, as is_told() says, again
 * when it may have lost it.  A failure is left to the delay messages: they will fail, too.
 */
static void
tell(uint64 *told, const char *verb, const RsKey *key, const char *value)
{
	uint64		now = rs_transport_redis() + 1;
	char		command[RS_KEY_SIZE + RS_NAME_MAX + 64];
	const char *words[] = {verb, key->text, value};
	RsPatience	patience;
	RsEntryNumber entry;

	rs_redis_command_write(command, 3, words, NULL);
	rs_patience_start(&patience);
	if (rs_delay_append(command, rs_redis_command_size(3, words, NULL), 1, &patience,
						&entry) == RS_WAIT_DONE)
		*told = now;
}

void
rs_stream_list(int number)
{
	RsStream   *stream = streams[number];
	RsKey		key;

	if (is_told(stream->listed) || stream->generation != rs_namespace_generation)
		return;
	rs_identity_streams_key(&key, rs_namespace);
	tell(&stream->listed, "SADD", &key, stream->name);
}

void
rs_stream_note_async(void)
{
	static uint64 told;
	static int	generation;
	RsKey		key;

	if (is_told(told) && generation == rs_namespace_generation)
		return;
	told = 0;					/* also if telling fails now */
	generation = rs_namespace_generation;
	rs_redis_async_key(&key, rs_namespace, rs_identity_server());
	tell(&told, "SET", &key, "1");
}

size_t
rs_stream_main_size(const RsRecord *record)
{
	return rs_stream(record->stream)->main_prefix_length + rs_redis_bulk_size(record->length);
}

char *
rs_stream_main_write(char *out, const RsRecord *record)
{
	const RsStream *stream = rs_stream(record->stream);

	memcpy(out, stream->main_prefix, stream->main_prefix_length);
	return rs_redis_bulk_write(out + stream->main_prefix_length,
							   RS_RECORD_PAYLOAD(record), record->length);
}

#define XID_DIGITS 20

size_t
rs_stream_delay_size(const RsRecord *record)
{
	return rs_stream(record->stream)->delay_prefix_length + rs_redis_bulk_size(record->length) +
		rs_redis_bulk_size(strlen(rs_identity_xact_field())) + rs_redis_bulk_size(XID_DIGITS);
}

char *
rs_stream_delay_write(char *out, const RsRecord *record)
{
	const RsStream *stream = rs_stream(record->stream);
	const char *field = rs_identity_xact_field();
	char		xid[XID_DIGITS + 1];
	int			digits = snprintf(xid, sizeof(xid), UINT64_FORMAT, record->xid);

	memcpy(out, stream->delay_prefix, stream->delay_prefix_length);
	out = rs_redis_bulk_write(out + stream->delay_prefix_length,
							  RS_RECORD_PAYLOAD(record), record->length);
	out = rs_redis_bulk_write(out, field, strlen(field));
	return rs_redis_bulk_write(out, xid, digits);
}
