/*
 * client.h
 *	  What the tests of connections share: connecting to a URL, and waiting for
 *	  a reply with a deadline.
 */
#ifndef RS_CLIENT_H
#define RS_CLIENT_H

#include "../../src/redis/redis.h"
#include "fake_server.h"

/* For what must not fail; far more than it takes. */
#define PATIENCE_MS 20000

/* Fields of "options" but the address can be set before; may be NULL. */
extern RsConnection *client_connect(const char *url, const RsConnectOptions *options,
									RsServerInfo *info, RsError *error);
/* Connects to a fake server whose script is a greeting without password. */
extern RsConnection *client_connect_fake(const FakeServer *server);

/* rs_redis_reply, reading and waiting as needed: 1, or -1 and an error. */
extern int	client_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *error);

/* Writes all of a text, or fails and says so. */
extern bool client_write(RsConnection *connection, const char *bytes, RsError *error);

/* The text of a reply is this one. */
extern bool client_text_is(const RsReply *reply, const char *text);

#endif							/* RS_CLIENT_H */
