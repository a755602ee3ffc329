# Under load Redis goes away and comes back, again and again: nothing is lost, nothing
# fails, and first announcements stay in commit order, on the way into the spool, in it and out of it.
#
# REDSTREAM_TEST_ROUNDS says how often (once unless told).

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Test;
use Test::More;

my $rounds = $ENV{REDSTREAM_TEST_ROUNDS} || 1;
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'redstream.delay' => '1h',
	'log_statement' => 'none', 'restart_after_crash' => 'on');

sub outages { return stats($node)->{errors}; }

# Redis is away for some commits.
sub take_away
{
	my ($load, $begin, $end) = @_;
	my $spooled = stats($node)->{spooled};

	$begin->();
	wait_until('spooled messages', sub { stats($node)->{spooled} > $spooled + 50 });
	$end->();
	return;
}

# The lane is in use again though the load goes on.
sub await_lane
{
	my ($load) = @_;
	wait_until(
		'commits that do not spool',
		sub {
			my $spooled = stats($node)->{spooled};
			$load->progress(30);
			return stats($node)->{spooled} == $spooled;
		},
		60);
	return;
}

sub check_outages
{
	my ($name, $table, $begin, $end, %options) = @_;
	my $load = Redstream::Load->new($node, $redis, table => $table, rows => 20);

	$load->start(clients => 4);
	foreach (1 .. $rounds)
	{
		$load->progress(100);
		take_away($load, $begin, $end);
		await_lane($load);
	}
	# the last time no load hides what is missing
	take_away($load, $begin, sub { $load->stop; $end->() });
	is_deeply([ $load->errors ], [], "$name: no transaction fails") unless $options{crashes};
	$load->check($name, lanes_lost => $options{crashes});
	return;
}

check_outages('Redis killed', 'killed', sub { $redis->kill9 }, sub { $redis->start });
check_outages('Redis stopped', 'stopped', sub { $redis->stop_signal }, sub { $redis->cont });
check_outages('Redis full', 'oom',
	sub { $redis->command('CONFIG', 'SET', 'maxmemory', '1mb') },
	sub { $redis->command('CONFIG', 'SET', 'maxmemory', '0') });

# The worker ends while it delivers, the sender too.
check_outages(
	'worker and sender ended', 'ended',
	sub { $redis->kill9 },
	sub {
		$redis->start;
		foreach my $name ('redstream worker', 'redstream sender')
		{
			my $pid = process_pid($node, $name);
			kill 'TERM', $pid if $pid;
		}
	});

# A process that is killed takes the lanes with it.
check_outages(
	'worker killed', 'crashed',
	sub { $redis->kill9 },
	sub {
		$redis->start;
		wait_until('a worker', sub { process_pid($node, 'redstream worker') });
		my $offset = -s $node->logfile;
		kill 'KILL', process_pid($node, 'redstream worker');
		wait_until('the server', sub {
			slurp_file($node->logfile, $offset) =~ /ready to accept connections/ });
	},
	crashes => 1);

is_deeply([ grep { !/redstream worker.*terminated by signal 9/ } crashes($node) ], [], 'no other crash');
$node->stop;
done_testing;
