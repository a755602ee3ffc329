# A consumer that keeps copies of tables, as README.md tells consumers to: it reads messages in
# batches, fetches the rows as they are now and puts them in place of what it had.
#
#	my $copy = Redstream::Copy->new($node, $redis,
#		product => { key => 'id integer', streams => ['product'] },
#		order_line => { key => 'id bigint', streams => [...], where => 'shipped' });
#	$copy->start;                      # a process of its own
#	...
#	$copy->catch_up;                   # it has read all that is on the main streams now
#	$copy->stop;
#	$copy->differences('product');     # between the table and its copy: none
#
# Each table, of that name in database postgres, has a copy of the same name in schema "copy".
# "key" are those columns of the payload that say which row it is about, with their types; "where" says
# which rows belong into the copy.  How far it has read is kept with the copies, in the same transaction, so that the
# next process goes on there; and told to Redis, for the trimmer.

package Redstream::Copy;

use strict;
use warnings;

use Carp;
use File::Temp ();
use POSIX ();
use Redstream::Session;
use Redstream::Test qw(wait_until);

my $CONSUMER = 'copy';
my @running;

sub new
{
	my ($class, $node, $redis, %tables) = @_;
	my $self = bless {
		node => $node,
		redis => $redis,
		tables => \%tables,
		table_of => { map { my $table = $_; map { $_ => $table } @{ $tables{$table}{streams} } } keys %tables },
		directory => File::Temp->newdir('copy.XXXX', TMPDIR => 1),
		runs => 0,
	}, $class;

	$node->safe_psql('postgres', join ';', 'CREATE SCHEMA copy',
		'CREATE TABLE copy.progress (stream text PRIMARY KEY, id text NOT NULL, messages bigint NOT NULL)',
		map { "CREATE TABLE copy.$_ (LIKE $_ INCLUDING INDEXES)" } keys %tables);
	$self->forget;
	return $self;
}

# Makes it begin anew, with empty copies and the first message there is.
sub forget
{
	my ($self) = @_;
	my @streams = sort keys %{ $self->{table_of} };

	$self->{node}->safe_psql('postgres', join ';',
		(map { "TRUNCATE copy.$_" } 'progress', keys %{ $self->{tables} }),
		map { ("INSERT INTO copy.progress VALUES ('$_', '0-0', 0)", "SELECT redstream.add_consumer('$_', '$CONSUMER')") }
		  @streams);
	$self->{counted} = {};
	return;
}

# ---- the process ---------------------------------------------------------------------------

sub start
{
	my ($self) = @_;

	$self->{stop} = "$self->{directory}/stop." . $self->{runs}++;
	my $pid = fork;
	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		# not exit: what is to happen at the end of the test is not for us
		my $done = eval { $self->_run; 1 };
		warn $@ unless $done;
		POSIX::_exit($done ? 0 : 1);
	}
	$self->{pid} = $pid;
	push @running, $self;
	return;
}

sub _run
{
	my ($self) = @_;
	my $parent = getppid;
	my $session = Redstream::Session->new($self->{node});
	my %offset = map { split /\|/ } split /\n/, $session->query('SELECT stream, id FROM copy.progress');
	my @streams = sort keys %offset;

	$self->{redis}->reconnect;
	my $error = $session->query($self->_preparation);
	die "$error\n" if $error;
	until (-e $self->{stop} || getppid != $parent)
	{
		my $count = 1 + int rand 2**(1 + int rand 12);
		my $replies = $self->{redis}->command('XREAD', 'COUNT', $count, 'BLOCK', 100, 'STREAMS',
			(map { "redstream:stream:$_" } @streams), @offset{@streams}) || [];

		foreach my $reply (@$replies)
		{
			my ($stream) = $reply->[0] =~ /^redstream:stream:(.*)$/;
			$offset{$stream} = $self->_follow($session, $stream, $reply->[1]);
		}
	}
	return;
}

sub _preparation
{
	my ($self) = @_;

	# a consumer that waits for the disk is too late to meet a message that came too early
	my $sql = q{
		SET synchronous_commit = off;
		PREPARE advance(text, text, integer) AS
			UPDATE copy.progress SET id = $2, messages = messages + $3 WHERE stream = $1;};

	foreach my $table (keys %{ $self->{tables} })
	{
		my $options = $self->{tables}{$table};
		my $columns = join ', ', map { /^(\w+)/ } split /, /, $options->{key};
		my $where = defined $options->{where} ? $options->{where} : 'true';
		my $announced = "($columns) IN (SELECT * FROM json_to_recordset(\$1::json) AS k ($options->{key}))";

		$sql .= qq{
			PREPARE forget_$table(text) AS DELETE FROM copy.$table WHERE $announced;
			PREPARE fetch_$table(text) AS
				INSERT INTO copy.$table SELECT * FROM public.$table WHERE $announced AND ($where);};
	}
	return $sql;
}

# Fetches what these entries of the stream announce; returns the id of the last one.  The transaction
# begins after the messages were read, which is what makes the copy come right.
sub _follow
{
	my ($self, $session, $stream, $entries) = @_;
	my $table = $self->{table_of}{$stream};
	my $keys = join ',', map { $_->[1][1] } @$entries;
	my $last = $entries->[-1][0];
	my $count = @$entries;
	my $error;

	do
	{
		$error = $session->query(qq{
			BEGIN;
			EXECUTE forget_$table('[$keys]');
			EXECUTE fetch_$table('[$keys]');
			EXECUTE advance('$stream', '$last', $count);
			COMMIT});
	} while ($error =~ /deadlock detected/);	# with a TRUNCATE of two partitions
	die "$stream: $error\n" if $error;
	$self->{redis}->command('SET', "redstream:offset:$stream:$CONSUMER", $last);
	return $last;
}

# Ends the process after the batch it is working on.
sub stop
{
	my ($self) = @_;

	open(my $stop, '>', $self->{stop}) or croak "$self->{stop}: $!";
	close $stop;
	wait_until('the consumer to end', sub { $self->_has_ended });
	return;
}

sub _has_ended
{
	my ($self) = @_;
	local $?;

	return 1 unless $self->{pid};
	return 0 if waitpid($self->{pid}, POSIX::WNOHANG()) == 0;
	delete $self->{pid};
	@running = grep { $_ != $self } @running;
	croak 'the consumer failed' if $?;
	return 1;
}

# ---- what came of it --------------------------------------------------------------------------

sub _ends
{
	my ($self) = @_;
	my %ends;

	foreach my $stream (keys %{ $self->{table_of} })
	{
		my $key = "redstream:stream:$stream";
		next unless $self->{redis}->command('EXISTS', $key);
		my %facts = @{ $self->{redis}->command('XINFO', 'STREAM', $key) };
		$ends{$stream} = $facts{'last-generated-id'};
	}
	return \%ends;
}

# Waits until it has read what is on the streams.
sub catch_up
{
	my ($self, $seconds) = @_;
	my $ends = $self->_ends;

	wait_until('the consumer to catch up', sub {
		croak 'the consumer has ended' if $self->_has_ended;
		my %now = map { split /\|/ } split /\n/,
		  $self->{node}->safe_psql('postgres', 'SELECT stream, id FROM copy.progress');
		return !grep { _compare_ids($now{$_}, $ends->{$_}) < 0 } keys %$ends;
	}, $seconds);
	return;
}

sub _compare_ids
{
	my ($one, $two) = map { [ split /-/ ] } @_;
	return $one->[0] <=> $two->[0] || $one->[1] <=> $two->[1];
}

# Number of messages that it has read since the last call, a hash by stream.
sub new_messages
{
	my ($self) = @_;
	my %now = map { split /\|/ } split /\n/,
	  $self->{node}->safe_psql('postgres', 'SELECT stream, messages FROM copy.progress');
	my %new = map { ($_ => $now{$_} - ($self->{counted}{$_} || 0)) } keys %now;

	$self->{counted} = \%now;
	return \%new;
}

# Number of rows in the copy.
sub rows
{
	my ($self, $table) = @_;
	return $self->{node}->safe_psql('postgres', "SELECT count(*) FROM copy.$table");
}

# Rows that the copy lacks or should not have, at most ten.
sub differences
{
	my ($self, $table) = @_;
	my $where = $self->{tables}{$table}{where};
	my $source = "SELECT * FROM $table WHERE " . (defined $where ? $where : 'true');

	return split /\n/, $self->{node}->safe_psql('postgres', qq{
		SELECT 'missing', * FROM ($source EXCEPT TABLE copy.$table) a
		UNION ALL
		SELECT 'too many', * FROM (TABLE copy.$table EXCEPT $source) b
		LIMIT 10});
}

END
{
	local $?;
	kill 'TERM', map { $_->{pid} } @running;
}

1;
