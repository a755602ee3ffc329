/*
 * progress.c
 *	  redstream.progress: the batch procedures that are running.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "progress.h"

PG_FUNCTION_INFO_V1(redstream_progress_rows);

#define COLUMNS 9

static const char *const states[] = {
	[RS_PROGRESS_RUNNING] = "running",
	[RS_PROGRESS_PAUSING] = "pausing",
	[RS_PROGRESS_WAITING] = "waiting"
};

/* Rows a second. */
static double
rate_of(const RsProgress *progress)
{
	TimestampTz passed = GetCurrentTimestamp() - progress->started;

	return passed <= 0 ? 0 : progress->done * 1000000.0 / passed;
}

static void
put_progress(ReturnSetInfo *result, const RsProgress *progress)
{
	Datum		values[COLUMNS] = {0};
	bool		nulls[COLUMNS] = {false};

	values[0] = Int32GetDatum(progress->pid);
	values[1] = CStringGetTextDatum(progress->changing ? "bulk_update" : "bulk_enqueue");
	values[2] = ObjectIdGetDatum(progress->table);
	values[3] = CStringGetTextDatum(states[progress->state]);
	values[4] = Int64GetDatum(progress->done);
	values[5] = Int64GetDatum(progress->total);
	nulls[5] = progress->total == 0;
	values[6] = Float8GetDatum(rate_of(progress));
	values[7] = TimestampTzGetDatum(progress->started);
	values[8] = CStringGetTextDatum(progress->last_key);
	nulls[8] = progress->last_key[0] == '\0';
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* pid, procedure, table, state, done, total, rate, started, last_key; no rows when the library was not preloaded. */
Datum
redstream_progress_rows(PG_FUNCTION_ARGS)
{
	RsProgress	progress;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; rs_progress_get(i, &progress); i++)
		if (progress.pid != 0 && progress.database == MyDatabaseId)
			put_progress((ReturnSetInfo *) fcinfo->resultinfo, &progress);
	return (Datum) 0;
}
