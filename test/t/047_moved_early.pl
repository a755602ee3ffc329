# Somebody who cannot ask this server, a delayer of the Ruby library say, moves delay messages of a
# large transaction while it still runs.  Its changes are announced after its commit all the same.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis;
my $node = new_node(
	'main', $redis,
	'redstream.delay' => '1h',
	'redstream.transaction_buffer' => '64kB',
	'redstream.timeout' => '10s',
	'redstream.on_outage' => 'error');
my $rows = 5000;
my ($item, $other) = map { "redstream:stream:$_" } qw(item other);
my $noted = qr/redstream: delay messages of a transaction were moved before they could be published/;
my $log_offset = 0;

$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY);
	CREATE TABLE other (id integer PRIMARY KEY);
	SELECT redstream.attach('item'), redstream.attach('other')});
my $open = Redstream::Session->new($node);

# Begins with empty streams and tables, and runs SQL in a transaction that stays open.  Returns when so
# many delay messages at least are there.
sub begin
{
	my ($sql, $early) = @_;

	$node->safe_psql('postgres', 'SET redstream.enabled = off; DELETE FROM item; DELETE FROM other');
	settle($node, $redis);
	$redis->command('DEL', $item, "$item.delay", $other, "$other.delay");
	$log_offset = -s $node->logfile;
	is($open->query("BEGIN; $sql"), '', 'a transaction runs');
	wait_until('its early delay messages', sub { $redis->command('XLEN', "$item.delay") >= $early });
	return;
}

# Moves the oldest delay messages of a stream as somebody does who does not ask whose they are.
sub move
{
	my ($main, $count) = @_;
	return $redis->command('EVAL', q{
		local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1])
		for _, entry in ipairs(entries) do
			redis.call('XADD', KEYS[1], '*', 'payload', entry[2][2])
			redis.call('XDEL', KEYS[2], entry[1])
		end
		return #entries}, 2, $main, "$main.delay", $count);
}

# The ids on a main stream after an entry, '0' for all of them.
sub ids
{
	my ($main, $after) = @_;
	my ($ms, $seq) = split /-/, "$after-0";
	return map { $_->[1]{payload} =~ /(\d+)/ } grep {
		my ($entry_ms, $entry_seq) = split /-/, $_->[0];
		$entry_ms > $ms || ($entry_ms == $ms && $entry_seq > $seq)
	} $redis->entries($main);
}

sub last_id { return ($redis->entries($_[0]))[-1][0]; }

sub same_ids
{
	my ($got, $expected, $what) = @_;
	ok("@$got" eq "@$expected", $what)
	  or diag(scalar(@$got), ' ids instead of ', scalar(@$expected));
	return;
}

# Each number is among the ids.
sub has_all
{
	my ($ids, $first, $last, $what) = @_;
	my %seen = map { $_ => 1 } @$ids;
	is(scalar(grep { !$seen{$_} } $first .. $last), 0, $what);
	return;
}

sub logged { return scalar(() = slurp_file($node->logfile, $log_offset) =~ /$noted/g); }

# Commits, with so many errors as there were before, and that many lines in the log.
sub commit
{
	my ($lines, $what) = @_;
	my $errors = stats($node)->{errors};

	is($open->query('COMMIT'), '', "$what: it commits");
	settle($node, $redis);
	my $stats = stats($node);
	is($stats->{errors} - $errors, $lines, "$what: errors");
	like($stats->{last_error}, qr/^delay messages of a transaction were moved .*; announcing main messages since then again$/,
		"$what: the error is told") if $lines;
	is(logged(), $lines, "$what: lines in the log");
	return;
}

# ---- nothing is moved ----------------------------------------------------------------------

begin("INSERT INTO item SELECT generate_series(1, $rows)", 1);
commit(0, 'nothing moved');
same_ids([ ids($item, 0) ], [ 1 .. $rows ], 'nothing moved: everything once');

# Savepoints that are rolled back and released by chance, with rows that are changed again.
srand(my $seed = $ENV{REDSTREAM_TEST_SEED} || time);
note("REDSTREAM_TEST_SEED=$seed");
foreach my $round (1 .. 10)
{
	my ($depth, @sql) = (0);

	foreach my $step (1 .. 60)
	{
		my ($what, $from) = (rand, 100 * $step);

		if ($what < 0.3) { push @sql, 'SAVEPOINT s' . ++$depth }
		elsif ($what < 0.45 && $depth > 0) { push @sql, 'ROLLBACK TO s' . $depth }
		elsif ($what < 0.6 && $depth > 0) { push @sql, 'RELEASE s' . $depth-- }
		elsif ($what < 0.7 && $depth > 1) { push @sql, 'ROLLBACK TO s' . ($depth = 1 + int rand($depth)) }
		elsif ($what < 0.8) { push @sql, 'UPDATE item SET id = -id WHERE id % 10 = 0' }
		else
		{
			my $table = $what < 0.9 ? 'item' : 'other';
			push @sql, "INSERT INTO $table SELECT generate_series($from, $from + 99)";
		}
	}
	begin(join('; ', 'INSERT INTO item SELECT generate_series(10001, 12000)', @sql), 1);
	commit(0, "savepoints, round $round");
}
is(stats($node)->{errors}, 0, 'no failure on the way');

# ---- moved -----------------------------------------------------------------------------------

begin("INSERT INTO item SELECT generate_series(1, $rows)", 1000);
cmp_ok(move($item, $rows), '>=', 1000, 'all that is there is moved');
my $last = last_id($item);
commit(1, 'all moved');
my @ids = ids($item, $last);
has_all(\@ids, 1, $rows, 'all moved: every row is announced after the commit');
is($ids[-1], $rows, 'all moved: the last one last');

begin("INSERT INTO item SELECT generate_series(1, $rows)", 1000);
is(move($item, 1), 1, 'one is moved');
$node->safe_psql('postgres', "INSERT INTO item VALUES ($rows + 1)");
$last = last_id($item);
commit(1, 'one moved');
same_ids([ ids($item, $last) ], [ 2 .. $rows, 1, $rows + 1, 2 .. $rows ],
	'one moved: what is on the main stream since then comes again, in order');

# What is older than the transaction, and fields of others' messages.
begin('INSERT INTO item SELECT generate_series(1, 10); COMMIT', 10);
settle($node, $redis);
same_ids([ ids($item, 0) ], [ 1 .. 10 ], 'an older transaction is announced');
$open->query("BEGIN; INSERT INTO item SELECT generate_series(101, 100 + $rows)");
wait_until('early delay messages of the next one', sub { $redis->command('XLEN', "$item.delay") >= 1000 });
my ($first) = grep { $_->[1]{payload} =~ /:101\}/ } $redis->entries("$item.delay");
$redis->command('XTRIM', "$item.delay", 'MINID', $first->[0]);
move($item, 10);
$redis->command('XADD', $item, '*', 'payload', '{"id":99}', 'more', 'fields');
$last = last_id($item);
commit(1, 'older messages');
@ids = ids($item, $last);
is(scalar(grep { $_ <= 10 } @ids), 0, 'older messages: they are not announced again');
has_all(\@ids, 101, 100 + $rows, 'older messages: the newer ones are');
is_deeply([ map { $_->[1] } grep { $_->[1]{more} } $redis->entries($item) ],
	[ ({ payload => '{"id":99}', more => 'fields' }) x 2 ], 'older messages: with all their fields');

# ---- two streams -------------------------------------------------------------------------------

my $both = "INSERT INTO item SELECT generate_series(1, $rows); INSERT INTO other SELECT generate_series(1, $rows)";
begin($both, $rows);
wait_until('delay messages of the other table', sub { $redis->command('XLEN', "$other.delay") >= 1000 });
is(move($other, 100), 100, 'two streams: messages of one are moved');
my $last_other = last_id($other);
commit(1, 'two streams');
has_all([ ids($other, $last_other) ], 1, $rows, 'two streams: all of this one are announced after the commit');
same_ids([ ids($item, 0) ], [ 1 .. $rows, 1 .. $rows ], 'two streams: those of the other one twice');

begin($both, $rows);
is(move($item, $rows), $rows, 'two streams: all messages of one are moved');
($last, $last_other) = (last_id($item), 0);
commit(1, 'all of one stream');
same_ids([ ids($item, $last) ], [ 1 .. $rows ], 'all of one stream: announced after the commit');
has_all([ ids($other, 0) ], 1, $rows, 'all of one stream: the other one too');

# ---- by our own delayer ------------------------------------------------------------------------

# It holds them until the transaction is over and published.
reconfigure($node, 'redstream.delay' => '100ms');
begin($both, $rows);
foreach my $main ($item, $other)
{
	$redis->command('XADD', "$main.delay", '*', 'payload', '{"id":"due"}');
	wait_until("the delayer to pass $main", sub { grep { $_ eq '{"id":"due"}' } $redis->payloads($main) });
}
commit(0, 'our own delayer');
wait_until('the delay streams to be empty', sub {
	$redis->command('XLEN', "$item.delay") + $redis->command('XLEN', "$other.delay") == 0 });
foreach my $main ($item, $other)
{
	same_ids([ ids($main, 0) ], [ 1 .. $rows, 1 .. $rows ],
		"our own delayer, $main: everything at once and when it is due");
}
reconfigure($node, 'redstream.delay' => '1h');

# ---- moved, and trimmed ------------------------------------------------------------------------

begin("INSERT INTO item SELECT generate_series(1, $rows)", 1000);
move($item, 1000);
$redis->command('XTRIM', $item, 'MAXLEN', 0);
$open->query('COMMIT');
settle($node, $redis);
like(stats($node)->{last_error}, qr/no longer on the main streams; its changes may not be announced$/,
	'trimmed: it is told what could not be done');

# ---- it goes by the spool ---------------------------------------------------------------------------

# One that is prepared: with what was rolled back, and what was moved of that.
begin("INSERT INTO item SELECT generate_series(1, $rows);
	SAVEPOINT s; INSERT INTO item SELECT generate_series(10001, 13000); ROLLBACK TO s", 1000);
move($item, 1000);
$last = last_id($item);
is($open->query("PREPARE TRANSACTION 'large'; COMMIT PREPARED 'large'"), '', 'prepared: it commits');
wait_until('prepared: its last message', sub { grep { $_ == $rows } ids($item, $last) });
wait_until('prepared: an empty spool', sub { stats($node)->{spool_rows} == 0 });
has_all([ ids($item, $last) ], 1, $rows, 'prepared: every row is announced after the commit');
is(logged(), 1, 'prepared: one line in the log about what was moved');

# Of two streams: what is missing is known of each.
begin("INSERT INTO item SELECT generate_series(1, $rows); INSERT INTO other SELECT generate_series(1, $rows)", 1000);
wait_until('early delay messages of the other stream', sub { $redis->command('XLEN', "$other.delay") >= 1000 });
move($_, 1000) foreach $item, $other;
my %last = map { $_ => last_id($_) } $item, $other;
is($open->query("PREPARE TRANSACTION 'large'; COMMIT PREPARED 'large'"), '', 'two streams: it commits');
wait_until('two streams: an empty spool', sub { stats($node)->{spool_rows} == 0 && grep { $_ == $rows } ids($other, $last{$other}) });
has_all([ ids($_, $last{$_}) ], 1, $rows, 'two streams: every row is announced after the commit') foreach $item, $other;

# ---- the connection is lost in the middle of it --------------------------------------------------

# So much that it takes a while.
my $others = 150_000;
begin("INSERT INTO item SELECT generate_series(1, $rows)", 1000);
move($item, 1000);
$redis->command('EVAL', q{
	for i = 1, ARGV[2] do
		redis.call('XADD', KEYS[1], '*', 'payload', '{"id":' .. 1000000 + i .. '}')
	end}, 1, $item, $_, $others / 10) foreach 1 .. 10;
$last = last_id($item);
my $length = $redis->command('XLEN', $item);
my $kills = 0;
$open->send('COMMIT');
foreach my $part (1 .. 2)
{
	wait_until('a part of it', sub { $redis->command('XLEN', $item) > $length + $rows + $part * $others / 5 });
	$kills += $redis->command('CLIENT', 'KILL', 'TYPE', 'normal');
}
cmp_ok($redis->command('XLEN', $item), '<', $length + $rows + $others, 'connection lost: in the middle of it');
cmp_ok($kills, '>=', 2, 'connection lost: twice');
is($open->result, '', 'connection lost: it commits');
settle($node, $redis);
is(logged(), 1, 'connection lost: one line in the log about what was moved');
@ids = ids($item, $last);
has_all(\@ids, 1, $rows, 'connection lost: every row is announced after the commit');
is($ids[-1], $rows, 'connection lost: the last one last');
my $repeats = @ids - ($rows - 1000) - $length - ($rows - 1000);
note("$repeats repeated");
cmp_ok($repeats, '>=', 0, 'connection lost: nothing is missing');
cmp_ok($repeats, '<=', 2 * 500, 'connection lost: a chunk at most is repeated');
is(stats($node)->{main_bytes}, 0, 'nothing is left in the lane');

is_deeply([ crashes($node) ], [], 'no crash');
$open->close;
$node->stop;
done_testing;
