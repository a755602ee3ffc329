/*
 * wait.c
 *	  All waiting of the program, and the signals that end it.
 *
 * The signals are blocked and come through a descriptor, which every wait looks at, so that none comes
 * between looking and waiting.  While Redis is waited for, what a command or standard output
 * takes is written on: a Redis that hangs does not hold it up.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "consumer/consumer.h"

/* After a signal to end Redis has so long to answer, and after a second one. */
#define STOP_PATIENCE_MS 1000
#define SECOND_PATIENCE_MS 500

static int	signals = -1;		/* the descriptor */
static int	stops = 0;
static int64_t patience_end_ms;	/* when Redis has had its time, after a signal to end */
static bool child_ended;		/* since rs_consumer_child_begins() */

/* A signal that is ignored from the start (nohup, a shell's background) stays so. */
static void
add_unless_ignored(sigset_t *set, int number)
{
	struct sigaction action;

	if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_IGN)
		sigaddset(set, number);
}

bool
rs_consumer_signals_begin(RsError *error)
{
	sigset_t	set;

	/* Children of which nobody wants to know could not be waited for. */
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	add_unless_ignored(&set, SIGINT);
	add_unless_ignored(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0 ||
		(signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)) < 0)
		return rs_redis_error(error, "signalfd: %s", strerror(errno));
	return true;
}

int
rs_consumer_stops(void)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof(info)) == (ssize_t) sizeof(info))
	{
		if (info.ssi_signo == SIGCHLD)
			child_ended = true;
		else if (++stops <= 2)
			patience_end_ms = rs_consumer_now_ms() +
				(stops == 1 ? STOP_PATIENCE_MS : SECOND_PATIENCE_MS);
	}
	return stops;
}

void
rs_consumer_child_begins(void)
{
	child_ended = false;
}

/* Redis has its time when nothing else is waited for: a batch that is given to somebody is waited for as long as it takes. */
static void
be_patient(const RsFeed *feed)
{
	if (rs_consumer_stops() == 1 && feed != NULL && !child_ended)
		patience_end_ms = rs_consumer_now_ms() + STOP_PATIENCE_MS;
}

bool
rs_consumer_patient(void)
{
	return rs_consumer_stops() == 0 || rs_consumer_now_ms() < patience_end_ms;
}

/* Waits for signals, for the feed, and for one more descriptor; feeds. */
static void
wait_for(int fd, short events, RsFeed *feed, int timeout_ms)
{
	struct pollfd wanted[3] = {
		{.fd = signals,.events = POLLIN},
		{.fd = feed != NULL ? feed->fd : -1,.events = POLLOUT},
		{.fd = fd,.events = events}
	};

	if (poll(wanted, 3, timeout_ms) > 0 && wanted[1].revents != 0)
		rs_consumer_feed_write(feed);
}

bool
rs_consumer_wait(void *argument, int fd, bool writable, int timeout_ms)
{
	const RsWaiting *waiting = argument;

	if (rs_consumer_stops() > 0 && waiting->idle)
		return false;
	be_patient(waiting->feed);
	if (!rs_consumer_patient())
		return false;
	if (stops > 0)
	{
		int64_t		left = patience_end_ms - rs_consumer_now_ms();

		if (timeout_ms > left)
			timeout_ms = left > 0 ? (int) left : 0;
	}
	wait_for(fd, writable ? POLLOUT : POLLIN, waiting->feed, timeout_ms);
	return true;
}

void
rs_consumer_wait_feeding(RsFeed *feed, int timeout_ms)
{
	wait_for(-1, 0, feed, timeout_ms);
	be_patient(feed);
}

void
rs_consumer_pause(int pause_ms)
{
	int64_t		end = rs_consumer_now_ms() + pause_ms;

	while (rs_consumer_stops() == 0)
	{
		int64_t		left = end - rs_consumer_now_ms();

		if (left <= 0)
			return;
		wait_for(-1, 0, NULL, (int) left);
	}
}
