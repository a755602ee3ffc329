# What prove runs the tests with, so that "make check" can count them: writes
# the numbers of passed and failed tests and the names of failed scripts to the
# file named by REDSTREAM_TALLY.  A script that died counts as one failed test,
# and so does every test that it planned and did not run.

package Redstream::Harness;

use strict;
use warnings;
use parent 'TAP::Harness';

sub summary
{
	my ($self, $aggregate) = @_;

	$self->SUPER::summary($aggregate);

	my ($passed, $failed) = (0, 0);
	my @bad_scripts;
	foreach my $script ($aggregate->descriptions)
	{
		my ($parser) = $aggregate->parsers($script);
		my $bad = _failed_tests($parser);

		$passed += $parser->passed;
		$failed += $bad;
		push @bad_scripts, $script if $bad > 0;
	}

	open(my $tally, '>', $ENV{REDSTREAM_TALLY}) or die "$ENV{REDSTREAM_TALLY}: $!";
	print $tally "$_\n" foreach ("$passed $failed", @bad_scripts);
	close($tally) or die "$ENV{REDSTREAM_TALLY}: $!";
	return;
}

sub _failed_tests
{
	my ($parser) = @_;
	my $failed = $parser->failed;
	my $missing = ($parser->tests_planned || 0) - $parser->tests_run;

	$failed += $missing if $missing > 0;
	$failed = 1 if $failed == 0 && $parser->has_problems;
	return $failed;
}

1;
