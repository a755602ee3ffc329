/*
 * table.h
 *	  The columns of redstream.spool, and how it is opened.  For the files of this directory.
 */
#ifndef RS_SPOOL_TABLE_H
#define RS_SPOOL_TABLE_H

#include "utils/rel.h"

#include "spool/spool.h"

enum
{
	RS_SPOOL_BUCKET = 1,
	RS_SPOOL_POSITION,
	RS_SPOOL_XACT,
	RS_SPOOL_NAMESPACE,
	RS_SPOOL_STREAM,
	RS_SPOOL_PAYLOAD,
	RS_SPOOL_PUBLICATION,
	RS_SPOOL_SPOOLED_AT
};

#define RS_SPOOL_COLUMNS RS_SPOOL_SPOOLED_AT

/* Opens the table; raises undefined_table when it is not there, or not this library's. */
extern Relation rs_spool_table_open(LOCKMODE mode);

/* Its index by bucket and position. */
extern Relation rs_spool_index_open(LOCKMODE mode);

#endif							/* RS_SPOOL_TABLE_H */
