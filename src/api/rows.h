/*
 * rows.h
 *	  Rows of a table, found by a query of the caller's and announced without a change.  For the files of this
 *	  directory.
 *
 * The query runs as the caller: with his privileges, under the table's row level security.  It reads only the columns that are
 * needed.  All of it needs SPI.
 */
#ifndef RS_API_ROWS_H
#define RS_API_ROWS_H

#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "lib/stringinfo.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"

#include "capture/capture.h"

typedef struct RsRows
{
	Relation	relation;
	RsCaptured *captured;
	const char *table;			/* for FROM and UPDATE: quoted, qualified, with ONLY if it has no partitions */
	const char *name;			/* what columns are qualified with */
	List	   *key;			/* numbers of the primary key's columns, in the order of its index; or NIL */
	Bitmapset  *columns;		/* to be read; callers may add to it */
	bool		placed;			/* so are a row's table and place */
	bool		noting;			/* its triggers can be kept from announcing the same rows again */
	EState	   *estate;			/* for the attachment's condition: NULL, all rows are announced */
	ExprState  *condition;
	int64		announced;		/* rows so far */
} RsRows;

/* Which rows, and what becomes of them. */
typedef struct RsSelection
{
	const char *where;			/* SQL, made by rs_rows_matching() and the like */
	const char *lock;			/* FOR UPDATE and the like; "": none */
	bool		changing;		/* they are about to be changed: the triggers are not to announce them again */
	bool		looking;		/* they are only read: neither locked nor announced */
	bool		ordered;		/* by primary key */
	bool		backwards;		/* from the last one on */
	int64		limit;			/* 0: none */
	int			nargs;			/* parameters of "where" */
	Oid		   *types;
	Datum	   *values;
} RsSelection;

/* What is done with each row, after it is announced, if it is.  Called in a context that is reset for the next row. */
typedef void (*RsRowSeen) (void *argument, TupleTableSlot *row);

/* Opens the table, in the current memory context.  One that is to be changed is locked as an UPDATE does it: who attaches it anew
 * could make a deadlock of that later.  Raises what rs_api_check_table() raises, and
 * object_not_in_prerequisite_state for a table without a primary key that is not attached. */
extern RsRows *rs_rows_open(Oid table, bool changing);
extern void rs_rows_close(RsRows *rows);

/* The condition as SQL.  Raises what the parser raises. */
extern char *rs_rows_matching(RsRows *rows, const char *matching, const char *what);

/* A column, qualified and quoted. */
extern const char *rs_rows_column(RsRows *rows, AttrNumber number);

/* The lock that keeps rows as they are announced, for rows that are not about to be changed: "" if nothing is announced but
 * keys. */
extern const char *rs_rows_lock(RsRows *rows);

/*
 * Announces those of the selected rows that the attachment's condition does not leave out, unless they are only looked at, and
 * returns how many were selected.  "seen" may be NULL.  Raises what the query raises, and what rs_capture_row() raises.
 */
extern int64 rs_rows_announce(RsRows *rows, const RsSelection *selection,
							  RsRowSeen seen, void *argument);

/* The number of rows that the planner expects. */
extern double rs_rows_estimate(RsRows *rows, const char *where);

#endif							/* RS_API_ROWS_H */
