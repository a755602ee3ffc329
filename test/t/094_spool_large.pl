# Transactions that outgrow their buffer while they spool: memory stays bounded, rollbacks take away what was
# written for them and nothing else, and the order holds from what was sent before the outage to what was spooled after it.
# A spool of many rows is delivered without passing the delivered ones again and again.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '2s', 'redstream.delay' => '1h',
	'log_statement' => 'none');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer DEFAULT 0);
	SELECT redstream.attach('item', payload => '{id,n}');
	CREATE TABLE key (id integer PRIMARY KEY);
	SELECT redstream.attach('key')});

my $session = Redstream::Session->new($node);
$session->query(q{SET redstream.transaction_buffer = '64kB'});

# First announcements, in order.
sub firsts
{
	my ($stream, $pattern) = @_;
	my %seen;
	return join ' ', grep { !$seen{$_}++ } map { /$pattern/ ? "$1" : () } $redis->payloads("redstream:stream:$stream");
}

# ---- subtransactions ---------------------------------------------------------------------------

redis_away($node, $redis);
is($session->query(q{
	BEGIN;
	INSERT INTO key SELECT generate_series(1, 3000);
	SAVEPOINT a;
	INSERT INTO key SELECT generate_series(10001, 13000);
	SAVEPOINT b;
	INSERT INTO key SELECT generate_series(20001, 23000);
	ROLLBACK TO b;
	INSERT INTO key SELECT generate_series(3001, 6000);
	RELEASE a;
	SAVEPOINT c;
	INSERT INTO key SELECT generate_series(30001, 33000);
	SAVEPOINT d;
	INSERT INTO key SELECT generate_series(40001, 43000);
	RELEASE d;
	ROLLBACK TO c;
	INSERT INTO key SELECT generate_series(6001, 9000);
	COMMIT}), '', 'savepoints: commits');

# One subtransaction a row, all within another one: the log must not keep them all.
is($session->query(q{
	BEGIN;
	SAVEPOINT outer_one;
	DO $$ BEGIN
		FOR i IN 50001 .. 60000 LOOP
			BEGIN
				INSERT INTO key VALUES (i);
				IF i % 10 = 0 THEN RAISE division_by_zero; END IF;
			EXCEPTION WHEN division_by_zero THEN NULL;
			END;
		END LOOP;
	END $$;
	SELECT used_bytes < 1024 * 1024 FROM pg_backend_memory_contexts WHERE name = 'redstream transaction log';
	COMMIT}), 't', 'many subtransactions: memory is bounded');
redis_back($node, $redis);
is(firsts('key', '"id":(\d+)'),
	join(' ', 1 .. 3000, 10001 .. 13000, 3001 .. 9000, grep { $_ % 10 } 50001 .. 60000),
	'what was committed is announced, in order, and nothing else');

# ---- an outage in the middle -------------------------------------------------------------------------

foreach my $end ('COMMIT', 'ROLLBACK')
{
	$node->safe_psql('postgres', q{
		SET redstream.enabled = off; DELETE FROM item; INSERT INTO item SELECT generate_series(1, 6000)});
	$redis->command('FLUSHALL');
	$session->query('BEGIN; UPDATE item SET n = 1 WHERE id <= 3000; SAVEPOINT a; UPDATE item SET n = 9 WHERE id > 5000; ROLLBACK TO a');
	redis_away($node, $redis);
	is($session->query("UPDATE item SET n = 1 WHERE id > 3000 AND id <= 5000; $end"), '', "outage in the middle: $end");
	$node->safe_psql('postgres', 'UPDATE item SET n = n + 1 WHERE id % 100 = 0');
	redis_back($node, $redis);
	my $grown = $end eq 'COMMIT' ? 1 : 0;
	is_deeply([ grep { /"n":9/ } $redis->payloads('redstream:stream:item') ], [], "$end: nothing that was rolled back");
	is(firsts('item', '"id":(\d+),"n":1'),
		$grown ? join(' ', 1 .. 5000, map { 5000 + $_ * 100 } 1 .. 10) : join(' ', map { $_ * 100 } 1 .. 60),
		"$end: announced once committed");
	my %n;
	my $late = 0;
	foreach my $payload ($redis->payloads('redstream:stream:item'))
	{
		my ($id, $n) = $payload =~ /"id":(\d+),"n":(\d+)/;
		$late++ if defined $n{$id} && $n{$id} > $n;
		$n{$id} = $n;
	}
	is($late, 0, "$end: what the transaction had forgotten comes before what changed its rows later");
	is(scalar(grep { $_ == 1 + $grown } @n{ map { $_ * 100 } 1 .. 50 }), 50, "$end: and that is the last word");
}

# ---- many rows, and a snapshot that keeps them ------------------------------------------------------

redis_away($node, $redis);
$node->safe_psql('postgres', 'SET redstream.enabled = off; TRUNCATE key; INSERT INTO key SELECT generate_series(1, 40000)');
$redis->start;
wait_connected($node, 1);
$redis->command('FLUSHALL');
redis_away($node, $redis);
my $reader = Redstream::Session->new($node);
$reader->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM redstream.spool');
$node->safe_psql('postgres', 'SELECT redstream.enqueue(\'key\')');
my $read = q{SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_all_tables WHERE relid = 'redstream.spool'::regclass};
my $before = $node->safe_psql('postgres', $read);
redis_back($node, $redis);
is($redis->command('XLEN', 'redstream:stream:key'), 40000, 'many rows: each is delivered once');
is(firsts('key', '"id":(\d+)'), join(' ', 1 .. 40000), 'many rows: in order');
$node->safe_psql('postgres', 'SELECT pg_stat_force_next_flush()');
cmp_ok($node->safe_psql('postgres', $read) - $before, '<', 400_000, 'many rows: and read a few times at most');
$reader->query('COMMIT');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
