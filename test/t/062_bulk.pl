# redstream.bulk(): rows are announced once, before a statement changes them, whatever the statement and the table's
# triggers do.

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
	'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);
my $other = Redstream::Session->new($node);

$session->query('\set VERBOSITY verbose');

# What is on the stream, and how many of the payloads have delay messages, once everything committed has arrived.  {"id":5} is
# written as 5, {"id":5,"name":"a"} as 5a.  Takes both kinds of messages out.
sub arrived
{
	my ($stream) = @_;

	settle($node, $redis);
	my @delayed = take($redis, "redstream:stream:$stream.delay");
	my @payloads = map { $_->[1]{payload} } take($redis, "redstream:stream:$stream");
	s/^\{"id":(\d+)(?:,"name":"?([^"]*)"?)?\}$/defined $2 ? "$1$2" : $1/e foreach @payloads;
	return (join(' ', @payloads), scalar @delayed);
}

sub bulk
{
	my ($target, $matching, $statement) = @_;
	return "SELECT redstream.bulk('$target', \$match\$$matching\$match\$, \$statement\$$statement\$statement\$)";
}

# Runs SQL that prints the number of rows, and compares what it brings to the stream: each message once, with a delay message.
# What is rolled back with a savepoint may have delay messages, too.
sub arrives
{
	my ($what, $stream, $sql, $expected, $count, $rolled_back) = @_;
	my $output = $session->query($sql);
	my ($arrived, $delayed) = arrived($stream);

	is($arrived, $expected, $what);
	is($output, $count, "$what: the number of rows");
	is($delayed, scalar(split ' ', $expected) + ($rolled_back || 0), "$what: delay messages");
	return;
}

# Runs SQL that fails with this SQLSTATE and text, and announces nothing.
sub refused
{
	my ($what, $sql, $state, $text) = @_;

	like($session->query($sql), qr/^ERROR:  $state: $text/m, $what);
	is((arrived('item'))[0], '', "$what: nothing is announced");
	return;
}

# The table as it was, announcing id and name: one message for a row that changes in n alone, as triggers and bulk() say the same,
# but not in the same words if both do.
sub reset_item
{
	my ($options) = @_;
	$node->safe_psql('postgres', q{
		SET redstream.enabled = off;
		DELETE FROM item;
		INSERT INTO item SELECT i, chr(96 + i), 0 FROM generate_series(1, 6) i});
	$options = q{payload => ARRAY['id', 'name']} unless defined $options;
	$node->safe_psql('postgres', $options ? "SELECT redstream.attach('item', $options)" : q{SELECT redstream.detach('item')});
	return;
}

$node->safe_psql('postgres', 'CREATE TABLE item (id integer PRIMARY KEY, name text, n integer)');

# ---- once ----------------------------------------------------------------------------------------

reset_item('');
arrives('not attached', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = n + 1'), '1 2 3', 3);
is($node->safe_psql('postgres', 'SELECT sum(n) FROM item'), 6, 'the statement is run once');
arrives('not attached, DELETE', 'item', bulk('item', 'id < 4', 'DELETE FROM item WHERE id = 2'), '1 2 3', 3);
arrives('not attached, the rest', 'item', bulk('item', 'true', 'DELETE FROM item WHERE id = 1'), '1 3 4 5 6', 5);
reset_item(q{stream => 'item'});
arrives('attached', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = n + 1 WHERE id < 4'), '1 2 3', 3);
reset_item();
arrives('attached, more than keys', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = n + 1 WHERE id < 4'), '1a 2b 3c', 3);
arrives('rows that the statement does not touch', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = n + 1 WHERE id = 2'),
	'1a 2b 3c', 3);
reset_item();
arrives('rows beyond the condition', 'item', bulk('item', 'id IN (2, 4)', 'UPDATE item SET n = n + 1'), '2b 4d 1a 3c 5e 6f', 2);
arrives('no row', 'item', bulk('item', 'false', 'UPDATE item SET n = n + 1 WHERE id < 3'), '1a 2b', 0);
arrives('a payload column', 'item', bulk('item', 'id < 3', q{UPDATE item SET name = 'x' || name WHERE id < 4}),
	'1a 2b 1xa 2xb 3c 3xc', 2);
arrives('DELETE', 'item', bulk('item', 'id < 3', 'DELETE FROM item WHERE id < 4'), '1xa 2xb 3xc', 2);
reset_item();
arrives('the key', 'item', bulk('item', 'id IN (1, 2)', 'UPDATE item SET id = id + 10 WHERE id IN (1, 6)'), '1a 2b 11a 6f 16f', 2);
reset_item(q{stream => 'item'});
arrives('the key alone is the payload', 'item', bulk('item', 'id < 3', 'UPDATE item SET id = id + 10 WHERE id < 3'), '1 2 11 12', 2);
reset_item(q{payload => ARRAY['id', 'name'], columns => ARRAY['name']});
arrives('columns are for triggers', 'item', bulk('item', 'id < 3', 'UPDATE item SET n = n + 1 WHERE id < 4'), '1a 2b', 2);
reset_item();
arrives('triggers that are switched off', 'item',
	'SET redstream.enabled = off;' . bulk('item', 'id < 3', 'UPDATE item SET n = n + 1 WHERE id < 4') . '; RESET redstream.enabled',
	'1a 2b', 2);
arrives('twice in a transaction', 'item', 'BEGIN;' . bulk('item', 'id = 1', 'UPDATE item SET n = 7 WHERE id = 1') . ';' .
	bulk('item', 'id = 1', 'UPDATE item SET n = 8 WHERE id = 1') . '; UPDATE item SET n = 9 WHERE id = 1; COMMIT', '1a 1a 1a', "1\n1");

$node->safe_psql('postgres', q{
	CREATE FUNCTION describe(item) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('id', $1.id, 'name', $1.name) $$});
reset_item(q{payload_function => 'describe'});
# what it returns may depend on what the statement changes: the triggers call it again
arrives('a payload function', 'item', bulk('item', 'id < 3', 'UPDATE item SET n = n + 1 WHERE id < 4'), '1a 2b 1a 2b 3c', 2);
arrives('a payload function that says something else', 'item', bulk('item', 'id < 3', q{UPDATE item SET name = 'x' WHERE id < 3}),
	'1a 2b 1a 1x 2b 2x', 2);

# ---- a condition of attach() -------------------------------------------------------------------------

reset_item(q{payload => ARRAY['id', 'name'], condition => 'n = 0'});
$node->safe_psql('postgres', 'UPDATE item SET n = CASE id WHEN 2 THEN 1 WHEN 3 THEN NULL ELSE 0 END; UPDATE item SET n = 0 WHERE id = 1');
arrived('item');
arrives('a condition', 'item', bulk('item', 'id < 5', q{UPDATE item SET n = n WHERE id < 5}), '1a 4d', 4);
arrives('rows that stop to match it', 'item', bulk('item', 'id < 3', 'UPDATE item SET n = 5 WHERE id IN (1, 2, 4)'), '1a 4d', 2);
arrives('rows that begin to', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = 0 WHERE id IN (1, 3)'), '1a 3c', 3);
arrives('that move, too', 'item', bulk('item', 'id < 3', q{UPDATE item SET name = 'z', n = 0 WHERE id = 2}), '1a 2b 2z', 2);
is($session->query('BEGIN;' . bulk('item', 'id = 6', 'UPDATE item SET n = 6 WHERE id = 6') . ';' .
	bulk('item', 'id = 6', 'UPDATE item SET n = 7 WHERE id = 6') . '; COMMIT'), "1\n1", 'rows left out are counted');
is((arrived('item'))[0], '6f', 'and not announced');

# ---- statements ------------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE price (item integer, amount integer);
	INSERT INTO price VALUES (1, 10), (2, 20), (3, 30)});
reset_item();
my @changing = (
	'UPDATE ... FROM' => 'UPDATE item SET n = amount FROM price WHERE item = id',
	'UPDATE with an alias' => 'UPDATE item AS i SET n = 2 WHERE i.id IN (SELECT item FROM price)',
	'WITH ... UPDATE' => 'WITH p AS (SELECT * FROM price) UPDATE item SET n = amount + 1 FROM p WHERE item = id',
	'a subquery' => 'UPDATE item SET (n) = (SELECT amount + 2 FROM price WHERE item = id) WHERE id < 4',
	'WITH ... UPDATE ... SELECT' => 'WITH u AS (UPDATE item SET n = 4 WHERE id < 4 RETURNING id) SELECT count(*) FROM u',
	'RETURNING' => 'UPDATE item SET n = 5 WHERE id < 4 RETURNING id, name',
	'a semicolon' => 'UPDATE item SET n = 6 WHERE id < 4;',
	'semicolons and comments' => "-- the first\n;; UPDATE item SET n = 7 /* ; */ WHERE id < 4; -- the last",
	'INSERT ... ON CONFLICT' => 'INSERT INTO item SELECT item FROM price ON CONFLICT (id) DO UPDATE SET n = 8',
	'MERGE' => 'MERGE INTO item USING price ON item = id WHEN MATCHED THEN UPDATE SET n = amount + 3',
	'MERGE ... DELETE' => 'MERGE INTO item USING price ON item = id WHEN MATCHED THEN DELETE',
);
while (my ($what, $statement) = splice @changing, 0, 2)
{
	arrives($what, 'item', bulk('item', 'id < 4', $statement), '1a 2b 3c', 3);
}
reset_item();
arrives('INSERT ... ON CONFLICT', 'item',
	bulk('item', 'id < 3', q{INSERT INTO item SELECT i, 'z' FROM generate_series(2, 8) i ON CONFLICT (id) DO UPDATE SET n = 9}),
	'1a 2b 3c 4d 5e 6f 7z 8z', 2);
arrives('DELETE ... USING', 'item', bulk('item', 'id < 3', 'DELETE FROM item USING price WHERE item = id'), '1a 2b 3c', 2);
arrives('MERGE ... INSERT', 'item', bulk('item', 'id = 4',
	q{MERGE INTO item USING (VALUES (1, 'new'), (4, 'old')) v ON v.column1 = id
		WHEN MATCHED THEN UPDATE SET n = 10 WHEN NOT MATCHED THEN INSERT VALUES (v.column1, v.column2)}),
	'4d 1new', 1);
reset_item();
arrives('another table', 'item', bulk('item', 'id < 3', 'INSERT INTO price VALUES (1, 2)'), '1a 2b', 2);
$node->safe_psql('postgres', q{SELECT redstream.attach('price', payload => ARRAY['item'])});
arrives('another table that is attached', 'price', bulk('item', 'id < 3', 'DELETE FROM price WHERE item = 2'), '{"item":2}', 2);
is((arrived('item'))[0], '1a 2b', 'and the target');
$node->safe_psql('postgres', 'DELETE FROM price; DROP TABLE price');

refused('two statements', bulk('item', 'true', 'UPDATE item SET n = 1; UPDATE item SET n = 2'), '42601',
	q{redstream\.bulk\(\) takes one statement, not 2});
refused('none', bulk('item', 'true', ''), '42601', q{redstream\.bulk\(\) takes one statement, not 0});
refused('a comment', bulk('item', 'true', '-- UPDATE item SET n = 1'), '42601', q{redstream\.bulk\(\) takes one statement, not 0});
refused('no SQL', bulk('item', 'true', 'UPDAET item'), '42601', 'syntax error at or near "UPDAET"');
foreach my $statement (
	'SELECT * FROM item', 'WITH i AS (SELECT * FROM item) SELECT * FROM i', 'VALUES (1)', 'TABLE item', 'TRUNCATE item',
	'DROP TABLE item', 'CREATE TABLE x AS SELECT 1', 'EXPLAIN ANALYZE UPDATE item SET n = 1', 'COPY item FROM STDIN',
	'CALL redstream.bulk_enqueue(0)', 'DO $$ BEGIN END $$', 'COMMIT', 'SET x.y = 1', 'LOCK item', 'REFRESH MATERIALIZED VIEW x')
{
	refused($statement, bulk('item', 'true', $statement), '22023', q{the statement of redstream\.bulk\(\) changes no data});
}
refused('a parameter', bulk('item', 'true', 'UPDATE item SET n = $1'), '42P02', 'there is no parameter \$1');
refused('a condition that is none', bulk('item', 'true) OR (true', 'UPDATE item SET n = 1'), '42601', '');
refused('no table', q{SELECT redstream.bulk(NULL, 'true', 'DELETE FROM item')}, '22004', 'target must not be null');
refused('no condition', q{SELECT redstream.bulk('item', NULL, 'DELETE FROM item')}, '22004', 'matching must not be null');
refused('no statement', q{SELECT redstream.bulk('item', 'true', NULL)}, '22004', 'statement must not be null');
refused('a view', 'CREATE VIEW view AS SELECT * FROM item;' . bulk('view', 'true', 'UPDATE view SET n = 1'), '42809',
	'cannot announce rows of "view": it is not a table');
refused('read-only', 'BEGIN READ ONLY;' . bulk('item', 'true', 'UPDATE item SET n = 1') . '; COMMIT', '25006',
	'cannot execute SELECT FOR NO KEY UPDATE in a read-only transaction');
$node->safe_psql('postgres', 'CREATE TABLE keyless (id integer)');
refused('a table without a key', bulk('keyless', 'true', 'DELETE FROM keyless'), '55000',
	'table "keyless" has no primary key to be announced');
$session->query(q{INSERT INTO keyless VALUES (1), (2), (2); SELECT redstream.attach('keyless', payload => ARRAY['id'])});
arrives('unless it is attached', 'keyless', bulk('keyless', 'true', 'DELETE FROM keyless'), '1 2 2', 3);
is($node->safe_psql('postgres', 'SELECT count(*), sum(n) FROM item'), '6|0', 'the table is as it was');

# ---- the table's own triggers -------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF pg_trigger_depth() = 1 THEN
			UPDATE item SET name = upper(name) WHERE id = NEW.id;
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER again AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION again()});
arrives('a trigger changes the row again', 'item', bulk('item', 'id < 3', 'UPDATE item SET n = 1 WHERE id < 3'), '1a 2b 1a 1A 1A 2b 2B 2B', 2);
$node->safe_psql('postgres', 'DROP TRIGGER again ON item');

$node->safe_psql('postgres', q{
	CREATE TABLE audit (id integer PRIMARY KEY, name text);
	INSERT INTO audit SELECT id, name FROM item ORDER BY id;
	SELECT redstream.attach('audit', payload => ARRAY['id', 'name']);
	CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM redstream.bulk('audit', 'id = ' || NEW.id, 'UPDATE audit SET name = ''t'' WHERE id >= ' || NEW.id);
		RETURN NULL;
	END $$;
	CREATE TRIGGER a_nested AFTER UPDATE ON item FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION nested()});
reset_item();
arrives('bulk() in a trigger', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = 1 WHERE id < 5'), '1a 2b 3c 4d', 3);
is((arrived('audit'))[0], '2B 2t 3c 3t 4d 4t 5e 5t 6f 6t', 'both announce their own');
$node->safe_psql('postgres', q{
	DROP TRIGGER a_nested ON item;
	CREATE OR REPLACE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM redstream.bulk('item', 'true', 'UPDATE nothing SET id = 1');
		RETURN NULL;
	EXCEPTION WHEN undefined_table THEN
		RETURN NULL;
	END $$;
	CREATE TRIGGER a_nested AFTER UPDATE ON item FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION nested()});
arrives('one that fails in a trigger, and is caught', 'item', bulk('item', 'id < 4', 'UPDATE item SET n = 2 WHERE id < 5'),
	'1a 2b 3c 4d', 3, 6);
$node->safe_psql('postgres', 'DROP TRIGGER a_nested ON item');

# ---- errors and savepoints --------------------------------------------------------------------------------------

refused('the statement fails', bulk('item', 'true', 'UPDATE item SET n = 1 / (id - 3)'), '22012', 'division by zero');
arrives('and the triggers announce as before', 'item', 'UPDATE item SET n = 20 WHERE id < 3', '1a 2b', '');
arrives('savepoint', 'item', 'BEGIN; SAVEPOINT s;' . bulk('item', 'id < 3', 'UPDATE item SET n = 21 WHERE id < 3') .
	'; ROLLBACK TO s; UPDATE item SET n = 22 WHERE id < 3; COMMIT', '1a 2b', 2, 2);
arrives('savepoint that is released', 'item', 'BEGIN; SAVEPOINT s;' . bulk('item', 'id < 3', 'UPDATE item SET n = 23 WHERE id < 3') .
	'; RELEASE s; UPDATE item SET n = 24 WHERE id = 2; COMMIT', '1a 2b 2b', 2);
arrives('an error that is caught', 'item', q{
	DO $do$ BEGIN
		BEGIN
			PERFORM redstream.bulk('item', 'id < 4', 'UPDATE item SET n = 1 / (id - 3) WHERE id < 4');
		EXCEPTION WHEN division_by_zero THEN
			UPDATE item SET n = 25 WHERE id < 3;
		END;
	END $do$}, '1a 2b', '', 3);
arrives('caught in the statement', 'item', q{
	CREATE FUNCTION careful() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF OLD.id = 5 THEN
			BEGIN
				DELETE FROM item WHERE id IN (1, 2, 6);
				RAISE EXCEPTION 'no';
			EXCEPTION WHEN raise_exception THEN
				UPDATE item SET n = 26 WHERE id IN (1, 6);
			END;
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER careful AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION careful();} .
	bulk('item', 'id < 3', 'UPDATE item SET n = 27 WHERE id = 5') . '; DROP TRIGGER careful ON item', '1a 2b 6f 5e', 2);
is($session->query('BEGIN;' . bulk('item', 'id < 3', 'DELETE FROM item') . '; ROLLBACK'), 2, 'rolled back');
is((arrived('item'))[0], '', 'nothing is announced');

# ---- partitions and shards -------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE part (id integer, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE part_low (name text, id integer NOT NULL);
	ALTER TABLE part ATTACH PARTITION part_low FOR VALUES FROM (0) TO (10);
	CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (10) TO (100);
	INSERT INTO part SELECT i, 'a' FROM generate_series(1, 4) i;
	INSERT INTO part SELECT i, 'a' FROM generate_series(11, 14) i;
	SELECT redstream.attach('part', payload => ARRAY['id', 'name'])});
arrives('partitioned', 'part', bulk('part', 'id IN (2, 3, 12)', 'DELETE FROM part WHERE id IN (3, 4, 12, 13)'), '2a 3a 12a 4a 13a', 3);
arrives('a partition', 'part', bulk('part_low', 'id = 1', 'DELETE FROM part WHERE id IN (1, 11)'), '1a 11a', 1);
arrives('a row moves', 'part', bulk('part', 'id = 2', 'UPDATE part SET id = id + 50 WHERE id IN (2, 14)'), '2a 52a 14a 64a', 1);
# The statement has a partition written anew: other rows are where those were that are announced.
$node->safe_psql('postgres', q{
	CREATE TABLE turned PARTITION OF part FOR VALUES FROM (100) TO (200);
	INSERT INTO part SELECT i, 'a' FROM generate_series(106, 101, -1) i;
	CREATE TABLE aside (n integer);
	CREATE FUNCTION turn() RETURNS integer LANGUAGE plpgsql AS
		$$ BEGIN CLUSTER turned USING turned_pkey; DELETE FROM part WHERE id > 100; RETURN 1; END $$});
arrived('part');
is($session->query(bulk('part', 'id > 103', 'INSERT INTO aside SELECT turn()')), 3, 'CLUSTER in the statement');
is((arrived('part'))[0], join(' ', map { "${_}a" } 104 .. 106, 101 .. 106), 'rows may be announced twice, but none is left out');

$node->safe_psql('postgres', q{
	SELECT redstream.detach('part'), redstream.attach('part_low', payload => ARRAY['id', 'name']);
	INSERT INTO part VALUES (5, 'a'), (6, 'b')});
arrived('part_low');
arrives('a partition that is attached by itself, and a root that is not', 'part',
	bulk('part', 'id IN (5, 52)', 'DELETE FROM part WHERE id IN (5, 6, 52)'), '5 52', 2);
is((arrived('part_low'))[0], '5a 6b', 'the partition announces its rows to its own stream');

$node->safe_psql('postgres', q{
	CREATE TABLE sharded (id integer PRIMARY KEY, n integer);
	INSERT INTO sharded SELECT generate_series(1, 40), 0;
	SELECT redstream.attach('sharded', shards => 2)});
is($session->query(bulk('sharded', 'id <= 20', 'UPDATE sharded SET id = id + 100, n = 1')), 20, 'shards');
settle($node, $redis);
my %on = map { my $shard = $_; map { /(\d+)/; ($1 => $shard) } $redis->payloads("redstream:stream:sharded-$shard") } 0, 1;
is_deeply([ sort { $a <=> $b } keys %on ], [ 1 .. 40, 101 .. 140 ], 'old keys and new ones');
my @delayed = map { $redis->command('XLEN', "redstream:stream:sharded-$_.delay") } 0, 1;
is($delayed[0] + $delayed[1], 80, 'each once');
$session->query('DELETE FROM sharded');
settle($node, $redis);
my %wrong = map { my $shard = $_; map { /(\d+)/; $on{$1} == $shard ? () : ($1 => $shard) } $redis->payloads("redstream:stream:sharded-$shard") } 0, 1;
is_deeply(\%wrong, {}, 'on the shards where the triggers announce them');

# ---- locks -------------------------------------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE TABLE line (id serial PRIMARY KEY, item integer REFERENCES item)');
reset_item();
$session->query('BEGIN;' . bulk('item', 'id < 3', 'UPDATE item SET n = 1 WHERE id < 3'));
is($other->query('INSERT INTO line (item) VALUES (1), (2), (3)'), '', 'UPDATE leaves those alone who refer to its rows');
$session->query('COMMIT; BEGIN;' . bulk('item', 'id IN (4, 5)', 'DELETE FROM item WHERE id = 4'));
$other->send('INSERT INTO line (item) VALUES (5)');
wait_until('the INSERT to wait', sub { sessions_waiting($node) });
$session->query('COMMIT');
is($other->result, '', 'DELETE does not');
$node->safe_psql('postgres', 'DROP TABLE line');
arrived('item');

# ---- before the statement runs --------------------------------------------------------------------------------------

reset_item();
$node->safe_psql('postgres', q{
	CREATE SEQUENCE ran;
	CREATE FUNCTION wait() RETURNS integer LANGUAGE plpgsql AS
		$$ BEGIN PERFORM nextval('ran'), pg_advisory_xact_lock_shared(7); RETURN 1; END $$});
$other->query('SELECT pg_advisory_lock(7)');
$session->send(bulk('item', 'id < 4', 'UPDATE item SET n = wait() WHERE id < 5'));
wait_until('the lock', sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) });
is_deeply([ $redis->payloads('redstream:stream:item.delay') ], [ map { sprintf '{"id":%d,"name":"%s"}', $_, chr(96 + $_) } 1 .. 3 ],
	'delay messages are in Redis before the statement has done anything');
$other->query('SELECT pg_advisory_unlock(7)');
is($session->result, 3, 'it goes on');
is((arrived('item'))[0], '1a 2b 3c 4d', 'and is announced');

like($session->query(bulk('item', 'id < 4', 'UPDATE item SET n = wait() / 0')), qr/^ERROR:  22012/m, 'a failure');
like($node->safe_psql('postgres', 'SELECT * FROM redstream.run_delayer()'), qr/^item\|0\|3\|0\|f\|$/m, 'its delay messages are dropped');

$session->query(q{SELECT setval('ran', 1, false)});
$redis->stop;
wait_connected($node, 0);
like($session->query('SET redstream.on_outage = error;' . bulk('item', 'id < 4', 'UPDATE item SET n = wait()')),
	qr/^ERROR:  58030: could not announce changes/, 'no Redis');
is($session->query('SELECT is_called FROM ran'), 'f', 'the statement has not begun');
like($session->query('SET redstream.on_outage = skip;' . bulk('item', 'id < 4', 'UPDATE item SET n = 100 + wait() WHERE id < 4')),
	qr/^WARNING:  01000: changes of this transaction are not announced.*\n3$/s, 'on_outage = skip');
is($session->query('RESET redstream.on_outage; SELECT count(*) FROM item WHERE n = 101'), 3, 'the statement is run');
$redis->start;
wait_connected($node, 1);

# ---- who may -----------------------------------------------------------------------------------------------------------

sub as_clerk { return "SET ROLE clerk; $_[0]; RESET ROLE"; }
sub grant { $node->safe_psql('postgres', $_[0]); return; }

reset_item();
grant('CREATE ROLE clerk; GRANT USAGE ON SCHEMA redstream TO clerk');
my $update = as_clerk(bulk('item', 'id < 3', 'UPDATE item SET n = 5 WHERE id < 4'));
refused('nobody may', $update, '42501', 'permission denied for function bulk');
grant('GRANT EXECUTE ON FUNCTION redstream.bulk TO clerk');
refused('without a right to read', $update, '42501', 'permission denied for table item');
grant('GRANT SELECT (id, name) ON item TO clerk');
refused('without a right to lock', $update, '42501', 'permission denied for table item');
grant('GRANT UPDATE (n) ON item TO clerk');
is($session->query($update), 2, 'rights to columns suffice');
is((arrived('item'))[0], '1a 2b 1a 2b 3c', 'though then the triggers do not know which rows are announced');
refused('not for all statements', as_clerk(bulk('item', 'id < 3', q{UPDATE item SET name = 'x'})), '42501', 'permission denied for table item');
grant('GRANT SELECT ON item TO clerk; UPDATE item SET n = 0');
arrived('item');
arrives('rights to the table do better', 'item', $update, '1a 2b 3c', 2);
grant(q{
	ALTER TABLE item ENABLE ROW LEVEL SECURITY;
	CREATE POLICY low ON item FOR SELECT USING (id < 5);
	CREATE POLICY middle ON item FOR UPDATE USING (id > 2)});
arrives('row level security', 'item', as_clerk(bulk('item', 'true', 'UPDATE item SET n = 6 WHERE id > 0')), '3c 4d', 2);

# ---- many --------------------------------------------------------------------------------------------------------------

# Numbers of messages of each row of the table, as a hash from number to rows.
sub counts
{
	settle($node, $redis);
	my %times;
	$times{ $_->[1]{payload} }++ foreach take($redis, 'redstream:stream:many');
	$redis->command('DEL', 'redstream:stream:many.delay');
	my %rows;
	$rows{$_}++ foreach values %times;
	return \%rows;
}

$node->safe_psql('postgres', q{
	CREATE TABLE many (id integer PRIMARY KEY, name text, n integer) WITH (fillfactor = 10);
	INSERT INTO many SELECT i, 'name', 0 FROM generate_series(1, 100000) i;
	SELECT redstream.attach('many', payload => ARRAY['id', 'name'])});
is($session->query(bulk('many', 'true', 'UPDATE many SET n = n + 1')), 100000, 'many rows');
is_deeply(counts(), { 1 => 100000 }, 'each is announced once');
$session->query(q{SET redstream.transaction_buffer = '64kB'});
is($session->query(bulk('many', 'true', 'UPDATE many SET n = n + 1')), 100000, 'many rows, and little memory');
my $counts = counts();
is($counts->{1} + $counts->{2}, 100000, 'each is announced once or twice');
cmp_ok($counts->{1}, '>', 10000, 'many of them once');
is($session->query(bulk('many', 'id % 2 = 0', 'DELETE FROM many')), 50000, 'half of them');
is($session->query('SELECT count(*) FROM many'), 0, 'all are gone');
$counts = counts();
is($counts->{1} + ($counts->{2} || 0), 100000, 'all are announced');

# ---- prepared --------------------------------------------------------------------------------------------------------

# From here on with a worker, which delivers them.
reset_item();
reconfigure($node, 'redstream.databases' => '', 'redstream.delay' => '1h');
is($session->query('BEGIN;' . bulk('item', 'id < 3', q{UPDATE item SET name = 'p' WHERE id = 1}) . q{; PREPARE TRANSACTION 'p'}), 2, 'prepared');
settle($node, $redis);
is($redis->command('EXISTS', 'redstream:stream:item'), 0, 'nothing is announced yet');
is_deeply([ $redis->payloads('redstream:stream:item.delay') ], [ '{"id":1,"name":"a"}', '{"id":2,"name":"b"}' ],
	'the delay messages from before the statement are there');
$session->query(q{COMMIT PREPARED 'p'});
is((arrived('item'))[0], '1a 2b 1p', 'it is with COMMIT PREPARED');

is_deeply([ crashes($node) ], [], 'no crash');
$_->close foreach $session, $other;
$node->stop;
done_testing();
