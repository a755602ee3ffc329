# The bytes of messages: every type, whatever the session's settings are.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '30s');

# transaction ids beyond 32 bits
$node->stop;
command_ok([ 'pg_resetwal', '--epoch=5', '-D', $node->data_dir ], 'the epoch is 5');
$node->start;

$node->safe_psql('postgres',
	q{CREATE DATABASE unicode ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('unicode', q{
	CREATE EXTENSION redstream;
	CREATE TYPE mood AS ENUM ('ok', 'so "so"', E'na\u00EFve');
	CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
	CREATE DOMAIN very_positive AS positive CHECK (VALUE > 9);
	CREATE DOMAIN label AS text;
	CREATE DOMAIN moment AS timestamptz;
	CREATE DOMAIN flag AS boolean;
	CREATE DOMAIN document AS json;
	CREATE DOMAIN days AS date[];
	CREATE TYPE pair AS (a integer, b text, c timestamptz, d float8);
	CREATE TABLE "Odd Name" ();
});

# A string as JSON; only for characters without an escape.
sub quoted { return qq("$_[0]"); }

my $controls = join '', map {
	my $n = $_;
	{ 8 => '\b', 9 => '\t', 10 => '\n', 12 => '\f', 13 => '\r' }->{$n} || sprintf '\u%04x', $n;
} 1 .. 31;
my $printable = join '', map { my $c = chr; $c =~ /["\\]/ ? "\\$c" : $c } 32 .. 127;

# type => [SQL expression => JSON, ...]; "-" before the type: it cannot be a key
my @cases = (
	'int2' => [ '-32768' => '-32768', '0' => '0', '32767' => '32767' ],
	'int4' => [ '-2147483648' => '-2147483648', '2147483647' => '2147483647' ],
	'int8' => [ "'-9223372036854775808'" => '-9223372036854775808',
		'9223372036854775807' => '9223372036854775807' ],
	'text' => [
		q{''} => q{""},
		q{'plain'} => q{"plain"},
		q{'a "quoted" word'} => q{"a \"quoted\" word"},
		q{'back\slash\\\\'} => q{"back\\\\slash\\\\\\\\"},
		q{'a/b </script>'} => q{"a/b </script>"},
		q{E'tab\tline\nreturn\rfeed\fback\b'} => q{"tab\tline\nreturn\rfeed\fback\b"},
		q{E'\x01\x1f\x7f'} => qq{"\\u0001\\u001f\x7f"},
		q{E'\u00e9\u20ac\u2028'} => qq{"\xc3\xa9\xe2\x82\xac\xe2\x80\xa8"},
		q{E'\U0001D11E\U0001F600\U0010FFFF'} =>
		  qq{"\xf0\x9d\x84\x9e\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf"},
		q{(SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 31) i)} =>
		  quoted($controls),
		q{(SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(32, 127) i)} =>
		  quoted($printable),
		q{'{"not":"json"}'} => q{"{\"not\":\"json\"}"},
	],
	'varchar(10)' => [ q{'ab '} => q{"ab "} ],
	'char(5)' => [ q{'ab'} => q{"ab   "}, q{E'\u00e9'} => qq{"\xc3\xa9    "} ],
	'name' => [ q{'na"me'} => q{"na\"me"} ],
	'"char"' => [ q{'"'} => q{"\""} ],
	'uuid' => [ q{'7F000000-ABCD-4000-8000-00000000000f'} =>
		  q{"7f000000-abcd-4000-8000-00000000000f"} ],
	'boolean' => [ 'true' => 'true', 'false' => 'false' ],
	'numeric' => [
		'0' => '0',
		'-1.50' => '-1.50',
		'0.000000000000000000000000001' => '0.000000000000000000000000001',
		"repeat('9', 500)::numeric" => '9' x 500,
		"'1e-20'" => '0.' . '0' x 19 . '1',
		"'NaN'" => '"NaN"', "'Infinity'" => '"Infinity"', "'-Infinity'" => '"-Infinity"',
	],
	'numeric(6,2)' => [ '3.14159' => '3.14' ],
	'float4' => [
		'0.1' => '0.1', '3.4028235e38' => '3.4028235e+38', '1e-45' => '1e-45',
		'16777216' => '1.6777216e+07', "'-0'" => '-0',
		"'NaN'" => '"NaN"', "'Infinity'" => '"Infinity"', "'-Infinity'" => '"-Infinity"',
	],
	'float8' => [
		'0.1' => '0.1', '0.1::float8 + 0.2::float8' => '0.30000000000000004',
		'1.7976931348623157e308' => '1.7976931348623157e+308', '5e-324' => '5e-324',
		'100000' => '100000', '1e22' => '1e+22', "'-0'" => '-0',
		"'NaN'" => '"NaN"', "'Infinity'" => '"Infinity"', "'-Infinity'" => '"-Infinity"',
	],
	'timestamptz' => [
		q{'2024-01-02 03:04:05+00'} => q{"2024-01-02 03:04:05+00"},
		q{'2024-07-02 03:04:05.678901+05:45'} => q{"2024-07-01 21:19:05.678901+00"},
		q{'0044-03-15 12:00:00+00 BC'} => q{"0044-03-15 12:00:00+00 BC"},
		q{'infinity'} => q{"infinity"}, q{'-infinity'} => q{"-infinity"},
	],
	'timestamp' => [ q{'2024-01-02 03:04:05.5'} => q{"2024-01-02 03:04:05.5"} ],
	'date' => [ q{'2024-01-02'} => q{"2024-01-02"}, q{'12345-01-02'} => q{"12345-01-02"} ],
	'time' => [ q{'03:04:05.000001'} => q{"03:04:05.000001"} ],
	'timetz' => [ q{'03:04:05-03:30'} => q{"03:04:05-03:30"} ],
	'interval' => [
		q{'1 year 2 mons 3 days 04:05:06.789'} => q{"1 year 2 mons 3 days 04:05:06.789"},
		q{'-1 days +02:03:00'} => q{"-1 days +02:03:00"},
		q{'00:00'} => q{"00:00:00"},
	],
	'bytea' => [ q{'\x00ff5c'} => q{"\\\\x00ff5c"}, q{''} => q{"\\\\x"} ],
	'money' => [ '1234567.89::numeric' => q{"$1,234,567.89"}, '-1.5::numeric' => q{"-$1.50"} ],
	'mood' => [ q{'ok'} => q{"ok"}, q{'so "so"'} => q{"so \"so\""},
		q{E'na\u00EFve'} => qq{"na\xc3\xafve"} ],
	'positive' => [ '7' => '7' ],
	'very_positive' => [ '10' => '10' ],
	'label' => [ q{'x"y'} => q{"x\"y"} ],
	'moment' => [ q{'2024-01-02 03:04:05+00'} => q{"2024-01-02 03:04:05+00"} ],
	'flag' => [ 'true' => 'true' ],
	'days' => [ q{'{2024-01-02,infinity}'} => q{"{2024-01-02,infinity}"} ],
	'int4[]' => [ q{'{1,2,NULL}'} => q{"{1,2,NULL}"}, q{'{}'} => q{"{}"},
		q{'[0:1]={1,2}'} => q{"[0:1]={1,2}"} ],
	'text[]' => [ q{ARRAY['a', 'b c', NULL, 'NULL', 'q"b\s']} =>
		  q{"{a,\"b c\",NULL,\"NULL\",\"q\\\\\"b\\\\\\\\s\"}"} ],
	'timestamptz[]' => [ q{ARRAY['2024-01-02 03:04:05+00'::timestamptz]} =>
		  q{"{\"2024-01-02 03:04:05+00\"}"} ],
	'interval[]' => [ q{ARRAY['1 day 2 hours'::interval]} => q{"{\"1 day 02:00:00\"}"} ],
	'bytea[]' => [ q{ARRAY['\x01'::bytea]} => q{"{\"\\\\\\\\x01\"}"} ],
	'float8[]' => [ q{'{0.1,NaN,-Infinity}'} => q{"{0.1,NaN,-Infinity}"} ],
	'money[]' => [ q{ARRAY[1234::money]} => q{"{\"$1,234.00\"}"} ],
	'int4range' => [ q{'[1,5)'} => q{"[1,5)"}, q{'empty'} => q{"empty"} ],
	'tstzrange' => [ q{'["2024-01-02 03:04:05+00",)'} => q{"[\"2024-01-02 03:04:05+00\",)"} ],
	'daterange' => [ q{'[2024-01-02,2024-02-01)'} => q{"[2024-01-02,2024-02-01)"} ],
	'pair' => [ q{ROW(1, 'x y', '2024-01-02 03:04:05+00', 0.1)::public.pair} =>
		  q{"(1,\"x y\",\"2024-01-02 03:04:05+00\",0.1)"} ],
	'oid' => [ '4294967295' => '"4294967295"' ],
	'regclass' => [ q{'pg_catalog.pg_class'} => q{"pg_class"},
		q{'public."Odd Name"'} => q{"public.\"Odd Name\""} ],
	'regtype' => [ q{'pg_catalog.int4'} => q{"integer"}, q{'public.mood'} => q{"public.mood"} ],
	'inet' => [ q{'192.168.0.1/24'} => q{"192.168.0.1/24"} ],
	'macaddr' => [ q{'08:00:2b:01:02:03'} => q{"08:00:2b:01:02:03"} ],
	'bit(3)' => [ q{B'101'} => q{"101"} ],
	'pg_lsn' => [ q{'16/B374D848'} => q{"16/B374D848"} ],
	'xid8' => [ q{'21474836480'} => q{"21474836480"} ],
	'-point' => [ q{'(0.1,1e300)'} => q{"(0.1,1e+300)"} ],
	'tsvector' => [ q{'''b'' ''a'':1'} => q{"'a':1 'b'"} ],
	'-json' => [
		q{' { "b" : [ 1 , 2 ] , "a" : " x " , "b" : null } '} => q{{"b":[1,2],"a":" x ","b":null}},
		q{'123456789012345678901234567890.50'} => q{123456789012345678901234567890.50},
		q{E'"\\\\u00e9\\\\/ \\\\" x\\\\\\\\" '} => q{"\u00e9\/ \" x\\\\"},
		q{E'[ 1e5,\n\t-0.0 ]'} => q{[1e5,-0.0]},
		q{'null'} => 'null', q{'"{ }"'} => q{"{ }"}, q{'true'} => 'true',
	],
	'-document' => [ q{'{ "a" : 1 }'} => q{{"a":1}} ],
	'jsonb' => [
		q{'{"bb": [1, 2.50], "a": "x y", "a": null}'} => q{{"a":null,"bb":[1,2.50]}},
		q{'{}'} => '{}', q{'" "'} => q{" "},
	],
);

my %hostile = (
	DateStyle => 'German, DMY',
	TimeZone => 'America/St_Johns',
	IntervalStyle => 'sql_standard',
	bytea_output => 'escape',
	extra_float_digits => '-15',
	lc_monetary => 'C.UTF-8',
	search_path => '',
	quote_all_identifiers => 'on',
	client_encoding => 'LATIN1');
my $hostile = join ";\n", map { "SET $_ = '$hostile{$_}'" } sort keys %hostile;

my (@names, $create, $insert, %expected);
for (my $i = 0; $i < @cases; $i += 2)
{
	my ($type, @values) = ($cases[$i], @{ $cases[ $i + 1 ] });
	my $key = $type =~ s/^-// ? '' : 'PRIMARY KEY';
	my $table = sprintf 'p%02d', $i / 2;

	push @names, [ $table, $type ];
	$create .= "CREATE TABLE $table (v $type $key);\n"
	  . "SELECT redstream.attach('$table', payload => ARRAY['v']);\n";
	while (my ($sql, $json) = splice @values, 0, 2)
	{
		$insert .= "INSERT INTO public.$table VALUES ($sql);\n";
		push @{ $expected{$table} }, qq({"v":$json});
	}
}
my $delete = join '', map { "DELETE FROM $_->[0];\n" } @names;
$node->safe_psql('unicode', $create);

# Runs SQL that touches all the tables and compares what each announces.
sub types_ok
{
	my ($sql, $what) = @_;

	$node->safe_psql('unicode', $sql);
	settle($node, $redis);
	foreach (@names)
	{
		my ($table, $type) = @$_;
		my $stream = "redstream:stream:$table";
		my @delayed = map { $_->[1]{payload} } take($redis, "$stream.delay");

		is_deeply([ map { $_->[1] } take($redis, $stream) ],
			[ map { { payload => $_ } } @{ $expected{$table} } ], "$type $what");
		is_deeply(\@delayed, $expected{$table}, "$type $what, delayed");
	}
	return;
}

types_ok($insert, 'by default');
types_ok("$hostile;\nSET search_path = public;\nBEGIN;\n$delete COMMIT;", 'with hostile settings');
types_ok("$hostile;\nBEGIN;\n$insert COMMIT;", 'with hostile settings, inserted');

# The session's settings are the session's again afterwards, also after an error.
my $show = join ' || $$|$$ || ', map { "current_setting('$_')" } sort keys %hostile;
my $before = $node->safe_psql('unicode', "$hostile; SELECT $show;");
$node->psql('unicode', qq{
	$hostile;
	INSERT INTO public.p00 VALUES (1);
	DELETE FROM public.p00;
	SELECT $show;
	INSERT INTO public.p00 VALUES (2), (2);
	SELECT $show;}, on_error_stop => 0, stdout => \my $after);
is($after, "$before\n$before", "settings are put back");

# ---- names, order, nulls ---------------------------------------------------------

sub announced_ok
{
	my ($stream, $sql, $expected, $what, $database) = @_;
	is_deeply([ announced($node, $redis, $stream, $sql, $database || 'unicode') ], $expected, $what);
	return;
}

announced_ok('composite', q{
	CREATE TABLE composite (a text, b integer, c date, d text, PRIMARY KEY (c, a, b));
	SELECT redstream.attach('composite');
	INSERT INTO composite VALUES ('x', 1, '2024-01-02', 'y');},
	['{"a":"x","b":1,"c":"2024-01-02"}'], 'a composite key is in the order of columns');
announced_ok('composite', q{
	SELECT redstream.attach('composite', payload => ARRAY['d', 'b']);
	UPDATE composite SET d = NULL;},
	[ '{"d":"y","b":1}', '{"d":null,"b":1}' ], 'a payload is in the order it was told');
announced_ok('nulls', q{
	CREATE TABLE nulls (id integer PRIMARY KEY, t text, n numeric, b boolean, j jsonb, ts timestamptz, a integer[]);
	SELECT redstream.attach('nulls', payload => ARRAY['t', 'n', 'b', 'j', 'ts', 'a', 'id']);
	INSERT INTO nulls VALUES (1);
	INSERT INTO nulls VALUES (2, '', 0, false, 'null', 'epoch', '{}');
	INSERT INTO nulls VALUES (3);},
	[
		'{"t":null,"n":null,"b":null,"j":null,"ts":null,"a":null,"id":1}',
		'{"t":"","n":0,"b":false,"j":null,"ts":"1970-01-01 00:00:00+00","a":"{}","id":2}',
		'{"t":null,"n":null,"b":null,"j":null,"ts":null,"a":null,"id":3}',
	], 'nulls, between rows that have none');
announced_ok("\xc3\xa4 \"b\"", q{
	CREATE TABLE U&"\00e4 ""b""" (U&"k\00e9y ""1"" \005c / \0009" integer PRIMARY KEY);
	SELECT redstream.attach(U&'"\00e4 ""b"""');
	INSERT INTO U&"\00e4 ""b""" VALUES (1);},
	[ "{\"k\xc3\xa9y \\\"1\\\" \\\\ / \\t\":1}" ], 'names of stream and column');

# ---- other encodings -----------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
	CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
$node->safe_psql($_, 'CREATE EXTENSION redstream') foreach qw(latin bytes);

announced_ok("Stra\xc3\x9fe", qq{
	SET client_encoding = 'UTF8';
	CREATE TYPE gr\xc3\xb6\xc3\x9fe AS ENUM ('gro\xc3\x9f');
	CREATE TABLE "Stra\xc3\x9fe" ("Schl\xc3\xbcssel" text PRIMARY KEY, "gr\xc3\xb6\xc3\x9fe" gr\xc3\xb6\xc3\x9fe,
		liste text[], dokument json);
	SELECT redstream.attach('"Stra\xc3\x9fe"', payload => ARRAY['Schl\xc3\xbcssel', 'gr\xc3\xb6\xc3\x9fe', 'liste', 'dokument']);
	INSERT INTO "Stra\xc3\x9fe" VALUES ('\xc3\xa4"\xc3\xbf', 'gro\xc3\x9f', '{\xc3\xb6}', '{ "\xc3\xbc": 1 }');
	}, [ "{\"Schl\xc3\xbcssel\":\"\xc3\xa4\\\"\xc3\xbf\",\"gr\xc3\xb6\xc3\x9fe\":\"gro\xc3\x9f\",\"liste\":\"{\xc3\xb6}\",\"dokument\":{\"\xc3\xbc\":1}}" ],
	'a LATIN1 database announces in UTF-8', 'latin');
is($node->safe_psql('latin', qq{SET client_encoding = 'UTF8'; SELECT redstream.stream_key('Stra\xc3\x9fe')}),
	"redstream:stream:Stra\xc3\x9fe", 'a key in LATIN1');
announced_ok("\xc3\xa4" x 256, qq{
	SET client_encoding = 'UTF8';
	CREATE TABLE narrow (id integer PRIMARY KEY);
	SELECT redstream.attach('narrow', repeat('\xc3\xa4', 256));
	INSERT INTO narrow VALUES (1);}, ['{"id":1}'], 'the longest stream name', 'latin');
is($node->psql('latin', qq{SELECT redstream.attach('narrow', repeat(chr(228), 257))}, stderr => \my $stderr),
	3, 'a name too long in UTF-8 only');
like($stderr, qr/stream name must not be longer than 512 bytes/, '... says so');

announced_ok('bytes', q{
	CREATE TABLE bytes (id text PRIMARY KEY);
	SELECT redstream.attach('bytes');
	INSERT INTO bytes VALUES ('plain'), (E'\xc3\xa4');},
	[ '{"id":"plain"}', "{\"id\":\"\xc3\xa4\"}" ], 'an SQL_ASCII database with UTF-8 in it', 'bytes');
$node->psql('bytes', q{INSERT INTO bytes VALUES (E'\xe4')}, stderr => \$stderr);
like($stderr, qr/ERROR:  invalid byte sequence for encoding "UTF8": 0xe4/,
	'bytes that are not UTF-8 are refused');
$node->psql('bytes', qq{
	CREATE TABLE moments (id text, at timestamptz);
	SELECT redstream.attach('moments', payload => ARRAY['at', 'id']);
	$hostile;
	INSERT INTO moments VALUES (E'\\xe4', 'epoch');
	SELECT current_setting('DateStyle');
	BEGIN;
	SAVEPOINT s;
	INSERT INTO moments VALUES (E'\\xe4', 'epoch');
	ROLLBACK TO s;
	SELECT current_setting('DateStyle');}, on_error_stop => 0, stdout => \$after);
is($after, "\nGerman, DMY\nGerman, DMY", 'settings are put back after such an error');
announced_ok('bytes', q{INSERT INTO bytes VALUES ('next')}, ['{"id":"next"}'],
	'the next one is not', 'bytes');
$node->psql('bytes', q{SELECT redstream.attach('bytes', E'\xe4')}, stderr => \$stderr);
like($stderr, qr/ERROR:  invalid byte sequence for encoding "UTF8": 0xe4/,
	'a stream name that is not UTF-8 is refused');

# ---- fields --------------------------------------------------------------------------

$node->safe_psql('unicode', q{
	CREATE TABLE fields (id integer PRIMARY KEY);
	SELECT redstream.attach('fields');
	BEGIN;
	INSERT INTO fields VALUES (1);
	SAVEPOINT s;
	INSERT INTO fields VALUES (2);
	RELEASE s;
	INSERT INTO fields VALUES (3);
	SAVEPOINT s;
	INSERT INTO fields VALUES (4);
	ROLLBACK TO s;
	INSERT INTO fields VALUES (5);
	COMMIT});
settle($node, $redis);
my ($system, $timeline) = split /\|/, $node->safe_psql('postgres', q{
	SELECT system_identifier, timeline_id FROM pg_control_system(), pg_control_checkpoint()});
my %xmin = map { split /\|/ } split /\n/,
  $node->safe_psql('unicode', 'SELECT id, xmin::text::bigint + (5::bigint << 32) FROM fields');
is(scalar(keys %{ { reverse %xmin } }), 3, 'three subtransactions');
my @delayed = grep { $_->[1]{payload} ne '{"id":4}' } take($redis, 'redstream:stream:fields.delay');
is_deeply([ map { $_->[1] } @delayed ],
	[ map { { payload => qq({"id":$_}), "xact:$system:$timeline" => $xmin{$_} } } 1, 2, 3, 5 ],
	'delay messages have two fields and the id of their subtransaction');
is_deeply([ map { $_->[1] } take($redis, 'redstream:stream:fields') ],
	[ map { { payload => qq({"id":$_}) } } 1, 2, 3, 5 ], 'main messages have one field');

$node->stop;
done_testing();
