/*
 * truncate.c
 *	  TRUNCATE: every row that is about to go is announced.
 *
 * The trigger is fired before the table is emptied, when it is locked already.  The rows are read as the newest
 * committed versions and our own, whatever snapshot the transaction has: TRUNCATE removes them all.  They are read here and
 * not by a query, because who truncates may have no right to read, and row level security may hide rows.
 *
 * PostgreSQL does not give statement triggers to partitions.  Every TRUNCATE is therefore met by a hook before it: it finds
 * the tables as ExecuteTruncate() (tablecmds.c) is going to find them, locks them in that order and with the same checks, and
 * announces the rows of partitions whose attached table is not among them.  It locks before it looks, since what is attached,
 * and what is a partition, may change while it waits.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "foreign/fdwapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "capture/plan.h"
#include "settings.h"

static ProcessUtility_hook_type previous_utility;

/* ---- the rows of a table --------------------------------------------------------------- */

/* Rows of another server: they can be truncated there, but not read here. */
static void
refuse_foreign(Relation relation)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot announce the rows of foreign table \"%s\" that TRUNCATE removes",
					RelationGetRelationName(relation)),
			 errhint("DELETE them, or call redstream.detach() for the partitioned table.")));
}

static void
announce_scanned(RsCaptured *captured, Relation relation, EState *estate, ExprState *condition)
{
	ExprContext *context = GetPerTupleExprContext(estate);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(relation, snapshot, 0, NULL);
	TupleTableSlot *row = table_slot_create(relation, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		MemoryContext old = MemoryContextSwitchTo(context->ecxt_per_tuple_memory);

		CHECK_FOR_INTERRUPTS();
		context->ecxt_scantuple = row;
		if (ExecQual(condition, context))
			rs_capture_row(captured, row);
		MemoryContextSwitchTo(old);
		ResetExprContext(context);
	}
	ExecDropSingleTupleTableSlot(row);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
}

static void
announce_table(Relation relation)
{
	RsCaptured *captured = rs_capture_open(relation);
	EState	   *estate = CreateExecutorState();
	RsAttachment *attachment = rs_capture_attachment(captured);
	Expr	   *condition = attachment != NULL ? (Expr *) attachment->condition : NULL;

	announce_scanned(captured, relation, estate,
					 ExecPrepareQual(make_ands_implicit(condition), estate));
	FreeExecutorState(estate);
}

/* The rows of one table; a partitioned one has none. */
static void
announce_one(Relation relation)
{
	if (relation->rd_rel->relkind == RELKIND_RELATION)
		announce_table(relation);
	else if (relation->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		refuse_foreign(relation);
}

/* Children by inheritance have triggers of their own, or none. */
void
rs_truncate_announce(Relation relation)
{
	ListCell   *cell;

	if (relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
	{
		announce_one(relation);
		return;
	}
	foreach(cell, find_all_inheritors(RelationGetRelid(relation), NoLock, NULL))
	{
		Relation	part = table_open(lfirst_oid(cell), NoLock);	/* TRUNCATE has locked it */

		announce_one(part);
		table_close(part, NoLock);
	}
}

/* ---- partitions by themselves --------------------------------------------------------------- */

/* As truncate_check_perms() of tablecmds.c. */
static void
check_right(Oid table)
{
	AclResult	result = pg_class_aclcheck(table, GetUserId(), ACL_TRUNCATE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, get_relkind_objtype(get_rel_relkind(table)), get_rel_name(table));
}

/* As truncate_check_rel(). */
static void
check_kind(Oid table)
{
	char		kind = get_rel_relkind(table);

	if (kind == RELKIND_FOREIGN_TABLE && GetFdwRoutineByRelId(table)->ExecForeignTruncate == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot truncate foreign table \"%s\"", get_rel_name(table))));
	if (kind != RELKIND_FOREIGN_TABLE && kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(table))));
	if (IsCatalogRelationOid(table) && !allowSystemTableMods)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied: \"%s\" is a system catalog", get_rel_name(table))));
}

/* Before the table is locked.  It may be gone already: then it is looked up again. */
static void
check_named(const RangeVar *name, Oid table, Oid old_table, void *argument)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(table)))
		return;
	check_kind(table);
	check_right(table);
}

/* Locks what the tables' foreign keys add to a TRUNCATE with CASCADE. */
static List *
lock_referencing(List *tables)
{
	List	   *more;

	while ((more = heap_truncate_find_FKs(tables)) != NIL)
	{
		ListCell   *cell;

		foreach(cell, more)
		{
			LockRelationOid(lfirst_oid(cell), AccessExclusiveLock);
			check_right(lfirst_oid(cell));
		}
		tables = list_concat(tables, more);
	}
	return tables;
}

/*
 * Locks the tables that the command is going to empty.  Its names are qualified: they are looked up once more, and
 * somebody may have made a table by now that comes before ours in search_path.
 */
static List *
lock_tables(TruncateStmt *command)
{
	List	   *tables = NIL;
	ListCell   *cell;

	foreach(cell, command->relations)
	{
		RangeVar   *name = lfirst_node(RangeVar, cell);
		Oid			table = RangeVarGetRelidExtended(name, AccessExclusiveLock, 0, check_named, NULL);

		name->schemaname = get_namespace_name(get_rel_namespace(table));
		if (name->inh)
			tables = list_concat_unique_oid(tables, find_all_inheritors(table, AccessExclusiveLock, NULL));
		else if (get_rel_relkind(table) == RELKIND_PARTITIONED_TABLE)
			return NIL;			/* ONLY: the command says that this cannot be */
		else
			tables = list_append_unique_oid(tables, table);
	}
	return command->behavior == DROP_CASCADE ? lock_referencing(tables) : tables;
}

/* Would a trigger of the table fire in this session? (trigger.c, TriggerEnabled) */
static bool
fires(const Trigger *trigger)
{
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return trigger->tgenabled == TRIGGER_FIRES_ALWAYS ||
			trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA;
	return trigger->tgenabled == TRIGGER_FIRES_ALWAYS || trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN;
}

/* Is it a partition of an attached table that is not truncated with it? */
static bool
is_alone(Relation relation, List *tables)
{
	const Trigger *trigger = rs_trigger_of(relation);

	return trigger != NULL && trigger->tgisclone && fires(trigger) &&
		!list_member_oid(tables, rs_attached_table(trigger));
}

static void
announce_alone(List *tables)
{
	ListCell   *cell;

	foreach(cell, tables)
	{
		Relation	relation;

		if (!get_rel_relispartition(lfirst_oid(cell)))
			continue;
		relation = table_open(lfirst_oid(cell), NoLock);
		/* the partitions of a partition are in the list */
		if (is_alone(relation, tables))
			announce_one(relation);
		table_close(relation, NoLock);
	}
}

/* Will the command get to its tables? */
static bool
is_allowed(void)
{
	return !XactReadOnly && !IsInParallelMode() && !IsBinaryUpgrade;
}

static void
on_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
		   ProcessUtilityContext context, ParamListInfo parameters, QueryEnvironment *environment,
		   DestReceiver *receiver, QueryCompletion *completion)
{
	if (IsA(statement->utilityStmt, TruncateStmt) && rs_enabled && is_allowed() &&
		OidIsValid(rs_capture_function()))
	{
		statement = copyObject(statement);
		announce_alone(lock_tables((TruncateStmt *) statement->utilityStmt));
	}
	(previous_utility ? previous_utility : standard_ProcessUtility)
		(statement, query, read_only_tree, context, parameters, environment, receiver, completion);
}

void
rs_truncate_init(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = on_utility;
}
