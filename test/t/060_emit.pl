# redstream.emit(): a message of one's own is announced if its transaction commits, whatever else the transaction does.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

# no worker: delay messages are moved when the test says so
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node(
	'main', $redis,
	'redstream.timeout' => '30s',
	'redstream.delay' => '0',
	'redstream.databases' => 'nobody',
	'wal_level' => 'replica',
	'max_wal_senders' => 5,
	'wal_writer_delay' => '10s',
	'autovacuum' => 'off');
my $session = Redstream::Session->new($node);

$session->query('\set VERBOSITY verbose');

# The payloads on the stream once everything committed has arrived; takes both kinds of messages out.
sub arrived
{
	my ($stream) = @_;
	my $key = "redstream:stream:$stream";

	settle($node, $redis);
	my @delayed = map { $_->[1]{payload} } take($redis, "$key.delay");
	my @arrived = map { $_->[1]{payload} } take($redis, $key);
	return (\@arrived, \@delayed);
}

# Runs SQL, and compares what it brings to the stream "mails".
sub arrives
{
	my ($what, $sql, @expected) = @_;
	my $output = $session->query($sql);
	my ($arrived, $delayed) = arrived('mails');

	is_deeply($arrived, \@expected, $what) or diag($output);
	is_deeply($delayed, \@expected, "$what: delay messages");
	return $output;
}

# Runs SQL that fails with this SQLSTATE and text, and announces nothing.
sub refused
{
	my ($what, $sql, $state, $text) = @_;
	my $output = $session->query($sql);

	like($output, qr/^ERROR:  $state: $text/m, $what);
	is_deeply([ arrived('mails') ], [ [], [] ], "$what: nothing is announced");
	return;
}

# ---- with the transaction -----------------------------------------------------------

arrives('alone', q{SELECT redstream.emit('mails', '{"a": 1}')}, '{"a":1}');
arrives('several', q{SELECT redstream.emit('mails', i::text::jsonb) FROM generate_series(1, 4) i}, 1 .. 4);
arrives('equal ones are all announced', q{
	BEGIN;
	SELECT redstream.emit('mails', '1');
	SELECT redstream.emit('mails', '1');
	COMMIT}, 1, 1);
arrives('rolled back', q{BEGIN; SELECT redstream.emit('mails', '1'); ROLLBACK});
arrives('rolled back by an error', q{BEGIN; SELECT redstream.emit('mails', '1'); SELECT 1 / 0; COMMIT});
arrives('savepoints', q{
	BEGIN;
	SELECT redstream.emit('mails', '1');
	SAVEPOINT a;
	SELECT redstream.emit('mails', '2');
	ROLLBACK TO a;
	SELECT redstream.emit('mails', '3');
	SAVEPOINT b;
	SELECT redstream.emit('mails', '4');
	RELEASE b;
	COMMIT}, 1, 3, 4);
arrives('an exception that is caught', q{
	DO $$ BEGIN
		PERFORM redstream.emit('mails', '1');
		BEGIN
			PERFORM redstream.emit('mails', '2');
			PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN
			PERFORM redstream.emit('mails', '3');
		END;
	END $$}, 1, 3);
arrives('in a read-only transaction', q{BEGIN READ ONLY; SELECT redstream.emit('mails', '1'); COMMIT}, 1);
arrives('redstream.enabled is for triggers', q{
	SET redstream.enabled = off;
	SELECT redstream.emit('mails', '1');
	RESET redstream.enabled}, 1);

$session->query(q{BEGIN; SELECT redstream.emit('mails', '1')});
settle($node, $redis);
is($redis->command('EXISTS', 'redstream:stream:mails'), 0, 'nothing is on the stream before the commit');
arrives('the commit', 'COMMIT', 1);

# ---- between changes of rows ------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, name text);
	SELECT redstream.attach('item', 'mails')});
arrives('the order of changes and messages', q{
	BEGIN;
	SELECT redstream.emit('mails', '"first"');
	INSERT INTO item VALUES (1);
	SELECT redstream.emit('mails', '"second"');
	UPDATE item SET name = 'a';
	INSERT INTO item VALUES (2);
	SELECT redstream.emit('mails', '{"id": 2}');
	COMMIT}, '"first"', '{"id":1}', '"second"', '{"id":2}', '{"id":2}');
arrives('from a trigger', q{
	CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM redstream.emit('mails', to_jsonb(NEW)); RETURN NEW; END $$;
	CREATE TRIGGER tell BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION tell();
	INSERT INTO item VALUES (3, 'c');
	DROP TRIGGER tell ON item},
	'{"id":3,"name":"c"}', '{"id":3}');
arrives('from a deferred trigger', q{
	CREATE CONSTRAINT TRIGGER tell AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION tell();
	BEGIN;
	INSERT INTO item VALUES (4, 'd'), (5, 'e');
	COMMIT;
	DROP TRIGGER tell ON item},
	'{"id":4}', '{"id":5}', '{"id":4,"name":"d"}', '{"id":5,"name":"e"}');
$node->safe_psql('postgres', 'DROP TABLE item');

# ---- what it is given ------------------------------------------------------------------------

arrives('white space goes, strings stay', q{
	SELECT redstream.emit('mails', '{"b" : [1, 2.50, 1e3 , true, null],
		"a b": " x  \" : , \\\\ / \n\t\u001f ", "": {}, "c": []}')},
	'{"":{},"b":[1,2.50,1000,true,null],"c":[],"a b":" x  \" : , \\\\ / \n\t\u001f "}');
arrives('scalars', q{SELECT redstream.emit('mails', j) FROM unnest('{"null", "true", "\" \"", "[ ]"}'::jsonb[]) j},
	'null', 'true', '" "', '[]');
arrives('what is not ASCII', q{SELECT redstream.emit('mails', jsonb_build_object('ключ', 'Grüße 𝄞 ' || chr(8364)))},
	'{"ключ":"Grüße 𝄞 €"}');
{
	my $stream = 'odd "name" {tag} ü';
	$session->query(qq{SELECT redstream.emit('$stream', '1')});
	is_deeply([ arrived($stream) ], [ [1], [1] ], 'a name with all there may be in one');
}

refused('a stream without a name', q{SELECT redstream.emit('', '1')}, '42602', 'stream name must not be empty');
refused('the name of a delay stream', q{SELECT redstream.emit('a.delay', '1')}, '42602', 'stream name must not end in "\.delay"');
refused('a control character', q{SELECT redstream.emit(E'a\nb', '1')}, '42602', 'stream name must not contain control characters');
refused('too long a name', q{SELECT redstream.emit(repeat('x', 513), '1')}, '42602', 'stream name must not be longer than 512 bytes');
refused('a name that is too long in UTF-8', q{SELECT redstream.emit(repeat('é', 257), '1')}, '42602', 'stream name must not be longer than 512 bytes');
refused('no stream', q{SELECT redstream.emit(NULL, '1')}, '22004', 'stream must not be null');
refused('no payload', q{SELECT redstream.emit('mails', NULL)}, '22004', 'payload must not be null');
refused('what is no JSON', q{SELECT redstream.emit('mails', '[1,')}, '22P02', 'invalid input syntax for type json');

my $limit = 4 * 1024 * 1024 - 4096;
refused('one byte too many', qq{SELECT redstream.emit('mails', to_jsonb(repeat('x', $limit - 1)))},
	'54000', 'message of 4190209 bytes is too large to announce');
$session->query(qq{SELECT redstream.emit('mails', to_jsonb(repeat('x', $limit - 2)))});
is_deeply([ map { length } @{ (arrived('mails'))[0] } ], [$limit], 'one as large as can be');

# In a database of another encoding: the stream's name and the payload are UTF-8 all the same.
$node->safe_psql('postgres', q{
	CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', q{
	CREATE EXTENSION redstream;
	SELECT redstream.emit('gr' || chr(252) || 'n', jsonb_build_object('k' || chr(246), 'stra' || chr(223) || 'e ' || chr(233)))});
is_deeply([ arrived('grün') ], [ ['{"kö":"straße é"}'], ['{"kö":"straße é"}'] ], 'a database in LATIN1');
refused('too long a name in LATIN1', q{
	\c latin
	SELECT redstream.emit(repeat(chr(252), 257), '1');
	\c postgres}, '42602', 'stream name must not be longer than 512 bytes');

# ---- large transactions ------------------------------------------------------------------------

$session->query(q{
	SET redstream.transaction_buffer = '64kB';
	BEGIN;
	SELECT redstream.emit('mails', to_jsonb(i)) FROM generate_series(1, 10000) i;
	SAVEPOINT s;
	SELECT redstream.emit('mails', to_jsonb(i)) FROM generate_series(10001, 20000) i;
	ROLLBACK TO s;
	SELECT redstream.emit('other', '"o"');
	SELECT redstream.emit('mails', to_jsonb(i)) FROM generate_series(20001, 30000) i;
	COMMIT;
	RESET redstream.transaction_buffer});
is(join(' ', @{ (arrived('mails'))[0] }), join(' ', 1 .. 10000, 20001 .. 30000), 'a large transaction');
is_deeply((arrived('other'))[0], ['"o"'], 'and its other stream');

# ---- who may --------------------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE ROLE mailer');
refused('nobody may', q{SET ROLE mailer; SELECT redstream.emit('mails', '1'); RESET ROLE}, '42501',
	'permission denied for schema redstream');
$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA redstream TO mailer');
refused('nor with the schema', q{SET ROLE mailer; SELECT redstream.emit('mails', '1'); RESET ROLE}, '42501',
	'permission denied for function emit');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION redstream.emit TO mailer');
arrives('unless it is granted', q{SET ROLE mailer; SELECT redstream.emit('mails', '1'); RESET ROLE}, 1);

# ---- what a crash leaves -------------------------------------------------------------------------------

# Moves what is due, and returns what the stream has then.
sub delayed
{
	$node->safe_psql('postgres', 'SELECT FROM redstream.run_delayer()');
	my @payloads = map { $_->[1]{payload} } take($redis, 'redstream:stream:mails');
	return "@payloads";
}

# A message is all that the transaction writes, and commits do not wait for the disk. This one does: what is announced has to be
# committed.
my $xid = $session->query(q{
	SET synchronous_commit = off;
	BEGIN;
	SELECT redstream.emit('mails', '1');
	SELECT pg_current_xact_id();
	COMMIT});
($xid) = $xid =~ /(\d+)/;
$node->stop('immediate');
$session->close;
$node->start;
is($node->safe_psql('postgres', "SELECT pg_xact_status('$xid')"), 'committed', 'a message alone is committed for good');
wait_until('the message', sub { delayed() });
is_deeply([ crashes($node) ], [], 'no crash');

# ---- hot standby -----------------------------------------------------------------------------------------

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->start;
my (undef, undef, $error) = $standby->psql('postgres', q{SELECT redstream.emit('mails', '1')});
like($error, qr/^psql:<stdin>:1: ERROR:  cannot execute redstream\.emit\(\) during recovery/, 'a hot standby refuses');
$standby->stop;

# ---- without Redis ---------------------------------------------------------------------------------------

$session = Redstream::Session->new($node);
$session->query('\set VERBOSITY verbose');
$redis->stop;
wait_connected($node, 0);
like($session->query(q{SET redstream.on_outage = error; SELECT redstream.emit('mails', '1'); RESET redstream.on_outage}),
	qr/^ERROR:  58030: could not announce changes: Redis is not available/, 'no Redis, no commit');
like($session->query(q{SET redstream.on_outage = skip; SELECT redstream.emit('mails', '2'); RESET redstream.on_outage}),
	qr/^WARNING:  01000: changes of this transaction are not announced: Redis is not available/, 'unless it may be skipped');
$redis->start;
wait_connected($node, 1);
arrives('Redis is back', q{SELECT redstream.emit('mails', '3')}, 3);

# ---- prepared transactions ----------------------------------------------------------------------

# From here on with a worker, which delivers them.
reconfigure($node, 'redstream.databases' => '', 'redstream.delay' => '1h');
$session->query(q{
	BEGIN;
	SELECT redstream.emit('mails', '1');
	PREPARE TRANSACTION 'kept';
	BEGIN;
	SELECT redstream.emit('mails', '2');
	PREPARE TRANSACTION 'lost'});
is_deeply([ arrived('mails') ], [ [], [] ], 'two prepared transactions: nothing is announced');
$session->query(q{ROLLBACK PREPARED 'lost'; COMMIT PREPARED 'kept'});
is_deeply([ arrived('mails') ], [ ['1'], ['1'] ], 'the one that is committed is');

$session->close;
$node->stop;
done_testing();
