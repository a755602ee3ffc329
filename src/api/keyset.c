/*
 * keyset.c
 *	  The primary key of a table as a place to go on from, and as a set of rows.
 *
 * The rows behind a key (a, b) are read with two queries, each of which the key's index answers at once: those of the same
 * a with a greater b, and then those with a greater a.  A row comparison, (x, y) > (a, b), would be one query, but takes its
 * operators by name and so is not always what the index is sorted by.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "api/keyset.h"

/* The operator that the type's indexes have for this, as it can be written whatever the search_path. */
static const char *
operator_name(const TypeCacheEntry *type, StrategyNumber strategy)
{
	Oid			operator = get_opfamily_member(type->btree_opf, type->btree_opintype,
											   type->btree_opintype, strategy);
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	const char *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	name = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return name;
}

static void
describe_column(RsKeyColumn *column, RsRows *rows, AttrNumber number)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(rows->relation), number - 1);
	TypeCacheEntry *type = lookup_type_cache(attribute->atttypid, TYPECACHE_BTREE_OPFAMILY);

	if (!OidIsValid(type->btree_opf) || !OidIsValid(get_array_type(attribute->atttypid)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of the primary key of \"%s\" is of a type that cannot be read in batches: %s",
						NameStr(attribute->attname), RelationGetRelationName(rows->relation),
						format_type_be(attribute->atttypid))));
	column->name = rs_rows_column(rows, number);
	column->type = attribute->atttypid;
	column->typmod = attribute->atttypmod;
	column->less = operator_name(type, BTLessStrategyNumber);
	column->less_equal = operator_name(type, BTLessEqualStrategyNumber);
	column->equal = operator_name(type, BTEqualStrategyNumber);
	column->greater = operator_name(type, BTGreaterStrategyNumber);
}

RsKeyset *
rs_keyset_create(RsRows *rows)
{
	RsKeyset   *keyset = palloc0(sizeof(RsKeyset));
	ListCell   *cell;

	if (rows->key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key to read it in batches by",
						RelationGetRelationName(rows->relation)),
				 errhint("Add one, or use redstream.enqueue() or redstream.bulk().")));
	keyset->context = CurrentMemoryContext;
	keyset->numbers = rows->key;
	keyset->alias = strcmp(rows->name, "redstream_keys") == 0 ? "redstream_set" : "redstream_keys";
	keyset->ncolumns = list_length(rows->key);
	keyset->columns = palloc0(sizeof(RsKeyColumn) * keyset->ncolumns);
	foreach(cell, rows->key)
	{
		describe_column(&keyset->columns[foreach_current_index(cell)], rows, lfirst_int(cell));
		rows->columns = bms_add_member(rows->columns, lfirst_int(cell));
	}
	return keyset;
}

void
rs_keyset_add(void *argument, TupleTableSlot *row)
{
	RsKeyset   *keyset = argument;

	for (int i = 0; i < keyset->ncolumns; i++)
	{
		RsKeyColumn *column = &keyset->columns[i];
		bool		null;
		Datum		value = slot_getattr(row, list_nth_int(keyset->numbers, i), &null);

		column->values = accumArrayResult(column->values, value, null, column->type,
										  keyset->context);
	}
}

/* ---- a place ------------------------------------------------------------------------- */

ArrayType *
rs_keyset_last(RsKeyset *keyset)
{
	Datum	   *texts = palloc(sizeof(Datum) * keyset->ncolumns);
	int			nest_level = rs_capture_begin_output(RS_OUTPUT_ALL);

	for (int i = 0; i < keyset->ncolumns; i++)
	{
		ArrayBuildState *values = keyset->columns[i].values;
		Oid			output;
		bool		varlena;

		if (values == NULL)
			break;
		getTypeOutputInfo(keyset->columns[i].type, &output, &varlena);
		texts[i] = CStringGetTextDatum(OidOutputFunctionCall(output,
															 values->dvalues[values->nelems - 1]));
	}
	rs_capture_end_output(nest_level);
	return keyset->columns[0].values == NULL ? NULL :
		construct_array(texts, keyset->ncolumns, TEXTOID, -1, false, TYPALIGN_INT);
}

/* The values of a key that is given as texts. */
static Datum *
read_place(RsKeyset *keyset, ArrayType *place)
{
	Datum	   *values = palloc(sizeof(Datum) * keyset->ncolumns);
	Datum	   *texts;
	bool	   *nulls;
	int			count;

	deconstruct_array(place, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &count);
	if (count != keyset->ncolumns)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("start_after has %d values, and the primary key %d columns",
						count, keyset->ncolumns)));
	for (int i = 0; i < count; i++)
	{
		Oid			input;
		Oid			parameter;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("start_after must not contain nulls")));
		getTypeInputInfo(keyset->columns[i].type, &input, &parameter);
		values[i] = OidInputFunctionCall(input, TextDatumGetCString(texts[i]), parameter,
										 keyset->columns[i].typmod);
	}
	return values;
}

/* The rows up to the place whose values are the first parameters. */
static char *
up_to(RsKeyset *keyset)
{
	StringInfoData where;
	int			last = keyset->ncolumns - 1;

	initStringInfo(&where);
	appendStringInfoString(&where, " AND ");
	for (int i = 0; i < last; i++)
		appendStringInfo(&where, "(%s %s $%d AND (%s %s $%d OR ",
						 keyset->columns[i].name, keyset->columns[i].less_equal, i + 1,
						 keyset->columns[i].name, keyset->columns[i].less, i + 1);
	appendStringInfo(&where, "%s %s $%d", keyset->columns[last].name,
					 keyset->columns[last].less_equal, last + 1);
	for (int i = 0; i < last; i++)
		appendStringInfoString(&where, "))");
	return where.data;
}

/* Of the rows behind the place whose values are the parameters from "first" on, those whose first "same" key columns are as
 * there. */
static char *
behind(RsKeyset *keyset, int first, int same)
{
	StringInfoData where;

	initStringInfo(&where);
	for (int i = 0; i < same; i++)
		appendStringInfo(&where, " AND %s %s $%d", keyset->columns[i].name,
						 keyset->columns[i].equal, first + i);
	appendStringInfo(&where, " AND %s %s $%d", keyset->columns[same].name,
					 keyset->columns[same].greater, first + same);
	return where.data;
}

/* Adds the values of a place to the parameters; they are read under the settings that rs_keyset_last() writes them under. */
static void
add_place(RsKeyset *keyset, RsSelection *selection, ArrayType *place)
{
	int			nest_level = rs_capture_begin_output(RS_OUTPUT_ALL);
	Datum	   *values = read_place(keyset, place);

	rs_capture_end_output(nest_level);
	for (int i = 0; i < keyset->ncolumns; i++)
	{
		selection->types[selection->nargs] = keyset->columns[i].type;
		selection->values[selection->nargs++] = values[i];
	}
}

int64
rs_keyset_read(RsKeyset *keyset, RsRows *rows, const RsSelection *selection,
			   const RsKeyRange *range, int64 limit)
{
	RsSelection part = *selection;
	const char *where = selection->where;
	int64		count = 0;
	int			first;

	part.ordered = true;
	part.types = palloc(sizeof(Oid) * keyset->ncolumns * 2);
	part.values = palloc(sizeof(Datum) * keyset->ncolumns * 2);
	if (range->last != NULL)
	{
		add_place(keyset, &part, range->last);
		where = psprintf("%s%s", where, up_to(keyset));
	}
	if (range->after == NULL)
	{
		part.where = where;
		part.limit = limit;
		return rs_rows_announce(rows, &part, rs_keyset_add, keyset);
	}
	first = part.nargs + 1;
	add_place(keyset, &part, range->after);
	for (int same = keyset->ncolumns - 1; same >= 0 && count < limit; same--)
	{
		part.where = psprintf("%s%s", where, behind(keyset, first, same));
		part.limit = limit - count;
		count += rs_rows_announce(rows, &part, rs_keyset_add, keyset);
	}
	return count;
}

ArrayType *
rs_keyset_end(RsRows *rows, const RsSelection *selection)
{
	RsKeyset   *keyset = rs_keyset_create(rows);
	RsKeyRange	all = {NULL, NULL};
	RsSelection last = *selection;

	last.looking = true;
	last.backwards = true;
	(void) rs_keyset_read(keyset, rows, &last, &all, 1);
	return rs_keyset_last(keyset);
}

/* ---- a set of rows -------------------------------------------------------------------- */

char *
rs_keyset_condition(RsKeyset *keyset)
{
	StringInfoData condition;

	initStringInfo(&condition);
	/* not in its FROM, where a composite type becomes several columns */
	appendStringInfoString(&condition, "EXISTS (SELECT FROM (SELECT ");
	for (int i = 0; i < keyset->ncolumns; i++)
		appendStringInfo(&condition, "%spg_catalog.unnest($%d) AS k%d", i > 0 ? ", " : "", i + 1, i + 1);
	appendStringInfo(&condition, ") AS %s WHERE ", keyset->alias);
	for (int i = 0; i < keyset->ncolumns; i++)
		appendStringInfo(&condition, "%s%s %s %s.k%d", i > 0 ? " AND " : "",
						 keyset->columns[i].name, keyset->columns[i].equal, keyset->alias, i + 1);
	appendStringInfoChar(&condition, ')');
	return condition.data;
}

void
rs_keyset_parameters(RsKeyset *keyset, Oid **types, Datum **values)
{
	*types = palloc(sizeof(Oid) * keyset->ncolumns);
	*values = palloc(sizeof(Datum) * keyset->ncolumns);
	for (int i = 0; i < keyset->ncolumns; i++)
	{
		ArrayBuildState *rows = keyset->columns[i].values;

		(*types)[i] = get_array_type(keyset->columns[i].type);
		/* not makeArrayResult(): that frees what rs_keyset_last() needs */
		(*values)[i] = makeMdArrayResult(rows, 1, &rows->nelems, &(int) {1}, CurrentMemoryContext,
										 false);
	}
}

int64
rs_keyset_announce(RsKeyset *keyset, RsRows *rows, const RsSelection *selection,
				   RsKeyset *announced)
{
	RsSelection part = *selection;

	part.ordered = true;
	part.where = psprintf("%s AND %s", selection->where, rs_keyset_condition(keyset));
	part.nargs = keyset->ncolumns;
	rs_keyset_parameters(keyset, &part.types, &part.values);
	return rs_rows_announce(rows, &part, rs_keyset_add, announced);
}
