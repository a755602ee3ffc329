/*
 * trimmer.c
 */
#include "postgres.h"

#include "worker/work.h"

bool
rs_trimmer_step(RsWork *work, RsError *error)
{
	return true;
}

uint64
rs_trimmer_due(const RsWork *work)
{
	return rs_work_now() + 1000000;
}
