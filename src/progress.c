/*
 * progress.c
 *	  How far the batch procedures of all sessions are.
 *
 * A line for each backend, guarded by a spinlock that is held for a copy.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "progress.h"

typedef struct Line
{
	slock_t		mutex;
	RsProgress	progress;
} Line;

static Line *lines;				/* NULL: the library was not preloaded */

size_t
rs_progress_shmem_size(void)
{
	return sizeof(Line) * MaxBackends;
}

void
rs_progress_shmem_init(void)
{
	bool		found;

	lines = ShmemInitStruct("redstream progress", rs_progress_shmem_size(), &found);
	if (found)
		return;
	memset(lines, 0, rs_progress_shmem_size());
	for (int i = 0; i < MaxBackends; i++)
		SpinLockInit(&lines[i].mutex);
}

static void
clear_at_exit(int code, Datum argument)
{
	rs_progress_clear();
}

void
rs_progress_set(const RsProgress *progress)
{
	static bool registered;
	Line	   *line;

	if (lines == NULL)
		return;
	if (!registered)
		on_shmem_exit(clear_at_exit, (Datum) 0);
	registered = true;
	line = &lines[MyProc->pgprocno];
	SpinLockAcquire(&line->mutex);
	line->progress = *progress;
	line->progress.pid = OidIsValid(progress->table) ? MyProcPid : 0;
	SpinLockRelease(&line->mutex);
}

void
rs_progress_clear(void)
{
	RsProgress	nothing;

	memset(&nothing, 0, sizeof(nothing));
	rs_progress_set(&nothing);
}

bool
rs_progress_get(int index, RsProgress *progress)
{
	if (lines == NULL || index >= MaxBackends)
		return false;
	SpinLockAcquire(&lines[index].mutex);
	*progress = lines[index].progress;
	SpinLockRelease(&lines[index].mutex);
	return true;
}
