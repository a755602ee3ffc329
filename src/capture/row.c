/*
 * row.c
 *	  What a row says: whether it changed, and its payload.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"

#include "capture/capture.h"
#include "capture/plan.h"
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

bool
rs_row_moved(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after)
{
	slot_getallattrs(before);
	slot_getallattrs(after);
	for (int i = 0; i < plan->ncolumns; i++)
		if (column_changed(before, after, plan->columns[i].number - 1))
			return true;
	return false;
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

/* Takes the white space between the tokens of a JSON text away, in place. */
static size_t
squeeze_json(char *text)
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
	return out - text;
}

static bool
is_finite_number(const char *text)
{
	/* "NaN", "Infinity", "-Infinity": the only ones without a digit */
	return strpbrk(text, "0123456789") != NULL;
}

static void
set_value(RsPlan *plan, int member, Datum value)
{
	RsColumn   *column = &plan->columns[member];
	char	   *text;
	char	   *utf8;
	size_t		length;

	if (column->kind == RS_VALUE_BOOLEAN)
	{
		text = DatumGetBool(value) ? "true" : "false";
		rs_payload_set_json(plan->payload, member, text, strlen(text));
		return;
	}
	text = OutputFunctionCall(&column->output, value);
	length = strlen(text);
	rs_transaction_check_size(length);	/* before json-c keeps memory for it */
	if (column->kind == RS_VALUE_NUMBER && is_finite_number(text))
	{
		rs_payload_set_json(plan->payload, member, text, length);
		return;
	}
	utf8 = pg_server_to_any(text, length, PG_UTF8);
	if (column->kind == RS_VALUE_JSON)
		rs_payload_set_json(plan->payload, member, utf8, squeeze_json(utf8));
	else
		rs_payload_set_string(plan->payload, member, utf8, strlen(utf8));
}

const char *
rs_row_payload(RsPlan *plan, TupleTableSlot *row, size_t *length)
{
	int			nest_level = plan->mode == RS_OUTPUT_PLAIN ? 0 : rs_capture_begin_output(plan->mode);

	for (int i = 0; i < plan->ncolumns; i++)
	{
		bool		null;
		Datum		value = slot_getattr(row, plan->columns[i].number, &null);

		if (null)
			rs_payload_set_json(plan->payload, i, "null", 4);
		else
			set_value(plan, i, value);
	}
	if (plan->mode != RS_OUTPUT_PLAIN)
		rs_capture_end_output(nest_level);
	return rs_payload_text(plan->payload, length);
}
