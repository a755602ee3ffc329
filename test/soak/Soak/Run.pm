# What the parts of a run share: its directory, its processes, and where the primary server is just now.
#
#	my $run = Soak::Run->new(seed => 1, seconds => 60);
#	$run->set_primary($node);              # a PostgreSQL::Test::Cluster
#	$run->fork('writer 1', sub { until ($run->is_over('writers')) { ... $run->primary->connstr('postgres') ... } });
#	$run->end('writers');
#	$run->wait_for_end(qr/^writer/);
#	$run->failed;                          # processes that ended otherwise than by returning

package Soak::Run;

use strict;
use warnings;

use Carp;
use File::Temp ();
use POSIX ();
use Redstream::Test qw(wait_until);
use Time::HiRes qw(time);

my @runs;

sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		%options,
		directory => File::Temp->newdir('soak.XXXX', TMPDIR => 1),
		children => {},
		failed => [],
		owner => $$,
	}, $class;

	push @runs, $self;
	return $self;
}

sub file { return "$_[0]->{directory}/$_[1]"; }

sub write_file
{
	my ($self, $name, $text) = @_;
	my $file = $self->file($name);

	# at once, for those who read it meanwhile
	open(my $new, '>', "$file.new") or croak "$file: $!";
	print $new $text;
	close $new;
	rename "$file.new", $file or croak "$file: $!";
	return;
}

sub read_file
{
	my ($self, $name) = @_;
	open(my $file, '<', $self->file($name)) or return '';
	local $/ = undef;
	my $text = <$file>;
	return defined $text ? $text : '';
}

# ---- the primary -----------------------------------------------------------------------------------------

# All processes are told.
sub set_primary
{
	my ($self, $node) = @_;
	$self->{node} = $node;
	$self->write_file('primary', $node->host . "\n" . $node->port);
	return;
}

# Something to connect to: it has connstr(), as a node has.
sub primary
{
	my ($self) = @_;
	my ($host, $port) = split /\n/, $self->read_file('primary');
	return bless { host => $host, port => $port }, 'Soak::Run::Primary';
}

sub Soak::Run::Primary::connstr
{
	my ($self, $database) = @_;
	return "host=$self->{host} port=$self->{port} dbname=$database";
}

# ---- processes -----------------------------------------------------------------------------------------------

sub fork    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self, $name, $code) = @_;
	my $pid = CORE::fork;

	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		# not exit: what is to happen at the end of the test is not for us
		my $done = eval { $code->(); 1 };
		print "$name: $@\n" unless $done;
		POSIX::_exit($done ? 0 : 1);
	}
	$self->{children}{$pid} = $name;
	return $pid;
}

# Processes that belong to this part of the run are to end.  So they are if the main process is gone.
sub end
{
	my ($self, $part) = @_;
	$self->write_file("$part.over", '');
	return;
}

sub is_over
{
	my ($self, $part) = @_;
	return -e $self->file("$part.over") || getppid != $self->{owner};
}

sub reap
{
	my ($self) = @_;
	local $?;

	foreach my $pid (keys %{ $self->{children} })
	{
		next if waitpid($pid, POSIX::WNOHANG()) == 0;
		push @{ $self->{failed} }, $self->{children}{$pid} if $?;
		delete $self->{children}{$pid};
	}
	return;
}

sub wait_for_end
{
	my ($self, $which, $seconds) = @_;

	wait_until("$which to end", sub {
		$self->reap;
		return !grep { $_ =~ $which } values %{ $self->{children} };
	}, $seconds);
	return;
}

sub failed { return @{ $_[0]->{failed} }; }

END
{
	local $?;
	foreach my $run (@runs)
	{
		kill 'TERM', keys %{ $run->{children} } if $run->{owner} == $$;
	}
}

1;
