/*
 * client.c
 *	  See client.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

RsConnection *
client_connect(const char *url, const RsConnectOptions *options, RsServerInfo *info, RsError *error)
{
	RsConnectOptions complete;
	RsAddress	address;
	RsConnection *connection;

	if (!rs_redis_address_parse(url, &address, error))
		return NULL;
	memset(&complete, 0, sizeof(complete));
	if (options != NULL)
		complete = *options;
	complete.address = &address;
	if (complete.timeout_ms == 0)
		complete.timeout_ms = PATIENCE_MS;
	error->text[0] = '\0';
	connection = rs_redis_connect(&complete, info, error);
	rs_redis_address_free(&address);
	return connection;
}

RsConnection *
client_connect_fake(const FakeServer *server)
{
	RsServerInfo info;
	RsError		error;
	RsConnection *connection = client_connect(server->url, NULL, &info, &error);

	if (connection == NULL)
	{
		fprintf(stderr, "# %s\n", error.text);
		exit(2);
	}
	return connection;
}

int
client_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *error)
{
	long long	end = fake_now_ms() + PATIENCE_MS;

	for (;;)
	{
		int			result = rs_redis_reply(connection, tree, reply, error);

		if (result != 0)
			return result;
		result = rs_redis_read(connection, error);
		if (result < 0)
			return result;
		if (result == 0 && fake_now_ms() > end)
		{
			rs_redis_error(error, "no reply came");
			return -1;
		}
		if (result == 0)
			rs_redis_wait_poll(NULL, rs_redis_fd(connection), false, 1000);
	}
}

bool
client_write(RsConnection *connection, const char *bytes, RsError *error)
{
	struct iovec piece = {.iov_base = (char *) bytes,.iov_len = strlen(bytes)};

	while (piece.iov_len > 0)
	{
		ssize_t		written = rs_redis_write(connection, &piece, 1, error);

		if (written < 0)
			return false;
		if (written == 0)
			rs_redis_wait_poll(NULL, rs_redis_fd(connection), true, 1000);
		piece.iov_base = (char *) piece.iov_base + written;
		piece.iov_len -= (size_t) written;
	}
	return true;
}

bool
client_text_is(const RsReply *reply, const char *text)
{
	return reply->length == strlen(text) &&
		(reply->length == 0 || memcmp(reply->text, text, reply->length) == 0);
}
