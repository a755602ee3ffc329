# The tables that the writers change, and what their messages must say.
#
# All have the columns (id, n, note).  A row begins with n = 1, and each change of it makes n greater by one, so the
# committed values of n of a row are 1, 2, 3 and so on to its last.  The payload {"id":5,"n":3} therefore tells which
# change of which row it announces.  A negative n is written only where it is rolled back, and so are ids from
# $UNDONE_ID on.  No id is used again after its row is gone; a trigger keeps in table "gone" which n it had.
#
# An attached table announces the old payload, too, when one of its columns changes, so that the message of a change may
# be met with before its own transaction announces it.  Therefore "hot", "loose" and "event" are not attached: triggers of theirs
# call emit(), and each change has one message.
#
#	hot        few rows, which the clients fight for
#	account    as many rows as make a transaction that changes all of them a large one
#	item       rows come and go
#	scratch    is truncated and filled again
#	part       has shards
#	batch      is changed by bulk(), bulk_update()
#	twophase   is changed by two-phase commits
#	event      is added to
#	loose      is changed with redstream.wait_for_ack = off
#	doc        has no n in its payload; ids are used again

package Soak::Tables;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw($UNDONE_ID @TABLES @STREAMS %TABLE_OF is_counted create_tables);

our $UNDONE_ID = 1_000_000_000;
our @TABLES = qw(hot account item scratch part batch twophase event loose doc);
our %TABLE_OF = map { $_ eq 'part' ? map { ("part-$_" => 'part') } 0 .. 2 : ($_ => $_) } @TABLES;
my %EMITTED = map { $_ => 1 } qw(hot loose event);
our @STREAMS = sort keys %TABLE_OF;

# Rows there are at the beginning, with ids from 1 on.
my %ROWS = (hot => 6, account => 1200, part => 200, batch => 200, twophase => 100, loose => 4, doc => 300);

# Must each change of this table be announced?  Not without an acknowledgement.
sub is_counted { return $_[0] ne 'doc' && $_[0] ne 'loose'; }

sub create_tables
{
	my ($node) = @_;

	$node->safe_psql('postgres', q{
		CREATE TABLE gone (name text, id bigint, n integer);
		CREATE FUNCTION keep_gone() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF TG_OP = 'TRUNCATE' THEN
				EXECUTE format('INSERT INTO gone SELECT %L, id, n FROM %I', TG_TABLE_NAME, TG_TABLE_NAME);
				RETURN NULL;
			END IF;
			INSERT INTO gone VALUES (TG_TABLE_NAME, OLD.id, OLD.n);
			RETURN OLD;
		END $$;
		CREATE FUNCTION emit() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM redstream.emit(TG_TABLE_NAME, jsonb_build_object('id', NEW.id, 'n', NEW.n));
			RETURN NULL;
		END $$;
		CREATE FUNCTION fail_after(statement text) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			EXECUTE statement;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END $$;
		CREATE SCHEMA mirror;
		CREATE FUNCTION mirror.follow(stream text, name text, size integer) RETURNS bigint LANGUAGE plpgsql AS $$
		DECLARE
			ids bigint[];
		BEGIN
			SELECT array_agg((payload->>'id')::bigint) INTO ids FROM redstream.consume(stream, 'mirror', size);
			EXECUTE format('DELETE FROM mirror.%I WHERE id = ANY ($1)', name) USING ids;
			EXECUTE format('INSERT INTO mirror.%I SELECT * FROM public.%I WHERE id = ANY ($1)', name, name) USING ids;
			RETURN cardinality(ids);
		END $$;
	});
	foreach my $table (@TABLES)
	{
		my $announce = $EMITTED{$table}
		  ? "CREATE TRIGGER emit AFTER INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION emit()"
		  : "SELECT redstream.attach('$table'" . ($table eq 'doc' ? '' : q{, payload => '{id,n}'})
		  . ($table eq 'part' ? ', shards => 3' : '') . ')';

		$node->safe_psql('postgres', qq{
			CREATE TABLE $table (id bigint PRIMARY KEY, n integer NOT NULL DEFAULT 1, note text) WITH (fillfactor = 50);
			CREATE TABLE mirror.$table (LIKE $table INCLUDING INDEXES);
			$announce;});
		$node->safe_psql('postgres', qq{
			CREATE TRIGGER gone AFTER DELETE ON $table FOR EACH ROW EXECUTE FUNCTION keep_gone();
			CREATE TRIGGER all_gone BEFORE TRUNCATE ON $table EXECUTE FUNCTION keep_gone();})
		  if $table ne 'doc';
		$node->safe_psql('postgres', "INSERT INTO $table SELECT generate_series(1, $ROWS{$table})") if $ROWS{$table};
	}
	return;
}

1;
