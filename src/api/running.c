/*
 * running.c
 *	  redstream.run_delayer() and redstream.run_trimmer(): one step of the worker's jobs,
 *	  now and in this backend.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/tuplestore.h"

#include "api/asking.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(redstream_run_delayer);
PG_FUNCTION_INFO_V1(redstream_run_trimmer);

static Datum
text_datum(const char *string)
{
	return PointerGetDatum(rs_api_text(string, strlen(string)));
}

/* A row: stream, moved, dropped, held, locked, error. */
static void
put_delayed(void *argument, const RsJobReport *report)
{
	ReturnSetInfo *result = argument;
	Datum		values[6] = {0};
	bool		nulls[6] = {0};

	values[0] = text_datum(report->stream);
	values[1] = Int64GetDatum(report->moved);
	values[2] = Int64GetDatum(report->dropped);
	values[3] = Int64GetDatum(report->held);
	values[4] = BoolGetDatum(report->locked);
	nulls[5] = report->error == NULL;
	if (report->error != NULL)
		values[5] = text_datum(report->error);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* A row: stream, trimmed, expired, locked, error. */
static void
put_trimmed(void *argument, const RsJobReport *report)
{
	ReturnSetInfo *result = argument;
	Datum		values[5] = {0};
	bool		nulls[5] = {0};

	values[0] = text_datum(report->stream);
	values[1] = Int64GetDatum(report->trimmed);
	values[2] = Int64GetDatum(report->expired);
	values[3] = BoolGetDatum(report->locked);
	nulls[4] = report->error == NULL;
	if (report->error != NULL)
		values[4] = text_datum(report->error);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

Datum
redstream_run_delayer(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery("redstream.run_delayer()");
	InitMaterializedSRF(fcinfo, 0);
	rs_worker_run_delayer(rs_api_wait, put_delayed, fcinfo->resultinfo);
	return (Datum) 0;
}

Datum
redstream_run_trimmer(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery("redstream.run_trimmer()");
	InitMaterializedSRF(fcinfo, 0);
	rs_worker_run_trimmer(rs_api_wait, put_trimmed, fcinfo->resultinfo);
	return (Datum) 0;
}
