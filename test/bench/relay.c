/*
 * relay.c - what redstream is measured against: moves the rows of an outbox
 * table to a Redis stream.
 *
 *	 relay CONNINFO REDIS_SOCKET STREAM [BATCH]
 *
 * It is meant to be as good as such a relay gets while it still loses nothing:
 *
 * - one transaction a batch: DELETE ... RETURNING, the XADDs in one pipeline,
 *	 every reply checked, then COMMIT.  Dying in between repeats a batch;
 * - since a repeated batch is harmless, its own commits need not wait for the
 *	 disk: synchronous_commit is off;
 * - an idle relay looks again after 10 ms.  NOTIFY would wake it sooner, but
 *	 takes one lock for all of the server's commits, and the writers would pay
 *	 for that;
 * - an advisory lock keeps a second relay waiting, which is cheaper than
 *	 locking the rows of every batch (FOR UPDATE SKIP LOCKED costs a tenth).
 *
 * It ends after the batch at hand on SIGTERM or SIGINT.
 */
#include <hiredis/hiredis.h>
#include <libpq-fe.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IDLE_MICROSECONDS 10000
#define DEFAULT_BATCH "5000"	/* twice as fast as 1000; 10000 adds little */

/*
 * Rows are found by ctid, which spares the DELETE a second descent of the
 * index.  It returns them in the order of the heap, so they are sorted again.
 */
static const char take_batch[] =
	"WITH taken AS ("
	"  DELETE FROM outbox WHERE ctid = ANY (ARRAY("
	"    SELECT ctid FROM outbox ORDER BY id LIMIT $1))"
	"  RETURNING id, payload) "
	"SELECT payload FROM taken ORDER BY id";

static volatile sig_atomic_t stopping = 0;

static void
stop(int signal_number)
{
	(void) signal_number;
	stopping = 1;
}

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format,...)
{
	va_list		args;

	fputs("relay: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static PGresult *
checked(PGconn *pg, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		die("PostgreSQL: %s", PQerrorMessage(pg));
	return result;
}

static void
run(PGconn *pg, const char *sql)
{
	PQclear(checked(pg, PQexec(pg, sql)));
}

static void
append_message(redisContext *redis, const char *stream,
			   const char *payload, size_t length)
{
	const char *words[] = {"XADD", stream, "*", "payload", payload};
	size_t		lengths[] = {4, strlen(stream), 1, 7, length};

	if (redisAppendCommandArgv(redis, 5, words, lengths) != REDIS_OK)
		die("Redis: %s", redis->errstr);
}

static void
check_reply(redisContext *redis)
{
	redisReply *reply;

	if (redisGetReply(redis, (void **) &reply) != REDIS_OK)
		die("Redis: %s", redis->errstr);
	if (reply->type == REDIS_REPLY_ERROR)
		die("Redis: %s", reply->str);
	freeReplyObject(reply);
}

/* Returns the number of messages moved. */
static int
move_batch(PGconn *pg, redisContext *redis, const char *stream, const char *batch_size)
{
	PGresult   *rows;
	int			count;

	run(pg, "BEGIN");
	rows = checked(pg, PQexecPrepared(pg, "take_batch", 1, &batch_size, NULL, NULL, 0));
	count = PQntuples(rows);
	for (int i = 0; i < count; i++)
		append_message(redis, stream, PQgetvalue(rows, i, 0),
					   (size_t) PQgetlength(rows, i, 0));
	for (int i = 0; i < count; i++)
		check_reply(redis);
	PQclear(rows);
	run(pg, "COMMIT");
	return count;
}

static PGconn *
connect_postgres(const char *conninfo)
{
	PGconn	   *pg = PQconnectdb(conninfo);

	if (PQstatus(pg) != CONNECTION_OK)
		die("PostgreSQL: %s", PQerrorMessage(pg));
	run(pg, "SET synchronous_commit = off");
	run(pg, "SELECT pg_advisory_lock(hashtext('outbox relay'))");
	/* right after a bulk the planner has no statistics of the outbox yet */
	run(pg, "SET enable_seqscan = off");
	PQclear(checked(pg, PQprepare(pg, "take_batch", take_batch, 0, NULL)));
	return pg;
}

static redisContext *
connect_redis(const char *socket)
{
	redisContext *redis = redisConnectUnix(socket);

	if (redis == NULL)
		die("Redis: out of memory");
	if (redis->err)
		die("Redis: %s", redis->errstr);
	return redis;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = stop};
	const char *batch_size = argc > 4 ? argv[4] : DEFAULT_BATCH;
	PGconn	   *pg;
	redisContext *redis;

	if (argc < 4 || argc > 5)
	{
		fputs("usage: relay CONNINFO REDIS_SOCKET STREAM [BATCH]\n", stderr);
		return 2;
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);

	pg = connect_postgres(argv[1]);
	redis = connect_redis(argv[2]);
	while (!stopping)
		if (move_batch(pg, redis, argv[3], batch_size) == 0)
			usleep(IDLE_MICROSECONDS);

	redisFree(redis);
	PQfinish(pg);
	return 0;
}
