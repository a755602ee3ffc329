# What is in the spool is delivered in commit order, whatever becomes visible while it is being delivered.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'redstream.delay' => '1h',
	'log_statement' => 'none');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer DEFAULT 0);
	SELECT redstream.attach('item', payload => '{id,n}');
	SET redstream.enabled = off;
	INSERT INTO item SELECT generate_series(1, 20000)});
my $session = Redstream::Session->new($node);
my $open = Redstream::Session->new($node);
$open->query(q{SET redstream.transaction_buffer = '64kB'});

# What was announced of a row.
sub values_of
{
	my ($id) = @_;
	return join ' ', map { /"id":$id,"n":(\d+)/ } $redis->payloads('redstream:stream:item');
}

sub await_empty
{
	wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 }, 60);
	return;
}

# ---- a transaction that commits while others are delivered -------------------------------------------

# Its rows are in front of all others, and are seen when some of these are on their way.  What follows has to be done within
# a fifth of a second, then the worker looks from the beginning anyway: so more than once.
foreach my $round (1 .. 3)
{
	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
	redis_away($node, $redis);
	$open->query("BEGIN; UPDATE item SET n = $round WHERE id = 1; UPDATE item SET n = $round WHERE id BETWEEN 15001 AND 18000");
	$session->query("UPDATE item SET n = 2 * $round WHERE id BETWEEN 2 AND 4500");
	$redis->start;
	wait_until('the first messages', sub { $redis->command('XLEN', 'redstream:stream:item') });
	$redis->stop_signal;
	$open->query('COMMIT');
	$session->query('UPDATE item SET n = n + 100 WHERE id = 1; UPDATE item SET n = n - 100 WHERE id = 1');
	$redis->cont;
	await_empty();
	is(values_of(1), join(' ', $round - 1, $round, $round, $round + 100, $round + 100, $round),
		"visible while others are delivered, round $round: in order");
}
# ---- a position that was given out, and not used ---------------------------------------------------------

# Records of the outer savepoint have their positions before they are written, and never are.
$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
redis_away($node, $redis);
is($open->query(q{
	SET redstream.transaction_buffer = '20MB';
	BEGIN;
	SAVEPOINT a;
	SELECT count(redstream.emit('mails', to_jsonb(i))) FROM generate_series(1, 872000) i;
	SAVEPOINT b;
	SELECT count(redstream.emit('mails', to_jsonb(-i))) FROM generate_series(1, 5000) i;
	ROLLBACK TO a;
	UPDATE item SET n = 1000 WHERE id = 1;
	COMMIT}), "872000\n5000", 'positions that are not used: commits');
$session->query('UPDATE item SET n = 2000 WHERE id = 1');
$redis->start;
await_empty();
is(values_of(1), '3 1000 1000 2000', 'and the next transaction has later ones');

# ---- rows that move while they are on their way ---------------------------------------------------------------

# A fast machine may have delivered them all before Redis is stopped.
my $moving = 0;
wait_until('a part of the rows to be delivered', sub {
	if ($redis->pid)
	{
		$redis->cont;
		await_empty();
	}
	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
	redis_away($node, $redis);
	$session->query('SET redstream.enabled = off; UPDATE item SET n = 0; RESET redstream.enabled; UPDATE item SET n = -1');
	$session->query('DELETE FROM redstream.spool WHERE convert_from(payload, \'UTF8\') !~ \'"n":-1\'');
	$redis->start;
	wait_until('the first messages', sub { $redis->command('XLEN', 'redstream:stream:item') });
	$redis->stop_signal;
	$moving = $session->query('SELECT count(*) FROM redstream.spool');
	return $moving > 0;
}, 120);
note "$moving rows are on their way";
$session->query('VACUUM FULL redstream.spool');
$redis->cont;
await_empty();
is($redis->command('XLEN', 'redstream:stream:item'), 20000, 'VACUUM FULL: each is delivered once');

# ---- a new index ---------------------------------------------------------------------------------------------

# It must have the rows of a transaction that has spooled and goes on.
$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
redis_away($node, $redis);
my $builder = Redstream::Session->new($node);
$open->query(q{SET redstream.transaction_buffer = '64kB'; BEGIN; UPDATE item SET n = -2 WHERE id <= 5000});
$builder->send('REINDEX INDEX CONCURRENTLY redstream.spool_order');
wait_until('the new index, or the wait for the transaction', sub {
	$node->safe_psql('postgres', q{
		SELECT query LIKE 'REINDEX%' AND (wait_event_type = 'Lock' OR state = 'idle')
		FROM pg_stat_activity WHERE pid = } . $builder->pid) eq 't' });
is($open->query('COMMIT'), '', 'REINDEX CONCURRENTLY: the transaction commits');
is($builder->result, '', 'REINDEX CONCURRENTLY: the index is there');
$redis->start;
await_empty();
wait_until('all messages', sub { $redis->command('XLEN', 'redstream:stream:item') >= 10000 });
is(scalar(grep { /"n":-2\}/ } $redis->payloads('redstream:stream:item')), 5000, 'REINDEX CONCURRENTLY: with its rows');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
