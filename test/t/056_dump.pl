# Attachments are triggers: pg_dump keeps them with all that attach() was told, LIKE does
# not copy them, and DROP EXTENSION takes them along.

use strict;
use warnings;
use utf8;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my %settings = ('redstream.timeout' => '30s', 'redstream.databases' => 'nobody');
my $node = new_node('main', $redis, %settings);
my $second = new_node('second', $redis, %settings);
my $dump = $node->basedir . '/dump';

# What SQL in a database prints, as bytes.
sub sql
{
	my ($server, $database, $sql) = @_;
	utf8::encode($sql) if utf8::is_utf8($sql);
	return $server->safe_psql($database, $sql);
}

# What arrived on all streams, sorted: "stream payload"; takes it out.
sub arrived
{
	my ($server) = @_;
	my @found;

	settle($server, $redis);
	foreach my $key (@{ $redis->command('KEYS', 'redstream:stream:*') })
	{
		my @entries = take($redis, $key);
		push @found, map { substr($key, 17) . " $_->[1]{payload}" } @entries unless $key =~ /\.delay$/;
	}
	return join "\n", sort @found;
}

sub same_lines
{
	my ($got, $expected, $what) = @_;
	is_deeply([ split /\n/, $got ], [ split /\n/, $expected ], $what);
	return;
}

# ---- what is dumped -----------------------------------------------------------------------

sql($_, 'postgres', 'CREATE ROLE app LOGIN; CREATE ROLE guest') foreach $node, $second;
sql($node, 'postgres', q{CREATE DATABASE source});
sql($node, 'source', q{
	CREATE EXTENSION redstream;
	GRANT USAGE ON SCHEMA redstream TO app;
	GRANT EXECUTE ON FUNCTION redstream.attach, redstream.detach TO app;
	CREATE SCHEMA shop AUTHORIZATION app;
	CREATE SCHEMA "Schöner ""Laden"".x" AUTHORIZATION app;
	SET SESSION AUTHORIZATION app;

	CREATE TABLE shop.item (id integer PRIMARY KEY, "Preis, €" numeric, seen boolean);
	SELECT redstream.attach('shop.item', 'Artikel', payload => ARRAY['Preis, €', 'id'],
		columns => ARRAY['Preis, €'], delay => '90 minutes', expiry => '1 month 2 days');

	CREATE TYPE shop.state AS ENUM ('new', 'it''s done');
	CREATE FUNCTION shop.shown(shop.state) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 <> 'new' $$;
	CREATE TABLE shop.state_of (id integer PRIMARY KEY, "Old" text, state shop.state);
	SELECT redstream.attach('shop.state_of',
		condition => $$shop.shown(state) OR "Old" = E'a''b\\\\c' OR state_of.id IN (7, 8)$$);

	CREATE TABLE shop.made (id integer PRIMARY KEY, v jsonb);
	CREATE FUNCTION shop."To JSON"(shop.made) RETURNS jsonb LANGUAGE sql AS $$ SELECT $1.v || jsonb_build_object('id', $1.id) $$;
	SELECT redstream.attach('shop.made', payload_function => 'shop."To JSON"');

	CREATE TABLE shop.spread (a integer, b text, PRIMARY KEY (a, b));
	SELECT redstream.attach('shop.spread', '{spread}', shards => 5);
	CREATE TABLE shop.copied (id integer PRIMARY KEY);
	SELECT redstream.attach('shop.copied', replica => true);

	CREATE TABLE shop.part (region text, id integer, n integer, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
	CREATE TABLE shop.part_a PARTITION OF shop.part FOR VALUES IN ('a');
	CREATE TABLE shop.part_b (gone integer, n integer, id integer NOT NULL, region text NOT NULL);
	ALTER TABLE shop.part_b DROP gone;
	ALTER TABLE shop.part ATTACH PARTITION shop.part_b FOR VALUES IN ('b');
	CREATE TABLE shop.part_c PARTITION OF shop.part FOR VALUES IN ('c') PARTITION BY LIST (id);
	CREATE TABLE shop.part_c_1 PARTITION OF shop.part_c DEFAULT;
	SELECT redstream.attach('shop.part', condition => 'n > 0', replica => true);

	CREATE TABLE "Schöner ""Laden"".x"."Grüße; DROP TABLE 'x'" ("I D" integer PRIMARY KEY, "select" text);
	SELECT redstream.attach('"Schöner ""Laden"".x"."Grüße; DROP TABLE ''x''"', E'it''s a \\\\ "stream" — ☃',
		payload => ARRAY['select', 'I D']);
	CREATE TABLE shop.off (id integer PRIMARY KEY);
	SELECT redstream.attach('shop.off'), redstream.detach('shop.off');
	CREATE TABLE shop.disabled (id integer PRIMARY KEY);
	SELECT redstream.attach('shop.disabled');
	ALTER TABLE shop.disabled DISABLE TRIGGER redstream_insert;

	INSERT INTO shop.item VALUES (1, 1), (2, 2);
	INSERT INTO shop.state_of VALUES (1, '', 'new'), (2, '', 'it''s done');
	INSERT INTO shop.made VALUES (1, '{"x": 1}');
	INSERT INTO shop.spread VALUES (1, 'x'), (2, 'y');
	INSERT INTO shop.copied VALUES (1);
	INSERT INTO shop.part VALUES ('a', 1, 1), ('b', 1, 1), ('b', 2, 0), ('c', 1, 1);
	INSERT INTO "Schöner ""Laden"".x"."Grüße; DROP TABLE 'x'" VALUES (1, 'x')});
arrived($node);

my $attachments = q{SELECT "table"::text, a.* FROM redstream.attachments a WHERE stream !~ 'settled' ORDER BY 1};
my $triggers = q{
	SELECT tgrelid::regclass, tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger
	WHERE tgfoid = 'redstream.capture'::regproc AND tgrelid::regclass::text !~ 'settled'
	ORDER BY tgrelid::regclass::text, tgname};
my $rows = q{SELECT (SELECT count(*) FROM shop.item), (SELECT count(*) FROM shop.part), (SELECT count(*) FROM shop.made)};
my $changes = q{
	INSERT INTO shop.item VALUES (3, 3);
	UPDATE shop.item SET seen = true;
	UPDATE shop.item SET "Preis, €" = 4 WHERE id = 2;
	INSERT INTO shop.state_of VALUES (3, '', 'new'), (4, E'a\'b\\\\c', 'new'), (7, '', 'new');
	UPDATE shop.state_of SET state = 'it''s done' WHERE id = 1;
	DELETE FROM shop.state_of WHERE id = 2;
	UPDATE shop.made SET v = '{"y": [1, 2]}';
	INSERT INTO shop.spread VALUES (3, 'z');
	DELETE FROM shop.spread WHERE a = 1;
	SET session_replication_role = replica;
	INSERT INTO shop.item VALUES (9, 9);
	INSERT INTO shop.copied VALUES (2);
	INSERT INTO shop.part VALUES ('a', 3, 1);
	TRUNCATE shop.part_b;
	RESET session_replication_role;
	INSERT INTO shop.part VALUES ('c', 4, 1), ('c', 5, 0);
	UPDATE shop.part SET region = 'b' WHERE id = 4;
	TRUNCATE shop.part, "Schöner ""Laden"".x"."Grüße; DROP TABLE 'x'";
	INSERT INTO shop.off VALUES (1);
	INSERT INTO shop.disabled VALUES (1);
	DELETE FROM shop.disabled};

my %expected = map { $_ => sql($node, 'source', $_) } $attachments, $triggers, $rows;
is(scalar(split /\n/, $expected{$attachments}), 8, 'there is something to be dumped');
$node->command_ok([ 'pg_dump', '--format', $_, '--file', "$dump.$_", 'source' ], "pg_dump, $_") foreach 'plain', 'custom';

sql($node, 'source', $changes);
my $announced = arrived($node);
my @announced = (
	'Artikel {"Preis, €":2,"id":2}', 'Artikel {"Preis, €":3,"id":3}', 'Artikel {"Preis, €":4,"id":2}',
	'state_of {"id":1}', 'state_of {"id":2}', 'state_of {"id":4}', 'state_of {"id":7}',
	'made {"x":1,"id":1}', 'made {"y":[1,2],"id":1}',
	'{spread-2} {"a":1,"b":"x"}', '{spread-0} {"a":3,"b":"z"}',
	'copied {"id":2}',
	map({ qq(part {"region":"$_->[0]","id":$_->[1]}) } [ 'a', 3 ], [ 'b', 1 ], [ 'c', 4 ], [ 'c', 4 ], [ 'b', 4 ], [ 'a', 1 ],
		[ 'a', 3 ], [ 'b', 4 ], [ 'c', 1 ]),
	q(it's a \ "stream" — ☃ {"select":"x","I D":1}),
	'disabled {"id":1}');
utf8::encode($_) foreach @announced;
is($announced, join("\n", sort @announced), 'what the source announces');

# ---- restored ---------------------------------------------------------------------------------

# The database is as the source was when it was dumped.
sub is_restored
{
	my ($what, $server, $database) = @_;

	is(arrived($server), '', "$what: nothing is announced by it");
	same_lines(sql($server, $database, $attachments), $expected{$attachments}, "$what: attachments");
	same_lines(sql($server, $database, $triggers), $expected{$triggers}, "$what: triggers");
	is(sql($server, $database, $rows), $expected{$rows}, "$what: rows");
	sql($server, $database, $changes);
	is(arrived($server), $announced, "$what: announced");
	return;
}

foreach my $server ($node, $second)
{
	my $name = $server->name;
	sql($server, 'postgres', "CREATE DATABASE $_ TEMPLATE template0") foreach 'copy_plain', 'copy_custom';
	$server->command_ok([ qw(psql -XqAt -v ON_ERROR_STOP=1 -d copy_plain -f), "$dump.plain" ], "$name, plain: restore");
	is_restored("$name, plain", $server, 'copy_plain');
	$server->command_ok([ qw(pg_restore --exit-on-error -d copy_custom), "$dump.custom" ], "$name, custom: restore");
	is_restored("$name, custom", $server, 'copy_custom');
	is(sql($server, 'copy_custom', q{SET SESSION AUTHORIZATION app; SELECT redstream.detach('shop.item')}), 't',
		"$name, custom: rights on the functions");
}

# ---- by the owner ---------------------------------------------------------------------------------

# What the owner has, he can dump and restore, where the extension is.
sql($second, 'postgres', 'CREATE DATABASE owned TEMPLATE template0 OWNER app');
sql($second, 'owned', 'CREATE EXTENSION redstream');
{
	local $ENV{PGUSER} = 'app';
	my @schemas = map { ('-n', $_) } 'shop', '"Sch"*';
	$node->command_ok([ 'pg_dump', '-Fc', @schemas, '-f', "$dump.owner", 'copy_plain' ], 'pg_dump by the owner');
	my @restores = (qw(pg_restore --exit-on-error --single-transaction -d owned), "$dump.owner");
	foreach my $missing ([ 'schema redstream', 'USAGE ON SCHEMA redstream' ],
		[ 'function redstream.attach', 'EXECUTE ON FUNCTION redstream.attach' ])
	{
		$second->command_fails_like(\@restores, qr/permission denied for $missing->[0]/, "restoring takes $missing->[1]");
		delete local $ENV{PGUSER};
		sql($second, 'owned', "GRANT $missing->[1] TO app");
	}
	$second->command_ok(\@restores, 'and nothing else');
}

same_lines(sql($second, 'owned', $triggers), $expected{$triggers}, 'restored by the owner: triggers');
is(arrived($second), '', 'and nothing is announced by it');

# ---- data alone ---------------------------------------------------------------------------------------

$node->command_ok([ qw(pg_dump --data-only --disable-triggers -Fc -f), "$dump.data", 'copy_custom' ], 'pg_dump --data-only');
sql($node, 'source', 'TRUNCATE shop.item, shop.state_of, shop.made, shop.spread, shop.copied, shop.part, shop.off, shop.disabled');
arrived($node);
$node->command_ok([ qw(pg_restore --data-only --disable-triggers -t item -t part_a -t part_b -t copied -d source), "$dump.data" ],
	'restored with --disable-triggers');
is(arrived($node), '', 'and not announced');
sql($node, 'source', 'INSERT INTO shop.item VALUES (50, 50)');
like(arrived($node), qr/^Artikel .*"id":50\}$/, 'what comes after that is');
is(sql($node, 'source', q{SELECT replica FROM redstream.attachments WHERE stream = 'copied'}), 'f',
	'but ENABLE TRIGGER ALL has taken "replica" back, as from any trigger');
sql($node, 'source', 'TRUNCATE shop.item');
arrived($node);
$node->command_ok([ qw(pg_restore --data-only -t item -d source), "$dump.data" ], 'restored with triggers');
is(scalar(split /\n/, arrived($node)), 4, 'and announced');

# ---- LIKE -----------------------------------------------------------------------------------------------

sql($node, 'source', q{
	CREATE TABLE shop.alike (LIKE shop.item INCLUDING ALL);
	CREATE TABLE shop.same AS SELECT * FROM shop.item;
	INSERT INTO shop.alike VALUES (1, 1);
	TRUNCATE shop.alike, shop.same});
is(arrived($node), '', 'a table made like another one announces nothing');
is(sql($node, 'source', q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shop.alike'::regclass}), 0, 'and has no triggers');

# ---- DROP EXTENSION ----------------------------------------------------------------------------------------

my $session = Redstream::Session->new($node, 'source');
$session->query('INSERT INTO shop.copied VALUES (60); INSERT INTO shop.part VALUES (\'a\', 60, 1)');
arrived($node);
my $refusal = $session->query('\set VERBOSITY verbose
	DROP EXTENSION redstream');
like($refusal, qr/ERROR:  2BP01: cannot drop extension redstream because other objects depend on it/, 'DROP EXTENSION is refused');
like($refusal, qr/trigger redstream_insert on table shop\.copied depends on function redstream\.capture\(\)/, 'and says why');
like($refusal, qr/HINT:  Use DROP \.\.\. CASCADE/, 'and how to do it');
$session->query('INSERT INTO shop.copied VALUES (61)');
is(arrived($node), 'copied {"id":61}', 'all goes on');

$session->query('SET client_min_messages = warning; DROP EXTENSION redstream CASCADE');
is($session->query(q{
	INSERT INTO shop.copied VALUES (62);
	INSERT INTO shop.part VALUES ('a', 62, 1);
	TRUNCATE shop.part_a;
	TRUNCATE shop.part, shop.copied;
	SELECT count(*) FROM shop.copied, shop.part}), 0, 'with CASCADE the tables stay');
is(arrived($node), '', 'and announce nothing');
is($session->query(q{
	CREATE EXTENSION redstream;
	INSERT INTO shop.copied VALUES (63);
	SELECT count(*) FROM redstream.attachments}), 0, 'nor with a new extension');
is($session->query(q{
	SELECT FROM redstream.attach('shop.copied') a, redstream.attach('shop.part') b;
	INSERT INTO shop.copied VALUES (64);
	INSERT INTO shop.part VALUES ('a', 64, 1);
	TRUNCATE shop.part_a}), '', 'until they are attached again');
is(arrived($node), qq(copied {"id":64}) . qq(\npart {"region":"a","id":64}) x 2, 'and then they do');
is($session->query(q{
	BEGIN;
	DROP EXTENSION redstream CASCADE;
	INSERT INTO shop.copied VALUES (65);
	ROLLBACK;
	INSERT INTO shop.copied VALUES (66)}), '', 'DROP EXTENSION rolled back');
is(arrived($node), 'copied {"id":66}', 'has changed nothing');

is(join("\n", map { crashes($_, 0) } $node, $second), '', 'no crash');
$session->close;
$_->stop foreach $node, $second;
done_testing();
