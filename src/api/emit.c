/*
 * emit.c
 *	  redstream.emit(): a message of the caller's own, announced with the transaction.
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/jsonb.h"

#include "api/asking.h"
#include "api/target.h"
#include "capture/capture.h"
#include "transaction/transaction.h"

PG_FUNCTION_INFO_V1(redstream_emit);

Datum
redstream_emit(PG_FUNCTION_ARGS)
{
	char	   *stream;
	Jsonb	   *payload;
	char	   *text;

	rs_api_check_nulls(fcinfo, 2, (const char *const[]) {"stream", "payload"});
	PreventCommandDuringRecovery("redstream.emit()");
	stream = rs_api_stream_argument(fcinfo, 0);
	payload = PG_GETARG_JSONB_P(1);
	text = JsonbToCString(NULL, &payload->root, VARSIZE(payload));
	text = pg_server_to_any(text, strlen(text), PG_UTF8);
	rs_transaction_record(rs_transaction_stream(stream), text, rs_capture_squeeze_json(text), false);
	PG_RETURN_VOID();
}
