# Conditions: which rows they announce, what they may be made of, and what becomes of them when the
# table changes.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody', 'redstream.timeout' => '30s');
my $session = Redstream::Session->new($node);

sub query { return $node->safe_psql('postgres', $_[0]); }

sub quoted
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# Attaches a table under this condition, to the stream "item".
sub attach
{
	my ($condition, $table, $options) = @_;
	$table = 'item' unless defined $table;
	return query("SELECT redstream.attach('$table', 'item', condition => " . quoted($condition)
		  . (defined $options ? ", $options" : '') . ')');
}

# The condition as the view has it.
sub condition
{
	my ($table) = @_;
	return query('SELECT condition FROM redstream.attachments WHERE "table" = '
		  . quoted(defined $table ? $table : 'item') . '::regclass');
}

# Runs SQL in the session that stays open; numbers stand for payloads of nothing but an id.
sub arrives
{
	my ($what, $sql, @expected) = @_;
	my $output = $session->query($sql);

	settle($node, $redis);
	$redis->command('DEL', 'redstream:stream:item.delay');
	is_deeply([ map { $_->[1]{payload} } take($redis, 'redstream:stream:item') ],
		[ map { /^-?\d+$/ ? qq({"id":$_}) : $_ } @expected ], $what)
	  or diag($output);
	return;
}

# ---- which rows --------------------------------------------------------------------------

query('CREATE TABLE item (id integer PRIMARY KEY, name text, n integer, seen integer DEFAULT 0)');
attach('n > 10');
arrives('INSERT', 'INSERT INTO item VALUES (1, NULL, 11), (2, NULL, 10), (3, NULL, NULL)', 1);
arrives('UPDATE, matches before and after', 'UPDATE item SET n = 12 WHERE id = 1', 1);
arrives('UPDATE, matches neither before nor after', 'UPDATE item SET n = 9 WHERE id = 2');
arrives('UPDATE, starts to match', 'UPDATE item SET n = 11 WHERE id = 2', 2);
arrives('UPDATE, stops to match', 'UPDATE item SET n = 1 WHERE id = 2', 2);
arrives('UPDATE from NULL', 'UPDATE item SET n = 20 WHERE id = 3', 3);
arrives('UPDATE to NULL', 'UPDATE item SET n = NULL WHERE id = 3', 3);
arrives('UPDATE from NULL to no match', 'UPDATE item SET n = 3 WHERE id = 3');
arrives('UPDATE that changes nothing', 'UPDATE item SET n = n WHERE id = 1');
arrives('UPDATE of the key', 'UPDATE item SET id = id + 100 WHERE id IN (1, 2)', 1, 101);
arrives('DELETE', 'DELETE FROM item', 101);
arrives('COPY', q{COPY item (id, n) FROM PROGRAM 'printf "1\t11\n2\t2\n3\t99\n"'}, 1, 3);
arrives('INSERT ON CONFLICT',
	'INSERT INTO item VALUES (1, NULL, 1), (2, NULL, 1) ON CONFLICT (id) DO UPDATE SET n = 1', 1);
arrives('TRUNCATE', 'INSERT INTO item VALUES (4, NULL, 11); TRUNCATE item', 4, 3, 4);

attach('n > 10', 'item', q{columns => ARRAY['name'], payload => ARRAY['id', 'n']});
arrives('with columns and a payload', q{
	INSERT INTO item VALUES (1, 'a', 11), (2, 'a', 5);
	UPDATE item SET n = 12;
	UPDATE item SET name = 'b', n = 5 WHERE id = 1;
	UPDATE item SET name = 'c';}, '{"id":1,"n":11}', '{"id":1,"n":12}', '{"id":1,"n":5}', '{"id":2,"n":12}');

foreach my $result ('NULL', 'NULL::boolean', 'false', q{'f'}, 'NULL AND n > 0')
{
	attach($result);
	arrives("$result is no", 'UPDATE item SET seen = seen + 1; TRUNCATE item;
		INSERT INTO item VALUES (1, NULL, 11)');
}
foreach my $result ('true', q{'t'}, 'NULL OR n > 0')
{
	attach($result);
	arrives("$result is yes", 'UPDATE item SET seen = seen + 1', 1);
}

# ---- what it is made of ----------------------------------------------------------------------

$session->query(q{
	CREATE SCHEMA hidden;
	SET search_path = hidden, public;
	CREATE FUNCTION hidden.is_odd(integer) RETURNS boolean LANGUAGE sql AS 'SELECT $1 % 2 = 1';
	CREATE FUNCTION hidden.upper(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN $1 || ''!''; END';
	CREATE OPERATOR hidden.=== (FUNCTION = int4eq, LEFTARG = integer, RIGHTARG = integer);
	CREATE TYPE hidden.mood AS ENUM ('ok', 'so "so"', 'it''s');
	CREATE DOMAIN hidden.small AS integer CHECK (VALUE < 1000);
	CREATE TYPE hidden.text AS (a integer, b pg_catalog.text);
	CREATE COLLATION hidden.coll FROM "C";
	SELECT redstream.attach('item', 'item', condition => $$
		is_odd(n) AND n === 7::small AND 'ok'::mood < (CASE n WHEN 7 THEN 'it''s' END)::mood
		AND hidden.upper(name) = 'a!' AND pg_catalog.upper(name) = 'A'
		AND name COLLATE coll < 'b' AND (ROW(n, name)::hidden.text).b = 'a' $$);
	RESET search_path});
arrives('functions, operators, types and collations that the writer does not find',
	q{SET search_path = pg_catalog;
	INSERT INTO public.item VALUES (7, 'a', 7), (8, 'a', 8), (9, 'b', 7);
	DELETE FROM public.item WHERE id >= 7;
	RESET search_path}, 7, 7);
like(condition(), qr/hidden\.is_odd\(n\).*OPERATOR\(hidden\.===\).*hidden\.mood.*hidden\.upper\(name\).*hidden\.coll/s,
	'the view names them');

my $odd = q{a'b"c\\d$$e/*--};
attach('name = ' . quoted($odd) . ' -- and no more');
arrives('quotes, backslashes and what looks like a comment',
	'INSERT INTO item VALUES (10, ' . quoted($odd) . ', 1), (11, NULL, 1)', 10);
attach(q{/* all? */ name IN ($a$it's$a$, E'tab\t\\\\\\'', U&'\00e9') /* no
more */});
arrives('other strings, between comments',
	q{INSERT INTO item VALUES (12, 'it''s', 1), (13, E'tab\t\\\\\\'', 1), (14, U&'\00e9', 1), (15, '\t', 1)},
	12 .. 14);
attach("  n > 1\n--");
arrives('an empty comment at the end', 'INSERT INTO item VALUES (16, NULL, 2), (17, NULL, 1)', 16);
attach('item IS NOT NULL AND (item).n > 1 AND public.item.n < 9 AND item.* <> ROW(1, NULL, 2, 3)::item');
arrives('the row as a whole', q{INSERT INTO item VALUES (18, 'a', 2), (19, NULL, 2), (20, 'a', 9)}, 18);
attach(q{tableoid = 'item'::regclass AND n = ANY (ARRAY[5, 6]) AND n BETWEEN SYMMETRIC 9 AND 1
	AND name IS DISTINCT FROM 'a' AND (n, 1) = (5, 1)});
arrives('the table itself, arrays and rows',
	q{INSERT INTO item VALUES (21, 'b', 5), (22, 'a', 5), (23, 'b', 6)}, 21);
attach(q{current_setting('test.wanted', true) = n::text});
arrives('a setting of the session', q{
	SET test.wanted = 1;
	INSERT INTO item VALUES (24, '', 1), (25, '', 2);
	SET test.wanted = 2;
	UPDATE item SET seen = 77 WHERE id > 23}, 24, 25);

query(q{CREATE TABLE "OLD" (id integer PRIMARY KEY, "old" integer, "New" integer, "a""b.c' d" integer, "größe" integer);
	CREATE TABLE new ("NEW.x" integer PRIMARY KEY, new integer)});
attach(q{"old" = 1 AND "New" = 1 AND "OLD"."a""b.c' d" = 1 AND "größe" = 1}, '"OLD"');
arrives('odd names', 'INSERT INTO "OLD" VALUES (1, 1, 1, 1, 1), (2, 1, 1, 0, 1); TRUNCATE "OLD"', 1, 1);
is(condition('"OLD"'), q{((old = 1) AND ("New" = 1) AND ("a""b.c' d" = 1) AND ("größe" = 1))},
	'odd names in the view');
attach('new.new > 1 AND new."NEW.x" > 0 AND new IS NOT NULL', 'new');
arrives('a table of the name new', 'INSERT INTO new VALUES (1, 1), (2, 2); DELETE FROM new',
	'{"NEW.x":2}', '{"NEW.x":2}');
query('DROP TABLE "OLD", new; TRUNCATE item');
arrives('nothing else', '');

# ---- when the table changes -----------------------------------------------------------------------

attach(q{n > 10 AND name <> 'x'});
query(q{ALTER TABLE item RENAME n TO "Number"; ALTER TABLE item RENAME name TO title});
arrives('renamed columns', q{INSERT INTO item VALUES (1, 'a', 11), (2, 'x', 11); TRUNCATE item}, 1, 1);
is(condition(), q{(("Number" > 10) AND (title <> 'x'::text))}, 'and in the view');
query('ALTER TABLE item RENAME "Number" TO n; ALTER TABLE item RENAME title TO name');
is(condition(), q{((n > 10) AND (name <> 'x'::text))}, 'and back');
query('ALTER TABLE item RENAME TO thing');
is(condition('thing'), q{((n > 10) AND (name <> 'x'::text))}, 'a renamed table');
arrives('announces', q{INSERT INTO thing VALUES (1, 'a', 11)}, 1);
query('ALTER TABLE thing RENAME TO item');
my $drop = $session->query('ALTER TABLE item DROP n');
like($drop, qr/^ERROR:  cannot drop column n of table item because other objects depend on it\nDETAIL:  trigger redstream_insert on/,
	'a column of the condition is not dropped');
like($session->query('ALTER TABLE item ALTER n TYPE bigint'),
	qr/^ERROR:  cannot alter type of a column used in a trigger definition/, 'nor changed');
like($session->query('DROP FUNCTION hidden.is_odd'), qr/^$/, 'a function of an earlier condition is');
attach('hidden.upper(name) IS NOT NULL');
like($session->query('DROP FUNCTION hidden.upper'), qr/^ERROR:  cannot drop function .* depend on it/,
	'one of this condition is not');
attach('n > 10');
arrives('another column is', q{ALTER TABLE item DROP seen; UPDATE item SET name = 'b'}, 1);
$session->query('ALTER TABLE item DROP n CASCADE');
arrives('with CASCADE goes what announces rows', q{UPDATE item SET name = 'c'});
query(q{SELECT redstream.attach('item', 'item')});
arrives('and attach() brings it back', q{UPDATE item SET name = 'd'; TRUNCATE item}, 1, 1);

# ---- partitions -------------------------------------------------------------------------------------

query(q{
	CREATE TABLE part (gone integer, id integer PRIMARY KEY, name text, n integer) PARTITION BY RANGE (id);
	ALTER TABLE part DROP gone;
	CREATE TABLE part_1 (n integer, lost text, name text, id integer NOT NULL);
	ALTER TABLE part_1 DROP lost;
	ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (1) TO (10);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20)});
attach('part IS NOT NULL AND n > 10 AND (part).name < part.name || chr(1)', 'part');
query('CREATE TABLE part_3 PARTITION OF part FOR VALUES FROM (20) TO (30)');
arrives('partitions of their own columns', q{
	INSERT INTO part (id, name, n) VALUES (1, 'a', 11), (2, 'a', 1), (11, 'a', 11), (12, 'a', 1), (21, 'a', 11), (22, NULL, 11);
	INSERT INTO part_1 (id, name, n) VALUES (3, 'a', 11), (4, NULL, 11)}, 1, 11, 21, 3);
arrives('UPDATE', 'UPDATE part SET n = n + 10 WHERE id IN (2, 12, 22)', 2, 12);
arrives('a row that moves to another partition', 'UPDATE part SET id = 15 WHERE id IN (1)', 1, 15);
arrives('a row that moves and stops to match', 'UPDATE part SET id = 5, n = 1 WHERE id IN (11)', 11);
arrives('DELETE', 'DELETE FROM part WHERE id IN (5, 12)', 12);
arrives('TRUNCATE of a partition', 'TRUNCATE part_1', 3, 2);
arrives('TRUNCATE of them all', 'TRUNCATE part', 15, 21);
query('ALTER TABLE part RENAME n TO number');
arrives('a renamed column', q{INSERT INTO part VALUES (1, 'a', 11); INSERT INTO part_1 (id, name, number) VALUES (2, 'a', 1)}, 1);
is(condition('part'), '((part.* IS NOT NULL) AND (number > 10) AND (name < (name || chr(1))))',
	'and in the view');
query('DROP TABLE part');
arrives('nothing else', '');

# ---- who ------------------------------------------------------------------------------------------------

query(q{
	CREATE ROLE owner; CREATE ROLE writer;
	CREATE SCHEMA owner AUTHORIZATION owner;
	GRANT CREATE ON DATABASE postgres TO owner;
	GRANT USAGE ON SCHEMA redstream, owner, hidden TO owner, writer;
	GRANT EXECUTE ON FUNCTION redstream.attach, redstream.detach TO owner});
my $owned = q{
	SET ROLE owner;
	CREATE SCHEMA "$user";
	CREATE TABLE owner.doc (id integer PRIMARY KEY, name text, n integer);
	CREATE FUNCTION owner.int4gt(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false';
	CREATE OPERATOR owner.> (FUNCTION = owner.int4gt, LEFTARG = integer, RIGHTARG = integer);
	CREATE FUNCTION "$user".lower(text) RETURNS text LANGUAGE sql AS $$ SELECT '$user' $$;
	CREATE TYPE owner.integer AS ENUM ('1');
	GRANT ALL ON owner.doc TO writer;
	GRANT USAGE ON SCHEMA "$user" TO writer;};
query("$owned");
query(q{SET ROLE owner; SET search_path = "$user", pg_catalog;
	SELECT redstream.attach('doc', 'item', condition => 'n OPERATOR(pg_catalog.>) 1 AND (n > 1) IS NOT TRUE
		AND lower(name) = ''a'' AND "$user".lower(name) = ''$user'' AND n::int4 IS NOT NULL')});
my $as_writer = q{SET ROLE writer; SET search_path = "$user", public; %s; RESET ROLE; RESET search_path};
arrives('an owner with a schema that hides operators and types',
	sprintf($as_writer, q{INSERT INTO owner.doc VALUES (1, 'A', 2), (2, 'A', 1), (3, 'B', 2)}), 1);
arrives('TRUNCATE by another role', sprintf($as_writer, 'TRUNCATE owner.doc'), 1);
like(condition('owner.doc'), qr/\(n OPERATOR\(owner\.>\) 1\) IS NOT TRUE.*"\$user"\.lower\(name\)/, 'each is what it was');
query(q{SET ROLE owner; SET search_path = owner, pg_catalog; SELECT redstream.attach('doc', 'item', condition => 'n > 1')});
arrives('its own operator is found first', q{INSERT INTO owner.doc VALUES (4, 'A', 2)});
query(q{
	CREATE FUNCTION hidden.secret(integer) RETURNS boolean LANGUAGE sql AS 'SELECT $1 > 1';
	REVOKE EXECUTE ON FUNCTION hidden.secret FROM PUBLIC});
query(q{SET ROLE owner; SET search_path = public, owner;
	SELECT redstream.attach('owner.doc', 'item', condition => 'hidden.secret(n)')});
like($session->query(sprintf $as_writer, q{INSERT INTO owner.doc VALUES (5, 'A', 2)}),
	qr/^ERROR:  permission denied for function secret/, 'who writes needs the right to its functions, as in any trigger');

# ---- dumped and restored --------------------------------------------------------------------------------

query(q{
	CREATE FUNCTION hidden.payload(item) RETURNS json LANGUAGE sql AS 'SELECT json_build_array($1.id)';
	ALTER TABLE item ADD n integer, ADD seen integer;
	SELECT redstream.attach('item', 'it''s \one', payload_function => 'hidden.payload', columns => ARRAY['n', 'name'],
		shards => 3, delay => '90 min', expiry => '1 day', replica => true, condition => $$
		n OPERATOR(hidden.===) 7 AND item IS NOT NULL AND name <> E'it''s \\"$' $$)});
my $attachments = q{SELECT * FROM redstream.attachments WHERE stream <> 'redstream_settled' ORDER BY 1};
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump');
query('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'and restored');
is($node->safe_psql('restored', $attachments), query($attachments), 'attachments are the same');
is($node->safe_psql('restored', q{
	INSERT INTO item (id, name, n) VALUES (901, 'a', 7);
	UPDATE item SET seen = 1, n = 7;
	SELECT tgname || tgenabled::text FROM pg_trigger WHERE tgrelid = 'item'::regclass ORDER BY 1}),
	join("\n", map { "redstream_${_}A" } qw(delete insert truncate update)), 'and work');

# ---- refused -----------------------------------------------------------------------------------------------

query(q{SELECT redstream.attach('item', 'item', condition => 'n > 1')});

sub refused
{
	my ($condition, $error, $hint) = @_;
	my $output = $session->query("SELECT redstream.attach('item', 'other', condition => " . quoted($condition) . ')');

	like($output, qr/^ERROR:  $error/, "refused: $condition");
	like($output, qr/^HINT:  $hint/m, 'with a hint') if defined $hint;
	like($output, qr/condition of redstream\.attach\(\)/, 'which says what it is about');
	return;
}

my $single = 'Write a condition as it would stand after WHERE';
my $alone = 'Name the columns alone, without OLD, NEW or another table';
refused($_, 'not one expression: "' . quotemeta($_) . '"', $single)
  foreach '', '  ', '-- n > 1', 'true; DROP TABLE item', 'n > 1;', ';', 'n > 1, n > 2', 'true AS x', 'true x',
  'true FROM item', 'WHERE true', 'true WHERE true', 'true LIMIT 1', 'true UNION SELECT false', 'DISTINCT true',
  'true INTO x', 'true GROUP BY n', 'true FOR UPDATE', '*', 'item.*';
refused($_, 'syntax error at ')
  foreach 'true) OR (true', 'n >> ', '(true', 'true)) EXECUTE FUNCTION x() --', 'n IN ()';
refused('true /* comment', 'unterminated /\* comment');
refused(q{name = 'a}, 'unterminated quoted string');
refused($_, 'missing FROM-clause entry for table', $alone)
  foreach 'NEW.n > 1', 'old.n > 1', 'NEW.n > OLD.n', 'other.n > 1';
refused($_, 'cannot use subquery in trigger WHEN condition')
  foreach 'n > (SELECT 1)', 'EXISTS (SELECT 1)', 'n IN (SELECT 1)', 'n = ANY (ARRAY(SELECT 1))';
refused('count(*) > 1', 'aggregate functions are not allowed in trigger WHEN');
refused('row_number() OVER () > 1', 'window functions are not allowed in trigger WHEN');
refused('generate_series(1, n) > 1', 'set-returning functions are not allowed in trigger WHEN');
refused($_, 'argument of WHERE must be type boolean, not type') foreach 'n', 'name', 'item', '(item)', 'now()';
refused(q{'maybe'}, 'invalid input syntax for type boolean');
refused('nn > 1', 'column "nn" does not exist');
refused('no_such(n)', 'function no_such\(integer\) does not exist');
refused('$1', 'there is no parameter \$1');
refused('n = DEFAULT', 'DEFAULT is not allowed in this context');
refused($_, 'cannot use system column "\w+" in the condition')
  foreach q{ctid = '(0,1)'}, 'xmin::text::bigint > 1', 'n > 1 AND item.cmax IS NULL';
is(query(q{SELECT stream, condition FROM redstream.attachments WHERE "table" = 'item'::regclass}),
	'item|(n > 1)', 'the attachment is as it was');
arrives('and announces', q{INSERT INTO item (id, n) VALUES (200, 2), (201, 1)}, 200);

$session->close;
is_deeply([ crashes($node) ], [], 'no crash');
done_testing();
