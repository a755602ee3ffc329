# The primary dies and a standby is promoted, and then another one.  What the dead servers have left in
# the delay streams is announced by age, also what no standby has got; nothing is held for ever.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $first = new_node('first', $redis, 'redstream.delay' => '1h', 'redstream.timeout' => '10s',
	'wal_level' => 'replica', 'max_wal_senders' => 5, 'wal_keep_size' => '1GB');
my $main = 'redstream:stream:item';
my $delay = "$main.delay";

$first->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	SELECT redstream.attach('item')});
my $system = $first->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()');

sub standby_of
{
	my ($primary, $name) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	$standby->start;
	return $standby;
}

# From now on it gets nothing more.
sub cut_off
{
	my ($standby) = @_;
	$standby->safe_psql('postgres', q{ALTER SYSTEM SET primary_conninfo = ''});
	$standby->reload;
	wait_until('the end of streaming', sub { !process_pid($standby, 'walreceiver') });
	return;
}

# Takes over, announces what it writes itself, and what others have left when that is due.
sub take_over
{
	my ($node, $timeline, $id) = @_;

	$node->promote;
	wait_until('the connection', sub { eval { stats($node)->{connected} } });
	wait_until('all processes', sub {
		$node->safe_psql('postgres', q{
			SELECT string_agg(kind, ' ' ORDER BY kind) FROM redstream.workers
			WHERE state IN ('idle', 'working')}) eq 'delayer launcher sender spooler trimmer';
	});
	pass("timeline $timeline: sender, launcher and worker have started");
	is($node->safe_psql('postgres', 'SELECT "table" FROM redstream.attachments'), 'item',
		"timeline $timeline: the table is attached");
	$node->safe_psql('postgres', "INSERT INTO item VALUES ($id)");
	settle($node, $redis);
	is(($redis->payloads($main))[-1], qq({"id":$id}), "timeline $timeline: what it writes is announced");
	return;
}

# How often each id is on the main stream.
sub announced_ids
{
	my %times;
	/^\{"id":(\d+)\}$/ and $times{$1}++ foreach $redis->payloads($main);
	return \%times;
}

sub last_look
{
	my ($node) = @_;
	return $node->safe_psql('postgres', q{SELECT last_tick FROM redstream.workers WHERE kind = 'delayer'});
}

# Timelines of the messages in the delay stream.
sub timelines
{
	my %found;
	foreach my $entry ($redis->entries($delay))
	{
		/^xact:$system:(\d+)$/ and $found{$1}++ foreach keys %{ $entry->[1] };
	}
	return join ' ', sort keys %found;
}

my $second = standby_of($first, 'second');
my $third = standby_of($first, 'third');

# ---- the primary dies ------------------------------------------------------------------------

$first->safe_psql('postgres', 'INSERT INTO item VALUES (1)');
my $now = delay_messages_now('item');
$first->safe_psql('postgres', qq{BEGIN; INSERT INTO item VALUES (2); $now; PREPARE TRANSACTION 'known'});
$first->safe_psql('postgres', q{BEGIN; INSERT INTO item VALUES (10); PREPARE TRANSACTION 'spooled'});
reconfigure($first, 'redstream.url' => 'unix:///nonexistent');
wait_connected($first, 0);
$first->safe_psql('postgres', 'INSERT INTO item VALUES (11)');
is(stats($first)->{spool_rows}, 1, 'the spool of the primary has a row');
$first->wait_for_catchup($_, 'replay', $first->lsn('insert')) foreach $second, $third;
cut_off($second);
reconfigure($first, 'redstream.url' => $redis->url);
wait_until('an empty spool', sub { stats($first)->{connected} && stats($first)->{spool_rows} == 0 });
$first->safe_psql('postgres', 'INSERT INTO item VALUES (3)');
$first->safe_psql('postgres', qq{BEGIN; INSERT INTO item VALUES (4); $now; PREPARE TRANSACTION 'unknown'});
my $session = Redstream::Session->new($first);
$session->query('BEGIN; INSERT INTO item SELECT generate_series(10001, 13000)');
wait_until('early delay messages', sub { $redis->command('XLEN', $delay) > 1000 });
my @left = $redis->payloads($delay);
wait_until('its message', sub { announced_ids()->{11} });
is(announced_ids()->{11}, 1, 'the primary has delivered it, of which the standby knows nothing');
$first->stop('immediate');
$session->close;
cut_off($third);

take_over($second, 2, 5);
is($second->safe_psql('postgres', q{SELECT string_agg(id::text, ' ' ORDER BY id) FROM item}), '1 5 11',
	'the standby has not got what came last');
is(join(' ', grep { /"id":(?:5|11)\}/ } $redis->payloads($main)), '{"id":11} {"id":11} {"id":5}',
	'its spool is delivered, before what it writes');
$second->safe_psql('postgres', q{COMMIT PREPARED 'spooled'});
wait_until('the message of what was prepared', sub { announced_ids()->{10} });
pass('the spool of what was prepared is delivered when that is committed');
ok(!announced_ids()->{10001}, 'what was not committed is not announced before it is due');

# As long as the old primary's key is there it might be, too.  What comes behind its messages waits with them: moved
# before, it would not be the last word.
$second->safe_psql('postgres', 'INSERT INTO item VALUES (6)');
reconfigure($second, 'redstream.delay' => '0');
foreach (1 .. 3)
{
	my $looked = last_look($second);
	wait_until('a look of the delayer', sub { last_look($second) ne $looked });
}
is(timelines(), '1 2', 'messages of the old timeline stay while the old primary may be there, and others behind them');
is($redis->command('PEXPIRE', "redstream:server:$system:1", 1), 1, 'its key expires');
wait_until('the messages of the old timeline', sub { $redis->command('XLEN', $delay) == 1 });
my $times = announced_ids();
is_deeply([ grep { my ($id) = /(\d+)/; $id != 2 && !$times->{$id} } @left ], [],
	'they are announced by age, with those that the standby never got');
is($times->{1}, 2, 'at once by the primary, and once more');
is($times->{2}, undef, 'what is prepared here is held');
is(($redis->payloads($delay))[0], '{"id":2}', 'and nothing else');
$second->safe_psql('postgres', q{ROLLBACK PREPARED 'known'});
wait_until('its message', sub { $redis->command('XLEN', $delay) == 0 });
pass('until it ends');

# ---- the next one dies, and a standby that has followed neither is promoted ----------------------

reconfigure($second, 'redstream.delay' => '1h');
$second->safe_psql('postgres', "INSERT INTO item VALUES ($_)") foreach 7 .. 9;
is(timelines(), '2', 'the second timeline has messages');
$redis->command('XADD', $delay, '*', 'payload', '{"id":99}', "xact:$system:1", '5');
$second->stop('immediate');

# It finds the second's history in the archive, and so takes the timeline after it.
$third->append_conf('postgresql.conf', sprintf qq{recovery_target_timeline = 'current'
restore_command = 'case "%%f" in *.history) cp "%s/%%f" "%%p";; *) false;; esac'},
	$second->data_dir . '/pg_wal');
$third->restart;
take_over($third, 3, 20);
reconfigure($third, 'redstream.delay' => '0');
is($redis->command('PEXPIRE', "redstream:server:$system:2", 1), 1, 'the key of the second timeline expires');
wait_until('the messages of both', sub { timelines() eq '' });
$times = announced_ids();
is_deeply([ map { $times->{$_} } 7 .. 9 ], [ 2, 2, 2 ], 'messages of the second timeline are announced by age');
is($times->{99}, 1, 'and those of the first that were left');

is_deeply([ crashes($second), crashes($third) ], [], 'no panic');
$_->stop foreach $second, $third;
done_testing;
