/*
 * keeper.c
 *	  Keeps the consumer's lock while a batch is worked on, for hours if it must.
 *
 * It is extended long before it expires, so that one attempt may fail.  Only Redis can say that it is lost: while Redis is
 * away nobody knows.  Once it has said so, the lock is not taken again in this turn: somebody
 * else may have had it meanwhile.
 */
#include "consumer/consumer.h"

#define EXTEND_MS 1500
#define RECONNECT_MS 1000
#define PATIENCE_PAUSE_MS 100

void
rs_consumer_keeper_begin(RsKeeper *keeper, int64_t since_ms)
{
	keeper->held = true;
	keeper->lost = false;
	keeper->sure_ms = since_ms;
	keeper->due_ms = since_ms + EXTEND_MS;
}

int
rs_consumer_keeper_due(const RsKeeper *keeper)
{
	int64_t		left = keeper->due_ms - rs_consumer_now_ms();

	if (keeper->lost)
		return RS_TIMEOUT_MS;
	return left > 0 ? (int) left : 0;
}

static void
lose(RsKeeper *keeper)
{
	keeper->held = false;
	keeper->lost = true;
	rs_consumer_log(RS_QUIET, "the lock is lost: it expired, was deleted, or somebody else has it");
}

static void
extend(RsKeeper *keeper)
{
	int64_t		now = rs_consumer_now_ms();
	RsError		error;
	bool		held;

	if (!rs_redis_lock_extend(keeper->link->connection, &keeper->consumer->lock,
							  keeper->consumer->holder, RS_TIMEOUT_MS, &held, &error))
	{
		rs_consumer_link_trouble(keeper->link, &error);
		keeper->due_ms = rs_consumer_now_ms();
	}
	else if (held)
	{
		rs_consumer_link_fine(keeper->link);
		keeper->sure_ms = now;
		keeper->due_ms = now + EXTEND_MS;
	}
	else if (error.text[0] != '\0')
	{
		rs_consumer_link_trouble(keeper->link, &error);
		keeper->due_ms = rs_consumer_now_ms() + RECONNECT_MS;
	}
	else
		lose(keeper);
}

void
rs_consumer_keeper_tend(RsKeeper *keeper)
{
	if (keeper->lost || rs_consumer_keeper_due(keeper) > 0)
		return;
	if (rs_consumer_link_try(keeper->link, RECONNECT_MS))
		extend(keeper);
	else
		keeper->due_ms = rs_consumer_now_ms() + RECONNECT_MS;
}

bool
rs_consumer_keeper_sure(RsKeeper *keeper, bool patience)
{
	int64_t		end = rs_consumer_now_ms() + RS_LOCK_TTL_MS;

	while (!keeper->lost && rs_consumer_stops() < 2)
	{
		if (keeper->link->connection != NULL && rs_consumer_keeper_due(keeper) > 0)
			return true;
		keeper->due_ms = 0;
		rs_consumer_keeper_tend(keeper);
		if (keeper->link->connection != NULL)
			continue;
		if (!patience || rs_consumer_now_ms() > end || !rs_consumer_patient())
			return false;
		rs_consumer_wait_feeding(NULL, PATIENCE_PAUSE_MS);
	}
	return false;
}

void
rs_consumer_keeper_release(RsKeeper *keeper)
{
	RsLink	   *link = keeper->link;
	RsError		error;
	bool		handed_over;
	bool		refused;

	if (keeper->held && link->connection != NULL &&
		!rs_redis_turn_release(link->connection, keeper->consumer, &handed_over, RS_TIMEOUT_MS,
							   &refused, &error))
		rs_consumer_link_trouble(link, &error);
	keeper->held = false;
}
