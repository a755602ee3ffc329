/*
 * keyset.h
 *	  The primary key of a table as a place to go on from, and as a set of rows.  For the files of this directory.
 *
 * All of it needs SPI and an active snapshot.
 */
#ifndef RS_API_KEYSET_H
#define RS_API_KEYSET_H

#include "utils/array.h"

#include "api/rows.h"

typedef struct RsKeyColumn
{
	const char *name;			/* as rs_rows_column() */
	Oid			type;
	int32		typmod;
	const char *less;			/* the type's own operators, as OPERATOR(schema.name) */
	const char *less_equal;
	const char *equal;
	const char *greater;
	ArrayBuildState *values;	/* of the rows seen */
} RsKeyColumn;

typedef struct RsKeyset
{
	int			ncolumns;
	RsKeyColumn *columns;
	List	   *numbers;		/* of these columns */
	const char *alias;			/* of the set in a query, which the table has not */
	MemoryContext context;
} RsKeyset;

/* An empty set of rows of the table, in the current memory context.  Raises object_not_in_prerequisite_state for a table
 * without a primary key, and feature_not_supported for one whose key has a column that there are no arrays of. */
extern RsKeyset *rs_keyset_create(RsRows *rows);

/* Adds a row: an RsRowSeen, the keyset is its argument. */
extern void rs_keyset_add(void *keyset, TupleTableSlot *row);

/* A text array of the last row's key; NULL if there is none. */
extern ArrayType *rs_keyset_last(RsKeyset *keyset);

/* Rows between two keys, text arrays: those behind "after" up to "last".  NULL: from the beginning, to the end. */
typedef struct RsKeyRange
{
	ArrayType  *after;
	ArrayType  *last;
} RsKeyRange;

/*
 * Selects up to "limit" rows of the range, in the order of the key, as rs_rows_announce(), and adds them to the set.  Raises what
 * a value that is none raises, and array_subscript_error for another number of values.
 */
extern int64 rs_keyset_read(RsKeyset *keyset, RsRows *rows, const RsSelection *selection,
							const RsKeyRange *range, int64 limit);

/* The key of the last of the rows; NULL if there are none.  (Only the selection's where counts.) */
extern ArrayType *rs_keyset_end(RsRows *rows, const RsSelection *selection);

/* Announces those of the rows in the set that the selection still finds, in the order of the key, and adds them to the
 * other set. */
extern int64 rs_keyset_announce(RsKeyset *keyset, RsRows *rows, const RsSelection *selection,
								RsKeyset *announced);

/* For a command about the rows in the set: a condition, and the parameters in it. */
extern char *rs_keyset_condition(RsKeyset *keyset);
extern void rs_keyset_parameters(RsKeyset *keyset, Oid **types, Datum **values);

#endif							/* RS_API_KEYSET_H */
