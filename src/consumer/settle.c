/*
 * settle.c
 *	  The end of a turn that had a batch: what was taken is committed, what was refused comes again, and what will never be taken
 *	  goes to the dead letters.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "consumer/consumer.h"

/* Whom the released lock has woken has so long to take it, so that each gets its turn. */
#define HAND_OVER_MS 100

#define COMMIT_ATTEMPTS 3

static void
end_once(RsRun *run, int status)
{
	if (run->options->once)
		run->status = status;
}

/* ---- committing ------------------------------------------------------------------------------- */

/* Lets somebody else have a turn, who was woken. */
static void
stand_back(RsRun *run)
{
	bool		refused;
	RsError		error;
	bool		answered;

	run->link.waiting.idle = true;
	answered = rs_redis_turn_stand_by(run->link.connection, &run->consumer, HAND_OVER_MS,
									  RS_TIMEOUT_MS, &refused, &error);
	run->link.waiting.idle = false;
	if (!answered)
		rs_consumer_run_failed(run, refused, &error);
}

/* Returns the milliseconds to wait, for trouble that may last. */
static int
not_committed(RsRun *run, const char *why)
{
	const RsStreamId *first_id = rs_consumer_batch_first(&run->batch);
	const RsStreamId *last_id = rs_consumer_batch_last(&run->batch);
	char		first[RS_STREAM_ID_SIZE];
	char		last[RS_STREAM_ID_SIZE];

	rs_redis_id_format(first_id, first);
	rs_redis_id_format(last_id, last);
	rs_consumer_log(RS_QUIET, "the batch from %s to %s is not committed and will be given again: %s", first, last,
					why);
	end_once(run, RS_EXIT_FAILED);
	if (rs_consumer_stops() > 1)
		run->status = RS_EXIT_FAILED;
	return rs_consumer_tries_failed(&run->tries, first_id, last_id);
}

/* Somebody else may try, meanwhile. */
static void
release_and_pause(RsRun *run, int pause_ms)
{
	rs_consumer_keeper_release(&run->keeper);
	if (run->status < 0)
		rs_consumer_pause(pause_ms);
}

/* Is the end of the batch behind the committed offset, or there? */
static bool
is_committed(RsRun *run)
{
	const char *words[] = {"GET", run->consumer.offset.text};
	RsStreamId	offset;
	RsReply		reply;
	RsError		error;

	return rs_consumer_link_try(&run->link, RS_TIMEOUT_MS) &&
		rs_redis_command(run->link.connection, 2, words, NULL, RS_TIMEOUT_MS, &reply, &error) &&
		reply.type == RS_REPLY_STRING && rs_redis_id_parse(reply.text, reply.length, &offset) &&
		rs_redis_id_compare(rs_consumer_batch_last(&run->batch), &offset) <= 0;
}

/*
 * Commits and releases, in one step.  Without an answer it may have been done or not; if the lock is still ours, it has not, and
 * is tried again.  False when it was not committed: all is said then.
 */
static bool
commit(RsRun *run, const RsDeadLetter *letter, bool *handed_over)
{
	bool		unanswered = false;

	*handed_over = false;
	for (int i = 0; i < COMMIT_ATTEMPTS && rs_consumer_keeper_sure(&run->keeper, true); i++)
	{
		bool		committed;
		bool		refused;
		RsError		error;

		if (rs_redis_turn_commit(run->link.connection, &run->consumer,
								 rs_consumer_batch_last(&run->batch), letter, handed_over,
								 RS_TIMEOUT_MS, &committed, &refused, &error))
		{
			run->keeper.held = false;
			run->keeper.lost = !committed;
			break;
		}
		if (refused && is_committed(run))
		{
			rs_consumer_trouble(&run->unreleased, "Redis refuses to release the lock: %s; the batch is committed", error.text);
			return true;
		}
		if (refused)
		{
			char		reason[sizeof(error.text) + 40];

			snprintf(reason, sizeof(reason), "Redis refuses: %s", error.text);
			release_and_pause(run, not_committed(run, reason));
			return false;
		}
		unanswered = true;
		run->keeper.due_ms = 0;
		rs_consumer_link_trouble(&run->link, &error);
	}
	if (!run->keeper.held && !run->keeper.lost)
		return true;
	if (unanswered && is_committed(run))
	{
		rs_consumer_log(RS_QUIET, "the last batch was committed, although Redis did not say so");
		return true;
	}
	(void) not_committed(run, run->keeper.lost ? "the lock was lost" : "Redis is away");
	return false;
}

static void
commit_batch(RsRun *run, const RsDeadLetter *letter)
{
	bool		handed_over;

	if (!commit(run, letter, &handed_over))
		return;
	rs_consumer_tries_done(&run->tries, letter == NULL);
	rs_consumer_report_batch(&run->report, &run->batch, &run->turn);
	end_once(run, RS_EXIT_DONE);
	if (handed_over && run->status < 0)
		stand_back(run);
}

void
rs_consumer_settle_taken(RsRun *run)
{
	commit_batch(run, NULL);
}

/* ---- dead letters --------------------------------------------------------------------------------- */

static void
add_field(RsDeadLetter *letter, const char *name, const char *value, size_t length)
{
	letter->words[letter->count] = name;
	letter->lengths[letter->count++] = strlen(name);
	letter->words[letter->count] = value;
	letter->lengths[letter->count++] = length;
}

/* The batch is one message. */
static void
give_up(RsRun *run, const char *reason)
{
	const RsOptions *options = run->options;
	const RsMessage *message = &run->batch.messages[0];
	RsDeadLetter letter = {.stream = &run->dead_letter};
	char		id[RS_STREAM_ID_SIZE];
	char		tries[16];

	rs_redis_id_format(&message->id, id);
	snprintf(tries, sizeof(tries), "%d", run->batch.unusable ? 0 : run->tries.count);
	if (!run->batch.unusable || run->batch.has_payload)
		add_field(&letter, "payload", run->batch.payloads.data + message->payload, message->length);
	add_field(&letter, "stream", options->stream, strlen(options->stream));
	add_field(&letter, "consumer", options->name, strlen(options->name));
	add_field(&letter, "id", id, strlen(id));
	add_field(&letter, "tries", tries, strlen(tries));
	add_field(&letter, "reason", reason, strlen(reason));
	rs_consumer_log(RS_QUIET, "message %s goes to the stream %s after %s tries: %s", id,
					options->dead_letter, tries, reason);
	commit_batch(run, &letter);
}

/* ---- what is not taken -------------------------------------------------------------------------------- */

/* The batch was not taken: says so, and what is next. */
static void
come_again(RsRun *run, const char *reason, int try, const char *what, int pause_ms)
{
	const RsBatch *batch = &run->batch;
	char		first[RS_STREAM_ID_SIZE];
	char		last[RS_STREAM_ID_SIZE];

	rs_redis_id_format(rs_consumer_batch_first(batch), first);
	rs_redis_id_format(rs_consumer_batch_last(batch), last);
	if (run->options->once || rs_consumer_stops() > 0)
		rs_consumer_log(RS_QUIET, "the batch of %d from %s to %s was refused (%s)", batch->count, first,
						last, reason);
	else
		rs_consumer_log(RS_QUIET, "the batch of %d from %s to %s was refused (%s), try %d; %s in %d.%d s",
						batch->count, first, last, reason, try, what, pause_ms / 1000,
						pause_ms % 1000 / 100);
	end_once(run, RS_EXIT_FAILED);
	release_and_pause(run, pause_ms);
}

void
rs_consumer_settle_refused(RsRun *run, const char *reason)
{
	const RsBatch *batch = &run->batch;
	int			pause_ms;
	RsVerdict	verdict = rs_consumer_tries_refused(&run->tries, rs_consumer_batch_first(batch),
													rs_consumer_batch_last(batch), batch->count,
													&pause_ms);

	if (verdict == RS_GIVE_UP)
		give_up(run, reason);
	else
		come_again(run, reason, run->tries.count, verdict == RS_TRY_HALF ? "half of it" : "again",
				   pause_ms);
}

/* That says nothing about the messages, however often it happens. */
void
rs_consumer_settle_not_run(RsRun *run, const char *reason)
{
	const RsBatch *batch = &run->batch;
	int			pause_ms = rs_consumer_tries_failed(&run->tries, rs_consumer_batch_first(batch),
													rs_consumer_batch_last(batch));

	come_again(run, reason, run->tries.failures, "again", pause_ms);
}

void
rs_consumer_settle_unusable(RsRun *run)
{
	const RsStreamId *id = rs_consumer_batch_first(&run->batch);
	char		text[RS_STREAM_ID_SIZE];
	char		stream[RS_QUOTED_SIZE];
	char		name[RS_QUOTED_SIZE];
	int			pause_ms = rs_consumer_tries_failed(&run->tries, id, id);

	if (run->options->dead_letter != NULL)
	{
		give_up(run, run->batch.reason);
		return;
	}
	rs_redis_id_format(id, text);
	rs_consumer_log(RS_QUIET, "message %s cannot be used: %s; ways past it are --skip-invalid, --dead-letter, SELECT redstream.commit_offset(%s, %s, '%s'), and XDEL",
					text, run->batch.reason, rs_consumer_quote(run->options->stream, stream),
					rs_consumer_quote(run->options->name, name), text);
	end_once(run, RS_EXIT_FAILED);
	release_and_pause(run, pause_ms);
}
