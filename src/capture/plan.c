/*
 * plan.c
 *	  The plans of this process, by trigger and relation: compiled at the first row, and kept
 *	  until something that they were made of may have changed.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture/plan.h"

typedef struct PlanKey
{
	Oid			trigger;		/* InvalidOid: a table that is not attached */
	Oid			relation;
} PlanKey;

typedef struct PlanEntry
{
	PlanKey	key;
	RsPlan	   *plan;			/* in a memory context of its own */
} PlanEntry;

static HTAB *plans;
static uint64 changes;			/* invalidations that came so far */

/* A change of a table, of its triggers or its columns.  May come at any time,
 * also while a plan is being used: so only a note is taken. */
static void
on_change_of_relation(Datum argument, Oid relation)
{
	HASH_SEQ_STATUS scan;
	PlanEntry  *entry;

	changes++;
	hash_seq_init(&scan, plans);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (relation == InvalidOid || entry->key.relation == relation ||
			entry->plan->attached == relation)
			entry->plan->valid = false;
}

/* A change of some function or schema. */
static void
on_change_of_function(Datum argument, int cache, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	PlanEntry  *entry;

	changes++;
	hash_seq_init(&scan, plans);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->plan->function != NULL)
			entry->plan->valid = false;
}

static void
create_cache(void)
{
	HASHCTL		control = {.keysize = sizeof(PlanKey),.entrysize = sizeof(PlanEntry)};

	plans = hash_create("redstream plans", 64, &control, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(on_change_of_relation, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, on_change_of_function, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, on_change_of_function, (Datum) 0);
}

/* A payload function may change rows itself: the plan that called it is still needed then. */
static void
give_up(RsPlan *plan)
{
	if (plan->function != NULL && plan->function->running > 0)
		MemoryContextSetParent(plan->context, TopTransactionContext);
	else
		MemoryContextDelete(plan->context);
}

/* Forgets what an invalidation has hit: plans of triggers and tables that may be gone. */
static void
sweep(void)
{
	HASH_SEQ_STATUS scan;
	PlanEntry  *entry;

	hash_seq_init(&scan, plans);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (!entry->plan->valid)
		{
			give_up(entry->plan);
			(void) hash_search(plans, &entry->key, HASH_REMOVE, NULL);
		}
}

static RsPlan *
make_plan(const PlanKey *key, const Trigger *trigger, Relation relation)
{
	MemoryContext context = AllocSetContextCreate(CurTransactionContext, "redstream plan",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	RsPlan	   *plan = palloc0(sizeof(RsPlan));
	uint64		before = changes;

	plan->context = context;
	rs_plan_compile(plan, trigger, relation);
	MemoryContextSwitchTo(old);
	sweep();
	((PlanEntry *) hash_search(plans, key, HASH_ENTER, NULL))->plan = plan;
	MemoryContextSetParent(context, CacheMemoryContext);
	plan->valid = changes == before;	/* else it is good for this time */
	return plan;
}

RsPlan *
rs_plan_get(const Trigger *trigger, Relation relation)
{
	PlanKey	key;
	PlanEntry  *entry;

	if (plans == NULL)
		create_cache();
	memset(&key, 0, sizeof(key));
	key.trigger = trigger != NULL ? trigger->tgoid : InvalidOid;
	key.relation = RelationGetRelid(relation);
	entry = hash_search(plans, &key, HASH_FIND, NULL);
	return entry != NULL && entry->plan->valid ? entry->plan : make_plan(&key, trigger, relation);
}
