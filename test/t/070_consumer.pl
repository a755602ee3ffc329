# redstream-consumer: its command line, the lines it writes, its exit statuses, and what it does with messages that
# cannot be used.

use strict;
use warnings;

use IO::Select;
use PostgreSQL::Test::Utils;
use Redstream::Consumer;
use Redstream::Test;
use Test::More;

my $redis = new_redis;

# ---- the command line --------------------------------------------------------------------

my @needed = ('--url', $redis->url, '--stream', 's', '--name', 'n');

sub refused
{
	my ($name, $message, @arguments) = @_;
	my ($status, $output, $log) = run_program($redis, arguments => \@arguments);

	is($status, 2, "$name: exit status 2");
	like($log, qr/^redstream-consumer: .*$message.* \(try redstream-consumer --help\)\n\z/, "$name: one line says why");
	is($output, '', "$name: no output");
	return $log;
}

refused('no argument', '--stream and --name are needed');
refused('no stream', '--stream and --name are needed', '--url', $redis->url, '--name', 'n');
refused('no name', '--stream and --name are needed', '--url', $redis->url, '--stream', 's');
refused('no URL', '--url is needed, or REDSTREAM_URL', '--stream', 's', '--name', 'n');
refused('unknown option', '"--frobnicate" is no option', @needed, '--frobnicate=secret');
refused('ambiguous option', '"--na" is no option', @needed, '--na', 'x');
refused('value missing', '--batch-size needs a value', @needed, '--batch-size');
refused('value too many', '--once takes no value', @needed, '--once=1');
refused('operand', '"cat" is no option: a command goes after --', @needed, 'cat', '--', 'x');
refused('no command', 'no command after --', @needed, '--');
refused("--batch-size $_", '--batch-size must be a number from 1 to 1000000', @needed, '--batch-size', $_)
  foreach '0', '-1', 'x', '10x', '', '1.5', '1000001', '99999999999999999999', ' 1';
refused('--linger', '--linger must be a number from 0 to 3600000', @needed, '--linger', '1s');
refused('--max-tries', '--max-tries must be a number from 1 to 1000000', @needed, '--max-tries', '0');
refused('--max-tries alone', 'go together', @needed, '--max-tries', 3);
refused('--dead-letter alone', 'go together', @needed, '--dead-letter', 'd');
refused('--dead-letter into the stream', 'must be another stream', @needed, '--max-tries', 3, '--dead-letter', 's');
refused('bad dead letter', '--dead-letter: ', @needed, '--max-tries', 3, '--dead-letter', 'd.delay');
refused('--quiet and --verbose', 'contradict', @needed, '--quiet', '--verbose');
refused('bad stream', '--stream: ', '--url', $redis->url, '--stream', 's.delay', '--name', 'n');
refused('bad name', '--name: ', '--url', $redis->url, '--stream', 's', '--name', 'a:b');
refused('bad namespace', '--namespace: ', @needed, '--namespace', "a\nb");
refused('TLS', 'scheme "rediss" are not supported', @needed, '--url', 'rediss://localhost');
refused('bad URL', 'must begin with redis:// or unix://', @needed, '--url', 'localhost');
unlike(refused('bad URL with a password', 'port', @needed, '--url', 'redis://me:geheim@localhost:x'), qr/geheim|me:/,
	'an error quotes no password');

my ($status, $output, $log) = run_program($redis, arguments => ['--help']);
is($status, 0, '--help: exit status 0');
like($output, qr/^Usage:\n.*--dead-letter/ms, '--help: on standard output');
is($log, '', '--help: no error');
my @documented = $output =~ /(--[a-z-]{3,})/g;
my $manual = slurp_file('doc/redstream-consumer.1');
$manual =~ s/\\-/-/g;
is_deeply([ grep { $manual !~ /^\.TP\n\.B\w? .*$_\b/m } @documented ], [], 'the man page has all options');
($status, $output) = run_program($redis, arguments => ['--version']);
is($status, 0, '--version: exit status 0');
like($output, qr/^redstream-consumer \d+\.\d+\n\z/, '--version: name and version');
($status) = run_program($redis, arguments => ['--help'], to => '/dev/full');
is($status, 1, '--help that cannot be written');

# ---- lines -------------------------------------------------------------------------------------

my $n = 0;

# Reads with --once what a stream of its own has; (status, output, log, committed).
sub read_once
{
	my ($payloads, @options) = @_;
	my $stream = 'read' . ++$n;

	messages($redis, $stream, @$payloads);
	return (run_program($redis, stream => $stream, options => [ '--once', @options ]), offset($redis, $stream));
}

my @values = ('{"id":1}', 'null', '12345678901234567890.1234567890123456789e-0', '"\u00e9 é \\\\n"', ' [ 1,2 ] ',
	"{\n\t\"a\": 1,\r\n\t\"b\": 2\n}", '[' x 10000 . ']' x 10000);
my @lines = @values;
s/[\r\n]/ /g foreach @lines;
($status, $output, $log, my $committed) = read_once(\@values);
is($status, 0, 'a batch was committed');
is($output, join('', map { line_of($_ + 1 . '-0', $lines[$_]) } 0 .. $#lines), 'a message a line, as it is');
is($committed, @values . '-0', 'the last id is committed');
like($log, qr{^redstream-consumer: read1/n: connected to redis \d}m, 'log lines name stream and consumer');
like($log, qr{: batches 1, messages 7 in \d+\.\d s, the last batch 7, lag 0\.0 s$}m, 'a summary');

($status, $output, $log) = run_program($redis, stream => 'read1', options => ['--once']);
is($status, 3, 'no message: exit status 3');
is($output, '', 'no message: no output');
is($redis->command('EXISTS', 'redstream:lock:consumer:read1:n'), 0, 'no message: the lock is released');
($status) = run_program($redis, stream => 'nothing', options => ['--once']);
is($status, 3, 'no stream: exit status 3');
is_deeply($redis->command('SMEMBERS', 'redstream:consumers:nothing'), ['n'], 'the consumer is registered');

messages($redis, 's', map { qq({"id":$_}) } 1 .. 5);
($status, $output) = run_program($redis, options => [ '--once', '--batch-size', 2 ]);
is($output, line_of('1-0', '{"id":1}') . line_of('2-0', '{"id":2}'), '--batch-size');
is(offset($redis), '2-0', '--batch-size: what was read is committed');
($status, $output, $log) = run_program($redis, options => [ '--once', '--batch-size', 2, '--verbose' ]);
is($output, line_of('3-0', '{"id":3}') . line_of('4-0', '{"id":4}'), 'the next batch');
like($log, qr/batch of 2 from 3-0 to 4-0 committed, lag 0\.0 s/, '--verbose: a line about each batch');
($status, $output, $log) = run_program($redis, options => [ '--once', '--quiet' ]);
is($log, '', '--quiet: nothing to say');
messages($redis, 'lag', 1 .. 4);
$redis->command('XADD', 'redstream:stream:lag', '3700-0', 'payload', 1);
($status, $output, $log) = run_program($redis, stream => 'lag', options => [ '--once', '--batch-size', 2, '--verbose' ]);
like($log, qr/committed, lag 3\.6 s, 3 messages$/m, 'lag in seconds, and in messages');

$redis->command('XADD', 'x:redstream:stream:s', '7-0', 'payload', '7');
($status, $output) = run_program($redis, options => [ '--once', '--namespace', 'x' ]);
is($output, line_of('7-0', 7), '--namespace');
is($redis->command('GET', 'x:redstream:offset:s:n'), '7-0', '--namespace: where the offset is');

$redis->command('SELECT', 5);
$redis->command('XADD', 'redstream:stream:s', '8-0', 'payload', '8');
($status, $output) = run_program($redis, url => undef, options => ['--once'], environment => { REDSTREAM_URL => $redis->url(5) });
is($output, line_of('8-0', 8), 'REDSTREAM_URL, and a database');
$redis->command('SELECT', 0);

($status, $output, $log) = read_once([ 1 .. 3 ], '--quiet', '--batch-size', 1000000);
is($output, join('', map { line_of("$_-0", $_) } 1 .. 3), 'the largest batch size');

# ---- --unique ---------------------------------------------------------------------------------------

($status, $output, $log, $committed) = read_once([ 1, 2, 1, 3, 2, '"1"', 1, ' 1' ], '--unique');
is($output, join('', line_of('4-0', 3), line_of('5-0', 2), line_of('6-0', '"1"'), line_of('7-0', 1), line_of('8-0', ' 1')),
	'--unique: the last of identical payloads, in order');
is($committed, '8-0', '--unique: all is committed');
($status, $output) = read_once([ map { $_ % 100 } 1 .. 1000 ], '--unique');
is($output, join('', map { line_of("$_-0", $_ % 100) } 901 .. 1000), '--unique: many');

# ---- --linger -------------------------------------------------------------------------------------------

messages($redis, 'linger', 1);
my $lingering = Redstream::Consumer->new($redis, stream => 'linger', options => [ '--once', '--linger', 60000, '--batch-size', 3 ]);
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:linger:n') });
messages($redis, 'linger', 2);
is($redis->command('EXISTS', 'redstream:offset:linger:n'), 0, '--linger: waits for more');
messages($redis, 'linger', 3, 4);
is($lingering->status, 0, '--linger: until the batch is full');
is($lingering->output, join('', map { line_of("$_-0", $_) } 1 .. 3), '--linger: a full batch');
$lingering = Redstream::Consumer->new($redis, stream => 'linger', options => [ '--once', '--linger', 6000, '--batch-size', 3 ]);
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:linger:n') });
my $holder = $redis->command('GET', 'redstream:lock:consumer:linger:n');
is($lingering->status, 0, '--linger: the time is over, longer than the lock lives');
is($lingering->output, line_of('4-0', 4), '--linger: what there is');
unlike($lingering->log, qr/lost/, '--linger: the lock is kept');
$lingering = Redstream::Consumer->new($redis, stream => 'linger', options => [ '--once', '--linger', 60000, '--batch-size', 1 ]);
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:linger:n') });
messages($redis, 'linger', 5);
is($lingering->status, 0, '--linger --once: for the first message, too');
$lingering = Redstream::Consumer->new($redis, stream => 'linger', options => [ '--linger', 60000 ]);
messages($redis, 'linger', 6);
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:linger:n') });
is($lingering->stop, 0, '--linger: a signal ends it');
is(offset($redis, 'linger'), '5-0', '--linger: what was not handled is not committed');
is($redis->command('EXISTS', 'redstream:lock:consumer:linger:n'), 0, '--linger: the lock is released');

# ---- standard output ----------------------------------------------------------------------------------------

messages($redis, 'full', 1);
($status, $output, $log) = run_program($redis, stream => 'full', to => '/dev/full');
is($status, 1, 'output that cannot be written: exit status 1');
like($log, qr/cannot write to standard output: No space left/, 'output that cannot be written: it is said');
is(offset($redis, 'full'), undef, 'output that cannot be written: not committed');
is($redis->command('EXISTS', 'redstream:lock:consumer:full:n'), 0, 'output that cannot be written: the lock is released');


# A pipe that nobody reads yet.
sub to_pipe
{
	my ($stream, @options) = @_;
	pipe(my $reader, my $writer) or die "pipe: $!";
	my $consumer = Redstream::Consumer->new($redis, stream => $stream, options => \@options, to => $writer);
	close $writer;
	return ($consumer, $reader);
}

my @large = map { '"' . $_ x 1000 . '"' } map { $_ % 10 } 1 .. 1000;
my $expected = join '', map { line_of("$_-0", $large[ $_ - 1 ]) } 1 .. 1000;
messages($redis, 'large', @large);
my ($piped, $reader) = to_pipe('large', '--once');
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:large:n') });
$holder = $redis->command('GET', 'redstream:lock:consumer:large:n');
my $before = $redis->command('TIME')->[0];
wait_until('more than the time that a lock lives', sub { $redis->command('TIME')->[0] > $before + 6 });
is($redis->command('GET', 'redstream:lock:consumer:large:n'), $holder, 'nobody reads: the lock is kept');
is(offset($redis, 'large'), undef, 'nobody reads: nothing is committed');
$piped->signal('TERM');
is(do { local $/ = undef; <$reader> }, $expected, 'a signal: the batch is written all the same');
is($piped->status, 0, 'and it was committed');
is(offset($redis, 'large'), '1000-0', 'as a whole');

$redis->command('DEL', 'redstream:offset:large:n');
($piped, $reader) = to_pipe('large');
wait_until('its lock', sub { $redis->command('EXISTS', 'redstream:lock:consumer:large:n') });
close $reader;
is($piped->status, 1, 'the reader has gone: exit status 1');
like($piped->log, qr/cannot write to standard output: Broken pipe/, 'the reader has gone: it is said');
is(offset($redis, 'large'), undef, 'the reader has gone: nothing is committed');
is($redis->command('EXISTS', 'redstream:lock:consumer:large:n'), 0, 'the reader has gone: the lock is released');

($piped, $reader) = to_pipe('large');
wait_until('the first lines', sub { IO::Select->new($reader)->can_read(0) });
$piped->signal('INT');
$piped->signal('TERM');
is($piped->status, 1, 'two signals: exit status 1');
like($piped->log, qr/second signal/, 'two signals: it is said');
is(offset($redis, 'large'), undef, 'two signals: nothing is committed');
is($redis->command('EXISTS', 'redstream:lock:consumer:large:n'), 0, 'two signals: the lock is released');

$status = system "redstream-consumer --url '@{[ $redis->url ]}' --stream large --name n --once --quiet 2>/dev/null >&-";
is($status >> 8, 1, 'standard output is closed: exit status 1');
is(offset($redis, 'large'), undef, 'standard output is closed: nothing is committed');

# ---- what ps shows -------------------------------------------------------------------------------------

$redis->command('ACL', 'SETUSER', 'me', 'on', '>geheim', '~*', '&*', '+@all');
foreach my $form ('--url=redis://me:geheim@127.0.0.1:1/3', '--url', '--ur=redis://me:geheim@127.0.0.1:1/3')
{
	my $hidden = Redstream::Consumer->new($redis, arguments => [
		$form, $form =~ /=/ ? () : 'redis://me:geheim@127.0.0.1:1/3', '--stream', 's', '--name', 'n' ]);

	$hidden->wait_log(qr/Redis: /);
	open(my $file, '<', '/proc/' . $hidden->pid . '/cmdline') or die "cmdline: $!";
	my $line = <$file>;
	unlike($line, qr/geheim|me:/, "$form: no password in ps");
	like($line, qr{redis://x+\@127\.0\.0\.1:1/3\0}, "$form: but where Redis is");
	unlike($hidden->log, qr/geheim/, "$form: no password in the log");
	is($hidden->stop, 0, "$form: waiting for Redis ends with a signal");
}

# ---- messages that cannot be used ----------------------------------------------------------------------------

my $s = 'redstream:stream:bad';
$redis->command('XADD', $s, '1-0', 'payload', '1');
$redis->command('XADD', $s, '2-0', 'payload', '{"a":01}');
$redis->command('XADD', $s, '3-0', 'data', '3');
$redis->command('XADD', $s, '4-0', 'payload', '4', 'a', 'b');
$redis->command('XADD', $s, '5-0', 'a', 'b', 'payload', '5', 'payload', '6');
$redis->command('XADD', $s, '6-0', 'payload', "\"\xff\"");
$redis->command('XADD', $s, '7-0', 'payload', '');

($status, $output, $log) = run_program($redis, stream => 'bad', options => ['--once']);
is($status, 0, 'a bad message behind a good one: that is committed');
is($output, line_of('1-0', 1), 'the batch ends before the bad one');
($status, $output, $log) = run_program($redis, stream => 'bad', options => ['--once']);
is($status, 1, 'a bad message: exit status 1');
is($output, '', 'a bad message: nothing is written');
like($log, qr/message 2-0 cannot be used: not JSON: an object without a comma or brace where one must be, at byte 6 of 8; .*--skip-invalid.*--dead-letter.*redstream\.commit_offset\('bad', 'n', '2-0'\).*XDEL/,
	'a bad message: what is wrong, and the ways past it');
is(offset($redis, 'bad'), '1-0', 'a bad message: nothing is committed');
is($redis->command('EXISTS', 'redstream:lock:consumer:bad:n'), 0, 'a bad message: the lock is released');
my $stuck = Redstream::Consumer->new($redis, stream => 'bad');
wait_until('two tries', sub { 2 <= (() = $stuck->log =~ /message 2-0 cannot be used/g) });
$redis->command('XDEL', $s, '2-0');
$stuck->wait_log(qr/message 3-0 cannot be used: no field "payload";/);
is(offset($redis, 'bad'), '1-0', 'the process stays, until the message is deleted');
$redis->command('SET', 'redstream:offset:bad:n', '3-0');
$stuck->wait_log(qr/message 6-0 cannot be used: not JSON: bytes that are not UTF-8, at byte 1 of 3/);
is($stuck->output, line_of('4-0', 4) . line_of('5-0', 5), 'or the offset is set');
like($stuck->log, qr/message 4-0 has other fields than "payload"/, 'other fields are mentioned');
unlike($stuck->log, qr/message 5-0/, 'once');
is($stuck->stop, 0, 'a signal ends the pause');

$redis->command('SET', 'redstream:offset:bad:n', '2-0');
($status, $output, $log) = run_program($redis, stream => 'bad', options => [ '--once', '--skip-invalid', '--verbose' ]);
is($status, 0, '--skip-invalid: committed');
is($output, line_of('4-0', 4) . line_of('5-0', 5), '--skip-invalid: the good ones');
is(offset($redis, 'bad'), '7-0', '--skip-invalid: the offset passes the bad ones');
like($log, qr/message 3-0 is skipped: no field "payload"$/m, '--skip-invalid: each is named');
like($log, qr/message 6-0 is skipped: not JSON: bytes that are not UTF-8/, '--skip-invalid: each is named, the second');
like($log, qr/message 7-0 is skipped: not JSON: it ends too early, at byte 0 of 0$/m, '--skip-invalid: and the last');
like($log, qr/message 5-0 has other fields/, '--verbose: other fields are always mentioned');
$redis->command('SET', 'redstream:offset:bad:n', '5-0');
($status, $output, $log) = run_program($redis, stream => 'bad', options => [ '--once', '--skip-invalid' ],
	command => [ 'sh', '-c', 'echo called' ]);
is($status, 0, '--skip-invalid, none is good: committed');
is($output, '', '--skip-invalid, none is good: no command is run');

$redis->command('SET', 'redstream:offset:bad:n', '1-0');
my $dead = Redstream::Consumer->new($redis, stream => 'bad', options => [ '--max-tries', 3, '--dead-letter', 'dead', '--skip-invalid' ]);
wait_until('the end', sub { offset($redis, 'bad') eq '7-0' });
is($dead->stop, 0, '--dead-letter: it goes on');
is($dead->output, line_of('4-0', 4) . line_of('5-0', 5), '--dead-letter: the good ones');
is_deeply([ map { $_->[1] } $redis->entries('redstream:stream:dead') ], [
	{ stream => 'bad', consumer => 'n', id => '3-0', tries => 0, reason => 'no field "payload"' },
	{ payload => "\"\xff\"", stream => 'bad', consumer => 'n', id => '6-0', tries => 0,
		reason => 'not JSON: bytes that are not UTF-8, at byte 1 of 3' },
	{ payload => '', stream => 'bad', consumer => 'n', id => '7-0', tries => 0,
		reason => 'not JSON: it ends too early, at byte 0 of 0' } ],
	'--dead-letter: the bad ones, as they were, at once');

done_testing();
