/*
 * processes.h
 *	  What the background processes are doing, in shared memory, for
 *	  redstream.workers.  A leaf: any server file may use it.
 *
 * The board has one line for the sender, one for the launcher, and one for each job of
 * each database.  A line is written by the process whose line it is, and by the launcher
 * while that process does not exist.
 */
#ifndef RS_PROCESSES_H
#define RS_PROCESSES_H

#include "datatype/timestamp.h"
#include "redis/redis.h"

typedef enum RsProcessKind
{
	RS_PROCESS_SENDER,
	RS_PROCESS_LAUNCHER,
	RS_PROCESS_SPOOLER,			/* these three in one process, the database's worker */
	RS_PROCESS_DELAYER,
	RS_PROCESS_TRIMMER
} RsProcessKind;

typedef enum RsProcessState
{
	RS_PROCESS_STARTING,
	RS_PROCESS_WAITING,			/* for a free worker process */
	RS_PROCESS_IDLE,
	RS_PROCESS_WORKING,
	RS_PROCESS_FAILING			/* the last tick ended with the last error */
} RsProcessState;

/* One line of the board. */
typedef struct RsProcess
{
	Oid			database;		/* InvalidOid: the sender and the launcher */
	RsProcessKind kind;
	int			pid;			/* 0: there is no process */
	RsProcessState state;
	TimestampTz last_tick;		/* when it began; 0: none so far, or one that has no ticks */
	char		last_error[sizeof(((RsError *) 0)->text)];
	TimestampTz last_error_at;	/* 0: none */
} RsProcess;

/* Bytes of shared memory; and taking them, under AddinShmemInitLock. */
extern size_t rs_processes_shmem_size(void);
extern void rs_processes_shmem_init(void);

/*
 * Writes to the line of this database and kind, which is made if it is not there.  None
 * of these throws or waits; when the board is full nothing is written.
 */
extern void rs_process_set(Oid database, RsProcessKind kind, int pid, RsProcessState state);
/* Writes the last error, and leaves the state as it is. */
extern void rs_process_note_error(Oid database, RsProcessKind kind, const char *error);
/* A tick begins (WORKING) or ends (IDLE, or FAILING with an error). */
extern void rs_process_tick_begin(Oid database, RsProcessKind kind);
extern void rs_process_tick_end(Oid database, RsProcessKind kind, const char *error);

/* Removes the lines of a database. */
extern void rs_process_forget(Oid database);

/* Copies the line with this index, from 0; false behind the last.  A line may change its
 * index when another is removed. */
extern bool rs_process_get(int index, RsProcess *process);

#endif							/* RS_PROCESSES_H */
