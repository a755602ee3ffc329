/*
 * marker.c
 *	  Does Redis still have what it has acknowledged?
 *
 * Redis can come back with less: without a file, with an older one, as a replica that lagged, emptied by FLUSHALL, or
 * because another one is behind the address.  What it has is always the beginning of what it was sent, so one key tells: the
 * marker, a number that grows, written behind the messages.  The last number acknowledged is in shared memory, and whenever Redis
 * says a smaller one, or none, something before that is missing as well.
 *
 * SET ... GET writes the next number and says the last one.  With messages that come seldom each has its marker; else it is
 * written every few milliseconds (exchange.c), and what was lost since is not noticed.  Nor is what was lost while PostgreSQL was down: then
 * the number that Redis has is learnt anew.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "identity.h"
#include "settings.h"
#include "stats.h"
#include "transport/sender.h"

#define NUMBER_SIZE 24

/* The number under way; of a look, the one that was found. */
static uint64 candidate;

static void
note_loss(uint64 found)
{
	RsError		why;

	rs_redis_error(&why, "Redis has less than it had acknowledged");
	ereport(WARNING,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("redstream: %s", why.text),
			 found == 0 ?
			 errdetail("It has lost the marker of this server: it was emptied, restarted without its data, or is another Redis.") :
			 errdetail("The marker of this server is " UINT64_FORMAT ", and was " UINT64_FORMAT " before: its data are of an earlier time.",
					   found, rs_shared->marker),
			 errhint("Changes since then may not have reached the consumers. doc/redis.md says what to do.")));
	rs_link_note_error(why.text);
	rs_stats_add(RS_COUNT_LOSSES, 1);

	/* What was known of it holds no more: main messages that it confirmed, keys that were written once. */
	pg_atomic_fetch_add_u64(&rs_shared->redis, 1);
	rs_transport_doubt();
}

/* Compares; returns what there is. */
static uint64
judge(const RsReply *reply)
{
	char		digits[NUMBER_SIZE];
	uint64		found = 0;

	if (reply->type == RS_REPLY_STRING)
	{
		strlcpy(digits, reply->text, Min(reply->length + 1, sizeof(digits)));
		found = strtou64(digits, NULL, 10);
	}
	if (found < rs_shared->marker)
	{
		note_loss(found);
		rs_shared->marker = 0;	/* said once */
	}
	rs_shared->marker_sent = Max(rs_shared->marker_sent, found);
	return found;
}

void
rs_marker_judge(const RsReply *reply)
{
	uint64		found = judge(reply);

	if (candidate == 0)
		candidate = found;
}

void
rs_marker_acknowledged(void)
{
	rs_shared->marker = candidate;
}

void
rs_marker_forget(void)
{
	rs_shared->marker = 0;
}

bool
rs_marker_check(RsConnection *fresh, RsError *error)
{
	RsKey		key;
	RsReply		reply;
	const char *words[] = {"GET", key.text};
	uint64		found;

	rs_redis_marker_key(&key, rs_namespace, rs_identity_server());
	if (!rs_redis_command(fresh, 2, words, NULL, rs_timeout, &reply, error))
		return false;
	if (reply.type == RS_REPLY_ERROR)
		return rs_redis_error(error, "marker: %.*s", (int) reply.length, reply.text);
	found = judge(&reply);
	if (rs_wait_replicas == 0)
		rs_shared->marker = found;
	return true;
}

void
rs_marker_command(RsFlight *flight, bool writes)
{
	static char command[RS_KEY_SIZE + 128];
	char		number[NUMBER_SIZE];
	RsKey		key;
	const char *get[] = {"GET", key.text};
	const char *set[] = {"SET", key.text, number, "GET"};
	char	   *end;

	rs_redis_marker_key(&key, rs_namespace, rs_identity_server());
	if (writes)
	{
		candidate = ++rs_shared->marker_sent;
		snprintf(number, sizeof(number), UINT64_FORMAT, candidate);
		end = rs_redis_command_write(command, 4, set, NULL);
	}
	else
	{
		candidate = 0;
		end = rs_redis_command_write(command, 2, get, NULL);
	}
	flight->writes = true;
	flight->npieces = 1;
	flight->pieces[0].iov_base = command;
	flight->pieces[0].iov_len = end - command;
}
