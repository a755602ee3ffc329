/*
 * attachments.h
 *	  The streams of the database's attached tables.  For the files of this directory.
 */
#ifndef RS_API_ATTACHMENTS_H
#define RS_API_ATTACHMENTS_H

#include "nodes/pg_list.h"
#include "utils/timestamp.h"

/* A stream that attached tables announce to, with what holds for all of them. */
typedef struct RsApiStream
{
	char	   *name;			/* in UTF-8 */
	Interval   *delay;			/* NULL: redstream.delay */
	Interval   *expiry;			/* NULL: none */
} RsApiStream;

/*
 * A list of RsApiStream in the current memory context, each stream once.  Of two tables
 * that share one the shorter delay counts, and the longer expiry; none at all is the
 * longest.
 */
extern List *rs_api_attached_streams(void);

#endif							/* RS_API_ATTACHMENTS_H */
