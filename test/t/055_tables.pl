# Every kind of table, or of what is none, with any name and any key; and what DDL does
# to attached tables in a session that has written to them before.  (More DDL is in 002_capture.pl.)

use strict;
use warnings;
use utf8;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.timeout' => '30s', 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);
my $other = Redstream::Session->new($node);

# Runs SQL in the session, and compares the payloads that arrive on a stream; a number is
# one of an id.
sub arrives
{
	my ($what, $sql, $expected, $stream) = @_;
	my $key = 'redstream:stream:' . ($stream || 't');
	my @expected = map { /^\d+$/ ? qq({"id":$_}) : $_ } @$expected;

	utf8::encode($_) foreach $sql, $key, @expected;
	my $output = $session->query($sql);
	settle($node, $redis);
	is_deeply([ map { $_->[1]{payload} } take($redis, $key) ], \@expected, $what) or diag($output);
	$redis->command('DEL', "$key.delay");
	return $output;
}

# Runs SQL that is refused and announces nothing.
sub refused
{
	my ($what, $sql, $error, $stream) = @_;
	like(arrives($what, $sql, [], $stream), $error, "$what: the error");
	return;
}

$_->query('SET client_min_messages = warning') foreach $session, $other;

# ---- no tables -----------------------------------------------------------------------------

$session->query(q{
	CREATE EXTENSION file_fdw;
	CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
	CREATE TABLE t (id integer PRIMARY KEY, big text);
	CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY);
	CREATE TEMPORARY TABLE parted (id integer PRIMARY KEY) PARTITION BY LIST (id);
	CREATE VIEW view AS SELECT * FROM t;
	CREATE MATERIALIZED VIEW copy AS SELECT * FROM t;
	CREATE FOREIGN TABLE file (id integer) SERVER files OPTIONS (filename '/dev/null');
	CREATE SEQUENCE number;
	CREATE TYPE pair AS (id integer);
	CREATE TABLE root (id integer PRIMARY KEY) PARTITION BY LIST (id);
	\set VERBOSITY verbose});
my $toast = $session->query(q{SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 't'::regclass});
refused("attach() of $_->[0]", "SELECT redstream.attach('$_->[0]', 't', payload => ARRAY['id'])", qr/^ERROR:  42809: cannot attach "[^"]*": $_->[1]/)
  foreach [ 'temporary', 'it is a temporary table' ], [ 'parted', 'it is a temporary table' ],
  map({ [ $_, 'it is not a table' ] } qw(view copy file number t_pkey root_pkey pair redstream.attachments information_schema.tables),
	$toast),
  map({ [ $_, "it is a system table or redstream's own" ] } qw(pg_class pg_authid pg_largeobject information_schema.sql_features));
refused('a table that is not there', q{SELECT redstream.attach('nothing')}, qr/^ERROR:  42P01: relation "nothing" does not exist/);
refused('no key', q{CREATE TABLE keyless (id integer UNIQUE NOT NULL); SELECT redstream.attach('keyless')},
	qr/^ERROR:  55000: table "keyless" has no primary key\n(?:.*\n)*HINT:  Add one, or name the columns/);
$session->query('\set VERBOSITY default');

# ---- inheritance -----------------------------------------------------------------------------------

$session->query(q{
	CREATE TABLE parent (id integer PRIMARY KEY, n integer);
	CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent);
	CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
	SET client_min_messages = notice});
like($session->query(q{SELECT redstream.attach('parent', 't')}),
	qr/WARNING:  rows of tables that inherit from "parent" are not announced\nHINT:  Attach these tables, too\./, 'attach() of a parent warns');
is($session->query(q{SELECT redstream.attach('grandchild', 't')}), '', 'that of a child does not');
arrives('a parent and a grandchild', q{
	INSERT INTO parent VALUES (1, 0); INSERT INTO child VALUES (2, 0); INSERT INTO grandchild VALUES (3, 0);
	UPDATE parent SET n = 1;
	UPDATE child SET extra = 'x';
	DELETE FROM ONLY parent;
	DELETE FROM child WHERE id = 3}, [ 1, 3, 1, 3, 3, 1, 3 ]);
arrives('TRUNCATE of the parent', q{
	INSERT INTO parent VALUES (4); INSERT INTO child VALUES (5); INSERT INTO grandchild VALUES (6);
	TRUNCATE parent}, [ 4, 6, 4, 6 ]);
arrives('ONLY', q{
	INSERT INTO parent VALUES (4); INSERT INTO grandchild VALUES (6);
	TRUNCATE ONLY parent; TRUNCATE ONLY child}, [ 4, 6, 4 ]);
arrives('a child that comes later', q{
	CREATE TABLE later (PRIMARY KEY (id)) INHERITS (parent);
	INSERT INTO later VALUES (7);
	SELECT FROM redstream.attach('later', 't');
	UPDATE parent SET n = 8;
	SELECT FROM redstream.detach('parent');
	ALTER TABLE later NO INHERIT parent;
	DELETE FROM later; DELETE FROM parent}, [ 7, 6, 7, 6 ] );
$session->query('DROP TABLE parent, later CASCADE; SET client_min_messages = warning');

# ---- kinds of tables and keys ------------------------------------------------------------------------

$session->query('DROP TABLE t CASCADE');
arrives('unlogged', q{
	CREATE UNLOGGED TABLE t (id integer PRIMARY KEY);
	SELECT FROM redstream.attach('t');
	INSERT INTO t VALUES (1); TRUNCATE t}, [ 1, 1 ]);

# columns, primary key, what is done, what arrives
my @keys = (
	'identity' => 'id integer GENERATED ALWAYS AS IDENTITY', '(id)',
	'INSERT INTO t DEFAULT VALUES; UPDATE t SET id = DEFAULT' => [ 1, 1, 2 ],
	'generated' => 'a integer, id integer GENERATED ALWAYS AS (a + 1) STORED', '(id)',
	'INSERT INTO t VALUES (1); UPDATE t SET a = 2' => [ 2, 2, 3 ],
	'a column after the key' => 'n integer, id integer', '(id) INCLUDE (n)',
	'INSERT INTO t VALUES (0, 1); UPDATE t SET n = 1' => [ 1, 1 ],
	'composite' => 'b text, n integer, a integer', '(a, b)',
	q{INSERT INTO t VALUES ('x', 0, 1); UPDATE t SET n = 1; UPDATE t SET b = 'y'} =>
	  [ ('{"b":"x","a":1}') x 3, '{"b":"y","a":1}' ],
	'deferrable' => 'id integer', '(id) DEFERRABLE INITIALLY DEFERRED',
	'INSERT INTO t VALUES (1), (2); BEGIN; UPDATE t SET id = 3 - id; COMMIT; UPDATE t SET id = id + 1' =>
	  [ 1, 2, 1, 2, 2, 3, 1 ],
	'an enum' => 'id colour', '(id)', q{INSERT INTO t VALUES ('light "blue"'); ALTER TYPE colour RENAME VALUE 'light "blue"' TO 'azur'; DELETE FROM t} =>
	  [ '{"id":"light \"blue\""}', '{"id":"azur"}' ],
	'domains' => 'id small, d letters', '(id, d)', q{INSERT INTO t VALUES (1, 'é')} => ['{"id":1,"d":"é"}'],
	'an array' => 'id integer[]', '(id)', q{INSERT INTO t VALUES ('{1,2,NULL}')} => ['{"id":"{1,2,NULL}"}'],
	'a uuid' => 'id uuid', '(id)', q{INSERT INTO t VALUES ('7F000000-abcd-4000-8000-00000000000F')} =>
	  ['{"id":"7f000000-abcd-4000-8000-00000000000f"}'],
	'a row' => 'id pair', '(id)', q{INSERT INTO t VALUES (ROW(1))} => ['{"id":"(1)"}'],
	'a range' => 'id int4range', '(id)', q{INSERT INTO t VALUES ('[1,2]')} => ['{"id":"[1,3)"}'],
	'times' => 'id timestamptz, d date', '(id, d)', q{SET timezone = 'Asia/Tokyo'; SET datestyle = german;
		INSERT INTO t VALUES ('2024-01-01 12:00', '2024-02-01'); RESET timezone; RESET datestyle} =>
	  ['{"id":"2024-01-01 03:00:00+00","d":"2024-02-01"}'],
	'numbers' => 'id numeric, f float8', '(id, f)', q{INSERT INTO t VALUES (1.10, 0.1)} => ['{"id":1.10,"f":0.1}'],
	'bytes' => 'id bytea', '(id)', q{SET bytea_output = escape; INSERT INTO t VALUES ('\xff'); RESET bytea_output} => ['{"id":"\\\\xff"}'],
);
$session->query(q{
	CREATE TYPE colour AS ENUM ('red', 'light "blue"');
	CREATE DOMAIN small AS integer CHECK (VALUE < 10);
	CREATE DOMAIN letters AS varchar(5)});
while (my ($what, $columns, $key, $sql, $expected) = splice @keys, 0, 5)
{
	arrives($what, "DROP TABLE t; CREATE TABLE t ($columns, PRIMARY KEY $key); SELECT FROM redstream.attach('t'); $sql", $expected);
}

my $columns = join ', ', map { "c$_ integer" } 2 .. 1600;
my $values = join ', ', ('0') x 1599;
arrives('1,600 columns', "DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY, $columns); SELECT FROM redstream.attach('t');
	INSERT INTO t VALUES (1, $values); UPDATE t SET c1600 = 1; UPDATE t SET c1600 = 1; ALTER TABLE t DROP c2; UPDATE t SET c1599 = 1",
	[ 1, 1, 1 ]);
my @all = ('id', map { "c$_" } 3 .. 1600);
arrives('all in the payload', q{SELECT FROM redstream.attach('t', payload => ARRAY['} . join("', '", @all) . q{'],
	columns => ARRAY['} . join("', '", @all[ 1 .. $#all ]) . q{']); UPDATE t SET c700 = 5},
	[ map { my $c700 = $_; '{' . join(',', map { qq("$_":) . ($_ =~ /^(?:id|c1600|c1599)$/ ? 1 : $_ eq 'c700' ? $c700 : 0) } @all) . '}' } 0, 5 ]);

# ---- names ----------------------------------------------------------------------------------------------

my @names = (
	'a.b', 'A', 'select', 'a b', ' ', 'a"b', "a'b", 'a\\b', 'a$1%s{}*', 'Ünïcödé ☃', 'x' x 63, "'); DROP TABLE t; --", 'old', 'new', 't', '*',
	'{tag}', 'a,b', '{"a"}', 'NULL', "\t", "a\nb");
$session->query('DROP TABLE t');

sub identifier { return '"' . $_[0] =~ s/"/""/gr . '"'; }
sub literal { return "'" . $_[0] =~ s/'/''/gr . "'"; }

foreach my $name (@names)
{
	my $column = identifier($name);
	my $table = "$column.$column";
	my $stream = $name =~ /[\t\n]/ ? 'control' : $name;
	my $json = $name =~ s/(["\\])/\\$1/gr =~ s/\t/\\t/r =~ s/\n/\\n/r;
	my ($target, $name_text, $stream_text, $condition) = map { literal($_) } $table, $name, $stream, "$column > 0";
	my $default = $stream eq $name ? 'NULL' : $stream_text;
	my $what = "name '$name'" =~ s/\n/ /r;
	utf8::encode($what);

	arrives($what, qq{
		CREATE SCHEMA $column;
		CREATE TABLE $table ($column integer PRIMARY KEY, n integer);
		SELECT FROM redstream.attach($target, $default);
		INSERT INTO $table VALUES (1, 0);
		SELECT FROM redstream.attach($target, $stream_text, payload => ARRAY['n', $name_text],
			columns => ARRAY['n', $name_text], condition => $condition);
		UPDATE $table SET n = 1;
		TRUNCATE $table},
		[ qq({"$json":1}), qq({"n":0,"$json":1}), qq({"n":1,"$json":1}), qq({"n":1,"$json":1}) ], $stream);
	my $query = qq{
		SELECT stream = $stream_text, payload[2] = $name_text, columns[2] = $name_text, condition = '(' || quote_ident($name_text) || ' > 0)'
		FROM redstream.attachments WHERE "table" = ${target}::regclass;
		DROP SCHEMA $column CASCADE};
	utf8::encode($query);
	is($session->query($query), 't|t|t|t', "$what: as it is shown");
}

# ---- DDL ----------------------------------------------------------------------------------------------------

# By another session while this one has the plan, then by this one: what is done, a change, what arrives.
my @ddl = (
	'RENAME of a key column' => 'ALTER TABLE d RENAME id TO key',
	'UPDATE d SET n = n + 1' => ['{"key":1}'],
	'... in columns' => q{SELECT FROM redstream.attach('d', 't', columns => ARRAY['key', 'n']); ALTER TABLE d RENAME key TO id},
	'UPDATE d SET n = n + 1' => qr/^ERROR:  column "key" of table "d" does not exist any more/,
	'... in the condition' => q{SELECT FROM redstream.attach('d', 't', condition => 'n > 0'); ALTER TABLE d RENAME n TO m},
	'UPDATE d SET m = m + 1' => [1],
	'refused: DROP of a column of the condition' => 'ALTER TABLE d DROP m',
	'UPDATE d SET m = m + 1' => [1],
	'refused: another type of it' => 'ALTER TABLE d ALTER m TYPE bigint',
	'UPDATE d SET m = m + 1' => [1],
	'and back' => q{SELECT FROM redstream.attach('d', 't'); ALTER TABLE d RENAME m TO n},
	'UPDATE d SET n = n + 1' => [1],
	'int to bigint' => 'ALTER TABLE d ALTER id TYPE bigint',
	'INSERT INTO d VALUES (3000000000); DELETE FROM d WHERE id > 1' => [ 3000000000, 3000000000 ],
	'and to text' => q{ALTER TABLE d ALTER id TYPE text},
	q{INSERT INTO d VALUES ('b"'); DELETE FROM d WHERE id <> '1'} => [ '{"id":"b\""}', '{"id":"b\""}' ],
	'and back again' => 'ALTER TABLE d ALTER id TYPE integer USING id::integer',
	'UPDATE d SET n = n + 1' => [1],
	'ADD COLUMN with a volatile default' => 'ALTER TABLE d ADD late float DEFAULT random()',
	'UPDATE d SET late = 2' => [1],
	'DROP of it' => 'ALTER TABLE d DROP late',
	'UPDATE d SET n = n + 1' => [1],
	'SET SCHEMA' => 'CREATE SCHEMA away; ALTER TABLE d SET SCHEMA away',
	'UPDATE away.d SET n = n + 1' => [1],
	'... back' => 'ALTER TABLE away.d SET SCHEMA public; DROP SCHEMA away',
	'UPDATE d SET n = n + 1' => [1],
	'SET UNLOGGED' => 'ALTER TABLE d SET UNLOGGED',
	'UPDATE d SET n = n + 1' => [1],
	'SET LOGGED' => 'ALTER TABLE d SET LOGGED',
	'UPDATE d SET n = n + 1' => [1],
	'CLUSTER' => 'CLUSTER d USING d_pkey',
	'UPDATE d SET n = n + 1' => [1],
	'VACUUM FULL' => 'VACUUM FULL d',
	'UPDATE d SET n = n + 1' => [1],
	'OWNER TO' => 'ALTER TABLE d OWNER TO somebody',
	'UPDATE d SET n = n + 1' => [1],
	'REINDEX, ANALYZE, statistics' => 'REINDEX TABLE d; ANALYZE d; CREATE STATISTICS d_stat ON id, n FROM d; DROP STATISTICS d_stat',
	'UPDATE d SET n = n + 1' => [1],
	'another column in the key' => 'ALTER TABLE d DROP CONSTRAINT d_pkey, ALTER n SET NOT NULL, ADD PRIMARY KEY (n, id)',
	'UPDATE d SET n = 100' => sub { [ map { qq({"id":1,"n":$_}) } $_[0], 100 ] },
	'the key by name' => q{ALTER TABLE d DROP CONSTRAINT d_pkey, ADD CONSTRAINT d_pkey PRIMARY KEY (id)},
	'UPDATE d SET n = 0' => [1],
	'the table anew' => q{DROP TABLE d; CREATE TABLE d (n integer, id integer PRIMARY KEY); INSERT INTO d VALUES (0, 1)},
	'UPDATE d SET n = n + 1' => [],
	'attached' => q{SELECT FROM redstream.attach('d', 't')},
	'UPDATE d SET n = n + 1' => [1],
	'the table made as it was' => q{DROP TABLE d; CREATE TABLE d (id integer PRIMARY KEY, n integer); INSERT INTO d VALUES (1, 0);
		SELECT FROM redstream.attach('d', 't')},
	'UPDATE d SET n = n + 1' => [1],
	# a partitioned one; the session knows the partition
	'a partition: before' => q{SELECT FROM redstream.attach('pd', 't')},
	'UPDATE pd SET n = n + 1' => [1],
	'a partition: RENAME of the key' => 'ALTER TABLE pd RENAME id TO key',
	'UPDATE pd SET n = n + 1' => ['{"key":1}'],
	'a partition: its own name' => 'ALTER TABLE pd_1 RENAME TO pd_one; ALTER TABLE pd RENAME key TO id',
	'UPDATE pd_one SET n = n + 1' => [1],
	'a partition: ADD COLUMN' => 'ALTER TABLE pd_one RENAME TO pd_1; ALTER TABLE pd ADD late integer DEFAULT 5',
	'UPDATE pd SET late = 5; UPDATE pd SET late = 6' => [1],
	'a partition: payload' => q{SELECT FROM redstream.attach('pd', 't', payload => ARRAY['late', 'id'], columns => ARRAY['late'])},
	'UPDATE pd SET late = 7' => [ '{"late":6,"id":1}', '{"late":7,"id":1}' ],
	'a partition: DROP of a payload column' => 'ALTER TABLE pd DROP late',
	'UPDATE pd SET n = n + 1' => qr/^ERROR:  column "late" of table "pd_1" does not exist any more, .*\nHINT:  Call redstream\.attach/,
	'a partition: attached again' => q{SELECT FROM redstream.attach('pd', 't')},
	'UPDATE pd SET n = n + 1' => [1],
	'a partition: another key' => 'ALTER TABLE pd DROP CONSTRAINT pd_pkey, ADD PRIMARY KEY (id, n)',
	'UPDATE pd SET id = 1, n = 0' => sub { [ map { qq({"id":1,"n":$_}) } $_[0], 0 ] },
	'a partition: and back' => 'ALTER TABLE pd DROP CONSTRAINT pd_pkey, ADD PRIMARY KEY (id)',
	'UPDATE pd SET n = n + 1' => [1],
);
$session->query(q{
	CREATE ROLE somebody;
	CREATE TABLE d (id integer PRIMARY KEY, n integer DEFAULT 1);
	INSERT INTO d VALUES (1, 1);
	SELECT FROM redstream.attach('d', 't');
	CREATE TABLE pd (id integer PRIMARY KEY, n integer) PARTITION BY RANGE (id);
	CREATE TABLE pd_1 (gone integer, n integer, id integer NOT NULL);
	ALTER TABLE pd_1 DROP gone;
	ALTER TABLE pd ATTACH PARTITION pd_1 FOR VALUES FROM (1) TO (10);
	INSERT INTO pd VALUES (1, 0)});
arrives('before any DDL', 'UPDATE d SET n = n + 1', [1]);
foreach my $by ($other, $session)
{
	my $who = $by == $session ? 'itself' : 'another session';
	my @steps = @ddl;

	while (my ($what, $ddl, $change, $expected) = splice @steps, 0, 4)
	{
		my $table = $change =~ /\bpd\b/ ? 'pd' : 'd';
		like($by->query($ddl), $what =~ /^refused/ ? qr/^ERROR/ : qr/^$/, "$who: $what, done");
		$expected = $expected->($node->safe_psql('postgres', "SELECT n FROM $table")) if ref $expected eq 'CODE';
		if (ref $expected eq 'ARRAY')
		{
			arrives("$who: $what", $change, $expected);
		}
		else
		{
			refused("$who: $what", $change, $expected);
		}
	}
	$session->query(q{SELECT FROM redstream.attach('d', 't')});
}

# The stream keeps its name.
arrives('a table that is renamed', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT FROM redstream.detach('d') a, redstream.detach('pd') b;
	SELECT FROM redstream.attach('t');
	ALTER TABLE t RENAME TO u;
	INSERT INTO u VALUES (1)}, [1]);
refused('a new one of that name does not take it', q{CREATE TABLE t (id integer PRIMARY KEY); SELECT redstream.attach('t')},
	qr/ERROR:  table "public\.u" already announces to stream "t"\nHINT:  Name the stream/);

is(join("\n", crashes($node, 0)), '', 'no crash');
$_->close foreach $session, $other;
$node->stop;
done_testing();
