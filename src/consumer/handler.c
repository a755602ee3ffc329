/*
 * handler.c
 *	  Runs the command for a batch: its input are the lines, its exit status is the answer.
 *
 * It has a process group of its own, so that Ctrl-C in a terminal reaches only us, who let it finish; and it is killed
 * with us, so that nobody goes on with a batch that the next process is given.  What it leaves of its
 * input is no error.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "consumer/consumer.h"

/* What was killed by a second signal is waited for so long. */
#define KILL_PATIENCE_MS 2000

static const struct
{
	int			number;
	const char *name;
}			signal_names[] =
{
	{SIGABRT, "SIGABRT"}, {SIGALRM, "SIGALRM"}, {SIGBUS, "SIGBUS"}, {SIGFPE, "SIGFPE"},
	{SIGHUP, "SIGHUP"}, {SIGILL, "SIGILL"}, {SIGINT, "SIGINT"}, {SIGKILL, "SIGKILL"},
	{SIGPIPE, "SIGPIPE"}, {SIGQUIT, "SIGQUIT"}, {SIGSEGV, "SIGSEGV"}, {SIGSYS, "SIGSYS"},
	{SIGTERM, "SIGTERM"}, {SIGTRAP, "SIGTRAP"}, {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"},
	{SIGXCPU, "SIGXCPU"}, {SIGXFSZ, "SIGXFSZ"},
};

typedef struct Child
{
	pid_t		pid;
	int			status;
	bool		ended;
	int64_t		killed_ms;		/* 0: not by us */
} Child;

/* ---- starting ------------------------------------------------------------------------- */

static void
set_environment(const RsOptions *options, const RsBatch *batch)
{
	char		id[RS_STREAM_ID_SIZE];

	rs_redis_id_format(rs_consumer_batch_last(batch), id);
	setenv("REDSTREAM_STREAM", options->stream, 1);
	setenv("REDSTREAM_CONSUMER", options->name, 1);
	setenv("REDSTREAM_LAST_ID", id, 1);
}

/* In the child: becomes the command, or reports errno and ends. */
static void
become(const RsOptions *options, const RsBatch *batch, pid_t parent, int input, int report)
{
	sigset_t	none;
	int			problem;

	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);				/* it was too late for that */
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	set_environment(options, batch);
	if (dup2(input, STDIN_FILENO) >= 0)
		execvp(options->command[0], options->command);
	problem = errno;
	if (write(report, &problem, sizeof(problem)) < 0)
		_exit(126);
	_exit(127);
}

/* Waits until the child has become the command; returns 0, or why it has not. */
static int
hear_report(int report)
{
	int			problem = 0;
	ssize_t		got;

	do
	{
		got = read(report, &problem, sizeof(problem));
	} while (got < 0 && errno == EINTR);
	return got == (ssize_t) sizeof(problem) ? problem : 0;
}

static void
close_both(const int pipe[2])
{
	close(pipe[0]);
	close(pipe[1]);
}

/* Returns errno, or 0: "input" is then where to write. */
static int
start(const RsOptions *options, const RsBatch *batch, Child *child, int *input)
{
	pid_t		self = getpid();
	int			feed[2];
	int			report[2];
	int			problem;

	*child = (Child) {.status = W_EXITCODE(127, 0)};
	if (pipe2(feed, O_CLOEXEC) != 0)
		return errno;
	if (pipe2(report, O_CLOEXEC) != 0)
	{
		problem = errno;
		close_both(feed);
		return problem;
	}
	child->pid = fork();
	if (child->pid == 0)
		become(options, batch, self, feed[0], report[1]);
	problem = child->pid < 0 ? errno : 0;
	if (child->pid > 0)
		setpgid(child->pid, child->pid);
	close(report[1]);
	if (problem == 0)
		problem = hear_report(report[0]);
	close(report[0]);
	close(feed[0]);
	if (problem == 0)
	{
		fcntl(feed[1], F_SETFL, O_NONBLOCK);
		*input = feed[1];
		return 0;
	}
	close(feed[1]);
	if (child->pid > 0)
		waitpid(child->pid, &child->status, 0);
	return problem;
}

/* ---- working ---------------------------------------------------------------------------- */

static bool
has_ended(Child *child)
{
	if (!child->ended)
		child->ended = waitpid(child->pid, &child->status, WNOHANG) != 0;
	return child->ended ||
		(child->killed_ms > 0 && rs_consumer_now_ms() > child->killed_ms + KILL_PATIENCE_MS);
}

static void
kill_if_told(Child *child)
{
	if (rs_consumer_stops() < 2 || child->killed_ms > 0)
		return;
	rs_consumer_log(RS_QUIET, "a second signal: the command is killed, and nothing is committed");
	kill(-child->pid, SIGKILL);
	child->killed_ms = rs_consumer_now_ms();
}

/* The end of the child is looked at last: what comes after that ends the wait. */
static void
attend(Child *child, RsFeed *feed, RsKeeper *keeper)
{
	for (;;)
	{
		rs_consumer_keeper_tend(keeper);
		kill_if_told(child);
		if (has_ended(child))
			return;
		rs_consumer_wait_feeding(feed, child->killed_ms > 0 ? KILL_PATIENCE_MS :
								 rs_consumer_keeper_due(keeper));
	}
}

static RsOutcome
judge(const Child *child, char reason[RS_REASON_SIZE])
{
	int			number;

	if (child->killed_ms > 0)
		return RS_STOPPED;
	if (WIFEXITED(child->status))
	{
		snprintf(reason, RS_REASON_SIZE, "exit status %d", WEXITSTATUS(child->status));
		return WEXITSTATUS(child->status) == 0 ? RS_TAKEN : RS_REFUSED;
	}
	number = WTERMSIG(child->status);
	snprintf(reason, RS_REASON_SIZE, "killed by signal %d", number);
	for (size_t i = 0; i < sizeof(signal_names) / sizeof(signal_names[0]); i++)
	{
		if (signal_names[i].number == number)
			snprintf(reason, RS_REASON_SIZE, "killed by %s", signal_names[i].name);
	}
	return RS_REFUSED;
}

RsOutcome
rs_consumer_handler_run(const RsOptions *options, const RsBatch *batch, RsKeeper *keeper,
						char reason[RS_REASON_SIZE])
{
	RsFeed		feed;
	Child		child;
	int			input = -1;
	int			problem = start(options, batch, &child, &input);

	if (problem != 0)
	{
		snprintf(reason, RS_REASON_SIZE, "cannot run %.100s: %s", options->command[0],
				 strerror(problem));
		return RS_NOT_RUN;
	}
	rs_consumer_feed_pipe(&feed, input, batch->lines.data, batch->lines.used);
	keeper->link->waiting.feed = &feed;
	rs_consumer_child_begins();
	attend(&child, &feed, keeper);
	keeper->link->waiting.feed = NULL;
	rs_consumer_feed_end(&feed);
	return judge(&child, reason);
}
