# on_outage = spool: while Redis is away transactions leave their messages in
# redstream.spool, whatever they are; when it is back these are delivered, in order,
# and nobody overtakes them.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'wal_level' => 'logical',
	'redstream.delay' => '1h');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer DEFAULT 0);
	SELECT redstream.attach('item', payload => '{id,n}');
	CREATE UNLOGGED TABLE fast (id integer PRIMARY KEY);
	SELECT redstream.attach('fast');
	CREATE PUBLICATION everything FOR ALL TABLES;
	SELECT pg_create_logical_replication_slot('slot', 'pgoutput');
	CREATE ROLE writer LOGIN;
	GRANT SELECT, INSERT, UPDATE ON item TO writer;
	ALTER TABLE item ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own ON item TO writer USING (true)});

sub main_of { return join ' ', $redis->payloads("redstream:stream:$_[0]"); }
sub delay_of { return join ' ', $redis->payloads("redstream:stream:$_[0].delay"); }

# What is in the spool, in order.
sub spool
{
	return join ' ', split /\n/, $node->safe_psql('postgres',
		q{SELECT convert_from(payload, 'UTF8') FROM redstream.spool ORDER BY bucket, position});
}

sub forget
{
	$redis->command('FLUSHALL');
	return;
}

# ---- whatever the transaction is -------------------------------------------------------

is($node->safe_psql('postgres', 'SHOW redstream.on_outage'), 'spool', 'it is the default');
is(stats($node)->{spool_rows}, 0, 'the spool is empty');
redis_away($node, $redis);
my $session = Redstream::Session->new($node);
is($session->query('INSERT INTO item VALUES (1)'), '', 'a transaction commits');
is(spool(), '{"id":1,"n":0}', 'its message is in the spool');
is($session->query(q{
	BEGIN; UPDATE item SET n = 1; SAVEPOINT a; UPDATE item SET n = 7; ROLLBACK TO a;
	UPDATE item SET n = 2; RELEASE a; COMMIT}), '', 'one with savepoints');
is(spool(), '{"id":1,"n":0} {"id":1,"n":0} {"id":1,"n":1} {"id":1,"n":1} {"id":1,"n":2}',
	'what was rolled back is not in the spool');
is($session->query(q{BEGIN; UPDATE item SET n = 8; ROLLBACK}), '', 'one that is rolled back');
is($session->query(q{
	BEGIN; INSERT INTO item VALUES (2); SET TRANSACTION READ ONLY; COMMIT}), '', 'one that turned READ ONLY');
is($session->query(q{
	BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO item VALUES (3); COMMIT}), '', 'a SERIALIZABLE one');
is($session->query(q{SET ROLE writer; INSERT INTO item VALUES (4); RESET ROLE}), '',
	'one of a role without any right, under row level security');
is($session->query(q{INSERT INTO fast VALUES (1)}), '', 'one that wrote no WAL');
is($session->query(q{SELECT redstream.emit('mails', '{"to": 1}')}), '', 'emit()');
is($session->query(q{DO $$ BEGIN
	INSERT INTO item VALUES (5); COMMIT; INSERT INTO item VALUES (6); ROLLBACK; INSERT INTO item VALUES (7); END $$}), '',
	'transactions of a procedure');
my $stats = stats($node);
is($stats->{spool_rows}, 12, 'redstream.stats counts the rows');
is($stats->{spooled}, 12, 'and those that there ever were');
isnt($stats->{spool_oldest}, '', 'and tells the age');
is($node->safe_psql('postgres', q{SELECT has_table_privilege('writer', 'redstream.spool', 'SELECT')}), 'f',
	'the spool is nobody\'s to read');

redis_back($node, $redis);
is(main_of('item'), join(' ', map { qq({"id":$_->[0],"n":$_->[1]}) }
	  [1, 0], [1, 0], [1, 1], [1, 1], [1, 2], [2, 0], [3, 0], [4, 0], [5, 0], [7, 0]),
	'everything is delivered, in order');
is(delay_of('item'), main_of('item'), 'with delay copies');
is(main_of('fast') . main_of('mails'), '{"id":1}{"to":1}', 'on other streams, too');
like($redis->cli('XRANGE', 'redstream:stream:item.delay', '-', '+', 'COUNT', 1), qr/xact:\d+:\d+/,
	'delay copies carry the transaction');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM pg_logical_slot_get_binary_changes('slot', NULL, NULL,
		'proto_version', '1', 'publication_names', 'everything') WHERE get_byte(data, 0) = ascii('D')}), '0',
	'a publication of all tables has nothing of it');

# ---- and then the lane again --------------------------------------------------------------

my $spooled = stats($node)->{spooled};
wait_until('the lane', sub {
	$session->query('UPDATE item SET n = n + 1 WHERE id = 1');
	my $now = stats($node)->{spooled};
	return 1 if $now == $spooled;
	$spooled = $now;
	return 0;
});
pass('the spool is not used for longer than needed');

# ---- policies ------------------------------------------------------------------------------

redis_away($node, $redis);
like($session->query(q{SET redstream.on_outage = error; INSERT INTO item VALUES (20)}),
	qr/could not announce changes: Redis is not available/, 'on_outage = error fails');
like($session->query(q{SET redstream.on_outage = skip; INSERT INTO item VALUES (21)}),
	qr/changes of this transaction are not announced/, 'on_outage = skip gives up');
is($session->query(q{RESET redstream.on_outage; SET redstream.wait_for_ack = off; INSERT INTO item VALUES (22)}), '',
	'wait_for_ack = off spools');
is(spool(), '{"id":22,"n":0}', 'its message is there, and nothing of the others');
my $rows = $session->query('RESET redstream.wait_for_ack; SELECT count(*) FROM item');
is($session->query('TRUNCATE item'), '', 'TRUNCATE');
is(stats($node)->{spool_rows}, 1 + $rows, 'announces every row');
redis_back($node, $redis);

# ---- restarts ---------------------------------------------------------------------------------

foreach my $mode ('fast', 'immediate')
{
	redis_away($node, $redis);
	$node->safe_psql('postgres', q{
		INSERT INTO item VALUES (30, 1), (31, 1) ON CONFLICT (id) DO UPDATE SET n = 1;
		UPDATE item SET n = 2 WHERE id = 30});
	my $expected = spool();
	$node->stop($mode);
	$redis->start;
	forget();
	$node->start;

	# The first to write finds what is in the spool.
	$node->safe_psql('postgres', 'UPDATE item SET n = 3 WHERE id = 30');
	wait_until('the update', sub { main_of('item') =~ /"id":30,"n":3/ });
	is(main_of('item'), "$expected " . '{"id":30,"n":2} {"id":30,"n":3}', "$mode: rows survive a restart, and nobody overtakes them");
	wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 });
	$node->safe_psql('postgres', 'DELETE FROM item');
	settle($node, $redis);
	forget();
}

# ---- a dump, and odd places ----------------------------------------------------------------------

redis_away($node, $redis);
$node->safe_psql('postgres', 'INSERT INTO item VALUES (40)');
my ($dump) = run_command([ 'pg_dump', '-d', $node->connstr('postgres') ]);
unlike($dump, qr/COPY redstream\.spool/, 'the spool is not dumped');
$node->safe_psql('postgres', 'VACUUM FULL redstream.spool; REINDEX TABLE redstream.spool');
like(($node->psql('postgres', q{BEGIN; INSERT INTO item VALUES (41); DROP EXTENSION redstream CASCADE; COMMIT}))[2],
	qr/redstream.spool does not exist/, 'there is no spool for a transaction that drops the extension');
is($node->safe_psql('postgres', 'SELECT count(*) FROM item WHERE id >= 40'), 1, 'it is not committed');
$node->safe_psql('postgres', 'DROP EXTENSION redstream CASCADE; INSERT INTO item VALUES (42)');
is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
