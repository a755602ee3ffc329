# What is announced where a payload says more than the key, by enqueue(), bulk() and bulk_update() above all: the last one of a
# row must be that of the row as it is committed.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '30s');
my $session = Redstream::Session->new($node);
my $log_offset = -s $node->logfile;

# Runs SQL in the open session and returns the payloads that it brings to the stream.
sub arrived
{
	my ($stream, $sql) = @_;
	my $output = $session->query($sql);

	settle($node, $redis);
	$redis->command('DEL', "redstream:stream:$stream.delay");
	return map { $_->[1]{payload} } take($redis, "redstream:stream:$stream");
}

# ---- payload functions -----------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE order_line (orders integer, line integer, amount integer, PRIMARY KEY (orders, line));
	INSERT INTO order_line VALUES (1, 1, 5), (1, 2, 7);
	CREATE FUNCTION total(order_line) RETURNS jsonb LANGUAGE sql AS
		'SELECT jsonb_build_object($$total$$, (SELECT sum(amount) FROM public.order_line l WHERE l.orders = $1.orders))';
	SELECT redstream.attach('order_line', payload_function => 'total')});
foreach my $volatility (qw(VOLATILE STABLE))
{
	my $total = sub { '{"total":' . $node->safe_psql('postgres', 'SELECT sum(amount) FROM order_line') . '}' };

	$session->query("ALTER FUNCTION total $volatility");
	is((arrived('order_line', 'UPDATE order_line SET amount = amount + 1'))[-1], $total->(), "a $volatility function sees what UPDATE changed");
	is((arrived('order_line', q{SELECT redstream.bulk('order_line', 'true', 'UPDATE order_line SET amount = amount * 10')}))[-1],
		$total->(), "a $volatility function sees what bulk() changed");
	is((arrived('order_line', q{CALL redstream.bulk_update('order_line', 'amount = amount + 1')}))[-1],
		$total->(), "a $volatility function sees what bulk_update() changed");
}

$node->safe_psql('postgres', q{
	CREATE TABLE closing (id integer PRIMARY KEY);
	INSERT INTO closing SELECT generate_series(1, 1000);
	CREATE FUNCTION close_all(closing) RETURNS jsonb LANGUAGE plpgsql AS
		$$ BEGIN IF $1.id = 5 THEN EXECUTE 'CLOSE ALL'; END IF; RETURN to_jsonb($1); END $$;
	SELECT redstream.attach('closing', payload_function => 'close_all')});
like($session->query(q{SELECT redstream.enqueue('closing')}), qr/^ERROR:  cannot drop pinned portal/m,
	'a function cannot close the cursor that it is called from');
is($session->query(q{SELECT redstream.enqueue('closing', 'id > 5')}), '995', 'and all goes on after that');

# ---- functions beside a key of another type, and whose they are --------------------------------------------

$node->safe_psql('postgres', q{
	CREATE SCHEMA app;
	CREATE TABLE app.owners (ip inet PRIMARY KEY, name text);
	INSERT INTO app.owners VALUES ('10.0.0.1', 'anna');
	CREATE TABLE app.host (ip inet PRIMARY KEY, load integer);
	CREATE FUNCTION app.owner_of(host app.host) RETURNS json LANGUAGE plpgsql AS $$
	BEGIN RETURN json_build_object('owner', (SELECT name FROM owners WHERE owners.ip = host.ip)); END $$;
	SELECT redstream.attach('app.host', payload_function => 'app.owner_of', shards => 2)});
is($session->query(q{SET search_path = app, public; INSERT INTO host VALUES ('10.0.0.1', 1); RESET search_path}), '',
	'a row is written');
settle($node, $redis);
is(join(' ', map { $redis->payloads("redstream:stream:host-$_") } 0, 1), '{"owner":"anna"}',
	'the function has the search_path of the session, whatever the type of the key that chooses the shard');

$node->safe_psql('postgres', q{
	CREATE ROLE owner; CREATE ROLE other; CREATE ROLE member; GRANT owner TO member;
	CREATE SCHEMA shared; GRANT ALL ON SCHEMA shared, redstream TO PUBLIC;
	GRANT EXECUTE ON FUNCTION redstream.attach TO owner;
	CREATE TABLE shared.own (id integer PRIMARY KEY); ALTER TABLE shared.own OWNER TO owner;
	CREATE FUNCTION shared.say(shared.own) RETURNS json LANGUAGE sql AS 'SELECT json_build_array($1.id)'});
foreach my $of (qw(owner postgres member other))
{
	my $output = $session->query("RESET ROLE; ALTER FUNCTION shared.say OWNER TO $of; SET ROLE owner;"
		. q{SELECT redstream.attach('shared.own', payload_function => 'shared.say')});

	like($output, $of eq 'other' ? qr/^ERROR:  function shared\.say, which .* belongs to neither the table's owner nor a superuser/m :
		qr/\A\s*\z/, "a payload function of $of");
}
like($session->query(q{INSERT INTO shared.own VALUES (1)}), qr/belongs to neither/, 'who gets the function into his hands does not have it called');
$session->query('RESET ROLE');

# ---- triggers that change rows again ------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE nested (id integer PRIMARY KEY, v text);
	SELECT redstream.attach('nested', payload => ARRAY['id', 'v']);
	CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.v = 'same' THEN UPDATE nested SET v = 'same 2' WHERE id = NEW.id;
		ELSIF NEW.v = 'other' AND NEW.id = 1 THEN UPDATE nested SET v = 'other 2' WHERE id = 2; END IF;
		RETURN NULL; END $$;
	CREATE TRIGGER again AFTER INSERT OR UPDATE ON nested FOR EACH ROW EXECUTE FUNCTION again();
	CREATE TRIGGER zz_again AFTER INSERT OR UPDATE ON nested FOR EACH ROW EXECUTE FUNCTION again()});
foreach my $sql (
	q{INSERT INTO nested VALUES (1, 'same')}, q{INSERT INTO nested VALUES (2, 'b')},
	q{UPDATE nested SET v = 'same'}, q{UPDATE nested SET v = 'other'},
	q{SELECT redstream.bulk('nested', 'true', 'UPDATE nested SET v = $$same$$')},
	q{SELECT redstream.bulk('nested', 'id = 2', 'UPDATE nested SET v = $$other$$')},
	q{CALL redstream.bulk_update('nested', 'v = $$other$$')})
{
	my %last = map { /"id":(\d+),"v":"(.*)"/ ? ($1 => $2) : () } arrived('nested', $sql);
	my %committed = map { split /\|/ } split /\n/, $node->safe_psql('postgres', 'SELECT id, v FROM nested');

	is_deeply(\%last, { map { $_ => $committed{$_} } keys %last }, "the last payload is what was committed: $sql");
	cmp_ok(scalar(keys %last), '>', 0, 'and there is one');
}

# ---- columns ---------------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE price (id integer PRIMARY KEY, name text, price integer);
	INSERT INTO price VALUES (1, 'a', 1);
	SELECT redstream.attach('price', payload => ARRAY['id', 'price'], columns => ARRAY['name'])});
is(join(' ', arrived('price', q{SELECT redstream.bulk('price', 'true', 'UPDATE price SET price = 2')})),
	'{"id":1,"price":1} {"id":1,"price":2}', 'what was announced before is followed by what is now, whichever columns changed');
is(join(' ', arrived('price', 'UPDATE price SET price = 3')), '', 'a plain UPDATE of another column is not announced');

# ---- a table that is rewritten ----------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE moving (id integer PRIMARY KEY, v integer) PARTITION BY RANGE (id);
	CREATE TABLE moving_a PARTITION OF moving FOR VALUES FROM (0) TO (100);
	INSERT INTO moving SELECT i, 0 FROM generate_series(1, 20) i;
	DELETE FROM moving WHERE id <= 10;
	CREATE TABLE logged (n integer);
	CREATE FUNCTION maintain() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN
		CLUSTER moving_a USING moving_a_pkey; UPDATE moving SET v = 1 WHERE id >= 11; RETURN 1; END $$;
	SELECT redstream.attach('moving')});
arrived('moving', 'INSERT INTO moving SELECT i, 0 FROM generate_series(1, 5) i');
my %seen = map { $_ => 1 }
  arrived('moving', q{SELECT redstream.bulk('moving', 'id BETWEEN 11 AND 15', 'INSERT INTO logged SELECT maintain()')});
is(join(' ', map { /(\d+)/ } sort keys %seen), join(' ', 11 .. 20), 'rows that lie elsewhere than when they were announced');

# ---- a condition that is not all in its text ------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;
	SET search_path = public, ext;
	CREATE TABLE word (id integer PRIMARY KEY, word citext);
	INSERT INTO word VALUES (1, 'abc'), (2, 'ABC'), (3, 'x');
	SELECT redstream.attach('word', condition => $$word IS NOT DISTINCT FROM 'ABC'$$)});
is(join(' ', arrived('word', q{SELECT redstream.enqueue('word')})), '{"id":1} {"id":2}',
	'the operator of the condition is that of attach(), not of the search_path');
is(join(' ', arrived('word', q{CALL redstream.bulk_enqueue('word')})), '{"id":1} {"id":2}', 'in batches, too');
is(join(' ', arrived('word', q{TRUNCATE word})), '{"id":1} {"id":2}', 'and with TRUNCATE');

# ---- keys that move ----------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE made (a integer, v integer DEFAULT 0, id integer GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY);
	INSERT INTO made SELECT generate_series(1, 20);
	CREATE TABLE shifted (id integer PRIMARY KEY, v integer DEFAULT 0);
	INSERT INTO shifted SELECT generate_series(1, 20);
	CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1000; RETURN NEW; END';
	CREATE TRIGGER shift BEFORE UPDATE ON shifted FOR EACH ROW EXECUTE FUNCTION shift()});
like($session->query(q{CALL redstream.bulk_update('made', 'a = a + 1000, v = v + 1', batch_size => 7)}),
	qr/^ERROR:  cannot update table "made" in batches: a column of its primary key is generated/m, 'a generated key');
$session->query(q{CALL redstream.bulk_update('shifted', 'v = v + 1', batch_size => 7)});
is($node->safe_psql('postgres', 'SELECT min(v), max(v) FROM shifted'), '1|1',
	'rows behind the end that there was at the beginning are not reached');

is(scalar(crashes($node, $log_offset)), 0, 'no crash');
done_testing();
