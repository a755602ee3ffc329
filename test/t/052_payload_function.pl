# Payloads made by a function: what it may return, when it changes, fails, or changes rows itself, who
# needs which right, and that it costs no memory.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody', 'redstream.timeout' => '30s');
$node->safe_psql('postgres', q{CREATE DATABASE utf8 ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('postgres', q{CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql($_, 'CREATE EXTENSION redstream') foreach qw(utf8 latin1);
my $session = Redstream::Session->new($node, 'utf8');

sub query { return $node->safe_psql('utf8', $_[0]); }

sub arrived
{
	settle($node, $redis);
	$redis->command('DEL', 'redstream:stream:item.delay');
	return [ map { $_->[1]{payload} } take($redis, 'redstream:stream:item') ];
}

# Runs SQL in the session that stays open, and compares what arrives on the stream "item"; returns what
# the session printed.
sub arrives
{
	my ($what, $sql, @expected) = @_;
	my $output = $session->query($sql);

	is_deeply(arrived(), \@expected, $what) or diag($output);
	return $output;
}

# SQL that fails in that session and announces nothing.
sub fails
{
	my ($what, $sql, $error) = @_;
	like(arrives("$what: nothing is announced", $sql), $error, $what);
	return;
}

# The function of the table, made or replaced: the body of an expression in SQL.
sub define
{
	my ($expression, $type) = @_;
	$type ||= 'json';
	return "CREATE OR REPLACE FUNCTION payload(item) RETURNS $type LANGUAGE sql AS \$f\$ SELECT $expression \$f\$;";
}

my $attach = q{SELECT redstream.attach('item', 'item', payload_function => 'payload');};
query('CREATE TABLE item (id integer PRIMARY KEY, name text, n integer DEFAULT 0, at timestamptz);'
	  . define(q{json_build_object('name', $1.name, 'n', $1.n)}) . $attach);

# ---- results ------------------------------------------------------------------------------

arrives('INSERT', q{INSERT INTO item VALUES (1, 'a b')}, '{"name":"a b","n":0}');
arrives('UPDATE announces old and new', q{UPDATE item SET n = 1}, '{"name":"a b","n":0}', '{"name":"a b","n":1}');
arrives('UPDATE that changes nothing of the result', q{UPDATE item SET at = now()}, '{"name":"a b","n":1}');
arrives('UPDATE that changes nothing', q{UPDATE item SET n = n});
arrives('DELETE', q{DELETE FROM item}, '{"name":"a b","n":1}');
arrives('TRUNCATE', q{INSERT INTO item VALUES (2, NULL, NULL); TRUNCATE item},
	('{"name":null,"n":null}') x 2);
my $there_and_back = q{BEGIN; INSERT INTO item VALUES (3, 'A'); UPDATE item SET name = 'B'; UPDATE item SET name = 'A';
	DELETE FROM item; COMMIT};
my @there_and_back = ('A', 'A', 'B', 'B', 'A', 'A');
arrives('A, B and A again', $there_and_back, map { qq({"name":"$_","n":0}) } @there_and_back);
query(q{SELECT redstream.attach('item', payload => ARRAY['name'])});
arrives('as with columns', $there_and_back, map { qq({"name":"$_"}) } @there_and_back);
query(q{SELECT redstream.attach('item')});
arrives('but not with the key', $there_and_back, '{"id":3}');
query($attach);

# JSON as the function returns it => as it arrives
my @results = (
	q{'{ "a" : 1 ,'||E'\n\t\r'||'"b":[ 1 , "x  y" , true ] , "c" : { } }'} => '{"a":1,"b":[1,"x  y",true],"c":{}}',
	q{'{"q\"  \\\\" : " \\\\ \" \/ \n \u00e9 \ud83d\ude00 \u0000 "}'} => '{"q\"  \\\\":" \\\\ \" \/ \n \u00e9 \ud83d\ude00 \u0000 "}',
	q{'"größer 😀"'} => '"größer 😀"',
	q{' null '} => 'null',
	q{' -1.50e3 '} => '-1.50e3',
	q{'[ ]'} => '[]',
	q{'{"a" : 1, "a" : 2}'} => '{"a":1,"a":2}',
	q{to_json(repeat('"', 10000))} => '"' . '\"' x 10000 . '"',
);
while (my ($sql, $expected) = splice @results, 0, 2)
{
	arrives("json $expected", define("($sql)::json") . 'TRUNCATE item; INSERT INTO item VALUES (1);'
		. 'DELETE FROM item', $expected, $expected);
}
query('DROP FUNCTION payload;' . define(q{'{ "b" : 1.50 , "a a" : " \u00e9 \" \\\\ " , "c" : [ 1 , null ] }'::jsonb}, 'jsonb'));
arrives('jsonb', 'INSERT INTO item VALUES (1)', '{"b":1.50,"c":[1,null],"a a":" é \" \\\\ "}');
$node->safe_psql('latin1', q{
	SET client_encoding = 'UTF8';
	CREATE TABLE item (id integer PRIMARY KEY, name text);
	CREATE FUNCTION payload(item) RETURNS json LANGUAGE sql AS 'SELECT json_build_object(''größe'', $1.name)';
	SELECT redstream.attach('item', 'item', payload_function => 'payload');
	INSERT INTO item VALUES (1, 'ä')});
is_deeply(arrived(), ['{"größe":"ä"}'], 'UTF-8 in a database with another encoding');

# Whatever the session's settings are, but for what the function sets itself.
query('DROP FUNCTION payload; SET TimeZone = 0;' . define(q{json_build_array($1.at, $1.at::text, $1.at::date, $1.at - '2026-01-01 00:00+00',
	0.1::float8 + 0.2, '\xdead'::bytea)})
	. q{UPDATE item SET at = '2026-01-31 23:00:00+00'});
arrived();
arrives('settings of the session', q{
	SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -5;
	SET bytea_output = 'escape';
	UPDATE item SET n = 2;
	RESET ALL},
	'["2026-01-31T23:00:00+00:00","2026-01-31 23:00:00+00","2026-01-31","30 days 23:00:00",0.30000000000000004,"\\\\xdead"]');
is($session->query(q{SET TimeZone = 'Asia/Kolkata'; UPDATE item SET n = 3; SHOW TimeZone; RESET TimeZone}), 'Asia/Kolkata',
	'which the session has afterwards');
arrived();

# ---- languages ---------------------------------------------------------------------------------

my %functions = (
	'plpgsql' => q{(item) RETURNS json LANGUAGE plpgsql AS $$ DECLARE r item := $1; BEGIN r.n := r.n + 1; RETURN json_build_array(r.n); END $$},
	'security definer, settings' => q{(i item) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET work_mem = '1MB' SET TimeZone = 'UTC'
		AS $$ BEGIN RETURN jsonb_build_array(i.n + 1); END $$},
	'an OUT parameter' => q{(item, OUT json) LANGUAGE sql AS 'SELECT json_build_array($1.n + 1)'},
	'strict, immutable, with a default' => q{(item DEFAULT NULL) RETURNS json LANGUAGE sql STRICT IMMUTABLE AS 'SELECT json_build_array($1.n + 1)'},
	'a body of SQL' => q{(i item) RETURNS json BEGIN ATOMIC SELECT json_build_array(i.n + 1); END},
	'one that reads' => q{(i item) RETURNS json LANGUAGE sql AS 'SELECT json_build_array(max(n) + 1) FROM item WHERE id = i.id'},
);
foreach my $name (sort keys %functions)
{
	$session->query("DROP FUNCTION payload; CREATE FUNCTION payload$functions{$name}; $attach DELETE FROM item");
	arrived();
	arrives($name, q{INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 2); UPDATE item SET at = now() WHERE id = 1},
		'[2]', '[3]', '[2]');
}

# ---- another function ----------------------------------------------------------------------------

# Each of these by another session, and by the session itself.
my $missing = qr/^ERROR:  function public\.payload\(item\), which makes the payload of table "item", does not exist\nHINT:  Create it, or call redstream\.attach\(\) again, or redstream\.detach\(\)/m;
$session->query('DELETE FROM item; DROP FUNCTION payload;' . define(q{json_build_array($1.id)})
	  . q{INSERT INTO item VALUES (1, 'a', 1)});
arrived();
foreach my $by (\&query, sub { $session->query($_[0]) })
{
	my $update = 'UPDATE item SET n = n + 1';

	arrives('before', $update, '[1]');
	$by->(define(q{json_build_array('new')}));
	arrives('CREATE OR REPLACE', $update, '["new"]');
	$by->(q{CREATE OR REPLACE FUNCTION payload(item) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN '[2]'::json; END $$});
	arrives('with another language', $update, '[2]');
	$by->('ALTER FUNCTION payload STRICT SECURITY DEFINER SET search_path = pg_catalog');
	arrives('ALTER', $update, '[2]');
	$by->('DROP FUNCTION payload');
	fails('DROP', $update, $missing);
	fails('DROP, in a block', "BEGIN; $update; COMMIT", $missing);
	arrives('other tables go on', q{CREATE TABLE other (id integer PRIMARY KEY); SELECT redstream.attach('other', 'item');
		INSERT INTO other VALUES (1); DROP TABLE other}, '{"id":1}');
	$by->(define(q{json_build_array('again')}));
	arrives('and CREATE', $update, '["again"]');
	$by->('DROP FUNCTION payload;' . define(q{'{"type": "jsonb"}'::jsonb}, 'jsonb'));
	arrives('DROP and CREATE, with another type', $update, '{"type":"jsonb"}');
	$by->('DROP FUNCTION payload; CREATE FUNCTION payload(item) RETURNS text LANGUAGE sql AS $$ SELECT $1.name $$');
	fails('one that does not do', $update,
		qr/^ERROR:  function public\.payload, which makes the payload of table "item", does not return json or jsonb\nHINT:  It must be a function of one row/m);
	$by->('DROP FUNCTION payload;' . define(q{json_build_array($1.id)}) . 'ALTER FUNCTION payload RENAME TO renamed');
	fails('RENAME', $update, $missing);
	$by->('ALTER FUNCTION renamed RENAME TO payload; CREATE SCHEMA moved; ALTER FUNCTION payload SET SCHEMA moved');
	fails('SET SCHEMA', $update, $missing);
	$by->(q{SELECT redstream.attach('item', 'item', payload_function => 'moved.payload')});
	arrives('attached again', $update, '[1]');
	$by->('ALTER SCHEMA moved RENAME TO "Went away"');
	fails('RENAME of the schema', $update, qr/^ERROR:  (?:function moved\.payload\(item\), which|schema "moved" does not exist)/m);
	$by->(q{SELECT redstream.attach('item', 'item', payload_function => '"Went away".payload')});
	arrives('attached again', $update, '[1]');
	$by->(qq{ALTER FUNCTION "Went away".payload SET SCHEMA public; DROP SCHEMA "Went away"; $attach});
}
arrives('replaced within the transaction', 'BEGIN; UPDATE item SET n = n + 1;' . define(q{json_build_array('new')})
	. 'UPDATE item SET n = n + 1; ROLLBACK; UPDATE item SET n = n + 1', '[1]');
$session->query('BEGIN; UPDATE item SET n = n + 1');
query(define(q{json_build_array('new')}));
arrives('replaced meanwhile', 'UPDATE item SET n = n + 1; COMMIT', '[1]', '["new"]');
arrives('a column more', 'ALTER TABLE item ADD added integer DEFAULT 5, DROP at;' . define(q{json_build_array($1.id, $1.added)})
	. 'UPDATE item SET n = n + 1; DELETE FROM item', '[1,5]', '[1,5]');

# ---- errors ---------------------------------------------------------------------------------------

my $null = qr/^ERROR:  function payload returned null for a row, not a payload\nHINT:  It must return JSON for every row\. .* condition of redstream\.attach\(\)/m;
fails('null', define(q{CASE WHEN $1.id > 0 THEN json_build_array(100 / $1.id) WHEN $1.id < 0 THEN json_build_array(1 / ($1.id - $1.id)) END})
	. 'INSERT INTO item VALUES (1), (0)', $null);
$session->query(q{CREATE FUNCTION plpgsql(item) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
		IF $1.id < 0 THEN RAISE EXCEPTION 'division by zero, nearly'; END IF;
		RETURN CASE WHEN $1.id > 0 THEN json_build_array(100 / $1.id) END; END $$});
foreach my $function ('payload', 'plpgsql')
{
	$session->query("DELETE FROM item; SELECT redstream.attach('item', 'item', payload_function => '$function')");
	arrived();
	fails("$function: an error", 'INSERT INTO item VALUES (1), (-1), (2)',
		qr/^ERROR:  division by zero.*\nCONTEXT:  .*function "?$function/m);
	# after an error in a savepoint what the function has kept is of no use, though the transaction goes on
	my $steps = q{
		BEGIN;
		INSERT INTO item VALUES (1);
		SAVEPOINT a;
		INSERT INTO item VALUES (2), (-2);
		ROLLBACK TO a;
		INSERT INTO item VALUES (4);
		SAVEPOINT a;
		INSERT INTO item VALUES (0);
		ROLLBACK TO a;
		INSERT INTO item VALUES (5);};
	fails("$function: errors after savepoints", "$steps ROLLBACK",
		qr/^ERROR:  division by zero.*^ERROR:  function $function returned null/ms);
	arrives("$function: and what goes on", "$steps COMMIT; DELETE FROM item",
		'[100]', '[25]', '[20]', '[100]', '[25]', '[20]');
	arrives("$function: hundreds of errors", q{
		DO $$ BEGIN
			FOR i IN 1 .. 500 LOOP
				BEGIN
					INSERT INTO item VALUES (i + 1000), (-i);
				EXCEPTION WHEN OTHERS THEN
					INSERT INTO item VALUES (i);
				END;
			END LOOP;
		END $$;
		TRUNCATE item}, map { sprintf '[%d]', 100 / $_ } 1 .. 500, 1 .. 500);
}
fails('a payload that is too large', define(q{to_json(repeat('x', 5000000))}) . $attach . 'INSERT INTO item VALUES (1)',
	qr/^ERROR:  message of 5000002 bytes is too large to announce/m);

# ---- functions that change rows --------------------------------------------------------------------

$session->query(q{
	CREATE TABLE other (id serial PRIMARY KEY);
	SELECT redstream.attach('other', 'item');
	CREATE FUNCTION recursive(item) RETURNS json LANGUAGE sql AS $$
		INSERT INTO item SELECT $1.id - 1, 'x' WHERE $1.id > 0;
		SELECT json_build_array($1.id) $$;
	CREATE FUNCTION changing(item) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
		-- other plans of this session, and this one, are no longer valid
		EXECUTE 'CREATE OR REPLACE FUNCTION dummy() RETURNS integer LANGUAGE sql AS ''SELECT 1''';
		INSERT INTO other DEFAULT VALUES;
		IF $1.id > 0 THEN
			INSERT INTO item VALUES ($1.id - 1);
		ELSIF $1.id < 0 THEN
			RAISE EXCEPTION 'below';
		END IF;
		BEGIN
			INSERT INTO item VALUES (-1 - $1.id);
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
		RETURN json_build_array($1.id); END $$;
	SELECT redstream.attach('item', 'item', payload_function => 'recursive')});
my $clean = 'SET redstream.enabled = off; TRUNCATE item, other; RESET redstream.enabled';
foreach my $time ('once', 'twice')
{
	arrives("a function that changes rows of its table, $time", 'INSERT INTO item VALUES (3)', map { "[$_]" } 0 .. 3);
	$session->query($clean);
}
$session->query(q{SELECT redstream.attach('item', 'item', payload_function => 'changing')});
foreach my $time ('once', 'twice')
{
	$session->query('INSERT INTO item VALUES (3)');
	my @arrived = @{ arrived() };
	is_deeply([ grep { /^\[/ } @arrived ], [ map { "[$_]" } 0 .. 3 ], "one that makes its own plan invalid, $time");
	is(scalar(grep { /^\{/ } @arrived), 4, 'the rows of another table are announced, but for what was rolled back');
	$session->query($clean);
}
$session->query('DROP FUNCTION recursive, changing, plpgsql');

# ---- partitions ----------------------------------------------------------------------------------------

query(q{
	CREATE ROLE owner; CREATE ROLE other; CREATE ROLE writer;
	CREATE TABLE part (gone integer, id integer PRIMARY KEY, name text, n integer) PARTITION BY RANGE (id);
	ALTER TABLE part DROP gone;
	CREATE TABLE part_1 (n integer, lost text, name text, id integer NOT NULL);
	ALTER TABLE part_1 DROP lost;
	ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (1) TO (10);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
	CREATE FUNCTION of_part(part) RETURNS json LANGUAGE plpgsql AS $$
		BEGIN RETURN json_build_array($1.id, $1.name, $1.n, pg_typeof($1)); END $$;
	CREATE FUNCTION of_part_sql(part) RETURNS json LANGUAGE sql AS $$
		SELECT json_build_array($1.id, $1.name, $1.n, pg_typeof($1)) $$});
foreach my $function (qw(of_part of_part_sql))
{
	query("SELECT redstream.attach('part', 'item', payload_function => '$function')");
	arrives("$function: partitions", q{
		INSERT INTO part (id, name, n) VALUES (1, 'a', 5), (11, 'b', 6);
		INSERT INTO part_1 (id, name, n) VALUES (2, 'c', 7);
		CREATE TABLE part_3 (id integer NOT NULL, n integer, name text);
		ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (20) TO (30);
		UPDATE part SET id = 21 WHERE id = 11;
		UPDATE part_1 SET n = 8 WHERE id = 1;
		TRUNCATE part_1;
		TRUNCATE part;
		DROP TABLE part_3},
		map { qq([$_,"part"]) } '1,"a",5', '11,"b",6', '2,"c",7', '11,"b",6', '21,"b",6',
		'1,"a",5', '1,"a",8', '2,"c",7', '1,"a",8', '21,"b",6');
}
query(q{
	CREATE TABLE same (id integer PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE same_1 PARTITION OF same FOR VALUES FROM (1) TO (10);
	CREATE FUNCTION of_same(same) RETURNS json LANGUAGE sql AS 'SELECT json_build_array($1.id, pg_typeof($1))';
	SELECT redstream.attach('same', 'item', payload_function => 'of_same')});
arrives('a partition with the same columns', 'INSERT INTO same VALUES (1); DELETE FROM same_1; DROP TABLE same CASCADE',
	('[1,"same"]') x 2);
$session->query(q{INSERT INTO part (id, name, n) VALUES (1, 'a', 5), (11, 'b', 6)});
arrived();
arrives('a column more', q{
	ALTER TABLE part ADD added integer DEFAULT 9;
	CREATE OR REPLACE FUNCTION of_part_sql(part) RETURNS json LANGUAGE sql AS 'SELECT json_build_array($1.id, $1.added)';
	UPDATE part SET n = n + 1}, '[1,9]', '[11,9]');
arrives('a column less', q{ALTER TABLE part DROP name; UPDATE part SET added = 3 WHERE id = 1; DELETE FROM part},
	'[1,9]', '[1,3]', '[1,3]', '[11,9]');

# ---- rights --------------------------------------------------------------------------------------------

my $denied = qr/^ERROR:  permission denied for function (?:public\.)?of_part/m;
query(q{
	GRANT USAGE, CREATE ON SCHEMA public TO owner, other;
	GRANT USAGE ON SCHEMA redstream TO owner;
	GRANT EXECUTE ON FUNCTION redstream.attach, redstream.detach TO owner;
	REVOKE EXECUTE ON FUNCTION of_part, of_part_sql FROM PUBLIC;
	ALTER TABLE part OWNER TO owner;
	ALTER TABLE part_1 OWNER TO other;
	ALTER TABLE part_2 OWNER TO owner;
	GRANT ALL ON part, part_1 TO writer});
fails('an owner without the right to the function',
	q{SET ROLE owner; SELECT redstream.attach('part', 'item', payload_function => 'of_part_sql'); RESET ROLE}, $denied);
query('GRANT EXECUTE ON FUNCTION of_part_sql TO owner; ALTER TABLE part_1 OWNER TO owner');
arrives('with it', q{SET ROLE owner; SELECT redstream.attach('part', 'item', payload_function => 'of_part_sql'); RESET ROLE});
query('ALTER TABLE part_1 OWNER TO other');
arrives('who writes needs none, nor does the owner of a partition',
	q{SET ROLE writer; INSERT INTO part VALUES (1), (11); INSERT INTO part_1 (id) VALUES (2); RESET ROLE}, '[1,9]', '[11,9]', '[2,9]');
query('ALTER TABLE part OWNER TO other');
fails('a new owner of the table does', 'INSERT INTO part_1 (id) VALUES (3)', $denied);
query('GRANT EXECUTE ON FUNCTION of_part_sql TO other');
arrives('and gets it', 'INSERT INTO part_1 (id) VALUES (3)', '[3,9]');
fails('it is called as who writes', q{
	CREATE OR REPLACE FUNCTION of_part_sql(part) RETURNS json LANGUAGE sql AS 'SELECT to_json(count(*)) FROM item';
	SET ROLE writer; INSERT INTO part VALUES (4); RESET ROLE}, qr/^ERROR:  permission denied for table item/m);
query('DROP TABLE part CASCADE');

# ---- refused -----------------------------------------------------------------------------------------------

sub refused
{
	my ($what, $function, $error, $arguments) = @_;
	$arguments = defined $arguments ? ", $arguments" : '';
	fails("refused: $what", "SELECT redstream.attach('item', 'item', payload_function => '$function'$arguments)", qr/^ERROR:  $error/m);
	return;
}

query('DROP FUNCTION payload;' . define(q{json_build_array($1.id)}) . q{
	CREATE FUNCTION no_row() RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION other(other) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION two(item, integer DEFAULT 1) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION poly(anyelement) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION many(VARIADIC item[]) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION set_of(item) RETURNS SETOF json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION as_text(item) RETURNS text LANGUAGE sql AS 'SELECT null::text';
	CREATE DOMAIN document AS json;
	CREATE FUNCTION as_domain(item) RETURNS document LANGUAGE sql AS 'SELECT null::document';
	CREATE FUNCTION as_array(item) RETURNS json[] LANGUAGE sql AS 'SELECT null::json[]';
	CREATE FUNCTION nothing(item) RETURNS void LANGUAGE sql AS 'SELECT';
	CREATE FUNCTION as_row(item) RETURNS record LANGUAGE sql AS 'SELECT 1, 2';
	CREATE PROCEDURE proc(item) LANGUAGE sql AS 'SELECT 1';
	CREATE FUNCTION step(json, item) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE AGGREGATE agg(item) (SFUNC = step, STYPE = json);
	CREATE FUNCTION over(integer) RETURNS json LANGUAGE sql AS 'SELECT null::json';
	CREATE FUNCTION over(item) RETURNS json LANGUAGE sql AS 'SELECT json_build_array(1)'} . ";$attach");
refused("arguments of $_", $_, qr/function \S+\(item\), which makes the payload of table "item", does not exist\nHINT:  It must have one argument, of the table's row type/)
  foreach qw(no_row other two poly many to_jsonb);
refused("result of $_", $_, qr/function \S+, which makes the payload of table "item", does not return json or jsonb/)
  foreach qw(set_of as_text as_domain as_array nothing as_row agg proc);
refused('no function', 'no_such', qr/function "no_such" does not exist/);
refused('an overloaded one', 'over', qr/more than one function named "over"/);
$session->query(q{CREATE FUNCTION pg_temp.passing(item) RETURNS json LANGUAGE sql AS 'SELECT null::json'});
refused('a temporary one', 'pg_temp.passing', qr/payload function passing is temporary\nHINT:  Whoever changes a row/);
refused('no name', '-', qr/function with OID 0 does not exist/);
refused('a number', '999999', qr/function with OID 999999 does not exist/);
refused('a payload, too', 'payload', qr/payload and payload_function exclude each other/, q{payload => ARRAY['id']});
arrives('the attachment is as it was', 'INSERT INTO item VALUES (77)', '[77]');
arrives('an overloaded one by its number',
	q{SELECT redstream.attach('item', 'item', payload_function => 'over(item)'::regprocedure::oid::regproc); DELETE FROM item}, '[1]');
query(q{CREATE TABLE keyless (a integer);
	CREATE FUNCTION of_keyless(keyless) RETURNS json LANGUAGE sql AS 'SELECT to_json($1.a)';
	SELECT redstream.attach('keyless', 'item', payload_function => 'of_keyless')});
arrives('a table without a key', 'INSERT INTO keyless VALUES (5); UPDATE keyless SET a = 6; DROP TABLE keyless CASCADE', 5, 5, 6);

# ---- memory --------------------------------------------------------------------------------------------------

# What the backend holds when the function is called for row 500 and for row 30000, without the queue
# of PostgreSQL's triggers, which grows.
$session->query(q{
	CREATE TABLE wide (id integer PRIMARY KEY, name text, n integer) PARTITION BY RANGE (id);
	CREATE TABLE wide_1 (n integer, name text, id integer NOT NULL);
	ALTER TABLE wide ATTACH PARTITION wide_1 FOR VALUES FROM (0) TO (100000);
	CREATE FUNCTION note(n integer) RETURNS json LANGUAGE plpgsql AS $$ BEGIN
		PERFORM set_config('test.at_' || n, sum(total_bytes)::text, false)
		FROM pg_backend_memory_contexts WHERE name <> 'AfterTriggerEvents';
		RETURN json_build_array(n); END $$;
	CREATE FUNCTION wide_sql(wide) RETURNS json LANGUAGE sql AS $$
		SELECT CASE WHEN $1.id IN (500, 30000) THEN note($1.id) ELSE json_build_array($1.id, $1.name, $1.n) END
		FROM (SELECT 1 OFFSET 0) x $$;
	CREATE FUNCTION wide_jsonb(wide) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
		IF $1.id IN (500, 30000) THEN RETURN note($1.id); END IF;
		RETURN jsonb_build_array($1.id, $1.name, $1.n); END $$;
	INSERT INTO wide SELECT i, repeat('x', 200), 0 FROM generate_series(1, 30000) i;
	SET redstream.transaction_buffer = '64kB'});
foreach my $function (qw(wide_sql wide_jsonb))
{
	my $held = $session->query("
		SELECT redstream.attach('wide', 'item', payload_function => '$function');
		UPDATE wide SET n = n + 1;
		SELECT current_setting('test.at_30000')::integer - current_setting('test.at_500')::integer");
	my ($bytes) = $held =~ /(-?\d+)$/;
	note("$function: $bytes bytes more");
	cmp_ok($bytes, '<', 500_000, "$function: the function costs no memory a row") or diag($held);
	# of two rows the payload stays the same
	is(scalar @{ arrived() }, 59998, "$function: all is announced");
}

$session->close;
is_deeply([ crashes($node) ], [], 'no crash');
done_testing();
