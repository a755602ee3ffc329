# Redis dies, or hangs, in the middle of load.  No transaction that reported its
# commit goes unannounced, none waits for ever, and when Redis is back
# everything goes on by itself.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Test;
use Test::More;

# Redis forgets nothing that it acknowledged.
my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'log_statement' => 'none');

# A fault under load.
sub check_fault
{
	my ($name, $table, $begin, $end) = @_;
	my $load = Redstream::Load->new($node, $redis, table => $table, rows => 100);

	$load->check_outage($name, qr/./, $begin, $end);
	return;
}

check_fault('SIGKILL', 'killed', sub { $redis->kill9 }, sub { $redis->start });
check_fault('SIGKILL again', 'killed_again', sub { $redis->kill9 }, sub { $redis->start });

# What Redis had been sent before it was stopped, it executes when it goes on.
check_fault('SIGSTOP', 'stopped', sub { $redis->stop_signal }, sub { sleep 3; $redis->cont });
cmp_ok(stats($node)->{resent}, '>', 0, 'what was not acknowledged was sent again');
cmp_ok(stats($node)->{errors}, '>', 0, 'errors are counted');

# A stop too short to be noticed fails nothing.
{
	my $load = Redstream::Load->new($node, $redis, table => 'blinked', rows => 100);

	reconfigure($node, 'redstream.timeout' => '30s');
	my ($resent, $spooled) = @{ stats($node) }{qw(resent spooled)};
	$load->start;
	foreach (1 .. 3)
	{
		$load->progress(100);
		$redis->stop_signal;
		sleep 1;
		$redis->cont;
	}
	$load->progress(100);
	$load->stop;
	is_deeply([ $load->errors ], [], 'short stop: no transaction failed');
	is(stats($node)->{spooled}, $spooled, 'short stop: none went to the spool');
	$load->check('short stop');
	is_deeply([ $load->inexact ], [], 'short stop: every message once');
	is(stats($node)->{resent}, $resent, 'short stop: nothing was sent again');
}

# While Redis is known to be away nobody waits.  With this timeout a transaction
# that waited would do so for ten minutes at least.
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, n integer);
	SELECT redstream.attach('t');
});
$redis->stop;
wait_until('an outage',
	sub { stats($node)->{last_error} =~ /redis\.sock: (?!.*closed)/ });
reconfigure($node, 'redstream.timeout' => '10min');
my ($status, undef, $stderr) = $node->psql('postgres', 'SET redstream.on_outage = error; INSERT INTO t VALUES (1)');
isnt($status, 0, 'known to be down: the transaction fails');
like($stderr, qr/ERROR:  could not announce changes: Redis is not available/,
	'known to be down: and says why');
unlike($stderr, qr/redis\.sock/, 'known to be down: a client is not told where Redis is');
like(slurp_file($node->logfile), qr/DETAIL:  Last error: .*redis\.sock/,
	'known to be down: the log is, with the last error');
is($node->safe_psql('postgres', 'SELECT count(*) FROM t'), 0,
	'known to be down: nothing was committed');
is($node->safe_psql('postgres', q{
	SET redstream.enabled = off;
	INSERT INTO t VALUES (2);
	SELECT count(*) FROM t}), 1, 'known to be down: what announces nothing goes on');

# on_outage = skip
my $skipped = stats($node)->{skipped};
($status, undef, $stderr) = $node->psql('postgres', q{
	SET redstream.on_outage = skip;
	INSERT INTO t SELECT generate_series(11, 15)});
is($status, 0, 'skip: the transaction commits');
like($stderr, qr/WARNING:  changes of this transaction are not announced: Redis is not available/,
	'skip: with a warning');
is(stats($node)->{skipped}, $skipped + 5, 'skip: the messages are counted as lost');
($status) = $node->psql('postgres', q{
	SET redstream.on_outage = skip;
	BEGIN;
	INSERT INTO t VALUES (21);
	ROLLBACK});
is(stats($node)->{skipped}, $skipped + 5, 'skip: those of a rolled-back transaction are not');

$redis->start;
wait_connected($node, 1);
$node->safe_psql('postgres', 'INSERT INTO t VALUES (31)');
wait_until('the message', sub { $redis->command('EXISTS', 'redstream:stream:t') });
is_deeply([ $redis->payloads('redstream:stream:t') ], ['{"id":31}'],
	'afterwards messages arrive, and none of what failed or was skipped');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
