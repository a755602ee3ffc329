/*
 * test_resp.c
 *	  Commands as bytes: what is announced as the size is what is written.
 */
#include <stdlib.h>

#include "../../src/redis/redis.h"
#include "unit.h"

static void
test_header(void)
{
	static const struct
	{
		size_t		count;
		const char *bytes;
	}			cases[] = {
		{0, "*0\r\n"}, {1, "*1\r\n"}, {9, "*9\r\n"}, {10, "*10\r\n"}, {99, "*99\r\n"},
		{100, "*100\r\n"}, {1234567890, "*1234567890\r\n"},
		{SIZE_MAX, "*18446744073709551615\r\n"},
	};
	size_t		i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char		bytes[64];
		char	   *end = rs_redis_header_write(bytes, cases[i].count);

		*end = '\0';
		unit_same(bytes, cases[i].bytes, "header");
		unit_ok(rs_redis_header_size(cases[i].count) == strlen(cases[i].bytes),
				"header size of %zu", cases[i].count);
	}
}

static void
test_bulk(void)
{
	static const size_t lengths[] = {0, 1, 9, 10, 11, 99, 100, 999, 1000, 65535, 1000000};
	size_t		i;

	for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
	{
		size_t		length = lengths[i];
		size_t		size = rs_redis_bulk_size(length);
		char	   *data = malloc(length + 1);
		char	   *out = malloc(size); /* not a byte more: ASan watches */
		char		head[32];
		size_t		head_length = (size_t) snprintf(head, sizeof(head), "$%zu\r\n", length);

		memset(data, 'd', length + 1);
		unit_ok(rs_redis_bulk_write(out, data, length) == out + size, "bulk size of %zu", length);
		unit_ok(memcmp(out, head, head_length) == 0 &&
				memcmp(out + head_length, data, length) == 0 &&
				memcmp(out + head_length + length, "\r\n", 2) == 0, "bulk bytes of %zu", length);
		free(data);
		free(out);
	}
}

static void
test_command(void)
{
	char		bytes[64];
	char	   *end = bytes;

	end = rs_redis_header_write(end, 2);
	end = rs_redis_bulk_write(end, "GET", 3);
	end = rs_redis_bulk_write(end, "a\0\r\nb", 5);
	unit_ok(end - bytes == 4 + 9 + 11 &&
			memcmp(bytes, "*2\r\n$3\r\nGET\r\n$5\r\na\0\r\nb\r\n", 24) == 0,
			"a command with zero bytes and line ends in it");
	unit_ok(rs_redis_bulk_write(bytes, NULL, 0) == bytes + 6 &&
			memcmp(bytes, "$0\r\n\r\n", 6) == 0, "an empty argument needs no data");
}

int
main(void)
{
	test_header();
	test_bulk();
	test_command();
	return unit_done();
}
