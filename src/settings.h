/*
 * settings.h
 *	  All settings (GUCs) of redstream.  A leaf: any server file may read them.
 */
#ifndef RS_SETTINGS_H
#define RS_SETTINGS_H

#include "redis/redis.h"

typedef enum RsOutagePolicy
{
	RS_OUTAGE_SPOOL,			/* leave its messages in redstream.spool */
	RS_OUTAGE_ERROR,			/* abort the transaction */
	RS_OUTAGE_SKIP				/* commit without its messages, and say so */
} RsOutagePolicy;

typedef enum RsRepeatPolicy
{
	RS_REPEAT_ALWAYS,			/* every delay message is announced when due */
	RS_REPEAT_UNCONFIRMED		/* only one whose main message Redis has not acknowledged */
} RsRepeatPolicy;

extern char *rs_url;
extern char *rs_password_file;
extern char *rs_namespace;
extern int	rs_timeout;			/* milliseconds */
extern int	rs_delay;			/* milliseconds, of streams without their own */
extern int	rs_repeat;			/* RsRepeatPolicy */
extern int	rs_trim_interval;	/* milliseconds */
extern char *rs_databases;		/* a list of names; empty: all */
extern bool rs_wait_for_ack;
extern int	rs_wait_replicas;	/* that must have what Redis acknowledges */
extern int	rs_on_outage;		/* RsOutagePolicy */
#define RS_QUEUE_SIZE_MAX (1024 * 1024)
extern int	rs_queue_size;		/* kilobytes, of each lane */
extern int	rs_transaction_buffer;	/* kilobytes */
extern bool rs_enabled;

/* Counts the changes of rs_namespace in this process, so that keys made with
 * an old one can be told. */
extern int	rs_namespace_generation;

/* Defines the settings, once, from _PG_init.  "preloading" also defines those
 * that only exist with shared memory. */
extern void rs_settings_define(bool preloading);

/*
 * Connects to Redis as the settings say (rs_redis_connect() with redstream.url,
 * redstream.password_file and redstream.timeout).  NULL and an error when
 * that fails.
 */
extern RsConnection *rs_connect_configured(const char *client_name, RsWait wait,
										   void *wait_argument, RsServerInfo *info,
										   RsError *error);

/*
 * The words of a WAIT for redstream.wait_replicas of what the connection has written; and whether its reply says that so
 * many have it.  Redis waits for less than redstream.timeout: its answer is to come before its silence counts, and
 * before a transaction has lost its patience.
 */
#define RS_WAIT_WORDS 3
typedef struct RsReplicaWait
{
	const char *words[RS_WAIT_WORDS];
	char		replicas[12];
	char		timeout[12];
} RsReplicaWait;
extern void rs_replica_wait_set(RsReplicaWait *wait);
extern bool rs_replica_wait_check(const RsReply *reply, RsError *error);

#endif							/* RS_SETTINGS_H */
