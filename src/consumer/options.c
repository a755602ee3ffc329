/*
 * options.c
 *	  The command line.
 *
 * What is wrong with it is one sentence on standard error, and exit status 2.  A URL may have a password: user info is
 * hidden in argv, which everybody can see, as soon as it has been read; and no error quotes a URL.
 */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consumer/consumer.h"

#define BATCH_SIZE 1000
#define BATCH_SIZE_MAX 1000000
#define LINGER_MAX_MS 3600000
#define TRIES_MAX 1000000

enum
{
	OPTION_URL = 1, OPTION_STREAM, OPTION_NAME, OPTION_NAMESPACE, OPTION_BATCH_SIZE, OPTION_LINGER,
	OPTION_UNIQUE, OPTION_ONCE, OPTION_MAX_TRIES, OPTION_DEAD_LETTER, OPTION_SKIP_INVALID,
	OPTION_QUIET, OPTION_VERBOSE, OPTION_HELP, OPTION_VERSION
};

static const struct option long_options[] = {
	{"url", required_argument, NULL, OPTION_URL},
	{"stream", required_argument, NULL, OPTION_STREAM},
	{"name", required_argument, NULL, OPTION_NAME},
	{"namespace", required_argument, NULL, OPTION_NAMESPACE},
	{"batch-size", required_argument, NULL, OPTION_BATCH_SIZE},
	{"linger", required_argument, NULL, OPTION_LINGER},
	{"unique", no_argument, NULL, OPTION_UNIQUE},
	{"once", no_argument, NULL, OPTION_ONCE},
	{"max-tries", required_argument, NULL, OPTION_MAX_TRIES},
	{"dead-letter", required_argument, NULL, OPTION_DEAD_LETTER},
	{"skip-invalid", no_argument, NULL, OPTION_SKIP_INVALID},
	{"quiet", no_argument, NULL, OPTION_QUIET},
	{"verbose", no_argument, NULL, OPTION_VERBOSE},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{NULL, 0, NULL, 0}
};

static const char help[] =
"redstream-consumer reads the messages of a redstream stream in batches and gives\n"
"them, as lines of JSON, to a command or to standard output.\n"
"\n"
"Usage:\n"
"  redstream-consumer --url URL --stream STREAM --name NAME [OPTION]... [-- COMMAND ...]\n"
"\n"
"COMMAND is run once a batch. The batch is committed when it exits with 0, and\n"
"given again, after a pause, when it does not.\n"
"\n"
"  --url URL             where Redis is: redis://[user[:password]@]host[:port][/db]\n"
"                        or unix:///path[?db=n] (or REDSTREAM_URL in the environment)\n"
"  --stream STREAM       the stream to read\n"
"  --name NAME           the consumer's name: its offset is kept under it, and of all\n"
"                        processes with one name one works at a time\n"
"  --namespace NS        prefix of all keys in Redis\n"
"  --batch-size N        messages in a batch, at most (1000)\n"
"  --linger MS           wait so long for a batch to fill (0)\n"
"  --unique              of messages with identical payloads in a batch, only the last\n"
"  --once                one batch; exit status 0: committed, 1: not, 3: no message\n"
"  --max-tries N         halve a batch that was refused N times, and go on without a\n"
"                        message that was refused N times alone\n"
"  --dead-letter STREAM  where such messages go\n"
"  --skip-invalid        go on without messages that are not JSON\n"
"  --quiet               say only what needs somebody\n"
"  --verbose             say something about every batch\n"
"  --help, --version     this text, the version\n"
"\n"
"See redstream-consumer(1) for more.\n";

/* ---- errors ----------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2)))
static bool
usage_error(const char *format,...)
{
	char		text[sizeof(((RsError *) NULL)->text)];
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	rs_consumer_log(RS_QUIET, "%s (try " RS_PROGRAM " --help)", text);
	return false;
}

/* ---- values -------------------------------------------------------------------------------- */

static bool
read_number(const char *option, const char *text, int smallest, int largest, int *number)
{
	size_t		digits = strspn(text, "0123456789");
	long		value = digits > 0 && digits < 10 ? strtol(text, NULL, 10) : -1;

	if (text[digits] != '\0' || value < smallest || value > largest)
		return usage_error("--%s must be a number from %d to %d", option, smallest, largest);
	*number = (int) value;
	return true;
}

/* Where the host begins: behind the user info, if there is one. */
static char *
after_user_info(char *url)
{
	char	   *rest = strstr(url, "://");
	char	   *end;

	if (rest == NULL)
		return url + strlen(url);
	rest += 3;
	end = rest + strcspn(rest, "/?#");
	for (char *at = end; at > rest; at--)
	{
		if (at[-1] == '@')
			return at - 1;
	}
	return rest;
}

/* A URL that is not one may be a password as a whole. */
static bool
read_url(char *url, bool hide, RsOptions *options)
{
	RsError		error;
	bool		parsed;

	rs_redis_address_free(&options->address);
	parsed = rs_redis_address_parse(url, &options->address, &error);
	if (hide)
	{
		char	   *scheme = strstr(url, "://");
		char	   *from = parsed && scheme != NULL ? scheme + 3 : url;
		char	   *to = parsed ? after_user_info(url) : url + strlen(url);

		memset(from, 'x', to > from ? (size_t) (to - from) : 0);
	}
	return parsed || usage_error("%s", error.text);
}

static bool
read_option(int option, RsOptions *options)
{
	switch (option)
	{
		case OPTION_URL:
			return read_url(optarg, true, options);
		case OPTION_STREAM:
			options->stream = optarg;
			return true;
		case OPTION_NAME:
			options->name = optarg;
			return true;
		case OPTION_NAMESPACE:
			options->ns = optarg;
			return true;
		case OPTION_BATCH_SIZE:
			return read_number("batch-size", optarg, 1, BATCH_SIZE_MAX, &options->batch_size);
		case OPTION_LINGER:
			return read_number("linger", optarg, 0, LINGER_MAX_MS, &options->linger_ms);
		case OPTION_MAX_TRIES:
			return read_number("max-tries", optarg, 1, TRIES_MAX, &options->max_tries);
		case OPTION_DEAD_LETTER:
			options->dead_letter = optarg;
			return true;
		case OPTION_UNIQUE:
			return options->unique = true;
		case OPTION_ONCE:
			return options->once = true;
		default:
			return options->skip_invalid = true;
	}
}

/* ---- the whole --------------------------------------------------------------------------------- */

static bool
check_names(const RsOptions *options)
{
	RsError		error;

	if (options->stream == NULL || options->name == NULL)
		return usage_error("--stream and --name are needed");
	if (!rs_redis_stream_name_check(options->stream, &error))
		return usage_error("--stream: %s", error.text);
	if (!rs_redis_consumer_name_check(options->name, &error))
		return usage_error("--name: %s", error.text);
	if (!rs_redis_namespace_check(options->ns, &error))
		return usage_error("--namespace: %s", error.text);
	if ((options->dead_letter != NULL) != (options->max_tries > 0))
		return usage_error("--max-tries and --dead-letter go together");
	if (options->dead_letter == NULL)
		return true;
	if (!rs_redis_stream_name_check(options->dead_letter, &error))
		return usage_error("--dead-letter: %s", error.text);
	if (strcmp(options->dead_letter, options->stream) == 0)
		return usage_error("--dead-letter must be another stream than --stream");
	return true;
}

/* What is left after the options. */
static bool
read_command(int argc, char **argv, RsOptions *options)
{
	bool		separated = strcmp(argv[optind - 1], "--") == 0;

	if (optind < argc && !separated)
		return usage_error("\"%s\" is no option: a command goes after --", argv[optind]);
	if (optind == argc && separated)
		return usage_error("there is no command after --");
	if (separated)
		options->command = argv + optind;
	return true;
}

static bool
check(int argc, char **argv, bool has_url, RsOptions *options)
{
	char	   *url = getenv("REDSTREAM_URL");

	if (!read_command(argc, argv, options) || !check_names(options))
		return false;
	if (has_url)
		return true;
	if (url == NULL || url[0] == '\0')
		return usage_error("--url is needed, or REDSTREAM_URL in the environment");
	return read_url(url, false, options);
}

/* An option that does not exist, or is not written as it should be. */
static bool
refuse_option(int option, char **argv)
{
	const char *text = argv[optind - 1];
	int			length = (int) strcspn(text, "=");

	if (option == ':')
		return usage_error("%.*s needs a value", length, text);
	if (optopt > 0 && optopt <= OPTION_VERSION)
		return usage_error("%.*s takes no value", length, text);
	return usage_error("\"%.*s\" is no option of this program, or the beginning of several", length, text);
}

int
rs_consumer_options_read(int argc, char **argv, RsOptions *options)
{
	bool		has_url = false;
	bool		quiet = false;
	bool		verbose = false;
	bool		good = true;
	int			option;

	*options = (RsOptions) {.ns = "",.batch_size = BATCH_SIZE};
	opterr = 0;
	while ((option = getopt_long(argc, argv, "+:", long_options, NULL)) != -1)
	{
		if (option == OPTION_HELP || option == OPTION_VERSION)
		{
			fputs(option == OPTION_HELP ? help : RS_PROGRAM " " REDSTREAM_VERSION "\n", stdout);
			return fflush(stdout) == 0 ? RS_EXIT_DONE : RS_EXIT_FAILED;
		}
		has_url = has_url || option == OPTION_URL;
		quiet = quiet || option == OPTION_QUIET;
		verbose = verbose || option == OPTION_VERBOSE;

		/* The first error is said; a URL after it is hidden all the same. */
		if (option == '?' || option == ':')
			good = good && refuse_option(option, argv);
		else if (option != OPTION_QUIET && option != OPTION_VERBOSE && (good || option == OPTION_URL))
			good = read_option(option, options) && good;
	}
	if (good && quiet && verbose)
		good = usage_error("--quiet and --verbose contradict each other");
	options->level = quiet ? RS_QUIET : verbose ? RS_VERBOSE : RS_NORMAL;
	if (good && check(argc, argv, has_url, options))
		return -1;
	rs_redis_address_free(&options->address);
	return RS_EXIT_USAGE;
}
