# Every way in which Redis can be away: how long a commit takes that meets it, and those that come when it is known.
# Nobody waits for longer than the contract says, and afterwards everything that was committed arrives.
#
# With REDSTREAM_TEST_REPORT=FILE the table of doc/outages.md is written there, from more commits, with the default
# timeout, and each fault coming after a long time without.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Fake;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $report = $ENV{REDSTREAM_TEST_REPORT};
my $timeout_ms = $report ? 1000 : 300;
my $later = $report ? 100 : 20;    # commits when the fault is known

my $redis = new_redis('lua-time-limit' => 20, appendonly => 'yes', appendfsync => 'always');
my $fake = Redstream::Fake->new($redis);
my $node = new_node('main', undef,
	'redstream.url' => $fake->url,
	'redstream.timeout' => "${timeout_ms}ms",
	'redstream.delay' => '1s');
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t')});

my %sessions;                     # by on_outage
my $scripts;                      # a connection on which Redis is busy

sub begin_script
{
	$scripts = IO::Socket::UNIX->new(Peer => $redis->socket_path) or die "connect: $!";
	syswrite($scripts, "*3\r\n\$4\r\nEVAL\r\n\$17\r\nwhile true do end\r\n\$1\r\n0\r\n");
	wait_until('Redis to be busy', sub { !eval { $redis->command('PING') } });
	return;
}

sub end_script
{
	$redis->command('SCRIPT', 'KILL');
	wait_until('Redis not to be busy', sub { eval { $redis->command('PING') } });
	close $scripts;
	return;
}

sub behaves
{
	my ($how, %options) = @_;
	return [ sub { $fake->behave($how, %options) }, sub { $fake->behave('well') } ];
}

sub kill_connections
{
	$redis->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
	return;
}

my @faults = (
	[ 'stopped (SIGSTOP)', sub { $redis->stop_signal }, sub { $redis->cont } ],
	[ 'nobody listens', @{ behaves('away') } ],
	[ 'packets are dropped', @{ behaves('dropped') } ],
	[ 'accepts connections and is silent', @{ behaves('silent') } ],
	[ 'greets and is silent then', @{ behaves('silent', only => 'XADD') } ],
	[ 'answers once a connection', @{ behaves('once', only => 'XADD') } ],
	[ 'sends half a reply', @{ behaves('half', only => 'XADD') } ],
	[ 'answers and closes', @{ behaves('close') } ],
	[ 'answers a message and closes', @{ behaves('close', only => 'XADD') } ],
	[ 'sends a byte every 50 ms', @{ behaves('slow') } ],
	[ 'the same for messages only', @{ behaves('slow', only => 'XADD') } ],
	[ 'sends garbage', @{ behaves('garbage') } ],
	[ 'sends garbage for messages only', @{ behaves('garbage', only => 'XADD') } ],
	[ 'LOADING', @{ behaves('refuse', only => 'XADD|EVAL|PING|EXISTS|SMEMBERS', with => 'LOADING Redis is loading the dataset in memory') } ],
	[ 'WRONGPASS', @{ behaves('refuse', with => 'WRONGPASS invalid username-password pair or user is disabled.') } ],
	[ 'NOAUTH',
		sub { $redis->command('CONFIG', 'SET', 'requirepass', 'secret'); kill_connections() },
		sub { $redis->cli('-a', 'secret', '--no-auth-warning', 'CONFIG', 'SET', 'requirepass', '') } ],
	[ 'out of memory (noeviction)',
		sub { $redis->command('CONFIG', 'SET', 'maxmemory', 1) },
		sub { $redis->command('CONFIG', 'SET', 'maxmemory', 0) } ],
	[ 'a replica, read-only',
		sub { $redis->command('REPLICAOF', '127.0.0.1', 1) },
		sub { $redis->command('REPLICAOF', 'NO', 'ONE') } ],
	[ 'busy with a script', \&begin_script, \&end_script ],
	[ 'has no replica (wait_replicas = 1)',
		sub { reconfigure($node, 'redstream.wait_replicas' => 1) },
		sub { reconfigure($node, 'redstream.wait_replicas' => 0) } ],
	[ 'killed', sub { $redis->kill9 }, sub { $redis->start } ],
);

# ---- a fault --------------------------------------------------------------------------

my $last_id = 0;
my @committed;

# Commits a row: (seconds, what the client is told).
sub commit
{
	my ($session) = @_;
	my $begun = time;
	my $told = $session->query('INSERT INTO t VALUES (' . ++$last_id . ')');
	my $taken = time - $begun;

	$told =~ s/\n.*//s;
	push @committed, $last_id unless $told =~ /^ERROR:/;
	return ($taken, $told);
}

sub wait_until_fine
{
	my ($session, $what) = @_;
	wait_until($what, sub { stats($node)->{connected} && (commit($session))[1] eq '' });
	return;
}

# With two policies the second one's first commit comes when the fault is known.
sub meet
{
	my ($name, $begin, $end, @policies) = @_;
	my $cap = 10 * $timeout_ms / 1000;
	my @lines;

	@committed = ();
	wait_until_fine($sessions{$_}, "$name, $_: before") foreach @policies;
	$begin->();
	foreach my $policy (@policies)
	{
		my ($first, $told) = commit($sessions{$policy});
		my ($sum, $longest) = (0, 0);
		foreach (1 .. $later)
		{
			my ($taken) = commit($sessions{$policy});
			$sum += $taken;
			$longest = $taken if $taken > $longest;
			sleep 0.02;
		}

		# generous: two slow cores, and others at work
		cmp_ok($first, '<', $cap + 5, "$name, $policy: the commit that meets it ends");
		cmp_ok($longest, '<', $cap + 5, "$name, $policy: those afterwards end");
		cmp_ok($sum, '<', $later * $timeout_ms / 1000 / 2, "$name, $policy: they are not held up, each of them");
		push @lines, sprintf "| %s | %.0f | %.0f | %.0f | %s |", $name, 1000 * $first, 1000 * $sum / $later,
		  1000 * $longest, $told || 'committed';
	}
	$end->();
	my $healed = time;
	wait_until_fine($sessions{$_}, "$name, $_: afterwards") foreach @policies;
	my $recovery = time - $healed;
	wait_until("$name: all messages", sub {
		my %arrived = map { /^\{"id":(\d+)\}$/ ? ($1 => 1) : () } $redis->payloads('redstream:stream:t');
		return !grep { !$arrived{$_} } @committed;
	});
	pass("$name: what was committed is announced");
	return map { sprintf "%s %.1f |\n", $_, $recovery } @lines;
}

my @policies = ('spool', 'error');
%sessions = map { $_ => Redstream::Session->new($node) } @policies;
$sessions{$_}->query("SET redstream.on_outage = $_") foreach @policies;
if ($report)
{
	foreach my $policy (@policies)
	{
		my $head = "\n| `$policy` | first, ms | later, mean | longest | the first is told | recovery, s |\n"
		  . "| --- | ---: | ---: | ---: | --- | ---: |\n";
		append_to_file($report, $head);
		foreach my $fault (@faults)
		{
			sleep 11;    # more than what a series of faults is
			append_to_file($report, meet(@$fault, $policy));
		}
	}
}
else
{
	foreach my $fault (@faults)
	{
		meet(@$fault, @policies);
		@policies = reverse @policies;
	}
}

# ---- a narrow line ------------------------------------------------------------------------

# A message that takes longer than the timeout to be sent is under way all the same, and not in the way of others for ever.
{
	my $session = $sessions{error};

	$node->safe_psql('postgres', q{
		CREATE TABLE large (id integer PRIMARY KEY, filler text);
		SELECT redstream.attach('large', payload => ARRAY['id', 'filler'])});
	$fake->behave('narrow');
	wait_until_fine($session, 'a narrow line: before');
	$session->query(q{INSERT INTO large VALUES (1, repeat('x', 3000000))});
	wait_until_fine($session, 'a narrow line: others');
	wait_until('the message', sub { $redis->command('XLEN', 'redstream:stream:large.delay') });
	pass('a narrow line: others have their turn');
	$fake->behave('well');
}

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
