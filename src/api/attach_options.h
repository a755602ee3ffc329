/*
 * attach_options.h
 *	  What redstream.attach() is asked for.  For the files of this directory.
 */
#ifndef RS_API_ATTACH_OPTIONS_H
#define RS_API_ATTACH_OPTIONS_H

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "nodes/nodes.h"
#include "utils/relcache.h"

typedef struct RsAttachOptions
{
	StringInfoData arguments;	/* of the triggers, SQL literals */
	Node	   *condition;		/* rs_api_parse_condition(); NULL: every row */
	bool		replica;
} RsAttachOptions;

/*
 * Reads the arguments of attach() for the table.  Raises invalid_parameter_value, invalid_name, undefined_column and their
 * like for what they cannot be, and what the parser raises for a condition.
 */
extern void rs_api_read_options(FunctionCallInfo fcinfo, Relation relation,
								RsAttachOptions *options);

#endif							/* RS_API_ATTACH_OPTIONS_H */
