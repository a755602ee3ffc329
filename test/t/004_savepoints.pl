# Savepoints: what was rolled back is not announced, what was not is, once.  At the end,
# random transactions against a model; SEED=n repeats a run.

use strict;
use warnings;

use Redstream::Test;
use Test::More;

my $redis = new_redis();
my $node = new_node('main', $redis, 'redstream.timeout' => '30s');

# "item" announces its key, "version" its whole row.
$node->safe_psql('postgres', q{
	CREATE TABLE item (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
	CREATE TABLE version (id serial PRIMARY KEY, state text);
	SELECT redstream.attach('item'), redstream.attach('version', payload => ARRAY['state']);
	SET redstream.enabled = off;
	INSERT INTO item SELECT i FROM generate_series(1, 9) i;});

# Runs SQL, errors and all, and compares what arrives.  In it, "+1" updates item 1,
# "=A" inserts a version, "[s" makes the savepoint s, "]s" releases it and "<s" rolls
# back to it, "(" and ")" begin and commit, "!" rolls back and "?" fails.
sub arrives
{
	my ($what, $script, $expected) = @_;
	my %sql = ('(' => 'BEGIN', ')' => 'COMMIT', '!' => 'ROLLBACK', '?' => 'SELECT 1 / 0');
	my %sql_of = (
		'+' => 'UPDATE item SET n = n + 1 WHERE id = %s',
		'=' => q{INSERT INTO version (state) VALUES ('%s')},
		'[' => 'SAVEPOINT %s', ']' => 'RELEASE %s', '<' => 'ROLLBACK TO %s');
	my @steps = map { $sql{$_} || sprintf $sql_of{ substr $_, 0, 1 }, substr $_, 1 } split ' ', $script;

	$node->psql('postgres', join(";\n", @steps), on_error_stop => 0, stderr => \my $errors);
	is(arrived('item', 'version'), $expected, "$what: $script");
	return;
}

# The values on the streams once everything committed has arrived; takes them out.
sub arrived
{
	my (@streams) = @_;
	settle($node, $redis);
	my @payloads = map { $_->[1]{payload} } map { take($redis, "redstream:stream:$_") } @streams;
	$redis->command('DEL', map { "redstream:stream:$_.delay" } @streams);
	return join ' ', map { /:"?([^"}]*)/ } @payloads;
}

# ---- rolled back or not ---------------------------------------------------------------

arrives('released', '( +1 [a +2 ]a +3 )', '1 2 3');
arrives('rolled back', '( +1 [a +2 <a +3 )', '1 3');
arrives('left open', '( +1 [a +2 [b +3 )', '1 2 3');
arrives('only in the savepoint', '( [a +1 ]a )', '1');
arrives('only in the savepoint, rolled back', '( [a +1 <a )', '');
arrives('nested, all released', '( [a +1 [b +2 [c +3 ]c +4 ]b +5 ]a +6 )', '1 2 3 4 5 6');
arrives('nested, inner rolled back', '( [a +1 [b +2 <b +3 ]b +4 ]a +5 )', '1 3 4 5');
arrives('nested, outer rolled back', '( +1 [a +2 [b +3 ]b +4 <a +5 )', '1 5');
arrives('released into one that is rolled back', '( [a [b [c +1 ]c ]b <a +2 )', '2');
arrives('three levels, the middle rolled back', '( [a +1 [b +2 [c +3 <b +4 ]a )', '1 4');
arrives('rolled back twice', '( +1 [a +2 <a +3 <a +4 )', '1 4');
arrives('rolled back twice, then released', '( +1 [a +2 <a +3 <a +4 ]a +5 )', '1 4 5');
arrives('the same name again', '( [a +1 [a +2 <a +3 ]a <a +4 )', '4');
arrives('nothing in it', '( [a <a [a ]a +1 [a <a ]a )', '1');
arrives('after an error', '( +1 [a +2 ? <a +3 )', '1 3');
arrives('an error outside', '( [a +1 ]a ? )', '');
arrives('an error in a level below', '( +1 [a +2 [b +3 ? +4 <a +5 )', '1 5');
arrives('the transaction rolled back', '( [a +1 ]a [b +2 <b !', '');
arrives('two transactions', '( [a +1 <a ) ( [a +2 ]a )', '2');
arrives('rolled back, then another', '( [a +1 ]a ! ( +2 )', '2');
arrives('the parent after its child', '( +1 [a +2 ]a +3 [a +4 <a +5 [a +6 ]a )', '1 2 3 5 6');
arrives('the outer one first used after an inner one', '( [a [b +1 ]b +2 [c +3 <c +4 <a +5 )', '5');
arrives('... and kept', '( [a [b +1 ]b +2 [c +3 <c +4 ]a +5 )', '1 2 4 5');

# ---- the same row again -------------------------------------------------------------------

arrives('a row updated often', '( +1 +1 +2 +1 +2 )', '1 2');
arrives('in a savepoint', '( +1 [a +1 ]a +1 )', '1');
arrives('again after its first update was rolled back', '( [a +1 <a +1 )', '1');
arrives('first in a savepoint', '( [a +1 ]a +1 )', '1');
arrives('rolled back where it came again', '( +1 [a +1 <a )', '1');
arrives('rolled back with its outer savepoint', '( [a [b +1 ]b +1 <a +1 )', '1');
arrives('in the next transaction', '( +1 ) ( +1 ) +1', '1 1 1');
arrives('of two tables', '( +1 =1 +1 )', '1 1');
arrives('the order of versions', '( =A =B =A )', 'A B A');
arrives('the same one', '( =A =A )', 'A A');
arrives('with a savepoint', '( =A [a =B <a =C [b =A ]b )', 'A C A');

# A thousand savepoints, one in another or one after another.
my $depth = 1000;
arrives('deep', '( ' . join(' ', map { "[s$_ =$_" } 1 .. $depth) . ' <s501 =x )',
	join ' ', 1 .. 500, 'x');
arrives('long', '( ' . join(' ', map { ("[s =$_", $_ % 3 ? ']s' : '<s') } 1 .. $depth) . ' )',
	join ' ', grep { $_ % 3 } 1 .. $depth);

# ---- exceptions ------------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	DO $$ BEGIN
		FOR i IN 1 .. 9 LOOP
			BEGIN
				UPDATE item SET n = n + 1 WHERE id = i;
				INSERT INTO version (state) VALUES ('try ' || i);
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'no';
				END IF;
				PERFORM 1 / (i - 5);
				INSERT INTO version (state) VALUES ('done ' || i);
			EXCEPTION
				WHEN raise_exception THEN
					INSERT INTO version (state) VALUES ('caught ' || i);
				WHEN division_by_zero THEN
					UPDATE item SET n = n + 1 WHERE id = i;
			END;
		END LOOP;
	END $$});
is(arrived('item', 'version'),
	join(' ', 1, 2, 4, 5, 7, 8, map { $_ == 5 ? () : $_ % 3 ? ("try $_", "done $_") : "caught $_" } 1 .. 9),
	'exceptions in a loop');

# ---- random transactions ------------------------------------------------------------------------

my $seed = defined $ENV{SEED} ? $ENV{SEED} : int(rand(2**31));
note "SEED=$seed";
srand($seed);

# A session against a model of it.  The rows of table "random" are (id, pad); stream
# "random" gets id and pad, stream "keys" the id.
package Model
{
	sub new
	{
		my ($class, $pad) = @_;
		return bless { pad => $pad, rows => {}, next => 1, number => 0, most => 0, sql => [], random => [], keys => [] },
		  $class;
	}

	sub run { push @{ $_[0]{sql} }, $_[1]; return; }

	# What a savepoint keeps: how many records there were, and the rows.
	sub mark
	{
		my ($self) = @_;
		return { records => scalar @{ $self->{records} }, rows => { %{ $self->{rows} } } };
	}

	sub return_to
	{
		my ($self, $mark) = @_;
		$#{ $self->{records} } = $mark->{records} - 1;
		$self->{rows} = { %{ $mark->{rows} } };
		$self->{failed} = 0;
		return;
	}

	sub record
	{
		my ($self, $id, $pad) = @_;
		push @{ $self->{records} }, [ $id, $pad ] unless $self->{failed};
		return;
	}

	sub insert
	{
		my ($self, $count) = @_;
		my $first = $self->{next};
		my $last = $first + $count - 1;

		$self->{next} = $last + 1;
		$self->run("INSERT INTO random SELECT i, pad(0) FROM generate_series($first, $last) i");
		return if $self->{failed};
		foreach my $id ($first .. $last)
		{
			$self->{rows}{$id} = 0;
			$self->record($id, 0);
		}
		return;
	}

	# The number of an existing row.
	sub any
	{
		my ($self) = @_;
		my @ids = sort { $a <=> $b } keys %{ $self->{rows} };
		return $ids[ rand @ids ];
	}

	sub update
	{
		my ($self) = @_;
		my $id = $self->any or return;
		my $pad = ++$self->{number};

		$self->run("UPDATE random SET pad = pad($pad) WHERE id = $id");
		return if $self->{failed};
		$self->record($id, $_) foreach $self->{rows}{$id}, $pad;
		$self->{rows}{$id} = $pad;
		return;
	}

	sub delete
	{
		my ($self) = @_;
		my $id = $self->any or return;

		$self->run("DELETE FROM random WHERE id = $id");
		return if $self->{failed};
		$self->record($id, delete $self->{rows}{$id});
		return;
	}

	sub transaction
	{
		my ($self, $steps, $rows) = @_;
		my @savepoints;

		$self->{records} = [];
		$self->{failed} = 0;
		my $begin = $self->mark;
		$self->run('BEGIN');
		foreach (1 .. $steps)
		{
			my $what = rand;
			if ($what < 0.25) { $self->update }
			elsif ($what < 0.45) { $self->insert(1 + int rand $rows) }
			elsif ($what < 0.5) { $self->delete }
			elsif ($what < 0.7 && !$self->{failed})
			{
				push @savepoints, $self->mark;
				$self->run('SAVEPOINT s' . @savepoints);
			}
			elsif ($what < 0.82 && @savepoints && !$self->{failed})
			{
				my $level = 1 + int rand @savepoints;
				$self->run("RELEASE s$level");
				$#savepoints = $level - 2;
			}
			elsif ($what < 0.97 && @savepoints)
			{
				my $level = 1 + int rand @savepoints;
				$self->run("ROLLBACK TO s$level");
				$#savepoints = $level - 1;
				$self->return_to($savepoints[-1]);
			}
			elsif (@savepoints)
			{
				$self->run('SELECT 1 / 0');
				$self->{failed} = 1;
			}
		}
		if (rand() < 0.2)
		{
			$self->run('ROLLBACK');
			$self->return_to($begin);
		}
		else
		{
			$self->run('COMMIT');
			$self->return_to($begin) if $self->{failed};
			$self->{most} = @{ $self->{records} } if @{ $self->{records} } > $self->{most};
			my %seen;
			push @{ $self->{random} }, map { "$_->[0] $_->[1]" } @{ $self->{records} };
			push @{ $self->{keys} }, grep { !$seen{$_}++ } map { $_->[0] } @{ $self->{records} };
		}
		return;
	}
}

# Both streams must have exactly what the model says, but that a row's key may
# come again in a transaction.
sub random_ok
{
	my ($what, $pad, $transactions, $steps, $rows, @settings) = @_;
	my $model = Model->new($pad);

	$node->safe_psql('postgres', qq{
		CREATE TABLE random (id integer PRIMARY KEY, pad text);
		CREATE FUNCTION pad(integer) RETURNS text IMMUTABLE LANGUAGE sql AS
			'SELECT \$1 || repeat(''.'', $pad)';
		SELECT redstream.attach('random', payload => ARRAY['id', 'pad']);
		-- the same changes by their keys only
		CREATE TABLE keys (id integer PRIMARY KEY, pad text);
		SELECT redstream.attach('keys');
		CREATE FUNCTION copy() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
			IF TG_OP = 'INSERT' THEN INSERT INTO keys VALUES (NEW.*);
			ELSIF TG_OP = 'UPDATE' THEN UPDATE keys SET pad = NEW.pad WHERE id = NEW.id;
			ELSE DELETE FROM keys WHERE id = OLD.id;
			END IF;
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER copy AFTER INSERT OR UPDATE OR DELETE ON random
			FOR EACH ROW EXECUTE FUNCTION copy()});
	$model->transaction($steps, $rows) foreach 1 .. $transactions;
	$node->psql('postgres', join(";\n", @settings, @{ $model->{sql} }), on_error_stop => 0, stderr => \my $errors);
	unlike($errors, qr/ERROR:  (?!division by zero|current transaction is aborted)/, "$what: no surprises");
	settle($node, $redis);

	my @random = map { $_->[1]{payload} } take($redis, 'redstream:stream:random');
	ok(!(grep { !/^\{"id":\d+,"pad":"\d+\.{$pad}"\}$/ } @random), "$what: payloads are whole");
	is_deeply([ map { join ' ', /(\d+)/g } @random ], $model->{random}, "$what: every change once, in order")
	  or diag("SEED=$seed");
	is_deeply([ first_of_transaction($model, take($redis, 'redstream:stream:keys')) ], $model->{keys},
		"$what: every key, in order") or diag("SEED=$seed");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM random'), scalar keys %{ $model->{rows} },
		"$what: the model knows the rows");

	# what was not announced had a delay message at most
	my %delayed = map { join(' ', $_->[1]{payload} =~ /(\d+)/g) => 1 } take($redis, 'redstream:stream:random.delay');
	is_deeply([ grep { !$delayed{$_} } @{ $model->{random} } ], [], "$what: all have a delay message");
	$redis->command('DEL', 'redstream:stream:keys.delay');
	note scalar(@{ $model->{random} }), ' changes, ', scalar(keys %delayed),
	  " different delay messages, $model->{most} changes in the largest transaction";
	$node->safe_psql('postgres', q{DROP TABLE random, keys; DROP FUNCTION pad, copy});
	return;
}

# Drops the repetitions that a transaction may have: messages that came before and
# are not the next one of the model's.
sub first_of_transaction
{
	my ($model, @entries) = @_;
	my (@first, %seen);

	foreach my $entry (@entries)
	{
		my ($id) = $entry->[1]{payload} =~ /(\d+)/;
		my $next = @first < @{ $model->{keys} } ? $model->{keys}[@first] : 0;
		push @first, $id if $id == $next || !$seen{$id};
		$seen{$id} = 1;
	}
	return @first;
}

random_ok('small', 5, 60, 25, 3);
random_ok('large', 500, 40, 60, 60, q{SET redstream.transaction_buffer = '64kB'});
random_ok('large, without waiting', 500, 15, 60, 60,
	q{SET redstream.transaction_buffer = '64kB'}, 'SET redstream.wait_for_ack = off');

is(stats($node)->{errors}, 0, 'no failure on the way');
$node->stop;
done_testing();
