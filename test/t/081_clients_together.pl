# The consumers in doc/examples as one consumer of several processes, in different languages: one works at a
# time, nobody skips a message, another one takes over.

use strict;
use warnings;

use Redstream::Clients;
use Redstream::Test;
use Test::More;

my $redis = new_redis;

# Reads the journal as the story of one consumer: a batch begins when none is being worked on, with the first
# message that is not committed. Those that were killed commit nothing more. Returns what is wrong, and counts
# batches by process.
sub story
{
	my ($clients, $count, @killed) = @_;
	my %killed = map { $_ => 1 } @killed;
	my ($at_work, $position, @problems, %batches) = (undef, 0);

	foreach my $line ($clients->journal)
	{
		my ($who, $what, @words) = @$line;
		my @numbers = map { (split /:/)[1] } @words;

		if ($what eq 'begin')
		{
			push @problems, "$who begins, but $at_work is at work" if defined $at_work && !$killed{$at_work};

			# who is killed between its end and the commit leaves the batch to another one
			push @problems, "$who begins with $numbers[0] after $position"
			  unless $numbers[0] == $position + 1 || defined $at_work && $numbers[0] <= $position + 1;
			$position = $numbers[0] - 1;
			push @problems, "$who has @numbers" if grep { $numbers[$_] != $numbers[0] + $_ } 0 .. $#numbers;
			$at_work = $who;
			next;
		}
		push @problems, "$who ends, but is not at work" unless defined $at_work && $at_work eq $who;
		$position = $numbers[-1];
		$batches{$who}++;
		undef $at_work unless $killed{$who};
	}
	push @problems, "the end is $position, and not $count" unless $position == $count;
	return (\%batches, @problems);
}

sub wait_committed
{
	my ($clients) = @_;
	my $last = ($redis->entries($clients->key('stream')))[-1][0];
	wait_until('all to be committed', sub { ($clients->offset || '') eq $last }, 60);
	return;
}

# ---- each gets its turns --------------------------------------------------------------------

my $clients = Redstream::Clients->new($redis, 'turns', batch_size => 5);
$clients->add(1 .. 1500);
$clients->take_lock;
my @who = map { $clients->start($_) } Redstream::Clients::languages();
wait_until('all to stand by', sub { $clients->waiting_in('brpop') == @who });
$clients->release_lock;
wait_committed($clients);
my ($batches, @problems) = story($clients, 1500);
is_deeply(\@problems, [], 'three at once: one works at a time, each message once, in order');
note join ', ', map { "$_: $batches->{$_} batches" } @who;
is_deeply([ sort keys %$batches ], [ sort @who ], 'each had its turns');
$clients->signal($_, 'TERM') foreach @who;
is_deeply([ map { $clients->status($_) } @who ], [ ('exit 0') x @who ], 'all end');

# ---- killed, or stopped, at work ------------------------------------------------------------

my $count = 0;
my $lines;						# of the journal, when the last of hold_at_work() is at work

# Adds messages until it is this one's turn, and holds it in the middle of its batch; returns the first message.
sub hold_at_work
{
	my ($who) = @_;

	$clients->tell('hold', $who);
	return wait_until("$who to be at work", sub {
		my @journal = $clients->journal;
		$lines = @journal;
		return $journal[-1][2] if @journal && $journal[-1][0] eq $who && $journal[-1][1] eq 'begin';
		$clients->add(map { ++$count } 1 .. 10);
		return;
	});
}

# Waits until another one takes over; returns the first message it has.
sub taken_over
{
	return wait_until('somebody to take over', sub { ($clients->journal)[$lines] })->[2];
}

$clients = Redstream::Clients->new($redis, 'killed', batch_size => 5);
@who = map { $clients->start($_) } Redstream::Clients::languages();
my @killed;
foreach my $language (Redstream::Clients::languages())
{
	my ($victim) = grep { /^$language/ } @who;
	my $word = hold_at_work($victim);

	$clients->signal($victim, 'KILL');
	is($clients->status($victim), 'signal 9', "$victim is killed at work");
	is(taken_over(), $word, 'another one begins with the same message');
	push @killed, $victim;
	@who = ((grep { $_ ne $victim } @who), $clients->start($language));
}
wait_committed($clients);
($batches, @problems) = story($clients, $count, @killed);
is_deeply(\@problems, [], 'one works at a time, no message is skipped');
is((() = $clients->done), $count, 'and none repeated but those of the batches that were not done');

# A process that was stopped for longer than its lock lives does not know.
foreach my $language (Redstream::Clients::languages())
{
	my ($stopped) = grep { /^$language/ } @who;
	my $word = hold_at_work($stopped);

	$clients->signal($stopped, 'STOP');
	$redis->command('PEXPIRE', $clients->key('lock'), 100);
	is(taken_over(), $word, "$stopped is stopped at work: another one begins with the same message");
	$clients->add(map { ++$count } 1 .. 20);
	wait_committed($clients);
	my $offset = $clients->offset;
	$clients->untell('hold', $stopped);
	$clients->signal($stopped, 'CONT');
	$clients->wait_said($stopped, qr/lock was lost/);
	is($clients->offset, $offset, 'it goes on, and does not set the offset back');
}
$clients->signal($_, 'TERM') foreach @who;
is_deeply([ map { $clients->status($_) } @who ], [ ('exit 0') x @who ], 'all end');
done_testing;
