# What could lead the delayer astray: a lock that is not free, a stretch of held messages that is cut, a
# promotion, a Redis whose clock was wrong.  It neither spins, nor loses, nor leaves anything behind.

use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $rows = 3000;				# enough for delay messages to leave before the end
my $redis = new_redis;
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'wal_level' => 'replica',
	'max_wal_senders' => 5,
	'redstream.delay' => '300ms',
	'redstream.timeout' => '20s');
my $system = $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');

sub main_key { return "redstream:stream:$_[0]"; }
sub delay_key { return "redstream:stream:$_[0].delay"; }

# How many messages are in the delay stream, and the first of them.
sub delayed { return $redis->command('XLEN', delay_key($_[0])); }

sub first_delayed
{
	my ($first) = @{ $redis->command('XRANGE', delay_key($_[0]), '-', '+', 'COUNT', 1) };
	return $first ? $first->[1][1] : '';
}

sub emptied
{
	my ($stream) = @_;
	wait_until("$stream.delay to be empty", sub { delayed($stream) == 0 });
	return;
}

# The delayer has looked at the stream after now: a message of the kind that it always moves has come and gone.
sub looked_at
{
	my ($stream, $on) = @_;
	$on ||= $redis;
	my $key = delay_key($stream);
	my $id = $on->command('XADD', $key, '*', 'payload', '{"id":"pass"}');

	wait_until("the delayer to pass $stream", sub { !@{ $on->command('XRANGE', $key, $id, $id) } });
	return;
}

# Of a main stream, without those of looked_at().
sub announcements
{
	my ($stream, $on) = @_;
	return [ grep { !/pass/ } ($on || $redis)->payloads(main_key($stream)) ];
}

sub scripts
{
	my ($calls) = $redis->cli('INFO', 'commandstats') =~ /cmdstat_eval:calls=(\d+)/;
	return $calls || 0;
}

# A session with a transaction whose messages, of so many rows from the first one on, are held.
sub held
{
	my ($first) = @_;
	my $session = Redstream::Session->new($node);
	my $last = $first + $rows - 1;

	$session->query("BEGIN; INSERT INTO item SELECT generate_series($first, $last)");
	wait_until('early delay messages', sub { delayed('item') > 1000 });
	looked_at('item');
	return $session;
}

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item');
	CREATE TABLE wide (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('wide', stream => 'item', payload => ARRAY['id', 'filler']);
	CREATE TABLE other (id serial PRIMARY KEY);
	SELECT redstream.attach('other', delay => '0');
	CREATE TABLE later (id serial PRIMARY KEY);
	SELECT redstream.attach('later', delay => '1 hour');
});

# ---- somebody else has the lock ---------------------------------------------------------------------

my $open = held(1);
my $lock = 'redstream:lock:consumer:item.delay:delayer';
$redis->command('SET', $lock, 'f' x 32, 'PX', 60_000);
$open->query('ROLLBACK');
looked_at('other') foreach 1 .. 4;
my $before = scripts();
looked_at('other') foreach 1 .. 8;
my $calls = scripts() - $before;
note "$calls scripts were run";
cmp_ok($calls, '<', 60, 'the delayer does not spin while somebody else has the lock');
cmp_ok(delayed('item'), '>', 1000, 'and leaves the messages alone');
$redis->command('DEL', $lock);
emptied('item');
is_deeply(announcements('item'), [], 'rolled back: nothing is announced when it is free');

# ---- a stretch that is cut ----------------------------------------------------------------------------

# A stretch that takes more than one turn to read, because another transaction's messages are in it.
{
	my $first = held(100_001);
	my $long = Redstream::Session->new($node);

	$long->query('BEGIN');
	$long->query("INSERT INTO wide SELECT i, repeat('x', 1000) FROM generate_series(1, 90000) i");
	$first->query('INSERT INTO item SELECT generate_series(200001, 203000)');
	looked_at('item');
	$first->query('COMMIT');
	my $id = $node->safe_psql('postgres', 'INSERT INTO item VALUES (300000) RETURNING id');
	wait_until('the message behind the stretch',
		sub { 2 == grep { $_ eq '{"id":300000}' } @{ announcements('item') } }, 60);
	pass('a long stretch: what is behind it has its turn');
	$long->query('ROLLBACK');
	emptied('item');
	$redis->command('DEL', main_key('item'));
}

# Cut by a message of another server, which is not due any more when it is met again.
my $theirs = '{"id":"theirs"}';
my $server = 'redstream:server:123:1';
$redis->command('SET', $server, 'somebody', 'PX', 600_000);
$open = held(10_001);
$redis->command('XADD', delay_key('item'), '*', 'payload', $theirs, 'xact:123:1', 5);
$open->query("INSERT INTO item SELECT generate_series(20001, 20000 + $rows)");
wait_until('more early delay messages', sub { delayed('item') > $rows + 1000 });
looked_at('item');
reconfigure($node, 'redstream.delay' => '1h');
looked_at('other') foreach 1 .. 2;
$open->query('COMMIT');
wait_until('the beginning of the stretch', sub { first_delayed('item') eq $theirs });
cmp_ok(delayed('item'), '>', 1000, 'cut by a message that is not due: the rest waits');
reconfigure($node, 'redstream.delay' => '300ms');
wait_until('the rest', sub { delayed('item') == 1 });
my %times;
$times{$_}++ foreach @{ announcements('item') };
is(scalar(grep { $_ == 2 } values %times), 2 * $rows, 'and is announced when it is');
$redis->command('DEL', main_key('item'));

# By a main lane that does not get on.
reconfigure($node, 'redstream.repeat' => 'unconfirmed');
$open = held(30_001);
my $slow = Redstream::Session->new($node);
$slow->send(q{SET redstream_test.commit_pause = '6s'; INSERT INTO later DEFAULT VALUES});
wait_until('the commit', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM later') == 1 });
$before = scripts();
$open->query('COMMIT');
wait_until('the delayer to have tried twice', sub { scripts() >= $before + 4 });
cmp_ok(delayed('item'), '>', 1000, 'cut where the lane is not empty: the rest waits');
is($slow->result, '', 'the lane gets on');
wait_until('the rest', sub { delayed('item') == 1 });
is(first_delayed('item'), $theirs, 'and is dealt with');
%times = ();
$times{$_}++ foreach @{ announcements('item') };
is(scalar(keys %times), $rows, 'every row is announced');
$redis->command('DEL', $server);
emptied('item');

# ---- a promotion ------------------------------------------------------------------------------------------

reconfigure($node, 'redstream.repeat' => 'always');
$redis->command('DEL', main_key('item'));
my $now = delay_messages_now('item');
$node->safe_psql('postgres', qq{BEGIN; INSERT INTO item VALUES (40001); $now; PREPARE TRANSACTION 'a'});
looked_at('item');
$redis->command('DEL', delay_key('later'));
$node->stop;
is($redis->command('DEL', "redstream:server:$system:1"), 1, 'a server is gone');
$node->set_standby_mode;
$node->start;
my $session = Redstream::Session->new($node);
like($session->query('SELECT * FROM redstream.run_delayer()'),
	qr/ERROR: .*cannot execute redstream\.run_delayer\(\) during recovery/, 'no delayer on a standby');
$node->promote;
$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
wait_connected($node, 1);
is($session->query('INSERT INTO later DEFAULT VALUES'), '', 'a session of the standby writes');
$node->safe_psql('postgres', 'INSERT INTO later DEFAULT VALUES');
my @fields = map { grep { /^xact:/ } keys %{ $_->[1] } } $redis->entries(delay_key('later'));
is_deeply(\@fields, [ ("xact:$system:2") x 2 ], 'and names the new timeline, as others do');

# It was prepared on the old timeline.
looked_at('item') foreach 1 .. 3;
is_deeply(announcements('item'), [], 'prepared before the promotion: not announced');
is(delayed('item'), 1, 'but kept');
$node->safe_psql('postgres', q{COMMIT PREPARED 'a'});
wait_until('its message, and what the spool makes of it', sub { @{ announcements('item') } == 3 });
emptied('item');
is_deeply(announcements('item'), [ ('{"id":40001}') x 3 ], 'until it commits');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;

# ---- a clock that is set back --------------------------------------------------------------------------

my $library = PostgreSQL::Test::Utils::tempdir() . '/clock.so';
my $clock = PostgreSQL::Test::Utils::tempdir() . '/clock';

sub set_clock
{
	my ($seconds) = @_;
	open(my $file, '>', "$clock.new") or die "$clock.new: $!";
	print $file "$seconds\n";
	close($file) or die "$clock.new: $!";
	rename("$clock.new", $clock) or die "$clock: $!";
	return;
}

sub redis_ahead
{
	my ($on) = @_;
	return $on->command('TIME')->[0] - time;
}

system_or_bail($ENV{CC} || 'cc', '-shared', '-fPIC', '-o', $library,
	dirname($INC{'Redstream/Test.pm'}) . '/../clock.c');
set_clock(3600);
my $wrong = do {
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{REDSTREAM_TEST_CLOCK} = $clock;
	new_redis;
};
cmp_ok(redis_ahead($wrong), '>', 3000, 'a Redis whose clock is an hour ahead');
$node = new_node('wrong', $wrong, 'redstream.delay' => '300ms');
wait_connected($node, 1);
set_clock(0);
cmp_ok(redis_ahead($wrong), '<', 60, 'is set right');
$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item')});
$node->safe_psql('postgres', qq{BEGIN; INSERT INTO item VALUES (1); $now; PREPARE TRANSACTION 'a'});
looked_at('item', $wrong) foreach 1 .. 2;
is_deeply(announcements('item', $wrong), [], 'prepared after that: not announced');
is($wrong->command('XLEN', delay_key('item')), 1, 'but kept');
$node->safe_psql('postgres', q{COMMIT PREPARED 'a'});
wait_until('its message, and what the spool makes of it', sub { @{ announcements('item', $wrong) } == 3 });
wait_until('the delay stream to be empty', sub { $wrong->command('XLEN', delay_key('item')) == 0 });
is_deeply(announcements('item', $wrong), [ ('{"id":1}') x 3 ], 'until it commits');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
