/*
 * condition.c
 *	  SQL that users give as text: a condition on a table's columns becomes a tree, and from that a text that
 *	  means the same wherever it is put.
 *
 * The text of a condition is never put into a command itself.  PostgreSQL parses it as one expression, judges what is in
 * it, and prints it again, as it does for a view or a dump.
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "api/condition.h"
#include "capture/capture.h"

#define SELECT "SELECT "

/* What errors of the parser are about. */
typedef struct Parsed
{
	const char *what;
	const char *query;
} Parsed;

/* A position in our query is none in the caller's. */
static void
add_context(void *argument)
{
	Parsed	   *parsed = argument;
	int			position = geterrposition();

	if (geterrcode() == ERRCODE_UNDEFINED_TABLE)
		errhint("Name the columns alone, without OLD, NEW or another table.");
	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(parsed->query);
	}
	errcontext("%s", parsed->what);
}

/* "*" or "table.*": all columns, which is none that transformExpr() knows. */
static bool
is_star(Node *expression)
{
	return IsA(expression, ColumnRef) && IsA(llast(((ColumnRef *) expression)->fields), A_Star);
}

/* The expression of a SELECT of nothing else; NULL for anything more or less. */
static Node *
single_expression(List *statements)
{
	SelectStmt	bare = {.type = T_SelectStmt};
	SelectStmt *select;
	ResTarget  *target;
	RawStmt    *statement = statements != NIL ? linitial_node(RawStmt, statements) : NULL;

	/* with a length it ends before a semicolon */
	if (statement == NULL || statement->stmt_len != 0)
		return NULL;
	select = (SelectStmt *) statement->stmt;
	if (!IsA(select, SelectStmt) || list_length(select->targetList) != 1)
		return NULL;
	bare.targetList = select->targetList;
	bare.limitOption = select->limitOption;
	target = linitial_node(ResTarget, select->targetList);
	if (!equal(select, &bare) || target->name != NULL || is_star(target->val))
		return NULL;
	return target->val;
}

List *
rs_api_parse(const char *query, const char *what)
{
	Parsed		parsed = {what, query};
	ErrorContextCallback context = {error_context_stack, add_context, &parsed};
	List	   *statements;

	error_context_stack = &context;
	statements = raw_parser(query, RAW_PARSE_DEFAULT);
	error_context_stack = context.previous;
	return statements;
}

static Node *
transform(Relation relation, Node *raw, const char *query, ParseExprKind kind)
{
	ParseState *state = make_parsestate(NULL);
	Node	   *condition;

	state->p_sourcetext = query;
	addNSItemToQuery(state, addRangeTableEntryForRelation(state, relation, AccessShareLock,
														  NULL, false, true),
					 false, true, true);
	condition = transformWhereClause(state, raw, kind, "WHERE");
	assign_expr_collations(state, condition);
	free_parsestate(state);
	return condition;
}

Node *
rs_api_parse_condition(Relation relation, const char *text, ParseExprKind kind, const char *what)
{
	char	   *query = psprintf(SELECT "%s", text);
	Node	   *raw = single_expression(rs_api_parse(query, what));
	Parsed		parsed = {what, query};
	ErrorContextCallback context = {error_context_stack, add_context, &parsed};
	Node	   *condition;

	error_context_stack = &context;
	if (raw == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("not one expression: \"%s\"", text),
				 errhint("Write a condition as it would stand after WHERE.")));
	condition = transform(relation, raw, query, kind);
	error_context_stack = context.previous;
	return condition;
}

/* Constants are printed as the session prints values, and not in every style do they mean the same when they are read
 * again: time zones by abbreviation, floats that are cut. */
char *
rs_api_condition_text(Relation relation, Node *condition, const char *name)
{
	int			nest_level = rs_capture_begin_output(RS_OUTPUT_COMMON);
	List	   *context = deparse_context_for(name != NULL ? name : RelationGetRelationName(relation),
											  RelationGetRelid(relation));
	char	   *text = deparse_expression(condition, context, name != NULL, false);

	rs_capture_end_output(nest_level);
	return text;
}
