-- redstream 1.0
\echo Use "CREATE EXTENSION redstream" to load this file. \quit

COMMENT ON SCHEMA redstream IS 'redstream: announces row changes over Redis streams';

-- ---- capturing ---------------------------------------------------------------

CREATE FUNCTION redstream.capture() RETURNS trigger
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_capture';
COMMENT ON FUNCTION redstream.capture() IS
'The trigger function that redstream.attach() puts on tables: announces the changed row with its transaction.';

CREATE FUNCTION redstream.attach(
    target  regclass,
    stream  text     DEFAULT NULL,
    payload text[]   DEFAULT NULL,
    columns text[]   DEFAULT NULL,
    delay   interval DEFAULT NULL,
    expiry  interval DEFAULT NULL)
    RETURNS void
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_attach';
COMMENT ON FUNCTION redstream.attach(regclass, text, text[], text[], interval, interval) IS
'Announces every committed change of the table from now on; replaces an earlier attachment. stream: default the table''s name. payload: columns of the JSON object, default the primary key. columns: announce an UPDATE only if one of these, or the key in the payload, changed. delay: age at which this stream''s delay messages are moved. expiry: age at which messages are trimmed, read or not. Raises an error for a table that is not the caller''s, has no primary key and no payload, or is no ordinary or partitioned table.';

CREATE FUNCTION redstream.detach(target regclass) RETURNS boolean
    STRICT
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_detach';
COMMENT ON FUNCTION redstream.detach(regclass) IS
'Stops announcing changes of the table; false if it was not attached. Raises an error for a table that is not the caller''s.';

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
    OUT skipped       bigint,
    OUT passed        bigint,
    OUT moved         bigint,
    OUT dropped       bigint,
    OUT trimmed       bigint,
    OUT expired       bigint,
    OUT errors        bigint)
    VOLATILE
    LANGUAGE C AS 'MODULE_PATHNAME', 'redstream_stats';
COMMENT ON FUNCTION redstream.stats_row() IS 'The row of redstream.stats.';

CREATE VIEW redstream.stats AS SELECT * FROM redstream.stats_row();
COMMENT ON VIEW redstream.stats IS
'The connection to Redis and what passed through it since the server started; nulls if redstream is not preloaded.';
COMMENT ON COLUMN redstream.stats.connected IS 'Is the sender connected to Redis?';
COMMENT ON COLUMN redstream.stats.since IS 'When the connection was made or lost.';
COMMENT ON COLUMN redstream.stats.last_error IS 'What Redis or the connection last failed with.';
COMMENT ON COLUMN redstream.stats.last_error_at IS 'When that was.';
COMMENT ON COLUMN redstream.stats.delay_bytes IS 'Bytes of delay messages that Redis has not acknowledged.';
COMMENT ON COLUMN redstream.stats.main_bytes IS 'Bytes of main messages that Redis has not acknowledged or whose transaction is committing.';
COMMENT ON COLUMN redstream.stats.captured IS 'Messages made of row changes, those of rolled-back transactions included.';
COMMENT ON COLUMN redstream.stats.delayed IS 'Delay messages that Redis acknowledged.';
COMMENT ON COLUMN redstream.stats.sent IS 'Messages of both kinds written to Redis, each time they were.';
COMMENT ON COLUMN redstream.stats.acknowledged IS 'Main messages that Redis acknowledged.';
COMMENT ON COLUMN redstream.stats.resent IS 'Messages that had to be written again, because their acknowledgement did not come.';
COMMENT ON COLUMN redstream.stats.skipped IS 'Messages given up under redstream.on_outage = skip.';
COMMENT ON COLUMN redstream.stats.passed IS 'Transactions whose commit took too long to keep others waiting: their delay messages announce them.';
COMMENT ON COLUMN redstream.stats.moved IS 'Delay messages that were due and moved to their main stream.';
COMMENT ON COLUMN redstream.stats.dropped IS 'Delay messages that were due and removed: rolled back or, with redstream.repeat = unconfirmed, known to be announced.';
COMMENT ON COLUMN redstream.stats.trimmed IS 'Main messages that were trimmed.';
COMMENT ON COLUMN redstream.stats.expired IS 'Of these, the ones that expired before every consumer had read them, counted once for each such consumer.';
COMMENT ON COLUMN redstream.stats.errors IS 'Connections lost and commands refused.';

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
COMMENT ON COLUMN redstream.workers.pid IS 'Process id; delayer and trimmer of a database are one process. Null if there is none now.';
COMMENT ON COLUMN redstream.workers.kind IS 'sender: writes messages to Redis; launcher: keeps a worker running in each database with the extension; delayer: moves delay messages that are due; trimmer: trims streams.';
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA redstream FROM PUBLIC;
-- Whoever makes a partition of an attached table is asked for it. To name the
-- function in a trigger of one's own takes USAGE on the schema.
GRANT EXECUTE ON FUNCTION redstream.capture() TO PUBLIC;
GRANT USAGE ON SCHEMA redstream TO pg_monitor;
GRANT SELECT ON redstream.stats, redstream.workers TO pg_monitor;
GRANT EXECUTE ON FUNCTION redstream.stats_row(), redstream.worker_rows() TO pg_monitor;

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
