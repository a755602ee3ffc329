/*
 * reader.c - what consumers are measured against: a bare loop of XREAD.
 *
 *	 reader REDIS_SOCKET STREAM_KEY COUNT MESSAGES
 *
 * Reads that many messages from the beginning, COUNT at a time, one call after the other.  It
 * keeps nothing in Redis: no lock, no offset.  Each reply is built by hiredis and its payloads are
 * looked at.  Prints the number of bytes of payloads.
 */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void __attribute__((noreturn))
die(const char *what)
{
	fprintf(stderr, "reader: %s\n", what);
	exit(1);
}

int
main(int argc, char **argv)
{
	redisContext *redis;
	char		last[64] = "0-0";
	long		left;
	size_t		bytes = 0;

	if (argc != 5)
		die("usage: reader REDIS_SOCKET STREAM_KEY COUNT MESSAGES");
	left = atol(argv[4]);
	redis = redisConnectUnix(argv[1]);
	if (redis == NULL || redis->err)
		die("cannot connect");
	while (left > 0)
	{
		redisReply *reply = redisCommand(redis, "XREAD COUNT %s STREAMS %s %s", argv[3], argv[2], last);
		redisReply *entries;

		if (reply == NULL || reply->type != REDIS_REPLY_ARRAY)
			die("there are fewer messages");
		entries = reply->element[0]->element[1];
		for (size_t i = 0; i < entries->elements; i++)
			bytes += entries->element[i]->element[1]->element[1]->len;
		snprintf(last, sizeof(last), "%s", entries->element[entries->elements - 1]->element[0]->str);
		left -= (long) entries->elements;
		freeReplyObject(reply);
	}
	printf("%zu\n", bytes);
	redisFree(redis);
	return 0;
}
