-- attach() and detach(): what they refuse, what they leave behind.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;
RESET client_min_messages;

CREATE SCHEMA attach_test;
SET search_path = attach_test;

CREATE TABLE item (
    id    integer PRIMARY KEY,
    name  text,
    "Prix, total" numeric,
    gone  integer);
ALTER TABLE item DROP COLUMN gone;

-- the triggers and their arguments, as anyone sees them
SELECT redstream.attach('item');
\d item
SELECT redstream.attach('item', 'articles',
    payload => ARRAY['name', 'Prix, total', 'id'],
    columns => ARRAY['Prix, total'],
    delay => '1 day 90 minutes',
    expiry => '1 week');
\d item
SELECT redstream.attach('item', delay => '0');
SELECT tgname, encode(tgargs, 'escape') AS arguments, tgenabled, tgisinternal
FROM pg_trigger WHERE tgrelid = 'item'::regclass ORDER BY tgname;
-- whatever the session's settings
SET intervalstyle = iso_8601;
SELECT redstream.attach('item', stream => 'it''s', delay => '1 day 90 minutes');
RESET intervalstyle;
SELECT encode(tgargs, 'escape') AS arguments
FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgname = 'redstream_insert';

-- condition, shards, payload_function, replica
CREATE FUNCTION item_payload(item) RETURNS json LANGUAGE sql AS 'SELECT to_json($1.name)';
SELECT redstream.attach('item', condition => '"Prix, total" > 1.5 OR name IS NULL -- or so', shards => 4, replica => true);
\d item
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'item'::regclass ORDER BY tgname;
SELECT redstream.attach('item', 'articles', payload_function => 'item_payload', columns => ARRAY['name'],
    condition => 'item.name <> $$it''s$$', shards => 1, delay => '1 second', expiry => '1 hour');
\d item
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'item'::regclass ORDER BY tgname;
SELECT redstream.attach('item', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
\d item

SELECT redstream.detach('item');
SELECT redstream.detach('item');
SELECT redstream.detach(NULL);
\d item

-- no row, no key: nothing to say
CREATE TABLE keyless (a integer, b integer);
SELECT redstream.attach('keyless');
SELECT redstream.attach('keyless', payload => ARRAY['b']);
SELECT redstream.attach('keyless', payload => ARRAY['b'], shards => 2);
SELECT redstream.detach('keyless');

-- columns that are none
SELECT redstream.attach('item', payload => ARRAY['id', 'nmae']);
SELECT redstream.attach('item', payload => ARRAY['Id']);
SELECT redstream.attach('item', payload => ARRAY['ctid']);
SELECT redstream.attach('item', payload => ARRAY['........pg.dropped.4........']);
SELECT redstream.attach('item', payload => ARRAY['id', 'name', 'id']);
SELECT redstream.attach('item', payload => ARRAY['id', NULL]);
SELECT redstream.attach('item', payload => '{}');
SELECT redstream.attach('item', columns => ARRAY['nmae']);
SELECT redstream.attach('item', columns => ARRAY['name', 'name']);
SELECT redstream.attach('item', columns => ARRAY[NULL::text]);
SELECT redstream.attach('item', columns => '{}');

-- delays and expiries
SELECT redstream.attach('item', delay => '-1 second');
SELECT redstream.attach('item', delay => '1 day -25 hours');
SELECT redstream.attach('item', expiry => '0');
SELECT redstream.attach('item', expiry => '-1 day');
SELECT redstream.attach('item', expiry => '1 month -30 days');

-- shards, functions and conditions
SELECT redstream.attach('item', shards => 0);
SELECT redstream.attach('item', shards => -1);
SELECT redstream.attach('item', shards => 1025);
SELECT redstream.attach('item', repeat('x', 511), shards => 2);
SELECT redstream.attach('item', payload_function => 'no_such_function');
SELECT redstream.attach('item', payload_function => 'pg_catalog.to_jsonb');
CREATE FUNCTION item_text(item) RETURNS text LANGUAGE sql AS 'SELECT $1.name';
SELECT redstream.attach('item', payload_function => 'item_text');
SELECT redstream.attach('item', payload => ARRAY['id'], payload_function => 'item_payload');
SELECT redstream.attach('item', condition => 'true) OR (true');
SELECT redstream.attach('item', condition => 'true; DROP TABLE item');
SELECT redstream.attach('item', condition => 'id > 1, id > 2');
SELECT redstream.attach('item', condition => '');
SELECT redstream.attach('item', condition => 'id');
SELECT redstream.attach('item', condition => 'no_such_column');
SELECT redstream.attach('item', condition => 'NEW.id > 1');
SELECT redstream.attach('item', condition => 'xmin IS NULL');
SELECT redstream.attach('item', condition => 'id > (SELECT 1)');
SELECT redstream.attach('item', condition => 'count(*) > 1');

-- stream names
SELECT redstream.attach('item', '');
SELECT redstream.attach('item', E'a\nb');
SELECT redstream.attach('item', 'item.delay');
SELECT redstream.attach('item', repeat('x', 513));
SELECT redstream.attach('item', repeat('x', 512));
SELECT redstream.attach('item', repeat('é', 256));
SELECT redstream.attach('item', repeat('é', 256) || 'x');
CREATE TABLE "name.delay" (id integer PRIMARY KEY);
SELECT redstream.attach('"name.delay"');
SELECT redstream.attach('"name.delay"', 'name_delay');

-- a failed call leaves the attachment before it
SELECT redstream.attach('item', 'kept');
SELECT redstream.attach('item', 'item.delay');
SELECT encode(tgargs, 'escape') AS arguments
FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgname = 'redstream_insert';

-- two tables of one name do not share a stream by accident
CREATE SCHEMA attach_other;
CREATE TABLE attach_other.item (id integer PRIMARY KEY);
SELECT redstream.attach('item');
SELECT redstream.attach('attach_other.item');
SELECT redstream.attach('attach_other.item', 'item');
SELECT redstream.attach('item');
SELECT redstream.attach('attach_other.item', 'item_of_other');
SELECT redstream.attach('item');
DROP SCHEMA attach_other CASCADE;
-- shards count, too
CREATE TABLE "item-1" (id integer PRIMARY KEY);
SELECT redstream.attach('"item-1"');
SELECT redstream.attach('item', shards => 2);
SELECT redstream.attach('item', 'item', shards => 2);
SELECT redstream.detach('"item-1"');
SELECT redstream.attach('"item-1"');
SELECT redstream.attach('item');
SELECT redstream.attach('"item-1"');

-- things that are no table, or not one to attach
CREATE VIEW item_view AS SELECT * FROM item;
SELECT redstream.attach('item_view');
CREATE MATERIALIZED VIEW item_copy AS SELECT * FROM item;
SELECT redstream.attach('item_copy');
CREATE SEQUENCE item_number;
SELECT redstream.attach('item_number');
SELECT redstream.attach('item_pkey');
CREATE TEMPORARY TABLE item_now (id integer PRIMARY KEY);
SELECT redstream.attach('item_now');
SELECT redstream.attach('pg_class');
SELECT redstream.attach(NULL);
SELECT redstream.attach(0);
SELECT redstream.detach(0);
SELECT redstream.attach('no_such_table');

-- an unlogged table is a table
CREATE UNLOGGED TABLE item_fast (id integer PRIMARY KEY);
SELECT redstream.attach('item_fast');

-- a partitioned table is attached at its root, its partitions follow
CREATE TABLE part (id integer, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
SELECT redstream.attach('part');
CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
SELECT tgrelid::regclass AS "table", tgname, encode(tgargs, 'escape') AS arguments
FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'part%' ORDER BY 1, 2;
-- a partition of it has nothing of its own to attach or detach
SELECT redstream.detach('part_us');
\set VERBOSITY sqlstate
SELECT redstream.attach('part_us');
SELECT redstream.attach('part_us', 'other');
\set VERBOSITY default
-- attached again, columns in another order
CREATE TABLE part_as (region text NOT NULL, gone integer, id integer NOT NULL);
ALTER TABLE part_as DROP COLUMN gone;
ALTER TABLE part ATTACH PARTITION part_as FOR VALUES IN ('as');
SELECT redstream.attach('part', payload => ARRAY['region', 'id']);
SELECT tgrelid::regclass AS "table", tgname, encode(tgargs, 'escape') AS arguments
FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'part%' AND tgname = 'redstream_update' ORDER BY 1;
-- what the root is told holds for all
SELECT redstream.attach('part', condition => 'id > 0 AND part IS NOT NULL', replica => true, shards => 2);
SELECT tgrelid::regclass AS "table", tgname, tgenabled, encode(tgargs, 'escape') AS arguments
FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'part%' AND tgname <> 'redstream_insert' ORDER BY 1, 2;
\d part_as
SELECT redstream.detach('part');
SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text LIKE 'part%';

-- a partition attached before its root
SELECT redstream.attach('part_eu');
\set VERBOSITY sqlstate
SELECT redstream.attach('part');
\set VERBOSITY default
SELECT redstream.detach('part_eu');
SELECT redstream.attach('part');
SELECT redstream.detach('part');

-- the trigger function is for attach() alone
CREATE TRIGGER mine BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'item');
INSERT INTO item (id) VALUES (1);
DROP TRIGGER mine ON item;
SELECT redstream.detach('item');
-- arguments that it does not make would stop the workers, or reach streams that are none
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture();
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('strm', 'x');
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'item.delay');
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'x', 'delay', 'soon');
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'x', 'expiry', '-1 day');
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'x', 'payload', '{id');
CREATE TRIGGER bad AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'x', 'shards', '1025');
CREATE TRIGGER mine AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'item');
-- a table is attached in one way
CREATE TRIGGER second AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'other');
-- detach() finds it under any name
SELECT redstream.detach('item');
SELECT redstream.capture();

-- not a table of the caller's
CREATE ROLE regress_redstream_owner;
CREATE ROLE regress_redstream_writer;
GRANT USAGE ON SCHEMA attach_test TO regress_redstream_owner, regress_redstream_writer;
GRANT CREATE ON SCHEMA attach_test TO regress_redstream_owner;
SET ROLE regress_redstream_owner;
SELECT redstream.attach('item');
RESET ROLE;
GRANT USAGE ON SCHEMA redstream TO regress_redstream_owner;
SET ROLE regress_redstream_owner;
SELECT redstream.attach('item');
SELECT redstream.detach('item');
RESET ROLE;
GRANT EXECUTE ON FUNCTION
    redstream.attach,
    redstream.detach TO regress_redstream_owner;
SET ROLE regress_redstream_owner;
SELECT redstream.attach('item');
SELECT redstream.detach('item');
SELECT redstream.attach('pg_class');
CREATE TABLE owned (id integer PRIMARY KEY);
SELECT redstream.attach('owned');
SELECT redstream.attach('owned', 'owned_by_me');
GRANT INSERT ON owned TO regress_redstream_writer;
-- who may write to the table needs no right more
RESET ROLE;
SET ROLE regress_redstream_writer;
INSERT INTO owned VALUES (1);
SELECT redstream.detach('owned');
RESET ROLE;
-- a trigger by hand takes the right to attach
CREATE TABLE by_hand (id integer PRIMARY KEY);
ALTER TABLE by_hand OWNER TO regress_redstream_writer;
GRANT USAGE ON SCHEMA redstream TO regress_redstream_writer;
SET ROLE regress_redstream_writer;
CREATE TRIGGER mine AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION redstream.capture('stream', 'by_hand');
RESET ROLE;
-- whoever makes a partition
CREATE TABLE root (id integer PRIMARY KEY) PARTITION BY RANGE (id);
ALTER TABLE root OWNER TO regress_redstream_owner;
SELECT redstream.attach('root');
SET ROLE regress_redstream_owner;
CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (1) TO (10);
RESET ROLE;
SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass('root_1');

SET client_min_messages = warning;
DROP SCHEMA attach_test CASCADE;
DROP OWNED BY regress_redstream_owner, regress_redstream_writer;
DROP ROLE regress_redstream_owner, regress_redstream_writer;
