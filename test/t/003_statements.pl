# Whatever statement changes a row, and wherever it is run from: each change arrives
# exactly once, in order.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '30s');

# Table "item" announces to stream item, with a payload that tells versions apart; the
# tables that refer to it, to streams of their own.
$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
	SELECT redstream.attach('item', payload => ARRAY['id', 'n']);
	CREATE TABLE keyed (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
	SELECT redstream.attach('keyed');
	CREATE TABLE source AS SELECT i AS id, 10 * i AS n FROM generate_series(1, 5) i;
	CREATE TABLE log (message text)});

# Runs SQL and compares what arrives on the streams, as "id:n id:n" or "id id".
sub arrives
{
	my ($what, $sql, %expected) = @_;
	my $setting = delete $expected{with} || '';

	$node->safe_psql('postgres', "$setting; $sql");
	settle($node, $redis);
	foreach my $stream (sort keys %expected)
	{
		my $key = "redstream:stream:$stream";
		my $delayed = join ' ', map { short($_->[1]{payload}) } take($redis, "$key.delay");
		is(join(' ', map { short($_->[1]{payload}) } take($redis, $key)), $expected{$stream},
			"$what: $stream");
		is($delayed, $expected{$stream}, "$what: $stream, delayed");
	}
	return;
}

sub short
{
	my ($payload) = @_;
	return join ':', $payload =~ /:"?([^",}]*)/g;
}

# ---- statements --------------------------------------------------------------------

arrives('COPY', "COPY item FROM STDIN;\n1\t0\n2\t0\n3\t7\n\\.\n", item => '1:0 2:0 3:7');
arrives('INSERT ... SELECT', q{INSERT INTO item SELECT * FROM source WHERE id > 3 ORDER BY id DESC},
	item => '5:50 4:40');
arrives('INSERT ... ON CONFLICT DO NOTHING', q{INSERT INTO item VALUES (5), (6) ON CONFLICT DO NOTHING},
	item => '6:0');
arrives('INSERT ... ON CONFLICT DO UPDATE', q{
	INSERT INTO item VALUES (6, 1), (7, 1), (5, 50)
	ON CONFLICT (id) DO UPDATE SET n = excluded.n},
	item => '6:0 6:1 7:1');
arrives('MERGE', q{
	MERGE INTO item USING (VALUES (6, 2), (7, 0), (8, 8)) AS s (id, n) ON item.id = s.id
	WHEN MATCHED AND s.n = 0 THEN DELETE
	WHEN MATCHED THEN UPDATE SET n = s.n
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.n)},
	item => '6:1 6:2 7:1 8:8')
  if $node->safe_psql('postgres', 'SHOW server_version_num') >= 150000;
arrives('a writable CTE', q{
	WITH gone AS (DELETE FROM item WHERE id = 5 RETURNING *)
	INSERT INTO item SELECT id + 10, n FROM gone}, item => '5:50 15:50');
arrives('UPDATE ... FROM', q{UPDATE item SET n = source.n FROM source WHERE source.id = item.id AND item.id = 1},
	item => '1:0 1:10');
arrives('DELETE ... USING', q{DELETE FROM item USING source WHERE source.id = item.id AND item.id = 2},
	item => '2:0');
arrives('WHERE CURRENT OF', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT * FROM item WHERE id < 5 ORDER BY id FOR UPDATE;
	MOVE 1 FROM c;
	FETCH c;
	UPDATE item SET n = 8 WHERE CURRENT OF c;
	FETCH c;
	DELETE FROM item WHERE CURRENT OF c;
	COMMIT}, item => '3:7 3:8 4:40');
arrives('prepared statements', q{
	PREPARE change (integer, integer) AS UPDATE item SET n = $2 WHERE id = $1;
	EXECUTE change(1, 11); EXECUTE change(1, 12); EXECUTE change(1, 13); EXECUTE change(1, 14);
	EXECUTE change(1, 15); EXECUTE change(1, 16); EXECUTE change(1, 17);},
	item => '1:10 1:11 1:11 1:12 1:12 1:13 1:13 1:14 1:14 1:15 1:15 1:16 1:16 1:17');
arrives('an updatable view', q{
	CREATE VIEW small AS SELECT * FROM item WHERE id < 10;
	UPDATE small SET n = 18 WHERE id = 1;
	INSERT INTO small VALUES (2, 2);}, item => '1:17 1:18 2:2');
arrives('a rule', q{
	CREATE RULE one_more AS ON INSERT TO log DO ALSO INSERT INTO keyed VALUES (900);
	INSERT INTO log VALUES ('x');
	DROP RULE one_more ON log}, keyed => '900');
arrives('several statements in one message',
	q{INSERT INTO keyed VALUES (1)\; INSERT INTO keyed VALUES (2)\; DELETE FROM keyed WHERE id = 1},
	keyed => '1 2');

# ---- code in the server ----------------------------------------------------------------

arrives('a DO block', q{DO $$ BEGIN
		FOR i IN 100 .. 104 LOOP INSERT INTO item VALUES (i, i); END LOOP;
	END $$}, item => join(' ', map { "$_:$_" } 100 .. 104));
arrives('functions', q{
	CREATE FUNCTION set_n(integer, integer) RETURNS integer LANGUAGE sql AS
		'UPDATE item SET n = $2 WHERE id = $1 RETURNING n';
	CREATE FUNCTION set_all(integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
		PERFORM set_n(id, $1) FROM generate_series(100, 101) id;
		EXECUTE 'DELETE FROM item WHERE id = 102';
	END $$;
	SELECT set_all(5)}, item => '100:100 100:5 101:101 101:5 102:102');
arrives('a trigger of another table', q{
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO item VALUES (NEW.message::integer, 1);
		RETURN NEW;
	END $$;
	CREATE TRIGGER note BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION note();
	INSERT INTO log VALUES ('200'), ('201');
	DROP TRIGGER note ON log}, item => '200:1 201:1');
arrives('a deferred constraint trigger', q{
	CREATE CONSTRAINT TRIGGER note AFTER INSERT ON log DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION note();
	BEGIN;
	INSERT INTO log VALUES ('203');
	INSERT INTO item VALUES (202, 0);
	COMMIT;
	INSERT INTO log VALUES ('204');
	DROP TRIGGER note ON log}, item => '202:0 203:1 204:1');
arrives('a trigger that changes the row again', q{
	CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		UPDATE item SET n = n + 1 WHERE id = NEW.id AND n < 3;
		RETURN NULL;
	END $$;
	CREATE TRIGGER zz_again AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION again();
	INSERT INTO item VALUES (300, 1);
	DROP TRIGGER zz_again ON item}, item => '300:1 300:1 300:2 300:2 300:3');

# Each transaction of a procedure is a transaction: the delay messages tell.
$node->safe_psql('postgres', q{
	CREATE PROCEDURE in_steps() LANGUAGE plpgsql AS $$ BEGIN
		FOR i IN 400 .. 405 LOOP
			INSERT INTO item VALUES (i, 0);
			UPDATE item SET n = 1 WHERE id = i;
			IF i % 3 = 2 THEN ROLLBACK; ELSE COMMIT; END IF;
		END LOOP;
		INSERT INTO item VALUES (406, 0);
	END $$;
	CALL in_steps()});
settle($node, $redis);
my @delayed = take($redis, 'redstream:stream:item.delay');
my %transactions = map { $_->[1]{payload} => (grep { /^\d+$/ } values %{ $_->[1] })[0] } @delayed;
is(join(' ', map { short($_->[1]{payload}) } take($redis, 'redstream:stream:item')),
	join(' ', map { ("$_:0", "$_:0", "$_:1") } 400, 402, 403, 405) . ' 406:0',
	'a procedure that commits');
is(scalar keys %{ { reverse %transactions } }, 5, '... in five transactions');
is($transactions{'{"id":402,"n":0}'}, $transactions{'{"id":402,"n":1}'}, '... and each of one');
arrives('a DO block that commits', q{DO $$ BEGIN
		INSERT INTO item VALUES (410, 0);
		COMMIT AND CHAIN;
		INSERT INTO item VALUES (411, 0);
	END $$}, item => '410:0 411:0');

# ---- foreign keys --------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE parent (id integer PRIMARY KEY);
	CREATE TABLE child (
		id integer PRIMARY KEY,
		parent integer REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE,
		friend integer REFERENCES parent ON UPDATE CASCADE ON DELETE SET NULL);
	SELECT redstream.attach('parent'), redstream.attach('child', payload => ARRAY['id', 'parent', 'friend']);
	INSERT INTO parent VALUES (1), (2), (3);
	INSERT INTO child VALUES (11, 1, 2), (12, 1, 3), (13, 2, 3)});
settle($node, $redis);
$redis->command('FLUSHALL');
arrives('ON UPDATE CASCADE', q{UPDATE parent SET id = 4 WHERE id = 1},
	parent => '1 4', child => '11:1:2 11:4:2 12:1:3 12:4:3');
arrives('ON DELETE SET NULL', q{DELETE FROM parent WHERE id = 3},
	parent => '3', child => '13:2:3 13:2:null 12:4:3 12:4:null');
arrives('ON DELETE CASCADE', q{DELETE FROM parent WHERE id = 4}, parent => '4', child => '11:4:2 12:4:null');
arrives('a deferred foreign key', q{
	ALTER TABLE child ALTER CONSTRAINT child_parent_fkey DEFERRABLE INITIALLY DEFERRED;
	BEGIN;
	INSERT INTO child VALUES (14, 5, NULL);
	INSERT INTO parent VALUES (5);
	COMMIT}, parent => '5', child => '14:5:null');
$node->psql('postgres', 'BEGIN; INSERT INTO child VALUES (15, 6, NULL); COMMIT');
arrives('one that was violated at commit', '', parent => '', child => '');

# ---- partitions and inheritance ----------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE part (region text, id integer, n integer DEFAULT 0, PRIMARY KEY (id, region))
		PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	SELECT redstream.attach('part');
	CREATE TABLE part_b (gone text, n integer DEFAULT 0, id integer NOT NULL, region text NOT NULL);
	ALTER TABLE part_b DROP COLUMN gone;
	ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN ('b');
	CREATE TABLE part_c PARTITION OF part FOR VALUES IN ('c', 'd') PARTITION BY LIST (region);
	CREATE TABLE part_c_c PARTITION OF part_c FOR VALUES IN ('c')});
arrives('partitions', q{INSERT INTO part VALUES ('a', 1), ('b', 2), ('c', 3)}, part => 'a:1 b:2 c:3');
arrives('partitions: UPDATE', q{UPDATE part SET n = 1}, part => 'a:1 b:2 c:3');
arrives('partitions: UPDATE that changes nothing', q{UPDATE part SET n = 1}, part => '');
arrives('partitions by name', q{INSERT INTO part_b (region, id) VALUES ('b', 4); UPDATE part_c_c SET n = 2},
	part => 'b:4 c:3');
arrives('partitions: COPY', "COPY part FROM STDIN;\nb\t5\t0\na\t6\t0\n\\.\n", part => 'b:5 a:6');
arrives('partitions: a row that moves', q{UPDATE part SET region = 'b' WHERE id = 1}, part => 'a:1 b:1');
arrives('partitions: the other way', q{UPDATE part SET region = 'c' WHERE id = 2}, part => 'b:2 c:2');
arrives('partitions: ON CONFLICT', q{
	INSERT INTO part VALUES ('b', 4, 9), ('b', 7, 9) ON CONFLICT (id, region) DO UPDATE SET n = excluded.n},
	part => 'b:4 b:7');
arrives('partitions: one more', q{
	CREATE TABLE part_c_d PARTITION OF part_c FOR VALUES IN ('d');
	INSERT INTO part VALUES ('d', 8)}, part => 'd:8');
arrives('partitions: DETACH', q{
	ALTER TABLE part DETACH PARTITION part_a;
	INSERT INTO part_a VALUES ('a', 9);
	ALTER TABLE part ATTACH PARTITION part_a FOR VALUES IN ('a');
	INSERT INTO part_a VALUES ('a', 10)}, part => 'a:10');
arrives('partitions: detached', q{
	SELECT redstream.detach('part');
	INSERT INTO part VALUES ('a', 11)}, part => '');
arrives('partitions: other columns', q{
	SELECT redstream.attach('part', 'part', payload => ARRAY['n', 'region'], columns => ARRAY['n']);
	UPDATE part SET n = 20 WHERE id = 4;
	UPDATE part_b SET id = 40 WHERE id = 4}, part => '9:b 20:b');
arrives('a child of a plain table is a table of its own', q{
	CREATE TABLE heir () INHERITS (keyed);
	INSERT INTO heir VALUES (70);
	INSERT INTO keyed VALUES (71);
	UPDATE keyed SET n = 5 WHERE id IN (70, 71)}, keyed => '71 71');

# ---- sessions ----------------------------------------------------------------------------------------

foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	arrives($level, qq{
		BEGIN ISOLATION LEVEL $level;
		INSERT INTO item VALUES (500, 0);
		SELECT count(*) FROM item;
		UPDATE item SET n = 1 WHERE id = 500;
		COMMIT;
		DELETE FROM item WHERE id = 500}, item => '500:0 500:0 500:1 500:1');
}

# One that cannot be serialised announces nothing; its repetition does.
my @sessions = map { Redstream::Session->new($node) } 1 .. 2;
$_->query('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(n) FROM keyed') foreach @sessions;
$sessions[$_]->query("INSERT INTO keyed SELECT 600 + $_, sum(n) FROM keyed") foreach 0 .. 1;
is($sessions[0]->query('COMMIT'), '', 'the first to commit');
like($sessions[1]->query('COMMIT'), qr/^ERROR:  could not serialize access/, 'the second fails');
settle($node, $redis);
is(join(' ', map { short($_->[1]{payload}) } take($redis, 'redstream:stream:keyed')), '600',
	'only the first is announced');
take($redis, 'redstream:stream:keyed.delay');
$sessions[1]->query('BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO keyed VALUES (601); COMMIT');
arrives('its repetition', '', keyed => '601');

# A deadlock's victim announces nothing either.
$sessions[$_]->query('BEGIN; UPDATE keyed SET n = n + 1 WHERE id = 60' . $_) foreach 0 .. 1;
$sessions[$_]->send('UPDATE keyed SET n = n + 1 WHERE id = 60' . (1 - $_)) foreach 0 .. 1;
my @victims = grep { $sessions[$_]->result =~ /deadlock detected/ } 0 .. 1;
is(scalar @victims, 1, 'a deadlock has a victim');
$_->query('COMMIT') foreach @sessions;
arrives('a deadlock', '', keyed => $victims[0] == 0 ? '601 600' : '600 601');
$_->close foreach @sessions;

# Parallel plans: workers read, the leader announces.
arrives('parallel plans', q{
	CREATE TABLE wide AS SELECT i FROM generate_series(1, 20000) i;
	INSERT INTO item SELECT 700 + count(*), 0 FROM wide WHERE i % 5000 = 0;
	UPDATE item SET n = (SELECT count(*) FROM wide) WHERE id = 704},
	with => q{SET force_parallel_mode = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
		SET min_parallel_table_scan_size = 0},
	item => '704:0 704:0 704:20000')
  if $node->safe_psql('postgres', 'SHOW server_version_num') < 160000;
arrives('JIT', 'UPDATE item SET n = n + 1 WHERE id = 704', with => 'SET jit_above_cost = 0',
	item => '704:20000 704:20001');

# Many clients at once.
$node->safe_psql('postgres', 'INSERT INTO keyed SELECT i FROM generate_series(1001, 1100) i');
settle($node, $redis);
take($redis, "redstream:stream:keyed$_") foreach '', '.delay';
my $script = $node->basedir . '/script';
append_to_file($script, q{\set id random(1001, 1100)} . "\nUPDATE keyed SET n = n + 1 WHERE id = :id;\n");
$node->command_ok([ 'pgbench', '-n', '-c', 8, '-j', 2, '-t', 100, '-f', $script, 'postgres' ], 'eight clients');
settle($node, $redis);
my %count;
$count{ short($_->[1]{payload}) }++ foreach take($redis, 'redstream:stream:keyed');
is_deeply(\%count, { split /[|\n]/, $node->safe_psql('postgres',
	'SELECT id, n FROM ONLY keyed WHERE id > 1000 AND n > 0') }, 'each of their updates arrived once');

$node->stop;
done_testing();
