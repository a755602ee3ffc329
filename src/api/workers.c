/*
 * workers.c
 *	  SQL functions about the background processes.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "processes.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(redstream_announce_extension);
PG_FUNCTION_INFO_V1(redstream_worker_rows);

#define COLUMNS 7

static const char *const kinds[] = {
	[RS_PROCESS_SENDER] = "sender",
	[RS_PROCESS_LAUNCHER] = "launcher",
	[RS_PROCESS_SPOOLER] = "spooler",
	[RS_PROCESS_DELAYER] = "delayer",
	[RS_PROCESS_TRIMMER] = "trimmer"
};

static const char *const states[] = {
	[RS_PROCESS_STARTING] = "starting",
	[RS_PROCESS_WAITING] = "waiting for a worker process",
	[RS_PROCESS_IDLE] = "idle",
	[RS_PROCESS_WORKING] = "working",
	[RS_PROCESS_FAILING] = "failing"
};

Datum
redstream_announce_extension(PG_FUNCTION_ARGS)
{
	rs_worker_announce_extension();
	PG_RETURN_VOID();
}

/*
 * The error may come from a database of another encoding, or from Redis, and be cut in the middle
 * of a character: what is no text here is made readable ASCII.
 */
static text *
error_text(char *error)
{
	if (!pg_verifymbstr(error, strlen(error), true))
		for (char *c = error; *c != '\0'; c++)
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
	return cstring_to_text(error);
}

/* One row; none for a database that is gone. */
static void
put_process(ReturnSetInfo *result, RsProcess *process)
{
	char	   *name = OidIsValid(process->database) ? get_database_name(process->database) : NULL;
	Datum		values[COLUMNS] = {0};
	bool		nulls[COLUMNS] = {false};

	if (OidIsValid(process->database) && name == NULL)
		return;
	if (name != NULL)
		values[0] = DirectFunctionCall1(namein, CStringGetDatum(name));
	nulls[0] = name == NULL;
	values[1] = Int32GetDatum(process->pid);
	nulls[1] = process->pid == 0;
	values[2] = CStringGetTextDatum(kinds[process->kind]);
	values[3] = CStringGetTextDatum(states[process->state]);
	values[4] = TimestampTzGetDatum(process->last_tick);
	nulls[4] = process->last_tick == 0;
	values[5] = PointerGetDatum(error_text(process->last_error));
	values[6] = TimestampTzGetDatum(process->last_error_at);
	nulls[5] = nulls[6] = process->last_error_at == 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* database, pid, kind, state, last_tick, last_error, last_error_at; no rows when the library was
 * not preloaded. */
Datum
redstream_worker_rows(PG_FUNCTION_ARGS)
{
	RsProcess	process;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; rs_process_get(i, &process); i++)
		put_process((ReturnSetInfo *) fcinfo->resultinfo, &process);
	return (Datum) 0;
}
