/*
 * capture.h
 *	  The door of src/capture: from a row to records of the transaction.
 *
 * The way in is the trigger function redstream.capture(), which attach() puts on tables; and
 * rs_capture_row(), for rows that are announced without a trigger.
 */
#ifndef RS_CAPTURE_H
#define RS_CAPTURE_H

#include "executor/tuptable.h"
#include "nodes/bitmapset.h"
#include "nodes/nodes.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#define RS_SHARDS_MAX 1024

/* How a table is attached. */
typedef struct RsAttachment
{
	/* what the arguments of its triggers say, names and values in turn */
	char	   *stream;
	List	   *payload;		/* of String; NIL: the primary key */
	char	   *function;		/* instead: a qualified function's name, quoted as in SQL; or NULL */
	List	   *columns;		/* of String; NIL: any column */
	int			shards;			/* streams it is spread over; 1: the stream itself */
	char	   *delay;			/* an interval; NULL: redstream.delay */
	char	   *expiry;			/* an interval; NULL: none */
	/* what else its triggers say */
	Node	   *condition;		/* of the table's columns as those of relation 1; NULL: every row */
	bool		replica;		/* also for what logical replication applies */
} RsAttachment;

/* An attached table. */
typedef struct RsAttached
{
	Oid			table;
	RsAttachment *attachment;
} RsAttached;

/*
 * All attached tables of the database, a list of RsAttached in the current memory context, one for
 * each table; partitions of an attached table are not listed.  Triggers that attach() cannot have made are left out.
 * "capture" is the trigger function's OID.
 */
extern List *rs_capture_attached(Oid capture);

/* The interval of an attachment; NULL for NULL. */
extern Interval *rs_capture_interval(const char *text);

/* The name of a stream's shard, a number from 0 on; of the stream itself if it is not sharded. */
extern char *rs_capture_shard_name(const char *stream, int shards, int shard);

/* A stream that tables are attached to, with what holds for all of them. */
typedef struct RsAttachedStream
{
	char	   *name;			/* in UTF-8 */
	Interval   *delay;			/* NULL: redstream.delay */
	Interval   *expiry;			/* NULL: none */
} RsAttachedStream;

/*
 * Those of the database, a list of RsAttachedStream in the current memory context, each once.  Of two tables
 * on one stream the shorter delay counts, and the longer expiry; none at all is the longest.
 */
extern List *rs_capture_streams(Oid capture);

/* The OID of redstream.capture() in this database; InvalidOid if the extension is not there. */
extern Oid	rs_capture_function(void);

/* What of the session the text form of a type depends on. */
typedef enum RsOutputMode
{
	RS_OUTPUT_PLAIN,			/* nothing */
	RS_OUTPUT_COMMON,			/* formats of dates, times, intervals, floats and bytea */
	RS_OUTPUT_ALL				/* anything: arrays, records, money, names of objects */
} RsOutputMode;

/*
 * Makes output functions of types independent of the session until
 * rs_capture_end_output() gets the result: ISO dates in UTC, postgres intervals, hex
 * bytea, shortest exact floats, and with RS_OUTPUT_ALL qualified names and plain
 * money.  An error in between puts everything back, too.
 */
extern int	rs_capture_begin_output(RsOutputMode mode);
extern void rs_capture_end_output(int nest_level);

/* Numbers of the primary key's columns, in the order of the table's columns (of a partition: of the
 * root's); NIL when there is none. */
extern List *rs_capture_primary_key(Relation relation);

/*
 * Raises undefined_function, datatype_mismatch or insufficient_privilege for what is no payload function of the
 * table: one of its row type that returns json or jsonb, and that its owner may execute.
 */
extern void rs_capture_check_function(Relation relation, const char *name);

/* Takes the white space between the tokens of a JSON text away, in place; returns the new length. */
extern size_t rs_capture_squeeze_json(char *text);

/* ---- rows without a trigger --------------------------------------------------------------------- */

/* A relation whose rows are announced as its attachment says, or without one: its primary key, to the stream of its name. */
typedef struct RsCaptured RsCaptured;

/* In the current memory context; good while the relation is open. */
extern RsCaptured *rs_capture_open(Relation relation);

/*
 * How the table, or the partition of a table, is attached; NULL if it is not.  The caller sees to the condition.  Everything returned is in
 * the current memory context.  Raises invalid_parameter_value for triggers that attach() does not make.
 */
extern RsAttachment *rs_capture_attachment(const RsCaptured *captured);

/*
 * Announces a row.  Raises object_not_in_prerequisite_state when there is no primary key, undefined_column and
 * undefined_function as a change of the row would, and what rs_transaction_record() raises.
 */
extern void rs_capture_row(const RsCaptured *captured, TupleTableSlot *row);

/* Numbers of the columns that rs_capture_row() looks at. */
extern Bitmapset *rs_capture_row_columns(const RsCaptured *captured);

/* Does it announce nothing but key columns, so that an older version of a row says the same? */
extern bool rs_capture_is_key_only(const RsCaptured *captured);

/*
 * Rows that bulk() has announced: from begin to end the triggers do not announce these versions once more.  "end" gets what
 * "begin" returned, after an error, too.  A set that outgrows redstream.transaction_buffer takes no more: these rows are
 * announced twice.
 */
typedef struct RsAnnounced RsAnnounced;
extern RsAnnounced *rs_capture_begin_announced(void);
extern void rs_capture_note_announced(Oid table, ItemPointer row);
extern void rs_capture_end_announced(RsAnnounced *outer);

/* Installs the hooks: TRUNCATE of partitions, CREATE TRIGGER; from _PG_init while preloading. */
extern void rs_capture_init(void);

#endif							/* RS_CAPTURE_H */
