-- consume(), commit_offset() and what goes with them: what they are, return and refuse.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;

CREATE SCHEMA consume_test;
SET search_path = consume_test;

SELECT p.oid::regprocedure AS function, pg_get_function_arguments(p.oid) AS arguments,
    pg_get_function_result(p.oid) AS result, provolatile AS volatile, proisstrict AS strict, prosecdef AS definer,
    proparallel AS parallel
FROM pg_proc p
WHERE pronamespace = 'redstream'::regnamespace
    AND proname IN ('consume', 'commit_offset', 'add_consumer', 'drop_consumer', 'max_consumer_id')
ORDER BY proname;
\d redstream.offsets

-- messages arrive when the commit has long returned
CREATE PROCEDURE wait_for_messages(stream text, expected bigint) LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '30 seconds';
BEGIN
    WHILE redstream.stream_size(stream) < expected LOOP
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'waited in vain for % messages on %', expected, stream;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;

-- so do offsets
CREATE PROCEDURE wait_for_offset(stream text, consumer text, expected text) LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '30 seconds';
BEGIN
    WHILE redstream.max_consumer_id(stream, consumer) IS DISTINCT FROM expected LOOP
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'waited in vain for offset % of %', expected, consumer;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;

DO $$
BEGIN
    FOR i IN 1 .. 20 LOOP
        PERFORM redstream.emit('consume_test', jsonb_build_object('n', i));
    END LOOP;
END $$;
CALL wait_for_messages('consume_test', 20);
SELECT id AS id_1 FROM redstream.peek('consume_test') LIMIT 1 \gset
SELECT id AS id_5 FROM redstream.peek('consume_test') OFFSET 4 LIMIT 1 \gset
SELECT id AS id_10 FROM redstream.peek('consume_test') OFFSET 9 LIMIT 1 \gset
SELECT id AS id_20 FROM redstream.peek('consume_test') OFFSET 19 LIMIT 1 \gset

-- which message of the stream an offset is
CREATE FUNCTION number_of(offset_id text) RETURNS bigint LANGUAGE sql AS $$
    SELECT number FROM redstream.peek('consume_test') WITH ORDINALITY AS p (id, payload, number) WHERE p.id = offset_id
$$;
CREATE VIEW offsets AS SELECT stream, consumer, number_of(id) AS number FROM redstream.offsets ORDER BY 1, 2;

-- ---- batches ----
SELECT payload FROM redstream.consume('consume_test', 'a', 3);
SELECT * FROM offsets;
SELECT payload FROM redstream.consume(stream => 'consume_test', consumer => 'a', batch_size => 1, wait => '1 s');
SELECT number_of(id), payload FROM redstream.consume('consume_test', 'a', 2);
SELECT count(*) FROM redstream.consume('consume_test', 'a');
SELECT * FROM redstream.consume('consume_test', 'a');
SELECT * FROM redstream.consume('consume_test', 'a', wait => '10 ms');
CALL wait_for_offset('consume_test', 'a', :'id_20');
SELECT * FROM redstream.consume('consume_nothing', 'a');
SELECT count(*) FROM redstream.consume('consume_test', 'whole', 2147483647);
SELECT * FROM offsets;

-- ---- arguments ----
SELECT * FROM redstream.consume(NULL, 'a');
SELECT * FROM redstream.consume('consume_test', NULL);
SELECT * FROM redstream.consume('consume_test', 'b', NULL);
SELECT * FROM redstream.consume('consume_test', 'b', wait => NULL);
SELECT * FROM redstream.consume('consume_test', 'b', 0);
SELECT * FROM redstream.consume('consume_test', 'b', -1);
SELECT * FROM redstream.consume('consume_test', 'b', wait => '60.001 s');
SELECT * FROM redstream.consume('consume_test', 'b', wait => '-1 ms');
SELECT * FROM redstream.consume('consume_test', 'b', wait => '1 day');
SELECT * FROM redstream.consume('consume_test', 'b', wait => '1 month -30 days');
SELECT * FROM redstream.consume('', 'b');
SELECT * FROM redstream.consume('consume_test.delay', 'b');
SELECT * FROM redstream.consume(E'a\tb', 'b');
SELECT * FROM redstream.consume(repeat('x', 513), 'b');
SELECT * FROM redstream.consume('consume_test', '');
SELECT * FROM redstream.consume('consume_test', 'a:b');
SELECT * FROM redstream.consume('consume_test', repeat('x', 513));
SELECT * FROM redstream.consume(repeat('x', 512), repeat('y', 512));
SELECT redstream.commit_offset(NULL, 'b', '1-0');
SELECT redstream.commit_offset('consume_test', 'b', NULL);
SELECT redstream.commit_offset('consume_test', 'b', 'x');
SELECT redstream.commit_offset('consume_test', 'b', '$');
SELECT redstream.commit_offset('consume_test', 'b', '-1');
SELECT redstream.commit_offset('consume_test', 'b', '1-2-3');
SELECT redstream.commit_offset('consume_test', 'b', '18446744073709551616-0');
SELECT redstream.commit_offset('consume_test', 'b', '');
SELECT redstream.commit_offset('consume_test', 'a:b', '1-0');
SELECT redstream.commit_offset('consume_test.delay', 'b', '1-0');
SELECT redstream.add_consumer('consume_test', 'b', 'x');
-- nobody is registered by that
SELECT redstream.drop_consumer('consume_test', 'b');

-- names of any kind
SELECT redstream.emit('it''s "ä"; --', '{"n": 1}');
CALL wait_for_messages('it''s "ä"; --', 1);
SELECT payload FROM redstream.consume('it''s "ä"; --', 'o''né "x" \');
SELECT * FROM redstream.consume('it''s "ä"; --', 'o''né "x" \');
SELECT stream, consumer FROM redstream.offsets WHERE stream LIKE 'it%';
SELECT redstream.drop_consumer('it''s "ä"; --', 'o''né "x" \');
SELECT stream, consumer FROM redstream.offsets WHERE stream LIKE 'it%';

-- ---- transactions ----
BEGIN;
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
SELECT redstream.max_consumer_id('consume_test', 'tx');
ROLLBACK;
SELECT redstream.max_consumer_id('consume_test', 'tx');
SELECT * FROM offsets WHERE consumer = 'tx';
BEGIN;
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
SAVEPOINT a;
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
SAVEPOINT b;
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
ROLLBACK TO b;
SELECT payload FROM redstream.consume('consume_test', 'tx', 1);
RELEASE b;
SELECT * FROM offsets WHERE consumer = 'tx';
ROLLBACK TO a;
SELECT * FROM offsets WHERE consumer = 'tx';
SELECT payload FROM redstream.consume('consume_test', 'tx', 3);
COMMIT;
CALL wait_for_offset('consume_test', 'tx', :'id_5');
SELECT * FROM offsets WHERE consumer = 'tx';

BEGIN READ ONLY;
SELECT * FROM redstream.consume('consume_test', 'tx', 2);
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM redstream.consume('consume_test', 'a', 2);
COMMIT;
BEGIN;
SELECT payload FROM redstream.consume('consume_test', 'tx', 2);
PREPARE TRANSACTION 'consume_test';
BEGIN;
SELECT redstream.commit_offset('consume_test', 'tx', '1-0');
PREPARE TRANSACTION 'consume_test';
-- that has set it back at once, and the table still counts
SELECT payload FROM redstream.consume('consume_test', 'tx', 1);

-- ---- in queries ----
SELECT (redstream.consume('consume_test', 'list', 2)).payload;
SELECT consumer, payload
FROM (VALUES ('q1'), ('q2')) c (consumer), redstream.consume('consume_test', c.consumer, 2)
ORDER BY 1, 2;
SELECT c.i, payload
FROM generate_series(1, 3) c (i), LATERAL redstream.consume('consume_test', 'q3', c.i)
ORDER BY 1, 2;
WITH batch AS (SELECT * FROM redstream.consume('consume_test', 'q4', 3))
SELECT count(*), (SELECT max(payload->>'n') FROM batch) FROM batch;
CREATE TABLE done (n integer, consumer text);
WITH batch AS (SELECT * FROM redstream.consume('consume_test', 'q4', 3)),
    filed AS (INSERT INTO done SELECT (payload->>'n')::integer, 'q4' FROM batch RETURNING n)
SELECT n FROM filed ORDER BY n;
-- the batch is as large as was asked for, whatever is taken of it
SELECT payload FROM redstream.consume('consume_test', 'limit', 10) LIMIT 1;
SELECT payload FROM redstream.consume('consume_test', 'limit', 1);
SELECT * FROM redstream.consume('consume_test', 'limit', 5) WHERE false;
SELECT payload FROM redstream.consume('consume_test', 'limit', 1);

PREPARE next(text, integer) AS SELECT payload FROM redstream.consume('consume_test', $1, $2);
EXECUTE next('prepared', 2);
EXECUTE next('prepared', 1);
DISCARD PLANS;
EXECUTE next('prepared', 1);
DISCARD ALL;
SET search_path = consume_test;
SET client_min_messages = warning;
SELECT payload FROM redstream.consume('consume_test', 'prepared', 1);

BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT payload FROM redstream.consume('consume_test', 'cursor', 3);
SELECT * FROM offsets WHERE consumer = 'cursor';
FETCH c;
SELECT * FROM offsets WHERE consumer = 'cursor';
FETCH ALL c;
MOVE ABSOLUTE 0 c;
FETCH ALL c;
COMMIT;
-- a cursor that is held reads its batch at the commit, at the latest
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT payload FROM redstream.consume('consume_test', 'cursor', 2);
COMMIT;
SELECT * FROM offsets WHERE consumer = 'cursor';
FETCH ALL held;
CLOSE held;
SELECT payload FROM redstream.consume('consume_test', 'cursor', 1);

CREATE FUNCTION work(consumer text, fails boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    INSERT INTO done SELECT (payload->>'n')::integer, consumer FROM redstream.consume('consume_test', consumer, 2);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF fails THEN
        RAISE 'as told';
    END IF;
    RETURN n;
END $$;
SELECT work('f1', false), work('f2', false), work('f1', false);
SELECT work('f1', true);
DO $$
BEGIN
    PERFORM work('f3', false);
    BEGIN
        PERFORM work('f3', true);
    EXCEPTION WHEN raise_exception THEN
        NULL;
    END;
    BEGIN
        PERFORM redstream.consume('consume_test', 'f3', 0);
    EXCEPTION WHEN invalid_parameter_value THEN
        NULL;
    END;
    PERFORM work('f3', false);
END $$;
-- each batch in a transaction of its own
DO $$
BEGIN
    LOOP
        EXIT WHEN work('f4', false) = 0;
        COMMIT;
    END LOOP;
END $$;
SELECT consumer, array_agg(n ORDER BY n) FROM done GROUP BY consumer ORDER BY consumer;
SELECT * FROM offsets WHERE consumer LIKE 'f_';

-- when a deferred trigger consumes, it is not too late
CREATE FUNCTION consume_some() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO done SELECT (payload->>'n')::integer, 'deferred' FROM redstream.consume('consume_test', 'deferred', 2);
    RETURN NULL;
END $$;
CREATE TABLE late (id integer);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION consume_some();
INSERT INTO late VALUES (1), (2);
SELECT array_agg(n ORDER BY n) FROM done WHERE consumer = 'deferred';
SELECT * FROM offsets WHERE consumer = 'deferred';
SELECT payload FROM redstream.consume('consume_test', 'deferred', 1);

-- ---- commit_offset ----
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
CALL wait_for_offset('consume_test', 'set', :'id_10');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.commit_offset('consume_test', 'set', :'id_1');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- forward, and not
BEGIN;
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
SELECT number_of(redstream.max_consumer_id('consume_test', 'set'));
ROLLBACK;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- back, and not
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
BEGIN;
SELECT redstream.commit_offset('consume_test', 'set', :'id_5');
SELECT number_of(redstream.max_consumer_id('consume_test', 'set'));
ROLLBACK;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- in a savepoint
BEGIN;
SELECT redstream.commit_offset('consume_test', 'set', :'id_5');
SAVEPOINT s;
SELECT redstream.commit_offset('consume_test', 'set', :'id_20');
ROLLBACK TO s;
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
RELEASE s;
COMMIT;
CALL wait_for_offset('consume_test', 'set', :'id_10');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
BEGIN;
SAVEPOINT s;
SELECT redstream.commit_offset('consume_test', 'set', :'id_20');
ROLLBACK TO s;
COMMIT;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- between two batches: the next one goes on there
BEGIN;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.commit_offset('consume_test', 'set', :'id_5');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
COMMIT;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
BEGIN READ ONLY;
SELECT redstream.commit_offset('consume_test', 'set', :'id_10');
ROLLBACK;
-- an id without its second number
SELECT redstream.commit_offset('consume_test', 'short', '1');
SELECT id FROM redstream.offsets WHERE consumer = 'short';
SELECT payload FROM redstream.consume('consume_test', 'short', 1);

-- ---- add_consumer and drop_consumer ----
SELECT redstream.add_consumer('consume_test', 'set');
SELECT * FROM offsets WHERE consumer = 'set';
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.add_consumer('consume_test', 'set', '$');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.add_consumer('consume_test', 'set', :'id_5');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- the table's row comes back with a rollback, and counts
BEGIN;
SELECT redstream.add_consumer('consume_test', 'set');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
ROLLBACK;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
BEGIN;
SELECT redstream.add_consumer('consume_test', 'set');
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
COMMIT;
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
SELECT redstream.drop_consumer('consume_test', 'set');
SELECT redstream.drop_consumer('consume_test', 'set');
SELECT * FROM offsets WHERE consumer = 'set';
SELECT payload FROM redstream.consume('consume_test', 'set', 1);
-- it registers
SELECT redstream.drop_consumer('consume_test', 'set');
BEGIN READ ONLY;
SELECT redstream.add_consumer('consume_test', 'set');
SELECT redstream.drop_consumer('consume_test', 'set');
COMMIT;

-- ---- privileges ----
CREATE ROLE regress_redstream_consumer;
GRANT USAGE ON SCHEMA consume_test TO regress_redstream_consumer;
SELECT p.oid::regprocedure AS function, has_function_privilege('regress_redstream_consumer', p.oid, 'EXECUTE') AS may
FROM pg_proc p
WHERE pronamespace = 'redstream'::regnamespace
    AND proname IN ('consume', 'commit_offset', 'add_consumer', 'drop_consumer', 'max_consumer_id')
ORDER BY proname;
SELECT has_table_privilege('regress_redstream_consumer', 'redstream.offsets', 'SELECT, INSERT, UPDATE, DELETE') AS may,
    has_table_privilege('pg_monitor', 'redstream.offsets', 'SELECT') AS monitor_may;
SET ROLE regress_redstream_consumer;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
RESET ROLE;
GRANT USAGE ON SCHEMA redstream TO regress_redstream_consumer;
SET ROLE regress_redstream_consumer;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
SELECT redstream.commit_offset('consume_test', 'p', '1-0');
RESET ROLE;
GRANT EXECUTE ON FUNCTION redstream.consume, redstream.commit_offset TO regress_redstream_consumer;

-- objects and settings of the caller that nothing may be meant by
CREATE FUNCTION never(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'this was called'; END $$;
CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = never);
CREATE TABLE consume_test.text (value integer);
CREATE DOMAIN consume_test.jsonb AS integer;
SET ROLE regress_redstream_consumer;
CREATE TEMP TABLE offsets_temp (namespace pg_catalog.text, stream pg_catalog.text, consumer pg_catalog.text, id pg_catalog.text);
ALTER TABLE offsets_temp RENAME TO offsets;
SET search_path = pg_temp, consume_test, pg_catalog;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
SET row_security = off;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
SET row_security = on;
SELECT redstream.commit_offset('consume_test', 'p', :'id_10');
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
SELECT pg_catalog.count(*) FROM offsets;
SELECT current_user, pg_catalog.current_setting('search_path');
SELECT * FROM redstream.offsets;
INSERT INTO redstream.offsets VALUES ('', 'consume_test', 'p', '0-0');
RESET ROLE;
SET search_path = consume_test;
ALTER TABLE redstream.offsets ENABLE ROW LEVEL SECURITY;
ALTER TABLE redstream.offsets FORCE ROW LEVEL SECURITY;
SET ROLE regress_redstream_consumer;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
BEGIN;
SAVEPOINT s;
SELECT redstream.consume('consume_test', 'p', 1), 1 OPERATOR(pg_catalog./) 0;
ROLLBACK TO s;
SELECT current_user;
SELECT payload FROM redstream.consume('consume_test', 'p', 1);
COMMIT;
RESET ROLE;
ALTER TABLE redstream.offsets NO FORCE ROW LEVEL SECURITY;
ALTER TABLE redstream.offsets DISABLE ROW LEVEL SECURITY;
SET search_path = pg_catalog;
DROP OPERATOR consume_test.= (text, text);
DROP DOMAIN consume_test.jsonb;
DROP TABLE pg_temp.offsets, consume_test.text;
SET search_path = consume_test;

-- ---- a message that is no jsonb ----
CREATE TABLE consume_json (value json);
SELECT redstream.attach('consume_json', payload => ARRAY['value']);
INSERT INTO consume_json VALUES ('1'), ('2'), ('"a\u0000b"'), ('4');
CALL wait_for_messages('consume_json', 4);
-- what is in front of it comes first
SELECT payload FROM redstream.consume('consume_json', 'a');
\set VERBOSITY terse
DO $$
DECLARE
    message text;
    detail text;
    hint text;
    state text;
BEGIN
    PERFORM redstream.consume('consume_json', 'a');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
        state = RETURNED_SQLSTATE;
    message := regexp_replace(message, '\d{13,}-\d+', 'ID');
    hint := regexp_replace(hint, '\d{13,}-\d+', 'ID');
    RAISE WARNING E'%: %\n%\n%', state, message, detail, hint;
END $$;
-- as the hint says
SELECT id AS bad FROM (
    SELECT id, row_number() OVER () AS number FROM redstream.peek('consume_json', count => 2)) p
WHERE number = 2 \gset
SELECT redstream.max_consumer_id('consume_json', 'a') = :'bad' AS before;
DO $$
DECLARE
    hint text;
BEGIN
    PERFORM redstream.consume('consume_json', 'a');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    EXECUTE (regexp_match(hint, 'SELECT .*\)'))[1];
END $$;
\set VERBOSITY default
SELECT payload FROM redstream.consume('consume_json', 'a');

-- ---- the end ----
SELECT count(redstream.drop_consumer(stream, consumer)) FROM redstream.offsets WHERE stream LIKE 'consume%';
SELECT redstream.drop_consumer('consume_nothing', 'a'), redstream.drop_consumer('consume_test', 'b'),
    redstream.drop_consumer(repeat('x', 512), repeat('y', 512));
SELECT count(*) FROM redstream.offsets;
REVOKE ALL ON FUNCTION redstream.consume, redstream.commit_offset FROM regress_redstream_consumer;
REVOKE ALL ON SCHEMA redstream, consume_test FROM regress_redstream_consumer;
DROP ROLE regress_redstream_consumer;
DROP SCHEMA consume_test CASCADE;
