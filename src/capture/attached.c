/*
 * attached.c
 *	  What triggers say: how a table is attached, and which tables are.
 *
 * All triggers of a table have the same arguments.  A condition is what WHEN says, which PostgreSQL keeps up with
 * renamed columns; that of the DELETE trigger is about the row as it was, and so has the table's columns as those of
 * relation 1 (PRS2_OLD_VARNO), which is what an expression of one table looks like everywhere else.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "nodes/readfuncs.h"
#include "nodes/value.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture/capture.h"
#include "capture/plan.h"
#include "redis/redis.h"

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

/* False for what is no number of shards. */
static bool
read_shards(const char *text, int *shards)
{
	char	   *end;
	long		number = strtol(text, &end, 10);

	*shards = (int) number;
	return *text != '\0' && *end == '\0' && number >= 1 && number <= RS_SHARDS_MAX;
}

/* Is it the name of a stream, and its longest shard's? */
static bool
is_stream(const char *stream, int shards)
{
	char	   *name = rs_capture_shard_name(stream, shards, shards - 1);
	RsError		error;

	return rs_redis_stream_name_check(pg_server_to_any(stream, strlen(stream), PG_UTF8), &error) &&
		rs_redis_stream_name_check(pg_server_to_any(name, strlen(name), PG_UTF8), &error);
}

/* NULL for arguments that attach() does not make. */
static RsAttachment *
read_arguments(int count, char **arguments)
{
	RsAttachment *attachment = palloc0(sizeof(RsAttachment));
	bool		valid = count % 2 == 0;

	attachment->shards = 1;
	for (int i = 0; i + 1 < count; i += 2)
	{
		const char *name = arguments[i];
		const char *value = arguments[i + 1];

		if (strcmp(name, "stream") == 0)
			attachment->stream = pstrdup(value);
		else if (strcmp(name, "payload") == 0)
			attachment->payload = read_names(value);
		else if (strcmp(name, "payload_function") == 0)
			attachment->function = pstrdup(value);
		else if (strcmp(name, "columns") == 0)
			attachment->columns = read_names(value);
		else if (strcmp(name, "shards") == 0)
			valid &= read_shards(value, &attachment->shards);
		else if (strcmp(name, "delay") == 0)
			attachment->delay = pstrdup(value);
		else if (strcmp(name, "expiry") == 0)
			attachment->expiry = pstrdup(value);
		else
			valid = false;
	}
	if (!valid || attachment->stream == NULL || !is_stream(attachment->stream, attachment->shards))
		return NULL;
	return attachment;
}

static void
refuse_arguments(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("trigger arguments of redstream.capture() are not valid"),
			 errhint("Create the triggers with redstream.attach().")));
}

/* What a trigger of the table says beyond its arguments. */
static void
read_trigger(RsAttachment *attachment, int16 type, char enabled, const char *when)
{
	if (TRIGGER_FOR_DELETE(type) && when != NULL)
		attachment->condition = stringToNode(when);
	if (enabled == TRIGGER_FIRES_ALWAYS)
		attachment->replica = true;
}

/* ---- intervals ------------------------------------------------------------------------ */

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

/* ---- one table ----------------------------------------------------------------------- */

const Trigger *
rs_trigger_of(Relation relation)
{
	Oid			capture = relation->trigdesc != NULL ? rs_capture_function() : InvalidOid;
	TriggerDesc *triggers;
	const Trigger *found = NULL;

	if (!OidIsValid(capture))
		return NULL;
	triggers = CopyTriggerDesc(relation->trigdesc);	/* the relation's own may be made anew at any time */
	for (int i = 0; i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (trigger->tgfoid == capture && (found == NULL || TRIGGER_FOR_DELETE(trigger->tgtype)))
			found = trigger;
	}
	return found;
}

RsAttachment *
rs_attachment_of(const Trigger *trigger)
{
	RsAttachment *attachment = read_arguments(trigger->tgnargs, trigger->tgargs);

	if (attachment == NULL)
		refuse_arguments();
	read_trigger(attachment, trigger->tgtype, trigger->tgenabled, trigger->tgqual);
	return attachment;
}

HeapTuple
rs_trigger_tuple(Relation triggers, Oid id, Snapshot snapshot)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(id));
	scan = systable_beginscan(triggers, TriggerOidIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

Oid
rs_attached_table(const Trigger *trigger)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	Oid			next = trigger->tgoid;
	Oid			table = InvalidOid;

	while (OidIsValid(next))
	{
		HeapTuple	tuple = rs_trigger_tuple(triggers, next, NULL);

		next = InvalidOid;
		if (HeapTupleIsValid(tuple))
		{
			table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
			next = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		}
	}
	table_close(triggers, AccessShareLock);
	return table;
}

/* ---- all tables ------------------------------------------------------------------------ */

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
is_negative(const char *interval)
{
	return interval != NULL &&
		compare(rs_capture_interval(interval), rs_capture_interval("0")) < 0;
}

void
rs_check_arguments(HeapTuple tuple, TupleDesc descriptor)
{
	RsAttachment *attachment = read_tuple(tuple, descriptor);

	if (attachment == NULL || is_negative(attachment->delay) || is_negative(attachment->expiry))
		refuse_arguments();
}

/* The text of its WHEN; NULL if there is none. */
static char *
read_when(HeapTuple tuple, TupleDesc descriptor)
{
	bool		null;
	Datum		when = heap_getattr(tuple, Anum_pg_trigger_tgqual, descriptor, &null);

	return null ? NULL : TextDatumGetCString(when);
}

/* The table's attachment, found or, as this trigger says, added; NULL for arguments that are not valid. */
static RsAttachment *
attachment_in(List **attached, HeapTuple tuple, TupleDesc descriptor)
{
	Oid			table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	RsAttached *one;

	/* a table's triggers mostly lie side by side */
	for (int i = list_length(*attached) - 1; i >= 0; i--)
	{
		one = list_nth(*attached, i);
		if (one->table == table)
			return one->attachment;
	}
	one = palloc(sizeof(RsAttached));
	one->table = table;
	one->attachment = read_tuple(tuple, descriptor);
	if (one->attachment != NULL)
		*attached = lappend(*attached, one);
	return one->attachment;
}

List *
rs_capture_attached(Oid capture)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	TupleDesc	descriptor = RelationGetDescr(triggers);
	SysScanDesc scan = systable_beginscan(triggers, InvalidOid, false, NULL, 0, NULL);
	List	   *attached = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
		RsAttachment *attachment;

		if (form->tgfoid != capture || OidIsValid(form->tgparentid))
			continue;
		attachment = attachment_in(&attached, tuple, descriptor);
		if (attachment != NULL)
			read_trigger(attachment, form->tgtype, form->tgenabled, read_when(tuple, descriptor));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return attached;
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

/* The streams of one attachment, a list of RsAttachedStream. */
static List *
streams_of(const RsAttachment *attachment)
{
	Interval   *delay = rs_capture_interval(attachment->delay);
	Interval   *expiry = rs_capture_interval(attachment->expiry);
	List	   *streams = NIL;

	for (int i = 0; i < attachment->shards; i++)
	{
		char	   *name = rs_capture_shard_name(attachment->stream, attachment->shards, i);
		RsAttachedStream *stream = palloc(sizeof(RsAttachedStream));

		stream->name = pg_server_to_any(name, strlen(name), PG_UTF8);
		stream->delay = delay;
		stream->expiry = expiry;
		streams = lappend(streams, stream);
	}
	return streams;
}

List *
rs_capture_streams(Oid capture)
{
	List	   *all = NIL;
	List	   *streams = NIL;
	ListCell   *cell;

	foreach(cell, rs_capture_attached(capture))
		all = list_concat(all, streams_of(((RsAttached *) lfirst(cell))->attachment));
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

/* Not by LookupFuncName(), which asks whether the user may use the schema: who writes to a table need not. */
Oid
rs_capture_function(void)
{
	if (!OidIsValid(get_extension_oid("redstream", true)))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum("capture"),
						   PointerGetDatum(buildoidvector(NULL, 0)),
						   ObjectIdGetDatum(get_namespace_oid("redstream", true)));
}
