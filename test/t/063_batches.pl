# redstream.bulk_update() and redstream.bulk_enqueue(): every row once, in the order of the key whatever its types, in batches that
# are transactions of their own.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '60s', 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);

$session->query('\set VERBOSITY verbose');

# The payloads on the stream once everything committed has arrived, {"id":5} and {"n":5} as 5.  Takes both kinds of messages out.
sub arrived
{
	my ($stream) = @_;

	settle($node, $redis);
	$redis->command('DEL', "redstream:stream:$stream.delay");
	my @payloads = map { $_->[1]{payload} } take($redis, "redstream:stream:$stream");
	s/^\{"(?:id|n)":(\d+)\}$/$1/ foreach @payloads;
	return join ' ', @payloads;
}

sub update
{
	my ($arguments) = @_;
	return "CALL redstream.bulk_update($arguments)";
}

sub enqueue
{
	my ($arguments) = @_;
	return "CALL redstream.bulk_enqueue($arguments)";
}

# The keys in the notices, each the last one of a batch, as SQL.
sub places
{
	my ($output) = @_;
	return $output =~ /^NOTICE: .* to go on behind them: start_after => (.*)$/mg;
}

# Runs SQL that fails with this SQLSTATE and text, and announces nothing.
sub refused
{
	my ($what, $sql, $state, $text) = @_;

	like($session->query($sql), qr/^ERROR:  $state: $text/m, $what);
	is(arrived('item'), '', "$what: nothing is announced");
	return;
}

# A table of so many rows, which are in it the other way round.
sub make_item
{
	my ($rows, $attach) = @_;
	$node->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS item;
		CREATE TABLE item (id integer PRIMARY KEY, v integer DEFAULT 0, t text);
		INSERT INTO item SELECT i FROM generate_series($rows, 1, -1) i});
	$node->safe_psql('postgres', "SELECT redstream.attach('item', $attach)") if $attach;
	return;
}

# The values of v, one for each row.
sub all_v
{
	return $node->safe_psql('postgres', q{SELECT string_agg(v::text, ' ' ORDER BY id) FROM item});
}

# ---- batches ---------------------------------------------------------------------------------------

foreach my $attach ('', q{stream => 'item'})
{
	my $what = $attach ? 'attached' : 'not attached';

	make_item(10, $attach);
	my $output = $session->query(update(q{'item', 'v = v + 1', batch_size => 3}));
	is(all_v(), join(' ', (1) x 10), "$what: every row is updated once");
	is(arrived('item'), join(' ', 1 .. 10), "$what: and announced once, in order");
	is($node->safe_psql('postgres', q{
		SELECT string_agg(ids, ' ' ORDER BY first)
		FROM (SELECT min(id) AS first, string_agg(id::text, '-' ORDER BY id) AS ids FROM item GROUP BY xmin::text) b}),
		'1-2-3 4-5-6 7-8-9 10', "$what: each batch is a transaction");
	like($output, qr/^NOTICE:  00000: redstream\.bulk_update: 6 of about \d+ rows, \d+ rows\/s; to go on behind them: start_after => '\{6\}'$/m,
		"$what: it says how far it is");
	is(join(' ', places($output)), q('{3}' '{6}' '{9}' '{10}'), "$what: after each batch");
	like($output, qr/^NOTICE:  00000: redstream\.bulk_update: done, 10 rows in \d+\.\d s$/m, "$what: and at the end");
	is(scalar(() = $output =~ /^NOTICE/mg), 5, "$what: and no more");

	$output = $session->query(enqueue(q{'item', 'id > 4', batch_size => 2}));
	is(arrived('item'), '5 6 7 8 9 10', "$what: enqueued, in order");
	is(join(' ', places($output)), q('{6}' '{8}' '{10}'), "$what: the last batch was full, and nothing came after it");
	is(all_v(), join(' ', (1) x 10), "$what: nothing is changed");
}
foreach my $size (1, 5, 10, 11, 2147483647)
{
	make_item(10);
	$session->query(update("'item', 'v = v + 1', batch_size => $size"));
	is(all_v(), join(' ', (1) x 10), "batches of $size");
	is(arrived('item'), join(' ', 1 .. 10), "batches of $size: announced");
}
like($session->query(update(q{'item', 'v = 9', 'false'})), qr/^NOTICE:  00000: redstream\.bulk_update: done, 0 rows/, 'no row');
make_item(0);
like($session->query(enqueue(q{'item'})), qr/^NOTICE:  00000: redstream\.bulk_enqueue: done, 0 rows/, 'an empty table');
is(arrived('item'), '', 'nothing is announced');

make_item(4, q{payload => ARRAY['id', 'v']});
$session->query(update(q{'item', 'v = v + 1', 'id <> 2', batch_size => 2}));
my @payloads = split ' ', arrived('item');
is("@payloads[ 0, 1, 4, 5 ]", '{"id":1,"v":0} {"id":3,"v":0} {"id":4,"v":0} {"id":4,"v":1}', 'a payload column: the old payloads of a batch');
is(join(' ', sort @payloads[ 2, 3 ]), '{"id":1,"v":1} {"id":3,"v":1}', 'a payload column: and then the new ones');
make_item(6, q{condition => 'v < 5', payload => ARRAY['id', 'v']});
$node->safe_psql('postgres', 'SET redstream.enabled = off; UPDATE item SET v = 5 WHERE id IN (2, 3, 4)');
my $output = $session->query(update(q{'item', 'v = v + 1', 'id > 1', batch_size => 2}));
is(all_v(), '0 6 6 6 1 1', 'the condition of attach() keeps no row from being updated');
is(arrived('item'), '{"id":5,"v":0} {"id":5,"v":1} {"id":6,"v":0} {"id":6,"v":1}', 'but from being announced');
is(join(' ', places($output)), q('{3}' '{5}' '{6}'), 'all are counted');
is(join(' ', places($session->query(enqueue(q{'item', batch_size => 2})))), q('{2}' '{4}' '{6}'), 'so it is with bulk_enqueue()');
is(arrived('item'), '{"id":1,"v":0} {"id":5,"v":1} {"id":6,"v":1}', 'which announces the others');

# ---- start_after -----------------------------------------------------------------------------------------

make_item(10);
is(join(' ', places($session->query(update(q{'item', 'v = v + 1', batch_size => 2, start_after => '{6}'})))), q('{8}' '{10}'), 'start_after');
is(all_v(), '0 0 0 0 0 0 1 1 1 1', 'the rows behind it are updated');
is(arrived('item'), '7 8 9 10', 'and announced');
$session->query(enqueue(q{'item', 'id <> 9', start_after => ARRAY['8']}));
is(arrived('item'), '10', 'with a condition');
is(join(' ', places($session->query(enqueue(q{'item', start_after => '{10}'})))), '', 'behind the last row');
is(join(' ', places($session->query(enqueue(q{'item', start_after => NULL, batch_size => 9})))), q('{9}' '{10}'), 'NULL: from the beginning');
arrived('item');
refused('start_after: too many values', enqueue(q{'item', start_after => '{1,2}'}), '2202E',
	'start_after has 2 values, and the primary key 1 columns');
refused('start_after: none', enqueue(q{'item', start_after => '{}'}), '2202E', 'start_after has 0 values');
refused('start_after: a null in it', enqueue(q{'item', start_after => '{NULL}'}), '22004', 'start_after must not contain nulls');
refused('start_after: no value of the type', update(q{'item', 'v = 1', start_after => '{x}'}), '22P02',
	'invalid input syntax for type integer: "x"');
is(all_v(), '0 0 0 0 0 0 1 1 1 1', 'nothing is changed');

# ---- keys ----------------------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE SCHEMA ext;
	CREATE EXTENSION citext SCHEMA ext;
	CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
	CREATE TYPE mood AS ENUM ('zeal', 'joy', 'calm', 'doubt', 'anger');
	CREATE TYPE pair AS (x integer, y text);
	CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
	CREATE DOMAIN word AS varchar(30) COLLATE "C"});

# Columns of the key, and for each how its value is made from i = 1 to 23, which is mostly not the order of the key.
my $text = q{(ARRAY['b', 'A', 'ä', 'a b', 'a-b', 'B', 'Ä', 'zz', 'Z', 'it''s', '"', '\\\\', '{,}', 'NULL', '', ' ', 'é', 'ß', '𝄞', 'x',
	'X', '1', '-'])[i]};
my $case = q{chr(65 + (i * 7) % 23) || CASE i % 2 WHEN 0 THEN 'x' ELSE 'Y' END};
my @keys = (
	[ 'a integer', '5 - i' ],
	[ 'a text', $text ],
	[ 'a text COLLATE "C"', $text ],
	[ 'a text COLLATE "und-x-icu"', $text ],
	[ 'a text COLLATE nocase', $case ],
	[ 'a varchar(20)', $text ],
	[ 'a char(8)', $case ],
	[ 'a name', $case ],
	[ 'a ext.citext', $case ],
	[ 'a uuid', 'md5(i::text)::uuid' ],
	[ 'a timestamptz', q{CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity'
		ELSE '2026-03-29 00:30:00+01'::timestamptz - i * '13 min 0.000001 s'::interval END} ],
	[ 'a timestamp', q{'0044-03-15 BC'::timestamp + i * '-100 years 1.5 s'::interval} ],
	[ 'a date', q{'2026-02-01'::date - 5 * i} ],
	[ 'a interval', q{(i - 12) * '-1 day 3 hours'::interval} ],
	[ 'a timetz', q{('10:00' || CASE i % 2 WHEN 0 THEN '+' ELSE '-' END || i % 13)::timetz + i * '1 s'::interval} ],
	[ 'a numeric(12, 4)', q{CASE i WHEN 3 THEN 'NaN' ELSE (9 - i) * 1.37 END} ],
	[ 'a double precision', q{CASE i WHEN 3 THEN 'NaN' WHEN 4 THEN '-Infinity' ELSE (9 - i) / 3.0::float8 END} ],
	[ 'a real', '(9 - i) / 7.0::float4' ],
	[ 'a bytea', q{decode(md5(i::text), 'hex')} ],
	[ 'a positive', '100 - i' ],
	[ 'a word', $text ],
	[ 'a inet', q{'10.0.0.9'::inet - i} ],
	[ 'a int4range', 'int4range(50 - i, 50 + i)' ],
	[ 'a jsonb', q{jsonb_build_object('k', 50 - i, 'l', i::text)} ],
	[ 'a pair', q{(i % 4, 'x,"' || -i)::pair} ],
	[ 'a regclass', q{(ARRAY(SELECT oid::regclass FROM pg_class WHERE relkind = 'r' ORDER BY oid LIMIT 23))[24 - i]} ],
	[ 'a boolean, b integer', 'i % 2 = 0', '-i' ],
	[ 'a mood, b integer', q{(enum_range(NULL::mood))[1 + i % 5]}, 'i % 7' ],
	[ 'a integer, b integer', 'i % 4', '-i' ],
	[ 'a text COLLATE "und-x-icu", b timestamptz, c integer', q{CASE i % 2 WHEN 0 THEN 'a' ELSE 'B' END},
		q{'2026-01-01'::timestamptz - (i % 3) * '1 day'::interval}, '-i' ],
);

# Whatever the session's settings.
sub oddly
{
	my ($call) = @_;
	return $session->query(qq{
		SET DateStyle = 'German, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = sql_standard; SET extra_float_digits = -3;
		SET bytea_output = escape; SET search_path = ''; SET quote_all_identifiers = on;
		$call;
		RESET ALL});
}

foreach my $key (@keys)
{
	my ($columns, @values) = @$key;
	my $names = join ', ', qw(a b c)[ 0 .. $#values ];
	my $values = join ', ', @values;

	# n is the row's number in the order of the key
	$node->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS keyed;
		CREATE TABLE keyed (v integer DEFAULT 0, n integer, $columns, PRIMARY KEY ($names));
		INSERT INTO keyed (n, $names) SELECT i, $values FROM generate_series(1, 23) i;
		UPDATE keyed SET n = r FROM (SELECT n AS i, row_number() OVER (ORDER BY $names) AS r FROM keyed) numbered WHERE n = i;
		SELECT redstream.attach('keyed', payload => ARRAY['n'])});
	my $output = oddly(update(q{'public.keyed', 'v = v + 1', batch_size => 4}));
	is($node->safe_psql('postgres', 'SELECT count(*), min(v), max(v) FROM keyed'), '23|1|1', "$columns: every row is updated once")
	  or diag($output);
	is(arrived('keyed'), join(' ', 1 .. 23), "$columns: and announced once, in order");

	# any of the places that were told is good to go on from
	my @places = places($output);
	is(scalar(@places), 6, "$columns: the places are told") or diag($output);
	oddly(enqueue("'public.keyed', batch_size => 4, start_after => $places[3]"));
	is(arrived('keyed'), join(' ', 17 .. 23), "$columns: started again");

	# keys alone, which are read without locks; bulk() reads them in one query
	$node->safe_psql('postgres', q{
		SELECT redstream.detach('keyed');
		SELECT redstream.bulk('keyed', 'true', 'DELETE FROM keyed WHERE false')});
	my $in_order = arrived('keyed');
	oddly(enqueue(q{'public.keyed', batch_size => 4}));
	is(arrived('keyed'), $in_order, "$columns: the key alone");
}

# The key's columns come in the order of its index.
$node->safe_psql('postgres', q{
	CREATE TABLE turned (a integer, v integer DEFAULT 0, b text, PRIMARY KEY (b, a));
	INSERT INTO turned SELECT i, 0, chr(97 + i % 3) FROM generate_series(1, 9) i});
is(join(' ', places($session->query(update(q{'turned', 'v = v + 1', batch_size => 4})))), q('{b,1}' '{c,5}' '{c,8}'),
	'a key in another order than the columns');
is(arrived('turned'), join(' ', map({ qq({"a":$_,"b":"a"}) } 3, 6, 9), map({ qq({"a":$_,"b":"b"}) } 1, 4, 7),
	map({ qq({"a":$_,"b":"c"}) } 2, 5, 8)), 'is read in its own order');

$node->safe_psql('postgres', q{
	CREATE TABLE listed (a integer[] PRIMARY KEY);
	CREATE TABLE keyless (a integer);
	SELECT redstream.attach('keyless', payload => ARRAY['a'])});
refused('a key of arrays', enqueue(q{'listed'}), '0A000',
	'column "a" of the primary key of "listed" is of a type that cannot be read in batches: integer\[\]');
refused('no key', enqueue(q{'keyless'}), '55000', 'table "keyless" has no primary key to read it in batches by');

# Names that have to be quoted, and the ones that our own queries use.
foreach my $name ('redstream_keys', 'redstream_set', 'Odd "table" name', 'select')
{
	(my $quoted = $name) =~ s/"/""/g;
	$node->safe_psql('postgres', qq{
		CREATE SCHEMA "a.b";
		CREATE TABLE "a.b"."$quoted" (k1 integer, k2 integer, "$quoted" integer DEFAULT 0, PRIMARY KEY (k1, k2));
		INSERT INTO "a.b"."$quoted" SELECT i % 3, i FROM generate_series(1, 9) i});
	$session->query(update(qq{'"a.b"."$quoted"', '"$quoted" = "$quoted"."$quoted" + 1', '"$quoted"."$quoted" = 0', batch_size => 2}));
	is($node->safe_psql('postgres', qq{SELECT min("$quoted"), max("$quoted") FROM "a.b"."$quoted"}), '1|1', "a table called $name");
	is(scalar(split ' ', arrived($name)), 9, "a table called $name: announced");
	$node->safe_psql('postgres', 'SET client_min_messages = warning; DROP SCHEMA "a.b" CASCADE');
}

# ---- partitions, shards, large values ---------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE part (id integer PRIMARY KEY, v integer DEFAULT 0) PARTITION BY HASH (id);
	CREATE TABLE part_0 (v integer, id integer NOT NULL);
	ALTER TABLE part ATTACH PARTITION part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	INSERT INTO part SELECT i, 0 FROM generate_series(1, 20) i;
	SELECT redstream.attach('part')});
$session->query(update(q{'part', 'v = v + 1', batch_size => 3}));
is($node->safe_psql('postgres', 'SELECT min(v), max(v) FROM part'), '1|1', 'partitioned: every row is updated once');
is(arrived('part'), join(' ', 1 .. 20), 'partitioned: and announced once, in the order of the whole');
$session->query(update(q{'part_0', 'v = v + 1', batch_size => 3}));
is($node->safe_psql('postgres', 'SELECT min(v), max(v) FROM part_0'), '2|2', 'a partition: every row is updated once');
is($node->safe_psql('postgres', 'SELECT max(v) FROM part_1'), 1, 'a partition: and no other');
is(arrived('part'), $node->safe_psql('postgres', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM part_0}), 'a partition: announced');

$node->safe_psql('postgres', q{
	CREATE TABLE sharded (id integer PRIMARY KEY, v integer DEFAULT 0);
	INSERT INTO sharded SELECT generate_series(1, 40);
	SELECT redstream.attach('sharded', shards => 2)});
$session->query(update(q{'sharded', 'v = v + 1', batch_size => 7}));
is(join(' ', sort { $a <=> $b } map { split ' ', arrived("sharded-$_") } 0, 1), join(' ', 1 .. 40), 'shards');

# Values that lie outside the row, in payload and key; a function that looks for others while it makes a payload.
$node->safe_psql('postgres', q{
	CREATE TABLE large (id text PRIMARY KEY, n integer, v integer DEFAULT 0, big text);
	ALTER TABLE large ALTER big SET STORAGE EXTERNAL;
	INSERT INTO large SELECT repeat('kä', 3000) || i, i, 0, repeat('b' || i, 20000) FROM generate_series(1, 5) i;
	CREATE FUNCTION describe(large) RETURNS json LANGUAGE plpgsql AS $$
	DECLARE
		others bigint;
	BEGIN
		SELECT count(*) INTO others FROM large WHERE big <> $1.big;
		RETURN json_build_object('n', $1.n, 'big', $1.big, 'others', others);
	END $$;
	SELECT redstream.attach('large', payload_function => 'describe')});
$output = $session->query(enqueue(q{'large', batch_size => 2}));
is(arrived('large'), join(' ', map { sprintf '{"n":%d,"big":"%s","others":4}', $_, "b$_" x 20000 } 1 .. 5), 'large values');
my ($place) = places($output);
is($place, q('{) . 'kä' x 3000 . q(2}'), 'a long key is told in full');
$session->query(update("'large', 'v = v + 1', batch_size => 2, start_after => $place"));
is(scalar(split ' ', arrived('large')), 6, 'and can be gone on from');
is($node->safe_psql('postgres', q{SELECT string_agg(v::text, ' ' ORDER BY n) FROM large}), '0 0 1 1 1', 'the rows behind it are updated');

# ---- memory ---------------------------------------------------------------------------------------------------

# A trigger looks how much the session has, early and late.
make_item(3000, q{payload => ARRAY['id', 't']});
$node->safe_psql('postgres', q{
	CREATE TABLE used (id integer, bytes bigint);
	CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO used SELECT NEW.id, sum(total_bytes) FROM pg_backend_memory_contexts;
		RETURN NEW;
	END $$;
	CREATE TRIGGER look BEFORE UPDATE ON item FOR EACH ROW WHEN (OLD.id IN (1000, 3000)) EXECUTE FUNCTION look()});
$session->query('SET client_min_messages = warning; SET synchronous_commit = off;' . update(q{'item', 'v = v + 1', batch_size => 1}));
cmp_ok($node->safe_psql('postgres', 'SELECT max(bytes) - min(bytes) FROM used'), '<', 1024 * 1024, 'a batch leaves no memory behind');
is($node->safe_psql('postgres', 'SELECT count(*) FROM used'), 2, 'as was looked at twice');

is_deeply([ crashes($node) ], [], 'no crash');
$session->close;
$node->stop;
done_testing();
