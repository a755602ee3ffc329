# Whatever goes wrong while messages are moved, none is lost, none is moved twice without
# end, and the delayer comes back by itself.
#
# REDSTREAM_TEST_KILLS: how often the worker is killed (3).

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep);

my $kills = $ENV{REDSTREAM_TEST_KILLS} || 3;
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.delay' => '500ms',
	'restart_after_crash' => 'on',
	'log_statement' => 'none');
my $main = 'redstream:stream:item';
my $delay = "$main.delay";

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item');
});

# So many messages in the delay stream, due in the past, that nobody's transaction made.
sub fill
{
	my ($count) = @_;
	$redis->command('DEL', $main, $delay);
	$redis->command('EVAL', q{
		for i = 1, ARGV[1] do
			redis.call('XADD', KEYS[1], '1000-' .. i, 'payload', '{"id":' .. i .. '}')
		end}, 1, $delay, $count);
	return;
}

# How often each of the messages is on the main stream, as "times: messages".
sub arrived
{
	my %times;
	my %count;
	my $text = $redis->cli('--raw', 'XRANGE', $main, '-', '+');
	$times{$1}++ while $text =~ /^\{"id":(\d+)\}/mg;
	$count{$_}++ foreach values %times;
	return join ', ', map { "$_: $count{$_}" } sort keys %count;
}

sub emptied
{
	my ($seconds) = @_;
	wait_until('the delay stream to be empty',
		sub { (eval { $redis->command('XLEN', $delay) } // 1) == 0 }, $seconds);
	return;
}

sub kill_worker
{
	my $old = process_pid($node, 'redstream worker') or die 'there is no worker';
	kill('KILL', $old);
	wait_until('another worker', sub {
		my $new = process_pid($node, 'redstream worker');
		return $new && $new != $old;
	}, 60);
	return;
}

# ---- the worker is killed -------------------------------------------------------------

# It is gone before it has taken the lock, while it moves, or when it is done: each time
# there are as many messages to be moved as there were when it was killed.
fill(100_000);
foreach my $i (1 .. $kills)
{
	my $left = $redis->command('XLEN', $delay);
	fill(100_000), $left = 100_000 if $left == 0;
	wait_until('the worker to move messages',
		sub { $redis->command('XLEN', $delay) < $left }, 60);
	sleep rand 0.1;
	kill_worker();
}
emptied(60);
is(arrived(), '1: 100000', "worker killed $kills times: each message is moved once");
is_deeply([ grep { /PANIC|TRAP/ } crashes($node) ], [], 'no panic');

# ---- the server is killed between the commit and the main message ---------------------------

wait_until('a connection', sub { eval { stats($node)->{connected} } });
$redis->command('DEL', $main, $delay);
my $session = Redstream::Session->new($node);
$session->send("SET redstream_test.commit_pause = '60s'; INSERT INTO item VALUES (1)");
wait_until('the commit', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM item') });
is($redis->command('XLEN', $main), 0, 'killed after the commit: there is no main message');
$node->stop('immediate');
$session->close;
$node->start;
wait_until('the main message', sub { $redis->command('XLEN', $main) });
is_deeply([ $redis->payloads($main) ], ['{"id":1}'], 'it comes from the delay message');

# With transactions open: what they wrote goes.
$redis->command('DEL', $main, $delay);
$session = Redstream::Session->new($node);
$session->query('BEGIN; INSERT INTO item SELECT generate_series(10001, 13000)');
wait_until('early delay messages', sub { $redis->command('XLEN', $delay) > 1000 });
$node->stop('immediate');
$session->close;
$node->start;
$node->safe_psql('postgres', 'INSERT INTO item VALUES (2)');
emptied();
is_deeply([ $redis->payloads($main) ], [ '{"id":2}', '{"id":2}' ],
	'killed with transactions open: only what was committed is announced');

# How many lives of the server are remembered.
sub lives
{
	my $count = () = slurp_file($node->data_dir . '/redstream.lives') =~ /^\d+ \d+$/mg;
	return $count;
}

# The id of what was open is given out again, and commits; then the server is killed once more, or was not connected in between.
foreach my $connected (1, 0)
{
	my $name = 'killed twice' . ($connected ? '' : ', without Redis in between');
	my $gone = qq({"id":"gone $connected"});
	my $now = delay_messages_now('item');

	reconfigure($node, 'redstream.delay' => '1h');
	$node->safe_psql('postgres', "INSERT INTO item VALUES (900 + $connected)");
	settle($node, $redis);
	$redis->command('DEL', $main, $delay);
	$session = Redstream::Session->new($node);
	my ($xid) = $session->query(qq{
		BEGIN; SELECT redstream.emit('item', '$gone'); $now; SELECT 'id ' || pg_current_xact_id()}) =~ /id (\d+)/;
	is_deeply([ $redis->payloads($delay) ], [$gone], "$name: a delay message");
	my $lives = lives();
	$node->stop('immediate');
	$session->close;
	$redis->stop unless $connected;
	$node->start;
	wait_connected($node, 1) if $connected;
	my $id = 1000 + 100 * $connected;
	my $again = 0;
	while ($again < $xid)
	{
		$id++;
		$again = $node->safe_psql('postgres', "INSERT INTO item VALUES ($id) RETURNING pg_current_xact_id()");
	}
	is($again, $xid, "$name: its id is another transaction's");
	$node->stop('immediate');
	$redis->start unless $connected;
	$node->start;
	reconfigure($node, 'redstream.delay' => '500ms');
	wait_until('the message that committed', sub { grep { $_ eq qq({"id":$id}) } $redis->payloads($main) });
	emptied();
	is_deeply([ grep { $_ eq $gone } $redis->payloads($main) ], [], "$name: it is not announced");
	is(lives(), $lives + 1 + $connected, "$name: as the lives are remembered that wrote to Redis");
}

# What is needed for that cannot be written.
my $in_the_way = $node->data_dir . '/redstream.lives.tmp';
$node->stop;
mkdir $in_the_way or die "$in_the_way: $!";
$node->start;
wait_until('the reason', sub { stats($node)->{last_error} =~ /could not write file "redstream\.lives"/ });
$node->safe_psql('postgres', 'INSERT INTO item VALUES (3)');
is(stats($node)->{spool_rows}, 1, 'without its file the sender has no connection');
rmdir $in_the_way or die "$in_the_way: $!";
wait_until('the message', sub { grep { $_ eq '{"id":3}' } $redis->payloads($main) });
emptied();

# ---- Redis restarts, forgets its scripts --------------------------------------------------------

fill(100_000);
wait_until('a part to be moved', sub { $redis->command('XLEN', $delay) < 100_000 });
$redis->kill9;
$redis->start;
emptied();
is(arrived(), '1: 100000', 'Redis killed: each message is moved once');

fill(100_000);
wait_until('a part to be moved', sub { $redis->command('XLEN', $delay) < 100_000 });
$redis->command('SCRIPT', 'FLUSH');
emptied();
is(arrived(), '1: 100000', 'scripts flushed: each message is moved once');

# ---- Redis refuses ---------------------------------------------------------------------------------

# What the log says of it, and the view; then the cause is taken away.
sub refused
{
	my ($what, $pattern, $break, $mend) = @_;
	my $offset = -s $node->logfile;

	$break->();
	wait_until("$what: the log", sub { slurp_file($node->logfile, $offset) =~ $pattern });
	wait_until("$what: the view", sub {
		$node->safe_psql('postgres', q{
			SELECT last_error FROM redstream.workers WHERE kind = 'delayer' AND state = 'failing'})
		  =~ /^stream item: /;
	});
	$mend->();
	emptied(60);
	pass("$what: said, and over when its cause is gone");
	$node->poll_query_until('postgres',
		q{SELECT state <> 'failing' FROM redstream.workers WHERE kind = 'delayer'});
	my %said = map { $_ => 1 } slurp_file($node->logfile, $offset) =~ /($pattern)/g;
	my $times = () = slurp_file($node->logfile, $offset) =~ /$pattern/g;
	is($times, scalar keys %said, "$what: said once");
	return;
}

refused('wrong type', qr/delayer: stream item: .*WRONGTYPE/,
	sub {
		$redis->command('DEL', 'redstream:offset:item.delay:delayer');
		fill(2000);
		$redis->command('SET', $main, 'x');
	},
	sub {
		is($redis->command('XLEN', $delay), 2000, 'wrong type: nothing is gone');
		is($redis->command('GET', 'redstream:offset:item.delay:delayer'), undef,
			'wrong type: nor has the offset passed it');
		$redis->command('DEL', $main);
	});
is(arrived(), '1: 2000', 'wrong type: each message is moved once');

refused('delay stream of a wrong type', qr/delayer: stream item: .*WRONGTYPE/,
	sub { $redis->command('DEL', $delay); $redis->command('SET', $delay, 'x') },
	sub { $redis->command('DEL', $delay) });

foreach my $command ('xadd', 'xtrim')
{
	# a single message is added by the script, which has other words for it
	refused("no permission for $command",
		qr/delayer: stream item: .*(?:NOPERM.*$command|can't run this command)/i,
		sub {
			my $held = $redis->command('EVAL', q{
				redis.call('SET', KEYS[1], 'test', 'PX', 60000)}, 1,
				'redstream:lock:consumer:item.delay:delayer');
			fill(2000);
			$redis->command('ACL', 'SETUSER', 'default', "-$command");
			$redis->command('DEL', 'redstream:lock:consumer:item.delay:delayer');
		},
		sub {
			is($redis->command('XLEN', $delay), 2000, "no permission for $command: nothing is gone");
			is($redis->command('XLEN', $main), 0, "no permission for $command: nothing is moved");
			$redis->command('ACL', 'SETUSER', 'default', '+@all');
		});
	is(arrived(), '1: 2000', "no permission for $command: each message is moved once");
}

refused('out of memory', qr/delayer: stream item: .*OOM/,
	sub {
		$redis->command('SET', 'redstream:lock:consumer:item.delay:delayer', 'test', 'PX', 60000);
		fill(2000);
		$redis->command('CONFIG', 'SET', 'maxmemory', '1mb');
		$redis->command('DEL', 'redstream:lock:consumer:item.delay:delayer');
	},
	sub {
		is($redis->command('XLEN', $delay), 2000, 'out of memory: nothing is gone');
		$redis->command('CONFIG', 'SET', 'maxmemory', '0');
	});
is(arrived(), '1: 2000', 'out of memory: each message is moved once');

# One stream in trouble does not stop another.
$node->safe_psql('postgres', q{
	CREATE TABLE other (id integer PRIMARY KEY);
	SELECT redstream.attach('other')});
fill(1);
$redis->command('SET', $main, 'x');
$node->safe_psql('postgres', 'INSERT INTO other VALUES (1)');
wait_until('the other stream', sub { $redis->command('XLEN', "redstream:stream:other") == 2 });
is($redis->command('XLEN', $delay), 1, 'one stream in trouble: the others go on');
$redis->command('DEL', $main);

# Nor does one that costs the connection: replies of so many bytes end it.
emptied(60);
$redis->command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 2mb 0 0');
$redis->command('DEL', $main, 'redstream:stream:other');
$redis->command('XADD', $delay, '*', 'payload', sprintf('{"id":%d,"x":"%s"}', $_, 'x' x 900_000))
  foreach 1 .. 5;
$node->safe_psql('postgres', 'INSERT INTO other VALUES (2)');
wait_until('the other stream', sub { $redis->command('XLEN', 'redstream:stream:other') == 2 });
emptied(60);
is($redis->command('XLEN', $main), 5, 'too much at once for Redis: in smaller pieces, and others go on');
$redis->command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 0 0 0');

# ---- Redis hangs --------------------------------------------------------------------------------------

emptied(60);
fill(100_000);
wait_until('a part to be moved', sub { $redis->command('XLEN', $delay) < 100_000 });
$redis->stop_signal;
wait_until('the delayer to notice', sub {
	$node->safe_psql('postgres', q{SELECT state FROM redstream.workers WHERE kind = 'delayer'}) eq 'failing' });
$redis->cont;
emptied(60);
is(arrived(), '1: 100000', 'Redis hangs: each message is moved once');

is_deeply([ grep { /PANIC|TRAP/ } crashes($node) ], [], 'no panic');
$node->stop;
done_testing;
