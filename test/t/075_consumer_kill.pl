# kill -9 of the working redstream-consumer, again and again, while messages keep coming and three processes share the name.
#
# Each batch is written down by its handler when it has read it, with the process that gave it, and again when the handler is
# through. From this it must follow that
#
#	- no message is skipped: each batch begins where the one before it ended, if its handler got through, or where that began;
#	- a batch is given again only if its process was killed, or it was not committed for another reason that the log
#	  tells, and never if a log says that it was committed;
#	- no two handlers work at the same time.
#
# REDSTREAM_TEST_KILLS is how many are killed (6).

use strict;
use warnings;

use POSIX ();
use Redstream::Consumer;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $kills = $ENV{REDSTREAM_TEST_KILLS} || 6;
my $redis = new_redis;
my $directory = $redis->directory;
my $journal = "$directory/journal";

# ---- the messages --------------------------------------------------------------------------

# Adds 50 messages every 10 ms until there is a file, and then says how many there are.
sub produce
{
	my $parent = getppid;
	my $n = 0;

	$redis->reconnect;
	until (-e "$directory/enough" || getppid != $parent)
	{
		$redis->command('EVAL', q{
			for i = 1, 50 do redis.call('XADD', KEYS[1], '*', 'payload', ARGV[1] + i) end
		}, 1, 'redstream:stream:s', $n);
		$n += 50;
		sleep 0.01;
	}
	return;
}

my $producer = fork;
die "fork: $!" unless defined $producer;
if ($producer == 0)
{
	eval { produce(); 1 } or warn $@;
	POSIX::_exit(0);
}

# ---- the consumers ----------------------------------------------------------------------------

# Lines "begin|end <consumer's pid> <time> <first number> <last number> <how many>".
my @handler = ('perl', '-MTime::HiRes=sleep,time', '-e', q{
	my @numbers = map { /"payload":(\d+)/ } <STDIN>;
	my $consumer = getppid;
	sub note
	{
		open(my $journal, '>>', $ARGV[0]) or die;
		syswrite($journal, join(' ', $_[0], $consumer, time, $numbers[0], $numbers[-1], scalar @numbers) . "\n");
	}
	note('begin');
	sleep rand 0.05;
	note('end');
}, $journal);

my (@all, %running, %killed);

sub add_consumer
{
	my $consumer = Redstream::Consumer->new($redis, options => ['--verbose'], command => \@handler);
	$running{ $consumer->pid } = $consumer;
	push @all, $consumer;
	return;
}

sub journal
{
	open(my $file, '<', $journal) or return;
	return map { [split] } <$file>;
}

# Waits until one works that has begun after a time: (its pid, since when).
sub wait_worker
{
	my ($since) = @_;
	my $deadline = time + 30;

	for (;;)
	{
		my @lines = journal();
		my $last = $lines[-1];
		return @$last[ 1, 2 ] if $last && $last->[0] eq 'begin' && $last->[2] > $since && $running{ $last->[1] };
		die 'waited in vain for a batch' if time > $deadline;
		sleep 0.003;
	}
}

add_consumer() foreach 1 .. 3;
my @takeovers;
my ($worker) = wait_worker(0);
foreach my $round (1 .. $kills)
{
	# while the handler works, or about when it has ended
	sleep rand 0.04 if $round % 2;
	kill 'KILL', $worker;
	my $then = time;
	delete($running{$worker})->status;
	$killed{$worker} = 1;
	add_consumer();
	($worker, my $next) = wait_worker($then);
	push @takeovers, $next - $then;
}
open(my $enough, '>', "$directory/enough") or die;
close $enough;
waitpid $producer, 0;

my %facts = @{ $redis->command('XINFO', 'STREAM', 'redstream:stream:s') };
wait_until('the consumers to catch up', sub { (offset($redis) || '') eq $facts{'last-generated-id'} }, 120);
is($_->stop, 0, 'an end in good order') foreach values %running;
diag(sprintf '%d kills, %d messages; takeovers after %s s', $kills, $facts{length},
	join ', ', map { sprintf '%.2f', $_ } sort { $a <=> $b } @takeovers);

# ---- what came of it ---------------------------------------------------------------------------

# By the logs: who has committed a batch that ends with which number. The numbers are those of the ids, in order.
my @ids = map { $_->[0] } $redis->entries('redstream:stream:s');
my %number = map { ($ids[$_] => $_ + 1) } 0 .. $#ids;
my %committed = map { my $consumer = $_; map { $consumer->pid . ":$number{$_}" => 1 } $consumer->log =~ /batch of \d+ from \S+ to (\S+) committed/g } @all;

my ($last_first, $last_end, $last_worker, $working, $through) = (1, 0, undef, 0, 1);
my (@skipped, @repeated, @overlapping);
my ($batches, $repeats) = (0, 0);

foreach my $line (journal())
{
	my ($event, $worker, undef, $first, $end, $count) = @$line;

	if ($event eq 'end')
	{
		push @overlapping, "@$line" if $working != $worker;
		($working, $through) = (0, 1);
		next;
	}
	push @overlapping, "@$line" if $working && !$killed{$working};
	$working = $worker;
	$batches++;
	push @skipped, "@$line" if $count != $end - $first + 1;
	if ($first == $last_end + 1 && $through)
	{
		$last_first = $first;
	}
	elsif ($first == $last_first)
	{
		$repeats++;
		push @repeated, "@$line" unless $killed{$last_worker} && !$committed{"$last_worker:$last_end"};
	}
	else
	{
		push @skipped, "@$line";
	}
	($last_end, $last_worker, $through) = ($end, $worker, 0);
}
is_deeply(\@skipped, [], 'no message is skipped, and all are in order');
is($last_end, $facts{length}, 'up to the last one');
is_deeply(\@repeated, [], 'only batches that were not committed are given again');
is_deeply(\@overlapping, [], 'one handler at a time');
diag("$batches batches, $repeats of them again");
cmp_ok(scalar keys %committed, '>', $kills, 'the logs tell of the others');

done_testing();
