/*
 * output.c
 *	  Gives a batch to standard output, however slowly that takes it.
 */
#include <string.h>

#include "consumer/consumer.h"

RsOutcome
rs_consumer_output_run(const RsBatch *batch, RsKeeper *keeper)
{
	RsFeed		feed;

	rs_consumer_feed_output(&feed, batch->lines.data, batch->lines.used);
	keeper->link->waiting.feed = &feed;
	while (feed.fd >= 0 && rs_consumer_stops() < 2)
	{
		rs_consumer_wait_feeding(&feed, rs_consumer_keeper_due(keeper));
		rs_consumer_keeper_tend(keeper);
	}
	keeper->link->waiting.feed = NULL;
	if (feed.error != 0)
		rs_consumer_log(RS_QUIET, "cannot write to standard output: %s; nothing is committed",
						strerror(feed.error));
	else if (feed.left > 0)
		rs_consumer_log(RS_QUIET, "a second signal: standard output has a part of the batch, and nothing is committed");
	return feed.left == 0 ? RS_TAKEN : RS_STOPPED;
}
