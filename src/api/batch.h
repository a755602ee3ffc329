/*
 * batch.h
 *	  One batch of redstream.bulk_update() and redstream.bulk_enqueue().  For the files of this directory.
 */
#ifndef RS_API_BATCH_H
#define RS_API_BATCH_H

#include "api/keyset.h"

/* What is done in batches. */
typedef struct RsBatchTask
{
	const char *procedure;		/* for messages */
	Oid			table;
	const char *assignments;	/* NULL: nothing is changed */
	const char *matching;
	int			batch_size;
	RsKeyRange	range;			/* behind the last row that is done, up to the last there was when the first batch began */
	double		expected;		/* rows in all, as of then */
	MemoryContext context;		/* lives as long as the task */
} RsBatchTask;

/* What a batch came to. */
typedef struct RsBatch
{
	int64		chosen;			/* rows that were found */
	int64		rows;			/* of these, the ones that still matched when they were locked */
	ArrayType  *last;			/* key of the last one that was found; NULL: there were none */
} RsBatch;

/*
 * Does the next batch and commits it; "context" is for what it comes to, and CurrentMemoryContext must outlive the
 * transaction.  False: Redis did not take the messages, and everything is rolled back.  Raises what
 * redstream.bulk() raises, and syntax_error and feature_not_supported for assignments that are none or change the key.
 */
extern bool rs_batch_try(RsBatchTask *task, MemoryContext context, RsBatch *batch);

#endif							/* RS_API_BATCH_H */
