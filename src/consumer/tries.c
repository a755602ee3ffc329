/*
 * tries.c
 *	  A batch that its handler refuses: given again, the same messages, with growing pauses; and, with a limit of tries,
 *	  halved until the bad message is found.
 *
 *		whole batch ── refused max_tries times ──► half of it ── refused ──► half of that ... one message
 *		   ▲                                         │ taken                                 │ refused max_tries times
 *		   └──────── limit doubles ──────────────────┘ ◄──────────────────────────────── given up
 *
 * One message is tried as often as a whole batch, with the same pauses, because nobody knows whether it is the message that is bad:
 * a database that is away must not cost one message after the other.  After one was given up the limit stays, and the
 * pauses go on growing: only success says that the handler works.
 */
#include "consumer/consumer.h"

#define PAUSE_FIRST_MS 200
#define PAUSE_LAST_MS 30000

void
rs_consumer_tries_begin(RsTries *tries, int batch_size, int max_tries)
{
	*tries = (RsTries) {.max_tries = max_tries,.batch_size = batch_size,.limit = batch_size};
}

bool
rs_consumer_tries_repeats(const RsTries *tries, const RsStreamId *first)
{
	return tries->repeats && rs_redis_id_compare(&tries->first, first) == 0;
}

static int
pause_after(int count)
{
	int			pause_ms = PAUSE_FIRST_MS;

	while (--count > 0 && pause_ms < PAUSE_LAST_MS)
		pause_ms *= 2;
	return pause_ms < PAUSE_LAST_MS ? pause_ms : PAUSE_LAST_MS;
}

int
rs_consumer_tries_failed(RsTries *tries, const RsStreamId *first, const RsStreamId *last)
{
	if (!rs_consumer_tries_repeats(tries, first))
		tries->count = 0;
	if (!rs_consumer_tries_repeats(tries, first) && !tries->gave_up)
		tries->failures = 0;
	tries->repeats = true;
	tries->first = *first;
	tries->last = *last;
	return pause_after(++tries->failures);
}

RsVerdict
rs_consumer_tries_refused(RsTries *tries, const RsStreamId *first, const RsStreamId *last,
						  int messages, int *pause_ms)
{
	bool		halved = tries->limit < tries->batch_size;

	*pause_ms = rs_consumer_tries_failed(tries, first, last);
	tries->count++;
	if (tries->max_tries == 0)
		return RS_TRY_AGAIN;
	if (messages > 1 && (halved || tries->count >= tries->max_tries))
	{
		tries->limit = messages / 2;
		tries->repeats = false;
		*pause_ms = PAUSE_FIRST_MS;
		return RS_TRY_HALF;
	}
	if (messages > 1 || tries->count < tries->max_tries)
		return RS_TRY_AGAIN;
	tries->gave_up = true;
	return RS_GIVE_UP;
}

void
rs_consumer_tries_done(RsTries *tries, bool taken)
{
	tries->repeats = false;
	if (!taken)
		return;
	tries->gave_up = false;
	tries->limit = tries->limit < tries->batch_size / 2 ? 2 * tries->limit : tries->batch_size;
}
