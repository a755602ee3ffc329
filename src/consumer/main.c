/*
 * main.c
 *	  redstream-consumer: reads a stream in batches, and gives each to a command or to standard output.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "consumer/consumer.h"

/*
 * A descriptor of ours must not become standard output because the caller has closed that.  What is opened here in
 * its place cannot be used for what it is for, so that nothing is committed that was written to nowhere.
 */
static void
occupy_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
	{
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
			open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			_exit(RS_EXIT_FAILED);
	}
}

int
main(int argc, char **argv)
{
	RsOptions	options;
	RsError		error;
	char		holder[RS_HOLDER_SIZE];
	int			status;

	occupy_standard_descriptors();
	status = rs_consumer_options_read(argc, argv, &options);
	if (status >= 0)
		return status;
	rs_consumer_log_begin(options.level, options.stream, options.name);
	if (!rs_redis_holder_draw(holder))
	{
		rs_consumer_log(RS_QUIET, "the system has no random numbers");
		return RS_EXIT_FAILED;
	}
	if (!rs_consumer_signals_begin(&error))
	{
		rs_consumer_log(RS_QUIET, "%s", error.text);
		return RS_EXIT_FAILED;
	}
	status = rs_consumer_run(&options, holder);
	rs_redis_address_free(&options.address);
	return status;
}
