# How redstream.bulk_update() and redstream.bulk_enqueue() are called: where they may be, with what, by whom; what others see of
# them; and how they are ended and gone on with.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node(
	'main', $redis,
	'redstream.timeout' => '60s',
	'redstream.databases' => 'nobody',
	'wal_level' => 'replica',
	'max_wal_senders' => 5);
my $session = Redstream::Session->new($node);
my $other = Redstream::Session->new($node);

$session->query('\set VERBOSITY verbose');

# The ids on the stream once everything committed has arrived.  Takes both kinds of messages out.
sub arrived
{
	my ($stream) = @_;

	settle($node, $redis);
	$redis->command('DEL', "redstream:stream:$stream.delay");
	return join ' ', map { $_->[1]{payload} =~ /^\{"id":(\d+)\}$/ ? $1 : $_->[1]{payload} } take($redis, "redstream:stream:$stream");
}

sub update
{
	my ($arguments) = @_;
	return "CALL redstream.bulk_update($arguments)";
}

sub enqueue
{
	my ($arguments) = @_;
	return "CALL redstream.bulk_enqueue($arguments)";
}

# Runs SQL that fails with this SQLSTATE and text, announces nothing and changes nothing.
sub refused
{
	my ($what, $sql, $state, $text) = @_;

	like($session->query($sql), qr/^ERROR:  $state: $text/m, $what);
	is(arrived('item'), '', "$what: nothing is announced");
	is($node->safe_psql('postgres', q{SELECT count(*) FROM item WHERE v <> 0}), 0, "$what: nothing is changed");
	return;
}

sub make_item
{
	my ($rows) = @_;
	$node->safe_psql('postgres', qq{
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS item;
		CREATE TABLE item (id integer PRIMARY KEY, v integer DEFAULT 0, w text, "odd, = name" integer, a integer[]);
		INSERT INTO item SELECT i FROM generate_series($rows, 1, -1) i});
	arrived('item');
	return;
}

# The values of an expression, one for each row.
sub each_row
{
	my ($expression) = @_;
	return $node->safe_psql('postgres', qq{SELECT string_agg(coalesce(($expression)::text, 'null'), ' ' ORDER BY id) FROM item});
}

# ---- assignments ----------------------------------------------------------------------------------

make_item(3);
my @assignments = (
	'several' => q{v = id, w = 'x'} => q{v || w} => '1x 2x 3x',
	'a list' => q{(v, w) = (id + 1, 'y')} => q{v || w} => '2y 3y 4y',
	'a row' => q{(v, w) = ROW(7, w || 'z')} => q{v || w} => '7yz 7yz 7yz',
	'a subquery' => q{v = (SELECT max(i.id) FROM item AS i WHERE i.id <= item.id)} => 'v' => '1 2 3',
	'a list of a subquery' => q{(v, w) = (SELECT i.id * 2, 'q' FROM item AS i WHERE i.id = item.id)} => q{v || w} => '2q 4q 6q',
	'DEFAULT' => q{v = DEFAULT} => 'v' => '0 0 0',
	'an element' => q{a[2] = id} => 'a' => '[2:2]={1} [2:2]={2} [2:2]={3}',
	'a name' => q{"odd, = name" = 5} => '"odd, = name"' => '5 5 5',
	'a semicolon' => 'v = 4;' => 'v' => '4 4 4',
	'semicolons and comments' => "v = 5 /* ; */ ; ; -- ;" => 'v' => '5 5 5',
	'a comment' => 'v = 6 -- the last' => 'v' => '6 6 6',
	'lines' => "v =\n\t7\n" => 'v' => '7 7 7',
	'a string like SQL' => q{w = ' WHERE false; --'} => 'w' => ' WHERE false; --  WHERE false; --  WHERE false; --',
	'a CASE' => q{v = CASE WHEN id > 1 THEN v ELSE 0 END} => 'v' => '0 7 7',
);
while (my ($what, $assignments, $expression, $expected) = splice @assignments, 0, 4)
{
	my $output = $session->query(update("'item', \$a\$$assignments\$a\$, batch_size => 2"));
	is(each_row($expression), $expected, "assignments: $what") or diag($output);
	is(arrived('item'), '1 2 3', "assignments: $what: announced");
}

make_item(3);
refused('a WHERE', update(q{'item', 'v = 1 WHERE true'}), '42601',
	q{assignments of redstream\.bulk_update\(\) have more than what follows SET: "v = 1 WHERE true"\nHINT:  Which rows});
foreach my $assignments ('v = 1 FROM item AS i', 'v = 1 RETURNING id', 'v = 1 WHERE CURRENT OF c', 'v = 1; DELETE FROM item')
{
	refused("no assignments: $assignments", update("'item', '$assignments'"), '42601', 'assignments of redstream\.bulk_update');
}
foreach my $assignments ('', 'v', 'v = ', 'v = 1,', 'v == 1', 'v = 1)', 'v = (1', 'v = 1 /*', q{w = ''x}, 'WHERE true', '; DELETE FROM item')
{
	refused("no assignments: $assignments", update("'item', '$assignments'"), '42601', '');
}
refused('the key', update(q{'item', 'v = 1, id = id + 1'}), '0A000', 'cannot update primary key column "id" in batches');
refused('the key in a list', update(q{'item', '(v, id) = (1, 2)'}), '0A000', 'cannot update primary key column "id" in batches');
refused('no such column', update(q{'item', 'x = 1'}), '42703', 'column "x" of relation "item" does not exist');
refused('another type', update(q{'item', $$v = 'x'$$}), '22P02', 'invalid input syntax for type integer');
refused('a parameter', update(q{'item', 'v = $1'}), '42P02', 'there is no parameter \$1');
refused('a parameter in a subquery', update(q{'item', 'v = (SELECT 1 + ($2)[1] FROM item LIMIT 1)'}), '42P02', 'there is no parameter \$2');
refused('a condition that is none', update(q{'item', 'v = 1', 'true) OR (true'}), '42601', '');
refused('another one', enqueue(q{'item', ''}), '42601', q{not one expression});
refused('an error', update(q{'item', 'v = 1 / (id - 3)', batch_size => 3}), '22012', 'division by zero');
refused('no table', update(q{NULL, 'v = 1'}), '22004', 'target must not be null');
refused('no assignments', update(q{'item', NULL}), '22004', 'assignments must not be null');
refused('no condition', update(q{'item', 'v = 1', NULL}), '22004', 'matching must not be null');
refused('no batch_size', update(q{'item', 'v = 1', batch_size => NULL}), '22004', 'batch_size must not be null');
refused('no pause', enqueue(q{'item', pause => NULL}), '22004', 'pause must not be null');
refused('batch_size 0', enqueue(q{'item', batch_size => 0}), '22023', 'batch_size must be at least 1');
refused('batch_size -1', update(q{'item', 'v = 1', batch_size => -1}), '22023', 'batch_size must be at least 1');
refused('a negative pause', update(q{'item', 'v = 1', pause => '-1 ms'}), '22023', 'pause must not be negative');
refused('a view', 'CREATE VIEW view AS SELECT * FROM item;' . update(q{'view', 'v = 1'}) . '; DROP VIEW view', '42809',
	'cannot announce rows of "view": it is not a table');
refused('what is not there', enqueue('1'), '42P01', 'relation with OID 1 does not exist');

# ---- where ---------------------------------------------------------------------------------------------

refused('in a transaction block', 'BEGIN;' . update(q{'item', 'v = 1'}) . '; ROLLBACK', '2D000',
	q{redstream\.bulk_update\(\) cannot run inside a transaction block\n});
$node->safe_psql('postgres', q{
	CREATE FUNCTION in_function() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL redstream.bulk_update('item', 'v = 1'); END $$;
	CREATE PROCEDURE in_procedure(INOUT done integer) LANGUAGE plpgsql AS $$
	BEGIN
		CALL redstream.bulk_update('item', 'v = v + 1', batch_size => 2);
		done := (SELECT sum(v) FROM item);
		CALL redstream.bulk_enqueue('item', 'id = 1');
		COMMIT;
	END $$;
	CREATE PROCEDURE in_exception_block() LANGUAGE plpgsql AS $$
	BEGIN
		CALL redstream.bulk_update('item', 'v = v + 1', batch_size => 2);
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END $$;
	CREATE PROCEDURE with_setting() LANGUAGE plpgsql SET work_mem = '4MB' AS $$
	BEGIN CALL redstream.bulk_update('item', 'v = v + 1', batch_size => 2); END $$});
refused('in a function', 'SELECT in_function()', '2D000', q{redstream\.bulk_update\(\) cannot run inside a transaction block});
refused('in a procedure with settings', 'CALL with_setting()', '2D000', q{redstream\.bulk_update\(\) cannot run inside a transaction block});
refused('in an exception block', 'CALL in_exception_block()', '2D000', q{redstream\.bulk_update\(\) cannot run inside a transaction block});

is($session->query('SET client_min_messages = warning; CALL in_procedure(0)'), 3, 'in a procedure');
is(arrived('item'), '1 2 3 1', 'in a procedure: announced');
$session->query(q{
	DO $$
	DECLARE
		r record;
	BEGIN
		FOR r IN SELECT id FROM item ORDER BY id LOOP
			CALL redstream.bulk_update('item', 'v = v + ' || r.id, 'id <> ' || r.id, batch_size => 1);
		END LOOP;
	END $$});
is(each_row('v'), '6 5 4', 'in the loop of a DO block');
arrived('item');
$session->query('RESET client_min_messages');

# A trigger makes the session's first temporary table, which is to be removed when the session ends.
make_item(3);
$node->safe_psql('postgres', q{
	CREATE FUNCTION keep_old() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		CREATE TEMP TABLE IF NOT EXISTS kept (id integer);
		INSERT INTO kept VALUES (OLD.id);
		RETURN NEW;
	END $$;
	CREATE TRIGGER keep_old BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION keep_old()});
unlike($session->query(update(q{'item', 'v = v + 1', batch_size => 2})), qr/ERROR/, 'a first temporary table');
is($session->query('SELECT count(*) FROM kept; SELECT count(*) FROM redstream.progress'), "3\n0", 'has its rows, and the call is over');

# ---- what others see ----------------------------------------------------------------------------------------

# The view as another session sees it.
sub progress
{
	my ($columns) = @_;
	return $other->query("SELECT $columns FROM redstream.progress");
}

sub await_state
{
	my ($state) = @_;
	wait_until("state $state", sub { progress('state') eq $state });
	return;
}

sub cancel
{
	$other->query('SELECT pg_cancel_backend(' . $session->pid . ')');
	return $session->result;
}

make_item(10);
is(progress('*'), '', 'nothing runs');
$session->send(update(q{'item', 'v = v + 1', batch_size => 4, pause => '1 day'}));
await_state('pausing');
is(progress(q{pid, procedure, "table", state, done, total >= done, rate > 0, started < now(), last_key}),
	$session->pid . q{|bulk_update|item|pausing|4|t|t|t|'{4}'}, 'a pause');
is(each_row('v'), '1 1 1 1 0 0 0 0 0 0', 'the first batch is committed');
is(arrived('item'), '1 2 3 4', 'and announced');
$node->safe_psql('postgres', q{CREATE DATABASE elsewhere});
is($node->safe_psql('elsewhere', 'CREATE EXTENSION redstream; SELECT count(*) FROM redstream.progress'), 0, 'another database does not see it');
my $output = cancel();
like($output, qr/^NOTICE:  00000: redstream\.bulk_update: 4 of about \d+ rows, \d+ rows\/s; to go on behind them: start_after => '\{4\}'$/m, 'a notice');
like($output, qr/^ERROR:  57014: canceling statement due to user request\nCONTEXT:  redstream\.bulk_update\(\): 4 rows are done; to go on behind them: start_after => '\{4\}'$/m,
	'cancelled in the pause: the error says where to go on');
is(progress('*'), '', 'and it is not seen any more');

# In the middle of a batch; the one behind the place that the error tells is done once.
$other->query('BEGIN; SELECT FROM item WHERE id = 9 FOR UPDATE');
$session->send(update(q{'item', 'v = v + 1', batch_size => 2, start_after => '{4}'}));
wait_until('a lock', sub { sessions_waiting($node) });
is(progress('state, done, last_key'), q{running|4|'{8}'}, 'waiting for a row');
$output = cancel();
like($output, qr/^CONTEXT: .*\nredstream\.bulk_update\(\): 4 rows are done; to go on behind them: start_after => '\{8\}'$/m,
	'cancelled in a batch: the error says where to go on');
$other->query('ROLLBACK');
is(progress('*'), '', 'and it is not seen any more');
my ($place) = $output =~ /^redstream\.bulk_update\(\): .*start_after => (.*)$/m;
unlike($session->query(update("'item', 'v = v + 1', batch_size => 3, start_after => $place")), qr/ERROR/, 'the rest');
is(each_row('v'), join(' ', (1) x 10), 'every row is updated once');
is(arrived('item'), '5 6 7 8 9 10', 'and announced once');

$output = $session->query(update(q{'item', 'v = 10 / (id - 3)', batch_size => 1}));
like($output, qr/^ERROR:  22012: division by zero\nCONTEXT:  SQL statement .*\nredstream\.bulk_update\(\): 2 rows are done; to go on behind them: start_after => '\{2\}'$/ms,
	'a statement that fails in the third batch');
is(progress('*'), '', 'and it is not seen any more');
is(arrived('item'), '1 2', 'two batches are announced');
$output = $session->query(update(q{'item', 'v = 10 / id', 'id > 0 OR 1 / id > 1', start_after => '{x}'}));
like($output, qr/^ERROR:  22P02: .*start_after => '\{x\}'$/ms, 'a place that is none is told');

$session->send(enqueue(q{'item', batch_size => 4, pause => '1 day'}));
await_state('pausing');
is(progress('procedure, done'), 'bulk_enqueue|4', 'enqueuing');
$other->query('SELECT pg_terminate_backend(' . $session->pid . ')');
like($session->result, qr/FATAL:  57P01: terminating connection/, 'the session is terminated');
wait_until('its line to go', sub { progress('*') eq '' });
pass('and it is not seen any more');
is(arrived('item'), '1 2 3 4', 'what was committed is announced');

# Several at once, each with a line of its own.
my @sessions = map { Redstream::Session->new($node) } 1 .. 3;
$_->send(enqueue(q{'item', batch_size => 4, pause => '1 day'})) foreach @sessions;
wait_until('three of them', sub { progress('count(*), min(state), max(state)') eq '3|pausing|pausing' });
$other->query('SELECT pg_cancel_backend(pid) FROM redstream.progress');
like($_->result, qr/canceling statement/, 'one of three is cancelled') foreach @sessions;
is(progress('*'), '', 'and none is seen any more');
arrived('item');
$_->close foreach @sessions;

# A setting that ends statements, and a pause that ends by itself.
$session->close;
$session = Redstream::Session->new($node);
$session->query('\set VERBOSITY verbose');
make_item(6);
like($session->query(q{SET statement_timeout = '1s';} . update(q{'item', 'v = v + 1', batch_size => 4, pause => '1 day'}) . '; RESET statement_timeout'),
	qr/^ERROR:  57014: canceling statement due to statement timeout\nCONTEXT: .*'\{4\}'$/m, 'statement_timeout');
unlike($session->query(update(q{'item', 'v = v + 1', batch_size => 1, pause => '10 ms', start_after => '{4}'})), qr/ERROR/, 'short pauses');
is(each_row('v'), '1 1 1 1 1 1', 'every row is updated once');
arrived('item');

# ---- who may ---------------------------------------------------------------------------------------------------

sub as_clerk { return "SET ROLE clerk; $_[0]; RESET ROLE"; }
sub grant { $node->safe_psql('postgres', $_[0]); return; }

make_item(4);
grant('CREATE ROLE clerk; GRANT USAGE ON SCHEMA redstream TO clerk');
my $update = as_clerk(update(q{'item', 'v = v + 1', batch_size => 3}));
refused('nobody may', $update, '42501', 'permission denied for procedure bulk_update');
grant('GRANT EXECUTE ON PROCEDURE redstream.bulk_update, redstream.bulk_enqueue TO clerk');
refused('without a right to read', $update, '42501', 'permission denied for table item');
refused('nor to enqueue', as_clerk(enqueue(q{'item'})), '42501', 'permission denied for table item');
grant('GRANT SELECT (id) ON item TO clerk');
unlike($session->query(as_clerk(enqueue(q{'item', batch_size => 3}))), qr/ERROR/, 'the key columns suffice to enqueue');
is(arrived('item'), '1 2 3 4', 'announced');
refused('without a right to update', $update, '42501', 'permission denied for table item');
grant('GRANT UPDATE (w) ON item TO clerk');
refused('of that column', as_clerk(update(q{'item', 'v = 1'})), '42501', 'permission denied for table item');
grant('GRANT SELECT (v), UPDATE (v) ON item TO clerk');
unlike($session->query($update), qr/ERROR/, 'with all of these');
is(each_row('v'), '1 1 1 1', 'updated');
is(arrived('item'), '1 2 3 4', 'announced');
grant(q{ALTER TABLE item ENABLE ROW LEVEL SECURITY; CREATE POLICY low ON item USING (id < 3)});
unlike($session->query($update), qr/ERROR/, 'row level security');
is(each_row('v'), '2 2 1 1', 'updated are the rows that are seen');
is(arrived('item'), '1 2', 'and they are announced');
refused('who may not look', 'UPDATE item SET v = 0;' . as_clerk('SELECT * FROM redstream.progress'), '42501', 'permission denied for view progress');
grant('GRANT pg_monitor TO clerk');
is($session->query(as_clerk('SELECT count(*) FROM redstream.progress')), 0, 'who may');

# ---- where nothing can be announced -----------------------------------------------------------------------------

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->start;
foreach my $call (update(q{'item', 'v = 1'}), enqueue(q{'item'}), q{SELECT redstream.bulk('item', 'true', 'DELETE FROM item')},
	q{SELECT redstream.enqueue('item')})
{
	my (undef, undef, $error) = $standby->psql('postgres', $call);
	like($error, qr/ERROR:  cannot execute redstream\.\w+(?:\(\))? during recovery$/, "a hot standby refuses: $call");
}
$standby->stop;

$session->close;
$other->close;
$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
$node->restart;
foreach my $call (update(q{'item', 'v = 1'}), enqueue(q{'item'}), q{SELECT redstream.bulk('item', 'true', 'DELETE FROM item')},
	q{SELECT redstream.enqueue('item')}, q{SELECT redstream.emit('item', '1')})
{
	my (undef, undef, $error) = $node->psql('postgres', $call);
	like($error, qr/ERROR:  redstream must be preloaded to announce changes\nHINT:  Put redstream into shared_preload_libraries/, "not preloaded: $call");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM item'), 4, 'nothing is changed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM redstream.progress'), 0, 'nothing runs');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing();
