/*
 * feed.c
 *	  Bytes for a reader that may be slow: what poll says there is room for, at a time.
 *
 * A pipe of our own does not block.  Standard output belongs to others, too, whom it would surprise not to block:
 * there, what is written at once is what a pipe takes without blocking when poll says so.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "consumer/consumer.h"

#define FILE_PIECE ((size_t) 1 << 20)

void
rs_consumer_feed_output(RsFeed *feed, const char *data, size_t length)
{
	struct stat status;
	bool		waits = true;

	/* Nobody reads slowly from a file or /dev/null. */
	if (fstat(STDOUT_FILENO, &status) == 0)
		waits = !S_ISREG(status.st_mode) &&
			(!S_ISCHR(status.st_mode) || isatty(STDOUT_FILENO));
	feed->fd = STDOUT_FILENO;
	feed->data = data;
	feed->left = length;
	feed->piece = waits ? PIPE_BUF : FILE_PIECE;
	feed->closes = false;
	feed->error = 0;
}

void
rs_consumer_feed_pipe(RsFeed *feed, int fd, const char *data, size_t length)
{
	feed->fd = fd;
	feed->data = data;
	feed->left = length;
	feed->piece = FILE_PIECE;
	feed->closes = true;
	feed->error = 0;
}

void
rs_consumer_feed_end(RsFeed *feed)
{
	if (feed->closes && feed->fd >= 0)
		close(feed->fd);
	feed->fd = -1;
}

void
rs_consumer_feed_write(RsFeed *feed)
{
	ssize_t		written = write(feed->fd, feed->data,
								feed->left < feed->piece ? feed->left : feed->piece);

	if (written < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (written < 0)
		feed->error = errno;
	else
	{
		feed->data += written;
		feed->left -= (size_t) written;
	}
	if (feed->error != 0 || feed->left == 0)
		rs_consumer_feed_end(feed);
}
