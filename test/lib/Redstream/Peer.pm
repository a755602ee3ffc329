# Another process of a consumer: what the Ruby library sends to Redis, and a program that works as it does.
#
#	my $peer = Redstream::Peer->new($redis, 'products', 'indexer');
#	$peer->take or ...;                 # the lock; false: somebody else has it
#	$peer->read(100);                   # entries behind the offset, as Redstream::Redis gives them
#	$peer->commit($id);                 # SET, without a look at the lock
#	$peer->release;
#
# The scripts have the key among their arguments, and so does EVAL here.

package Redstream::Peer;

use strict;
use warnings;

my $TAKE = q{
	local lock_key_name, id = ARGV[1], ARGV[2]
	local cur = redis.call('get', lock_key_name)
	if not cur then
		redis.call('setex', lock_key_name, 5, id)
		return true
	elseif cur == id then
		redis.call('expire', lock_key_name, 5)
		return true
	end
	return false
};

my $RELEASE = q{
	local lock_key_name, id = ARGV[1], ARGV[2]
	local cur = redis.call('get', lock_key_name)
	if cur and cur == id then
		redis.call('del', lock_key_name)
	end
	redis.call('del', lock_key_name .. '.notify')
	redis.call('rpush', lock_key_name .. '.notify', '1')
};

my $made = 0;

sub new
{
	my ($class, $redis, $stream, $consumer) = @_;
	return bless {
		redis => $redis,
		stream => "redstream:stream:$stream",
		offset => "redstream:offset:$stream:$consumer",
		lock => "redstream:lock:consumer:$stream:$consumer",
		id => sprintf('%032x', ++$made),
	}, $class;
}

sub take
{
	my ($self) = @_;
	return $self->{redis}->command('EVAL', $TAKE, 0, $self->{lock}, $self->{id});
}

sub release
{
	my ($self) = @_;
	$self->{redis}->command('EVAL', $RELEASE, 0, $self->{lock}, $self->{id});
	return;
}

sub offset
{
	my ($self) = @_;
	return $self->{redis}->command('GET', $self->{offset});
}

sub read    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self, $count) = @_;
	my $after = $self->offset;
	my $entries = $self->{redis}->command('XRANGE', $self->{stream}, defined $after ? "($after" : '-', '+',
		'COUNT', $count);
	return map { [ $_->[0], { @{ $_->[1] } } ] } @$entries;
}

sub commit
{
	my ($self, $id) = @_;
	$self->{redis}->command('SET', $self->{offset}, $id);
	return;
}

# Who has the lock, and how many milliseconds it lasts: undef and -2 if nobody.
sub holder { return $_[0]->{redis}->command('GET', $_[0]->{lock}); }
sub lasts { return $_[0]->{redis}->command('PTTL', $_[0]->{lock}); }

# Takes away that the lock was released, and says whether it was since the last time: a lock that expires
# leaves no trace.
sub was_released
{
	my ($self) = @_;
	return $self->{redis}->command('DEL', "$self->{lock}.notify");
}

1;
