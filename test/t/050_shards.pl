# Shards: which of its streams a row is announced on, compared with what the script test/shard-table
# says of its key; what their names are; and that each is a stream of its own.

use strict;
use warnings;

use Digest::SHA qw(sha1_hex);
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;

# no worker: what is moved and trimmed is what this test has moved and trimmed
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody', 'redstream.timeout' => '30s');
$node->safe_psql('postgres',
	q{CREATE DATABASE utf8 ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('postgres',
	q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql($_, 'CREATE EXTENSION redstream') foreach qw(utf8 latin1);

sub query { return $node->safe_psql('utf8', $_[0]); }

# Runs SQL that fails, and compares the message.
sub refused
{
	my ($what, $sql, $error) = @_;
	$node->psql('utf8', $sql, stderr => \my $stderr);
	like($stderr, $error, $what);
	return;
}

# The shards of keys, as the script says; and as Perl says, for many.
sub table_of
{
	my ($shards, @keys) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/keys';

	open(my $in, '>', $file) or die "$file: $!";
	print $in map { "$_\n" } @keys;
	close $in;
	my @lines = split /\n/, `test/shard-table $shards < $file`;
	die 'test/shard-table failed' if $? != 0;
	return @lines;
}

sub shards_of { return map { /(\d+)$/ } table_of(@_); }

sub shard_of
{
	my ($shards, $key) = @_;
	return hex(substr sha1_hex($key), 0, 4) % $shards;
}

# What committed SQL brings to the shards of a stream: "shard: payload", sorted by shard.
sub arrived
{
	my ($stream, $shards) = @_;
	my @arrived;

	settle($node, $redis);
	foreach my $shard (0 .. $shards - 1)
	{
		$redis->command('DEL', "redstream:stream:$stream-$shard.delay");
		push @arrived,
		  map { "$shard: $_->[1]{payload}" } take($redis, "redstream:stream:$stream-$shard");
	}
	return \@arrived;
}

# ---- the rule -----------------------------------------------------------------------------

# types of the key => [SQL of a key => its text, ...]; quotes, backslashes and colons are in it as they are
my @keys = (
	'integer' => [ '1' => '1', '-1' => '-1', '2147483647' => '2147483647' ],
	'bigint' => [ '9223372036854775807' => '9223372036854775807', '-42' => '-42' ],
	'numeric' => [ '1.50' => '1.50', '-0.001' => '-0.001', q{'NaN'} => 'NaN' ],
	'boolean' => [ 'true' => 'true', 'false' => 'false' ],
	'uuid' => [ q{'7F000000-ABCD-4000-8000-00000000000F'} => '7f000000-abcd-4000-8000-00000000000f' ],
	'text' => [
		q{'plain'} => 'plain', q{'it''s "so" \o/'} => q{it's "so" \o/},
		q{'größer 😀'} => 'größer 😀', q{'  two spaces '} => '  two spaces ', q{''} => '',
		q{E'tab\tand \x7f'} => "tab\tand \x7f" ],
	'timestamptz' => [
		q{'2026-01-31 12:00:00+00'} => '2026-01-31 12:00:00+00',
		q{'2026-07-01 02:00:00.25+02'} => '2026-07-01 00:00:00.25+00' ],
	'interval' => [ q{'1 day 90 minutes'} => '1 day 01:30:00' ],
	'float8' => [ '0.1' => '0.1' ],
	'bytea' => [ q{'\xDEAD'} => '\xdead' ],
	'jsonb' => [ q{'{"a": [1, 2]}'} => '{"a":[1,2]}' ],
	'integer, text' => [ q{7, 'a:b'} => '7:a:b', q{-7, ''} => '-7:' ],
	'text, text' => [ q{'a:b', 'c'} => 'a:b:c', q{'a', 'b:c'} => 'a:b:c' ],
	'boolean, timestamptz, uuid' =>
	  [ q{true, '2026-01-31 12:00+01', '7F000000-ABCD-4000-8000-00000000000F'} =>
		  'true:2026-01-31 11:00:00+00:7f000000-abcd-4000-8000-00000000000f' ],
);

# Settings that the text of a key is not to depend on.
my $settings = q{SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601';
	SET extra_float_digits = -5; SET bytea_output = 'escape';};

my $tables = 0;
foreach my $shards (3, 7, 16)
{
	my (@texts, @found);
	my $n = 0;
	for (my $i = 0; $i < @keys; $i += 2)
	{
		my ($types, @rows) = ($keys[$i], @{ $keys[ $i + 1 ] });
		my $table = 'key_' . ++$tables;
		my $columns = 0;
		my @columns = map { 'k' . ++$columns . " $_" } split /, /, $types;
		my $key = join ', ', map { "k$_" } 1 .. $columns;

		query("CREATE TABLE $table (n integer, " . join(', ', @columns) . ", PRIMARY KEY ($key));
			SELECT redstream.attach('$table', 'keys', payload => ARRAY['n'], shards => $shards)");
		while (my ($sql, $text) = splice @rows, 0, 2)
		{
			query("$settings INSERT INTO $table VALUES ($n, $sql)");
			push @texts, $text;
			$n++;
		}
	}
	/^(\d+): \{"n":(\d+)\}$/ and push @{ $found[$2] }, $1 foreach @{ arrived('keys', $shards) };
	my @lines = table_of($shards, @texts);
	note("key and shard of $shards:\n" . join("\n", @lines));
	cmp_ok($n, '>=', 20, "$n keys");
	is_deeply([ map { "$texts[$_] @{ $found[$_] || ['nowhere'] }" } 0 .. $#texts ], \@lines,
		"$shards shards: each row arrives where the script says");
	is_deeply([ map { shard_of($shards, $_) } @texts ], [ shards_of($shards, @texts) ],
		'which is what Perl says');
	query("DROP TABLE key_$_") foreach $tables - @keys / 2 + 1 .. $tables;
}

# Text is UTF-8 whatever the database's encoding.
$node->safe_psql('latin1', q{
	SET client_encoding = 'UTF8';
	CREATE TABLE latin (name text PRIMARY KEY);
	SELECT redstream.attach('latin', shards => 16);
	INSERT INTO latin VALUES ('größer');});
is_deeply(arrived('latin', 16), [ (shards_of(16, 'größer'))[0] . ': {"name":"größer"}' ],
	'a key in a database with another encoding');

# ---- changes ----------------------------------------------------------------------------------

# Three keys, the first two on different shards and the third with the first.
my %by_shard;
push @{ $by_shard{ shard_of(3, $_) } }, $_ foreach 1 .. 30;
my ($one, $third) = @{ $by_shard{0} };
my ($two) = @{ $by_shard{2} };

query(q{
	CREATE TABLE item (id integer PRIMARY KEY, name text);
	SELECT redstream.attach('item', shards => 3)});

sub arrives
{
	my ($what, $sql, $expected, $stream) = @_;
	query($sql);
	is_deeply(arrived(defined $stream ? $stream : 'item', 3), $expected, $what);
	return;
}

arrives('INSERT', "INSERT INTO item VALUES ($two, 'a'), ($one, 'a')",
	[ "0: {\"id\":$one}", "2: {\"id\":$two}" ]);
arrives('DELETE', "DELETE FROM item WHERE id = $two", [ "2: {\"id\":$two}" ]);
arrives('UPDATE', "UPDATE item SET name = 'b'", [ "0: {\"id\":$one}" ]);
arrives('UPDATE to another shard', "UPDATE item SET id = $two",
	[ "0: {\"id\":$one}", "2: {\"id\":$two}" ]);
arrives('COPY', "COPY item (id) FROM PROGRAM 'echo $one'", [ "0: {\"id\":$one}" ]);
arrives('TRUNCATE', 'TRUNCATE item', [ "0: {\"id\":$one}", "2: {\"id\":$two}" ]);

query(q{SELECT redstream.attach('item', payload => ARRAY['name'], columns => ARRAY['name'], shards => 3)});
arrives('a payload without the key', "INSERT INTO item VALUES ($one, 'a')", ['0: {"name":"a"}']);
arrives('UPDATE to another shard', "UPDATE item SET id = $two", [ '0: {"name":"a"}', '2: {"name":"a"}' ]);
arrives('to another shard and payload', "UPDATE item SET id = $one, name = 'b'",
	[ '0: {"name":"b"}', '2: {"name":"a"}' ]);
arrives('to another key of the same shard', "UPDATE item SET id = $third", ['0: {"name":"b"}']);
query(q{
	CREATE FUNCTION named(item) RETURNS json LANGUAGE sql AS $$ SELECT json_build_array($1.name) $$;
	SELECT redstream.attach('item', payload_function => 'named', columns => ARRAY['name'], shards => 3)});
arrives('the same with a payload function', "UPDATE item SET id = $two", [ '0: ["b"]', '2: ["b"]' ]);
arrives('and nothing that is looked at changed', "UPDATE item SET name = 'b'", []);

# The key in the order of the root's columns, wherever they are in a partition.
query(q{
	CREATE TABLE part (region text, id integer, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
	CREATE TABLE part_eu (gone integer, id integer NOT NULL, region text NOT NULL);
	ALTER TABLE part_eu DROP gone;
	ALTER TABLE part ATTACH PARTITION part_eu FOR VALUES IN ('eu');
	SELECT redstream.attach('part', shards => 3)});
arrives("a partition's key", q{INSERT INTO part VALUES ('eu', 5); INSERT INTO part_eu VALUES (6, 'eu');},
	[ sort map { shard_of(3, "eu:$_") . qq(: {"region":"eu","id":$_}) } 5, 6 ], 'part');

# A stream that was used before the namespace changed, in one session.
my $session = Redstream::Session->new($node, 'utf8');
query("SELECT redstream.attach('item', shards => 3); DELETE FROM item; INSERT INTO item VALUES ($one)");
arrived('item', 3);
$session->query("UPDATE item SET name = 'x'");
reconfigure($node, 'redstream.namespace' => 'shop');
wait_until('the namespace', sub { $session->query('SHOW redstream.namespace') eq 'shop' });
$session->query("UPDATE item SET name = 'y'");
wait_until('the message', sub { $redis->payloads('shop:redstream:stream:item-0') });
is_deeply([ $redis->payloads('shop:redstream:stream:item-0') ], [ "{\"id\":$one}" ],
	'another namespace');
reconfigure($node, 'redstream.namespace' => '');
$session->close;
is_deeply(arrived('item', 3), [ "0: {\"id\":$one}" ], 'and the one before');

# The primary key goes after the attachment.
query('ALTER TABLE item DROP CONSTRAINT item_pkey');
refused('the primary key is gone', "INSERT INTO item VALUES (99)",
	qr/^psql:\S+ ERROR:  table "item" has no primary key any more to be announced\nHINT:  Add one, call redstream\.attach\(\) again with a payload, or redstream\.detach\(\)/m);
query(q{
	CREATE TABLE keyed (id integer PRIMARY KEY, name text);
	SELECT redstream.attach('keyed', payload => ARRAY['name'], shards => 3);
	ALTER TABLE keyed DROP CONSTRAINT keyed_pkey});
refused('though it is not in the payload', "INSERT INTO keyed VALUES (99)",
	qr/^psql:\S+ ERROR:  table "keyed" has no primary key any more to choose the shard by\nHINT:  Add one, call redstream\.attach\(\) again without shards, or redstream\.detach\(\)/m);
arrives('another one is there', qq{
	ALTER TABLE keyed ADD PRIMARY KEY (name);
	INSERT INTO keyed VALUES (99, '$two')}, [ qq(2: {"name":"$two"}) ], 'keyed');

# ---- large transactions ---------------------------------------------------------------------------

query(q{
	CREATE TABLE large (id integer PRIMARY KEY);
	SELECT redstream.attach('large', shards => 7);
	SET redstream.transaction_buffer = '64kB';
	BEGIN;
	INSERT INTO large SELECT generate_series(1, 20000);
	SAVEPOINT a;
	INSERT INTO large SELECT generate_series(20001, 30000);
	ROLLBACK TO a;
	INSERT INTO large SELECT generate_series(30001, 31000);
	COMMIT});
my @ids = (1 .. 20000, 30001 .. 31000);
is_deeply(
	arrived('large', 7),
	[ map { my $shard = $_; map { "$shard: {\"id\":$_}" } grep { shard_of(7, $_) == $shard } @ids } 0 .. 6 ],
	'a large transaction arrives on all shards, in order, without what was rolled back');

# ---- names ------------------------------------------------------------------------------------------

# The streams of the one table that is attached, to this one.
sub streams_of
{
	my ($stream, $shards) = @_;
	my $streams = query("
		SELECT redstream.attach('item', '$stream', shards => $shards);
		SELECT string_agg(stream, ' ' ORDER BY stream) FROM redstream.streams");
	return $streams =~ s/^\n//r;
}

query('DROP TABLE large, keyed, part; ALTER TABLE item ADD PRIMARY KEY (id)');
$redis->command('FLUSHALL');
my @names = (
	'plain' => 'plain-0 plain-1',
	'{products}' => '{products-0} {products-1}',
	'shop {products} new' => 'shop {products-0} new shop {products-1} new',
	'{}x' => '{}x-0 {}x-1',
	'{}{x}' => '{}{x}-0 {}{x}-1',
	'{x' => '{x-0 {x-1',
	'x}y' => 'x}y-0 x}y-1',
	'}{x}' => '}{x-0} }{x-1}',
	'{{x}}' => '{{x-0}} {{x-1}}',
);
while (my ($stream, $expected) = splice @names, 0, 2)
{
	is(streams_of($stream, 2), $expected, "names of $stream");
}
my $longest = 'x' x 510;
is(streams_of($longest, 2), "$longest-0 $longest-1", 'the longest name with a number');
refused('a name that is too long only with its number',
	"SELECT redstream.attach('item', '$longest', shards => 11)",
	qr/ERROR:  invalid stream name: .*512 bytes/);
refused('a name that is none without its number', q{SELECT redstream.attach('item', 'item.delay', shards => 2)},
	qr/ERROR:  invalid stream name: .*\.delay/);
foreach my $shards (0, -1, 1025)
{
	refused("shards => $shards", "SELECT redstream.attach('item', shards => $shards)",
		qr/ERROR:  shards must be between 1 and 1024/);
}
query('CREATE TABLE keyless (a integer)');
refused('no primary key', q{SELECT redstream.attach('keyless', payload => ARRAY['a'], shards => 2)},
	qr/ERROR:  table "keyless" has no primary key to choose the shard by\nHINT:  Add one, or do without shards/);
is(streams_of('one', 'NULL'), 'one', 'shards => NULL is one');
is(scalar(split / /, streams_of('many', 1024)), 1024, 'shards => 1024');

query(q{SELECT redstream.attach('item', '{products}', shards => 3)});
arrives('a name with a hash tag', "INSERT INTO item VALUES ($one + 300, 'a')", [], '{products}');
is_deeply([ $redis->payloads('redstream:stream:{products-' . shard_of(3, $one + 300) . '}') ],
	[ '{"id":' . ($one + 300) . '}' ], 'is where the message goes');

# ---- names that are taken -------------------------------------------------------------------------------

query(q{CREATE TABLE a (id integer PRIMARY KEY); CREATE TABLE "a-0" (id integer PRIMARY KEY);
	CREATE TABLE "a-3" (id integer PRIMARY KEY); SELECT redstream.attach('"a-0"'), redstream.attach('"a-3"')});
refused('a default name, one shard of which is taken', q{SELECT redstream.attach('a', shards => 3)},
	qr/ERROR:  table "public\.a-0" already announces to stream "a-0"\nHINT:  Name the stream/);
query(q{SELECT redstream.attach('a', 'a', shards => 3); SELECT redstream.detach('"a-0"')});
pass('the same name, given');
refused('a default name that is a shard of another table', q{SELECT redstream.attach('"a-0"')},
	qr/ERROR:  table "public\.a" already announces to stream "a-0"\nHINT:  Name the stream/);
refused('one of two shards is', q{SELECT redstream.attach('a', shards => 4)},
	qr/ERROR:  table "public\.a-3" already announces to stream "a-3"/);
query(q{SELECT redstream.attach('a', shards => 2); SELECT redstream.attach('a', shards => 3)});
pass('its own shards are not');
query('DROP TABLE a, "a-0", "a-3"');

# ---- delayed and trimmed --------------------------------------------------------------------------------

$redis->command('FLUSHALL');
query(q{SELECT redstream.attach('item', 's', shards => 3, delay => '0');
	DELETE FROM item;
	INSERT INTO item SELECT generate_series(1, 30)});
settle($node, $redis);
my @sizes = map { $redis->command('XLEN', "redstream:stream:s-$_") } 0 .. 2;
is(query('SELECT stream, delay FROM redstream.streams ORDER BY 1'), "s-0|00:00:00\ns-1|00:00:00\ns-2|00:00:00",
	'each shard is a stream');
is(query('SELECT stream, moved FROM redstream.run_delayer() ORDER BY 1'),
	join("\n", map { "s-$_|$sizes[$_]" } 0 .. 2), 'each is delayed');
is_deeply([ map { $redis->command('XLEN', "redstream:stream:s-$_") } 0 .. 2 ], [ map { 2 * $_ } @sizes ],
	'on its own main stream');
query(q{SELECT redstream.add_consumer('s-0', 'c', '$'), redstream.add_consumer('s-1', 'c', '0-0')});
is(query('SELECT stream, trimmed FROM redstream.run_trimmer()'), 's-0|' . 2 * $sizes[0],
	'each is trimmed for its own consumers');
is(query(q{SELECT stream || ' ' || lag FROM redstream.consumers ORDER BY 1}), "s-0 0\ns-1 " . 2 * $sizes[1],
	'which are behind by their own');

is_deeply([ crashes($node) ], [], 'no crash');
done_testing();
