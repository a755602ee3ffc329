/*
 * redis.h
 *	  The door of src/redis: everything redstream knows about Redis, in plain C.
 *
 * Nothing here knows PostgreSQL, so that the extension, the client program and
 * the unit tests link the same code.  No function throws, logs or exits: each
 * says in its return value whether it worked and, where it takes an RsError,
 * writes one sentence there that names the call that failed.
 *
 * Memory comes from malloc.  Whoever calls from code that can longjmp must not
 * hold any of these objects across it unless something else frees them.
 */
#ifndef RS_REDIS_H
#define RS_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* One sentence about what failed, always terminated, never with a secret. */
typedef struct RsError
{
	char		text[512];
} RsError;

/* Writes a formatted sentence, cut to fit.  Returns false, so that a caller
 * can say "return rs_redis_error(...)". */
extern bool rs_redis_error(RsError *error, const char *format,...)
			__attribute__((format(printf, 2, 3)));

/* ---- url.c: where a Redis is --------------------------------------------- */

/* A parsed URL.  Strings are malloced; absent ones are NULL.  Either path (a
 * Unix-domain socket) or host is set. */
typedef struct RsAddress
{
	char	   *path;
	char	   *host;
	int			port;			/* 1 to 65535, with host only */
	char	   *user;
	char	   *password;
	int			database;		/* 0 and up */
} RsAddress;

/*
 * Parses redis://[user[:password]@]host[:port][/db] (percent-encoding undone,
 * IPv6 addresses in brackets, default port 6379) and unix:///path[?db=n].
 * rediss, redis+sentinel and redis+cluster are refused by name.  On failure
 * the address holds nothing to free.  Errors never quote the user info.
 */
extern bool rs_redis_address_parse(const char *url, RsAddress *address, RsError *error);
extern void rs_redis_address_free(RsAddress *address);

/*
 * Reads a password file: its first line without the line end.  Refuses a file
 * that others than its owner can read or write (as libpq does for keys), one
 * that is no regular file, an empty first line, and one of more than 4096
 * bytes.  The result is malloced.
 */
extern bool rs_redis_password_read(const char *file, char **password, RsError *error);

/* ---- keys.c: names and the keys made of them ------------------------------ */

#define RS_NAME_MAX 512			/* bytes of a stream's or consumer's name */
#define RS_NAMESPACE_MAX 128	/* bytes of a namespace */
#define RS_KEY_SIZE 1536		/* room for any key, and its terminator */

typedef struct RsKey
{
	size_t		length;
	char		text[RS_KEY_SIZE];
} RsKey;

/* 1 to 512 bytes, no control characters, does not end in ".delay". */
extern bool rs_redis_stream_name_check(const char *name, RsError *error);
/* As a stream's name, and no ':'.  (".delay" is allowed at its end.) */
extern bool rs_redis_consumer_name_check(const char *name, RsError *error);
/* 0 to 128 bytes, no control characters. */
extern bool rs_redis_namespace_check(const char *name, RsError *error);

/* Keys of the contract; "ns" is the namespace without its colon, "" for none.
 * The names must have passed their checks, so that every key fits. */
extern void rs_redis_stream_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_delay_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_offset_key(RsKey *key, const char *ns, const char *stream, const char *consumer);
/* "name" is "consumer:<stream>:<consumer>" or "trimmer:<stream>"; false when
 * it is empty, has control characters or is longer than 1100 bytes. */
extern bool rs_redis_lock_key(RsKey *key, const char *ns, const char *name, RsError *error);

/* The list that wakes who waits for a lock. */
extern void rs_redis_notify_key(RsKey *key, const RsKey *lock);

/* Locks of a stream's consumer ("delayer" of the delay stream among them) and trimmer. */
extern void rs_redis_consumer_lock_key(RsKey *key, const char *ns, const char *stream,
									   const char *consumer);
extern void rs_redis_delayer_lock_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_trimmer_lock_key(RsKey *key, const char *ns, const char *stream);
/* The delayer's own offset. */
extern void rs_redis_delayer_offset_key(RsKey *key, const char *ns, const char *stream);

/* Ours, which the Ruby library does not know: the set of registered consumers; a hash
 * of what the trimmer remembers of a stream; a mark that the delayer flushes it; who speaks for a server, which is
 * "<system identifier>:<timeline>"; whether commits of that server did not always wait for the disk; how much of it
 * Redis has; the set of the streams that a database has
 * written to. */
extern void rs_redis_consumers_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_history_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_flush_key(RsKey *key, const char *ns, const char *stream);
extern void rs_redis_server_key(RsKey *key, const char *ns, const char *server);
extern void rs_redis_async_key(RsKey *key, const char *ns, const char *server);
extern void rs_redis_marker_key(RsKey *key, const char *ns, const char *server);
extern void rs_redis_streams_key(RsKey *key, const char *ns, uint64_t system, uint32_t database);

/* ---- stream_id.c: ids as two unsigned 64-bit numbers ----------------------- */

typedef struct RsStreamId
{
	uint64_t	ms;
	uint64_t	seq;
} RsStreamId;

#define RS_STREAM_ID_SIZE 42	/* two 20-digit numbers, '-', terminator */

/* Parses "ms-seq", or "ms" alone as ms-0, all "length" bytes of it: digits
 * only, no sign, no overflow. */
extern bool rs_redis_id_parse(const char *text, size_t length, RsStreamId *id);
/* < 0, 0 or > 0. */
extern int	rs_redis_id_compare(const RsStreamId *a, const RsStreamId *b);
/* The next id in order, or the one before; false when there is none. */
extern bool rs_redis_id_next(RsStreamId *id);
extern bool rs_redis_id_previous(RsStreamId *id);
/* Writes text and terminator, returns the length without it. */
extern size_t rs_redis_id_format(const RsStreamId *id, char text[RS_STREAM_ID_SIZE]);

/* ---- resp.c: commands as bytes --------------------------------------------- */

/* Bytes of "*<count>\r\n" / of "$<length>\r\n<length bytes>\r\n". */
extern size_t rs_redis_header_size(size_t count);
extern size_t rs_redis_bulk_size(size_t length);
/* Write them at "out", which has the room, and return the end. */
extern char *rs_redis_header_write(char *out, size_t count);
extern char *rs_redis_bulk_write(char *out, const char *data, size_t length);

/* The same for a whole command; "lengths" may be NULL for terminated arguments. */
extern size_t rs_redis_command_size(int count, const char *const *arguments, const size_t *lengths);
extern char *rs_redis_command_write(char *out, int count, const char *const *arguments,
									const size_t *lengths);

/* ---- connection.c: a socket and the replies that come through it ----------- */

typedef struct RsConnection RsConnection;

typedef enum RsReplyType
{
	RS_REPLY_STATUS,			/* "+OK" */
	RS_REPLY_ERROR,				/* "-OOM ..." */
	RS_REPLY_INTEGER,
	RS_REPLY_STRING,
	RS_REPLY_NIL,
	RS_REPLY_ARRAY				/* only its elements: rs_redis_reply_tree */
} RsReplyType;

/* One reply.  "text" is not terminated and lives until the next call that reads from the
 * connection; commands can be queued and written meanwhile. */
typedef struct RsReply
{
	RsReplyType type;
	const char *text;
	size_t		length;
	int64_t		integer;
	struct redisReply *tree;	/* the whole reply, when asked for; lives as long */
} RsReply;

/* What a waiter is told by the caller of a blocking call.  Returns false to
 * give up (interrupted); true when the socket may be ready or the timeout
 * passed.  "writable": wait until it can be written, else until it can be read.
 * While a host name is resolved the descriptor is that of a pipe. */
typedef bool (*RsWait) (void *argument, int fd, bool writable, int timeout_ms);

/* The RsWait of programs without a latch: poll(2). */
extern bool rs_redis_wait_poll(void *argument, int fd, bool writable, int timeout_ms);

/* What the server said of itself while greeting. */
typedef struct RsServerInfo
{
	char		software[32];	/* "redis" or "valkey" */
	char		version[32];
	char		run_id[64];		/* of INFO server; "" if not permitted */
	int64_t		client_id;		/* CLIENT ID of this connection */
} RsServerInfo;

typedef struct RsConnectOptions
{
	const RsAddress *address;
	const char *password;		/* instead of the address's own, or NULL */
	const char *client_name;	/* CLIENT SETNAME; no spaces */
	int			timeout_ms;		/* for the whole of connecting and greeting */
	RsWait		wait;			/* NULL: rs_redis_wait_poll */
	void	   *wait_argument;	/* like "wait", used as long as the connection
								 * lives; the rest may go after connecting */
} RsConnectOptions;

/*
 * Connects (non-blocking, through "wait") and greets: HELLO 2 with AUTH and
 * SETNAME, the version check (Redis 6.2 or Valkey 7.2 and newer), SELECT,
 * CLIENT ID, INFO server.  NULL and an error when any of it failed or the
 * timeout passed.  A password without a user is that of "default"; a user
 * without a password greets with an empty one.  A host name is resolved by a
 * thread, which may outlast the call (resolve.c).
 */
extern RsConnection *rs_redis_connect(const RsConnectOptions *options, RsServerInfo *info,
									  RsError *error);

/* Closes.  With "abort", SO_LINGER 0 makes the kernel forget what it has not
 * sent yet. */
extern void rs_redis_close(RsConnection *connection, bool abort);

extern int	rs_redis_fd(const RsConnection *connection);

/* Writes what the socket takes; returns the number of bytes, 0 when it would
 * block, -1 and an error when the connection is lost. */
extern ssize_t rs_redis_write(RsConnection *connection, const struct iovec *vector, int count,
							  RsError *error);

/* Reads what is there; returns 1 when something came, 0 when it would block,
 * -1 and an error when the connection is lost. */
extern int	rs_redis_read(RsConnection *connection, RsError *error);

/*
 * Takes the next complete reply out of what was read: 1 with a reply, 0 when
 * it is not complete yet, -1 and an error for a protocol error (the connection
 * is then of no more use).  Nothing is allocated for a reply of one element.
 * With "tree" the elements of an array are built as hiredis's redisReply; the
 * caller must have bounded what it asked for.  Without it an array is
 * consumed and only its type told.  "tree" must not change between a 0 and
 * the reply it announces.
 */
extern int	rs_redis_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *error);

/*
 * Sends one command and waits for its reply (as a tree), through "wait", for
 * timeout_ms at most.  An error reply of the server is returned as a reply, not
 * as a failure.  After a failure the connection is of no more use.  Must not be
 * mixed with replies still outstanding.  "lengths" may be NULL when every
 * argument is terminated.
 */
extern bool rs_redis_command(RsConnection *connection, int count, const char *const *arguments,
							 const size_t *lengths, int timeout_ms, RsReply *reply,
							 RsError *error);

/* ---- pipeline.c: many commands, then their replies --------------------------- */

/* Adds a command to the connection's queue.  The bytes are copied; "lengths" may be
 * NULL when every argument is terminated.  Being out of memory is told by
 * rs_redis_flush(). */
extern void rs_redis_queue(RsConnection *connection, int count, const char *const *arguments,
						   const size_t *lengths);

/* Writes all that is queued, waiting for timeout_ms at most.  After a failure the
 * connection is of no more use. */
extern bool rs_redis_flush(RsConnection *connection, int timeout_ms, RsError *error);

/*
 * Waits for the next reply, for timeout_ms at most; "tree" as for rs_redis_reply().  An error
 * reply of the server is a reply, not a failure.  After a failure the connection is
 * of no more use.
 */
extern bool rs_redis_next(RsConnection *connection, bool tree, int timeout_ms, RsReply *reply,
						  RsError *error);

/* The reply to TIME, a tree, in milliseconds; false and an error if it is another one. */
extern bool rs_redis_time(const RsReply *reply, int64_t *now_ms, RsError *error);

/* ---- lock.c: locks of the contract, and the server key ------------------------- */

#define RS_LOCK_TTL_MS 5000
#define RS_HOLDER_SIZE 33		/* 32 hex digits and the terminator */
#define RS_SERVER_TTL_S 30

/* Draws a random holder; false when the system has no randomness to give. */
extern bool rs_redis_holder_draw(char holder[RS_HOLDER_SIZE]);

/*
 * Takes the lock, or extends it when it is ours already ("taken": true), or finds
 * that somebody else has it (false).  Refused by Redis it is not taken either: then "error" has the
 * reason, and else it is empty.  False and an error when the connection failed.
 */
extern bool rs_redis_lock_take(RsConnection *connection, const RsKey *lock, const char *holder,
							   int timeout_ms, bool *taken, RsError *error);

/* Releases the lock if it is still ours, and wakes one who waits for it.  Refused by Redis it is left to
 * expire. */
extern bool rs_redis_lock_release(RsConnection *connection, const RsKey *lock, const char *holder,
								  int timeout_ms, RsError *error);

/* Extends the lock ("held": true), unless it is not ours any more (false).  Errors as for taking it. */
extern bool rs_redis_lock_extend(RsConnection *connection, const RsKey *lock, const char *holder,
								 int timeout_ms, bool *held, RsError *error);

/* The same commands as words, for who has a pipeline.  Replied is 1 when it was done, 0 when the lock is not
 * ours.  "notify" is the lock's list, rs_redis_notify_key(). */
#define RS_TAKE_WORDS 6
#define RS_EXTEND_WORDS 6
#define RS_RELEASE_WORDS 6
extern void rs_redis_take_words(const RsKey *lock, const char *holder,
								const char *words[RS_TAKE_WORDS]);
extern void rs_redis_extend_words(const RsKey *lock, const char *holder,
								  const char *words[RS_EXTEND_WORDS]);
extern void rs_redis_release_words(const RsKey *lock, const RsKey *notify, const char *holder,
								   const char *words[RS_RELEASE_WORDS]);

/*
 * Claims a server key for RS_SERVER_TTL_S seconds, or renews the claim.  Replied is 1
 * when it is ours, 0 when another token holds it: the reply to these RS_CLAIM_WORDS
 * arguments, for who has a pipeline.  False and an error when the connection failed or Redis refused.
 */
#define RS_CLAIM_WORDS 6
extern void rs_redis_claim_words(const RsKey *server, const char *token,
								 const char *words[RS_CLAIM_WORDS]);
extern bool rs_redis_claim(RsConnection *connection, const RsKey *server, const char *token,
						   int timeout_ms, bool *ours, RsError *error);

/* ---- stream.c: what Redis says of a stream, and what is remembered of it ---------- */

/* A stream, as XINFO STREAM tells it. */
typedef struct RsStreamState
{
	bool		exists;
	uint64_t	length;
	RsStreamId	last;			/* generated */
	bool		has_added;		/* Redis 7 */
	uint64_t	added;			/* entries ever added */
	bool		has_first;
	RsStreamId	first;			/* entry */
	RsStreamId	last_entry;		/* "last" may be gone; with has_first */
	size_t		entry_bytes;	/* of the larger one of the first and the last entry */
} RsStreamState;

/* What trimmers and consumers remember of a stream, in the hash of rs_redis_history_key(). */
typedef struct RsStreamHistory
{
	bool		known;			/* "last" is there */
	RsStreamId	last;
	bool		has_added;
	uint64_t	added;
	bool		has_refilled;
	RsStreamId	refilled;		/* it was deleted and filled again: the first id of its new life */
	bool		gone;
} RsStreamHistory;

/* The value of a name in an array of names and values; NULL if it is not there. */
extern const struct redisReply *rs_redis_value(const struct redisReply *pairs, const char *name);
/* Is it a string that is an id, an integer? */
extern bool rs_redis_value_id(const struct redisReply *value, RsStreamId *id);
extern bool rs_redis_value_integer(const struct redisReply *value, int64_t *integer);

/* Does an error reply begin with this? */
extern bool rs_redis_error_is(const RsReply *reply, const char *code);

/* What XINFO says of a key that does not exist. */
#define RS_NO_SUCH_KEY "ERR no such key"

/* Read the replies, trees, to XINFO STREAM and to HGETALL; false: it is something else, an error say. */
extern bool rs_redis_stream_read(const RsReply *reply, RsStreamState *state);
extern bool rs_redis_history_read(const RsReply *reply, RsStreamHistory *history);

/*
 * Was the stream deleted and filled again since the history was written?  Then "refilled" is the first id
 * of its new life.
 */
extern bool rs_redis_stream_refilled(const RsStreamState *state, const RsStreamHistory *history,
									 RsStreamId *refilled);

/* Changes of a history: fields and values in turn; "" for none. */
typedef struct RsHistoryChanges
{
	int			count;			/* of words */
	const char *words[8];		/* constants, and texts */
	char		texts[3][RS_STREAM_ID_SIZE];
} RsHistoryChanges;

/* What the history has to say of this state; with "refilled", that too. */
extern void rs_redis_history_changes(const RsStreamState *state, const RsStreamHistory *history,
									 const RsStreamId *refilled, RsHistoryChanges *changes);

/* The words of a command that changes a history, up to the changes, which the caller adds.  It works when Redis is full,
 * too.  Replied is 1. */
#define RS_HISTORY_WORDS 4
extern void rs_redis_history_words(const RsKey *history, const char *words[RS_HISTORY_WORDS]);

/* ---- reading.c: a stream, page by page -------------------------------------------- */

/*
 * A place in a stream to read on from, and how many entries make about a megabyte there.  Zeroed at first, and kept from
 * one turn to the next, since nobody else knows how large the entries in the middle of a stream are.
 */
typedef struct RsReading
{
	RsStreamId	after;
	int			page;			/* 0: not known yet */
} RsReading;

/* "entry_bytes" is what the stream says of the size of entries (RsStreamState). */
extern void rs_redis_reading_begin(RsReading *reading, const RsStreamId *after, size_t entry_bytes);

/*
 * Reads the next entries, "most" of them or a megabyte or so, whichever is less: "reply" has them as a tree, and none at
 * the end of the stream.  When entries are suddenly large it can be more: a thousand of them at most.  After a failure a
 * few are tried.  Errors as for rs_redis_turn_begin().
 */
extern bool rs_redis_reading_next(RsConnection *connection, const RsKey *stream, RsReading *reading,
								  int most, int timeout_ms, RsReply *reply, bool *refused,
								  RsError *error);

/* An entry of a stream, in memory of the reply it came in. */
typedef struct RsStreamEntry
{
	RsStreamId	id;
	const char *payload;		/* the first field of this name; NULL: there is none */
	size_t		length;
	bool		other_fields;
} RsStreamEntry;

/* False if it is no entry. */
extern bool rs_redis_entry_read(const struct redisReply *tree, RsStreamEntry *entry);

/*
 * Waits for messages behind an id, for block_ms at most; "there" says whether there are some.  Who holds no
 * lock may wait, too.  Errors as for rs_redis_turn_begin().
 */
extern bool rs_redis_await_messages(RsConnection *connection, const RsKey *stream,
									const RsStreamId *after, int block_ms, int timeout_ms,
									bool *there, bool *refused, RsError *error);

/* ---- turn.c: a consumer's turn: lock, offset, batch ---------------------------------- */

/* A consumer of a stream, and under which holder's name its lock is taken. */
typedef struct RsConsumer
{
	RsKey		stream;
	RsKey		offset;
	RsKey		lock;
	RsKey		notify;
	RsKey		registry;
	RsKey		history;
	char		name[RS_NAME_MAX + 1];
	char		stream_name[RS_NAME_MAX + 1];
	char		holder[RS_HOLDER_SIZE];
} RsConsumer;

/* The names must have passed their checks. */
extern void rs_redis_consumer_set(RsConsumer *consumer, const char *ns, const char *stream,
								  const char *name, const char *holder);

/* What there is at the beginning of a turn. */
typedef struct RsTurn
{
	bool		taken;			/* the lock is ours; else nothing below is said but lock_ms */
	int64_t		lock_ms;		/* when somebody else's lock expires, at the latest */
	bool		registered;		/* before this turn */
	bool		has_offset;
	bool		bad_offset;		/* the error is that it is no id */
	RsStreamId	offset;			/* 0-0 without one */
	RsStreamState stream;
	RsStreamHistory history;
	bool		refill;			/* noticed now: history does not say it yet */
} RsTurn;

/*
 * Takes the lock, or makes sure of it if it is ours already, and looks at the stream: one round trip.  False and an error
 * when the connection failed, or Redis refused ("refused" is then true: the connection is in order).  With an error the
 * lock may have been taken.
 */
extern bool rs_redis_turn_begin(RsConnection *connection, const RsConsumer *consumer, int timeout_ms,
								RsTurn *turn, bool *refused, RsError *error);

/*
 * Does an offset fit the stream?  If not, the error says what is wrong: it is ahead of the stream, or the stream was
 * deleted and filled again behind it, so that messages are lost to the consumer.
 */
extern bool rs_redis_turn_check(const RsTurn *turn, const RsStreamId *offset, RsError *error);

/*
 * Registers the consumer, if it is not, and remembers the state of the stream: also that it was filled again.  Before
 * anything is read, and also when the check said no.  "registers" is false for that.  Errors as for the beginning.
 */
extern bool rs_redis_turn_note(RsConnection *connection, const RsConsumer *consumer,
							   const RsTurn *turn, bool registers, int timeout_ms, bool *refused,
							   RsError *error);

/*
 * Commits an offset, if the lock is still ours, and unless a greater one is committed; and releases the lock, or extends
 * it.  As words: replied is 1 when it was done, 0 when the lock is not ours.
 */
#define RS_COMMIT_WORDS 10
extern void rs_redis_commit_words(const RsConsumer *consumer, const char *id, bool release,
								  const char *words[RS_COMMIT_WORDS]);

/* An entry for another stream that is added together with a commit: fields and values in turn. */
#define RS_LETTER_WORDS 16
typedef struct RsDeadLetter
{
	const RsKey *stream;
	int			count;			/* of words */
	const char *words[RS_LETTER_WORDS];
	size_t		lengths[RS_LETTER_WORDS];
} RsDeadLetter;

/*
 * Commits, now; "letter" may be NULL.  "committed" is false when the lock is not ours any more: then nothing was done.
 * With "handed_over" the lock is released, and that says whether somebody who stood by has been woken; with NULL it is
 * extended.  Errors as for the beginning.
 */
extern bool rs_redis_turn_commit(RsConnection *connection, const RsConsumer *consumer,
								 const RsStreamId *id, const RsDeadLetter *letter,
								 bool *handed_over, int timeout_ms, bool *committed,
								 bool *refused, RsError *error);

/* Releases the lock, if it is still ours, without a commit. */
extern bool rs_redis_turn_release(RsConnection *connection, const RsConsumer *consumer,
								  bool *handed_over, int timeout_ms, bool *refused, RsError *error);

/* Waits until somebody has released the lock, for wait_ms at most. */
extern bool rs_redis_turn_stand_by(RsConnection *connection, const RsConsumer *consumer,
								   int wait_ms, int timeout_ms, bool *refused, RsError *error);

/*
 * Does without effect what placing an offset will do, so that a refusal comes while it still can be told.  Replied is the
 * offset there is, or nil.
 */
#define RS_PROBE_WORDS 5
extern void rs_redis_probe_words(const RsConsumer *consumer, const char *words[RS_PROBE_WORDS]);

/* Registers a consumer and sets its offset, wherever that was and whoever has the lock.  "id" may be '$': the end
 * of the stream.  Replied is 1. */
#define RS_PLACE_WORDS 8
extern void rs_redis_place_words(const RsConsumer *consumer, const char *id,
								 const char *words[RS_PLACE_WORDS]);

#endif							/* RS_REDIS_H */
