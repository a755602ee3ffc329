/*
 * registry.h
 *	  Which process works for which database, in shared memory: what the launcher, the
 *	  workers and backends know of each other.  For the files of this directory.
 *
 * src/README.md tells how the three get along.
 */
#ifndef RS_WORKER_REGISTRY_H
#define RS_WORKER_REGISTRY_H

#define RS_REGISTRY_SIZE 256	/* databases */

/* What a worker has found out about its database. */
typedef enum RsFinding
{
	RS_FINDING_NONE,			/* nothing yet, or it ended before it could look */
	RS_FINDING_EXTENSION,
	RS_FINDING_NO_EXTENSION,
	RS_FINDING_ERROR			/* one that ends it, and that is in its lines */
} RsFinding;

typedef struct RsRegistered
{
	Oid			database;
	int			pid;			/* of its worker; 0: there is none */
	RsFinding	finding;		/* stays when the worker ends, until rs_registry_settle() */
	bool		evicted;		/* the worker ended, or did not begin, as it was in the way;
								 * stays as well */
	bool		wished;			/* the extension was made, and no worker has looked since */
	int			blocks;			/* backends that need the database without a worker */
} RsRegistered;

typedef enum RsClaim
{
	RS_CLAIM_DONE,
	RS_CLAIM_REFUSED,			/* there is another worker, or the database is blocked */
	RS_CLAIM_NO_ROOM
} RsClaim;

/* ---- registry.c: none of these throws or waits, unless it says so ----------------- */

/* From _PG_init while preloading. */
extern void rs_registry_init(void);

/* For the launcher: this process is it from now on, to its end. */
extern void rs_registry_appoint_launcher(void);

/* Copies what is known of a database; all is zero when nothing is. */
extern void rs_registry_look_up(Oid database, RsRegistered *registered);

/* Copies the entry with this index, from 0; false behind the last.  One that is not
 * used has no database. */
extern bool rs_registry_get(int index, RsRegistered *registered);

/* For the launcher, which has seen how the worker ended: forgets that. */
extern void rs_registry_settle(Oid database);

/* For the launcher, which does not serve the database: forgets wishes, too. */
extern void rs_registry_forget(Oid database);

/* For the launcher: was a wish lost, for want of room?  Forgets that. */
extern bool rs_registry_wish_was_lost(void);

/* For a worker, before it connects: takes the database for this process, to its end.  When
 * others see that it is gone, it does not count as connected any more. */
extern RsClaim rs_registry_claim(Oid database);

/* For a worker: it is about to look for the extension.  A wish made later stays. */
extern void rs_registry_begin_look(Oid database);

/* For a worker: what it found.  Wakes the launcher. */
extern void rs_registry_report(Oid database, RsFinding finding);

/* Asks for a look at the database, and wakes the launcher. */
extern void rs_registry_wish(Oid database);

/* No worker begins in the database until it is unblocked as often.  False: no room.
 * The second wakes the launcher. */
extern bool rs_registry_block(Oid database);
extern void rs_registry_unblock(Oid database);

/* Ends the worker of a blocked database and waits until it is gone, for timeout_ms at most.
 * Throws on cancel and termination. */
extern void rs_registry_evict(Oid database, int timeout_ms);

/* ---- commands.c ---------------------------------------------------------------------- */

/* From _PG_init while preloading: takes the hooks and callbacks. */
extern void rs_commands_init(void);

/* ---- what the postmaster calls --------------------------------------------------------- */

extern PGDLLEXPORT void redstream_launcher_main(Datum argument);
extern PGDLLEXPORT void redstream_worker_main(Datum argument);

/* SIGTERM of both: ends a wait for a lock or a scan by an error (as in a backend), and
 * elsewhere asks the loop to end. */
extern void rs_worker_handle_sigterm(SIGNAL_ARGS);

#endif							/* RS_WORKER_REGISTRY_H */
