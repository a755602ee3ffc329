# redstream.repeat = unconfirmed: a delay message whose main message Redis has acknowledged is not
# announced again; every other one is, and nothing old is the last word on a row.
#
# REDSTREAM_TEST_SECONDS: how long the load runs (5), of the one with faults twice that.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $seconds = $ENV{REDSTREAM_TEST_SECONDS} || 5;
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.delay' => '1s',
	'redstream.repeat' => 'unconfirmed',
	'redstream.timeout' => '1s',
	'log_statement' => 'none');

sub payloads { return [ $redis->payloads("redstream:stream:$_[0]") ]; }

sub emptied
{
	my ($stream) = @_;
	wait_until("$stream.delay to be empty",
		sub { $redis->command('XLEN', "redstream:stream:$stream.delay") == 0 });
	return;
}

# Whatever was written before the worker first looked is in doubt.  Now it has looked.
sub certain
{
	$node->safe_psql('postgres', q{
		CREATE TABLE IF NOT EXISTS certain (id serial PRIMARY KEY);
		SELECT redstream.attach('certain', delay => '0');
	});
	wait_until('a message that is not repeated', sub {
		$redis->command('DEL', 'redstream:stream:certain');
		$node->safe_psql('postgres', 'INSERT INTO certain DEFAULT VALUES');
		emptied('certain');
		@{ payloads('certain') } == 1;
	});
	return;
}

# The worker has taken up that all messages are repeated.
sub repeating
{
	wait_until('a message that is repeated', sub {
		$redis->command('DEL', 'redstream:stream:certain');
		$node->safe_psql('postgres', 'INSERT INTO certain DEFAULT VALUES');
		emptied('certain');
		@{ payloads('certain') } == 2;
	});
	return;
}

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
	SELECT redstream.attach('item', payload => ARRAY['id', 'n']);
});

# ---- one by one -----------------------------------------------------------------------

certain();
my $dropped = stats($node)->{dropped};
$node->safe_psql('postgres', 'INSERT INTO item VALUES (1)');
emptied('item');
is_deeply(payloads('item'), ['{"id":1,"n":0}'], 'confirmed: announced once');
is(stats($node)->{dropped}, $dropped + 1, 'and counted as dropped');

# A place that is stepped over: the delay message is the first announcement, and those of
# later changes are announced after it once more.
$redis->command('DEL', 'redstream:stream:item');
my $slow = Redstream::Session->new($node);
$slow->send(q{SET redstream_test.commit_pause = '2s'; UPDATE item SET n = 10 WHERE id = 1});
wait_until('the commit', sub { $node->safe_psql('postgres', 'SELECT n FROM item') == 10 });
$node->safe_psql('postgres', 'UPDATE item SET n = 11 WHERE id = 1');
$slow->result;
emptied('item');
is(stats($node)->{passed}, 1, 'the place is stepped over');
my @payloads = @{ payloads('item') };
ok((grep { $_ eq '{"id":1,"n":10}' } @payloads) > 0, 'not confirmed: announced');
is($payloads[-1], '{"id":1,"n":11}', 'and the newest is the last word');

# The main message of a prepared transaction comes from the spool.
certain();
my $now = delay_messages_now('item');
$node->safe_psql('postgres', qq{
	BEGIN; INSERT INTO item VALUES (2); $now; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'});
settle($node, $redis);
emptied('item');
ok((grep { $_ eq '{"id":2,"n":0}' } @{ payloads('item') }) > 0, 'prepared: announced');

# Main messages that Redis refuses for good.
certain();
$redis->command('SET', 'redstream:stream:item', 'x');
$node->safe_psql('postgres', 'INSERT INTO item VALUES (3)');
wait_until('the refusal', sub { stats($node)->{last_error} =~ /WRONGTYPE/ });
$redis->command('DEL', 'redstream:stream:item');
emptied('item');
ok((grep { $_ eq '{"id":3,"n":0}' } @{ payloads('item') }) > 0, 'refused: announced');

# Redis restarts: it may have lost the main message.
certain();
$redis->command('DEL', 'redstream:stream:item');
$node->safe_psql('postgres', 'INSERT INTO item VALUES (4)');
settle($node, $redis);
$redis->kill9;
$redis->start;
emptied('item');
is_deeply(payloads('item'), [ '{"id":4,"n":0}', '{"id":4,"n":0}' ], 'Redis restarted: announced again');

# So does the server.
wait_connected($node, 1);
certain();
$redis->command('DEL', 'redstream:stream:item');
$node->safe_psql('postgres', 'INSERT INTO item VALUES (5)');
settle($node, $redis);
$node->restart;
emptied('item');
is_deeply(payloads('item'), [ '{"id":5,"n":0}', '{"id":5,"n":0}' ], 'server restarted: announced again');

# Who takes over in the middle of a flush goes on with it.
certain();
$redis->command('DEL', 'redstream:stream:item');
$redis->command('SET', 'redstream:flush:item', '1');
$node->safe_psql('postgres', 'UPDATE item SET n = 12 WHERE id = 1');
wait_until('the end of the flush', sub { $redis->command('EXISTS', 'redstream:flush:item') == 0 });
is((grep { $_ eq '{"id":1,"n":12}' } @{ payloads('item') }), 2, 'a flush that was broken off: goes on');

# A rolled-back change is no reason to announce anything.
certain();
$redis->command('DEL', 'redstream:stream:item');
$node->safe_psql('postgres', q{
	BEGIN; SAVEPOINT a; INSERT INTO item SELECT generate_series(1001, 4000); ROLLBACK TO a;
	INSERT INTO item VALUES (6); COMMIT});
emptied('item');
is_deeply(payloads('item'), ['{"id":6,"n":0}'], 'rolled back: not announced');

# A large transaction is published from its delay messages, which are confirmed by that.  Its place must not be
# stepped over on a slow machine.
reconfigure($node, 'redstream.timeout' => '20s');
certain();
$redis->command('DEL', 'redstream:stream:item');
$node->safe_psql('postgres', q{
	SET redstream.transaction_buffer = '64kB';
	INSERT INTO item SELECT generate_series(10001, 20000)});
emptied('item');
is(scalar @{ payloads('item') }, 10_000, 'large transaction: announced once');
reconfigure($node, 'redstream.timeout' => '1s');

# One that has to spool its end leaves the beginning to its delay messages: they are not confirmed
# before the spooler could publish them.
certain();
$redis->command('DEL', 'redstream:stream:item');
my $large = Redstream::Session->new($node);
$large->query(q{
	SET redstream.transaction_buffer = '64kB';
	BEGIN; INSERT INTO item SELECT generate_series(20001, 25000)});
my ($server) = @{ $redis->command('KEYS', 'redstream:server:*') };
my $token = $redis->command('GET', $server);
$redis->command('SET', $server, 'somebody else');
my ($sender) = $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*\bname=redstream-sender\b/m;
$redis->command('CLIENT', 'KILL', 'ID', $sender);
wait_until('the outage', sub { stats($node)->{last_error} =~ /another server/ });
is($large->query('COMMIT'), '', 'large transaction in an outage: commits');
wait_until('the delay messages to go', sub { $redis->command('XLEN', 'redstream:stream:item.delay') == 0 });
$redis->command('SET', $server, $token, 'PX', 30_000);
wait_connected($node, 1);
settle($node, $redis);
emptied('item');
my %announced = map { $_ => 1 } @{ payloads('item') };
is(scalar(keys %announced), 5000, 'and is announced completely');

# What was announced late with repeat = always is repeated in front of what is confirmed later.
reconfigure($node, 'redstream.delay' => '3s');
certain();
reconfigure($node, 'redstream.repeat' => 'always');
repeating();
$node->safe_psql('postgres', 'UPDATE item SET n = 100 WHERE id = 1');
wait_until('the message to be a second old', sub {
	my ($first) = $redis->entries('redstream:stream:item.delay');
	my ($now) = @{ $redis->command('TIME') };
	return $first && $now * 1000 > (split /-/, $first->[0])[0] + 1000;
});
$node->safe_psql('postgres', 'UPDATE item SET n = 200 WHERE id = 1');
wait_until('the repeat', sub { 2 == grep { $_ eq '{"id":1,"n":100}' } @{ payloads('item') } });
reconfigure($node, 'redstream.repeat' => 'unconfirmed');
emptied('item');
is((grep { /"id":1,/ } @{ payloads('item') })[-1], '{"id":1,"n":200}',
	'always, and then unconfirmed: the newest is the last word');
reconfigure($node, 'redstream.delay' => '1s');

# ---- under load -------------------------------------------------------------------------

my $load = Redstream::Load->new($node, $redis, table => 'load', rows => 100);
certain();
$load->pgbench($seconds);
$load->settle;
emptied('load');
my $messages = () = $load->main_messages;
my $committed = $load->committed;
note "$committed updates, $messages messages, ", $messages - 2 * $committed, ' repeats';
is_deeply([ $load->inexact ], [], 'load: every message once') unless stats($node)->{passed} > 1;
$load->check('load');

# With the sender ended now and then, and places that are stepped over.
$load = Redstream::Load->new($node, $redis, table => 'faults', rows => 100);
$load->start(clients => 6);
my $end = time + 2 * $seconds;
my $i = 0;
while (time < $end)
{
	$load->progress(100);
	if ($i++ % 2)
	{
		my $old = sender_pid($node);
		kill('TERM', $old);
		wait_until('another sender', sub { my $new = sender_pid($node); $new && $new != $old });
	}
	else
	{
		$node->safe_psql('postgres',
			q{SET redstream_test.commit_pause = '1500ms'; UPDATE faults SET n = n + 1 WHERE id = 1});
	}
}
$load->stop;
$load->settle;
emptied('faults');
is_deeply([ $load->unannounced ], [], 'faults: every change is announced at least once');
is_deeply([ $load->stale ], [], 'faults: the last announcement of a row is its newest');
is_deeply([ $load->invented ], [], 'faults: nothing is announced that was not committed');
$messages = () = $load->main_messages;
note $load->committed, " updates, $messages messages";

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
