# redstream-consumer as a process of the test's.
#
#	my $consumer = Redstream::Consumer->new($redis, options => ['--once'], command => ['cat']);
#	is($consumer->status, 0);              # waits for its end
#	is($consumer->output, "...\n");        # what it wrote, so far
#	like($consumer->log, qr/refused/);     # to standard error
#
# It reads stream "s" as consumer "n" unless told otherwise.  Ids that a test chooses for its messages are those of
# messages(): 1-0, 2-0 and so on.

package Redstream::Consumer;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use File::Temp ();
use POSIX qw(WNOHANG);
use Redstream::Test qw(wait_until);

our @EXPORT = qw(messages offset run_program line_of);

my @started;

# Starts one.  "url" is instead of the Redis', undef for none; "arguments" are instead of all others; "environment" is added to
# that of the test; "to" is a file, or a handle, for standard output.
sub new
{
	my ($class, $redis, %options) = @_;
	my $directory = File::Temp->newdir('consumer.XXXX', TMPDIR => 1);
	my $url = exists $options{url} ? $options{url} : $redis->url;
	my @arguments = $options{arguments} ? @{ $options{arguments} } : (
		defined $url ? ('--url', $url) : (),
		'--stream', defined $options{stream} ? $options{stream} : 's',
		'--name', defined $options{name} ? $options{name} : 'n',
		@{ $options{options} || [] },
		$options{command} ? ('--', @{ $options{command} }) : ());
	my $self = bless { directory => $directory }, $class;

	my $pid = fork;
	croak "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		delete $ENV{REDSTREAM_URL};
		%ENV = (%ENV, %{ $options{environment} || {} });
		open(STDIN, '<', '/dev/null') or POSIX::_exit(126);
		open(STDERR, '>', "$directory/log") or POSIX::_exit(126);
		my $to = $options{to} || "$directory/output";
		open(STDOUT, ref $to ? '>&' : '>', $to) or POSIX::_exit(126);
		exec('redstream-consumer', @arguments) or POSIX::_exit(126);
	}
	$self->{pid} = $pid;
	push @started, $self;
	return $self;
}

sub pid { return $_[0]->{pid}; }
sub directory { return "$_[0]->{directory}"; }

sub _content
{
	my ($self, $name) = @_;
	open(my $file, '<', "$self->{directory}/$name") or return '';
	local $/ = undef;
	my $content = <$file>;
	return defined $content ? $content : '';
}

sub output { return $_[0]->_content('output'); }
sub log { return $_[0]->_content('log'); }    ## no critic (ProhibitBuiltinHomonyms)

# Waits until the log has this.
sub wait_log
{
	my ($self, $pattern, $seconds) = @_;
	wait_until("$pattern in the log, which is:\n" . $self->log, sub { $self->log =~ $pattern }, $seconds);
	return;
}

sub signal
{
	my ($self, $signal) = @_;
	kill $signal, $self->{pid} if $self->is_running;
	return;
}

sub is_running
{
	my ($self) = @_;
	local $?;

	return 0 if defined $self->{status};
	return 1 if waitpid($self->{pid}, WNOHANG) == 0;
	$self->{status} = $? & 127 ? 'signal ' . ($? & 127) : $? >> 8;
	return 0;
}

# Waits for its end; returns the exit status, or "signal 9".
sub status
{
	my ($self) = @_;
	wait_until('redstream-consumer to end', sub { !$self->is_running });
	return $self->{status};
}

# Ends it in good order; returns its exit status.
sub stop
{
	my ($self) = @_;
	$self->signal('TERM');
	return $self->status;
}

# Is it stopped by SIGSTOP, all of it?
sub wait_stopped
{
	my ($self) = @_;
	wait_until('the process to be stopped', sub {
		open(my $stat, '<', "/proc/$self->{pid}/stat") or return 0;
		return <$stat> =~ /\) T /;
	});
	return;
}

# ---- without a process -----------------------------------------------------------------------

# Runs it to its end: (status, output, log).
sub run_program
{
	my ($redis, %options) = @_;
	my $consumer = __PACKAGE__->new($redis, %options);
	my $status = $consumer->status;
	return ($status, $consumer->output, $consumer->log);
}

# Adds messages with these payloads, whose ids are 1-0, 2-0 and so on behind what is there.
sub messages
{
	my ($redis, $stream, @payloads) = @_;
	my $key = "redstream:stream:$stream";
	my $last = $redis->command('EXISTS', $key)
	  ? { @{ $redis->command('XINFO', 'STREAM', $key) } }->{'last-generated-id'}
	  : '0-0';
	my ($ms) = $last =~ /^(\d+)/;

	$redis->command('XADD', $key, ++$ms . '-0', 'payload', $_) foreach @payloads;
	return;
}

# What is committed; undef for nothing.
sub offset
{
	my ($redis, $stream, $name) = @_;
	return $redis->command('GET',
		'redstream:offset:' . (defined $stream ? $stream : 's') . ':' . (defined $name ? $name : 'n'));
}

sub line_of
{
	my ($id, $payload) = @_;
	return qq({"id":"$id","payload":$payload}\n);
}

END
{
	local $?;
	kill 'KILL', map { $_->is_running ? $_->pid : () } @started;
}

1;
