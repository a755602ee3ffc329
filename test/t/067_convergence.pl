# A consumer that fetches what is announced ends with an exact copy, whatever was done to the tables.
#
# Clients change four tables in all ways at once, while a consumer (Redstream::Copy) reads messages in small
# batches, and for each replaces its copy of the row by what the table has now.  When all is quiet, tables
# and copies are compared row by row.
#
# Why they must be equal: Let T be the last transaction that changed the row of a key: made or removed it,
# or moved it to or from another key.  T's main message is sent after T has ended, and its delay message is
# moved after that, so who has read one and then takes a snapshot sees T.  The consumer takes its
# snapshots after it has read the batch (READ COMMITTED: one for each statement).  So what it copies when
# it follows a message of T is what T left, and nothing is newer.  Messages of older changes do no harm: what was
# copied for those before is replaced, and for those after, the same is copied again.  This needs no
# order of messages, streams or shards, only that the consumer follows one batch after the other.  It fails if a
# message is missing, names the wrong key, or comes before its transaction can be seen.
#
# A later message makes good for a missing one.  Therefore most keys are changed a few times only, and nobody
# empties or rewrites a table in the last third of a load; but some keys are changed all the time, for the sake of the races.
#
# This is done three times:
#	main messages	delay messages do not come of age
#	delay messages	now they do; the consumer begins anew, without the main messages
#	all together	delay messages are moved and read ones trimmed during the load, and the sender is ended
#					now and then
#
# REDSTREAM_TEST_SECONDS is the length of the two loads together (8).

use strict;
use warnings;

use File::Temp ();
use List::Util qw(sum);
use PostgreSQL::Test::Utils;
use POSIX ();
use Redstream::Copy;
use Redstream::Session;
use Redstream::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{REDSTREAM_TEST_SECONDS} || 8;
my $clients = 4;
my $ids = 500 * $seconds;		# keys in each table that the clients choose from
my $patience = 60 + 5 * $seconds;

my $redis = new_redis;
my $node = new_node('main', $redis,
	'redstream.delay' => '1h',
	'redstream.trim_interval' => '1s',
	'redstream.timeout' => '60s',
	'redstream.transaction_buffer' => '64kB',
	'deadlock_timeout' => '50ms',
	'fsync' => 'on',				# else there is no commit_delay
	'commit_siblings' => 0,
	'log_statement' => 'none');
my $directory = File::Temp->newdir('convergence.XXXX', TMPDIR => 1);

# ---- the tables --------------------------------------------------------------------------------

# All have the same columns.  Only a partitioned one has the region in its key: there, another region is another
# key and another partition.
my $condition = 'region < 4 AND v % 3 > 0';
my %streams = (part => ['part'], shard => [ map { "shard-$_" } 0 .. 2 ], cond => ['cond'], wide => ['wide']);
my @tables = sort keys %streams;
my %key = map { ($_ => $_ eq 'part' ? 'id, region' : 'id') } @tables;

$node->safe_psql('postgres', qq{
	CREATE TABLE part (id integer, region integer, v integer, note text, PRIMARY KEY (id, region))
		PARTITION BY LIST (region);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2) PARTITION BY HASH (id);
	CREATE TABLE part_2_0 PARTITION OF part_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE part_2_1 PARTITION OF part_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE part_3 (note text, dropped integer, v integer, region integer NOT NULL, id integer NOT NULL);
	ALTER TABLE part_3 DROP dropped;
	ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES IN (3);
	CREATE TABLE part_other PARTITION OF part DEFAULT;
	CREATE TABLE shard (id integer PRIMARY KEY, region integer, v integer, note text);
	CREATE TABLE cond (LIKE shard INCLUDING INDEXES);
	CREATE TABLE wide (LIKE shard INCLUDING INDEXES);

	SELECT redstream.attach('part');
	SELECT redstream.attach('shard', shards => 3);
	SELECT redstream.attach('cond', condition => '$condition');
	SELECT redstream.attach('wide', payload => ARRAY['region', 'id', 'v']);

	CREATE FUNCTION try(statement text) RETURNS boolean LANGUAGE plpgsql AS \$\$
	BEGIN
		EXECUTE statement;
		RETURN true;
	EXCEPTION WHEN unique_violation THEN
		RETURN false;
	END \$\$;
});

my $copy = Redstream::Copy->new($node, $redis, map {
	($_ => {
			key => join(', ', map { "$_ integer" } split /, /, $key{$_}),
			streams => $streams{$_},
			$_ eq 'cond' ? (where => $condition) : (),
		})
} @tables);

# ---- what the clients do ---------------------------------------------------------------------------

# {t} is a table and {u} another one.  The number says how often.
my @scripts = (
	30 => q{
		\set what random(1, 6)
		\if :what = 1
			INSERT INTO {t} VALUES (:any, :region, :v) ON CONFLICT DO NOTHING;
		\elif :what = 2
			INSERT INTO {t} VALUES (:hot, :region, :v) ON CONFLICT ({key}) DO UPDATE SET v = EXCLUDED.v;
		\elif :what = 3
			UPDATE {t} SET v = :v WHERE id = :any;
		\elif :what = 4
			UPDATE {t} SET v = v + 1, note = 'hot' WHERE id = :hot;
		\elif :what = 5
			DELETE FROM {t} WHERE id = :any;
		\else
			DELETE FROM {t} WHERE id = :hot;
		\endif
	},
	# other keys, shards and partitions
	12 => q{
		\set what random(1, 4)
		\if :what = 1
			SELECT try('UPDATE {t} SET id = :other WHERE id = :any');
		\elif :what = 2
			SELECT try('UPDATE {t} SET id = :other, v = :v WHERE id = :hot');
		\elif :what = 3
			SELECT try('UPDATE {t} SET region = :region WHERE id = :any');
		\else
			SELECT try('UPDATE {t} SET id = id + 3, region = :region WHERE id BETWEEN :any AND :any + 5');
		\endif
	},
	6 => q{
		\set what random(1, 4)
		\if :what = 1
			INSERT INTO {t} SELECT i, 1 + i % 5, :v + i FROM generate_series(:any, :any + 30) i ON CONFLICT DO NOTHING;
		\elif :what = 2
			UPDATE {t} SET v = v + 1 WHERE id BETWEEN :any AND :any + 20;
		\elif :what = 3
			DELETE FROM {t} WHERE id BETWEEN :any AND :any + 10;
		\else
			WITH gone AS (DELETE FROM {t} WHERE id BETWEEN :any AND :any + 10 RETURNING *)
			INSERT INTO {u} SELECT * FROM gone ON CONFLICT DO NOTHING;
		\endif
	},
	10 => q{
		\set undo random(0, 2)
		\set end random(0, 19)
		BEGIN;
		UPDATE {t} SET v = v + 1 WHERE id = :any;
		SAVEPOINT one;
		DELETE FROM {t} WHERE id BETWEEN :any AND :any + 3;
		INSERT INTO {u} VALUES (:any, :region, :v) ON CONFLICT DO NOTHING;
		SAVEPOINT two;
		UPDATE {t} SET note = 'undone' WHERE id BETWEEN :other AND :other + 5;
		SELECT try('UPDATE {t} SET id = :other WHERE id = :hot');
		ROLLBACK TO two;
		UPDATE {u} SET v = :v, region = 6 - region WHERE id = :other AND '{u}' <> 'part';
		\if :undo = 0
			ROLLBACK TO one;
		\elif :undo = 1
			RELEASE one;
		\endif
		DELETE FROM {u} WHERE id = :other + 1;
		\if :end < 4
			ROLLBACK;
		\elif :end = 4
			-- long enough for a message to be read and followed, if it came too early
			SET LOCAL commit_delay = 20000;
			COMMIT;
		\else
			COMMIT;
		\endif
	});

# What a session of its own does, one after the other, during the first two thirds of the load.  {new} are rows whose
# keys the clients do not choose, as COPY reads them.
my @rare = (
	[ 'COPY', "BEGIN;\nCOPY {t} (id, region, v) FROM STDIN;\n{new}\\.\nCOMMIT" ],
	[ 'a large transaction', q{
		BEGIN;
		LOCK {t} IN EXCLUSIVE MODE;
		UPDATE {t} SET v = v + 1;
		SAVEPOINT s;
		DELETE FROM {t} WHERE id % 2 = 0;
		ROLLBACK TO s;
		DELETE FROM {t} WHERE id % 10 = 0;
		INSERT INTO {t} SELECT i, 1 + i % 5, i FROM generate_series(1, {ids}) i ON CONFLICT DO NOTHING;
		COMMIT;} ],
	[ 'TRUNCATE of a partition', 'TRUNCATE part_1' ],
	[ 'TRUNCATE', q{
		TRUNCATE {t};
		INSERT INTO {t} SELECT i, 1 + i % 5, i FROM generate_series(1, {ids}, 3) i ON CONFLICT DO NOTHING} ],
	[ 'TRUNCATE of partitions, some of it rolled back', q{
		BEGIN;
		TRUNCATE part_2_0, part_3;
		SAVEPOINT s;
		INSERT INTO part SELECT i, 3, i FROM generate_series(1, {ids}, 5) i ON CONFLICT DO NOTHING;
		TRUNCATE part_2_1, part_other;
		ROLLBACK TO s;
		INSERT INTO part SELECT i, 2, i FROM generate_series(1, {ids}, 5) i ON CONFLICT DO NOTHING;
		COMMIT;} ],
	[ 'a large transaction rolled back', 'BEGIN; LOCK {t}; UPDATE {t} SET v = -1; TRUNCATE {t}; ROLLBACK;' ],
	[ 'COPY that is rolled back', "BEGIN;\nCOPY {t} (id, region, v) FROM STDIN;\n{new}\\.\nROLLBACK" ],
	[ 'TRUNCATE of a partition that is partitioned', 'TRUNCATE part_2' ],
	[ 'bulk() of fewer rows than the statement changes', q{
		DO $$BEGIN
			PERFORM redstream.bulk('{t}', 'id % 3 = 0', 'UPDATE {t} SET v = v + 1 WHERE id % 3 = 0 OR id % 7 = 0');
		END$$} ],
	[ 'bulk() of keys that change', q{
		BEGIN;
		DELETE FROM {t} WHERE id < 0;
		DO $$BEGIN
			PERFORM redstream.bulk('{t}', 'id % 10 = 1', 'UPDATE {t} SET id = -id WHERE id % 10 = 1');
		END$$;
		COMMIT;} ],
	[ 'bulk_update()', q{CALL redstream.bulk_update('{t}', 'v = v + 1', 'id % 3 = 0', 200)} ],
	[ 'TRUNCATE of two tables', q{
		BEGIN;
		TRUNCATE {t}, {u};
		INSERT INTO {t} SELECT i, 1 + i % 5, i FROM generate_series(1, {ids}, 2) i;
		INSERT INTO {u} SELECT i, 1 + i % 5, i FROM generate_series(2, {ids}, 2) i;
		COMMIT;} ],
);

sub fill_in
{
	my ($text, $number) = @_;
	my $new = 3 * $ids + 10 * $number;
	my %words = (
		t => $tables[ $number % @tables ],
		u => $tables[ ($number + 1) % @tables ],
		key => $key{ $tables[ $number % @tables ] },
		ids => $ids,
		new => join('', map { "$_\t" . (1 + $_ % 5) . "\t$_\n" } $new .. $new + 9));

	$text =~ s/\{(\w+)\}/$words{$1}/g;
	return $text;
}

sub write_scripts
{
	my @options;

	while (my ($weight, $text) = splice @scripts, 0, 2)
	{
		foreach my $number (0 .. $#tables)
		{
			my $name = "$directory/" . @options . '.sql';
			my $script = fill_in($text, $number);
			$script =~ s/^\t+//mg;
			append_to_file($name, qq{\\set any random(1, $ids)
				\\set other random(1, $ids)
				\\set hot random(1, 20)
				\\set region random(1, 5)
				\\set v random(0, 99)
				$script} =~ s/^\t+//mgr);
			push @options, "--file=$name\@$weight";
		}
	}
	return @options;
}

my @script_options = write_scripts();
my $rare_done = 0;

sub do_rare
{
	my ($session) = @_;
	my $number = $rare_done++;
	my ($what, $sql) = @{ $rare[ $number % @rare ] };
	my $output;

	do
	{
		$output = $session->query(fill_in($sql, $number + int($number / @rare)));
	} while ($output =~ /deadlock detected|due to concurrent update/);
	fail("$what: $output") if $output ne '';
	return;
}

sub start_pgbench
{
	my ($for) = @_;
	my @command = ('pgbench', '--no-vacuum', "--client=$clients", '--jobs=1', "--time=$for", '--max-tries=100',
		@script_options, $node->connstr('postgres'));
	my $pid = fork;

	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open(STDOUT, '>', "$directory/pgbench.log");
		open(STDERR, '>&', \*STDOUT);
		exec(@command) or POSIX::_exit(127);
	}
	return $pid;
}

sub kill_sender
{
	my $old = sender_pid($node) or die 'there is no sender';
	kill 'TERM', $old;
	wait_until('another sender', sub { my $new = sender_pid($node); $new && $new != $old });
	return;
}

# Runs the clients for so many seconds, in which the sender is ended this many times.  All that is rare is done once,
# even if that takes longer.
sub run_load
{
	my ($name, $for, $kills) = @_;
	my $session = Redstream::Session->new($node);
	$session->query("SET client_min_messages = 'warning'");
	my $begin = time;
	my $pgbench = start_pgbench($for);
	my $steps = @rare > $for ? @rare : $for;
	my ($step, $killed) = (0, 0);

	while (waitpid($pgbench, POSIX::WNOHANG()) == 0)
	{
		my $passed = (time - $begin) / $for;
		die 'pgbench does not end' if time > $begin + $for + $patience;
		if ($step < $steps && $passed > $step * 0.66 / $steps)
		{
			do_rare($session);
			$step++;
		}
		elsif ($killed < $kills && $passed > ($killed + 0.5) / $kills)
		{
			kill_sender();
			$killed++;
		}
		sleep 0.02;
	}
	is($?, 0, "$name: the load ends well") or diag(slurp_file("$directory/pgbench.log"));
	do_rare($session) while $step++ < @rare;
	$session->close;
	note slurp_file("$directory/pgbench.log") =~ s/^SQL script.*//smr;
	return;
}

# ---- the comparison ----------------------------------------------------------------------------------

sub compare
{
	my ($name) = @_;

	settle($node, $redis);
	$copy->catch_up($patience);
	my $read = $copy->new_messages;
	foreach my $table (@tables)
	{
		my $rows = $copy->rows($table);

		cmp_ok($read->{$_}, '>', 100, "$name: stream $_ was read") foreach @{ $streams{$table} };
		cmp_ok($rows, '>', $ids / 10, "$name: $table has rows");
		is_deeply([ $copy->differences($table) ], [], "$name: $table and its copy are equal");
		note "$table: $rows rows compared";
	}
	note sum(values %$read) . ' messages';
	return $read;
}

sub delay_messages_are_moved
{
	wait_until('the delay streams to be empty', sub {
		!grep { $redis->command('XLEN', "redstream:stream:$_.delay") } map { @$_ } values %streams;
	}, $patience);
	return;
}

$node->safe_psql('postgres', join ';', map {
	"INSERT INTO $_ SELECT i, 1 + i % 5, i FROM generate_series(1, $ids, 2) i"
} @tables);

$copy->start;
run_load('main messages', POSIX::ceil($seconds / 2), 0);
my $main = compare('main messages');
is(stats($node)->{passed}, 0, 'all of them were sent');
is(stats($node)->{errors}, 0, 'without an error');

$copy->stop;
$redis->command('DEL', map { "redstream:stream:$_" } map { @$_ } values %streams);
$copy->forget;
$copy->start;
reconfigure($node, 'redstream.delay' => '1s');
delay_messages_are_moved();
is_deeply(compare('delay messages'), $main, 'as many delay messages as main messages');

run_load('all together', POSIX::ceil($seconds / 2), 3);
delay_messages_are_moved();
compare('all together');
wait_until('the trimmer', sub { stats($node)->{trimmed} > 0 });

$copy->stop;
is_deeply([ crashes($node) ], [], 'no crash');
$node->stop;
done_testing;
