/*
 * compile.c
 *	  What is announced of a relation's rows, from what its trigger says and what the relation is now.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/partition.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "capture/plan.h"
#include "redis/redis.h"

/* ---- columns ---------------------------------------------------------------------- */

static int
compare_int(const ListCell *a, const ListCell *b)
{
	return lfirst_int(a) - lfirst_int(b);
}

/* The table at the top of a partition's tree; the table itself while it is being detached concurrently. */
static Oid
find_root(Oid table)
{
	List	   *ancestors = get_rel_relispartition(table) ? get_partition_ancestors(table) : NIL;

	return ancestors != NIL ? llast_oid(ancestors) : table;
}

/* A partition may have its columns in another order than the root table, but
 * announces them in the root's. */
List *
rs_capture_primary_key(Relation relation)
{
	Oid			table = RelationGetRelid(relation);
	Oid			constraint;
	Bitmapset  *key = get_primary_key_attnos(table, true, &constraint);
	Oid			root = find_root(table);
	List	   *root_numbers = NIL;
	List	   *numbers = NIL;
	ListCell   *cell;
	int			member = -1;

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

/* How the values of columns become text and JSON; "most" becomes what the text forms heed. */
static RsColumn *
compile_columns(RsPlan *plan, Relation relation, List *numbers, RsOutputMode *most)
{
	RsColumn   *columns = palloc0(sizeof(RsColumn) * Max(list_length(numbers), 1));
	ListCell   *cell;

	foreach(cell, numbers)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), lfirst_int(cell) - 1);
		RsColumn   *column = &columns[foreach_current_index(cell)];
		Oid			output;
		bool		varlena;
		RsOutputMode mode;

		column->number = attribute->attnum;
		column->type = getBaseType(attribute->atttypid);
		column->kind = classify(column->type, &mode);
		*most = Max(*most, mode);
		getTypeOutputInfo(column->type, &output, &varlena);
		fmgr_info_cxt(output, &column->output, plan->context);
	}
	return columns;
}

/* The part of a plan that makes payloads. */
static void
compile_payload(RsPlan *plan, Relation relation, List *numbers)
{
	char	  **keys = palloc(sizeof(char *) * list_length(numbers));

	plan->ncolumns = list_length(numbers);
	plan->columns = compile_columns(plan, relation, numbers, &plan->mode);
	for (int i = 0; i < plan->ncolumns; i++)
	{
		const char *name = NameStr(TupleDescAttr(RelationGetDescr(relation),
												 plan->columns[i].number - 1)->attname);

		keys[i] = pg_server_to_any(name, strlen(name), PG_UTF8);
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
compile_streams(RsPlan *plan, const RsAttachment *attachment)
{
	plan->nshards = attachment->shards;
	plan->stream_names = palloc(sizeof(char *) * plan->nshards);
	plan->streams = palloc(sizeof(int) * plan->nshards);
	plan->generation = -1;
	for (int i = 0; i < plan->nshards; i++)
	{
		char	   *name = rs_capture_shard_name(attachment->stream, plan->nshards, i);

		plan->stream_names[i] = pg_server_to_any(name, strlen(name), PG_UTF8);
	}
}

static void
check_key(Relation relation, List *key, const char *what, const char *hint)
{
	if (key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key %s", RelationGetRelationName(relation), what),
				 errhint("%s", hint)));
}

/* What a table that is not attached is announced as: its primary key, to the stream of its name. */
static RsAttachment *
default_attachment(Relation relation)
{
	RsAttachment *attachment = palloc0(sizeof(RsAttachment));
	char	   *name = RelationGetRelationName(relation);
	RsError		error;

	if (!rs_redis_stream_name_check(pg_server_to_any(name, strlen(name), PG_UTF8), &error))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("%s", error.text)));
	attachment->stream = name;
	attachment->shards = 1;
	return attachment;
}

void
rs_plan_compile(RsPlan *plan, const Trigger *trigger, Relation relation)
{
	RsAttachment *attachment = trigger != NULL ? rs_attachment_of(trigger) :
		default_attachment(relation);
	List	   *key = rs_capture_primary_key(relation);
	List	   *payload = attachment->payload != NIL ? find_columns(relation, attachment->payload) : key;
	List	   *watched = find_columns(relation, attachment->columns);
	List	   *told = NIL;			/* key columns that the announcement depends on */

	compile_streams(plan, attachment);
	if (attachment->function != NULL)
	{
		plan->attached = rs_attached_table(trigger);
		plan->function = rs_function_find(attachment->function, plan->attached, relation);
		plan->mode = RS_OUTPUT_COMMON;
		told = key;
	}
	else
	{
		if (payload == NIL)
			check_key(relation, key, trigger != NULL ? "any more to be announced" : "to be announced",
					  trigger != NULL ? "Add one, call redstream.attach() again with a payload, or redstream.detach()." :
					  "Add one, or call redstream.attach() with a payload.");
		compile_payload(plan, relation, payload);
		plan->key_only = list_difference_int(payload, key) == NIL;
		told = list_intersection_int(payload, key);
	}
	if (plan->nshards > 1)
	{
		check_key(relation, key, "any more to choose the shard by",
				  "Add one, call redstream.attach() again without shards, or redstream.detach().");
		plan->nkeys = list_length(key);
		plan->keys = compile_columns(plan, relation, key, &plan->key_mode);
		told = key;
	}
	if (watched != NIL)
		watched = list_concat_unique_int(watched, told);
	compile_watched(plan, watched);
}
