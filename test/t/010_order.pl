# Under load, every committed update is announced exactly once, and the messages
# of a row are in the order of its commits: also when commits take long, be it
# before others see them (a synchronous standby that lags) or after.
#
# REDSTREAM_TEST_SECONDS says for how long each load runs.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use Redstream::Load;
use Redstream::Test;
use Test::More;

my $seconds = $ENV{REDSTREAM_TEST_SECONDS} || 5;
my $redis = new_redis;

# Long enough for a slow machine: a place that is passed is announced by its
# delay message only, which would spoil the exact count.
my $node = new_node(
	'main', $redis,
	'shared_preload_libraries' => 'redstream, redstream_test',
	'redstream.timeout' => '20s',
	'log_statement' => 'none',
	'wal_level' => 'replica',
	'max_wal_senders' => 5);

# Eight pgbench clients on a table of so many rows.
#
# An update announces the old payload and then the new one, so that a row whose
# counter went from 0 to N has the messages 0, 1, 1, 2, 2, ... N-1, N: two an
# update, the second of which is new.  When all rows have exactly these, the
# numbers of updates and of messages agree and the order is that of the commits.
sub check_load
{
	my ($name, $table, $rows, %settings) = @_;
	my $load = Redstream::Load->new($node, $redis, table => $table, rows => $rows);

	my $transactions = $load->pgbench($seconds, %settings);
	$load->settle;
	my %messages = map { ("$_->[0]:$_->[1]" => 1) } $load->main_messages;
	my $updates = grep { !/:0$/ } keys %messages;

	note "$name: $transactions transactions";
	cmp_ok($transactions, '>', 0, "$name: clients commit");
	is($load->committed, $transactions, "$name: what pgbench counted is in the table");
	is($updates, $transactions, "$name: as many updates are announced as were committed");
	is(scalar($load->main_messages), 2 * $transactions, "$name: with two messages each");
	is(scalar($load->delay_messages), 2 * $transactions, "$name: and two delay messages");
	is_deeply([ $load->inexact ], [], "$name: each row's messages are in commit order");
	is(stats($node)->{passed}, 0, "$name: no transaction was passed");
	return;
}

check_load('plain', 'plain', 1000);
check_load('few rows', 'few', 10);

# Few rows, too, where there are few transactions: rows must be fought for.
check_load('pause after the commit became visible',
	'pause', 20, 'redstream_test.commit_pause' => '20ms');

$node->backup('standby');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'standby', has_streaming => 1);
$standby->append_conf('postgresql.conf', "recovery_min_apply_delay = '100ms'");
$standby->start;
reconfigure($node, 'synchronous_standby_names' => '*');
$node->poll_query_until('postgres',
	q{SELECT sync_state = 'sync' FROM pg_stat_replication});
check_load('lagging synchronous standby', 'standby', 20, 'synchronous_commit' => 'remote_apply');

is($standby->safe_psql('postgres', 'SELECT sum(n) FROM standby'),
	$node->safe_psql('postgres', 'SELECT sum(n) FROM standby'), 'the standby has applied it');
is_deeply([ crashes($node), crashes($standby) ], [], 'no crash');

$standby->stop;
$node->stop;
done_testing;
