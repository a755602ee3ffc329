/*
 * book.c
 *	  The states of the buckets, in shared memory, and who is about to add rows.
 *
 * A line is one database's, from the first transaction or worker that asks for it until the launcher finds the database dropped: then nobody is connected
 * to it who could still use the line.  A spinlock guards who has which.
 * The state of a line is one word: a bit for each bucket that is ON, and one more while it is CLOSING.  A process is
 * joined while its entry says since which position of WAL.  For these there are no locks; src/README.md says why the order of the steps
 * is enough, and each barrier here which two steps it keeps apart.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "clock.h"
#include "spool/table.h"

#define LINES 256				/* databases */
#define NOBODY PG_UINT32_MAX
#define JOINING 1				/* joined since a position that is not known yet: any */
#define POLL_INTERVAL 1			/* milliseconds */

#define CLOSING(buckets) ((uint64) (buckets) << RS_BUCKETS)
#define ON(buckets) ((uint64) (buckets))

typedef struct RsSpoolLine
{
	Oid			database;		/* InvalidOid: a line that is not used */
	pg_atomic_uint32 worker;	/* process number of who delivers, or NOBODY */
	pg_atomic_uint64 state;
	pg_atomic_uint32 looked;	/* buckets whose rows of a life before this one were looked for */
	pg_atomic_uint64 wishes;
	pg_atomic_uint64 news;
	ConditionVariable closed;	/* CLOSING is over */
} RsSpoolLine;

typedef struct RsSpoolJoin
{
	pg_atomic_uint32 database;
	pg_atomic_uint64 since;		/* position of WAL; 0: not joined */
} RsSpoolJoin;

typedef struct RsSpoolBook
{
	slock_t		mutex;			/* guards the lines' databases, and ... */
	bool		full;			/* ... some are without: what they have spooled is not to be met by a line taken later */
	RsSpoolLine lines[LINES];
	RsSpoolJoin joins[FLEXIBLE_ARRAY_MEMBER];	/* by process number */
} RsSpoolBook;

static RsSpoolBook *book;

size_t
rs_spool_shmem_size(void)
{
	return add_size(offsetof(RsSpoolBook, joins), mul_size(sizeof(RsSpoolJoin), MaxBackends));
}

void
rs_spool_shmem_init(void)
{
	bool		found;

	book = ShmemInitStruct("redstream spool", rs_spool_shmem_size(), &found);
	if (found)
		return;
	SpinLockInit(&book->mutex);
	book->full = false;
	for (int i = 0; i < LINES; i++)
	{
		book->lines[i].database = InvalidOid;
		pg_atomic_init_u32(&book->lines[i].worker, NOBODY);
		pg_atomic_init_u64(&book->lines[i].state, 0);
		pg_atomic_init_u32(&book->lines[i].looked, 0);
		pg_atomic_init_u64(&book->lines[i].wishes, 0);
		pg_atomic_init_u64(&book->lines[i].news, 0);
		ConditionVariableInit(&book->lines[i].closed);
	}
	for (int i = 0; i < MaxBackends; i++)
	{
		pg_atomic_init_u32(&book->joins[i].database, InvalidOid);
		pg_atomic_init_u64(&book->joins[i].since, 0);
	}
}

/* ---- lines ------------------------------------------------------------------------------- */

/* The line of the database, or one that is not used (InvalidOid), or NULL; with the mutex held. */
static RsSpoolLine *
find_line(Oid database)
{
	for (int i = 0; i < LINES; i++)
		if (book->lines[i].database == database)
			return &book->lines[i];
	return NULL;
}

/* The line of this database; NULL if it has none, and when one is to be taken and there is no room. */
static RsSpoolLine *
line_of_database(bool take)
{
	static RsSpoolLine *line = NULL;

	if (line != NULL)
		return line;
	SpinLockAcquire(&book->mutex);
	line = find_line(MyDatabaseId);
	if (line == NULL && take)
	{
		line = find_line(InvalidOid);
		if (line != NULL)
			line->database = MyDatabaseId;
		else
			book->full = true;
	}
	SpinLockRelease(&book->mutex);
	return line;
}

static RsSpoolLine *
my_line(void)
{
	return line_of_database(true);
}

List *
rs_spool_databases(void)
{
	Oid			databases[LINES];
	List	   *list = NIL;

	SpinLockAcquire(&book->mutex);
	for (int i = 0; i < LINES; i++)
		databases[i] = book->lines[i].database;
	SpinLockRelease(&book->mutex);
	for (int i = 0; i < LINES; i++)
		if (OidIsValid(databases[i]))
			list = lappend_oid(list, databases[i]);
	return list;
}

void
rs_spool_forget(Oid database)
{
	RsSpoolLine *line;

	SpinLockAcquire(&book->mutex);
	line = book->full ? NULL : find_line(database);
	if (line != NULL)
	{
		pg_atomic_write_u64(&line->state, 0);
		pg_atomic_write_u32(&line->looked, 0);
		line->database = InvalidOid;
	}
	SpinLockRelease(&book->mutex);
}

/* ---- buckets ----------------------------------------------------------------------------- */

static RsSpoolJoin *
my_join(void)
{
	return &book->joins[MyProc->pgprocno];
}

RsBuckets
rs_spool_bucket(const char *ns, const char *stream)
{
	uint32		hash = hash_combine(hash_bytes((const unsigned char *) ns, strlen(ns)),
									hash_bytes((const unsigned char *) stream, strlen(stream)));

	return (RsBuckets) 1 << (hash % RS_BUCKETS);
}

int
rs_spool_bucket_number(RsBuckets bucket)
{
	return pg_rightmost_one_pos32(bucket);
}

/* ---- transactions ----------------------------------------------------------------------- */

static uint64
state_of(RsSpoolLine *line)
{
	/* a database without a line spools always */
	return line != NULL ? pg_atomic_read_u64(&line->state) : ON(PG_UINT32_MAX);
}

static void
join(void)
{
	pg_atomic_write_u32(&my_join()->database, MyDatabaseId);
	pg_write_barrier();
	pg_atomic_write_u64(&my_join()->since, JOINING);
	pg_memory_barrier();		/* joined, then the position: rs_spool_horizon() reads them the other way round */
	pg_atomic_write_u64(&my_join()->since, GetXLogInsertRecPtr());
	pg_memory_barrier();		/* joined, then the look at the state */
}

/* Then it stays so since the position of the first time. */
static bool
is_joined(void)
{
	return pg_atomic_read_u64(&my_join()->since) != 0;
}

static void
leave(void)
{
	pg_memory_barrier();		/* what was done, then it is over */
	pg_atomic_write_u64(&my_join()->since, 0);
}

/* Rows that were there before this life of the server turn their bucket ON; once, and for all processes. */
static void
look(RsSpoolLine *line, RsBuckets buckets)
{
	if (buckets == 0 || !rs_spool_exists())
		return;
	for (int i = 0; i < RS_BUCKETS; i++)
		if ((buckets & (RsBuckets) 1 << i) != 0 && rs_spool_has_rows((RsBuckets) 1 << i))
			pg_atomic_fetch_or_u64(&line->state, ON((RsBuckets) 1 << i));
	pg_atomic_fetch_or_u32(&line->looked, buckets);
}

bool
rs_spool_is_on(RsBuckets buckets)
{
	RsSpoolLine *line = my_line();

	if (line != NULL)
		look(line, buckets & ~pg_atomic_read_u32(&line->looked));
	pg_read_barrier();			/* somebody has looked, then what was found */
	return (state_of(line) & ON(buckets)) != 0;
}

/* Waits until none of the buckets is CLOSING.  False when that takes too long. */
static bool
await_close(RsSpoolLine *line, RsBuckets buckets, int timeout_ms)
{
	uint64		end = rs_now() + (uint64) timeout_ms * 1000;
	uint64		now;

	ConditionVariablePrepareToSleep(&line->closed);
	while ((state_of(line) & CLOSING(buckets)) != 0 && (now = rs_now()) < end)
		(void) ConditionVariableTimedSleep(&line->closed, (end - now + 999) / 1000, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	return (state_of(line) & CLOSING(buckets)) == 0;
}

bool
rs_spool_join(RsBuckets buckets, int timeout_ms)
{
	while (rs_spool_is_on(buckets))
	{
		RsSpoolLine *line = my_line();
		uint64		state;

		join();
		state = state_of(line);
		if ((state & ON(buckets)) != 0 && (state & CLOSING(buckets)) == 0)
		{
			rs_spool_begin(buckets);	/* those that are NORMAL get rows, too */
			return true;
		}
		leave();
		if ((state & CLOSING(buckets)) != 0 && !await_close(line, buckets, timeout_ms))
		{
			rs_spool_begin(buckets);
			return true;
		}
	}
	return false;
}

/* CLOSING goes, so that the worker's rs_spool_close_end() fails. */
static void
turn_on(RsSpoolLine *line, RsBuckets buckets)
{
	uint64		state = pg_atomic_read_u64(&line->state);

	while (!pg_atomic_compare_exchange_u64(&line->state, &state,
										   (state | ON(buckets)) & ~CLOSING(buckets)))
		;
	if ((state & CLOSING(buckets)) != 0)
		ConditionVariableBroadcast(&line->closed);
}

void
rs_spool_begin(RsBuckets buckets)
{
	if (!is_joined())
		join();
	if (my_line() != NULL)
		turn_on(my_line(), buckets);
}

static void
wake_worker(RsSpoolLine *line)
{
	uint32		worker = pg_atomic_read_u32(&line->worker);

	if (worker != NOBODY)
		SetLatch(&ProcGlobal->allProcs[worker].procLatch);
}

void
rs_spool_leave(bool wake)
{
	RsSpoolLine *line = my_line();

	leave();
	if (line == NULL)
		return;
	pg_atomic_fetch_add_u64(&line->news, 1);
	if (wake)
		wake_worker(line);
}

void
rs_spool_wish(void)
{
	RsSpoolLine *line = book != NULL ? line_of_database(false) : NULL;

	if (line == NULL)
		return;					/* nobody has looked so far */
	pg_atomic_write_u32(&line->looked, 0);	/* for as long as there is no worker */
	pg_atomic_fetch_add_u64(&line->wishes, 1);
	wake_worker(line);
}

/* ---- the worker --------------------------------------------------------------------------- */

static void
stop_serving(int code, Datum argument)
{
	RsSpoolLine *line = my_line();

	pg_atomic_write_u32(&line->worker, NOBODY);
	pg_atomic_fetch_and_u64(&line->state, ~CLOSING(PG_UINT32_MAX));
	ConditionVariableBroadcast(&line->closed);
}

void
rs_spool_serve(void)
{
	RsSpoolLine *line = my_line();

	if (line == NULL)
		return;
	pg_atomic_write_u32(&line->worker, MyProc->pgprocno);
	before_shmem_exit(stop_serving, 0);
}

uint64
rs_spool_wishes(void)
{
	return my_line() != NULL ? pg_atomic_read_u64(&my_line()->wishes) : 0;
}

uint64
rs_spool_news(void)
{
	return my_line() != NULL ? pg_atomic_read_u64(&my_line()->news) : 0;
}

RsBuckets
rs_spool_buckets(void)
{
	return (RsBuckets) state_of(my_line());
}

void
rs_spool_found(RsBuckets bucket)
{
	if (my_line() != NULL)
		pg_atomic_fetch_or_u64(&my_line()->state, ON(bucket));
}

void
rs_spool_close_begin(RsBuckets bucket)
{
	if (my_line() != NULL)
		pg_atomic_fetch_or_u64(&my_line()->state, CLOSING(bucket));
	pg_memory_barrier();		/* CLOSING, then the look at who is joined */
}

bool
rs_spool_close_end(RsBuckets bucket)
{
	RsSpoolLine *line = my_line();
	uint64		state = state_of(line);
	bool		closing;

	if (line == NULL)
		return false;
	do
		closing = (state & CLOSING(bucket)) != 0;
	while (closing && !pg_atomic_compare_exchange_u64(&line->state, &state,
													  state & ~(CLOSING(bucket) | ON(bucket))));
	ConditionVariableBroadcast(&line->closed);
	return closing;
}

void
rs_spool_close_abandon(RsBuckets bucket)
{
	RsSpoolLine *line = my_line();

	if (line == NULL)
		return;
	pg_atomic_fetch_and_u64(&line->state, ~CLOSING(bucket));
	ConditionVariableBroadcast(&line->closed);
}

/* Since when the process is joined to this database; 0: it is not. */
static uint64
joined_since(int process)
{
	RsSpoolJoin *entry = &book->joins[process];
	uint64		since = pg_atomic_read_u64(&entry->since);

	pg_read_barrier();
	return since != 0 && pg_atomic_read_u32(&entry->database) == MyDatabaseId ? since : 0;
}

bool
rs_spool_await_leaving(int timeout_ms)
{
	uint64		end = rs_now() + (uint64) timeout_ms * 1000;

	for (int i = 0; i < MaxBackends; i++)
	{
		uint64		since = joined_since(i);

		/* One that has left and joined again has seen the state since. */
		while (since != 0 && joined_since(i) == since)
		{
			if (rs_now() >= end)
				return false;
			(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_INTERVAL, PG_WAIT_EXTENSION);
			CHECK_FOR_INTERRUPTS();
		}
	}
	return true;
}

XLogRecPtr
rs_spool_horizon(void)
{
	XLogRecPtr	horizon = GetXLogInsertRecPtr();

	pg_memory_barrier();		/* the position, then who is joined */
	for (int i = 0; i < MaxBackends; i++)
	{
		uint64		since = joined_since(i);

		if (since != 0)
			horizon = Min(horizon, since);
	}
	return horizon;
}
