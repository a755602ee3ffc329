/*
 * link.c
 *	  The connection to Redis: made, lost, made again.
 *
 *		none ── connect ──► there ── works ──► fine
 *		 ▲ │                  │                 │
 *		 │ └─ fails: pause    │ fails: say so,  │
 *		 └────────────────────┴──── close ──────┘
 *
 * What Redis refuses for a while (LOADING, READONLY, NOAUTH, NOPERM) is treated as a lost connection: the next one may lead
 * to another server.  So a connection is not fine because it was made, but when it has served.
 */
#include "consumer/consumer.h"

#define PAUSE_FIRST_MS 100
#define PAUSE_LAST_MS 5000

void
rs_consumer_link_begin(RsLink *link, const RsAddress *address)
{
	*link = (RsLink) {.address = address};
}

void
rs_consumer_link_end(RsLink *link)
{
	rs_redis_close(link->connection, false);
	link->connection = NULL;
}

void
rs_consumer_link_trouble(RsLink *link, const RsError *error)
{
	rs_consumer_link_end(link);
	link->pause_ms = link->pause_ms == 0 ? PAUSE_FIRST_MS :
		link->pause_ms < PAUSE_LAST_MS / 2 ? 2 * link->pause_ms : PAUSE_LAST_MS;
	rs_consumer_trouble(&link->trouble, "Redis: %s; trying again", error->text);
}

void
rs_consumer_link_fine(RsLink *link)
{
	int			seconds = rs_consumer_trouble_end(&link->trouble);

	link->pause_ms = 0;
	if (seconds > 0)
		rs_consumer_log(RS_QUIET, "Redis works again, after %d s", seconds);
	else if (!link->was_fine)
		rs_consumer_log(RS_NORMAL, "connected to %s %s", link->server.software,
						link->server.version);
	link->was_fine = true;
}

bool
rs_consumer_link_try(RsLink *link, int timeout_ms)
{
	RsConnectOptions options = {
		.address = link->address,
		.client_name = RS_PROGRAM,
		.timeout_ms = timeout_ms,
		.wait = rs_consumer_wait,
		.wait_argument = &link->waiting
	};
	RsError		error;

	if (link->connection != NULL)
		return true;
	link->connection = rs_redis_connect(&options, &link->server, &error);

	/* Who is told to end gives up without a reason. */
	if (link->connection == NULL && !(link->waiting.idle && rs_consumer_stops() > 0))
		rs_consumer_link_trouble(link, &error);
	return link->connection != NULL;
}

bool
rs_consumer_link_require(RsLink *link)
{
	link->waiting.idle = true;
	while (link->connection == NULL && rs_consumer_stops() == 0)
	{
		rs_consumer_pause(link->pause_ms);
		if (rs_consumer_stops() == 0)
			(void) rs_consumer_link_try(link, RS_TIMEOUT_MS);
	}
	link->waiting.idle = false;
	return rs_consumer_stops() == 0;
}
