/*
 * target.c
 *	  The table that a function is called for: what it may be, and which streams are its.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "api/target.h"
#include "capture/capture.h"

void
rs_api_check_nulls(FunctionCallInfo fcinfo, int count, const char *const *names)
{
	for (int i = 0; i < count; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i])));
}

void
rs_api_check_table(Relation relation, const char *verb)
{
	const char *name = RelationGetRelationName(relation);
	Oid			schema = get_func_namespace(rs_capture_function());

	if (relation->rd_rel->relkind != RELKIND_RELATION &&
		relation->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot %s \"%s\": it is not a table", verb, name),
				 errdetail_relkind_not_supported(relation->rd_rel->relkind)));
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot %s \"%s\": it is a temporary table", verb, name)));
	/* what initdb made: catalogs, and tables of information_schema */
	if (RelationGetRelid(relation) < FirstNormalObjectId || RelationGetNamespace(relation) == schema)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot %s \"%s\": it is a system table or redstream's own", verb, name)));
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

List *
rs_api_stream_names(const char *stream, int shards)
{
	List	   *names = NIL;

	for (int i = 0; i < shards; i++)
		names = lappend(names, rs_capture_shard_name(stream, shards, i));
	list_sort(names, compare_names);
	return names;
}

/* One that is in both sorted lists; NULL if there is none. */
static const char *
common_name(List *a, List *b)
{
	int			i = 0;
	int			j = 0;

	while (i < list_length(a) && j < list_length(b))
	{
		int			order = strcmp(list_nth(a, i), list_nth(b, j));

		if (order == 0)
			return list_nth(a, i);
		if (order < 0)
			i++;
		else
			j++;
	}
	return NULL;
}

void
rs_api_check_not_taken(Relation relation, List *names)
{
	ListCell   *cell;

	foreach(cell, rs_capture_attached(rs_capture_function()))
	{
		RsAttached *other = lfirst(cell);
		const char *stream;

		if (other->table == RelationGetRelid(relation))
			continue;
		stream = common_name(names, rs_api_stream_names(other->attachment->stream, other->attachment->shards));
		if (stream != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("table \"%s.%s\" already announces to stream \"%s\"",
							get_namespace_name(get_rel_namespace(other->table)),
							get_rel_name(other->table), stream),
					 errhint("Name the stream: redstream.attach(..., stream => '...'). The same name for both tables is allowed then.")));
	}
}
