/*
 * trigger.c
 *	  The trigger function, and rows without a trigger: they become records of the transaction.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "commands/trigger.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture/plan.h"
#include "settings.h"
#include "transaction/transaction.h"

PG_FUNCTION_INFO_V1(redstream_capture);

static void
record(const RsPlan *plan, const RsMessage *message)
{
	rs_transaction_record(message->stream, message->payload, message->length, plan->key_only);
}

static void
record_row(RsPlan *plan, TupleTableSlot *row)
{
	RsMessage	message;

	rs_row_message(plan, row, &message);
	record(plan, &message);
}

/*
 * An UPDATE that moves the row to another payload or shard announces both: what was
 * known under the old one is to be looked at, too.
 */
static void
record_update(RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after)
{
	RsMessage	old;
	RsMessage	new;

	if (!rs_row_moved(plan, before, after))
	{
		record_row(plan, after);
		return;
	}
	rs_row_message(plan, before, &old);
	old.payload = memcpy(palloc(old.length), old.payload, old.length);
	rs_row_message(plan, after, &new);
	if (new.stream != old.stream || new.length != old.length ||
		memcmp(new.payload, old.payload, new.length) != 0)
		record(plan, &old);
	record(plan, &new);
}

/* bulk() has announced the row as it was before: what is left is the new version, if that says something else, whichever
 * columns changed. */
static void
record_rest(RsPlan *plan, TriggerData *trigger)
{
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) &&
		rs_row_moved(plan, trigger->tg_trigslot, trigger->tg_newslot))
		record_row(plan, trigger->tg_newslot);
}

/*
 * A trigger of somebody else's may have changed the row once more in the meantime: that was recorded first, because its events
 * come before the ones that are left of ours.  So that it is also the last word, it is recorded again.
 */
static void
record_newest(RsPlan *plan, Relation relation, TupleTableSlot *row)
{
	ItemPointerData place = row->tts_tid;
	TableScanDesc scan;
	TupleTableSlot *newest;

	if (plan->key_only || relation->rd_rel->relam != HEAP_TABLE_AM_OID ||
		table_tuple_satisfies_snapshot(relation, row, SnapshotSelf))
		return;
	scan = table_beginscan_tid(relation, SnapshotSelf);
	table_tuple_get_latest_tid(scan, &place);
	table_endscan(scan);
	newest = table_slot_create(relation, NULL);
	if (table_tuple_fetch_row_version(relation, &place, SnapshotSelf, newest))
		record_row(plan, newest);
	ExecDropSingleTupleTableSlot(newest);
}

static void
record_change(TriggerData *trigger)
{
	RsPlan	   *plan = rs_plan_get(trigger->tg_trigger, trigger->tg_relation);
	TupleTableSlot *row = trigger->tg_trigslot;

	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) &&
		rs_announced(trigger->tg_relation, &row->tts_tid))
		record_rest(plan, trigger);
	else if (!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		record_row(plan, row);
	else if (rs_row_changed(plan, row, trigger->tg_newslot))
		record_update(plan, row, trigger->tg_newslot);
	if (!TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		record_newest(plan, trigger->tg_relation,
					  TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newslot : row);
}

/* ---- rows without a trigger ----------------------------------------------------------- */

struct RsCaptured
{
	Relation	relation;
	const Trigger *trigger;		/* NULL: it is not attached */
};

RsCaptured *
rs_capture_open(Relation relation)
{
	RsCaptured *captured = palloc(sizeof(RsCaptured));

	captured->relation = relation;
	captured->trigger = rs_trigger_of(relation);
	return captured;
}

RsAttachment *
rs_capture_attachment(const RsCaptured *captured)
{
	return captured->trigger != NULL ? rs_attachment_of(captured->trigger) : NULL;
}

static RsPlan *
plan_of(const RsCaptured *captured)
{
	return rs_plan_get(captured->trigger, captured->relation);
}

void
rs_capture_row(const RsCaptured *captured, TupleTableSlot *row)
{
	record_row(plan_of(captured), row);
}

static Bitmapset *
add_columns(Bitmapset *numbers, const RsColumn *columns, int count)
{
	for (int i = 0; i < count; i++)
		numbers = bms_add_member(numbers, columns[i].number);
	return numbers;
}

Bitmapset *
rs_capture_row_columns(const RsCaptured *captured)
{
	TupleDesc	descriptor = RelationGetDescr(captured->relation);
	RsPlan	   *plan = plan_of(captured);
	Bitmapset  *numbers = add_columns(NULL, plan->columns, plan->ncolumns);

	if (plan->function != NULL)
		for (int i = 0; i < descriptor->natts; i++)
			if (!TupleDescAttr(descriptor, i)->attisdropped)
				numbers = bms_add_member(numbers, i + 1);
	return add_columns(numbers, plan->keys, plan->nkeys);
}

bool
rs_capture_is_key_only(const RsCaptured *captured)
{
	return plan_of(captured)->key_only;
}

/* ---- the trigger -------------------------------------------------------------------------- */

static bool
is_truncate(TriggerEvent event)
{
	return TRIGGER_FIRED_BY_TRUNCATE(event) && TRIGGER_FIRED_BEFORE(event);
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		(!is_truncate(trigger->tg_event) &&
		 (!TRIGGER_FIRED_AFTER(trigger->tg_event) || !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("redstream.capture() must be called by an AFTER trigger FOR EACH ROW, or BEFORE TRUNCATE"),
				 errhint("Create the triggers with redstream.attach().")));
}

/* The caller's memory context lasts for this row (trigger.c, AfterTriggerExecute). */
Datum
redstream_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigger;

	check_call(fcinfo);
	trigger = (TriggerData *) fcinfo->context;
	if (!rs_enabled)
		return PointerGetDatum(NULL);
	if (is_truncate(trigger->tg_event))
		rs_truncate_announce(trigger->tg_relation);
	else
		record_change(trigger);
	return PointerGetDatum(NULL);
}

void
rs_capture_init(void)
{
	rs_guard_init();
	rs_truncate_init();
}
