/*
 * servers.c
 *	  Other PostgreSQL servers whose messages lie in the delay streams: is one of them
 *	  there to see to its own?
 *
 * A server is there as long as its key is (protocol: TTL 30 s).  What is known is
 * asked again at every step; a server never met before is asked about when its
 * first message is met.
 */
#include "postgres.h"

#include "nodes/pg_list.h"

#include "settings.h"
#include "worker/delay.h"

#define SERVERS_MAX 100

typedef struct RsServer
{
	char		name[64];		/* "<system identifier>:<timeline>" */
	RsServerLife life;
} RsServer;

static RsServer *
find(const RsWork *work, const char *name)
{
	ListCell   *cell;

	foreach(cell, work->servers)
	{
		RsServer   *server = lfirst(cell);

		if (strcmp(server->name, name) == 0)
			return server;
	}
	return NULL;
}

RsServerLife
rs_server_life(const RsWork *work, const char *name)
{
	RsServer   *server = find(work, name);

	if (server != NULL)
		return server->life;
	/* So many are no servers, but somebody's invention. */
	return list_length(work->servers) < SERVERS_MAX ? RS_SERVER_UNKNOWN : RS_SERVER_GONE;
}

void
rs_server_note(RsWork *work, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(work->context);

	if (find(work, name) == NULL)
	{
		RsServer   *server = palloc0(sizeof(RsServer));

		strlcpy(server->name, name, sizeof(server->name));
		work->servers = lappend(work->servers, server);
	}
	MemoryContextSwitchTo(old);
}

bool
rs_servers_ask(RsWork *work, RsError *error)
{
	ListCell   *cell;

	foreach(cell, work->servers)
	{
		RsServer   *server = lfirst(cell);
		RsKey		key;
		RsReply		reply;
		const char *words[] = {"EXISTS", key.text};

		rs_redis_server_key(&key, rs_namespace, server->name);
		if (!rs_work_ask(work, 2, words, &reply, error))
			return false;
		if (reply.type == RS_REPLY_ERROR)
		{
			rs_redis_error(error, "EXISTS: %.*s", (int) reply.length, reply.text);
			rs_work_disconnect(work);
			return false;
		}
		server->life = reply.integer > 0 ? RS_SERVER_ALIVE : RS_SERVER_GONE;
	}
	return true;
}
