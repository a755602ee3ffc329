# Two hundred sessions wait for Redis at once: all are released when it goes on, when the
# server stops, and when the sender finds that Redis is away.  Nothing is lost.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use POSIX qw(WNOHANG);
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $clients = 200;
my $redis = new_redis(appendonly => 'yes');
my $node = new_node(
	'main', $redis,
	'max_connections' => $clients + 20,
	'redstream.timeout' => '60s',
	'redstream.delay' => '1h',
	'log_statement' => 'none');

$node->safe_psql('postgres', q{
	CREATE TABLE t (id bigserial PRIMARY KEY);
	SELECT redstream.attach('t')});
my $script = $node->basedir . '/insert.sql';
append_to_file($script, "INSERT INTO t DEFAULT VALUES;\n");

# So many transactions of each of the clients begin.
my $pgbench;

sub start_crowd
{
	my ($transactions) = @_;

	defined($pgbench = fork) or die "fork: $!";
	if ($pgbench == 0)
	{
		open(STDOUT, '>', '/dev/null');
		open(STDERR, '>&', \*STDOUT);
		exec('pgbench', '-n', '-c', $clients, '-t', $transactions, '-f', $script, '-h', $node->host,
			'-p', $node->port, 'postgres')
		  or POSIX::_exit(127);
	}
	return;
}

sub wait_for_crowd
{
	wait_until("$clients waiting sessions", sub { sessions_waiting($node) == $clients }, 60);
	return;
}

# The exit status of the clients.
sub outcome
{
	wait_until('the clients', sub { waitpid($pgbench, WNOHANG) == $pgbench }, 60);
	return $?;
}

# What is committed is what is announced, each row so often.
sub announced_once
{
	my ($name) = @_;

	settle($node, $redis);
	my $rows = $node->safe_psql('postgres', 'SELECT id FROM t ORDER BY id');
	my @ids = sort { $a <=> $b } map { /(\d+)/ } $redis->payloads('redstream:stream:t');
	is(join("\n", @ids), $rows, "$name: every row is announced, once");
	return;
}

$redis->stop_signal;
start_crowd(3);
wait_for_crowd();
$redis->cont;
is(outcome(), 0, 'Redis goes on: all transactions commit');
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), 3 * $clients, 'Redis goes on: all are there');
announced_once('Redis goes on');

# Those that wait end, and what was committed is sent when Redis goes on.
$redis->stop_signal;
start_crowd(1);
wait_for_crowd();
my $offset = -s $node->logfile;
my $begun = time;
my $stop = fork;
die "fork: $!" unless defined $stop;
if ($stop == 0)
{
	exec('pg_ctl', '-s', '-D', $node->data_dir, '-m', 'fast', '-t', '60', 'stop') or POSIX::_exit(127);
}
wait_until('the shutdown', sub { slurp_file($node->logfile, $offset) =~ /received fast shutdown request/ });
wait_until('the end of all sessions', sub {
	my $ended = () = slurp_file($node->logfile, $offset) =~ /terminating connection due to administrator command/g;
	return $ended == $clients });
$redis->cont;
waitpid($stop, 0);
is($?, 0, 'shutdown: the server has stopped');
cmp_ok(time - $begun, '<', 40, 'shutdown: before redstream.timeout is over');
isnt(outcome(), 0, 'shutdown: who waited fails');
$node->_update_pid(0);
$node->start;
wait_connected($node, 1);
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), 3 * $clients, 'shutdown: nothing of it is committed');
announced_once('shutdown');

# With less patience it is the sender that says that Redis is away.
reconfigure($node, 'redstream.timeout' => '2s');
$redis->stop_signal;
start_crowd(2);
is(outcome(), 0, 'Redis does not answer: all transactions commit');
is(stats($node)->{spool_rows}, 2 * $clients, 'Redis does not answer: all are in the spool');
$redis->cont;
wait_connected($node, 1);
wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 });
announced_once('Redis does not answer');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
