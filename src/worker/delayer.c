/*
 * delayer.c
 */
#include "postgres.h"

#include "worker/work.h"

bool
rs_delayer_step(RsWork *work, RsError *error)
{
	return true;
}

uint64
rs_delayer_due(const RsWork *work)
{
	return rs_work_now() + 1000000;
}
