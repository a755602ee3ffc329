# Large transactions whose turn comes at the same time, and payloads of very
# different sizes in one transaction.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;

# redstream_test's callback comes before redstream's: a commit that pauses there keeps
# its place open.
my $node = new_node(
	'main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.timeout' => '5s',
	'redstream.on_outage' => 'error');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id int PRIMARY KEY, pad text);
	SELECT redstream.attach('item');
	CREATE TABLE padded (id int PRIMARY KEY, pad text);
	SELECT redstream.attach('padded', payload => ARRAY['id', 'pad']);
});

# ---- one publication right behind the other ---------------------------------------

my $rows = 3000;
my @sessions = map { Redstream::Session->new($node) } 1 .. 4;

foreach my $number (0 .. $#sessions)
{
	my ($first, $last) = ($number * $rows + 1, ($number + 1) * $rows);

	$sessions[$number]->query("SET redstream.transaction_buffer = '64kB'");
	$sessions[$number]->query("BEGIN; INSERT INTO item SELECT generate_series($first, $last)");
}
$sessions[0]->query('SET redstream_test.commit_pause = 1000');
$sessions[0]->send('COMMIT');
wait_until('the first place', sub { stats($node)->{main_bytes} > 0 });
foreach my $session (@sessions[1 .. 3])
{
	my $before = stats($node)->{main_bytes};

	$session->send('COMMIT');
	wait_until('a place behind it', sub { stats($node)->{main_bytes} > $before });
}
$_->result foreach @sessions;
settle($node, $redis);
my @ids = map { /(\d+)/ } $redis->payloads('redstream:stream:item');
is_deeply(\@ids, [ 1 .. 4 * $rows ], 'four large transactions in a row: each message once, in order');
is(stats($node)->{errors}, 0, 'and no failure on the way');

# ---- large entries behind small ones -------------------------------------------------

$node->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO padded SELECT n, '' FROM generate_series(1, 10000) n;
	INSERT INTO padded SELECT n, repeat('x', 1500000) FROM generate_series(10001, 10040) n;
	INSERT INTO padded SELECT n, '' FROM generate_series(10041, 11000) n;
	COMMIT;
});
settle($node, $redis);
@ids = map { /"id":(\d+)/ } $redis->payloads('redstream:stream:padded');
is_deeply(\@ids, [ 1 .. 11000 ], 'small and large payloads in one transaction arrive');
is(stats($node)->{errors}, 0, 'and no failure on the way');
is(scalar crashes($node), 0, 'no crash');

done_testing;
