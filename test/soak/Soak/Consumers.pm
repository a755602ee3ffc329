# Those who keep copies of the tables.
#
#	my $consumers = Soak::Consumers->new($run, $redis, $proxy);
#	$consumers->start;
#	$consumers->tend;                          # starts again what has died
#	$consumers->signal_program('KILL', 0.3);   # one of the programs; the number in 0 .. 1 says which
#	$consumers->behind;                        # who has not caught up, '' if all have
#	$consumers->differences;                   # lines, none if each copy equals its table
#
# Consumer "copy" is redstream-consumer, two processes for each of the streams of three tables; each batch goes to test/soak/copy, which
# keeps a copy in another server.  Consumer "mirror" is one SQL session that consumes all streams, and keeps copies in
# schema "mirror", in the same transaction as its offset.

package Soak::Consumers;

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Redstream::Consumer;
use Redstream::Session;
use Soak::Run;
use Soak::Tables;
use Time::HiRes qw(sleep);

my @COPIED = qw(account item doc);
my $PROCESSES = 2;

sub new
{
	my ($class, $run, $redis, $proxy) = @_;
	my $self = bless { run => $run, redis => $redis, proxy => $proxy, programs => [], ended => [] }, $class;

	my $node = PostgreSQL::Test::Cluster->new('copy');
	$node->init;
	$node->append_conf('postgresql.conf', "log_statement = 'none'");
	$node->start;
	$node->safe_psql('postgres', "CREATE TABLE $_ (id bigint PRIMARY KEY, n integer, note text)") foreach @COPIED;
	$self->{copy} = $node;

	# before anybody reads, or what that one is done with would be trimmed
	$run->{node}->safe_psql('postgres', join ';',
		(map { "SELECT redstream.add_consumer('$_', 'copy')" } @COPIED),
		(map { "SELECT redstream.add_consumer('$_', 'mirror')" } @STREAMS));
	return $self;
}

# ---- the processes -----------------------------------------------------------------------------------------

sub start
{
	my ($self) = @_;
	my $run = $self->{run};

	foreach my $table (@COPIED)
	{
		push @{ $self->{programs} }, { table => $table } foreach 1 .. $PROCESSES;
	}
	$self->tend;
	$run->fork('mirror', sub { mirror($run) });
	return;
}

sub tend
{
	my ($self) = @_;

	foreach my $program (@{ $self->{programs} })
	{
		next if $program->{process} && $program->{process}->is_running;
		push @{ $self->{ended} }, "redstream-consumer of $program->{table}: " . $program->{process}->log
		  if $program->{process} && !delete $program->{killed};
		$program->{process} = Redstream::Consumer->new($self->{redis},
			url => $self->{proxy}->url,
			stream => $program->{table},
			name => 'copy',
			options => [ '--batch-size', 5000, '--unique' ],
			command => [ 'test/soak/copy', $program->{table} ],
			environment => {
				SOAK_DIRECTORY => $self->{run}->file(''),
				SOAK_COPY => $self->{copy}->connstr('postgres'),
			});
	}
	return;
}

# Returns its process id, or undef if it is not running.
sub signal_program
{
	my ($self, $signal, $which) = @_;
	my $program = $self->{programs}[ $which * @{ $self->{programs} } ];

	return undef unless $program->{process}->is_running;    ## no critic (ProhibitExplicitReturnUndef)
	$program->{killed} = 1 if $signal eq 'KILL';
	$program->{process}->signal($signal);
	return $program->{process}->pid;
}

sub mirror
{
	my ($run) = @_;
	my $session;

	local $ENV{PGAPPNAME} = 'soak mirror';
	local $ENV{PGOPTIONS} = '-c client_min_messages=error';
	until ($run->is_over('consumers'))
	{
		$session = eval { Redstream::Session->new($run->primary) } if !$session || $session->ended;
		foreach my $stream (@STREAMS)
		{
			last if !$session || $session->ended;
			my $output = $session->query("SELECT mirror.follow('$stream', '$TABLE_OF{$stream}', 5000)");
			print "mirror: $output\n" if $output =~ /ERROR|FATAL/;
		}
		sleep 0.05;
	}
	return;
}

sub stop
{
	my ($self) = @_;
	$self->{run}->end('consumers');
	$self->{run}->wait_for_end(qr/^mirror/, 60);
	$_->{process}->stop foreach @{ $self->{programs} };
	return;
}

# Programs that ended by themselves.
sub ended { return @{ $_[0]->{ended} }; }

# ---- what came of it -----------------------------------------------------------------------------------------

# Who has not read everything yet.
sub behind
{
	my ($self) = @_;

	foreach my $stream (@STREAMS)
	{
		my $facts = eval { $self->{redis}->command('XINFO', 'STREAM', "redstream:stream:$stream") } or next;
		my $end = { @$facts }->{'last-generated-id'};
		foreach my $name ('mirror', (grep { $_ eq $stream } @COPIED) ? 'copy' : ())
		{
			my $offset = $self->{redis}->command('GET', "redstream:offset:$stream:$name");
			return "$name on stream $stream" if !defined $offset || $offset ne $end;
		}
	}
	return '';
}

sub rows
{
	my ($node, $table) = @_;
	return map { my ($id) = /^(-?\d+)/; ($id => $_) } split /\n/, $node->safe_psql('postgres', "SELECT id, n, note FROM $table");
}

sub compare
{
	my ($name, $original, $copy) = @_;
	my @differences;

	foreach my $id (sort { $a <=> $b } keys %{ { %$original, %$copy } })
	{
		my @rows = map { defined $_->{$id} ? $_->{$id} : 'no row' } $original, $copy;
		push @differences, "$name: $rows[0] in the table, $rows[1] in the copy" if $rows[0] ne $rows[1];
	}
	return @differences;
}

sub differences
{
	my ($self) = @_;
	my $node = $self->{run}{node};
	my @differences;

	foreach my $table (@TABLES)
	{
		my %original = rows($node, $table);
		push @differences, compare("mirror of $table", \%original, { rows($node, "mirror.$table") });
		push @differences, compare("copy of $table", \%original, { rows($self->{copy}, $table) })
		  if grep { $_ eq $table } @COPIED;
	}
	return @differences;
}

1;
