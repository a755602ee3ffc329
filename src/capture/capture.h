/*
 * capture.h
 *	  The door of src/capture: from a row change to records of the transaction.
 *
 * The way in is the trigger function redstream.capture(), which attach() puts on tables.
 */
#ifndef RS_CAPTURE_H
#define RS_CAPTURE_H

#include "nodes/pg_list.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

/* What the arguments of a trigger say: names and values in turn. */
typedef struct RsAttachment
{
	char	   *stream;
	List	   *payload;		/* of String; NIL: the primary key */
	List	   *columns;		/* of String; NIL: any column */
	char	   *delay;			/* an interval; NULL: redstream.delay */
	char	   *expiry;			/* an interval; NULL: none */
} RsAttachment;

/* An attached table. */
typedef struct RsAttached
{
	Oid			table;
	RsAttachment *attachment;
} RsAttached;

/*
 * Reads the arguments of a trigger.  Everything returned is in the current memory context.
 * Raises invalid_parameter_value for arguments that attach() does not make.
 */
extern RsAttachment *rs_capture_read_arguments(int count, char **arguments);

/*
 * All attached tables of the database, a list of RsAttached in the current memory context, one for
 * each table; partitions of an attached table are not listed.  Triggers that attach() cannot have made are left out.
 * "capture" is the trigger function's OID.
 */
extern List *rs_capture_attached(Oid capture);

/* The interval of an attachment; NULL for NULL. */
extern Interval *rs_capture_interval(const char *text);

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

/* Numbers of the primary key's columns, in the order of the table's columns;
 * NIL when there is none. */
extern List *rs_capture_primary_key(Relation relation);

#endif							/* RS_CAPTURE_H */
