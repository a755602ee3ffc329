# Clients that update rows all the time, whatever happens to the servers, and
# what must be true of the streams afterwards.
#
#	my $load = Redstream::Load->new($node, $redis, rows => 100);
#	$load->start(clients => 8, settings => { 'redstream.wait_for_ack' => 'on' });
#	$load->progress(200);          # so many updates are committed from now on
#	...                            # the fault
#	$load->stop;                   # dies if a client hangs
#	$load->check('the fault');     # the promises, as tests
#
# Every client is a psql that runs the same UPDATE again and again and goes on
# after errors; one that lost its server connects again.  The table's rows are
# (id, n), and n grows by one with each update.  So n says how many updates of
# the row were committed, and the payload {"id":1,"n":5} is that of its fifth.
# An update of a payload column announces the old payload and then the new one:
# a row's messages are n = 0, 1, 1, 2, 2, 3 and so on.

package Redstream::Load;

use strict;
use warnings;

use Carp;
use Fcntl;
use File::Temp ();
use PostgreSQL::Test::Utils;
use POSIX ();
use Redstream::Test qw(stats wait_connected wait_until);
use Test::More;
use Time::HiRes qw(sleep time);

my @running;

# Creates the table, with this many rows, and attaches it.  With "filler" the
# payloads also have a text of so many characters.
sub new
{
	my ($class, $node, $redis, %options) = @_;
	my $self = bless {
		node => $node,
		redis => $redis,
		table => 'load',
		rows => 100,
		filler => 0,
		%options,
		directory => File::Temp->newdir('load.XXXX', TMPDIR => 1),
		clients => [],
		runs => 0,
	}, $class;

	$node->safe_psql('postgres', qq{
		CREATE TABLE $self->{table} (id integer PRIMARY KEY, n integer NOT NULL, filler text)
			WITH (fillfactor = 50);
		INSERT INTO $self->{table}
			SELECT i, 0, repeat('x', $self->{filler}) FROM generate_series(1, $self->{rows}) i;
	});
	my $payload = $self->{filler} ? q{'id', 'n', 'filler'} : q{'id', 'n'};
	$node->safe_psql('postgres',
		"SELECT redstream.attach('$self->{table}', payload => ARRAY[$payload])");
	return $self;
}

# ---- the clients -------------------------------------------------------------

# Starts clients.  "settings" hold for their sessions.
sub start
{
	my ($self, %options) = @_;
	my $run = $self->{runs}++;

	$self->{stop} = "$self->{directory}/stop.$run";
	foreach my $number (1 .. $options{clients} || 8)
	{
		my $output = "$self->{directory}/client.$run.$number";
		my $pid = fork;
		croak "fork: $!" unless defined $pid;
		if ($pid == 0)
		{
			# not exit: what is to happen at the end of the test is not for us
			eval { $self->_run_client($output, $options{settings} || {}); 1 } or warn $@;
			POSIX::_exit(0);
		}
		push @{ $self->{clients} }, $pid;
	}
	push @running, $self;
	return;
}

# A line is long enough for few of them to fit into the pipe to psql: what is in
# there when the load is to stop is still run.
sub _run_client
{
	my ($self, $output, $settings) = @_;
	my $parent = getppid;
	my $batch = ('EXECUTE bump; --' . 'x' x 100 . "\n") x 10;

	local $SIG{PIPE} = 'IGNORE';
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings->{$_}" } sort keys %$settings;
	local $ENV{PGCONNECT_TIMEOUT} = 30;
	open(STDOUT, '>', "$output.out") or die "$output.out: $!";
	open(STDERR, '>', "$output.err") or die "$output.err: $!";
	until (-e $self->{stop} || getppid != $parent)
	{
		open(my $psql, '|-', 'psql', '-XAtq', '-d', $self->{node}->connstr('postgres'))
		  or die "psql: $!";
		fcntl($psql, 1031, 4096);    # F_SETPIPE_SZ
		syswrite($psql, $self->_preparation);
		while (!-e $self->{stop} && getppid == $parent)
		{
			last unless syswrite($psql, $batch);
		}
		close $psql;
		sleep 0.05;
	}
	return;
}

sub _preparation
{
	my ($self) = @_;
	return <<"SQL";
PREPARE bump AS
	UPDATE $self->{table} SET n = n + 1
	WHERE id = (SELECT 1 + floor(random() * $self->{rows})::integer)
	RETURNING id, n;
\\timing on
SQL
}

# Waits until so many more updates are committed.  The server may be restarting
# meanwhile.
sub progress
{
	my ($self, $count, $seconds) = @_;
	my $before;

	wait_until(
		"$count commits",
		sub {
			my $now = eval { $self->committed };
			$before = $now unless defined $before;
			return defined $now && $now >= $before + $count;
		},
		$seconds);
	return;
}

# Instead of start and stop: the same updates by 8 clients of pgbench, which
# ends at the first error.  Returns the number of transactions it says it committed.
sub pgbench
{
	my ($self, $seconds, %settings) = @_;
	my $script = "$self->{directory}/pgbench.sql";

	open(my $file, '>', $script) or croak "$script: $!";
	print $file "\\set id random(1, $self->{rows})\n",
	  "UPDATE $self->{table} SET n = n + 1 WHERE id = :id;\n";
	close $file;
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings{$_}" } sort keys %settings;
	my ($output, $error) = run_command([
		'pgbench', '--no-vacuum', '--client=8', '--jobs=2', '--protocol=prepared',
		"--time=$seconds", "--file=$script", $self->{node}->connstr('postgres') ]);
	my ($count) = $output =~ /^number of transactions actually processed: (\d+)/m
	  or croak "pgbench: $error";
	return $count;
}

# Ends the clients, each after the statements it was given already.  Dies if
# one does not end.
sub stop
{
	my ($self, $seconds) = @_;
	my %left = map { $_ => 1 } @{ $self->{clients} };

	open(my $stop, '>', $self->{stop}) or croak "$self->{stop}: $!";
	close $stop;
	wait_until(
		'the clients to end',
		sub {
			local $?;
			waitpid($_, POSIX::WNOHANG()) != 0 and delete $left{$_} foreach keys %left;
			return !%left;
		},
		defined $seconds ? $seconds : 90);
	$self->{clients} = [];
	@running = grep { $_ != $self } @running;
	return;
}

# What all clients wrote to this ("out" or "err"), a list of lines.
sub _output
{
	my ($self, $kind) = @_;
	my @lines;

	foreach my $file (glob "$self->{directory}/client.*.$kind")
	{
		open(my $output, '<', $file) or croak "$file: $!";
		push @lines, <$output>;
	}
	chomp @lines;
	return @lines;
}

# The updates that reported their commit: a list of [id, n].
sub reported
{
	my ($self) = @_;
	return map { /^(\d+)\|(\d+)$/ ? [ $1, $2 ] : () } $self->_output('out');
}

# The messages of the failed ones.
sub errors
{
	my ($self) = @_;
	return map { /^(?:psql:\S* )?ERROR:\s+(.*)$/ ? $1 : () } $self->_output('err');
}

# Seconds that the slowest statement took, failed or not.
sub slowest
{
	my ($self) = @_;
	my $slowest = 0;

	foreach my $line ($self->_output('out'))
	{
		next unless $line =~ /^Time: ([\d.]+) ms/;
		$slowest = $1 if $1 > $slowest;
	}
	return $slowest / 1000;
}

# ---- what came of it ---------------------------------------------------------

# Number of committed updates.
sub committed
{
	my ($self) = @_;
	return $self->{node}->safe_psql('postgres', "SELECT sum(n) FROM $self->{table}");
}

# How many updates of each row are committed.
sub truth
{
	my ($self) = @_;
	my $rows = $self->{node}->safe_psql('postgres', "SELECT id, n FROM $self->{table}");
	return { map { split /\|/ } split /\n/, $rows };
}

sub _messages
{
	my ($self, $suffix) = @_;
	my @messages;

	# far too many to be parsed one by one
	my $text = $self->{redis}
	  ->cli('--raw', 'XRANGE', "redstream:stream:$self->{table}$suffix", '-', '+');
	push @messages, [ $1, $2 ] while $text =~ /^\{"id":(\d+),"n":(\d+)[,}]/mg;
	return @messages;
}

# The messages, oldest first: a list of [id, n].
sub main_messages { return $_[0]->_messages(''); }
sub delay_messages { return $_[0]->_messages('.delay'); }

# Waits until Redis has acknowledged everything.
sub settle
{
	my ($self) = @_;

	wait_until('empty lanes and an empty spool', sub {
		my $stats = stats($self->{node});
		return $stats->{connected} && $stats->{spool_rows} == 0 &&
		  $stats->{main_bytes} == 0 && $stats->{delay_bytes} == 0;
	}, 180);
	return;
}

# Updates in the table, or reported as committed, that none of these messages
# announces.  At most ten are returned, here and below: a failing test should stay
# readable.
sub missing
{
	my ($self, @messages) = @_;
	my $truth = $self->truth;
	my %announced = map { ("$_->[0]:$_->[1]" => 1) } @messages;
	my %wanted = map { ("$_->[0]:$_->[1]" => 1) } $self->reported;

	foreach my $id (keys %$truth)
	{
		$wanted{"$id:$_"} = 1 foreach 1 .. $truth->{$id};
	}
	return _first(grep { !$announced{$_} } keys %wanted);
}

# Those that neither stream has.
sub lost
{
	my ($self) = @_;
	return $self->missing($self->main_messages, $self->delay_messages);
}

# Those that the main stream does not have.
sub unannounced
{
	my ($self) = @_;
	return $self->missing($self->main_messages);
}

# Updates that reported their commit and are not in the table.
sub undone
{
	my ($self) = @_;
	my $truth = $self->truth;
	return _first(map { $_->[1] > $truth->{ $_->[0] } ? "$_->[0]:$_->[1]" : () } $self->reported);
}

# Main messages of updates that were not committed.
sub invented
{
	my ($self) = @_;
	my $truth = $self->truth;
	return _first(
		map { $_->[1] > $truth->{ $_->[0] } ? "$_->[0]:$_->[1]" : () } $self->main_messages);
}

# Messages that are the first announcement of an update and come after one of
# a newer update of the row.
sub disordered
{
	my ($self) = @_;
	my (%newest, %seen, @found);

	foreach my $message ($self->main_messages)
	{
		my ($id, $n) = @$message;
		next if $seen{"$id:$n"}++;
		push @found, "$id:$n" if defined $newest{$id} && $n < $newest{$id};
		$newest{$id} = $n if !defined $newest{$id} || $n > $newest{$id};
	}
	return _first(@found);
}

# Rows whose last main message is not the newest committed update.
sub stale
{
	my ($self) = @_;
	my $truth = $self->truth;
	my %last = map { ($_->[0] => $_->[1]) } $self->main_messages;

	return _first(grep { $truth->{$_} > 0 && (!defined $last{$_} || $last{$_} != $truth->{$_}) }
		  keys %$truth);
}

# Rows whose main messages are not exactly 0, 1, 1, 2, 2, ... to the newest.
sub inexact
{
	my ($self) = @_;
	my $truth = $self->truth;
	my %found;

	push @{ $found{ $_->[0] } }, $_->[1] foreach $self->main_messages;
	return _first(
		grep {
			my @expected = map { ($_ - 1, $_) } 1 .. $truth->{$_};
			join(' ', @{ $found{$_} || [] }) ne join(' ', @expected);
		} keys %$truth);
}

# All that must hold after any fault that redstream promises to survive, as
# tests.  With "lanes_lost", as after a crash of the server, updates may be missing on
# the main stream; else only those may that the sender has passed.
sub check
{
	my ($self, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	$self->settle;
	my $stats = stats($self->{node});
	is_deeply([ $self->lost ], [], "$name: nothing that was committed is lost");
	is_deeply([ $self->undone ], [], "$name: what reported its commit is committed");
	is_deeply([ $self->invented ], [], "$name: nothing is announced that was not committed");
	is_deeply([ $self->disordered ], [], "$name: first announcements are in commit order");
	is_deeply([ $self->unannounced ], [], "$name: the main stream has it all")
	  unless $options{lanes_lost} || $stats->{passed};
	is_deeply([ $self->stale ], [], "$name: the last announcement of a row is its newest")
	  unless $options{lanes_lost} || $stats->{passed};
	cmp_ok($self->slowest, '<', 30, "$name: nobody waited for ever");
	return;
}

# A fault under load, which "begin" and "end" begin and end: no transaction fails, and all that check() checks.  The error that
# redstream.stats has meanwhile is like "error".
sub check_outage
{
	my ($self, $name, $error, $begin, $end) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $node = $self->{node};
	my $spooled = stats($node)->{spooled};

	$self->start;
	$self->progress(300);
	$begin->();
	wait_connected($node, 0);
	wait_until("$name: a spooled message", sub { stats($node)->{spooled} > $spooled });
	$self->progress(300);
	like(stats($node)->{last_error}, $error, "$name: redstream.stats says why");
	$end->();
	wait_connected($node, 1);
	$self->progress(300);
	$self->stop;
	is_deeply([ _first($self->errors) ], [], "$name: no transaction failed");
	$self->check($name);
	return;
}

sub _first
{
	my @all = sort @_;
	return @all > 10 ? (@all[ 0 .. 9 ], '... of ' . @all) : @all;
}

END
{
	local $?;
	foreach my $load (@running)
	{
		open(my $stop, '>', $load->{stop});
		kill 'TERM', @{ $load->{clients} };
	}
}

1;
