# One consumer, worked by redstream.consume(), by redstream-consumer and by a process that locks as the Ruby library does:
# one at a time, each behind the others; and the trimmer, which waits for what all of them have read.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Redstream::Consumer;
use Redstream::Peer;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(time);

my $redis = new_redis;
my $node = new_node('main', $redis, 'redstream.databases' => 'nobody');
my $session = Redstream::Session->new($node);
my $directory = $redis->directory;

$node->safe_psql('postgres', q{
	CREATE TABLE s (id integer PRIMARY KEY);
	SELECT redstream.attach('s');
	CREATE TABLE done (id text PRIMARY KEY, payload jsonb)});
$node->safe_psql('postgres', 'INSERT INTO s SELECT generate_series(1, 30)');
wait_until('the messages', sub { $redis->entries('redstream:stream:s') == 30 });
my @ids = map { $_->[0] } $redis->entries('redstream:stream:s');

sub peer { return Redstream::Peer->new($redis, 's', 'n'); }
sub consume { return "INSERT INTO done SELECT * FROM redstream.consume('s', 'n', $_[0])"; }
sub offset_is
{
	my ($number) = @_;
	wait_until("the offset to be that of message $number", sub { (offset($redis) || '') eq $ids[ $number - 1 ] });
	return;
}

# ---- a transaction has it ------------------------------------------------------------------

is($session->query('BEGIN; ' . consume(5)), '', 'a transaction consumes');
ok(!peer->take, 'a Ruby process is refused');
my $program = Redstream::Consumer->new($redis, options => [ '--batch-size', 5, '--once' ]);
$program->wait_log(qr/standing by/);
is($program->output, '', 'the program stands by');
is($session->query('COMMIT'), '', 'the transaction commits');
is($program->status, 0, 'the program takes over');
like($program->output, qr/\A\{"id":"$ids[5]".*\n.*\n.*\n.*\n\{"id":"$ids[9]".*\n\z/, 'behind the transaction');
offset_is(10);

# ---- the program has it ----------------------------------------------------------------------

$program = Redstream::Consumer->new($redis, options => [ '--batch-size', 5, '--once' ],
	command => [ 'sh', '-c', 'cat; touch "$0.begun"; until [ -e "$0.go" ]; do sleep 0.05; done', "$directory/handler" ]);
wait_until('its command to run', sub { -e "$directory/handler.begun" });
like($session->query(consume(5)), qr/ERROR:  consumer "n" of stream "s" is at work in another session or process/,
	'the program works: consume() is refused');
ok(!peer->take, 'and so is a Ruby process');
open(my $go, '>', "$directory/handler.go") or die;
close $go;
is($program->status, 0, 'it ends');
is($session->query(consume(5)), '', 'consume() goes on');
offset_is(20);
is($node->safe_psql('postgres', q{SELECT string_agg(id, ' ' ORDER BY (payload->>'id')::integer) FROM done}),
	join(' ', @ids[ 0 .. 4, 15 .. 19 ]), 'behind the program');

# ---- a Ruby process has it -----------------------------------------------------------------------

my $ruby = peer;
ok($ruby->take, 'a Ruby process takes the lock');
like($session->query(consume(5)), qr/is at work in another session or process/, 'consume() is refused');
$program = Redstream::Consumer->new($redis, options => [ '--batch-size', 5, '--once' ]);
$program->wait_log(qr/standing by/);
is_deeply([ map { $_->[0] } $ruby->read(5) ], [ @ids[ 20 .. 24 ] ], 'it reads behind the others');
$ruby->commit($ids[24]);
$ruby->release;
is($program->status, 0, 'the program takes over');
offset_is(30);

# ---- all at once, and the trimmer ---------------------------------------------------------------------

$node->safe_psql('postgres', q{SELECT redstream.add_consumer('s', 'slow')});
is($node->safe_psql('postgres', 'SELECT trimmed FROM redstream.run_trimmer()'), '', 'nothing is trimmed before all have read');
$node->safe_psql('postgres', q{SELECT redstream.commit_offset('s', 'slow', '} . $ids[29] . q{')});
wait_until('the trimmer to see all offsets', sub {
	$node->safe_psql('postgres', 'SELECT trimmed FROM redstream.run_trimmer()');
	return $redis->entries('redstream:stream:s') == 0;
});
$node->safe_psql('postgres', q{SELECT redstream.drop_consumer('s', 'slow'); TRUNCATE done});

my $count = 3000;
$node->safe_psql('postgres', "INSERT INTO s SELECT generate_series(1001, 1000 + $count)");
my @programs = map {
	Redstream::Consumer->new($redis, options => [ '--batch-size', 20 ], command => [ 'sh', '-c', 'cat; sleep 0.01' ])
} 1 .. 2;
my %ruby_ids;
my $last;
my $turn = 0;
wait_until('all of it to be consumed', sub {
	# as who stands by: woken when the lock is released, and with a moment to take it then
	$redis->command('BRPOP', 'redstream:lock:consumer:s:n.notify', 1);
	if ($turn++ % 2)
	{
		$session->query(consume(20));
	}
	elsif ($ruby->take)
	{
		foreach my $entry ($ruby->read(20))
		{
			$ruby_ids{ $entry->[0] }++;
			$ruby->commit($entry->[0]);
		}
		$ruby->release;
	}
	my %facts = @{ $redis->command('XINFO', 'STREAM', 'redstream:stream:s') };
	$last = $facts{'last-generated-id'};
	return $facts{'entries-added'} == 30 + $count && offset($redis) eq $last;
}, 120);
is($_->stop, 0, 'a program ends in good order') foreach @programs;

my %sql_ids = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', 'SELECT id FROM done');
my %program_ids;
foreach my $program_here (@programs)
{
	my $output = $program_here->output;
	$program_ids{$1}++ while $output =~ /^\{"id":"([^"]+)"/mg;
}
my %times;
$times{$_}++ foreach keys %sql_ids, (map { ($_) x $program_ids{$_} } keys %program_ids), (map { ($_) x $ruby_ids{$_} } keys %ruby_ids);
is(scalar(keys %times), $count, 'each message was consumed');
is_deeply([ grep { $times{$_} > 1 } keys %times ], [], 'by one of them, once');
diag(sprintf 'SQL %d, programs %d, Ruby %d', scalar keys %sql_ids, scalar keys %program_ids, scalar keys %ruby_ids);
ok(%sql_ids && %program_ids && %ruby_ids, 'each had its turns');

$node->stop;
done_testing();
