# What must be true in the end, by what was recorded and what the tables say.
#
#	my $verdict = Soak::Verdict->new($run, $faults, delay => 5);
#	$verdict->missing;       # changes without a message; each list is empty, or says what is wrong
#	$verdict->disordered;    # first announcements that are not in the order of commits
#	$verdict->stale;         # rows whose last message is not the newest change
#	$verdict->invented;      # messages of what was rolled back
#
# Nothing is promised of the order of two-phase commits.  Three things are excused, each as narrowly as it can be told from outside:
#
# - When PostgreSQL crashes, main messages that have not left yet are gone, and so is one whose transaction stops just before its
#   end; the delayed copy is the first announcement then, and may come after one of a newer change.  This is excused
#   if it comes at least "delay" after the delay message was written, and if PostgreSQL had such a fault when the main message
#   should have left: at once, or after the trouble that Redis or the network had then.  (With redstream.repeat = unconfirmed a new
#   worker does not wait for the delay, which is 0 here.)
# - When Redis is out of memory it may refuse messages and take later ones that were under way with them.  All of them are sent again, in
#   order; but a newer change was announced before an older one.  This is excused while Redis had that fault.
# - When a standby is promoted, it cannot know what became of transactions whose delay messages it
#   finds, and announces them.  Messages equal to a delay message of an older timeline are excused after the promotion.

package Soak::Verdict;

use strict;
use warnings;

use List::Util qw(any max min);
use Soak::Recorder;
use Soak::Run;
use Soak::Tables;

# Seconds that a main message may take when all is well, on a slow machine.
my $PATIENCE = 2;

# Nothing is older, in seconds, that a promoted standby finds: no transaction stays prepared that long, and no outage lasts.
my $LONG_AGO = 120;

sub new
{
	my ($class, $run, $faults, %options) = @_;
	my $self = bless {
		%options,
		run => $run,
		losses => [ grep { $_->[3] eq 'postgres' && $_->[0] =~ /killed|shutdown|failover|backend stopped/ } $faults->all ],
		refusals => [ grep { $_->[0] =~ /out of memory/ } $faults->all ],
		outages => [ sort { $a->[1] <=> $b->[1] } grep { $_->[3] =~ /redis|network/ } $faults->all ],
		promotions => $run->{promotions} || [],
		messages => 0,
		repeats => 0,
		late => 0,
		missing => [], disordered => [], stale => [], invented => [],
	}, $class;

	$self->_read_truth;
	$self->_read_doubtful;
	$self->_read_messages;
	$self->_judge_disorder;
	$self->_judge_rows;
	return $self;
}

sub missing { return @{ $_[0]->{missing} }; }
sub disordered { return @{ $_[0]->{disordered} }; }
sub stale { return @{ $_[0]->{stale} }; }
sub invented { return @{ $_[0]->{invented} }; }

# Numbers of messages; of those that repeat an earlier one; of first announcements by a late copy, after a newer one's.
sub messages { return $_[0]->{messages}; }
sub repeats { return $_[0]->{repeats}; }
sub late { return $_[0]->{late}; }

# The last committed n of each row that there is or was.
sub _read_truth
{
	my ($self) = @_;
	my $node = $self->{run}{node};
	my %last;

	foreach my $table (@TABLES)
	{
		next if $table eq 'doc';
		my $rows = $node->safe_psql('postgres',
			"SELECT id, n FROM $table UNION ALL SELECT id, n FROM gone WHERE name = '$table'");
		$last{$table} = { map { split /\|/ } split /\n/, $rows };
	}
	$self->{last} = \%last;
	return;
}

# Delay messages that were there when a standby was promoted, or may have been: "stream payload" => time of promotion.
sub _read_doubtful
{
	my ($self) = @_;
	my %doubtful;

	each_delay_message($self->{run}, sub {
		my ($stream, $id, $payload, $timeline) = @_;
		my $promoted = $timeline eq '' ? undef : $self->{promotions}[ $timeline - 1 ];
		my ($ms) = $id =~ /^(\d+)/;
		$doubtful{"$stream $payload"} = min(grep { defined } $promoted, $doubtful{"$stream $payload"})
		  if $promoted && $ms / 1000 > $promoted - $LONG_AGO;
	}) if @{ $self->{promotions} };
	$self->{doubtful} = \%doubtful;
	return;
}

sub _is_doubtful
{
	my ($self, $stream, $payload, $seconds) = @_;
	my $promoted = $self->{doubtful}{"$stream $payload"};
	return defined $promoted && $seconds > $promoted;
}

sub _read_messages
{
	my ($self) = @_;
	my $last = $self->{last};

	each_message($self->{run}, sub {
		my ($stream, $message, $payload) = @_;
		my $table = $TABLE_OF{$stream};
		my ($seconds) = $message =~ /^(\d+)/;
		my ($id) = $payload =~ /"id":(-?\d+)/;
		my ($n) = $payload =~ /"n":(-?\d+)/;

		$seconds /= 1000;
		$self->{messages}++;
		if (!defined $id || ($table eq 'doc') == defined $n)
		{
			push @{ $self->{invented} }, "$stream $message $payload: not a message of this table";
		}
		elsif ($table eq 'doc')
		{
			$self->{repeats}++ if $self->{seen_keys}{$id}++;
			push @{ $self->{invented} }, "$stream $message $payload"
			  if $id >= $UNDONE_ID && !$self->_is_doubtful($stream, $payload, $seconds);
		}
		elsif ($n < 1 || $n > ($last->{$table}{$id} || 0))
		{
			push @{ $self->{invented} }, "$stream $message $payload, committed up to " . ($last->{$table}{$id} || 'nothing')
			  unless $self->_is_doubtful($stream, $payload, $seconds);
		}
		else
		{
			$self->_note_message($stream, $table, $seconds, $payload, $id, $n);
		}
	});
	return;
}

# Of each row is kept which n were announced, as bits; the newest of them; and the last.
sub _note_message
{
	my ($self, $stream, $table, $seconds, $payload, $id, $n) = @_;
	my $row = $self->{rows}{$table}{$id} ||= [ '', 0, 0 ];

	if (vec $row->[0], $n, 1)
	{
		$self->{repeats}++;
	}
	else
	{
		vec($row->[0], $n, 1) = 1;
		$self->{suspects}{"$stream $payload"} = [ $seconds, "after n = $row->[1]" ]
		  if $n < $row->[1] && $table ne 'twophase';
		$row->[1] = $n if $n > $row->[1];
	}
	# what a promoted standby has not got is announced all the same, and need not be what the row is
	$row->[2] = $n unless $n < $row->[2] && $self->_is_doubtful($stream, $payload, $seconds);
	return;
}

# Until when a main message written at this time can have waited for Redis.
sub _sent_by
{
	my ($self, $written) = @_;
	my $sent = $written + $PATIENCE;

	foreach my $outage (@{ $self->{outages} })
	{
		my (undef, $begin, $end) = @$outage;
		$sent = max($sent, $end + $PATIENCE) if $begin < $sent && $end > $written;
	}
	return $sent;
}

sub _is_late
{
	my ($self, $written, $seconds) = @_;

	return 0 unless $seconds >= $written + $self->{delay};
	my $sent = $self->_sent_by($written);
	return any { $_->[1] < $sent && $_->[2] > $written } @{ $self->{losses} };
}

sub _is_resent
{
	my ($self, $seconds) = @_;
	return any { $_->[1] < $seconds && $_->[2] + $PATIENCE > $seconds } @{ $self->{refusals} };
}

sub _judge_disorder
{
	my ($self) = @_;
	my $suspects = $self->{suspects} || {};
	my %written;

	each_delay_message($self->{run}, sub {
		my ($stream, $id, $payload) = @_;
		return unless $suspects->{"$stream $payload"};
		my ($ms) = $id =~ /^(\d+)/;
		push @{ $written{"$stream $payload"} }, $ms / 1000;
	}) if %$suspects;
	foreach my $message (sort keys %$suspects)
	{
		my ($seconds, $what) = @{ $suspects->{$message} };
		# those of transactions that were rolled back among them
		my @written = @{ $written{$message} || [] };

		if ($self->_is_resent($seconds) || any { $self->_is_late($_, $seconds) } @written)
		{
			$self->{late}++;
			next;
		}
		push @{ $self->{disordered} }, sprintf '%s at %.3f %s, written at %s', $message, $seconds, $what,
		  join ', ', map { sprintf '%.3f', $_ } @written;
	}
	return;
}

sub _judge_rows
{
	my ($self) = @_;

	foreach my $table (grep { is_counted($_) } sort keys %{ $self->{last} })
	{
		my $last = $self->{last}{$table};
		foreach my $id (sort { $a <=> $b } keys %$last)
		{
			my $row = $self->{rows}{$table}{$id} || [ '', 0, 0 ];
			push @{ $self->{missing} }, map { "$table, row $id: n = $_ of $last->{$id}" }
			  grep { !vec $row->[0], $_, 1 } 1 .. $last->{$id};
			push @{ $self->{stale} }, "$table, row $id: last message has n = $row->[2], the row $last->{$id}"
			  if $row->[2] != $last->{$id} && $table ne 'twophase';
		}
	}
	return;
}

1;
