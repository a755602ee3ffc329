# Two-phase commit: the messages of a prepared transaction are in the spool with it,
# are delivered when it is committed, by whomever, and vanish when it is rolled back.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes', appendfsync => 'always');
my $node = new_node('main', $redis, 'redstream.timeout' => '1s', 'redstream.delay' => '1h');

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer DEFAULT 0);
	SELECT redstream.attach('item', payload => '{id,n}')});

sub main_of { return join ' ', $redis->payloads('redstream:stream:item'); }

sub prepare
{
	my ($name, $sql) = @_;
	return $node->safe_psql('postgres', "BEGIN; $sql; PREPARE TRANSACTION '$name'");
}

sub finish
{
	my ($what, $name) = @_;
	return $node->safe_psql('postgres', "$what PREPARED '$name'");
}

sub check_arrived
{
	my ($what, @payloads) = @_;
	wait_until("$what: its messages", sub { main_of() =~ /\Q$payloads[-1]\E/ });
	wait_until("$what: an empty spool", sub { stats($node)->{spool_rows} == 0 });
	is(main_of(), join(' ', @payloads), $what);
	$redis->command('DEL', 'redstream:stream:item', 'redstream:stream:item.delay');
	return;
}

prepare('a', 'INSERT INTO item VALUES (1), (2)');
is(stats($node)->{spool_rows}, 0, 'a prepared transaction is not visible');
$node->safe_psql('postgres', 'INSERT INTO item VALUES (3)');
settle($node, $redis);
is(main_of(), '{"id":3,"n":0}', 'others are announced meanwhile');
$redis->command('DEL', 'redstream:stream:item');
finish('COMMIT', 'a');
check_arrived('committed by another session', '{"id":1,"n":0}', '{"id":2,"n":0}');

prepare('b', 'INSERT INTO item VALUES (4)');
prepare('c', 'INSERT INTO item VALUES (5)');
finish('ROLLBACK', 'b');
finish('COMMIT', 'c');
check_arrived('rolled back, and committed', '{"id":5,"n":0}');

prepare('d', 'SAVEPOINT s; INSERT INTO item VALUES (6); ROLLBACK TO s; INSERT INTO item VALUES (7)');
finish('COMMIT', 'd');
check_arrived('with a savepoint', '{"id":7,"n":0}');

foreach my $mode ('fast', 'immediate')
{
	prepare($mode, "INSERT INTO item VALUES (1$mode)" =~ s/fast/0/r =~ s/immediate/1/r);
	$node->stop($mode);
	$node->start;
	finish('COMMIT', $mode);
	check_arrived("a restart ($mode) in between", $mode eq 'fast' ? '{"id":10,"n":0}' : '{"id":11,"n":0}');
}

# Redis is away at PREPARE, at COMMIT PREPARED, at both.
redis_away($node, $redis);
prepare('e', 'INSERT INTO item VALUES (20)');
$redis->start;
wait_connected($node, 1);
finish('COMMIT', 'e');
check_arrived('Redis away at PREPARE', '{"id":20,"n":0}');
prepare('f', 'INSERT INTO item VALUES (21)');
redis_away($node, $redis);
finish('COMMIT', 'f');
$redis->start;
check_arrived('Redis away at COMMIT PREPARED', '{"id":21,"n":0}');

# A large one: what it has forgotten is published from its delay messages.
$node->safe_psql('postgres', q{
	SET redstream.transaction_buffer = '64kB';
	BEGIN;
	INSERT INTO item SELECT generate_series(1001, 6000);
	SAVEPOINT s; INSERT INTO item SELECT generate_series(7001, 9000); ROLLBACK TO s;
	PREPARE TRANSACTION 'g'});
is($redis->command('XLEN', 'redstream:stream:item'), 0, 'large: nothing is announced before');
finish('COMMIT', 'g');
wait_until('large: its last message', sub { main_of() =~ /"id":6000,/ });
wait_until('large: an empty spool', sub { stats($node)->{spool_rows} == 0 });
my %seen;
is(join(' ', grep { !$seen{$_}++ } main_of() =~ /"id":(\d+)/g), join(' ', 1001 .. 6000),
	'large: all is announced, in order, and nothing that was rolled back');

is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
