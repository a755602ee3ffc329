# Settings that a reload changes, while transactions go on.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $first = new_redis;
my $second = new_redis;
my $node = new_node('main', $first, 'redstream.timeout' => '5s', 'redstream.on_outage' => 'error',
	'log_statement' => 'none');
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t');
});
my $key = 'redstream:stream:t';
my $session = Redstream::Session->new($node);

sub wait_for_message
{
	my ($redis, $stream_key, $id) = @_;
	wait_until("message $id on $stream_key",
		sub { grep { $_ eq qq({"id":$id}) } $redis->payloads($stream_key) });
	pass("message $id is on $stream_key");
	return;
}

sub wait_for_error
{
	my ($pattern) = @_;
	wait_until("the error $pattern", sub { stats($node)->{last_error} =~ $pattern });
	return;
}

is($session->query('INSERT INTO t VALUES (1)'), '', 'a transaction before any reload');
wait_for_message($first, $key, 1);

# ---- url ---------------------------------------------------------------------

# Everything arrives at the one or the other.
my $load = Redstream::Load->new($node, $first, rows => 50);
$load->start(clients => 4);
foreach my $redis ($second, $first, $second)
{
	$load->progress(100);
	reconfigure($node, 'redstream.url' => $redis->url);
}
wait_until('a connection to the second Redis',
	sub { $second->command('CLIENT', 'LIST') =~ /name=redstream-sender/ });
$load->progress(100);
$load->stop;
is_deeply([ $load->errors ], [], 'url: no transaction fails');
$load->settle;
my @messages = ($load->main_messages, $load->delay_messages);
$load->{redis} = $second;
push @messages, $load->main_messages, $load->delay_messages;
is_deeply([ $load->missing(@messages) ], [],
	'url: every committed change is announced at one of the two');
unlike($first->command('CLIENT', 'LIST'), qr/redstream-sender/,
	'url: the first has no connection left');

is($session->query('INSERT INTO t VALUES (2)'), '', 'url: an old session goes on');
wait_for_message($second, $key, 2);
is_deeply([ $first->payloads($key) ], ['{"id":1}'], 'url: the first Redis gets nothing any more');
is($node->safe_psql('postgres', q{SELECT redstream.stream_size('t')}), 1,
	'url: functions ask the second Redis');

# A URL that makes no sense changes nothing: neither by ALTER SYSTEM nor in the file.
my ($status, undef, $stderr) =
  $node->psql('postgres', q{ALTER SYSTEM SET redstream.url = 'http://localhost'});
isnt($status, 0, 'bad url: ALTER SYSTEM refuses it');
like($stderr, qr/invalid value for parameter "redstream.url".*\n.*DETAIL:.*unknown scheme "http"/,
	'bad url: and says why');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET redstream.url');
$node->append_conf('postgresql.conf', q{redstream.url = 'redis://localhost:port'});
my $log_offset = -s $node->logfile;
$node->reload;
wait_until('the refusal in the log', sub {
	slurp_file($node->logfile, $log_offset) =~ /configuration file .* contains errors/ });
like(slurp_file($node->logfile, $log_offset), qr/invalid value for parameter "redstream.url"/,
	'bad url: a reload refuses it');
is($session->query('INSERT INTO t VALUES (3)'), '', 'bad url: transactions go on');
wait_for_message($second, $key, 3);
$node->append_conf('postgresql.conf', "redstream.url = '" . $second->url . "'");
reconfigure($node, 'redstream.timeout' => '4s');

# ---- a password in the url ---------------------------------------------------

$log_offset = -s $node->logfile;
($status, undef, $stderr) = $node->psql('postgres',
	q{ALTER SYSTEM SET redstream.url = 'redis://user:s3cret@localhost/0'});
is($status, 0, 'password in the url: accepted');
like($stderr, qr/WARNING:  redstream.url contains a password/,
	'password in the url: with a warning for who set it');
like($stderr, qr/HINT:.*redstream\.password_file/,
	'password in the url: which names the better way');
like(slurp_file($node->logfile, $log_offset), qr/WARNING:  redstream.url contains a password/,
	'password in the url: and in the log');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET redstream.url');

# By the configuration file, the postmaster warns, once.
my $port = PostgreSQL::Test::Cluster::get_free_port();
$log_offset = -s $node->logfile;
$node->append_conf('postgresql.conf', "redstream.url = 'redis://:s3cret\@127.0.0.1:$port/0'");
$node->reload;
wait_for_error(qr/127\.0\.0\.1:$port/);
is(() = slurp_file($node->logfile, $log_offset) =~ /WARNING:  redstream.url contains a password/g,
	1, 'password in the url: a reload warns once, in the log');
unlike(stats($node)->{last_error}, qr/s3cret/, 'password in the url: not in the error');
unlike($session->query('INSERT INTO t VALUES (4)'), qr/s3cret/,
	'password in the url: nor in what a user is told');
$node->append_conf('postgresql.conf', "redstream.url = '" . $second->url . "'");
$node->reload;
wait_connected($node, 1);

# ---- password_file -----------------------------------------------------------

my $password_file = $node->basedir . '/password';
append_to_file($password_file, "pa55word\n");
chmod(0600, $password_file) or die "$password_file: $!";
$second->command('CONFIG', 'SET', 'requirepass', 'pa55word');
$second->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
wait_for_error(qr/NOAUTH/);
reconfigure($node, 'redstream.password_file' => $password_file);
wait_connected($node, 1);
is($session->query('INSERT INTO t VALUES (5)'), '', 'password_file: takes effect on reload');
wait_for_message($second, $key, 5);
reconfigure($node, 'redstream.password_file' => '/nonexistent');
wait_for_error(qr{/nonexistent});
like($session->query('INSERT INTO t VALUES (6)'), qr/ERROR:  could not announce changes/,
	'password_file: a missing one is an outage');
$second->command('CONFIG', 'SET', 'requirepass', '');
reconfigure($node, 'redstream.password_file' => '');
wait_connected($node, 1);

# ---- namespace ---------------------------------------------------------------

# A transaction that has begun keeps its keys; one after the reload has the new.
$session->query('BEGIN; INSERT INTO t VALUES (7)');
reconfigure($node, 'redstream.namespace' => 'shop');
$session->query('COMMIT');
wait_for_message($second, $key, 7);
is($session->query('INSERT INTO t VALUES (8)'), '', 'namespace: an old session goes on');
wait_for_message($second, "shop:$key", 8);
is($session->query(q{SELECT redstream.stream_key('t')}), "shop:$key",
	'namespace: functions have it');
is_deeply([ $second->payloads("shop:$key.delay") ], ['{"id":8}'],
	'namespace: delay messages, too');
($status, undef, $stderr) =
  $node->psql('postgres', qq{ALTER SYSTEM SET redstream.namespace = E'a\\nb'});
isnt($status, 0, 'namespace: a bad one is refused');
reconfigure($node, 'redstream.namespace' => '');
is($session->query('INSERT INTO t VALUES (9)'), '', 'namespace: back to none');
wait_for_message($second, $key, 9);

# ---- timeout -----------------------------------------------------------------

# A session that waits takes up the new timeout with its next wait.
$second->stop_signal;
reconfigure($node, 'redstream.timeout' => '100ms');
like($session->query('INSERT INTO t VALUES (10)'),
	qr/ERROR:  could not announce changes: Redis/, 'timeout: the short one fails');
$second->cont;
wait_connected($node, 1);
reconfigure($node, 'redstream.timeout' => '10min');
$second->stop_signal;
$session->send('INSERT INTO t VALUES (11)');
wait_until('the session to wait', sub { sessions_waiting($node) == 1 });
sleep 1;
is(sessions_waiting($node), 1, 'timeout: the long one waits');
$second->cont;
is($session->result, '', 'timeout: and is released');
wait_for_message($second, $key, 11);

is($node->safe_psql('postgres', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM t}),
	'1 2 3 5 7 8 9 11', 'what was announced is what was committed');
is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
