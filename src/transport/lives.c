/*
 * lives.c
 *	  The lives of the server, from one start or crash to the next, and the transaction ids that each has given out once more.
 *
 * A crash makes the server forget the ids that it gave out last and whose WAL had not reached the disk.  The next life gives them
 * out again, and their transactions may commit; delay messages of the forgotten ones can lie in Redis through several lives.  A
 * message is of a forgotten transaction if some life began when its id had not been given out, and has written nothing as old as it.
 *
 * Shared memory is new in each life, so the lives before are kept in a file.  One that never reached Redis has written nothing, and is
 * in the file without a time; the next life is then judged as if it had begun with that one.  So a life that has its time must be in the file
 * with it before it writes its first message: else what it commits would be taken for forgotten.  The
 * sender alone calls what writes.
 */
#include "postgres.h"

#include <inttypes.h>

#include "storage/fd.h"

#include "identity.h"
#include "transport/sender.h"

#define FILE_NAME "redstream.lives" /* in the data directory */
#define HEADER "lives of %s at %s\n"	/* the server, and its data directory: a copy of it has been elsewhere meanwhile */

/* ---- the file: a line each, the present one last -------------------------------------------- */

typedef struct Life
{
	uint64		first_xid;
	uint64		began_ms;		/* 0: has not met Redis */
} Life;

/* What is in memory and in the file; of the lives before the last ones nothing is known. */
typedef struct Lives
{
	int			count;
	Life		all[RS_LIVES];
} Lives;

/* None, if the file is of another timeline, or another place. */
static void
read_lives(Lives *lives, FILE *file)
{
	char		header[128];
	char		line[128];

	snprintf(header, sizeof(header), HEADER, rs_identity_server(), rs_identity_token());
	if (fgets(line, sizeof(line), file) == NULL || strcmp(line, header) != 0)
		return;
	while (lives->count < RS_LIVES &&
		   fscanf(file, "%" SCNu64 " %" SCNu64, &lives->all[lives->count].first_xid, &lives->all[lives->count].began_ms) == 2)
		lives->count++;
}

static void
load(Lives *lives)
{
	FILE	   *file = AllocateFile(FILE_NAME, PG_BINARY_R);

	lives->count = 0;
	if (file != NULL)
	{
		read_lives(lives, file);
		FreeFile(file);
	}
	else if (errno != ENOENT)
		ereport(LOG, (errcode_for_file_access(), errmsg("redstream: could not read file \"%s\": %m", FILE_NAME)));
}

static bool
save(const Lives *lives, RsError *error)
{
	FILE	   *file = AllocateFile(FILE_NAME ".tmp", PG_BINARY_W);
	bool		written = file != NULL && fprintf(file, HEADER, rs_identity_server(), rs_identity_token()) > 0;

	for (int i = 0; i < lives->count && written; i++)
		written = fprintf(file, "%" PRIu64 " %" PRIu64 "\n", lives->all[i].first_xid, lives->all[i].began_ms) > 0;
	if (file != NULL)
		written = FreeFile(file) == 0 && written;
	if (!written || durable_rename(FILE_NAME ".tmp", FILE_NAME, LOG) != 0)
		return rs_redis_error(error, "could not write file \"%s\": %s", FILE_NAME, strerror(errno));
	return true;
}

/* ---- the present life ---------------------------------------------------------------------- */

/* What begins with no later an id than earlier ones says all that these do. */
static void
add_life(Lives *lives, uint64 first_xid)
{
	if (lives->count > 0 && lives->all[lives->count - 1].began_ms == 0)
	{
		lives->count--;
		first_xid = Min(first_xid, lives->all[lives->count].first_xid);
	}
	while (lives->count > 0 && lives->all[lives->count - 1].first_xid >= first_xid)
		lives->count--;
	if (lives->count == RS_LIVES)
	{
		lives->count--;
		memmove(lives->all, lives->all + 1, sizeof(Life) * lives->count);
	}
	lives->all[lives->count++] = (Life) {.first_xid = first_xid};
}

static void
set_beginnings(const Lives *lives)
{
	for (int i = 0; i < lives->count; i++)
		pg_atomic_write_u64(&rs_shared->lives[i].began_ms, lives->all[i].began_ms);
}

void
rs_life_begin(uint64 first_xid)
{
	Lives		lives;
	RsError		error;

	load(&lives);
	add_life(&lives, first_xid);
	if (!save(&lives, &error))
		ereport(LOG, (errmsg("redstream: %s", error.text)));
	for (int i = 0; i < lives.count; i++)
		rs_shared->lives[i].first_xid = lives.all[i].first_xid;
	set_beginnings(&lives);
	pg_write_barrier();
	pg_atomic_write_u32(&rs_shared->nlives, lives.count);
}

/* The lives as they are when the present one begins at that time.  Those before have begun before: if they have not, the
 * clock was set back. */
static void
get_lives(Lives *lives, uint64 began_ms)
{
	lives->count = pg_atomic_read_u32(&rs_shared->nlives);
	for (int i = 0; i < lives->count; i++)
	{
		uint64		known_ms = pg_atomic_read_u64(&rs_shared->lives[i].began_ms);

		lives->all[i].first_xid = rs_shared->lives[i].first_xid;
		lives->all[i].began_ms = Min(known_ms, began_ms);
	}
	lives->all[lives->count - 1].began_ms = began_ms;
}

/* 0: it has not begun. */
static uint64
beginning(void)
{
	int			count = pg_atomic_read_u32(&rs_shared->nlives);

	return count > 0 ? pg_atomic_read_u64(&rs_shared->lives[count - 1].began_ms) : 0;
}

bool
rs_transport_has_begun(void)
{
	return beginning() != 0;
}

bool
rs_life_note_beginning(uint64 began_ms, RsError *error)
{
	Lives		lives;

	get_lives(&lives, began_ms);
	if (!save(&lives, error))
		return false;
	set_beginnings(&lives);
	return true;
}

bool
rs_life_note_id(const RsStreamId *id, RsError *error)
{
	return id->ms >= beginning() || rs_life_note_beginning(id->ms, error);
}

/* ---- questions ------------------------------------------------------------------------------ */

bool
rs_transport_knows_lives(void)
{
	return pg_atomic_read_u32(&rs_shared->nlives) != 0;
}

bool
rs_transport_is_forgotten(uint64 xid, uint64 written_ms)
{
	int			count = rs_shared != NULL ? pg_atomic_read_u32(&rs_shared->nlives) : 0;

	pg_read_barrier();
	for (int i = 0; i < count; i++)
	{
		uint64		began_ms = pg_atomic_read_u64(&rs_shared->lives[i].began_ms);

		if (xid >= rs_shared->lives[i].first_xid && (began_ms == 0 || written_ms < began_ms))
			return true;
	}
	return false;
}
