# Processes of the consumers in doc/examples, in several languages, all with the name "c", and what they did.
#
#	my $clients = Redstream::Clients->new($redis, 'item', batch_size => 2, namespace => 'n');
#	my $one = $clients->start('python');       # node, ruby
#	$clients->add(6, 7);                       # messages {"n":6}, {"n":7}; or [id => n]
#	$clients->tell('hold');                    # handlers stop in the middle; tell('hold', $one): this one does
#	$clients->tell('fail');                    # and fail at the end
#	$clients->untell('hold');
#	$clients->journal;                         # [who, 'begin' or 'end', "id:n" ...], in this order
#	$clients->said($one);                      # to standard error
#	$clients->signal($one, 'KILL');
#	$clients->status($one);                    # waits for its end

package Redstream::Clients;

use strict;
use warnings;

use Carp;
use File::Temp ();
use PostgreSQL::Test::Utils;
use POSIX ();
use Redstream::Test qw(wait_until);

my %programs = (
	python => [ '/usr/bin/python3', 'test/clients/handler.py' ],
	node => [ 'node', 'test/clients/handler.mjs' ],
	ruby => [ '/usr/bin/ruby', 'test/clients/handler.rb' ]);
my @all;

sub languages { return sort keys %programs; }

sub new
{
	my ($class, $redis, $stream, %options) = @_;
	my $self = bless {
		redis => $redis,
		stream => $stream,
		batch_size => 1000,
		namespace => '',
		%options,
		directory => File::Temp->newdir('clients.XXXX', TMPDIR => 1),
		started => 0,
		pids => {},
	}, $class;

	push @all, $self;
	system('doc/examples/node/install') == 0 or croak 'npm does not install';
	return $self;
}

sub start
{
	my ($self, $language) = @_;
	my $who = "$language-" . ++$self->{started};
	my $pid = fork;

	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', "$self->{directory}/$who.log");
		open(STDERR, '>&', \*STDOUT);
		exec(@{ $programs{$language} }, $who, $self->{redis}->socket_path, $self->{stream},
			$self->{batch_size}, "$self->{directory}", $self->{namespace}) or POSIX::_exit(127);
	}
	$self->{pids}{$who} = $pid;
	return $who;
}

sub signal
{
	my ($self, $who, $signal) = @_;
	kill($signal, $self->{pids}{$who}) == 1 or croak "$who does not run";
	return;
}

# Its exit status, or the signal that ended it.
sub status
{
	my ($self, $who) = @_;
	my $status = wait_until("$who to end", sub {
		local $?;
		my $pid = waitpid($self->{pids}{$who}, POSIX::WNOHANG());
		return $pid == 0 ? undef : $? & 127 ? "signal $?" : 'exit ' . ($? >> 8);
	});
	delete $self->{pids}{$who};
	return $status;
}

# ---- Redis ---------------------------------------------------------------------------------

# The keys: stream, offset, lock, notify, consumers, history.
sub key
{
	my ($self, $kind) = @_;
	my $key = $self->{namespace} ? "$self->{namespace}:redstream" : 'redstream';

	return "$key:lock:consumer:$self->{stream}:c" if $kind eq 'lock';
	return "$key:lock:consumer:$self->{stream}:c.notify" if $kind eq 'notify';
	return "$key:offset:$self->{stream}:c" if $kind eq 'offset';
	return "$key:$kind:$self->{stream}";
}

sub add
{
	my ($self, @messages) = @_;
	foreach my $message (@messages)
	{
		my ($id, $n) = ref $message ? @$message : ('*', $message);
		$self->{redis}->command('XADD', $self->key('stream'), $id, 'payload', qq({"n":$n}));
	}
	return;
}

sub offset { return $_[0]->{redis}->command('GET', $_[0]->key('offset')); }
sub holder { return $_[0]->{redis}->command('GET', $_[0]->key('lock')); }

# Takes the lock as somebody else does.
sub take_lock
{
	my ($self) = @_;
	$self->{redis}->command('SET', $self->key('lock'), 'somebody', 'PX', 600_000);
	return;
}

# Releases it as the Ruby library does.
sub release_lock
{
	my ($self) = @_;
	$self->{redis}->command('DEL', $self->key('lock'));
	$self->{redis}->command('DEL', $self->key('notify'));
	$self->{redis}->command('RPUSH', $self->key('notify'), 1);
	return;
}

# How many wait in this command.
sub waiting_in
{
	my ($self, $command) = @_;
	return scalar(() = $self->{redis}->cli('CLIENT', 'LIST') =~ / flags=\S*b\S* .* cmd=$command /g);
}

# ---- what they are told, and did ---------------------------------------------------------------

sub _order
{
	my ($self, $what, $who) = @_;
	return "$self->{directory}/$what" . (defined $who ? ".$who" : '');
}

sub tell
{
	my ($self, @order) = @_;
	append_to_file($self->_order(@order), '');
	return;
}

sub untell
{
	my ($self, @order) = @_;
	unlink $self->_order(@order) or croak "nobody was told: @order";
	return;
}

sub journal
{
	my ($self) = @_;
	my $file = "$self->{directory}/journal";
	return -e $file ? map { [split] } split /\n/, slurp_file($file) : ();
}

# Waits until so many batches are begun, or ended, and returns the last one.
sub wait_for
{
	my ($self, $what, $count) = @_;
	return wait_until("$what number $count", sub {
		my @lines = grep { $_->[1] eq $what } $self->journal;
		return @lines >= $count ? $lines[ $count - 1 ] : undef;
	});
}

# What has been done: the words of the batches ended, as one list.
sub done
{
	my ($self) = @_;
	return map { @$_[ 2 .. $#$_ ] } grep { $_->[1] eq 'end' } $self->journal;
}

sub said
{
	my ($self, $who) = @_;
	return slurp_file("$self->{directory}/$who.log");
}

sub wait_said
{
	my ($self, $who, $pattern) = @_;
	wait_until("$who to say $pattern", sub { $self->said($who) =~ $pattern });
	return;
}

END
{
	local $?;
	foreach my $pid (map { values %{ $_->{pids} } } @all)
	{
		kill 'KILL', $pid;
		waitpid $pid, 0;
	}
}

1;
