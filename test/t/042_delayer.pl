# The delayer: what is due is moved, what must not be announced is not, and what has to wait
# waits; by the rules of the xact field, the locks and the server keys.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.delay' => '300ms');
my $system = $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');

# Payloads on a main stream, and in a delay stream.
sub main_stream { return [ $redis->payloads("redstream:stream:$_[0]") ]; }
sub delay_stream { return [ $redis->payloads("redstream:stream:$_[0].delay") ]; }

sub count
{
	my ($stream, $payload) = @_;
	return scalar grep { $_ eq $payload } @{ main_stream($stream) };
}

# Waits until the delay stream is empty.
sub emptied
{
	my ($stream) = @_;
	wait_until("$stream.delay to be empty",
		sub { $redis->command('XLEN', "redstream:stream:$stream.delay") == 0 });
	return;
}

# A message as somebody else writes it.
sub delay_message
{
	my ($stream, $payload, @xact) = @_;
	return $redis->command('XADD', "redstream:stream:$stream.delay", '*', 'payload', $payload, @xact);
}

# The delayer has looked at the stream after now: a message of the kind that it always moves has
# come and gone.
my $pass = 0;

sub looked_at
{
	my ($stream) = @_;
	my $payload = sprintf '{"pass":%d}', ++$pass;

	delay_message($stream, $payload);
	wait_until("the delayer to pass $stream", sub { count($stream, $payload) });
	return;
}

# ---- what is due ---------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, name text);
	SELECT redstream.attach('item');
	INSERT INTO item VALUES (1);
});
emptied('item');
is_deeply(main_stream('item'), [ '{"id":1}', '{"id":1}' ], 'a due message is announced again');
my ($id) = map { $_->[0] } ($redis->entries('redstream:stream:item'))[1];
like($redis->command('GET', 'redstream:offset:item.delay:delayer'), qr/^\d+-\d+$/,
	'the delayer has an offset');
is($redis->command('EXISTS', 'redstream:lock:consumer:item.delay:delayer'), 0, 'its lock is free');
is_deeply($redis->command('LRANGE', 'redstream:lock:consumer:item.delay:delayer.notify', 0, -1),
	['1'], 'and who waits for it is told');

my $written = delay_message('item', '{"id":"ruby"}');
emptied('item');
my @last = @{ ($redis->entries('redstream:stream:item'))[-1] };
is_deeply($last[1], { payload => '{"id":"ruby"}' }, 'a message without xact is moved');
my ($written_ms) = $written =~ /^(\d+)/;
my ($moved_ms) = $last[0] =~ /^(\d+)/;
cmp_ok($moved_ms - $written_ms, '>=', 300, 'not before the delay is over');

# A field by Ruby's standards unknown, and no payload at all: nothing is there to be announced.
$redis->command('XADD', 'redstream:stream:item.delay', '*', 'other', 'x');
looked_at('item');
is_deeply(delay_stream('item'), [], 'an entry without payload goes');

# ---- the delay of a stream ------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE slow (id integer PRIMARY KEY);
	SELECT redstream.attach('slow', delay => '1 hour');
	INSERT INTO slow VALUES (1);
});
looked_at('item');
is_deeply(delay_stream('slow'), ['{"id":1}'], 'a stream has its own delay');
$node->safe_psql('postgres', q{SELECT redstream.attach('slow', delay => '10ms')});
emptied('slow');
is(count('slow', '{"id":1}'), 2, 'which is changed by attach()');

# ---- running transactions ----------------------------------------------------------------

# Enough rows for their delay messages to leave before the end.
my $rows = 3000;
$redis->command('DEL', 'redstream:stream:item');
my $open = Redstream::Session->new($node);
$open->query("BEGIN; INSERT INTO item SELECT generate_series(1001, 1000 + $rows)");
wait_until('early delay messages',
	sub { $redis->command('XLEN', 'redstream:stream:item.delay') > 1000 });
$node->safe_psql('postgres', 'INSERT INTO item VALUES (2)');
wait_until('the message behind', sub { count('item', '{"id":2}') == 2 });
looked_at('item');
is(scalar(grep { /"id":\d{4}/ } @{ main_stream('item') }), 0,
	'messages of a running transaction stay, later ones go past');
my $early = $redis->command('XLEN', 'redstream:stream:item.delay');
cmp_ok($early, '>', 1000, 'and are still there');
my ($first) = map { $_->[0] } $redis->entries('redstream:stream:item.delay');
my ($offset_ms, $offset_seq) = split /-/, $redis->command('GET', 'redstream:offset:item.delay:delayer');
my ($first_ms, $first_seq) = split /-/, $first;
ok($offset_ms < $first_ms || ($offset_ms == $first_ms && $offset_seq < $first_seq),
	'the offset does not pass them');
$open->query('COMMIT');
emptied('item');
my %times;
$times{$_}++ foreach grep { /"id":\d{4}/ } @{ main_stream('item') };
is(scalar(keys %times), $rows, 'committed: every row is announced');
is(scalar(grep { $_ != 2 } values %times), 0, 'at once and once more');

$redis->command('DEL', 'redstream:stream:item');
$open->query("BEGIN; INSERT INTO item SELECT generate_series(5001, 5000 + $rows)");
$open->query('ROLLBACK');
looked_at('item');
is(scalar(grep { /"id":\d{4}/ } @{ main_stream('item') }), 0, 'rolled back: nothing is announced');
is_deeply(delay_stream('item'), [], 'and nothing is left');

$open->query("BEGIN; SAVEPOINT a; INSERT INTO item SELECT generate_series(5001, 5000 + $rows);
	ROLLBACK TO a; INSERT INTO item VALUES (4)");
looked_at('item');
is($redis->command('XLEN', 'redstream:stream:item.delay'), 0,
	'rolled back to a savepoint: gone while the transaction runs');
$open->query('COMMIT');
emptied('item');
is_deeply([ grep { !/pass/ } @{ main_stream('item') } ], [ '{"id":4}', '{"id":4}' ],
	'and the rest is announced');

# A subtransaction's messages wait for the whole.
$redis->command('DEL', 'redstream:stream:item');
$open->query("BEGIN; SAVEPOINT a; INSERT INTO item SELECT generate_series(8001, 8000 + $rows); RELEASE a");
looked_at('item');
cmp_ok($redis->command('XLEN', 'redstream:stream:item.delay'), '>', 1000,
	'a released savepoint: its messages stay');
$open->query('ROLLBACK');
looked_at('item');
is_deeply([ grep { !/pass/ } @{ main_stream('item') } ], [], 'until the whole is rolled back');
is_deeply(delay_stream('item'), [], 'and go then');

# A backend that is gone has rolled back.
$open->query("BEGIN; INSERT INTO item SELECT generate_series(5001, 5000 + $rows)");
wait_until('early delay messages',
	sub { $redis->command('XLEN', 'redstream:stream:item.delay') > 1000 });
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $open->pid . ')');
emptied('item');
looked_at('item');
is_deeply([ grep { !/pass/ } @{ main_stream('item') } ], [], 'a session ended: nothing is announced');

# ---- prepared transactions -----------------------------------------------------------------

$redis->command('DEL', 'redstream:stream:item');
my $now = delay_messages_now('item');
$node->safe_psql('postgres', qq{
	BEGIN; INSERT INTO item VALUES (11); $now; PREPARE TRANSACTION 'a';
	BEGIN; INSERT INTO item VALUES (12); $now; PREPARE TRANSACTION 'b';
});
looked_at('item');
is_deeply(delay_stream('item'), [ '{"id":11}', '{"id":12}' ], 'prepared: they stay');
$node->restart;
looked_at('item');
is_deeply(delay_stream('item'), [ '{"id":11}', '{"id":12}' ], 'also after a restart');
is(count('item', '{"id":11}'), 0, 'and are not announced');
$node->safe_psql('postgres', q{COMMIT PREPARED 'a'});
wait_until('the committed one', sub { count('item', '{"id":11}') == 3 });
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'b'});
emptied('item');
looked_at('item');
is_deeply([ grep { !/pass/ } @{ main_stream('item') } ], [ ('{"id":11}') x 3 ],
	'the committed one is announced, by this and by the spool, the other one is not');

# ---- transactions that nothing is known of ---------------------------------------------------

$redis->command('DEL', 'redstream:stream:item');
delay_message('item', '{"id":"future"}', "xact:$system:1", '18446744073709551000');
delay_message('item', '{"id":"frozen"}', "xact:$system:1", '2');
delay_message('item', '{"id":"old"}', "xact:$system:1", '3');
emptied('item');
is_deeply([ grep { !/pass/ } @{ main_stream('item') } ],
	[ '{"id":"future"}', '{"id":"frozen"}', '{"id":"old"}' ], 'in doubt: announced');

# ---- other servers ----------------------------------------------------------------------------

$redis->command('DEL', 'redstream:stream:item');
delay_message('item', '{"id":"gone"}', 'xact:123:1', '5');
emptied('item');
is(count('item', '{"id":"gone"}'), 1, 'of a server that is gone: moved by age');
$redis->command('SET', 'redstream:server:123:1', 'somebody', 'PX', 60000);
$redis->command('SET', "redstream:server:$system:7", 'somebody', 'PX', 60000);
delay_message('item', '{"id":"theirs"}', 'xact:123:1', '5');
delay_message('item', '{"id":"timeline"}', "xact:$system:7", '3');
looked_at('item');
is_deeply(delay_stream('item'), [ '{"id":"theirs"}', '{"id":"timeline"}' ],
	'of a server that is there: left to it');
$redis->command('DEL', 'redstream:server:123:1');
wait_until('the message of the server that went', sub { count('item', '{"id":"theirs"}') });
is_deeply(delay_stream('item'), ['{"id":"timeline"}'], 'when it goes its messages are moved');
$redis->command('DEL', "redstream:server:$system:7");
emptied('item');

# ---- locks --------------------------------------------------------------------------------------

my $lock = 'redstream:lock:consumer:item.delay:delayer';
$redis->command('DEL', 'redstream:stream:item', "$lock.notify");
$redis->command('SET', $lock, 'f' x 32, 'PX', 60000);
$node->safe_psql('postgres', 'INSERT INTO item VALUES (21)');
$node->safe_psql('postgres', q{SELECT redstream.attach('slow', delay => '300ms')});
wait_until('the delay message', sub { @{ delay_stream('item') } });
looked_at('slow') foreach 1 .. 3;
is_deeply(delay_stream('item'), ['{"id":21}'], 'a lock held by somebody else keeps the delayer away');
is($redis->command('GET', $lock), 'f' x 32, 'and is left alone');
$redis->command('DEL', $lock);
emptied('item');
is(count('item', '{"id":21}'), 2, 'until it is free');

# ---- streams without a table --------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE brief (id integer PRIMARY KEY);
	SELECT redstream.attach('brief');
	INSERT INTO brief VALUES (1);
	SELECT redstream.detach('brief');
});
$node->restart;
is($node->safe_psql('postgres', q{SELECT count(*) FROM redstream.streams WHERE stream = 'brief'}), 1,
	'a stream without a table is shown');
emptied('brief');
is(count('brief', '{"id":1}'), 2, 'what was written before detach() is announced after it');

# ---- the server key ---------------------------------------------------------------------------

my $key = "redstream:server:$system:1";
cmp_ok($redis->command('PTTL', $key), '>', 0, 'the server key expires');
my $token = $redis->command('GET', $key);
like($token, qr/^[0-9a-f]+$/, 'the server key is there');
$redis->command('SET', $key, 'a copy', 'PX', 60000);
$node->restart;
wait_until('the outage', sub { stats($node)->{last_error} =~ /another server/ });
is(stats($node)->{connected}, 0, 'a server that finds it taken does not connect');
like(($node->psql('postgres', 'SET redstream.on_outage = error; INSERT INTO item VALUES (31)'))[2], qr/Redis is not available/,
	'and its transactions are told');
$redis->command('DEL', $key);
wait_connected($node, 1);
is($redis->command('GET', $key), $token, 'when it is free, it is ours again');

# Found out while connected, too.
$redis->command('SET', $key, 'a copy', 'PX', 60000);
wait_until('the outage', sub { !stats($node)->{connected} }, 60);
$redis->command('DEL', $key);
wait_connected($node, 1);

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
