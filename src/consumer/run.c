/*
 * run.c
 *	  The way through the program: one turn after the other, until it is told to end.
 *
 *		connect ◄──────────────────── Redis failed: say so once, pause 100 ms to 5 s
 *		   │
 *		   ▼
 *		turn: take the lock ── refused ──► stand by: until it is released, or expires ──► turn
 *		   │ taken
 *		   ▼
 *		check ── stream and offset do not fit ──► say so, release, pause 1 s to 60 s ──► turn
 *		   │
 *		   ▼
 *		gather, linger ── nothing ──► release, wait for messages without the lock ──► turn
 *		   │
 *		   ▼
 *		handle: COMMAND or standard output, extending the lock
 *		   │ taken                          │ refused
 *		   ▼                                ▼
 *		commit and release              release, pause 200 ms to 30 s ──► turn
 *		   │        │ lock lost: not committed ──► turn
 *		   ▼
 *		stand back for a moment, if somebody was woken ──► turn
 *
 * The first signal to end is looked at between turns, and ends every wait in which nothing is under way.
 */
#include "consumer/consumer.h"

#define STAND_BY_MAX_MS 5000
#define STAND_BY_UNKNOWN_MS 100	/* the lock was free again, or has no end */
#define AWAIT_MS 5000
#define MISFIT_PAUSE_FIRST_MS 1000
#define MISFIT_PAUSE_LAST_MS 60000

void
rs_consumer_run_failed(RsRun *run, bool refused, const RsError *error)
{
	/* The connection is in order: others need not wait for the lock to expire. */
	if (refused)
		rs_consumer_keeper_release(&run->keeper);
	if (!refused && rs_consumer_stops() > 0)
		rs_consumer_link_end(&run->link);
	else
		rs_consumer_link_trouble(&run->link, error);
}

static void
stand_by(RsRun *run)
{
	int			lock_ms = (int) run->turn.lock_ms;
	int			wait_ms = lock_ms == 0 ? STAND_BY_UNKNOWN_MS :
		lock_ms < STAND_BY_MAX_MS ? lock_ms + 1 : STAND_BY_MAX_MS;
	bool		answered;
	bool		refused;
	RsError		error;

	run->keeper.held = false;
	rs_consumer_link_fine(&run->link);
	rs_consumer_report_state(&run->report, RS_STATE_STANDING_BY);
	rs_consumer_report_summary(&run->report, false);
	run->link.waiting.idle = true;
	answered = rs_redis_turn_stand_by(run->link.connection, &run->consumer, wait_ms, RS_TIMEOUT_MS,
									  &refused, &error);
	run->link.waiting.idle = false;
	if (!answered)
		rs_consumer_run_failed(run, refused, &error);
}

/* The stream does not fit the offset: somebody has to say where to go on. */
static void
misfit(RsRun *run, const RsError *error)
{
	char		stream[RS_QUOTED_SIZE];
	char		name[RS_QUOTED_SIZE];
	RsError		ignored;
	bool		refused;

	rs_consumer_trouble(&run->misfit, "%s; when it is clear what is to be read again, set the offset: SELECT redstream.add_consumer(%s, %s, id)",
						error->text, rs_consumer_quote(run->options->stream, stream),
						rs_consumer_quote(run->options->name, name));
	if (!rs_redis_turn_note(run->link.connection, &run->consumer, &run->turn, false, RS_TIMEOUT_MS,
							&refused, &ignored))
		rs_consumer_run_failed(run, refused, &ignored);
	rs_consumer_keeper_release(&run->keeper);
	if (run->options->once)
		run->status = RS_EXIT_FAILED;
	else
		rs_consumer_pause(run->misfit_pause_ms);
	run->misfit_pause_ms = run->misfit_pause_ms < MISFIT_PAUSE_LAST_MS / 2 ?
		2 * run->misfit_pause_ms : MISFIT_PAUSE_LAST_MS;
}

static void
await_messages(RsRun *run)
{
	bool		there;
	bool		answered;
	bool		refused;
	RsError		error;

	rs_consumer_keeper_release(&run->keeper);
	rs_consumer_report_summary(&run->report, false);
	if (run->options->once)
		run->status = RS_EXIT_NOTHING;
	if (run->status >= 0 || run->link.connection == NULL)
		return;
	run->link.waiting.idle = true;
	answered = rs_redis_await_messages(run->link.connection, &run->consumer.stream,
									   &run->turn.offset, AWAIT_MS, RS_TIMEOUT_MS, &there, &refused,
									   &error);
	run->link.waiting.idle = false;
	if (!answered)
		rs_consumer_run_failed(run, refused, &error);
}

/* Gives the batch to who takes it. */
static void
handle(RsRun *run)
{
	RsBatch    *batch = &run->batch;
	RsOutcome	outcome = RS_TAKEN;
	char		reason[RS_REASON_SIZE];

	if ((run->options->unique && !rs_consumer_batch_unique(batch)) ||
		!rs_consumer_batch_write(batch))
	{
		batch->failed = true;
		return;
	}
	/* Whoever was stopped meanwhile must not begin with what is another's by now. */
	if (!rs_consumer_keeper_sure(&run->keeper, false))
		return;
	if (batch->lines.used > 0 && run->options->command != NULL)
		outcome = rs_consumer_handler_run(run->options, batch, &run->keeper, reason);
	else if (batch->lines.used > 0)
		outcome = rs_consumer_output_run(batch, &run->keeper);
	if (outcome == RS_TAKEN)
		rs_consumer_settle_taken(run);
	else if (outcome == RS_REFUSED)
		rs_consumer_settle_refused(run, reason);
	else if (outcome == RS_NOT_RUN)
		rs_consumer_settle_not_run(run, reason);
	else
		run->status = RS_EXIT_FAILED;
}

/* The lock is ours. */
static void
work(RsRun *run)
{
	bool		refused;
	RsError		error;

	if (!rs_redis_turn_check(&run->turn, &run->turn.offset, &error))
	{
		misfit(run, &error);
		return;
	}
	if (rs_consumer_trouble_end(&run->misfit) > 0)
		rs_consumer_log(RS_QUIET, "the stream and the offset fit again");
	run->misfit_pause_ms = MISFIT_PAUSE_FIRST_MS;
	if (!rs_redis_turn_note(run->link.connection, &run->consumer, &run->turn, true, RS_TIMEOUT_MS,
							&refused, &error))
	{
		rs_consumer_run_failed(run, refused, &error);
		return;
	}
	if (!rs_consumer_gather(run))
		return;
	rs_consumer_link_fine(&run->link);
	rs_consumer_report_state(&run->report, RS_STATE_WORKING);
	if (rs_consumer_stops() > 0 || run->keeper.lost)
		return;
	if (run->batch.unusable)
		rs_consumer_settle_unusable(run);
	else if (run->batch.count > 0)
		handle(run);
	else
		await_messages(run);
}

static void
turn(RsRun *run)
{
	int64_t		now = rs_consumer_now_ms();
	bool		refused;
	RsError		error;

	/* Whatever Redis answers, it may have taken the lock. */
	rs_consumer_keeper_begin(&run->keeper, now);
	if (!rs_redis_turn_begin(run->link.connection, &run->consumer, RS_TIMEOUT_MS, &run->turn,
							 &refused, &error))
		rs_consumer_run_failed(run, refused, &error);
	else if (run->turn.taken)
		work(run);
	else
		stand_by(run);
	if (run->batch.failed)
	{
		rs_consumer_log(RS_QUIET, "out of memory");
		run->status = RS_EXIT_FAILED;
	}
}

/* The lock is released, so that another process can go on at once. */
static void
end(RsRun *run)
{
	rs_consumer_report_summary(&run->report, true);
	if (run->keeper.held && rs_consumer_link_try(&run->link, 1000))
		rs_consumer_keeper_release(&run->keeper);
	rs_consumer_link_end(&run->link);
	rs_consumer_batch_end(&run->batch);
}

int
rs_consumer_run(const RsOptions *options, const char *holder)
{
	RsRun		run = {.options = options,.status = -1,.misfit_pause_ms = MISFIT_PAUSE_FIRST_MS};

	rs_redis_consumer_set(&run.consumer, options->ns, options->stream, options->name, holder);
	if (options->dead_letter != NULL)
		rs_redis_stream_key(&run.dead_letter, options->ns, options->dead_letter);
	rs_consumer_link_begin(&run.link, &options->address);
	run.keeper.link = &run.link;
	run.keeper.consumer = &run.consumer;
	rs_consumer_tries_begin(&run.tries, options->batch_size, options->max_tries);
	rs_consumer_report_begin(&run.report);

	while (run.status < 0)
	{
		if (rs_consumer_link_require(&run.link))
			turn(&run);
		if (run.status < 0 && rs_consumer_stops() > 0)
			run.status = options->once ? RS_EXIT_FAILED : RS_EXIT_DONE;
	}
	end(&run);
	return run.status;
}
