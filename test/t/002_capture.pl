# Which changes are announced: what an UPDATE changed, what DDL did to the table
# meanwhile, which settings hold.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '30s');
my $session = Redstream::Session->new($node);
my $other = Redstream::Session->new($node);

# Runs SQL in the session that stays open, and compares what arrives on the
# stream; an item of numbers stands for a payload of nothing but an id.
sub arrives
{
	my ($what, $sql, $expected, $stream) = @_;
	my $key = 'redstream:stream:' . ($stream || 'item');
	my $output = $session->query($sql);

	settle($node, $redis);
	my @delayed = map { $_->[1]{payload} } take($redis, "$key.delay");
	my @arrived = map { $_->[1]{payload} } take($redis, $key);
	is_deeply(\@arrived, [ map { /^\d+$/ ? qq({"id":$_}) : $_ } @$expected ], $what)
	  or diag($output);
	is_deeply(\@delayed, \@arrived, "$what: delay messages");
	return $output;
}

# Runs SQL that is refused and announces nothing.
sub refused
{
	my ($what, $sql, $error, $stream) = @_;
	like(arrives($what, $sql, [], $stream), $error, "$what: the error");
	return;
}

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, name text, price numeric, seen integer DEFAULT 0);
	SELECT redstream.attach('item')});

# ---- what changed ------------------------------------------------------------------

arrives('INSERT', q{INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', NULL)}, [ 1, 2, 3 ]);
arrives('UPDATE', q{UPDATE item SET price = 5 WHERE id = 2}, [2]);
arrives('UPDATE to NULL', q{UPDATE item SET name = NULL WHERE id = 2}, [2]);
arrives('UPDATE from NULL', q{UPDATE item SET name = '' WHERE id = 2}, [2]);
arrives('UPDATE of no row', q{UPDATE item SET price = 9 WHERE id = 99}, []);
arrives('UPDATE that changes nothing',
	q{UPDATE item SET name = name, price = price + 0, seen = 0; UPDATE item SET name = NULLIF(name, 'zzz')}, []);
arrives('UPDATE that changes some rows', q{UPDATE item SET name = 'c'}, [ 1, 2 ]);
arrives('DELETE', q{DELETE FROM item WHERE id = 3}, [3]);
arrives('a transaction of two statements',
	q{BEGIN; INSERT INTO item VALUES (4); INSERT INTO item VALUES (5); COMMIT;}, [ 4, 5 ]);
$session->query('BEGIN; DELETE FROM item; ROLLBACK');
settle($node, $redis);
is($redis->command('XLEN', 'redstream:stream:item'), 0, 'a rolled-back DELETE');
is($redis->command('XLEN', 'redstream:stream:item.delay'), 0, 'a small one wrote nothing at all');
arrives('UPDATE of the key announces the old and the new one',
	q{UPDATE item SET id = 40 WHERE id = 4}, [ 4, 40 ]);
arrives('a BEFORE trigger has the last word', q{
	CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.seen := OLD.seen; RETURN NEW; END';
	CREATE TRIGGER keep BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION keep();
	UPDATE item SET seen = 7;
	UPDATE item SET seen = 7, name = 'd' WHERE id = 1;
	DROP TRIGGER keep ON item;}, [1]);
arrives('a generated column', q{
	CREATE TABLE made (id integer PRIMARY KEY, a integer, double integer GENERATED ALWAYS AS (a * 2) STORED);
	SELECT redstream.attach('made', payload => ARRAY['double']);
	INSERT INTO made VALUES (1, 2);
	UPDATE made SET a = 3;}, [ '{"double":4}', '{"double":4}', '{"double":6}' ], 'made');

# ---- columns and payload --------------------------------------------------------------

arrives('columns: another one changed', q{
	SELECT redstream.attach('item', columns => ARRAY['name', 'price']);
	UPDATE item SET seen = seen + 1;}, []);
arrives('columns: one changed', q{UPDATE item SET price = 6, seen = 0 WHERE id = 1}, [1]);
arrives('columns: one changed to what it was', q{UPDATE item SET price = 6, seen = 8}, [ 2, 5, 40 ]);
arrives('columns: INSERT and DELETE are announced always', q{
	INSERT INTO item VALUES (6); DELETE FROM item WHERE id = 6; INSERT INTO item VALUES (7);},
	[ 6, 6, 7 ]);
arrives('columns: the key changed', q{
	UPDATE item SET id = 8 WHERE id = 7; DELETE FROM item WHERE id = 8;}, [ 7, 8, 8 ]);
arrives('payload: another column changed', q{
	SELECT redstream.attach('item', payload => ARRAY['id', 'name']);
	UPDATE item SET price = 100 WHERE id = 1;}, ['{"id":1,"name":"d"}']);
arrives('payload: one changed', q{UPDATE item SET name = 'e' WHERE id = 1},
	[ '{"id":1,"name":"d"}', '{"id":1,"name":"e"}' ]);
arrives('payload: one changed, per row', q{UPDATE item SET name = 'f' WHERE id IN (1, 2)},
	[ '{"id":1,"name":"e"}', '{"id":1,"name":"f"}', '{"id":2,"name":"c"}', '{"id":2,"name":"f"}' ]);
arrives('payload: DELETE announces what was', q{DELETE FROM item WHERE id = 2}, ['{"id":2,"name":"f"}']);
$session->query(q{SELECT redstream.attach('item')});

# ---- large values ------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE toasted (id integer PRIMARY KEY, big text, small integer);
	ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
	INSERT INTO toasted SELECT i, repeat(i::text, 10000), 0 FROM generate_series(1, 3) i;
	SELECT redstream.attach('toasted')});
arrives('toasted: another column changed', q{UPDATE toasted SET small = 1 WHERE id = 1}, [1], 'toasted');
arrives('toasted: nothing changed', q{UPDATE toasted SET big = big; UPDATE toasted SET id = id;}, [], 'toasted');
arrives('toasted: stored again', q{UPDATE toasted SET big = repeat(id::text, 10000)}, [], 'toasted');
arrives('toasted: one character changed',
	q{UPDATE toasted SET big = repeat('2', 9999) || '3' WHERE id = 2}, [2], 'toasted');
arrives('toasted: in the payload', q{
	SELECT redstream.attach('toasted', payload => ARRAY['big']);
	UPDATE toasted SET small = 2 WHERE id = 1;
	DELETE FROM toasted WHERE id = 3;},
	[ '{"big":"' . '1' x 10000 . '"}', '{"big":"' . '3' x 10000 . '"}' ], 'toasted');

# ---- DDL ------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE ddl (gone text, id integer PRIMARY KEY, name text, n integer DEFAULT 0);
	INSERT INTO ddl VALUES ('x', 1, 'a');
	SELECT redstream.attach('ddl', payload => ARRAY['name', 'id'])});
arrives('before any DDL', 'UPDATE ddl SET n = n + 1', ['{"name":"a","id":1}'], 'ddl');

# What is done, by the session itself or by another; then a change in the session
# and what arrives, or the error.
my @ddl = (
	'ADD COLUMN, value as it is' => q{ALTER TABLE ddl ADD added integer DEFAULT 5},
	'UPDATE ddl SET added = 5' => [],
	'ADD COLUMN' => '',
	'UPDATE ddl SET added = 6' => ['{"name":"a","id":1}'],
	'DROP COLUMN, nothing changed' => q{ALTER TABLE ddl DROP gone, DROP added},
	'UPDATE ddl SET n = n' => [],
	'DROP COLUMN' => '',
	'UPDATE ddl SET n = n + 1' => ['{"name":"a","id":1}'],
	'ALTER TYPE' => q{ALTER TABLE ddl ALTER id TYPE text},
	'UPDATE ddl SET n = n + 1' => ['{"name":"a","id":"1"}'],
	'ALTER TYPE back' => q{ALTER TABLE ddl ALTER id TYPE bigint USING id::bigint},
	'UPDATE ddl SET n = n + 1' => ['{"name":"a","id":1}'],
	'RENAME TO' => q{ALTER TABLE ddl RENAME TO renamed},
	'UPDATE renamed SET n = n + 1' => ['{"name":"a","id":1}'],
	'RENAME of a payload column' =>
	  q{ALTER TABLE renamed RENAME TO ddl; ALTER TABLE ddl RENAME name TO title},
	'UPDATE ddl SET n = n + 1' =>
	  qr/^ERROR:  column "name" of table "ddl" does not exist any more, but is to be announced\nHINT:  Call redstream\.attach\(\) again/m,
	'RENAME back' => q{ALTER TABLE ddl RENAME title TO name},
	'UPDATE ddl SET n = n + 1' => ['{"name":"a","id":1}'],
	'DROP of a payload column' => q{ALTER TABLE ddl DROP name},
	'BEGIN; UPDATE ddl SET n = n + 1; COMMIT' =>
	  qr/^ERROR:  column "name" of table "ddl" does not exist any more/m,
	'attached again' => q{SELECT redstream.attach('ddl')},
	'UPDATE ddl SET n = n + 1' => [1],
	'DROP of the primary key' => q{ALTER TABLE ddl DROP CONSTRAINT ddl_pkey},
	'UPDATE ddl SET n = n + 1' =>
	  qr/^ERROR:  table "ddl" has no primary key any more to be announced\nHINT:  Add one, /m,
	'another primary key' => q{ALTER TABLE ddl ADD key integer DEFAULT 9 PRIMARY KEY},
	'UPDATE ddl SET id = 2' => ['{"key":9}'],
	'the old primary key' => q{ALTER TABLE ddl DROP key, ADD PRIMARY KEY (id)},
	'UPDATE ddl SET id = 1' => [ 2, 1 ],
	'attached with columns' =>
	  q{ALTER TABLE ddl ADD name text; SELECT redstream.attach('ddl', columns => ARRAY['name'])},
	'UPDATE ddl SET n = n + 1' => [],
	'DROP of a column to look at' => q{ALTER TABLE ddl DROP name},
	'UPDATE ddl SET n = n + 2' => qr/^ERROR:  column "name" of table "ddl" does not exist any more/m,
	'attached with a payload' =>
	  q{ALTER TABLE ddl ADD name text; SELECT redstream.attach('ddl', 'ddl', payload => ARRAY['name', 'id'])},
	q{UPDATE ddl SET name = 'a'} => [ '{"name":null,"id":1}', '{"name":"a","id":1}' ],
	'attached to another stream' => q{SELECT redstream.attach('ddl', 'elsewhere')},
	'UPDATE ddl SET n = n + 1' => [],
	'detached' => q{SELECT redstream.detach('ddl')},
	'UPDATE ddl SET n = n + 2' => [],
	'and attached again' =>
	  q{ALTER TABLE ddl ADD gone text; SELECT redstream.attach('ddl', 'ddl', payload => ARRAY['name', 'id'])},
	'UPDATE ddl SET n = n + 3' => ['{"name":"a","id":1}'],
);
foreach my $by ($other, $session)
{
	my $who = $by == $session ? 'itself' : 'another session';
	my @steps = @ddl;

	while (my ($what, $ddl, $change, $expected) = splice @steps, 0, 4)
	{
		$by->query($ddl);
		if (ref $expected eq 'ARRAY')
		{
			arrives("$who: $what", $change, $expected, 'ddl');
		}
		else
		{
			refused("$who: $what", $change, $expected, 'ddl');
		}
	}
}
is_deeply([ map { $_->[1]{payload} } take($redis, 'redstream:stream:elsewhere') ],
	[ '{"id":1}', '{"id":1}' ], 'the other stream got what was for it');

# In one transaction, and rolled back.
arrives('attached in the transaction', q{
	BEGIN;
	UPDATE ddl SET n = n + 1;
	SELECT redstream.attach('ddl', 'ddl', payload => ARRAY['id']);
	UPDATE ddl SET n = n + 1;
	ALTER TABLE ddl ALTER id TYPE text;
	UPDATE ddl SET n = n + 1;
	COMMIT;}, [ '{"name":"a","id":1}', '{"id":1}', '{"id":"1"}' ], 'ddl');
$session->query(q{
	BEGIN;
	SELECT redstream.attach('ddl', 'elsewhere');
	ALTER TABLE ddl ALTER id TYPE integer USING id::integer;
	UPDATE ddl SET n = n + 1;
	ROLLBACK;});
arrives('after a rollback of DDL', 'UPDATE ddl SET n = n + 1', ['{"id":"1"}'], 'ddl');
arrives('the table made anew', q{
	DROP TABLE ddl;
	CREATE TABLE ddl (id integer PRIMARY KEY);
	INSERT INTO ddl VALUES (1);
	SELECT redstream.attach('ddl');
	INSERT INTO ddl VALUES (2);}, [2], 'ddl');

# ---- settings ---------------------------------------------------------------------------------

arrives('redstream.enabled = off', q{
	SET redstream.enabled = off;
	INSERT INTO item VALUES (10);
	RESET redstream.enabled;}, []);
arrives('redstream.enabled = off for a part of the transaction', q{
	BEGIN;
	INSERT INTO item VALUES (11);
	SET LOCAL redstream.enabled = off;
	INSERT INTO item VALUES (12);
	SET LOCAL redstream.enabled = on;
	INSERT INTO item VALUES (13);
	COMMIT;}, [ 11, 13 ]);
arrives('replication roles are as with any trigger', q{
	SET session_replication_role = replica;
	INSERT INTO item VALUES (14);
	RESET session_replication_role;
	INSERT INTO item VALUES (15);}, [15]);

# The namespace, in a session that has used the stream before.
sub set_namespace
{
	my ($namespace) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET redstream.namespace = '$namespace'");
	$node->reload;
	wait_until('the namespace', sub { $session->query('SHOW redstream.namespace') eq $namespace });
	return;
}

$session->query('BEGIN; INSERT INTO item VALUES (20);');
set_namespace('shop');
$session->query('INSERT INTO item VALUES (21); COMMIT;');
settle($node, $redis);
foreach my $kind ('', '.delay')
{
	is_deeply([ map { $_->[1]{payload} } take($redis, "redstream:stream:item$kind") ], ['{"id":20}'],
		"a row changed before the namespace did, stream item$kind");
	is_deeply([ map { $_->[1]{payload} } take($redis, "shop:redstream:stream:item$kind") ], ['{"id":21}'],
		"a row changed after it, stream item$kind");
}
set_namespace('');
arrives('without a namespace again', 'INSERT INTO item VALUES (22)', [22]);

$_->close foreach $session, $other;
$node->stop;
done_testing();
