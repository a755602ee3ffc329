/*
 * url.c
 *	  Where a Redis is: URLs taken apart, and the file that has the password.
 *
 * Errors here quote nothing of the URL but a scheme: a typing error can make
 * any other part of it a piece of the password.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "redis.h"

#define DEFAULT_PORT 6379
#define PASSWORD_MAX 4096

static const char *const later_schemes[] = {
	"rediss", "redis+sentinel", "redis+cluster", "rediss+sentinel", "rediss+cluster", NULL
};

static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/*
 * Undoes the percent-encoding of text up to "end".  The result is malloced;
 * "what" names the part in an error.
 */
static char *
decode(const char *text, const char *end, const char *what, RsError *error)
{
	char	   *result = malloc((size_t) (end - text) + 1);
	char	   *out = result;

	if (result == NULL)
	{
		rs_redis_error(error, "out of memory");
		return NULL;
	}
	while (text < end)
	{
		int			high;
		int			low;

		if (*text != '%')
		{
			*out++ = *text++;
			continue;
		}
		high = end - text >= 3 ? hex_value(text[1]) : -1;
		low = end - text >= 3 ? hex_value(text[2]) : -1;
		if (high < 0 || low < 0 || (high == 0 && low == 0))
		{
			free(result);
			rs_redis_error(error, "bad percent-encoding in the %s of the Redis URL", what);
			return NULL;
		}
		*out++ = (char) (high * 16 + low);
		text += 3;
	}
	*out = '\0';
	return result;
}

/* Reads digits up to "end", at least one, and a number of at most "largest". */
static bool
parse_number(const char *text, const char *end, int largest, int *number)
{
	long		value = 0;

	if (text == end)
		return false;
	for (; text < end; text++)
	{
		if (*text < '0' || *text > '9')
			return false;
		value = value * 10 + (*text - '0');
		if (value > largest)
			return false;
	}
	*number = (int) value;
	return true;
}

static bool
parse_database(const char *text, RsAddress *address, RsError *error)
{
	if (!parse_number(text, text + strlen(text), INT_MAX, &address->database))
		return rs_redis_error(error, "the database in the Redis URL must be a number from 0 up");
	return true;
}

/* [user[:password]] */
static bool
parse_user_info(const char *text, const char *end, RsAddress *address, RsError *error)
{
	const char *colon = memchr(text, ':', (size_t) (end - text));
	const char *user_end = colon != NULL ? colon : end;

	if (user_end > text)
	{
		address->user = decode(text, user_end, "user", error);
		if (address->user == NULL)
			return false;
	}
	if (colon != NULL)
	{
		address->password = decode(colon + 1, end, "password", error);
		if (address->password == NULL)
			return false;
	}
	return true;
}

/* An IPv6 address, perhaps with the zone that follows a '%'. */
static bool
is_ipv6(const char *host)
{
	char		plain[INET6_ADDRSTRLEN];
	struct in6_addr ignored;
	size_t		length = strcspn(host, "%");

	if (length >= sizeof(plain) || strcmp(host + length, "%") == 0)
		return false;
	memcpy(plain, host, length);
	plain[length] = '\0';
	return inet_pton(AF_INET6, plain, &ignored) == 1;
}

static bool
is_host_name(const char *host)
{
	if (host[0] == '\0')
		return false;
	for (; *host != '\0'; host++)
	{
		if ((unsigned char) *host <= ' ' || strchr("\177:/?#[]@", *host) != NULL)
			return false;
	}
	return true;
}

/* host, or [IPv6 address] */
static bool
parse_host(const char *text, const char *end, bool bracketed, RsAddress *address,
		   RsError *error)
{
	if (text == end)
		return rs_redis_error(error, "the Redis URL has no host");
	address->host = decode(text, end, "host", error);
	if (address->host == NULL)
		return false;
	if (bracketed && !is_ipv6(address->host))
		return rs_redis_error(error, "the brackets in the Redis URL do not hold an IPv6 address");
	if (!bracketed && !is_host_name(address->host))
		return rs_redis_error(error, "the host in the Redis URL is malformed");
	return true;
}

/* host[:port] up to "end" */
static bool
parse_host_port(const char *text, const char *end, RsAddress *address, RsError *error)
{
	bool		bracketed = text < end && *text == '[';
	const char *host_end;

	if (bracketed)
	{
		text++;
		host_end = memchr(text, ']', (size_t) (end - text));
		if (host_end == NULL)
			return rs_redis_error(error, "the Redis URL has no \"]\" after its IPv6 address");
	}
	else
	{
		host_end = memchr(text, ':', (size_t) (end - text));
		if (host_end == NULL)
			host_end = end;
		else if (memchr(host_end + 1, ':', (size_t) (end - host_end - 1)) != NULL)
			return rs_redis_error(error, "an IPv6 address in the Redis URL must be in brackets");
	}
	if (!parse_host(text, host_end, bracketed, address, error))
		return false;

	if (bracketed)
		host_end++;
	address->port = DEFAULT_PORT;
	if (host_end == end)
		return true;
	if (*host_end != ':' ||
		!parse_number(host_end + 1, end, 65535, &address->port) || address->port == 0)
		return rs_redis_error(error, "the port in the Redis URL must be a number from 1 to 65535");
	return true;
}

/* [user[:password]@]host[:port][/db] */
static bool
parse_tcp(const char *text, RsAddress *address, RsError *error)
{
	const char *end = text + strcspn(text, "/?#");
	const char *at = end;

	if (strpbrk(text, "?#") != NULL)
		return rs_redis_error(error, "a redis:// URL ends after its database; "
							  "in a password, \"/\", \"?\", \"#\" and \"%%\" must be percent-encoded");

	/* A host has no '@', so the last one ends the user info. */
	while (at > text && at[-1] != '@')
		at--;
	if (at > text && !parse_user_info(text, at - 1, address, error))
		return false;
	if (!parse_host_port(at, end, address, error))
		return false;
	if (*end == '/' && end[1] != '\0')
		return parse_database(end + 1, address, error);
	return true;
}

/* /path[?db=n] */
static bool
parse_unix(const char *text, RsAddress *address, RsError *error)
{
	const char *end = text + strcspn(text, "?#");
	struct sockaddr_un socket_address;

	if (text[0] != '/' || text + 1 == end)
		return rs_redis_error(error, "a unix URL must be unix:///path or unix:///path?db=n");
	address->path = decode(text, end, "path", error);
	if (address->path == NULL)
		return false;

	/* Longer ones would be cut without a word when connecting. */
	if (strlen(address->path) >= sizeof(socket_address.sun_path))
		return rs_redis_error(error, "the path in the Redis URL is longer than %zu bytes",
							  sizeof(socket_address.sun_path) - 1);
	if (*end == '\0')
		return true;
	if (strncmp(end, "?db=", 4) != 0)
		return rs_redis_error(error, "a unix URL can only have db=n after its path");
	return parse_database(end + 4, address, error);
}

/* Where what follows "<scheme>://" begins, or NULL if the scheme is another. */
static const char *
after_scheme(const char *url, const char *scheme)
{
	size_t		length = strlen(scheme);

	if (strncasecmp(url, scheme, length) != 0 || strncmp(url + length, "://", 3) != 0)
		return NULL;
	return url + length + 3;
}

static bool
refuse_scheme(const char *url, RsError *error)
{
	size_t		length = strspn(url, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-");
	int			i;

	for (i = 0; later_schemes[i] != NULL; i++)
	{
		if (after_scheme(url, later_schemes[i]) != NULL)
			return rs_redis_error(error, "Redis URLs with the scheme \"%s\" are not supported yet",
								  later_schemes[i]);
	}
	if (length == 0 || strncmp(url + length, "://", 3) != 0)
		return rs_redis_error(error, "a Redis URL must begin with redis:// or unix://");
	return rs_redis_error(error, "unknown scheme \"%.*s\": a Redis URL must begin with redis:// or unix://",
						  (int) (length < 32 ? length : 32), url);
}

bool
rs_redis_address_parse(const char *url, RsAddress *address, RsError *error)
{
	const char *rest;
	bool		parsed;

	memset(address, 0, sizeof(*address));
	if ((rest = after_scheme(url, "redis")) != NULL)
		parsed = parse_tcp(rest, address, error);
	else if ((rest = after_scheme(url, "unix")) != NULL)
		parsed = parse_unix(rest, address, error);
	else
		parsed = refuse_scheme(url, error);

	if (!parsed)
		rs_redis_address_free(address);
	return parsed;
}

void
rs_redis_address_free(RsAddress *address)
{
	free(address->path);
	free(address->host);
	free(address->user);
	free(address->password);
	memset(address, 0, sizeof(*address));
}

static bool
check_password_file(const char *file, int fd, RsError *error)
{
	struct stat status;

	if (fstat(fd, &status) != 0)
		return rs_redis_error(error, "fstat of password file \"%s\": %s", file, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return rs_redis_error(error, "password file \"%s\" is not a regular file", file);
	if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		return rs_redis_error(error, "password file \"%s\" has group or world access; "
							  "its permissions should be u=rw (0600) or less", file);
	return true;
}

/* Reads until the buffer is full or the file ends; -1 on failure. */
static ssize_t
read_fully(int fd, char *buffer, size_t size)
{
	size_t		length = 0;

	while (length < size)
	{
		ssize_t		got = read(fd, buffer + length, size - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (got == 0)
			break;
		length += (size_t) got;
	}
	return (ssize_t) length;
}

/* Makes the password of a file's first bytes: the line that they begin with. */
static bool
first_line(const char *file, const char *text, size_t length, char **password, RsError *error)
{
	const char *end = memchr(text, '\n', length);

	if (end != NULL)
		length = (size_t) (end - text);
	if (end != NULL && length > 0 && text[length - 1] == '\r')
		length--;
	if (length == 0)
		return rs_redis_error(error, "the first line of password file \"%s\" is empty", file);
	if (length > PASSWORD_MAX)
		return rs_redis_error(error, "the first line of password file \"%s\" is longer than %d bytes",
							  file, PASSWORD_MAX);
	if (memchr(text, '\0', length) != NULL)
		return rs_redis_error(error, "the first line of password file \"%s\" has a zero byte", file);
	*password = strndup(text, length);
	if (*password == NULL)
		return rs_redis_error(error, "out of memory");
	return true;
}

bool
rs_redis_password_read(const char *file, char **password, RsError *error)
{
	char		text[PASSWORD_MAX + 2]; /* with "\r\n" */
	ssize_t		length;
	bool		done = false;
	int			fd;

	*password = NULL;

	/* Not blocking, because opening a FIFO would. */
	fd = open(file, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return rs_redis_error(error, "open of password file \"%s\": %s", file, strerror(errno));
	if (check_password_file(file, fd, error))
	{
		length = read_fully(fd, text, sizeof(text));
		if (length < 0)
			rs_redis_error(error, "read of password file \"%s\": %s", file, strerror(errno));
		else
			done = first_line(file, text, (size_t) length, password, error);
		explicit_bzero(text, sizeof(text));
	}
	close(fd);
	return done;
}
