/*
 * stream_id.c
 *	  Stream ids, which are two unsigned 64-bit numbers and nothing else: as
 *	  text, "5-10" would come before "5-9".
 */
#include <string.h>

#include "redis.h"

/* Reads digits up to "end", at least one, and nothing else. */
static bool
parse_number(const char *text, const char *end, uint64_t *number)
{
	uint64_t	value = 0;

	if (text == end)
		return false;
	for (; text < end; text++)
	{
		uint64_t	digit;

		if (*text < '0' || *text > '9')
			return false;
		digit = (uint64_t) (*text - '0');
		if (value > (UINT64_MAX - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	*number = value;
	return true;
}

bool
rs_redis_id_parse(const char *text, size_t length, RsStreamId *id)
{
	const char *end;
	const char *dash;
	RsStreamId	parsed = {0, 0};

	if (length == 0)
		return false;
	end = text + length;
	dash = memchr(text, '-', length);
	if (!parse_number(text, dash != NULL ? dash : end, &parsed.ms))
		return false;
	if (dash != NULL && !parse_number(dash + 1, end, &parsed.seq))
		return false;
	*id = parsed;
	return true;
}

int
rs_redis_id_compare(const RsStreamId *a, const RsStreamId *b)
{
	if (a->ms != b->ms)
		return a->ms < b->ms ? -1 : 1;
	if (a->seq != b->seq)
		return a->seq < b->seq ? -1 : 1;
	return 0;
}

bool
rs_redis_id_next(RsStreamId *id)
{
	if (id->seq < UINT64_MAX)
	{
		id->seq++;
		return true;
	}
	if (id->ms < UINT64_MAX)
	{
		id->ms++;
		id->seq = 0;
		return true;
	}
	return false;
}

bool
rs_redis_id_previous(RsStreamId *id)
{
	if (id->seq > 0)
	{
		id->seq--;
		return true;
	}
	if (id->ms > 0)
	{
		id->ms--;
		id->seq = UINT64_MAX;
		return true;
	}
	return false;
}

static char *
write_number(char *out, uint64_t number)
{
	char		digits[20];
	size_t		count = 0;

	do
	{
		digits[count++] = (char) ('0' + number % 10);
		number /= 10;
	} while (number > 0);
	while (count > 0)
		*out++ = digits[--count];
	return out;
}

/* By hand and not with snprintf: the hot paths format one for every entry. */
size_t
rs_redis_id_format(const RsStreamId *id, char text[RS_STREAM_ID_SIZE])
{
	char	   *out;

	out = write_number(text, id->ms);
	*out++ = '-';
	out = write_number(out, id->seq);
	*out = '\0';
	return (size_t) (out - text);
}
