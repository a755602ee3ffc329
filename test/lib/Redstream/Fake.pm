# A Redis that misbehaves: a process on a port, in front of a real one.
#
#	my $fake = Redstream::Fake->new($redis);
#	my $node = new_node('main', undef, 'redstream.url' => $fake->url);
#	$fake->behave('silent');             # from the next command on
#	$fake->behave('refuse', only => 'XADD', with => 'OOM command not allowed');
#	$fake->behave('well');
#
# What it can do:
#
#	well      hands everything over
#	away      nobody listens on the port, and its connections are closed
#	dropped   as behind a firewall that drops packets: connections are not accepted, and on those that there are
#	          nothing is read
#	silent    accepts, reads, and never answers
#	half      sends half a reply, and nothing more on that connection
#	close     sends a reply, and closes
#	once      answers one command on each connection, and no other
#	slow      sends a byte every 50 ms
#	narrow    takes 64 kB every 20 ms
#	garbage   answers with what is no reply
#	refuse    answers with an error, "with"
#
# With "only", a regular expression, the commands of these names are treated so and others well; what comes on a
# connection after one that is not answered has no answer, either.  Commands that are not answered
# are not executed until it behaves well again.

package Redstream::Fake;

use strict;
use warnings;

use Carp;
use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket qw(SOL_SOCKET SO_RCVBUF IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(sleep time);

my $BYTE_PAUSE = 0.05;
my $READ_SIZE = 1 << 16;
my $READ_PAUSE = 0.02;
my @started;

sub new
{
	my ($class, $redis) = @_;
	my $self = bless { upstream => $redis->socket_path, behaviour => 'well', connections => [] }, $class;

	$self->_listen(0);
	$self->{port} = $self->{listener}->sockport;
	socketpair(my $ours, my $its, Socket::AF_UNIX, Socket::SOCK_STREAM, Socket::PF_UNSPEC)
	  or croak "socketpair: $!";
	my $pid = fork;
	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		close $ours;
		$self->{control} = $its;
		eval { $self->_serve; 1 } or print STDERR "Redstream::Fake: $@";
		POSIX::_exit(1);
	}
	close $its;
	close delete $self->{listener};
	$self->{pid} = $pid;
	$self->{control} = $ours;
	push @started, $self;
	return $self;
}

sub url { return "redis://127.0.0.1:$_[0]->{port}"; }

# Returns when it does so.
sub behave
{
	my ($self, $how, %options) = @_;

	foreach my $word ($how, $options{only} || '', $options{with} || '')
	{
		syswrite($self->{control}, "$word\n") or croak "the fake Redis is gone: $!";
	}
	my $answer = readline $self->{control};
	croak 'the fake Redis is gone' unless defined $answer;
	return;
}

# ---- in the process ------------------------------------------------------------------

sub _listen
{
	my ($self, $port) = @_;

	# a short queue is soon full, and so is a small buffer
	$self->{listener} = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1, ReuseAddr => 1, Sockopts => [ [ SO_RCVBUF, 1 << 16 ] ])
	  or croak "cannot listen: $!";
	return;
}

sub _serve
{
	my ($self) = @_;

	local $SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my $readable = IO::Select->new($self->{control});
		$readable->add($self->{listener}) if $self->{listener} && $self->{behaviour} ne 'dropped';
		foreach my $connection (@{ $self->{connections} })
		{
			$readable->add($connection->{client}) if $self->{behaviour} ne 'dropped';
			$readable->add($connection->{server});
		}
		sleep $READ_PAUSE if $self->{behaviour} eq 'narrow';
		my %ready = map { $_ => 1 } $readable->can_read($self->_is_sending ? 0.01 : undef);

		$self->_obey if $ready{ $self->{control} };
		$self->_accept if $self->{listener} && $ready{ $self->{listener} };
		foreach my $connection (@{ $self->{connections} })
		{
			_take($connection, 'client', 'asked') if $ready{ $connection->{client} };
			_take($connection, 'server', 'answered') if $ready{ $connection->{server} };
			$self->_work($connection);
		}
		$self->_forget_closed;
	}
	return;
}

sub _is_sending
{
	my ($self) = @_;
	return grep { length $_->{output} } @{ $self->{connections} };
}

# Changes its behaviour.
sub _obey
{
	my ($self) = @_;
	my $how = $self->_command_line;

	exit unless defined $how;
	chomp(my ($only, $with) = ($self->_command_line, $self->_command_line));
	chomp $how;
	my $before = $self->{behaviour};
	($self->{behaviour}, $self->{only}, $self->{with}) = ($how, $only, $with);
	if ($how eq 'away')
	{
		close delete $self->{listener};
		$_->{closing} = 1 foreach @{ $self->{connections} };
	}
	$self->_listen($self->{port}) if $before eq 'away';
	$self->{fillers} = $how eq 'dropped' ? [ map { $self->_filler } 1 .. 8 ] : [];
	if ($how eq 'well')
	{
		# what was cut cannot be mended
		$_->{closing} = 1 foreach grep { $_->{spoilt} } @{ $self->{connections} };
		$_->{deaf} = 0 foreach @{ $self->{connections} };
	}
	syswrite($self->{control}, "\n");
	return;
}

sub _command_line
{
	my ($self) = @_;
	my ($line, $byte) = ('', '');

	while ($byte ne "\n")
	{
		return undef unless sysread($self->{control}, $byte, 1);    ## no critic (ProhibitExplicitReturnUndef)
		$line .= $byte;
	}
	return $line;
}

# One of the connections that fill the listener's queue.
sub _filler
{
	my ($self) = @_;
	return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port}, Blocking => 0);
}

sub _accept
{
	my ($self) = @_;
	my $client = $self->{listener}->accept or return;
	my $server = IO::Socket::UNIX->new(Peer => $self->{upstream});

	# Redis itself is away
	return close $client unless $server;
	$client->blocking(0);
	$client->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
	push @{ $self->{connections} },
	  { client => $client, server => $server, asked => '', answered => '', output => '', handed => [], sent_at => 0 };
	return;
}

sub _take
{
	my ($connection, $side, $buffer) = @_;
	my $count = sysread($connection->{$side}, $connection->{$buffer}, $READ_SIZE, length $connection->{$buffer});

	return if !defined $count && ($! == EAGAIN || $! == EWOULDBLOCK || $! == EINTR);
	$connection->{closing} = 1 unless $count;
	return;
}

sub _forget_closed
{
	my ($self) = @_;

	foreach my $connection (grep { $_->{closing} } @{ $self->{connections} })
	{
		close $connection->{client};
		close $connection->{server};
	}
	$self->{connections} = [ grep { !$_->{closing} } @{ $self->{connections} } ];
	return;
}

# Commands go on to Redis, its replies to the client, in order, as far as they are to.
sub _work
{
	my ($self, $connection) = @_;

	while (!$connection->{deaf} && (my $length = _length($connection->{asked}, 0)))
	{
		my $command = substr $connection->{asked}, 0, $length;
		my ($name) = $command =~ /^\*\d+\r\n\$\d+\r\n(\w+)/;
		my $spoils = $self->{behaviour} ne 'well' && $name =~ /^(?:$self->{only})/i;

		if ($spoils && ($self->{behaviour} =~ /^(?:silent|dropped)$/ || $connection->{once}++ && $self->{behaviour} eq 'once'))
		{
			$connection->{deaf} = 1;
			last;
		}
		substr($connection->{asked}, 0, $length) = '';
		my $own = !$spoils ? undef : $self->{behaviour} eq 'refuse' ? "-$self->{with}\r\n" :
		  $self->{behaviour} eq 'garbage' ? "what is this\r\n" : undef;
		_write($connection->{server}, $command) unless defined $own;
		push @{ $connection->{handed} }, { own => $own, spoils => $spoils };
	}
	$self->_hand_back($connection);
	_send($connection);
	return;
}

sub _hand_back
{
	my ($self, $connection) = @_;

	while (!$connection->{spoilt} && @{ $connection->{handed} })
	{
		my $next = $connection->{handed}[0];
		my $reply = $next->{own};
		if (!defined $reply)
		{
			my $length = _length($connection->{answered}, 0) or last;
			$reply = substr $connection->{answered}, 0, $length, '';
		}
		shift @{ $connection->{handed} };
		my $behaviour = $next->{spoils} ? $self->{behaviour} : 'well';
		$reply = substr $reply, 0, length($reply) / 2 if $behaviour eq 'half';
		$connection->{spoilt} = $behaviour =~ /^(?:half|close)$/;
		$connection->{closes} = $behaviour eq 'close';
		$connection->{slow} = $behaviour eq 'slow';
		$connection->{output} .= $reply;
	}
	return;
}

# Sends what there is to the client, and closes if that is to follow.
sub _send
{
	my ($connection) = @_;
	my $output = \$connection->{output};

	if (length $$output && (!$connection->{slow} || time > $connection->{sent_at} + $BYTE_PAUSE))
	{
		my $sent = syswrite $connection->{client}, $$output, $connection->{slow} ? 1 : length $$output;
		substr($$output, 0, $sent) = '' if $sent;
		$connection->{closing} = 1 if !defined $sent && $! != EAGAIN && $! != EWOULDBLOCK;
		$connection->{sent_at} = time;
	}
	$connection->{closing} = 1 if $connection->{closes} && !length $$output;
	return;
}

sub _write
{
	my ($socket, $bytes) = @_;

	while (length $bytes)
	{
		my $sent = syswrite $socket, $bytes or return;
		substr($bytes, 0, $sent) = '';
	}
	return;
}

# How long is the complete reply, or command, at this place?  0: it is not complete.
sub _length
{
	my ($bytes, $from) = @_;
	my $end = index $bytes, "\r\n", $from;

	return 0 if $end < 0;
	my ($type, $number) = (substr($bytes, $from, 1), substr($bytes, $from + 1, $end - $from - 1));
	my $length = $end + 2 - $from;
	if ($type eq '$' && $number >= 0)
	{
		$length += $number + 2;
	}
	elsif ($type eq '*' && $number > 0)
	{
		foreach (1 .. $number)
		{
			my $part = _length($bytes, $from + $length) or return 0;
			$length += $part;
		}
	}
	return $from + $length <= length $bytes ? $length : 0;
}

END
{
	local $?;
	foreach my $fake (grep { $_->{pid} } @started)
	{
		kill 'KILL', $fake->{pid};
		waitpid $fake->{pid}, 0;
	}
}

1;
