/*
 * trigger.c
 *	  The trigger function: a row change becomes records of the transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "utils/rel.h"

#include "capture/plan.h"
#include "settings.h"
#include "transaction/transaction.h"

PG_FUNCTION_INFO_V1(redstream_capture);

static void
record_row(RsPlan *plan, TupleTableSlot *row)
{
	size_t		length;
	const char *payload = rs_row_payload(plan, row, &length);

	rs_transaction_record(plan->stream, payload, length, plan->repeatable);
}

/*
 * An UPDATE that moves the row to another payload announces both: what was
 * known under the old one is to be looked at, too.
 */
static void
record_update(RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after)
{
	const char *payload;
	char	   *old_payload;
	size_t		old_length;
	size_t		length;

	if (!rs_row_changed(plan, before, after))
		return;
	if (!rs_row_moved(plan, before, after))
	{
		record_row(plan, after);
		return;
	}
	payload = rs_row_payload(plan, before, &old_length);
	old_payload = memcpy(palloc(old_length), payload, old_length);
	payload = rs_row_payload(plan, after, &length);
	if (length != old_length || memcmp(payload, old_payload, length) != 0)
		rs_transaction_record(plan->stream, old_payload, old_length, plan->repeatable);
	rs_transaction_record(plan->stream, payload, length, plan->repeatable);
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("redstream.capture() must be called by an AFTER trigger FOR EACH ROW"),
				 errhint("Create the triggers with redstream.attach().")));
}

Datum
redstream_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger;
	RsPlan	   *plan;

	check_call(fcinfo);
	trigger = (TriggerData *) fcinfo->context;
	if (!rs_enabled)
		return PointerGetDatum(NULL);

	/* The caller's context lasts for this row (trigger.c, AfterTriggerExecute). */
	plan = rs_plan_get(trigger);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		record_update(plan, trigger->tg_trigslot, trigger->tg_newslot);
	else
		record_row(plan, trigger->tg_trigslot);
	return PointerGetDatum(NULL);
}
