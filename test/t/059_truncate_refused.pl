# TRUNCATE that is refused: with the same words as without redstream, and without a lock
# that PostgreSQL would not take.  Foreign partitions, a standby, and many rows.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.timeout' => '60s', 'redstream.databases' => 'nobody',
	'wal_level' => 'replica');

$node->safe_psql('postgres', 'CREATE DATABASE bare; CREATE ROLE poor; CREATE ROLE emptier');
$node->safe_psql($_, q{
	CREATE EXTENSION file_fdw;
	CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
	CREATE TABLE root (id integer, region text) PARTITION BY LIST (region);
	CREATE TABLE leaf PARTITION OF root FOR VALUES IN ('a');
	ALTER TABLE leaf ADD PRIMARY KEY (id);
	CREATE TABLE other (id integer PRIMARY KEY, leaf integer REFERENCES leaf DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE numbered PARTITION OF root FOR VALUES IN ('n');
	CREATE SEQUENCE number OWNED BY numbered.id;
	CREATE FOREIGN TABLE file PARTITION OF root FOR VALUES IN ('f') SERVER files OPTIONS (filename '/dev/null');
	CREATE TABLE family (id integer);
	CREATE VIEW view AS SELECT * FROM leaf;
	CREATE MATERIALIZED VIEW copy AS SELECT * FROM leaf;
	CREATE TYPE pair AS (a integer, b integer);
	CREATE SCHEMA hidden;
	CREATE TABLE hidden.leaf PARTITION OF root FOR VALUES IN ('h');
	GRANT ALL ON hidden.leaf TO poor;
	GRANT TRUNCATE ON root, numbered, view, file TO emptier;
	CREATE FUNCTION empty() RETURNS integer PARALLEL SAFE LANGUAGE plpgsql AS 'BEGIN TRUNCATE numbered; RETURN 1; END';
	INSERT INTO root VALUES (1, 'a'), (2, 'n')}) foreach 'postgres', 'bare';
$node->safe_psql('postgres', q{SELECT redstream.attach('root', payload => ARRAY['id'])});

my ($with, $without) = map { Redstream::Session->new($node, $_) } 'postgres', 'bare';
$_->query('\set VERBOSITY verbose') foreach $with, $without;

# Runs SQL with redstream and without, and compares what comes of it.
sub same
{
	my ($sql, $pattern) = @_;
	my ($got, $expected) = map {
		my $output = $_->query($sql);
		$_->query('ROLLBACK; RESET ROLE');
		$output =~ s/^LOCATION: .*\n?//mg;
		$output
	} $with, $without;

	is($got, $expected, $sql);
	like($got, $pattern, '... as it should be');
	return;
}

same('TRUNCATE view', qr/42809: "view" is not a table/);
same('TRUNCATE copy', qr/42809: "copy" is not a table/);
same('TRUNCATE number', qr/42809: "number" is not a table/);
same('TRUNCATE leaf_pkey', qr/42809: "leaf_pkey" is not a table/);
same('TRUNCATE pair', qr/42809: "pair" is not a table/);
same('TRUNCATE pg_class', qr/42501: permission denied: "pg_class" is a system catalog/);
same('TRUNCATE nothing', qr/42P01: relation "nothing" does not exist/);
same('TRUNCATE nowhere.leaf', qr/3F000: schema "nowhere" does not exist/);
same('TRUNCATE elsewhere.public.leaf', qr/0A000: cross-database references are not implemented/);
same('TRUNCATE leaf, nothing', qr/42P01: relation "nothing" does not exist/);
same('TRUNCATE file', qr/0A000: cannot truncate foreign table "file"/);
same('TRUNCATE root CASCADE', qr/0A000: cannot truncate foreign table "file"/);
same('TRUNCATE ONLY root', qr/42809: cannot truncate only a partitioned table/);
same('TRUNCATE ONLY root, nothing', qr/42809: cannot truncate only a partitioned table/);
same('TRUNCATE leaf', qr/0A000: cannot truncate a table referenced in a foreign key constraint/);
same('BEGIN; DECLARE c CURSOR FOR SELECT * FROM numbered; FETCH c; TRUNCATE numbered',
	qr/55006: cannot TRUNCATE "numbered" because it is being used by active queries/);
same('BEGIN; INSERT INTO other VALUES (1, 1); TRUNCATE numbered, leaf, other',
	qr/55006: cannot TRUNCATE "other" because it has pending trigger events/);
same('BEGIN READ ONLY; TRUNCATE numbered', qr/25006: cannot execute TRUNCATE TABLE in a read-only transaction/);
same('BEGIN; SELECT 1 / 0; TRUNCATE numbered', qr/25P02: current transaction is aborted/);
same('BEGIN; SET LOCAL force_parallel_mode = on; SELECT empty()',
	qr/25000: cannot execute TRUNCATE TABLE during a parallel operation/);
foreach my $table (qw(view copy number leaf numbered file root pg_class pg_authid nothing hidden.leaf))
{
	same("SET ROLE poor; TRUNCATE $table", qr/^ERROR/);
}
same('SET ROLE emptier; TRUNCATE view', qr/42809: "view" is not a table/);
same('SET ROLE emptier; TRUNCATE numbered, leaf', qr/42501: permission denied for table leaf/);
same('SET ROLE emptier; TRUNCATE numbered RESTART IDENTITY', qr/42501: must be owner of sequence number/);
same('SET ROLE emptier; TRUNCATE numbered, numbered, ONLY numbered', qr/^$/);
same(q{INSERT INTO numbered VALUES (3, 'n'); TRUNCATE numbered CASCADE; TRUNCATE other, leaf}, qr/^$/);
settle($node, $redis);
is(join(' ', map { $_->[1]{payload} } take($redis, 'redstream:stream:root')),
	join(' ', map { qq({"id":$_}) } 2, 3, 3, 1), 'what was not refused is announced, and no more');

# Temporary children of others are left alone.
my @owners = map { Redstream::Session->new($node, $_) } 'postgres', 'bare';
is($_->query('CREATE TEMPORARY TABLE child () INHERITS (family); INSERT INTO child VALUES (1)'), '', 'a temporary child')
  foreach @owners;
same('TRUNCATE family', qr/^$/);
is($_->query('SELECT count(*) FROM child'), 1, 'which keeps its row') foreach @owners;
is($_->query('TRUNCATE child'), '', 'until its owner truncates it') foreach @owners;
$_->close foreach @owners;

# Who has no right waits for nobody and keeps nobody waiting.
my $holder = Redstream::Session->new($node);
$holder->query('BEGIN; SELECT * FROM root, other');
like($with->query("SET ROLE poor; TRUNCATE $_; RESET ROLE"), qr/42501: permission denied for table $_/, "no right, $_ in use")
  foreach 'root', 'leaf', 'numbered', 'other';
like($with->query('TRUNCATE file, leaf'), qr/cannot truncate foreign table/, 'nor does what cannot be done');
$holder->query('COMMIT');

# ---- foreign partitions -------------------------------------------------------------------

$node->safe_psql('postgres', sprintf q{
	CREATE EXTENSION postgres_fdw;
	CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'bare');
	CREATE USER MAPPING FOR CURRENT_USER SERVER loop;
	CREATE TABLE mixed (id integer, region text) PARTITION BY LIST (region);
	CREATE TABLE mixed_here PARTITION OF mixed FOR VALUES IN ('here');
	CREATE FOREIGN TABLE mixed_far PARTITION OF mixed FOR VALUES IN ('far') SERVER loop OPTIONS (table_name 'far');
	SELECT redstream.attach('mixed', payload => ARRAY['region', 'id'])}, $node->host, $node->port);
$node->safe_psql('bare', 'CREATE TABLE far (id integer, region text)');

sub announces_mixed
{
	my ($what, $sql, @expected) = @_;
	is_deeply([ announced($node, $redis, 'mixed', $sql) ],
		[ map { my ($region, $id) = /(\D+)(\d+)/; qq({"region":"$region","id":$id}) } @expected ], $what);
	return;
}

sub refuses
{
	my ($sql) = @_;
	my $output = $with->query($sql);
	like($output, qr/ERROR:  0A000: cannot announce the rows of foreign table "mixed_far" that TRUNCATE removes\nHINT:  DELETE them, or /,
		"$sql is refused");
	return;
}

announces_mixed('foreign partition: INSERT', q{INSERT INTO mixed VALUES (1, 'here'), (2, 'far'), (3, 'far')},
	qw(here1 far2 far3));
announces_mixed('foreign partition: UPDATE', q{UPDATE mixed SET id = 20 WHERE id = 2}, qw(far2 far20));
announces_mixed('foreign partition: DELETE', q{DELETE FROM mixed WHERE id = 3}, qw(far3));
announces_mixed('by its name', q{INSERT INTO mixed_far VALUES (4, 'far')}, qw(far4));
refuses('TRUNCATE mixed');
refuses('TRUNCATE mixed_far');
refuses('TRUNCATE mixed_here, mixed_far');
announces_mixed('TRUNCATE of another partition', 'TRUNCATE mixed_here', qw(here1));
is($node->safe_psql('bare', 'SELECT count(*) FROM far'), 2, 'the foreign rows are there');
announces_mixed('redstream.enabled = off', 'SET redstream.enabled = off; TRUNCATE mixed');
is($node->safe_psql('bare', 'SELECT count(*) FROM far'), 0, 'TRUNCATE works');
announces_mixed('detached', q{
	INSERT INTO mixed VALUES (5, 'here'), (6, 'far');
	SELECT redstream.detach('mixed');
	TRUNCATE mixed}, qw(here5 far6));

# ---- many rows ---------------------------------------------------------------------------------

$with->query(q{
	CREATE TABLE big (id integer PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE big_1 PARTITION OF big FOR VALUES FROM (1) TO (150001);
	CREATE TABLE big_2 PARTITION OF big FOR VALUES FROM (150001) TO (200001);
	INSERT INTO big SELECT generate_series(1, 200000);
	SELECT redstream.attach('big')});

# Truncates it in so much of a buffer; the memory, in kB, that the transaction has before its end.
sub truncate_big
{
	my ($table, $buffer, $end) = @_;
	my $memory = 'SELECT sum(total_bytes) / 1024 FROM pg_backend_memory_contexts';
	my ($before, $after) = split /\n/, $with->query(
		"BEGIN; SET LOCAL redstream.transaction_buffer = '$buffer'; $memory; TRUNCATE $table; $memory; $end");
	return int($after - $before);
}

truncate_big($_, '64kB', 'ROLLBACK') foreach 'big', 'big_1';    # what is kept for the next time
my $all = truncate_big('big', '100MB', 'ROLLBACK');
cmp_ok($all, '>', 4000, 'many rows take memory');
cmp_ok(truncate_big('big', '64kB', 'ROLLBACK'), '<', 500, 'but no more than transaction_buffer');
cmp_ok(truncate_big('big_1', '64kB', 'COMMIT'), '<', 500, 'with a partition, too');
settle($node, $redis);
my %ids = map { $_ => 1 } $redis->cli('--raw', 'XRANGE', 'redstream:stream:big', '-', '+') =~ /^\{"id":(\d+)\}/mg;
is(join(' ', scalar(keys %ids), $ids{1}, $ids{150000}, $ids{150001} || 0), '150000 1 1 0', 'and every row is announced');

# ---- a standby -------------------------------------------------------------------------------------

$_->close foreach $with, $without, $holder;
$node->stop;
$node->set_standby_mode;
$node->start;
foreach my $table (qw(numbered root other))
{
	my (undef, undef, $error) = $node->psql('postgres', "TRUNCATE $table");
	like($error, qr/cannot execute TRUNCATE TABLE in a read-only transaction/, "$table on a standby");
}

is(join("\n", crashes($node, 0)), '', 'no crash');
$node->stop;
done_testing();
