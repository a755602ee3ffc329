# consume(): a consumer's lock, for as long as the transaction lasts, however it ends.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Peer;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody', 'restart_after_crash' => 'on');

$node->safe_psql('postgres', 'CREATE TABLE done (consumer text, id text)');
foreach my $number (1 .. 20)
{
	$redis->command('XADD', 'redstream:stream:s', "$number-0", 'payload', qq({"n":$number}));
}

# The next batch of this consumer goes into the table.
sub work
{
	my ($consumer, $size) = @_;
	return "INSERT INTO done SELECT '$consumer', id FROM redstream.consume('s', '$consumer', $size)";
}

# Ids that this consumer has done, in order.
sub done
{
	my ($consumer) = @_;
	return $node->safe_psql('postgres', qq{
		SELECT string_agg(id, ' ' ORDER BY split_part(id, '-', 1)::integer) FROM done WHERE consumer = '$consumer'});
}

sub peer { return Redstream::Peer->new($redis, 's', $_[0]); }

# A session in a transaction that has done the first two messages.
sub begin
{
	my ($consumer) = @_;
	my $session = Redstream::Session->new($node);

	is($session->query('BEGIN; ' . work($consumer, 2)), '', "$consumer: a transaction has consumed");
	like(peer($consumer)->holder, qr/^[0-9a-f]{32}$/, "$consumer: and has the lock");
	return $session;
}

sub released_at_once
{
	my ($consumer) = @_;
	my $peer = peer($consumer);

	wait_until("$consumer: the lock to be released", sub { $peer->was_released });
	is($peer->holder, undef, "$consumer: the lock is released");
	return;
}

sub nothing_is_done
{
	my ($consumer) = @_;

	is(done($consumer), '', "$consumer: nothing is in the table");
	is(peer($consumer)->offset, undef, "$consumer: no offset is in Redis");
	is($node->safe_psql('postgres', "SELECT count(*) FROM redstream.offsets WHERE consumer = '$consumer'"), 0,
		"$consumer: nor in the table of offsets");
	return;
}

# What it consumes in the end is the rest, each message once.
sub goes_on
{
	my ($consumer) = @_;

	is($node->psql('postgres', work($consumer, 100)), 0, "$consumer: consumes the rest");
	is(done($consumer), join(' ', map { "$_-0" } 1 .. 20), "$consumer: each message is done once");
	wait_until("$consumer: the offset in Redis", sub { peer($consumer)->offset eq '20-0' });
	return;
}

# ---- the ends of a transaction --------------------------------------------------------------

my $session = begin('commit');
is($session->query('SAVEPOINT a; RELEASE a; SELECT 1'), 1, 'commit: goes on');
ok(!peer('commit')->take, 'commit: nobody else gets the lock');
is($session->query('COMMIT'), '', 'commit: commits');
released_at_once('commit');
is(done('commit'), '1-0 2-0', 'commit: is done');
is(peer('commit')->offset, '2-0', 'commit: the offset is in Redis');
is($redis->command('SISMEMBER', 'redstream:consumers:s', 'commit'), 1, 'commit: it is registered');
goes_on('commit');

$session = begin('rollback');
is($session->query('ROLLBACK'), '', 'rollback: is rolled back');
released_at_once('rollback');
nothing_is_done('rollback');
goes_on('rollback');

# Two batches of which neither is committed: the second call must not take the first one's offset for a
# committed one.
$session = begin('two');
is($session->query(work('two', 3)), '', 'two: another batch');
is($session->query(q{SELECT string_agg(id, ' ') FROM done WHERE consumer = 'two'}), '1-0 2-0 3-0 4-0 5-0',
	'two: the next one');
is(peer('two')->offset, undef, 'two: no offset is in Redis before the commit');
is($session->query('ROLLBACK'), '', 'two: is rolled back');
released_at_once('two');
nothing_is_done('two');
goes_on('two');

$session = begin('error');
like($session->query('SELECT 1/0'), qr/division by zero/, 'error: an error');
released_at_once('error');
nothing_is_done('error');
$session->close;
goes_on('error');

$session = begin('deferred');
is($session->query(q{
		CREATE TABLE checked (id integer PRIMARY KEY, other integer REFERENCES checked DEFERRABLE INITIALLY DEFERRED);
		INSERT INTO checked VALUES (1, 2)}), '', 'deferred: a constraint that COMMIT will find violated');
like($session->query('COMMIT'), qr/violates foreign key/, 'deferred: COMMIT fails');
released_at_once('deferred');
nothing_is_done('deferred');
goes_on('deferred');

$session = begin('close');
$session->close;
released_at_once('close');
nothing_is_done('close');
goes_on('close');

# ---- interrupted ------------------------------------------------------------------------------

$session = begin('cancel');
$session->send('SELECT pg_sleep(60)');
$node->poll_query_until('postgres', qq{
	SELECT wait_event = 'PgSleep' AND pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = } . $session->pid);
like($session->result, qr/canceling statement/, 'cancel: a statement is cancelled');
released_at_once('cancel');
nothing_is_done('cancel');
goes_on('cancel');

$session = begin('terminate');
is($node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $session->pid . ')'), 't', 'terminate: idle');
released_at_once('terminate');
nothing_is_done('terminate');
goes_on('terminate');

# By a timeout of the session.
foreach my $timeout (
	[ 'statement_timeout', 'SELECT pg_sleep(60)', qr/canceling statement due to statement timeout/ ],
	[ 'lock_timeout', 'LOCK taken', qr/canceling statement due to lock timeout/ ],
	[ 'idle_in_transaction_session_timeout', undef, undef ])
{
	my ($setting, $sql, $pattern) = @$timeout;

	$node->safe_psql('postgres', 'CREATE TABLE IF NOT EXISTS taken ()');
	my $locker = Redstream::Session->new($node);
	is($locker->query('BEGIN; LOCK taken'), '', "$setting: a table is locked");
	$session = begin($setting);
	is($session->query("SET LOCAL $setting = '100 ms'"), '', "$setting: is set");
	like($session->query($sql), $pattern, "$setting: an error") if $sql;
	released_at_once($setting);
	nothing_is_done($setting);
	$session->close;
	$locker->close;
	goes_on($setting);
}

# In the wait for messages.
foreach my $function (qw(pg_cancel_backend pg_terminate_backend))
{
	my $consumer = "wait $function";
	goes_on($consumer);
	released_at_once($consumer);
	$session = Redstream::Session->new($node);
	$session->send("SELECT * FROM redstream.consume('s', '$consumer', wait => '60 s')");
	wait_until("$consumer: the lock", sub { peer($consumer)->holder });
	is($node->safe_psql('postgres', "SELECT $function(" . $session->pid . ')'), 't', "$consumer: interrupted");
	like($session->result, $function eq 'pg_cancel_backend' ? qr/canceling statement/ : qr/terminating connection/,
		"$consumer: ends");
	released_at_once($consumer);
}

# ---- refused, again and again ---------------------------------------------------------------------

# A transaction that tries until it gets the lock needs no memory for that.
$node->safe_psql('postgres', q{
	CREATE EXTENSION redstream_test;
	CREATE FUNCTION try(tries integer) RETURNS integer LANGUAGE plpgsql AS $$
	DECLARE
		refused integer = 0;
	BEGIN
		FOR i IN 1 .. tries LOOP
			BEGIN
				PERFORM redstream.consume('s', 'tries');
			EXCEPTION WHEN lock_not_available THEN
				refused := refused + 1;
			END;
		END LOOP;
		RETURN refused;
	END $$});
ok(peer('tries')->take, 'tries: another process is at work');
$session = Redstream::Session->new($node);
is($session->query('BEGIN; SELECT try(10); SELECT redstream_test.memory() AS before \gset'), 10, 'tries: is refused');
is($session->query('SELECT try(500)'), 500, 'tries: again and again');
cmp_ok($session->query('SELECT redstream_test.memory() - :before'), '<', 1_000_000, 'tries: that takes no memory');
peer('tries')->{redis}->command('DEL', peer('tries')->{lock});
is($session->query('SELECT count(*) FROM redstream.consume($$s$$, $$tries$$); COMMIT'), 20, 'tries: and gets it');

# ---- for as long as it takes ----------------------------------------------------------------------

# Sessions that do nothing for Redis meanwhile.
my %long = map { ($_ => begin($_)) } qw(busy idle savepoint refused timeouts waiting twice);
$long{busy}->send('SELECT pg_sleep(60)');
like($long{savepoint}->query('SAVEPOINT s; SELECT 1/0'), qr/division by zero/, 'savepoint: an error');
like($long{refused}->query('SAVEPOINT s; SELECT 1/0; SELECT 1; SELECT 2; ROLLBACK TO s; SELECT 3'),
	qr/division.*is aborted.*is aborted.*\n3$/s, 'refused: errors in a savepoint that has failed already');
is($long{timeouts}->query(q{
		SET statement_timeout = '50 s'; SET lock_timeout = '40 s'; SET idle_in_transaction_session_timeout = '55 s';
		SELECT pg_sleep(0.01); SAVEPOINT s; ROLLBACK TO s; SELECT 1}), "\n1", 'timeouts: are set');
my $locker = Redstream::Session->new($node);
is($locker->query('CREATE TABLE locked (); BEGIN; LOCK locked'), '', 'a table is locked');
is($long{waiting}->query(q{SET LOCAL lock_timeout = '40 s'}), '', 'waiting: has a timeout');
$long{waiting}->send('LOCK locked');
is($long{twice}->query(work('twice too', 2)), '', 'twice: has two consumers');

my @waiting_for = map { { name => $_, peer => peer($_), last => 0, extended => 0 } } keys %long, 'twice too';
wait_until('all locks to be extended several times', sub {
	my $missing = 0;

	foreach my $it (@waiting_for)
	{
		my $now = $it->{peer}->lasts;
		$it->{extended}++ if $now > $it->{last} + 500;
		$it->{last} = $now;
		$missing++ if $it->{extended} < 5;
	}
	return $missing == 0;
}, 60) or diag explain \@waiting_for;
pass('all locks have been extended for longer than they last');

ok(!peer($_)->take, "$_: nobody else gets the lock") foreach sort keys %long;
is($node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $long{busy}->pid . ')'), 't', 'busy: is cancelled');
like($long{busy}->result, qr/canceling/, 'busy: ends');
is($locker->query('COMMIT'), '', 'the table is unlocked');
is($long{waiting}->result, '', 'waiting: goes on');
is($long{savepoint}->query('ROLLBACK TO s'), '', 'savepoint: goes on');
is($long{$_}->query('COMMIT'), '', "$_: commits") foreach sort grep { $_ ne 'busy' } keys %long;
foreach my $consumer (sort(keys %long), 'twice too')
{
	released_at_once($consumer);
	goes_on($consumer);
}

# ---- lost -------------------------------------------------------------------------------------------

# A backend that is stopped does not extend its locks.
my %lost = map { ($_ => begin($_)) } ('taken', 'done', 'expired', 'deleted', 'in a savepoint', 'killed');
my @stopped = map { $lost{$_}->pid } qw(taken done expired killed);
my $log_offset = -s $node->logfile;
kill 'STOP', @stopped;
$redis->command('DEL', peer($_)->{lock}) foreach 'deleted', 'in a savepoint';
wait_until('the locks to expire', sub { !grep { peer($_)->holder } qw(taken done expired killed) });

my $taken = peer('taken');
my $done = peer('done');
ok($taken->take, 'taken: another process takes over');
ok($done->take, 'done: another process takes over');
is(join(' ', map { $_->[0] } $done->read(3)), '1-0 2-0 3-0', 'done: gets the same messages');
$done->commit('3-0');
$done->release;
$done->was_released;
kill 'CONT', grep { $_ != $lost{killed}->pid } @stopped;

my $lock_lost = qr/ERROR:  lost the lock of consumer ".*"\n.*DETAIL:  .*\n.*HINT:  Nothing is lost/;
like($lost{taken}->query('COMMIT'), $lock_lost, 'taken: COMMIT fails');
nothing_is_done('taken');
is($taken->holder, $taken->{id}, 'taken: the other one has its lock');
like($lost{taken}->query(work('taken', 1)), qr/consumer "taken" of stream "s" is at work/, 'taken: has to wait');
$taken->release;
goes_on('taken');

like($lost{done}->query('COMMIT'), $lock_lost, 'done: COMMIT fails');
is(done('done'), '', 'done: nothing is in the table');
is($done->offset, '3-0', 'done: the offset is where the other process has set it');
is($node->safe_psql('postgres', work('done', 2)), '', 'done: goes on');
is(done('done'), '4-0 5-0', 'done: behind the other one');

like($lost{expired}->query(work('expired', 1)), qr/lost the lock of consumer "expired" of stream "s"/,
	'expired: the next call fails');
nothing_is_done('expired');
goes_on('expired');

like($lost{deleted}->query('COMMIT'), $lock_lost, 'deleted: COMMIT fails');
nothing_is_done('deleted');
goes_on('deleted');

like($lost{'in a savepoint'}->query('SAVEPOINT s; ' . work('in a savepoint', 1)), qr/lost the lock/,
	'in a savepoint: the next call fails');
like($lost{'in a savepoint'}->query('ROLLBACK TO s; COMMIT'), $lock_lost, 'in a savepoint: COMMIT fails, too');
nothing_is_done('in a savepoint');
goes_on('in a savepoint');

# ---- killed --------------------------------------------------------------------------------------------

# The server restarts, and all that was in transactions comes again.
my $survivor = begin('survivor');
wait_until('the lock', sub { peer('survivor')->holder });
kill 'KILL', $lost{killed}->pid;
wait_until('the server to restart',
	sub { slurp_file($node->logfile, $log_offset) =~ /reinitializing.*ready to accept connections/s });
foreach my $consumer (qw(killed survivor))
{
	wait_until("$consumer: the lock to go", sub { !peer($consumer)->holder });
	nothing_is_done($consumer);
	goes_on($consumer);
}
like(slurp_file($node->logfile, $log_offset), qr/was terminated by signal 9/, 'a backend was killed');
is_deeply([ grep { !/signal 9/ } crashes($node, $log_offset) ], [], 'and no other crash');
$node->stop;
done_testing;
