# Consumers that add to a table do it once for each message, whatever dies and whenever.
#
# Clients change a table that is attached (Redstream::Load).  Sessions consume its stream, as two consumers with several
# sessions each, and put the ids of the messages into a table, which has no unique index: what is done twice is there twice.
# Meanwhile sessions are cancelled, terminated, killed and stopped for longer than a lock lasts, connections to Redis are
# cut, and the server and Redis crash.  In the end each message on the stream must be in the table once for each
# consumer, in the order of the stream.
#
# REDSTREAM_TEST_SECONDS is the length of the load (8); REDSTREAM_TEST_SEED repeats the faults of another run, as far
# as a machine repeats itself.

use strict;
use warnings;

use Fcntl;
use File::Temp ();
use PostgreSQL::Test::Utils;
use POSIX ();
use Redstream::Load;
use Redstream::Peer;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{REDSTREAM_TEST_SECONDS} || 8;
my $seed = $ENV{REDSTREAM_TEST_SEED} || int rand 2**31;
my @consumers = ('one', 'two');
my $sessions = 3;		# of each

srand $seed;
note "seed $seed";

# no worker: what is trimmed cannot be compared.  So there is nobody for the spool either.
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis,
	'redstream.databases' => 'nobody',
	'redstream.timeout' => '500ms',
	'redstream.on_outage' => 'error',
	'restart_after_crash' => 'on',
	'wal_writer_delay' => '10s',
	'log_statement' => 'none',
	'log_min_error_statement' => 'panic');
my $directory = File::Temp->newdir('crashes.XXXX', TMPDIR => 1);
my $load = Redstream::Load->new($node, $redis, rows => 20);

$node->safe_psql('postgres', q{
	CREATE TABLE counted (n bigserial, consumer text, id text);
	CREATE FUNCTION add(who text, size integer) RETURNS void LANGUAGE sql AS $$
		INSERT INTO counted (consumer, id) SELECT who, id FROM redstream.consume('load', who, size) $$;
	CREATE FUNCTION try(who text) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM add(who, 10), 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END $$});

# ---- the sessions ------------------------------------------------------------------------------------

# A failed transaction is rolled back, as by a refused lock, and the next one tried soon.
my @transactions = (
	('SELECT add({c}, {n})') x 4,
	'BEGIN; SELECT add({c}, {n}); COMMIT',
	'BEGIN; SELECT add({c}, {n}); SELECT add({c}, {n}); COMMIT',
	'BEGIN; SELECT add({c}, {n}); SELECT pg_sleep(random() / 5); COMMIT',
	'BEGIN; SELECT add({c}, {n}); ROLLBACK',
	'BEGIN; SELECT add({c}, {n}); SELECT 1 / 0; COMMIT',
	'BEGIN; SELECT add({c}, {n}); SAVEPOINT s; SELECT add({c}, {n}); ROLLBACK TO s; SELECT add({c}, {n}); COMMIT',
	'BEGIN; SAVEPOINT s; SELECT add({c}, {n}), 1 / (random() * 2)::integer; ROLLBACK TO s; SELECT add({c}, {n}); COMMIT',
	'BEGIN; SELECT try({c}); SELECT add({c}, {n}); SELECT try({c}); COMMIT',
	'BEGIN; SELECT add({c}, {n}); SELECT add({d}, {n}); COMMIT',
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM load; SELECT add({c}, {n}); COMMIT',
	q{INSERT INTO counted (consumer, id) SELECT {c}, id FROM redstream.consume('load', {c}, {n}, wait => '50 ms')},
);
my $stop = "$directory/stop";
my @clients;

sub statements
{
	my ($consumer) = @_;
	my ($other) = grep { $_ ne $consumer } @consumers;
	my %words = (c => "'$consumer'", d => "'$other'", n => 1 + int rand 2**(1 + int rand 9));
	my $text = $transactions[ rand @transactions ] =~ s/\{(\w)\}/$words{$1}/gr;

	return "$text; SELECT pg_sleep(0.01);\n";
}

sub run_client
{
	my ($consumer, $number) = @_;
	my $parent = getppid;

	srand $seed + $number;
	local $SIG{PIPE} = 'IGNORE';
	local $ENV{PGAPPNAME} = 'counter';
	local $ENV{PGCONNECT_TIMEOUT} = 30;
	local $ENV{PGOPTIONS} = $number % 2 ? '-c synchronous_commit=off' : '';
	open(STDOUT, '>', '/dev/null') or die "/dev/null: $!";
	open(STDERR, '>>', "$directory/errors") or die "errors: $!";
	until (-e $stop || getppid != $parent)
	{
		open(my $psql, '|-', 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres')) or die "psql: $!";
		fcntl($psql, 1031, 4096);    # F_SETPIPE_SZ: what is in there is still run in the end
		while (!-e $stop && getppid == $parent)
		{
			last unless syswrite($psql, statements($consumer));
		}
		close $psql;
		sleep 0.05;
	}
	return;
}

sub start_clients
{
	foreach my $number (1 .. $sessions * @consumers)
	{
		my $pid = fork;
		die "fork: $!" unless defined $pid;
		if ($pid == 0)
		{
			# not exit: what is to happen at the end of the test is not for us
			eval { run_client($consumers[ $number % @consumers ], $number); 1 } or warn $@;
			POSIX::_exit(0);
		}
		push @clients, $pid;
	}
	return;
}

sub stop_clients
{
	append_to_file($stop, '');
	my %left = map { $_ => 1 } @clients;
	wait_until('the sessions to end', sub {
		local $?;
		waitpid($_, POSIX::WNOHANG()) != 0 and delete $left{$_} foreach keys %left;
		return !%left;
	}, 90);
	@clients = ();
	return;
}

END
{
	local $?;
	kill 'TERM', @clients;
}

# ---- the faults -------------------------------------------------------------------------------------------

# It dies if the server refuses psql before that has read the query.
sub server_answers
{
	wait_until('the server to answer', sub { eval { $node->psql('postgres', 'SELECT 1') == 0 } }, 60);
	return;
}

# Process ids of sessions, best of those that are in a transaction.
sub backends
{
	my $pids = eval { $node->safe_psql('postgres', q{
		SELECT pid FROM pg_stat_activity WHERE application_name = 'counter' ORDER BY xact_start IS NULL, random()}) };
	return split /\n/, defined $pids ? $pids : '';
}

sub signal_backend
{
	my ($signal) = @_;
	my ($pid) = backends();
	kill $signal, $pid if $pid;
	return;
}

my @stopped;

# One that is stopped for longer than its lock lasts finds it in other hands.
sub stop_backend
{
	my ($pid) = backends();
	return unless $pid;
	kill 'STOP', $pid;
	push @stopped, [ $pid, time + 6 ];
	return;
}

sub continue_backends
{
	my ($when) = @_;
	kill 'CONT', $_->[0] foreach grep { $_->[1] <= $when } @stopped;
	@stopped = grep { $_->[1] > $when } @stopped;
	return;
}

my %faults = (
	cancelled => [ 6, sub { signal_backend('INT') } ],
	terminated => [ 6, sub { signal_backend('TERM') } ],
	killed => [ 2, sub { signal_backend('KILL'); server_answers() } ],
	stopped => [ 1, \&stop_backend ],
	crashed => [ 2, sub { $node->stop('immediate'); @stopped = (); $node->start } ],
	cut => [ 4, sub {
		$redis->command('CLIENT', 'KILL', 'ID', $_)
		  foreach $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*name=redstream-consume /mg;
	} ],
	'Redis crashed' => [ 1, sub { kill 'KILL', $redis->pid; $redis->kill9; $redis->start } ],
	'Redis hung' => [ 1, sub { $redis->stop_signal; sleep rand 0.8; $redis->cont } ],
);
my @choices = map { ($_) x $faults{$_}[0] } sort keys %faults;
my %done = map { $_ => 0 } keys %faults;

sub run_load
{
	my $end = time + $seconds;
	my @first = sort keys %faults;		# each at least once

	$load->start(clients => 2);
	start_clients();
	while (time < $end || @first)
	{
		my $fault = @first && rand() < 0.5 ? splice(@first, rand @first, 1) : $choices[ rand @choices ];

		sleep rand($seconds > 20 ? 1 : 0.4);
		$faults{$fault}[1]->();
		$done{$fault}++;
		continue_backends(time);
	}
	wait_until('those that were stopped', sub { continue_backends(time); !@stopped });
	server_answers();
	$load->stop;
	stop_clients();
	return;
}

run_load();
note "$_: $done{$_}" foreach sort keys %done;

# ---- the comparison ------------------------------------------------------------------------------------------

# Nothing is added to the stream any more.
$load->settle;
my @messages = map { $_->[0] } $redis->entries('redstream:stream:load');
note scalar(@messages) . ' messages';
cmp_ok(scalar @messages, '>', 100, 'there are messages');

my %errors;
$errors{$_}++ foreach slurp_file("$directory/errors") =~ /ERROR:  ([0-9A-Z]{5}): /g;
note "$_: $errors{$_}" foreach sort keys %errors;

# Those of sessions that died in good order; others are possible, but not needed.
my %expected = map { ($_ => 1) } (
	'55P03',	# somebody else is at work, or the lock was lost
	'40001',	# the offset was moved by somebody else, or the snapshot is too old
	'58030',	# Redis is not to be had
	'22012',	# division by zero, as told
	'25P02',	# and what follows in the transaction
	'3B001',	# also if it came before the savepoint
	'57014');	# cancelled
is_deeply([ grep { !$expected{$_} } sort keys %errors ], [], 'errors are those that are to be expected');

foreach my $consumer (@consumers)
{
	my $peer = Redstream::Peer->new($redis, 'load', $consumer);
	my $before = $node->safe_psql('postgres', "SELECT count(*) FROM counted WHERE consumer = '$consumer'");

	wait_until("$consumer: the rest", sub {
		# refused while the lock of one that was killed lasts
		$node->psql('postgres', "SELECT add('$consumer', 1000000)", stderr => \my $refused) == 0;
	});
	my @ids = split /\n/, $node->safe_psql('postgres', "SELECT id FROM counted WHERE consumer = '$consumer' ORDER BY n");
	my %times;
	$times{$_}++ foreach @ids;

	cmp_ok($before, '>', 100, "$consumer: has counted during the load");
	note "$consumer: $before of " . scalar(@ids) . ' were counted during the load';
	is(scalar(grep { !$times{$_} } @messages), 0, "$consumer: no message is missing");
	is(scalar(grep { $times{$_} > 1 } keys %times), 0, "$consumer: none is counted twice");
	is(scalar(@ids), scalar(@messages), "$consumer: nothing else is counted");
	ok("@ids" eq "@messages", "$consumer: in the order of the stream");
	wait_until("$consumer: the offset in Redis", sub { $peer->offset eq $messages[-1] });
}
is_deeply([ grep { !/signal 9/ } crashes($node) ], [], 'no crash but those that were made');
$node->stop;
done_testing;
