/*
 * plan.h
 *	  What is announced of a relation's rows, worked out once.  For the files of this
 *	  directory.
 */
#ifndef RS_CAPTURE_PLAN_H
#define RS_CAPTURE_PLAN_H

#include "access/tupconvert.h"
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

/* A payload function, which takes a row of the attached table. */
typedef struct RsPayloadFunction
{
	FmgrInfo	call;
	bool		stable;			/* it does not look for newer changes by itself */
	int			running;		/* calls that have not returned yet */
	FmgrInfo	output;			/* of json or jsonb */
	TupleConversionMap *map;	/* from a partition's row; NULL: it is the same */
	TupleTableSlot *slot;		/* for what the map gives */
} RsPayloadFunction;

typedef struct RsPlan
{
	MemoryContext context;		/* of all this */
	bool		valid;			/* no invalidation came since */
	Oid			attached;		/* the table that the function's rows are of; InvalidOid without one */
	int			nshards;
	char	  **stream_names;	/* one for each shard */
	int		   *streams;		/* rs_transaction_stream() of each; -1: not asked for yet */
	int			generation;		/* of the namespace that the streams' numbers belong to */
	int			ncolumns;		/* of the payload */
	RsColumn   *columns;
	RsPayload  *payload;
	RsPayloadFunction *function;	/* instead of these three; or NULL */
	int			nkeys;			/* columns that say which shard; 0 without shards */
	RsColumn   *keys;
	bool		key_only;		/* the payload is nothing but key columns */
	RsOutputMode mode;			/* of the text forms in the payload */
	RsOutputMode key_mode;		/* of those of the keys */
	int			nwatched;		/* columns an UPDATE is judged by; 0: all */
	AttrNumber *watched;
} RsPlan;

/* What is announced of a row. */
typedef struct RsMessage
{
	int			stream;			/* rs_transaction_stream() */
	const char *payload;
	size_t		length;
} RsMessage;

/* ---- attached.c ---- */

/* A copy of the one trigger of redstream.capture() on the relation that says most; NULL if it has none. */
extern const Trigger *rs_trigger_of(Relation relation);

/* The attachment that a trigger says.  Raises invalid_parameter_value for arguments that attach() does not make. */
extern RsAttachment *rs_attachment_of(const Trigger *trigger);

/* A copy of a row of pg_trigger, which is open; NULL if there is none.  "snapshot" NULL: one of the catalogs. */
extern HeapTuple rs_trigger_tuple(Relation triggers, Oid id, Snapshot snapshot);

/* Raises invalid_parameter_value, or what an array or an interval raises, for a row of pg_trigger with arguments that attach()
 * does not make. */
extern void rs_check_arguments(HeapTuple trigger, TupleDesc descriptor);

/* The table that attach() was called for: of a partition's trigger, the one it was cloned from. */
extern Oid	rs_attached_table(const Trigger *trigger);

/* ---- plan.c ---- */

/*
 * Finds or compiles the plan of a trigger on the relation; without a trigger that of a table that is not
 * attached.  Good until the next call.  Raises what is wrong with the trigger's arguments: undefined_column,
 * undefined_function, object_not_in_prerequisite_state, invalid_parameter_value.
 */
extern RsPlan *rs_plan_get(const Trigger *trigger, Relation relation);

/* ---- compile.c ---- */

/* Fills in a plan, in the current memory context, which is the plan's. */
extern void rs_plan_compile(RsPlan *plan, const Trigger *trigger, Relation relation);

/* ---- function.c ---- */

/* Looks the payload function of an attached table up, for rows of that relation, which is the table or a partition of it.
 * Raises what rs_capture_check_function() raises. */
extern RsPayloadFunction *rs_function_find(const char *name, Oid table, Relation relation);

/* Calls the plan's: JSON in UTF-8, in the current memory context.  Raises null_value_not_allowed when it returns
 * NULL, and what it raises itself. */
extern char *rs_function_call(RsPlan *plan, TupleTableSlot *row);

/* ---- shard.c ---- */

/* The shard of a row with this key, in UTF-8. */
extern int	rs_shard_of(const char *key, size_t length, int shards);

/* ---- row.c ---- */

/* Do the two versions differ in the columns that an UPDATE is judged by?  In those
 * of the payload and of what says the shard?  (As stored: equal values may be told as different.) */
extern bool rs_row_changed(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after);
extern bool rs_row_moved(const RsPlan *plan, TupleTableSlot *before, TupleTableSlot *after);

/* What is announced of a row; the payload is good until the next call for the plan. */
extern void rs_row_message(RsPlan *plan, TupleTableSlot *row, RsMessage *message);

/* ---- announced.c ---- */

/* Has bulk() announced this version of a row? */
extern bool rs_announced(Relation relation, ItemPointer row);

/* ---- guard.c ---- */

/* Installs the hook for CREATE TRIGGER. */
extern void rs_guard_init(void);

/* ---- truncate.c ---- */

/* Installs the hook for TRUNCATE of partitions. */
extern void rs_truncate_init(void);

/* Announces the rows of a table that is about to be truncated, of partitions those of all of them. */
extern void rs_truncate_announce(Relation relation);

#endif							/* RS_CAPTURE_PLAN_H */
