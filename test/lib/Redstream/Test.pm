# What redstream's TAP tests have in common.
#
#	use Redstream::Test;
#	my $redis = new_redis(appendonly => 'yes');
#	my $node = new_node('main', $redis, 'redstream.delay' => '1s');
#	$node->safe_psql('postgres', q{...});
#	wait_until('the message', sub { $redis->payloads('redstream:stream:t') });
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

our @EXPORT = qw(new_redis new_node wait_until);

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

1;
