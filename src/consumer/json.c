/*
 * json.c
 *	  Is a payload JSON?  Lines are made of payloads as they are, numbers to the last digit, so nothing that is not
 *	  may get into one.
 *
 * RFC 8259 by the letter, and UTF-8 by RFC 3629: no overlong forms, no surrogates.  Libraries are laxer: json-c's
 * strict parser takes NaN, single quotes, "1." and line ends within strings.  Nothing is recursive: what is open is
 * kept as bits.
 */
#include <string.h>

#include "consumer/consumer.h"

typedef struct Scan
{
	const unsigned char *at;
	const unsigned char *end;
	const char *wrong;
	size_t		depth;
	unsigned char objects[(RS_JSON_DEPTH + 7) / 8]; /* is what is open at a depth an object? */
} Scan;

static bool
fail(Scan *scan, const char *wrong)
{
	if (scan->wrong == NULL)
		scan->wrong = scan->at == scan->end ? "it ends too early" : wrong;
	return false;
}

static void
skip_space(Scan *scan)
{
	while (scan->at < scan->end &&
		   (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\r' || *scan->at == '\t'))
		scan->at++;
}

static bool
next_is(const Scan *scan, unsigned char c)
{
	return scan->at < scan->end && *scan->at == c;
}

/* ---- tokens ----------------------------------------------------------------------------- */

static bool
scan_word(Scan *scan, const char *word)
{
	for (; *word != '\0'; word++, scan->at++)
	{
		if (!next_is(scan, (unsigned char) *word))
			return fail(scan, "an unknown word");
	}
	return true;
}

static bool
scan_digits(Scan *scan)
{
	const unsigned char *first = scan->at;

	while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
		scan->at++;
	return scan->at > first || fail(scan, "a number without a digit where one must be");
}

static bool
scan_number(Scan *scan)
{
	if (next_is(scan, '-'))
		scan->at++;
	if (next_is(scan, '0'))
		scan->at++;
	else if (!scan_digits(scan))
		return false;
	if (next_is(scan, '.'))
	{
		scan->at++;
		if (!scan_digits(scan))
			return false;
	}
	if (next_is(scan, 'e') || next_is(scan, 'E'))
	{
		scan->at++;
		if (next_is(scan, '+') || next_is(scan, '-'))
			scan->at++;
		if (!scan_digits(scan))
			return false;
	}
	return true;
}

static bool
scan_escape(Scan *scan)
{
	scan->at++;
	if (scan->at < scan->end && *scan->at != '\0' && strchr("\"\\/bfnrt", *scan->at) != NULL)
	{
		scan->at++;
		return true;
	}
	if (!next_is(scan, 'u'))
		return fail(scan, "an unknown escape");
	scan->at++;
	for (int i = 0; i < 4; i++, scan->at++)
	{
		if (scan->at == scan->end || *scan->at == '\0' ||
			strchr("0123456789abcdefABCDEF", *scan->at) == NULL)
			return fail(scan, "an escape \\u without four hexadecimal digits");
	}
	return true;
}

/* A character of more than one byte. */
static bool
scan_wide(Scan *scan)
{
	const unsigned char *at = scan->at;
	size_t		left = (size_t) (scan->end - at);
	size_t		size = *at >= 0xF0 ? 4 : *at >= 0xE0 ? 3 : 2;

	if (*at < 0xC2 || *at > 0xF4 || left < size ||
		(*at == 0xE0 && at[1] < 0xA0) || (*at == 0xED && at[1] > 0x9F) ||
		(*at == 0xF0 && at[1] < 0x90) || (*at == 0xF4 && at[1] > 0x8F))
		return fail(scan, "bytes that are not UTF-8");
	for (size_t i = 1; i < size; i++)
	{
		if ((at[i] & 0xC0) != 0x80)
			return fail(scan, "bytes that are not UTF-8");
	}
	scan->at += size;
	return true;
}

static bool
scan_string(Scan *scan)
{
	scan->at++;
	while (scan->at < scan->end && *scan->at != '"')
	{
		if (*scan->at < 0x20)
			return fail(scan, "a control character in a string");
		if (*scan->at == '\\')
		{
			if (!scan_escape(scan))
				return false;
		}
		else if (*scan->at < 0x80)
			scan->at++;
		else if (!scan_wide(scan))
			return false;
	}
	if (scan->at == scan->end)
		return fail(scan, NULL);
	scan->at++;
	return true;
}

static bool
scan_scalar(Scan *scan)
{
	if (scan->at == scan->end)
		return fail(scan, NULL);
	switch (*scan->at)
	{
		case '"':
			return scan_string(scan);
		case 't':
			return scan_word(scan, "true");
		case 'f':
			return scan_word(scan, "false");
		case 'n':
			return scan_word(scan, "null");
		default:
			if (*scan->at == '-' || (*scan->at >= '0' && *scan->at <= '9'))
				return scan_number(scan);
			return fail(scan, "something that is no value");
	}
}

/* ---- what is open --------------------------------------------------------------------------- */

static bool
in_object(const Scan *scan)
{
	size_t		level = scan->depth - 1;

	return (scan->objects[level / 8] >> (level % 8) & 1) != 0;
}

static bool
open_level(Scan *scan)
{
	size_t		level = scan->depth;
	unsigned char bit = (unsigned char) (1 << (level % 8));

	if (level == RS_JSON_DEPTH)
		return fail(scan, "too deep an array or object");
	if (*scan->at == '{')
		scan->objects[level / 8] |= bit;
	else
		scan->objects[level / 8] &= (unsigned char) ~bit;
	scan->depth++;
	scan->at++;
	return true;
}

/* A name and its colon. */
static bool
scan_name(Scan *scan)
{
	skip_space(scan);
	if (!next_is(scan, '"'))
		return fail(scan, "an object without a name where one must be");
	if (!scan_string(scan))
		return false;
	skip_space(scan);
	if (!next_is(scan, ':'))
		return fail(scan, "a name without a colon");
	scan->at++;
	return true;
}

/* Opens arrays and objects as far as there are, up to the first value that is complete: a scalar, or an empty one
 * of them. */
static bool
scan_opening(Scan *scan)
{
	for (;;)
	{
		skip_space(scan);
		if (!next_is(scan, '[') && !next_is(scan, '{'))
			return scan_scalar(scan);
		if (!open_level(scan))
			return false;
		skip_space(scan);
		if (next_is(scan, in_object(scan) ? '}' : ']'))
		{
			scan->depth--;
			scan->at++;
			return true;
		}
		if (in_object(scan) && !scan_name(scan))
			return false;
	}
}

/* After a value: closes what ends here; "more" when another value follows. */
static bool
scan_closing(Scan *scan, bool *more)
{
	*more = false;
	while (scan->depth > 0)
	{
		skip_space(scan);
		if (next_is(scan, ','))
		{
			scan->at++;
			*more = true;
			return !in_object(scan) || scan_name(scan);
		}
		if (!next_is(scan, in_object(scan) ? '}' : ']'))
			return fail(scan, in_object(scan) ? "an object without a comma or brace where one must be" :
						"an array without a comma or bracket where one must be");
		scan->depth--;
		scan->at++;
	}
	return true;
}

const char *
rs_consumer_json_check(const char *text, size_t length, size_t *where)
{
	const unsigned char *start = (const unsigned char *) text;
	bool		more = true;
	Scan		scan;

	scan.at = start;
	scan.end = start + length;
	scan.wrong = NULL;
	scan.depth = 0;
	while (more && scan_opening(&scan) && scan_closing(&scan, &more))
		;
	if (scan.wrong == NULL)
	{
		skip_space(&scan);
		if (scan.at < scan.end)
			(void) fail(&scan, "something after the value");
	}
	*where = (size_t) (scan.at - start);
	return scan.wrong;
}
