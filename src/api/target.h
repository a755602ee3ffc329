/*
 * target.h
 *	  The table that a function is called for.  For the files of this directory.
 */
#ifndef RS_API_TARGET_H
#define RS_API_TARGET_H

#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"

/* Raises null_value_not_allowed if one of the first arguments, which have these names, is NULL. */
extern void rs_api_check_nulls(FunctionCallInfo fcinfo, int count, const char *const *names);

/* Raises wrong_object_type for what is no table, a temporary one, a system table or redstream's own.  "verb" is what
 * cannot be done then. */
extern void rs_api_check_table(Relation relation, const char *verb);

/* The names of the streams of an attachment, sorted. */
extern List *rs_api_stream_names(const char *stream, int shards);

/* A default name is not to bring two tables together by accident: raises duplicate_object if another table is attached to one of
 * these streams. */
extern void rs_api_check_not_taken(Relation relation, List *names);

#endif							/* RS_API_TARGET_H */
