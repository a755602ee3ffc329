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

static HTAB *plans;

/* A change of a table, of its triggers or its columns.  May come at any time,
 * also while a plan is being used: so only a note is taken. */
static void
on_change_of_relation(Datum argument, Oid relation)
{
	HASH_SEQ_STATUS scan;
	RsPlan	   *plan;

	hash_seq_init(&scan, plans);
	while ((plan = hash_seq_search(&scan)) != NULL)
		if (relation == InvalidOid || plan->key.relation == relation)
			plan->valid = false;
}

/* A change of some function. */
static void
on_change_of_function(Datum argument, int cache, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	RsPlan	   *plan;

	hash_seq_init(&scan, plans);
	while ((plan = hash_seq_search(&scan)) != NULL)
		if (plan->function != NULL)
			plan->valid = false;
}

static void
create_cache(void)
{
	HASHCTL		control = {.keysize = sizeof(RsPlanKey),.entrysize = sizeof(RsPlan)};

	plans = hash_create("redstream plans", 64, &control, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(on_change_of_relation, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, on_change_of_function, (Datum) 0);
}

/* Forgets what an invalidation has hit: plans of triggers and tables that may be gone. */
static void
sweep(void)
{
	HASH_SEQ_STATUS scan;
	RsPlan	   *plan;

	hash_seq_init(&scan, plans);
	while ((plan = hash_seq_search(&scan)) != NULL)
		if (!plan->valid)
		{
			MemoryContextDelete(plan->context);
			(void) hash_search(plans, &plan->key, HASH_REMOVE, NULL);
		}
}

RsPlan *
rs_plan_get(const Trigger *trigger, Relation relation)
{
	RsPlanKey	key;
	RsPlan	   *plan;
	RsPlan		fresh;
	MemoryContext old;

	if (plans == NULL)
		create_cache();
	memset(&key, 0, sizeof(key));
	key.trigger = trigger != NULL ? trigger->tgoid : InvalidOid;
	key.relation = RelationGetRelid(relation);
	plan = hash_search(plans, &key, HASH_FIND, NULL);
	if (plan == NULL || !plan->valid)
	{
		memset(&fresh, 0, sizeof(fresh));
		fresh.key = key;
		fresh.context = AllocSetContextCreate(CurTransactionContext, "redstream plan",
											  ALLOCSET_SMALL_SIZES);
		old = MemoryContextSwitchTo(fresh.context);
		rs_plan_compile(&fresh, trigger, relation);
		MemoryContextSwitchTo(old);
		fresh.valid = true;
		sweep();
		plan = hash_search(plans, &key, HASH_ENTER, NULL);
		*plan = fresh;
		MemoryContextSetParent(plan->context, CacheMemoryContext);
	}
	return plan;
}
