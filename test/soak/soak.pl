# Everything goes wrong at once, and nothing may be lost; to be run by test/soak/run, which says more.
#
# Files beside this one: Soak/Tables.pm (what is changed), Writers.pm (by whom), Consumers.pm (who copies it), Faults.pm (what
# goes wrong), Recorder.pm (what was announced), Verdict.pm (whether that is right).

use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Redstream::Proxy;
use Redstream::Test;
use Soak::Consumers;
use Soak::Faults;
use Soak::Recorder;
use Soak::Run;
use Soak::Tables;
use Soak::Verdict;
use Soak::Writers;
use Test::More;
use Time::HiRes qw(sleep time);

my ($seed, $seconds) = @ARGV;
my $delay = 5;
my $timeout = 0.5;
# ten times the timeout is the cap; a machine may be slow
my $longest_allowed = 3 * 10 * $timeout;

srand $seed;
my $repeat = rand() < 0.5 ? 'always' : 'unconfirmed';
diag("seed $seed, $seconds s, redstream.repeat = $repeat");

# ---- the servers -------------------------------------------------------------------------------------

my $run = Soak::Run->new(seed => $seed, seconds => $seconds);
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $proxy = Redstream::Proxy->new($redis->socket_path);
my $first = new_node('server0', undef,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.url' => $proxy->url,
	'redstream.delay' => "${delay}s",
	'redstream.repeat' => $repeat,
	'redstream.timeout' => "${\ int 1000 * $timeout}ms",
	'redstream.trim_interval' => '1s',
	'redstream.transaction_buffer' => '64kB',
	'redstream.queue_size' => '2MB',
	'max_prepared_transactions' => 50,
	'restart_after_crash' => 'on',
	'wal_level' => 'replica',
	'max_wal_senders' => 5,
	'wal_keep_size' => '512MB',
	'deadlock_timeout' => '100ms',
	'log_statement' => 'none',
	'log_min_error_statement' => 'panic');
$run->set_primary($first);
create_tables($first);

my $consumers = Soak::Consumers->new($run, $redis, $proxy);
start_recorder($run, $redis);
$consumers->start;
my $faults = Soak::Faults->new($run, $redis, $proxy, $consumers);

# ---- the run -------------------------------------------------------------------------------------------

start_writers($run, 6);
$faults->inject;
stop_writers($run);

# All that was begun comes to its end.  After a promotion the messages of the old server are left alone for 30 s.
# Says what is not done yet.
sub unsettled
{
	my $stats = eval { stats($run->{node}) } or return 'the server does not answer';
	return 'no connection' unless $stats->{connected};
	return 'messages in the lanes' if $stats->{main_bytes} || $stats->{delay_bytes};
	return "$stats->{spool_rows} rows in the spool" if $stats->{spool_rows};
	my @delayed = grep { $redis->command('XLEN', "redstream:stream:$_.delay") } @STREAMS;
	return "delay messages of @delayed" if @delayed;
	return 'recorder' unless record_is_complete($run, $redis);
	return $consumers->behind;
}

resolve_prepared($run->{node});
my $settling = time;
my $left = 'everything';
my $slowest;
eval {
	wait_until('everything to settle', sub {
		$slowest = $left;
		return ($left = unsettled()) eq '';
	}, 300 + $seconds / 2);
};
diag(sprintf 'settled after %.1f s; last came %s', time - $settling, $slowest) if $left eq '';
$consumers->stop;
stop_recorder($run);

# ---- the report ----------------------------------------------------------------------------------------

my @transactions = sort { $a->[2] <=> $b->[2] } transactions($run);
my @commits = grep { $_->[4] eq 'ok' } @transactions;
# a deadlock, a lock that was not to be had and a key that another writer has inserted are not the faults' doing
my @failures = grep { $_->[4] !~ /^(?:ok|40P01|55P03|23505)$/ } @transactions;
my @gaps = map { [ $commits[ $_ - 1 ][2], $commits[$_][2] ] } grep { $commits[$_][2] - $commits[ $_ - 1 ][2] > 0.2 } 1 .. $#commits;

sub report_faults
{
	my %kinds;

	foreach my $fault ($faults->all)
	{
		my ($kind, $begin, $end) = @$fault;
		my $of = $kinds{$kind} ||= { count => 0, failed => 0, pause => 0 };
		$of->{count}++;
		$of->{failed} += grep { $_->[2] > $begin && $_->[2] < $end + 1 } @failures;
		$of->{pause} = max($of->{pause}, map { $_->[1] - $_->[0] } grep { $_->[1] > $begin && $_->[0] < $end + 1 } @gaps);
	}
	diag(sprintf '%-42s %5s %10s %15s', 'fault', 'count', 'failed', 'no commit for');
	diag(sprintf '%-42s %5d %10d %13.1f s', $_, @{ $kinds{$_} }{qw(count failed pause)}) foreach sort keys %kinds;
	return;
}

# [seconds, kind]: the slowest COMMIT while PostgreSQL's own processes were well, whatever Redis and the network did
sub longest_commit
{
	my $longest = [ 0, 'none' ];

	foreach my $transaction (@transactions)
	{
		my (undef, $took, $end, $kind) = @$transaction;
		next if $took <= $longest->[0];
		next if grep { $_->[3] eq 'postgres' && $_->[1] < $end && $_->[2] > $end - $took } $faults->all;
		$longest = [ $took, $kind ];
	}
	return $longest;
}

# No more than ten, so that a failure stays readable.
sub none
{
	my ($name, @found) = @_;
	my $ok = ok(!@found, $name);
	diag("$name: " . @found . " are not right\n" . join "\n", map { "  $_" } @found > 10 ? @found[ 0 .. 9 ] : @found) unless $ok;
	return;
}

sub logs
{
	my %logs = map { ($_->name => slurp_file($_->logfile)) } $run->{node}, @{ $run->{old_servers} || [] };
	return \%logs;
}

sub crashes_in_logs
{
	my $logs = logs();
	my @lines = map { my $name = $_; map { "$name: $_" } split /\n/, $logs->{$name} } sort keys %$logs;
	my @killed = grep { /terminated by signal 9/ } @lines;

	push my @wrong, grep { /PANIC|TRAP:|Assert|Sanitizer|runtime error:|terminated by signal (?!9)/ } @lines;
	push @wrong, @killed . ' processes were killed, ' . $faults->killed . ' of them by us' if @killed > $faults->killed;
	return @wrong;
}

report_faults();
my $verdict = Soak::Verdict->new($run, $faults, delay => $repeat eq 'always' ? $delay : 0);
my %results;
$results{ $_->[4] }++ foreach @transactions;
diag('transactions: ' . join ', ', map { "$results{$_} $_" } sort { $results{$b} <=> $results{$a} } keys %results);
diag(sprintf '%d commits of writers, %d of pgbench; %d messages, %d of them repeats, %d late copies after newer ones',
	scalar @commits, pgbench_commits($run), $verdict->messages, $verdict->repeats, $verdict->late);
my $longest = longest_commit();
diag(sprintf 'longest COMMIT while PostgreSQL was well: %.2f s (%s)', @$longest);

cmp_ok(scalar @commits, '>', 10 * $seconds, 'the writers have done something');
is($left, '', 'everything was delivered and consumed in the end');
none('every copy equals its table', $consumers->differences);
none('every committed change was announced', $verdict->missing);
none('first announcements of a row are in the order of its commits', $verdict->disordered);
none('the last message of a row is its newest', $verdict->stale);
none('nothing was announced that was not committed', $verdict->invented);
none('no transaction failed because of Redis', (map { "$_->[3] at $_->[2]" } grep { $_->[4] eq '58030' } @transactions),
	grep { /ERROR:.*(?:Redis|announce)/ } split /\n/, $run->read_file('pgbench.errors'));
none('no process died that was not killed', crashes_in_logs());
none('writers, recorder and consumers were there all the time', $run->failed, $consumers->ended);
cmp_ok($longest->[0], '<', $longest_allowed, 'no COMMIT took too long');

$run->{node}->stop;
done_testing;
