# A throwaway Redis for a test, and a connection to it.
#
#	my $redis = Redstream::Redis->new(appendonly => 'yes', appendfsync => 'always');
#	$redis->command('XLEN', 'redstream:stream:t');
#	$redis->kill9; $redis->start;
#
# It listens on a Unix socket only.  It is stopped, and its directory removed,
# when the test ends.  A test that wants a port or TLS passes the options for them:
# they are those of redis.conf; one of several words is an array.  Of a Redis with a port
# there can be replicas:
#
#	my $replica = $redis->replica(port => get_free_port());

package Redstream::Redis;

use strict;
use warnings;

use Carp;
use Errno qw(EINTR);
use File::Temp ();
use IO::Select;
use IO::Socket::UNIX;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my @started;

# Starts a Redis with these options.
sub new
{
	my ($class, %options) = @_;

	# in TMPDIR: a socket's name must stay below 108 bytes
	my $directory = File::Temp->newdir('redis.XXXX', TMPDIR => 1);
	my $self = bless {
		directory => $directory,
		socket => "$directory/redis.sock",
		log => "$directory/redis.log",
		options => {
			port => 0,
			save => '',
			%options,
			unixsocket => "$directory/redis.sock",
			dir => "$directory",
			logfile => "$directory/redis.log",
		},
	}, $class;

	push @started, $self;
	$self->start;
	return $self;
}

# Where it listens, as redstream.url wants it.
sub url
{
	my ($self, $database) = @_;
	return "unix://$self->{socket}" . ($database ? "?db=$database" : '');
}

# Starts a replica of it, with these options, and waits until it has what there is.
sub replica
{
	my ($self, %options) = @_;
	my $replica = ref($self)->new(replicaof => [ '127.0.0.1', $self->{options}{port} ], %options);

	$replica->wait_replicating;
	return $replica;
}

# Waits until it has caught up with its master.
sub wait_replicating
{
	my ($self) = @_;
	my $deadline = time + 30;

	until ($self->command('INFO', 'replication') =~ /^master_link_status:up/m)
	{
		croak 'this Redis does not replicate' if time > $deadline;
		sleep 0.02;
	}
	return;
}

sub socket_path { return $_[0]->{socket}; }
sub directory { return "$_[0]->{directory}"; }
sub pid { return $_[0]->{pid}; }

# Changes options; they hold from the next start on.
sub configure
{
	my ($self, %options) = @_;
	%{ $self->{options} } = (%{ $self->{options} }, %options);
	return;
}

# Starts it (again), in the same directory, and waits until it answers and has
# loaded what is there.
sub start
{
	my ($self) = @_;
	my $options = $self->{options};
	my @arguments =
	  map { ("--$_", ref $options->{$_} ? @{ $options->{$_} } : $options->{$_}) } sort keys %$options;

	croak 'this Redis is running' if $self->{pid};
	unlink $self->{socket};
	my $pid = fork;
	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>>', $self->{log});
		open(STDERR, '>&', \*STDOUT);
		exec('redis-server', @arguments) or POSIX::_exit(127);
	}
	$self->{pid} = $pid;

	my $deadline = time + 30;
	until (eval { $self->command('PING') eq 'PONG' })
	{
		$self->_forget if waitpid($pid, WNOHANG) == $pid;
		croak "Redis does not start:\n" . $self->log_text
		  if !$self->{pid} || time > $deadline;
		sleep 0.02;
	}
	return;
}

# Stops it in good order.
sub stop
{
	my ($self) = @_;
	$self->_end_by('TERM');
	return;
}

# Stops it as a crash would.
sub kill9
{
	my ($self) = @_;
	$self->_end_by('KILL');
	return;
}

sub restart
{
	my ($self) = @_;
	$self->stop;
	$self->start;
	return;
}

# Makes it hang, and go on.
sub stop_signal
{
	my ($self) = @_;
	kill 'STOP', $self->{pid};
	return;
}

sub cont
{
	my ($self) = @_;
	kill 'CONT', $self->{pid};
	return;
}

sub log_text
{
	my ($self) = @_;
	open(my $log, '<', $self->{log}) or return '';
	local $/ = undef;
	my $text = <$log>;
	return defined $text ? $text : '';
}

# Runs redis-cli and returns what it prints, without the last newline.
sub cli
{
	my ($self, @arguments) = @_;

	open(my $output, '-|', 'redis-cli', '-s', $self->{socket}, @arguments)
	  or croak "redis-cli: $!";
	local $/ = undef;
	my $text = <$output>;
	close $output;
	$text = '' unless defined $text;
	chomp $text;
	return $text;
}

# Sends one command and returns the reply: a string, a number, undef, or an
# array reference of these.  Dies when the reply is an error, or when none comes
# within ten seconds.
sub command
{
	my ($self, @words) = @_;

	if (!$self->{connection})
	{
		$self->{connection} = IO::Socket::UNIX->new(Peer => $self->{socket})
		  or croak "cannot connect to Redis: $!";
		$self->{unread} = '';
	}
	my $reply = eval {
		$self->_send(@words);
		$self->{reply_deadline} = time + 30;
		$self->_read_reply;
	};
	if (my $error = $@)
	{
		# what comes next on this connection could be anything
		delete $self->{connection};
		croak "Redis, $words[0]: $error";
	}
	croak "Redis, $words[0]: $$reply" if ref $reply eq 'SCALAR';
	return $reply;
}

# The next command opens a connection of its own: for a process that was forked.
sub reconnect
{
	my ($self) = @_;
	delete $self->{connection};
	return;
}

# The entries of a stream, oldest first: a list of [id, {field => value}].
sub entries
{
	my ($self, $key, $start, $end) = @_;
	my $replies = $self->command('XRANGE', $key,
		defined $start ? $start : '-', defined $end ? $end : '+');
	return map { [ $_->[0], { @{ $_->[1] } } ] } @$replies;
}

# The payloads of a stream's entries, oldest first.
sub payloads
{
	my ($self, $key) = @_;
	return map { $_->[1]{payload} } $self->entries($key);
}

sub _send
{
	my ($self, @words) = @_;
	my $bytes = '*' . @words . "\r\n";

	foreach my $word (@words)
	{
		my $copy = "$word";
		utf8::encode($copy) if utf8::is_utf8($copy);
		$bytes .= '$' . length($copy) . "\r\n$copy\r\n";
	}
	local $SIG{PIPE} = 'IGNORE';
	my $sent = 0;
	while ($sent < length $bytes)
	{
		my $count = syswrite($self->{connection}, $bytes, length($bytes) - $sent, $sent);
		next if !defined $count && $! == EINTR;
		die "$!\n" unless $count;
		$sent += $count;
	}
	return;
}

# An error reply is returned as a reference to its text.
sub _read_reply
{
	my ($self) = @_;
	my ($type, $rest) = $self->_read_line =~ /^(.)(.*)$/s;

	return $rest if $type eq '+' || $type eq ':';
	return \$rest if $type eq '-';
	return undef if $rest < 0;    ## no critic (ProhibitExplicitReturnUndef)
	if ($type eq '$')
	{
		my $bytes = $self->_read_bytes($rest + 2);
		return substr($bytes, 0, $rest);
	}
	return [ map { $self->_read_reply } 1 .. $rest ] if $type eq '*';
	die "unknown type of reply $type\n";
}

sub _read_line
{
	my ($self) = @_;
	my $end;

	$self->_read_more while ($end = index($self->{unread}, "\r\n")) < 0;
	return substr($self->_read_bytes($end + 2), 0, $end);
}

sub _read_bytes
{
	my ($self, $count) = @_;
	$self->_read_more while length $self->{unread} < $count;
	return substr($self->{unread}, 0, $count, '');
}

sub _read_more
{
	my ($self) = @_;
	my $patience = $self->{reply_deadline} - time;

	die "no reply in time\n"
	  unless $patience > 0 && IO::Select->new($self->{connection})->can_read($patience);
	my $count = sysread($self->{connection}, $self->{unread}, 1 << 16, length $self->{unread});
	die defined $count ? "connection closed\n" : "$!\n" unless $count;
	return;
}

sub _end_by
{
	my ($self, $signal) = @_;
	return unless $self->{pid};

	kill 'CONT', $self->{pid};
	kill $signal, $self->{pid};
	my $deadline = time + 30;
	while (waitpid($self->{pid}, WNOHANG) == 0)
	{
		kill 'KILL', $self->{pid} if time > $deadline;
		sleep 0.01;
	}
	$self->_forget;
	return;
}

sub _forget
{
	my ($self) = @_;
	delete $self->{pid};
	delete $self->{connection};
	return;
}

END
{
	# waiting for a child sets $?, which is this test's exit status
	local $?;
	$_->kill9 foreach @started;
	@started = ();
}

1;
