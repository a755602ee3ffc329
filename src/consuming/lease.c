/*
 * lease.c
 *	  What a transaction holds that consumes messages, and how that ends with it.
 *
 * A consumer's lock is held until the transaction ends, however long that takes; session.c sees to it that it is extended.
 *
 *		what happens			what is done										may throw
 *
 *		PRE_COMMIT				the locks of who has consumed are extended, and		yes: 55P03 when one is not,
 *								must be ours; the commands for COMMIT are made		io_error without Redis
 *		PRE_PREPARE				refused: a lock cannot wait for COMMIT PREPARED		yes
 *		COMMIT					one send(): offsets, releases						no
 *		ABORT					one send(): releases								no
 *		subtransaction aborts	its marks go; the timer, which an error has			no
 *		or starts				stopped (PostgresMain), runs again
 *
 * From COMMIT on nothing may fail or wait.  When that send() fails, the lock expires by itself, and the offset is copied by
 * the next call of consume(): it is in the table (offsets.c), in the same transaction as the work.
 *
 * A transaction that cannot make sure of its locks is rolled back: somebody else may have been given the same messages.
 *
 * Nothing of this is shared memory, and works without preloading.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "consuming/consuming.h"
#include "consuming/session.h"
#include "settings.h"

/* Bytes: what is sent at COMMIT is to fit into the socket's buffer (session.c), and is four times that. */
#define RELEASES_MOST (32 * 1024)

/* Where an offset is to be, as of a nesting level. */
typedef struct RsMark
{
	int			level;
	bool		nothing;		/* to be told */
	RsStreamId	id;
	bool		placed;
} RsMark;

static char holder[RS_HOLDER_SIZE]; /* the session's */

/* The transaction's. */
static RsLease *leases;
static bool committing;			/* PRE_COMMIT is over */
static RsCommands extension;	/* of all locks: the timer's */
static RsCommands ending;		/* for COMMIT */
static RsCommands farewell;		/* for ABORT */

/* ---- commands ------------------------------------------------------------------------ */

static void
add_release(RsCommands *commands, const RsLease *lease)
{
	const char *words[RS_RELEASE_WORDS];

	rs_redis_release_words(&lease->who.lock, &lease->who.notify, lease->who.holder, words);
	rs_commands_add(commands, RS_RELEASE_WORDS, words);
}

static void
add_extension(RsCommands *commands, const RsLease *lease)
{
	const char *words[RS_EXTEND_WORDS];

	rs_redis_extend_words(&lease->who.lock, lease->who.holder, words);
	rs_commands_add(commands, RS_EXTEND_WORDS, words);
}

/* What Redis is to be told at COMMIT.  A lease without a lock may have one all the same, if Redis was asked for it and did not
 * answer. */
static void
add_ending(RsCommands *commands, const RsLease *lease)
{
	const RsMark *mark = lease->nmarks > 0 ? &lease->marks[lease->nmarks - 1] : NULL;
	bool		tells = mark != NULL && !mark->nothing;
	const char *commit[RS_COMMIT_WORDS];
	const char *place[RS_PLACE_WORDS];
	char		id[RS_STREAM_ID_SIZE];

	if (tells)
		rs_redis_id_format(&mark->id, id);
	if (tells && !mark->placed)
	{
		rs_redis_commit_words(&lease->who, id, true, commit);
		rs_commands_add(commands, RS_COMMIT_WORDS, commit);
		return;
	}
	if (tells)
	{
		rs_redis_place_words(&lease->who, id, place);
		rs_commands_add(commands, RS_PLACE_WORDS, place);
	}
	add_release(commands, lease);
}

/* After a lease has come, gone or got its lock. */
static void
prepare_commands(void)
{
	rs_session_stop_timer();
	rs_session_extends(NULL);
	rs_commands_forget(&extension);
	rs_commands_forget(&farewell);
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
	{
		if (lease->locked)
			add_extension(&extension, lease);
		add_release(&farewell, lease);
	}
	rs_session_extends(&extension);
}

/* ---- leases ---------------------------------------------------------------------------- */

static RsLease *
find_lease(const RsConsumer *who)
{
	for (RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (strcmp(lease->who.lock.text, who->lock.text) == 0)
			return lease;
	return NULL;
}

static void
check_number_of_leases(void)
{
	if (farewell.length < RELEASES_MOST)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("too many consumers in one transaction"),
			 errhint("Commit, and go on with the next ones.")));
}

RsLease *
rs_lease_open(const char *stream, const char *consumer)
{
	RsConsumer *who = palloc(sizeof(RsConsumer));
	RsLease    *lease;

	if (committing)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot consume while the transaction commits")));
	if (holder[0] == '\0' && !rs_redis_holder_draw(holder))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not draw a random number")));
	rs_redis_consumer_set(who, rs_namespace, stream, consumer, holder);
	lease = find_lease(who);
	if (lease != NULL)
		return lease;
	check_number_of_leases();
	lease = MemoryContextAllocZero(TopTransactionContext, sizeof(RsLease));
	lease->who = *who;
	lease->next = leases;
	leases = lease;
	prepare_commands();
	return lease;
}

void
rs_lease_locked(RsLease *lease)
{
	if (lease->locked)
		return;
	lease->locked = true;
	if (extension.count == 0)
		rs_session_extended();
	prepare_commands();
}

void
rs_lease_refused(RsLease *lease)
{
	RsLease   **link = &leases;

	/* what was consumed under a lock that is lost is not to be committed: PRE_COMMIT will find that out */
	if (lease->nmarks > 0)
		return;
	while (*link != lease)
		link = &(*link)->next;
	*link = lease->next;
	if (lease->marks != NULL)
		pfree(lease->marks);
	pfree(lease);
	prepare_commands();
}

/* The mark of the present level, a new one if there is none. */
static RsMark *
mark_of_level(RsLease *lease)
{
	int			level = GetCurrentTransactionNestLevel();

	if (lease->nmarks > 0 && lease->marks[lease->nmarks - 1].level == level)
		return &lease->marks[lease->nmarks - 1];
	if (lease->nmarks == lease->max_marks)
	{
		int			more = Max(4, 2 * lease->max_marks);

		if (lease->marks == NULL)
			lease->marks = MemoryContextAlloc(TopTransactionContext, more * sizeof(RsMark));
		else
			lease->marks = repalloc(lease->marks, more * sizeof(RsMark));
		lease->max_marks = more;
	}
	lease->marks[lease->nmarks].level = level;
	return &lease->marks[lease->nmarks++];
}

void
rs_lease_mark(RsLease *lease, const RsStreamId *id, bool placed)
{
	RsMark	   *mark = mark_of_level(lease);

	/* Redis is told after the commit, which must not be forgotten by a crash then */
	ForceSyncCommit();
	lease->marked = true;
	mark->nothing = false;
	mark->id = *id;
	mark->placed = placed;
}

void
rs_lease_unmark(const char *stream, const char *consumer)
{
	RsConsumer *who = palloc(sizeof(RsConsumer));
	RsLease    *lease;

	rs_redis_consumer_set(who, rs_namespace, stream, consumer, holder);
	lease = find_lease(who);
	if (lease != NULL && lease->nmarks > 0)
		mark_of_level(lease)->nothing = true;
}

/* ---- the end of (sub)transactions ------------------------------------------------------ */

static char *
server_name(const char *name)
{
	return pg_any_to_server(name, strlen(name), PG_UTF8);
}

static void
raise_lost(const RsLease *lease)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("lost the lock of consumer \"%s\" of stream \"%s\"",
					server_name(lease->who.name), server_name(lease->who.stream_name)),
			 errdetail("Somebody else may have been given the same messages meanwhile."),
			 errhint("Nothing is lost: roll back, and consume again.")));
}

static void
raise_failed(const RsError *error)
{
	CHECK_FOR_INTERRUPTS();
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not make sure of a consumer's lock: %s", error->text),
			 errhint("Nothing is lost: roll back, and consume again.")));
}

static bool
has_consumed(const RsLease *lease)
{
	return lease->locked && lease->nmarks > 0;
}

/* Takes the reply for one lock: is it still ours? */
static bool
is_held(RsConnection *redis)
{
	RsReply		reply;
	RsError		error;

	if (!rs_redis_next(redis, false, rs_timeout, &reply, &error))
	{
		rs_session_lost();
		raise_failed(&error);
	}
	if (reply.type != RS_REPLY_ERROR)
		return reply.type == RS_REPLY_INTEGER && reply.integer == 1;
	rs_redis_error(&error, "%.*s", (int) reply.length, reply.text);
	rs_session_lost();			/* there are other replies */
	raise_failed(&error);
	return false;
}

/* Makes sure of the locks, in one round trip; they are good for five seconds from its beginning on. */
static void
confirm_locks(void)
{
	const RsLease *lost = NULL;
	const char *words[RS_EXTEND_WORDS];
	RsError		error;
	RsConnection *redis = rs_session_connection(&error);

	if (redis == NULL)
		raise_failed(&error);
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
	{
		if (!has_consumed(lease))
			continue;
		rs_redis_extend_words(&lease->who.lock, holder, words);
		rs_redis_queue(redis, RS_EXTEND_WORDS, words, NULL);
	}
	rs_session_extended();
	if (!rs_redis_flush(redis, rs_timeout, &error))
	{
		rs_session_lost();
		raise_failed(&error);
	}
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (has_consumed(lease) && !is_held(redis))
			lost = lease;
	if (lost != NULL)
		raise_lost(lost);
}

/* Who has got no message, or has rolled that back, need not be sure of anything. */
static bool
has_marks(void)
{
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
		if (lease->nmarks > 0)
			return true;
	return false;
}

static void
pre_commit(void)
{
	if (leases == NULL)
		return;
	if (has_marks())
		confirm_locks();
	for (const RsLease *lease = leases; lease != NULL; lease = lease->next)
		add_ending(&ending, lease);
	committing = true;
	rs_session_rest();
}

static void
pre_prepare(void)
{
	if (leases != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has called redstream.consume() or commit_offset()")));
}

/* Must not throw, allocate or wait. */
static void
finish(const RsCommands *commands)
{
	if (leases == NULL)
		return;
	rs_session_stop_timer();
	rs_session_extends(NULL);
	rs_session_send(commands);
	leases = NULL;
	committing = false;
	memset(&extension, 0, sizeof(extension));
	memset(&ending, 0, sizeof(ending));
	memset(&farewell, 0, sizeof(farewell));
}

static void
on_transaction_event(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			finish(&ending);
			break;
		case XACT_EVENT_ABORT:
			finish(&farewell);
			break;
		case XACT_EVENT_PRE_PREPARE:
			pre_prepare();
			break;
		default:
			break;
	}
}

/* Marks of the level go up, or go.  Of two at one level the later one counts. */
static void
end_level(RsLease *lease, int level, bool committed)
{
	if (lease->nmarks == 0 || lease->marks[lease->nmarks - 1].level < level)
		return;
	if (!committed)
	{
		lease->nmarks--;
		return;
	}
	lease->marks[lease->nmarks - 1].level = level - 1;
	if (lease->nmarks > 1 && lease->marks[lease->nmarks - 2].level == level - 1)
	{
		lease->marks[lease->nmarks - 2] = lease->marks[lease->nmarks - 1];
		lease->nmarks--;
	}
}

static void
on_subtransaction_event(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
						void *argument)
{
	if (leases == NULL || event == SUBXACT_EVENT_PRE_COMMIT_SUB)
		return;
	if (event != SUBXACT_EVENT_START_SUB)
		for (RsLease *lease = leases; lease != NULL; lease = lease->next)
			end_level(lease, GetCurrentTransactionNestLevel(), event == SUBXACT_EVENT_COMMIT_SUB);

	/* Errors after the first one stop it, too, and no event tells of them: until ROLLBACK TO starts the level anew. */
	if (event != SUBXACT_EVENT_COMMIT_SUB && !committing)
		rs_session_rest();
}

void
rs_consuming_init(void)
{
	RegisterXactCallback(on_transaction_event, NULL);
	RegisterSubXactCallback(on_subtransaction_event, NULL);
}
