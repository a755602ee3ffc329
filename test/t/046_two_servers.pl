# Two PostgreSQL servers, and processes that go by Ruby's protocol, share a Redis: one works on a
# stream, no message is moved twice, and when the one that works dies another takes over.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis;
my %settings = (
	'redstream.delay' => '300ms',
	'redstream.trim_interval' => '500ms',
	'log_statement' => 'none');
my $one = new_node('one', $redis, %settings);
my $two = new_node('two', $redis, %settings);
my $main = 'redstream:stream:item';
my $delay = "$main.delay";

foreach my $node ($one, $two)
{
	$node->safe_psql('postgres', q{
		CREATE TABLE item (id integer PRIMARY KEY);
		SELECT redstream.attach('item')});
}

sub system_of { return $_[0]->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()'); }
sub emptied { wait_until('the delay stream to be empty', sub { $redis->command('XLEN', $delay) == 0 }, 60); return; }

# So many messages in the delay stream, due in the past, that nobody's transaction made.
sub fill
{
	my ($count) = @_;
	$redis->command('DEL', $main, $delay);
	foreach my $part (1 .. $count / 100_000)
	{
		$redis->command('EVAL', q{
			for i = ARGV[1] - 99999, ARGV[1] do
				redis.call('XADD', KEYS[1], '1000-' .. i, 'payload', '{"id":' .. i .. '}')
			end}, 1, $delay, $part * 100_000);
	}
	return;
}

# How many messages are on the main stream, and how many different ones.
sub arrived
{
	my (%seen, $count);
	my $text = $redis->cli('--raw', 'XRANGE', $main, '-', '+');
	$count++, $seen{$1} = 1 while $text =~ /^\{"id":(\d+)\}/mg;
	return "$count, " . keys %seen;
}

# ---- side by side -----------------------------------------------------------------------

fill(200_000);
emptied();
is(arrived(), '200000, 200000', 'both at work: each message is moved once');

$redis->command('DEL', $main);
foreach my $i (1 .. 20)
{
	$one->safe_psql('postgres', "INSERT INTO item VALUES ($i)");
	$two->safe_psql('postgres', "INSERT INTO item VALUES (1000 + $i)");
}
emptied();
is(arrived(), '80, 40', 'each sees to its own transactions: announced at once and once more');

# A transaction that runs on one of them stays, whoever looks.
$redis->command('DEL', $main);
my $now = delay_messages_now('item');
$one->safe_psql('postgres', qq{BEGIN; INSERT INTO item VALUES (100); $now; PREPARE TRANSACTION 'p'});
foreach my $i (1 .. 3)
{
	$two->safe_psql('postgres', "INSERT INTO item VALUES (2000 + $i)");
	wait_until('the repeat', sub { (() = $redis->payloads($main)) == 2 * $i });
}
is($redis->command('XLEN', $delay), 1, 'a prepared transaction of the other server stays');
$one->safe_psql('postgres', q{COMMIT PREPARED 'p'});
wait_until('its message, and what the spool makes of it',
	sub { 3 == grep { $_ eq '{"id":100}' } $redis->payloads($main) });
pass('until it is committed there');

# ---- one dies -----------------------------------------------------------------------------

$two->stop;
fill(1_000_000);
wait_until('the first one to work', sub { $redis->command('XLEN', $delay) < 1_000_000 });
$two->start;
$one->kill9;
my $killed = time;
my $left = $redis->command('XLEN', $delay);
cmp_ok($left, '>', 0, 'killed in the middle');
wait_until('the other one to take over', sub { $redis->command('XLEN', $delay) < $left }, 60);
note sprintf 'taken over after %.1f s', time - $killed;
emptied();
is(arrived(), '1000000, 1000000', 'killed with SIGKILL: each message is moved once');

# Its transactions cannot be asked about any more: by age, when its key is gone.
my $key = 'redstream:server:' . system_of($two) . ':1';
is($redis->command('EXISTS', $key), 1, 'the key of a server that runs');
$redis->command('DEL', $main);
my ($other) = grep { $_ ne $key } @{ $redis->command('KEYS', 'redstream:server:*') };
ok($other, 'the key of the server that died is still there');
my ($name) = $other =~ /server:(.*)/;
$redis->command('XADD', $delay, '*', 'payload', '{"id":1}', "xact:$name", '5');
$two->safe_psql('postgres', "INSERT INTO item VALUES (3000)");
wait_until('the repeat', sub { (() = $redis->payloads($main)) == 2 });
is($redis->command('XLEN', $delay), 1, 'while it is, its messages stay');
$redis->command('DEL', $other);
emptied();
is((grep { $_ eq '{"id":1}' } $redis->payloads($main)), 1, 'and are moved then');

# ---- the trimmer -----------------------------------------------------------------------------

$one->start;
$redis->command('DEL', $main);
$_->safe_psql('postgres', q{SELECT redstream.add_consumer('item', 'reader')}) foreach $one, $two;
$one->safe_psql('postgres', 'INSERT INTO item SELECT generate_series(10001, 20000)');
emptied();
my $last = ($redis->entries($main))[-1][0];
$redis->command('SET', 'redstream:offset:item:reader', $last);
wait_until('the trimmer', sub { $redis->command('XLEN', $main) == 0 });
my $trimmed = sub { $_[0]->safe_psql('postgres', 'SELECT trimmed FROM redstream.stats') };
is($trimmed->($one) + $trimmed->($two), 20_000, 'trimmed once by one or the other');

is_deeply([ grep { /PANIC|TRAP/ } crashes($one), crashes($two) ], [], 'no panic');
$_->stop foreach $one, $two;
done_testing;
