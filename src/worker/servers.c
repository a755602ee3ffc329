/*
 * servers.c
 *	  Other PostgreSQL servers whose messages lie in the delay streams: is one of them
 *	  there to see to its own?
 *
 * A server is there as long as its key is (protocol: TTL 30 s).  Those that are there are asked about
 * again at every step; another one is asked about when a message of it is met.
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
	/* So many at once are somebody's invention; they have to wait. */
	return list_length(work->servers) < SERVERS_MAX ? RS_SERVER_UNKNOWN : RS_SERVER_ALIVE;
}

void
rs_server_note(RsWork *work, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(work->context);

	if (find(work, name) == NULL && list_length(work->servers) < SERVERS_MAX)
	{
		RsServer   *server = palloc0(sizeof(RsServer));

		strlcpy(server->name, name, sizeof(server->name));
		work->servers = lappend(work->servers, server);
	}
	MemoryContextSwitchTo(old);
}

void
rs_servers_forget_gone(RsWork *work)
{
	ListCell   *cell;

	foreach(cell, work->servers)
	{
		RsServer   *server = lfirst(cell);

		if (server->life != RS_SERVER_GONE)
			continue;
		work->servers = foreach_delete_current(work->servers, cell);
		pfree(server);
	}
}

static bool
ask_all(RsWork *work, RsError *error)
{
	ListCell   *cell;

	foreach(cell, work->servers)
	{
		RsKey		key;
		const char *words[] = {"EXISTS", key.text};

		rs_redis_server_key(&key, rs_namespace, ((RsServer *) lfirst(cell))->name);
		rs_redis_queue(work->connection, 2, words, NULL);
	}
	if (work->servers != NIL && !rs_redis_flush(work->connection, rs_timeout, error))
		return false;
	foreach(cell, work->servers)
	{
		RsReply		reply;

		if (!rs_redis_next(work->connection, false, rs_timeout, &reply, error))
			return false;
		if (reply.type == RS_REPLY_ERROR)
			return rs_redis_error(error, "EXISTS: %.*s", (int) reply.length, reply.text);
		((RsServer *) lfirst(cell))->life = reply.integer > 0 ? RS_SERVER_ALIVE : RS_SERVER_GONE;
	}
	return true;
}

bool
rs_servers_ask(RsWork *work, RsError *error)
{
	if (ask_all(work, error))
		return true;
	rs_work_disconnect(work);
	return false;
}
