/*
 * plan.c
 *	  Compiles the arguments of a trigger against its relation, and keeps the
 *	  result until either may have changed.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/partition.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "nodes/value.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "capture/capture.h"
#include "capture/plan.h"
#include "redis/redis.h"
#include "settings.h"
#include "transaction/transaction.h"

static HTAB *plans;

/* ---- columns ---------------------------------------------------------------------- */

static int
compare_int(const ListCell *a, const ListCell *b)
{
	return lfirst_int(a) - lfirst_int(b);
}

/* A partition may have its columns in another order than the root table, but
 * announces them in the root's. */
List *
rs_capture_primary_key(Relation relation)
{
	Oid			table = RelationGetRelid(relation);
	Oid			constraint;
	Bitmapset  *key = get_primary_key_attnos(table, true, &constraint);
	Oid			root = table;
	List	   *root_numbers = NIL;
	List	   *numbers = NIL;
	ListCell   *cell;
	int			member = -1;

	if (relation->rd_rel->relispartition)
		root = llast_oid(get_partition_ancestors(table));
	while ((member = bms_next_member(key, member)) >= 0)
	{
		AttrNumber	number = member + FirstLowInvalidHeapAttributeNumber;

		if (root != table)
			number = get_attnum(root, get_attname(table, number, false));
		root_numbers = lappend_int(root_numbers, number);
	}
	list_sort(root_numbers, compare_int);
	foreach(cell, root_numbers)
		numbers = lappend_int(numbers, root == table ? lfirst_int(cell) :
							  get_attnum(table, get_attname(root, lfirst_int(cell), false)));
	return numbers;
}

static List *
find_columns(Relation relation, List *names)
{
	List	   *numbers = NIL;
	ListCell   *cell;

	foreach(cell, names)
	{
		const char *name = strVal(lfirst(cell));
		AttrNumber	number = get_attnum(RelationGetRelid(relation), name);

		if (number <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist any more, but is to be announced",
							name, RelationGetRelationName(relation)),
					 errhint("Call redstream.attach() again with the columns there are now, or redstream.detach().")));
		numbers = lappend_int(numbers, number);
	}
	return numbers;
}

/* How values of a type become JSON, and what their text form heeds. */
static RsValueKind
classify(Oid type, RsOutputMode *mode)
{
	*mode = RS_OUTPUT_PLAIN;
	switch (type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
			return RS_VALUE_NUMBER;
		case FLOAT4OID:
		case FLOAT8OID:
			*mode = RS_OUTPUT_COMMON;
			return RS_VALUE_NUMBER;
		case BOOLOID:
			return RS_VALUE_BOOLEAN;
		case JSONOID:
		case JSONBOID:
			return RS_VALUE_JSON;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
		case UUIDOID:
			return RS_VALUE_TEXT;
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case INTERVALOID:
		case BYTEAOID:
			*mode = RS_OUTPUT_COMMON;
			return RS_VALUE_TEXT;
		default:
			*mode = type_is_enum(type) ? RS_OUTPUT_PLAIN : RS_OUTPUT_ALL;
			return RS_VALUE_TEXT;
	}
}

/* The part of a plan that makes payloads. */
static void
compile_payload(RsPlan *plan, Relation relation, List *numbers)
{
	char	  **keys = palloc(sizeof(char *) * list_length(numbers));
	ListCell   *cell;

	plan->columns = palloc0(sizeof(RsColumn) * list_length(numbers));
	plan->mode = RS_OUTPUT_PLAIN;
	foreach(cell, numbers)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), lfirst_int(cell) - 1);
		RsColumn   *column = &plan->columns[plan->ncolumns];
		Oid			output;
		bool		varlena;
		const char *name = NameStr(attribute->attname);
		RsOutputMode mode;

		column->number = attribute->attnum;
		column->type = getBaseType(attribute->atttypid);
		column->kind = classify(column->type, &mode);
		plan->mode = Max(plan->mode, mode);
		getTypeOutputInfo(column->type, &output, &varlena);
		fmgr_info_cxt(output, &column->output, plan->context);
		keys[plan->ncolumns++] = pg_server_to_any(name, strlen(name), PG_UTF8);
	}
	plan->payload = rs_payload_create(plan->context, plan->ncolumns, keys);
}

static void
compile_watched(RsPlan *plan, List *numbers)
{
	ListCell   *cell;

	plan->watched = palloc(sizeof(AttrNumber) * Max(list_length(numbers), 1));
	foreach(cell, numbers)
		plan->watched[plan->nwatched++] = lfirst_int(cell);
}

static void
compile(RsPlan *plan, Trigger *trigger, Relation relation)
{
	RsAttachment *attachment = rs_capture_read_arguments(trigger->tgnargs, trigger->tgargs);
	List	   *key = rs_capture_primary_key(relation);
	List	   *payload = key;
	List	   *watched;
	RsError		error;

	if (attachment->payload != NIL)
		payload = find_columns(relation, attachment->payload);
	if (payload == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key any more to be announced",
						RelationGetRelationName(relation)),
				 errhint("Add one, call redstream.attach() again with a payload, or redstream.detach().")));
	compile_payload(plan, relation, payload);
	watched = find_columns(relation, attachment->columns);
	if (watched != NIL)
		watched = list_concat_unique_int(watched, list_intersection_int(payload, key));
	compile_watched(plan, watched);
	plan->repeatable = list_difference_int(payload, key) == NIL;
	plan->stream_name = pg_server_to_any(attachment->stream, strlen(attachment->stream), PG_UTF8);
	if (!rs_redis_stream_name_check(plan->stream_name, &error))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("%s", error.text)));
	plan->generation = -1;
}

/* ---- the cache --------------------------------------------------------------------- */

/* A change of a table, of its triggers or its columns.  May come at any time,
 * also while a plan is being used: so only a note is taken. */
static void
on_invalidation(Datum argument, Oid relation)
{
	HASH_SEQ_STATUS scan;
	RsPlan	   *plan;

	hash_seq_init(&scan, plans);
	while ((plan = hash_seq_search(&scan)) != NULL)
		if (relation == InvalidOid || plan->key.relation == relation)
			plan->valid = false;
}

static void
create_cache(void)
{
	HASHCTL		control = {.keysize = sizeof(RsPlanKey),.entrysize = sizeof(RsPlan)};

	plans = hash_create("redstream plans", 64, &control, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(on_invalidation, (Datum) 0);
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
rs_plan_get(TriggerData *trigger)
{
	RsPlanKey	key;
	RsPlan	   *plan;
	RsPlan		fresh;
	MemoryContext old;

	if (plans == NULL)
		create_cache();
	memset(&key, 0, sizeof(key));
	key.trigger = trigger->tg_trigger->tgoid;
	key.relation = RelationGetRelid(trigger->tg_relation);
	plan = hash_search(plans, &key, HASH_FIND, NULL);
	if (plan == NULL || !plan->valid)
	{
		memset(&fresh, 0, sizeof(fresh));
		fresh.key = key;
		fresh.context = AllocSetContextCreate(CurTransactionContext, "redstream plan",
											  ALLOCSET_SMALL_SIZES);
		old = MemoryContextSwitchTo(fresh.context);
		compile(&fresh, trigger->tg_trigger, trigger->tg_relation);
		MemoryContextSwitchTo(old);
		fresh.valid = true;
		sweep();
		plan = hash_search(plans, &key, HASH_ENTER, NULL);
		*plan = fresh;
		MemoryContextSetParent(plan->context, CacheMemoryContext);
	}
	if (plan->generation != rs_namespace_generation)
	{
		plan->stream = rs_transaction_stream(plan->stream_name);
		plan->generation = rs_namespace_generation;
	}
	return plan;
}
