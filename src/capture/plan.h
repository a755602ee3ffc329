/*
 * plan.h
 *	  What a trigger does on a relation, worked out once.  For the files of this
 *	  directory.
 */
#ifndef RS_CAPTURE_PLAN_H
#define RS_CAPTURE_PLAN_H

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "fmgr.h"

#include "capture/capture.h"
#include "capture/payload.h"

/* How a value becomes JSON. */
typedef enum RsValueKind
{
	RS_VALUE_TEXT,				/* a string of its text form */
	RS_VALUE_NUMBER,			/* as it is, but for NaN and infinities */
	RS_VALUE_BOOLEAN,
	RS_VALUE_JSON				/* embedded, without its spaces */
} RsValueKind;

typedef struct RsColumn
{
	AttrNumber	number;
	RsValueKind kind;
	Oid			type;			/* below any domain */
	FmgrInfo	output;
} RsColumn;

typedef struct RsPlanKey
{
	Oid			trigger;
	Oid			relation;
} RsPlanKey;

typedef struct RsPlan
{
	RsPlanKey	key;
	MemoryContext context;		/* of everything below; NULL: to be compiled */
	bool		valid;			/* no invalidation came since */
	char	   *stream_name;
	int			stream;			/* rs_transaction_stream() */
	int			generation;		/* of the namespace the stream's number belongs to */
	int			ncolumns;		/* of the payload */
	RsColumn   *columns;
	RsPayload  *payload;
	bool		repeatable;		/* the payload is nothing but key columns */
	RsOutputMode mode;			/* of the text forms of its columns */
	int			nwatched;		/* columns an UPDATE is judged by; 0: all */
	AttrNumber *watched;
} RsPlan;

/* Finds or compiles the plan of the trigger that is firing.  Good until the
 * next call.  Raises what is wrong with the trigger's arguments: undefined_column,
 * object_not_in_prerequisite_state, invalid_parameter_value. */
extern RsPlan *rs_plan_get(TriggerData *trigger);

/* ---- row.c ---- */

/* Do the two versions differ in the columns that an UPDATE is judged by?  In those
 * of the payload?  (As stored: equal values may be told as different.) */
extern bool rs_row_changed(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after);
extern bool rs_row_moved(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after);

/* The payload of a row, good until the next call for the plan. */
extern const char *rs_row_payload(RsPlan *plan, TupleTableSlot *row, size_t *length);

#endif							/* RS_CAPTURE_PLAN_H */
