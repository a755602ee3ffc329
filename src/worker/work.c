/*
 * work.c
 *	  What the jobs of a database work with: the connection, the server key, and
 *	  the list of streams.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "access/xact.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "capture/capture.h"
#include "identity.h"
#include "settings.h"
#include "worker/work.h"

#define CLAIM_INTERVAL 5000000	/* microseconds for which a claim is believed; it holds for
								 * RS_SERVER_TTL_S */

#define PAUSE_FIRST 1000000		/* microseconds, after a refusal */
#define PAUSE_LAST 60000000

#define KNOW_INTERVAL 10000000	/* microseconds between two looks at the known streams */

/* Something about relations has changed since the list of streams was made; in every process that
 * has one. */
static bool attachments_changed = true;

static void
on_invalidation(Datum argument, Oid relation)
{
	attachments_changed = true;
}

RsWork *
rs_work_create(MemoryContext parent, RsWait wait, bool own_transactions)
{
	static bool registered = false;
	MemoryContext context = AllocSetContextCreate(parent, "redstream work",
												  ALLOCSET_DEFAULT_SIZES);
	RsWork	   *work = MemoryContextAllocZero(context, sizeof(RsWork));

	work->context = context;
	work->own_transactions = own_transactions;
	work->wait = wait;
	if (!rs_redis_holder_draw(work->holder))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not get random bytes")));
	if (!registered)
		CacheRegisterRelcacheCallback(on_invalidation, (Datum) 0);
	registered = true;
	attachments_changed = true;
	return work;
}

/* ---- connection --------------------------------------------------------------------- */

void
rs_work_disconnect(RsWork *work)
{
	if (work->connection != NULL)
		rs_redis_close(work->connection, true);
	work->connection = NULL;
	work->claimed_at = 0;
}

static bool
ask_async(RsWork *work, RsError *error)
{
	RsKey		key;
	RsReply		reply;
	const char *words[] = {"EXISTS", key.text};

	rs_redis_async_key(&key, rs_namespace, rs_identity_server());
	if (!rs_redis_command(work->connection, 2, words, NULL, rs_timeout, &reply, error))
		return false;
	if (reply.type == RS_REPLY_ERROR)
		return rs_redis_error(error, "EXISTS: %.*s", (int) reply.length, reply.text);
	work->async = reply.integer > 0;
	return true;
}

/* Makes sure that this server still speaks for its transactions. */
static bool
claim(RsWork *work, RsError *error)
{
	RsKey		key;
	bool		ours;

	if (work->claimed_at != 0 && rs_now() < work->claimed_at + CLAIM_INTERVAL)
		return true;
	rs_redis_server_key(&key, rs_namespace, rs_identity_server());
	if (!rs_redis_claim(work->connection, &key, rs_identity_token(), rs_timeout, &ours, error))
		return false;
	if (!ours)
		return rs_redis_error(error, "another server with the same system identifier uses this Redis: key %s is not ours",
							  key.text);
	work->claimed_at = rs_now();
	return ask_async(work, error);
}

bool
rs_work_connect(RsWork *work, RsError *error)
{
	if (work->connection == NULL)
	{
		work->connection = rs_connect_configured(work->own_transactions ? "redstream-worker" : "redstream-sql",
												 work->wait, NULL, &work->server, error);
		work->connections++;
	}
	if (work->connection == NULL)
		return false;
	if (claim(work, error))
		return true;
	rs_work_disconnect(work);
	return false;
}

bool
rs_work_ask(RsWork *work, int count, const char *const *words, RsReply *reply, RsError *error)
{
	if (rs_redis_command(work->connection, count, words, NULL, rs_timeout, reply, error))
		return true;
	rs_work_disconnect(work);
	return false;
}

/* ---- reports --------------------------------------------------------------------- */

RsJobReport *
rs_work_report_begin(RsWorkStream *stream, RsJob job)
{
	RsJobReport *report = &stream->reports[job];
	char	  **last = &stream->last_errors[job];

	if (*last != NULL)
		pfree(*last);
	*last = (char *) report->error;
	memset(report, 0, sizeof(*report));
	report->stream = stream->name;
	return report;
}

void
rs_work_report_error(RsWorkStream *stream, RsJob job, const char *error)
{
	static const char *const names[] = {
		[RS_JOB_SPOOLER] = "spooler",
		[RS_JOB_DELAYER] = "delayer",
		[RS_JOB_TRIMMER] = "trimmer"
	};
	const char *last = stream->last_errors[job];
	RsJobReport *report = &stream->reports[job];

	if (report->error != NULL)
		return;					/* the first one led to the others */
	report->error = MemoryContextStrdup(stream->context, error);
	if (last == NULL || strcmp(last, error) != 0)
		ereport(LOG,
				(errmsg("redstream %s: stream %s: %s", names[job], stream->name, error)));
}

uint64
rs_work_pause(int refusals)
{
	return rs_backoff(PAUSE_FIRST, refusals, PAUSE_LAST);
}

/* ---- transactions ------------------------------------------------------------------- */

void
rs_work_begin(RsWork *work)
{
	if (!work->own_transactions)
		return;
	work->outside = CurrentMemoryContext;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
rs_work_end(RsWork *work)
{
	if (!work->own_transactions)
		return;
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(work->outside);
}

/* ---- streams ------------------------------------------------------------------------- */

/* Milliseconds of an interval; a month has 30 days.  -1 for NULL. */
static int64
milliseconds(const Interval *interval)
{
	if (interval == NULL)
		return -1;
	return interval->time / 1000 +
		(interval->day + (int64) interval->month * DAYS_PER_MONTH) * (SECS_PER_DAY * INT64CONST(1000));
}

static RsWorkStream *
find_stream(const RsWork *work, const char *name)
{
	ListCell   *cell;

	foreach(cell, work->streams)
	{
		RsWorkStream *stream = lfirst(cell);

		if (strcmp(stream->name, name) == 0)
			return stream;
	}
	return NULL;
}

static RsWorkStream *
add_stream(RsWork *work, const char *name)
{
	MemoryContext context = AllocSetContextCreate(work->context, "redstream stream",
												  ALLOCSET_SMALL_SIZES);
	RsWorkStream *stream = MemoryContextAllocZero(context, sizeof(RsWorkStream));
	MemoryContext old = MemoryContextSwitchTo(work->context);

	stream->context = context;
	stream->name = MemoryContextStrdup(context, name);
	stream->delay_ms = stream->expiry_ms = -1;
	work->streams = lappend(work->streams, stream);
	MemoryContextSwitchTo(old);
	return stream;
}

RsWorkStream *
rs_work_stream(RsWork *work, const char *name)
{
	RsWorkStream *stream = find_stream(work, name);

	return stream != NULL ? stream : add_stream(work, name);
}

bool
rs_work_refresh(RsWork *work)
{
	Oid			capture = rs_capture_function();
	ListCell   *cell;

	if (!OidIsValid(capture))
		return false;
	if (!attachments_changed)
		return true;
	attachments_changed = false;
	foreach(cell, work->streams)
	{
		RsWorkStream *stream = lfirst(cell);

		stream->delay_ms = stream->expiry_ms = -1;
	}
	foreach(cell, rs_capture_streams(capture))
	{
		RsAttachedStream *attached = lfirst(cell);
		RsWorkStream *stream = rs_work_stream(work, attached->name);

		stream->delay_ms = milliseconds(attached->delay);
		stream->expiry_ms = milliseconds(attached->expiry);
	}
	return true;
}

bool
rs_work_know(RsWork *work, RsError *error)
{
	RsKey		key;
	RsReply		reply;
	const char *words[] = {"SMEMBERS", key.text};

	if (work->known_at != 0 && rs_now() < work->known_at + KNOW_INTERVAL)
		return true;
	rs_identity_streams_key(&key, rs_namespace);
	if (!rs_work_ask(work, 2, words, &reply, error))
		return false;
	if (reply.type != RS_REPLY_ARRAY)
	{
		rs_work_disconnect(work);
		return rs_redis_error(error, "SMEMBERS: %.*s", (int) reply.length, reply.text);
	}
	for (size_t i = 0; i < (size_t) reply.tree->elements; i++)
	{
		const char *name = reply.tree->element[i]->str;
		RsError		ignored;

		if (rs_redis_stream_name_check(name, &ignored))
			(void) rs_work_stream(work, name);
	}
	work->known_at = rs_now();
	return true;
}
