/*
 * batch.c
 *	  Messages that are handled together, and the lines made of them.
 *
 * Payloads are copied, because replies of Redis do not live long, into memory that each batch uses again.  They are kept as
 * they came: a message that goes to the dead letters must be what was read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consumer/consumer.h"

/* A batch that has so much is large enough, however few messages these are. */
#define PAYLOADS_ENOUGH ((size_t) 16 << 20)

/* Memory that one large batch has taken is not kept. */
#define KEPT_MAX ((size_t) 32 << 20)

#define LINE_EXTRA (sizeof("{\"id\":\"\",\"payload\":}\n") + RS_STREAM_ID_SIZE)

static bool
reserve(RsBuffer *buffer, size_t more)
{
	size_t		size = buffer->size > 0 ? buffer->size : 1 << 16;
	char	   *data;

	while (size - buffer->used < more)
		size *= 2;
	if (size == buffer->size)
		return true;
	data = realloc(buffer->data, size);
	if (data == NULL)
		return false;
	buffer->data = data;
	buffer->size = size;
	return true;
}

static void
empty(RsBuffer *buffer)
{
	buffer->used = 0;
	if (buffer->size > KEPT_MAX)
	{
		free(buffer->data);
		buffer->data = NULL;
		buffer->size = 0;
	}
}

void
rs_consumer_batch_begin(RsBatch *batch)
{
	batch->count = 0;
	batch->closed = false;
	batch->unusable = false;
	batch->has_payload = false;
	batch->failed = false;
	empty(&batch->payloads);
	empty(&batch->lines);
}

void
rs_consumer_batch_end(RsBatch *batch)
{
	free(batch->messages);
	free(batch->payloads.data);
	free(batch->lines.data);
	memset(batch, 0, sizeof(*batch));
}

const RsStreamId *
rs_consumer_batch_first(const RsBatch *batch)
{
	return &batch->messages[0].id;
}

const RsStreamId *
rs_consumer_batch_last(const RsBatch *batch)
{
	return &batch->messages[batch->count - 1].id;
}

/* ---- adding ---------------------------------------------------------------------------- */

static bool
has_room(RsBatch *batch)
{
	int			room = batch->room > 0 ? 2 * batch->room : 128;
	RsMessage  *messages;

	if (batch->count < batch->room)
		return true;
	messages = realloc(batch->messages, (size_t) room * sizeof(RsMessage));
	if (messages == NULL)
		return false;
	batch->messages = messages;
	batch->room = room;
	return true;
}

static void
append(RsBatch *batch, const RsStreamEntry *entry, bool left_out)
{
	size_t		length = left_out ? 0 : entry->length;
	RsMessage  *message;

	if (!has_room(batch) || !reserve(&batch->payloads, length))
	{
		batch->failed = true;
		batch->closed = true;
		return;
	}
	message = &batch->messages[batch->count++];
	message->id = entry->id;
	message->payload = batch->payloads.used;
	message->length = length;
	message->left_out = left_out;
	if (length > 0)
		memcpy(batch->payloads.data + batch->payloads.used, entry->payload, length);
	batch->payloads.used += length;
	batch->closed = batch->closed || batch->payloads.used >= PAYLOADS_ENOUGH;
}

/* Can a message be used?  Else writes why not. */
static bool
judge(RsBatch *batch, const RsStreamEntry *entry)
{
	const char *wrong;
	size_t		where;

	if (entry->payload == NULL)
	{
		strcpy(batch->reason, "no field \"payload\"");
		return false;
	}
	wrong = rs_consumer_json_check(entry->payload, entry->length, &where);
	if (wrong != NULL)
		snprintf(batch->reason, sizeof(batch->reason), "not JSON: %s, at byte %zu of %zu", wrong,
				 where, entry->length);
	return wrong == NULL;
}

RsAdded
rs_consumer_batch_add(RsBatch *batch, const RsStreamEntry *entry, bool skips)
{
	if (judge(batch, entry))
	{
		append(batch, entry, false);
		return RS_ADDED;
	}
	if (skips)
	{
		append(batch, entry, true);
		return RS_ADDED_LEFT_OUT;
	}
	batch->closed = true;
	if (batch->count > 0)
		return RS_ADDED_NOT;
	append(batch, entry, false);
	batch->unusable = true;
	batch->has_payload = entry->payload != NULL;
	return RS_ADDED;
}

/* ---- equal payloads ------------------------------------------------------------------------ */

typedef struct Place
{
	uint64_t	hash;
	const char *payload;
	size_t		length;
	int			index;
} Place;

/* FNV-1a */
static uint64_t
hash_of(const char *text, size_t length)
{
	uint64_t	hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char) text[i]) * UINT64_C(0x100000001b3);
	return hash;
}

static int
compare_payloads(const Place *a, const Place *b)
{
	if (a->hash != b->hash)
		return a->hash < b->hash ? -1 : 1;
	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	return memcmp(a->payload, b->payload, a->length);
}

static int
compare_places(const void *one, const void *other)
{
	const Place *a = one;
	const Place *b = other;
	int			order = compare_payloads(a, b);

	return order != 0 ? order : a->index - b->index;
}

bool
rs_consumer_batch_unique(RsBatch *batch)
{
	Place	   *places = malloc(((size_t) batch->count + 1) * sizeof(Place));
	int			count = 0;

	if (places == NULL)
		return false;
	for (int i = 0; i < batch->count; i++)
	{
		const RsMessage *message = &batch->messages[i];
		const char *payload = batch->payloads.data + message->payload;

		if (!message->left_out)
			places[count++] = (Place) {hash_of(payload, message->length), payload, message->length, i};
	}
	qsort(places, (size_t) count, sizeof(Place), compare_places);
	for (int i = 0; i + 1 < count; i++)
	{
		if (compare_payloads(&places[i], &places[i + 1]) == 0)
			batch->messages[places[i].index].left_out = true;
	}
	free(places);
	return true;
}

/* ---- lines -------------------------------------------------------------------------------------- */

static void
put(RsBuffer *buffer, const char *text, size_t length)
{
	memcpy(buffer->data + buffer->used, text, length);
	buffer->used += length;
}

/* Line ends in JSON are between its tokens, where a space does as well. */
static void
put_payload(RsBuffer *buffer, const char *payload, size_t length)
{
	char	   *begin = buffer->data + buffer->used;

	put(buffer, payload, length);
	for (size_t i = 0; i < length; i++)
	{
		if (begin[i] == '\n' || begin[i] == '\r')
			begin[i] = ' ';
	}
}

bool
rs_consumer_batch_write(RsBatch *batch)
{
	RsBuffer   *lines = &batch->lines;

	for (int i = 0; i < batch->count; i++)
	{
		const RsMessage *message = &batch->messages[i];
		char		id[RS_STREAM_ID_SIZE];
		size_t		id_length;

		if (message->left_out)
			continue;
		if (!reserve(lines, message->length + LINE_EXTRA))
			return false;
		id_length = rs_redis_id_format(&message->id, id);
		put(lines, "{\"id\":\"", 7);
		put(lines, id, id_length);
		put(lines, "\",\"payload\":", 12);
		put_payload(lines, batch->payloads.data + message->payload, message->length);
		put(lines, "}\n", 2);
	}
	return true;
}
