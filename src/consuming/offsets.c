/*
 * offsets.c
 *	  Offsets of consumers that work in this database, in the table redstream.offsets.
 *
 * The offset is written in the transaction that does the work, and so neither can be without the other.  The
 * table is the extension owner's and nobody else writes it: queries run as its owner.
 *
 * A consumer's lock, in Redis, keeps others from reading the same messages.  Should it fail (it expires when its holder
 * is stopped for too long), the row still tells: it has not the value any more that was read before the batch.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "consuming/consuming.h"
#include "settings.h"

#define MOST_ARGUMENTS 6

typedef struct Statement
{
	const char *sql;
	int			arguments;		/* all of them texts */
	int			result;			/* of SPI_execute_plan */
	SPIPlanPtr	plan;			/* made at the first use, and kept */
} Statement;

#define OF_CONSUMER \
	" namespace OPERATOR(pg_catalog.=) $1 AND stream OPERATOR(pg_catalog.=) $2" \
	" AND consumer OPERATOR(pg_catalog.=) $3"

static Statement read_offset = {
	"SELECT id FROM redstream.offsets WHERE" OF_CONSUMER,
	3, SPI_OK_SELECT, NULL
};

static Statement move_offset = {
	"INSERT INTO redstream.offsets AS o (namespace, stream, consumer, id) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (namespace, stream, consumer) DO UPDATE SET id = EXCLUDED.id"
	" WHERE o.id OPERATOR(pg_catalog.=) $5",
	5, SPI_OK_INSERT, NULL
};

static Statement set_offset = {
	"INSERT INTO redstream.offsets AS o (namespace, stream, consumer, id) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (namespace, stream, consumer) DO UPDATE SET id = EXCLUDED.id",
	4, SPI_OK_INSERT, NULL
};

static Statement forget_offset = {
	"DELETE FROM redstream.offsets WHERE" OF_CONSUMER,
	3, SPI_OK_DELETE, NULL
};

/* ---- statements ---------------------------------------------------------------------- */

static Oid
owner_of_table(void)
{
	Oid			table = get_relname_relid("offsets", get_namespace_oid("redstream", false));
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table redstream.offsets does not exist"),
				 errhint("The extension belongs to another version of the library.")));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void
prepare(Statement *statement)
{
	Oid			types[MOST_ARGUMENTS];

	if (statement->plan != NULL)
		return;
	for (int i = 0; i < statement->arguments; i++)
		types[i] = TEXTOID;
	statement->plan = SPI_prepare(statement->sql, statement->arguments, types);
	if (statement->plan == NULL)
		elog(ERROR, "SPI_prepare: %s", SPI_result_code_string(SPI_result));
	SPI_keepplan(statement->plan);
}

/*
 * Runs it as the owner of the table; SPI must be connected.  A user id that an error leaves behind is put back by
 * the end of the (sub)transaction.
 */
static void
run(Statement *statement, const char *const *arguments)
{
	Datum		values[MOST_ARGUMENTS];
	Oid			user;
	int			context;
	int			result;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner_of_table(),
						   context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	prepare(statement);
	for (int i = 0; i < statement->arguments; i++)
		values[i] = CStringGetTextDatum(arguments[i]);
	result = SPI_execute_plan(statement->plan, values, NULL, false, 0);
	SetUserIdAndSecContext(user, context);
	if (result != statement->result)
		elog(ERROR, "SPI_execute_plan: %s", SPI_result_code_string(result));
}

/* ---- offsets ------------------------------------------------------------------------- */

bool
rs_offset_read(const char *stream, const char *consumer, RsStreamId *id)
{
	const char *arguments[] = {rs_namespace, stream, consumer};
	bool		found;

	SPI_connect();
	run(&read_offset, arguments);
	found = SPI_processed > 0;
	if (found)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (!rs_redis_id_parse(text, strlen(text), id))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("the offset of consumer \"%s\" of stream \"%s\" in redstream.offsets is no id: \"%s\"",
							consumer, stream, text),
					 errhint("Set it with redstream.commit_offset().")));
	}
	SPI_finish();
	return found;
}

void
rs_offset_move(const char *stream, const char *consumer, const RsStreamId *expected,
			   const RsStreamId *id)
{
	char		before[RS_STREAM_ID_SIZE] = "";
	char		after[RS_STREAM_ID_SIZE];
	const char *arguments[] = {rs_namespace, stream, consumer, after, before};

	rs_redis_id_format(id, after);
	if (expected != NULL)
		rs_redis_id_format(expected, before);
	SPI_connect();
	run(&move_offset, arguments);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the offset of consumer \"%s\" of stream \"%s\" was changed by another transaction",
						consumer, stream),
				 errhint("Roll back, and consume again.")));
	SPI_finish();
}

void
rs_offset_set(const char *stream, const char *consumer, const RsStreamId *id)
{
	char		text[RS_STREAM_ID_SIZE];
	const char *arguments[] = {rs_namespace, stream, consumer, text};

	rs_redis_id_format(id, text);
	SPI_connect();
	run(&set_offset, arguments);
	SPI_finish();
}

void
rs_offset_forget(const char *stream, const char *consumer)
{
	const char *arguments[] = {rs_namespace, stream, consumer};

	SPI_connect();

	/* a transaction that may not write has nothing to do here then */
	run(&read_offset, arguments);
	if (SPI_processed > 0)
		run(&forget_offset, arguments);
	SPI_finish();
}
