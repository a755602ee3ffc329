/*
 * log.c
 *	  Lines on standard error, and the state of trouble that is not said at each try.
 *
 * A line is one write, so that it stays whole beside what the command writes there.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "consumer/consumer.h"

#define LINE_SIZE 3200			/* two names of 512 bytes and a sentence */
#define TROUBLE_AGAIN_MS 60000

static RsLevel wanted_level = RS_NORMAL;
static const char *of_stream = NULL;
static const char *of_name = NULL;

int64_t
rs_consumer_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void
rs_consumer_log_begin(RsLevel wanted, const char *stream, const char *name)
{
	wanted_level = wanted;
	of_stream = stream;
	of_name = name;
}

void
rs_consumer_log(RsLevel level, const char *format,...)
{
	char		line[LINE_SIZE];
	va_list		arguments;
	int			begun;
	int			length;

	if (level > wanted_level)
		return;
	if (of_stream != NULL)
		begun = snprintf(line, sizeof(line), RS_PROGRAM ": %s/%s: ", of_stream, of_name);
	else
		begun = snprintf(line, sizeof(line), RS_PROGRAM ": ");
	va_start(arguments, format);
	length = begun + vsnprintf(line + begun, sizeof(line) - (size_t) begun, format, arguments);
	va_end(arguments);
	if (length > (int) sizeof(line) - 1)
		length = (int) sizeof(line) - 1;
	line[length] = '\n';

	/* Nobody is left to be told that this failed. */
	if (write(STDERR_FILENO, line, (size_t) length + 1) < 0)
		return;
}

const char *
rs_consumer_quote(const char *name, char quoted[RS_QUOTED_SIZE])
{
	char	   *end = quoted;

	*end++ = '\'';
	for (; *name != '\0'; name++)
	{
		if (*name == '\'')
			*end++ = '\'';
		*end++ = *name;
	}
	*end++ = '\'';
	*end = '\0';
	return quoted;
}

void
rs_consumer_trouble(RsTrouble *trouble, const char *format,...)
{
	char		text[sizeof(trouble->text)];
	int64_t		now = rs_consumer_now_ms();
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (!trouble->there)
		trouble->since_ms = now;
	else if (strcmp(text, trouble->text) == 0 && now - trouble->said_ms < TROUBLE_AGAIN_MS)
		return;
	trouble->there = true;
	trouble->said_ms = now;
	strcpy(trouble->text, text);
	rs_consumer_log(RS_QUIET, "%s", text);
}

int
rs_consumer_trouble_end(RsTrouble *trouble)
{
	if (!trouble->there)
		return 0;
	trouble->there = false;
	return 1 + (int) ((rs_consumer_now_ms() - trouble->since_ms) / 1000);
}
