# Redis comes back with less than it had acknowledged: redstream notices, says so once, and no
# longer relies on what it knew.  It says nothing when nothing is lost.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my %with_port = (bind => '127.0.0.1', 'repl-diskless-sync-delay' => 0);
my $redis = new_redis(port => PostgreSQL::Test::Cluster::get_free_port(), %with_port,
	appendonly => 'yes', appendfsync => 'no');
my $node = new_node('main', $redis, 'redstream.delay' => '1h', 'redstream.repeat' => 'unconfirmed',
	'log_statement' => 'none');
my $other = new_node('other', $redis);
my $key = 'redstream:stream:item';
my $said = qr/WARNING:  redstream: Redis has less than it had acknowledged/;
my $next_id = 1;

foreach my $server ($node, $other)
{
	$server->safe_psql('postgres', q{
		CREATE TABLE item (id integer PRIMARY KEY);
		SELECT redstream.attach('item')});
}

sub losses { return stats($_[0] || $node)->{losses}; }

sub connected
{
	wait_until('a connection', sub { eval { stats($node)->{connected} } });
	return;
}

# Commits, each with a marker of its own or not.
sub write_some
{
	connected();
	$node->safe_psql('postgres', 'INSERT INTO item VALUES (' . $next_id++ . ')') foreach 1 .. 3;
	return;
}

# What is done there is noticed; with "writing", by the next commits.
sub loses
{
	my ($name, $action, $detail, $writing) = @_;
	my $before = losses();
	my $offset = -s $node->logfile;

	$action->();
	write_some() if $writing;
	wait_until("$name: noticed", sub { losses() > $before });
	write_some();
	settle($node, $redis);
	is(losses(), $before + 1, "$name: noticed once");
	my $log = slurp_file($node->logfile, $offset);
	is(scalar(() = $log =~ /$said/g), 1, "$name: said once in the log");
	like($log, $detail, "$name: and how");
	return;
}

my $emptied = qr/DETAIL:  It has lost the marker of this server/;
my $older = qr/DETAIL:  The marker of this server is \d+, and was \d+ before/;

# ---- nothing is lost --------------------------------------------------------------------

$other->safe_psql('postgres', 'INSERT INTO item VALUES (0)');
my $load = Redstream::Load->new($node, $redis, rows => 100);
$load->start(clients => 4);
$load->progress(200);
$redis->kill9;
$redis->start;
$load->progress(200);
kill 'TERM', sender_pid($node);
$load->progress(200);
$redis->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
$load->progress(200);
$redis->restart;
$load->progress(200);
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()});
$load->progress(200);
is(losses(), 0, 'Redis, the sender and connections restarted: nothing is said');
$load->stop;
is_deeply([ crashes($node) ], [], 'no crash');
$node->restart;
write_some();
$node->stop('immediate');
$node->start;
write_some();
is(losses(), 0, 'PostgreSQL restarted, and crashed: nothing is said');

reconfigure($node, 'redstream.namespace' => 'elsewhere');
write_some();
reconfigure($node, 'redstream.namespace' => '');
write_some();
wait_until('the message', sub { grep { $_ eq sprintf '{"id":%d}', $next_id - 1 } $redis->payloads($key) });
is(losses(), 0, 'another namespace: nothing is said');
my $since = stats($node)->{since};
reconfigure($node, 'redstream.delay' => '2h');
write_some();
is(stats($node)->{since}, $since, 'the same namespace at a reload is not another one');
is(losses($other), 0, 'nor by another server');
unlike(slurp_file($node->logfile), $said, 'nor in the log');

# ---- FLUSHALL -----------------------------------------------------------------------------

loses('FLUSHALL, idle', sub { $redis->command('FLUSHALL') }, $emptied);
wait_until('the other server to notice, too', sub { losses($other) == 1 });
like(stats($other)->{last_error}, qr/^Redis has less than it had acknowledged$/, 'both servers notice');

# The session has told Redis of the stream and does so again.
my $session = Redstream::Session->new($node);
$session->query(q{SELECT redstream.emit('mails', '{}')});
loses('FLUSHALL, writing', sub { $redis->command('FLUSHALL') }, $emptied, 1);
my $listed = sub {
	grep { $_ eq 'mails' } map { @{ $redis->command('SMEMBERS', $_) } }
	  @{ $redis->command('KEYS', 'redstream:streams:*') };
};
is($listed->(), 0, 'the streams of the server are forgotten');
$session->query(q{SELECT redstream.emit('mails', '{}')});
is($listed->(), 1, 'and listed again');

# What was confirmed before is not any more.
$node->safe_psql('postgres', 'INSERT INTO item VALUES (' . $next_id++ . ')');
settle($node, $redis);
my $messages = $redis->command('DUMP', "$key.delay");
my @left = $redis->payloads("$key.delay");
loses('FLUSHALL, but for delay messages', sub {
	$redis->command('EVAL', q{
		redis.call('FLUSHALL')
		redis.call('RESTORE', KEYS[1], 0, ARGV[1])}, 1, "$key.delay", $messages);
}, $emptied);
reconfigure($node, 'redstream.delay' => '0');
wait_until('the delay messages', sub { $redis->command('XLEN', "$key.delay") == 0 });
my %announced = map { $_ => 1 } $redis->payloads($key);
is_deeply([ grep { !$announced{$_} } @left ], [], 'repeat = unconfirmed: they are announced, as nothing is confirmed');
reconfigure($node, 'redstream.delay' => '1h');

# ---- a restart ------------------------------------------------------------------------------

$redis->configure(appendonly => 'no');
$redis->restart;
write_some();
loses('an older dump', sub {
	$redis->command('SAVE');
	write_some();
	$redis->kill9;
	$redis->start;
}, $older);
loses('no dump', sub {
	$redis->kill9;
	unlink $redis->directory . '/dump.rdb';
	$redis->start;
}, $emptied);

# ---- another Redis ---------------------------------------------------------------------------

my $replica = $redis->replica;
$replica->command('REPLICAOF', 'NO', 'ONE');
write_some();
loses('a replica that has not got everything is promoted', sub {
	$redis->kill9;
	$redis = $replica;
	reconfigure($node, 'redstream.url' => $redis->url);
}, $older);
loses('another Redis', sub {
	$redis = new_redis;
	reconfigure($node, 'redstream.url' => $redis->url);
}, $emptied);

$_->stop foreach $node, $other;
done_testing;
