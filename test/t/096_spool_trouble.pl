# The processes that see to the spool hang or end, and the server stops, while it is being
# filled, delivered or closed: nobody waits for longer than redstream.timeout, and nothing is lost.

use strict;
use warnings;

use List::Util qw(uniq);
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $redis = new_redis(appendonly => 'yes');
my $node = new_node('main', $redis, 'redstream.timeout' => '2s', 'redstream.delay' => '1h',
	'redstream.queue_size' => '160MB', 'log_statement' => 'none');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id serial PRIMARY KEY);
	SELECT redstream.attach('item');
	CREATE TABLE large (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('large', payload => '{id,filler}')});
my $session = Redstream::Session->new($node);

sub spool_rows { return stats($node)->{spool_rows}; }

sub memory
{
	my ($pid) = @_;
	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/;
	return $kilobytes / 1024;
}

sub delivered
{
	wait_until('an empty spool', sub { spool_rows() == 0 }, 60);
	return;
}

# Every row is on the stream, and first announcements are in their order.
sub check
{
	my ($name) = @_;
	my %seen;

	delivered();
	my @first = grep { !$seen{$_}++ } map { /(\d+)/ } $redis->payloads('redstream:stream:item');
	is(join(' ', @first),
		$node->safe_psql('postgres', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM item}),
		"$name: everything is announced, in order");
	return;
}

# ---- large messages ----------------------------------------------------------------

# Of almost the greatest size that fits; malloc gives back at once what is so large.
my $worker = process_pid($node, 'redstream worker');
is($session->query(q{INSERT INTO large VALUES (1, repeat('x', 40000000))}), '', 'a message of 40 MB');
like($session->query(q{INSERT INTO large VALUES (2, repeat('x', 42000000))}),
	qr/too large to announce.*set redstream\.queue_size to 161MB at least/s, 'one that is too large: says what is needed');
redis_away($node, $redis);
is($session->query(q{INSERT INTO large VALUES (3, repeat('x', 40000000)), (4, '')}), '', 'one of 40 MB into the spool');
$redis->start;
delivered();
is(join(' ', uniq(map { /"id":(\d)/ ? $1 . ':' . length : () } $redis->payloads('redstream:stream:large'))),
	'1:40000020 3:40000020 4:20', 'both are delivered whole');
is(process_pid($node, 'redstream worker'), $worker, 'by the same worker');
wait_until('the worker to give the memory back', sub { memory($worker) < 38 });
$redis->command('DEL', 'redstream:stream:large', 'redstream:stream:large.delay');

# ---- the sender hangs -----------------------------------------------------------------

# The first transaction waits; those after it do not, not even from time to time while the worker looks
# whether the spool can be left.
my $sender = sender_pid($node);
kill 'STOP', $sender;
is($session->query('INSERT INTO item DEFAULT VALUES'), '', 'the sender hangs: a transaction commits');
is(spool_rows(), 1, 'the sender hangs: and is in the spool');
$session->send(q{
	DO $$BEGIN
		FOR i IN 1 .. 300 LOOP
			INSERT INTO item DEFAULT VALUES;
			COMMIT;
			PERFORM pg_sleep(0.01);
		END LOOP;
	END$$});
my $waits = 0;
wait_until('300 transactions', sub {
	$waits += sessions_waiting($node);
	return $node->safe_psql('postgres', 'SELECT count(*) FROM item') == 301 }, 60);
is($session->result, '', 'the sender hangs: others commit');
is($waits, 0, 'the sender hangs: nobody waits again');
kill 'CONT', $sender;
check('the sender hangs');

# ---- the worker hangs, and ends, while others wait for it --------------------------------------

# CLOSING can be seen by a session's wait.  An open transaction that has begun to spool keeps the bucket
# from becoming NORMAL, so there is one after the other.
redis_away($node, $redis);
my $joined = Redstream::Session->new($node);
$joined->query(q{SET redstream.transaction_buffer = '64kB'; BEGIN; INSERT INTO item SELECT FROM generate_series(1, 5000)});
$redis->start;
wait_connected($node, 1);
$session->send(q{
	DO $$BEGIN
		FOR i IN 1 .. 1000000 LOOP
			INSERT INTO item DEFAULT VALUES;
			COMMIT;
			EXIT WHEN (SELECT count(*) > 0 FROM pg_class WHERE relname = 'enough');
		END LOOP;
	END$$});
$worker = process_pid($node, 'redstream worker');
wait_until('a session that waits for a worker that hangs', sub {
	return 0 if sessions_waiting($node) == 0;
	kill 'STOP', $worker;
	sleep 0.1;
	return 1 if sessions_waiting($node) > 0;
	kill 'CONT', $worker;
	return 0;
}, 60);
my $rows = $node->safe_psql('postgres', 'SELECT count(*) FROM item');
wait_until('it to go on', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM item') > $rows }, 60);
pass('the worker hangs: who waits for it goes on');
kill 'TERM', $worker;
kill 'CONT', $worker;
wait_until('another worker', sub {
	my $new = process_pid($node, 'redstream worker');
	return $new && $new != $worker });
$node->safe_psql('postgres', 'CREATE TABLE enough ()');
is($session->result, '', 'the worker ends: no transaction fails');
is($joined->query('ROLLBACK'), '', 'the worker ends: nor does the one that was open');
check('the worker ends');

# ---- the server stops with the spool half delivered ----------------------------------------------

foreach my $mode ('fast', 'immediate')
{
	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
	$node->safe_psql('postgres', 'SET redstream.enabled = off; DELETE FROM item');
	redis_away($node, $redis);
	$node->safe_psql('postgres', 'INSERT INTO item SELECT FROM generate_series(1, 30000)');
	$redis->start;
	wait_until('a part of the spool', sub { $redis->command('XLEN', 'redstream:stream:item') > 1000 });
	$redis->stop_signal;
	my $begun = time;
	$node->stop($mode);
	cmp_ok(time - $begun, '<', 30, "$mode shutdown: ends");
	$redis->cont;
	$node->start;
	$node->safe_psql('postgres', 'INSERT INTO item DEFAULT VALUES');
	check("$mode shutdown");
}

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
