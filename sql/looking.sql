-- Looking at streams: keys, sizes, peek().
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;
RESET client_min_messages;

-- keys
SELECT redstream.stream_key('products'), redstream.delay_key('products'),
    redstream.offset_key('products', 'indexer');
SELECT redstream.lock_key('consumer:products:indexer'), redstream.lock_key('trimmer:products');
SELECT redstream.stream_key('{products}'), redstream.stream_key('a:b c/d"\é𝄞');
SELECT redstream.stream_key(NULL), redstream.offset_key('products', NULL);

-- with a namespace
ALTER SYSTEM SET redstream.namespace = 'shop';
SELECT pg_reload_conf();
\c
SELECT redstream.stream_key('products'), redstream.delay_key('products'),
    redstream.offset_key('products', 'indexer'), redstream.lock_key('trimmer:products');
ALTER SYSTEM RESET redstream.namespace;
SELECT pg_reload_conf();
\c
SELECT redstream.stream_key('products');

-- names
SELECT redstream.stream_key('');
SELECT redstream.stream_key('products.delay');
SELECT redstream.stream_key(E'a\x7Fb');
SELECT redstream.stream_key(repeat('x', 513));
SELECT length(redstream.stream_key(repeat('x', 512)));
SELECT redstream.delay_key(E'\t');
SELECT redstream.offset_key('products', 'a:b');
SELECT redstream.offset_key('products', '');
SELECT redstream.offset_key('', 'indexer');
SELECT redstream.offset_key('products.delay', 'delayer');
SELECT redstream.lock_key('');
SELECT redstream.stream_size('products.delay');
SELECT redstream.max_stream_id('');
SELECT * FROM redstream.peek('');

-- streams
SELECT redstream.stream_size('looking_nothing'), redstream.max_stream_id('looking_nothing');
SELECT * FROM redstream.peek('looking_nothing');

CREATE TABLE looking (id integer PRIMARY KEY, name text);
SELECT redstream.attach('looking', payload => ARRAY['id', 'name']);
INSERT INTO looking SELECT i, 'näme ' || i FROM generate_series(1, 1200) i;

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
CALL wait_for_messages('looking', 1200);
SELECT redstream.stream_size('looking');

SELECT count(*) FROM redstream.peek('looking');
SELECT payload FROM redstream.peek('looking', count => 3);
SELECT payload->>'id' AS id FROM redstream.peek('looking') OFFSET 98;
-- more than Redis is asked for at a time
SELECT count(*), count(DISTINCT id), min((payload->>'id')::integer), max((payload->>'id')::integer)
FROM redstream.peek('looking', count => 1100);
SELECT count(*) FROM redstream.peek('looking', count => 100000);
SELECT count(*) FROM redstream.peek('looking', count => 500);
SELECT * FROM redstream.peek('looking', count => 0);

-- in the order of ids, which are two numbers
SELECT redstream.max_stream_id('looking') = (SELECT id FROM redstream.peek('looking', count => 100000) OFFSET 1199) AS last;
SELECT count(*) FILTER (WHERE (payload->>'id')::bigint <> number) AS out_of_order
FROM redstream.peek('looking', count => 100000) WITH ORDINALITY AS m (id, payload, number);
SELECT bool_and(id ~ '^\d{13,}-\d+$') FROM redstream.peek('looking', count => 100000);

-- ranges
SELECT id AS id_10 FROM redstream.peek('looking') OFFSET 9 LIMIT 1 \gset
SELECT id AS id_12 FROM redstream.peek('looking') OFFSET 11 LIMIT 1 \gset
SELECT payload->'id' AS id FROM redstream.peek('looking', :'id_10', :'id_12');
SELECT payload->'id' AS id FROM redstream.peek('looking', '(' || :'id_10', '(' || :'id_12');
SELECT payload->'id' AS id FROM redstream.peek('looking', :'id_10', '+', 2);
SELECT count(*) FROM redstream.peek('looking', '-', :'id_10');
SELECT count(*) FROM redstream.peek('looking', '0-0', '18446744073709551615-18446744073709551615', 2000);
SELECT count(*) FROM redstream.peek('looking', :'id_12', :'id_10');
SELECT count(*) FROM redstream.peek('looking', '0', '18446744073709551615', 2000);
SELECT * FROM redstream.peek('looking', 'x');
SELECT * FROM redstream.peek('looking', '1-2-3');
SELECT * FROM redstream.peek('looking', '-1');
SELECT * FROM redstream.peek('looking', '');
SELECT * FROM redstream.peek('looking', '(-');
SELECT * FROM redstream.peek('looking', '-', '18446744073709551616-0');
SELECT * FROM redstream.peek('looking', count => -1);
SELECT * FROM redstream.peek('looking', NULL);

-- in expressions and joins like any function
SELECT l.name FROM redstream.peek('looking', count => 2) m JOIN looking l ON l.id = (m.payload->>'id')::integer;
SELECT count(*) FROM (VALUES ('looking'), ('looking_nothing')) s (name), redstream.peek(s.name, count => 10);

-- a stream that peek() cannot show: not jsonb
CREATE TABLE looking_json (value json);
SELECT redstream.attach('looking_json', payload => ARRAY['value']);
INSERT INTO looking_json VALUES ('"a\u0000b"');
CALL wait_for_messages('looking_json', 1);
\set VERBOSITY terse
SELECT payload FROM redstream.peek('looking_json');
\set VERBOSITY default
SELECT redstream.stream_size('looking_json');

DROP TABLE looking, looking_json;
DROP PROCEDURE wait_for_messages;
