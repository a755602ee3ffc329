-- Settings: who may change them when, what is refused; privileges and comments.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS redstream;
RESET client_min_messages;

-- redstream.url of this server is the test's
SELECT name, context, vartype, unit, min_val, max_val, enumvals, boot_val
FROM pg_settings WHERE name LIKE 'redstream.%' ORDER BY name COLLATE "C";
SELECT name FROM pg_settings
WHERE name LIKE 'redstream.%' AND (short_desc IS NULL OR short_desc !~ '\.$');

-- for anyone, in a session or transaction
SET redstream.wait_for_ack = off;
SHOW redstream.wait_for_ack;
RESET redstream.wait_for_ack;
SET redstream.transaction_buffer = '63kB';
SET redstream.transaction_buffer = '64kB';
SET redstream.transaction_buffer = '513MB';
SHOW redstream.transaction_buffer;
BEGIN;
SET LOCAL redstream.transaction_buffer = '512MB';
SHOW redstream.transaction_buffer;
COMMIT;
SHOW redstream.transaction_buffer;
RESET redstream.transaction_buffer;

-- for superusers
SET redstream.on_outage = 'maybe';
SET redstream.on_outage = 'skip';
SET redstream.enabled = off;
SHOW redstream.on_outage;
RESET redstream.on_outage;
RESET redstream.enabled;
CREATE ROLE regress_redstream_anyone;
SET ROLE regress_redstream_anyone;
SET redstream.on_outage = 'skip';
SET redstream.enabled = off;
SET redstream.wait_for_ack = off;
RESET redstream.wait_for_ack;
SHOW redstream.timeout;
SHOW redstream.url;
SHOW redstream.password_file;
RESET ROLE;

-- for the server
SET redstream.url = 'redis://127.0.0.1';
SET redstream.namespace = 'x';
SET redstream.timeout = '2s';
SET redstream.password_file = 'x';
SET redstream.queue_size = '2MB';
SET redstream.delay = '1s';
SET redstream.repeat = 'unconfirmed';
SET redstream.trim_interval = '1s';
SET redstream.databases = 'shop';

-- checked when set
ALTER SYSTEM SET redstream.url = '';
ALTER SYSTEM SET redstream.url = 'localhost:6379';
ALTER SYSTEM SET redstream.url = 'http://localhost';
ALTER SYSTEM SET redstream.url = 'rediss://localhost';
ALTER SYSTEM SET redstream.url = 'redis+sentinel://localhost/main';
ALTER SYSTEM SET redstream.url = 'redis+cluster://localhost';
ALTER SYSTEM SET redstream.url = 'redis://';
ALTER SYSTEM SET redstream.url = 'redis://localhost:0';
ALTER SYSTEM SET redstream.url = 'redis://localhost:65536';
ALTER SYSTEM SET redstream.url = 'redis://localhost/one';
ALTER SYSTEM SET redstream.url = 'redis://localhost/0?timeout=1';
ALTER SYSTEM SET redstream.url = 'redis://user:p%zz@localhost';
ALTER SYSTEM SET redstream.url = 'redis://::1';
ALTER SYSTEM SET redstream.url = 'unix://relative/path';
ALTER SYSTEM SET redstream.url = 'unix:///path?database=1';
ALTER SYSTEM SET redstream.namespace = E'a\tb';
ALTER SYSTEM SET redstream.timeout = '9ms';
ALTER SYSTEM SET redstream.timeout = '11min';
ALTER SYSTEM SET redstream.queue_size = '1023kB';
ALTER SYSTEM SET redstream.queue_size = '2GB';
ALTER SYSTEM SET redstream.delay = '-1ms';
ALTER SYSTEM SET redstream.delay = '25d';
ALTER SYSTEM SET redstream.repeat = 'never';
ALTER SYSTEM SET redstream.trim_interval = '99ms';
ALTER SYSTEM SET redstream.databases = 'shop, ';
ALTER SYSTEM SET redstream.databases = 'shop archive';
-- accepted (and undone: nothing is reloaded in between)
ALTER SYSTEM SET redstream.url = 'redis://user@[::1]:6380/15';
ALTER SYSTEM SET redstream.url = 'unix:///tmp/redis.sock?db=2';
ALTER SYSTEM SET redstream.url = 'redis://:secret@localhost';
ALTER SYSTEM RESET redstream.url;
ALTER SYSTEM SET redstream.delay = '0';
ALTER SYSTEM RESET redstream.delay;
ALTER SYSTEM SET redstream.databases = 'shop, "Archive, old"';
ALTER SYSTEM RESET redstream.databases;

-- nobody else's names
SET redstream.on_outrage = 'skip';
SELECT set_config('redstream.x', '1', false);

-- nothing is for PUBLIC, but what whoever makes a partition of an attached table needs
SELECT p.oid::regprocedure AS "function"
FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.pronamespace = 'redstream'::regnamespace AND a.grantee = 0;
SELECT c.oid::regclass AS relation
FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = 'redstream'::regnamespace AND a.grantee = 0;
SELECT has_schema_privilege('regress_redstream_anyone', 'redstream', 'USAGE');

-- pg_monitor sees the numbers, and can do nothing
GRANT pg_monitor TO regress_redstream_anyone;
SET ROLE regress_redstream_anyone;
SELECT connected, since < now() AS since, delay_bytes >= 0 AS delay_bytes, main_bytes >= 0 AS main_bytes,
    captured >= 0 AS captured, moved >= 0 AS moved, dropped >= 0 AS dropped, trimmed >= 0 AS trimmed,
    expired >= 0 AS expired, errors >= 0 AS errors
FROM redstream.stats;
SELECT redstream.stream_size('settings_test');
SELECT * FROM redstream.peek('settings_test');
SELECT redstream.attach('pg_class');
SHOW redstream.password_file;
RESET ROLE;
DROP ROLE regress_redstream_anyone;

-- everything says what it is for
SELECT p.oid::regprocedure AS "function" FROM pg_proc p
WHERE p.pronamespace = 'redstream'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.oid::regclass AS relation, c.relkind FROM pg_class c
WHERE c.relnamespace = 'redstream'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S', 'p')
    AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT a.attrelid::regclass AS relation, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'redstream'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p')
    AND a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL;
SELECT t.oid::regtype AS type FROM pg_type t
WHERE t.typnamespace = 'redstream'::regnamespace AND t.typrelid = 0 AND t.typelem = 0
    AND obj_description(t.oid, 'pg_type') IS NULL;
SELECT obj_description(oid, 'pg_extension') IS NOT NULL AS extension
FROM pg_extension WHERE extname = 'redstream';
