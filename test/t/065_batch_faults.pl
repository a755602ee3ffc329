# redstream.bulk_update() and redstream.bulk_enqueue() while others change the rows or the table, and while Redis is away: no row is left
# out, and none is done twice.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node(
	'main', $redis,
	'redstream.timeout' => '60s',
	'redstream.delay' => '0',
	'redstream.databases' => 'nobody',
	'redstream.on_outage' => 'error',
	'redstream.queue_size' => '1MB');
my ($session, $other, $third) = map { Redstream::Session->new($node) } 1 .. 3;

# The ids on the stream once everything committed has arrived.  Takes both kinds of messages out.
sub arrived
{
	my ($stream) = @_;

	settle($node, $redis);
	$redis->command('DEL', "redstream:stream:$stream.delay");
	return join ' ', map { $_->[1]{payload} =~ /^\{"id":(\d+)\}$/ ? $1 : $_->[1]{payload} } take($redis, "redstream:stream:$stream");
}

# A table with these ids, in the other order.
sub make_item
{
	my ($ids) = @_;
	$node->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS item;
		CREATE TABLE item (id integer PRIMARY KEY, v integer DEFAULT 0);
		INSERT INTO item SELECT i FROM ($ids) AS ids(i) ORDER BY i DESC});
	return;
}

sub rows
{
	my ($count) = @_;
	return "SELECT generate_series(1, $count)";
}

sub each_row
{
	return $node->safe_psql('postgres', q{SELECT string_agg(id || ':' || v, ' ' ORDER BY id) FROM item});
}

sub await_lock
{
	my ($what) = @_;
	wait_until($what, sub { $node->safe_psql('postgres',
		'SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = $$Lock$$ AND pid = ' . $session->pid) });
	return;
}

my $update = q{CALL redstream.bulk_update('item', 'v = v + 1', 'v < 5', batch_size => 4)};
my $enqueue = q{CALL redstream.bulk_enqueue('item', 'v < 5', batch_size => 4)};

# ---- others change the rows -------------------------------------------------------------------------

# While it waits for row 6, in the second batch, others change rows before it, in the batch, and behind.
sub while_waiting
{
	my ($what, $call, $lock, $changes, $expected, $announced) = @_;

	make_item(rows(12));
	$node->safe_psql('postgres', q{SELECT redstream.attach('item', payload => ARRAY['id', 'v'])}) if $call eq $enqueue;
	$other->query("BEGIN; $lock");
	$session->send($call);
	await_lock("$what: a row to be waited for");
	$third->query("SET redstream.enabled = off; $changes");
	$other->query('SET LOCAL redstream.enabled = off; COMMIT');
	my $output = $session->result;
	unlike($output, qr/ERROR/, $what);
	is(each_row(), $expected, "$what: the rows");
	is(arrived('item'), $announced, "$what: announced") or diag($output);
	return;
}

sub done
{
	my ($from, $to) = @_;
	return join ' ', map { "$_:1" } $from .. $to;
}

my $lock = 'SELECT FROM item WHERE id = 6 FOR UPDATE';
while_waiting('rows are added', $update, $lock, 'DELETE FROM item WHERE id = 10; INSERT INTO item VALUES (0), (10), (20)',
	'0:0 ' . done(1, 12) . ' 20:0', join(' ', 1 .. 12));
while_waiting('rows go', $update, $lock, 'DELETE FROM item WHERE id IN (1, 7, 9)',
	'2:1 3:1 4:1 5:1 6:1 8:1 10:1 11:1 12:1', '1 2 3 4 5 6 8 10 11 12');
while_waiting('rows do not match any more', $update, $lock, 'UPDATE item SET v = 9 WHERE id IN (1, 7, 9)',
	'1:9 2:1 3:1 4:1 5:1 6:1 7:9 8:1 9:9 10:1 11:1 12:1', '1 2 3 4 5 6 8 10 11 12');
while_waiting('nor the one that is waited for', $update, 'UPDATE item SET v = 9 WHERE id = 6', '',
	'1:1 2:1 3:1 4:1 5:1 6:9 7:1 8:1 9:1 10:1 11:1 12:1', '1 2 3 4 5 7 8 9 10 11 12');
while_waiting('a row of the batch changes and matches still', $update, 'UPDATE item SET v = 2 WHERE id = 6', 'UPDATE item SET v = 3 WHERE id = 7',
	'1:1 2:1 3:1 4:1 5:1 6:3 7:4 8:1 9:1 10:1 11:1 12:1', join(' ', 1 .. 12));
while_waiting('the whole batch goes', $update, 'DELETE FROM item WHERE id BETWEEN 5 AND 8', '',
	done(1, 4) . ' ' . done(9, 12), '1 2 3 4 9 10 11 12');

# A key that changes must not take the place to go on from along: not that of the last row of a batch above all.  The row itself is
# not found behind the end that there was when the call began.
while_waiting('the last key of a batch', $update, 'UPDATE item SET id = 100 WHERE id = 8', '',
	done(1, 7) . ' ' . done(9, 12) . ' 100:0', '1 2 3 4 5 6 7 9 10 11 12');
while_waiting('a key, to the end', $update, 'UPDATE item SET id = 100 WHERE id = 6', '',
	done(1, 5) . ' ' . done(7, 12) . ' 100:0', '1 2 3 4 5 7 8 9 10 11 12');
while_waiting('a key, to the beginning', $update, 'UPDATE item SET id = 0 WHERE id = 8', '',
	'0:0 ' . done(1, 7) . ' ' . done(9, 12), '1 2 3 4 5 6 7 9 10 11 12');

sub payloads
{
	return join ' ', map { qq({"id":$_,"v":0}) } @_;
}
while_waiting('enqueue: the last key of a batch', $enqueue, 'SET LOCAL redstream.enabled = off; UPDATE item SET id = 100 WHERE id = 8', '',
	join(' ', map { "$_:0" } 1 .. 7, 9 .. 12, 100), payloads(1 .. 7, 9 .. 12));
while_waiting('enqueue: the whole batch goes', $enqueue, 'SET LOCAL redstream.enabled = off; DELETE FROM item WHERE id BETWEEN 5 AND 8', '',
	join(' ', map { "$_:0" } 1 .. 4, 9 .. 12), payloads(1 .. 4, 9 .. 12));

# ---- errors that ask to try again ------------------------------------------------------------------------

make_item(rows(12));
$other->query('BEGIN; UPDATE item SET v = 2 WHERE id = 6');
$session->send(qq{SET default_transaction_isolation = 'repeatable read'; $update; RESET default_transaction_isolation});
await_lock('a row that changes');
$other->query('COMMIT');
my $output = $session->result;
like($output, qr/^ERROR:  could not serialize access due to concurrent update\nCONTEXT: .*start_after => '\{4\}'$/ms,
	'REPEATABLE READ: a row that changed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, 'it is over');
$session->query($update =~ s/\)$/, start_after => '{4}')/r);
is(each_row(), done(1, 5) . ' 6:3 ' . done(7, 12), 'it is gone on with');
is(arrived('item'), join(' ', 1 .. 12), 'everything is announced once');

make_item(rows(12));
$node->safe_psql('postgres', q{
	CREATE TABLE aside (id integer);
	INSERT INTO aside VALUES (1);
	CREATE FUNCTION aside() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(7);
		UPDATE aside SET id = id;
		RETURN NEW;
	END $$;
	CREATE TRIGGER aside BEFORE UPDATE ON item FOR EACH ROW WHEN (OLD.id = 6) EXECUTE FUNCTION aside()});
$third->query('SELECT pg_advisory_lock(7)');
$other->query(q{SET deadlock_timeout = '1h'; BEGIN; UPDATE aside SET id = 2});
$session->send("SET deadlock_timeout = '10ms'; $update; RESET deadlock_timeout");
await_lock('the trigger');
$other->send('UPDATE item SET v = 9 WHERE id = 5; ROLLBACK');
wait_until('two of them', sub { sessions_waiting($node) == 2 });
$third->query('SELECT pg_advisory_unlock(7)');
like($session->result, qr/^ERROR:  deadlock detected\n.*start_after => '\{4\}'$/ms, 'a deadlock');
$other->result;
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, 'it is over');
$session->query($update =~ s/\)$/, start_after => '{4}')/r);
is(each_row(), done(1, 12), 'it is gone on with');
is(arrived('item'), join(' ', 1 .. 12), 'everything is announced once');

# What a commit fails with is told, too.
make_item(rows(12));
$node->safe_psql('postgres', q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
	CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW WHEN (OLD.id = 6) EXECUTE FUNCTION refuse()});
like($session->query($update), qr/^ERROR:  refused\n.*start_after => '\{4\}'$/ms, 'a commit that fails');
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, 'it is over');
is(each_row(), done(1, 4) . ' ' . join(' ', map { "$_:0" } 5 .. 12), 'one batch is done');
is(arrived('item'), '1 2 3 4', 'and announced');

# ---- DDL ------------------------------------------------------------------------------------------------------

# Runs the call with pauses, and DDL in one of them.  Returns what the call says.
sub with_ddl
{
	my ($call, $ddl) = @_;

	make_item(rows(60));
	$session->send($call =~ s/\)$/, pause => '100 ms')/r);
	wait_until('a batch', sub { $other->query('SELECT done > 0 FROM redstream.progress') eq 't' });
	$other->query($ddl);
	return $session->result;
}

unlike(with_ddl($update, q{ALTER TABLE item ADD COLUMN w text DEFAULT 'w'; ALTER TABLE item ALTER v TYPE bigint}), qr/ERROR/, 'columns');
is(each_row(), done(1, 60), 'every row is updated once');
is(arrived('item'), join(' ', 1 .. 60), 'and announced once');
unlike(with_ddl($update, q{ALTER TABLE item ALTER id TYPE bigint; ALTER TABLE item RENAME id TO key}), qr/ERROR/, 'the key');
is($node->safe_psql('postgres', 'SELECT count(*), min(v), max(v) FROM item'), '60|1|1', 'every row is updated once');
is(scalar(split ' ', arrived('item')), 60, 'and announced once');
unlike(with_ddl($update, q{SELECT redstream.attach('item', 'elsewhere')}), qr/ERROR/, 'attach()');
is(each_row(), done(1, 60), 'every row is updated once');
is(join(' ', arrived('item'), arrived('elsewhere')), join(' ', 1 .. 60), 'and announced once, first here, then there');
like(with_ddl($update, q{ALTER TABLE item RENAME v TO u}), qr/^ERROR:  column "v" does not exist\n.*start_after => '\{\d+\}'$/ms, 'a column is renamed');
arrived('item');
like(with_ddl($enqueue, q{ALTER TABLE item DROP CONSTRAINT item_pkey}),
	qr/^ERROR:  table "item" has no primary key.*start_after => '\{\d+\}'$/ms, 'the key is dropped');
arrived('item');
like(with_ddl($update, q{DROP TABLE item}), qr/^ERROR:  relation with OID \d+ does not exist\nCONTEXT: .*start_after => '\{\d+\}'$/m,
	'the table is dropped');
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, 'it is over');
arrived('item');

# ---- Redis --------------------------------------------------------------------------------------------------------

my $many = q{CALL redstream.bulk_update('item', 'v = v + 1', batch_size => 50)};

sub await_done
{
	my ($rows) = @_;
	wait_until("$rows rows", sub { $other->query("SELECT done >= $rows FROM redstream.progress") eq 't' });
	return;
}

sub await_state
{
	my ($state) = @_;
	wait_until("state $state", sub { $other->query('SELECT state FROM redstream.progress') eq $state });
	return;
}

# What must hold when a call has survived a fault.
sub check_many
{
	my ($what, $output) = @_;

	unlike($output, qr/ERROR|WARNING/, "$what: no error");
	is($node->safe_psql('postgres', 'SELECT count(*), min(v), max(v) FROM item'), '4000|1|1', "$what: every row is updated once");
	settle($node, $redis);
	# a batch that had no place in the main lane is announced by its delay messages
	$node->safe_psql('postgres', 'SELECT FROM redstream.run_delayer()');
	my %announced = map { ($_->[1]{payload} => 1) } take($redis, 'redstream:stream:item');
	is(scalar(keys %announced), 4000, "$what: and announced");
	wait_until('the delay stream to be empty', sub { $redis->command('XLEN', 'redstream:stream:item.delay') == 0 });
	is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, "$what: it is over");
	return;
}

reconfigure($node, 'redstream.timeout' => '1s');
foreach my $fault ([ 'Redis hangs', sub { $redis->stop_signal }, sub { $redis->cont } ],
	[ 'Redis is killed', sub { $redis->kill9 }, sub { $redis->start } ],
	[ 'Redis is stopped', sub { $redis->stop }, sub { $redis->start } ])
{
	my ($what, $begin, $end) = @$fault;

	make_item(rows(4000));
	$session->send($many =~ s/\)$/, pause => '5 ms')/r);
	await_done(500);
	$begin->();
	await_state('waiting');
	cmp_ok($other->query('SELECT done FROM redstream.progress'), '<', 4000, "$what in the middle");
	$end->();
	my $output = $session->result;
	like($output, qr/^NOTICE:  redstream\.bulk_update: waiting for Redis$/m, "$what: it says that it waits");
	wait_connected($node, 1);
	check_many($what, $output);
}

# Before it begins; and the wait can be cancelled.
make_item(rows(4000));
$redis->stop;
wait_connected($node, 0);
$session->send($many =~ s/\)$/, start_after => '{0}')/r);
await_state('waiting');
is($other->query('SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = ' . $session->pid), 't', 'no snapshot is held meanwhile');
$other->query('SELECT pg_cancel_backend(' . $session->pid . ')');
like($session->result, qr/^ERROR:  canceling statement due to user request\nCONTEXT: .* 0 rows are done; .*'\{0\}'$/m, 'cancelled while it waits');
$session->send($many);
await_state('waiting');
is($node->safe_psql('postgres', 'SELECT count(*) FROM item WHERE v > 0'), 0, 'nothing is done without Redis');
$redis->start;
check_many('Redis comes', $session->result);

# Who does not wait for Redis does not fill the queues that others need.
reconfigure($node, 'redstream.timeout' => '60s');
make_item(rows(20000));
$session->query('SET redstream.wait_for_ack = off');
wait_connected($node, 1);
$redis->stop_signal;
$session->send($many);
await_state('waiting');
my $stats = stats($node);
cmp_ok($stats->{delay_bytes}, '>', 512 * 1024, 'a queue is half full');
cmp_ok($stats->{delay_bytes}, '<', 768 * 1024, 'and not much more');
$redis->cont;
$output = $session->result;
unlike($output, qr/ERROR|waiting for Redis/, 'it goes on when there is room');
is($node->safe_psql('postgres', 'SELECT count(*), min(v), max(v) FROM item'), '20000|1|1', 'every row is updated once');
is(arrived('item'), join(' ', 1 .. 20000), 'and announced once');

# With on_outage = spool the batch that has begun goes to the spool, and those behind it wait all the same.
reconfigure($node, 'redstream.on_outage' => 'spool', 'redstream.databases' => '', 'redstream.timeout' => '1s');
make_item(rows(4000));
$session->query('RESET redstream.wait_for_ack');
my $spooled = stats($node)->{spooled};
$session->send($many =~ s/\)$/, pause => '5 ms')/r);
await_done(500);
$redis->stop_signal;
await_state('waiting');
cmp_ok($other->query('SELECT done FROM redstream.progress'), '<', 4000, 'on_outage = spool: Redis hangs in the middle');
is(stats($node)->{spooled}, $spooled + 50, 'on_outage = spool: one batch is in the spool');
$redis->cont;
$output = $session->result;
wait_connected($node, 1);
check_many('on_outage = spool', $output);

is_deeply([ crashes($node) ], [], 'no crash');
$_->close foreach $session, $other, $third;
$node->stop;
done_testing();
