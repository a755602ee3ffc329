# Large transactions, which are published from their delay messages, and large payloads.

use strict;
use warnings;

use Redstream::Session;
use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '60s', 'redstream.queue_size' => '16MB');

$node->safe_psql('postgres', q{
	CREATE TABLE red (id integer PRIMARY KEY);
	CREATE TABLE blue (id integer PRIMARY KEY);
	SELECT redstream.attach('red'), redstream.attach('blue');
	CREATE TABLE wide (id serial PRIMARY KEY, v text);
	ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
	SELECT redstream.attach('wide', payload => ARRAY['v'])});

my ($large, $second, $small) = map { Redstream::Session->new($node) } 1 .. 3;
$_->query(q{SET redstream.transaction_buffer = '64kB'}) foreach $large, $second;
my $last_small = 1_000_000;

# Commits one row to both tables, and returns its number.
sub small_commit
{
	$last_small++;
	my $output = $small->query(
		"BEGIN; INSERT INTO red VALUES ($last_small); INSERT INTO blue VALUES ($last_small); COMMIT");
	die "a small commit failed: $output" if $output;
	return $last_small;
}

# The ids on a stream once everything committed has arrived; takes them out.
sub arrived
{
	my ($stream) = @_;
	settle($node, $redis);
	my $key = "redstream:stream:$stream";
	my @ids = map { /(\d+)/ } map { $_->[1]{payload} } take($redis, $key);
	$redis->command('DEL', "$key.delay");
	return @ids;
}

# Begins a transaction that inserts ids from $first on in $blocks blocks of 100, a savepoint
# each, to red and blue in turns, and rolls every third of them back.  Calls
# $between between the blocks.  Returns what is to be announced: { red => [...], blue => [...] }.
sub begin_large
{
	my ($session, $first, $blocks, $between) = @_;
	my %kept = (red => [], blue => []);

	$session->query('BEGIN');
	foreach my $block (0 .. $blocks - 1)
	{
		my $from = $first + 100 * $block;
		my $to = $from + 99;
		my $table = $block % 2 ? 'blue' : 'red';
		my $end = $block % 3 == 1 ? 'ROLLBACK TO s' : 'RELEASE s';

		my $output = $session->query(
			"SAVEPOINT s; INSERT INTO $table SELECT generate_series($from, $to); $end");
		die "a large transaction failed: $output" if $output;
		push @{ $kept{$table} }, $from .. $to unless $block % 3 == 1;
		$between->() if $between;
	}
	return \%kept;
}

sub same_ids
{
	my ($got, $expected, $what) = @_;
	my $same = "@$got" eq "@$expected";
	ok($same, $what) or diag(scalar(@$got), ' ids instead of ', scalar(@$expected));
	return;
}

# ---- with others' commits in between -------------------------------------------------------

my @before;
my $kept = begin_large($large, 1, 200, sub { push @before, small_commit() });
settle($node, $redis);
same_ids([ map { $_->[1]{payload} =~ /(\d+)/ } $redis->entries('redstream:stream:red') ], \@before,
	'small commits do not wait for a large transaction');
is($large->query('COMMIT'), '', 'it commits');
my @after = map { small_commit() } 1 .. 5;
foreach my $stream (qw(red blue))
{
	same_ids([ arrived($stream) ], [ @before, @{ $kept->{$stream} }, @after ],
		"20,000 rows with savepoints, $stream: everything once, in the order of the commits");
}

# ---- while it is being published -------------------------------------------------------------

$kept = begin_large($large, 100_001, 200);
my $kept_second = begin_large($second, 200_001, 200);
$_->send('COMMIT') foreach $large, $second;
my @while = map { small_commit() } 1 .. 100;
is($_->result, '', 'one of two large ones commits') foreach $large, $second;
foreach my $stream (qw(red blue))
{
	my @ids = arrived($stream);
	same_ids([ grep { $_ < 200_000 } @ids ], $kept->{$stream}, "two at once, $stream: the first");
	same_ids([ grep { $_ > 200_000 && $_ < 1_000_000 } @ids ], $kept_second->{$stream},
		"two at once, $stream: the second");
	same_ids([ grep { $_ > 1_000_000 } @ids ], \@while, "two at once, $stream: small ones meanwhile");
}

# ---- rolled back ---------------------------------------------------------------------------------

begin_large($large, 300_001, 100);
is($large->query('ROLLBACK'), '', 'it rolls back');
like($large->query('BEGIN; INSERT INTO red SELECT generate_series(300001, 310000); SELECT 1 / 0; COMMIT'),
	qr/division by zero/, 'it fails');
$large->query('BEGIN; INSERT INTO red SELECT generate_series(300001, 310000)');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $large->pid . ')');
like($large->query('COMMIT'), qr/terminating connection/, 'its backend is terminated');
$large = Redstream::Session->new($node);
$large->query(q{SET redstream.transaction_buffer = '64kB'});
@after = (small_commit());
foreach my $stream (qw(red blue))
{
	same_ids([ arrived($stream) ], \@after, "large ones rolled back, $stream: nothing arrives");
}

$large->query(q{
	BEGIN;
	SAVEPOINT s;
	INSERT INTO red SELECT generate_series(300001, 310000);
	ROLLBACK TO s;
	INSERT INTO red VALUES (400000);
	COMMIT});
same_ids([ arrived('red') ], [400000], 'all but one row rolled back');
$large->query(q{
	BEGIN;
	INSERT INTO red VALUES (400001);
	SAVEPOINT s;
	INSERT INTO red SELECT generate_series(300001, 310000);
	ROLLBACK TO s;
	COMMIT});
same_ids([ arrived('red') ], [400001], 'all but the first row rolled back');
$large->query(q{
	BEGIN;
	SAVEPOINT s;
	INSERT INTO red SELECT generate_series(300001, 310000);
	ROLLBACK TO s;
	COMMIT});
same_ids([ arrived('red') ], [], 'everything rolled back, and committed');

# ---- not waiting -------------------------------------------------------------------------------------

$large->query('SET redstream.wait_for_ack = off');
$kept = begin_large($large, 500_001, 60);
is($large->query('COMMIT'), '', 'it commits without waiting');
foreach my $stream (qw(red blue))
{
	same_ids([ arrived($stream) ], $kept->{$stream}, "wait_for_ack = off, $stream");
}
$large->query('SET redstream.wait_for_ack = on');

# Around the size where a transaction becomes a large one: 64 kB of records.
foreach my $count (1500 .. 1502, 1636 .. 1640)
{
	$node->safe_psql('postgres', "SET redstream.enabled = off; DELETE FROM red WHERE id < 10000");
	$large->query("INSERT INTO red SELECT generate_series(1001, 1000 + $count)");
	same_ids([ arrived('red') ], [ 1001 .. 1000 + $count ], "$count rows");
}
my $count = $large->query('SELECT count(*) FROM blue; DELETE FROM blue');
is(scalar(arrived('blue')), $count, 'all rows deleted');

# ---- large payloads ------------------------------------------------------------------------------------

my $limit = 4 * 1024 * 1024 - 4096 - length '{"v":""}';

# The lengths of the payloads' values.
sub widths
{
	settle($node, $redis);
	$redis->command('DEL', 'redstream:stream:wide.delay');
	return join ' ', map { length($_->[1]{payload}) - length '{"v":""}' } take($redis, 'redstream:stream:wide');
}

foreach my $setting ('64kB', '512MB')
{
	my $session = Redstream::Session->new($node);

	$session->query("SET redstream.transaction_buffer = '$setting'");
	$session->query(q{INSERT INTO wide (v) VALUES (repeat('x', 1000000))});
	is(widths(), 1000000, "a payload of 1 MB, transaction_buffer = $setting");
	$session->query(q{INSERT INTO wide (v) SELECT repeat('x', 1000000 + i) FROM generate_series(1, 8) i});
	is(widths(), join(' ', map { 1000000 + $_ } 1 .. 8), "several, transaction_buffer = $setting");
	$session->query(qq{BEGIN; INSERT INTO wide (v) VALUES ('a'); INSERT INTO wide (v) VALUES (repeat('x', $limit));
		INSERT INTO wide (v) VALUES ('b'); COMMIT});
	is(widths(), "1 $limit 1", "one as large as can be, transaction_buffer = $setting");
	like($session->query(qq{\\set VERBOSITY verbose\nINSERT INTO wide (v) VALUES (repeat('x', $limit + 1))}),
		qr/^ERROR:  54000: message of 4190209 bytes is too large to announce\nDETAIL:  .*at most 4190208 bytes\.\nHINT:  Announce fewer columns, or set redstream\.queue_size to 17MB at least/m,
		'one too large is refused');
	like($session->query(qq{
		BEGIN;
		INSERT INTO wide (v) VALUES ('aa');
		SAVEPOINT s;
		INSERT INTO wide (v) VALUES (repeat('x', 10 * $limit));
		ROLLBACK TO s;
		INSERT INTO wide (v) VALUES ('bbb');
		COMMIT}), qr/too large to announce/, 'in a savepoint, too');
	is(widths(), '2 3', 'the rest of the transaction arrives');
	$session->close;
}

# With the longest names.
my $name = 'n' x 512;
$node->safe_psql('postgres', "SELECT redstream.attach('wide', '$name', payload => ARRAY['v'])");
$node->safe_psql('postgres', "INSERT INTO wide (v) VALUES (repeat('x', $limit))");
settle($node, $redis);
is(length(($redis->payloads("redstream:stream:$name"))[0]), $limit + length '{"v":""}',
	'one as large as can be, on a stream with a long name');

is(stats($node)->{errors}, 0, 'no failure on the way');
$_->close foreach $large, $second, $small;
$node->stop;
done_testing();
