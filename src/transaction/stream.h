/*
 * stream.h
 *	  Streams by number, and records as commands.  For the files of this directory.
 */
#ifndef RS_TRANSACTION_STREAM_H
#define RS_TRANSACTION_STREAM_H

#include "spool/spool.h"
#include "transaction/log.h"

/* The keys of a stream, and the beginnings of the commands that write to it, up to the
 * payload. */
typedef struct RsStream
{
	char	   *name;			/* in UTF-8 */
	char	   *ns;
	RsBuckets	bucket;
	int			generation;		/* of the namespace the keys were made with */
	uint64		listed;			/* rs_transport_redis() when it was, plus 1; 0: never */
	RsKey		stream_key;
	RsKey		delay_key;
	char	   *main_prefix;
	size_t		main_prefix_length;
	char	   *delay_prefix;
	size_t		delay_prefix_length;
} RsStream;

extern const RsStream *rs_stream(int number);

/*
 * Makes sure that Redis knows that this database writes to the stream, before it does: so that the delayer finds its
 * delay messages though no table is attached to it (any more).  May wait as
 * rs_delay_append() does.
 */
extern void rs_stream_list(int number);

/* Makes sure that Redis knows that commits of this server do not all wait for the disk, before one does not.
 * May wait as well. */
extern void rs_stream_note_async(void);

/* Bytes of a record's commands; writing them at "out", which has the room,
 * returns the end. */
extern size_t rs_stream_main_size(const RsRecord *record);
extern char *rs_stream_main_write(char *out, const RsRecord *record);
extern size_t rs_stream_delay_size(const RsRecord *record);
extern char *rs_stream_delay_write(char *out, const RsRecord *record);

#endif							/* RS_TRANSACTION_STREAM_H */
