-- The register of consumers, and the views over attachments, streams and consumers.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;
RESET client_min_messages;
CREATE SCHEMA views;
SET search_path = views;

-- attachments
SELECT * FROM redstream.attachments WHERE "table"::text LIKE 'shelf%';
CREATE TABLE shelf (id integer PRIMARY KEY, "Größe, cm" integer, name text);
CREATE TABLE shelf_line (id integer PRIMARY KEY, shelf_id integer);
CREATE TABLE shelf_part (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shelf_part_1 PARTITION OF shelf_part FOR VALUES FROM (1) TO (10);
SELECT redstream.attach('shelf');
SELECT redstream.attach('shelf_line', 'views shelf', payload => ARRAY['shelf_id'], delay => '36 hours');
SELECT redstream.attach('shelf_part');
SELECT * FROM redstream.attachments WHERE "table"::text LIKE 'shelf%' ORDER BY "table"::text;
SELECT redstream.attach('shelf', 'views shelf', payload => ARRAY['Größe, cm', 'id'],
    columns => ARRAY['name', 'Größe, cm'], delay => '90 min', expiry => '1 month');
SELECT * FROM redstream.attachments WHERE "table" = 'shelf'::regclass;
CREATE FUNCTION shelf_payload(shelf) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb($1.name)';
SELECT redstream.attach('shelf', 'views shelf', payload_function => 'shelf_payload', shards => 3, replica => true,
    condition => '"Größe, cm" > 3 and lower(name) <> ''a''', delay => '90 min', expiry => '1 month');
SELECT * FROM redstream.attachments WHERE "table" = 'shelf'::regclass;
-- under the names there are now
ALTER TABLE shelf RENAME "Größe, cm" TO size;
SELECT condition FROM redstream.attachments WHERE "table" = 'shelf'::regclass;
ALTER TABLE shelf RENAME size TO "Größe, cm";
SELECT stream, expiry, delay FROM redstream.streams WHERE stream LIKE 'views shelf%' ORDER BY stream;
SELECT redstream.attach('shelf', 'views shelf', payload => ARRAY['Größe, cm', 'id'],
    columns => ARRAY['name', 'Größe, cm'], delay => '90 min', expiry => '1 month');

SET intervalstyle = sql_standard;
SELECT delay, expiry FROM redstream.attachments WHERE "table" = 'shelf'::regclass;
RESET intervalstyle;

-- streams: one row each, the shorter delay and the longer expiry of the tables on it
SELECT stream, size, delayed, oldest_delayed, oldest, expiry, delay, bytes, error
FROM redstream.streams WHERE stream IN ('views shelf', 'shelf_part') ORDER BY stream;
SELECT redstream.attach('shelf_line', 'views shelf', payload => ARRAY['shelf_id'], expiry => '31 days');
SELECT expiry, delay FROM redstream.streams WHERE stream = 'views shelf';
SELECT redstream.attach('shelf_line', 'views shelf', payload => ARRAY['shelf_id'],
    delay => '0', expiry => '29 days');
SELECT expiry, delay FROM redstream.streams WHERE stream = 'views shelf';

INSERT INTO shelf SELECT i, 10 * i, 'shelf' FROM generate_series(1, 5) i;
INSERT INTO shelf_line VALUES (1, 1);
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
INSERT INTO shelf_part VALUES (1), (2), (3);
CALL wait_for_messages('shelf_part', 3);
SELECT stream, size, delayed, oldest >= oldest_delayed AS oldest,
    oldest_delayed BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' AS oldest_delayed,
    expiry, delay, bytes > 0 AS bytes, error
FROM redstream.streams WHERE stream = 'shelf_part';

-- the register: a name, and an offset
SELECT redstream.max_consumer_id('shelf_part', 'indexer');
SELECT redstream.add_consumer('shelf_part', 'indexer');
SELECT redstream.max_consumer_id('shelf_part', 'indexer');
SELECT stream, consumer, committed_id, lag, lag_seconds BETWEEN 0 AND 60 AS lag_seconds, lock_holder,
    blocks_trimming, lost, problem
FROM redstream.consumers WHERE stream = 'shelf_part';
SELECT redstream.add_consumer('shelf_part', 'leser 2');
SELECT id AS id_2 FROM redstream.peek('shelf_part') OFFSET 1 LIMIT 1 \gset
SELECT redstream.add_consumer('shelf_part', 'indexer', :'id_2');
SELECT redstream.max_consumer_id('shelf_part', 'indexer') = :'id_2' AS committed;
SELECT redstream.add_consumer('shelf_part', 'größter', '1');
SELECT consumer, lag, blocks_trimming, problem
FROM redstream.consumers WHERE stream = 'shelf_part' ORDER BY consumer COLLATE "C";
-- $ is what was the last id, and 0-0 of a stream that is not there
SELECT redstream.add_consumer('shelf_part', 'größter', '$');
SELECT redstream.max_consumer_id('shelf_part', 'größter') = redstream.max_stream_id('shelf_part') AS committed;
SELECT consumer, lag, lag_seconds, blocks_trimming, problem
FROM redstream.consumers WHERE stream = 'shelf_part' AND consumer = 'größter';
SELECT redstream.add_consumer('views_nothing', 'indexer', '$');
SELECT redstream.max_consumer_id('views_nothing', 'indexer');
SELECT redstream.drop_consumer('views_nothing', 'indexer');
SELECT redstream.max_consumer_id('views_nothing', 'indexer');
-- an id is written as Redis writes it
SELECT redstream.add_consumer('views_nothing', 'indexer', '0005');
SELECT redstream.max_consumer_id('views_nothing', 'indexer');
SELECT redstream.drop_consumer('views_nothing', 'indexer');
SELECT redstream.drop_consumer('views_nothing', 'indexer');
-- at once, not with the transaction
BEGIN;
SELECT redstream.drop_consumer('shelf_part', 'größter');
ROLLBACK;
SELECT redstream.drop_consumer('shelf_part', 'größter');
SELECT redstream.drop_consumer('shelf_part', 'leser 2');
SELECT redstream.drop_consumer('shelf_part', 'indexer');
SELECT count(*) FROM redstream.consumers WHERE stream = 'shelf_part';

-- names and ids
SELECT redstream.add_consumer('views.delay', 'indexer');
SELECT redstream.add_consumer('', 'indexer');
SELECT redstream.add_consumer('shelf_part', 'a:b');
SELECT redstream.add_consumer('shelf_part', '');
SELECT redstream.add_consumer('shelf_part', repeat('x', 513));
SELECT redstream.add_consumer('shelf_part', 'indexer', '-');
SELECT redstream.add_consumer('shelf_part', 'indexer', '+');
SELECT redstream.add_consumer('shelf_part', 'indexer', '');
SELECT redstream.add_consumer('shelf_part', 'indexer', '1-2-3');
SELECT redstream.add_consumer('shelf_part', 'indexer', '18446744073709551616-0');
SELECT redstream.add_consumer('shelf_part', NULL);
SELECT redstream.drop_consumer('views.delay', 'indexer');
SELECT redstream.drop_consumer('shelf_part', E'a\nb');
SELECT redstream.max_consumer_id('shelf_part', 'a:b');
SELECT redstream.max_consumer_id('', 'indexer');
SELECT count(*) FROM redstream.consumers WHERE stream = 'shelf_part';

-- who may what
CREATE ROLE regress_redstream_monitor;
SET ROLE regress_redstream_monitor;
SELECT * FROM redstream.attachments;
RESET ROLE;
GRANT USAGE ON SCHEMA redstream TO regress_redstream_monitor;
SET ROLE regress_redstream_monitor;
SELECT * FROM redstream.attachments;
SELECT * FROM redstream.streams;
SELECT * FROM redstream.consumers;
SELECT * FROM redstream.stream_rows();
RESET ROLE;
GRANT pg_monitor TO regress_redstream_monitor;
SET ROLE regress_redstream_monitor;
SELECT "table", stream FROM redstream.attachments WHERE stream = 'shelf_part';
SELECT stream, error FROM redstream.streams WHERE stream = 'shelf_part';
SELECT count(*) FROM redstream.consumers WHERE stream = 'shelf_part';
SELECT redstream.add_consumer('shelf_part', 'indexer');
SELECT redstream.drop_consumer('shelf_part', 'indexer');
SELECT redstream.max_consumer_id('shelf_part', 'indexer');
RESET ROLE;
DROP OWNED BY regress_redstream_monitor;
DROP ROLE regress_redstream_monitor;

SET client_min_messages = warning;
DROP SCHEMA views CASCADE;
SELECT count(*) FROM redstream.attachments WHERE stream LIKE '%shel%';
