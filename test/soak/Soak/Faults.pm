# What goes wrong, when, and how.
#
#	my $faults = Soak::Faults->new($run, $redis, $proxy, $consumers);
#	$faults->inject;          # for as long as the run is to last
#	$faults->all;             # [kind, begin, end, trouble]
#
# There are four independent troubles: Redis, the network to it, PostgreSQL, and consumers.  Each has one fault after the
# other, with pauses between, so faults of different troubles meet.  Which, when and how long follows
# from the seed alone, as far as one process can be that punctual.
#
# A fault is begun by a function, which is given a random number and how long it lasts, and returns another function that ends
# it, or nothing if there is nothing to end.

package Soak::Faults;

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Test;
use Soak::Run;
use Time::HiRes qw(sleep time);

# A failover is made once in so many seconds, not more: afterwards the old timeline's messages wait for half a minute.
my $FAILOVER_EVERY = 120;

# The state of this process: it can have one set of faults.
my ($run, $redis, $proxy, $consumers, $standby);
my $killed = 0;
my $servers = 0;

# trouble => [pause from, to], [kind, weight, seconds from, to, function], ...
my %TROUBLES = (
	redis => [ [ 1, 6 ],
		[ 'Redis killed', 3, 0.1, 2.5, sub { $redis->kill9; return sub { $redis->start } } ],
		[ 'Redis restarted', 1, 0.1, 1.5, sub { $redis->stop; return sub { $redis->start } } ],
		[ 'Redis stopped for a while', 3, 0.2, 2.5, sub { $redis->stop_signal; return sub { $redis->cont } } ],
		[ 'Redis out of memory', 3, 0.3, 2.5, sub {
			$redis->command('CONFIG', 'SET', 'maxmemory', '1');
			return sub { $redis->command('CONFIG', 'SET', 'maxmemory', '0') };
		} ],
		[ 'Redis out of memory on and off', 4, 0.5, 3, sub {
			my (undef, $seconds) = @_;
			$run->fork('flicker', sub { flicker($seconds) });
			return sub { $run->wait_for_end(qr/^flicker/, 60); $redis->command('CONFIG', 'SET', 'maxmemory', '0') };
		} ],
		[ 'SCRIPT FLUSH', 1, 0, 0, sub { $redis->command('SCRIPT', 'FLUSH'); return } ],
		[ 'CLIENT KILL', 2, 0, 0, sub { $redis->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes'); return } ],
	],
	network => [ [ 1, 6 ],
		[ 'connections reset', 4, 0, 0, sub { $proxy->reset; return } ],
		[ 'network stalls', 3, 0.1, 2.5, sub { $proxy->stall; return sub { $proxy->go } } ],
		[ 'network stalls, then resets', 3, 0.1, 1, sub {
			$proxy->stall;
			return sub { $proxy->reset; $proxy->go };
		} ],
		[ 'network is slow', 4, 1, 5, sub { $proxy->delay(5 + int 60 * $_[0]); return sub { $proxy->go } } ],
	],
	postgres => [ [ 2, 8 ],
		[ 'backend killed', 3, 0, 0, sub { signal_writer('KILL', $_[0]) } ],
		[ 'backend terminated', 2, 0, 0, sub { signal_writer('TERM', $_[0]) } ],
		[ 'backend stopped for a while', 2, 0.3, 2, sub { signal_writer('STOP', $_[0]) } ],
		[ 'backend killed while the network stalls', 3, 0.2, 0.4, sub {
			my ($number) = @_;
			$proxy->stall;
			return sub {
				my $end = signal_writer('KILL', $number);
				$proxy->reset;
				$proxy->go;
				$end->();
			};
		} ],
		[ 'sender killed', 1, 0, 0, sub { signal_process('KILL', 'redstream sender') } ],
		[ 'sender terminated', 2, 0, 0, sub { signal_process('TERM', 'redstream sender') } ],
		[ 'sender stopped for a while', 2, 0.3, 2, sub { signal_process('STOP', 'redstream sender') } ],
		[ 'worker killed', 1, 0, 0, sub { signal_process('KILL', 'redstream worker') } ],
		[ 'worker terminated', 2, 0, 0, sub { signal_process('TERM', 'redstream worker') } ],
		[ 'worker stopped for a while', 2, 0.3, 7, sub { signal_process('STOP', 'redstream worker') } ],
		[ 'launcher killed', 1, 0, 0, sub { signal_process('KILL', 'redstream launcher') } ],
		[ 'launcher terminated', 1, 0, 0, sub { signal_process('TERM', 'redstream launcher') } ],
		[ 'postmaster killed', 2, 0.1, 1, sub { kill_postmaster(); return \&start_postgres } ],
		[ 'immediate shutdown', 2, 0.1, 1, sub { stop_postgres('immediate') } ],
		[ 'fast shutdown', 2, 0.1, 1, sub { stop_postgres('fast') } ],
	],
	consumers => [ [ 1, 5 ],
		[ 'consumer killed', 4, 0.1, 1, sub {
			$consumers->signal_program('KILL', $_[0]);
			return sub { $consumers->tend };
		} ],
		[ 'consumer stopped for a while', 3, 0.5, 8, sub {
			my $pid = $consumers->signal_program('STOP', $_[0]);
			return sub { kill 'CONT', $pid if $pid };
		} ],
		[ 'session of a consumer terminated', 2, 0, 0, sub {
			eval { $run->{node}->safe_psql('postgres', q{
				SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'soak mirror'}) };
			return;
		} ],
	],
);

sub new
{
	my $class = shift;
	($run, $redis, $proxy, $consumers) = @_;
	my $self = bless { done => [] }, $class;

	srand $run->{seed};
	$self->{schedule} = [ map { _plan($_) } sort keys %TROUBLES ];
	_plan_failovers($self->{schedule});
	make_standby() if grep { $_->{kind} eq 'failover' } @{ $self->{schedule} };
	return $self;
}

# ---- the schedule --------------------------------------------------------------------------------------

sub _plan
{
	my ($trouble) = @_;
	my ($pause, @kinds) = @{ $TROUBLES{$trouble} };
	my @choices = map { ($_) x $_->[1] } @kinds;
	my @plan;
	my $time = 0;

	for (;;)
	{
		$time += $pause->[0] + rand($pause->[1] - $pause->[0]);
		my ($kind, undef, $from, $to, $begin) = @{ $choices[ rand @choices ] };
		my $lasts = $from + rand($to - $from);
		my $number = rand;
		return @plan if $time + $lasts > $run->{seconds};
		push @plan, { trouble => $trouble, kind => $kind, at => $time, lasts => $lasts, number => $number, begin => $begin };
		$time += $lasts;
	}
}

# They take the place of other faults of PostgreSQL.
sub _plan_failovers
{
	my ($schedule) = @_;

	for (my $time = $FAILOVER_EVERY / 2; $time < $run->{seconds} - $FAILOVER_EVERY / 4; $time += $FAILOVER_EVERY)
	{
		my ($next) = grep { $_->{trouble} eq 'postgres' && $_->{at} > $time } @$schedule;
		%$next = (%$next, kind => 'failover', lasts => 0, begin => sub { return \&fail_over }) if $next;
	}
	return;
}

# Begins and ends what is planned when it is time.
sub inject
{
	my ($self) = @_;
	my @events = map { ({ at => $_->{at}, fault => $_ }, { at => $_->{at} + $_->{lasts}, fault => $_, end => 1 }) }
	  @{ $self->{schedule} };
	my $start = time;

	foreach my $event (sort { $a->{at} <=> $b->{at} } @events)
	{
		my $fault = $event->{fault};
		while (time < $start + $event->{at})
		{
			sleep 0.01;
			$run->reap;
		}
		if (!$event->{end})
		{
			$fault->{began} = time;
			printf "fault at %.1f: %s for %.1f s\n", $fault->{began} - $start, $fault->{kind}, $fault->{lasts};
			$fault->{finish} = $fault->{begin}->($fault->{number}, $fault->{lasts});
			next;
		}
		$fault->{finish}->() if $fault->{finish};
		push @{ $self->{done} }, [ $fault->{kind}, $fault->{began}, time, $fault->{trouble} ];
		printf "fault ended at %.1f: %s\n", time - $start, $fault->{kind};
	}
	sleep 0.01 while time < $start + $run->{seconds};
	$consumers->tend;
	return;
}

sub all { return @{ $_[0]->{done} }; }

# Processes of PostgreSQL that were killed.
sub killed { return $killed; }

# Redis refuses some of what comes, and takes what comes after it.
sub flicker
{
	my ($seconds) = @_;
	my $end = time + $seconds;

	$redis->reconnect;
	while (time < $end)
	{
		$redis->command('CONFIG', 'SET', 'maxmemory', '1');
		sleep rand 0.02;
		$redis->command('CONFIG', 'SET', 'maxmemory', '0');
		sleep rand 0.1;
	}
	return;
}

# ---- processes of PostgreSQL --------------------------------------------------------------------------------

sub server_answers
{
	wait_until('the server to answer', sub {
		eval { $run->{node}->psql('postgres', 'SELECT 1', stderr => \my $error) == 0 } && sender_pid($run->{node});
	}, 120);
	return;
}

sub signal_pid
{
	my ($signal, $pid) = @_;

	return unless $pid;
	kill $signal, $pid;
	$killed++ if $signal eq 'KILL';
	return $signal eq 'STOP' ? sub { kill 'CONT', $pid } : \&server_answers;
}

sub signal_process
{
	my ($signal, $name) = @_;
	return signal_pid($signal, process_pid($run->{node}, $name));
}

# The backend of a writer.  Those in a transaction are first choice.
sub signal_writer
{
	my ($signal, $number) = @_;
	my $pids = eval { $run->{node}->safe_psql('postgres', q{
		SELECT pid FROM pg_stat_activity WHERE application_name = 'soak writer'
		ORDER BY wait_event_type IS DISTINCT FROM 'Extension', xact_start IS NULL, pid LIMIT 4}) };
	my @pids = split /\n/, defined $pids ? $pids : '';
	return signal_pid($signal, $pids[ $number * @pids ]) || sub { };
}

# ---- the servers ------------------------------------------------------------------------------------------------

# The postmaster's entry may stay for a moment when it is dead, until somebody has asked for its status.
sub wait_for_last_process
{
	my ($postmaster) = @_;
	my $data = $run->{node}->data_dir;

	wait_until('the last process of the server to end', sub {
		!kill(0, $postmaster) && !grep { (readlink($_) || '') eq $data } glob '/proc/[0-9]*/cwd';
	}, 60);
	return;
}

sub kill_postmaster
{
	my ($postmaster) = slurp_file($run->{node}->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	$run->{node}->kill9;
	wait_for_last_process($postmaster);
	return;
}

sub stop_postgres
{
	my ($mode) = @_;
	$run->{node}->stop($mode);
	return \&start_postgres;
}

sub start_postgres
{
	$run->{node}->start;
	server_answers();
	return;
}

sub make_standby
{
	my $node = $run->{node};
	my $name = 'server' . ++$servers;

	$node->backup($name);
	$standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($node, $name, has_streaming => 1);
	$standby->append_conf('postgresql.conf', "log_statement = 'none'");
	$standby->start;
	return;
}

# Commits wait for the standby from now on, so that none is lost when the primary dies.
sub make_synchronous
{
	reconfigure($run->{node}, 'synchronous_standby_names' => '*');
	wait_until('the standby to be synchronous', sub {
		$run->{node}->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'});
	}, 60);
	sleep 0.5;
	return;
}

sub fail_over
{
	make_synchronous();
	kill_postmaster();
	my $promoted_at = time;
	$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	$standby->reload;
	$standby->promote;
	push @{ $run->{old_servers} }, $run->{node};
	push @{ $run->{promotions} }, $promoted_at;
	$run->set_primary($standby);
	server_answers();
	make_standby();
	return;
}

1;
