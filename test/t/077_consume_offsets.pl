# consume(): where a consumer goes on, whatever became of Redis, the connection or the server when it committed.

use strict;
use warnings;

use File::Temp ();
use PostgreSQL::Test::Utils;
use Redstream::Peer;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis,
	'redstream.databases' => 'nobody',
	'redstream.timeout' => '2s',
	'wal_writer_delay' => '10s',
	'synchronous_commit' => 'on',
	'wal_level' => 'replica',		# as a synchronous standby needs them
	'max_wal_senders' => 1);
my $directory = File::Temp->newdir('offsets.XXXX', TMPDIR => 1);

$node->safe_psql('postgres', 'CREATE TABLE done (consumer text, id text)');
fill($redis, 'redstream:stream:s', 1 .. 20);

sub fill
{
	my ($where, $key, @numbers) = @_;
	$where->command('XADD', $key, "$_-0", 'payload', qq({"n":$_})) foreach @numbers;
	return;
}

sub peer { return Redstream::Peer->new($redis, 's', $_[0]); }

# The next batch of this consumer goes into the table.
sub work
{
	my ($consumer, $size) = @_;
	return "INSERT INTO done SELECT '$consumer', id FROM redstream.consume('s', '$consumer', $size)";
}

# Numbers of the messages that this consumer has done, in order.
sub done
{
	my ($consumer) = @_;
	return $node->safe_psql('postgres', qq{
		SELECT string_agg(split_part(id, '-', 1), ' ' ORDER BY split_part(id, '-', 1)::integer)
		FROM done WHERE consumer = '$consumer'});
}

sub numbers { return join ' ', $_[0] .. $_[1]; }

sub table_offset
{
	my ($consumer) = @_;
	return $node->safe_psql('postgres', "SELECT id FROM redstream.offsets WHERE consumer = '$consumer' AND namespace = ''");
}

sub offset_arrives
{
	my ($consumer, $number) = @_;
	wait_until("$consumer: the offset in Redis", sub { (peer($consumer)->offset || '') eq "$number-0" });
	pass("$consumer: the offset is in Redis");
	return;
}

# Runs code while the session's COMMIT waits, after the point where it could still fail, for a standby that there is
# none of.
sub in_commit
{
	my ($session, $code) = @_;

	reconfigure($node, synchronous_standby_names => 'nobody');
	$session->send('COMMIT');
	wait_until('COMMIT to wait', sub {
		$node->safe_psql('postgres', q{SELECT wait_event FROM pg_stat_activity WHERE pid = } . $session->pid) eq 'SyncRep';
	});
	$code->();
	reconfigure($node, synchronous_standby_names => '');
	return $session->result;
}

sub kill_connection
{
	my @ids = $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*name=redstream-consume /mg;
	$redis->command('CLIENT', 'KILL', 'ID', $_) foreach @ids;
	return scalar @ids;
}

my $session = Redstream::Session->new($node);

# ---- the greater of both ---------------------------------------------------------------------

is($session->query(work('greater', 5)), '', 'greater: five messages');
offset_arrives('greater', 5);
peer('greater')->commit('8-0');
is($session->query(work('greater', 2)), '', 'greater: another process has gone on');
is(done('greater'), '1 2 3 4 5 9 10', 'greater: the one in Redis counts');
is(table_offset('greater'), '10-0', 'greater: the table follows');
offset_arrives('greater', 10);
peer('greater')->commit('3-0');
is($session->query(work('greater', 2)), '', 'greater: another process has gone back');
is(done('greater'), '1 2 3 4 5 9 10 11 12', 'greater: the one in the table counts');
offset_arrives('greater', 12);
$redis->command('DEL', peer('greater')->{offset});
is($session->query(work('greater', 1)), '', 'greater: the one in Redis is deleted');
is(done('greater'), '1 2 3 4 5 9 10 11 12 13', 'greater: the one in the table counts again');
offset_arrives('greater', 13);

# ---- the copy is lost -----------------------------------------------------------------------------

$session->query('BEGIN; ' . work('lost', 3));
is(in_commit($session, sub { cmp_ok(kill_connection(), '>', 0, 'lost: the connection is gone in the middle of COMMIT') }), '',
	'lost: COMMIT');
is(done('lost'), numbers(1, 3), 'lost: is committed');
is(peer('lost')->offset, undef, 'lost: Redis does not know');
# the lock has not been released either, but it is this session's
is($session->query('BEGIN; ' . work('lost', 2)), '', 'lost: goes on');
is(peer('lost')->offset, '3-0', 'lost: first of all Redis is told');
is($session->query('COMMIT'), '', 'lost: commits');
offset_arrives('lost', 5);
is(done('lost'), numbers(1, 5), 'lost: nothing twice');

# Also if there is nothing to read.
$session->query('BEGIN; ' . work('lost', 100));
in_commit($session, \&kill_connection);
is(peer('lost')->offset, '5-0', 'lost: again');
is($session->query(q{SELECT * FROM redstream.consume('s', 'lost')}), '', 'lost: nothing is left');
offset_arrives('lost', 20);

# Redis hangs, and dies.
$session->query('BEGIN; ' . work('stopped', 3));
is(in_commit($session, sub { $redis->stop_signal }), '', 'stopped: COMMIT waits for nothing');
kill 'KILL', $redis->pid;			# kill9() lets it go on first
$redis->kill9;
$redis->start;
is(done('stopped'), numbers(1, 3), 'stopped: is committed');
is(peer('stopped')->offset, undef, 'stopped: Redis does not know');
is($session->query(work('stopped', 100)), '', 'stopped: goes on, on a new connection');
is(done('stopped'), numbers(1, 20), 'stopped: nothing twice');
offset_arrives('stopped', 20);

# A backend is stopped within COMMIT, for longer than its lock lasts: then only the row of the table tells the next one
# that the messages it has read are done.
my $other = Redstream::Session->new($node);
foreach my $first (1, 4)
{
	$session->query('BEGIN; ' . work('late', 3));
	is(in_commit($session, sub {
		kill 'STOP', $session->pid;
		wait_until('late: the lock to expire', sub { !peer('late')->holder });
		$other->send(work('late', 3));
		wait_until('late: another session to find the row locked', sub {
			$node->safe_psql('postgres', 'SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $other->pid) eq 'Lock';
		});
		kill 'CONT', $session->pid;
	}), '', 'late: COMMIT');
	like($other->result, qr/the offset of consumer "late" of stream "s" was changed by another transaction/,
		'late: the other session learns of it');
	is(done('late'), numbers(1, $first + 2), 'late: nothing twice');
}
is($other->query(work('late', 3)), '', 'late: goes on');
is(done('late'), numbers(1, 9), 'late: still nothing twice');
offset_arrives('late', 9);

# A connection that is lost in the middle of a transaction is made anew.
$session->query('BEGIN; ' . work('reconnects', 3));
cmp_ok(kill_connection(), '>', 0, 'reconnects: the connection is gone');
is($session->query(work('reconnects', 2)), '', 'reconnects: goes on');
cmp_ok(kill_connection(), '>', 0, 'reconnects: the connection is gone again');
is($session->query('COMMIT'), '', 'reconnects: commits');
is(done('reconnects'), numbers(1, 5), 'reconnects: nothing twice');
offset_arrives('reconnects', 5);
wait_until('reconnects: the lock to be released', sub { peer('reconnects')->was_released });

# Redis is restarted between two transactions.
$redis->restart;
is($session->query(work('reconnects', 5)), '', 'reconnects: Redis was restarted between two transactions');
is(done('reconnects'), numbers(1, 10), 'reconnects: nothing twice');

# ---- Redis is away -----------------------------------------------------------------------------------

# Gone at COMMIT.
my $cannot = qr/ERROR:  could not make sure of a consumer's lock: .*\n.*HINT:  Nothing is lost: roll back/;
$session->query('BEGIN; ' . work('gone', 3));
$other->query('BEGIN; ' . work('gone too', 3));
$redis->kill9;
like($session->query('COMMIT'), $cannot, 'gone: COMMIT fails');
is($other->query('ROLLBACK'), '', 'gone: ROLLBACK works');
like($session->query(work('gone', 3)), qr/could not ask Redis/, 'gone: nothing to be had');
$redis->start;
is($session->query(work('gone', 3)), '', 'gone: and when it is back');
is(done('gone'), numbers(1, 3), 'gone: nothing twice');
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.offsets WHERE consumer = $$gone too$$'), 0,
	'gone: what was rolled back is');

# It hangs.
$session->query('BEGIN; ' . work('hangs', 3));
$other->query('BEGIN; ' . work('hangs too', 3));
$redis->stop_signal;
my $begin = time;
like($session->query('COMMIT'), $cannot, 'hangs: COMMIT fails');
like($other->query('SAVEPOINT s; ' . work('hangs too', 3)), qr/could not ask Redis: .*timeout after 2000 ms/,
	'hangs: consume() fails');
is($other->query('ROLLBACK'), '', 'hangs: ROLLBACK works');
cmp_ok(time - $begin, '<', 20, 'hangs: all of that soon');
$redis->cont;
is($session->query(work('hangs', 3)), '', 'hangs: and when it goes on');
wait_until('hangs too: the lock', sub { !peer('hangs too')->holder });
is($other->query(work('hangs too', 4)), '', 'hangs: here, too');
is(done('hangs'), numbers(1, 3), 'hangs: nothing twice');
is(done('hangs too'), numbers(1, 4), 'hangs: nothing twice here, too');

# COMMIT that waits for Redis can be cancelled.
reconfigure($node, 'redstream.timeout' => '60s');
$session->query('SELECT 1; BEGIN; ' . work('cancelled', 3));
$redis->stop_signal;
$session->send('COMMIT');
wait_until('COMMIT to be cancelled', sub {
	$node->safe_psql('postgres', q{SELECT state = 'active' AND pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = }
		  . $session->pid) eq 'f';
});
like($session->result, qr/canceling statement due to user request/, 'cancelled: COMMIT fails');
$redis->cont;
reconfigure($node, 'redstream.timeout' => '5s');
is(done('cancelled'), '', 'cancelled: nothing is done');
is($session->query('SELECT 1; ' . work('cancelled', 4)), '1', 'cancelled: goes on');
is(done('cancelled'), numbers(1, 4), 'cancelled: nothing twice');

# ---- the server crashes right after the commit ---------------------------------------------------------

# It must be on disk before Redis is told, or the messages would be lost with it.
$session->query('SET synchronous_commit = off; BEGIN; ' . work('crash', 7));
is($session->query('COMMIT'), '', 'crash: committed with synchronous_commit off');
$node->stop('immediate');
$other->close;
$session->close;
is(peer('crash')->offset, '7-0', 'crash: Redis was told');
$node->start;
is($node->safe_psql('postgres', work('crash', 100)), '', 'crash: goes on');
is(done('crash'), numbers(1, 20), 'crash: neither lost nor twice');

# ---- settings that change ----------------------------------------------------------------------------------

my $second = new_redis;
my $first_url = $redis->url;
fill($second, 'redstream:stream:s', 1 .. 30);
$session = Redstream::Session->new($node);

is($session->query(work('url', 2)), '', 'url: two messages');
$session->query('BEGIN; ' . work('url', 2));
reconfigure($node, 'redstream.url' => $second->url);
like($session->query('COMMIT'), qr/lost the lock of consumer "url"/, 'url: another Redis in the middle of a transaction');
is(done('url'), numbers(1, 2), 'url: is rolled back');
like($session->query(work('url', 2)),
	qr/cannot go on with stream "s": it has committed 2-0 here, but Redis does not know it: .*\n.*HINT: .*add_consumer/,
	'url: the other Redis does not know the consumer');
is($session->query(q{SELECT redstream.add_consumer('s', 'url', '5-0')}), '', 'url: as the hint says');
is($session->query(work('url', 2)), '', 'url: goes on there');
is(done('url'), '1 2 6 7', 'url: behind the id');
reconfigure($node, 'redstream.url' => $first_url);
is($session->query(work('url', 2)), '', 'url: back again');
is(done('url'), '1 2 6 7 8 9', 'url: what is in the table counts');

# A namespace has offsets of its own.
fill($redis, 'n:redstream:stream:s', 1 .. 20);
is($session->query(work('ns', 2)), '', 'namespace: none');
$session->query('BEGIN; ' . work('ns', 2));
reconfigure($node, 'redstream.namespace' => 'n');
is($session->query(work('ns', 3)), '', 'namespace: another one in the same transaction');
is($session->query('COMMIT'), '', 'namespace: both are committed');
is(done('ns'), '1 1 2 2 3 3 4', 'namespace: from both streams');
offset_arrives('ns', 4);
wait_until('namespace: the other offset', sub { ($redis->command('GET', 'n:redstream:offset:s:ns') || '') eq '3-0' });
is($node->safe_psql('postgres', q{SELECT namespace, id FROM redstream.offsets WHERE consumer = 'ns' ORDER BY 1}),
	"|4-0\nn|3-0", 'namespace: both are in the table');
reconfigure($node, 'redstream.namespace' => '');
is($session->query(work('ns', 1)), '', 'namespace: none again');
is(table_offset('ns'), '5-0', 'namespace: goes on there');

# A password, in a file.
foreach my $password (qw(right wrong))
{
	append_to_file("$directory/$password", "$password\n");
	chmod 0600, "$directory/$password" or die;
}
$redis->command('CONFIG', 'SET', 'requirepass', 'right');
reconfigure($node, 'redstream.password_file' => "$directory/right");
is($session->query(work('password', 2)), '', 'password: with the right one');
$session->query('BEGIN; ' . work('password', 2));
reconfigure($node, 'redstream.password_file' => "$directory/wrong");
my $error = $session->query('COMMIT');
like($error, $cannot, 'password: with a wrong one COMMIT fails');
like($error, qr/WRONGPASS/, 'password: and says why');
reconfigure($node, 'redstream.password_file' => "$directory/right");
wait_until('password: the lock', sub { !peer('password')->holder });
is($session->query(work('password', 3)), '', 'password: with the right one again');
is(done('password'), numbers(1, 5), 'password: nothing twice');
$redis->command('CONFIG', 'SET', 'requirepass', '');

# ---- much ----------------------------------------------------------------------------------------------------

# Fifty consumers in one transaction.
$session->query('BEGIN');
is($session->query(q{
	INSERT INTO done SELECT 'many ' || i, id FROM generate_series(1, 50) i, redstream.consume('s', 'many ' || i, 7)}),
	'', 'many: fifty consumers in one statement');
is(scalar(grep { peer("many $_")->holder } 1 .. 50), 50, 'many: have their locks');
is($session->query('COMMIT'), '', 'many: commit');
wait_until('many: all to be released', sub { !grep { peer("many $_")->holder } 1 .. 50 });
is(scalar(grep { peer("many $_")->offset eq '7-0' } 1 .. 50), 50, 'many: and their offsets are in Redis');
$session->query('BEGIN');
is($session->query(q{SELECT count(*) FROM generate_series(1, 50) i, redstream.consume('s', 'many ' || i, 7)}), 350,
	'many: again');
is($session->query('ROLLBACK'), '', 'many: rolled back');
wait_until('many: all to be released', sub { !grep { peer("many $_")->holder } 1 .. 50 });
is($session->query(q{SELECT count(*) FROM generate_series(1, 50) i, redstream.consume('s', 'many ' || i)}), 650,
	'many: the rest');

# One large batch, larger than work_mem; its last message is none.
$redis->command('EVAL', q{
	for i = 1, 100000 do
		redis.call('XADD', KEYS[1], i .. '-0', 'payload', '{"n":' .. i .. ',"text":"' .. string.rep('x', 50) .. '"}')
	end
	redis.call('XADD', KEYS[1], '100001-0', 'payload', 'x')}, 1, 'redstream:stream:large');
is($session->query(q{
	SET work_mem = '64kB';
	SELECT count(*), count(DISTINCT id), sum((payload->>'n')::bigint), min(length(payload->>'text'))
	FROM redstream.consume('large', 'l', 1000000)}), '100000|100000|5000050000|50', 'large: 100,000 messages in one batch');
like($session->query(q{SELECT * FROM redstream.consume('large', 'l')}), qr/message 100001-0 of stream "large"/,
	'large: and the one behind them');

# Large messages.
$redis->command('EVAL', q{
	for i = 1, 120 do
		redis.call('XADD', KEYS[1], i .. '-0', 'payload', '{"n":' .. i .. ',"text":"' .. string.rep('y', 1048576) .. '"}')
	end}, 1, 'redstream:stream:heavy');
is($session->query(q{
	SELECT count(*), sum((payload->>'n')::bigint), min(length(payload->>'text'))
	FROM redstream.consume('heavy', 'h', 1000)}), '120|7260|1048576', 'heavy: 120 messages of a megabyte');
$redis->command('DEL', 'redstream:stream:large', 'redstream:stream:heavy');

# ---- encodings ---------------------------------------------------------------------------------------------------

my $text = "\xc3\xa9t\xc3\xa9";    # UTF-8, as Redis has it
$redis->command('XADD', "redstream:stream:$text", '1-0', 'payload', qq({"a":"$text"}));
$redis->command('XADD', "redstream:stream:$text", '2-0', 'payload', qq({"a":"\xe2\x82\xac"}));
$redis->command('XADD', "redstream:stream:$text", '3-0', 'payload', qq({"a":"3"}));
foreach my $encoding (qw(UTF8 LATIN1 SQL_ASCII))
{
	my $database = lc $encoding;
	my $in_redis = "$text $encoding";

	$node->safe_psql('postgres', qq{CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'});
	$node->safe_psql($database, 'CREATE EXTENSION redstream');
	my $client = Redstream::Session->new($node, $database);
	$client->query(q{SET client_encoding = 'UTF8'});
	is($client->query(qq{SELECT id, payload->>'a' FROM redstream.consume('$text', '$text $encoding', 1)}), "1-0|$text",
		"$encoding: a message with names that are not ASCII");
	is($client->query('SELECT stream, consumer, id FROM redstream.offsets'), "$text|$text $encoding|1-0",
		"$encoding: the offset in the table");
	wait_until("$encoding: the offset in Redis",
		sub { ($redis->command('GET', "redstream:offset:$text:$in_redis") || '') eq '1-0' });
	if ($encoding eq 'LATIN1')
	{
		like($client->query(qq{SELECT * FROM redstream.consume('$text', '$text $encoding', 2)}),
			qr/ERROR:  message 2-0 of stream "$text" cannot be consumed: .*no equivalent in encoding "LATIN1"\n.*HINT: .*commit_offset\('$text', '$text LATIN1', '2-0'\) goes past it/,
			"$encoding: a character that there is not");
		is($client->query(qq{SELECT redstream.commit_offset('$text', '$text LATIN1', '2-0')}), '', "$encoding: goes past it");
		is($client->query(qq{SELECT id FROM redstream.consume('$text', '$text $encoding', 2)}), '3-0', "$encoding: goes on");
	}
	else
	{
		is($client->query(qq{SELECT payload->>'a' FROM redstream.consume('$text', '$text $encoding', 1)}), "\xe2\x82\xac",
			"$encoding: another one");
	}
	$client->query(qq{BEGIN; SELECT redstream.consume('$text', 'x', 1); SELECT redstream.consume('$text', 'y$text', 1)});
	$redis->command('DEL', "redstream:lock:consumer:$text:y$text");
	like($client->query('COMMIT'), qr/lost the lock of consumer "y$text"/, "$encoding: a name in an error of COMMIT");
	$client->close;
}

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
