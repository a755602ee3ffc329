# redstream-consumer with --max-tries: a batch that is refused is halved until the bad message is found, which goes to the dead
# letters; and the rest goes on.

use strict;
use warnings;

use Redstream::Consumer;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $s = 'redstream:stream:s';
my $dead = 'redstream:stream:dead';
my $journal = $redis->directory . '/journal';

sub fresh
{
	$redis->command('DEL', $s, $dead, 'redstream:offset:s:n', 'redstream:history:s');
	unlink $journal;
	return;
}

# A handler that writes down the first and the last number of the batch, and fails if one of them is bad.
sub handler
{
	my (@bad) = @_;
	my $bad = join '|', @bad;
	return [ 'perl', '-e', q{
		my ($journal, $bad) = @ARGV;
		my @numbers = map { /"payload":\s*(\d+)/ } <STDIN>;
		open(my $file, '>>', $journal) or die;
		print $file "$numbers[0]-$numbers[-1]\n";
		close $file;
		exit 7 if grep { /^(?:$bad)$/ } @numbers;
	}, $journal, $bad ];
}

sub journal
{
	open(my $file, '<', $journal) or return [];
	chomp(my @lines = <$file>);
	return \@lines;
}

my @options = ('--max-tries', 3, '--dead-letter', 'dead');

# ---- one bad message --------------------------------------------------------------------

fresh();
messages($redis, 's', 1 .. 40);
my $consumer = Redstream::Consumer->new($redis, options => [ @options, '--batch-size', 8 ], command => handler(11));
wait_until('all of it', sub { (offset($redis) || '') eq '40-0' });
is_deeply(journal(), [
	'1-8',
	'9-16', '9-16', '9-16',		# three tries
	'9-12',
	'9-10',
	'11-14',					# taken: twice as many
	'11-12',
	'11-11', '11-11', '11-11',	# three tries of one message
	'12-12',					# given up: still one
	'13-14', '15-18', '19-26', '27-34', '35-40' ], 'halved until the bad one is found, and then doubled');
is_deeply([ map { $_->[1] } $redis->entries($dead) ], [
	{ payload => '11', stream => 's', consumer => 'n', id => '11-0', tries => 3, reason => 'exit status 7' } ],
	'the dead letter');
my $log = $consumer->log;
like($log, qr/the batch of 8 from 9-0 to 16-0 was refused \(exit status 7\), try 1; again in 0\.2 s/, 'first try');
like($log, qr/the batch of 8 from 9-0 to 16-0 was refused \(exit status 7\), try 3; half of it in 0\.2 s/, 'last try');
like($log, qr/the batch of 4 from 9-0 to 12-0 was refused \(exit status 7\), try 1; half of it/, 'half of it');
like($log, qr/the batch of 1 from 11-0 to 11-0 was refused \(exit status 7\), try 2; again in 0\.4 s/, 'one message');
like($log, qr/message 11-0 goes to the stream dead after 3 tries: exit status 7/, 'it is given up');
is($consumer->stop, 0, 'an end in good order');

# ---- several, other reasons, payloads as they were ------------------------------------------

fresh();
messages($redis, 's', 1, " 2\n", 3, 4);
$consumer = Redstream::Consumer->new($redis, options => [ '--max-tries', 1, '--dead-letter', 'dead' ], command => [
	'sh', '-c', 'grep -q -e "payload\":[ 1]" && kill -KILL $$; cat' ]);
wait_until('all of it', sub { (offset($redis) || '') eq '4-0' });
is_deeply([ map { [ @{ $_->[1] }{qw(payload id tries reason)} ] } $redis->entries($dead) ],
	[ [ '1', '1-0', 1, 'killed by SIGKILL' ], [ " 2\n", '2-0', 1, 'killed by SIGKILL' ] ], 'the dead letters of two');
is($consumer->stop, 0, 'an end in good order');

fresh();
messages($redis, 's', 1);
my ($status, $output);
($status, $output, $log) = run_program($redis, options => [ '--once', '--max-tries', 1, '--dead-letter', 'dead' ], command => ['false']);
is($status, 0, '--once: a message that was given up is committed');
is(offset($redis), '1-0', '--once: the offset');
is($redis->command('XLEN', $dead), 1, '--once: the dead letter');

fresh();
messages($redis, 's', 1, 2);
($status) = run_program($redis, options => [ '--once', '--max-tries', 1, '--dead-letter', 'dead' ], command => ['false']);
is($status, 1, '--once: two messages are not');
is($redis->command('EXISTS', $dead), 0, '--once: no dead letter');

# ---- a dead letter that cannot be stored --------------------------------------------------------

fresh();
messages($redis, 's', 1, 2);
$redis->command('SET', $dead, 'x');
$consumer = Redstream::Consumer->new($redis, options => [ '--max-tries', 1, '--dead-letter', 'dead' ], command => handler(1));
$consumer->wait_log(qr/the batch from 1-0 to 1-0 is not committed and will be given again: Redis refuses: commit: .*WRONGTYPE/);
is(offset($redis), undef, 'a dead letter that cannot be stored: nothing is committed');
$redis->command('DEL', $dead);
wait_until('all of it', sub { (offset($redis) || '') eq '2-0' });
is($redis->command('XLEN', $dead), 1, 'a dead letter that cannot be stored: later it can');
is($consumer->stop, 0, 'an end in good order');

# ---- the handler's backend is away ------------------------------------------------------------------

fresh();
messages($redis, 's', 1 .. 4);
my $up = $redis->directory . '/up';
$consumer = Redstream::Consumer->new($redis, options => [ '--max-tries', 6, '--dead-letter', 'dead' ], command => [ 'test', '-e', $up ]);
$consumer->wait_log(qr/half of it/);
$consumer->wait_log(qr/the batch of 1 from 1-0 to 1-0 was refused \(exit status 1\), try 2;/);
open(my $file, '>', $up) or die;
close $file;
wait_until('all of it', sub { (offset($redis) || '') eq '4-0' });
is($redis->command('EXISTS', $dead), 0, 'an outage that is over before the tries are: no dead letter');
is($consumer->stop, 0, 'an end in good order');

# One that stays away: the pauses go on growing from one message to the next.
fresh();
messages($redis, 's', 1, 2);
$consumer = Redstream::Consumer->new($redis, options => [ '--max-tries', 2, '--dead-letter', 'dead' ], command => ['false']);
$consumer->wait_log(qr/the batch of 1 from 1-0 to 1-0 was refused \(exit status 1\), try 1; again in 0\.2 s/);
$consumer->wait_log(qr/the batch of 1 from 2-0 to 2-0 was refused \(exit status 1\), try 1; again in 0\.8 s/);
pass('after a message was given up the next one waits for longer');
is($consumer->stop, 0, 'an end in good order');

# A command that cannot be run says nothing about a message.
fresh();
messages($redis, 's', 1);
my $command = $redis->directory . '/command';
$consumer = Redstream::Consumer->new($redis, options => [ '--max-tries', 1, '--dead-letter', 'dead' ], command => [$command]);
$consumer->wait_log(qr/the batch of 1 from 1-0 to 1-0 was refused \(cannot run .*: No such file or directory\), try 3;/);
symlink '/bin/true', $command or die;
wait_until('all of it', sub { (offset($redis) || '') eq '1-0' });
is($redis->command('EXISTS', $dead), 0, 'a command that cannot be run: no dead letter');
is($consumer->stop, 0, 'an end in good order');

done_testing();
