/*
 * shard.c
 *	  Which of its streams a row of a sharded table is announced on.
 *
 * The rule is that of the Ruby library's README: the first four hex digits of the SHA-1 of the primary key's text, as
 * a number, modulo the number of shards.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha1.h"

#include "capture/capture.h"
#include "capture/plan.h"

/* In a name with a hash tag, which is what Redis Cluster chooses the slot by, the number goes inside it: streams
 * of one table need not share a slot. */
char *
rs_capture_shard_name(const char *stream, int shards, int shard)
{
	const char *tag = strchr(stream, '{');
	const char *end = tag != NULL ? strchr(tag, '}') : NULL;
	size_t		before = end != NULL && end > tag + 1 ? (size_t) (end - stream) : strlen(stream);

	if (shards == 1)
		return pstrdup(stream);
	return psprintf("%.*s-%d%s", (int) before, stream, shard, stream + before);
}

int
rs_shard_of(const char *key, size_t length, int shards)
{
	uint8		digest[SHA1_DIGEST_LENGTH];
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA1);

	/* An error in between is no leak: the resource owner has the context (cryptohash_openssl.c). */
	if (pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) key, length) < 0 ||
		pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute SHA-1 of a primary key: %s", pg_cryptohash_error(context))));
	pg_cryptohash_free(context);
	return (digest[0] << 8 | digest[1]) % shards;
}
