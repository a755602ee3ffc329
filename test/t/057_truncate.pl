# TRUNCATE: every row that is about to go is announced, whoever empties the table by
# whichever name, and whatever else the transaction does.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.timeout' => '30s', 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);
my $silent = Redstream::Session->new($node);    # its changes are not announced

# "part" has a partition with other columns, one that is partitioned itself and a default one;
# "line" and partition "lone_a" refer to "item", partitioned "split" does by its root.
$node->safe_psql('postgres', q{
	CREATE TABLE solo (id serial PRIMARY KEY, n integer);
	CREATE TABLE item (id integer PRIMARY KEY, n integer);
	CREATE TABLE line (id integer PRIMARY KEY, item integer REFERENCES item);
	CREATE TABLE split (id integer PRIMARY KEY, item integer REFERENCES item) PARTITION BY RANGE (id);
	CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (1) TO (10);
	CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (10) TO (20);
	CREATE TABLE lone (region text, id integer, item integer, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
	CREATE TABLE lone_a PARTITION OF lone FOR VALUES IN ('a');
	ALTER TABLE lone_a ADD FOREIGN KEY (item) REFERENCES item;
	CREATE TABLE lone_b PARTITION OF lone FOR VALUES IN ('b');
	CREATE TABLE part (region text, id integer, n integer, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_b (gone text, n integer, id integer NOT NULL, region text NOT NULL);
	ALTER TABLE part_b DROP gone;
	ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN ('b');
	CREATE TABLE part_c PARTITION OF part FOR VALUES IN ('c', 'd') PARTITION BY LIST (region);
	CREATE TABLE part_c_c PARTITION OF part_c FOR VALUES IN ('c');
	CREATE TABLE part_c_d PARTITION OF part_c FOR VALUES IN ('d');
	CREATE TABLE part_x PARTITION OF part DEFAULT;
	CREATE TABLE other (id integer PRIMARY KEY);
	SELECT redstream.attach(t) FROM unnest('{solo, item, line, split, lone, part}'::regclass[]) t});
my @streams = qw(solo item line split lone part);
my $everything = 'part:a1 part:a2 part:b1 part:c1 part:d1 part:x1';

$silent->query('SET redstream.enabled = off');

# Puts the same rows into all tables.
sub fill
{
	my $output = $silent->query(q{
		TRUNCATE solo, item, line, split, lone, part, other RESTART IDENTITY;
		INSERT INTO solo (n) VALUES (0), (0), (0);
		INSERT INTO item VALUES (1, 0), (2, 0);
		INSERT INTO line VALUES (10, 1), (11, 2);
		INSERT INTO split VALUES (1, 1), (10, NULL);
		INSERT INTO lone VALUES ('a', 1, 1), ('b', 1, NULL);
		INSERT INTO part VALUES ('a', 1, 0), ('a', 2, 0), ('b', 1, 0), ('c', 1, 0), ('d', 1, 0), ('x', 1, 0);
		INSERT INTO other VALUES (1)});
	die $output if $output;
	return;
}

# What arrived on all streams, sorted; takes it out.
sub arrived
{
	my ($suffix) = @_;
	my @found;

	foreach my $stream (@streams)
	{
		foreach my $entry (take($redis, "redstream:stream:$stream$suffix"))
		{
			my @values = $entry->[1]{payload} =~ /:"?([^",}]*)/g;
			push @found, "$stream:" . join '', @values;
		}
	}
	return join ' ', sort @found;
}

# Runs SQL in the session over full tables, and compares what arrives.
sub announces
{
	my ($what, $sql, $expected) = @_;

	fill();
	my $output = $session->query($sql);
	settle($node, $redis);
	is(arrived(''), $expected, $what) or diag($output);
	is(arrived('.delay'), $expected, "$what: delay messages");
	return $output;
}

sub refused
{
	my ($what, $sql, $error) = @_;
	like(announces($what, $sql, ''), $error, "$what: the error");
	$session->query('ROLLBACK');
	return;
}

# ---- a table --------------------------------------------------------------------------------

announces('a table', 'TRUNCATE solo', 'solo:1 solo:2 solo:3');
is($session->query('SELECT count(*) FROM solo'), 0, 'and it is empty');
announces('an empty one', 'SET redstream.enabled = off; DELETE FROM solo; RESET redstream.enabled; TRUNCATE solo', '');
announces('ONLY, RESTART IDENTITY', 'TRUNCATE ONLY public.solo RESTART IDENTITY', 'solo:1 solo:2 solo:3');
announces('several', 'TRUNCATE solo, other, solo, line', 'line:10 line:11 solo:1 solo:2 solo:3');
announces('one that is not attached', 'TRUNCATE other', '');
announces('rolled back', 'BEGIN; TRUNCATE solo, part_a; ROLLBACK', '');
is($session->query('SELECT count(*) FROM solo'), 3, 'and nothing is gone');
announces('rolled back to a savepoint', q{
	BEGIN; TRUNCATE line; SAVEPOINT s; TRUNCATE solo, part_a; ROLLBACK TO s; TRUNCATE part_b; COMMIT},
	'line:10 line:11 part:b1');
announces('a savepoint released', 'BEGIN; SAVEPOINT s; TRUNCATE solo; RELEASE s; COMMIT', 'solo:1 solo:2 solo:3');
announces('twice', 'BEGIN; TRUNCATE solo; TRUNCATE solo; COMMIT', 'solo:1 solo:2 solo:3');
announces('what comes after it', 'BEGIN; TRUNCATE solo; INSERT INTO solo VALUES (9); COMMIT',
	'solo:1 solo:2 solo:3 solo:9');
announces('rows of the transaction, and not those it deleted', q{
	BEGIN;
	SET LOCAL redstream.enabled = off;
	INSERT INTO solo VALUES (9);
	DELETE FROM solo WHERE id = 1;
	UPDATE solo SET id = 8 WHERE id = 2;
	INSERT INTO part VALUES ('b', 9);
	DELETE FROM part WHERE id = 1;
	SET LOCAL redstream.enabled = on;
	TRUNCATE solo, part_a, part_b;
	COMMIT}, 'part:a2 part:b9 solo:3 solo:8 solo:9');
announces('a table of the transaction', q{
	BEGIN;
	CREATE TABLE made (id integer PRIMARY KEY);
	SELECT redstream.attach('made', 'solo');
	INSERT INTO made VALUES (7);
	TRUNCATE made;
	INSERT INTO made VALUES (8);
	TRUNCATE made;
	COMMIT;
	DROP TABLE made}, 'solo:7 solo:8');
announces('a cursor was read before', q{
	BEGIN; DECLARE c CURSOR FOR SELECT * FROM solo; FETCH c; CLOSE c; TRUNCATE solo; COMMIT}, 'solo:1 solo:2 solo:3');

# ---- partitions -------------------------------------------------------------------------------

announces('the root', 'TRUNCATE part', $everything);
announces('a partition', 'TRUNCATE part_a', 'part:a1 part:a2');
announces('ONLY a partition', 'TRUNCATE ONLY part_a', 'part:a1 part:a2');
announces('the default one', 'TRUNCATE part_x', 'part:x1');
announces('one with other columns', 'TRUNCATE part_b', 'part:b1');
announces('one that is partitioned', 'TRUNCATE part_c', 'part:c1 part:d1');
announces('a partition of a partition', 'TRUNCATE part_c_d', 'part:d1');
announces('a partition and one of its own', 'TRUNCATE part_c_c, part_c', 'part:c1 part:d1');
announces('the root and a partition', 'TRUNCATE part, part_a', $everything);
announces('a partition and the root', 'TRUNCATE part_c, part', $everything);
announces('a partition, then the root', 'BEGIN; TRUNCATE part_a; TRUNCATE part; COMMIT', $everything);
announces('partitions and others', 'TRUNCATE part_a, solo, part_b, other', 'part:a1 part:a2 part:b1 solo:1 solo:2 solo:3');
refused('ONLY the root', 'TRUNCATE ONLY part', qr/cannot truncate only a partitioned table/);
announces('a detached partition', q{
	ALTER TABLE part DETACH PARTITION part_a;
	TRUNCATE part_a;
	ALTER TABLE part ATTACH PARTITION part_a FOR VALUES IN ('a');
	TRUNCATE part_b}, 'part:b1');
announces('when the root is detached', q{
	SELECT redstream.detach('part');
	TRUNCATE part_a;
	SELECT redstream.attach('part')}, '');
announces('when the middle is attached', q{
	SELECT redstream.detach('part');
	SELECT redstream.attach('part_c', 'part');
	TRUNCATE part_c_c, part_a;
	TRUNCATE part;
	SELECT redstream.detach('part_c');
	SELECT redstream.attach('part')}, 'part:c1 part:d1');

# ---- foreign keys ---------------------------------------------------------------------------------

refused('a table that others refer to', 'TRUNCATE item', qr/cannot truncate a table referenced in a foreign key/);
announces('CASCADE', 'TRUNCATE item CASCADE', 'item:1 item:2 line:10 line:11 lone:a1 split:1 split:10');
announces('the partition that refers to it by itself', q{
	BEGIN;
	ALTER TABLE line DROP CONSTRAINT line_item_fkey;
	ALTER TABLE split DROP CONSTRAINT split_item_fkey;
	TRUNCATE ONLY item CASCADE;
	COMMIT;
	TRUNCATE line, split;
	ALTER TABLE line ADD FOREIGN KEY (item) REFERENCES item;
	ALTER TABLE split ADD FOREIGN KEY (item) REFERENCES item},
	'item:1 item:2 line:10 line:11 lone:a1 split:1 split:10');
announces('CASCADE from a partition', q{
	CREATE TABLE far (id integer PRIMARY KEY, region text, part integer, FOREIGN KEY (region, part) REFERENCES part);
	CREATE TABLE farther (id integer PRIMARY KEY, far integer REFERENCES far);
	INSERT INTO far VALUES (50, 'a', 1);
	INSERT INTO farther VALUES (60, 50);
	SELECT redstream.attach('far', 'solo'), redstream.attach('farther', 'solo');
	TRUNCATE part_b CASCADE;
	DROP TABLE far, farther}, 'part:b1 solo:50 solo:60');

# ---- from within -------------------------------------------------------------------------------------

announces('DO', 'DO $$ BEGIN TRUNCATE solo; TRUNCATE part_b; END $$', 'part:b1 solo:1 solo:2 solo:3');
announces('an exception', q{
	DO $$ BEGIN
		TRUNCATE line;
		BEGIN TRUNCATE solo, part_b; PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN TRUNCATE part_a;
		END;
	END $$}, 'line:10 line:11 part:a1 part:a2');
$session->query(q{
	CREATE FUNCTION empty_plpgsql() RETURNS void LANGUAGE plpgsql AS 'BEGIN TRUNCATE part_b; EXECUTE ''TRUNCATE part_a''; END';
	CREATE FUNCTION empty_sql() RETURNS void LANGUAGE sql AS 'TRUNCATE part_b, solo';
	CREATE PROCEDURE empty_and_commit() LANGUAGE plpgsql AS $$ BEGIN
		TRUNCATE part_a; COMMIT; TRUNCATE part_b; ROLLBACK; TRUNCATE part_x; END $$;
	CREATE FUNCTION empty_b() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN TRUNCATE part_b; RETURN NULL; END'});
announces("plpgsql, time $_", 'SELECT empty_plpgsql()', 'part:a1 part:a2 part:b1') foreach 1 .. 3;
announces("SQL, time $_", 'SELECT empty_sql()', 'part:b1 solo:1 solo:2 solo:3') foreach 1 .. 2;
announces('a procedure', 'CALL empty_and_commit()', 'part:a1 part:a2 part:x1');
announces('a trigger', q{
	CREATE TRIGGER empty AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION empty_b();
	INSERT INTO other VALUES (2);
	DROP TRIGGER empty ON other}, 'part:b1');
announces('a trigger for TRUNCATE', q{
	CREATE TRIGGER empty BEFORE TRUNCATE ON solo EXECUTE FUNCTION empty_b();
	TRUNCATE part_a, solo;
	DROP TRIGGER empty ON solo}, 'part:a1 part:a2 part:b1 solo:1 solo:2 solo:3');
refused('a trigger on the table itself', q{
	BEGIN;
	CREATE TRIGGER empty AFTER INSERT ON part_b FOR EACH ROW EXECUTE FUNCTION empty_b();
	INSERT INTO part VALUES ('b', 2)}, qr/cannot TRUNCATE "part_b" because it is being used by active queries/);
announces('a trigger that changes the table before it is emptied', q{
	CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO part VALUES ('b', 7); INSERT INTO solo VALUES (8); RETURN NULL; END $$;
	CREATE TRIGGER z_more BEFORE TRUNCATE ON solo EXECUTE FUNCTION more();
	TRUNCATE part_b, solo;
	DROP TRIGGER z_more ON solo}, 'part:b1 part:b7 solo:1 solo:2 solo:3 solo:8');
is($session->query(q{SELECT count(*) FROM part_b}), 0, 'and which is empty all the same');

# ---- snapshots ----------------------------------------------------------------------------------------

foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	fill();
	$session->query("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM other");
	$silent->query(q{
		INSERT INTO solo VALUES (4), (5);
		UPDATE solo SET id = 6 WHERE id = 1;
		DELETE FROM solo WHERE id = 2;
		DELETE FROM part WHERE region = 'a' AND id = 1;
		INSERT INTO part VALUES ('a', 3), ('b', 2)});
	$session->query('TRUNCATE solo, part_a; COMMIT');
	settle($node, $redis);
	is(arrived(''), 'part:a2 part:a3 solo:3 solo:4 solo:5 solo:6', "$level: what others committed meanwhile");
	arrived('.delay');
}

# ---- rights, and who sees what ----------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE ROLE emptier;
	GRANT TRUNCATE ON solo, part_b, part TO emptier;
	ALTER TABLE solo ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	ALTER TABLE part_b ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	CREATE POLICY none ON solo USING (false);
	CREATE POLICY none ON part_b USING (false)});
refused('the role cannot read', 'BEGIN; SET LOCAL ROLE emptier; SELECT * FROM solo', qr/permission denied for table solo/);
announces('a role that may TRUNCATE only, and sees no row', q{
	SET ROLE emptier; TRUNCATE solo, part_b; RESET ROLE}, 'part:b1 solo:1 solo:2 solo:3');
announces('the root, without a right on its partitions', 'SET ROLE emptier; TRUNCATE part; RESET ROLE', $everything);
announces('SECURITY DEFINER', q{
	CREATE FUNCTION empty_as_owner() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'TRUNCATE part_a';
	SET ROLE emptier; SELECT empty_as_owner(); RESET ROLE}, 'part:a1 part:a2');
refused('a partition without the right to', 'BEGIN; SET LOCAL ROLE emptier; TRUNCATE part_b, part_a',
	qr/permission denied for table part_a/);
refused('CASCADE without the right to', q{
	GRANT TRUNCATE ON item TO emptier;
	BEGIN; SET LOCAL ROLE emptier; TRUNCATE item, part_b CASCADE}, qr/permission denied for table line/);

# ---- triggers that do not fire --------------------------------------------------------------------------------

announces('disabled', q{
	ALTER TABLE solo DISABLE TRIGGER redstream_truncate;
	TRUNCATE solo;
	ALTER TABLE solo ENABLE TRIGGER redstream_truncate}, '');
announces('disabled at the root', q{
	ALTER TABLE part DISABLE TRIGGER USER;
	TRUNCATE part_a;
	TRUNCATE part;
	ALTER TABLE part ENABLE TRIGGER USER}, '');
announces('disabled for a partition', q{
	ALTER TABLE part_a DISABLE TRIGGER redstream_delete;
	TRUNCATE part_a, part_b;
	ALTER TABLE part_a ENABLE TRIGGER redstream_delete}, 'part:b1');
announces('redstream.enabled = off', q{
	SET redstream.enabled = off; TRUNCATE solo, part_a; RESET redstream.enabled; TRUNCATE part_b}, 'part:b1');
announces('session_replication_role = replica', q{
	SET session_replication_role = replica; TRUNCATE solo, part_a; RESET session_replication_role}, '');
announces('... and attached for it', q{
	SELECT redstream.attach('solo', replica => true), redstream.attach('part', replica => true);
	SET session_replication_role = replica;
	TRUNCATE solo, part_a;
	TRUNCATE part;
	RESET session_replication_role;
	SELECT redstream.attach('solo'), redstream.attach('part')}, "$everything solo:1 solo:2 solo:3");

# ---- what is announced of a row -----------------------------------------------------------------------------------

announces('a condition', q{
	SELECT redstream.attach('solo', condition => 'id <> 2 AND n = 0'),
		redstream.attach('part', condition => 'n IS NULL');
	SET redstream.enabled = off;
	UPDATE part SET n = NULL WHERE region IN ('a', 'b') AND id = 1;
	RESET redstream.enabled;
	TRUNCATE solo, part_a, part_b}, 'part:a1 part:b1 solo:1 solo:3');
announces('a condition at the root', q{
	SET redstream.enabled = off;
	UPDATE part SET n = NULL WHERE region IN ('b', 'd');
	RESET redstream.enabled;
	TRUNCATE part}, 'part:b1 part:d1');
announces('a payload', q{
	SELECT redstream.attach('solo', payload => ARRAY['n']), redstream.attach('part', payload => ARRAY['n', 'id', 'region']);
	TRUNCATE solo, part_b}, 'part:01b solo:0 solo:0 solo:0');
announces('a payload function', q{
	CREATE FUNCTION row_of(part) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('r', $1.region, 'i', $1.id) $$;
	SELECT redstream.attach('part', payload_function => 'row_of');
	TRUNCATE part_a, part_b}, 'part:a1 part:a2 part:b1');
announces('columns do not matter', q{
	SELECT redstream.attach('solo', columns => ARRAY['n']), redstream.attach('part');
	TRUNCATE solo}, 'solo:1 solo:2 solo:3');
@streams = (map({ "solo-$_" } 0 .. 2), map { "part-$_" } 0, 1);
announces('shards', q{
	SELECT redstream.attach('solo', shards => 3), redstream.attach('part', shards => 2);
	TRUNCATE solo, part_b, part_a}, 'part-1:a1 part-1:a2 part-1:b1 solo-0:1 solo-2:2 solo-2:3');

is(join("\n", crashes($node, 0)), '', 'no crash');
$_->close foreach $session, $silent;
$node->stop;
done_testing();
