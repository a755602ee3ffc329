# Which databases have a worker, and when: the launcher finds them, workers that end are
# started again, and they are not in the way of anybody.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis;
my $node = new_node(
	'main', $redis,
	'log_statement' => 'none',
	'restart_after_crash' => 'on',
	'wal_level' => 'replica',
	'max_wal_senders' => 5,
	'hot_standby' => 'on');

# Process ids of all workers in a database, also of one that is about to begin or end.
sub processes
{
	my ($database, $server) = @_;
	my $pids = ($server || $node)->safe_psql('postgres', qq{
		SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'redstream worker' AND datname = '$database'});
	return split /\n/, $pids;
}

# What a worker does: each has a row in redstream.workers.
my @jobs = qw(spooler delayer trimmer);

# The row of redstream.workers, a hash.
sub worker_row
{
	my ($database, $kind, $server) = @_;
	my $row = ($server || $node)->safe_psql('postgres', qq{
		SELECT pid, state, last_error FROM redstream.workers
		WHERE coalesce(database, '') = '$database' AND kind = '$kind'});
	my ($pid, $state, $error) = split /\|/, $row, 3;
	return { pid => $pid || 0, state => $state || '', error => $error || '' };
}

# Process id of the worker that serves a database, in the view and in truth; 0 if there is none.
sub serving
{
	my ($database, $server) = @_;
	my @rows = map { worker_row($database, $_, $server) } @jobs;
	my @pids = processes($database, $server);

	return @pids == 1 && !(grep { $_->{pid} != $pids[0] } @rows) ? $pids[0] : 0;
}

sub wait_for_worker
{
	my ($database, $server) = @_;
	return wait_until("a worker in $database", sub { serving($database, $server) });
}

sub wait_for_no_worker
{
	my ($database) = @_;
	wait_until("no worker in $database", sub {
		!processes($database) && worker_row($database, 'delayer')->{state} eq '';
	});
	return;
}

sub create_database
{
	my ($database, @options) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database @options");
	$node->safe_psql($database, 'CREATE EXTENSION redstream');
	return;
}

# Runs SQL as a role, in database postgres; returns the errors.
sub run_as
{
	my ($role, $sql) = @_;
	return ($node->psql('postgres', $sql, extra_params => [ '-U', $role ]))[2];
}

# ---- found ---------------------------------------------------------------------

wait_for_worker('postgres');
pass('CREATE EXTENSION: there is a worker');
is(worker_row('', 'launcher')->{state}, 'idle', 'redstream.workers shows the launcher');
is(worker_row('', 'sender')->{pid}, sender_pid($node), 'redstream.workers shows the sender');

$node->restart;
wait_for_worker('postgres');
pass('server start: there is a worker');

create_database('two');
wait_for_worker('two');
pass('CREATE EXTENSION in a second database: there is a worker');
is(scalar processes('postgres'), 1, 'one in each');

my $offset = -s $node->logfile;
foreach (1 .. 5)
{
	wait_for_worker('two');
	$node->safe_psql('two', 'DROP EXTENSION redstream; CREATE EXTENSION redstream');
	$node->safe_psql('two', 'DROP EXTENSION redstream');
	$node->safe_psql('two', 'CREATE EXTENSION redstream');
}
wait_for_worker('two');
pass('DROP EXTENSION and CREATE EXTENSION at once: there is a worker');
$node->safe_psql('two', 'DROP EXTENSION redstream');
wait_for_no_worker('two');
pass('DROP EXTENSION: it ends');
$node->safe_psql('two', 'BEGIN; CREATE EXTENSION redstream; ROLLBACK');
$node->safe_psql('two', 'BEGIN; SAVEPOINT a; CREATE EXTENSION redstream; ROLLBACK TO a; COMMIT');
like(($node->psql('two', q{BEGIN; CREATE EXTENSION redstream; PREPARE TRANSACTION 'x'}))[2],
	qr/cannot PREPARE a transaction that has created the extension/,
	'CREATE EXTENSION in a prepared transaction is refused');
is_deeply([ processes('two') ], [], 'not committed: there is no worker');
$node->safe_psql('two', 'CREATE EXTENSION redstream');
wait_for_worker('two');
pass('CREATE EXTENSION: it comes back');
unlike(slurp_file($node->logfile, $offset), qr/exited with exit code|ERROR:  (?!cannot PREPARE)|FATAL/,
	'none of that is an error');

$node->safe_psql('postgres', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE nobody LOGIN');
is(run_as('watcher', 'SELECT * FROM redstream.workers'), '', 'pg_monitor reads redstream.workers');
like(run_as('nobody', 'SELECT * FROM redstream.workers'), qr/permission denied/, 'others do not');
like(run_as('watcher', 'SELECT redstream.announce_extension()'), qr/permission denied/,
	'redstream.announce_extension() is for the script');

# ---- left alone ------------------------------------------------------------------

foreach my $option ('is_template true', 'allow_connections false')
{
	my ($name, $value) = split / /, $option;

	$node->safe_psql('postgres', "ALTER DATABASE two $option");
	wait_for_no_worker('two');
	pass("$option: the worker ends");
	$node->safe_psql('postgres', "ALTER DATABASE two $name " . ($value eq 'true' ? 'false' : 'true'));
	wait_for_worker('two');
	pass("$option no more: it comes back");
}

reconfigure($node, 'redstream.databases' => 'postgres, "Three"');
wait_for_no_worker('two');
pass('not in redstream.databases: the worker ends');
$node->safe_psql('postgres', 'CREATE DATABASE "Three" TEMPLATE two');
wait_for_worker('Three');
pass('a copy of a database with the extension, in redstream.databases: there is a worker');
ok(serving('postgres'), 'another one keeps its worker');
reconfigure($node, 'redstream.databases' => '');
wait_for_worker('two');
pass('redstream.databases is empty: it comes back');
$node->safe_psql('postgres', 'DROP DATABASE "Three"');

# ---- commands that need a database alone ---------------------------------------------

# The server lets these fail after five seconds with somebody connected.
my $tablespace = PostgreSQL::Test::Utils::tempdir_short();
$node->safe_psql('postgres', qq{
	CREATE ROLE owner LOGIN CREATEDB;
	CREATE ROLE stranger LOGIN CREATEDB;
	CREATE TABLESPACE elsewhere OWNER owner LOCATION '$tablespace';
	GRANT CREATE ON TABLESPACE pg_default TO owner});
create_database('a', 'OWNER owner');

foreach my $command (
	[ 'CREATE DATABASE b TEMPLATE a' => 'a', 'b' ],
	[ 'DROP DATABASE b' => 'a' ],
	[ 'ALTER DATABASE a RENAME TO b' => 'b' ],
	[ 'ALTER DATABASE b RENAME TO a' => 'a' ],
	[ 'ALTER DATABASE a SET TABLESPACE elsewhere' => 'a' ],
	[ 'ALTER DATABASE a SET TABLESPACE pg_default' => 'a' ],
	[ 'CREATE DATABASE b TEMPLATE a' => 'a', 'b' ],
	[ 'DROP DATABASE b WITH (FORCE)' => 'a' ])
{
	my ($sql, @served) = @$command;

	my $begun = time;
	is(run_as('owner', $sql), '', "$sql, by an owner without further rights");
	cmp_ok(time - $begun, '<', 10, "$sql: takes no longer than it must");
	wait_for_worker($_) foreach @served;
	pass("$sql: there is a worker afterwards");
}

# without waiting for the worker to be there again
is(run_as('owner', $_), '', "$_, one after the other")
  foreach map { ("CREATE DATABASE copy$_ TEMPLATE a", 'ALTER DATABASE a RENAME TO b',
				 "DROP DATABASE copy$_", 'ALTER DATABASE b RENAME TO a') } 1 .. 3;
wait_for_worker('a');

# ---- and fail ---------------------------------------------------------------------------

my $pid = wait_for_worker('a');
like(run_as('stranger', $_), qr/must be owner|permission denied/, "$_: is refused to a stranger")
  foreach 'ALTER DATABASE a RENAME TO b', 'CREATE DATABASE b TEMPLATE a', 'DROP DATABASE a',
	'ALTER DATABASE a SET TABLESPACE elsewhere';
is(serving('a'), $pid, 'a stranger does not end the worker');

like(run_as('owner', 'ALTER DATABASE a RENAME TO two'), qr/already exists/,
	'RENAME to a name that exists fails');
wait_for_worker('a');
pass('RENAME fails: the worker comes back');

{
	my $session = Redstream::Session->new($node, 'a');

	wait_for_worker('a');
	like(run_as('owner', 'DROP DATABASE a'), qr/is being accessed by other users/,
		'DROP DATABASE with a session connected fails');
	wait_for_worker('a');
	pass('DROP DATABASE fails: the worker comes back');
	$session->close;
}

{
	my $session = Redstream::Session->new($node);

	$session->query('BEGIN; ALTER DATABASE a RENAME TO b');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');    # wakes the launcher
	is_deeply([ processes('a') ], [], 'RENAME in a transaction: the worker is away');
	$session->query('ROLLBACK');
	wait_for_worker('a');
	pass('RENAME rolled back: the worker comes back');

	$session->query('BEGIN; SAVEPOINT x; SAVEPOINT y; ALTER DATABASE a RENAME TO b; RELEASE y');
	is_deeply([ processes('a') ], [], 'RENAME in a savepoint: the worker is away');
	$session->query('ROLLBACK TO x');
	wait_for_worker('a');
	pass('savepoint rolled back: the worker comes back');

	$session->query('ALTER DATABASE a RENAME TO b');
	is_deeply([ processes('a') ], [], 'RENAME again: the worker is away');
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $session->pid . ')');
	wait_for_worker('a');
	pass('its session is ended: the worker comes back');
	$session->close;
}

# ---- ended ----------------------------------------------------------------------------------

my $log_offset = -s $node->logfile;
my %old = map { $_ => wait_for_worker($_) } 'a', 'two', 'postgres';
my $launcher = worker_row('', 'launcher')->{pid};
ok($node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)") eq 't', 'the launcher is ended');
wait_until('another launcher', sub {
	my $row = worker_row('', 'launcher');
	$row->{pid} && $row->{pid} != $launcher && $row->{state} eq 'idle';
});
pass('it comes back');
is(serving($_), $old{$_}, "the worker of $_ is still the same") foreach sort keys %old;

foreach my $database (sort keys %old)
{
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old{$database})");
	wait_until("another worker in $database", sub {
		my $new = serving($database);
		$new && $new != $old{$database};
	});
	pass("the worker of $database is ended: another one comes");
}
create_database('four');
wait_for_worker('four');
pass('the new launcher finds a new database');

# A worker that fails whenever it begins: not at once again, and the others and the commits go on.
my $failing_offset = -s $node->logfile;
my $begun = time;
$node->safe_psql('four', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item')});
my $writer = Redstream::Session->new($node, 'four');
$writer->query('INSERT INTO item VALUES (0)');    # from now on it knows that the spool is empty
$node->safe_psql('four', 'ALTER TABLE redstream.spool RENAME TO hidden');
$node->safe_psql('four', "SELECT pg_terminate_backend(${\serving('four')})");
my $failures = sub {
	return scalar(() = slurp_file($node->logfile, $failing_offset) =~ /ERROR:  relation redstream\.spool does not exist/g);
};
wait_until('two failures', sub { $failures->() >= 2 });
is($writer->query('INSERT INTO item VALUES (1)'), '', 'a worker fails at start: transactions go on');
is(serving('two') > 0, 1, 'a worker fails at start: others work');
like(worker_row('four', 'spooler')->{error}, qr/redstream\.spool does not exist/, 'a worker fails at start: the view says why');
cmp_ok($failures->(), '<=', time - $begun + 2, 'a worker fails at start: it is started once a second at most');
$node->safe_psql('four', 'ALTER TABLE redstream.hidden RENAME TO spool');
wait_for_worker('four');
pass('a worker fails at start: it comes back when it can');
$writer->close;
is_deeply([ crashes($node, $log_offset) ], [], 'no crash');

# The server begins anew, and so does what it knows of workers.
$pid = wait_for_worker('two');
kill 'KILL', $pid;
wait_until('another worker in two', sub {
	my $new = eval { serving('two') };
	$new && $new != $pid;
});
wait_for_worker($_) foreach sort keys %old;
pass('a worker is killed: all come back');
my $crash_offset = -s $node->logfile;

# Without launcher.
$launcher = worker_row('', 'launcher')->{pid};
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
is(run_as('owner', 'ALTER DATABASE a RENAME TO b'), '', 'without launcher: RENAME works');
is(run_as('owner', 'DROP DATABASE b'), '', 'without launcher: DROP works');
wait_for_no_worker('b');
$node->safe_psql('postgres', 'DROP TABLESPACE elsewhere');    # for the backup below

# ---- Redis is away -----------------------------------------------------------------------------

my $trouble = qr/the worker of database "two" cannot ask Redis/;
$log_offset = -s $node->logfile;
foreach my $way ([ 'stopped', 'stop', 'start' ], [ 'hanging', 'stop_signal', 'cont' ])
{
	my ($what, $break, $mend) = @$way;

	$pid = wait_for_worker('two');
	$redis->$break;
	wait_until('all jobs to fail', sub {
		@jobs == grep { worker_row('two', $_)->{state} eq 'failing' } @jobs;
	});
	like(worker_row('two', 'delayer')->{error}, qr/redis\.sock/, "Redis $what: redstream.workers says so");
	$node->safe_psql('postgres', 'CREATE DATABASE b TEMPLATE two');
	is($node->safe_psql('postgres', 'DROP DATABASE b'), '', "Redis $what: the worker is not in the way");
	my $new = wait_for_worker('two');
	isnt($new, $pid, "Redis $what: another one comes");
	$redis->$mend;
	wait_until('no job to fail', sub {
		@jobs == grep { worker_row('two', $_)->{state} eq 'idle' } @jobs;
	});
	is(serving('two'), $new, 'Redis is back: it works');
}
my @troubles = slurp_file($node->logfile, $log_offset) =~ /$trouble/g;
cmp_ok(scalar @troubles, '<=', 4, 'the log tells it once for each worker');
cmp_ok(scalar @troubles, '>=', 2, 'and each time');

# ---- no worker process is free ------------------------------------------------------------------

# One each for the launcher of logical replication, the sender, the launcher, and a worker.
$node->safe_psql('postgres', 'DROP DATABASE four');
reconfigure($node, 'redstream.databases' => 'two, postgres');
$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
$log_offset = -s $node->logfile;
$node->restart;
my ($lucky, $waiting);
wait_until('one to work and one to wait', sub {
	($lucky) = grep { serving($_) } 'two', 'postgres';
	($waiting) = grep { worker_row($_, 'delayer')->{state} eq 'waiting for a worker process' } 'two', 'postgres';
	return $lucky && $waiting;
});
like(worker_row($waiting, 'trimmer')->{error}, qr/max_worker_processes/, 'redstream.workers says why');
my $log = slurp_file($node->logfile, $log_offset);
my @warnings = $log =~ /WARNING:  redstream: no worker process is free/g;
is(scalar @warnings, 1, 'the log has a warning');
like($log, qr/HINT:  Increase max_worker_processes/, 'with a hint');
reconfigure($node, 'redstream.databases' => $waiting);
wait_for_worker($waiting);
is(worker_row($waiting, 'delayer')->{state}, 'idle', 'a process is free: it works');
reconfigure($node, 'redstream.databases' => '');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
wait_for_worker($_) foreach 'two', 'postgres';

# ---- shutdown ---------------------------------------------------------------------------------

$node->safe_psql('two', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t');
	INSERT INTO t SELECT generate_series(1, 100)});
foreach my $hangs (0, 1)
{
	my $what = $hangs ? 'fast shutdown while Redis hangs' : 'fast shutdown';

	$redis->stop_signal if $hangs;
	my $begun = time;
	$node->stop('fast');
	cmp_ok(time - $begun, '<', 5, "$what: is not delayed");
	$redis->cont if $hangs;
	$node->start;
	wait_for_worker($_) foreach 'two', 'postgres';
}

# A worker that waits for a lock.
{
	my $session = Redstream::Session->new($node, 'two');

	$session->query('BEGIN; LOCK TABLE pg_extension, pg_trigger IN ACCESS EXCLUSIVE MODE');
	wait_until('the worker to wait', sub {
		$node->safe_psql('postgres', q{
			SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'redstream worker' AND wait_event_type = 'Lock'});
	});
	my $begun = time;
	$node->stop('fast');
	cmp_ok(time - $begun, '<', 5, 'fast shutdown while a worker waits for a lock: is not delayed');
	$session->close;
	$node->start;
	wait_for_worker($_) foreach 'two', 'postgres';
}

# ---- a standby --------------------------------------------------------------------------------

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', q{
	SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'redstream%'}), 0,
	'standby: no process runs');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM redstream.workers'), 0,
	'standby: redstream.workers is empty');
$node->stop;
$standby->promote;
wait_for_worker($_, $standby) foreach 'two', 'postgres';
pass('promoted: the workers are there');

is_deeply([ crashes($node, $crash_offset), crashes($standby) ], [], 'no crash');
$standby->stop;
done_testing;
