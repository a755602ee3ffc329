# The consumers in doc/examples, each alone: what they read and commit, and what they make of failures.

use strict;
use warnings;

use Redstream::Clients;
use Redstream::Test;
use Test::More;

my $redis = new_redis(appendonly => 'yes');
my $largest = '18446744073709551615';

# A consumer of its own stream.
sub begin
{
	my ($language, $name, %options) = @_;
	my $later = delete $options{later};
	my $clients = Redstream::Clients->new($redis, "$language-$name", %options);
	my $who = $later ? undef : $clients->start($language);
	return ($clients, $who);
}

sub set_offset
{
	my ($clients, $id) = @_;
	$redis->command('SET', $clients->key('offset'), $id);
	return;
}

sub wait_offset
{
	my ($clients, $id) = @_;
	wait_until("offset $id", sub { ($clients->offset || '') eq $id });
	return;
}

sub is_idle
{
	my ($clients) = @_;
	return $clients->waiting_in('xread');
}

sub test_order
{
	my ($language) = @_;
	my ($clients, $who) = begin($language, 'order', later => 1, batch_size => 1, namespace => 'space');
	my @ids = qw(5-9 5-10 9-0 10-0 9007199254740992-0 9007199254740993-0);
	my $n = 0;

	push @ids, map { "$largest-$_" } qw(18446744073709551613 18446744073709551614);
	$clients->add(map { [ $_, $n++ ] } @ids);
	$who = $clients->start($language);
	wait_offset($clients, $ids[-1]);
	$n = 0;
	is_deeply([ $clients->done ], [ map { "$_:" . $n++ } @ids ],
		"$language: each message once, in the order of numbers");
	is_deeply($redis->command('SMEMBERS', $clients->key('consumers')), ['c'], "$language: it registers");
	wait_until('the lock to be free', sub { !defined $clients->holder && is_idle($clients) });
	$clients->signal($who, 'TERM');
	is($clients->status($who), 'exit 0', "$language: SIGTERM ends it when it waits for messages");
	is($clients->said($who), '', "$language: and it had nothing to say");
	return;
}

sub test_lock
{
	my ($language) = @_;
	my ($clients) = begin($language, 'lock', later => 1);

	$clients->take_lock;
	$clients->add(1, 2);
	my $who = $clients->start($language);
	wait_until('it to stand by', sub { $clients->waiting_in('brpop') });
	is_deeply([ $clients->journal ], [], "$language: somebody else has the lock: it stands by");
	$clients->tell('hold');
	$clients->release_lock;
	$clients->wait_for('begin', 1);
	like($clients->holder, qr/^[0-9a-f]{32}$/, "$language: it takes the lock when it is released");

	$redis->command('PEXPIRE', $clients->key('lock'), 2500);
	ok(wait_until('more time', sub { $redis->command('PTTL', $clients->key('lock')) > 2500 }),
		"$language: it extends the lock while the handler works");

	# The offset was set ahead meanwhile.
	set_offset($clients, '99999999999999-0');
	$clients->untell('hold');
	wait_until('the lock to be free', sub { !defined $clients->holder });
	is($clients->offset, '99999999999999-0', "$language: it does not set the offset back");
	$clients->wait_said($who, qr/not come farther/);
	set_offset($clients, '0-0');
	$clients->wait_for('end', 2);

	# The lock is lost.
	$clients->tell('hold');
	$clients->add(3);
	my $word = $clients->wait_for('begin', 3)->[2];
	my $before = $clients->offset;
	$clients->take_lock;
	$clients->untell('hold');
	$clients->wait_said($who, qr/lock was lost/);
	is($clients->offset, $before, "$language: it commits nothing without the lock");
	is($clients->holder, 'somebody', "$language: and leaves the lock to who has it");
	$clients->release_lock;
	is($clients->wait_for('end', 4)->[2], $word, "$language: the batch comes again");

	$clients->take_lock;
	wait_until('it to stand by', sub { $clients->waiting_in('brpop') });
	$clients->signal($who, 'TERM');
	is($clients->status($who), 'exit 0', "$language: SIGTERM ends it when it stands by");
	is($clients->holder, 'somebody', "$language: and the lock is not touched");
	return;
}

sub test_failure
{
	my ($language) = @_;
	my ($clients, $who) = begin($language, 'failure');

	$clients->tell('fail');
	$clients->add(1);
	my $word = $clients->wait_for('begin', 1)->[2];
	my $again = $clients->wait_for('begin', 3)->[2];
	is($again, $word, "$language: a batch whose handler fails comes again");
	ok(!defined $clients->offset, "$language: and is not committed");
	wait_until('the lock to be free', sub { !defined $clients->holder });
	is_deeply($redis->command('LRANGE', $clients->key('notify'), 0, -1), [1],
		"$language: the lock is released with notice");
	$clients->wait_said($who, qr/told to fail/);
	$clients->untell('fail');
	$clients->wait_for('end', 1);
	wait_until('the commit', sub { defined $clients->offset });

	# it is told to stop in the middle of a batch
	$clients->tell('hold');
	my $begun = grep { $_->[1] eq 'begin' } $clients->journal;
	$clients->add(2);
	my ($id) = split /:/, $clients->wait_for('begin', $begun + 1)->[2];
	$clients->signal($who, 'TERM');
	$clients->untell('hold');
	is($clients->status($who), 'exit 0', "$language: SIGTERM ends it");
	is($clients->offset, $id, "$language: when the batch is committed");
	ok(!defined $clients->holder, "$language: and the lock released");
	return;
}

sub test_trouble
{
	my ($language) = @_;
	my ($clients, $who) = begin($language, 'trouble');
	my $stream = $clients->key('stream');

	$clients->add([ '1-0', 1 ]);
	wait_offset($clients, '1-0');
	set_offset($clients, '2-0');
	$clients->wait_said($who, qr/offset is 2-0, but the stream has not come farther than 1-0/);
	$redis->command('DEL', $stream);
	$clients->wait_said($who, qr/offset is 2-0, but the stream is gone/);
	$redis->command('HSET', $clients->key('history'), 'refilled', '3-0');
	$clients->add([ '3-0', 3 ]);
	$clients->wait_said($who, qr/filled again, from 3-0 on/);
	is_deeply([ $clients->done ], ['1-0:1'], "$language: an offset that does not fit the stream: it says so");

	# what cannot be read
	$clients->tell('hold');
	set_offset($clients, '3-0');
	$clients->add([ '3-1', 4 ]);
	$clients->wait_for('begin', 2);
	$clients->add([ '4-0', 5 ]);
	$redis->command('XADD', $stream, '5-0', 'payload', 'no JSON');
	$redis->command('XADD', $stream, '6-0', 'other', '1');
	$redis->command('XADD', $stream, '7-0', 'payload', '{"n":8}', 'other', '1');
	$clients->untell('hold');
	$clients->wait_said($who, qr/message 5-0 has no payload that is JSON/);
	is($clients->offset, '4-0', "$language: it reads up to a message that is not JSON, and says its id");
	set_offset($clients, '5-0');
	$clients->wait_said($who, qr/message 6-0 has no payload that is JSON/);
	set_offset($clients, '6-0');
	wait_offset($clients, '7-0');
	is_deeply([ $clients->done ], [qw(1-0:1 3-1:4 4-0:5 7-0:8)],
		"$language: it goes on when the offset is set past it");

	# Redis goes away
	$redis->restart;
	$clients->add([ '8-0', 9 ]);
	wait_offset($clients, '8-0');
	pass("$language: it goes on after a restart of Redis");
	$redis->stop;
	$clients->signal($who, 'TERM');
	is($clients->status($who), 'exit 0', "$language: and ends while Redis is away");
	$redis->start;
	return;
}

foreach my $language (Redstream::Clients::languages())
{
	test_order($language);
	test_lock($language);
	test_failure($language);
	test_trouble($language);
}
done_testing;
