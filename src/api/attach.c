/*
 * attach.c
 *	  redstream.attach() and redstream.detach(): triggers on and off tables.
 *
 * The triggers are plain ones, with all they need in their arguments and in WHEN, so that \d
 * shows them and pg_dump keeps them.  Both functions run as their caller, who must own
 * the table.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "api/attach_options.h"
#include "api/condition.h"
#include "api/target.h"
#include "capture/capture.h"

PG_FUNCTION_INFO_V1(redstream_attach);
PG_FUNCTION_INFO_V1(redstream_detach);

/* ---- the table --------------------------------------------------------------------------- */

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

/* Has the table triggers of attach(), of its own or, as a partition, cloned ones? */
static bool
has_triggers(Relation relation, Oid capture, bool cloned)
{
	TriggerDesc *triggers = relation->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgfoid == capture && triggers->triggers[i].tgisclone == cloned)
			return true;
	return false;
}

/* A partition is attached by itself, or announced with the table it is a part of. */
static void
check_partitions(Relation relation, Oid capture)
{
	ListCell   *cell;

	if (has_triggers(relation, capture, true))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is a partition of a table that is attached, and announced with it",
						RelationGetRelationName(relation))));
	if (relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return;
	foreach(cell, find_all_inheritors(RelationGetRelid(relation), ShareRowExclusiveLock, NULL))
	{
		Relation	part = relation_open(lfirst_oid(cell), NoLock);

		if (part != relation && has_triggers(part, capture, false))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("partition \"%s\" of \"%s\" is attached by itself",
							RelationGetRelationName(part), RelationGetRelationName(relation)),
					 errhint("Call redstream.detach() for it.")));
		relation_close(part, NoLock);
	}
}

/* Triggers of a table do not see what becomes of the rows of its children by inheritance. */
static void
warn_of_children(Relation relation)
{
	if (relation->rd_rel->relkind == RELKIND_RELATION && has_subclass(RelationGetRelid(relation)) &&
		find_inheritance_children(RelationGetRelid(relation), NoLock) != NIL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("rows of tables that inherit from \"%s\" are not announced",
						RelationGetRelationName(relation)),
				 errhint("Attach these tables, too.")));
}

/* ---- triggers --------------------------------------------------------------------------- */

/* Runs commands on a table, which is not to be open here: some of them refuse to otherwise. */
static void
execute(List *commands)
{
	ListCell   *cell;

	SPI_connect();
	foreach(cell, commands)
		if (SPI_execute(lfirst(cell), false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not execute \"%s\"", (char *) lfirst(cell));
	SPI_finish();
}

static char *
qualified_name(Relation relation)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
									  RelationGetRelationName(relation));
}

/* Commands that drop the table's own triggers of the function. */
static List *
drop_commands(Relation relation, Oid capture)
{
	char	   *table = qualified_name(relation);
	TriggerDesc *triggers = relation->trigdesc;
	List	   *commands = NIL;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tgfoid == capture && !triggers->triggers[i].tgisclone)
			commands = lappend(commands,
							   psprintf("DROP TRIGGER %s ON %s",
										quote_identifier(triggers->triggers[i].tgname), table));
	return commands;
}

/* "WHEN (...)": the condition for the old row, the new one, or either. */
static char *
when_clause(Relation relation, Node *condition, bool old, bool new)
{
	char	   *of_old;
	char	   *of_new;

	if (condition == NULL)
		return "";
	of_old = rs_api_condition_text(relation, condition, "old");
	of_new = rs_api_condition_text(relation, condition, "new");
	if (old && new)
		return psprintf("WHEN ((%s) OR (%s))", of_old, of_new);
	return psprintf("WHEN (%s)", old ? of_old : of_new);
}

/* Commands that create those of an attachment. */
static List *
create_commands(Relation relation, Oid capture, const RsAttachOptions *options)
{
	const struct
	{
		const char *name;
		const char *event;
		const char *when;
	}			triggers[] = {
		{"redstream_insert", "AFTER INSERT", when_clause(relation, options->condition, false, true)},
		{"redstream_update", "AFTER UPDATE", when_clause(relation, options->condition, true, true)},
		{"redstream_delete", "AFTER DELETE", when_clause(relation, options->condition, true, false)},
		{"redstream_truncate", "BEFORE TRUNCATE", NULL}
	};
	char	   *table = qualified_name(relation);
	char	   *function = quote_qualified_identifier(get_namespace_name(get_func_namespace(capture)),
													  "capture");
	List	   *commands = NIL;

	for (int i = 0; i < (int) lengthof(triggers); i++)
	{
		const char *when = triggers[i].when;

		commands = lappend(commands,
						   psprintf("CREATE TRIGGER %s %s ON %s FOR EACH %s %s EXECUTE FUNCTION %s(%s)",
									triggers[i].name, triggers[i].event, table,
									when != NULL ? "ROW" : "STATEMENT", when != NULL ? when : "",
									function, options->arguments.data));
		if (options->replica)
			commands = lappend(commands,
							   psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s",
										table, triggers[i].name));
	}
	return commands;
}

/* ---- attach and detach ------------------------------------------------------------------ */

Datum
redstream_attach(PG_FUNCTION_ARGS)
{
	Oid			capture = rs_capture_function();
	Relation	relation;
	RsAttachOptions options;
	List	   *commands;

	rs_api_check_nulls(fcinfo, 1, (const char *const[]) {"target"});
	relation = open_own_table(PG_GETARG_OID(0));
	rs_api_check_table(relation, "attach");
	check_partitions(relation, capture);
	rs_api_read_options(fcinfo, relation, &options);
	commands = list_concat(drop_commands(relation, capture),
						   create_commands(relation, capture, &options));
	warn_of_children(relation);
	relation_close(relation, NoLock);
	execute(commands);
	PG_RETURN_VOID();
}

Datum
redstream_detach(PG_FUNCTION_ARGS)
{
	Oid			capture = rs_capture_function();
	Relation	relation = open_own_table(PG_GETARG_OID(0));
	List	   *commands = drop_commands(relation, capture);

	relation_close(relation, NoLock);
	execute(commands);
	PG_RETURN_BOOL(commands != NIL);
}
