# A network that can be bad: a TCP port in front of a Redis that listens on a Unix socket.
#
#	my $proxy = Redstream::Proxy->new($redis->socket_path);
#	$proxy->url;           # for redstream.url
#	$proxy->reset;         # ends all connections, perhaps in the middle of a command or reply
#	$proxy->stall;         # takes bytes and passes none on,
#	$proxy->go;            # until now
#	$proxy->delay(20);     # milliseconds, each way, until go
#
# It is a process of its own and ends with the test.  Connections that it accepted before Redis went away are reset, as by
# a machine that has gone.

package Redstream::Proxy;

use strict;
use warnings;

use Carp;
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER IPPROTO_TCP TCP_NODELAY SOCK_STREAM);
use Time::HiRes qw(time);

# What is read and not written yet, of one direction: more than that is left to the sender's kernel.
my $ENOUGH = 1 << 20;
my @started;

sub new
{
	my ($class, $socket_path) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 128, Blocking => 0)
	  or croak "no port: $!";
	pipe(my $orders, my $control) or croak "pipe: $!";
	my $self = bless { port => $listener->sockport, control => $control }, $class;

	my $pid = fork;
	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		close $control;
		# not exit: what is to happen at the end of the test is not for us
		eval { _serve($listener, $orders, $socket_path); 1 } or warn "proxy: $@";
		POSIX::_exit(0);
	}
	$self->{pid} = $pid;
	$control->autoflush(1);
	push @started, $self;
	return $self;
}

sub url { return "redis://127.0.0.1:$_[0]->{port}"; }

sub reset    ## no critic (ProhibitBuiltinHomonyms)
{
	return $_[0]->_order('reset');
}

sub stall { return $_[0]->_order('stall'); }
sub go { return $_[0]->_order('go'); }
sub delay { return $_[0]->_order("delay $_[1]"); }

sub _order
{
	my ($self, $order) = @_;
	print { $self->{control} } "$order\n";
	return;
}

# ---- the process -----------------------------------------------------------------------------

# State of the process: a connection's two ends know each other as "peer"; "queue" is what is to be written to
# an end, as [time, bytes].
my (%ends, $reading, $stalled, $pause);

sub _serve
{
	my ($listener, $orders, $socket_path) = @_;
	local $SIG{PIPE} = 'IGNORE';
	my $text = '';

	$reading = IO::Select->new($listener, $orders);
	($stalled, $pause) = (0, 0);
	for (;;)
	{
		foreach my $handle ($reading->can_read(_patience()))
		{
			if ($handle == $listener)
			{
				_accept($listener, $socket_path);
			}
			elsif ($handle == $orders)
			{
				return unless sysread($orders, $text, 4096, length $text);
				_obey($1) while $text =~ s/^(.*)\n//;
			}
			elsif ($ends{$handle})
			{
				_take($ends{$handle});
			}
		}
		_write($_) foreach my @all = values %ends;
	}
	return;
}

# Until the next bytes are due; a socket that takes none is tried again soon.
sub _patience
{
	my $patience = 1;

	return $patience if $stalled;
	foreach my $end (values %ends)
	{
		next unless @{ $end->{queue} };
		my $left = $end->{queue}[0][0] - time;
		$left = 0.002 if $left < 0.002;
		$patience = $left if $left < $patience;
	}
	return $patience;
}

sub _obey
{
	my ($order) = @_;

	if ($order eq 'reset')
	{
		_reset($_) foreach my @all = values %ends;
	}
	elsif ($order eq 'stall')
	{
		$stalled = 1;
	}
	elsif ($order eq 'go')
	{
		($stalled, $pause) = (0, 0);
	}
	elsif ($order =~ /^delay (\d+)$/)
	{
		$pause = $1 / 1000;
	}
	return;
}

sub _accept
{
	my ($listener, $socket_path) = @_;
	my $client = $listener->accept or return;
	my $server = IO::Socket::UNIX->new(Type => SOCK_STREAM);

	# not blocking: a Redis that is stopped does not take connections off its queue
	$server->blocking(0);
	if (!connect($server, Socket::pack_sockaddr_un($socket_path)))
	{
		setsockopt($client, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
		close $client;
		return;
	}
	$client->blocking(0);
	setsockopt($client, IPPROTO_TCP, TCP_NODELAY, 1);
	my @pair = map { { socket => $_, queue => [], queued => 0 } } $client, $server;
	foreach my $number (0, 1)
	{
		$pair[$number]{peer} = $pair[ 1 - $number ];
		$ends{ $pair[$number]{socket} } = $pair[$number];
		$reading->add($pair[$number]{socket});
	}
	return;
}

# Reads from one end what is for the other.
sub _take
{
	my ($end) = @_;
	my $peer = $end->{peer};
	my $count = sysread($end->{socket}, my $bytes, 1 << 16);

	return if !defined $count && ($!{EAGAIN} || $!{EINTR});
	return _reset($end) unless $count;
	push @{ $peer->{queue} }, [ $pause ? time + $pause : 0, $bytes ];
	$peer->{queued} += $count;
	$reading->remove($end->{socket}) if $peer->{queued} > $ENOUGH;
	return;
}

# Writes to one end what is due.
sub _write
{
	my ($end) = @_;
	my $queue = $end->{queue};

	return if $stalled || !$end->{peer};
	while (@$queue && $queue->[0][0] <= time)
	{
		my $count = syswrite($end->{socket}, $queue->[0][1]);
		return if !defined $count && ($!{EAGAIN} || $!{EINTR});
		return _reset($end) unless $count;
		substr($queue->[0][1], 0, $count) = '';
		shift @$queue if $queue->[0][1] eq '';
		$end->{queued} -= $count;
	}
	$reading->add($end->{peer}{socket}) if $end->{queued} <= $ENOUGH && $ends{ $end->{peer}{socket} };
	return;
}

# Ends a connection.  Of what was to be written to Redis it still gets the first half, so that commands are torn.
sub _reset
{
	my ($end) = @_;

	return unless $end->{peer};
	foreach my $one ($end, $end->{peer})
	{
		delete $ends{ $one->{socket} };
		my $bytes = join '', map { $_->[1] } @{ $one->{queue} };
		syswrite($one->{socket}, $bytes, int(length($bytes) / 2)) if $bytes ne '';
		$reading->remove($one->{socket});
		setsockopt($one->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
		close $one->{socket};
	}
	delete $end->{peer}{peer};
	delete $end->{peer};
	return;
}

END
{
	local $?;
	foreach my $proxy (@started)
	{
		kill 'KILL', $proxy->{pid};
		waitpid $proxy->{pid}, 0;
	}
}

1;
