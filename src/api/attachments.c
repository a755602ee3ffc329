/*
 * attachments.c
 *	  redstream.attachments: what attach() was told, read from the triggers.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/value.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "api/condition.h"
#include "capture/capture.h"

PG_FUNCTION_INFO_V1(redstream_attachments);

/* Null for NIL. */
static Datum
array_of(List *names, bool *is_null)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(list_length(names), 1));
	ListCell   *cell;

	*is_null = names == NIL;
	if (names == NIL)
		return (Datum) 0;
	foreach(cell, names)
		elements[foreach_current_index(cell)] = CStringGetTextDatum(strVal(lfirst(cell)));
	return PointerGetDatum(construct_array(elements, list_length(names), TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static Datum
interval_datum(const char *text, bool *is_null)
{
	*is_null = text == NULL;
	return PointerGetDatum(rs_capture_interval(text));
}

/* Null for NULL. */
static Datum
text_datum(const char *string, bool *is_null)
{
	*is_null = string == NULL;
	return string == NULL ? (Datum) 0 : CStringGetTextDatum(string);
}

/* As it was given, but for names that have changed since. */
static char *
condition_text(const RsAttached *attached)
{
	Node	   *condition = attached->attachment->condition;
	Relation	relation = condition != NULL ? try_relation_open(attached->table, AccessShareLock) : NULL;
	char	   *text;

	if (relation == NULL)
		return NULL;
	text = rs_api_condition_text(relation, condition, NULL);
	relation_close(relation, AccessShareLock);
	return text;
}

/* Rows: table, stream, payload, columns, condition, shards, delay, expiry, payload_function, replica. */
Datum
redstream_attachments(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, rs_capture_attached(rs_capture_function()))
	{
		RsAttached *attached = lfirst(cell);
		RsAttachment *attachment = attached->attachment;
		Datum		values[10] = {0};
		bool		nulls[10] = {0};

		values[0] = ObjectIdGetDatum(attached->table);
		values[1] = CStringGetTextDatum(attachment->stream);
		values[2] = array_of(attachment->payload, &nulls[2]);
		values[3] = array_of(attachment->columns, &nulls[3]);
		values[4] = text_datum(condition_text(attached), &nulls[4]);
		values[5] = Int32GetDatum(attachment->shards);
		values[6] = interval_datum(attachment->delay, &nulls[6]);
		values[7] = interval_datum(attachment->expiry, &nulls[7]);
		values[8] = text_datum(attachment->function, &nulls[8]);
		values[9] = BoolGetDatum(attachment->replica);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
