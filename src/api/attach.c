/*
 * attach.c
 *	  redstream.attach() and redstream.detach(): triggers on and off tables.
 *
 * The triggers are plain ones, with all they need in their arguments, so that \d
 * shows them and pg_dump keeps them.  Both functions run as their caller, who must own
 * the table; only the right to execute the trigger function is borrowed from its
 * owner.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/catalog.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "catalog/pg_class.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "capture/capture.h"
#include "redis/redis.h"

PG_FUNCTION_INFO_V1(redstream_attach);
PG_FUNCTION_INFO_V1(redstream_detach);

static void
check_owner(Oid table)
{
	const char *name = get_rel_name(table);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", table)));
	if (!pg_class_ownercheck(table, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(table)), name);
}

/* Opens the table, if it is the caller's, with the lock that CREATE TRIGGER takes.
 * Who is not the owner cannot make others wait for that lock; and what was found out before it
 * may have changed since. */
static Relation
open_own_table(Oid table)
{
	Relation	relation;

	check_owner(table);
	relation = try_relation_open(table, ShareRowExclusiveLock);
	check_owner(table);
	return relation;
}

static void
check_table(Relation relation, Oid extension_schema)
{
	const char *name = RelationGetRelationName(relation);

	if (relation->rd_rel->relkind != RELKIND_RELATION &&
		relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot attach \"%s\": it is not a table", name),
				 errdetail_relkind_not_supported(relation->rd_rel->relkind)));
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot attach \"%s\": it is a temporary table", name)));
	if (IsCatalogRelation(relation) || RelationGetNamespace(relation) == extension_schema)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot attach \"%s\": it is a system table or redstream's own", name)));
}

/* ---- arguments ------------------------------------------------------------------------ */

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

/* Another table that announces to the stream; InvalidOid if there is none. */
static Oid
other_table_on(const char *stream, Oid table, Oid capture)
{
	ListCell   *cell;

	foreach(cell, rs_capture_attached(capture))
	{
		RsAttached *attached = lfirst(cell);

		if (attached->table != table && strcmp(attached->attachment->stream, stream) == 0)
			return attached->table;
	}
	return InvalidOid;
}

static void
check_stream(const char *stream, bool is_default, Relation relation, Oid capture)
{
	RsError		error;
	Oid			other;

	if (!rs_redis_stream_name_check(pg_server_to_any(stream, strlen(stream), PG_UTF8), &error))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid stream name: %s", error.text),
				 is_default ? errhint("Name the stream: redstream.attach(..., stream => '...').") : 0));
	if (!is_default)
		return;
	other = other_table_on(stream, RelationGetRelid(relation), capture);
	if (OidIsValid(other))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s.%s\" already announces to stream \"%s\"",
						get_namespace_name(get_rel_namespace(other)), get_rel_name(other), stream),
				 errhint("Name the stream: redstream.attach(..., stream => '...'). The same name for both tables is allowed then.")));
}

/* ---- triggers --------------------------------------------------------------------------- */

static void
execute(const char *command)
{
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command);
}

static char *
qualified_name(Relation relation)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
									  RelationGetRelationName(relation));
}

/* Drops the table's own triggers of the function; returns how many there were. */
static int
drop_triggers(Relation relation, Oid capture)
{
	TriggerDesc *triggers = relation->trigdesc;
	List	   *names = NIL;
	ListCell   *cell;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgfoid == capture && !triggers->triggers[i].tgisclone)
			names = lappend(names, pstrdup(triggers->triggers[i].tgname));
	foreach(cell, names)
		execute(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(cell)),
						 qualified_name(relation)));
	return list_length(names);
}

static void
create_triggers(Relation relation, Oid capture, const char *arguments)
{
	static const char *const events[] = {"INSERT", "UPDATE", "DELETE"};
	static const char *const names[] = {"redstream_insert", "redstream_update", "redstream_delete"};
	char	   *function = quote_qualified_identifier(get_namespace_name(get_func_namespace(capture)),
													  "capture");
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(capture));
	Oid			owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	Oid			caller;
	int			context;

	ReleaseSysCache(tuple);
	GetUserIdAndSecContext(&caller, &context);
	/* An error puts the user back (xact.c, AbortTransaction). */
	SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
	for (int i = 0; i < (int) lengthof(events); i++)
		execute(psprintf("CREATE TRIGGER %s AFTER %s ON %s FOR EACH ROW EXECUTE FUNCTION %s(%s)",
						 names[i], events[i], qualified_name(relation), function, arguments));
	SetUserIdAndSecContext(caller, context);
}

static void
add_argument(StringInfo arguments, const char *name, const char *value)
{
	appendStringInfo(arguments, "%s%s, %s", arguments->len > 0 ? ", " : "",
					 quote_literal_cstr(name), quote_literal_cstr(value));
}

Datum
redstream_attach(PG_FUNCTION_ARGS)
{
	Oid			capture = rs_capture_function();
	Relation	relation;
	StringInfoData arguments;
	char	   *stream;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("target must not be null")));
	relation = open_own_table(PG_GETARG_OID(0));
	check_table(relation, get_func_namespace(capture));
	stream = PG_ARGISNULL(1) ? pstrdup(RelationGetRelationName(relation)) :
		text_to_cstring(PG_GETARG_TEXT_PP(1));
	check_stream(stream, PG_ARGISNULL(1), relation, capture);

	initStringInfo(&arguments);
	add_argument(&arguments, "stream", stream);
	if (!PG_ARGISNULL(2))
		add_argument(&arguments, "payload",
					 column_list(relation, PG_GETARG_DATUM(2), "payload"));
	else if (rs_capture_primary_key(relation) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(relation)),
				 errhint("Add one, or name the columns that identify a row: redstream.attach(..., payload => ARRAY['...']).")));
	if (!PG_ARGISNULL(3))
		add_argument(&arguments, "columns",
					 column_list(relation, PG_GETARG_DATUM(3), "columns"));
	if (!PG_ARGISNULL(4))
		add_argument(&arguments, "delay", interval_text(PG_GETARG_DATUM(4), "delay", true));
	if (!PG_ARGISNULL(5))
		add_argument(&arguments, "expiry", interval_text(PG_GETARG_DATUM(5), "expiry", false));

	SPI_connect();
	drop_triggers(relation, capture);
	create_triggers(relation, capture, arguments.data);
	SPI_finish();
	relation_close(relation, NoLock);
	PG_RETURN_VOID();
}

Datum
redstream_detach(PG_FUNCTION_ARGS)
{
	Oid			capture = rs_capture_function();
	Relation	relation = open_own_table(PG_GETARG_OID(0));
	int			dropped;

	SPI_connect();
	dropped = drop_triggers(relation, capture);
	SPI_finish();
	relation_close(relation, NoLock);
	PG_RETURN_BOOL(dropped > 0);
}
