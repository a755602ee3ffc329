/*
 * function.c
 *	  Payloads that a function of the user's makes: from a row of the attached table to JSON.
 *
 * The function is called as triggers call theirs: as whoever changes the row, without asking whether he may execute it. It
 * is the table's owner who must have the right to, for he chose it.  It sees what has been changed so far, the row included,
 * whether it is VOLATILE or STABLE: a STABLE one would else go by the snapshot of the statement, from before the change.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "capture/plan.h"
#include "transaction/transaction.h"

/* Not by LookupFuncName(), which asks whether the user may use the schema. */
static Oid
look_up(const char *name, Oid argument)
{
	char	   *schema;
	char	   *function;

	DeconstructQualifiedName(stringToQualifiedNameList(name), &schema, &function);
	if (schema == NULL)
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(function),
						   PointerGetDatum(buildoidvector(&argument, 1)),
						   ObjectIdGetDatum(get_namespace_oid(schema, true)));
}

static Oid
owner_of(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * The function is known by name alone: were it dropped, whoever may create functions there could make another one, and have
 * it called by everybody who changes the table.  So it must be of somebody who might as well put triggers on the table.
 */
static void
check_owner(Oid function, const char *name, Oid table, Oid table_owner)
{
	Oid			owner = owner_of(function);

	if (pg_proc_aclcheck(function, table_owner, ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, name);
	if (!superuser_arg(owner) && !has_privs_of_role(owner, table_owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("function %s, which makes the payload of table \"%s\", belongs to neither the table's owner nor a superuser",
						name, get_rel_name(table)),
				 errhint("Change its owner, or create another one.")));
}

static Oid
find(const char *name, Oid table, Oid owner, const char *hint)
{
	Oid			row_type = get_rel_type_id(table);
	Oid			function = look_up(name, row_type);
	Oid			result = OidIsValid(function) ? get_func_rettype(function) : InvalidOid;

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(%s), which makes the payload of table \"%s\", does not exist",
						name, format_type_be(row_type), get_rel_name(table)),
				 errhint("%s", hint)));
	if ((result != JSONOID && result != JSONBOID) || get_func_retset(function) ||
		get_func_prokind(function) != PROKIND_FUNCTION)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("function %s, which makes the payload of table \"%s\", does not return json or jsonb",
						name, get_rel_name(table)),
				 errhint("It must be a function of one row that returns one value.")));
	check_owner(function, name, table, owner);
	return function;
}

void
rs_capture_check_function(Relation relation, const char *name)
{
	(void) find(name, RelationGetRelid(relation), relation->rd_rel->relowner,
				"It must have one argument, of the table's row type.");
}

/* Gives the function rows of the table, made of those of a partition. */
static void
convert_rows(RsPayloadFunction *function, Relation table, Relation partition)
{
	TupleDesc	rows = CreateTupleDescCopy(RelationGetDescr(table));

	function->map = convert_tuples_by_name(CreateTupleDescCopy(RelationGetDescr(partition)), rows);
	/* also when all columns are in their places: the row is to be of the table's type */
	function->slot = MakeSingleTupleTableSlot(rows, &TTSOpsVirtual);
}

RsPayloadFunction *
rs_function_find(const char *name, Oid table, Relation relation)
{
	RsPayloadFunction *function = palloc0(sizeof(RsPayloadFunction));
	Relation	attached = table_open(table, AccessShareLock);
	Oid			id = find(name, table, attached->rd_rel->relowner,
						  "Create it, or call redstream.attach() again, or redstream.detach().");
	Oid			output;
	bool		varlena;

	function->stable = func_volatile(id) == PROVOLATILE_STABLE;
	fmgr_info_cxt(id, &function->call, CurrentMemoryContext);
	getTypeOutputInfo(get_func_rettype(id), &output, &varlena);
	fmgr_info_cxt(output, &function->output, CurrentMemoryContext);
	if (table != RelationGetRelid(relation))
		convert_rows(function, attached, relation);
	table_close(attached, AccessShareLock);
	return function;
}

/* The row as one of the attached table. */
static TupleTableSlot *
convert(RsPayloadFunction *function, TupleTableSlot *row)
{
	TupleTableSlot *slot = function->slot;

	if (slot == NULL)
		return row;
	ExecClearTuple(slot);
	if (function->map != NULL)
		return execute_attr_map_slot(function->map->attrMap, row, slot);
	slot_getallattrs(row);
	memcpy(slot->tts_values, row->tts_values, sizeof(Datum) * slot->tts_tupleDescriptor->natts);
	memcpy(slot->tts_isnull, row->tts_isnull, sizeof(bool) * slot->tts_tupleDescriptor->natts);
	return ExecStoreVirtualTuple(slot);
}

/*
 * What a function keeps between its calls is of no use after an error: the next call begins anew.  Nor is it for a
 * call in the middle of another one, which changes rows of the table itself.
 */
static Datum
invoke(RsPlan *plan, FunctionCallInfo call)
{
	RsPayloadFunction *function = plan->function;
	FmgrInfo	inner;
	Datum		result;

	if (function->running > 0)
	{
		fmgr_info(function->call.fn_oid, &inner);
		call->flinfo = &inner;
	}
	function->running++;
	PG_TRY();
	{
		if (function->stable)
		{
			CommandCounterIncrement();
			PushActiveSnapshot(GetTransactionSnapshot());
			result = FunctionCallInvoke(call);
			PopActiveSnapshot();
		}
		else
			result = FunctionCallInvoke(call);
	}
	PG_CATCH();
	{
		function->running--;
		plan->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	function->running--;
	return result;
}

char *
rs_function_call(RsPlan *plan, TupleTableSlot *row)
{
	LOCAL_FCINFO(call, 1);
	RsPayloadFunction *function = plan->function;
	Datum		result;
	char	   *text;

	InitFunctionCallInfoData(*call, &function->call, 1, InvalidOid, NULL, NULL);
	call->args[0].value = ExecFetchSlotHeapTupleDatum(convert(function, row));
	call->args[0].isnull = false;
	result = invoke(plan, call);
	if (call->isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("function %s returned null for a row, not a payload",
						get_func_name(function->call.fn_oid)),
				 errhint("It must return JSON for every row. Rows that are not to be announced are for the condition of redstream.attach().")));
	text = OutputFunctionCall(&function->output, result);
	rs_transaction_check_size(strlen(text));
	text = pg_server_to_any(text, strlen(text), PG_UTF8);
	(void) rs_capture_squeeze_json(text);
	return text;
}
