/*
 * publication.c
 *	  Announces a large transaction: the sender reads the transaction's delay
 *	  messages back from Redis and adds their payloads to the main streams.
 *
 * The delay messages stay.  Were they moved, an older delay message of the same
 * row, delivered later, would be the last word on it; so they are announced
 * again when due, like any other.
 *
 * One range is read, its copies are queued and then the next range, so that
 * writing and reading overlap.  The reply to a range therefore proves that the
 * copies before it were answered, and one buffer serves them all.  (With
 * redstream.wait_replicas the next range is queued when the copies are acknowledged.)  After
 * a failure the publication goes on behind the last acknowledged copy: at
 * most one chunk is announced twice, in order.
 *
 * The transaction knows how many delay messages there should be.  If some are
 * missing, somebody moved them to the main streams, perhaps before the commit:
 * a delayer that cannot ask this server whether the transaction has ended.  On
 * the main streams nothing tells whose they are.  So everything that came there since
 * the first delay message is announced once more, in order, this publication's copies
 * included: they must come after what is older.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "stats.h"
#include "transport/sender.h"

#define CHUNK_BYTES (64 * 1024) /* aimed at: a millisecond or so of Redis */
#define CHUNK_ENTRIES 500
#define REPLY_BYTES (4 * 1024 * 1024)	/* of one range, at the most */

/* How far it has come. */
typedef struct RsPosition
{
	bool		again;			/* on the main streams, because messages are missing */
	int			stream;
	RsStreamId	next;			/* first id to be looked at */
	RsStreamId	last;			/* of a main stream: before the first copy is added to it */
	bool		bounded;		/* "last" is known */
	uint64		found;			/* messages copied: by reading the delay streams, or again */
} RsPosition;

static struct
{
	bool		open;			/* what follows is filled */
	bool		active;
	RsEntryNumber number;
	MemoryContext context;
	RsPublicationHeader header;
	RsPublishedStream *streams;
	RsXidRange *xids;
	RsPosition	read;			/* behind what was read and queued */
	RsPosition	queued;			/* the same, when the copies under way were queued */
	RsPosition	acknowledged;
	bool		noted;			/* that messages are missing */
	uint32		count;			/* entries to ask for */
	StringInfoData range;		/* the command under way */
	StringInfoData copies;		/* the commands under way */
}			publication;

static const char *
take(const char *in, void *out, size_t length)
{
	memcpy(out, in, length);
	return in + length;
}

static const RsKey *
take_key(const char **in, size_t length)
{
	RsKey	   *key = palloc(sizeof(RsKey));

	key->length = length;
	*in = take(*in, key->text, length);
	key->text[length] = '\0';
	return key;
}

/* Goes to the beginning of a stream. */
static void
begin_stream(int stream)
{
	RsPosition *read = &publication.read;

	read->stream = stream;
	read->next = publication.header.first;
	read->last = publication.header.last;
	read->bounded = !read->again;
	if (read->again)
		read->next.seq = 0;		/* of the same millisecond: another stream counts for itself */
}

/* The reverse of rs_publication_encode(). */
static void
decode(const char *in)
{
	in = take(in, &publication.header, sizeof(publication.header));
	publication.streams = palloc0(sizeof(RsPublishedStream) * publication.header.nstreams);
	for (uint32 i = 0; i < publication.header.nstreams; i++)
	{
		RsPublicationStream lengths;

		in = take(in, &lengths, sizeof(lengths));
		publication.streams[i].delay_key = take_key(&in, lengths.delay_key_length);
		publication.streams[i].stream_key = take_key(&in, lengths.stream_key_length);
	}
	publication.xids = palloc(sizeof(RsXidRange) * publication.header.nxids);
	(void) take(in, publication.xids, sizeof(RsXidRange) * publication.header.nxids);
}

void
rs_publication_open(const RsEntry *entry, RsEntryNumber number)
{
	MemoryContext old;
	struct iovec pieces[2];
	StringInfoData bytes;
	int			count;

	publication.active = true;
	publication.count = 1;		/* grows quickly, and a failure may have come of a large reply */
	if (publication.open && publication.number == number)
	{
		publication.read = publication.acknowledged;
		return;
	}
	if (publication.context == NULL)
		publication.context = AllocSetContextCreate(TopMemoryContext, "redstream publication",
													ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(publication.context);
	old = MemoryContextSwitchTo(publication.context);
	initStringInfo(&bytes);
	count = rs_lane_pieces(&rs_shared->main, entry, pieces);
	for (int i = 0; i < count; i++)
		appendBinaryStringInfo(&bytes, pieces[i].iov_base, pieces[i].iov_len);
	decode(bytes.data);
	initStringInfo(&publication.range);
	initStringInfo(&publication.copies);
	memset(&publication.read, 0, sizeof(publication.read));
	begin_stream(0);
	publication.noted = false;
	publication.acknowledged = publication.queued = publication.read;
	publication.number = number;
	publication.open = true;
	MemoryContextSwitchTo(old);
}

bool
rs_publication_active(void)
{
	return publication.active;
}

void
rs_publication_suspend(void)
{
	publication.active = false;
}

bool
rs_publication_copied(void)
{
	publication.acknowledged = publication.queued;
	return publication.copies.len > 0;
}

static void
put_bulk(StringInfo out, const char *data, size_t length)
{
	char	   *end;

	enlargeStringInfo(out, rs_redis_bulk_size(length));
	end = rs_redis_bulk_write(out->data + out->len, data, length);
	out->len = end - out->data;
}

static void
put_header(StringInfo out, size_t count)
{
	char	   *end;

	enlargeStringInfo(out, rs_redis_header_size(count));
	end = rs_redis_header_write(out->data + out->len, count);
	out->len = end - out->data;
}

static void
set_bytes(RsFlight *flight, StringInfo bytes)
{
	flight->npieces = bytes->len > 0 ? 1 : 0;
	flight->pieces[0].iov_base = bytes->data;
	flight->pieces[0].iov_len = bytes->len;
}

static void
put_range(StringInfo out, const char *command, const RsKey *key, const char *from,
		  const char *to, uint32 count)
{
	char		limit[12];

	snprintf(limit, sizeof(limit), "%u", count);
	put_header(out, 6);
	put_bulk(out, command, strlen(command));
	put_bulk(out, key->text, key->length);
	put_bulk(out, from, strlen(from));
	put_bulk(out, to, strlen(to));
	put_bulk(out, "COUNT", 5);
	put_bulk(out, limit, strlen(limit));
}

/* The stream that is read. */
static const RsKey *
source(void)
{
	const RsPublishedStream *stream = &publication.streams[publication.read.stream];

	return publication.read.again ? stream->stream_key : stream->delay_key;
}

void
rs_publication_range(RsFlight *flight)
{
	StringInfo	out = &publication.range;
	char		from[RS_STREAM_ID_SIZE];
	char		to[RS_STREAM_ID_SIZE];

	resetStringInfo(out);
	if (publication.read.bounded)
	{
		(void) rs_redis_id_format(&publication.read.next, from);
		(void) rs_redis_id_format(&publication.read.last, to);
		put_range(out, "XRANGE", source(), from, to, publication.count);
	}
	else
		put_range(out, "XREVRANGE", source(), "+", "-", 1);

	memset(flight, 0, sizeof(*flight));
	flight->kind = RS_FLIGHT_RANGE;
	flight->replies = 1;
	set_bytes(flight, out);
}

/* Is the (sub)transaction one that is to be announced? */
static bool
is_announced(uint64 xid)
{
	int			low = 0;
	int			high = (int) publication.header.nxids - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;
		const RsXidRange *range = &publication.xids[middle];

		if (xid < range->first)
			high = middle - 1;
		else if (xid > range->last)
			low = middle + 1;
		else
			return true;
	}
	return false;
}

static bool
equals(const redisReply *text, const char *expected)
{
	return text->type == REDIS_REPLY_STRING && text->len == strlen(expected) &&
		memcmp(text->str, expected, text->len) == 0;
}

/* The payload of an entry of the transaction; NULL for the entries of others. */
static const redisReply *
find_payload(const redisReply *fields)
{
	const redisReply *payload = NULL;
	bool		ours = false;

	for (size_t i = 0; i + 1 < (size_t) fields->elements; i += 2)
	{
		const redisReply *name = fields->element[i];
		const redisReply *value = fields->element[i + 1];

		if (equals(name, "payload"))
			payload = value;
		else if (equals(name, publication.header.xact_field))
			ours = is_announced(strtou64(value->str, NULL, 10));
	}
	return ours ? payload : NULL;
}

static size_t
entry_size(const redisReply *entry)
{
	const redisReply *fields = entry->element[1];
	size_t		size = entry->element[0]->len;

	for (size_t i = 0; i < (size_t) fields->elements; i++)
		size += fields->element[i]->len;
	return size;
}

/* Adds an entry's fields to the main stream: of a delay message the payload, which is what
 * a delayer moves. */
static void
put_copy(StringInfo out, const redisReply *fields, const redisReply *payload)
{
	const RsKey *key = publication.streams[publication.read.stream].stream_key;

	put_header(out, 3 + (payload != NULL ? 2 : fields->elements));
	put_bulk(out, "XADD", 4);
	put_bulk(out, key->text, key->length);
	put_bulk(out, "*", 1);
	if (payload != NULL)
	{
		put_bulk(out, "payload", 7);
		put_bulk(out, payload->str, payload->len);
		return;
	}
	for (size_t i = 0; i < (size_t) fields->elements; i++)
		put_bulk(out, fields->element[i]->str, fields->element[i]->len);
}

static void
note_missing(const char *text)
{
	ereport(LOG, (errmsg("redstream: %s", text)));
	rs_link_note_error(text);
}

/* Goes to the first main stream. */
static void
begin_again(void)
{
	if (!publication.noted)
		note_missing("delay messages of a transaction were moved before they could be published; announcing main messages since then again");
	publication.noted = true;
	publication.read.again = true;
	publication.read.found = 0;
	begin_stream(0);
}

/* Moves on to the next stream, or to the end. */
static void
finish_stream(void)
{
	RsPosition *read = &publication.read;

	if (read->stream + 1 < (int) publication.header.nstreams)
		begin_stream(read->stream + 1);
	else if (read->found < publication.header.expected && !read->again)
		begin_again();
	else
	{
		if (read->found < publication.header.expected)
			note_missing("messages of a transaction that were moved before they could be published are no longer on the main streams; its changes may not be announced");
		publication.active = false;
	}
}

/*
 * Asks for as many entries next time as make a chunk of the wanted size, judging by
 * all those just read, and never for more than a few megabytes of the largest of the
 * transaction and of the main messages so far.
 */
static void
adapt_count(size_t entries, size_t bytes)
{
	size_t		average = bytes / Max(entries, 1);
	size_t		wanted = CHUNK_BYTES / Max(average, 1);
	size_t		allowed = REPLY_BYTES / Max(publication.header.largest, 1);

	wanted = Min(Min(wanted, allowed), Min(CHUNK_ENTRIES, publication.count * 2));
	publication.count = Max(wanted, 1);
}

/* Takes where a main stream ends before anything is added to it. */
static void
receive_last(const redisReply *entries, size_t count)
{
	RsPosition *read = &publication.read;
	const redisReply *id = count > 0 ? entries->element[0]->element[0] : NULL;

	publication.count = 1;		/* nothing is known of its messages */
	read->bounded = id != NULL && rs_redis_id_parse(id->str, id->len, &read->last);
	if (!read->bounded || rs_redis_id_compare(&read->last, &read->next) < 0)
		finish_stream();
}

/* Copies what is to be announced. */
static void
receive_entries(const redisReply *entries, size_t count, RsFlight *flight)
{
	RsPosition *read = &publication.read;
	size_t		bytes = 0;
	bool		more = true;

	for (size_t i = 0; i < count; i++)
	{
		const redisReply *entry = entries->element[i];
		const redisReply *fields = entry->element[1];
		const redisReply *payload = read->again ? NULL : find_payload(fields);
		size_t		size = entry_size(entry);

		(void) rs_redis_id_parse(entry->element[0]->str, entry->element[0]->len, &read->next);
		more = rs_redis_id_next(&read->next);
		bytes += size;
		if (read->again)
			publication.header.largest = Max(publication.header.largest, size);
		else if (payload == NULL)
			continue;
		put_copy(&publication.copies, fields, payload);
		flight->replies++;
		read->found++;
	}
	if (!more || count < publication.count)
		finish_stream();
	adapt_count(count, bytes);
}

void
rs_publication_receive(const RsReply *reply, RsFlight *flight)
{
	const redisReply *entries = reply->tree;
	size_t		count = reply->type == RS_REPLY_ARRAY ? entries->elements : 0;

	memset(flight, 0, sizeof(*flight));
	flight->kind = RS_FLIGHT_COPY;
	resetStringInfo(&publication.copies);
	if (publication.read.bounded)
		receive_entries(entries, count, flight);
	else
		receive_last(entries, count);
	publication.queued = publication.read;
	flight->writes = flight->replies > 0;
	set_bytes(flight, &publication.copies);
}
