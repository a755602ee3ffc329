# The views redstream.attachments, streams and consumers, and the register of consumers, against
# what is really in Redis.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis;

# no worker: what is here is to stay
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody');
my $ns = 'redstream';

sub rows
{
	my ($sql, $database) = @_;
	return [ split /\n/, $node->safe_psql(defined $database ? $database : 'postgres', $sql) ];
}

# One consumer's columns.
sub consumer
{
	my ($stream, $name, $columns) = @_;
	return rows("SELECT $columns FROM redstream.consumers WHERE stream = '$stream' AND consumer = '$name'")->[0];
}

sub attach
{
	my ($stream, $options) = @_;
	$options = defined $options ? ", $options" : '';
	$node->safe_psql('postgres', qq{
		CREATE TABLE "$stream" (id integer PRIMARY KEY);
		SELECT redstream.attach('"$stream"'$options)});
	return;
}

# Entries with ids of our own, 1-0 and up by default.
sub fill
{
	my ($stream, @ids) = @_;
	$redis->command('XADD', "$ns:stream:$stream", $_, 'payload', '{"id":1}') foreach @ids;
	return;
}

sub register
{
	my ($stream, $name, $offset) = @_;
	$redis->command('SADD', "$ns:consumers:$stream", $name);
	$redis->command('SET', "$ns:offset:$stream:$name", $offset) if defined $offset;
	return;
}

is_deeply(rows('SELECT * FROM redstream.streams'), [], 'nothing attached: no streams');
is_deeply(rows('SELECT * FROM redstream.consumers'), [], 'nothing attached: no consumers');

# ---- a stream that does not exist yet ------------------------------------------------

attach('empty', q{delay => '1 hour', expiry => '2 days'});
is_deeply(rows(q{SELECT * FROM redstream.streams}), ['empty|0|0|||2 days|01:00:00|0|0||'],
	'no stream yet: its row');
is_deeply(rows(q{SELECT * FROM redstream.attachments}), ['empty|empty||||1|01:00:00|2 days||f'],
	'no stream yet: its attachment');
register('empty', 'new');
register('empty', 'zero', '0-0');
register('empty', 'away', '5-1');
is_deeply(rows(q{SELECT * FROM redstream.consumers ORDER BY consumer}), [
	'empty|away|5-1|0|0||t|0|offset is ahead of the stream',
	'empty|new||0|0||t|0|',
	'empty|zero|0-0|0|0||f|0|' ], 'no stream yet: its consumers');

# ---- lag ----------------------------------------------------------------------------------

# As text, 7-10 is before 7-9, and 10-0 before 7-0.
attach('lag');
fill('lag', map({ "7-$_" } 5 .. 14), map { "10-$_" } 0 .. 4);
my %expected = (
	'0-0' => 15, '7-4' => 15, '7-5' => 14, '7-9' => 10, '7-10' => 9, '7-14' => 5, '8' => 5, '9-99' => 5,
	'10-0' => 4, '10-3' => 1, '10-4' => 0);
register('lag', "at $_", $_) foreach keys %expected;
is_deeply(rows(q{SELECT consumer, lag FROM redstream.consumers WHERE stream = 'lag' ORDER BY consumer COLLATE "C"}),
	[ map { "at $_|$expected{$_}" } sort keys %expected ], 'lag: ids are numbers');
is_deeply(rows(q{SELECT consumer FROM redstream.consumers WHERE stream = 'lag' AND blocks_trimming}),
	['at 0-0'], 'lag: the slowest blocks trimming');
$redis->command('SREM', "$ns:consumers:lag", 'at 0-0', 'at 7-4', 'at 7-5');
is_deeply(rows(q{SELECT consumer FROM redstream.consumers WHERE stream = 'lag' AND blocks_trimming}),
	['at 7-9'], 'lag: and that is told by numbers');
register('lag', 'also at 7-9', '7-9');
is_deeply(rows(q{SELECT consumer FROM redstream.consumers WHERE stream = 'lag' AND blocks_trimming ORDER BY 1}),
	[ 'also at 7-9', 'at 7-9' ], 'lag: two may be slowest');
register('lag', 'new');
is_deeply(rows(q{SELECT consumer, lag FROM redstream.consumers WHERE stream = 'lag' AND blocks_trimming}),
	['new|15'], 'lag: who has no offset is slower than all, and has everything before it');
$redis->command('DEL', "$ns:consumers:lag");
register('lag', 'done', '10-4');
is(consumer('lag', 'done', 'lag, lag_seconds, blocks_trimming'), '0|0|f',
	'lag: who has read everything blocks nothing');
$redis->command('XTRIM', "$ns:stream:lag", 'MAXLEN', 0);
register('lag', 'old', '7-9');
is(consumer('lag', 'old', 'lag, lag_seconds, blocks_trimming, problem'), '0|0|f|',
	'lag: an empty stream has nothing to read');

# Counted exactly, and up to a cap.
attach('long');
$redis->command('EVAL', q{
	for i = 1, 12000 do redis.call('XADD', KEYS[1], '5-' .. i, 'payload', '{"id":1}') end
}, 1, "$ns:stream:long");
%expected = (
	'5-0' => 12000, '5-1' => 10000, '5-1999' => 10000, '5-2000' => 10000, '5-2001' => 9999, '5-10977' => 1023,
	'5-10976' => 1024, '5-11999' => 1, '5-9' => 10000, '5-9000' => 3000, '5-12000' => 0);
register('long', $_, $_) foreach keys %expected;
is_deeply(rows(q{SELECT consumer, lag FROM redstream.consumers WHERE stream = 'long' ORDER BY consumer COLLATE "C"}),
	[ map { "$_|$expected{$_}" } sort keys %expected ], 'cap: lags');

# Large messages are counted in smaller steps.
attach('large');
$redis->command('EVAL', q{
	for i = 1, 300 do redis.call('XADD', KEYS[1], '5-' .. i, 'payload', string.rep('x', 20000)) end
}, 1, "$ns:stream:large");
register('large', 'behind', '5-1');
$redis->command('CONFIG', 'RESETSTAT');
is(consumer('large', 'behind', 'lag'), 299, 'large: lag');
cmp_ok($redis->command('INFO', 'commandstats') =~ /cmdstat_eval:calls=(\d+)/ && $1, '>=', 6,
	'large: in several steps');
$redis->command('DEL', "$ns:stream:large", "$ns:consumers:large");

# ---- seconds -----------------------------------------------------------------------------

attach('seconds');
my ($second) = @{ $redis->command('TIME') };
fill('seconds', ($second - 100) . '000-0', ($second - 50) . '000-0', ($second + 1000) . '000-0');
register('seconds', 'far', '0-0');
register('seconds', 'near', ($second - 100) . '000-0');
register('seconds', 'clock', ($second - 50) . '000-0');
like(consumer('seconds', 'far', 'lag_seconds'), qr/^1[0-5]\d(\.\d+)?$/, 'seconds: of the first entry');
like(consumer('seconds', 'near', 'lag_seconds'), qr/^(5|6|7|8|9)\d(\.\d+)?$/, 'seconds: of one in the middle');
is(consumer('seconds', 'clock', 'lag, lag_seconds'), '1|0', 'seconds: an entry of the future has no age');
is_deeply(rows(q{SELECT size, delayed, oldest = to_timestamp(} . ($second - 100) . q{), bytes > 100
	FROM redstream.streams WHERE stream = 'seconds'}), ['3|0|t|t'], 'seconds: the stream');
fill('seconds.delay', '1700000000123-0', '18446744073709551615-5');
is_deeply(rows(q{SET timezone = 'UTC';
	SELECT delayed, oldest_delayed FROM redstream.streams WHERE stream = 'seconds'}),
	['2|2023-11-14 22:13:20.123+00'], 'seconds: the oldest delay message');
$redis->command('XDEL', "$ns:stream:seconds.delay", '1700000000123-0');
is_deeply(rows(q{SELECT delayed, oldest_delayed FROM redstream.streams WHERE stream = 'seconds'}),
	['1|infinity'], 'seconds: an id that is no time');

# ---- locks, what was lost, problems ------------------------------------------------------

attach('trouble');
fill('trouble', '100-0', '100-1', '200-0');
register('trouble', 'ahead', '200-1');
register('trouble', 'behind', '100-0');
register('trouble', 'busy', '100-1');
register('trouble', 'first', '0-0');
register('trouble', 'text', 'one');
register('trouble', 'list');
$redis->command('RPUSH', "$ns:offset:trouble:list", 'x');
$redis->command('SET', "$ns:lock:consumer:trouble:busy", 'f' x 32);
$redis->command('HSET', "$ns:history:trouble", 'lost:busy', 12345678901, 'lost:else', 3, 'refilled', '100-1');
is_deeply(rows(q{SELECT consumer, committed_id, lag, lock_holder, blocks_trimming, lost, problem
	FROM redstream.consumers WHERE stream = 'trouble' ORDER BY 1}), [
	'ahead|200-1|0||t|0|offset is ahead of the stream',
	'behind|100-0|2||t|0|stream was deleted and refilled',
	'busy|100-1|1|' . 'f' x 32 . '|f|12345678901|',
	'first|0-0|3||f|0|',
	'list||||t|0|WRONGTYPE Operation against a key holding the wrong kind of value',
	'text|one|||t|0|offset is not an id' ], 'trouble: every kind');
$redis->command('SREM', "$ns:consumers:trouble", 'list', 'text');
is(consumer('trouble', 'first', 'blocks_trimming'), 't', 'trouble: 0-0 is an offset, and nothing is wrong with it');

# Deleted, not refilled.
$redis->command('DEL', "$ns:stream:trouble");
is_deeply(rows(q{SELECT consumer, problem FROM redstream.consumers WHERE stream = 'trouble' ORDER BY 1}), [
	map({ "$_|offset is ahead of the stream" } qw(ahead behind busy)), 'first|' ], 'trouble: a stream that is gone');

# ---- the spool -------------------------------------------------------------------------------

# There is nobody to deliver what a prepared transaction leaves there.
attach("spooled_$_") foreach 1, 2;
$node->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO spooled_1 VALUES (1), (2);
	INSERT INTO spooled_2 VALUES (1);
	PREPARE TRANSACTION 'spooled'});
is_deeply(rows(q{SELECT stream, spooled, oldest_spooled FROM redstream.streams WHERE stream LIKE 'spooled%' ORDER BY 1}),
	[ 'spooled_1|0|', 'spooled_2|0|' ], 'spool: nothing before COMMIT PREPARED');
$node->safe_psql('postgres', q{COMMIT PREPARED 'spooled'});
is_deeply(rows(q{
	SELECT stream, size, delayed, spooled, oldest_spooled > now() - interval '1 hour', oldest_spooled < now()
	FROM redstream.streams WHERE stream LIKE 'spooled%' ORDER BY 1}),
	[ 'spooled_1|0|0|2|t|t', 'spooled_2|0|0|1|t|t' ], 'spool: then the messages that Redis does not have');
is_deeply(rows(q{
	SELECT spooled, spool_rows, spool_oldest = (SELECT min(oldest_spooled) FROM redstream.streams) FROM redstream.stats}),
	['3|3|t'], 'spool: as redstream.stats has it');

# ---- one bad stream does not hide the others -----------------------------------------------

my $wrong = 'WRONGTYPE Operation against a key holding the wrong kind of value';
attach("bad_$_") foreach qw(main delay register history name);
$redis->command('SET', "$ns:stream:bad_main", 'x');
$redis->command('SET', "$ns:stream:bad_delay.delay", 'x');
fill('bad_delay', '1-0');
register('bad_main', 'reader', '1-0');
register('bad_delay', 'reader', '1-0');
$redis->command('SET', "$ns:consumers:bad_register", 'x');
$redis->command('SET', "$ns:history:bad_history", 'x');
register('bad_history', 'reader', '0-0');
register('bad_name', $_, '0-0') foreach 'a:b', "\xff\x00\x01x", "tab\t", 'good';
is_deeply(rows(q{SELECT stream, size, delayed, oldest IS NULL, bytes IS NULL, error
	FROM redstream.streams WHERE stream IN ('bad_main', 'bad_delay', 'bad_register') ORDER BY 1}), [
	"bad_delay|1||f|f|$wrong", "bad_main||0|t|f|$wrong", 'bad_register|0|0|t|f|' ],
	'wrong types: streams');
is_deeply(rows(q{SELECT stream, consumer, committed_id, lag, blocks_trimming, lost, problem
	FROM redstream.consumers WHERE stream LIKE 'bad%' ORDER BY stream, consumer COLLATE "C"}), [
	'bad_delay|reader|1-0|0|f|0|',
	"bad_history|reader|0-0|0|f||$wrong",
	"bad_main|reader|1-0||f|0|$wrong",
	'bad_name|\xff\x00\x01x|||t||' . "not a consumer's name",
	"bad_name|a:b|||t||not a consumer's name",
	'bad_name|good|0-0|0|f|0|',
	"bad_name|tab\t|||t||not a consumer's name",
	"bad_register||||t||$wrong" ], 'wrong types: consumers');
my ($status, undef, $stderr) =
  $node->psql('postgres', q{SELECT redstream.add_consumer('bad_register', 'x')});
like($stderr, qr/ERROR:  could not ask Redis: EVAL: .*WRONGTYPE/, 'wrong types: add_consumer says so');
is($redis->command('EXISTS', "$ns:offset:bad_register:x"), 0, 'wrong types: and has done nothing');
($status, undef, $stderr) =
  $node->psql('postgres', q{SELECT redstream.add_consumer('bad_main', 'x', '$')});
like($stderr, qr/WRONGTYPE/, 'wrong types: $ of a stream that is none');
is($redis->command('SISMEMBER', "$ns:consumers:bad_main", 'x'), 0, 'wrong types: and has done nothing');
($status, undef, $stderr) =
  $node->psql('postgres', q{SELECT redstream.drop_consumer('bad_history', 'reader')});
like($stderr, qr/WRONGTYPE/, 'wrong types: drop_consumer says so');
is($redis->command('SISMEMBER', "$ns:consumers:bad_history", 'reader'), 1, 'wrong types: and has done nothing');
$redis->command('DEL', map { "$ns:consumers:bad_$_" } qw(main delay register history name));

# ---- the register ---------------------------------------------------------------------------

attach('register');
$redis->command('XADD', "$ns:stream:register", '5-1', 'payload', '{}');
$redis->command('XADD', "$ns:stream:register", '5-7', 'payload', '{}');
$redis->command('XDEL', "$ns:stream:register", '5-7');
$node->safe_psql('postgres', q{SELECT redstream.add_consumer('register', 'one', '$')});
is($redis->command('GET', "$ns:offset:register:one"), '5-7', 'register: $ is the last id given, deleted or not');
$node->safe_psql('postgres', q{SELECT redstream.add_consumer('register', 'one', '3')});
is($redis->command('GET', "$ns:offset:register:one"), '3-0', 'register: the offset goes backwards');
$node->safe_psql('postgres', q{SELECT redstream.add_consumer('register', 'two')});
is($redis->command('GET', "$ns:offset:register:two"), '0-0', 'register: 0-0 is written');
is_deeply([ sort @{ $redis->command('SMEMBERS', "$ns:consumers:register") } ], [ 'one', 'two' ],
	'register: both are registered');
$redis->command('HSET', "$ns:history:register", 'lost:one', 1, 'lost:two', 2);
is_deeply(rows(q{SELECT redstream.drop_consumer('register', 'one')}), ['t'], 'register: dropped');
is($redis->command('EXISTS', "$ns:offset:register:one"), 0, 'register: the offset is gone');
is_deeply($redis->command('HGETALL', "$ns:history:register"), [ 'lost:two', 2 ], 'register: what was lost to it is forgotten');
is_deeply($redis->command('SMEMBERS', "$ns:consumers:register"), ['two'], 'register: the other is there');

# ---- names in other encodings ---------------------------------------------------------------

my $name = "gr\xc3\xb6\xc3\x9fe";    # in UTF-8
$node->safe_psql('postgres', qq{
	CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', qq{
	SET client_encoding = 'UTF8';
	CREATE EXTENSION redstream;
	CREATE TABLE "$name" (id integer PRIMARY KEY);
	SELECT redstream.attach('"$name"');
	SELECT redstream.add_consumer('$name', '$name', '\$')});
is($redis->command('GET', "$ns:offset:$name:$name"), '0-0', 'latin1: names are UTF-8 in Redis');
register($name, "\xe2\x82\xac", '0-0');    # which LATIN1 does not have
fill($name, '1-0');
is_deeply(rows(q{SET client_encoding = 'UTF8';
	SELECT stream, size, error FROM redstream.streams}, 'latin'), ["$name|1|"], 'latin1: streams');
is_deeply(rows(q{SET client_encoding = 'UTF8';
	SELECT stream, consumer, lag, problem FROM redstream.consumers ORDER BY consumer COLLATE "C"}, 'latin'),
	[ "$name|\\xe2\\x82\\xac|1|", "$name|$name|1|" ], 'latin1: consumers');
attach($name);
is_deeply(rows(qq{SELECT consumer, lag FROM redstream.consumers WHERE stream = '$name' ORDER BY consumer COLLATE "C"}),
	[ "$name|1", "\xe2\x82\xac|1" ], 'utf8: the same consumers');

# ---- a namespace -------------------------------------------------------------------------------

reconfigure($node, 'redstream.namespace' => 'shop');
is_deeply(rows('SELECT * FROM redstream.consumers'), [], 'namespace: nobody is registered');
$node->safe_psql('postgres', q{SELECT redstream.add_consumer('lag', 'mine', '5-5')});
is($redis->command('GET', 'shop:redstream:offset:lag:mine'), '5-5', 'namespace: keys have it');
is_deeply(rows('SELECT stream, consumer, lag, problem FROM redstream.consumers'),
	['lag|mine|0|offset is ahead of the stream'], 'namespace: and are read');
$redis->command('DEL', 'shop:redstream:consumers:lag');
reconfigure($node, 'redstream.namespace' => '', 'redstream.delay' => '90s');
is_deeply(rows(q{SELECT delay FROM redstream.streams WHERE stream = 'lag'}), ['00:01:30'],
	'redstream.delay is the delay of a stream without its own');

# ---- who may look -----------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE ROLE monitor IN ROLE pg_monitor;
	CREATE ROLE anyone;
	GRANT USAGE ON SCHEMA redstream TO anyone});
foreach my $view (qw(attachments streams consumers))
{
	my $count = $node->safe_psql('postgres', "SELECT count(*) FROM redstream.$view");
	cmp_ok($count, '>', 1, "$view: there is something to see");
	is($node->safe_psql('postgres', "SET ROLE monitor; SELECT count(*) FROM redstream.$view"), $count,
		"$view: pg_monitor sees it");
	($status, undef, $stderr) = $node->psql('postgres', "SET ROLE anyone; SELECT * FROM redstream.$view");
	like($stderr, qr/permission denied for view $view/, "$view: anyone does not");
}

# ---- many streams -------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	DO $$BEGIN
		FOR i IN 1 .. 1000 LOOP
			EXECUTE format('CREATE TABLE many_%s (id integer PRIMARY KEY)', i);
			PERFORM redstream.attach(format('many_%s', i));
		END LOOP;
	END$$});
$redis->command('EVAL', q{
	for i = 1, 1000 do
		redis.call('XADD', 'redstream:stream:many_' .. i, '1-1', 'payload', '{"id":1}')
		redis.call('SADD', 'redstream:consumers:many_' .. i, 'reader')
	end
}, 0);
my $begin = time;
is_deeply(rows(q{SELECT count(*), sum(size), count(error) FROM redstream.streams WHERE stream LIKE 'many%'}),
	['1000|1000|0'], 'many: streams');
is_deeply(rows(q{SELECT count(*), sum(lag), count(problem) FROM redstream.consumers WHERE stream LIKE 'many%'}),
	['1000|1000|0'], 'many: consumers');
note(sprintf 'both took %d ms', 1000 * (time - $begin));

# ---- Redis refuses, or is away ---------------------------------------------------------------------

# Not for one stream: an error.
$redis->command('CONFIG', 'SET', 'requirepass', 'x');
foreach my $view (qw(streams consumers))
{
	($status, undef, $stderr) = $node->psql('postgres', "SELECT * FROM redstream.$view");
	like($stderr, qr/ERROR:  could not ask Redis: .*NOAUTH/, "$view: NOAUTH is an error");
}
$redis->command('AUTH', 'x');
$redis->command('CONFIG', 'SET', 'requirepass', '');

# A hanging Redis.
reconfigure($node, 'redstream.timeout' => '10min');
$redis->stop_signal;
my $session = Redstream::Session->new($node);
$session->send('SELECT * FROM redstream.consumers');
$node->poll_query_until('postgres',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT * FROM redstream.consumers%' AND state = 'active'});
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
like($session->result, qr/ERROR:  canceling statement due to user request/, 'hanging: can be cancelled');
reconfigure($node, 'redstream.timeout' => '200ms');
foreach my $statement (
	'SELECT * FROM redstream.streams', 'SELECT * FROM redstream.consumers',
	q{SELECT redstream.add_consumer('lag', 'x')}, q{SELECT redstream.drop_consumer('lag', 'x')},
	q{SELECT redstream.max_consumer_id('lag', 'x')})
{
	like($session->query($statement), qr/ERROR:  could not ask Redis: .*timeout after 200 ms/, "hanging: $statement");
}
$redis->cont;
$session->close;

$redis->stop;
foreach my $view (qw(streams consumers))
{
	($status, undef, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT * FROM redstream.$view");
	like($stderr, qr/ERROR:  58030: could not ask Redis: /, "$view: io_error without Redis");
}
isnt($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.attachments'), 0,
	'attachments needs no Redis');
is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
