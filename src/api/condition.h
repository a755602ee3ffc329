/*
 * condition.h
 *	  SQL that users give as text.  For the files of this directory.
 */
#ifndef RS_API_CONDITION_H
#define RS_API_CONDITION_H

#include "nodes/pg_list.h"
#include "parser/parse_node.h"
#include "utils/relcache.h"

/* The statements of a text, unjudged: a list of RawStmt.  "what" names it in errors, which are those of the parser. */
extern List *rs_api_parse(const char *query, const char *what);

/*
 * Parses one boolean expression of the relation's columns; "kind" says what may be in it.  Raises what the parser
 * raises, and syntax_error for what is more or less than one expression.  The result is an expression of relation 1.
 */
extern Node *rs_api_parse_condition(Relation relation, const char *text, ParseExprKind kind,
									const char *what);

/* The text of such an expression, its columns qualified with that name (NULL: not qualified). */
extern char *rs_api_condition_text(Relation relation, Node *condition, const char *name);

#endif							/* RS_API_CONDITION_H */
