# redstream.wait_replicas: Redis counts as away while it has too few replicas, and what it has
# acknowledged survives it on the replica.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Test;
use Test::More;

my %with_port = (bind => '127.0.0.1', 'repl-diskless-sync-delay' => 0);
my $redis = new_redis(port => PostgreSQL::Test::Cluster::get_free_port(), %with_port);
my $replica = $redis->replica(port => PostgreSQL::Test::Cluster::get_free_port(), %with_port);
my $node = new_node('main', $redis, 'redstream.wait_replicas' => 1, 'redstream.timeout' => '1s',
	'log_statement' => 'none');
my $key = 'redstream:stream:item';
my $too_few = qr/^only 0 of 1 replicas have acknowledged$/;

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item')});

# Runs what makes the sender fail, and waits until it has failed in this way.
sub fails_with
{
	my ($name, $pattern, $cause) = @_;
	my $errors = stats($node)->{errors};

	$cause->();
	wait_until($name, sub {
		my $stats = stats($node);
		return $stats->{errors} > $errors && !$stats->{connected} && $stats->{last_error} =~ $pattern;
	});
	pass($name);
	return;
}

# ---- the replica is there ---------------------------------------------------------------

foreach my $id (1 .. 20)
{
	$node->safe_psql('postgres', "INSERT INTO item VALUES ($id)");
	is(scalar($replica->payloads("$key.delay")), $id, "commit $id: the replica has its delay message");
}
settle($node, $redis);
is_deeply([ $replica->payloads($key) ], [ map { qq({"id":$_}) } 1 .. 20 ],
	'acknowledged: the replica has the main messages, in order');

# A large transaction is published in many chunks.
$redis->command('DEL', $key, "$key.delay");
$node->safe_psql('postgres', q{
	SET redstream.transaction_buffer = '64kB';
	INSERT INTO item SELECT generate_series(100001, 130000)});
settle($node, $redis);
is_deeply([ $replica->payloads($key) ], [ map { qq({"id":$_}) } 100001 .. 130000 ],
	'a large transaction: once, in order, and on the replica');

# ---- the replica is gone, under load -----------------------------------------------------

# A fault under load.
sub check_fault
{
	my ($name, $table, $begin, $end) = @_;
	my $load = Redstream::Load->new($node, $redis, table => $table, rows => 100);

	$load->check_outage($name, $too_few, $begin, $end);
	return;
}

check_fault('replica stopped', 'stopped', sub { $replica->stop_signal }, sub { $replica->cont });
check_fault('replica killed', 'killed', sub { $replica->kill9 }, sub { $replica->start });

# A publication that the loss of the replica interrupts goes on.
$redis->command('DEL', $key, "$key.delay");
$node->safe_psql('postgres', q{
	SET redstream.transaction_buffer = '64kB';
	INSERT INTO item SELECT generate_series(200001, 400000)});
wait_until('its beginning', sub { $redis->command('XLEN', $key) > 0 });
$replica->stop_signal;
wait_connected($node, 0);
cmp_ok($redis->command('XLEN', $key), '<', 200_000, 'a publication is interrupted');
$replica->cont;
wait_connected($node, 1);
settle($node, $redis);
my %seen;
is_deeply([ grep { !$seen{$_}++ } $replica->payloads($key) ], [ map { qq({"id":$_}) } 200001 .. 400000 ],
	'and goes on: everything, in order, on the replica');
cmp_ok($replica->command('XLEN', $key), '<', 220_000, 'not from its beginning');
$redis->command('DEL', $key, "$key.delay");

# ---- the replica is gone, with nothing under way ------------------------------------------

# The claim of the server key is written now and then.
$replica->stop_signal;
wait_connected($node, 0);
my (undef, undef, $stderr) = $node->psql('postgres', q{
	SET redstream.on_outage = 'error'; INSERT INTO item VALUES (51)});
like($stderr, qr/ERROR:  could not announce changes: Redis is not available/,
	'on_outage = error: the transaction fails at once');
(undef, undef, $stderr) = $node->psql('postgres', q{
	SET redstream.on_outage = 'skip'; INSERT INTO item VALUES (52)});
like($stderr, qr/WARNING:/, 'on_outage = skip: a warning');
is($node->safe_psql('postgres', 'SELECT id FROM item WHERE id IN (51, 52)'), 52,
	'on_outage = skip: it is committed');

# ---- what does not go through the lanes --------------------------------------------------------

# What Redis has refused is spooled, and the worker sends it.
$node->safe_psql('postgres', q{
	CREATE TABLE refused (id integer PRIMARY KEY);
	SELECT redstream.attach('refused')});
$replica->cont;
wait_connected($node, 1);
$redis->command('SET', 'redstream:stream:refused.delay', 'x');
$node->safe_psql('postgres', q{INSERT INTO refused VALUES (1)});
wait_until('a refusal', sub {
	$node->safe_psql('postgres', q{
		SELECT last_error FROM redstream.workers WHERE kind = 'spooler'}) =~ /WRONGTYPE/ });
$replica->stop_signal;
$redis->command('DEL', 'redstream:stream:refused.delay');
wait_connected($node, 0);
is(stats($node)->{spool_rows}, 1, 'without the replica it stays in the spool');
$replica->cont;
wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 });
is(($replica->payloads('redstream:stream:refused'))[-1], '{"id":1}', 'and is delivered when it is back');
$replica->stop_signal;

# ---- another number -----------------------------------------------------------------------

reconfigure($node, 'redstream.wait_replicas' => 0);
wait_connected($node, 1);
$node->safe_psql('postgres', 'INSERT INTO item VALUES (53)');
pass('0: without a replica');
fails_with('1 again: none is there', $too_few,
	sub { reconfigure($node, 'redstream.wait_replicas' => 1) });
$replica->cont;
wait_connected($node, 1);
fails_with('2: one is too few', qr/^only 1 of 2 replicas have acknowledged$/,
	sub { reconfigure($node, 'redstream.wait_replicas' => 2) });
reconfigure($node, 'redstream.wait_replicas' => 1);
wait_connected($node, 1);

# ---- failover -----------------------------------------------------------------------------

my $load = Redstream::Load->new($node, $redis, table => 'failover', rows => 100);
$load->start;
$load->progress(1000);
$redis->kill9;
wait_connected($node, 0);
$replica->command('REPLICAOF', 'NO', 'ONE');
my $second = $replica->replica;
reconfigure($node, 'redstream.url' => $replica->url);
wait_connected($node, 1);
$load->progress(1000);
$load->stop;
$load->{redis} = $replica;
$load->check('failover');
is(stats($node)->{losses}, 0, 'failover: nothing is lost, nor said to be');

# ---- a replica instead of its master ---------------------------------------------------------

fails_with('a read-only replica is an outage that says so', qr/READONLY/,
	sub { reconfigure($node, 'redstream.url' => $second->url) });
$node->safe_psql('postgres', 'INSERT INTO item VALUES (54)');
is(stats($node)->{spool_rows}, 1, 'on_outage applies');
$second->command('REPLICAOF', 'NO', 'ONE');
reconfigure($node, 'redstream.wait_replicas' => 0);
wait_connected($node, 1);
wait_until('an empty spool', sub { stats($node)->{spool_rows} == 0 });
pass('promoted: it is used without being told');

# The other way round: a master is made a replica while it is in use.
my $third = new_redis(port => PostgreSQL::Test::Cluster::get_free_port(), %with_port);
$second->command('REPLICAOF', '127.0.0.1', $third->command('CONFIG', 'GET', 'port')->[1]);
fails_with('a master that was made a replica is an outage that says so', qr/READONLY/,
	sub { $node->psql('postgres', 'INSERT INTO item VALUES (55)') });

is_deeply([ crashes($node) ], [], 'no panic and no crash');
$node->stop;
done_testing;
