/*
 * guard.c
 *	  Who may put the trigger function on a table, and how: who may call attach(), and as that does.
 *
 * PUBLIC has EXECUTE on the function, because whoever makes a partition of an attached table is asked for it
 * (trigger.c, CreateTriggerFiringOn).  That is not to be a way to write to any stream: a trigger made by hand, or by a
 * restored dump, takes the right to attach().  Nor is it to be a way to stop the workers of the database, who read the arguments of
 * all these triggers.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_trigger.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/plan.h"

static object_access_hook_type previous_object_access;

static void
check_may_attach(void)
{
	Oid			attach = LookupFuncName(list_make2(makeString("redstream"), makeString("attach")),
										-1, NULL, false);
	AclResult	result = pg_proc_aclcheck(attach, GetUserId(), ACL_EXECUTE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, "redstream.attach");
}

static Datum
arguments_of(HeapTuple tuple, TupleDesc descriptor)
{
	bool		null;

	return heap_getattr(tuple, Anum_pg_trigger_tgargs, descriptor, &null);
}

/* All triggers of a table say the same: bulk() announces a row once for all of them. */
static void
check_others(Relation triggers, HeapTuple tuple)
{
	TupleDesc	descriptor = RelationGetDescr(triggers);
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	other;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(form->tgrelid));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, SnapshotSelf, 1, &key);
	while (HeapTupleIsValid(other = systable_getnext(scan)))
		if (((Form_pg_trigger) GETSTRUCT(other))->tgfoid == form->tgfoid &&
			!DatumGetBool(DirectFunctionCall2(byteaeq, arguments_of(other, descriptor),
											  arguments_of(tuple, descriptor))))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" is attached in another way already", get_rel_name(form->tgrelid)),
					 errhint("Use redstream.attach() for the one way, and emit() in a trigger of your own for the other.")));
	systable_endscan(scan);
}

static void
check_trigger(Relation triggers, HeapTuple tuple)
{
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	Oid			capture = rs_capture_function();

	if (!OidIsValid(capture) || form->tgfoid != capture)
		return;
	/* a partition's copy of one is made with it, or by who makes the partition */
	if (!OidIsValid(form->tgparentid))
	{
		check_may_attach();
		rs_check_arguments(tuple, RelationGetDescr(triggers));
	}
	check_others(triggers, tuple);
}

/* The trigger was made by the running command, and is not visible to others yet. */
static void
check_new(Oid id)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	HeapTuple	tuple = rs_trigger_tuple(triggers, id, SnapshotSelf);

	if (HeapTupleIsValid(tuple))
		check_trigger(triggers, tuple);
	table_close(triggers, AccessShareLock);
}

static void
on_object_access(ObjectAccessType access, Oid class, Oid object, int sub_id, void *argument)
{
	if (previous_object_access)
		previous_object_access(access, class, object, sub_id, argument);
	if (access == OAT_POST_CREATE && class == TriggerRelationId)
		check_new(object);
}

void
rs_guard_init(void)
{
	previous_object_access = object_access_hook;
	object_access_hook = on_object_access;
}
