/*
 * unit.h
 *	  The least that a unit test needs: it prints TAP, and its exit status says
 *	  whether all was well.
 */
#ifndef RS_UNIT_H
#define RS_UNIT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int	unit_count = 0;
static int	unit_failed = 0;

/* One test: whether it passed, and its name as printf takes it.  Control
 * characters of a name are shown as '?', so that a line stays a line. */
__attribute__((format(printf, 2, 3), unused))
static bool
unit_ok(bool passed, const char *format,...)
{
	char		name[300];
	va_list		arguments;
	char	   *c;

	va_start(arguments, format);
	vsnprintf(name, sizeof(name), format, arguments);
	va_end(arguments);
	for (c = name; *c != '\0'; c++)
	{
		if ((unsigned char) *c < 0x20 || *c == '#')
			*c = '?';
	}
	unit_count++;
	if (!passed)
		unit_failed++;
	printf("%s %d - %s\n", passed ? "ok" : "not ok", unit_count, name);
	fflush(stdout);
	return passed;
}

/* Two texts, of which either may be NULL, are the same. */
__attribute__((unused))
static bool
unit_same(const char *got, const char *expected, const char *name)
{
	bool		same = got == expected ||
		(got != NULL && expected != NULL && strcmp(got, expected) == 0);

	if (!unit_ok(same, "%s", name))
		printf("#      got: %s\n# expected: %s\n", got != NULL ? got : "(null)",
			   expected != NULL ? expected : "(null)");
	return same;
}

/* A text has the other in it. */
__attribute__((unused))
static bool
unit_has(const char *text, const char *part, const char *name)
{
	bool		has = strstr(text, part) != NULL;

	if (!unit_ok(has, "%s", name))
		printf("#     got: %s\n# without: %s\n", text, part);
	return has;
}

/* Prints the plan; main returns this. */
static int
unit_done(void)
{
	printf("1..%d\n", unit_count);
	return unit_failed == 0 ? 0 : 1;
}

#endif							/* RS_UNIT_H */
