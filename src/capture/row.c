/*
 * row.c
 *	  What a row says: whether it changed, its payload and its stream.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"

#include "capture/capture.h"
#include "capture/plan.h"
#include "settings.h"
#include "transaction/transaction.h"

/* ---- changes ---------------------------------------------------------------------- */

static bool
column_changed(TupleTableSlot *before, TupleTableSlot *after, int index)
{
	Form_pg_attribute attribute = TupleDescAttr(before->tts_tupleDescriptor, index);

	if (before->tts_isnull[index] || after->tts_isnull[index])
		return before->tts_isnull[index] != after->tts_isnull[index];
	return !datum_image_eq(before->tts_values[index], after->tts_values[index],
						   attribute->attbyval, attribute->attlen);
}

bool
rs_row_changed(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after)
{
	TupleDesc	descriptor = before->tts_tupleDescriptor;

	slot_getallattrs(before);
	slot_getallattrs(after);
	for (int i = 0; i < plan->nwatched; i++)
		if (column_changed(before, after, plan->watched[i] - 1))
			return true;
	if (plan->nwatched > 0)
		return false;
	for (int i = 0; i < descriptor->natts; i++)
		if (!TupleDescAttr(descriptor, i)->attisdropped && column_changed(before, after, i))
			return true;
	return false;
}

static bool
any_changed(const RsColumn *columns, int count, TupleTableSlot *before, TupleTableSlot *after)
{
	for (int i = 0; i < count; i++)
		if (column_changed(before, after, columns[i].number - 1))
			return true;
	return false;
}

bool
rs_row_moved(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after)
{
	if (plan->function != NULL)
		return true;			/* who knows what it looks at */
	slot_getallattrs(before);
	slot_getallattrs(after);
	return any_changed(plan->columns, plan->ncolumns, before, after) ||
		any_changed(plan->keys, plan->nkeys, before, after);
}

/* ---- text forms -------------------------------------------------------------------- */

static void
set_mode(const char *name, const char *value)
{
	if (strcmp(GetConfigOption(name, false, false), value) != 0)
		(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/* As postgres_fdw does for what it sends (set_transmission_modes). */
int
rs_capture_begin_output(RsOutputMode mode)
{
	int			nest_level = NewGUCNestLevel();

	set_mode("DateStyle", "ISO, MDY");
	set_mode("TimeZone", "UTC");
	set_mode("IntervalStyle", "postgres");
	set_mode("bytea_output", "hex");
	set_mode("extra_float_digits", "1");
	if (mode == RS_OUTPUT_ALL)
	{
		set_mode("lc_monetary", "C");
		set_mode("search_path", "pg_catalog");
		set_mode("quote_all_identifiers", "off");
	}
	return nest_level;
}

void
rs_capture_end_output(int nest_level)
{
	AtEOXact_GUC(true, nest_level);
}

size_t
rs_capture_squeeze_json(char *text)
{
	char	   *out = text;
	bool		quoted = false;

	for (const char *in = text; *in != '\0'; in++)
	{
		if (!quoted && strchr(" \t\r\n", *in) != NULL)
			continue;
		*out++ = *in;
		if (*in == '"')
			quoted = !quoted;
		else if (quoted && *in == '\\')
			*out++ = *++in;		/* valid JSON has something after a backslash */
	}
	*out = '\0';
	return out - text;
}

static bool
is_finite_number(const char *text)
{
	/* "NaN", "Infinity", "-Infinity": the only ones without a digit */
	return strpbrk(text, "0123456789") != NULL;
}

/* The text form of a value, in UTF-8 and as it is in JSON, but for quotes. */
static char *
value_text(RsColumn *column, Datum value)
{
	char	   *text;

	if (column->kind == RS_VALUE_BOOLEAN)
		return DatumGetBool(value) ? "true" : "false";
	text = OutputFunctionCall(&column->output, value);
	if (column->kind == RS_VALUE_NUMBER)
		return text;
	text = pg_server_to_any(text, strlen(text), PG_UTF8);
	if (column->kind == RS_VALUE_JSON)
		(void) rs_capture_squeeze_json(text);
	return text;
}

/* ---- messages ------------------------------------------------------------------------- */

static void
set_value(RsPlan *plan, int member, Datum value)
{
	RsColumn   *column = &plan->columns[member];
	char	   *text = value_text(column, value);
	size_t		length = strlen(text);

	rs_transaction_check_size(length);	/* before json-c keeps memory for it */
	if (column->kind == RS_VALUE_TEXT ||
		(column->kind == RS_VALUE_NUMBER && !is_finite_number(text)))
		rs_payload_set_string(plan->payload, member, text, length);
	else
		rs_payload_set_json(plan->payload, member, text, length);
}

static void
fill_payload(RsPlan *plan, TupleTableSlot *row)
{
	for (int i = 0; i < plan->ncolumns; i++)
	{
		bool		null;
		Datum		value = slot_getattr(row, plan->columns[i].number, &null);

		if (null)
			rs_payload_set_json(plan->payload, i, "null", 4);
		else
			set_value(plan, i, value);
	}
}

/* The values of the primary key, joined by colons. */
static StringInfo
key_text(RsPlan *plan, TupleTableSlot *row)
{
	StringInfo	key = makeStringInfo();

	for (int i = 0; i < plan->nkeys; i++)
	{
		bool		null;
		Datum		value = slot_getattr(row, plan->keys[i].number, &null);

		if (i > 0)
			appendStringInfoChar(key, ':');
		appendStringInfoString(key, value_text(&plan->keys[i], value));
	}
	return key;
}

/* The number of a shard's stream, asked for once. */
static int
stream_of(RsPlan *plan, int shard)
{
	if (plan->generation != rs_namespace_generation)
	{
		for (int i = 0; i < plan->nshards; i++)
			plan->streams[i] = -1;
		plan->generation = rs_namespace_generation;
	}
	if (plan->streams[shard] < 0)
		plan->streams[shard] = rs_transaction_stream(plan->stream_names[shard]);
	return plan->streams[shard];
}

static int
begin_output(RsOutputMode mode)
{
	return mode == RS_OUTPUT_PLAIN ? 0 : rs_capture_begin_output(mode);
}

static void
end_output(RsOutputMode mode, int nest_level)
{
	if (mode != RS_OUTPUT_PLAIN)
		rs_capture_end_output(nest_level);
}

static int
choose_shard(RsPlan *plan, TupleTableSlot *row)
{
	int			nest_level;
	StringInfo	key;

	if (plan->nshards == 1)
		return 0;
	nest_level = begin_output(plan->key_mode);
	key = key_text(plan, row);
	end_output(plan->key_mode, nest_level);
	return rs_shard_of(key->data, key->len, plan->nshards);
}

void
rs_row_message(RsPlan *plan, TupleTableSlot *row, RsMessage *message)
{
	int			nest_level;

	message->stream = stream_of(plan, choose_shard(plan, row));
	nest_level = begin_output(plan->mode);
	if (plan->function != NULL)
	{
		message->payload = rs_function_call(plan, row);
		message->length = strlen(message->payload);
	}
	else
	{
		fill_payload(plan, row);
		message->payload = rs_payload_text(plan->payload, &message->length);
	}
	end_output(plan->mode, nest_level);
}
