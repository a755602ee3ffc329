/*
 * announced.c
 *	  The rows that bulk() has announced before it runs its statement, so that the triggers need not do it again.
 *
 * They are known by table and place: bulk() has locked them, so until the transaction ends nobody else can
 * put another version there.  Only the statement itself can, by rewriting the table: one that this transaction has made or
 * rewritten is announced twice.  A page of the table is one cell with a bit for each of its lines.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_am.h"
#include "common/hashfn.h"
#include "storage/itemptr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "capture/plan.h"
#include "settings.h"

#define BITS 64

typedef struct BulkPage
{
	uint64		key;			/* table and number of the block */
	char		status;			/* for simplehash.h */
	uint64		lines[MaxHeapTuplesPerPage / BITS + 1];
} BulkPage;

#define SH_PREFIX pages
#define SH_ELEMENT_TYPE BulkPage
#define SH_KEY_TYPE uint64
#define SH_KEY key
#define SH_HASH_KEY(table, key) hash_bytes((const unsigned char *) &(key), sizeof(uint64))
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct RsAnnounced
{
	MemoryContext context;
	pages_hash *pages;
};

static RsAnnounced *announced;

RsAnnounced *
rs_capture_begin_announced(void)
{
	RsAnnounced *outer = announced;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "redstream announced rows",
												  ALLOCSET_DEFAULT_SIZES);
	RsAnnounced *inner = MemoryContextAlloc(context, sizeof(RsAnnounced));

	inner->context = context;
	inner->pages = pages_create(context, 256, NULL);
	announced = inner;
	return outer;
}

void
rs_capture_end_announced(RsAnnounced *outer)
{
	MemoryContextDelete(announced->context);
	announced = outer;
}

static uint64
page_key(Oid table, ItemPointer row)
{
	return (uint64) table << 32 | ItemPointerGetBlockNumber(row);
}

/* Of the lines of a page, which are counted from 1. */
static int
line_of(ItemPointer row)
{
	return ItemPointerGetOffsetNumber(row) - FirstOffsetNumber;
}

void
rs_capture_note_announced(Oid table, ItemPointer row)
{
	uint64		key = page_key(table, row);
	size_t		limit = (size_t) rs_transaction_buffer * 1024;
	BulkPage   *page = pages_lookup(announced->pages, key);
	bool		found;

	if (line_of(row) >= MaxHeapTuplesPerPage)
		return;					/* no heap */
	if (page == NULL)
	{
		if (announced->pages->members * sizeof(BulkPage) >= limit)
			return;
		page = pages_insert(announced->pages, key, &found);
		memset(page->lines, 0, sizeof(page->lines));
	}
	page->lines[line_of(row) / BITS] |= UINT64CONST(1) << line_of(row) % BITS;
}

/* Can the place of a row not have become another one's?  (What it means in a foreign table is not known.) */
static bool
is_stable(Relation relation)
{
	return relation->rd_rel->relam == HEAP_TABLE_AM_OID &&
		relation->rd_createSubid == InvalidSubTransactionId &&
		relation->rd_firstRelfilenodeSubid == InvalidSubTransactionId;
}

bool
rs_announced(Relation relation, ItemPointer row)
{
	BulkPage   *page;

	if (announced == NULL || !is_stable(relation) || line_of(row) >= MaxHeapTuplesPerPage)
		return false;
	page = pages_lookup(announced->pages, page_key(RelationGetRelid(relation), row));
	return page != NULL && (page->lines[line_of(row) / BITS] >> line_of(row) % BITS & 1) != 0;
}
