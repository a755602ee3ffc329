/*
 * trim_cut.c
 *	  Trims a stream, under its lock.
 *
 * With the lock taken the stream is looked at again.  Then a script trims, extends the lock, and counts
 * what was lost to whom, all or nothing; it does nothing when the lock is not ours
 * (any more), or when a consumer has come or gone since the look.  Not MULTI and WATCH: a Redis that is full
 * refuses to queue a command, and this may be what makes room.
 *
 * A long stream is trimmed a million entries at a time, since Redis does nothing else
 * meanwhile: whole nodes first ("~"), and at last exactly.
 *
 * What expires goes in stages, at the ids from which the consumers keep: Redis's count of each
 * stage then says exactly how many messages each consumer lost.
 */
#include "postgres.h"

#include "settings.h"
#include "stats.h"
#include "worker/trim.h"

#define STEP 1000000			/* entries trimmed at once */
#define TEXT(number) TEXT_OF(number)
#define TEXT_OF(number) #number

#define NOT_OURS (-1)
#define OTHER_CONSUMERS (-2)

/*
 * KEYS: lock, consumers, stream, history; ARGV: holder, milliseconds, id, step or nothing, how many
 * consumers there are, their names, fields to count in.
 *
 * Once a script has run a write that needs no memory, Redis refuses it none of the others for want of
 * memory.  Nor must a missing permission show only after the trim: so each write comes without effect
 * first.
 */
static const char cut_script[] =
"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return " TEXT(NOT_OURS) " end\n"
"local count = tonumber(ARGV[5])\n"
"if redis.call('SCARD', KEYS[2]) ~= count then return " TEXT(OTHER_CONSUMERS) " end\n"
"for i = 6, 5 + count do\n"
"  if redis.call('SISMEMBER', KEYS[2], ARGV[i]) == 0 then return " TEXT(OTHER_CONSUMERS) " end\n"
"end\n"
"redis.call('PEXPIRE', KEYS[1], ARGV[2])\n"
"for i = 6 + count, #ARGV do redis.call('HINCRBY', KEYS[4], ARGV[i], 0) end\n"
"local trimmed\n"
"if ARGV[4] == '' then trimmed = redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3])\n"
"else trimmed = redis.call('XTRIM', KEYS[3], 'MINID', '~', ARGV[3], 'LIMIT', ARGV[4]) end\n"
"for i = 6 + count, #ARGV do redis.call('HINCRBY', KEYS[4], ARGV[i], trimmed) end\n"
"return trimmed\n";

typedef enum CutEnd
{
	CUT_FINE,
	CUT_LEFT,					/* the lock or the set of consumers changed: for the next look */
	CUT_FAILED,					/* an error reply, which is in the report */
	CUT_LOST					/* the connection is of no more use */
} CutEnd;

typedef struct Cutter
{
	RsWork	   *work;
	RsTrimLook *look;
	RsJobReport *report;
	uint64		left;			/* entries of the stream, about */
	RsKey		lock;
	RsKey		consumers;
	RsKey		stream;
	RsKey		history;
	RsError    *error;
} Cutter;

static Cutter *
create_cutter(RsWork *work, RsWorkStream *stream, RsError *error)
{
	Cutter	   *cutter = palloc0(sizeof(Cutter));

	cutter->work = work;
	cutter->look = rs_trim_look_create(stream);
	cutter->report = &stream->reports[RS_JOB_TRIMMER];
	cutter->error = error;
	rs_redis_trimmer_lock_key(&cutter->lock, rs_namespace, stream->name);
	rs_redis_consumers_key(&cutter->consumers, rs_namespace, stream->name);
	rs_redis_stream_key(&cutter->stream, rs_namespace, stream->name);
	rs_redis_history_key(&cutter->history, rs_namespace, stream->name);
	return cutter;
}

/* Goes into the report. */
static CutEnd
failed(Cutter *cutter, const char *command, const RsReply *reply)
{
	rs_trim_failed(cutter->look, command, reply);
	return CUT_FAILED;
}

/* Sends one command; false when the connection is of no more use. */
static bool
ask(Cutter *cutter, int count, const char *const *words, RsReply *reply)
{
	rs_redis_queue(cutter->work->connection, count, words, NULL);
	return rs_redis_flush(cutter->work->connection, rs_timeout, cutter->error) &&
		rs_trim_next(cutter->work, reply, cutter->error);
}

/* ---- one script ------------------------------------------------------------------------------ */

/* The words behind the keys.  Whoever keeps from before "point" loses what is trimmed. */
static List *
arguments(Cutter *cutter, const RsStreamId *point, bool step)
{
	const RsTrimLook *look = cutter->look;
	char		id[RS_STREAM_ID_SIZE];
	List	   *words;

	rs_redis_id_format(point, id);
	words = list_make5(cutter->work->holder, TEXT(RS_LOCK_TTL_MS), pstrdup(id), step ? TEXT(STEP) : "",
					   psprintf("%d", look->nconsumers));
	for (int i = 0; i < look->nconsumers; i++)
		words = lappend(words, (void *) look->consumers[i].name);
	for (int i = 0; i < look->nconsumers; i++)
		if (rs_redis_id_compare(&look->consumers[i].keep, point) < 0)
			words = lappend(words, psprintf("lost:%s", look->consumers[i].name));
	return words;
}

/* Trims everything before "point", or at most a step of it and only whole nodes. */
static CutEnd
execute(Cutter *cutter, const RsStreamId *point, bool step, int64 *trimmed)
{
	List	   *rest = arguments(cutter, point, step);
	const char **words = palloc((7 + list_length(rest)) * sizeof(char *));
	int			count = 0;
	ListCell   *cell;
	RsReply		reply;

	words[count++] = "EVAL";
	words[count++] = cut_script;
	words[count++] = "4";
	words[count++] = cutter->lock.text;
	words[count++] = cutter->consumers.text;
	words[count++] = cutter->stream.text;
	words[count++] = cutter->history.text;
	foreach(cell, rest)
		words[count++] = lfirst(cell);
	if (!ask(cutter, count, words, &reply))
		return CUT_LOST;
	if (reply.type != RS_REPLY_INTEGER)
		return failed(cutter, "XTRIM", &reply);
	*trimmed = reply.integer;
	cutter->report->locked = reply.integer == NOT_OURS;
	return reply.integer >= 0 ? CUT_FINE : CUT_LEFT;
}

/* ---- stages --------------------------------------------------------------------------------- */

/* So many entries before "point" are gone. */
static CutEnd
count(Cutter *cutter, const RsStreamId *point, int64 trimmed)
{
	cutter->left -= Min(cutter->left, (uint64) trimmed);
	if (trimmed == 0)
		return CUT_FINE;
	cutter->report->trimmed += trimmed;
	rs_stats_add(RS_COUNT_TRIMMED, trimmed);
	return rs_trim_lost(cutter->work, cutter->look, point, trimmed, cutter->error) ?
		CUT_FINE : CUT_LOST;
}

/* Everything before "point", which is not behind the target. */
static CutEnd
cut_stage(Cutter *cutter, const RsStreamId *point)
{
	bool		steps = cutter->left > STEP;

	for (;;)
	{
		int64		trimmed = 0;
		CutEnd		end = execute(cutter, point, steps, &trimmed);

		if (end == CUT_FINE)
			end = count(cutter, point, trimmed);
		if (end != CUT_FINE || !steps)
			return end;
		/* at last what is left of this stage, a part of a node at least */
		steps = trimmed > 0 && cutter->left > STEP;
	}
}

/* Where the next stage ends: where the next consumer begins to lose messages. */
static RsStreamId
next_point(const RsTrimLook *look, const RsStreamId *done)
{
	RsStreamId	point = look->target;

	for (int i = 0; i < look->nconsumers; i++)
	{
		const RsStreamId *keep = &look->consumers[i].keep;

		if (rs_redis_id_compare(keep, done) > 0 && rs_redis_id_compare(keep, &point) < 0)
			point = *keep;
	}
	return point;
}

static CutEnd
cut_stages(Cutter *cutter)
{
	RsStreamId	done = cutter->look->state.first;
	CutEnd		end = CUT_FINE;

	while (end == CUT_FINE && rs_redis_id_compare(&done, &cutter->look->target) < 0)
	{
		RsStreamId	point = next_point(cutter->look, &done);

		end = cut_stage(cutter, &point);
		done = point;
	}
	return end;
}

/* ---- all --------------------------------------------------------------------------------------- */

/* What is known is a moment old, and of before the lock. */
static CutEnd
look_again(Cutter *cutter)
{
	int64		now_ms;

	if (!rs_trim_look(cutter->work, list_make1(cutter->look), &now_ms, cutter->error))
		return CUT_LOST;
	rs_trim_judge(cutter->look, now_ms);
	cutter->left = cutter->look->state.length;
	if (cutter->look->failed)
		return CUT_FAILED;
	return cutter->look->trims ? CUT_FINE : CUT_LEFT;
}

static CutEnd
cut_locked(Cutter *cutter)
{
	CutEnd		end = look_again(cutter);

	return end == CUT_FINE ? cut_stages(cutter) : end;
}

bool
rs_trim_cut(RsWork *work, RsWorkStream *stream, RsError *error)
{
	Cutter	   *cutter = create_cutter(work, stream, error);
	bool		taken;

	if (!rs_redis_lock_take(work->connection, &cutter->lock, work->holder, rs_timeout, &taken, error))
		return false;
	if (taken)					/* released after whatever happens, but a lost connection */
		return cut_locked(cutter) != CUT_LOST &&
			rs_redis_lock_release(work->connection, &cutter->lock, work->holder, rs_timeout, error);
	if (error->text[0] != '\0')
		rs_work_report_error(stream, RS_JOB_TRIMMER, psprintf("lock: %s", error->text));
	else
		cutter->report->locked = true;
	return true;
}
