# A session of psql that stays open.
#
#	my $session = Redstream::Session->new($node, 'postgres');
#	$session->query('BEGIN; UPDATE ...');    # waits for the end, returns the output
#	$session->send('COMMIT');                # does not wait
#	$session->result;                        # waits for what was sent
#
# Output is what psql -At prints, errors included, without the last newline.
# An error ends neither the session nor the rest of what was sent.

package Redstream::Session;

use strict;
use warnings;

use Carp;
use IO::Handle;
use IO::Select;
use IPC::Open3;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my $PATIENCE = 60;

sub new
{
	my ($class, $node, $database) = @_;
	my $connection = $node->connstr(defined $database ? $database : 'postgres');
	my ($in, $out);
	my $process = open3($in, $out, undef, 'psql', '-XAtq', '-d', $connection, '-f', '-');
	my $self = bless { in => $in, out => $out, process => $process, sent => 0, unread => '' }, $class;

	$in->autoflush(1);
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	croak "no session: $self->{pid}" unless $self->{pid} =~ /^\d+$/;
	return $self;
}

# Process id of the backend.
sub pid { return $_[0]->{pid}; }

sub send    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self, $sql) = @_;
	local $SIG{PIPE} = 'IGNORE';

	$self->{sent}++;
	print { $self->{in} } "$sql\n;\n\\echo :end_of $self->{sent}\n";
	return;
}

# What was sent last has ended, or the session has.
sub result
{
	my ($self) = @_;
	my $end = ":end_of $self->{sent}\n";
	my $deadline = time + $PATIENCE;
	my $position;

	until (($position = index($self->{unread}, $end)) >= 0)
	{
		croak 'a session hangs' if time > $deadline;
		next unless IO::Select->new($self->{out})->can_read(0.5);
		next if sysread($self->{out}, $self->{unread}, 1 << 16, length $self->{unread});
		$self->{ended} = 1;
		last;
	}
	my $output = substr($self->{unread}, 0, $position >= 0 ? $position : length $self->{unread}, '');
	substr($self->{unread}, 0, length $end) = '' if $position >= 0;
	$output =~ s/^psql:<stdin>:\d+: //mg;
	chomp $output;
	return $output;
}

# Has a result been cut short by the end of the session?
sub ended { return $_[0]->{ended}; }

sub query
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->result;
}

# Ends the session; in the middle of a query it is killed.
sub close    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self) = @_;
	return unless $self->{process};

	CORE::close($self->{in});
	my $deadline = time + 10;
	while (waitpid($self->{process}, WNOHANG) == 0)
	{
		kill 'KILL', $self->{process} if time > $deadline;
		sleep 0.005;
	}
	delete $self->{process};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	$self->close;
	return;
}

1;
