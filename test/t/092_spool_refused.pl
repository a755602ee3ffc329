# What Redis refuses for good stays in the spool, leaves the other streams alone, and is
# delivered when it is taken at last.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'redstream.delay' => '1h',
	'redstream.queue_size' => '8MB');

$node->safe_psql('postgres', qq{
	CREATE TABLE $_ (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('$_', payload => '{id,filler}')}) foreach 'item', 'other', 'large';
my $session = Redstream::Session->new($node);

sub main_of { return join ' ', map { /"id":(\d+)/ } $redis->payloads("redstream:stream:$_[0]"); }
sub delay_of { return join ' ', map { /"id":(\d+)/ } $redis->payloads("redstream:stream:$_[0].delay"); }

sub rows { return stats($node)->{spool_rows}; }

foreach my $suffix ('.delay', '')
{
	my $key = "redstream:stream:item$suffix";
	my $what = $suffix ? 'delay key of the wrong type' : 'both keys of the wrong type';

	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay', 'redstream:stream:other');
	$redis->command('SET', 'redstream:stream:item.delay', 'in the way');
	$redis->command('SET', 'redstream:stream:item', 'in the way') unless $suffix;
	my $base = $suffix ? 0 : 10;
	is($session->query("INSERT INTO item VALUES ($base + $_)"), '', "$what: a transaction commits") foreach 1 .. 3;
	wait_until("$what: the reason", sub { spooler_error($node) =~ /^stream item: WRONGTYPE/ });
	is(rows(), 3, "$what: the messages are in the spool");
	$session->query("INSERT INTO other VALUES ($base + 1)");
	wait_until("$what: other streams to go on", sub { main_of('other') eq $base + 1 });
	is($session->query("UPDATE item SET filler = 'x' WHERE id = $base + 1; INSERT INTO item VALUES ($base + 4)"), '',
		"$what: more transactions");
	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
	wait_until("$what: an empty spool", sub { rows() == 0 });
	is(main_of('item'), join(' ', map { $base + $_ } 1, 2, 3, 1, 1, 4), "$what: delivered when the keys are gone, in order");
	is(delay_of('item'), main_of('item'), "$what: with delay copies");
	is(spooler_error($node), '', "$what: and the error is over");
	my $spooled = stats($node)->{spooled};
	wait_until("$what: the lane", sub {
		$session->query("UPDATE item SET filler = filler || 'y' WHERE id = $base + 1");
		my $before = $spooled;
		$spooled = stats($node)->{spooled};
		return $spooled == $before;
	});
	pass("$what: the stream does not spool any more");
}

# Who spools because of the stream that is refused has those wait in line that write to its other streams.
$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
$redis->command('SET', 'redstream:stream:item.delay', 'in the way');
$session->query('INSERT INTO item VALUES (30)');
wait_until('the reason', sub { spooler_error($node) =~ /^stream item: WRONGTYPE/ });
my $before = -1;
wait_until('the lane of another stream', sub {
	my $spooled = $before;
	$session->query(q{INSERT INTO other VALUES (30) ON CONFLICT (id) DO UPDATE SET filler = concat(other.filler, 'x')});
	$before = stats($node)->{spooled};
	return $spooled == $before;
});
$session->query(q{BEGIN; INSERT INTO item VALUES (31); INSERT INTO other VALUES (31, '1'); COMMIT});
$session->query(q{UPDATE other SET filler = '2' WHERE id = 31});
my @seen;
wait_until('both messages', sub {
	@seen = map { /"id":31,"filler":"(.)"/ } $redis->payloads('redstream:stream:other');
	return @seen >= 3;
});
is("@seen", '1 1 2', 'a refused stream and another one in a transaction: nobody overtakes it in the other one');
$redis->command('DEL', 'redstream:stream:item.delay');
wait_until('an empty spool', sub { rows() == 0 });

# Each limit makes Redis close the connection.
foreach my $limit ('proto-max-bulk-len', 'client-query-buffer-limit')
{
	my ($default) = @{ $redis->command('CONFIG', 'GET', $limit) }[1];

	$redis->command('DEL', 'redstream:stream:large', 'redstream:stream:large.delay', 'redstream:stream:other');
	$node->safe_psql('postgres', 'SET redstream.enabled = off; DELETE FROM large; DELETE FROM other');
	$redis->command('CONFIG', 'SET', $limit, 1024 * 1024);
	is($session->query(q{INSERT INTO large VALUES (1, repeat('x', 1500000))}), '', "$limit: a transaction commits");
	is($session->query(q{INSERT INTO large VALUES (2, 'small')}), '', "$limit: so does the next on the stream");
	wait_until("$limit: the reason", sub { spooler_error($node) =~ /^stream large: / });
	$session->query('INSERT INTO other VALUES (1)');
	wait_until("$limit: other streams to go on", sub { main_of('other') eq '1' });
	is(rows(), 2, "$limit: nobody overtakes it on its own");
	$redis->command('CONFIG', 'SET', $limit, $default);
	wait_until("$limit: an empty spool", sub { rows() == 0 }, 180);
	is(main_of('large'), '1 2', "$limit: delivered when Redis takes it, in order");
}

# A row that is larger than the lanes of the next life of the server.
$redis->command('DEL', 'redstream:stream:large');
redis_away($node, $redis);
$session->query(q{INSERT INTO large VALUES (3, repeat('x', 1500000)), (4, 'small')});
$node->append_conf('postgresql.conf', q{redstream.queue_size = '1MB'});
$node->restart;
$redis->start;
wait_until('an empty spool', sub { rows() == 0 });
is(main_of('large'), '3 4', 'larger than a lane: delivered');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
