# What Redis refuses for good does not keep everything else from going on, and what it
# refuses for a while comes back in order.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Test;
use Test::More;

my $redis = new_redis('proto-max-bulk-len' => '1mb');
my $node = new_node('main', $redis, 'redstream.timeout' => '5s', 'redstream.on_outage' => 'error');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id int PRIMARY KEY);
	SELECT redstream.attach('item');
	CREATE TABLE padded (id int PRIMARY KEY, pad text);
	SELECT redstream.attach('padded', payload => ARRAY['id', 'pad']);
});

# ---- a message larger than Redis takes -------------------------------------------------

my ($status, $out, $err) = $node->psql('postgres', q{INSERT INTO padded VALUES (1, repeat('x', 1500000))});
isnt($status, 0, 'a message that Redis will not take fails its transaction');
like($err, qr/could not announce changes: Redis/, 'with a clear error');
wait_until('the lane to be free of it', sub { stats($node)->{delay_bytes} == 0 });
$node->safe_psql('postgres', 'INSERT INTO item VALUES (1)');
settle($node, $redis);
is_deeply([ $redis->payloads('redstream:stream:item') ], ['{"id":1}'], 'others go on');
is($node->safe_psql('postgres', 'SELECT count(*) FROM padded'), 0, 'it was not committed');

# ---- main messages refused, delay messages taken ------------------------------------------

my $log = -s $node->logfile;

$redis->command('ACL', 'SETUSER', 'default', 'resetkeys',
	'~*.delay', '~redstream:streams:*', '~redstream:server:*', '~redstream:marker:*');
$node->safe_psql('postgres', 'INSERT INTO item VALUES (2)');
my $refused = stats($node)->{errors};
wait_until('a few refusals', sub { stats($node)->{errors} > $refused + 6 });
ok(!stats($node)->{connected}, 'a connection whose main messages are refused does not count as connected');
my @lines = grep { /redstream: / } split(/\n/, slurp_file($node->logfile, $log));
cmp_ok(scalar @lines, '<', 5, 'and does not fill the log');
$redis->command('ACL', 'SETUSER', 'default', 'allkeys');
wait_connected($node, 1);
$node->safe_psql('postgres', 'INSERT INTO item VALUES (3)');
settle($node, $redis);
is_deeply([ $redis->payloads('redstream:stream:item') ],
	[ '{"id":1}', '{"id":2}', '{"id":3}' ], 'what was refused arrives in order');
is(scalar crashes($node), 0, 'no crash');

done_testing;
