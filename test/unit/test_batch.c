/*
 * test_batch.c
 *	  A batch: what gets into it, equal payloads, its lines; and what becomes of one that is refused.
 */
#include <stdlib.h>

#include "consumer/consumer.h"
#include "unit.h"

static RsBatch batch;

static RsAdded
add(uint64_t ms, const char *payload, bool skips)
{
	RsStreamEntry entry = {.id = {ms, 0},.payload = payload,.length = payload != NULL ? strlen(payload) : 0};

	return rs_consumer_batch_add(&batch, &entry, skips);
}

/* What the batch is as lines, which must be "expected". */
static void
check_lines(const char *expected, const char *name)
{
	char	   *lines;

	unit_ok(rs_consumer_batch_write(&batch), "%s: written", name);
	lines = calloc(1, batch.lines.used + 1);
	if (batch.lines.used > 0)
		memcpy(lines, batch.lines.data, batch.lines.used);
	unit_same(lines, expected, name);
	free(lines);
}

static void
test_lines(void)
{
	rs_consumer_batch_begin(&batch);
	check_lines("", "no message");
	unit_ok(add(1, "1", false) == RS_ADDED && add(2, "\r\n[\n1 ]\n", false) == RS_ADDED, "two messages");
	check_lines("{\"id\":\"1-0\",\"payload\":1}\n{\"id\":\"2-0\",\"payload\":  [ 1 ] }\n", "two lines");
	unit_ok(memcmp(batch.payloads.data + 1, "\r\n[\n1 ]\n", 8) == 0, "the payload is kept as it was");
	unit_ok(rs_consumer_batch_first(&batch)->ms == 1 && rs_consumer_batch_last(&batch)->ms == 2,
			"first and last id");
}

static void
test_unusable(void)
{
	rs_consumer_batch_begin(&batch);
	unit_ok(add(1, "1", false) == RS_ADDED && add(2, "x", false) == RS_ADDED_NOT && batch.closed &&
			batch.count == 1 && !batch.unusable, "the batch ends before what cannot be used");

	rs_consumer_batch_begin(&batch);
	unit_ok(add(1, "x", false) == RS_ADDED && batch.closed && batch.unusable && batch.has_payload,
			"or is nothing else");
	unit_same(batch.reason, "not JSON: something that is no value, at byte 0 of 1", "and says why");

	rs_consumer_batch_begin(&batch);
	unit_ok(add(1, NULL, false) == RS_ADDED && batch.unusable && !batch.has_payload, "without a payload");
	unit_same(batch.reason, "no field \"payload\"", "and says why");

	rs_consumer_batch_begin(&batch);
	unit_ok(add(1, NULL, true) == RS_ADDED_LEFT_OUT && add(2, "x", true) == RS_ADDED_LEFT_OUT &&
			add(3, "3", true) == RS_ADDED && add(4, "", true) == RS_ADDED_LEFT_OUT && !batch.closed &&
			batch.count == 4, "or they are left out");
	check_lines("{\"id\":\"3-0\",\"payload\":3}\n", "and have no line");
	unit_ok(rs_consumer_batch_last(&batch)->ms == 4, "but the batch ends with them");
}

static void
test_size(void)
{
	size_t		length = 1 << 20;
	char	   *payload = malloc(length + 1);
	int			count = 0;

	memset(payload, 'x', length);
	payload[0] = payload[length - 1] = '"';
	payload[length] = '\0';
	rs_consumer_batch_begin(&batch);
	while (!batch.closed && add((uint64_t) ++count, payload, false) == RS_ADDED)
		;
	unit_ok(count == 16, "a batch ends at 16 MB");
	free(payload);
	rs_consumer_batch_begin(&batch);
	for (int i = 1; i <= 1000; i++)
		(void) add((uint64_t) i, "1", false);
	unit_ok(batch.count == 1000 && rs_consumer_batch_last(&batch)->ms == 1000, "and may have many messages");
}

static void
test_unique(void)
{
	rs_consumer_batch_begin(&batch);
	unit_ok(rs_consumer_batch_unique(&batch), "no message is unique");
	(void) add(1, "1", true);
	(void) add(2, "2", true);
	(void) add(3, "1", true);
	(void) add(4, "x", true);
	(void) add(5, "x", true);
	(void) add(6, "1", true);
	(void) add(7, " 2", true);
	unit_ok(rs_consumer_batch_unique(&batch), "equal payloads");
	check_lines("{\"id\":\"2-0\",\"payload\":2}\n{\"id\":\"6-0\",\"payload\":1}\n{\"id\":\"7-0\",\"payload\": 2}\n",
				"the last of equal ones");
}

/* ---- tries ------------------------------------------------------------------------------- */

static RsTries tries;

static RsVerdict
refuse(uint64_t first, uint64_t last, int *pause_ms)
{
	RsStreamId	first_id = {first, 0};
	RsStreamId	last_id = {last, 0};

	return rs_consumer_tries_refused(&tries, &first_id, &last_id, (int) (last - first + 1), pause_ms);
}

static void
test_pauses(void)
{
	static const int expected[] = {200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000};
	RsStreamId	one = {1, 0};
	RsStreamId	nine = {9, 0};
	int			pause_ms;
	bool		right = true;

	rs_consumer_tries_begin(&tries, 10, 0);
	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
		right = right && refuse(1, 9, &pause_ms) == RS_TRY_AGAIN && pause_ms == expected[i];
	unit_ok(right && tries.limit == 10, "pauses grow up to 30 s");
	unit_ok(rs_consumer_tries_repeats(&tries, &one) && tries.last.ms == 9, "the same batch is next");
	unit_ok(!rs_consumer_tries_repeats(&tries, &nine), "and no other");
	(void) refuse(2, 9, &pause_ms);
	unit_ok(pause_ms == 200 && tries.count == 1, "another batch begins anew");
	for (int i = 0; i < 100; i++)
		(void) refuse(2, 9, &pause_ms);
	unit_ok(pause_ms == 30000, "and never more");
	rs_consumer_tries_done(&tries, true);
	unit_ok(!rs_consumer_tries_repeats(&tries, &tries.first), "what is done is not given again");
}

static void
test_halving(void)
{
	RsStreamId	id = {1, 0};
	int			pause_ms;

	rs_consumer_tries_begin(&tries, 10, 2);
	unit_ok(refuse(1, 10, &pause_ms) == RS_TRY_AGAIN, "first try");
	unit_ok(rs_consumer_tries_failed(&tries, &id, &tries.last) == 400 && tries.count == 1,
			"a failure that is not the handler's is no try");
	unit_ok(refuse(1, 10, &pause_ms) == RS_TRY_HALF && tries.limit == 5 && pause_ms == 200, "second: half of it");
	unit_ok(!rs_consumer_tries_repeats(&tries, &id), "which is another batch");
	unit_ok(refuse(1, 5, &pause_ms) == RS_TRY_HALF && tries.limit == 2, "half of that at once");
	unit_ok(refuse(1, 2, &pause_ms) == RS_TRY_HALF && tries.limit == 1, "one message");
	unit_ok(refuse(1, 1, &pause_ms) == RS_TRY_AGAIN && pause_ms == 200, "which has its first try");
	unit_ok(refuse(1, 1, &pause_ms) == RS_GIVE_UP && tries.count == 2, "and its second");
	rs_consumer_tries_done(&tries, false);
	unit_ok(tries.limit == 1, "given up: still one");
	rs_consumer_tries_done(&tries, true);
	unit_ok(tries.limit == 2, "taken: twice as many");
	rs_consumer_tries_done(&tries, true);
	rs_consumer_tries_done(&tries, true);
	unit_ok(tries.limit == 8, "and so on");
	rs_consumer_tries_done(&tries, true);
	unit_ok(tries.limit == 10, "up to what was wanted");
	unit_ok(refuse(5, 14, &pause_ms) == RS_TRY_AGAIN, "then it is a whole batch again");
	rs_consumer_tries_begin(&tries, 1000000, 1);
	unit_ok(refuse(1, 3, &pause_ms) == RS_TRY_HALF && tries.limit == 1, "of three, one");
}

int
main(void)
{
	test_lines();
	test_unusable();
	test_size();
	test_unique();
	test_pauses();
	test_halving();
	rs_consumer_batch_end(&batch);
	return unit_done();
}
