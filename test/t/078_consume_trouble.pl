# consume(): streams and offsets that do not fit, messages that are none, and what to do then; other consumers
# of the stream, the trimmer, dump and restore, and the extension in an open session.

use strict;
use warnings;

use File::Temp ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Peer;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);

sub fill
{
	my ($stream, @numbers) = @_;
	$redis->command('XADD', "redstream:stream:$stream", "$_-0", 'payload', qq({"n":$_})) foreach @numbers;
	return;
}

sub peer { return Redstream::Peer->new($redis, @_); }

# Numbers of the next messages for consumer "c" of the stream, or the error.
sub consume
{
	my ($stream, $size) = @_;
	$size = 1000 unless defined $size;
	return $session->query(qq{
		SELECT string_agg(payload->>'n', ' ' ORDER BY split_part(id, '-', 1)::bigint)
		FROM redstream.consume('$stream', 'c', $size)});
}

sub offset_arrives
{
	my ($stream, $number) = @_;
	my $peer = peer($stream, 'c');
	wait_until("$stream: the offset in Redis", sub { ($peer->offset || '') eq "$number-0" });
	pass("$stream: the offset is in Redis");
	return;
}

# ---- a stream that is another one ----------------------------------------------------------------

my $hint = qr/HINT:  Bring up to date what it keeps.*: redstream.add_consumer\(\) with "0-0", "\$" or an id/;

# It says what is wrong, again and again, until it is told where to go on.
sub does_not_fit
{
	my ($stream, $pattern, $start, $expected) = @_;

	foreach my $time ('', ' and again')
	{
		my $error = consume($stream);
		like($error, qr/ERROR:  consumer "c" cannot go on with stream "\Q$stream\E": $pattern/, "$stream: does not fit$time");
		like($error, $hint, "$stream: what to do");
	}
	wait_until("$stream: the lock to be released", sub { peer($stream, 'c')->was_released });
	is($session->query("SELECT redstream.add_consumer('$stream', 'c', '$start')"), '', "$stream: told where to go on");
	is(consume($stream), $expected, "$stream: goes on");
	is(consume($stream), '', "$stream: to the end");
	return;
}

fill('ahead', 1 .. 5);
peer('ahead', 'c')->commit('50-0');
does_not_fit('ahead', qr/the offset 50-0 is ahead of the stream, whose last id is 5-0/, '0-0', '1 2 3 4 5');

fill('deleted', 1 .. 5);
is(consume('deleted', 3), '1 2 3', 'deleted: a stream');
offset_arrives('deleted', 3);
$redis->command('DEL', 'redstream:stream:deleted');
does_not_fit('deleted', qr/the offset is 3-0, but the stream does not exist/, '0-0', '');
fill('deleted', 11 .. 13);
is(consume('deleted'), '11 12 13', 'deleted: what comes then is read');

# Filled again before anyone looks, with newer ids.
foreach my $start ('0-0', '$', '21-0')
{
	my $stream = "refilled $start";
	fill($stream, 1 .. 5);
	is(consume($stream, 3), '1 2 3', "$stream: a stream");
	offset_arrives($stream, 3);
	$redis->command('DEL', "redstream:stream:$stream");
	fill($stream, 21 .. 22);
	does_not_fit($stream, qr/the stream was deleted and filled again, from 21-0 on, after the offset 3-0/, $start,
		{ '0-0' => '21 22', '$' => '', '21-0' => '22' }->{$start});
	fill($stream, 23);
	is(consume($stream), 23, "$stream: and what comes then");
}

# Filled again with older ids: a clock that was set back.
fill('back', 101 .. 105);
is(consume('back'), '101 102 103 104 105', 'back: a stream');
offset_arrives('back', 105);
$redis->command('DEL', 'redstream:stream:back');
fill('back', 1 .. 2);
does_not_fit('back', qr/the offset 105-0 is ahead of the stream, whose last id is 2-0/, '0-0', '1 2');

# Redis is emptied, by hand or by a restart without a file.
fill('emptied', 1 .. 5);
fill('emptied and filled', 1 .. 5);
is(consume('emptied', 3), '1 2 3', 'emptied: a stream');
is(consume('emptied and filled', 3), '1 2 3', 'emptied and filled: a stream');
offset_arrives('emptied and filled', 3);
$redis->command('FLUSHALL');
fill('emptied and filled', 4 .. 8);
does_not_fit('emptied', qr/the offset is 3-0, but the stream does not exist/, '$', '');
does_not_fit('emptied and filled', qr/it has committed 3-0 here, but Redis does not know it/, '5-0', '6 7 8');

# Redis comes back as it was some time ago.
fill('older', 1 .. 10);
is(consume('older', 5), '1 2 3 4 5', 'older: a stream');
offset_arrives('older', 5);
$redis->command('SAVE');
fill('older', 11 .. 20);
is(consume('older', 12), join(' ', 6 .. 17), 'older: goes on');
offset_arrives('older', 17);
$redis->kill9;
$redis->start;
is($redis->command('XLEN', 'redstream:stream:older'), 10, 'older: Redis has an older state');
does_not_fit('older', qr/the offset 17-0 is ahead of the stream, whose last id is 10-0/, '5-0', '6 7 8 9 10');

# The offset went back with it, and the stream not so far: nothing is wrong, and nothing done twice.
fill('behind', 1 .. 10);
is(consume('behind', 5), '1 2 3 4 5', 'behind: a stream');
offset_arrives('behind', 5);
$redis->command('SAVE');
is(consume('behind', 5), '6 7 8 9 10', 'behind: goes on');
offset_arrives('behind', 10);
$redis->kill9;
$redis->start;
is(peer('behind', 'c')->offset, '5-0', 'behind: the offset went back');
is(consume('behind'), '', 'behind: nothing is done twice');
offset_arrives('behind', 10);

# ---- keys that are something else ---------------------------------------------------------------------

# When the key is deleted all is well again.
sub wrong_key
{
	my ($what, $key, $pattern, @command) = @_;

	fill($what, 1 .. 5) unless $what eq 'stream';
	$redis->command($command[0], $key, @command[ 1 .. $#command ]);
	is($session->query('BEGIN; SAVEPOINT s'), '', "$what: is something else");
	like(consume($what), $pattern, "$what: is said");
	is($session->query('ROLLBACK TO s; COMMIT'), '', "$what: goes no further");
	wait_until("$what: the lock to be released", sub { peer($what, 'c')->was_released }) unless $what eq 'lock';
	like(consume($what), $pattern, "$what: again");
	$redis->command('DEL', $key);
	fill($what, 1 .. 5) if $what eq 'stream';
	is(consume($what), '1 2 3 4 5', "$what: goes on without it");
	return;
}

my $wrong = qr/ERROR:  could not ask Redis: .*: WRONGTYPE/;
wrong_key('stream', 'redstream:stream:stream', qr/ERROR:  could not ask Redis: XINFO STREAM: WRONGTYPE/, 'SET', 'x');
wrong_key('lock', 'redstream:lock:consumer:lock:c', $wrong, 'RPUSH', 'x');
wrong_key('offset', 'redstream:offset:offset:c', $wrong, 'RPUSH', 'x');
wrong_key('registry', 'redstream:consumers:registry', $wrong, 'SET', 'x');
wrong_key('history', 'redstream:history:history', $wrong, 'SET', 'x');

# Redis is full: a consumer goes on, and its offset arrives, or the trimmer could never make room.
fill('full', 1 .. 10);
is(consume('full', 5), '1 2 3 4 5', 'full: a stream');
offset_arrives('full', 5);
$redis->command('CONFIG', 'SET', 'maxmemory', 1);
is(consume('full', 3), '6 7 8', 'full: goes on when Redis is');
offset_arrives('full', 8);
wait_until('full: the lock to be released', sub { peer('full', 'c')->was_released });
is($session->query(q{SELECT count(*) FROM redstream.consume('full', 'new')}), 10, 'full: another consumer registers');
$redis->command('CONFIG', 'SET', 'maxmemory', 0);

# An offset in Redis that is no id.
foreach my $offset ('x', '', '5-', '-5', '5-0 ', '18446744073709551616-0', "\x00", "\xff\xfe", '1' x 200)
{
	my $stream = 'no id ' . unpack('H*', substr $offset, 0, 30);
	fill($stream, 1 .. 5);
	is(consume($stream, 2), '1 2', "$stream: a stream");
	offset_arrives($stream, 2);
	peer($stream, 'c')->commit($offset);
	my $error = consume($stream);
	like($error, qr/ERROR:  .*the committed offset is not an id: "/, "$stream: an offset that is no id");
	like($error, qr/HINT:  .*redstream.commit_offset\(\)/, "$stream: what to do");
	is($session->query("SELECT redstream.commit_offset('$stream', 'c', '3-0')"), '', "$stream: as the hint says");
	is(consume($stream), '4 5', "$stream: goes on");
}

# One in the table.
foreach my $way ('commit_offset', 'add_consumer', 'drop_consumer')
{
	my $stream = "table $way";
	fill($stream, 1 .. 5);
	is(consume($stream, 2), '1 2', "$stream: a stream");
	is($session->query("UPDATE redstream.offsets SET id = 'x' WHERE stream = '$stream'"), '', "$stream: no id");
	like(consume($stream),
		qr/ERROR:  the offset of consumer "c" of stream "$stream" in redstream.offsets is no id: "x"\n.*HINT:  Set it with redstream.commit_offset/,
		"$stream: is said");
	my $start = $way eq 'drop_consumer' ? '' : q{, '3-0'};
	my $output = $session->query("SELECT redstream.$way('$stream', 'c'$start)");
	is($output, $way eq 'drop_consumer' ? 't' : '', "$stream: as the hint says, or otherwise");
	is(consume($stream), $way eq 'drop_consumer' ? '1 2 3 4 5' : '4 5', "$stream: goes on");
}

# A history that is none tells nothing.
fill('garbage', 1 .. 5);
is(consume('garbage', 2), '1 2', 'garbage: a stream');
$redis->command('HSET', 'redstream:history:garbage', last => 'x', added => "\xff", refilled => '', gone => 'perhaps', x => 'y');
is(consume('garbage', 1), '3', 'garbage: in the history');
is($redis->command('HGET', 'redstream:history:garbage', 'last'), '5-0', 'garbage: it is a history again');

# ---- messages that are none -------------------------------------------------------------------------------

# What is in front of the message is given first; the message and the hint name it.
my @bad = (
	[ 'no JSON', qr/invalid input syntax for type json\n.*DETAIL:  Token "this" is invalid/, 'payload', 'this is no JSON' ],
	[ 'empty', qr/invalid input syntax for type json/, 'payload', '' ],
	[ 'no payload', qr/it has no field "payload"/, 'data', '{"n":3}' ],
	[ 'cut off', qr/invalid input syntax for type json/, 'payload', '{"n":' ],
	[ 'two', qr/invalid input syntax for type json/, 'payload', '{"n":1}{"n":2}' ],
	[ 'zero byte', qr/invalid byte sequence for encoding "UTF8": 0x00/, 'payload', qq({"n":"\x00"}) ],
	[ 'not UTF-8', qr/invalid byte sequence for encoding "UTF8": 0xff/, 'payload', qq({"n":"\xff"}) ],
	[ 'no text', qr/unsupported Unicode escape sequence/, 'payload', '{"n":"\u0000"}' ],
	[ 'number', qr/value overflows numeric format|out of range/, 'payload', '{"n":1e200000}' ],
	[ 'deep', qr/stack depth limit exceeded/, 'payload', ('[' x 100000) . (']' x 100000) ],
	[ 'quo"te\'s', qr/invalid input syntax/, 'payload', "'" ],
);
foreach my $bad (@bad)
{
	my ($name, $pattern, @fields) = @$bad;
	my $quoted = $name =~ s/'/''/gr;

	fill($name, 1 .. 2);
	$redis->command('XADD', "redstream:stream:$name", '3-7', @fields);
	fill($name, 4 .. 5);
	is(consume($quoted), '1 2', "$name: what is in front of it");
	my $error = consume($quoted);
	like($error, qr/ERROR:  message 3-7 of stream "\Q$name\E" cannot be consumed: $pattern/, "$name: is said");
	my ($sql) = $error =~ /HINT:  (SELECT redstream.*\)) goes past it\./;
	is($session->query($sql), '', "$name: as the hint says");
	is(consume($quoted), '4 5', "$name: goes on");
	offset_arrives($name, 5);
}

# In a savepoint, and behind messages of this transaction.
fill('tx', 1 .. 2);
$redis->command('XADD', 'redstream:stream:tx', '3-0', 'payload', 'x');
is($session->query('BEGIN'), '', 'in a transaction');
is(consume('tx', 10), '1 2', 'what is in front of it');
is($session->query('SAVEPOINT s'), '', 'a savepoint');
like(consume('tx', 10), qr/message 3-0 of stream "tx" cannot be consumed/, 'the message');
is($session->query('ROLLBACK TO s; COMMIT'), '', 'what was in front of it is committed');
offset_arrives('tx', 2);

# Fields that are not ours.
$redis->command('XADD', 'redstream:stream:fields', '1-0', 'payload', '{"n":1}', 'more', 'x');
is(consume('fields'),
	qq(NOTICE:  1 message of stream "fields" has other fields than "payload", which are ignored: 1-0\n1),
	'fields: one message with others');
$redis->command('XADD', 'redstream:stream:fields', '2-0', 'a', 'b', 'payload', '{"n":2}', 'payload', '{"n":22}');
fill('fields', 3);
$redis->command('XADD', 'redstream:stream:fields', '4-0', 'payload', '{"n":4}', '', '');
is(consume('fields'),
	qq(NOTICE:  2 messages of stream "fields" have other fields than "payload", which are ignored; the first is 2-0\n2 3 4),
	'fields: two');

# ---- waiting -------------------------------------------------------------------------------------------------

my $other = Redstream::Session->new($node);
$other->send(q{SELECT id FROM redstream.consume('later', 'c', wait => '60 s')});
wait_until('later: the lock', sub { peer('later', 'c')->holder });
fill('later', 1);
is($other->result, '1-0', 'later: a message that is waited for');
$other->send(q{SELECT id FROM redstream.consume('later', 'c', wait => '60 s')});
wait_until('later: the lock', sub { peer('later', 'c')->holder });
$redis->command('XADD', 'redstream:stream:later', '2-0', 'x', 'y');
like($other->result, qr/message 2-0 of stream "later" cannot be consumed/, 'later: one that is none');
peer('later', 'c')->commit('2-0');
$other->send(q{SELECT id FROM redstream.consume('later', 'c', wait => '60 s')});
wait_until('later: the lock', sub { peer('later', 'c')->holder });
$redis->command('CLIENT', 'KILL', 'ID', $_)
  foreach $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*name=redstream-consume /mg;
fill('later', 3);
my $id = $other->result;
# between two commands it is noticed, and made anew
$id = $other->query(q{SELECT id FROM redstream.consume('later', 'c', wait => '60 s')}) if $id =~ /could not ask Redis/;
is($id, '3-0', 'later: the connection is lost meanwhile');

# ---- others on the stream ----------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE shared (id integer PRIMARY KEY);
	SELECT redstream.attach('shared')});
fill('shared', 1 .. 20);
my $peer = peer('shared', 'c');
ok($peer->take, 'shared: a consumer as the Ruby library has them');
$redis->command('SADD', 'redstream:consumers:shared', 'c');
like(consume('shared', 5), qr/consumer "c" of stream "shared" is at work in another session or process/,
	'shared: excludes one in SQL');
is($session->query(q{
	DO $$
	BEGIN
		PERFORM redstream.consume('shared', 'c');
	EXCEPTION WHEN lock_not_available THEN
		RAISE NOTICE 'as FOR UPDATE NOWAIT';
	END $$}), 'NOTICE:  as FOR UPDATE NOWAIT', 'shared: with that error');
is($session->query(q{SELECT lock_holder FROM redstream.consumers WHERE stream = 'shared'}), $peer->{id},
	'shared: the view tells who is at work');
is(join(' ', map { $_->[0] } $peer->read(3)), '1-0 2-0 3-0', 'shared: it reads');
$peer->commit('3-0');
$peer->release;
is($session->query('BEGIN'), '', 'shared: the one in SQL');
is(consume('shared', 3), '4 5 6', 'shared: goes on there');
ok(!$peer->take, 'shared: and excludes the other one');
like($other->query(q{SELECT lock_holder FROM redstream.consumers WHERE stream = 'shared'}), qr/^[0-9a-f]{32}$/,
	'shared: the view knows it');
is($session->query('COMMIT'), '', 'shared: commits');
offset_arrives('shared', 6);
is($session->query(q{SELECT redstream.max_consumer_id('shared', 'c')}), '6-0', 'shared: max_consumer_id()');
wait_until('shared: the lock', sub { $peer->take });
is(join(' ', map { $_->[0] } $peer->read(2)), '7-0 8-0', 'shared: and the other one goes on behind it');
$peer->commit('8-0');
$peer->release;

# The trimmer: exactly what both have read.
is($session->query(q{SELECT string_agg(payload->>'n', ' ') FROM redstream.consume('shared', 'd', 4)}), '1 2 3 4',
	'trimmer: another consumer');
wait_until('trimmer: its offset', sub { (peer('shared', 'd')->offset || '') eq '4-0' });
is($session->query(q{SELECT stream, trimmed, expired, error FROM redstream.run_trimmer() WHERE stream = 'shared'}), 'shared|4|0|',
	'trimmer: trims what both have read');
is(($redis->entries('redstream:stream:shared'))[0][0], '5-0', 'trimmer: and nothing else');
is($session->query(q{
	SELECT consumer, committed_id, lag, lock_holder, blocks_trimming, problem
	FROM redstream.consumers WHERE stream = 'shared' ORDER BY 1}),
	"c|8-0|12||f|\nd|4-0|16||t|", 'trimmer: the view says who it waits for');
# what is only read, and not committed, stays
$session->query(q{BEGIN; SELECT redstream.consume('shared', 'd', 10); SELECT redstream.consume('shared', 'd', 2)});
is($other->query(q{SELECT count(*) FROM redstream.run_trimmer() WHERE stream = 'shared' AND trimmed > 0}), 0,
	'trimmer: waits for the commit');
$session->query('ROLLBACK');
is($other->query(q{SELECT count(*) FROM redstream.run_trimmer() WHERE stream = 'shared' AND trimmed > 0}), 0,
	'trimmer: that does not come');
is($session->query(q{SELECT count(*) FROM redstream.consume('shared', 'd')}), 16, 'trimmer: it reads all');
is(consume('shared'), join(' ', 9 .. 20), 'trimmer: the other one, too');
offset_arrives('shared', 20);
wait_until('trimmer: the offset', sub { (peer('shared', 'd')->offset || '') eq '20-0' });
is($session->query(q{SELECT trimmed FROM redstream.run_trimmer() WHERE stream = 'shared'}), 16, 'trimmer: all goes');
is(consume('shared'), '', 'trimmer: an empty stream is nothing special');
fill('shared', 21);
is(consume('shared'), '21', 'trimmer: goes on');

# ---- dump and restore ---------------------------------------------------------------------------------------------

$node->safe_psql('postgres', q{CREATE DATABASE shop});
$node->safe_psql('shop', q{CREATE EXTENSION redstream; CREATE TABLE done (id text PRIMARY KEY)});
fill('dumped', 1 .. 10);
my $work = q{INSERT INTO done SELECT id FROM redstream.consume('dumped', 'shop', 4)};
my $what = q{SELECT string_agg(split_part(id, '-', 1), ' ' ORDER BY split_part(id, '-', 1)::integer) FROM done};
$node->safe_psql('shop', $work);
wait_until('dumped: the offset', sub { (peer('dumped', 'shop')->offset || '') eq '4-0' });
my $directory = File::Temp->newdir('dump.XXXX', TMPDIR => 1);
command_ok([ 'pg_dump', '--file', "$directory/dump", $node->connstr('shop') ], 'dumped: a dump');

my $second = PostgreSQL::Test::Cluster->new('second');
$second->init;
$second->append_conf('postgresql.conf', "shared_preload_libraries = 'redstream'\nredstream.databases = 'nobody'\n"
	  . "redstream.url = '" . $redis->url . "'\n");
$second->start;
foreach my $database (qw(shop late))
{
	$second->safe_psql('postgres', "CREATE DATABASE $database");
	command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '--file', "$directory/dump", $second->connstr($database) ],
		"dumped: restored as $database on another server");
	is($second->safe_psql($database, 'SELECT stream, consumer, id FROM redstream.offsets'), 'dumped|shop|4-0',
		"dumped: the offset came with the data");
}
$second->safe_psql('shop', $work);
is($second->safe_psql('shop', $what), '1 2 3 4 5 6 7 8', 'dumped: goes on where the data ends');
wait_until('dumped: the offset', sub { (peer('dumped', 'shop')->offset || '') eq '8-0' });

# An older dump: meanwhile another database has gone on as this consumer.  Where its own data ends is in its table.
is($second->safe_psql('late', q{SELECT redstream.commit_offset(stream, consumer, id) FROM redstream.offsets}), '',
	'dumped: an older one');
$second->safe_psql('late', $work);
is($second->safe_psql('late', $what), '1 2 3 4 5 6 7 8', 'dumped: goes on where its data ends');

# ---- not preloaded -----------------------------------------------------------------------------------------------------

$second->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$second->restart;
$second->safe_psql('late', $work);
is($second->safe_psql('late', $what), '1 2 3 4 5 6 7 8 9 10', 'not preloaded: consumes');
$second->stop;

# ---- the extension in an open session -------------------------------------------------------------------------------------

fill('session', 1 .. 20);
is(consume('session', 2), '1 2', 'session: consumes');
offset_arrives('session', 2);
is($session->query('PREPARE next AS SELECT id FROM redstream.consume($$session$$, $$c$$, 1); EXECUTE next'), '3-0',
	'session: with a prepared statement');
offset_arrives('session', 3);
$session->query(q{SET client_min_messages = 'warning'; DROP EXTENSION redstream CASCADE});
like($session->query('EXECUTE next'), qr/does not exist/, 'session: without the extension');
is($session->query('CREATE EXTENSION redstream'), '', 'session: made anew');
is($session->query('EXECUTE next'), '4-0', 'session: goes on by the offset in Redis');
is($session->query('SELECT id FROM redstream.offsets'), '4-0', 'session: in the new table');
is($session->query('DISCARD PLANS; EXECUTE next'), '5-0', 'session: DISCARD PLANS');
is($session->query('RESET ALL; RESET SESSION AUTHORIZATION; DISCARD ALL'), '', 'session: DISCARD ALL');
is(consume('session', 2), '6 7', 'session: goes on');
is($session->query(q{BEGIN; SET LOCAL client_min_messages = 'warning'}), '', 'session: a transaction');
is(consume('session', 2), '8 9', 'session: that consumes');
is($session->query('DROP EXTENSION redstream CASCADE; CREATE EXTENSION redstream'), '', 'session: makes it anew');
is(consume('session', 2), '8 9', 'session: before a commit this is as after a rollback');
is($session->query('COMMIT'), '', 'session: commits');
is(consume('session', 2), '10 11', 'session: goes on');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
