/*
 * test_error.c
 *	  Error texts: always terminated, of whole characters, without control
 *	  characters.
 */
#include "../../src/redis/redis.h"
#include "unit.h"

int
main(void)
{
	RsError		error;
	char		text[1000];
	size_t		i;

	unit_ok(!rs_redis_error(&error, "%s: %d", "call", 5), "returns false");
	unit_same(error.text, "call: 5", "is formatted");

	rs_redis_error(&error, "outer: %s", error.text);
	unit_same(error.text, "outer: call: 5", "may quote the text that it replaces");

	rs_redis_error(&error, "a\nb\tc\177d\x1b");
	unit_same(error.text, "a?b?c?d?", "control characters are replaced");

	rs_redis_error(&error, "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80");
	unit_same(error.text, "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80", "UTF-8 is kept");

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	rs_redis_error(&error, "%s", text);
	unit_ok(strlen(error.text) == sizeof(error.text) - 1, "a long text is cut");

	/* A character of four bytes at every place around the cut. */
	for (i = 0; i < 6; i++)
	{
		size_t		start = sizeof(error.text) - 1 - i;

		memset(text, 'x', sizeof(text));
		text[sizeof(text) - 1] = '\0';
		memcpy(text + start, "\xF0\x9F\x98\x80", 4);
		rs_redis_error(&error, "%s", text);
		if (i < 4)
			unit_ok(strlen(error.text) == start, "a character with %zu bytes left is dropped", i);
		else
			unit_ok(strlen(error.text) == sizeof(error.text) - 1,
					"a character with %zu bytes left is kept", i);
	}
	return unit_done();
}
