# The delayer lets no message overtake another: whatever is held, in doubt, on its way or passed over, the
# last word on a row is its newest change.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $many = 250_000;				# messages that take the delayer long enough to be met at work
my $redis = new_redis;
my $node = new_node('main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.delay' => '1h',
	'redstream.repeat' => 'unconfirmed',
	'redstream.timeout' => '20s',
	'redstream.transaction_buffer' => '64kB',
	'log_statement' => 'none');
my $system = $node->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');

sub main_key { return "redstream:stream:$_[0]"; }
sub delay_key { return "redstream:stream:$_[0].delay"; }
sub delayed { return $redis->command('XLEN', delay_key($_[0])); }

sub emptied
{
	my ($stream) = @_;
	wait_until("$stream.delay to be empty", sub { delayed($stream) == 0 }, 60);
	return;
}

# A table with these rows, all announced long ago.
sub table
{
	my ($name, $rows) = @_;
	$node->safe_psql('postgres', qq{
		CREATE TABLE $name (id integer PRIMARY KEY, v integer NOT NULL DEFAULT 0);
		INSERT INTO $name SELECT generate_series(1, $rows);
		SELECT redstream.attach('$name', payload => ARRAY['id', 'v']);
		CREATE TABLE bulk_$name (id integer PRIMARY KEY);
		SELECT redstream.attach('bulk_$name', stream => '$name');
	});
	return;
}

# The last that was said of the row.
sub last_word
{
	my ($stream, $id) = @_;
	my @words = $redis->cli('--raw', 'XRANGE', main_key($stream), '-', '+') =~ /^\{"id":$id,"v":(\d+)\}/mg;

	note "$stream $id: @words";
	return @words ? $words[-1] : undef;
}

# Returns as soon as a message of this kind is on the main stream, which wait_until could miss.
sub announced_first
{
	my ($stream, $kind) = @_;
	my ($id, $fields) = (0, []);

	until (@$fields && $fields->[1] =~ $kind)
	{
		my $reply = $redis->command('XREAD', 'COUNT', 1, 'BLOCK', 9000, 'STREAMS', main_key($stream), $id)
		  or die "waited in vain for a message on $stream";
		($id, $fields) = @{ $reply->[0][1][0] };
	}
	return;
}

# The first message in the delay stream is due from now on, and what came within the next moments.
sub make_due
{
	my ($stream) = @_;
	my ($first) = @{ $redis->command('XRANGE', delay_key($stream), '-', '+', 'COUNT', 1) };
	my ($written) = $first->[0] =~ /^(\d+)/;
	my ($seconds, $microseconds) = @{ $redis->command('TIME') };

	reconfigure($node, 'redstream.delay' => int($seconds * 1000 + $microseconds / 1000 - $written) . 'ms');
	return;
}

# The delayer has been at work after now: messages of the kind that it always moves have come and gone.
sub looked_at
{
	my ($stream) = @_;

	foreach (1, 2)
	{
		my $id = $redis->command('XADD', delay_key($stream), '*', 'payload', '{"id":"pass"}');
		wait_until("the delayer to pass $stream",
			sub { !@{ $redis->command('XRANGE', delay_key($stream), $id, $id) } });
	}
	return;
}

# From now on, what was written before is in doubt, and the worker knows that.
sub doubt
{
	my $errors = stats($node)->{errors};

	$redis->command('SET', main_key('refused'), 'in the way');
	$node->safe_psql('postgres', 'INSERT INTO refused DEFAULT VALUES');
	wait_until('the refusal', sub { stats($node)->{errors} > $errors });
	$redis->command('DEL', main_key('refused'));
	$node->safe_psql('postgres', 'INSERT INTO fast DEFAULT VALUES');
	emptied('fast');
	return;
}

# Commits, and keeps all that commit afterwards from being announced for so long.
sub slow_commit
{
	my ($pause) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM slow');
	my $session = Redstream::Session->new($node);

	$session->send("SET redstream_test.commit_pause = '$pause'; INSERT INTO slow DEFAULT VALUES");
	wait_until('the commit', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM slow') > $before });
	return $session;
}

$node->safe_psql('postgres', q{
	CREATE TABLE fast (id serial PRIMARY KEY);
	SELECT redstream.attach('fast', delay => '0');
	CREATE TABLE ruby (id serial PRIMARY KEY);
	SELECT redstream.attach('ruby', delay => '0');
	CREATE TABLE refused (id serial PRIMARY KEY);
	SELECT redstream.attach('refused', delay => '1 day');
	CREATE TABLE slow (id serial PRIMARY KEY);
	SELECT redstream.attach('slow');
});
doubt();

# ---- messages of others ---------------------------------------------------------------------------

# The message of this server's last life, on another timeline, of a row that was changed since.
table('promoted', 1);
$redis->command('XADD', delay_key('promoted'), '*', 'payload', '{"id":1,"v":1}', "xact:$system:7", 5);
$node->safe_psql('postgres', 'UPDATE promoted SET v = 2');
settle($node, $redis);
make_due('promoted');
emptied('promoted');
is(last_word('promoted', 1), 2, 'after a promotion');

# A message of who goes by Ruby's protocol, not due for a minute, between one that is in doubt and one that is not.
reconfigure($node, 'redstream.delay' => '1h');
table('mixed', 1);
$node->safe_psql('postgres', 'UPDATE mixed SET v = 2');
my ($id) = map { $_->[0] } $redis->entries(delay_key('mixed'));
my ($milliseconds) = $id =~ /^(\d+)/;
$redis->command('XADD', delay_key('mixed'), $milliseconds + 60_000 . '-1', 'payload', '{"id":"ruby"}');
doubt();
$node->safe_psql('postgres', 'UPDATE mixed SET v = 3');
settle($node, $redis);
make_due('mixed');
wait_until('the messages of ours', sub { delayed('mixed') == 1 });
is(last_word('mixed', 1), 3, 'past a message that is not due');
is_deeply([ $redis->payloads(delay_key('mixed')) ], ['{"id":"ruby"}'], 'which stays');
$redis->command('DEL', delay_key('mixed'));

# ---- main messages on their way ---------------------------------------------------------------------

# A small and a large transaction wait for the same place in the lane, the small one's main message in
# front; the large one's main messages are read from the delay stream.
reconfigure($node, 'redstream.delay' => '1h');
table('way', 5000);
$node->safe_psql('postgres', 'UPDATE way SET v = 1 WHERE id = 5000');
doubt();
$redis->command('DEL', main_key('way'));
my $slow = slow_commit('4s');
$node->safe_psql('postgres', 'UPDATE way SET v = 1 WHERE id = 1');
$node->safe_psql('postgres', 'UPDATE way SET v = 2 WHERE id < 5000');
make_due('way');
looked_at('ruby');
is(last_word('way', 1), undef, 'nothing is announced behind an open place');
is($slow->result, '', 'it is closed');
settle($node, $redis);
emptied('way');
is(last_word('way', 1), 2, 'a flush waits for the lane');

# The same with everything due at once, and nothing to flush.
reconfigure($node,
	'redstream.delay' => '100ms',
	'redstream.repeat' => 'always',
	'redstream.timeout' => '1s');
table('always', 5000);
my ($one, $two) = map { Redstream::Session->new($node) } 1 .. 2;
$slow = slow_commit('900ms');
$one->query('UPDATE always SET v = 1 WHERE id = 1');
$two->query('UPDATE always SET v = 2 WHERE id < 5000');
is($slow->result, '', 'it is closed');
settle($node, $redis);
emptied('always');
is(last_word('always', 1), 2, 'repeat = always: so does what is due');

# ---- transactions that end meanwhile ----------------------------------------------------------------

# The second transaction has waited for a row of the first one; the third sees to it that they are not remembered
# in the order of their messages.
foreach my $due (0, 1)
{
	my $stream = "pair$due";
	my ($first, $second, $third) = map { Redstream::Session->new($node) } 1 .. 3;
	my $update = sub {
		my ($session, $value, $from, $to) = @_;
		my $before = delayed($stream);
		$session->query("UPDATE $stream SET v = $value WHERE id BETWEEN $from AND $to");
		wait_until('early delay messages', sub { delayed($stream) > $before + 1000 });
		return;
	};

	table($stream, 9000);
	$_->query('BEGIN') foreach $first, $second, $third;
	$update->($third, 3, 6001, 9000);
	$update->($first, 1, 1, 3000);
	$update->($second, 2, 3001, 6000);
	looked_at($stream);
	my $held = delayed($stream);
	$third->query('ROLLBACK');
	wait_until('the rolled-back messages to go', sub { delayed($stream) < $held - 1000 });

	$second->send("UPDATE $stream SET v = 2 WHERE id = 1;
		UPDATE $stream SET v = 2 WHERE id BETWEEN 3001 AND 6000;" . ($due ? '' : 'COMMIT'));
	wait_until('the lock', sub { sessions_waiting($node) });
	$first->query('COMMIT');
	$second->result;
	looked_at($stream) if $due;
	$second->query('COMMIT') if $due;
	settle($node, $redis);
	emptied($stream);
	is(last_word($stream, 1), 2, 'two held transactions, ' . ($due ? 'one after the other' : 'together'));
}

# One transaction changes a row twice, with many messages between, and commits while they are judged: a large
# one, or one whose main messages have left the lane at once.
my $open = Redstream::Session->new($node);
foreach my $kind (qw(large quick))
{
	my $fill = "INSERT INTO bulk_$kind SELECT generate_series(1, $many)";

	reconfigure($node, 'redstream.delay' => '1h');
	table($kind, 1);
	$redis->command('XADD', delay_key($kind), '*', 'payload', '{"id":"first"}');
	$open->query("SET redstream.transaction_buffer = '64MB'") if $kind eq 'quick';
	$open->query("BEGIN; UPDATE $kind SET v = 1; INSERT INTO bulk_$kind SELECT generate_series(-3000, -1)");
	wait_until('early delay messages', sub { delayed($kind) > 1000 });
	($kind eq 'large' ? $open : $one)->query($fill);
	$open->query("UPDATE $kind SET v = 2; INSERT INTO bulk_$kind SELECT generate_series(-6000, -3001)");
	wait_until('more of them', sub { delayed($kind) > $many + 3010 });
	settle($node, $redis);
	$redis->command('DEL', main_key($kind));
	reconfigure($node, 'redstream.delay' => '0');
	announced_first($kind, qr/first/);
	is($open->query('COMMIT'), '', "a $kind transaction commits while it is judged");
	settle($node, $redis);
	emptied($kind);
	is(last_word($kind, 1), 2, 'its last word is the last word');
}

# A transaction that was passed over commits during a flush, and another changes the row after it.  The main
# messages of both leave the lane at once.
reconfigure($node,
	'redstream.delay' => '1h',
	'redstream.repeat' => 'unconfirmed',
	'redstream.timeout' => '20s');
table('flush', 3000);
$node->safe_psql('postgres', 'UPDATE flush SET v = 1 WHERE id = 3000');
$open->query('BEGIN; UPDATE flush SET v = 1 WHERE id = 1; UPDATE flush SET v = 1 WHERE id BETWEEN 2 AND 2999');
wait_until('early delay messages', sub { delayed('flush') > 1000 });
$node->safe_psql('postgres', "INSERT INTO bulk_flush SELECT generate_series(1, $many)");
doubt();
settle($node, $redis);
$redis->command('DEL', main_key('flush'));
make_due('flush');
announced_first('flush', qr/^\{"id":\d+\}$/);
$open->query('COMMIT');
$two->query('UPDATE flush SET v = 2 WHERE id = 1');
my $left = delayed('flush');
note "$left messages were left in the delay stream";
settle($node, $redis);
emptied('flush');
is(last_word('flush', 1), 2, 'a transaction that commits during a flush');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
