/*
 * clock.h
 *	  The monotonic clock, and how long to wait before something is tried again.  A leaf.
 */
#ifndef RS_CLOCK_H
#define RS_CLOCK_H

#include <time.h>

/* Monotonic microseconds, comparable between processes (clock_gettime(2)). */
static inline uint64
rs_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* The pause "first", doubled so many times, and "last" at most. */
static inline uint64
rs_backoff(uint64 first, int times, uint64 last)
{
	while (times-- > 0 && first < last)
		first *= 2;
	return Min(first, last);
}

#endif							/* RS_CLOCK_H */
