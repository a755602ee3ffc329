/*
 * session.h
 *	  What lease.c needs of the session's connection besides the door: commands that lie ready, and
 *	  the timer.  For the files of this directory.
 */
#ifndef RS_CONSUMING_SESSION_H
#define RS_CONSUMING_SESSION_H

#include "redis/redis.h"

/* Commands as bytes, in TopTransactionContext.  Zeroed: none. */
typedef struct RsCommands
{
	char	   *bytes;
	size_t		length;
	int			count;
} RsCommands;

extern void rs_commands_add(RsCommands *commands, int count, const char *const *words);
extern void rs_commands_forget(RsCommands *commands);

/* Sends them, if there is a connection, without waiting.  Neither throws nor allocates. */
extern void rs_session_send(const RsCommands *commands);

/*
 * What the timer sends, until it is told otherwise: the extension of all locks, NULL when there is none.  The timer must be
 * off while this changes, and while the commands do.
 */
extern void rs_session_extends(const RsCommands *commands);
/* All locks have just been taken or extended. */
extern void rs_session_extended(void);
/* Until rs_session_rest().  Neither throws nor allocates. */
extern void rs_session_stop_timer(void);

#endif							/* RS_CONSUMING_SESSION_H */
