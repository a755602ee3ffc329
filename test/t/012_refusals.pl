# Redis answers, but with an error.  Whatever it refuses, it is sent again from
# there on, so that order ends right; and until it takes it, transactions fail.
# The exception is a key of the wrong type, which ails its own stream only.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Load;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep);

my $redis = new_redis('appendonly' => 'yes', 'lua-time-limit' => 50);
my $node = new_node('main', $redis, 'redstream.timeout' => '2s', 'log_statement' => 'none');

# Waits for another error than the first $count.
sub wait_for_error
{
	my ($pattern, $count) = @_;
	wait_until(
		"the error $pattern",
		sub {
			my $stats = stats($node);
			return $stats->{last_error} =~ $pattern && $stats->{errors} > ($count || 0);
		});
	return;
}

sub wait_until_connected
{
	wait_connected($node, 1);
	return;
}

# A refusal that is begun and ended by these functions, under load.
sub check_refusal
{
	my ($name, $table, $error, $begin, $end) = @_;
	my $load = Redstream::Load->new($node, $redis, table => $table, rows => 20);
	my $spooled = stats($node)->{spooled};

	# The last time without load afterwards, which would hide what is missing at the end.
	$load->start;
	foreach my $time (1 .. 3)
	{
		$load->progress(200);
		my $count = stats($node)->{errors};
		$begin->();
		wait_for_error($error, $count);
		sleep 0.4;
		$load->stop if $time == 3;
		$end->();
		wait_until_connected();
	}

	cmp_ok(stats($node)->{spooled}, '>', $spooled, "$name: transactions spool");
	is_deeply([ $load->errors ], [], "$name: and none fails");
	$load->check($name);
	return;
}

# ---- what heals by itself ----------------------------------------------------

check_refusal('out of memory', 'oom', qr/OOM/,
	sub { $redis->command('CONFIG', 'SET', 'maxmemory', '1mb') },
	sub { $redis->command('CONFIG', 'SET', 'maxmemory', '0') });

check_refusal('become a replica', 'replica', qr/READONLY/,
	sub { $redis->command('REPLICAOF', '127.0.0.1', '1') },
	sub { $redis->command('REPLICAOF', 'NO', 'ONE') });

my $busy;
check_refusal(
	'a script that does not end',
	'busy',
	qr/BUSY/,
	sub {
		open($busy, '-|', 'redis-cli', '-s', $redis->socket_path, 'EVAL', 'while true do end', '0')
		  or die "redis-cli: $!";
	},
	sub { $redis->command('SCRIPT', 'KILL'); close $busy });

# From here on whatever Redis refuses shows.  What the spool makes of it is tested in 092_spool_refused.pl.
reconfigure($node, 'redstream.on_outage' => 'error');

# ---- a lost connection -------------------------------------------------------

# The first loss is not an outage: nobody notices.
my $load = Redstream::Load->new($node, $redis, table => 'kill', rows => 20);
my $resent = stats($node)->{resent};

sub sender_kills
{
	my ($calls) = $redis->cli('INFO', 'commandstats') =~ /^cmdstat_client(?:\|kill)?:calls=(\d+)/m;
	return $calls || 0;
}

sub sender_id
{
	my ($id) = $redis->command('CLIENT', 'LIST') =~ /^id=(\d+) .*\bname=redstream-sender\b/m;
	return $id;
}

$load->start;
my $kills = sender_kills();
my $killed = 0;
wait_until(
	'messages sent again',
	sub {
		my $id = wait_until('a connection of the sender', \&sender_id);
		$load->progress(50);
		$redis->command('CLIENT', 'KILL', 'ID', $id);
		$killed++;
		return $killed >= 5 && stats($node)->{resent} > $resent;
	});
$load->progress(200);
$load->stop;
is_deeply([ $load->errors ], [], 'connection killed: no transaction fails');
$load->check('connection killed');
wait_until('the sender to make sure of the old connection',
	sub { sender_kills() >= $kills + 2 * $killed });
pass('each new connection kills the one before');

# A large transaction is copied from its delay messages, chunk by chunk; it goes on where
# it was.
$node->safe_psql('postgres', q{
	CREATE TABLE many (id integer PRIMARY KEY);
	SELECT redstream.attach('many');
});
my $session = Redstream::Session->new($node);
$session->send(q{
	SET redstream.transaction_buffer = '64kB';
	INSERT INTO many SELECT generate_series(1, 50000)});
$killed = 0;
wait_until(
	'the end of the large transaction',
	sub {
		my $id = sender_id();
		my $copied = $redis->command('XLEN', 'redstream:stream:many');
		return 1 if $redis->cli('--raw', 'XREVRANGE', 'redstream:stream:many', '+', '-', 'COUNT', 1) =~
		  /"id":50000\b/;
		$redis->command('CLIENT', 'KILL', 'ID', $id), $killed++ if $id;
		wait_until('some progress', sub {
			$redis->command('XLEN', 'redstream:stream:many') > $copied
			  || $redis->command('XLEN', 'redstream:stream:many.delay') < 50000 }, 10);
		return 0;
	},
	60);
is($session->result, '', 'connection killed: a large transaction commits');
settle($node, $redis);
my %seen;
my $messages = $redis->cli('--raw', 'XRANGE', 'redstream:stream:many', '-', '+');
my @first = grep { !$seen{$_}++ } $messages =~ /\{"id":(\d+)\}/g;
cmp_ok($killed, '>', 1, 'connection killed: more than once meanwhile');
is(join(' ', @first), join(' ', 1 .. 50000),
	'connection killed: and is announced completely, in order');

# ---- the wrong type ----------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY);
	SELECT redstream.attach('t');
	CREATE TABLE u (id integer PRIMARY KEY);
	SELECT redstream.attach('u');
});
$redis->command('SET', 'redstream:stream:t.delay', 'in the way');
$load->start;
foreach my $id (1 .. 3)
{
	my ($status, undef, $stderr) = $node->psql('postgres', "INSERT INTO t VALUES ($id)");
	isnt($status, 0, 'delay key of the wrong type: transactions on the stream fail');
	like($stderr, qr/ERROR:  could not announce changes: Redis refused a message for good/,
		'delay key of the wrong type: the error says why');
}
like(slurp_file($node->logfile), qr/DETAIL:  Last error: delay message: WRONGTYPE/,
	'delay key of the wrong type: the log has what Redis said');
my ($status, undef, $stderr) = $node->psql('postgres', q{
	SET redstream.on_outage = skip;
	INSERT INTO t VALUES (4)});
is($status, 0, 'delay key of the wrong type: skip commits');
like($stderr, qr/WARNING:  changes of this transaction are not announced/,
	'delay key of the wrong type: with a warning');
$load->progress(100);
$load->stop;
is_deeply([ $load->errors ], [], 'delay key of the wrong type: others go on');
is(stats($node)->{connected}, 1, 'delay key of the wrong type: this is no outage');
$redis->command('DEL', 'redstream:stream:t.delay');
$node->safe_psql('postgres', 'INSERT INTO t VALUES (5)');
is_deeply([ $redis->payloads('redstream:stream:t.delay') ], ['{"id":5}'],
	'delay key of the wrong type: heals when the key is gone');
settle($node, $redis);
is_deeply([ grep { /[123]/ } $redis->payloads('redstream:stream:t') ], [],
	'delay key of the wrong type: what failed is not announced');

# The commit is not undone by it: the delay message has the news.
my $errors = stats($node)->{errors};
$redis->command('SET', 'redstream:stream:u', 'in the way');
$load->start;
$node->safe_psql('postgres', "BEGIN; INSERT INTO u VALUES (1); INSERT INTO t VALUES (6); COMMIT");
is_deeply([ $redis->payloads('redstream:stream:u.delay') ], ['{"id":1}'],
	'main key of the wrong type: the delay message is there');
$load->progress(100);
$load->stop;
settle($node, $redis);
is(($redis->payloads('redstream:stream:t'))[-1], '{"id":6}',
	q{main key of the wrong type: the transaction's other stream has its message});
is_deeply([ $load->errors ], [], 'main key of the wrong type: others go on');
cmp_ok(stats($node)->{errors}, '>', $errors, 'main key of the wrong type: the error is counted');
like(stats($node)->{last_error}, qr/main message: WRONGTYPE/,
	'main key of the wrong type: and can be seen');
$redis->command('DEL', 'redstream:stream:u');
$node->safe_psql('postgres', 'INSERT INTO u VALUES (2)');
settle($node, $redis);
is_deeply([ $redis->payloads('redstream:stream:u') ], ['{"id":2}'],
	'main key of the wrong type: heals when the key is gone');
$load->check('keys of the wrong type');

# ---- messages that Redis will never take -------------------------------------

# Each limit makes Redis close the connection: it must not be tried for ever.
$node->safe_psql('postgres', q{
	CREATE TABLE large (id integer PRIMARY KEY, filler text);
	SELECT redstream.attach('large', payload => ARRAY['id', 'filler']);
});
my $large = 0;
foreach my $limit ('proto-max-bulk-len', 'client-query-buffer-limit')
{
	my ($default) = @{ $redis->command('CONFIG', 'GET', $limit) }[1];

	$redis->command('CONFIG', 'SET', $limit, 1024 * 1024);
	$large++;
	($status, undef, $stderr) =
	  $node->psql('postgres', "INSERT INTO large VALUES ($large, repeat('x', 2000000))");
	isnt($status, 0, "$limit: the transaction fails");
	like($stderr, qr/ERROR:  could not announce changes: Redis/, "$limit: the error says why");
	wait_until("$limit: others to go on", sub {
		$node->psql('postgres', "INSERT INTO large VALUES (10$large)") == 0 });
	settle($node, $redis);
	is(($redis->payloads('redstream:stream:large'))[-1], qq({"id":10$large,"filler":null}),
		"$limit: others are announced");
	$redis->command('CONFIG', 'SET', $limit, $default);
}
is(scalar($redis->payloads('redstream:stream:large')), 2, 'too large: not announced');

# ---- passwords ---------------------------------------------------------------

my $password_file = $node->basedir . '/password';

sub write_password
{
	my ($password, $mode) = @_;
	unlink $password_file;
	append_to_file($password_file, "$password\n");
	chmod($mode, $password_file) or die "$password_file: $!";
	return;
}

sub drop_clients
{
	$redis->command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
	return;
}

$redis->command('CONFIG', 'SET', 'requirepass', 'pa55word');
drop_clients();
wait_for_error(qr/NOAUTH/);
($status, undef, $stderr) = $node->psql('postgres', 'INSERT INTO t VALUES (10)');
isnt($status, 0, 'password needed: transactions fail');
like($stderr, qr/Redis is not available/, 'password needed: the error says so');
like(slurp_file($node->logfile), qr/Last error: HELLO on .*NOAUTH/,
	'password needed: the log has what Redis said');

write_password('pa55word', 0644);
reconfigure($node, 'redstream.password_file' => $password_file);
wait_for_error(qr/\Q$password_file\E/);
like(stats($node)->{last_error}, qr/readable|permission|access/i,
	'password file that others can read: refused');
write_password('wr0ng', 0600);
wait_for_error(qr/WRONGPASS/);
pass('wrong password: refused');
write_password('pa55word', 0600);
wait_until_connected();
$node->safe_psql('postgres', 'INSERT INTO t VALUES (11)');
settle($node, $redis);
is(($redis->payloads('redstream:stream:t'))[-1], '{"id":11}',
	'right password: messages arrive, without another reload');
unlike(slurp_file($node->logfile), qr/pa55word|wr0ng/, 'no password is in the server log');
$redis->command('CONFIG', 'SET', 'requirepass', '');

# ---- permissions -------------------------------------------------------------

sub as_admin
{
	return $redis->cli('--user', 'admin', '--pass', 'admin', '--no-auth-warning', @_);
}

my $limited = Redstream::Load->new($node, $redis, table => 'limited', rows => 20);
$redis->command('ACL', 'SETUSER', 'admin', 'on', '>admin', '~*', '&*', '+@all');
as_admin('ACL', 'SETUSER', 'default', '-client', '-info');
as_admin('CLIENT', 'KILL', 'TYPE', 'normal');
$limited->start;
$limited->progress(100);
as_admin('CLIENT', 'KILL', 'TYPE', 'normal');
$limited->progress(100);
$limited->stop;
is_deeply([ $limited->errors ], [], 'without CLIENT and INFO: it works');
$limited->check('without CLIENT and INFO');

# What cannot be made sure is not taken for granted.
as_admin('ACL', 'SETUSER', 'default', '+client', '+info', '-client|kill');
as_admin('CLIENT', 'KILL', 'TYPE', 'normal');
wait_until_connected();
$limited->start;
$limited->progress(10);
as_admin('CLIENT', 'KILL', 'TYPE', 'normal');
wait_for_error(qr/CLIENT KILL.*NOPERM/);
pass('without CLIENT KILL: no second connection while the first may still be read');
as_admin('ACL', 'SETUSER', 'default', '+client');
wait_until_connected();
$limited->progress(10);
$limited->stop;
$limited->check('with it again');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
