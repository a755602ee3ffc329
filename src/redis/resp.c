/*
 * resp.c
 *	  Commands as the bytes Redis reads: "*<count>" and then every argument as
 *	  "$<length>" and its bytes.
 *
 * The sender's callers write these straight into shared memory, so each size
 * is known before anything is written.
 */
#include <string.h>

#include "redis.h"

static size_t
count_digits(size_t number)
{
	size_t		digits = 1;

	while (number >= 10)
	{
		number /= 10;
		digits++;
	}
	return digits;
}

/* Writes the line "<mark><number>\r\n". */
static char *
write_line(char *out, char mark, size_t number)
{
	size_t		digits = count_digits(number);
	size_t		i;

	*out++ = mark;
	for (i = digits; i > 0; i--)
	{
		out[i - 1] = (char) ('0' + number % 10);
		number /= 10;
	}
	out += digits;
	*out++ = '\r';
	*out++ = '\n';
	return out;
}

size_t
rs_redis_header_size(size_t count)
{
	return 1 + count_digits(count) + 2;
}

size_t
rs_redis_bulk_size(size_t length)
{
	return 1 + count_digits(length) + 2 + length + 2;
}

char *
rs_redis_header_write(char *out, size_t count)
{
	return write_line(out, '*', count);
}

char *
rs_redis_bulk_write(char *out, const char *data, size_t length)
{
	out = write_line(out, '$', length);
	if (length > 0)
		memcpy(out, data, length);
	out += length;
	*out++ = '\r';
	*out++ = '\n';
	return out;
}

size_t
rs_redis_command_size(int count, const char *const *arguments, const size_t *lengths)
{
	size_t		size = rs_redis_header_size((size_t) count);
	int			i;

	for (i = 0; i < count; i++)
		size += rs_redis_bulk_size(lengths != NULL ? lengths[i] : strlen(arguments[i]));
	return size;
}

char *
rs_redis_command_write(char *out, int count, const char *const *arguments, const size_t *lengths)
{
	int			i;

	out = rs_redis_header_write(out, (size_t) count);
	for (i = 0; i < count; i++)
		out = rs_redis_bulk_write(out, arguments[i],
								  lengths != NULL ? lengths[i] : strlen(arguments[i]));
	return out;
}
