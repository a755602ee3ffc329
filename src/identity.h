/*
 * identity.h
 *	  Who this server is, in Redis.  A leaf: any server file may ask.
 */
#ifndef RS_IDENTITY_H
#define RS_IDENTITY_H

#include "redis/redis.h"

/* "<system identifier>:<timeline>": for whose transactions this server speaks. */
extern const char *rs_identity_server(void);

/* "xact:" and that: the field of our delay messages. */
extern const char *rs_identity_xact_field(void);

/* The key of the set of streams that this database has written to, in that namespace. */
extern void rs_identity_streams_key(RsKey *key, const char *ns);

/* What tells this server from a copy of its data directory: a hash of host name, port and data
 * directory, in hex. */
extern const char *rs_identity_token(void);

#endif							/* RS_IDENTITY_H */
