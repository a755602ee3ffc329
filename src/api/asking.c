/*
 * asking.c
 *	  How the SQL functions of this directory ask Redis, and how they take and give
 *	  names.
 */
#include "postgres.h"

#include <hiredis/hiredis.h>

#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/procsignal.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "api/asking.h"
#include "capture/capture.h"
#include "consuming/consuming.h"
#include "identity.h"
#include "settings.h"

#define WAIT_SLICE 100			/* milliseconds */

/* ---- arguments and results ---------------------------------------------------------- */

char *
rs_api_utf8_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *value = text_to_cstring(PG_GETARG_TEXT_PP(number));

	return pg_server_to_any(value, strlen(value), PG_UTF8);
}

void
rs_api_invalid_name(const RsError *error)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("%s", error->text)));
}

char *
rs_api_stream_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *stream = rs_api_utf8_argument(fcinfo, number);
	RsError		error;

	if (!rs_redis_stream_name_check(stream, &error))
		rs_api_invalid_name(&error);
	return stream;
}

char *
rs_api_consumer_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *consumer = rs_api_utf8_argument(fcinfo, number);
	RsError		error;

	if (!rs_redis_consumer_name_check(consumer, &error))
		rs_api_invalid_name(&error);
	return consumer;
}

static text *
escaped(const char *data, size_t length)
{
	StringInfoData text;

	initStringInfo(&text);
	for (size_t i = 0; i < length; i++)
	{
		unsigned char byte = data[i];

		if (byte < 0x20 || byte >= 0x7F)
			appendStringInfo(&text, "\\x%02x", byte);
		else
			appendStringInfoChar(&text, byte);
	}
	return cstring_to_text_with_len(text.data, text.len);
}

text *
rs_api_text(const char *data, size_t length)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	unsigned char *converted;
	Size		size = length * MAX_CONVERSION_GROWTH + 1;

	if (!pg_verify_mbstr(PG_UTF8, data, length, true))
		return escaped(data, length);
	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return cstring_to_text_with_len(data, length);
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return escaped(data, length);
	converted = palloc(size);
	if (pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding, (unsigned char *) data, length,
									  converted, size, true) < (int) length)
		return escaped(data, length);
	return cstring_to_text((char *) converted);
}

Datum
rs_api_jsonb(const char *payload, size_t length)
{
	char	   *copy = palloc(length + 1);

	/* not pnstrdup(): a zero byte is to be met by the check of the encoding */
	memcpy(copy, payload, length);
	copy[length] = '\0';
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(pg_any_to_server(copy, length, PG_UTF8)));
}

/* ---- asking ----------------------------------------------------------------------------- */

/* Waits in slices.  Not WaitLatchOrSocket(): that can throw, past code that holds malloced
 * memory.  DROP DATABASE, say, waits until every process has taken part in a barrier. */
bool
rs_api_wait(void *argument, int fd, bool writable, int timeout_ms)
{
	if (ProcSignalBarrierPending)
		ProcessProcSignalBarrier();
	return rs_redis_wait_poll(argument, fd, writable, Min(timeout_ms, WAIT_SLICE)) &&
		!QueryCancelPending && !ProcDiePending;
}

/* Fit for a message: Redis may have quoted anything in it. */
static char *
text_of_error(const RsError *error)
{
	return text_to_cstring(rs_api_text(error->text, strlen(error->text)));
}

void
rs_api_failed(const RsError *error)
{
	CHECK_FOR_INTERRUPTS();		/* the reason, if there is one */
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not ask Redis: %s", text_of_error(error)),
			 errhint("See redstream.url and redstream.stats.")));
}

RsConnection *
rs_api_connect(void)
{
	RsServerInfo info;
	RsError		error;
	RsConnection *connection;

	connection = rs_connect_configured("redstream-sql", rs_api_wait, NULL, &info, &error);
	if (connection == NULL)
		rs_api_failed(&error);
	return connection;
}

RsConnection *
rs_api_lease_connection(void)
{
	RsError		error;
	RsConnection *connection = rs_session_connection(&error);

	if (connection == NULL)
		rs_api_failed(&error);
	return connection;
}

void
rs_api_lease_failed(bool refused, const RsError *error)
{
	if (refused)
		rs_session_suspect();
	else
		rs_session_lost();
	rs_api_failed(error);
}

void
rs_api_ask(RsConnection *connection, int count, const char *const *words, RsReply *reply)
{
	RsError		error;

	if (!rs_redis_command(connection, count, words, NULL, rs_timeout, reply, &error))
		rs_api_failed(&error);
	if (reply->type == RS_REPLY_ERROR)
	{
		rs_redis_error(&error, "%s: %.*s", words[0], (int) reply->length, reply->text);
		rs_api_failed(&error);
	}
}

void
rs_api_flush(RsConnection *connection)
{
	RsError		error;

	if (!rs_redis_flush(connection, rs_timeout, &error))
		rs_api_failed(&error);
}

/* Is it this command that Redis refused, and not any that might come? */
static bool
is_of_command(const RsReply *reply)
{
	static const char *const codes[] = {"ERR ", "WRONGTYPE ", "NOPERM "};

	for (int i = 0; i < (int) lengthof(codes); i++)
		if (rs_redis_error_is(reply, codes[i]))
			return true;
	return false;
}

bool
rs_api_next(RsConnection *connection, RsReply *reply)
{
	RsError		error;

	if (!rs_redis_next(connection, true, rs_timeout, reply, &error))
		rs_api_failed(&error);
	if (reply->type != RS_REPLY_ERROR)
		return true;
	if (!is_of_command(reply))
	{
		rs_redis_error(&error, "%.*s", (int) reply->length, reply->text);
		rs_api_failed(&error);
	}
	return false;
}

/* ---- streams --------------------------------------------------------------------- */

static bool
is_listed(List *streams, const char *name)
{
	ListCell   *cell;

	foreach(cell, streams)
		if (strcmp(((RsAttachedStream *) lfirst(cell))->name, name) == 0)
			return true;
	return false;
}

List *
rs_api_streams(RsConnection *connection)
{
	List	   *attached = rs_capture_streams(rs_capture_function());
	List	   *streams = list_copy(attached);
	RsKey		key;
	RsReply		reply;

	rs_identity_streams_key(&key, rs_namespace);
	rs_api_ask(connection, 2, (const char *[]) {"SMEMBERS", key.text}, &reply);
	for (size_t i = 0; i < (size_t) reply.tree->elements; i++)
	{
		const char *name = reply.tree->element[i]->str;
		RsAttachedStream *stream;
		RsError		ignored;

		if (is_listed(attached, name) || !rs_redis_stream_name_check(name, &ignored))
			continue;
		stream = palloc0(sizeof(RsAttachedStream));
		stream->name = pstrdup(name);
		streams = lappend(streams, stream);
	}
	return streams;
}
