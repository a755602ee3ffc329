-- emit(), enqueue(), bulk(), bulk_update(), bulk_enqueue(): what they are, return and refuse.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;

CREATE SCHEMA produce_test;
SET search_path = produce_test;

SELECT p.oid::regprocedure AS function, pg_get_function_arguments(p.oid) AS arguments,
    pg_get_function_result(p.oid) AS result, provolatile AS volatile, proisstrict AS strict, prosecdef AS definer,
    proparallel AS parallel
FROM pg_proc p
WHERE pronamespace = 'redstream'::regnamespace AND proname IN ('emit', 'enqueue', 'bulk', 'bulk_update', 'bulk_enqueue')
ORDER BY proname;
\d redstream.progress

-- nobody may call them, or look, unless it is granted
CREATE ROLE regress_redstream_producer;
SELECT p.oid::regprocedure AS function, has_function_privilege('regress_redstream_producer', p.oid, 'EXECUTE') AS may
FROM pg_proc p
WHERE pronamespace = 'redstream'::regnamespace
    AND proname IN ('emit', 'enqueue', 'bulk', 'bulk_update', 'bulk_enqueue', 'progress_rows')
ORDER BY proname;
SELECT has_table_privilege('regress_redstream_producer', 'redstream.progress', 'SELECT') AS may,
    has_table_privilege('pg_monitor', 'redstream.progress', 'SELECT') AS monitor_may;
DROP ROLE regress_redstream_producer;

CREATE TABLE item (id integer PRIMARY KEY, name text, n integer DEFAULT 0);
INSERT INTO item SELECT i, 'name ' || i FROM generate_series(1, 10) i;
CREATE TABLE keyless (id integer);
CREATE VIEW item_view AS SELECT * FROM item;
CREATE TEMP TABLE item_temp (id integer PRIMARY KEY);
CREATE TABLE "item.delay" (id integer PRIMARY KEY);

-- ---- emit ----
SELECT redstream.emit('produce_test', '{"a": 1}');
SELECT redstream.emit(stream => 'produce_test', payload => '[]');
SELECT redstream.emit('produce_test', 'null');
SELECT redstream.emit(NULL, '1');
SELECT redstream.emit('produce_test', NULL);
SELECT redstream.emit('', '1');
SELECT redstream.emit('a.delay', '1');
SELECT redstream.emit(E'a\tb', '1');
SELECT redstream.emit(repeat('x', 513), '1');
SELECT redstream.emit('produce_test', '{a: 1}');

-- ---- enqueue ----
SELECT redstream.enqueue('item');
SELECT redstream.enqueue('item', 'id <= 4 AND name IS NOT NULL');
SELECT redstream.enqueue(target => 'item', matching => 'produce_test.item.id = 1 -- or more');
SELECT redstream.enqueue('item', 'id IN (SELECT max(id) FROM item)');
SELECT redstream.enqueue('item', 'NULL');
SELECT redstream.enqueue('item', 'id');
SELECT redstream.enqueue('item', 'true) OR (true');
SELECT redstream.enqueue('item', 'true UNION SELECT true');
SELECT redstream.enqueue('item', 'true; SELECT true');
SELECT redstream.enqueue('item', '');
SELECT redstream.enqueue('item', 'price > 0');
SELECT redstream.enqueue('item', 'other.id = 1');
SELECT redstream.enqueue('item', 'max(id) = 1');
SELECT redstream.enqueue('item', 'id = $1');
SELECT redstream.enqueue('item', NULL);
SELECT redstream.enqueue(NULL);
SELECT redstream.enqueue('no_table');
SELECT redstream.enqueue(0);
SELECT redstream.enqueue('keyless');
SELECT redstream.enqueue('item_view');
SELECT redstream.enqueue('item_temp');
SELECT redstream.enqueue('item_pkey');
SELECT redstream.enqueue('pg_class');
SELECT redstream.enqueue('"item.delay"');

-- with an attachment's condition, and a stream that is another table's
SELECT redstream.attach('item', condition => 'id > 3');
SELECT redstream.enqueue('item', 'id < 6');
CREATE SCHEMA produce_other;
CREATE TABLE produce_other.item (id integer PRIMARY KEY);
SELECT redstream.enqueue('produce_other.item');
SELECT redstream.detach('item');
SELECT redstream.enqueue('produce_other.item');

-- ---- bulk ----
SELECT redstream.bulk('item', 'id < 4', 'UPDATE item SET n = 1 WHERE id < 4');
SELECT redstream.bulk('item', 'false', 'UPDATE item SET n = n + 1 WHERE id = 1;');
SELECT redstream.bulk('item', 'id = 10', 'DELETE FROM item WHERE id = 10 RETURNING *');
SELECT redstream.bulk('item', 'id = 1', 'WITH u AS (UPDATE item SET n = n + 1 WHERE id = 1 RETURNING *) SELECT * FROM u');
SELECT id, n FROM item ORDER BY id;
SELECT redstream.bulk('item', 'true', 'SELECT 1');
SELECT redstream.bulk('item', 'true', 'TRUNCATE item');
SELECT redstream.bulk('item', 'true', 'EXPLAIN DELETE FROM item');
SELECT redstream.bulk('item', 'true', '');
SELECT redstream.bulk('item', 'true', 'DELETE FROM item; DELETE FROM item');
SELECT redstream.bulk('item', 'true', 'DELETE FORM item');
SELECT redstream.bulk('item', 'true', 'DELETE FROM item WHERE id = $1');
SELECT redstream.bulk('item', 'true', 'DELETE FROM no_table');
SELECT redstream.bulk('item', 'id =', 'DELETE FROM item');
SELECT redstream.bulk('keyless', 'true', 'DELETE FROM keyless');
SELECT redstream.bulk('item_view', 'true', 'DELETE FROM item_view');
SELECT redstream.bulk(NULL, 'true', 'DELETE FROM item');
SELECT redstream.bulk('item', NULL, 'DELETE FROM item');
SELECT redstream.bulk('item', 'true', NULL);

-- ---- bulk_update and bulk_enqueue ----
CALL redstream.bulk_update('item', 'n = id * 2, name = NULL', 'id < 9', 4);
CALL redstream.bulk_update('item', '(n, name) = (n + 1, ''b'');', batch_size => 2, pause => '1 ms', start_after => '{6}');
SELECT id, n, name FROM item ORDER BY id;
CALL redstream.bulk_enqueue('item');
CALL redstream.bulk_enqueue(target => 'item', matching => 'id > 5', batch_size => 1, start_after => ARRAY['7']);
SELECT * FROM redstream.progress;

CALL redstream.bulk_update('item', 'n = 1 WHERE true');
CALL redstream.bulk_update('item', 'n = 1 FROM keyless');
CALL redstream.bulk_update('item', 'n = 1 RETURNING id');
CALL redstream.bulk_update('item', 'n = 1; DELETE FROM item');
CALL redstream.bulk_update('item', '');
CALL redstream.bulk_update('item', 'n 1');
CALL redstream.bulk_update('item', 'price = 1');
CALL redstream.bulk_update('item', 'n = 1, id = 1');
CALL redstream.bulk_update('item', 'n = $1');
CALL redstream.bulk_update('item', 'n = 1 / (id - 6)', 'id > 3', 2);
CALL redstream.bulk_update('item', 'n = 1', 'true OR');
CALL redstream.bulk_update('item', 'n = 1', batch_size => 0);
CALL redstream.bulk_update('item', 'n = 1', pause => '-1 s');
CALL redstream.bulk_update('item', 'n = 1', start_after => '{1,2}');
CALL redstream.bulk_update('item', 'n = 1', start_after => '{NULL}');
CALL redstream.bulk_update('item', 'n = 1', start_after => '{one}');
CALL redstream.bulk_update(NULL, 'n = 1');
CALL redstream.bulk_update('item', NULL);
CALL redstream.bulk_update('item', 'n = 1', NULL);
CALL redstream.bulk_update('item', 'n = 1', batch_size => NULL);
CALL redstream.bulk_enqueue('item', pause => NULL);
CALL redstream.bulk_enqueue('keyless');
CALL redstream.bulk_enqueue('item_view');
BEGIN;
CALL redstream.bulk_enqueue('item');
ROLLBACK;
DO $$ BEGIN CALL redstream.bulk_enqueue('item'); END $$;
BEGIN;
DO $$ BEGIN CALL redstream.bulk_enqueue('item'); END $$;
ROLLBACK;
SELECT * FROM redstream.progress;

-- where errors are caught there is a subtransaction
\set VERBOSITY terse
SET client_min_messages = notice;
DO $$
BEGIN
    CALL redstream.bulk_update('item', 'n = 1 / (id - 6)', 'id > 3', 2);
EXCEPTION WHEN invalid_transaction_termination THEN
    RAISE NOTICE 'not in a block that catches errors';
END $$;

SET client_min_messages = warning;
DROP SCHEMA produce_test, produce_other CASCADE;
