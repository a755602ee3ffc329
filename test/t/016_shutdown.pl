# The server stops, in every way it can, and starts again; and a standby takes
# over.

use strict;
use warnings;

use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node(
	'main', $redis,
	'redstream.timeout' => '10s',
	'redstream.on_outage' => 'error',
	'log_statement' => 'none',
	'wal_level' => 'replica',
	'max_wal_senders' => 5);
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, filler text DEFAULT repeat('x', 50000));
	SELECT redstream.attach('t', payload => ARRAY['id', 'filler']);
});

sub main_ids
{
	return [ map { /^\{"id":(-?\d+)/ } $redis->payloads('redstream:stream:t') ];
}

sub wait_until_connected
{
	my ($server) = @_;
	wait_until('a connection', sub { eval { stats($server)->{connected} } });
	return;
}

# Commits so many rows without waiting for Redis.  They are too large for
# the socket to take them all.
my $last_id = 0;

sub insert_rows
{
	my ($count) = @_;
	$node->safe_psql('postgres', join '', "SET redstream.wait_for_ack = off;\n",
		map { "INSERT INTO t VALUES ($_);\n" } $last_id + 1 .. $last_id + $count);
	$last_id += $count;
	return;
}

# Stops the server, and lets Redis go on when it has begun to stop.
sub stop_and_continue
{
	my ($mode) = @_;
	my $offset = -s $node->logfile;
	my $pid = fork;

	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		my $deadline = time + 60;
		sleep 0.01
		  until slurp_file($node->logfile, $offset) =~ /received $mode shutdown request/
		  || time > $deadline;
		$redis->cont;
		POSIX::_exit(0);
	}
	$node->stop($mode);
	waitpid($pid, 0);
	return;
}

# ---- with messages in the lanes ----------------------------------------------

foreach my $mode ('fast', 'smart')
{
	$redis->stop_signal;
	insert_rows(50);
	cmp_ok(stats($node)->{main_bytes}, '>', 2_000_000, "$mode shutdown: messages are queued");
	stop_and_continue($mode);
	is_deeply(main_ids(), [ 1 .. $last_id ],
		"$mode shutdown: they are on the stream when the server has stopped");
	$node->start;
	wait_until_connected($node);
}

# ---- under load --------------------------------------------------------------

# The clients are stopped before the server starts again, so that what is there then
# is what was there at the shutdown.
foreach my $mode ('fast', 'immediate')
{
	my $load = Redstream::Load->new($node, $redis, table => "load_$mode", rows => 100);

	foreach (1 .. 2)
	{
		$load->start;
		$load->progress(300);
		$node->stop($mode);
		$load->stop;
		$node->start;
		wait_until_connected($node);
	}
	$load->check("$mode shutdown under load", lanes_lost => $mode eq 'immediate');
	is_deeply([ $load->inexact ], [], 'fast shutdown under load: every message once')
	  if $mode eq 'fast';
}

# ---- while Redis hangs -------------------------------------------------------

# What is queued waits for no longer than the timeout; nor does who waits for Redis.
foreach my $mode ('fast', 'smart', 'immediate')
{
	my $session = Redstream::Session->new($node);

	reconfigure($node, 'redstream.timeout' => '2s');
	$redis->stop_signal;
	insert_rows(1);
	$session->send('INSERT INTO t VALUES (-1)');
	wait_until('the session to wait', sub { sessions_waiting($node) == 1 || $mode eq 'smart' });
	$session->close if $mode eq 'smart';    # which waits for every session
	my $begun = time;
	$node->stop($mode);
	cmp_ok(time - $begun, '<', 40, "$mode shutdown while Redis hangs: ends");
	$redis->cont;
	$node->start;
	wait_until_connected($node);
	is($node->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id < 0'), 0,
		"$mode shutdown while Redis hangs: who waited is not committed");
	is($node->safe_psql('postgres', "SELECT count(*) FROM t WHERE id = $last_id"), 1,
		"$mode shutdown while Redis hangs: who did not wait is");
	insert_rows(1);
	wait_until('the next message', sub { main_ids()->[-1] == $last_id });
}
is_deeply([ grep { $_ < 0 } @{ main_ids() } ], [], 'nothing uncommitted is announced');
is_deeply([ crashes($node) ], [], 'no crash');

# ---- a standby ---------------------------------------------------------------

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is(sender_pid($standby), undef, 'standby: there is no sender');
is(stats($standby)->{connected}, 0, 'standby: redstream.stats can be read and says so');
like(($standby->psql('postgres', 'INSERT INTO t VALUES (-2)'))[2], qr/read-only transaction/,
	'standby: nothing can be written');

insert_rows(1);
my $system = $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');
my @fields = grep { /^xact/ } keys %{ ($redis->entries('redstream:stream:t.delay'))[-1][1] };
is_deeply(\@fields, ["xact:$system:1"], 'primary: the first timeline');

$node->wait_for_catchup($standby);
$node->stop('immediate');
$standby->promote;
wait_until_connected($standby);
ok(sender_pid($standby), 'promoted: the sender has started');
$standby->safe_psql('postgres', 'INSERT INTO t VALUES (1000000)');
settle($standby, $redis);
is(main_ids()->[-1], 1_000_000, 'promoted: messages arrive');
@fields = grep { /^xact/ } keys %{ ($redis->entries('redstream:stream:t.delay'))[-1][1] };
is_deeply(\@fields, ["xact:$system:2"], 'promoted: the second timeline');
my $load = Redstream::Load->new($standby, $redis, table => 'load_promoted', rows => 100);
$load->start;
$load->progress(300);
$load->stop;
$load->check('promoted');

is_deeply([ crashes($standby) ], [], 'no crash');
$standby->stop;
done_testing;
