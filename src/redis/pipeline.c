/*
 * pipeline.c
 *	  Many commands, written together, and their replies one after the other.
 */
#include <stdlib.h>

#include "internal.h"

#define QUEUE_FIRST_SIZE 4096

/* A queue that one large batch has made this large is not kept. */
#define QUEUE_KEEP_MAX ((size_t) 1 << 20)

static bool
reserve(RsConnection *connection, size_t more)
{
	size_t		size = connection->queue_size > 0 ? connection->queue_size : QUEUE_FIRST_SIZE;
	char	   *queue;

	while (size - connection->queue_used < more)
		size *= 2;
	if (size == connection->queue_size)
		return true;
	queue = realloc(connection->queue, size);
	if (queue == NULL)
		return false;
	connection->queue = queue;
	connection->queue_size = size;
	return true;
}

void
rs_redis_queue(RsConnection *connection, int count, const char *const *arguments,
			   const size_t *lengths)
{
	size_t		size = rs_redis_command_size(count, arguments, lengths);

	if (connection->queue_failed || !reserve(connection, size))
	{
		connection->queue_failed = true;
		return;
	}
	rs_redis_command_write(connection->queue + connection->queue_used, count, arguments, lengths);
	connection->queue_used += size;
}

bool
rs_redis_flush(RsConnection *connection, int timeout_ms, RsError *error)
{
	RsDeadline	deadline;

	if (connection->queue_failed)
		return rs_redis_error(error, "out of memory");
	rs_redis_deadline_start(&deadline, timeout_ms);
	if (!rs_redis_send_all(connection, connection->queue, connection->queue_used, &deadline,
						   "write to", error))
		return false;
	connection->queue_used = 0;
	if (connection->queue_size > QUEUE_KEEP_MAX)
	{
		free(connection->queue);
		connection->queue = NULL;
		connection->queue_size = 0;
	}
	return true;
}

bool
rs_redis_next(RsConnection *connection, bool tree, int timeout_ms, RsReply *reply, RsError *error)
{
	RsDeadline	deadline;

	rs_redis_deadline_start(&deadline, timeout_ms);
	return rs_redis_await_reply(connection, tree, &deadline, "reply from", reply, error);
}

bool
rs_redis_time(const RsReply *reply, int64_t *now_ms, RsError *error)
{
	const redisReply *tree = reply->tree;

	if (reply->type == RS_REPLY_ERROR)
		return rs_redis_error(error, "TIME: %.*s", (int) reply->length, reply->text);
	if (reply->type != RS_REPLY_ARRAY || tree->elements != 2 ||
		tree->element[0]->type != REDIS_REPLY_STRING || tree->element[1]->type != REDIS_REPLY_STRING)
		return rs_redis_error(error, "TIME: not a time");
	*now_ms = strtoll(tree->element[0]->str, NULL, 10) * 1000 +
		strtoll(tree->element[1]->str, NULL, 10) / 1000;
	return true;
}
