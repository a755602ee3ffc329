# Writes down each entry of the streams, main and delay, as it comes, since main messages are trimmed and delay messages moved.
#
#	start_recorder($run, $redis);
#	record_is_complete($run, $redis);       # it has all there is on the main streams
#	each_message($run, sub { my ($stream, $id, $payload) = @_; ... });
#	each_delay_message($run, sub { my ($stream, $id, $payload, $timeline) = @_; ... });
#
# It reads by Redis' own socket, past the bad network, and is a registered consumer, so that the trimmer waits for it.
# Nothing it has read can be lost by a crash of Redis, which answers when what it answers with is on disk.

package Soak::Recorder;

use strict;
use warnings;

use Exporter 'import';
use Soak::Run;
use Soak::Tables;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(start_recorder stop_recorder record_is_complete each_message each_delay_message);

my $KEY = 'redstream:stream:';

sub start_recorder
{
	my ($run, $redis) = @_;

	$run->{node}->safe_psql('postgres', join ';', map { "SELECT redstream.add_consumer('$_', 'recorder')" } @STREAMS);
	$run->fork('recorder', sub { record($run, $redis) });
	return;
}

sub stop_recorder
{
	my ($run) = @_;
	$run->end('recorder');
	$run->wait_for_end(qr/^recorder/, 60);
	return;
}

sub record
{
	my ($run, $redis) = @_;
	my %after = map { ("$KEY$_" => '0-0', "$KEY$_.delay" => '0-0') } @STREAMS;
	my @keys = sort keys %after;
	my %told;
	my $next = 0;

	open(my $record, '>', $run->file('record')) or die "record: $!";
	$redis->reconnect;
	until ($run->is_over('recorder'))
	{
		my $replies = eval { $redis->command('XREAD', 'COUNT', 1000, 'BLOCK', 100, 'STREAMS', @keys, @after{@keys}) };
		sleep 0.02 if $@;
		foreach my $reply (@{ $replies || [] })
		{
			my ($key, $entries) = @$reply;
			my $stream = substr $key, length $KEY;
			print $record map { line($stream, @$_) } @$entries;
			$after{$key} = $entries->[-1][0];
		}
		next if time < $next;
		$record->flush;
		commit_offsets($redis, \%after, \%told);
		$run->write_file('recorded', join "\n", map { "$_ $after{$_}" } @keys);
		$next = time + 0.5;
	}
	close $record or die "record: $!";
	return;
}

sub line
{
	my ($stream, $id, $fields) = @_;
	my ($timeline) = @$fields > 2 ? $fields->[2] =~ /:(\d+)$/ : ('');
	return "$stream\t$id\t$fields->[1]\t$timeline\n";
}

# Commits its offsets.  Where Redis refuses, or is away, the next time does.
sub commit_offsets
{
	my ($redis, $after, $told) = @_;

	foreach my $stream (@STREAMS)
	{
		my $id = $after->{"$KEY$stream"};
		next if $id eq ($told->{$stream} || '0-0');
		eval { $redis->command('SET', "redstream:offset:$stream:recorder", $id) } or return;
		$told->{$stream} = $id;
	}
	return;
}

sub record_is_complete
{
	my ($run, $redis) = @_;
	my %recorded = map { split / / } split /\n/, $run->read_file('recorded');

	foreach my $stream (@STREAMS)
	{
		my $facts = eval { $redis->command('XINFO', 'STREAM', "$KEY$stream") } or next;
		return 0 if { @$facts }->{'last-generated-id'} ne ($recorded{"$KEY$stream"} || '');
	}
	return 1;
}

# ---- what was recorded ---------------------------------------------------------------------------------------

sub each_line
{
	my ($run, $wanted, $code) = @_;

	open(my $record, '<', $run->file('record')) or die "record: $!";
	while (my $line = <$record>)
	{
		chomp $line;
		my ($stream, @rest) = split /\t/, $line, -1;
		my $delayed = $stream =~ s/\.delay$//;
		$code->($stream, @rest) if !$delayed == !$wanted;
	}
	return;
}

sub each_message { return each_line($_[0], 0, $_[1]); }
sub each_delay_message { return each_line($_[0], 1, $_[1]); }

1;
