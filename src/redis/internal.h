/*
 * internal.h
 *	  What the files of this room share; not for other
 *	  rooms.
 */
#ifndef RS_REDIS_INTERNAL_H
#define RS_REDIS_INTERNAL_H

#include <hiredis/hiredis.h>

#include "redis.h"

/* As much as hiredis reads at once: its reader moves what is left of its
 * buffer down at every kilobyte, so more would be slower. */
#define RS_INPUT_SIZE 16384

/* Texts of single replies up to this length need no memory. */
#define RS_TEXT_SIZE 256

/* A number as text, for scripts. */
#define RS_TEXT(number) RS_TEXT_OF(number)
#define RS_TEXT_OF(number) #number

struct addrinfo;

struct RsConnection
{
	redisContext *context;		/* the socket and the reader */
	redisReplyObjectFunctions *tree_functions;	/* hiredis' own */
	char	   *target;			/* "host:port" or "unix:/path", for errors */
	RsWait		wait;
	void	   *wait_argument;

	/* The last reply that was handed out, or the one being read. */
	redisReply *tree;
	bool		light_known;	/* light_type was told by the reader */
	RsReplyType light_type;
	int64_t		light_integer;
	size_t		text_length;
	size_t		text_size;
	char	   *text;			/* text_room, or malloced for a longer one */
	char		text_room[RS_TEXT_SIZE];

	/* What rs_redis_queue() has queued. */
	char	   *queue;
	size_t		queue_used;
	size_t		queue_size;
	bool		queue_failed;	/* out of memory */

	char		input[RS_INPUT_SIZE];
};

/* A moment of the monotonic clock, and the timeout that led to it for errors. */
typedef struct RsDeadline
{
	int64_t		end_ns;
	int			timeout_ms;
} RsDeadline;

/* connection.c */
extern void rs_redis_deadline_start(RsDeadline *deadline, int timeout_ms);
/* Milliseconds that are left, rounded up; 0 when it has passed. */
extern int	rs_redis_deadline_left(const RsDeadline *deadline);

/* Waits for the socket, or another descriptor.  False and an error ("<call> <target>: ...") when the
 * deadline has passed or the caller gave up; "call" is like "HELLO on". */
extern bool rs_redis_await(RsConnection *connection, int fd, bool writable,
						   const RsDeadline *deadline, const char *call, RsError *error);
/* Sends all, and waits for one reply; errors as above. */
extern bool rs_redis_send_all(RsConnection *connection, const char *data, size_t size,
							  const RsDeadline *deadline, const char *call, RsError *error);
extern bool rs_redis_await_reply(RsConnection *connection, bool tree, const RsDeadline *deadline,
								 const char *call, RsReply *reply, RsError *error);

/* resolve.c */
/* The addresses of a host, for freeaddrinfo(), waited for as above; false and an error. */
extern bool rs_redis_resolve(RsConnection *connection, const char *host, const RsDeadline *deadline,
							 struct addrinfo **found, RsError *error);

/* socket.c */
/* Connects the socket and makes the connection's context; false and an error. */
extern bool rs_redis_open_socket(RsConnection *connection, const RsAddress *address,
								 const RsDeadline *deadline, RsError *error);

/* reply.c */
/* rs_redis_reply, whose error is only the reason. */
extern int	rs_redis_take_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *reason);
/* Frees what the last reply needed. */
extern void rs_redis_forget_reply(RsConnection *connection);

/* Redis refused a command, or its reply is not what it should be: false, and an error. */
extern bool rs_redis_refuse(const char *command, const RsReply *reply, bool *refused, RsError *error);

#endif							/* RS_REDIS_INTERNAL_H */
