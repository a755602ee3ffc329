/*
 * trim_look.c
 *	  What Redis says of streams: who reads them and how far, what is remembered, and
 *	  where they begin and end.
 *
 * First round trip: the clock; of each stream its registered consumers, its history and XINFO
 * GROUPS.  Second: the offset of each consumer, XPENDING of each group that has something pending,
 * and last XINFO STREAM.  In this order whatever moves on meanwhile is safe: a reader that was
 * asked about early keeps more, not less, and the stream's last id, being the newest
 * thing known, is behind no offset and no history of a stream that is well.
 *
 * A reply is freed by the next call on the connection, so everything is copied.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "settings.h"
#include "worker/trim.h"

RsTrimLook *
rs_trim_look_create(RsWorkStream *stream)
{
	RsTrimLook *look = palloc0(sizeof(RsTrimLook));

	look->stream = stream;
	return look;
}

/* ---- replies ---------------------------------------------------------------------------- */

/* An error that all streams would get, from a server that another connection may get past. */
static bool
is_about_the_server(const RsReply *reply)
{
	return rs_redis_error_is(reply, "LOADING ") || rs_redis_error_is(reply, "READONLY ") ||
		rs_redis_error_is(reply, "MASTERDOWN ") || rs_redis_error_is(reply, "NOAUTH ");
}

bool
rs_trim_next(RsWork *work, RsReply *reply, RsError *error)
{
	if (!rs_redis_next(work->connection, true, rs_timeout, reply, error))
		return false;
	if (reply->type == RS_REPLY_ERROR && is_about_the_server(reply))
		return rs_redis_error(error, "%.*s", (int) reply->length, reply->text);
	return true;
}

void
rs_trim_failed(RsTrimLook *look, const char *command, const RsReply *reply)
{
	look->failed = true;
	rs_work_report_error(look->stream, RS_JOB_TRIMMER,
						 reply->type == RS_REPLY_ERROR ?
						 psprintf("%s: %.*s", command, (int) reply->length, reply->text) :
						 psprintf("%s: unexpected reply", command));
}

/* What a reader who has come to this id keeps from.  After the largest id there is nothing to keep. */
static RsStreamId
after(RsStreamId id)
{
	(void) rs_redis_id_next(&id);
	return id;
}

/* ---- the first round trip ------------------------------------------------------------------ */

static void
ask_readers(RsWork *work, const RsTrimLook *look)
{
	RsKey		consumers;
	RsKey		history;
	RsKey		key;
	const char *members[] = {"SMEMBERS", consumers.text};
	const char *hash[] = {"HGETALL", history.text};
	const char *groups[] = {"XINFO", "GROUPS", key.text};

	rs_redis_consumers_key(&consumers, rs_namespace, look->stream->name);
	rs_redis_history_key(&history, rs_namespace, look->stream->name);
	rs_redis_stream_key(&key, rs_namespace, look->stream->name);
	rs_redis_queue(work->connection, 2, members, NULL);
	rs_redis_queue(work->connection, 2, hash, NULL);
	rs_redis_queue(work->connection, 3, groups, NULL);
}

/* A name that is not well could never have committed: it holds the stream. */
static void
read_consumers(RsTrimLook *look, const RsReply *reply)
{
	size_t		count;

	if (reply->type != RS_REPLY_ARRAY)
	{
		rs_trim_failed(look, "SMEMBERS", reply);
		return;
	}
	count = (size_t) reply->tree->elements;
	look->consumers = palloc0(Max(count, 1) * sizeof(RsTrimConsumer));
	for (size_t i = 0; i < count; i++)
	{
		RsTrimConsumer *consumer = &look->consumers[look->nconsumers++];
		RsError		ignored;

		consumer->name = pstrdup(reply->tree->element[i]->str);
		consumer->named_well = rs_redis_consumer_name_check(consumer->name, &ignored);
	}
}

/* A field that marks what has been said of a consumer: "<mark>:<name>". */
static bool
read_mark(RsTrimLook *look, const char *field)
{
	bool		ahead = strncmp(field, "ahead:", 6) == 0;
	bool		losing = strncmp(field, "losing:", 7) == 0;

	if (!ahead && !losing)
		return false;
	for (int i = 0; i < look->nconsumers; i++)
	{
		RsTrimConsumer *consumer = &look->consumers[i];

		if (strcmp(consumer->name, strchr(field, ':') + 1) != 0)
			continue;
		consumer->ahead_told |= ahead;
		consumer->losing_told |= losing;
		return true;
	}
	look->strays = lappend(look->strays, pstrdup(field));
	return true;
}

/* Needs the consumers. */
static void
read_history(RsTrimLook *look, const RsReply *reply)
{
	if (!rs_redis_history_read(reply, &look->history))
	{
		rs_trim_failed(look, "HGETALL", reply);
		return;
	}
	for (size_t i = 0; i + 1 < (size_t) reply->tree->elements; i += 2)
		(void) read_mark(look, reply->tree->element[i]->str);
}

static bool
read_group(RsTrimGroup *group, const redisReply *tree)
{
	const redisReply *name = rs_redis_value(tree, "name");

	if (name == NULL || !rs_redis_value_integer(rs_redis_value(tree, "pending"), &group->pending) ||
		!rs_redis_value_id(rs_redis_value(tree, "last-delivered-id"), &group->keep))
		return false;
	group->length = name->len;
	group->name = pnstrdup(name->str, name->len);
	group->keep = after(group->keep);
	return true;
}

static void
read_groups(RsTrimLook *look, const RsReply *reply)
{
	size_t		count;

	if (rs_redis_error_is(reply, RS_NO_SUCH_KEY))
		return;
	count = reply->type == RS_REPLY_ARRAY ? (size_t) reply->tree->elements : 0;
	look->groups = palloc0(Max(count, 1) * sizeof(RsTrimGroup));
	while (look->ngroups < (int) count &&
		   read_group(&look->groups[look->ngroups], reply->tree->element[look->ngroups]))
		look->ngroups++;
	if (reply->type != RS_REPLY_ARRAY || look->ngroups < (int) count)
		rs_trim_failed(look, "XINFO GROUPS", reply);
}

/* ---- the second round trip ------------------------------------------------------------------- */

static void
ask_positions(RsWork *work, const RsTrimLook *look)
{
	const char *name = look->stream->name;
	RsKey		offset;
	RsKey		key;
	const char *get[] = {"GET", offset.text};
	const char *info[] = {"XINFO", "STREAM", key.text};

	for (int i = 0; i < look->nconsumers; i++)
	{
		if (!look->consumers[i].named_well)
			continue;
		rs_redis_offset_key(&offset, rs_namespace, name, look->consumers[i].name);
		rs_redis_queue(work->connection, 2, get, NULL);
	}
	rs_redis_stream_key(&key, rs_namespace, name);
	for (int i = 0; i < look->ngroups; i++)
	{
		const RsTrimGroup *group = &look->groups[i];
		const char *pending[] = {"XPENDING", key.text, group->name};
		size_t		lengths[] = {strlen("XPENDING"), key.length, group->length};

		if (group->pending > 0)
			rs_redis_queue(work->connection, 3, pending, lengths);
	}
	rs_redis_queue(work->connection, 3, info, NULL);
}

static void
read_offset(RsTrimLook *look, RsTrimConsumer *consumer, const RsReply *reply)
{
	if (reply->type == RS_REPLY_NIL)
		return;
	if (reply->type != RS_REPLY_STRING ||
		!rs_redis_id_parse(reply->text, reply->length, &consumer->offset))
	{
		rs_trim_failed(look, psprintf("offset of consumer %s", consumer->name), reply);
		return;
	}
	consumer->committed = true;
	consumer->keep = after(consumer->offset);
}

/* A group that has vanished meanwhile holds the stream until the next look. */
static void
read_pending(RsTrimLook *look, RsTrimGroup *group, const RsReply *reply)
{
	RsStreamId	smallest;

	if (rs_redis_error_is(reply, "NOGROUP "))
		group->keep = (RsStreamId) {0, 0};
	else if (reply->type != RS_REPLY_ARRAY || reply->tree->elements < 2)
		rs_trim_failed(look, "XPENDING", reply);
	else if (rs_redis_value_id(reply->tree->element[1], &smallest) &&
			 rs_redis_id_compare(&smallest, &group->keep) < 0)
		group->keep = smallest; /* else it was set back behind what is pending */
}

static void
read_stream(RsTrimLook *look, const RsReply *reply)
{
	if (!rs_redis_stream_read(reply, &look->state))
		rs_trim_failed(look, "XINFO STREAM", reply);
}

/* ---- both --------------------------------------------------------------------------------------- */

/* Redis's clock, in milliseconds. */
static bool
read_time(const RsReply *reply, int64 *now_ms, RsError *error)
{
	if (reply->type != RS_REPLY_ARRAY || reply->tree->elements != 2)
		return rs_redis_error(error, "TIME: %.*s", (int) reply->length,
							  reply->text != NULL ? reply->text : "");
	*now_ms = (int64) strtou64(reply->tree->element[0]->str, NULL, 10) * 1000 +
		(int64) strtou64(reply->tree->element[1]->str, NULL, 10) / 1000;
	return true;
}

static bool
hear_readers(RsWork *work, RsTrimLook *look, RsError *error)
{
	RsReply		reply;

	if (!rs_trim_next(work, &reply, error))
		return false;
	read_consumers(look, &reply);
	if (!rs_trim_next(work, &reply, error))
		return false;
	read_history(look, &reply);
	if (!rs_trim_next(work, &reply, error))
		return false;
	read_groups(look, &reply);
	return true;
}

static bool
hear_positions(RsWork *work, RsTrimLook *look, RsError *error)
{
	RsReply		reply;

	for (int i = 0; i < look->nconsumers; i++)
	{
		if (!look->consumers[i].named_well)
			continue;
		if (!rs_trim_next(work, &reply, error))
			return false;
		read_offset(look, &look->consumers[i], &reply);
	}
	for (int i = 0; i < look->ngroups; i++)
	{
		if (look->groups[i].pending == 0)
			continue;
		if (!rs_trim_next(work, &reply, error))
			return false;
		read_pending(look, &look->groups[i], &reply);
	}
	if (!rs_trim_next(work, &reply, error))
		return false;
	read_stream(look, &reply);
	return true;
}

bool
rs_trim_look(RsWork *work, List *looks, int64 *now_ms, RsError *error)
{
	const char *time[] = {"TIME"};
	RsReply		reply;
	ListCell   *cell;

	rs_redis_queue(work->connection, 1, time, NULL);
	foreach(cell, looks)
		ask_readers(work, lfirst(cell));
	if (!rs_redis_flush(work->connection, rs_timeout, error) ||
		!rs_trim_next(work, &reply, error) || !read_time(&reply, now_ms, error))
		return false;
	foreach(cell, looks)
		if (!hear_readers(work, lfirst(cell), error))
			return false;

	foreach(cell, looks)
		ask_positions(work, lfirst(cell));
	if (!rs_redis_flush(work->connection, rs_timeout, error))
		return false;
	foreach(cell, looks)
		if (!hear_positions(work, lfirst(cell), error))
			return false;
	return true;
}
