# Processes of redstream-consumer that share a name, and what else takes the same lock: one works, the others stand by; takeover;
# fairness; the Ruby library's scripts. And streams that do not fit the offset.

use strict;
use warnings;

use Redstream::Consumer;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = new_redis;
my $lock = 'redstream:lock:consumer:s:n';
my $directory = $redis->directory;

# What a process of the Ruby library does, with the lock's key in ARGV as there.
my $ruby_take = q{
	if (redis.call('GET', ARGV[1]) or ARGV[2]) ~= ARGV[2] then return 0 end
	redis.call('SET', ARGV[1], ARGV[2], 'EX', ARGV[3])
	return 1
};
my $ruby_release = q{
	if redis.call('GET', ARGV[1]) ~= ARGV[2] then return 0 end
	redis.call('DEL', ARGV[1], ARGV[1] .. '.notify')
	redis.call('RPUSH', ARGV[1] .. '.notify', '1')
	return 1
};

sub ruby_take { return $redis->command('EVAL', $ruby_take, 0, $lock, 'ruby', 5); }
sub ruby_release { return $redis->command('EVAL', $ruby_release, 0, $lock, 'ruby'); }

# Whoever works says so in a file, and works until it is told to stop.
sub fresh
{
	$redis->command('DEL', 'redstream:stream:s', 'redstream:offset:s:n', 'redstream:history:s', $lock, "$lock.notify");
	unlink "$directory/worker", "$directory/go";
	return;
}

my @works = ('sh', '-c', 'echo $PPID > "$0/worker.part"; mv "$0/worker.part" "$0/worker"; while ! test -e "$0/go"; do sleep 0.02; done',
	$directory);

sub worker
{
	wait_until('a worker', sub { -e "$directory/worker" });
	open(my $file, '<', "$directory/worker") or die;
	my $pid = <$file>;
	chomp $pid;
	return $pid;
}

sub go
{
	open(my $file, '>', "$directory/go") or die;
	close $file;
	return;
}

# ---- standing by ------------------------------------------------------------------------

fresh();
messages($redis, 's', 1);
my %consumers = map { ($_->pid => $_) } map { Redstream::Consumer->new($redis, command => \@works) } 1 .. 3;
my $pid = worker();
my $working = delete $consumers{$pid};
ok($working, 'one works');
$_->wait_log(qr/: standing by: another process has the lock$/m) foreach values %consumers;
pass('the others stand by, and say so');
my ($one, $other) = values %consumers;
wait_until('both to wait', sub { 2 == (() = $redis->command('CLIENT', 'LIST') =~ /cmd=brpop/g) });
is($other->stop, 0, 'a signal ends the wait');
unlink "$directory/worker";
messages($redis, 's', 2);
my $begin = time;
go();
wait_until('the other', sub { worker() == $one->pid });
diag(sprintf 'takeover after a commit: %.3f s', time - $begin);
$one->wait_log(qr/: working$/m);
pass('released, the lock goes to who stands by');
unlike($one->log, qr/working.*standing by/s, 'and nothing is said about each turn');
wait_until('all of it', sub { offset($redis) eq '2-0' });

# The worker is told to end: it releases the lock.
fresh();
messages($redis, 's', 1);
$pid = worker();
($working, $one) = $pid == $one->pid ? ($one, $working) : ($working, $one);
unlink "$directory/worker";
wait_until('the other to wait', sub { $redis->command('CLIENT', 'LIST') =~ /cmd=brpop/ });
messages($redis, 's', 2);
$begin = time;
$working->signal('TERM');
go();
is($working->status, 0, 'the worker is told to end');
is(worker(), $one->pid, 'the other takes over');
wait_until('all of it', sub { offset($redis) eq '2-0' });

# The worker is killed: the lock expires.
fresh();
messages($redis, 's', 1);
is(worker(), $one->pid, 'one is left');
$other = Redstream::Consumer->new($redis, command => ['true']);
$other->wait_log(qr/standing by/);
$begin = time;
$one->signal('KILL');
wait_until('the other', sub { offset($redis) });
diag(sprintf 'takeover after kill -9: %.3f s', time - $begin);
pass('the worker is killed: the other takes over');
is($other->stop, 0, 'an end in good order');

# ---- fairness ------------------------------------------------------------------------------------

fresh();
messages($redis, 's', 1 .. 300);
my @three = map {
	Redstream::Consumer->new($redis, options => [ '--batch-size', 5, '--verbose' ],
		command => [ 'sh', '-c', 'echo $PPID >> "$0/turns"; sleep 0.02', $directory ])
} 1 .. 3;
wait_until('all of it', sub { (offset($redis) || '') eq '300-0' });
my @shares = map { scalar(() = $_->log =~ /: batch of/g) } @three;
is($shares[0] + $shares[1] + $shares[2], 60, 'three take turns: each batch once');
diag("batches of each of three: @shares");
cmp_ok($_, '>', 5, 'each gets its share') foreach @shares;
open(my $turns, '<', "$directory/turns") or die;
my @turns = <$turns>;
cmp_ok(scalar(grep { $turns[$_] eq $turns[ $_ - 1 ] } 1 .. $#turns), '<', 10, 'seldom two batches one after the other');
is($_->stop, 0, 'an end in good order') foreach @three;

# Each message alone, when all wait: nobody is left out, and nothing is lost.
fresh();
@three = map { Redstream::Consumer->new($redis) } 1 .. 3;
wait_until('all to wait', sub { 3 == (() = $redis->command('CLIENT', 'LIST') =~ /cmd=xread/g) });
foreach my $n (1 .. 100)
{
	messages($redis, 's', $n);
	wait_until("message $n", sub { (offset($redis) || '') eq "$n-0" });
}
is(join('', sort { ($a =~ /(\d+)/)[0] <=> ($b =~ /(\d+)/)[0] } map { split /^/, $_->output } @three),
	join('', map { line_of("$_-0", $_) } 1 .. 100), 'one message after the other, to three: each once');
is($_->stop, 0, 'an end in good order') foreach @three;

# ---- the Ruby library ---------------------------------------------------------------------------------

fresh();
messages($redis, 's', 1);
ok(ruby_take(), 'Ruby has the lock');
my $consumer = Redstream::Consumer->new($redis);
$consumer->wait_log(qr/standing by/);
ok(ruby_take(), 'Ruby extends it');
is($consumer->output, '', 'Ruby has the lock: nothing is read');
$begin = time;
ruby_release();
wait_until('the message', sub { offset($redis) });
diag(sprintf 'takeover after Ruby: %.3f s', time - $begin);
is($consumer->output, line_of('1-0', 1), 'Ruby releases the lock: it is taken');
is($consumer->stop, 0, 'an end in good order');

ok(ruby_take(), 'Ruby has the lock again');
messages($redis, 's', 2);
$consumer = Redstream::Consumer->new($redis);
wait_until('the lock to expire', sub { offset($redis) eq '2-0' });
pass('Ruby dies: the lock expires');
is($consumer->stop, 0, 'an end in good order');

fresh();
messages($redis, 's', 1);
$consumer = Redstream::Consumer->new($redis, options => ['--once'], command => \@works);
worker();
ok(!ruby_take(), 'ours is respected by Ruby');
like($redis->command('GET', $lock), qr/^[0-9a-f]{32}$/, 'its value is a holder');
cmp_ok($redis->command('PTTL', $lock), '<=', 5000, 'it expires');
cmp_ok($redis->command('PTTL', $lock), '>', 0, 'some time');
my $waiter = fork;
die "fork: $!" unless defined $waiter;
if ($waiter == 0)
{
	$redis->reconnect;
	my $woken = $redis->command('BRPOP', "$lock.notify", 20);
	POSIX::_exit($woken && ruby_take() ? 0 : 1);
}
wait_until('it to wait', sub { $redis->command('CLIENT', 'LIST') =~ /cmd=brpop/ });
go();
is($consumer->status, 0, 'ours is released');
waitpid $waiter, 0;
is($?, 0, 'and Ruby is woken');

# A lock that never expires, as somebody may have made by hand.
fresh();
messages($redis, 's', 1);
$redis->command('SET', $lock, 'by hand');
$consumer = Redstream::Consumer->new($redis);
$consumer->wait_log(qr/standing by/);
my $commands = sub { $redis->command('INFO', 'stats') =~ /total_commands_processed:(\d+)/ ? $1 : 0 };
my $first = $commands->();
my $from = time;
wait_until('a second', sub { time > $from + 1 });
cmp_ok($commands->() - $first, '<', 300, 'a lock without an end is not asked for all the time');
$redis->command('DEL', $lock);
wait_until('the message', sub { offset($redis) });
is($consumer->stop, 0, 'an end in good order');

# ---- the offset does not fit --------------------------------------------------------------------------

fresh();
messages($redis, 's', 1 .. 3);
my ($status, $output, $log) = run_program($redis, options => ['--once']);
is($status, 0, 'all is read');
$redis->command('DEL', 'redstream:stream:s');
($status, $output, $log) = run_program($redis, options => ['--once']);
is($status, 1, 'the stream is gone: exit status 1');
like($log, qr/the offset is 3-0, but the stream does not exist.*redstream\.add_consumer\('s', 'n', /, 'the stream is gone: it is said');

messages($redis, 's', 1);
$consumer = Redstream::Consumer->new($redis);
$consumer->wait_log(qr/the offset 3-0 is ahead of the stream, whose last id is 1-0/);
is(offset($redis), '3-0', 'the offset is ahead of the stream: it is left alone');
is($consumer->output, '', 'the offset is ahead of the stream: nothing is read');
ok($consumer->is_running, 'the process stays');
is($consumer->stop, 0, 'a signal ends the pause');

fresh();
messages($redis, 's', 1 .. 3);
run_program($redis, options => ['--once']);
$redis->command('DEL', 'redstream:stream:s');
$redis->command('XADD', 'redstream:stream:s', "1$_-0", 'payload', $_) foreach 1 .. 2;
$consumer = Redstream::Consumer->new($redis);
$consumer->wait_log(qr/the stream was deleted and filled again, from 11-0 on, after the offset 3-0/);
my $said = () = $consumer->log =~ /deleted and filled/g;
is($said, 1, 'the stream was filled again: it is said once');
$redis->command('SET', 'redstream:offset:s:n', '0-0');
wait_until('the messages', sub { offset($redis) eq '12-0' });
is($consumer->output, line_of('11-0', 1) . line_of('12-0', 2), 'the offset is set: it goes on by itself');
like($consumer->log, qr/the stream and the offset fit again/, 'and says so');
is($consumer->stop, 0, 'an end in good order');

done_testing();
