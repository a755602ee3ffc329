# redstream.enqueue(): rows are announced without being changed, as their table is attached, and to whom may read them.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

# no worker: delay messages are moved when the test says so
my $redis = new_redis();
my $node = new_node(
	'main', $redis,
	'redstream.timeout' => '60s',
	'redstream.delay' => '0',
	'redstream.databases' => 'nobody',
	'redstream.queue_size' => '4MB',
	'shared_buffers' => '2MB');
my $session = Redstream::Session->new($node);
my $other = Redstream::Session->new($node);

$session->query('\set VERBOSITY verbose');

# What is on the streams once everything committed has arrived, "id" standing for {"id":id}; takes both kinds of messages out.
sub arrived
{
	my (@streams) = @_;

	settle($node, $redis);
	my @payloads = map { $_->[1]{payload} } map { take($redis, "redstream:stream:$_") } @streams;
	$redis->command('DEL', map { "redstream:stream:$_.delay" } @streams);
	return join ' ', map { /^\{"id":(\d+)\}$/ ? $1 : $_ } @payloads;
}

# Runs SQL that returns the number of rows, and compares what it brings to the stream, in any order.
sub arrives
{
	my ($what, $stream, $sql, $expected, $count) = @_;
	my $output = $session->query($sql);

	is(join(' ', sort split ' ', arrived($stream)), join(' ', sort split ' ', $expected), $what);
	$count = scalar(split ' ', $expected) unless defined $count;
	is($output, $count, "$what: the number of rows");
	return;
}

# Runs SQL that fails with this SQLSTATE and text, and announces nothing.
sub refused
{
	my ($what, $sql, $state, $text) = @_;

	like($session->query($sql), qr/^ERROR:  $state: $text/m, $what);
	is(arrived('item'), '', "$what: nothing is announced");
	return;
}

sub enqueue
{
	my ($target, $matching) = @_;
	return "SELECT redstream.enqueue('$target'" . (defined $matching ? ", \$match\$$matching\$match\$" : '') . ')';
}

# ---- as the table is attached -----------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, name text, n integer);
	INSERT INTO item SELECT i, 'name ' || i, i % 3 FROM generate_series(1, 9) i});
arrives('not attached', 'item', enqueue('item'), '1 2 3 4 5 6 7 8 9');
arrives('some rows', 'item', enqueue('item', 'n = 0'), '3 6 9');
arrives('no row', 'item', enqueue('item', 'false'), '');
arrives('null is not true', 'item', enqueue('item', 'NULL'), '');
arrives('attached', 'item', q{SELECT FROM redstream.attach('item')} . ';' . enqueue('item', 'id < 3'), '1 2');
arrives('to another stream', 'articles',
	q{SELECT FROM redstream.attach('item', 'articles')} . ';' . enqueue('item', 'id > 7'), '8 9');
arrives('with a condition', 'item',
	q{SELECT FROM redstream.attach('item', condition => 'n > 0')} . ';' . enqueue('item', 'id < 6'), '1 2 4 5');
arrives('a condition that has come to nothing is as false', 'item',
	q{BEGIN; SET LOCAL redstream.enabled = off; UPDATE item SET n = NULL WHERE id = 4;} . enqueue('item', 'id < 6') . '; ROLLBACK',
	'', 3);
arrives('with columns of its own', 'item',
	q{SELECT FROM redstream.attach('item', payload => ARRAY['name', 'id'])} . ';' . enqueue('item', 'id = 3'),
	'{"name":"name 3","id":3}', 1);
arrives('triggers that are switched off do not matter', 'item',
	q{BEGIN; SET LOCAL redstream.enabled = off;} . enqueue('item', 'id = 3') . '; COMMIT', '{"name":"name 3","id":3}', 1);

# A payload function that runs queries, and catches errors.
$node->safe_psql('postgres', q{
	CREATE FUNCTION describe(item) RETURNS jsonb LANGUAGE plpgsql AS $$
	DECLARE
		names text[];
	BEGIN
		BEGIN
			PERFORM 1 / (SELECT count(*) - 9 FROM item);
		EXCEPTION WHEN division_by_zero THEN
			SELECT array_agg(name ORDER BY id) INTO names FROM item WHERE n = $1.n;
		END;
		RETURN jsonb_build_object('id', $1.id, 'others', names);
	END $$;
	SELECT redstream.attach('item', payload_function => 'describe')});
arrives('with a function', 'item', enqueue('item', 'id > 7'),
	'{"id":8,"others":["name 2","name 5","name 8"]} {"id":9,"others":["name 3","name 6","name 9"]}', 2);
$node->safe_psql('postgres', q{SELECT redstream.detach('item')});

$node->safe_psql('postgres', q{
	CREATE TABLE line (n integer, "order" text, PRIMARY KEY ("order", n));
	INSERT INTO line VALUES (1, 'b'), (2, 'a')});
arrives('a key of several columns, in their order in the table', 'line', enqueue('line', 'n = 2'), '{"n":2,"order":"a"}');

$session->query(q{
	CREATE TABLE sharded (id integer PRIMARY KEY);
	INSERT INTO sharded SELECT generate_series(1, 40);
	SELECT FROM redstream.attach('sharded', shards => 2);
	SELECT redstream.enqueue('sharded')});
settle($node, $redis);
my @by_enqueue = map { join ' ', sort $redis->payloads("redstream:stream:sharded-$_") } 0, 1;
arrived('sharded-0', 'sharded-1');
$session->query('DELETE FROM sharded');
settle($node, $redis);
my @by_trigger = map { join ' ', sort $redis->payloads("redstream:stream:sharded-$_") } 0, 1;
is_deeply(\@by_enqueue, \@by_trigger, 'to the shards that the triggers choose');
isnt($by_enqueue[$_], '', "shard $_ has some") foreach 0, 1;

# ---- partitions and children ----------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE part (id integer, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE part_low (name text, id integer NOT NULL);
	ALTER TABLE part ATTACH PARTITION part_low FOR VALUES FROM (0) TO (10);
	CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id);
	CREATE TABLE part_high_1 PARTITION OF part_high FOR VALUES FROM (10) TO (20);
	INSERT INTO part VALUES (1, 'a'), (2, 'b'), (11, 'k'), (12, 'l')});
arrives('partitioned', 'part', enqueue('part'), '1 2 11 12');
arrives('a partition', 'part_low', enqueue('part_low', 'id = 2'), '2');
$session->query(q{SELECT redstream.attach('part', payload => ARRAY['id', 'name'])});
arrives('attached at its root', 'part', enqueue('part', q{name IN ('b', 'k')}),
	'{"id":2,"name":"b"} {"id":11,"name":"k"}', 2);
arrives('a partition of it', 'part', enqueue('part_low'), '{"id":1,"name":"a"} {"id":2,"name":"b"}', 2);
arrives('a partition with partitions', 'part', enqueue('part_high', 'id = 12'), '{"id":12,"name":"l"}', 1);
$node->safe_psql('postgres', q{
	CREATE FUNCTION describe_part(part) RETURNS json LANGUAGE sql AS $$ SELECT to_json($1) $$;
	SELECT redstream.attach('part', payload_function => 'describe_part')});
arrives('with a function', 'part', enqueue('part', 'id = 2'), '{"id":2,"name":"b"}', 1);
arrives('a partition with a function', 'part', enqueue('part_low', 'id = 2'), '{"id":2,"name":"b"}', 1);
arrived('part', 'part_low');

$node->safe_psql('postgres', q{
	CREATE TABLE child (PRIMARY KEY (id)) INHERITS (item);
	INSERT INTO child VALUES (100)});
arrives('no rows of children by inheritance', 'item', enqueue('item', 'id > 8'), '9');
arrives('of a child, its own', 'child', enqueue('child'), '100');
$node->safe_psql('postgres', 'DROP TABLE child');

# ---- what a condition may be ---------------------------------------------------------------------------

arrives('a subquery', 'item', enqueue('item', 'id IN (SELECT n FROM line)'), '1 2');
arrives('a subquery of the same table', 'item',
	enqueue('item', 'id = (SELECT max(item.id) FROM item) OR EXISTS (SELECT FROM item AS i WHERE i.id = item.id - 8)'), '9');
arrives('with a CTE', 'item', enqueue('item', 'id < (WITH item AS (SELECT 2 AS id) SELECT id FROM item)'), '1');
arrives('the table named', 'item', enqueue('item', 'item.id = 4 AND public.item.name IS NOT NULL'), '4');
arrives('the whole row', 'item', enqueue('item', q{(item.*)::text LIKE '(4,%' OR item IS NULL}), '4');
arrives('comments', 'item', enqueue('item', "id = 4 /* AND false */ -- AND false"), '4');
arrives('over lines', 'item', enqueue('item', "id = 4\n\tOR id = 5 -- )\n"), '4 5');
arrives('a string like SQL', 'item', enqueue('item', q{id = 4 AND name <> $q$x'); DROP TABLE item; --$q$}), '4');
arrives('OR does not reach beyond the condition of attach()', 'item',
	q{SELECT FROM redstream.attach('item', condition => 'n > 0 OR n IS NULL');} . enqueue('item', 'false OR id IN (3, 4)'), '4');
$node->safe_psql('postgres', q{SELECT redstream.detach('item')});

# Constants mean the same when PostgreSQL has printed them and reads them again, whatever the session's settings: IST is not India's
# time everywhere, and 0.1 + 0.2 has more than twelve digits.
$node->safe_psql('postgres', q{
	CREATE TABLE moment (id integer PRIMARY KEY, at timestamptz, day date, n float8, i interval);
	INSERT INTO moment VALUES (1, '2026-03-02 00:30:00+01', '2026-03-02', 0.1::float8 + 0.2::float8, '-1 day 2 hours');
	INSERT INTO moment SELECT 2, at - '3.5 hours'::interval, '2026-02-03', 0.3, '-1 day -2 hours' FROM moment});
foreach my $style ('ISO, DMY', 'SQL, DMY', 'SQL, MDY', 'German', 'Postgres, MDY')
{
	my $settings = "SET DateStyle = '$style'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = sql_standard; SET extra_float_digits = -3";
	my $reset = 'RESET DateStyle; RESET TimeZone; RESET IntervalStyle; RESET extra_float_digits';

	foreach my $condition (q{at = '2026-03-02 00:30:00+01'}, q{day = '2026-03-02'}, q{n = '0.30000000000000004'}, q{i = '-22:00'})
	{
		arrives("DateStyle $style: $condition", 'moment', "$settings;" . enqueue('moment', $condition) . ";$reset", '1');
	}
	arrives("DateStyle $style: a condition of attach()", 'moment',
		qq{$settings; SELECT FROM redstream.attach('moment', condition => \$\$at = '2026-03-02 00:30:00+01'\$\$); $reset;} .
		enqueue('moment'), '1');
	$session->query(q{SELECT redstream.detach('moment')});
}

foreach my $condition (
	'true) OR (true', 'true UNION SELECT true', 'true; DROP TABLE item', '', 'true AS x', 'true, true', 'true LIMIT 1',
	'true FOR UPDATE', 'DISTINCT true', 'true FROM item', 'true ORDER BY 1', 'id =', '/* true', q{'}, ')')
{
	refused("no condition: $condition", enqueue('item', $condition), '42601', '');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM item'), 9, 'the table is as it was');
refused('an aggregate', enqueue('item', 'count(*) > 0'), '42803', 'aggregate functions are not allowed in WHERE');
refused('a parameter', enqueue('item', 'id = $1'), '42P02', 'there is no parameter \$1');
refused('not boolean', enqueue('item', 'id'), '42804', 'argument of WHERE must be type boolean');
refused('no such column', enqueue('item', 'price > 0'), '42703', 'column "price" does not exist');
like($session->query(enqueue('item', 'price > 0')), qr/^QUERY:  SELECT price > 0\nCONTEXT:  condition of redstream\.enqueue\(\)$/m,
	'and where it was looked for');
refused('an error in it', enqueue('item', '1 / (id - 9) < 5'), '22012', 'division by zero');
refused('no table', 'SELECT redstream.enqueue(NULL)', '22004', 'target must not be null');
refused('no condition', q{SELECT redstream.enqueue('item', NULL)}, '22004', 'matching must not be null');

# Names that have to be quoted; a column with the table's name; the names that our own query may use.
foreach my $name ('Odd "table" name; --', 'select', 'ünï code', 'redstream_keys', 'x' x 63)
{
	(my $quoted = $name) =~ s/"/""/g;
	$node->safe_psql('postgres', qq{
		CREATE SCHEMA "a.b ""c""";
		CREATE TABLE "a.b ""c"""."$quoted" ("$quoted" integer, "id" integer PRIMARY KEY, "order" text);
		INSERT INTO "a.b ""c"""."$quoted" VALUES (1, 7, 'a'), (2, 8, NULL)});
	arrives("a table called $name", $name,
		enqueue(qq{"a.b ""c"""."$quoted"}, qq{"$quoted"."$quoted" = 1 AND "order" = 'a' AND "a.b ""c"""."$quoted".id = 7}), '7');
	$node->safe_psql('postgres', 'DROP SCHEMA "a.b ""c""" CASCADE');
}

# ---- what may be enqueued ---------------------------------------------------------------------------------

$session->query(q{
	CREATE VIEW view AS SELECT * FROM item;
	CREATE MATERIALIZED VIEW matview AS SELECT * FROM item;
	CREATE SEQUENCE sequence;
	CREATE TEMP TABLE temporary (id integer PRIMARY KEY);
	CREATE UNLOGGED TABLE unlogged (id integer PRIMARY KEY);
	INSERT INTO unlogged VALUES (1);
	CREATE TABLE keyless (id integer, UNIQUE (id));
	INSERT INTO keyless VALUES (1), (1 + 1);
	CREATE TYPE composite AS (id integer)});
refused('a view', enqueue('view'), '42809', 'cannot announce rows of "view": it is not a table');
refused('a materialized view', enqueue('matview'), '42809', 'cannot announce rows of "matview": it is not a table');
refused('a sequence', enqueue('sequence'), '42809', 'cannot announce rows of "sequence": it is not a table');
refused('an index', enqueue('item_pkey'), '42809', '"item_pkey" is an index');
refused('a type', enqueue('composite'), '42809', '"composite" is a composite type');
refused('a temporary table', enqueue('temporary'), '42809', 'cannot announce rows of "temporary": it is a temporary table');
refused('a system table', enqueue('pg_class'), '42809', q{cannot announce rows of "pg_class": it is a system table or redstream's own});
refused('what is not there', 'SELECT redstream.enqueue(1)', '42P01', 'relation with OID 1 does not exist');
arrives('an unlogged table', 'unlogged', enqueue('unlogged'), '1');
refused('a table without a key', enqueue('keyless'), '55000', 'table "keyless" has no primary key to be announced');
$session->query(q{SELECT redstream.attach('keyless', payload => ARRAY['id'])});
arrives('one that says what its rows are', 'keyless', enqueue('keyless'), '1 2');

$node->safe_psql('postgres', q{
	CREATE SCHEMA namesake;
	CREATE TABLE namesake.item (id integer PRIMARY KEY);
	INSERT INTO namesake.item VALUES (77);
	SELECT redstream.attach('item')});
refused('a default stream that another table has', enqueue('namesake.item'), '42710',
	'table "public\.item" already announces to stream "item"');
$node->safe_psql('postgres', q{SELECT redstream.attach('item', 'elsewhere')});
arrives('it has another one now', 'item', enqueue('namesake.item'), '77');
$node->safe_psql('postgres', q{SELECT redstream.attach('namesake.item', 'elsewhere'), redstream.detach('item')});
arrives('a stream that tables share', 'elsewhere', enqueue('namesake.item'), '77');
$node->safe_psql('postgres', q{CREATE TABLE "a.delay" (id integer PRIMARY KEY)});
refused('a default name that no stream can have', enqueue('"a.delay"'), '42602', 'stream name must not end in "\.delay"');

# ---- the transaction -------------------------------------------------------------------------------------

is($session->query('BEGIN;' . enqueue('item') . '; ROLLBACK'), 9, 'in a transaction that is rolled back');
is(arrived('item'), '', 'nothing is announced');
is($session->query('BEGIN; SAVEPOINT s;' . enqueue('item', 'id = 1') . '; ROLLBACK TO s;' . enqueue('item', 'id = 2') . '; COMMIT'),
	"1\n1", 'a savepoint');
is(arrived('item'), '2', 'what was not rolled back is announced');
arrives('rows that the transaction made', 'item',
	'BEGIN; INSERT INTO item VALUES (20); DELETE FROM item WHERE id = 1;' . enqueue('item', 'id IN (1, 2, 20)') . '; COMMIT', '2 20');
$node->safe_psql('postgres', q{SELECT redstream.attach('item')});
arrives('rows that it changed: once', 'item', q{BEGIN; UPDATE item SET name = 'x' WHERE id = 2;} . enqueue('item', 'id = 2') .
	'; COMMIT', '2');

# ---- locks --------------------------------------------------------------------------------------------------

$other->query(q{BEGIN; UPDATE item SET name = 'y' WHERE id = 3; DELETE FROM item WHERE id = 4});
arrives('keys alone are not waited for', 'item', enqueue('item', 'id IN (3, 4)'), '3 4');
$other->query('COMMIT');
is(arrived('item'), '3 4', 'and the changes are announced after it');

$session->query(q{SELECT redstream.attach('item', payload => ARRAY['id', 'name'])});
$other->query(q{BEGIN; UPDATE item SET name = 'new' WHERE id = 5});
$session->send(enqueue('item', 'id IN (5, 6)'));
wait_until('enqueue() to wait', sub { sessions_waiting($node) });
$other->query('COMMIT');
is($session->result, 2, 'more than keys: a change is waited for');
is(arrived('item'), '{"id":5,"name":"name 5"} {"id":5,"name":"new"} {"id":5,"name":"new"} {"id":6,"name":"name 6"}',
	'and what is announced last is the newest');

is($session->query('BEGIN;' . enqueue('item', 'id = 5')), 1, 'more than keys, the other way round');
$other->send(q{UPDATE item SET name = 'newer' WHERE id = 5});
wait_until('the UPDATE to wait', sub { sessions_waiting($node) });
$session->query('COMMIT');
is($other->result, '', 'the change waits');
is(arrived('item'), '{"id":5,"name":"new"} {"id":5,"name":"new"} {"id":5,"name":"newer"}', 'and is announced last');

$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item');
$other->query(q{UPDATE item SET name = 'newest' WHERE id = 5});
arrived('item');
like($session->query(enqueue('item', 'id IN (5, 6)') . '; COMMIT'), qr/ERROR:  40001: could not serialize access/,
	'REPEATABLE READ: a row that has changed');
is(arrived('item'), '', 'nothing is announced');

# ---- who may --------------------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	SELECT redstream.attach('item');
	CREATE ROLE filler;
	GRANT USAGE ON SCHEMA redstream TO filler});
sub as_filler { return "SET ROLE filler; $_[0]; RESET ROLE"; }
sub grant { $node->safe_psql('postgres', $_[0]); return; }

refused('nobody may', as_filler(enqueue('item')), '42501', 'permission denied for function enqueue');
grant('GRANT EXECUTE ON FUNCTION redstream.enqueue TO filler');
refused('without a right to read', as_filler(enqueue('item', 'id = 5')), '42501', 'permission denied for table item');
grant('GRANT SELECT (id) ON item TO filler');
arrives('with the key columns', 'item', as_filler(enqueue('item', 'id = 5')), '5');
refused('and not those of the condition', as_filler(enqueue('item', q{name = 'newest'})), '42501', 'permission denied for table item');
refused('nor of another table', as_filler(enqueue('item', 'id = (SELECT max(n) FROM line)')), '42501', 'permission denied for table line');
$node->safe_psql('postgres', q{SELECT redstream.attach('item', condition => $$name <> 'x'$$)});
refused('nor those that attach() named', as_filler(enqueue('item', 'id = 5')), '42501', 'permission denied for table item');
$node->safe_psql('postgres', q{SELECT redstream.attach('item', payload => ARRAY['id', 'name'])});
grant('GRANT SELECT (name) ON item TO filler');
refused('more than keys: FOR SHARE asks for UPDATE', as_filler(enqueue('item', 'id = 5')), '42501', 'permission denied for table item');
grant('GRANT UPDATE (n) ON item TO filler');
arrives('of any column', 'item', as_filler(enqueue('item', 'id = 5')), '{"id":5,"name":"newest"}');

grant(q{
	SELECT redstream.attach('item');
	ALTER TABLE item ENABLE ROW LEVEL SECURITY;
	CREATE POLICY later ON item FOR SELECT USING (id > 6)});
arrives('row level security', 'item', as_filler(enqueue('item')), '7 8 9 20');
arrives('which is not for the owner', 'item', enqueue('item', 'id < 6'), '2 3 5');
grant(q{SELECT redstream.attach('item', payload => ARRAY['id', 'n'])});
grant('GRANT SELECT ON item TO filler; CREATE POLICY fewer ON item FOR UPDATE USING (id < 8)');
arrives('what may not be updated cannot be locked', 'item', as_filler(enqueue('item')), '{"id":7,"n":1}');


# ---- large ones --------------------------------------------------------------------------------------------

# The most memory that a session has had, in kilobytes, when it has announced so many rows.
sub peak
{
	my ($rows) = @_;
	my $fresh = Redstream::Session->new($node);

	is($fresh->query(enqueue('large', "id <= $rows")), $rows, "$rows rows");
	my ($peak) = slurp_file('/proc/' . $fresh->pid . '/status') =~ /^VmHWM:\s+(\d+) kB/m;
	note "$rows rows: $peak kB";
	is(scalar(split ' ', arrived('large')), $rows, "$rows rows: everything is announced");
	return $peak;
}

$node->safe_psql('postgres', q{
	CREATE TABLE large (id integer PRIMARY KEY, note text);
	INSERT INTO large SELECT i, repeat('x', 20) FROM generate_series(1, 300000) i;
	ANALYZE large});
my $small = peak(60_000);
cmp_ok(peak(300_000), '<', $small + 8 * 1024, 'five times the rows need no more memory');
$node->safe_psql('postgres', q{SELECT redstream.attach('large', payload => ARRAY['id', 'note'])});
$small = peak(60_000);
cmp_ok(peak(300_000), '<', $small + 8 * 1024, 'nor do they when they are locked');

# Cancelled in the middle: it waits for a lock at a row far behind.
$node->safe_psql('postgres', q{
	SELECT redstream.attach('large');
	CREATE FUNCTION pass(id integer) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		IF id = 200000 THEN
			PERFORM pg_advisory_xact_lock_shared(7);
		END IF;
		RETURN true;
	END $$});
$other->query('SELECT pg_advisory_lock(7)');
$session->send(enqueue('large', 'pass(id)'));
wait_until('the lock', sub { $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) });
cmp_ok($redis->command('XLEN', 'redstream:stream:large.delay'), '>', 100_000, 'delay messages of a large one are in Redis');
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
like($session->result, qr/^ERROR:  57014: canceling statement/, 'it is cancelled');
settle($node, $redis);
is($redis->command('EXISTS', 'redstream:stream:large'), 0, 'nothing is announced');
like($node->safe_psql('postgres', 'SELECT moved, dropped > 100000, error FROM redstream.run_delayer() WHERE stream = $$large$$'),
	qr/^0\|t\|$/, 'and the delay messages are dropped');
is($redis->command('XLEN', 'redstream:stream:large.delay'), 0, 'all of them');
$other->query('SELECT pg_advisory_unlock(7)');
is($session->query(enqueue('large', 'pass(id) AND id = 200000')), 1, 'the session goes on');
is(arrived('large'), '200000', 'and announces');

is_deeply([ crashes($node) ], [], 'no crash');
$_->close foreach $session, $other;
$node->stop;
done_testing();
