# The name of Redis' host: one that does not exist, and one whose name server is silent.  Nobody is held up by
# it: no commit, no shutdown, no cancelled query, no barrier, and not the program either.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Consumer;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

# Whoever hangs, hangs for ever here: before the file is there no name is resolved.
my $PATIENCE = 60;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $redis = new_redis(port => $port, bind => '127.0.0.1');
my $file = PostgreSQL::Test::Utils::tempdir() . '/resolver';
my ($library) = run_command([ 'pg_config', '--pkglibdir' ]);
my %resolver = (LD_PRELOAD => "$library/resolver.so", REDSTREAM_TEST_RESOLVER => $file);
my $node;

sub asked
{
	my ($pid) = @_;
	return -e "$file.asked" && scalar grep { $_ == $pid } split /\n/, slurp_file("$file.asked");
}

sub start
{
	local %ENV = (%ENV, %resolver);
	unlink $file, "$file.asked";
	$node->start;
	return;
}

# Stops it; the time that takes is checked.
sub stop
{
	my ($what) = @_;
	local $ENV{PGCTLTIMEOUT} = $PATIENCE;
	ok($node->stop('fast', fail_ok => 1), "$what: a shutdown ends") or $node->stop('immediate');
	return;
}

# ---- a name that does not exist --------------------------------------------------

{
	local %ENV = (%ENV, %resolver);
	$node = new_node('main', undef, 'redstream.url' => "redis://unknown.test:$port",
		'redstream.on_outage' => 'skip');
}
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t')});
wait_until('an outage', sub { stats($node)->{last_error} =~ /^resolve unknown\.test:$port: / });
pass('unknown: last_error says so');
wait_until('an outage of the worker', sub {
	$node->safe_psql('postgres', 'SELECT count(*) FROM redstream.workers WHERE last_error LIKE $$resolve unknown.test:%$$') >= 2;
});
pass('unknown: so do the workers');

# Who waited would wait for ten minutes at least.
reconfigure($node, 'redstream.timeout' => '10min');
is(($node->psql('postgres', 'INSERT INTO t VALUES (1)'))[0], 0, 'unknown: a commit is not held up');
like(($node->psql('postgres', q{SELECT redstream.stream_size('t')}))[2],
	qr/ERROR:  could not ask Redis: resolve unknown\.test:$port: /, 'unknown: nor is a function');
stop('unknown');

# ---- a silent name server: with a timeout ----------------------------------------------

$node->append_conf('postgresql.conf', "redstream.url = 'redis://held.test:$port'\n");
$node->adjust_conf('postgresql.auto.conf', 'redstream.timeout', "'500ms'");
start();
wait_until('the sender to ask', sub { my $pid = sender_pid($node); $pid && asked($pid) });
my $begun = time;
is(($node->psql('postgres', 'INSERT INTO t VALUES (2)'))[0], 0, 'silent: a commit ends');
cmp_ok(time - $begun, '<', $PATIENCE, 'silent: in time');
like(($node->psql('postgres', q{SELECT redstream.stream_size('t')}, timeout => $PATIENCE))[2],
	qr/ERROR:  could not ask Redis: resolve held\.test:$port: timeout after 500 ms/,
	'silent: a function says so');
wait_until('an outage', sub { stats($node)->{last_error} =~ /^resolve held\.test:$port: timeout/ });
pass('silent: last_error says so');
stop('silent');

# ---- without one ------------------------------------------------------------------------------

$node->adjust_conf('postgresql.auto.conf', 'redstream.timeout', "'10min'");
start();
wait_until('the sender to ask', sub { my $pid = sender_pid($node); $pid && asked($pid) });
wait_until('the worker to ask', sub {
	my $pid = $node->safe_psql('postgres', q{SELECT pid FROM redstream.workers WHERE kind = 'delayer'});
	$pid && asked($pid);
});
foreach my $query (q{SELECT redstream.stream_size('t')}, q{SELECT * FROM redstream.consume('t', 'c')})
{
	my $session = Redstream::Session->new($node);

	$session->send($query);
	wait_until("$query to ask", sub { asked($session->pid) });
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	is(($node->psql('postgres', 'DROP DATABASE other', timeout => $PATIENCE))[0], 0,
		"silent: $query and the worker take part in a barrier");
	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
	like($session->result, qr/canceling statement due to user request/, "silent: $query is cancelled");
	$session->send($query);
	wait_until("$query", sub {
		$node->safe_psql('postgres', 'SELECT state FROM pg_stat_activity WHERE pid = ' . $session->pid) eq 'active';
	});
	$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $session->pid . ')');
	wait_until("$query to be terminated", sub {
		!$node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_activity WHERE pid = ' . $session->pid);
	}, $PATIENCE);
	pass("silent: $query is terminated");
}

# An address that is right is taken up at once.
reconfigure($node, 'redstream.url' => $redis->url);
wait_connected($node, 1);
wait_until('a connection of the worker', sub { $redis->command('CLIENT', 'LIST') =~ /name=redstream-worker/ });
pass('silent: another address is taken up');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (3)');
settle($node, $redis);
is_deeply([ $redis->payloads('redstream:stream:t') ], ['{"id":3}'], 'silent: and messages arrive');
reconfigure($node, 'redstream.url' => "redis://held.test:$port");
wait_until('the sender to ask', sub { asked(sender_pid($node)) });
stop('silent, without a timeout');

# ---- the name server answers at last ----------------------------------------------------------

$node->adjust_conf('postgresql.auto.conf', 'redstream.timeout', "'500ms'");
start();
wait_until('an outage', sub { stats($node)->{last_error} =~ /^resolve held\.test:$port: timeout/ });
append_to_file($file, '');
wait_connected($node, 1);
$node->safe_psql('postgres', 'INSERT INTO t VALUES (4)');
settle($node, $redis);
is_deeply([ $redis->payloads('redstream:stream:t') ], [ '{"id":3}', '{"id":4}' ], 'answered: messages arrive');
stop('answered');
is_deeply([ crashes($node) ], [], 'no crash');

# ---- the program ---------------------------------------------------------------------------------

unlink $file;
my $consumer = Redstream::Consumer->new(undef, url => "redis://unknown.test:$port", environment => \%resolver);
$consumer->wait_log(qr/resolve unknown\.test:$port: .*trying again/);
is($consumer->stop, 0, 'the program, unknown: ends');
$consumer = Redstream::Consumer->new(undef, url => "redis://held.test:$port", environment => \%resolver);
wait_until('the program to ask', sub { asked($consumer->pid) });
is($consumer->stop, 0, 'the program, silent: ends');
$consumer = Redstream::Consumer->new(undef, url => "redis://held.test:$port", environment => \%resolver);
wait_until('the program to ask', sub { asked($consumer->pid) });
append_to_file($file, '');
$consumer->wait_log(qr/connected to /);
is($consumer->stop, 0, 'the program, answered: connects');

done_testing;
