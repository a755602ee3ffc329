/*
 * reading.c
 *	  Reads a stream, page by page: pages of about a megabyte, whatever the size of its entries.
 *
 * XRANGE is asked for a number of entries, and nobody knows how large these are: the first and the last one of the stream
 * (XINFO) are a first guess, and the page before is the next.  When entries are suddenly large, a page can be too much to
 * come in time; so a few are tried after a failure.
 */
#include <stdio.h>
#include <string.h>

#include "internal.h"

/* Entries are fetched about so many bytes at a time. */
#define PAGE_BYTES ((size_t) 1 << 20)
#define PAGE_FIRST 256			/* entries: at most, before any was seen */
#define PAGE_MOST 1000			/* at most, ever */
#define ENTRY_BYTES 100			/* of an entry without its fields, about */

/* How many entries of this size make a page. */
static int
entries_a_page(size_t entry_bytes)
{
	size_t		count = PAGE_BYTES / (entry_bytes + ENTRY_BYTES);

	if (count > PAGE_MOST)
		count = PAGE_MOST;
	return count > 0 ? (int) count : 1;
}

void
rs_redis_reading_begin(RsReading *reading, const RsStreamId *after, size_t entry_bytes)
{
	int			fitting = entries_a_page(entry_bytes);

	int			most = reading->page > 0 ? reading->page : PAGE_FIRST;

	reading->after = *after;
	reading->page = fitting < most ? fitting : most;
}

bool
rs_redis_entry_read(const redisReply *tree, RsStreamEntry *entry)
{
	const redisReply *fields;

	memset(entry, 0, sizeof(*entry));
	if (tree->type != REDIS_REPLY_ARRAY || tree->elements != 2 ||
		!rs_redis_value_id(tree->element[0], &entry->id))
		return false;
	fields = tree->element[1];
	if (fields->type != REDIS_REPLY_ARRAY)
		return false;
	for (size_t i = 0; i + 1 < (size_t) fields->elements; i += 2)
	{
		const redisReply *name = fields->element[i];
		const redisReply *value = fields->element[i + 1];

		if (entry->payload == NULL && name->len == 7 && memcmp(name->str, "payload", 7) == 0)
		{
			entry->payload = value->str;
			entry->length = (size_t) value->len;
		}
		else
			entry->other_fields = true;
	}
	return true;
}

/* Goes on behind the last entry, and by what these have: with less at once, or with twice as much at most. */
static bool
go_on(RsReading *reading, const redisReply *entries)
{
	size_t		count = (size_t) entries->elements;
	size_t		bytes = 0;
	int			fitting;

	for (size_t i = 0; i < count; i++)
	{
		RsStreamEntry entry;

		if (!rs_redis_entry_read(entries->element[i], &entry))
			return false;
		bytes += entry.length;
		reading->after = entry.id;
	}
	if (count == 0)
		return true;
	fitting = entries_a_page(bytes / count);
	reading->page = fitting < 2 * reading->page ? fitting : 2 * reading->page;
	return true;
}

/* Is it the largest id there can be? */
static bool
is_last(const RsStreamId *id)
{
	RsStreamId	next = *id;

	return !rs_redis_id_next(&next);
}

bool
rs_redis_reading_next(RsConnection *connection, const RsKey *stream, RsReading *reading, int most,
					  int timeout_ms, RsReply *reply, bool *refused, RsError *error)
{
	char		start[RS_STREAM_ID_SIZE + 1] = "(";
	char		count[16];
	const char *words[] = {"XRANGE", stream->text, start, "+", "COUNT", count};

	*refused = false;
	rs_redis_id_format(&reading->after, start + 1);
	if (is_last(&reading->after))
	{
		words[2] = "+";			/* nothing is behind it, and Redis refuses to look there */
		words[3] = "-";
	}
	snprintf(count, sizeof(count), "%d", most < reading->page ? most : reading->page);
	if (!rs_redis_command(connection, 6, words, NULL, timeout_ms, reply, error))
	{
		reading->page = 1 + reading->page / 16; /* it may have been too much */
		return false;
	}
	if (reply->type != RS_REPLY_ARRAY || !go_on(reading, reply->tree))
		return rs_redis_refuse("XRANGE", reply, refused, error);
	return true;
}

bool
rs_redis_await_messages(RsConnection *connection, const RsKey *stream, const RsStreamId *after,
						int block_ms, int timeout_ms, bool *there, bool *refused, RsError *error)
{
	char		start[RS_STREAM_ID_SIZE];
	char		block[16];
	const char *words[] = {"XREAD", "COUNT", "1", "BLOCK", block, "STREAMS", stream->text, start};
	RsReply		reply;

	*refused = false;
	rs_redis_id_format(after, start);
	snprintf(block, sizeof(block), "%d", block_ms > 0 ? block_ms : 1);	/* 0 is for ever */
	if (!rs_redis_command(connection, 8, words, NULL, block_ms + timeout_ms, &reply, error))
		return false;
	*there = reply.type == RS_REPLY_ARRAY;
	if (!*there && reply.type != RS_REPLY_NIL)
		return rs_redis_refuse("XREAD", &reply, refused, error);
	return true;
}
