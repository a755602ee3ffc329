/*
 * error.c
 *	  The one way in which src/redis writes down what failed.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "redis.h"

/*
 * Shortens a text that was cut in the middle of a UTF-8 character to the end of
 * the character before, because PostgreSQL may have to convert it.
 */
static void
drop_partial_character(char *text)
{
	size_t		length = strlen(text);
	size_t		start = length;
	size_t		needed;
	unsigned char lead;

	while (start > 0 && length - start < 4)
	{
		start--;
		if (((unsigned char) text[start] & 0xC0) != 0x80)
			break;
	}
	lead = (unsigned char) text[start];
	needed = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
	if (needed > length - start)
		text[start] = '\0';
}

/*
 * The text is put together aside, so that an error may quote the text it
 * replaces.  Servers choose some of the words: control characters of theirs
 * must not reach a log.
 */
bool
rs_redis_error(RsError *error, const char *format,...)
{
	char		text[sizeof(error->text)];
	va_list		arguments;
	int			length;
	char	   *c;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);

	if (length < 0)
		strcpy(text, "unknown error");
	else if ((size_t) length >= sizeof(text))
		drop_partial_character(text);

	for (c = text; *c != '\0'; c++)
	{
		if ((unsigned char) *c < 0x20 || *c == 0x7F)
			*c = '?';
	}
	strcpy(error->text, text);
	return false;
}
