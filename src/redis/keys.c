/*
 * keys.c
 *	  Names of streams, consumers and namespaces, and the Redis keys made of
 *	  them.
 *
 * The bytes of the keys are shared with the Ruby library: a change here loses
 * every consumer's place.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "redis.h"

#define DELAY_SUFFIX ".delay"
#define DELAYER "delayer"
#define LOCK_NAME_MAX 1100

static bool
has_control_character(const char *name)
{
	for (; *name != '\0'; name++)
	{
		if ((unsigned char) *name < 0x20 || *name == 0x7F)
			return true;
	}
	return false;
}

static bool
ends_in(const char *name, const char *suffix)
{
	size_t		length = strlen(name);
	size_t		suffix_length = strlen(suffix);

	return length >= suffix_length &&
		strcmp(name + length - suffix_length, suffix) == 0;
}

/* What all names have in common; "what" begins the error's sentence. */
static bool
check_name(const char *what, const char *name, size_t shortest, size_t longest,
		   RsError *error)
{
	size_t		length = strlen(name);

	if (length < shortest)
		return rs_redis_error(error, "%s must not be empty", what);
	if (length > longest)
		return rs_redis_error(error, "%s must not be longer than %zu bytes",
							  what, longest);
	if (has_control_character(name))
		return rs_redis_error(error, "%s must not contain control characters", what);
	return true;
}

bool
rs_redis_stream_name_check(const char *name, RsError *error)
{
	if (!check_name("stream name", name, 1, RS_NAME_MAX, error))
		return false;
	if (ends_in(name, DELAY_SUFFIX))
		return rs_redis_error(error, "stream name must not end in \"%s\"", DELAY_SUFFIX);
	return true;
}

bool
rs_redis_consumer_name_check(const char *name, RsError *error)
{
	if (!check_name("consumer name", name, 1, RS_NAME_MAX, error))
		return false;
	if (strchr(name, ':') != NULL)
		return rs_redis_error(error, "consumer name must not contain \":\"");
	return true;
}

bool
rs_redis_namespace_check(const char *name, RsError *error)
{
	return check_name("namespace", name, 0, RS_NAMESPACE_MAX, error);
}

/* Checked names always fit; unchecked ones must not overflow all the same. */
static void
append(RsKey *key, const char *text)
{
	size_t		length = strlen(text);
	size_t		room = RS_KEY_SIZE - 1 - key->length;

	if (length > room)
		length = room;
	memcpy(key->text + key->length, text, length);
	key->length += length;
	key->text[key->length] = '\0';
}

static void
begin(RsKey *key, const char *ns, const char *kind)
{
	key->length = 0;
	key->text[0] = '\0';
	if (ns[0] != '\0')
	{
		append(key, ns);
		append(key, ":");
	}
	append(key, "redstream:");
	append(key, kind);
	append(key, ":");
}

void
rs_redis_stream_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "stream");
	append(key, stream);
}

void
rs_redis_delay_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "stream");
	append(key, stream);
	append(key, DELAY_SUFFIX);
}

void
rs_redis_offset_key(RsKey *key, const char *ns, const char *stream, const char *consumer)
{
	begin(key, ns, "offset");
	append(key, stream);
	append(key, ":");
	append(key, consumer);
}

bool
rs_redis_lock_key(RsKey *key, const char *ns, const char *name, RsError *error)
{
	if (!check_name("lock name", name, 1, LOCK_NAME_MAX, error))
		return false;
	begin(key, ns, "lock");
	append(key, name);
	return true;
}

void
rs_redis_notify_key(RsKey *key, const RsKey *lock)
{
	*key = *lock;
	append(key, ".notify");
}

void
rs_redis_consumer_lock_key(RsKey *key, const char *ns, const char *stream, const char *consumer)
{
	begin(key, ns, "lock:consumer");
	append(key, stream);
	append(key, ":");
	append(key, consumer);
}

/* A delayer is a consumer of the delay stream. */
void
rs_redis_delayer_lock_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "lock:consumer");
	append(key, stream);
	append(key, DELAY_SUFFIX ":" DELAYER);
}

void
rs_redis_delayer_offset_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "offset");
	append(key, stream);
	append(key, DELAY_SUFFIX ":" DELAYER);
}

void
rs_redis_trimmer_lock_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "lock:trimmer");
	append(key, stream);
}

void
rs_redis_consumers_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "consumers");
	append(key, stream);
}

void
rs_redis_history_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "history");
	append(key, stream);
}

void
rs_redis_flush_key(RsKey *key, const char *ns, const char *stream)
{
	begin(key, ns, "flush");
	append(key, stream);
}

void
rs_redis_server_key(RsKey *key, const char *ns, const char *server)
{
	begin(key, ns, "server");
	append(key, server);
}

void
rs_redis_async_key(RsKey *key, const char *ns, const char *server)
{
	begin(key, ns, "async");
	append(key, server);
}

void
rs_redis_marker_key(RsKey *key, const char *ns, const char *server)
{
	begin(key, ns, "marker");
	append(key, server);
}

void
rs_redis_streams_key(RsKey *key, const char *ns, uint64_t system, uint32_t database)
{
	char		numbers[40];

	snprintf(numbers, sizeof(numbers), "%" PRIu64 ":%" PRIu32, system, database);
	begin(key, ns, "streams");
	append(key, numbers);
}
