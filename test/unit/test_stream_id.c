/*
 * test_stream_id.c
 *	  Stream ids: parsing, order, the next one, formatting.
 */
#include "../../src/redis/redis.h"
#include "unit.h"

#define MAX UINT64_MAX

static const struct
{
	const char *text;
	uint64_t	ms;
	uint64_t	seq;
}			good[] =
{
	{"0-0", 0, 0},
	{"0", 0, 0},
	{"5", 5, 0},
	{"5-9", 5, 9},
	{"005-010", 5, 10},
	{"1526919030474-55", UINT64_C(1526919030474), 55},
	{"18446744073709551615-18446744073709551615", MAX, MAX},
	{"18446744073709551615", MAX, 0},
	{"0000000000000000000000000000018446744073709551615-1", MAX, 1},
};

static const char *const bad[] = {
	"", "-", "5-", "-5", "-5-1", "5--1", "5-+1", "+5-1", " 5-1", "5-1 ", "5 -1", "5-1-2", "$", "*",
	"+", "5-*", "a-1", "5-a", "0x5-1", "5.0-1", "1e3-1",
	"18446744073709551616-0", "0-18446744073709551616", "99999999999999999999-0",
	"184467440737095516150-0", "5-1\n",
};

static void
test_parse(void)
{
	RsStreamId	id;
	size_t		i;

	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		unit_ok(rs_redis_id_parse(good[i].text, strlen(good[i].text), &id) &&
				id.ms == good[i].ms && id.seq == good[i].seq, "parse %s", good[i].text);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		id.ms = 3;
		id.seq = 4;
		unit_ok(!rs_redis_id_parse(bad[i], strlen(bad[i]), &id) && id.ms == 3 && id.seq == 4,
				"refuse \"%s\" and leave the id alone", bad[i]);
	}
	unit_ok(rs_redis_id_parse("12-345", 4, &id) && id.ms == 12 && id.seq == 3,
			"only \"length\" bytes are read");
	unit_ok(!rs_redis_id_parse("12-345", 3, &id), "\"length\" ends after the dash");
	unit_ok(!rs_redis_id_parse("5-1", 4, &id), "the terminator is no digit");
	unit_ok(!rs_redis_id_parse(NULL, 0, &id), "no text at all");
}

static void
test_compare(void)
{
	/* In order. */
	static const RsStreamId ids[] = {
		{0, 0}, {0, 1}, {0, MAX}, {5, 0}, {5, 9}, {5, 10}, {9, 0}, {9, 99}, {10, 0},
		{MAX / 2, 7}, {MAX / 2 + 1, 7}, {MAX, 0}, {MAX, MAX}
	};
	size_t		count = sizeof(ids) / sizeof(ids[0]);
	size_t		a;
	size_t		b;

	for (a = 0; a < count; a++)
	{
		bool		right = true;

		for (b = 0; b < count; b++)
		{
			int			order = rs_redis_id_compare(&ids[a], &ids[b]);

			right = right && (a < b ? order < 0 : a > b ? order > 0 : order == 0);
		}
		unit_ok(right, "order of %llu-%llu", (unsigned long long) ids[a].ms,
				(unsigned long long) ids[a].seq);
	}
}

static void
test_next(void)
{
	RsStreamId	id = {5, 9};

	unit_ok(rs_redis_id_next(&id) && id.ms == 5 && id.seq == 10, "next after 5-9");
	id.seq = MAX;
	unit_ok(rs_redis_id_next(&id) && id.ms == 6 && id.seq == 0, "next after the largest sequence");
	id.ms = MAX;
	id.seq = MAX - 1;
	unit_ok(rs_redis_id_next(&id) && id.ms == MAX && id.seq == MAX, "next is the largest id");
	unit_ok(!rs_redis_id_next(&id) && id.ms == MAX && id.seq == MAX, "no next after the largest id");
}

static void
test_previous(void)
{
	RsStreamId	id = {6, 1};

	unit_ok(rs_redis_id_previous(&id) && id.ms == 6 && id.seq == 0, "before 6-1");
	unit_ok(rs_redis_id_previous(&id) && id.ms == 5 && id.seq == MAX,
			"before the first id of a millisecond");
	unit_ok(rs_redis_id_next(&id) && id.ms == 6 && id.seq == 0, "and back");
	id.ms = 0;
	id.seq = 1;
	unit_ok(rs_redis_id_previous(&id) && id.ms == 0 && id.seq == 0, "before 0-1");
	unit_ok(!rs_redis_id_previous(&id) && id.ms == 0 && id.seq == 0, "nothing before 0-0");
	id.ms = MAX;
	id.seq = MAX;
	unit_ok(rs_redis_id_previous(&id) && id.ms == MAX && id.seq == MAX - 1, "before the largest id");
}

static void
test_format(void)
{
	static const struct
	{
		RsStreamId	id;
		const char *text;
	}			cases[] = {
		{{0, 0}, "0-0"},
		{{5, 10}, "5-10"},
		{{UINT64_C(1526919030474), 100}, "1526919030474-100"},
		{{MAX, MAX}, "18446744073709551615-18446744073709551615"},
	};
	size_t		i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char		text[RS_STREAM_ID_SIZE];
		size_t		length = rs_redis_id_format(&cases[i].id, text);
		RsStreamId	back;

		unit_same(text, cases[i].text, text);
		unit_ok(length == strlen(text), "length of %s", cases[i].text);
		unit_ok(rs_redis_id_parse(text, length, &back) &&
				rs_redis_id_compare(&back, &cases[i].id) == 0, "%s and back", cases[i].text);
	}
}

int
main(void)
{
	test_parse();
	test_compare();
	test_next();
	test_previous();
	test_format();
	return unit_done();
}
