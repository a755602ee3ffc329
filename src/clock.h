/*
 * clock.h
 *	  The monotonic clock.  A leaf.
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

#endif							/* RS_CLOCK_H */
