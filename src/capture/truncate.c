/*
 * truncate.c
 *	  TRUNCATE: every row that is about to go is announced.
 *
 * The trigger is fired before the table is emptied, when it is locked already.  The rows are read as the newest
 * committed versions and our own, whatever snapshot the transaction has: TRUNCATE removes them all.  They are read here and
 * not by a query, because who truncates may have no right to read, and row level security may hide rows.
 *
 * PostgreSQL does not give statement triggers to partitions.  A TRUNCATE that reaches a partition and not the table that was
 * attached is therefore met by a hook before it: it finds the tables as ExecuteTruncate() (tablecmds.c) is going to
 * find them, locks them in that order and with the same check of rights, and announces their rows.  The hook locks nothing
 * unless there is such a partition.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

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
	Node	   *condition = rs_capture_condition(captured);

	announce_scanned(captured, relation, estate,
					 ExecPrepareQual(make_ands_implicit((Expr *) condition), estate));
	FreeExecutorState(estate);
}

void
rs_truncate_announce(Relation relation)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(RelationGetRelid(relation), NoLock, NULL))
	{
		Relation	part;

		if (relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE &&
			lfirst_oid(cell) != RelationGetRelid(relation))
			continue;			/* a child by inheritance has triggers of its own, or none */
		part = table_open(lfirst_oid(cell), NoLock);	/* TRUNCATE has locked it */
		if (part->rd_rel->relkind == RELKIND_RELATION)
			announce_table(part);
		else if (part->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
			refuse_foreign(part);
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

static void
check_named(const RangeVar *name, Oid table, Oid old_table, void *argument)
{
	if (OidIsValid(table))
		check_right(table);
}

/* What the tables' foreign keys add to a TRUNCATE with CASCADE. */
static List *
add_referencing(List *tables, bool lock)
{
	List	   *more;

	while ((more = heap_truncate_find_FKs(tables)) != NIL)
	{
		ListCell   *cell;

		foreach(cell, more)
			if (lock)
			{
				LockRelationOid(lfirst_oid(cell), AccessExclusiveLock);
				check_right(lfirst_oid(cell));
			}
		tables = list_concat(tables, more);
	}
	return tables;
}

/* The tables that the command is going to empty; with "lock" they are locked, once the caller's rights are clear. */
static List *
find_tables(const TruncateStmt *command, bool lock)
{
	LOCKMODE	mode = lock ? AccessExclusiveLock : NoLock;
	List	   *tables = NIL;
	ListCell   *cell;

	foreach(cell, command->relations)
	{
		RangeVar   *name = lfirst_node(RangeVar, cell);
		Oid			table = RangeVarGetRelidExtended(name, mode, lock ? 0 : RVR_MISSING_OK,
													 lock ? check_named : NULL, NULL);

		if (!OidIsValid(table))
			continue;			/* the command will say so */
		if (name->inh)
			tables = list_concat_unique_oid(tables, find_all_inheritors(table, mode, NULL));
		else
			tables = list_append_unique_oid(tables, table);
	}
	return command->behavior == DROP_CASCADE ? add_referencing(tables, lock) : tables;
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
is_alone(Oid table, List *tables)
{
	Relation	relation = get_rel_relispartition(table) ? try_table_open(table, NoLock) : NULL;
	const Trigger *trigger;
	bool		alone;

	if (relation == NULL)
		return false;
	trigger = rs_trigger_of(relation);
	alone = trigger != NULL && trigger->tgisclone && fires(trigger) &&
		!list_member_oid(tables, rs_attached_table(trigger));
	table_close(relation, NoLock);
	return alone;
}

static bool
any_alone(List *tables)
{
	ListCell   *cell;

	foreach(cell, tables)
		if (is_alone(lfirst_oid(cell), tables))
			return true;
	return false;
}

static void
announce_alone(const TruncateStmt *command)
{
	List	   *tables;
	ListCell   *cell;

	if (!any_alone(find_tables(command, false)))
		return;
	tables = find_tables(command, true);
	foreach(cell, tables)
	{
		Relation	relation;

		if (!is_alone(lfirst_oid(cell), tables))
			continue;
		relation = table_open(lfirst_oid(cell), NoLock);
		/* a partition that is partitioned itself: its own partitions are in the list */
		if (relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
			rs_truncate_announce(relation);
		table_close(relation, NoLock);
	}
}

static void
on_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
		   ProcessUtilityContext context, ParamListInfo parameters, QueryEnvironment *environment,
		   DestReceiver *receiver, QueryCompletion *completion)
{
	if (IsA(statement->utilityStmt, TruncateStmt) && rs_enabled && !XactReadOnly &&
		OidIsValid(rs_capture_function()))
		announce_alone((TruncateStmt *) statement->utilityStmt);
	(previous_utility ? previous_utility : standard_ProcessUtility)
		(statement, query, read_only_tree, context, parameters, environment, receiver, completion);
}

void
rs_truncate_init(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = on_utility;
}
