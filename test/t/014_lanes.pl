# Full lanes, and the sessions that wait for Redis: they are released when it goes
# on, and can be cancelled and terminated before.

use strict;
use warnings;

use List::Util qw(max);
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $lane_size = 1024 * 1024;
my $redis = new_redis(appendonly => 'yes');
my $node = new_node(
	'main', $redis,
	'redstream.queue_size' => '1MB',
	'redstream.timeout' => '30s',
	'redstream.on_outage' => 'error',
	'log_statement' => 'none');

sub wait_for_waiting
{
	my ($count) = @_;
	wait_until("$count waiting sessions", sub { sessions_waiting($node) >= $count });
	return;
}

# ---- waiting for acknowledgement ---------------------------------------------

{
	my $load = Redstream::Load->new($node, $redis, table => 'waiting', rows => 100);

	$load->start(clients => 8);
	foreach (1 .. 3)
	{
		$load->progress(100);
		$redis->stop_signal;
		wait_for_waiting(8);
		$redis->cont;
	}
	$load->progress(100);
	$load->stop;
	is_deeply([ $load->errors ], [], 'eight sessions wait: all are released');
	$load->check('eight sessions wait');
	is_deeply([ $load->inexact ], [], 'eight sessions wait: every message once');
}

# ---- more than fits ----------------------------------------------------------

# A commit has 200 kB of messages, so that five fill a lane.
my $big = Redstream::Load->new($node, $redis, table => 'big', rows => 300, filler => 100_000);
$big->start(clients => 8);
$big->progress(50);
foreach (1 .. 2)
{
	$redis->stop_signal;
	wait_for_waiting(8);
	$redis->cont;
	$big->progress(20);
}
$redis->stop_signal;
wait_for_waiting(8);
my $stats = stats($node);
my $larger = max($stats->{delay_bytes}, $stats->{main_bytes});
cmp_ok($larger, '>', $lane_size / 2, 'large messages: a lane fills');
cmp_ok($larger, '<=', $lane_size, 'large messages: to its size and no more');
$redis->cont;
$big->stop;
is_deeply([ $big->errors ], [], 'large messages: no transaction fails');
$big->check('large messages');
is_deeply([ $big->inexact ], [], 'large messages: every message once');
$redis->command('DEL', 'redstream:stream:big', 'redstream:stream:big.delay');

# ---- cancelled and terminated ------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('t', payload => ARRAY['id', 'filler']);
});

# Statements of three sessions that wait: one is cancelled, one terminated, and
# one waits until Redis goes on.
sub check_interrupts
{
	my ($name, $first, $filler) = @_;
	my @sessions = map { Redstream::Session->new($node) } 1 .. 3;

	$sessions[$_]->send("INSERT INTO t VALUES ($first + $_, repeat('x', $filler))") foreach 0 .. 2;
	wait_for_waiting(3);
	$node->safe_psql('postgres', "SELECT pg_cancel_backend(${\$sessions[0]->pid})");
	like($sessions[0]->result, qr/ERROR:  canceling statement due to user request/,
		"$name: can be cancelled");
	is($sessions[0]->query('SELECT 1 + 1'), 2, "$name: the session lives on");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(${\$sessions[1]->pid}, 30000)");
	like($sessions[1]->result, qr/terminating connection due to administrator command/,
		"$name: can be terminated");
	$redis->cont;
	is($sessions[2]->result, '', "$name: the one that waits on is released");

	is( $node->safe_psql('postgres',
			"SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id >= $first"),
		$first + 2, "$name: only that one is committed");
	settle($node, $redis);
	my @ids = map { /"id":(\d+)/ && $1 >= $first ? $1 : () }
	  $redis->payloads('redstream:stream:t');
	is_deeply(\@ids, [ $first + 2 ], "$name: and only that one is announced");
	return;
}

$redis->stop_signal;
check_interrupts('waiting for acknowledgement', 100, 0);

# These do not wait for Redis, but for space.
sub fill_delay_lane
{
	my ($first) = @_;
	foreach my $id ($first .. $first + 9)
	{
		$node->safe_psql('postgres', qq{
			SET redstream.wait_for_ack = off;
			INSERT INTO t VALUES ($id, repeat('x', 100000))});
	}
	return;
}

$redis->stop_signal;
fill_delay_lane(200);
is($node->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id BETWEEN 200 AND 209'), 10,
	'wait_for_ack off: commits do not wait while there is room');
cmp_ok(stats($node)->{delay_bytes}, '>', $lane_size * 0.9, 'wait_for_ack off: the lane is full');
check_interrupts('waiting for space', 300, 100_000);
is_deeply(
	[ map { /"id":(2\d\d)/ ? $1 : () } $redis->payloads('redstream:stream:t') ],
	[ 200 .. 209 ], 'wait_for_ack off: what was queued has arrived, in order');

# A transaction whose messages outgrow the lane waits in the middle of its statement.
$redis->stop_signal;
my $session = Redstream::Session->new($node);
$session->send("INSERT INTO t SELECT i, repeat('x', 100000) FROM generate_series(401, 430) i");
wait_for_waiting(1);
$node->safe_psql('postgres', "SELECT pg_cancel_backend(${\$session->pid})");
like($session->result, qr/ERROR:  canceling statement due to user request/,
	'large transaction: can be cancelled while it streams');
$session->send("INSERT INTO t SELECT i, repeat('x', 100000) FROM generate_series(501, 530) i");
wait_for_waiting(1);
$redis->cont;
is($session->result, '', 'large transaction: is released');
settle($node, $redis);
is_deeply(
	[ map { /"id":([45]\d\d)/ ? $1 : () } $redis->payloads('redstream:stream:t') ],
	[ 501 .. 530 ], 'large transaction: announced, and the cancelled one is not');

# ---- an outage does not fill the lanes ---------------------------------------

# Whoever waits for Redis or not: what cannot be sent is not queued.
$redis->kill9;
wait_until('an outage', sub { stats($node)->{last_error} =~ /connect to/ });
foreach my $wait_for_ack ('on', 'off')
{
	my ($status, undef, $stderr) = $node->psql('postgres',
		join('', map { qq{
			SET redstream.wait_for_ack = $wait_for_ack;
			INSERT INTO t VALUES ($_, repeat('x', 100000));} } 601 .. 620),
		on_error_stop => 0);
	is(() = $stderr =~ /ERROR:  could not announce changes: Redis is not available/g, 20,
		"outage, wait_for_ack $wait_for_ack: every transaction fails");
}
cmp_ok(stats($node)->{delay_bytes}, '<', 200_000, 'outage: the lane does not fill');
$redis->start;
wait_connected($node, 1);
$node->safe_psql('postgres', 'INSERT INTO t VALUES (641)');
settle($node, $redis);
is_deeply([ map { /"id":(6\d\d)/ ? $1 : () } $redis->payloads('redstream:stream:t') ],
	[641], 'outage: what failed is not announced, what comes after it is');

$stats = stats($node);
is("$stats->{delay_bytes} $stats->{main_bytes}", '0 0', 'the lanes are empty');
is($stats->{passed}, 0, 'no transaction was passed');
is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
