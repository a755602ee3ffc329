# consume(), commit_offset() and redstream-consumer where several things meet: a rollback and an offset set by hand, a slow
# Redis and the next call, a full Redis, many consumers in one transaction, the ends of the ids.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody', 'redstream.timeout' => '500ms');
my $session = Redstream::Session->new($node);

$redis->command('XADD', 'redstream:stream:s', "$_-0", 'payload', qq({"n":$_})) foreach 1 .. 20;

sub offset_of { return $redis->command('GET', "redstream:offset:s:$_[0]"); }

sub offset_becomes
{
	my ($consumer, $id) = @_;
	wait_until("$consumer: the offset", sub { (offset_of($consumer) || '') eq $id });
	return;
}

sub consume
{
	my ($consumer, $size, $stream) = @_;
	return sprintf q{SELECT string_agg(id, ' ') FROM redstream.consume('%s', '%s', %d)}, $stream || 's', $consumer, $size;
}

# ---- commit_offset and rollback ------------------------------------------------------------------

$session->query(q{BEGIN; SELECT redstream.commit_offset('s', 'new', '5-0'); ROLLBACK});
is(offset_of('new'), undef, 'a first offset that is rolled back is not in Redis');
is($session->query(consume('new', 1)), '1-0', 'and skips nothing');

is($session->query(q{BEGIN; SELECT redstream.commit_offset('s', 'second', '5-0'); COMMIT}), '', 'a first offset');
offset_becomes('second', '5-0');
is($redis->command('SISMEMBER', 'redstream:consumers:s', 'second'), 1, 'registers');

is($session->query(q{BEGIN; SELECT redstream.commit_offset('s', 'third', '4-0'); } . consume('third', 2) . '; COMMIT'), "\n5-0 6-0",
	'a first offset, and messages behind it, in one transaction');
offset_becomes('third', '6-0');

is($session->query(q{BEGIN; } . consume('dropped', 5) . q{; SELECT redstream.drop_consumer('s', 'dropped'); COMMIT}),
	"1-0 2-0 3-0 4-0 5-0\nt", 'a consumer is dropped by the transaction that has consumed');
$session->query('SELECT redstream.max_stream_id(\'s\')');
is($session->query(consume('dropped', 1)), '1-0', 'it is forgotten');
is($session->query(q{BEGIN; } . consume('again', 5) . q{; SELECT redstream.add_consumer('s', 'again'); COMMIT}),
	"1-0 2-0 3-0 4-0 5-0\n", 'a consumer is sent back by the transaction that has consumed');
is($session->query(consume('again', 1)), '1-0', 'it begins anew');
is($session->query(q{BEGIN; } . consume('halfway', 5) .
	q{; SAVEPOINT a; SELECT redstream.add_consumer('s', 'halfway'); ROLLBACK TO a; } . consume('halfway', 1) . '; ROLLBACK'),
	"1-0 2-0 3-0 4-0 5-0\n\n6-0", 'the same, and back to a savepoint');
is($session->query(consume('halfway', 1)), '1-0', 'nothing of it was told to Redis');

# ---- a Redis that is slow, and one that is full ------------------------------------------------------

$session->query(q{SELECT redstream.commit_offset('s', 'slow', '3-0')});
offset_becomes('slow', '3-0');
$redis->stop_signal;
like($session->query(q{SELECT redstream.commit_offset('s', 'slow', '7-0')}), qr/could not ask Redis/, 'Redis hangs');
$redis->cont;
is($session->query(consume('slow', 1)), '4-0', 'the next call gets its own answers');
is($session->query(q{SELECT redstream.commit_offset('s', 'slow', '2-0')}), '', 'and so does the next');
is(offset_of('slow'), '2-0', 'which is obeyed');

$redis->stop_signal;
like($session->query(q{
	DO $$ BEGIN PERFORM redstream.consume('s', 'slow'); EXCEPTION WHEN io_error THEN RAISE NOTICE 'failed'; END $$}),
	qr/failed/, 'a transaction that could not consume');
$redis->cont;

$redis->command('CONFIG', 'SET', 'maxmemory', 1);
is($session->query(consume('full', 3)), '1-0 2-0 3-0', 'Redis is full: a new consumer consumes');
offset_becomes('full', '3-0');
is($session->query(consume('full', 3)), '4-0 5-0 6-0', 'and goes on');
offset_becomes('full', '6-0');
is($session->query(q{SELECT redstream.commit_offset('s', 'full', '10-0')}), '', 'an offset is set');
offset_becomes('full', '10-0');
is($session->query(q{SELECT redstream.add_consumer('s', 'another')}), '', 'a consumer is added');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);

# What an offset set by hand will need at COMMIT is refused while it still can be told.
$redis->command('REPLICAOF', '127.0.0.1', 1);
like($session->query(q{SELECT redstream.commit_offset('s', 'slow', '7-0')}), qr/READONLY/, 'an offset is set on a replica');
$redis->command('REPLICAOF', 'NO', 'ONE');
$redis->command('SET', 'redstream:consumers:wrong', 'x');
like($session->query(q{SELECT redstream.commit_offset('wrong', 'c', '7-0')}), qr/WRONGTYPE/, 'where the registry is no set');

# After a refusal another server may be behind the name.
sub connections { return scalar(() = $redis->command('CLIENT', 'LIST') =~ /name=redstream-consume /g); }
sub connection_id { return ($redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*name=redstream-consume /m)[0]; }
my $id = connection_id();
$redis->command('REPLICAOF', '127.0.0.1', 1);
like($session->query(consume('moved', 1)), qr/READONLY/, 'Redis is a replica');
$redis->command('REPLICAOF', 'NO', 'ONE');
is($session->query(consume('moved', 1)), '1-0', 'it is none any more');
isnt(connection_id(), $id, 'the connection is a new one');
is(connections(), 1, 'and the only one');

# ---- a connection that goes when the timer is off ------------------------------------------------------

# Only the first error in a savepoint is told to us; the second one stops the timer until ROLLBACK TO.
is($session->query('BEGIN; ' . consume('timer', 1)), '1-0', 'a transaction consumes');
$session->query('SAVEPOINT a; SELECT 1/0; SELECT 1/0');
wait_until('the lock to grow older', sub { $redis->command('PTTL', 'redstream:lock:consumer:s:timer') < 3000 });
$redis->command('CLIENT', 'KILL', 'ID', connection_id());
is($session->query('ROLLBACK TO a \; COMMIT'), '', 'it commits over a new connection');
offset_becomes('timer', '1-0');

# ---- many consumers ---------------------------------------------------------------------------------------

$redis->command('XADD', "redstream:stream:many$_", '1-0', 'payload', '1') foreach 1 .. 300;
is($session->query(q{SELECT count(*) FROM generate_series(1, 60) i, LATERAL redstream.consume('many' || i, 'c', 1)}), 60,
	'60 consumers in one transaction');
wait_until('their offsets', sub { !grep { !defined $redis->command('GET', "redstream:offset:many$_:c") } 1 .. 60 });
like($session->query(q{SELECT count(*) FROM generate_series(1, 300) i, LATERAL redstream.consume('many' || i, 'd', 1)}),
	qr/^ERROR:  too many consumers in one transaction$/m, '300 are too many');
is($session->query(q{SELECT count(*) FROM redstream.offsets WHERE consumer = 'd'}), 0, 'and nothing is done');
$session->query(q{BEGIN; SELECT count(*) FROM generate_series(1, 60) i, LATERAL redstream.consume('many' || i, 'e', 1)});
$redis->command('DEL', 'redstream:lock:consumer:many7:e');
like($session->query('COMMIT'), qr/lost the lock of consumer "e" of stream "many7"/, 'one of 60 locks is lost');
wait_until('the others to be released', sub { !grep { $redis->command('EXISTS', "redstream:lock:consumer:many$_:e") } 1 .. 60 }, 4);
is($session->query(q{SELECT count(*) FROM redstream.consume('many1', 'd', 1)}), 1, 'their locks are released');

# Somebody else's lock costs nothing.
my $memory = q{SELECT sum(used_bytes) FROM pg_backend_memory_contexts WHERE name = 'TopTransactionContext'};
$redis->command('SET', 'redstream:lock:consumer:s:busy', 'x' x 32);
my ($before, $after) = $session->query(qq{
	BEGIN;
	$memory;
	DO \$\$ BEGIN
		FOR i IN 1..200 LOOP
			BEGIN PERFORM redstream.consume('s', 'busy'); EXCEPTION WHEN lock_not_available THEN END;
		END LOOP;
	END \$\$;
	$memory;
	COMMIT}) =~ /^(\d+)$/mg;
cmp_ok($after, '<', $before + 100_000, 'a transaction that is refused again and again does not grow');

# Who has consumed nothing in the end needs no lock to commit.
is($session->query('BEGIN; SAVEPOINT a; ' . consume('nothing', 5) . '; ROLLBACK TO a'), '1-0 2-0 3-0 4-0 5-0',
	'a batch that is rolled back to a savepoint');
$redis->command('DEL', 'redstream:lock:consumer:s:nothing');
is($session->query('CREATE TABLE other (); COMMIT'), '', 'its lock is lost, and the rest is committed');

is($session->query('BEGIN; SAVEPOINT a; ' . consume('nothing', 5) . '; ROLLBACK TO a'), '1-0 2-0 3-0 4-0 5-0',
	'the same');
$redis->command('DEL', 'redstream:lock:consumer:s:nothing');
is($session->query(consume('nothing', 1) . '; COMMIT'), '1-0', 'its lock is taken anew');

# A row that another transaction has set is waited for, and the locks are extended meanwhile.
my $other = Redstream::Session->new($node);

sub extended_while_waiting
{
	my ($consumer, $statement, $result) = @_;
	my ($grown, $last) = (0, 0);

	is($session->query('BEGIN; ' . consume($consumer, 1)), '1-0', "$consumer: a lock");
	$other->query(q{BEGIN; SELECT redstream.commit_offset('s', 'row', '1-0')});
	$session->send($statement);
	wait_until("$consumer: it to wait", sub { sessions_waiting($node) });
	wait_until("$consumer: the lock to be extended", sub {
		my $now = $redis->command('PTTL', "redstream:lock:consumer:s:$consumer");
		$grown++ if $now > $last + 500;
		$last = $now;
		return $grown >= 4;
	});
	$other->query('COMMIT');
	like($session->result, $result, "$consumer: the end of waiting");
	$session->query('ROLLBACK');
	return;
}
extended_while_waiting('consumes', consume('row', 1), qr/was changed by another transaction/);
extended_while_waiting('sets', q{SELECT redstream.commit_offset('s', 'row', '1-0')}, qr/^$/);

# ---- large messages between small ones -----------------------------------------------------------------------

$redis->command('XADD', 'redstream:stream:large', '1-0', 'payload', '1');
$redis->command('XADD', 'redstream:stream:large', "2-$_", 'payload', '"' . 'x' x 1_000_000 . '"') foreach 1 .. 400;
$redis->command('XADD', 'redstream:stream:large', '3-0', 'payload', '1');
my $count = 0;
wait_until('all of them to be consumed', sub {
	my $result = $session->query(q{SELECT count(*) FROM redstream.consume('large', 'c')});
	$count += $1 if $result =~ /^(\d+)$/;
	return $count == 402;
}, 120);
pass('however large they are');
$redis->command('DEL', 'redstream:stream:large');

# ---- the ends of the ids -----------------------------------------------------------------------------------

my $largest = '18446744073709551615-18446744073709551615';
$redis->command('XADD', 'redstream:stream:last', $largest, 'payload', '1');
is($session->query(consume('c', 10, 'last')), $largest, 'the largest id');
is($session->query(consume('c', 10, 'last')), '', 'nothing is behind it');
my ($output, $errors) = run_command(
	[ 'redstream-consumer', '--url', $redis->url, '--stream', 'last', '--name', 'c', '--once' ]);
is($output, '', 'for the program, too');
unlike($errors, qr/invalid/, 'which has no trouble with it');

# ---- permissions ------------------------------------------------------------------------------------------------

# The commit comes before the release in one script.
$redis->command('ACL', 'SETUSER', 'default', '-rpush');
(undef, $errors) = run_command(
	[ 'redstream-consumer', '--url', $redis->url, '--stream', 's', '--name', 'nopush', '--once' ]);
is($?, 0, 'a batch whose lock cannot be released');
like($errors, qr/the batch is committed$/m, 'is said to be committed');
is(offset_of('nopush'), '20-0', 'as it is');

done_testing();
