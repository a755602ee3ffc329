# The edges of a transaction: two-phase commit, rows that come after redstream's
# own step of the commit, commits without WAL, waiting that is broken off; and a server
# that did not preload the library.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream_test, redstream',
	'redstream.timeout' => '10min',
	'redstream.queue_size' => '1MB',
	'max_prepared_transactions' => 10);
my $session = Redstream::Session->new($node);

$session->query(q{
	CREATE TABLE item (id integer PRIMARY KEY, name text);
	CREATE TABLE late (id serial PRIMARY KEY, note text);
	CREATE TABLE plain (id integer);
	CREATE UNLOGGED TABLE fast (id integer PRIMARY KEY, n integer DEFAULT 0);
	SELECT redstream.attach('item');
	SELECT redstream.attach('late', payload => ARRAY['note']);
	SELECT redstream.attach('fast')});

# Payloads on a stream once everything committed has arrived; takes them out.
sub arrived
{
	my ($stream) = @_;
	settle($node, $redis);
	$redis->command('DEL', "redstream:stream:$stream.delay");
	return join ' ', map { $_->[1]{payload} } take($redis, "redstream:stream:$stream");
}

# ---- two-phase commit ---------------------------------------------------------------

# Its messages go by the spool (091_spool_prepared.pl).
is($session->query(q{BEGIN; INSERT INTO item VALUES (1); PREPARE TRANSACTION 'p1'; COMMIT PREPARED 'p1'}), '',
	'a transaction with changes is prepared and committed');
wait_until('its message', sub { $redis->command('EXISTS', 'redstream:stream:item') });
wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 });
is(arrived('item'), '{"id":1}', 'and announced');
$session->query('DELETE FROM item');
is(arrived('item'), '{"id":1}', 'so is the next change');
is($session->query(q{
	BEGIN; INSERT INTO plain VALUES (1); PREPARE TRANSACTION 'p2'; COMMIT PREPARED 'p2';
	BEGIN; INSERT INTO plain VALUES (2); PREPARE TRANSACTION 'p3'; ROLLBACK PREPARED 'p3';}), '',
	'so is one without changes');
is($session->query(q{
	BEGIN; SAVEPOINT s; INSERT INTO item VALUES (2); ROLLBACK TO s;
	INSERT INTO plain VALUES (3); PREPARE TRANSACTION 'p4'; COMMIT PREPARED 'p4';}), '',
	'one whose change was rolled back');
is($session->query(q{
	BEGIN; SET LOCAL redstream.enabled = off; INSERT INTO item VALUES (3);
	PREPARE TRANSACTION 'p5'; COMMIT PREPARED 'p5';}), '',
	'one with the trigger off');
is($session->query('SELECT id FROM item; SELECT id FROM plain ORDER BY id'), "3\n1\n3",
	'these committed');
is(arrived('item'), '', 'nothing was announced');
$session->query('INSERT INTO item VALUES (4)');
is(arrived('item'), '{"id":4}', 'the next change is');

# ---- after redstream's step of the commit -----------------------------------------------

# Runs SQL in a transaction whose commit runs more SQL, behind redstream's step.
sub with_late
{
	my ($late, @sql) = @_;
	$late =~ s/'/''/g;
	my $output = $session->query("SET redstream_test.pre_commit_sql = '$late'; " . join '; ', @sql);
	$session->query('RESET redstream_test.pre_commit_sql; RESET redstream_test.pre_commit_error');
	return $output;
}

with_late(q{INSERT INTO late (note) VALUES ('a')}, 'INSERT INTO item VALUES (5)');
is(arrived('late'), '{"note":"a"}', 'a late row arrives');
is(arrived('item'), '{"id":5}', 'and what came before it');
with_late(q{INSERT INTO late (note) VALUES ('b')}, 'INSERT INTO plain VALUES (5)');
is(arrived('late'), '{"note":"b"}', 'a late row that is the only one arrives');
with_late(q{INSERT INTO late (note) SELECT repeat('c', 400) || i FROM generate_series(1, 500) i},
	'INSERT INTO item VALUES (6)');
is(arrived('late'), join(' ', map { '{"note":"' . 'c' x 400 . qq($_"}) } 1 .. 500),
	'many late rows arrive');
is(arrived('item'), '{"id":6}', 'and what came before them');
with_late(q{INSERT INTO late (note) VALUES ('e'); INSERT INTO item VALUES (8); UPDATE item SET name = 'x' WHERE id = 7},
	q{INSERT INTO item VALUES (7)});
is(arrived('item'), '{"id":7} {"id":8}', 'late rows of the stream used before');
is(arrived('late'), '{"note":"e"}', 'and of another');
with_late(q{DO $$ BEGIN
		INSERT INTO late (note) VALUES ('kept');
		BEGIN
			INSERT INTO late (note) VALUES ('undone');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			INSERT INTO late (note) VALUES ('handled');
		END;
	END $$}, 'INSERT INTO item VALUES (9)');
is(arrived('late'), '{"note":"kept"} {"note":"handled"}', 'a late savepoint rolled back');
is(arrived('item'), '{"id":9}', 'the rest was not');

like(with_late('', 'SET redstream_test.pre_commit_error = on', 'INSERT INTO item VALUES (10)'),
	qr/redstream_test\.pre_commit_error is on/, 'an error after the step');
is(arrived('item'), '', 'nothing arrives');
like(with_late(q{INSERT INTO late (note) VALUES ('f')},
	'SET redstream_test.pre_commit_error = on', 'INSERT INTO item VALUES (10)'),
	qr/redstream_test\.pre_commit_error is on/, 'an error after the step and a late row');
is(arrived('item') . arrived('late'), '', 'nothing arrives of either');
like(with_late(q{INSERT INTO late (note) VALUES ('g')},
	'SET redstream_test.pre_commit_error = on', 'INSERT INTO plain VALUES (10)'),
	qr/redstream_test\.pre_commit_error is on/, 'an error after a late row that is the only one');
is(arrived('late'), '', 'nothing arrives');
$session->query('INSERT INTO item VALUES (10)');
is(arrived('item'), '{"id":10}', 'the next change arrives');

# ---- commits without WAL ------------------------------------------------------------------

foreach my $mode (qw(on off local remote_apply))
{
	$session->query("SET synchronous_commit = $mode");
	$session->query('INSERT INTO fast VALUES (1); UPDATE fast SET n = n + 1; DELETE FROM fast');
	is(arrived('fast'), '{"id":1} {"id":1} {"id":1}', "an unlogged table, synchronous_commit = $mode");
	$session->query("INSERT INTO item VALUES (11); DELETE FROM item WHERE id = 11");
	is(arrived('item'), '{"id":11} {"id":11}', "a logged one, synchronous_commit = $mode");
}
$session->query('RESET synchronous_commit');

# ---- waiting, broken off ---------------------------------------------------------------------

# Runs SQL that waits for a Redis that does not answer, ends it, and returns the output.
sub broken_off
{
	my ($with, $sql) = @_;
	my $client = Redstream::Session->new($node);
	my $pid = $client->pid;

	$redis->stop_signal;
	$client->send($sql);
	wait_until('the backend to wait', sub {
		$node->safe_psql('postgres', qq{
			SELECT state = 'active' AND (wait_event_type = 'Extension' OR query LIKE '%stream_size%')
			FROM pg_stat_activity WHERE pid = $pid}) eq 't';
	});
	$node->safe_psql('postgres', "SELECT $with($pid)");
	my $output = $client->result;
	$output .= "\n" . $client->query('SELECT 1') if $with eq 'pg_cancel_backend';
	$redis->cont;
	wait_until('the backend to go', sub {
		$node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0';
	}) unless $with eq 'pg_cancel_backend';
	$client->close;
	return $output;
}

my %ends = (
	pg_cancel_backend => qr/^ERROR:  canceling statement due to user request\n1$/,
	pg_terminate_backend => qr/^FATAL:  terminating connection due to administrator command/m);
my %waits = (
	'a commit' => q{INSERT INTO item VALUES (20)},
	'a COMMIT' => q{BEGIN; INSERT INTO item VALUES (20); INSERT INTO item VALUES (21); COMMIT},
	'a full queue' => q{SET redstream.transaction_buffer = '64kB';
		INSERT INTO item SELECT i FROM generate_series(100, 100000) i},
	'a question' => q{SELECT redstream.stream_size('item')});
foreach my $with (sort keys %ends)
{
	foreach my $what (sort keys %waits)
	{
		like(broken_off($with, $waits{$what}), $ends{$with}, "$with ends $what");
		is($session->query('SELECT count(*) FROM item WHERE id >= 20'), '0', '... the change is gone');
		is(arrived('item'), '', '... nothing arrives');
	}
}
$session->query('INSERT INTO item VALUES (20)');
is(arrived('item'), '{"id":20}', 'the next change arrives');

$session->close;
$node->stop;
is_deeply([ crashes($node, 0) ], [], 'no crash');

# ---- not preloaded -------------------------------------------------------------------------------

my $bare = new_node('bare', $redis, 'shared_preload_libraries' => '');
$bare->safe_psql('postgres', 'DROP EXTENSION redstream');
$session = Redstream::Session->new($bare);
is($session->query('CREATE EXTENSION redstream'),
	"WARNING:  redstream is not preloaded: changes of attached tables cannot be announced\n"
	  . 'HINT:  Put redstream into shared_preload_libraries in postgresql.conf and restart the server.',
	'CREATE EXTENSION warns');
is($session->query(q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item')}), '', 'attach() works');

my $refusal = "ERROR:  redstream must be preloaded to announce changes\n"
  . 'HINT:  Put redstream into shared_preload_libraries in postgresql.conf and restart the server.';
foreach my $load ('', 'LOAD')
{
	$session = Redstream::Session->new($bare);
	is($session->query(q{LOAD 'redstream'}), '', 'LOAD') if $load;
	is($session->query('INSERT INTO item VALUES (1)'), $refusal, 'a write is refused');
	is($session->query(q{BEGIN; INSERT INTO item VALUES (1); COMMIT; SELECT count(*) FROM item}),
		"$refusal\n0", 'in a transaction, too');
	is($session->query(q{BEGIN; SAVEPOINT s; INSERT INTO item VALUES (1); ROLLBACK TO s;
		SELECT count(*) FROM item; COMMIT}), "$refusal\n0", 'and in a savepoint');
	is($session->query(q{SET redstream.enabled = off; INSERT INTO item VALUES (1); DELETE FROM item;
		SELECT redstream.stream_key('item'), redstream.stream_size('item'); SELECT connected, captured FROM redstream.stats}),
		"redstream:stream:item|0\n|", 'the rest works');
	is($session->query(q{BEGIN; CREATE TABLE x (); PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'}), '',
		'PREPARE works');
	like($session->query(q{SET redstream.wait_for_ack = off; SET redstream.nonsense = 1}),
		qr/^ERROR:  invalid configuration parameter name "redstream.nonsense"/, 'settings are checked');
	$session->close;
}
$bare->append_conf('postgresql.conf', "session_preload_libraries = 'redstream'");
$bare->reload;
wait_until('the setting', sub { $bare->safe_psql('postgres', 'SHOW session_preload_libraries') eq 'redstream' });
$session = Redstream::Session->new($bare);
is($session->query('INSERT INTO item VALUES (1)'), $refusal, 'preloaded by sessions: a write is refused');
is($session->query(q{SELECT redstream.detach('item'); INSERT INTO item VALUES (1); SELECT count(*) FROM item}),
	"t\n1", 'detached: it is not');
$session->close;
$bare->stop;
is_deeply([ crashes($bare, 0) ], [], 'no crash');

done_testing();
