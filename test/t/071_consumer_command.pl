# redstream-consumer with a command: what it is given, what its exit status does, and signals.

use strict;
use warnings;

use Redstream::Consumer;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis;
my $lock = 'redstream:lock:consumer:s:n';

sub lines { return join '', map { line_of("$_-0", $_) } @_; }

# Forgets what was read.
sub reset_offset
{
	$redis->command('DEL', 'redstream:offset:s:n');
	return;
}

sub is_free
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($redis->command('EXISTS', $lock), 0, "$name: the lock is released");
}

sub refuses
{
	my ($name, $reason, @command) = @_;
	my ($status, $output, $log) = run_program($redis, options => ['--once'], command => \@command);

	is($status, 1, "$name: exit status 1");
	like($log, qr/: the batch of 3 from 1-0 to 3-0 was refused \($reason\)$/m, "$name: it is said");
	is(offset($redis), undef, "$name: nothing is committed");
	is_free($name);
	return;
}

# ---- one batch ---------------------------------------------------------------------------

messages($redis, 's', 1 .. 3);
refuses('a status', 'exit status 3', 'sh', '-c', 'cat; exit 3');
refuses('killed', 'killed by SIGKILL', 'sh', '-c', 'kill -KILL $$');
refuses('killed by a signal without a name', 'killed by signal 40', 'sh', '-c', 'kill -40 $$');
refuses('terminated', 'killed by SIGTERM', 'sh', '-c', 'kill $$');
refuses('no such command', 'cannot run /no/such: No such file or directory', '/no/such');
refuses('not in PATH', 'cannot run no-such-command: No such file or directory', 'no-such-command');
refuses('not permitted', 'cannot run /etc/passwd: Permission denied', '/etc/passwd');

my ($status, $output, $log) = run_program($redis, options => ['--once'], command => [
	'sh', '-c', 'echo "$REDSTREAM_STREAM $REDSTREAM_CONSUMER $REDSTREAM_LAST_ID $0 $1"; cat; echo said >&2', 'a b', '--once' ]);
is($status, 0, 'taken: exit status 0');
is($output, "s n 3-0 a b --once\n" . lines(1 .. 3), 'taken: environment, arguments and lines');
like($log, qr/^said$/m, 'taken: its standard error');
is(offset($redis), '3-0', 'taken: committed');
is_free('taken');

reset_offset();
($status) = run_program($redis, options => ['--once'], command => ['true']);
is($status, 0, 'a command that reads nothing');
reset_offset();
($status, $output) = run_program($redis, options => ['--once'], command => [ 'sh', '-c', 'exec <&-; sleep 0.1' ]);
is($status, 0, 'a command that closes its input');

# Nothing that is the program's gets into the command: no signal that is blocked or ignored, and no descriptor.
my @looks = ('perl', '-ne',
	'print if /^Sig(Blk|Ign|Cgt)/; END { print "has ", join(" ", map { m{(\d+)$} && -e $_ ? $1 : () } glob "/proc/$$/fd/*"), "\n" }',
	'/proc/self/status');
open(my $look, '-|', @looks) or die "perl: $!";
my ($descriptors) = join('', <$look>) =~ /^has (.*)/m;
close $look;
reset_offset();
($status, $output) = run_program($redis, options => ['--once'], command => \@looks);
my ($ignored) = $output =~ /^SigIgn:\s*([0-9a-f]+)/m;
like($output, qr/^SigBlk:\s*0+$/m, 'no signal is blocked in the command');
is(hex($ignored) & (1 << 12), 0, 'SIGPIPE is not ignored in the command');
like($output, qr/^has $descriptors$/m, 'no descriptor is left open in the command');

# ---- large ---------------------------------------------------------------------------------------

my @large = map { '"' . chr(97 + $_ % 26) x 50000 . '"' } 1 .. 400;
messages($redis, 'large', @large);
my $large = Redstream::Consumer->new($redis, stream => 'large', options => ['--verbose'], command => [
	'perl', '-e', 'select undef, undef, undef, 0.5; while (<STDIN>) { s/"payload":"(.)\K\1*/length $&/e; print } ' ]);
wait_until('20 MB', sub { (offset($redis, 'large') || '') eq '400-0' });
is($large->output, join('', map { line_of("$_-0", '"' . chr(97 + $_ % 26) . '49999"') } 1 .. 400),
	'20 MB: a slow reader gets all of them');
like($large->log, qr/batch of 336 from 1-0 to 336-0 committed/, '20 MB: a batch ends at 16 MB');
is($large->stop, 0, '20 MB: an end in good order');

# ---- again and again --------------------------------------------------------------------------------

reset_offset();
my $again = Redstream::Consumer->new($redis, command => [
	'sh', '-c', 'cat; echo $REDSTREAM_LAST_ID; test -e "$0"', $redis->directory . '/good' ]);
$again->wait_log(qr/try 1; again in 0\.2 s/);
messages($redis, 's', 4);
$again->wait_log(qr/the batch of 3 from 1-0 to 3-0 was refused \(exit status 1\), try 2; again in 0\.4 s/);
$again->wait_log(qr/try 3; again in 0\.8 s/);
is(offset($redis), undef, 'refused: nothing is committed');
is_free('refused');
open(my $good, '>', $redis->directory . '/good') or die;
close $good;
wait_until('all of it', sub { (offset($redis) || '') eq '4-0' });
like($again->output, qr/\A(\Q@{[ lines(1 .. 3) ]}\E3-0\n){4,}\Q@{[ lines(4) ]}\E4-0\n\z/,
	'refused: the same batch again, whatever came meanwhile, and then the next');
is($again->stop, 0, 'refused: an end in good order');

# ---- signals -------------------------------------------------------------------------------------------

# A command that says who it is, and ends when told to, with what it is told.
my $told = $redis->directory . '/told';
my @waits = ('sh', '-c', 'echo $$; while ! test -e "$0"; do sleep 0.02; done; exit $(cat "$0")', $told);

sub let_go
{
	my ($what) = @_;
	open(my $file, '>', "$told.part") or die;
	print $file $what;
	close $file;
	rename "$told.part", $told;
	return;
}

sub started
{
	my (@options) = @_;

	reset_offset();
	unlink $told;
	my $consumer = Redstream::Consumer->new($redis, options => \@options, command => \@waits);
	wait_until('the command', sub { $consumer->output =~ /^\d+$/m });
	return $consumer;
}

foreach my $signal (qw(TERM INT HUP))
{
	my $consumer = started();

	$consumer->signal($signal);
	ok(kill(0, $consumer->output), "SIG$signal: the command goes on");
	let_go(0);
	is($consumer->status, 0, "SIG$signal: exit status 0");
	is(offset($redis), '4-0', "SIG$signal: what it did is committed");
	is_free("SIG$signal");
}

my $consumer = started();
$consumer->signal('TERM');
let_go(5);
is($consumer->status, 0, 'a signal, and the command fails: exit status 0');
like($consumer->log, qr/refused \(exit status 5\)$/m, 'a signal, and the command fails: it is said');
is(offset($redis), undef, 'a signal, and the command fails: nothing is committed');
is_free('a signal, and the command fails');
is(() = $consumer->output =~ /\d+/g, 1, 'a signal, and the command fails: it is not run again');

$consumer = started('--once');
$consumer->signal('TERM');
let_go(0);
is($consumer->status, 0, '--once and a signal: the batch was committed');

$consumer = started();
my $pid = $consumer->output;
is(getpgrp($pid), $pid + 0, 'the command has a process group of its own');
$consumer->signal('INT');
$consumer->signal('TERM');
is($consumer->status, 1, 'two signals: exit status 1');
ok(!kill(0, $pid), 'two signals: the command is killed');
like($consumer->log, qr/second signal: the command is killed/, 'two signals: it is said');
is(offset($redis), undef, 'two signals: nothing is committed');
is_free('two signals');

# What the command has started is killed with it.
reset_offset();
$consumer = Redstream::Consumer->new($redis, command => [ 'sh', '-c', 'sh -c "echo \$\$; sleep 100"; true' ]);
wait_until('the command', sub { $consumer->output =~ /^\d+$/m });
$pid = $consumer->output;
$consumer->signal('TERM');
$consumer->signal('INT');
is($consumer->status, 1, 'two signals, a command with children');
wait_until('the child to be gone', sub { !kill 0, $pid });
pass('two signals: they are killed, too');

# Killed, it takes the command with it.
$consumer = started();
$pid = $consumer->output;
$consumer->signal('KILL');
is($consumer->status, 'signal 9', 'kill -9');
wait_until('the command to be gone', sub { !kill 0, $pid });
pass('kill -9: the command is killed, too');
is(offset($redis), undef, 'kill -9: nothing is committed');
my $next = Redstream::Consumer->new($redis, options => ['--once'], command => ['true']);
is($next->status, 0, 'kill -9: the next one waits until the lock expires');

# A command that hangs for longer than a lock lives, and is killed by somebody.
$consumer = started();
$pid = $consumer->output;
my $holder = $redis->command('GET', $lock);
my $begin = time;
wait_until('more than the time that a lock lives', sub { time > $begin + 5.5 });
is($redis->command('GET', $lock), $holder, 'a command that hangs: the lock is kept');
kill 'KILL', $pid;
$consumer->wait_log(qr/refused \(killed by SIGKILL\), try 1/);
let_go(0);
wait_until('the next try', sub { offset($redis) });
is(offset($redis), '4-0', 'a command that hangs, killed: the batch is given again');
is($consumer->stop, 0, 'a command that hangs: an end in good order');

# Started by a shell's background or nohup, it goes on ignoring what is ignored.
reset_offset();
unlink $told;
{
	local $SIG{HUP} = 'IGNORE';
	$consumer = Redstream::Consumer->new($redis, command => \@waits);
}
wait_until('the command', sub { $consumer->output =~ /^\d+$/m });
$consumer->signal('HUP');
$consumer->signal('HUP');
let_go(0);
wait_until('the end of the batch', sub { offset($redis) });
ok($consumer->is_running, 'nohup: SIGHUP is ignored');
is($consumer->stop, 0, 'nohup: an end in good order');

done_testing();
