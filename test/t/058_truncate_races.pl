# TRUNCATE while others change what its names mean, what is attached and what is in the
# tables.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.timeout' => '30s', 'redstream.databases' => 'nobody');
my ($session, $holder, $silent) = map { Redstream::Session->new($node) } 1 .. 3;

$silent->query('SET redstream.enabled = off; SET client_min_messages = warning');
$node->safe_psql('postgres', 'CREATE SCHEMA early');
$session->query('SET search_path = early, public; SET client_min_messages = warning');

# Makes all tables anew: "root" is attached, and has a partition "leaf" with rows 1 and 2
# and another one with row 11; "ready" could be one, with row 21; "solo" is attached.
sub make
{
	my $output = $silent->query(q{
		DROP SCHEMA early CASCADE; CREATE SCHEMA early;
		DROP TABLE IF EXISTS root, leaf, second, ready, solo, plain, away, leaf_away CASCADE;
		CREATE TABLE root (id integer PRIMARY KEY, n integer) PARTITION BY RANGE (id);
		CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (1) TO (10);
		CREATE TABLE second PARTITION OF root FOR VALUES FROM (10) TO (20);
		CREATE TABLE ready (n integer, id integer NOT NULL);
		CREATE TABLE solo (id integer PRIMARY KEY);
		CREATE TABLE plain (id integer PRIMARY KEY);
		SELECT redstream.attach('root'), redstream.attach('solo');
		INSERT INTO root VALUES (1), (2), (11);
		INSERT INTO ready (id) VALUES (21);
		INSERT INTO solo VALUES (1), (2);
		INSERT INTO plain VALUES (1)});
	die $output if $output =~ /ERROR/;
	return;
}

sub arrived
{
	my @found;
	settle($node, $redis);
	foreach my $stream (qw(root solo))
	{
		push @found, map { "$stream:" . ($_->[1]{payload} =~ /(\d+)/)[0] } take($redis, "redstream:stream:$stream");
		$redis->command('DEL', "redstream:stream:$stream.delay");
	}
	return join ' ', sort @found;
}

sub wait_for_lock
{
	my ($waiting) = @_;
	my $pid = $waiting->pid;
	wait_until('a session that waits for a lock', sub {
		$node->safe_psql('postgres',
			"SELECT 1 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'");
	});
	return;
}

# One session locks something in a transaction, another runs a TRUNCATE that waits for it,
# then the first one (with "between", a third one before it) does something and commits.
sub race
{
	my ($what, %race) = @_;

	make();
	$holder->query("BEGIN; $race{lock}");
	$session->send($race{truncate});
	wait_for_lock($session);
	my $output = join '', map { $_->query('SET client_min_messages = warning; ' . $race{between}) }
	  defined $race{between} ? Redstream::Session->new($node) : ();
	$output .= $holder->query(($race{then} || '') . '; COMMIT');
	is($output, '', "$what: nothing goes wrong") or $holder->query('ROLLBACK');
	my $error = $session->result;
	is(arrived(), $race{announced}, $what) or diag($error);
	like($error, $race{error} || qr/^$/, "$what: how it ends");
	$session->query('ROLLBACK');
	return;
}

# ---- names ------------------------------------------------------------------------------

race('a table that gets the name of another one meanwhile',
	lock => 'LOCK plain', truncate => 'TRUNCATE plain',
	then => 'ALTER TABLE plain RENAME TO away; ALTER TABLE leaf RENAME TO plain',
	announced => 'root:1 root:2');
race('and one that is attached itself',
	lock => 'LOCK leaf', truncate => 'TRUNCATE leaf',
	then => 'ALTER TABLE leaf RENAME TO away; ALTER TABLE solo RENAME TO leaf',
	announced => 'solo:1 solo:2');
race('one that was made anew',
	lock => 'LOCK leaf', truncate => 'TRUNCATE leaf',
	then => q{DROP TABLE leaf; CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (30) TO (40);
		SET LOCAL redstream.enabled = off; INSERT INTO root VALUES (33)},
	announced => 'root:33');
race('one that was dropped',
	lock => 'LOCK leaf', truncate => 'TRUNCATE second, leaf', then => 'DROP TABLE leaf',
	announced => '', error => qr/ERROR:  relation "leaf" does not exist/);
race('one that went to another schema',
	lock => 'LOCK leaf', truncate => 'TRUNCATE public.leaf',
	then => 'ALTER TABLE leaf SET SCHEMA early; ALTER TABLE second RENAME TO leaf',
	announced => 'root:11');
race('a partition that comes before the locked table in search_path',
	lock => 'LOCK solo', truncate => 'TRUNCATE plain, solo',
	between => q{
		CREATE TABLE early.plain PARTITION OF root FOR VALUES FROM (50) TO (60);
		SET redstream.enabled = off;
		INSERT INTO early.plain VALUES (55)},
	announced => 'solo:1 solo:2');
is($silent->query('SELECT (SELECT count(*) FROM early.plain), (SELECT count(*) FROM public.plain)'), '1|0',
	'and it is the locked one that is emptied');
race('a table that comes before the locked partition in search_path',
	lock => 'LOCK second', truncate => 'TRUNCATE leaf, second',
	between => 'CREATE TABLE early.leaf (id integer); INSERT INTO early.leaf VALUES (5)',
	announced => 'root:1 root:11 root:2');
is($silent->query('SELECT (SELECT count(*) FROM early.leaf), (SELECT count(*) FROM public.leaf)'), '1|0',
	'and it is the locked one that is emptied');

# ---- what is attached -----------------------------------------------------------------------

race('ATTACH PARTITION', lock => 'LOCK ready', truncate => 'TRUNCATE ready',
	then => 'ALTER TABLE root ATTACH PARTITION ready FOR VALUES FROM (20) TO (30)',
	announced => 'root:21');
race('DETACH PARTITION', lock => 'LOCK root, leaf', truncate => 'TRUNCATE leaf',
	then => 'ALTER TABLE root DETACH PARTITION leaf',
	announced => '');
race('attach()', truncate => 'TRUNCATE leaf',
	lock => q{SELECT FROM redstream.detach('root'); COMMIT; BEGIN; SELECT FROM redstream.attach('root')},
	announced => 'root:1 root:2');
race('detach()', lock => 'LOCK leaf', truncate => 'TRUNCATE leaf',
	then => q{SELECT FROM redstream.detach('root')},
	announced => '');
race('a new partition', lock => 'LOCK root', truncate => 'TRUNCATE root',
	then => q{CREATE TABLE new PARTITION OF root FOR VALUES FROM (30) TO (40);
		SET LOCAL redstream.enabled = off; INSERT INTO root VALUES (33)},
	announced => 'root:1 root:11 root:2 root:33');
race('a new foreign key of a partition', lock => 'LOCK plain', truncate => 'TRUNCATE plain CASCADE',
	then => 'ALTER TABLE second ADD FOREIGN KEY (n) REFERENCES plain',
	announced => 'root:11');

# ---- what is in the tables ----------------------------------------------------------------------

race('rows of a transaction that ends meanwhile',
	lock => 'SET LOCAL redstream.enabled = off; INSERT INTO root VALUES (3); DELETE FROM root WHERE id = 1',
	truncate => 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM plain; TRUNCATE leaf; COMMIT',
	announced => 'root:2 root:3');

# The worker delivers what prepared transactions announce.
reconfigure($node, 'redstream.databases' => '');
race('a prepared transaction', lock => 'TRUNCATE leaf, solo', truncate => 'TRUNCATE leaf',
	then => q{PREPARE TRANSACTION 'two'; COMMIT PREPARED 'two'; BEGIN},
	announced => 'root:1 root:2 solo:1 solo:2');

make();
my $now = delay_messages_now('solo');
$session->query(qq{BEGIN; TRUNCATE leaf, solo; $now; PREPARE TRANSACTION 'two'});
settle($node, $redis);
is_deeply([ map { $redis->command('XLEN', "redstream:stream:$_") } qw(root root.delay solo solo.delay) ],
	[ 0, 2, 0, 2 ], 'a prepared TRUNCATE has delay messages');
$session->query(q{ROLLBACK PREPARED 'two'});
reconfigure($node, 'redstream.delay' => '0');
$node->safe_psql('postgres', 'SELECT redstream.run_delayer()');
is(arrived(), '', 'ROLLBACK PREPARED');
$session->query(qq{BEGIN; TRUNCATE leaf, solo; $now; PREPARE TRANSACTION 'two'});
$node->safe_psql('postgres', 'SELECT redstream.run_delayer()');
is($redis->command('XLEN', 'redstream:stream:root'), 0, 'nothing is announced before COMMIT PREPARED');
reconfigure($node, 'redstream.delay' => '5min');
$redis->command('DEL', "redstream:stream:$_.delay") foreach qw(root solo);
$session->query(q{COMMIT PREPARED 'two'});
is(arrived(), 'root:1 root:2 solo:1 solo:2', 'COMMIT PREPARED');

# Rows that are not announced when they come have to be when they go: of those that two
# sessions insert all the time, each is announced once.
make();
$silent->query(q{CREATE TABLE written (n serial); SELECT redstream.attach('root', payload => ARRAY['n'])});
my @writers = map { Redstream::Session->new($node) } 1 .. 2;
$_->send(q{
	SET redstream.enabled = off;
	DO $$ BEGIN
		WHILE EXISTS (SELECT FROM plain) LOOP
			WITH new AS (
				INSERT INTO root SELECT 1 + number % 19, number FROM nextval('written_n_seq') number
				ON CONFLICT (id) DO NOTHING RETURNING n)
			INSERT INTO written SELECT n FROM new;
			COMMIT;
		END LOOP;
	END $$}) foreach @writers;
foreach my $round (1 .. 60)
{
	wait_until('rows', sub { $session->query('SELECT count(*) FROM root WHERE n IS NOT NULL') > 4 });
	my $output = $session->query(('TRUNCATE leaf', 'TRUNCATE second, leaf', 'TRUNCATE root')[ $round % 3 ]);
	is($output, '', 'TRUNCATE under load') if $output;
}
$silent->query('DELETE FROM plain');
is($_->result, '', 'a writer had no error') foreach @writers;
$session->query('TRUNCATE leaf, second');
settle($node, $redis);
is(join(' ', sort { $a <=> $b } map { $_->[1]{payload} =~ /:(\d+)/ } take($redis, 'redstream:stream:root')),
	$node->safe_psql('postgres', q{SELECT string_agg(n::text, ' ' ORDER BY n) FROM written}), 'each row was announced once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM root'), 0, 'and none is left');

# ---- being detached ---------------------------------------------------------------------------------

# DETACH CONCURRENTLY that was broken off leaves a partition that is one no more, with triggers.
make();
$holder->query('BEGIN; SELECT * FROM root');
$session->send('ALTER TABLE root DETACH PARTITION leaf CONCURRENTLY');
wait_for_lock($session);
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
like($session->result, qr/canceling statement/, 'DETACH CONCURRENTLY is broken off');
$holder->query('COMMIT');
is($session->query('SELECT count(*) FROM root; INSERT INTO leaf VALUES (3)'), 1, 'the partition can be written to');
is($session->query('TRUNCATE root'), '', 'it is no part of the root any more');
is(arrived(), 'root:11 root:3', 'and yet announced');
is($session->query('TRUNCATE leaf'), '', 'a TRUNCATE of it');
is(arrived(), 'root:1 root:2 root:3', 'and that is, too');
$session->query('INSERT INTO leaf VALUES (4); ALTER TABLE root DETACH PARTITION leaf FINALIZE');
arrived();
$session->query('INSERT INTO leaf VALUES (5); TRUNCATE leaf');
is(arrived(), '', 'until it is detached');

is(join("\n", crashes($node, 0)), '', 'no crash');
$_->close foreach $session, $holder, $silent, @writers;
$node->stop;
done_testing();
