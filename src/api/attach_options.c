/*
 * attach_options.c
 *	  What redstream.attach() is asked for: checked, and as arguments of triggers.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "api/attach_options.h"
#include "api/condition.h"
#include "api/target.h"
#include "capture/capture.h"
#include "redis/redis.h"

/* The arguments of attach(), by their places. */
enum
{
	TARGET, STREAM, PAYLOAD, PAYLOAD_FUNCTION, COLUMNS, CONDITION, SHARDS, DELAY, EXPIRY, REPLICA
};

/* The array's text form, after a check that it names columns of the table, each once. */
static char *
column_list(Relation relation, Datum array, const char *argument)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	List	   *seen = NIL;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must name at least one column", argument),
				 errhint("Leave it NULL for the default.")));
	for (int i = 0; i < count; i++)
	{
		char	   *name = nulls[i] ? NULL : TextDatumGetCString(elements[i]);
		AttrNumber	number = name ? get_attnum(RelationGetRelid(relation), name) : 0;

		if (name == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain nulls", argument)));
		if (number <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist",
							name, RelationGetRelationName(relation))));
		if (list_member_int(seen, number))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("%s names column \"%s\" more than once", argument, name)));
		seen = lappend_int(seen, number);
	}
	return OidOutputFunctionCall(F_ARRAY_OUT, array);
}

/* The interval's text form, the same in every session, after a check of its sign. */
static char *
interval_text(Datum interval, const char *argument, bool zero_allowed)
{
	Datum		zero = DirectFunctionCall3(interval_in, CStringGetDatum("0"),
										   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	int			sign = DatumGetInt32(DirectFunctionCall2(interval_cmp, interval, zero));
	int			nest_level;
	char	   *text;

	if (sign < 0 || (sign == 0 && !zero_allowed))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 zero_allowed ? errmsg("%s must not be negative", argument) :
				 errmsg("%s must be positive", argument)));
	nest_level = rs_capture_begin_output(RS_OUTPUT_COMMON);
	text = DatumGetCString(DirectFunctionCall1(interval_out, interval));
	rs_capture_end_output(nest_level);
	return text;
}

/* ---- streams ---------------------------------------------------------------------------- */

static char *
read_stream(FunctionCallInfo fcinfo, Relation relation, int shards)
{
	bool		is_default = PG_ARGISNULL(STREAM);
	char	   *stream = is_default ? pstrdup(RelationGetRelationName(relation)) :
		text_to_cstring(PG_GETARG_TEXT_PP(STREAM));
	List	   *names = list_concat(list_make1(stream), rs_api_stream_names(stream, shards));
	ListCell   *cell;
	RsError		error;

	foreach(cell, names)
	{
		char	   *name = lfirst(cell);

		if (!rs_redis_stream_name_check(pg_server_to_any(name, strlen(name), PG_UTF8), &error))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("invalid stream name: %s", error.text),
					 is_default ? errhint("Name the stream: redstream.attach(..., stream => '...').") : 0));
	}
	if (is_default)
		rs_api_check_not_taken(relation, list_delete_first(names));
	return stream;
}

static int
read_shards(FunctionCallInfo fcinfo, Relation relation)
{
	int			shards = PG_ARGISNULL(SHARDS) ? 1 : PG_GETARG_INT32(SHARDS);

	if (shards < 1 || shards > RS_SHARDS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("shards must be between 1 and %d", RS_SHARDS_MAX)));
	if (shards > 1 && rs_capture_primary_key(relation) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key to choose the shard by",
						RelationGetRelationName(relation)),
				 errhint("Add one, or do without shards.")));
	return shards;
}

/* ---- payload ------------------------------------------------------------------------------- */

static char *
read_function(Oid function, Relation relation)
{
	char	   *name;

	if (get_func_name(function) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function)));
	if (isAnyTempNamespace(get_func_namespace(function)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("payload function %s is temporary", get_func_name(function)),
				 errhint("Whoever changes a row needs it: create it in a schema that stays.")));
	name = quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
									  get_func_name(function));
	rs_capture_check_function(relation, name);
	return name;
}

static void
add_argument(StringInfo arguments, const char *name, const char *value)
{
	appendStringInfo(arguments, "%s%s, %s", arguments->len > 0 ? ", " : "",
					 quote_literal_cstr(name), quote_literal_cstr(value));
}

/* What the messages are made of: payload or payload_function, or the primary key. */
static void
add_payload(StringInfo arguments, FunctionCallInfo fcinfo, Relation relation)
{
	if (!PG_ARGISNULL(PAYLOAD) && !PG_ARGISNULL(PAYLOAD_FUNCTION))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload and payload_function exclude each other")));
	if (!PG_ARGISNULL(PAYLOAD))
		add_argument(arguments, "payload", column_list(relation, PG_GETARG_DATUM(PAYLOAD), "payload"));
	else if (!PG_ARGISNULL(PAYLOAD_FUNCTION))
		add_argument(arguments, "payload_function",
					 read_function(PG_GETARG_OID(PAYLOAD_FUNCTION), relation));
	else if (rs_capture_primary_key(relation) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(relation)),
				 errhint("Add one, or name the columns that identify a row: redstream.attach(..., payload => ARRAY['...']).")));
}

/* ---- condition ------------------------------------------------------------------------------ */

/* As in a CHECK constraint: what else a system column says is not the row's. */
static void
check_system_columns(Node *condition)
{
	Bitmapset  *numbers = NULL;

	pull_varattnos(condition, 1, &numbers);
	for (AttrNumber number = FirstLowInvalidHeapAttributeNumber + 1; number < 0; number++)
		if (number != TableOidAttributeNumber &&
			bms_is_member(number - FirstLowInvalidHeapAttributeNumber, numbers))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("cannot use system column \"%s\" in the condition of redstream.attach()",
							NameStr(SystemAttributeDefinition(number)->attname))));
}

static Node *
read_condition(FunctionCallInfo fcinfo, Relation relation)
{
	Node	   *condition;

	if (PG_ARGISNULL(CONDITION))
		return NULL;
	condition = rs_api_parse_condition(relation, text_to_cstring(PG_GETARG_TEXT_PP(CONDITION)),
										   EXPR_KIND_TRIGGER_WHEN, "condition of redstream.attach()");
	check_system_columns(condition);
	return condition;
}

/* ---- all of them ------------------------------------------------------------------------------ */

void
rs_api_read_options(FunctionCallInfo fcinfo, Relation relation, RsAttachOptions *options)
{
	StringInfo	arguments = &options->arguments;
	int			shards = read_shards(fcinfo, relation);

	initStringInfo(arguments);
	add_argument(arguments, "stream", read_stream(fcinfo, relation, shards));
	add_payload(arguments, fcinfo, relation);
	if (!PG_ARGISNULL(COLUMNS))
		add_argument(arguments, "columns", column_list(relation, PG_GETARG_DATUM(COLUMNS), "columns"));
	if (shards > 1)
		add_argument(arguments, "shards", psprintf("%d", shards));
	if (!PG_ARGISNULL(DELAY))
		add_argument(arguments, "delay", interval_text(PG_GETARG_DATUM(DELAY), "delay", true));
	if (!PG_ARGISNULL(EXPIRY))
		add_argument(arguments, "expiry", interval_text(PG_GETARG_DATUM(EXPIRY), "expiry", false));
	options->condition = read_condition(fcinfo, relation);
	options->replica = !PG_ARGISNULL(REPLICA) && PG_GETARG_BOOL(REPLICA);
}
