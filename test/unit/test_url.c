/*
 * test_url.c
 *	  URLs good and bad, and password files.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/redis/redis.h"
#include "unit.h"

static const struct
{
	const char *url;
	RsAddress	address;		/* path, host, port, user, password, database */
}			good[] =
{
	{"redis://localhost", {NULL, "localhost", 6379, NULL, NULL, 0}},
	{"redis://localhost/", {NULL, "localhost", 6379, NULL, NULL, 0}},
	{"redis://127.0.0.1:6380/2", {NULL, "127.0.0.1", 6380, NULL, NULL, 2}},
	{"REDIS://cache.example.com:1/0", {NULL, "cache.example.com", 1, NULL, NULL, 0}},
	{"redis://h:65535/2147483647", {NULL, "h", 65535, NULL, NULL, 2147483647}},
	{"redis://h:06379/007", {NULL, "h", 6379, NULL, NULL, 7}},
	{"redis://under_score-1.x", {NULL, "under_score-1.x", 6379, NULL, NULL, 0}},
	{"redis://anna:secret@h", {NULL, "h", 6379, "anna", "secret", 0}},
	{"redis://anna:secret@h:1/3", {NULL, "h", 1, "anna", "secret", 3}},
	{"redis://:secret@h", {NULL, "h", 6379, NULL, "secret", 0}},
	{"redis://anna@h", {NULL, "h", 6379, "anna", NULL, 0}},
	{"redis://anna:@h", {NULL, "h", 6379, "anna", "", 0}},
	{"redis://@h", {NULL, "h", 6379, NULL, NULL, 0}},
	{"redis://a%6ena:se%3Acr%2fet%40%25@h", {NULL, "h", 6379, "anna", "se:cr/et@%", 0}},
	{"redis://anna:a:b@h", {NULL, "h", 6379, "anna", "a:b", 0}},
	{"redis://anna:a@b@h", {NULL, "h", 6379, "anna", "a@b", 0}},
	{"redis://:%C3%A4\xC3\xA4@h", {NULL, "h", 6379, NULL, "\xC3\xA4\xC3\xA4", 0}},
	{"redis://%68ost", {NULL, "host", 6379, NULL, NULL, 0}},
	{"redis://[::1]", {NULL, "::1", 6379, NULL, NULL, 0}},
	{"redis://[::1]:6380/1", {NULL, "::1", 6380, NULL, NULL, 1}},
	{"redis://a:b@[2001:db8::7]:1", {NULL, "2001:db8::7", 1, "a", "b", 0}},
	{"redis://[::ffff:10.0.0.1]", {NULL, "::ffff:10.0.0.1", 6379, NULL, NULL, 0}},
	{"redis://[fe80::1%25eth0]/4", {NULL, "fe80::1%eth0", 6379, NULL, NULL, 4}},
	{"unix:///run/redis/redis.sock", {"/run/redis/redis.sock", NULL, 0, NULL, NULL, 0}},
	{"unix:///run/redis.sock?db=5", {"/run/redis.sock", NULL, 0, NULL, NULL, 5}},
	{"Unix:///a%20b%3fc:d@e", {"/a b?c:d@e", NULL, 0, NULL, NULL, 0}},
};

/* None of the errors may have "secret" in it. */
static const struct
{
	const char *url;
	const char *error;
}			bad[] =
{
	{"", "must begin with"},
	{"localhost", "must begin with"},
	{"localhost:6379", "must begin with"},
	{"//secret@localhost", "must begin with"},
	{"://localhost", "must begin with"},
	{"redis:localhost", "must begin with"},
	{"redis:/localhost", "must begin with"},
	{" redis://localhost", "must begin with"},
	{"user:secret@host", "must begin with"},
	{"user:secret://host", "must begin with"},
	{"http://:secret@host", "unknown scheme \"http\""},
	{"redis+unix://:secret@host", "unknown scheme \"redis+unix\""},
	{"rediss://:secret@host", "\"rediss\" are not supported yet"},
	{"REDISS://:secret@host", "\"rediss\" are not supported yet"},
	{"redis+sentinel://a:secret@h:1,i:2/m/0", "\"redis+sentinel\" are not supported yet"},
	{"redis+cluster://a:secret@h:1,i:2", "\"redis+cluster\" are not supported yet"},
	{"redis://", "no host"},
	{"redis:///", "no host"},
	{"redis:///1", "no host"},
	{"redis://:6379", "no host"},
	{"redis://:secret@", "no host"},
	{"redis://:secret@:6379/0", "no host"},
	{"redis://:secret@h:", "port"},
	{"redis://:secret@h:/0", "port"},
	{"redis://:secret@h:0", "port"},
	{"redis://:secret@h:65536", "port"},
	{"redis://:secret@h:99999999999999999999", "port"},
	{"redis://:secret@h:-1", "port"},
	{"redis://:secret@h:+1", "port"},
	{"redis://:secret@h:6379x", "port"},
	{"redis://:secret@h: 6379", "port"},
	{"redis://anna:secret", "port"},
	{"redis://:secret@h/x", "database"},
	{"redis://:secret@h/-1", "database"},
	{"redis://:secret@h/1x", "database"},
	{"redis://:secret@h/1/", "database"},
	{"redis://:secret@h/1/2", "database"},
	{"redis://:secret@h/2147483648", "database"},
	{"redis://:secret@h/%31", "database"},
	{"redis://:secret@h//", "database"},
	{"redis://:secret@h?db=1", "ends after its database"},
	{"redis://:secret@h/0?timeout=1", "ends after its database"},
	{"redis://:secret@h/0#x", "ends after its database"},
	{"redis://:sec#secret@h", "percent-encoded"},
	{"redis://:sec?secret@h", "percent-encoded"},
	{"redis://:1/secret@h", "no host"},
	{"redis://anna:1/secret@h", "database"},
	{"redis://anna:x/secret@h", "port"},
	{"redis://:secret%00@h", "percent-encoding in the password"},
	{"redis://:secret%@h", "percent-encoding in the password"},
	{"redis://:secret%4@h", "percent-encoding in the password"},
	{"redis://:secret%zz@h", "percent-encoding in the password"},
	{"redis://:secret%4g@h", "percent-encoding in the password"},
	{"redis://an%00na:secret@h", "percent-encoding in the user"},
	{"redis://:secret@h%00", "percent-encoding in the host"},
	{"redis://:secret@h%", "percent-encoding in the host"},
	{"redis://:secret@a b", "host in the Redis URL is malformed"},
	{"redis://:secret@a%0ab", "host in the Redis URL is malformed"},
	{"redis://:secret@a%2fb", "host in the Redis URL is malformed"},
	{"redis://:secret@a]b", "host in the Redis URL is malformed"},
	{"redis://:secret@::1", "must be in brackets"},
	{"redis://:secret@2001:db8::7", "must be in brackets"},
	{"redis://:secret@h:1:2", "must be in brackets"},
	{"redis://:secret@[::1", "no \"]\""},
	{"redis://:secret@[]", "no host"},
	{"redis://:secret@[::1]6379", "port"},
	{"redis://:secret@[::1]:", "port"},
	{"redis://:secret@[::1]x:1", "port"},
	{"redis://:secret@[localhost]", "IPv6 address"},
	{"redis://:secret@[127.0.0.1]", "IPv6 address"},
	{"redis://:secret@[::1%25]", "IPv6 address"},
	{"redis://:secret@[1:2:3:4:5:6:7:8:9]", "IPv6 address"},
	{"redis://:secret@[0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000]", "IPv6 address"},
	{"unix:", "must begin with"},
	{"unix:/run/redis.sock", "must begin with"},
	{"unix://", "unix:///path"},
	{"unix:///", "unix:///path"},
	{"unix://run/redis.sock", "unix:///path"},
	{"unix://:secret@/run/redis.sock", "unix:///path"},
	{"unix:///?db=1", "unix:///path"},
	{"unix:///a%00b", "percent-encoding in the path"},
	{"unix:///a?", "only have db=n"},
	{"unix:///a?password=secret", "only have db=n"},
	{"unix:///a?db", "only have db=n"},
	{"unix:///a#b", "only have db=n"},
	{"unix:///a?db=", "database"},
	{"unix:///a?db=x", "database"},
	{"unix:///a?db=-1", "database"},
	{"unix:///a?db=1&db=2", "database"},
	{"unix:///a?db=4294967296", "database"},
};

static bool
same(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static void
test_good(void)
{
	size_t		i;

	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++)
	{
		const RsAddress *expected = &good[i].address;
		RsAddress	address;
		RsError		error = {""};

		memset(&address, 0xAA, sizeof(address));
		if (!unit_ok(rs_redis_address_parse(good[i].url, &address, &error) &&
					 same(address.path, expected->path) && same(address.host, expected->host) &&
					 address.port == expected->port && same(address.user, expected->user) &&
					 same(address.password, expected->password) &&
					 address.database == expected->database, "parse %s", good[i].url))
			printf("# %s\n", error.text);
		rs_redis_address_free(&address);
		rs_redis_address_free(&address);	/* harmless */
	}
}

static void
test_bad(void)
{
	size_t		i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		RsAddress	address;
		RsError		error = {""};

		memset(&address, 0xAA, sizeof(address));
		unit_ok(!rs_redis_address_parse(bad[i].url, &address, &error), "refuse %s", bad[i].url);
		unit_has(error.text, bad[i].error, "and say why");
		unit_ok(strstr(error.text, "secret") == NULL && address.host == NULL &&
				address.path == NULL && address.user == NULL && address.password == NULL,
				"and quote no password, and leave nothing to free");
	}
}

static void
test_path_length(void)
{
	char		url[200] = "unix:///";
	RsAddress	address;
	RsError		error;

	memset(url + 8, 'p', 106);
	unit_ok(rs_redis_address_parse(url, &address, &error) && strlen(address.path) == 107,
			"the longest path of a socket");
	rs_redis_address_free(&address);
	strcat(url, "p");
	unit_ok(!rs_redis_address_parse(url, &address, &error), "a path that would be cut is refused");
	unit_has(error.text, "longer than 107 bytes", "and the error says so");
}

/* Writes a file of these bytes and mode, and reads a password from it. */
static bool
read_from(const char *file, const char *bytes, size_t length, mode_t mode, char **password,
		  RsError *error)
{
	FILE	   *stream;

	unlink(file);
	stream = fopen(file, "w");
	if (stream == NULL || fwrite(bytes, 1, length, stream) != length || fclose(stream) != 0 ||
		chmod(file, mode) != 0)
		unit_ok(false, "could write %s", file);
	error->text[0] = '\0';
	return rs_redis_password_read(file, password, error);
}

static void
test_password_good(const char *file)
{
	static const struct
	{
		const char *bytes;
		mode_t		mode;
		const char *password;
	}			cases[] = {
		{"secret", 0600, "secret"},
		{"secret\n", 0600, "secret"},
		{"secret\r\n", 0400, "secret"},
		{"secret\nmore\n", 0600, "secret"},
		{" se cret \t\n", 0700, " se cret \t"},
		{"\xC3\xA4:@/%00\n", 0600, "\xC3\xA4:@/%00"},
		{"s\r", 0600, "s\r"},
		{"s\r\r\n", 0600, "s\r"},
	};
	size_t		i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char	   *password = NULL;
		RsError		error;

		unit_ok(read_from(file, cases[i].bytes, strlen(cases[i].bytes), cases[i].mode, &password, &error),
				"read the password of case %zu", i);
		unit_same(password, cases[i].password, "and it is right");
		free(password);
	}
}

static void
test_password_bad(const char *file)
{
	static const struct
	{
		const char *bytes;
		size_t		length;
		mode_t		mode;
		const char *error;
	}			cases[] = {
		{"", 0, 0600, "is empty"},
		{"\n", 1, 0600, "is empty"},
		{"\r\n", 2, 0600, "is empty"},
		{"\nsecret\n", 8, 0600, "is empty"},
		{"sec\0ret\n", 8, 0600, "zero byte"},
		{"secret\n", 7, 0640, "group or world access"},
		{"secret\n", 7, 0620, "group or world access"},
		{"secret\n", 7, 0604, "group or world access"},
		{"secret\n", 7, 0602, "group or world access"},
		{"secret\n", 7, 0666, "group or world access"},
	};
	size_t		i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char	   *password = (char *) "unset";
		RsError		error;

		unit_ok(!read_from(file, cases[i].bytes, cases[i].length, cases[i].mode, &password, &error) &&
				password == NULL, "refuse the password file of case %zu", i);
		unit_has(error.text, cases[i].error, "and say why");
		unit_has(error.text, file, "and which");
		unit_ok(strstr(error.text, "secret") == NULL, "and quote nothing of it");
	}
}

static void
test_password_length(const char *file)
{
	static const char *const ends[] = {"", "\n", "\r\n", "\nmore"};
	char		bytes[4200];
	size_t		i;

	for (i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
	{
		char	   *password;
		RsError		error;

		memset(bytes, 'p', sizeof(bytes));
		strcpy(bytes + 4096, ends[i]);
		unit_ok(read_from(file, bytes, strlen(bytes), 0600, &password, &error) &&
				strlen(password) == 4096, "4096 bytes are a password, case %zu", i);
		free(password);
		memset(bytes, 'p', sizeof(bytes));
		strcpy(bytes + 4097, ends[i]);
		unit_ok(!read_from(file, bytes, strlen(bytes), 0600, &password, &error),
				"4097 bytes are refused, case %zu", i);
		unit_has(error.text, "longer than 4096 bytes", "and the error says so");
	}
}

static void
test_password_kinds(const char *directory, const char *file)
{
	char		link_name[300];
	char	   *password;
	RsError		error;

	unlink(file);
	unit_ok(!rs_redis_password_read(file, &password, &error), "a file that is not there");
	unit_has(error.text, "No such file", "and the error says so");

	unit_ok(!rs_redis_password_read(directory, &password, &error), "a directory");
	unit_has(error.text, "not a regular file", "and the error says so");

	unit_ok(mkfifo(file, 0600) == 0 && !rs_redis_password_read(file, &password, &error),
			"a FIFO, without waiting for a writer");
	unit_has(error.text, "not a regular file", "and the error says so");

	snprintf(link_name, sizeof(link_name), "%s/link", directory);
	read_from(file, "secret\n", 7, 0600, &password, &error);
	free(password);
	unit_ok(symlink(file, link_name) == 0 && rs_redis_password_read(link_name, &password, &error),
			"a symbolic link to a good file");
	free(password);
	unlink(link_name);
	unlink(file);
}

int
main(void)
{
	char		directory[] = "/tmp/redstream-unit-XXXXXX";
	char		file[200];

	test_good();
	test_bad();
	test_path_length();

	if (mkdtemp(directory) == NULL)
	{
		perror("mkdtemp");
		return 2;
	}
	snprintf(file, sizeof(file), "%s/password", directory);
	test_password_good(file);
	test_password_bad(file);
	test_password_length(file);
	test_password_kinds(directory, file);
	rmdir(directory);
	return unit_done();
}
