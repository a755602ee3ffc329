# What redstream's TAP tests have in common.
#
#	use Redstream::Test;
#	my $redis = new_redis(appendonly => 'yes');
#	my $node = new_node('main', $redis, 'redstream.delay' => '1s');
#	$node->safe_psql('postgres', q{...});
#	wait_until('the message', sub { $redis->payloads('redstream:stream:t') });
#	is_deeply([ announced($node, $redis, 't', q{INSERT ...}) ], ['{"id":1}']);
#
# PostgreSQL::Test::Cluster documents what a node can do, Redstream::Redis what
# a Redis can.

package Redstream::Test;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Redis;
use Time::HiRes qw(sleep time);

my %settling;					# nodes that have what settle() needs

our @EXPORT = qw(
	new_redis new_node wait_until wait_connected reconfigure stats spooler_error sender_pid process_pid sessions_waiting
	crashes settle delay_messages_now take announced redis_away redis_back);

# Starts a Redis, with options as in redis.conf.
sub new_redis
{
	my (%options) = @_;
	return Redstream::Redis->new(%options);
}

# Starts a PostgreSQL with redstream preloaded, its messages going to $redis
# (undef: where the settings say), and the extension in database postgres.
# A setting replaces the one of the same name made here.
sub new_node
{
	my ($name, $redis, %settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	%settings = (
		'shared_preload_libraries' => 'redstream',
		'max_prepared_transactions' => 10,
		$redis ? ('redstream.url' => $redis->url) : (),
		%settings);
	$node->init;
	$node->append_conf('postgresql.conf', _setting($_, $settings{$_}))
	  foreach sort keys %settings;
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION redstream');
	return $node;
}

sub _setting
{
	my ($name, $value) = @_;
	$value =~ s/'/''/g;
	return "$name = '$value'";
}

# Calls $condition until it is true and returns its value, in scalar context.
# Dies after $seconds (30 unless told): a test that waits for something that
# does not come should say for what.
sub wait_until
{
	my ($what, $condition, $seconds) = @_;
	my $deadline = time + (defined $seconds ? $seconds : 30);
	my $pause = 0.005;

	for (;;)
	{
		my $value = $condition->();
		return $value if $value;
		croak "waited in vain for $what" if time > $deadline;
		sleep $pause;
		$pause *= 1.5 if $pause < 0.1;
	}
}

# Waits until the sender has a connection, or has none.
sub wait_connected
{
	my ($node, $wanted) = @_;
	wait_until($wanted ? 'a connection' : 'a loss of the connection',
		sub { stats($node)->{connected} == $wanted });
	return;
}

# What the spooler of the database postgres is failing with; '' if it is not.
sub spooler_error
{
	my ($node) = @_;
	return $node->safe_psql('postgres', q{
		SELECT coalesce(last_error, '') FROM redstream.workers
		WHERE kind = 'spooler' AND state = 'failing'});
}

# Changes settings and waits until the postmaster has read them: new sessions
# have them, and running processes are told.
sub reconfigure
{
	my ($node, %settings) = @_;
	my $loaded = $node->safe_psql('postgres', 'SELECT pg_conf_load_time()');

	$node->safe_psql('postgres', 'ALTER SYSTEM SET ' . _setting($_, $settings{$_}))
	  foreach sort keys %settings;
	$node->reload;
	$node->poll_query_until('postgres', "SELECT pg_conf_load_time() > '$loaded'")
	  or croak 'the settings were not read';
	return;
}

# The row of redstream.stats, a hash; booleans are 1 and 0.
sub stats
{
	my ($node) = @_;
	my $row = $node->safe_psql('postgres',
		q{SELECT key, value FROM redstream.stats, json_each_text(row_to_json(stats))});
	my %stats;

	foreach my $line (split /\n/, $row)
	{
		my ($key, $value) = split /\|/, $line, 2;
		$stats{$key} = $value eq 'true' ? 1 : $value eq 'false' ? 0 : $value;
	}
	return \%stats;
}

# The sender's process id, undef if there is none.
sub sender_pid { return process_pid($_[0], 'redstream sender'); }

# The id of the server's process with this in its title, undef if there is none.
sub process_pid
{
	my ($node, $name) = @_;
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;

	foreach my $process (glob '/proc/[0-9]*')
	{
		my $title = eval { slurp_file("$process/cmdline") } || '';
		next unless $title =~ /^postgres: .*\Q$name\E/;
		my $stat = eval { slurp_file("$process/stat") } || '';
		return $1 if $stat =~ /^(\d+) .*\) \S $postmaster /;
	}
	return undef;    ## no critic (ProhibitExplicitReturnUndef)
}

# Number of sessions that wait for Redis, or for a lock that one of them holds.
sub sessions_waiting
{
	my ($node) = @_;
	return $node->safe_psql('postgres', q{
		SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND wait_event_type IN ('Extension', 'Lock')});
}

# Lines of the server log, from an offset on, that tell of a crash or a panic.
sub crashes
{
	my ($node, $offset) = @_;
	return grep { /PANIC|TRAP:|terminated by signal|was terminated by exception/ }
	  split /\n/, slurp_file($node->logfile, $offset);
}

# Returns when everything committed before has arrived on the main streams: the spool
# is empty, and one more message, on a stream of its own, has arrived, which the sender
# fills in the order of the commits.
sub settle
{
	my ($node, $redis) = @_;

	$node->safe_psql('postgres', q{
		CREATE TABLE redstream_settled (id bigserial PRIMARY KEY);
		SELECT redstream.attach('redstream_settled')})
	  unless $settling{ $node->name }++;
	my ($id, $key, $spooled) = split /\|/, $node->safe_psql('postgres', q{
		INSERT INTO redstream_settled DEFAULT VALUES
		RETURNING id, redstream.stream_key('redstream_settled'), (SELECT count(*) FROM redstream.spool)});
	wait_until("message $id of settle()", sub {
		grep { $_ eq qq({"id":$id}) } $redis->payloads($key);
	});
	wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 }) if $spooled > 0;
	$redis->command('DEL', $key, "$key.delay");
	return;
}

# SQL for the middle of a transaction: the delay messages of what it has changed so far
# are in Redis when this is done.  Without it they are only sent when there are 64 kB of
# them, and at COMMIT; PREPARE TRANSACTION leaves what has not been sent to the spool.
sub delay_messages_now
{
	my ($table) = @_;
	return "SELECT redstream.bulk('$table', 'false', 'DELETE FROM $table WHERE false')";
}

# Stops Redis, and returns when everybody knows that it is away.
sub redis_away
{
	my ($node, $redis) = @_;

	$redis->stop;
	wait_until('an outage', sub { stats($node)->{last_error} =~ /connect to/ });
	return;
}

# Starts it, and returns when the spool is delivered.
sub redis_back
{
	my ($node, $redis) = @_;

	$redis->start;
	wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 }, 60);
	return;
}

# Takes a stream's entries out of Redis: [id, {field => value}], oldest first.
sub take
{
	my ($redis, $key) = @_;
	my @entries = $redis->entries($key);
	$redis->command('DEL', $key);
	return @entries;
}

# Runs SQL, which must succeed, and returns the payloads that it brought to the
# stream, oldest first.  Both kinds of messages are taken out of Redis.
sub announced
{
	my ($node, $redis, $stream, $sql, $database) = @_;
	my $key = "redstream:stream:$stream";

	$node->safe_psql(defined $database ? $database : 'postgres', $sql);
	settle($node, $redis);
	$redis->command('DEL', "$key.delay");
	return map { $_->[1]{payload} } take($redis, $key);
}

1;
