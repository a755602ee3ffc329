-- redstream 1.0
\echo Use "CREATE EXTENSION redstream" to load this file. \quit

COMMENT ON SCHEMA redstream IS 'redstream: announces row changes over Redis streams';

-- ---- capturing ---------------------------------------------------------------

CREATE FUNCTION redstream.capture() RETURNS trigger
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_capture';
COMMENT ON FUNCTION redstream.capture() IS
'The trigger function that redstream.attach() puts on tables: announces the changed row with its transaction.';

CREATE FUNCTION redstream.attach(
    target           regclass,
    stream           text     DEFAULT NULL,
    payload          text[]   DEFAULT NULL,
    payload_function regproc  DEFAULT NULL,
    columns          text[]   DEFAULT NULL,
    condition        text     DEFAULT NULL,
    shards           integer  DEFAULT 1,
    delay            interval DEFAULT NULL,
    expiry           interval DEFAULT NULL,
    replica          boolean  DEFAULT false)
    RETURNS void
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_attach';
COMMENT ON FUNCTION redstream.attach(regclass, text, text[], regproc, text[], text, integer, interval, interval, boolean) IS
'Announces every committed change of the table from now on; replaces an earlier attachment. stream: default the table''s name. payload: columns of the JSON object, default the primary key; payload_function: instead, a function of the table''s row type that returns json or jsonb. columns: announce an UPDATE only if one of these, or the key in the payload, changed. condition: announce a row only if this holds for its old or its new version. shards: spread over so many streams, <stream>-0 and so on, by primary key. delay: age at which this stream''s delay messages are moved. expiry: age at which messages are trimmed, read or not. replica: also for changes that logical replication applies. Raises an error for a table that is not the caller''s, has no primary key and no payload, or is no ordinary or partitioned table.';

CREATE FUNCTION redstream.detach(target regclass) RETURNS boolean
    STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_detach';
COMMENT ON FUNCTION redstream.detach(regclass) IS
'Stops announcing changes of the table; false if it was not attached. Raises an error for a table that is not the caller''s.';

-- ---- producing by hand ------------------------------------------------------------

CREATE FUNCTION redstream.emit(stream text, payload jsonb) RETURNS void
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_emit';
COMMENT ON FUNCTION redstream.emit(text, jsonb) IS
'Announces a message of one''s own with the transaction: a delay message before its commit, a main message after it, nothing if it is rolled back. Raises invalid_name, null_value_not_allowed, program_limit_exceeded for a payload that is too large, and io_error when Redis does not take it.';

CREATE FUNCTION redstream.enqueue(target regclass, matching text DEFAULT 'true') RETURNS bigint
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_enqueue';
COMMENT ON FUNCTION redstream.enqueue(regclass, text) IS
'Announces the rows of the table that match a condition, without changing them, with this transaction: first fill, repair, replay. As the table is attached, its condition included; a table that is not attached announces its primary key to the stream of its name. Rows whose payload is more than their key are locked FOR SHARE. Returns the number of rows. Reads as its caller. Raises what the condition raises, object_not_in_prerequisite_state for a table that is not attached and has no primary key, and io_error when Redis does not take the messages.';

CREATE FUNCTION redstream.bulk(target regclass, matching text, statement text) RETURNS bigint
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_bulk';
COMMENT ON FUNCTION redstream.bulk(regclass, text, text) IS
'Locks the rows of the table that match a condition, in the order of the primary key, writes their delay messages and waits for them, runs a statement that changes data, and announces these rows once when the transaction commits, whether or not the table is attached. What the statement touches beyond them is announced if its table is attached. Returns the number of rows locked. Reads, locks and runs as its caller. Raises syntax_error for several statements, invalid_parameter_value for one that changes no data, and what redstream.enqueue() and the statement raise.';

CREATE PROCEDURE redstream.bulk_update(
    target      regclass,
    assignments text,
    matching    text     DEFAULT 'true',
    batch_size  integer  DEFAULT 1000,
    pause       interval DEFAULT '0',
    start_after text[]   DEFAULT NULL)
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_bulk_update';
COMMENT ON PROCEDURE redstream.bulk_update(regclass, text, text, integer, interval, text[]) IS
'Updates the rows of the table that match a condition, in batches of that many rows, each its own transaction as redstream.bulk() does it, in the order of the primary key, with a pause after each. assignments: what follows SET; not of key columns. A NOTICE after each batch, and the context of an error, say behind which key to go on: start_after, the key''s values as text. While Redis is away or its queues are more than half full, it waits. Raises invalid_transaction_termination in a transaction block, and what redstream.bulk() raises.';

CREATE PROCEDURE redstream.bulk_enqueue(
    target      regclass,
    matching    text     DEFAULT 'true',
    batch_size  integer  DEFAULT 1000,
    pause       interval DEFAULT '0',
    start_after text[]   DEFAULT NULL)
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_bulk_enqueue';
COMMENT ON PROCEDURE redstream.bulk_enqueue(regclass, text, integer, interval, text[]) IS
'Announces the rows of the table that match a condition as redstream.enqueue() does, in batches as redstream.bulk_update(). Raises what these raise.';

CREATE FUNCTION redstream.progress_rows(
    OUT pid       integer,
    OUT procedure text,
    OUT "table"   regclass,
    OUT state     text,
    OUT done      bigint,
    OUT total     bigint,
    OUT rate      double precision,
    OUT started   timestamptz,
    OUT last_key  text)
    RETURNS SETOF record
    VOLATILE ROWS 10
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_progress_rows';
COMMENT ON FUNCTION redstream.progress_rows() IS 'The rows of redstream.progress.';

CREATE VIEW redstream.progress AS SELECT * FROM redstream.progress_rows();
COMMENT ON VIEW redstream.progress IS
'The calls of redstream.bulk_update() and redstream.bulk_enqueue() that are running in this database.';
COMMENT ON COLUMN redstream.progress.pid IS 'Process id of the session.';
COMMENT ON COLUMN redstream.progress.procedure IS 'bulk_update or bulk_enqueue.';
COMMENT ON COLUMN redstream.progress."table" IS 'The table.';
COMMENT ON COLUMN redstream.progress.state IS 'running; pausing: as its caller asked for; waiting: for Redis.';
COMMENT ON COLUMN redstream.progress.done IS 'Rows that are done and committed.';
COMMENT ON COLUMN redstream.progress.total IS 'Rows in all, as the planner expects; NULL: not known yet.';
COMMENT ON COLUMN redstream.progress.rate IS 'Rows a second since it started.';
COMMENT ON COLUMN redstream.progress.started IS 'When it was called.';
COMMENT ON COLUMN redstream.progress.last_key IS 'The key of the last row that is done, as start_after takes it; NULL: none yet.';

-- ---- the spool ------------------------------------------------------------------

CREATE TABLE redstream.spool (
    bucket      smallint    NOT NULL,
    position    pg_lsn      NOT NULL,
    xact        xid8        NOT NULL,
    namespace   text        NOT NULL,
    stream      text        NOT NULL,
    payload     bytea,
    publication bytea,
    spooled_at  timestamptz NOT NULL
) USING heap
  WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 100000);
CREATE INDEX spool_order ON redstream.spool (bucket, position);
COMMENT ON TABLE redstream.spool IS
'Messages of committed transactions that Redis has not taken, and of prepared ones: written in the transaction (redstream.on_outage = spool), removed by the worker when Redis has acknowledged them. Not dumped.';
COMMENT ON INDEX redstream.spool_order IS 'The order in which rows are delivered.';
COMMENT ON COLUMN redstream.spool.bucket IS 'The part of the streams that this one belongs to.';
COMMENT ON COLUMN redstream.spool.position IS 'Position of WAL when it was written, counted on: of two messages about a row, the newer one has the greater.';
COMMENT ON COLUMN redstream.spool.xact IS 'The transaction.';
COMMENT ON COLUMN redstream.spool.namespace IS 'redstream.namespace at that time.';
COMMENT ON COLUMN redstream.spool.stream IS 'The stream.';
COMMENT ON COLUMN redstream.spool.payload IS 'The payload, JSON in UTF-8; NULL: see publication.';
COMMENT ON COLUMN redstream.spool.publication IS 'Instead of a payload: which delay messages of a large transaction are to be announced.';
COMMENT ON COLUMN redstream.spool.spooled_at IS 'When it was written.';

-- ---- consuming -----------------------------------------------------------------

CREATE FUNCTION redstream.add_consumer(stream text, consumer text, start text DEFAULT '0-0')
    RETURNS void
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_add_consumer';
COMMENT ON FUNCTION redstream.add_consumer(text, text, text) IS
'Registers a consumer, so that no message of the stream is trimmed before it has read it, and sets its offset: it reads on behind start, which is "0-0" (everything there is), "$" (only what comes from now on) or an id. Sets the offset of a registered one too, also backwards. Takes effect at once, not with the transaction, except that what redstream.consume() keeps of the consumer in this database is forgotten with it. Raises invalid_name, invalid_parameter_value for what is no id, io_error if Redis cannot be asked.';

CREATE FUNCTION redstream.drop_consumer(stream text, consumer text) RETURNS boolean
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_drop_consumer';
COMMENT ON FUNCTION redstream.drop_consumer(text, text) IS
'Takes a consumer off the register and forgets its offset: messages are no longer kept for it. False if it was not registered. Takes effect at once, not with the transaction, except that what redstream.consume() keeps of the consumer in this database is forgotten with it. Raises invalid_name, and io_error if Redis cannot be asked.';

CREATE TABLE redstream.offsets (
    namespace text NOT NULL,
    stream    text NOT NULL,
    consumer  text NOT NULL,
    id        text NOT NULL,
    PRIMARY KEY (namespace, stream, consumer)
) WITH (fillfactor = 50);
COMMENT ON TABLE redstream.offsets IS
'Offsets of the consumers that work in this database with redstream.consume(), and of those set by redstream.commit_offset(): written in the transactions that do the work. Dumped with it.';
COMMENT ON COLUMN redstream.offsets.namespace IS 'redstream.namespace at that time.';
COMMENT ON COLUMN redstream.offsets.stream IS 'The stream.';
COMMENT ON COLUMN redstream.offsets.consumer IS 'The consumer.';
COMMENT ON COLUMN redstream.offsets.id IS 'Id of the last message that it has committed. In Redis it can be greater, when a program has worked as this consumer; and behind for as long as the copy after a commit takes.';
SELECT pg_catalog.pg_extension_config_dump('redstream.offsets', '');

CREATE FUNCTION redstream.consume(
    stream     text,
    consumer   text,
    batch_size integer  DEFAULT 1000,
    wait       interval DEFAULT '0',
    OUT id      text,
    OUT payload jsonb)
    RETURNS SETOF record
    VOLATILE STRICT ROWS 1000
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_consume';
COMMENT ON FUNCTION redstream.consume(text, text, integer, interval) IS
'The next batch of a consumer, in the order of the stream, and no row when there is nothing to read. The offset moves with this transaction, so that what it does with the batch in this database is done exactly once; rolled back, the batch comes again. Registers the consumer. Its lock is held until the transaction ends. wait: for a message, when there is none; 60 s at most. Raises lock_not_available when another session or process works as this consumer, or the lock was lost; object_not_in_prerequisite_state when the stream is not the one that the consumer has read before; an error that names the message when its payload is no jsonb; feature_not_supported at PREPARE TRANSACTION; invalid_name, invalid_parameter_value; io_error if Redis cannot be asked, at COMMIT too.';

CREATE FUNCTION redstream.commit_offset(stream text, consumer text, id text) RETURNS void
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_commit_offset';
COMMENT ON FUNCTION redstream.commit_offset(text, text, text) IS
'Sets the offset of a consumer to this id: it goes on behind it. Registers the consumer. Moves on when this transaction commits, and back at once. A consumer that is at work meanwhile commits over it. Raises invalid_name, invalid_parameter_value for what is no id, io_error if Redis cannot be asked, at COMMIT too.';

CREATE FUNCTION redstream.max_consumer_id(stream text, consumer text) RETURNS text
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_max_consumer_id';
COMMENT ON FUNCTION redstream.max_consumer_id(text, text) IS
'The last id that the consumer has committed; NULL if there is none. Raises invalid_name, and io_error if Redis cannot be asked.';

-- ---- the worker's jobs ------------------------------------------------------------

CREATE FUNCTION redstream.run_delayer()
    RETURNS TABLE (
        stream  text,
        moved   bigint,
        dropped bigint,
        held    bigint,
        locked  boolean,
        error   text)
    VOLATILE ROWS 100
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_run_delayer';
COMMENT ON FUNCTION redstream.run_delayer() IS
'Moves the due delay messages of this database''s streams to their main streams now, as its worker does all the time. A row for each stream that there was something to do for: messages moved, dropped because they need no announcement, held because their transaction is running; locked: somebody else is at work on it; error: what went wrong. Takes effect at once, not with the transaction. Raises io_error if Redis cannot be asked.';

CREATE FUNCTION redstream.run_trimmer()
    RETURNS TABLE (
        stream  text,
        trimmed bigint,
        expired bigint,
        locked  boolean,
        error   text)
    VOLATILE ROWS 100
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_run_trimmer';
COMMENT ON FUNCTION redstream.run_trimmer() IS
'Trims this database''s streams now, as its worker does from time to time. A row for each stream that there was something to do for: messages trimmed, and of these the ones that expired before every consumer had read them; locked: somebody else is at work on it; error: what went wrong. Takes effect at once, not with the transaction. Raises io_error if Redis cannot be asked.';

-- ---- looking -------------------------------------------------------------------

CREATE FUNCTION redstream.stream_size(stream text) RETURNS bigint
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_stream_size';
COMMENT ON FUNCTION redstream.stream_size(text) IS
'Number of messages on the stream; 0 if it does not exist. Raises io_error if Redis cannot be asked.';

CREATE FUNCTION redstream.max_stream_id(stream text) RETURNS text
    VOLATILE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_max_stream_id';
COMMENT ON FUNCTION redstream.max_stream_id(text) IS
'Id of the last message on the stream; NULL if there is none. Raises io_error if Redis cannot be asked.';

CREATE FUNCTION redstream.peek(
    stream text,
    start  text    DEFAULT '-',
    stop   text    DEFAULT '+',
    count  integer DEFAULT 100)
    RETURNS TABLE (id text, payload jsonb)
    VOLATILE STRICT ROWS 100
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_peek';
COMMENT ON FUNCTION redstream.peek(text, text, text, integer) IS
'Messages of the stream from start to stop ("-" and "+" for its ends, "(" before an id leaves it out), at most count. Consumes nothing. Raises io_error if Redis cannot be asked, and an error for a payload that is not JSON.';

CREATE FUNCTION redstream.stream_key(stream text) RETURNS text
    STABLE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_stream_key';
COMMENT ON FUNCTION redstream.stream_key(text) IS
'Redis key of the stream''s main messages. Raises invalid_name.';

CREATE FUNCTION redstream.delay_key(stream text) RETURNS text
    STABLE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_delay_key';
COMMENT ON FUNCTION redstream.delay_key(text) IS
'Redis key of the stream''s delay messages. Raises invalid_name.';

CREATE FUNCTION redstream.offset_key(stream text, consumer text) RETURNS text
    STABLE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_offset_key';
COMMENT ON FUNCTION redstream.offset_key(text, text) IS
'Redis key of the last id that the consumer committed. Raises invalid_name.';

CREATE FUNCTION redstream.lock_key(name text) RETURNS text
    STABLE STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_lock_key';
COMMENT ON FUNCTION redstream.lock_key(text) IS
'Redis key of a lock: of a consumer ("consumer:<stream>:<consumer>") or of a trimmer ("trimmer:<stream>"). Raises invalid_name.';

CREATE FUNCTION redstream.attachment_rows(
    OUT "table"   regclass,
    OUT stream    text,
    OUT payload   text[],
    OUT columns   text[],
    OUT condition text,
    OUT shards    integer,
    OUT delay     interval,
    OUT expiry    interval,
    OUT payload_function text,
    OUT replica   boolean)
    RETURNS SETOF record
    STABLE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_attachments';
COMMENT ON FUNCTION redstream.attachment_rows() IS 'The rows of redstream.attachments.';

CREATE VIEW redstream.attachments AS SELECT * FROM redstream.attachment_rows();
COMMENT ON VIEW redstream.attachments IS
'The attached tables of this database and what attach() was told of each. Does not ask Redis.';
COMMENT ON COLUMN redstream.attachments."table" IS 'The table; of a partitioned one, its root.';
COMMENT ON COLUMN redstream.attachments.stream IS 'Where its changes are announced; with shards the names of the streams begin so.';
COMMENT ON COLUMN redstream.attachments.payload IS 'Columns of the payload; NULL: the primary key, or payload_function.';
COMMENT ON COLUMN redstream.attachments.columns IS 'An UPDATE is announced only if one of these changed; NULL: any column.';
COMMENT ON COLUMN redstream.attachments.condition IS 'A row is announced only if this holds for its old or its new version; NULL: always.';
COMMENT ON COLUMN redstream.attachments.shards IS 'Number of streams that the changes are spread over.';
COMMENT ON COLUMN redstream.attachments.delay IS 'Age at which delay messages are moved; NULL: redstream.delay.';
COMMENT ON COLUMN redstream.attachments.expiry IS 'Age at which messages are trimmed, read or not; NULL: none.';
COMMENT ON COLUMN redstream.attachments.payload_function IS 'The function that makes the payload; NULL: it is made of columns.';
COMMENT ON COLUMN redstream.attachments.replica IS 'Does it announce changes that logical replication applies, too?';

CREATE FUNCTION redstream.stream_rows(
    OUT stream         text,
    OUT size           bigint,
    OUT delayed        bigint,
    OUT oldest_delayed timestamptz,
    OUT oldest         timestamptz,
    OUT expiry         interval,
    OUT delay          interval,
    OUT bytes          bigint,
    OUT error          text)
    RETURNS SETOF record
    VOLATILE ROWS 100
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_streams';
COMMENT ON FUNCTION redstream.stream_rows() IS 'The rows of redstream.streams.';

CREATE VIEW redstream.streams AS
    SELECT s.stream, s.size, s.delayed, s.oldest_delayed, s.oldest, s.expiry, s.delay, s.bytes,
           coalesce(p.spooled, 0) AS spooled, p.oldest_spooled, s.error
    FROM redstream.stream_rows() AS s
        LEFT JOIN (SELECT stream, count(*) AS spooled, min(spooled_at) AS oldest_spooled
                   FROM redstream.spool
                   WHERE namespace = current_setting('redstream.namespace')
                   GROUP BY stream) AS p USING (stream);
COMMENT ON VIEW redstream.streams IS
'The streams that this database''s tables are attached to, and others that it has written to, and what Redis holds of each, as of now. Raises io_error if Redis cannot be asked; what it refuses for one stream is in that one''s row.';
COMMENT ON COLUMN redstream.streams.stream IS 'The stream.';
COMMENT ON COLUMN redstream.streams.size IS 'Main messages; 0 if there is no such stream yet, NULL if Redis refused to say.';
COMMENT ON COLUMN redstream.streams.delayed IS 'Delay messages; 0 if there are none, NULL if Redis refused to say.';
COMMENT ON COLUMN redstream.streams.oldest_delayed IS 'When the oldest delay message was written, by the clock of Redis.';
COMMENT ON COLUMN redstream.streams.oldest IS 'When the oldest main message was written, by the clock of Redis.';
COMMENT ON COLUMN redstream.streams.expiry IS 'Age at which messages are trimmed, read or not; NULL: none. Of several tables on the stream the longest counts, and none is longer.';
COMMENT ON COLUMN redstream.streams.delay IS 'Age at which delay messages are moved. Of several tables on the stream the shortest of their own counts; without one redstream.delay.';
COMMENT ON COLUMN redstream.streams.bytes IS 'Memory that main and delay messages take in Redis, as it estimates.';
COMMENT ON COLUMN redstream.streams.spooled IS 'Messages in redstream.spool that Redis has not taken yet.';
COMMENT ON COLUMN redstream.streams.oldest_spooled IS 'When the oldest of these was written.';
COMMENT ON COLUMN redstream.streams.error IS 'What Redis answered for this stream instead, such as WRONGTYPE; NULL if nothing. Columns that it concerns are NULL.';

CREATE FUNCTION redstream.consumer_rows(
    OUT stream          text,
    OUT consumer        text,
    OUT committed_id    text,
    OUT lag             bigint,
    OUT lag_seconds     double precision,
    OUT lock_holder     text,
    OUT blocks_trimming boolean,
    OUT lost            bigint,
    OUT problem         text)
    RETURNS SETOF record
    VOLATILE ROWS 100
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_consumers';
COMMENT ON FUNCTION redstream.consumer_rows() IS 'The rows of redstream.consumers.';

CREATE VIEW redstream.consumers AS SELECT * FROM redstream.consumer_rows();
COMMENT ON VIEW redstream.consumers IS
'The registered consumers of this database''s streams, and how far they are, as of now. Raises io_error if Redis cannot be asked; what it refuses for one consumer is in that one''s row.';
COMMENT ON COLUMN redstream.consumers.stream IS 'The stream.';
COMMENT ON COLUMN redstream.consumers.consumer IS 'The consumer; NULL: the stream''s register cannot be read, see problem.';
COMMENT ON COLUMN redstream.consumers.committed_id IS 'Id of the last message that it has committed; NULL if it has not committed any.';
COMMENT ON COLUMN redstream.consumers.lag IS 'Messages behind the committed id. Counted up to 10000, which means at least so many; who has read nothing of what is there has a lag of all of it, exactly. NULL if not known.';
COMMENT ON COLUMN redstream.consumers.lag_seconds IS 'Age of the first unread message, by the clock of Redis; 0 if there is none, NULL if not known.';
COMMENT ON COLUMN redstream.consumers.lock_holder IS 'Who holds the consumer''s lock, and so is at work; NULL: nobody.';
COMMENT ON COLUMN redstream.consumers.blocks_trimming IS 'Does the trimmer wait for this one? It has no offset, or one with a problem, or it is the slowest of the stream and has unread messages.';
COMMENT ON COLUMN redstream.consumers.lost IS 'Messages that expired before this consumer had read them.';
COMMENT ON COLUMN redstream.consumers.problem IS 'What is wrong with the consumer, its offset above all; NULL if nothing.';

CREATE FUNCTION redstream.stats_row(
    OUT connected     boolean,
    OUT since         timestamptz,
    OUT last_error    text,
    OUT last_error_at timestamptz,
    OUT delay_bytes   bigint,
    OUT main_bytes    bigint,
    OUT captured      bigint,
    OUT delayed       bigint,
    OUT sent          bigint,
    OUT acknowledged  bigint,
    OUT resent        bigint,
    OUT spooled       bigint,
    OUT skipped       bigint,
    OUT passed        bigint,
    OUT moved         bigint,
    OUT dropped       bigint,
    OUT trimmed       bigint,
    OUT expired       bigint,
    OUT errors        bigint,
    OUT losses        bigint)
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_stats';
COMMENT ON FUNCTION redstream.stats_row() IS 'The row of redstream.stats.';

CREATE VIEW redstream.stats AS
    SELECT s.*, p.spool_rows, p.spool_oldest
    FROM redstream.stats_row() AS s,
         (SELECT count(*) AS spool_rows, min(spooled_at) AS spool_oldest FROM redstream.spool) AS p;
COMMENT ON VIEW redstream.stats IS
'The connection to Redis and what passed through it since the server started; nulls if redstream is not preloaded.';
COMMENT ON COLUMN redstream.stats.connected IS 'Is the sender connected to Redis?';
COMMENT ON COLUMN redstream.stats.since IS 'When the connection was made or lost.';
COMMENT ON COLUMN redstream.stats.last_error IS 'What Redis or the connection last failed with.';
COMMENT ON COLUMN redstream.stats.last_error_at IS 'When that was.';
COMMENT ON COLUMN redstream.stats.delay_bytes IS 'Bytes of delay messages that Redis has not acknowledged.';
COMMENT ON COLUMN redstream.stats.main_bytes IS 'Bytes of main messages that Redis has not acknowledged or whose transaction is committing.';
COMMENT ON COLUMN redstream.stats.captured IS 'Messages of transactions, those of rolled-back ones included.';
COMMENT ON COLUMN redstream.stats.delayed IS 'Delay messages that Redis acknowledged.';
COMMENT ON COLUMN redstream.stats.sent IS 'Messages of both kinds written to Redis, each time they were.';
COMMENT ON COLUMN redstream.stats.acknowledged IS 'Main messages that Redis acknowledged.';
COMMENT ON COLUMN redstream.stats.resent IS 'Messages that had to be written again, because their acknowledgement did not come.';
COMMENT ON COLUMN redstream.stats.spooled IS 'Messages left in redstream.spool.';
COMMENT ON COLUMN redstream.stats.spool_rows IS 'Messages that are in this database''s redstream.spool now.';
COMMENT ON COLUMN redstream.stats.spool_oldest IS 'When the oldest of these was written.';
COMMENT ON COLUMN redstream.stats.skipped IS 'Messages given up under redstream.on_outage = skip.';
COMMENT ON COLUMN redstream.stats.passed IS 'Transactions whose commit took too long to keep others waiting: their delay messages announce them.';
COMMENT ON COLUMN redstream.stats.moved IS 'Delay messages that were due and moved to their main stream.';
COMMENT ON COLUMN redstream.stats.dropped IS 'Delay messages that were due and removed: rolled back or, with redstream.repeat = unconfirmed, known to be announced.';
COMMENT ON COLUMN redstream.stats.trimmed IS 'Main messages that were trimmed.';
COMMENT ON COLUMN redstream.stats.expired IS 'Of these, the ones that expired before every consumer had read them, counted once for each such consumer.';
COMMENT ON COLUMN redstream.stats.errors IS 'Connections lost and commands refused.';
COMMENT ON COLUMN redstream.stats.losses IS 'Times that Redis came back with less than it had acknowledged: what consumers have not read by then may be lost to them.';

CREATE FUNCTION redstream.worker_rows(
    OUT database      name,
    OUT pid           integer,
    OUT kind          text,
    OUT state         text,
    OUT last_tick     timestamptz,
    OUT last_error    text,
    OUT last_error_at timestamptz)
    RETURNS SETOF record
    VOLATILE ROWS 10
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_worker_rows';
COMMENT ON FUNCTION redstream.worker_rows() IS 'The rows of redstream.workers.';

CREATE VIEW redstream.workers AS SELECT * FROM redstream.worker_rows();
COMMENT ON VIEW redstream.workers IS
'The background processes of the server and what they are doing; no rows if redstream is not preloaded.';
COMMENT ON COLUMN redstream.workers.database IS 'The database it works for; null for sender and launcher, which work for all.';
COMMENT ON COLUMN redstream.workers.pid IS 'Process id; spooler, delayer and trimmer of a database are one process. Null if there is none now.';
COMMENT ON COLUMN redstream.workers.kind IS 'sender: writes messages to Redis; launcher: keeps a worker running in each database with the extension; spooler: delivers redstream.spool; delayer: moves delay messages that are due; trimmer: trims streams.';
COMMENT ON COLUMN redstream.workers.state IS 'starting; waiting for a worker process: max_worker_processes are in use; idle; working; failing: what it did last ended with last_error.';
COMMENT ON COLUMN redstream.workers.last_tick IS 'When it last began to work; null for the sender, which always does.';
COMMENT ON COLUMN redstream.workers.last_error IS 'What it last failed with, even if it does no more.';
COMMENT ON COLUMN redstream.workers.last_error_at IS 'When that was.';

-- ---- for this script -------------------------------------------------------------

CREATE FUNCTION redstream.announce_extension() RETURNS void
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_announce_extension';
COMMENT ON FUNCTION redstream.announce_extension() IS
'Called by CREATE EXTENSION: has the launcher look at this database when the transaction has committed.';

-- ---- privileges ------------------------------------------------------------------

REVOKE ALL ON ALL ROUTINES IN SCHEMA redstream FROM PUBLIC;
-- Whoever makes a partition of an attached table is asked for it. A trigger of one's own takes the right to attach().
GRANT EXECUTE ON FUNCTION redstream.capture() TO PUBLIC;
GRANT USAGE ON SCHEMA redstream TO pg_monitor;
GRANT SELECT ON redstream.attachments, redstream.streams, redstream.consumers, redstream.stats,
    redstream.workers, redstream.progress TO pg_monitor;
GRANT EXECUTE ON FUNCTION redstream.attachment_rows(), redstream.stream_rows(),
    redstream.consumer_rows(), redstream.stats_row(), redstream.worker_rows(),
    redstream.progress_rows() TO pg_monitor;

-- ---- what is missing ---------------------------------------------------------------

-- redstream.queue_size exists only where the library was preloaded.
DO $$
BEGIN
    IF current_setting('redstream.queue_size', true) IS NULL THEN
        RAISE WARNING 'redstream is not preloaded: changes of attached tables cannot be announced'
            USING HINT = 'Put redstream into shared_preload_libraries in postgresql.conf and restart the server.';
    END IF;
END
$$;

-- ---- the worker -------------------------------------------------------------------

SELECT redstream.announce_extension();
