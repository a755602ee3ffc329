/*
 * clock.c
 *	  A clock that is wrong: loaded into a program with LD_PRELOAD, it adds to gettimeofday(2) the seconds
 *	  that the file named by REDSTREAM_TEST_CLOCK says at the moment.
 *
 * Redis takes the time of day from there, for TIME and for the ids of streams.
 */
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static long
offset(void)
{
	const char *name = getenv("REDSTREAM_TEST_CLOCK");
	FILE	   *file = name != NULL ? fopen(name, "r") : NULL;
	long		seconds = 0;

	if (file == NULL)
		return 0;
	if (fscanf(file, "%ld", &seconds) != 1)
		seconds = 0;
	fclose(file);
	return seconds;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int			result = (int) syscall(SYS_gettimeofday, now, zone);

	if (result == 0)
		now->tv_sec += offset();
	return result;
}
