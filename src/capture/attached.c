/*
 * attached.c
 *	  What triggers say: the arguments of one, and all attached tables.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#include "capture/capture.h"

/* The elements of an array's text form. */
static List *
read_names(const char *list)
{
	Datum		array = OidInputFunctionCall(F_ARRAY_IN, pstrdup(list), TEXTOID, -1);
	List	   *names = NIL;
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			names = lappend(names, makeString(TextDatumGetCString(elements[i])));
	return names;
}

/* NULL for arguments that attach() does not make. */
static RsAttachment *
read_arguments(int count, char **arguments)
{
	RsAttachment *attachment = palloc0(sizeof(RsAttachment));
	bool		valid = count % 2 == 0;

	for (int i = 0; i + 1 < count; i += 2)
	{
		const char *name = arguments[i];
		const char *value = arguments[i + 1];

		if (strcmp(name, "stream") == 0)
			attachment->stream = pstrdup(value);
		else if (strcmp(name, "payload") == 0)
			attachment->payload = read_names(value);
		else if (strcmp(name, "columns") == 0)
			attachment->columns = read_names(value);
		else if (strcmp(name, "delay") == 0)
			attachment->delay = pstrdup(value);
		else if (strcmp(name, "expiry") == 0)
			attachment->expiry = pstrdup(value);
		else
			valid = false;
	}
	return attachment->stream != NULL && valid ? attachment : NULL;
}

RsAttachment *
rs_capture_read_arguments(int count, char **arguments)
{
	RsAttachment *attachment = read_arguments(count, arguments);

	if (attachment == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger arguments of redstream.capture() are not valid"),
				 errhint("Create the triggers with redstream.attach().")));
	return attachment;
}

/* The arguments in the tuple of a trigger; NULL as above. */
static RsAttachment *
read_tuple(HeapTuple tuple, TupleDesc descriptor)
{
	int			count = ((Form_pg_trigger) GETSTRUCT(tuple))->tgnargs;
	char	  **arguments = palloc(sizeof(char *) * Max(count, 1));
	bool		null;
	char	   *next = VARDATA_ANY(DatumGetByteaPP(heap_getattr(tuple, Anum_pg_trigger_tgargs,
																descriptor, &null)));

	for (int i = 0; i < count; i++)
	{
		arguments[i] = next;
		next += strlen(next) + 1;
	}
	return read_arguments(count, arguments);
}

static bool
is_listed(List *attached, Oid table)
{
	/* a table's triggers mostly lie side by side */
	for (int i = list_length(attached) - 1; i >= 0; i--)
		if (((RsAttached *) list_nth(attached, i))->table == table)
			return true;
	return false;
}

List *
rs_capture_attached(Oid capture)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(triggers, InvalidOid, false, NULL, 0, NULL);
	List	   *attached = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
		RsAttachment *attachment;
		RsAttached *one;

		if (form->tgfoid != capture || OidIsValid(form->tgparentid) ||
			is_listed(attached, form->tgrelid))
			continue;
		attachment = read_tuple(tuple, RelationGetDescr(triggers));
		if (attachment == NULL)
			continue;
		one = palloc(sizeof(RsAttached));
		one->table = form->tgrelid;
		one->attachment = attachment;
		attached = lappend(attached, one);
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return attached;
}

Interval *
rs_capture_interval(const char *text)
{
	if (text == NULL)
		return NULL;
	return DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(text),
												 ObjectIdGetDatum(InvalidOid),
												 Int32GetDatum(-1)));
}

static int
compare(const Interval *a, const Interval *b)
{
	return DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(a),
											 IntervalPGetDatum(b)));
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(((RsAttachedStream *) lfirst(a))->name, ((RsAttachedStream *) lfirst(b))->name);
}

/* What two attachments of one stream come to. */
static void
combine(RsAttachedStream *stream, const RsAttachedStream *other)
{
	if (other->delay != NULL && (stream->delay == NULL || compare(other->delay, stream->delay) < 0))
		stream->delay = other->delay;
	if (other->expiry == NULL ||
		(stream->expiry != NULL && compare(other->expiry, stream->expiry) > 0))
		stream->expiry = other->expiry;
}

List *
rs_capture_streams(Oid capture)
{
	List	   *all = NIL;
	List	   *streams = NIL;
	ListCell   *cell;

	foreach(cell, rs_capture_attached(capture))
	{
		RsAttachment *attachment = ((RsAttached *) lfirst(cell))->attachment;
		RsAttachedStream *stream = palloc(sizeof(RsAttachedStream));

		stream->name = pg_server_to_any(attachment->stream, strlen(attachment->stream), PG_UTF8);
		stream->delay = rs_capture_interval(attachment->delay);
		stream->expiry = rs_capture_interval(attachment->expiry);
		all = lappend(all, stream);
	}
	list_sort(all, compare_names);
	foreach(cell, all)
	{
		RsAttachedStream *stream = lfirst(cell);

		if (streams != NIL && strcmp(((RsAttachedStream *) llast(streams))->name, stream->name) == 0)
			combine(llast(streams), stream);
		else
			streams = lappend(streams, stream);
	}
	return streams;
}

Oid
rs_capture_function(void)
{
	if (!OidIsValid(get_extension_oid("redstream", true)))
		return InvalidOid;
	return LookupFuncName(list_make2(makeString("redstream"), makeString("capture")), 0, NULL, true);
}
