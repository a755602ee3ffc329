/*
 * processes.c
 *	  The board: what the background processes are doing, in shared memory.
 *
 * Lines lie side by side, in no order; one that is removed is replaced by the last.  One
 * spinlock guards everything, and is held for a search and a copy.
 */
#include "postgres.h"

#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "processes.h"

#define LINES 770				/* three for each of 256 databases, sender and launcher */

typedef struct Board
{
	slock_t		mutex;			/* guards what follows */
	int			used;
	RsProcess	lines[LINES];
} Board;

static Board *board;			/* NULL: the library was not preloaded */

size_t
rs_processes_shmem_size(void)
{
	return sizeof(Board);
}

void
rs_processes_shmem_init(void)
{
	bool		found;

	board = ShmemInitStruct("redstream processes", sizeof(Board), &found);
	if (found)
		return;
	SpinLockInit(&board->mutex);
	board->used = 0;
}

/* The line, made if it is not there; NULL when the board is full. */
static RsProcess *
find_line(Oid database, RsProcessKind kind)
{
	RsProcess  *line;

	for (int i = 0; i < board->used; i++)
	{
		line = &board->lines[i];
		if (line->database == database && line->kind == kind)
			return line;
	}
	if (board->used == LINES)
		return NULL;
	line = &board->lines[board->used++];
	line->database = database;
	line->kind = kind;
	line->pid = 0;
	line->state = RS_PROCESS_STARTING;
	line->last_tick = 0;
	line->last_error[0] = '\0';
	line->last_error_at = 0;
	return line;
}

/* The same, with the board locked, or NULL and not locked. */
static RsProcess *
lock_line(Oid database, RsProcessKind kind)
{
	RsProcess  *line;

	if (board == NULL)
		return NULL;
	SpinLockAcquire(&board->mutex);
	line = find_line(database, kind);
	if (line == NULL)
		SpinLockRelease(&board->mutex);
	return line;
}

void
rs_process_set(Oid database, RsProcessKind kind, int pid, RsProcessState state)
{
	RsProcess  *line = lock_line(database, kind);

	if (line == NULL)
		return;
	line->pid = pid;
	line->state = state;
	SpinLockRelease(&board->mutex);
}

void
rs_process_note_error(Oid database, RsProcessKind kind, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();
	RsProcess  *line = lock_line(database, kind);

	if (line == NULL)
		return;
	strlcpy(line->last_error, error, sizeof(line->last_error));
	line->last_error_at = now;
	SpinLockRelease(&board->mutex);
}

void
rs_process_tick_begin(Oid database, RsProcessKind kind)
{
	TimestampTz now = GetCurrentTimestamp();
	RsProcess  *line = lock_line(database, kind);

	if (line == NULL)
		return;
	line->last_tick = now;
	line->state = RS_PROCESS_WORKING;
	SpinLockRelease(&board->mutex);
}

void
rs_process_tick_end(Oid database, RsProcessKind kind, const char *error)
{
	RsProcess  *line;

	if (error != NULL)
		rs_process_note_error(database, kind, error);
	line = lock_line(database, kind);
	if (line == NULL)
		return;
	line->state = error != NULL ? RS_PROCESS_FAILING : RS_PROCESS_IDLE;
	SpinLockRelease(&board->mutex);
}

void
rs_process_forget(Oid database)
{
	if (board == NULL)
		return;
	SpinLockAcquire(&board->mutex);
	for (int i = board->used - 1; i >= 0; i--)
		if (board->lines[i].database == database)
			board->lines[i] = board->lines[--board->used];
	SpinLockRelease(&board->mutex);
}

bool
rs_process_get(int index, RsProcess *process)
{
	bool		there;

	if (board == NULL)
		return false;
	SpinLockAcquire(&board->mutex);
	there = index < board->used;
	if (there)
		*process = board->lines[index];
	SpinLockRelease(&board->mutex);
	return there;
}
