# The trimmer: what every reader has read goes, nothing else does, and what expires is
# counted to those who lose it.

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $largest = '18446744073709551615';
my $redis = new_redis;

# no worker: the steps here are the only ones
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody');

# Attaches a table of its own to the stream.
sub attach
{
	my ($stream, $options) = @_;
	$options = defined $options ? ", $options" : '';
	$node->safe_psql('postgres', qq{
		CREATE TABLE "$stream" (id integer PRIMARY KEY);
		SELECT redstream.attach('"$stream"'$options)});
	return;
}

sub detach
{
	$node->safe_psql('postgres', qq{DROP TABLE "$_"}) foreach @_;
	return;
}

sub fill
{
	my ($stream, @ids) = @_;
	$redis->command('XADD', "redstream:stream:$stream", $_, 'payload', '{"id":1}') foreach @ids;
	return;
}

# A consumer that has committed this id, or none.
sub consumer
{
	my ($stream, $name, $offset) = @_;
	$redis->command('SADD', "redstream:consumers:$stream", $name);
	$redis->command('SET', "redstream:offset:$stream:$name", $offset) if defined $offset;
	return;
}

sub drop
{
	my ($stream, $name) = @_;
	$redis->command('SREM', "redstream:consumers:$stream", $name);
	$redis->command('DEL', "redstream:offset:$stream:$name");
	return;
}

# One step; what it reports, a line for each stream.
sub trim
{
	return $node->safe_psql('postgres', 'SELECT * FROM redstream.run_trimmer() ORDER BY stream');
}

sub ids
{
	my ($stream) = @_;
	return join ' ', map { $_->[0] } $redis->entries("redstream:stream:$stream");
}

sub history
{
	my ($stream, $field) = @_;
	return $redis->command('HGET', "redstream:history:$stream", $field);
}

# Warnings that speak of a stream, since the last call.
my $read = -s $node->logfile;

sub warnings_of
{
	my ($stream) = @_;
	my $text = slurp_file($node->logfile, $read);
	$read += length $text;
	return scalar grep { /WARNING: .*trimmer: stream \Q$stream\E\W/ } split /\n/, $text;
}

# ---- the consumers' rule ----------------------------------------------------------------

attach('rule');
is(trim(), '', 'no stream in Redis: nothing');
fill('rule', qw(5-9 5-10 9-0 9-99 10-0 999-5 1000-0), "1000-$largest", '1001-0');
is(trim(), '', 'no consumer and no group: nothing');
is($redis->command('XLEN', 'redstream:stream:rule'), 9, 'and nothing is trimmed');

consumer('rule', 'a');
is(trim(), '', 'a registered consumer that has not committed holds the stream');
consumer('rule', 'a', '0-0');
is(trim(), '', 'and one at 0-0');
consumer('rule', 'a', '5-9');
is(trim(), 'rule|1|0|f|', '5-9 goes');
is(ids('rule'), "5-10 9-0 9-99 10-0 999-5 1000-0 1000-$largest 1001-0", 'and 5-10 is behind it');
consumer('rule', 'a', '9-99');
is(trim(), 'rule|3|0|f|', 'up to 9-99');
is(ids('rule'), "10-0 999-5 1000-0 1000-$largest 1001-0", '10-0 is behind it');
consumer('rule', 'a', '999-5');
trim();
is(ids('rule'), "1000-0 1000-$largest 1001-0", 'and 1000-0 behind 999-5');
consumer('rule', 'a', '1000-0');
trim();
is(ids('rule'), "1000-$largest 1001-0", 'an id with the largest sequence number stays');
consumer('rule', 'a', "1000-$largest");
trim();
is(ids('rule'), '1001-0', 'and goes');
is(trim(), '', 'nothing more to do');
consumer('rule', 'a', '1001-0');
is(trim(), 'rule|1|0|f|', 'an empty stream remains');
is($redis->command('EXISTS', 'redstream:stream:rule'), 1, 'as a key');
is(trim(), '', 'nothing to do with an empty stream');
is($redis->command('EXISTS', 'redstream:lock:trimmer:rule'), 0, 'the lock is free');
is_deeply($redis->command('LRANGE', 'redstream:lock:trimmer:rule.notify', 0, -1), ['1'],
	'and who waits for it is told, once');

fill('rule', map { "1002-$_" } 1 .. 9);
consumer('rule', 'b', '1002-3');
consumer('rule', 'a', '1002-8');
trim();
is(ids('rule'), join(' ', map { "1002-$_" } 4 .. 9), 'the slower consumer decides');
consumer('rule', 'c');
consumer('rule', 'b', '1002-9');
is(trim(), '', 'one that has not committed holds them all');
drop('rule', 'c');
trim();
is(ids('rule'), '1002-9', 'until it is dropped');
fill('rule', "$largest-$largest");
consumer('rule', $_, "$largest-$largest") foreach qw(a b);
trim();
is(ids('rule'), "$largest-$largest", 'after the largest id of all there is no next one');
is(stats($node)->{trimmed}, 18, 'all of them are counted');
is(stats($node)->{expired}, 0, 'as trimmed only');
is(warnings_of('rule'), 0, 'no warning');

# ---- groups ----------------------------------------------------------------------------------

attach('groups');
my $key = 'redstream:stream:groups';
fill('groups', map { "7-$_" } 8 .. 12);
$redis->command('XGROUP', 'CREATE', $key, 'one', '0');
is(trim(), '', 'a group that has read nothing holds the stream');
$redis->command('XREADGROUP', 'GROUP', 'one', 'x', 'COUNT', 3, 'STREAMS', $key, '>');
is(trim(), '', 'and so do pending messages');
$redis->command('XACK', $key, 'one', '7-8', '7-10');
is(trim(), 'groups|1|0|f|', 'the smallest pending one is kept');
is(ids('groups'), '7-9 7-10 7-11 7-12', 'and what is after it');
$redis->command('XACK', $key, 'one', '7-9');
trim();
is(ids('groups'), '7-11 7-12', 'nothing pending: all that was delivered goes');
consumer('groups', 'a', '7-10');
$redis->command('XREADGROUP', 'GROUP', 'one', 'x', 'NOACK', 'STREAMS', $key, '>');
is(trim(), '', 'a consumer beside a group holds it');
consumer('groups', 'a', '7-12');
$redis->command('XGROUP', 'CREATE', $key, 'two', '7-11');
trim();
is(ids('groups'), '7-12', 'and the slower group does');

# A group that was set back has read less than what is pending.
attach('setback');
$key = 'redstream:stream:setback';
fill('setback', map { "1-$_" } 1 .. 9);
$redis->command('XGROUP', 'CREATE', $key, 'one', '0');
$redis->command('XREADGROUP', 'GROUP', 'one', 'x', 'COUNT', 6, 'STREAMS', $key, '>');
$redis->command('XGROUP', 'SETID', $key, 'one', '0');
$redis->command('XACK', $key, 'one', map { "1-$_" } 1 .. 4);
is(trim(), '', 'a group that was set back holds the stream');
detach('setback');

# ---- delay streams --------------------------------------------------------------------------------

attach('delayed', q{expiry => '1 minute'});
$redis->command('XADD', 'redstream:stream:delayed.delay', '5-5', 'payload', '{"id":1}');
consumer('delayed', 'a', '0-0');
fill('delayed', '5-5');
is(trim(), 'delayed|1|1|f|', 'the main stream expires');
is(ids('delayed.delay'), '5-5', 'the delay stream does not');
detach('delayed');

# ---- expiry ------------------------------------------------------------------------------------------

attach('expiring', q{expiry => '1 hour'});
my ($seconds) = @{ $redis->command('TIME') };
my $old = ($seconds - 7200) * 1000;
my $new = ($seconds - 60) * 1000;
fill('expiring', (map { "$old-$_" } 1 .. 20), "$new-1", "$new-2");
consumer('expiring', 'slow', "$old-5");
consumer('expiring', 'slower', "$old-3");
consumer('expiring', 'fast', "$new-1");
consumer('expiring', 'new');
warnings_of('expiring');
my $expired = stats($node)->{expired};
is(trim(), 'expiring|20|20|f|', 'what is older goes');
is(ids('expiring'), "$new-1 $new-2", 'and nothing else');
is(history('expiring', 'lost:slow'), 15, 'counted to one consumer');
is(history('expiring', 'lost:slower'), 17, 'to another one');
is(history('expiring', 'lost:new'), 20, 'to one that has read nothing');
is(history('expiring', 'lost:fast'), undef, 'and not to one that has read it');
is(stats($node)->{expired} - $expired, 52, 'and in all');
is(warnings_of('expiring'), 3, 'a warning for each of them');
is($node->safe_psql('postgres', q{
	SELECT consumer, lost FROM redstream.consumers WHERE stream = 'expiring' ORDER BY consumer}),
	"fast|0\nnew|20\nslow|15\nslower|17", 'the view has the numbers');

sub expire_some
{
	my ($from, $to) = @_;
	$redis->command('DEL', 'redstream:stream:expiring');
	$redis->command('HDEL', 'redstream:history:expiring', qw(last added));
	fill('expiring', (map { "$old-$_" } $from .. $to), "$new-3");
	return trim();
}

drop('expiring', 'new');
is(expire_some(21, 25), 'expiring|5|5|f|', 'more of them');
is(history('expiring', 'lost:slow'), 20, 'the count goes on');
is(warnings_of('expiring'), 0, 'no warning again');
consumer('expiring', 'slow', "$new-2");
is(trim(), '', 'one has caught up');
is(history('expiring', 'losing:slow'), undef, 'which is noticed');
consumer('expiring', 'slow', "$old-25");
is(expire_some(26, 30), 'expiring|5|5|f|', 'and is left behind once more');
is(history('expiring', 'lost:slow'), 25, 'counted');
is(warnings_of('expiring'), 1, 'with a warning');
is(history('expiring', 'losing:new'), undef, 'nothing is remembered of a dropped consumer');
consumer('expiring', 'ahead', ($new + 5) . '-1');
is(expire_some(31, 32), 'expiring|2|2|f|', 'a consumer ahead of the stream does not hold what expires');
is(warnings_of('expiring'), 1, 'which is told');
drop('expiring', $_) foreach qw(slow slower fast ahead);
is(expire_some(33, 35), 'expiring|3|0|f|', 'nor does nobody');
detach('expiring');

# ---- ahead ------------------------------------------------------------------------------------------------

attach('ahead');
fill('ahead', map { "50-$_" } 1 .. 9);
consumer('ahead', 'a', '50-10');
consumer('ahead', 'b', '50-5');
is(trim(), '', 'an offset ahead of the stream: nothing is trimmed');
is(trim(), '', 'and again');
is(warnings_of('ahead'), 1, 'with one warning');
consumer('ahead', 'a', '50-9');
is(trim(), 'ahead|5|0|f|', 'resolved');
consumer('ahead', 'a', '50-10');
trim();
is(warnings_of('ahead'), 1, 'and anew');
drop('ahead', 'a');
trim();
is(history('ahead', 'ahead:a'), undef, 'the consumer is dropped');
$redis->command('XDEL', 'redstream:stream:ahead', '50-9');
consumer('ahead', 'b', '50-9');
is(trim(), 'ahead|3|0|f|', 'the last entry was deleted: its reader is not ahead');
$redis->command('XDEL', 'redstream:stream:ahead', '50-9');
is(trim(), '', 'nor is the stream another one');
is(warnings_of('ahead'), 0, 'no warning');
$redis->command('DEL', 'redstream:stream:ahead');
is(trim(), '', 'the stream is gone');
is(trim(), '', 'and still is');
is(warnings_of('ahead'), 1, 'with one warning');

# ---- deleted and filled again ---------------------------------------------------------------------------------

attach('refilled');
fill('refilled', map { "60-$_" } 1 .. 9);
consumer('refilled', 'a', '60-4');
consumer('refilled', 'b', '0-0');
consumer('refilled', 'c', '60-9');
is(trim(), '', 'seen once');
$redis->command('DEL', 'redstream:stream:refilled');
fill('refilled', map { "70-$_" } 1 .. 3);
is(trim(), '', 'deleted and filled again');
is(trim(), '', 'and again');
is(warnings_of('refilled'), 1, 'with one warning');
is(history('refilled', 'refilled'), '70-1', 'its first id is remembered');
like($node->safe_psql('postgres', q{
	SELECT string_agg(consumer || ': ' || coalesce(problem, ''), ', ' ORDER BY consumer)
	FROM redstream.consumers WHERE stream = 'refilled'}), qr/^a: \w.*refilled, b: , c: \w.*refilled$/,
	'the view says so');
drop('refilled', 'b');
consumer('refilled', 'a', '70-2');
is(trim(), '', 'one consumer commits past it, the other does not');
consumer('refilled', 'c', '70-1');
is(trim(), 'refilled|1|0|f|', 'both do');
is(history('refilled', 'refilled'), undef, 'and it is forgotten');
# more than before, all newer
$redis->command('DEL', 'redstream:stream:refilled');
fill('refilled', map { "80-$_" } 1 .. 30);
is(trim(), '', 'filled again with more than before');
is(warnings_of('refilled'), 1, 'a warning');
drop('refilled', $_) foreach qw(a c);
trim();
is(history('refilled', 'refilled'), undef, 'nobody is left behind it');
# older ids, as with a clock set back
consumer('refilled', 'd', '80-5');
$redis->command('DEL', 'redstream:stream:refilled');
fill('refilled', map { "75-$_" } 1 .. 40);
is(trim(), '', 'filled again with older ids');
is(warnings_of('refilled'), 1, 'is an offset ahead');
# as Redis 6.2 has it: nothing is counted, but the stream was seen to be gone
$redis->command('HDEL', 'redstream:history:refilled', 'added');
consumer('refilled', 'd', '75-5');
$redis->command('DEL', 'redstream:stream:refilled');
trim();
$redis->command('HDEL', 'redstream:history:refilled', 'added');
warnings_of('refilled');
fill('refilled', map { "90-$_" } 1 .. 99);
is(trim(), '', 'a stream that was gone is another one');
is(warnings_of('refilled'), 1, 'a warning');
consumer('refilled', 'd', '90-98');
is(trim(), 'refilled|98|0|f|', 'read');
# trimmed by somebody else, and gone on: no refill
fill('refilled', map { "91-$_" } 1 .. 9);
$redis->command('XTRIM', 'redstream:stream:refilled', 'MINID', '91-3');
consumer('refilled', 'd', '91-3');
is(trim(), 'refilled|1|0|f|', 'somebody else trimmed it');
$redis->command('RENAME', 'redstream:stream:refilled', 'elsewhere');
trim();
$redis->command('RENAME', 'elsewhere', 'redstream:stream:refilled');
warnings_of('refilled');
consumer('refilled', 'd', '91-5');
is(trim(), 'refilled|2|0|f|', 'a stream that was away and came back is the same');
is(warnings_of('refilled'), 0, 'without a warning');

# ---- the lock -----------------------------------------------------------------------------------------------------

attach('locked');
fill('locked', map { "10-$_" } 1 .. 9);
consumer('locked', 'a', '10-5');
my $lock = 'redstream:lock:trimmer:locked';
$redis->command('SET', $lock, 'somebody', 'PX', 60000);
is(trim(), 'locked|0|0|t|', 'somebody else trims');
is($redis->command('GET', $lock), 'somebody', 'and keeps the lock');
is($redis->command('XLEN', 'redstream:stream:locked'), 9, 'nothing is trimmed');
$redis->command('SET', $lock, 'somebody', 'PX', 5000);
wait_until('the lock to expire', sub { trim() eq 'locked|5|0|f|' });
is($redis->command('EXISTS', $lock), 0, 'the lock was taken when it had expired');
is($redis->command('LLEN', "$lock.notify"), 1, 'and released');

# A relay between PostgreSQL and Redis that runs one command before it passes on the script that trims.
sub run_relay
{
	my ($path, @command) = @_;
	my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 5) or die "$path: $!";
	my $pid = fork;
	die "fork: $!" unless defined $pid;
	return $pid if $pid;

	my $all = IO::Select->new($listener);
	my %other;
	while (my @ready = $all->can_read)
	{
		foreach my $from (@ready)
		{
			if ($from == $listener)
			{
				my $client = $listener->accept;
				my $server = IO::Socket::UNIX->new(Peer => $redis->socket_path);
				%other = (%other, $client => [ $server, 1 ], $server => [ $client, 0 ]);
				$all->add($client, $server);
				next;
			}
			my ($to, $is_client) = @{ $other{$from} || next };
			my $bytes;
			if (!sysread($from, $bytes, 65536))
			{
				$all->remove($from, $to);
				delete @other{ $from, $to };
				shutdown $_, 2 foreach $from, $to;
				next;
			}
			if (@command && $is_client && $bytes =~ /'XTRIM'/)
			{
				system('redis-cli', '-s', $redis->socket_path, @command);
				@command = ();
			}
			syswrite($to, $bytes);
		}
	}
	POSIX::_exit(0);
}

sub trim_through_relay
{
	my ($what, $command, $expected) = @_;
	my $path = $redis->directory . '/relay.sock';
	my $pid = run_relay($path, @$command);

	reconfigure($node, 'redstream.url' => "unix://$path");
	is(trim(), $expected, "$what: left alone");
	reconfigure($node, 'redstream.url' => $redis->url);
	kill 'KILL', $pid;
	waitpid($pid, 0);
	unlink $path;
	return;
}

consumer('locked', 'a', '10-7');
trim_through_relay('the lock is lost while trimming', [ 'SET', $lock, 'somebody', 'PX', '60000' ], 'locked|0|0|t|');
is(ids('locked'), '10-6 10-7 10-8 10-9', 'nothing is trimmed');
is($redis->command('GET', $lock), 'somebody', 'and nobody else\'s lock released');
$redis->command('DEL', $lock);
trim_through_relay('a consumer registers while trimming', [ 'SADD', 'redstream:consumers:locked', 'b' ], '');
is(ids('locked'), '10-6 10-7 10-8 10-9', 'nothing is trimmed');
is($redis->command('EXISTS', $lock), 0, 'the lock is released');
drop('locked', 'b');
is(trim(), 'locked|2|0|f|', 'the next step trims');

# ---- errors -----------------------------------------------------------------------------------------------------------

attach('aaa_wrong');
$redis->command('SET', 'redstream:stream:aaa_wrong', 'no stream');
consumer('locked', 'a', '10-8');
is(trim(), 'aaa_wrong|0|0|f|XINFO GROUPS: WRONGTYPE Operation against a key holding the wrong kind of value
locked|1|0|f|', 'a wrong type stops no other stream');
$redis->command('DEL', 'redstream:stream:aaa_wrong');
fill('aaa_wrong', '1-1', '1-2');
consumer('aaa_wrong', 'a', 'nonsense');
is(trim(), 'aaa_wrong|0|0|f|offset of consumer a: unexpected reply', 'an offset that is no id');
consumer('aaa_wrong', 'a', '1-1');
$redis->command('SET', 'redstream:history:aaa_wrong', 'no hash');
like(trim(), qr/^aaa_wrong\|0\|0\|f\|HGETALL: WRONGTYPE [^\n]*$/, 'a history that is no hash');
$redis->command('DEL', 'redstream:history:aaa_wrong');

$redis->command('ACL', 'SETUSER', 'default', '-xtrim');
like(trim(), qr/^aaa_wrong\|0\|0\|f\|XTRIM: .*(?:NOPERM|can't run this command)[^\n]*$/, 'no permission');
is($redis->command('EXISTS', 'redstream:lock:trimmer:aaa_wrong'), 0, 'the lock is released');
$redis->command('ACL', 'SETUSER', 'default', '+xtrim', '-xinfo');
like(trim(), qr/^aaa_wrong\|0\|0\|f\|XINFO GROUPS: NOPERM [^\n]*$/m, 'no permission to look');
$redis->command('ACL', 'SETUSER', 'default', '+xinfo');
is(trim(), 'aaa_wrong|1|0|f|', 'permitted again');

# What cannot be remembered does not keep a stream from expiring.
attach('unwritten', q{expiry => '1 hour'});
fill('unwritten', "$new-1");
consumer('unwritten', 'a', '0-0');
is(trim(), '', 'a stream is seen');
$redis->command('DEL', 'redstream:stream:unwritten');
fill('unwritten', '5-1', '5-2');
$redis->command('ACL', 'SETUSER', 'default', '-hset');
like(trim(), qr/^unwritten\|2\|2\|f\|history: [^\n]+$/, 'another one expires, though that cannot be noted');
$redis->command('ACL', 'SETUSER', 'default', '+hset');
is(trim(), '', 'it can again');
is(history('unwritten', 'last'), '5-2', 'and is');
detach('unwritten');

# A full Redis is when trimming is needed.
attach('full', q{expiry => '1 hour'});
fill('full', map { "5-$_" } 1 .. 50);
consumer('full', 'a', '5-20');
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
ok(!eval { fill('full', '5-60'); 1 }, 'Redis is full');
is(trim(), 'full|50|30|f|', 'what expires goes all the same');
is(history('full', 'lost:a'), 30, 'and is counted');
is($redis->command('EXISTS', 'redstream:lock:trimmer:full'), 0, 'the lock is released');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);

$redis->stop;
my ($result, undef, $error) = $node->psql('postgres', 'SELECT * FROM redstream.run_trimmer()');
isnt($result, 0, 'no Redis');
like($error, qr/could not ask Redis/, 'and the error says so');
$redis->start;
detach(qw(rule groups ahead refilled locked aaa_wrong full));

# ---- many ------------------------------------------------------------------------------------------------------------------

attach('long', q{expiry => '1 hour'});
my $fill_long = q{for i = 1, 50000 do redis.call('XADD', KEYS[1], ARGV[1] .. '-' .. i, 'payload', '{"id":1}') end};
$redis->command('EVAL', $fill_long, 1, 'redstream:stream:long', $_) foreach 1 .. 50;
consumer('long', 'a', '21-1007');
consumer('long', 'b', '49-49999');
is(trim(), 'long|2500000|1498993|f|', 'millions of entries');
is(history('long', 'lost:a'), 1498993, 'counted exactly to one consumer');
is(history('long', 'lost:b'), 50001, 'and to another');
detach('long');

$node->safe_psql('postgres', q{
	SELECT format('CREATE TABLE idle_%1$s (id integer PRIMARY KEY);
		SELECT redstream.attach(''idle_%1$s'')', i) FROM generate_series(1, 250) i \gexec
});
foreach (1 .. 250)
{
	fill("idle_$_", '1-1', '1-2');
	consumer("idle_$_", 'a', '1-1');
}
is(scalar(split /\n/, trim()), 250, 'hundreds of streams');
$redis->command('CONFIG', 'RESETSTAT');
is(trim(), '', 'nothing to do for them');
# one GET and one EVAL are of the claim of the server key
my %calls = $redis->command('INFO', 'commandstats') =~ /^cmdstat_([^:]+):calls=(\d+)/mg;
is_deeply([ map { $calls{$_} || 0 } qw(xinfo|stream get time watch eval hset xtrim) ],
	[ 250, 251, 3, 0, 1, 0, 0 ], 'which is found out in three slices, without a lock');

is_deeply([ crashes($node) ], [], 'no crash');
done_testing();
