# redstream-consumer and trouble with Redis: away, restarted, full, refusing; connections lost at the wrong moment; the lock
# lost; the process stopped for longer than the lock lives.

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use Redstream::Consumer;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always', save => '');
my $lock = 'redstream:lock:consumer:s:n';
my $told = $redis->directory . '/told';

# A command that says what it is about, and ends in good order when told to.
my @waits = ('sh', '-c', 'echo $REDSTREAM_LAST_ID; while ! test -e "$0"; do sleep 0.02; done; rm "$0"', $told);

sub let_go
{
	open(my $file, '>', $told) or die;
	close $file;
	return;
}

# A consumer whose command works on the stream's one message.
sub working
{
	my ($what, %options) = @_;

	$redis->command('DEL', 'redstream:stream:s', 'redstream:offset:s:n', 'redstream:history:s');
	unlink $told;
	messages($redis, 's', 1);
	my $consumer = Redstream::Consumer->new($redis, command => \@waits, %options);
	wait_until("$what: the command", sub { $consumer->output eq "1-0\n" });
	return $consumer;
}

# It is committed after all, and the program ends in good order.
sub recovers
{
	my ($consumer, $name, $runs) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	wait_until("$name: the commit", sub {
		let_go() if !-e $told && $consumer->output eq "1-0\n" x $runs;
		eval { offset($redis) };
	});
	is(offset($redis), '1-0', "$name: committed");
	is($consumer->output, "1-0\n" x $runs, "$name: the command was run $runs times");
	is($consumer->stop, 0, "$name: an end in good order");
	is($redis->command('EXISTS', $lock), 0, "$name: the lock is released");
	return;
}

sub kill_connections
{
	$redis->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
	return;
}

# ---- away ------------------------------------------------------------------------------------

messages($redis, 's', 1);
$redis->stop;
my $consumer = Redstream::Consumer->new($redis);
$consumer->wait_log(qr{Redis: connect to unix:\S+: No such file or directory; trying again$}m);
my $connecting = time;
wait_until('some tries', sub { time > $connecting + 1 });
is(() = $consumer->log =~ /Redis: /g, 1, 'Redis is not there: it is said once');
$redis->start;
wait_until('the message', sub { $consumer->output eq line_of('1-0', 1) });
$consumer->wait_log(qr/Redis works again, after \d+ s$/m);
kill_connections();
$consumer->wait_log(qr/Redis: XREAD on \S+: server closed the connection; trying again/);
messages($redis, 's', 2);
wait_until('the message', sub { $consumer->output eq line_of('1-0', 1) . line_of('2-0', 2) });
pass('a connection lost while it waits is no matter');
$redis->restart;
messages($redis, 's', 3);
wait_until('the message', sub { $consumer->output =~ /"3-0"/ });
pass('nor is a restart');
$redis->stop;
$consumer->wait_log(qr/connect to .*connect to /s);
is($consumer->stop, 0, 'Redis is away: a signal ends it');
$redis->start;

# Redis that does not answer.
$consumer = Redstream::Consumer->new($redis);
wait_until('it waits', sub { $redis->command('CLIENT', 'LIST') =~ /cmd=xread/ });
$redis->stop_signal;
my $begin = time;
is($consumer->stop, 0, 'Redis hangs: a signal ends the wait');
$redis->cont;

# ---- refusing -------------------------------------------------------------------------------------

sub refusing
{
	my ($name, $pattern, $begin, $end) = @_;

	$redis->command('DEL', 'redstream:offset:s:n', 'redstream:stream:s', 'redstream:history:s');
	messages($redis, 's', 1);
	$begin->();
	my $refused = Redstream::Consumer->new($redis);
	$refused->wait_log($pattern);
	is($refused->output, '', "$name: nothing is written");
	my $said = () = $refused->log =~ /$pattern/g;
	is($said, 1, "$name: it is said once");
	$end->();
	wait_until("$name: the message", sub { offset($redis) });
	is($refused->output, line_of('1-0', 1), "$name: it is waited out");
	like($refused->log, qr/Redis works again/, "$name: and that is said");
	is($refused->stop, 0, "$name: an end in good order");
	return;
}

refusing('no password', qr/Redis: HELLO on \S+: NOAUTH/,
	sub { $redis->command('CONFIG', 'SET', 'requirepass', 'geheim') },
	sub { $redis->command('CONFIG', 'SET', 'requirepass', '') });
refusing('no permission', qr/Redis: XRANGE: NOPERM/,
	sub { $redis->command('ACL', 'SETUSER', 'default', '-xrange') },
	sub { $redis->command('ACL', 'SETUSER', 'default', '+@all') });
refusing('a replica', qr/Redis: .*READONLY/,
	sub { $redis->command('CONFIG', 'SET', 'repl-diskless-sync-delay', 0); $redis->command('REPLICAOF', '127.0.0.1', 1); },
	sub { $redis->command('REPLICAOF', 'NO', 'ONE') });
refusing('a key of another type', qr/Redis: XINFO STREAM: WRONGTYPE/,
	sub { $redis->command('DEL', 'redstream:stream:s'); $redis->command('SET', 'redstream:stream:s', 'x') },
	sub { $redis->command('DEL', 'redstream:stream:s'); messages($redis, 's', 1) });
refusing('an offset that is none', qr/the committed offset is not an id: "x"/,
	sub { $redis->command('SET', 'redstream:offset:s:n', 'x') },
	sub { $redis->command('DEL', 'redstream:offset:s:n') });

# A Redis that is full takes commits: else nobody could make room.
$redis->command('DEL', 'redstream:offset:s:n');
$redis->command('SADD', 'redstream:consumers:s', 'n');
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
ok(!eval { $redis->command('SET', 'x', 'y') }, 'Redis is full');
$consumer = Redstream::Consumer->new($redis, options => ['--once']);
is($consumer->status, 0, 'Redis is full: a batch is read and committed');
is(offset($redis), '1-0', 'Redis is full: the offset');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);

# Redis refuses the commit alone.
$consumer = working('refused commit');
$redis->command('DEL', 'redstream:offset:s:n');
$redis->command('LPUSH', 'redstream:offset:s:n', 'x');
let_go();
$consumer->wait_log(qr/the batch from 1-0 to 1-0 is not committed and will be given again: Redis refuses: commit: .*WRONGTYPE/);
$redis->command('DEL', 'redstream:offset:s:n');
recovers($consumer, 'refused commit', 2);

# ---- while the command works ----------------------------------------------------------------------------

$consumer = working('lost connection');
kill_connections();
wait_until('another connection', sub { $redis->command('CLIENT', 'LIST') =~ /name=redstream-consumer/ });
recovers($consumer, 'a lost connection', 1);

$consumer = working('restart');
$redis->restart;
wait_until('another connection', sub { $redis->command('CLIENT', 'LIST') =~ /name=redstream-consumer/ });
recovers($consumer, 'a restart', 1);

$consumer = working('crash');
$redis->kill9;
$redis->start;
recovers($consumer, 'a crash', 1);

$consumer = working('long outage');
$redis->stop;
my $gone = time;
wait_until('the lock to be over', sub { time > $gone + 5.2 });
$redis->start;
$consumer->wait_log(qr/the lock is lost/);
let_go();
$consumer->wait_log(qr/the batch from 1-0 to 1-0 is not committed and will be given again: the lock was lost/);
recovers($consumer, 'an outage of more than the lock lives', 2);

# Redis hangs: what the command is given goes on, and its end is seen.
$redis->command('DEL', 'redstream:stream:s', 'redstream:offset:s:n', 'redstream:history:s');
messages($redis, 's', map { '"' . 'x' x 10000 . '"' } 1 .. 300);
unlink $told;
$consumer = Redstream::Consumer->new($redis, command => [
	'sh', '-c', 'read line; echo begun; while ! test -e "$0"; do sleep 0.02; done; rm "$0"; wc -l', $told ]);
wait_until('the command', sub { $consumer->output eq "begun\n" });
$redis->stop_signal;
$gone = time;
wait_until('an extension to be due', sub { time > $gone + 2 });
let_go();
wait_until('the whole input', sub { $consumer->output eq "begun\n299\n" });
pass('Redis hangs: the command gets all of its input');
$redis->cont;
wait_until('the commit', sub { offset($redis) });
is($consumer->stop, 0, 'Redis hangs: an end in good order');

# It hangs when a signal comes: nobody waits for long, except for the command.
$consumer = working('Redis hangs, a signal');
$redis->stop_signal;
$consumer->signal('TERM');
let_go();
$begin = time;
is($consumer->status, 0, 'Redis hangs, a signal: ends');
cmp_ok(time - $begin, '<', 4.5, 'Redis hangs, a signal: does not wait for Redis as long as usually');
like($consumer->log, qr/the batch from 1-0 to 1-0 is not committed and will be given again: Redis is away/,
	'Redis hangs, a signal: says what is not committed');
$redis->cont;

$consumer = working('Redis hung, a signal');
$redis->stop_signal;
$consumer->signal('TERM');
$gone = time;
wait_until('an extension to be due', sub { time > $gone + 2.5 });
ok($consumer->is_running, 'Redis hung, a signal: the command is waited for');
$redis->cont;
let_go();
is($consumer->status, 0, 'Redis hung, a signal: ends');
is(offset($redis), '1-0', 'Redis hung, a signal: Redis goes on, the batch is committed');
is($redis->command('EXISTS', $lock), 0, 'Redis hung, a signal: the lock is released');

# ---- at the commit ---------------------------------------------------------------------------------------

# Away when the command ends, and back before the lock is over.
$consumer = working('away at the commit');
$redis->stop;
let_go();
$consumer->wait_log(qr/Redis: /);
$redis->start;
recovers($consumer, 'away at the commit', 1);

$consumer = working('away at the commit', options => ['--once']);
$redis->stop;
let_go();
is($consumer->status, 1, '--once, away at the commit for long: exit status 1');
like($consumer->log, qr/is not committed and will be given again: Redis is away/, '--once, away at the commit for long: it is said');
$redis->start;
is(offset($redis), undef, '--once, away at the commit for long: nothing is committed');
wait_until('the lock to expire', sub { !$redis->command('EXISTS', $lock) });

$consumer = working('two signals at the commit');
$redis->stop;
let_go();
$consumer->wait_log(qr/Redis: .*Redis: /s);
$consumer->signal('TERM');
$consumer->signal('INT');
is($consumer->status, 1, 'two signals at the commit: exit status 1');
like($consumer->log, qr/is not committed and will be given again/, 'two signals at the commit: it is said');
$redis->start;
wait_until('the lock to expire', sub { !$redis->command('EXISTS', $lock) });

# The connection is lost when Redis has the commit, and has not executed it: it is tried again.
$consumer = working('commit that is lost');
$redis->command('CLIENT', 'PAUSE', 60000, 'WRITE');
let_go();
wait_until('the commit to wait', sub { $redis->command('INFO', 'clients') =~ /blocked_clients:1/ });
$redis->kill9;
$redis->start;
recovers($consumer, 'a commit that is lost', 1);

# A process between the two, which forwards everything until there is a file: then it forwards the next commit, ends the connection
# when the answer comes, and forwards again.
sub start_relay
{
	my ($cut) = @_;
	my $path = $redis->directory . '/relay';
	my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 5) or die "relay: $!";
	my $parent = $$;
	my $pid = fork;

	die "fork: $!" unless defined $pid;
	return ($pid, "unix://$path") if $pid;
	while (getppid == $parent)
	{
		next unless IO::Select->new($listener)->can_read(1);
		my $client = $listener->accept or next;
		my $server = IO::Socket::UNIX->new(Peer => $redis->socket_path) or next;
		my $committing = 0;

		for (;;)
		{
			my ($from) = IO::Select->new($client, $server)->can_read(1);
			POSIX::_exit(0) if getppid != $parent;
			next unless $from;
			last unless sysread($from, my $bytes, 1 << 16);
			$committing = 1 if $from == $client && -e $cut && $bytes =~ /'SET', KEYS\[3\]/;
			last if $from == $server && $committing && unlink $cut;
			syswrite($from == $client ? $server : $client, $bytes);
		}
	}
	POSIX::_exit(0);
}

my $cut = $redis->directory . '/cut';
my ($relay, $relayed) = start_relay($cut);
foreach my $options ([], ['--once'])
{
	my $name = "a commit without an answer @$options";

	$consumer = working($name, url => $relayed, options => $options);
	open(my $file, '>', $cut) or die;
	close $file;
	let_go();
	$consumer->wait_log(qr/the last batch was committed, although Redis did not say so/);
	is(offset($redis), '1-0', "$name: committed");
	is($consumer->output, "1-0\n", "$name: the command was run once");
	is(@$options ? $consumer->status : $consumer->stop, 0, "$name: exit status 0");
}
kill 'TERM', $relay;
waitpid $relay, 0;

# ---- the lock is lost ---------------------------------------------------------------------------------------

$consumer = working('deleted lock');
$redis->command('DEL', $lock);
$consumer->wait_log(qr/the lock is lost: it expired, was deleted, or somebody else has it\n/);
is(offset($redis), undef, 'a deleted lock: said while the command works');
let_go();
recovers($consumer, 'a deleted lock', 2);

$consumer = working('stolen lock');
$redis->command('SET', $lock, 'somebody', 'PX', 60000);
let_go();
$consumer->wait_log(qr/is not committed and will be given again: the lock was lost/);
is($redis->command('GET', $lock), 'somebody', "a stolen lock: the thief's is left alone");
is(offset($redis), undef, 'a stolen lock: nothing is committed');
$redis->command('DEL', $lock);
$redis->command('RPUSH', "$lock.notify", 1);
recovers($consumer, 'a stolen lock', 2);

$consumer = working('lost lock', options => ['--once']);
$redis->command('SET', $lock, 'somebody', 'PX', 60000);
let_go();
is($consumer->status, 1, '--once, a lost lock: exit status 1');
$redis->command('DEL', $lock);

# ---- stopped for longer than the lock lives -------------------------------------------------------------------

$consumer = working('SIGSTOP');
$consumer->signal('STOP');
$consumer->wait_stopped;
messages($redis, 's', 2);
my $other = Redstream::Consumer->new($redis, options => [ '--once', '--batch-size', 2 ]);
is($other->status, 0, 'SIGSTOP: another one takes over');
is($other->output, line_of('1-0', 1) . line_of('2-0', 2), 'SIGSTOP: it is given the batch');
is(offset($redis), '2-0', 'SIGSTOP: and commits more');
let_go();
$consumer->signal('CONT');
$consumer->wait_log(qr/the batch from 1-0 to 1-0 is not committed and will be given again: the lock was lost/);
is(offset($redis), '2-0', 'SIGSTOP: the offset is not set back');
messages($redis, 's', 3);
wait_until('the next message', sub { let_go() unless -e $told; offset($redis) eq '3-0' });
is($consumer->output, "1-0\n3-0\n", 'SIGSTOP: it goes on behind');
is($consumer->stop, 0, 'SIGSTOP: an end in good order');
unlink $told;

# Stopped before it has begun with the batch.
$redis->command('DEL', 'redstream:stream:s', 'redstream:offset:s:n', 'redstream:history:s');
messages($redis, 's', 1);
$consumer = Redstream::Consumer->new($redis, options => [ '--linger', 3000 ]);
wait_until('its lock', sub { $redis->command('EXISTS', $lock) });
$consumer->signal('STOP');
$consumer->wait_stopped;
$other = Redstream::Consumer->new($redis, options => ['--once']);
is($other->status, 0, 'SIGSTOP while it lingers: another one takes over');
$consumer->signal('CONT');
messages($redis, 's', 2);
wait_until('the next message', sub { offset($redis) eq '2-0' });
is($consumer->output, line_of('2-0', 2), 'SIGSTOP while it lingers: it does not begin with what is another\'s');
is($consumer->stop, 0, 'SIGSTOP while it lingers: an end in good order');

done_testing();
