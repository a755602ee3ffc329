# The sender or a backend dies, a transaction fails late or takes long to
# commit.  What was committed is announced, what was not is not, and nobody else is
# held up.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;

# redstream_test's step comes after redstream's: when the place is taken.
my $node = new_node(
	'main', $redis,
	'shared_preload_libraries' => 'redstream_test, redstream',
	'redstream.timeout' => '3s',
	'redstream.on_outage' => 'error',
	'restart_after_crash' => 'on',
	'log_statement' => 'none',
	'wal_level' => 'replica',
	'max_wal_senders' => 5);

# Waits for another sender than the old one.
sub wait_for_sender
{
	my ($old) = @_;
	wait_until('another sender', sub {
		my $new = eval { sender_pid($node) };
		return $new && $new != $old && eval { stats($node)->{connected} };
	});
	return;
}

sub kill_sender
{
	my ($signal) = @_;
	my $old = sender_pid($node) or die 'there is no sender';

	kill($signal, $old);
	wait_for_sender($old);
	pass("SIG$signal: the sender comes back");
	return;
}

sub payloads { return [ $redis->payloads("redstream:stream:$_[0]") ]; }
sub delayed { return [ $redis->payloads("redstream:stream:$_[0].delay") ]; }

# ---- the sender --------------------------------------------------------------

{
	my $load = Redstream::Load->new($node, $redis, table => 'sigterm', rows => 100);

	$load->start;
	foreach (1 .. 3)
	{
		$load->progress(200);
		kill_sender('TERM');
	}
	$load->progress(200);
	$load->stop;
	is_deeply([ $load->errors ], [], 'SIGTERM: no transaction fails');
	$load->check('SIGTERM');
}
my $stats = stats($node);
cmp_ok($stats->{delayed}, '>', 0, 'the counters survive the sender');
cmp_ok($stats->{acknowledged}, '<=', $stats->{delayed},
	'no more main messages than delay messages');
is_deeply([ crashes($node) ], [], 'no crash');

# One that fails again and again before it has a connection counts as an outage: nobody waits
# for it, and it is not started more often than once a second.
{
	my $offset = -s $node->logfile;
	my $failures = sub { return scalar(() = slurp_file($node->logfile, $offset) =~ /sender_error is on/g); };

	$node->safe_psql('postgres', q{
		CREATE TABLE failing (id integer PRIMARY KEY);
		SELECT redstream.attach('failing')});
	reconfigure($node, 'redstream_test.sender_error' => 'on', 'redstream.timeout' => '20s');
	my $begun = time;
	kill('TERM', sender_pid($node));
	wait_until('two failures', sub { $failures->() >= 2 });
	like(($node->psql('postgres', 'INSERT INTO failing VALUES (1)'))[2],
		qr/could not announce changes: Redis is not available/, 'sender fails at start: a transaction does not wait for it');
	is($node->safe_psql('postgres', q{SET redstream.on_outage = spool; INSERT INTO failing VALUES (2)}), '',
		'sender fails at start: or is spooled');
	wait_until('more failures', sub { $failures->() >= 4 });
	cmp_ok($failures->(), '<=', time - $begun + 2, 'sender fails at start: it is started once a second');
	reconfigure($node, 'redstream_test.sender_error' => 'off', 'redstream.timeout' => '3s');
	wait_connected($node, 1);
	wait_until('the spooled message', sub { $redis->payloads('redstream:stream:failing') });
	is_deeply([ $redis->payloads('redstream:stream:failing') ], ['{"id":2}'],
		'sender fails at start: what was spooled is delivered, what failed is not announced');
	is_deeply([ crashes($node) ], [], 'sender fails at start: no crash');
}

# SIGKILL makes the postmaster restart everything.  What the lanes held is gone; the
# delay messages are not, so that the newest may be missing on the main stream.
{
	my $load = Redstream::Load->new($node, $redis, table => 'sigkill', rows => 100);

	$load->start;
	foreach (1 .. 2)
	{
		$load->progress(200);
		kill_sender('KILL');
	}
	$load->progress(200);
	$load->stop;
	$load->check('SIGKILL', lanes_lost => 1);
	is_deeply([ grep { /PANIC|TRAP/ } crashes($node) ], [], 'SIGKILL: no panic');
}

# ---- a backend, after redstream's step and before the commit -----------------

my $log_offset = -s $node->logfile;
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t');
});
my $sender = sender_pid($node);
my ($status, undef, $stderr) = $node->psql('postgres', q{
	SET redstream_test.pre_commit_kill = on;
	INSERT INTO t VALUES (1)});
isnt($status, 0, 'backend killed: the session is gone');
wait_for_sender($sender);
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), 0,
	'backend killed: nothing was committed');
is_deeply(delayed('t'), ['{"id":1}'], 'backend killed: the delay message is there');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (2)');
settle($node, $redis);
is_deeply(payloads('t'), ['{"id":2}'], 'backend killed: it is not announced, and later ones are');
is_deeply([ grep { /PANIC|TRAP/ } crashes($node, $log_offset) ], [], 'backend killed: no panic');

# ---- an error after the place was taken --------------------------------------

$log_offset = -s $node->logfile;
($status, undef, $stderr) = $node->psql('postgres', q{
	SET redstream_test.pre_commit_error = on;
	INSERT INTO t VALUES (3);
	INSERT INTO t VALUES (4)}, on_error_stop => 0);
like($stderr, qr/redstream_test.pre_commit_error is on/, 'late error: the transaction fails');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (5)');
settle($node, $redis);
is_deeply(payloads('t'), [ '{"id":2}', '{"id":5}' ],
	'late error: it is not announced, and later ones are');
is(stats($node)->{main_bytes}, 0, 'late error: its place is free');
is(stats($node)->{passed}, 0, 'late error: and was not waited for');

# ---- a commit that takes long ------------------------------------------------

# The standby hangs, so the transaction has a place and does not end.
$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->start;
reconfigure($node, 'synchronous_standby_names' => '*', 'redstream.timeout' => '2s');
$node->poll_query_until('postgres', q{SELECT sync_state = 'sync' FROM pg_stat_replication});
my ($receiver) = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
kill('STOP', $receiver);

my $slow = Redstream::Session->new($node);
$slow->send('INSERT INTO t VALUES (6)');
$node->poll_query_until('postgres',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$node->safe_psql('postgres', q{
	SET synchronous_commit = local;
	INSERT INTO t VALUES (7)});
wait_until('the message behind it', sub { payloads('t')->[-1] eq '{"id":7}' });
is_deeply(payloads('t'), [ '{"id":2}', '{"id":5}', '{"id":7}' ],
	'commit that hangs: it is stepped over');
is(stats($node)->{passed}, 1, 'commit that hangs: and counted');
is(delayed('t')->[-2], '{"id":6}', 'commit that hangs: its delay message is there');
is(stats($node)->{main_bytes}, 0, 'commit that hangs: nothing is left in the lane');

kill('CONT', $receiver);
is($slow->result, '', 'commit that hangs: the transaction commits');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (8)');
settle($node, $redis);
is_deeply(payloads('t'), [ '{"id":2}', '{"id":5}', '{"id":7}', '{"id":8}' ],
	'commit that hangs: its end harms nothing');
is_deeply([ crashes($node, $log_offset) ], [], 'no crash');
reconfigure($node, 'synchronous_standby_names' => '');
$standby->stop;

# The same between the moment others see the commit and redstream's hearing of it, with
# a lane that goes once round meanwhile: the cell of the place has another
# owner when the transaction ends.
$node->append_conf('postgresql.conf', q{
shared_preload_libraries = 'redstream, redstream_test'
redstream.queue_size = '1MB'
});
$node->restart;
wait_connected($node, 1);
$slow = Redstream::Session->new($node);
$slow->send("SET redstream_test.commit_pause = '10s';
	INSERT INTO t VALUES (11)");
wait_until('the commit', sub {
	$node->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id = 11') });
$node->safe_psql('postgres', q{
	CREATE TABLE many (id integer PRIMARY KEY, n integer NOT NULL);
	INSERT INTO many VALUES (1, 0);
	SELECT redstream.attach('many', payload => ARRAY['id', 'n'])});
$node->safe_psql('postgres', q{
	SET synchronous_commit = off;
	DO $$BEGIN
		FOR i IN 1 .. 9000 LOOP
			UPDATE many SET n = i;
			COMMIT;
		END LOOP;
	END$$});
settle($node, $redis);
is(stats($node)->{passed}, 1, 'late commit: the place is passed');
is($slow->result, '', 'late commit: the transaction commits');
settle($node, $redis);
is_deeply([ grep { /"id":11/ } @{ payloads('t') } ], [], 'late commit: there is no main message');
is(delayed('t')->[-1], '{"id":11}', 'late commit: but a delay message');
my @expected = map { sprintf('{"id":1,"n":%d}', int(($_ + 1) / 2)) } 0 .. 17999;
is(join(' ', @{ payloads('many') }), join(' ', @expected),
	'late commit: all others are announced once and in order');

is_deeply([ crashes($node, $log_offset) ], [], 'no crash');
$node->stop;
done_testing;
