/*
 * commands.c
 *	  What SQL commands mean for the workers: CREATE EXTENSION calls one, and commands
 *	  that need a database without other sessions send it away.
 *
 * DROP DATABASE waits for 5 seconds for other sessions and then fails, WITH (FORCE) fails
 * for who may not end a superuser's process, and CREATE DATABASE ... TEMPLATE,
 * ALTER DATABASE ... RENAME and SET TABLESPACE wait and fail likewise.  So the worker is ended
 * before, once it is clear that the caller has the right to the command: for DROP the
 * object access hook is called just then; for the others the rights are checked here, as
 * the command will check them again.
 *
 * The database is blocked until the (sub)transaction of the command ends, as its own lock
 * is.  The end of the transaction unblocks it however that comes, the end of the process
 * included.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"

#include "spool/spool.h"
#include "worker/registry.h"
#include "worker/worker.h"

#define EVICTION_TIMEOUT 5000	/* milliseconds; then the command finds out what it can do */
#define MAX_BLOCKS 8			/* databases in a transaction: it takes several RENAMEs */

/* A database that this process blocks. */
typedef struct Block
{
	Oid			database;
	int			level;			/* nesting level of the (sub)transaction */
} Block;

static Block blocks[MAX_BLOCKS];
static int	block_count;

/* This transaction made the extension. */
static bool announced;
static bool ready;				/* the hooks and callbacks are there */

static object_access_hook_type previous_object_access;
static ProcessUtility_hook_type previous_utility;

/* ---- blocking ---------------------------------------------------------------------- */

static bool
is_blocked_here(Oid database)
{
	for (int i = 0; i < block_count; i++)
		if (blocks[i].database == database)
			return true;
	return false;
}

/* Makes the database free of its worker until the (sub)transaction ends. */
static void
make_way(Oid database)
{
	if (!is_blocked_here(database))
	{
		if (block_count == MAX_BLOCKS || !rs_registry_block(database))
			return;
		blocks[block_count].database = database;
		blocks[block_count].level = GetCurrentTransactionNestLevel();
		block_count++;
	}
	rs_registry_evict(database, EVICTION_TIMEOUT);
}

/* Unblocks what was blocked at this nesting level or deeper. */
static void
unblock(int level)
{
	while (block_count > 0 && blocks[block_count - 1].level >= level)
		rs_registry_unblock(blocks[--block_count].database);
}

/* ---- rights --------------------------------------------------------------------------- */

static bool
is_owner(Oid database)
{
	return pg_database_ownercheck(database, GetUserId());
}

static bool
is_template(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	bool		template;

	if (!HeapTupleIsValid(tuple))
		return false;
	template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return template;
}

/* As have_createdb_privilege (dbcommands.c), which older minor versions of 15 keep to themselves. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		may;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return may;
}

/* ---- commands ---------------------------------------------------------------------------- */

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0)
			return option;
	}
	return NULL;
}

static void
before_create(const CreatedbStmt *statement)
{
	DefElem    *option = find_option(statement->options, "template");
	Oid			source;

	if (option == NULL || option->arg == NULL)
		return;					/* template1, which has no worker */
	source = get_database_oid(defGetString(option), true);
	if (OidIsValid(source) && may_create_databases() && (is_template(source) || is_owner(source)))
		make_way(source);
}

static void
before_rename(const RenameStmt *statement)
{
	Oid			database = get_database_oid(statement->subname, true);

	if (OidIsValid(database) && database != MyDatabaseId && is_owner(database) &&
		may_create_databases())
		make_way(database);
}

static void
before_set_tablespace(const AlterDatabaseStmt *statement)
{
	Oid			database = get_database_oid(statement->dbname, true);

	if (OidIsValid(database) && database != MyDatabaseId && is_owner(database))
		make_way(database);
}

static void
before_command(const Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_CreatedbStmt:
			before_create((const CreatedbStmt *) statement);
			break;
		case T_RenameStmt:
			if (((const RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				before_rename((const RenameStmt *) statement);
			break;
		case T_AlterDatabaseStmt:
			if (find_option(((const AlterDatabaseStmt *) statement)->options, "tablespace") != NULL)
				before_set_tablespace((const AlterDatabaseStmt *) statement);
			break;
		default:
			break;
	}
}

static void
on_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
		   ProcessUtilityContext context, ParamListInfo parameters,
		   QueryEnvironment *environment, DestReceiver *destination, QueryCompletion *completion)
{
	Node	   *command = statement->utilityStmt;
	bool		ends_prepared = IsA(command, TransactionStmt) &&
		((TransactionStmt *) command)->kind == TRANS_STMT_COMMIT_PREPARED;

	before_command(command);
	if (previous_utility)
		previous_utility(statement, text, read_only_tree, context, parameters, environment,
						 destination, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, parameters, environment,
								destination, completion);
	if (ends_prepared)
		rs_spool_wish();		/* its messages are there */
}

static void
on_object_access(ObjectAccessType access, Oid class_id, Oid object, int sub_id, void *argument)
{
	if (previous_object_access)
		previous_object_access(access, class_id, object, sub_id, argument);
	if (access == OAT_DROP && class_id == DatabaseRelationId && object != MyDatabaseId)
		make_way(object);
}

/* ---- ends of transactions -------------------------------------------------------------- */

static void
refuse_prepare(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot PREPARE a transaction that has created the extension redstream"),
			 errhint("Commit in one phase.")));
}

/* From COMMIT and ABORT on this does not throw, allocate or wait. */
static void
on_transaction_event(XactEvent event, void *argument)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (announced)
				refuse_prepare();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			unblock(0);
			if (announced && event == XACT_EVENT_COMMIT)
				rs_registry_wish(MyDatabaseId);
			announced = false;
			break;
		default:
			break;
	}
}

static void
on_subtransaction_event(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
						void *argument)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		unblock(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (int i = 0; i < block_count; i++)
			blocks[i].level = Min(blocks[i].level, level - 1);
}

void
rs_commands_init(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = on_utility;
	previous_object_access = object_access_hook;
	object_access_hook = on_object_access;
	RegisterXactCallback(on_transaction_event, NULL);
	RegisterSubXactCallback(on_subtransaction_event, NULL);
	ready = true;
}

void
rs_worker_announce_extension(void)
{
	announced = ready;
}
