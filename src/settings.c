/*
 * settings.c
 *	  Definitions and checks of the settings.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "settings.h"

char	   *rs_url;
char	   *rs_password_file;
char	   *rs_namespace;
int			rs_timeout;
int			rs_delay;
int			rs_repeat;
int			rs_trim_interval;
char	   *rs_databases;
bool		rs_wait_for_ack;
int			rs_wait_replicas;
int			rs_on_outage;
int			rs_queue_size;
int			rs_transaction_buffer;
bool		rs_enabled;
int			rs_namespace_generation;

static const struct config_enum_entry outage_policies[] = {
	{"spool", RS_OUTAGE_SPOOL, false},
	{"error", RS_OUTAGE_ERROR, false},
	{"skip", RS_OUTAGE_SKIP, false},
	{NULL, 0, false}
};

static const struct config_enum_entry repeat_policies[] = {
	{"always", RS_REPEAT_ALWAYS, false},
	{"unconfirmed", RS_REPEAT_UNCONFIRMED, false},
	{NULL, 0, false}
};

/*
 * Refuses a URL that cannot be parsed and warns of a password in one.  Check
 * hooks run in every process at a reload: the warning is for the server log,
 * once, by the postmaster, and for whoever runs ALTER SYSTEM.
 */
static bool
check_url(char **newval, void **extra, GucSource source)
{
	RsAddress	address;
	RsError		error;
	bool		has_password;

	if (!rs_redis_address_parse(*newval, &address, &error))
	{
		GUC_check_errdetail("%s", error.text);
		return false;
	}
	has_password = address.password != NULL;
	rs_redis_address_free(&address);
	if (has_password && (!IsUnderPostmaster || debug_query_string != NULL))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("redstream.url contains a password"),
				 errdetail("Superusers, members of pg_monitor and readers of the server log can see it."),
				 errhint("Put the password into a file that only the server's user can read, and name it in redstream.password_file.")));
	return true;
}

static bool
check_namespace(char **newval, void **extra, GucSource source)
{
	RsError		error;

	if (rs_redis_namespace_check(*newval, &error))
		return true;
	GUC_check_errdetail("%s", error.text);
	return false;
}

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return valid;
}

/* Called at every reload, whether or not the value is another one. */
static void
assign_namespace(const char *newval, void *extra)
{
	if (rs_namespace == NULL || strcmp(rs_namespace, newval) != 0)
		rs_namespace_generation++;
}

/* What says where Redis is, and how long it may take. */
static void
define_connection_settings(void)
{
	DefineCustomStringVariable("redstream.url",
							   "Where Redis is: redis://[user[:password]@]host[:port][/db] or unix:///path[?db=n].",
							   NULL, &rs_url, "redis://127.0.0.1:6379/0",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_url, NULL, NULL);
	DefineCustomStringVariable("redstream.password_file",
							   "File with the password for Redis, readable by the server's user alone.",
							   NULL, &rs_password_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("redstream.namespace",
							   "Prefix of every Redis key.",
							   NULL, &rs_namespace, "",
							   PGC_SIGHUP, 0,
							   check_namespace, assign_namespace, NULL);
	DefineCustomIntVariable("redstream.timeout",
							"The longest that Redis may hold up a transaction without progress.",
							"Also the time allowed for connecting. Whatever progress Redis makes, one wait never takes longer than ten times this.",
							&rs_timeout, 1000, 10, 600000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("redstream.wait_replicas",
							"Redis replicas that must have what Redis acknowledges.",
							"With fewer of them Redis counts as away.",
							&rs_wait_replicas, 0, 0, 100,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
}

/* What decides how a transaction is announced. */
static void
define_transaction_settings(void)
{
	DefineCustomBoolVariable("redstream.wait_for_ack",
							 "Commit waits until Redis has acknowledged the delay messages.",
							 "When off, a crash at the wrong moment can lose the announcement.",
							 &rs_wait_for_ack, true,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomEnumVariable("redstream.on_outage",
							 "What a transaction does that Redis does not acknowledge in time.",
							 "spool keeps its messages in redstream.spool until Redis is back; error aborts it; skip commits it, counts its messages as lost and warns.",
							 &rs_on_outage, RS_OUTAGE_SPOOL, outage_policies,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("redstream.transaction_buffer",
							"Memory for the messages of one transaction.",
							"Past it the transaction is published from its delay messages.",
							&rs_transaction_buffer, 4096, 64, 512 * 1024,
							PGC_USERSET, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("redstream.enabled",
							 "Triggers announce changes; when off, they do nothing.",
							 NULL, &rs_enabled, true,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
}

/* What the background workers go by. */
static void
define_worker_settings(void)
{
	DefineCustomIntVariable("redstream.delay",
							"Age at which a delay message is moved to the main stream.",
							"A stream can have its own, see redstream.attach().",
							&rs_delay, 5 * 60 * 1000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("redstream.repeat",
							 "Which delay messages are announced when they are due.",
							 "always: every one; unconfirmed: only one whose main message Redis has not acknowledged.",
							 &rs_repeat, RS_REPEAT_ALWAYS, repeat_policies,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("redstream.trim_interval",
							"Time between two looks of the trimmer.",
							NULL, &rs_trim_interval, 30 * 1000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomStringVariable("redstream.databases",
							   "Databases that are served by a worker, separated by commas.",
							   "Empty: every database with the extension.",
							   &rs_databases, "",
							   PGC_SIGHUP, 0,
							   check_databases, NULL, NULL);
}

void
rs_settings_define(bool preloading)
{
	define_connection_settings();
	define_transaction_settings();
	define_worker_settings();
	if (preloading)
		DefineCustomIntVariable("redstream.queue_size",
								"Shared memory for each of the two queues to Redis.",
								NULL, &rs_queue_size, 16 * 1024, 1024, RS_QUEUE_SIZE_MAX,
								PGC_POSTMASTER, GUC_UNIT_KB,
								NULL, NULL, NULL);
	MarkGUCPrefixReserved("redstream");
}

RsConnection *
rs_connect_configured(const char *client_name, RsWait wait, void *wait_argument,
					  RsServerInfo *info, RsError *error)
{
	RsAddress	address;
	RsConnectOptions options = {
		.address = &address,
		.client_name = client_name,
		.timeout_ms = rs_timeout,
		.wait = wait,
		.wait_argument = wait_argument
	};
	char	   *password = NULL;
	RsConnection *connection = NULL;

	if (!rs_redis_address_parse(rs_url, &address, error))
		return NULL;
	if (rs_password_file[0] == '\0' || rs_redis_password_read(rs_password_file, &password, error))
	{
		options.password = password;
		connection = rs_redis_connect(&options, info, error);
	}
	free(password);
	rs_redis_address_free(&address);
	return connection;
}

void
rs_replica_wait_set(RsReplicaWait *wait)
{
	snprintf(wait->replicas, sizeof(wait->replicas), "%d", rs_wait_replicas);
	snprintf(wait->timeout, sizeof(wait->timeout), "%d", rs_timeout * 3 / 4);
	wait->words[0] = "WAIT";
	wait->words[1] = wait->replicas;
	wait->words[2] = wait->timeout;
}

bool
rs_replica_wait_check(const RsReply *reply, RsError *error)
{
	if (reply->type == RS_REPLY_ERROR)
		return rs_redis_error(error, "WAIT: %.*s", (int) reply->length, reply->text);
	if (reply->type == RS_REPLY_INTEGER && reply->integer >= rs_wait_replicas)
		return true;
	return rs_redis_error(error, "only %d of %d replicas have acknowledged",
						  reply->type == RS_REPLY_INTEGER ? (int) reply->integer : 0, rs_wait_replicas);
}
