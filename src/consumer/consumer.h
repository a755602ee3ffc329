/*
 * consumer.h
 *	  What the files of redstream-consumer share: the program that reads a stream in batches and
 *	  gives each to a command or to standard output.
 *
 * It is linked with src/redis and with nothing of PostgreSQL.  run.c is the way through it.
 */
#ifndef RS_CONSUMER_H
#define RS_CONSUMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "redis/redis.h"

#define RS_PROGRAM "redstream-consumer"

/* What the program exits with. */
#define RS_EXIT_DONE 0			/* --once: a batch was committed; else: was told to end */
#define RS_EXIT_FAILED 1		/* --once: it was not; else: cannot go on, or was told to end at once */
#define RS_EXIT_USAGE 2
#define RS_EXIT_NOTHING 3		/* --once: there was no message */

#define RS_TIMEOUT_MS 5000		/* of a command of Redis, and of connecting */

/* ---- log.c: lines on standard error ------------------------------------------------------ */

typedef enum RsLevel
{
	RS_QUIET,					/* what needs somebody, said always */
	RS_NORMAL,
	RS_VERBOSE
} RsLevel;

/* Lines that are wanted, and what each begins with: stream and name, not copied.  Before that,
 * they begin with the program's name alone. */
extern void rs_consumer_log_begin(RsLevel wanted, const char *stream, const char *name);

/* One line, cut to two thousand bytes. */
extern void rs_consumer_log(RsLevel level, const char *format,...)
			__attribute__((format(printf, 2, 3)));

/* A name as a literal of SQL, for lines that say what to do. */
#define RS_QUOTED_SIZE (2 * RS_NAME_MAX + 3)
extern const char *rs_consumer_quote(const char *name, char quoted[RS_QUOTED_SIZE]);

/* A state of trouble, which is said when it begins, when it becomes another, and once a minute. */
typedef struct RsTrouble
{
	bool		there;
	char		text[2000];
	int64_t		since_ms;
	int64_t		said_ms;
} RsTrouble;

extern void rs_consumer_trouble(RsTrouble *trouble, const char *format,...)
			__attribute__((format(printf, 2, 3)));
/* It is over; returns for how many seconds there was some, at least 1, or 0 if there was none. */
extern int	rs_consumer_trouble_end(RsTrouble *trouble);

/* Milliseconds of a clock that only goes forward. */
extern int64_t rs_consumer_now_ms(void);

/* ---- options.c ------------------------------------------------------------------------------ */

typedef struct RsOptions
{
	RsAddress	address;
	const char *ns;
	const char *stream;
	const char *name;
	const char *dead_letter;	/* NULL without */
	int			batch_size;
	int			linger_ms;
	int			max_tries;		/* 0: no limit */
	bool		unique;
	bool		once;
	bool		skip_invalid;
	RsLevel		level;
	char	  **command;		/* NULL: standard output */
} RsOptions;

/*
 * Reads the command line and REDSTREAM_URL, and hides the user and password of a URL in argv.  Returns -1, or what
 * to exit with: after an error, which it has said, or after --help and --version.
 */
extern int	rs_consumer_options_read(int argc, char **argv, RsOptions *options);

/* ---- feed.c: bytes for somebody who takes them when it suits him -------------------------------- */

typedef struct RsFeed
{
	int			fd;				/* -1: nothing to do any more */
	const char *data;
	size_t		left;
	size_t		piece;			/* at most that much in one write, so that it does not block */
	bool		closes;			/* when all is written, or nobody reads */
	int			error;			/* errno of a failed write */
} RsFeed;

/* For standard output, which may block, and for a pipe of our own, which does not. */
extern void rs_consumer_feed_output(RsFeed *feed, const char *data, size_t length);
extern void rs_consumer_feed_pipe(RsFeed *feed, int fd, const char *data, size_t length);

/* Writes some of it; for a descriptor that is ready. */
extern void rs_consumer_feed_write(RsFeed *feed);
extern void rs_consumer_feed_end(RsFeed *feed);

/* ---- wait.c: all waiting, and the signals ----------------------------------------------------------- */

/* How to wait for Redis: an RsWait's argument. */
typedef struct RsWaiting
{
	bool		idle;			/* nothing is under way: a signal to end ends the wait */
	RsFeed	   *feed;			/* goes on meanwhile; NULL: none */
} RsWaiting;

/* From here on SIGTERM, SIGINT, SIGHUP and SIGCHLD wait until somebody looks. */
extern bool rs_consumer_signals_begin(RsError *error);

/* How many signals to end have come. */
extern int	rs_consumer_stops(void);

/*
 * The RsWait of the program; its argument is an RsWaiting.  After a signal to end it gives up at once when it is idle, and
 * otherwise when Redis has had its time: a second after the signal, or after the end of a batch that was given to somebody.
 */
extern bool rs_consumer_wait(void *waiting, int fd, bool writable, int timeout_ms);

/* Has Redis still time to answer? */
extern bool rs_consumer_patient(void);

/* A child was started; its end is seen by who waits. */
extern void rs_consumer_child_begins(void);

/* Waits until something can be fed, or a signal comes, a child's end too.  "feed" may have nothing to do. */
extern void rs_consumer_wait_feeding(RsFeed *feed, int timeout_ms);

/* Waits; a signal to end ends it. */
extern void rs_consumer_pause(int pause_ms);

/* ---- link.c: the connection to Redis ------------------------------------------------------------------- */

typedef struct RsLink
{
	const RsAddress *address;
	RsConnection *connection;	/* NULL: none */
	RsServerInfo server;
	RsWaiting	waiting;
	RsTrouble	trouble;
	bool		was_fine;
	int			pause_ms;		/* before it is tried again; 0: at once */
} RsLink;

extern void rs_consumer_link_begin(RsLink *link, const RsAddress *address);

/* Connects, and tries again until it works; false when it was told to end. */
extern bool rs_consumer_link_require(RsLink *link);
/* Tries once, unless it is connected. */
extern bool rs_consumer_link_try(RsLink *link, int timeout_ms);

/* Something went wrong: closes the connection, and says so. */
extern void rs_consumer_link_trouble(RsLink *link, const RsError *error);
/* It works: says so if that is news. */
extern void rs_consumer_link_fine(RsLink *link);
/* Closes. */
extern void rs_consumer_link_end(RsLink *link);

/* ---- keeper.c: the consumer's lock while there is work --------------------------------------------------- */

typedef struct RsKeeper
{
	RsLink	   *link;
	const RsConsumer *consumer;
	bool		held;			/* may be: unless Redis says otherwise */
	bool		lost;			/* Redis has said so, since the turn began */
	int64_t		sure_ms;		/* it was ours then */
	int64_t		due_ms;			/* it is extended then, or a connection tried */
} RsKeeper;

/* The lock has been ours since a moment, of rs_consumer_now_ms(). */
extern void rs_consumer_keeper_begin(RsKeeper *keeper, int64_t since_ms);
/* Extends the lock if it is time, reconnects if need be, and says so when it is lost.  Takes as long as Redis does. */
extern void rs_consumer_keeper_tend(RsKeeper *keeper);
/* Milliseconds until that has something to do. */
extern int	rs_consumer_keeper_due(const RsKeeper *keeper);
/* Connected, and the lock was ours a moment ago: asks if that was not so.  With "patience", tries to reconnect as long as the
 * lock could still be ours. */
extern bool rs_consumer_keeper_sure(RsKeeper *keeper, bool patience);
/* Releases the lock, if there is one.  Failing that, it expires. */
extern void rs_consumer_keeper_release(RsKeeper *keeper);

/* ---- json.c ------------------------------------------------------------------------------------------------- */

#define RS_JSON_DEPTH 10000		/* arrays and objects within another */

/*
 * Is it one JSON value as RFC 8259 has it, in valid UTF-8, and not deeper than RS_JSON_DEPTH?  Then NULL; else what is
 * wrong, and at which byte.
 */
extern const char *rs_consumer_json_check(const char *text, size_t length, size_t *where);

/* ---- batch.c: messages that are handled together ---------------------------------------------------------------- */

/* Memory that grows and is used again. */
typedef struct RsBuffer
{
	char	   *data;
	size_t		used;
	size_t		size;
} RsBuffer;

typedef struct RsMessage
{
	RsStreamId	id;
	size_t		payload;		/* where it begins in "payloads" */
	size_t		length;
	bool		left_out;		/* it cannot be used, or an equal one follows */
} RsMessage;

typedef struct RsBatch
{
	RsMessage  *messages;
	int			count;			/* left out ones among them */
	int			room;
	RsBuffer	payloads;
	RsBuffer	lines;
	bool		closed;			/* nothing can be added */
	bool		unusable;		/* one message, which is not for a handler */
	bool		has_payload;	/* with unusable */
	char		reason[160];	/* with unusable: what is wrong with it */
	bool		failed;			/* out of memory */
} RsBatch;

/* What rs_consumer_batch_add() made of a message. */
typedef enum RsAdded
{
	RS_ADDED,
	RS_ADDED_NOT,				/* the batch ends before it */
	RS_ADDED_LEFT_OUT			/* it cannot be used; "reason" says why */
} RsAdded;

extern void rs_consumer_batch_begin(RsBatch *batch);
/* With "skips" a message that cannot be used is left out; else the batch ends before it, or is nothing but it. */
extern RsAdded rs_consumer_batch_add(RsBatch *batch, const RsStreamEntry *entry, bool skips);
/* Leaves out all but the last of messages with equal payloads. */
extern bool rs_consumer_batch_unique(RsBatch *batch);
/* Makes the lines, of messages that are not left out. */
extern bool rs_consumer_batch_write(RsBatch *batch);
extern const RsStreamId *rs_consumer_batch_first(const RsBatch *batch);
extern const RsStreamId *rs_consumer_batch_last(const RsBatch *batch);
extern void rs_consumer_batch_end(RsBatch *batch);

/* ---- tries.c: a batch that is refused ---------------------------------------------------------------------------- */

typedef struct RsTries
{
	int			max_tries;		/* 0: no limit */
	int			batch_size;
	int			limit;			/* of the next batch: batch_size, or less after halving */
	bool		repeats;		/* the batch from "first" on was not committed */
	RsStreamId	first;
	RsStreamId	last;			/* the next one ends there, if it begins with "first" */
	int			failures;		/* how often it was not; goes on counting after a message was given up */
	bool		gave_up;		/* a message, and nothing was taken since */
	int			count;			/* how often because its handler refused it */
} RsTries;

typedef enum RsVerdict
{
	RS_TRY_AGAIN,
	RS_TRY_HALF,
	RS_GIVE_UP					/* it is one message, and has had its tries */
} RsVerdict;

extern void rs_consumer_tries_begin(RsTries *tries, int batch_size, int max_tries);
/* Is this where a batch begins that is to be given again? */
extern bool rs_consumer_tries_repeats(const RsTries *tries, const RsStreamId *first);
/* The batch was not committed, for no fault of its handler; returns the milliseconds to wait. */
extern int	rs_consumer_tries_failed(RsTries *tries, const RsStreamId *first, const RsStreamId *last);
/* Its handler has refused it, and how many messages it has. */
extern RsVerdict rs_consumer_tries_refused(RsTries *tries, const RsStreamId *first,
										   const RsStreamId *last, int messages, int *pause_ms);
/* It was committed: taken by its handler, or put aside. */
extern void rs_consumer_tries_done(RsTries *tries, bool taken);

/* ---- handler.c, output.c: who takes a batch ------------------------------------------------------------------------ */

typedef enum RsOutcome
{
	RS_TAKEN,
	RS_REFUSED,					/* "reason" says why */
	RS_NOT_RUN,					/* the command; "reason" says why */
	RS_STOPPED					/* by a second signal, or there is no standard output any more */
} RsOutcome;

#define RS_REASON_SIZE 200

/* Runs the command with the lines as its input, and keeps the lock meanwhile. */
extern RsOutcome rs_consumer_handler_run(const RsOptions *options, const RsBatch *batch,
										 RsKeeper *keeper, char reason[RS_REASON_SIZE]);
/* Writes the lines to standard output, and keeps the lock meanwhile. */
extern RsOutcome rs_consumer_output_run(const RsBatch *batch, RsKeeper *keeper);

/* ---- report.c: what is done, and by whom ------------------------------------------------------------------------------ */

typedef enum RsState
{
	RS_STATE_NONE,
	RS_STATE_WORKING,
	RS_STATE_STANDING_BY
} RsState;

typedef struct RsReport
{
	RsState		said;
	int64_t		turn_ms;		/* last turn of ours */
	int64_t		summary_ms;		/* last summary */
	uint64_t	batches;		/* since then */
	uint64_t	messages;
	int			last_size;
	char		lag[64];
} RsReport;

extern void rs_consumer_report_begin(RsReport *report);
/* It has the lock, or somebody else has. */
extern void rs_consumer_report_state(RsReport *report, RsState state);
/* A batch was committed in this turn. */
extern void rs_consumer_report_batch(RsReport *report, const RsBatch *batch, const RsTurn *turn);
/* A summary of what was not told yet, if the last one was a while ago, or with "now". */
extern void rs_consumer_report_summary(RsReport *report, bool now);

/* ---- gather.c, settle.c, run.c: the turns ----------------------------------------------------------------------------- */

typedef struct RsRun
{
	const RsOptions *options;
	RsConsumer	consumer;
	RsKey		dead_letter;
	RsLink		link;
	RsKeeper	keeper;
	RsBatch		batch;
	RsTries		tries;
	RsReport	report;
	RsTurn		turn;
	RsTrouble	misfit;			/* the stream does not fit the offset */
	RsTrouble	unreleased;		/* Redis refuses to release the lock */
	int			misfit_pause_ms;
	RsReading	reading;
	bool		told_fields;	/* that messages have other fields */
	int			status;			/* what to exit with; -1: not yet */
} RsRun;

/* gather.c: reads a batch.  False when Redis failed, or it was told to end; the lock is then still to be released. */
extern bool rs_consumer_gather(RsRun *run);

/* settle.c: what becomes of a batch that was taken, refused, not tried, or is nothing but a message that cannot be used. */
extern void rs_consumer_settle_taken(RsRun *run);
extern void rs_consumer_settle_refused(RsRun *run, const char *reason);
extern void rs_consumer_settle_not_run(RsRun *run, const char *reason);
extern void rs_consumer_settle_unusable(RsRun *run);

/* run.c: a call of src/redis failed in a turn, or Redis refused it. */
extern void rs_consumer_run_failed(RsRun *run, bool refused, const RsError *error);
/* Runs until it is told to end; returns what to exit with. */
extern int	rs_consumer_run(const RsOptions *options, const char *holder);

#endif							/* RS_CONSUMER_H */
