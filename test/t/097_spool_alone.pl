# What the worker sends alone, since Redis refuses it or may: it has its turn, whatever the lanes are busy with, and keeps
# nothing from its turn that shares its bucket.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.timeout' => '20s', 'redstream.delay' => '1h', 'redstream.queue_size' => '8MB',
	'redstream.transaction_buffer' => '64kB', 'log_statement' => 'none');
my $session = Redstream::Session->new($node);

sub main_of { return $redis->payloads("redstream:stream:$_[0]"); }
sub rows { return stats($node)->{spool_rows}; }

sub emptied
{
	wait_until('an empty spool', sub { rows() == 0 }, 60);
	return;
}

# Two streams of one bucket: there are more streams than buckets.
my @tables = map { "t$_" } 1 .. 40;
$node->safe_psql('postgres', join ';', map { qq{
	CREATE TABLE $_ (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('$_', payload => '{id,filler}')} } @tables);
redis_away($node, $redis);
$session->query("INSERT INTO $_ VALUES (0)") foreach @tables;
my ($stuck, $other, $elsewhere) = split / /, $node->safe_psql('postgres', q{
	SELECT min(stream) || ' ' || max(stream) || ' ' ||
	       (SELECT min(stream) FROM redstream.spool AS other WHERE other.bucket <> spool.bucket)
	FROM redstream.spool GROUP BY bucket HAVING count(*) > 1 LIMIT 1});
$redis->start;
emptied();
note "streams $stuck and $other share a bucket, $elsewhere does not";

# ---- many rows in front ------------------------------------------------------------------

$redis->command('DEL', map { ("redstream:stream:$_", "redstream:stream:$_.delay") } @tables);
$redis->command('SET', "redstream:stream:$stuck.delay", 'in the way');
is($session->query("INSERT INTO $stuck SELECT generate_series(1, 75000)"), '', 'many rows that are refused');
wait_until('the reason', sub { spooler_error($node) =~ /^stream $stuck: WRONGTYPE/ });
is($session->query("INSERT INTO $other VALUES (1)"), '', 'and one behind them, of another stream of their bucket');
wait_until('that one', sub { main_of($other) });
cmp_ok(rows(), '>=', 75_000, 'is delivered');

# And a transaction open that has spooled already: what is behind its rows must be read again and again.
my $open = Redstream::Session->new($node);
$open->query("BEGIN; INSERT INTO $stuck SELECT generate_series(100001, 110000)");
$session->query("INSERT INTO $stuck SELECT generate_series(200001, 215000)");
$session->query("INSERT INTO $other VALUES (2)");
wait_until('the message behind them', sub { grep { /"id":2,/ } main_of($other) });
is($open->query('ROLLBACK'), '', 'so it is while a transaction is open that has spooled');
$redis->command('DEL', "redstream:stream:$stuck.delay");
wait_until('all of them', sub { $redis->command('XLEN', "redstream:stream:$stuck") >= 75_000 }, 120);
emptied();

# ---- a lane that is never empty -------------------------------------------------------------

$redis->command('DEL', map { ("redstream:stream:$_", "redstream:stream:$_.delay") } @tables);
$redis->command('SET', "redstream:stream:$stuck.delay", 'in the way');
$session->query("INSERT INTO $stuck VALUES (-1)");
wait_until('the reason', sub { spooler_error($node) =~ /^stream $stuck: WRONGTYPE/ });
my @busy = map { Redstream::Session->new($node) } 1 .. 3;
foreach my $i (0 .. $#busy)
{
	my $pause = 3 + $i;			# so that they do not end at the same moments
	$busy[$i]->send(join ';', "SET redstream_test.commit_pause = '${pause}s'",
		map { "INSERT INTO $elsewhere VALUES (" . (100 * $i + $_) . ')' } 1 .. 60);
	wait_until('its turn', sub { $node->safe_psql('postgres', "SELECT max(id) FROM $elsewhere WHERE id / 100 = $i") });
}
$redis->command('DEL', "redstream:stream:$stuck.delay");
wait_until('an empty spool', sub { rows() == 0 });
isnt($node->safe_psql('postgres', "SELECT max(id) FROM $elsewhere"), 260, 'places are taken all the time: it has its turn');
is(scalar($redis->payloads("redstream:stream:$stuck.delay")), 1, 'with its copy');
$_->close foreach @busy;

# ---- a publication behind it ------------------------------------------------------------------

$redis->command('DEL', map { ("redstream:stream:$_", "redstream:stream:$_.delay") } @tables);
$session->query("BEGIN; INSERT INTO $other SELECT generate_series(10001, 15000)");
my ($default) = @{ $redis->command('CONFIG', 'GET', 'client-query-buffer-limit') }[1];
$redis->command('CONFIG', 'SET', 'client-query-buffer-limit', 1024 * 1024);
$node->safe_psql('postgres', "INSERT INTO $stuck VALUES (-2, repeat('x', 1500000))");
wait_until('the reason', sub { spooler_error($node) =~ /^stream $stuck: / });
is($session->query('COMMIT'), '', 'a large transaction that has to spool');
wait_until('its messages', sub { $redis->command('XLEN', "redstream:stream:$other") >= 5000 });
is(rows(), 1, 'and what is refused is left');
$redis->command('CONFIG', 'SET', 'client-query-buffer-limit', $default);
emptied();
is(scalar(main_of($stuck)), 1, 'until it is taken');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
