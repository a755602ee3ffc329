/*
 * stats.c
 *	  Counters in shared memory.
 */
#include "postgres.h"

#include "storage/shmem.h"

#include "stats.h"

static pg_atomic_uint64 *counters;

size_t
rs_stats_shmem_size(void)
{
	return sizeof(pg_atomic_uint64) * RS_COUNTERS;
}

void
rs_stats_shmem_init(void)
{
	bool		found;

	counters = ShmemInitStruct("redstream counters", rs_stats_shmem_size(), &found);
	if (!found)
		for (int i = 0; i < RS_COUNTERS; i++)
			pg_atomic_init_u64(&counters[i], 0);
}

void
rs_stats_add(RsCounter counter, uint64 amount)
{
	pg_atomic_fetch_add_u64(&counters[counter], amount);
}

uint64
rs_stats_get(RsCounter counter)
{
	return pg_atomic_read_u64(&counters[counter]);
}
