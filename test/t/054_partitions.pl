# Partitioned tables: attached at the root, whoever makes partitions and however they
# look, and what becomes of rows and partitions that come and go.  (What statements do
# to them is in 003_statements.pl, TRUNCATE in 057_truncate.pl.)

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.timeout' => '30s', 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);
my $owner = Redstream::Session->new($node);

# Runs SQL in a session that stays open, or a sub, and compares what arrives on all streams:
# "stream:values" or, on stream part, the values alone.
my @streams = qw(part other);

sub arrives
{
	my ($what, $sql, $expected, $by) = @_;
	my $output = ref $sql ? $sql->() : ($by || $session)->query($sql);
	my @found;

	settle($node, $redis);
	foreach my $stream (@streams)
	{
		my $prefix = $stream eq 'part' ? '' : "$stream:";
		push @found, map { $prefix . join '', $_->[1]{payload} =~ /:"?([^",}]*)/g }
		  take($redis, "redstream:stream:$stream");
		$redis->command('DEL', "redstream:stream:$stream.delay");
	}
	is("@found", $expected, $what) or diag($output);
	return $output;
}

sub refused
{
	my ($what, $sql, $error, $by) = @_;
	like(arrives($what, $sql, '', $by), $error, "$what: the error");
	return;
}

$session->query('SET client_min_messages = warning; \set VERBOSITY sqlstate');
$session->query(q{
	CREATE ROLE owner;
	CREATE ROLE writer;
	GRANT CREATE ON SCHEMA public TO owner});
$owner->query('SET client_min_messages = warning; SET SESSION AUTHORIZATION owner');

# ---- whose partitions ---------------------------------------------------------------------

$owner->query(q{
	CREATE TABLE part (region text, id integer, n integer, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
	CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
	CREATE TABLE part_rest PARTITION OF part DEFAULT;
	GRANT ALL ON part TO writer});
refused('the owner may not attach', q{SELECT redstream.attach('part')}, qr/permission denied for schema redstream/, $owner);
$session->query(q{SELECT redstream.attach('part')});
arrives('and without any right makes partitions', q{
	CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b');
	CREATE TABLE part_c (id integer NOT NULL, gone text, n integer, region text NOT NULL);
	ALTER TABLE part_c DROP gone;
	ALTER TABLE part ATTACH PARTITION part_c FOR VALUES IN ('c');
	CREATE TABLE part_d PARTITION OF part FOR VALUES IN ('d', 'e', 'f') PARTITION BY LIST (region);
	CREATE TABLE part_d_d PARTITION OF part_d FOR VALUES IN ('d', 'e') PARTITION BY RANGE (id);
	CREATE TABLE part_d_d_1 PARTITION OF part_d_d FOR VALUES FROM (1) TO (10);
	INSERT INTO part VALUES ('a', 1), ('b', 1), ('c', 1), ('d', 1), ('x', 1)}, 'a1 b1 c1 d1 x1', $owner);
arrives('as others write to them', q{
	SET ROLE writer;
	INSERT INTO part VALUES ('b', 2), ('c', 2), ('e', 2);
	UPDATE part SET n = 1 WHERE id = 1;
	DELETE FROM part WHERE id = 1;
	RESET ROLE}, 'b2 c2 e2 a1 b1 c1 d1 x1 a1 b1 c1 d1 x1');
arrives('a partition that is made in a session that has written before', q{
	CREATE TABLE part_f PARTITION OF part_d FOR VALUES IN ('f');
	INSERT INTO part VALUES ('f', 3), ('b', 3)}, 'f3 b3');
arrives('one whose making is rolled back', q{
	BEGIN;
	CREATE TABLE part_g PARTITION OF part FOR VALUES IN ('g');
	INSERT INTO part VALUES ('g', 4);
	ROLLBACK;
	INSERT INTO part VALUES ('g', 4)}, 'g4');
arrives('another owner', q{
	ALTER TABLE part OWNER TO writer;
	ALTER TABLE part_b OWNER TO writer;
	INSERT INTO part VALUES ('b', 5), ('c', 5);
	ALTER TABLE part OWNER TO owner;
	ALTER TABLE part_b OWNER TO owner}, 'b5 c5');
refused('partitions are the table\'s', q{SELECT redstream.attach('part_c')}, qr/ERROR:  55000/);
refused('also those of partitions', q{SELECT redstream.attach('part_d_d', 'other')}, qr/ERROR:  55000/);
is($session->query(q{SELECT redstream.detach('part_c'), redstream.detach('part_d')}), 'f|f', 'and cannot be detached alone');
is($session->query(q{SELECT "table", stream FROM redstream.attachments WHERE stream = 'part'}), 'part|part',
	'the root is what is attached');

# ---- rows that move ---------------------------------------------------------------------------

$session->query('SET redstream.enabled = off; DELETE FROM part; RESET redstream.enabled');
arrives('to move', q{INSERT INTO part VALUES ('a', 1, 0), ('b', 2, 0), ('c', 3, 0), ('d', 4, 0)}, 'a1 b2 c3 d4');
arrives('between partitions', q{UPDATE part SET region = 'b' WHERE id = 1}, 'a1 b1');
arrives('to other columns, and below', q{UPDATE part SET region = 'c' WHERE id = 1; UPDATE part SET region = 'e' WHERE id = 1},
	'b1 c1 c1 e1');
arrives('in a partition of several', q{UPDATE part SET region = 'd' WHERE id = 1}, 'e1 d1');
arrives('to the default one and back', q{UPDATE part SET region = 'x' WHERE id = 4; UPDATE part SET region = 'a' WHERE id = 4},
	'd4 x4 x4 a4');
arrives('many', q{BEGIN; UPDATE part SET region = 'b'; COMMIT}, 'a4 b4 c3 b3 d1 b1');
refused('to no partition at all', q{UPDATE part SET region = 'd', id = 50 WHERE id = 1}, qr/ERROR:  23514/);
arrives('one that others refer to', q{
	CREATE TABLE refers (id integer PRIMARY KEY, region text, part integer,
		FOREIGN KEY (region, part) REFERENCES part ON UPDATE CASCADE);
	SELECT redstream.attach('refers', 'other', payload => ARRAY['id', 'region']);
	INSERT INTO refers VALUES (90, 'b', 1);
	UPDATE part SET region = 'a' WHERE id = 1;
	DROP TABLE refers}, 'b1 a1 other:90b other:90b other:90a');
$session->query(q{SELECT redstream.attach('part', payload => ARRAY['id'])});
arrives('with a payload that does not', q{BEGIN; UPDATE part SET region = 'c' WHERE id = 1; COMMIT}, '1');
$session->query(q{SELECT redstream.attach('part', payload => ARRAY['n', 'id'], columns => ARRAY['n'])});
arrives('columns: a move is a DELETE and an INSERT', q{UPDATE part SET region = 'a' WHERE id = 1}, '01 01');
arrives('columns: in its partition', q{UPDATE part SET id = 5 WHERE id = 1; UPDATE part SET n = 7 WHERE id = 5}, '01 05 05 75');
arrives('columns: in one with other columns', q{
	UPDATE part SET region = 'c' WHERE id = 5;
	UPDATE part SET id = 6 WHERE id = 5;
	UPDATE part SET n = 8 WHERE id = 6}, '75 75 75 76 76 86');
$session->query(q{SELECT redstream.attach('part', condition => 'n > 0')});
arrives('a condition, in all kinds of partitions', q{
	INSERT INTO part VALUES ('a', 10, 0), ('c', 10, 0), ('d', 9, 0), ('a', 11, 1), ('c', 11, 1), ('e', 8, 1);
	UPDATE part SET n = 1 WHERE id = 10;
	UPDATE part SET n = 0 WHERE id = 11;
	DELETE FROM part WHERE id > 7}, 'a11 c11 e8 a10 c10 a11 c11 a10 c10 e8');
arrives('a condition, while moving', q{
	INSERT INTO part VALUES ('a', 10, 0);
	UPDATE part SET region = 'c' WHERE id = 10;
	UPDATE part SET region = 'b', n = 1 WHERE id = 10;
	UPDATE part SET region = 'c', n = 0 WHERE id = 10;
	DELETE FROM part WHERE id = 10}, 'b10 b10');
$session->query(q{
	CREATE FUNCTION row_of(part) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('r', $1.region, 'i', $1.id, 'n', $1.n) $$;
	SELECT redstream.attach('part', payload_function => 'row_of')});
arrives('a payload function', q{
	INSERT INTO part VALUES ('a', 20, 0), ('c', 20, 0);
	UPDATE part SET region = 'x', n = 1 WHERE region = 'c' AND id = 20;
	UPDATE part_a SET n = 2 WHERE id = 20;
	DELETE FROM part WHERE id = 20}, 'a200 c200 c200 x201 a200 a202 a202 x201');
arrives('a payload function in a schema that the writer may not use', q{
	CREATE SCHEMA hidden;
	GRANT ALL ON part TO writer;
	ALTER FUNCTION row_of SET SCHEMA hidden;
	SELECT redstream.attach('part', payload_function => 'hidden.row_of');
	SET ROLE writer;
	INSERT INTO part VALUES ('c', 21, 0);
	DELETE FROM part WHERE id = 21;
	RESET ROLE}, 'c210 c210');
@streams = qw(part-0 part-1);
$session->query(q{SELECT redstream.attach('part', shards => 2)});
arrives('shards: a row moves from one to the other', q{
	INSERT INTO part VALUES ('b', 30);
	UPDATE part SET region = 'c' WHERE id = 30}, 'part-0:b30 part-0:b30 part-1:c30');
@streams = qw(part other);
$session->query(q{
	SET redstream.enabled = off; DELETE FROM part; RESET redstream.enabled;
	SELECT redstream.attach('part')});

# ---- COPY and leaves by name ----------------------------------------------------------------------

arrives('COPY into the root and into partitions', sub {
	$node->safe_psql('postgres', "COPY part FROM STDIN;\na\t1\t0\nc\t1\t5\n\\.\n"
		. "COPY part_c FROM STDIN;\n2\t0\tc\n3\t0\tc\n\\.\nCOPY part_d FROM STDIN;\nd\t1\t0\n\\.\n");
}, 'a1 c1 c2 c3 d1');
arrives('partitions by name', q{
	UPDATE part_c SET n = 9 WHERE id < 3;
	DELETE FROM part_d_d_1;
	INSERT INTO part_d_d VALUES ('e', 2, 0);
	INSERT INTO part_c (region, id) VALUES ('c', 1) ON CONFLICT (region, id) DO UPDATE SET n = 10}, 'c1 c2 d1 e2 c1');
arrives('MERGE', q{
	SET enable_hashjoin = off; SET enable_mergejoin = off;
	MERGE INTO part USING (VALUES ('a', 1), ('b', 6), ('c', 2)) new (region, id)
	ON part.region = new.region AND part.id = new.id
	WHEN MATCHED AND new.region = 'a' THEN DELETE
	WHEN MATCHED THEN UPDATE SET n = 20
	WHEN NOT MATCHED THEN INSERT VALUES (new.region, new.id, 0)}, 'a1 b6 c2');

# ---- partitions that come and go ---------------------------------------------------------------------

arrives('DETACH PARTITION', q{
	INSERT INTO part VALUES ('a', 2), ('d', 2);
	ALTER TABLE part DETACH PARTITION part_a;
	ALTER TABLE part DETACH PARTITION part_d;
	INSERT INTO part_a VALUES ('a', 3);
	UPDATE part_d SET n = 5;
	DELETE FROM part_c WHERE id = 3}, 'a2 d2 c3');
is($session->query(q{SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('part_a'::regclass, 'part_d_d_1'::regclass)}), 0,
	'leaves no trigger');
arrives('what was detached can be attached by itself', q{
	SELECT FROM redstream.attach('part_a', 'other') a, redstream.attach('part_d', 'other') d;
	INSERT INTO part_a VALUES ('a', 4);
	INSERT INTO part_d VALUES ('e', 4)}, 'other:a4 other:e4');
refused('and is no partition then', q{ALTER TABLE part ATTACH PARTITION part_a FOR VALUES IN ('a')}, qr/ERROR:  42710/);
refused('nor is one with partitions', q{ALTER TABLE part ATTACH PARTITION part_d FOR VALUES IN ('d', 'e', 'f')}, qr/ERROR:  42710/);
arrives('but nothing is lost by that', q{
	INSERT INTO part_a VALUES ('a', 5);
	INSERT INTO part_d VALUES ('e', 5);
	INSERT INTO part VALUES ('b', 7)}, 'b7 other:a5 other:e5');
arrives('detached, it is', q{
	SELECT FROM redstream.detach('part_a') a, redstream.detach('part_d') d;
	ALTER TABLE part ATTACH PARTITION part_a FOR VALUES IN ('a');
	ALTER TABLE part ATTACH PARTITION part_d FOR VALUES IN ('d', 'e', 'f');
	INSERT INTO part VALUES ('a', 6), ('e', 6)}, 'a6 e6');
arrives('DROP of a partition announces nothing', q{DROP TABLE part_b; INSERT INTO part VALUES ('b', 8)}, 'b8');
arrives('CONCURRENTLY', q{
	DROP TABLE part_rest;
	ALTER TABLE part DETACH PARTITION part_a CONCURRENTLY;
	INSERT INTO part_a VALUES ('a', 7);
	INSERT INTO part VALUES ('c', 7)}, 'c7');
arrives('rolled back', q{
	BEGIN;
	ALTER TABLE part DETACH PARTITION part_c;
	INSERT INTO part_c VALUES (8, 0, 'c');
	ROLLBACK;
	INSERT INTO part_c VALUES (9, 0, 'c')}, 'c9');

# A table below the root that is attached itself, at any depth.
$session->query(q{SELECT FROM redstream.detach('part') p, redstream.attach('part_d_d', 'other') d});
refused('a root with an attached partition', q{SELECT redstream.attach('part')}, qr/ERROR:  55000/);
refused('a partition with one', q{SELECT redstream.attach('part_d')}, qr/ERROR:  55000/);
$session->query('\set VERBOSITY default');
like($session->query(q{SELECT redstream.attach('part')}), qr/partition "part_d_d" of "part" is attached by itself\nHINT:  Call redstream\.detach/,
	'and which one');
like($session->query(q{SELECT redstream.attach('part_d_d_1')}), qr/"part_d_d_1" is a partition of a table that is attached/,
	'nor one of its partitions');
arrives('it announces its partitions alone', q{
	INSERT INTO part VALUES ('c', 10), ('d', 5), ('f', 10);
	UPDATE part SET region = 'c' WHERE id = 5 AND region = 'd';
	TRUNCATE part_d}, 'other:d5 other:d5 other:e2 other:d2 other:e4 other:e5 other:e6');
arrives('and both on one stream', q{
	SELECT redstream.attach('part_c', 'other');
	INSERT INTO part VALUES ('c', 11), ('d', 6)}, 'other:c11 other:d6');

is(join("\n", crashes($node, 0)), '', 'no crash');
$_->close foreach $session, $owner;
$node->stop;
done_testing();
