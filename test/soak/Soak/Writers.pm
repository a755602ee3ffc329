# Clients that change the tables in all ways, and go on whatever happens to the servers.
#
#	start_writers($run, 6);
#	stop_writers($run);                     # each ends its transaction first
#	my @transactions = transactions($run);  # [begin, seconds of COMMIT, end, kind, result]
#
# Each writer is a process with a session of psql.  Its log has a line for each transaction: when it began, how long COMMIT
# took, when the answer came, what it was and what became of it: "ok", a SQLSTATE, or "lost" where no answer came.
#
# A transaction is text: statements, one a line.  Words in braces are chosen anew each time, see fill_in().  If there are
# several lines, the last one is sent alone, so that its time is that of the commit, without waits for locks.

package Soak::Writers;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(sum0);
use POSIX ();
use Redstream::Session;
use Redstream::Test qw(wait_until);
use Soak::Run;
use Soak::Tables;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(start_writers stop_writers transactions pgbench_commits resolve_prepared);

# kind, weight, statements
my @KINDS = (
	[ 'single row', 20, q{
		BEGIN
		UPDATE account SET n = n + 1 WHERE id = {account}
		COMMIT} ],
	[ 'hot row', 20, q{
		BEGIN
		UPDATE hot SET n = n + 1 WHERE id = {hot}
		COMMIT} ],
	[ 'pause after the commit', 5, q{
		BEGIN
		SET LOCAL redstream_test.commit_pause = '{pause}ms'
		UPDATE hot SET n = n + 1 WHERE id = {hot}
		COMMIT} ],
	[ 'not acknowledged', 10, q{
		BEGIN
		SET LOCAL redstream.wait_for_ack = off
		UPDATE loose SET n = n + 1 WHERE id = {loose}
		COMMIT} ],
	[ 'some rows', 8, q{
		BEGIN
		UPDATE account SET n = n + 1 WHERE id BETWEEN {account} AND {account} + 15
		UPDATE part SET n = n + 1 WHERE id = {part}
		COMMIT} ],
	[ 'shards', 8, q{
		BEGIN
		UPDATE part SET n = n + 1 WHERE id BETWEEN {part} AND {part} + 5
		COMMIT} ],
	[ 'autocommit', 8, q{UPDATE account SET n = n + 1, note = 'auto' WHERE id = {account}} ],
	[ 'insert', 8, q{
		BEGIN
		INSERT INTO item SELECT generate_series({new}, {new} + {some})
		UPDATE item SET n = n + 1 WHERE id = {new}
		COMMIT} ],
	[ 'delete', 8, q{
		BEGIN
		UPDATE item SET n = n + 1 WHERE id IN (SELECT id FROM item ORDER BY id LIMIT 3)
		DELETE FROM item WHERE id IN (SELECT id FROM item ORDER BY id LIMIT {some})
		COMMIT} ],
	[ 'COPY', 3, q{
		BEGIN
		COPY item (id, note) FROM STDIN
		{copied}
		\.
		UPDATE item SET n = n + 1 WHERE id = {new}
		COMMIT} ],
	[ 'COPY rolled back', 2, q{
		BEGIN
		COPY doc (id, note) FROM STDIN
		{copied undone}
		\.
		UPDATE doc SET note = 'undone' WHERE id >= {undone}
		ROLLBACK} ],
	[ 'TRUNCATE', 2, q{
		BEGIN
		TRUNCATE scratch
		INSERT INTO scratch SELECT generate_series({new}, {new} + 40)
		UPDATE scratch SET n = n + 1 WHERE id % 2 = 0
		COMMIT} ],
	[ 'TRUNCATE rolled back', 1, q{
		BEGIN
		UPDATE scratch SET n = -n
		TRUNCATE scratch
		ROLLBACK} ],
	[ 'scratch', 4, q{
		BEGIN
		UPDATE scratch SET n = n + 1 WHERE id IN (SELECT id FROM scratch ORDER BY random() LIMIT 3)
		COMMIT} ],
	[ 'savepoint', 10, q{
		BEGIN
		UPDATE account SET n = n + 1 WHERE id = {account}
		SAVEPOINT a
		UPDATE account SET n = -n WHERE id = {other}
		INSERT INTO doc (id) VALUES ({undone})
		SAVEPOINT b
		UPDATE part SET n = -n WHERE id = {part}
		RELEASE b
		ROLLBACK TO a
		UPDATE account SET n = n + 1 WHERE id = {other}
		SAVEPOINT c
		UPDATE part SET n = n + 1 WHERE id = {part}
		RELEASE c
		COMMIT} ],
	[ 'exception block', 6, q{
		BEGIN
		UPDATE account SET n = n + 1 WHERE id = {account}
		SELECT fail_after('UPDATE account SET n = -n WHERE id = {other}')
		SELECT fail_after('INSERT INTO doc (id) VALUES ({undone})')
		UPDATE part SET n = n + 1 WHERE id = {part}
		COMMIT} ],
	[ 'rolled back', 6, q{
		BEGIN
		UPDATE account SET n = -n WHERE id BETWEEN {account} AND {account} + {some}
		UPDATE hot SET n = -n WHERE id = {hot}
		INSERT INTO doc (id) VALUES ({undone})
		ROLLBACK} ],
	[ 'large', 1, q{
		BEGIN
		UPDATE account SET n = n + 1 WHERE id % 2 = {bit}
		SAVEPOINT a
		UPDATE account SET n = -n WHERE id > 600
		ROLLBACK TO a
		UPDATE account SET n = n + 1 WHERE id > 400
		COMMIT} ],
	[ 'large rolled back', 1, q{
		BEGIN
		UPDATE account SET n = -n
		ROLLBACK} ],
	[ 'keys', 12, q{
		BEGIN
		INSERT INTO doc (id, n) VALUES ({doc}, {some}) ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n
		DELETE FROM doc WHERE id = {doc} + 1
		UPDATE doc SET n = n + 1 WHERE id BETWEEN {doc} + 2 AND {doc} + 9
		COMMIT} ],
	[ 'other keys', 3, q{
		BEGIN
		DELETE FROM doc WHERE id = {doc} + 1
		UPDATE doc SET id = {doc} + 1, note = 'moved' WHERE id = {doc}
		COMMIT} ],
	[ 'enqueue', 2, q{SELECT redstream.enqueue('doc', 'id % 10 = {digit}')} ],
	[ 'bulk', 3, q{
		BEGIN
		SELECT redstream.bulk('batch', 'id % 10 = {digit}', 'UPDATE batch SET n = n + 1 WHERE id % 10 = {digit}')
		COMMIT} ],
	[ 'bulk_update', 1, q{CALL redstream.bulk_update('batch', 'n = n + 1', 'id % 3 = {bit}', 20)} ],
	[ 'bulk_enqueue', 1, q{CALL redstream.bulk_enqueue('account', 'id % 10 = {digit}', 50)} ],
	[ 'emit from a trigger', 8, q{
		BEGIN
		INSERT INTO event (id) VALUES ({new})
		COMMIT} ],
	[ 'emit rolled back', 2, q{
		BEGIN
		SELECT redstream.emit('event', '{"id":{new},"n":-1}')
		ROLLBACK} ],
	[ 'everything', 4, q{
		BEGIN
		UPDATE hot SET n = n + 1 WHERE id = {hot}
		UPDATE account SET n = n + 1 WHERE id = {account}
		UPDATE part SET n = n + 1 WHERE id = {part}
		INSERT INTO item (id) VALUES ({new})
		UPDATE doc SET n = n + 1 WHERE id = {doc}
		COMMIT} ],
	[ 'prepare', 6, q{
		BEGIN
		UPDATE twophase SET n = n + 1 WHERE id % 10 = {digit} AND id % 7 = {seventh}
		PREPARE TRANSACTION '{gid}'} ],
	[ 'prepare to roll back', 3, q{
		BEGIN
		UPDATE twophase SET n = -n WHERE id % 10 = {digit} AND id % 7 = {seventh}
		PREPARE TRANSACTION '{gid} undo'} ],
	[ 'two-phase row', 3, q{
		BEGIN
		UPDATE twophase SET n = n + 1 WHERE id % 10 = {digit} AND id % 7 = {seventh}
		COMMIT} ],
);
my @CHOICES = map { ($_) x $_->[1] } @KINDS;

# ---- a transaction ---------------------------------------------------------------------------------

# State of a writer's process.
my ($run, $number, $session, $log);
my $ids = 0;
my $gids = 0;

sub fill_in
{
	my ($text) = @_;
	my $new = ($number * 10_000_000) + ($ids += 100);
	my %words = (
		account => 1 + int rand 1200, other => 1 + int rand 1200, hot => 1 + int rand 6, part => 1 + int rand 200,
		loose => 1 + int rand 4, doc => 1 + int rand 300, digit => int rand 10, bit => int rand 2,
		seventh => int rand 7, some => 1 + int rand 8, pause => 10 + int rand 50,
		new => $new, undone => $UNDONE_ID + $new,
		copied => join("\n", map { "$_\tcopied" } $new .. $new + 20),
		'copied undone' => join("\n", map { "$_\tcopied" } $UNDONE_ID + $new .. $UNDONE_ID + $new + 20),
		gid => "writer $number " . ++$gids);

	$text =~ s/\{([a-z ]+)\}/$words{$1}/g;
	return $text;
}

# What psql is given: statements end with a semicolon, data for COPY with what it has.
sub statements
{
	my ($text) = @_;
	my @lines = grep { $_ ne '' } map { s/^\t+//r } split /\n/, fill_in($text);
	my $copying = 0;

	foreach my $line (@lines)
	{
		$line .= ';' unless $copying;
		$copying = $line ne '\.' if $copying || $line =~ /^COPY/;
	}
	return @lines;
}

sub outcome
{
	my ($output) = @_;
	return $1 if $output =~ /^(?:ERROR|FATAL):  ([0-9A-Z]{5})/m;
	return $session->ended ? 'lost' : 'ok';
}

# Ends the transaction, unless a lost session has.
sub run_transaction
{
	my ($kind, $text) = @_;
	my @lines = statements($text);
	my $last = @lines > 1 ? pop @lines : undef;
	my $begin = time;
	my $committing = 0;
	my $output = $session->query(join "\n", @lines);
	my $outcome = outcome($output);

	if (defined $last)
	{
		if ($outcome eq 'ok')
		{
			my $sent = time;
			$output = $session->query($last);
			$outcome = outcome($output);
			$committing = time - $sent;
		}
		$session->query('ROLLBACK') unless $outcome eq 'ok' || $session->ended;
	}
	note_down($begin, $committing, $kind, $outcome);
	print "$kind: $output\n" if $outcome ne 'ok';
	return;
}

sub note_down
{
	my ($begin, $committing, $kind, $outcome) = @_;
	print $log join("\t", $begin, $committing, time, $kind, $outcome), "\n";
	return;
}

# Ends one of this writer's prepared transactions, perhaps one of before a crash.
sub end_prepared
{
	my ($gid) = split /\n/, $session->query(
		"SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'writer $number %' ORDER BY random() LIMIT 1");

	run_transaction('end prepared', ($gid =~ /undo/ ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$gid'")
	  if defined $gid && $gid =~ /^writer/;
	return;
}

# ---- the process ---------------------------------------------------------------------------------------

sub connect_to_primary
{
	local $ENV{PGAPPNAME} = 'soak writer';
	local $ENV{PGOPTIONS} = '-c client_min_messages=error -c lock_timeout=1s';
	$session = eval { Redstream::Session->new($run->primary) };
	$session->query('\set VERBOSITY verbose') if $session;
	return defined $session;
}

sub run_writer
{
	open($log, '>', $run->file("writer.$number.log")) or die "writer log: $!";
	$log->autoflush(1);
	until ($run->is_over('writers'))
	{
		if (!$session || $session->ended)
		{
			connect_to_primary() or sleep 0.05;
			next;
		}
		my ($kind, undef, $text) = @{ $CHOICES[ rand @CHOICES ] };
		run_transaction($kind, $text);
		end_prepared() if !$session->ended && rand() < 0.2;
		sleep rand 0.06;
	}
	return;
}

sub start_writers
{
	($run, my $count) = @_;

	foreach my $writer (1 .. $count)
	{
		$run->fork("writer $writer", sub {
			$number = $writer;
			srand $run->{seed} + $writer;
			run_writer();
		});
	}
	$run->fork('pgbench', \&run_pgbench);
	return;
}

sub stop_writers
{
	($run) = @_;
	$run->end('writers');
	$run->wait_for_end(qr/^writer|^pgbench/, 120);
	return;
}

# Several clients that do nothing but update few rows; the program ends when all of them have met an error.
sub run_pgbench
{
	my $hot = $run->file('hot.sql');
	my $errors = $run->file('pgbench.errors');

	open(my $script, '>', $hot) or die "$hot: $!";
	print $script "\\set id random(1, 6)\nUPDATE hot SET n = n + 1 WHERE id = :id;\n";
	close $script;
	open(STDERR, '>>', $errors) or die "$errors: $!";
	open(STDOUT, '>>', $run->file('pgbench.out')) or die "pgbench.out: $!";
	local $ENV{PGAPPNAME} = 'soak writer';
	until ($run->is_over('writers'))
	{
		system('pgbench', '--no-vacuum', '--client=4', '--rate=150', '--protocol=prepared', '--time=5', "--file=$hot",
			$run->primary->connstr('postgres'));
		sleep 0.05;
	}
	return;
}

# ---- afterwards --------------------------------------------------------------------------------------------

# Ends the prepared transactions that the writers have left.
sub resolve_prepared
{
	my ($node) = @_;

	foreach my $gid (split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts'))
	{
		$node->safe_psql('postgres', ($gid =~ /undo/ ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$gid'");
	}
	return;
}

sub transactions
{
	my ($of) = @_;
	my @transactions;

	foreach my $file (glob $of->file('writer.*.log'))
	{
		open(my $lines, '<', $file) or die "$file: $!";
		push @transactions, map { chomp; [ split /\t/ ] } <$lines>;
	}
	return @transactions;
}

sub pgbench_commits
{
	my ($of) = @_;
	return sum0($of->read_file('pgbench.out') =~ /^number of transactions actually processed: (\d+)/mg);
}

1;
