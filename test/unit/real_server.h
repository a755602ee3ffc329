/*
 * real_server.h
 *	  A real redis-server, if there is one in PATH: on a Unix socket in a directory of
 *	  its own.
 */
#ifndef RS_REAL_SERVER_H
#define RS_REAL_SERVER_H

#include <sys/types.h>

#include "../../src/redis/redis.h"

typedef struct RealServer
{
	char		directory[64];
	char		url[120];
	pid_t		pid;
} RealServer;

extern bool real_is_installed(void);
extern void real_start(RealServer *server, const char *password);
extern void real_stop(RealServer *server);

/* Connects as soon as the server answers. */
extern RsConnection *real_connect(const RealServer *server, const RsConnectOptions *options,
								  RsServerInfo *info, RsError *error);

/* Sends words with a space between them; false when no reply came, which is told. */
extern bool real_command(RsConnection *connection, const char *words, RsReply *reply);

#endif							/* RS_REAL_SERVER_H */
