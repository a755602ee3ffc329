/*
 * test_keys.c
 *	  Which names are allowed, and the bytes of the keys, which the Ruby
 *	  library shares.
 */
#include "../../src/redis/redis.h"
#include "unit.h"

typedef bool (*Check) (const char *name, RsError *error);

static void
fill(char *name, size_t length)
{
	memset(name, 'n', length);
	name[length] = '\0';
}

static void
allow(Check check, const char *what, const char *name)
{
	RsError		error = {""};

	if (!unit_ok(check(name, &error), "%s \"%.20s\" of %zu bytes is allowed", what, name, strlen(name)))
		printf("# %s\n", error.text);
}

static void
refuse(Check check, const char *what, const char *name, const char *why)
{
	RsError		error = {""};

	unit_ok(!check(name, &error), "%s \"%.20s\" of %zu bytes is refused", what, name, strlen(name));
	unit_has(error.text, why, "and the error says why");
	unit_has(error.text, what, "and of what");
}

static void
test_any_name(Check check, const char *what, size_t longest, bool may_be_empty)
{
	static const char *const fine[] = {
		"products", "a b", "{products}", "products-0", "delay", ".delayed", "x.delay.y", "\"'\\%",
		"\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80", "\x80\xFF"
	};
	char		name[RS_NAME_MAX + 2];
	size_t		i;
	int			c;

	for (i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
		allow(check, what, fine[i]);
	if (may_be_empty)
		allow(check, what, "");
	else
		refuse(check, what, "", "must not be empty");
	fill(name, 1);
	allow(check, what, name);
	fill(name, longest);
	allow(check, what, name);
	fill(name, longest + 1);
	refuse(check, what, name, "longer than");

	for (c = 1; c <= 0x7F; c += c == 0x1F ? 0x60 : 1)
	{
		RsError		error;

		strcpy(name, "abc");
		name[1] = (char) c;
		unit_ok(!check(name, &error) && strstr(error.text, "control") != NULL,
				"%s with byte %02x is refused", what, c);
	}
}

static void
test_names(void)
{
	test_any_name(rs_redis_stream_name_check, "stream name", 512, false);
	allow(rs_redis_stream_name_check, "stream name", "a:b");
	refuse(rs_redis_stream_name_check, "stream name", "products.delay", ".delay");
	refuse(rs_redis_stream_name_check, "stream name", ".delay", ".delay");

	test_any_name(rs_redis_consumer_name_check, "consumer name", 512, false);
	allow(rs_redis_consumer_name_check, "consumer name", "products.delay");
	refuse(rs_redis_consumer_name_check, "consumer name", "a:b", "\":\"");
	refuse(rs_redis_consumer_name_check, "consumer name", ":", "\":\"");

	test_any_name(rs_redis_namespace_check, "namespace", 128, true);
	allow(rs_redis_namespace_check, "namespace", "a:b");
	allow(rs_redis_namespace_check, "namespace", "x.delay");
}

static void
same_key(const RsKey *key, const char *expected)
{
	unit_same(key->text, expected, key->text);
	unit_ok(key->length == strlen(expected), "and its length");
}

static void
test_keys(void)
{
	RsKey		key;
	RsError		error;

	rs_redis_stream_key(&key, "", "products");
	same_key(&key, "redstream:stream:products");
	rs_redis_stream_key(&key, "shop", "products");
	same_key(&key, "shop:redstream:stream:products");
	rs_redis_delay_key(&key, "", "products");
	same_key(&key, "redstream:stream:products.delay");
	rs_redis_delay_key(&key, "shop", "products");
	same_key(&key, "shop:redstream:stream:products.delay");
	rs_redis_offset_key(&key, "", "products", "search");
	same_key(&key, "redstream:offset:products:search");
	rs_redis_offset_key(&key, "shop", "products", "search");
	same_key(&key, "shop:redstream:offset:products:search");
	rs_redis_offset_key(&key, "", "products.delay", "delayer");
	same_key(&key, "redstream:offset:products.delay:delayer");

	unit_ok(rs_redis_lock_key(&key, "", "consumer:products:search", &error), "a consumer's lock");
	same_key(&key, "redstream:lock:consumer:products:search");
	unit_ok(rs_redis_lock_key(&key, "", "consumer:products.delay:delayer", &error), "the delayer's");
	same_key(&key, "redstream:lock:consumer:products.delay:delayer");
	unit_ok(rs_redis_lock_key(&key, "shop", "trimmer:products", &error), "the trimmer's");
	same_key(&key, "shop:redstream:lock:trimmer:products");
	rs_redis_stream_key(&key, "a:b", "{\xC3\xA4}-0");
	same_key(&key, "a:b:redstream:stream:{\xC3\xA4}-0");
}

/* Those that are made without a lock's name, and those that the Ruby library does not have. */
static void
test_more_keys(void)
{
	RsKey		key;

	rs_redis_consumer_lock_key(&key, "shop", "products", "search");
	same_key(&key, "shop:redstream:lock:consumer:products:search");
	rs_redis_delayer_lock_key(&key, "", "products");
	same_key(&key, "redstream:lock:consumer:products.delay:delayer");
	rs_redis_trimmer_lock_key(&key, "shop", "products");
	same_key(&key, "shop:redstream:lock:trimmer:products");
	rs_redis_delayer_offset_key(&key, "shop", "products");
	same_key(&key, "shop:redstream:offset:products.delay:delayer");

	rs_redis_consumers_key(&key, "shop", "products");
	same_key(&key, "shop:redstream:consumers:products");
	rs_redis_history_key(&key, "", "{products}");
	same_key(&key, "redstream:history:{products}");
	rs_redis_flush_key(&key, "", "s");
	unit_same(key.text, "redstream:flush:s", "flush key");
	rs_redis_server_key(&key, "shop", "7300000000000000000:1");
	same_key(&key, "shop:redstream:server:7300000000000000000:1");
	rs_redis_streams_key(&key, "shop", UINT64_MAX, UINT32_MAX);
	same_key(&key, "shop:redstream:streams:18446744073709551615:4294967295");
}

static void
test_longest(void)
{
	char		ns[RS_NAMESPACE_MAX + 1];
	char		name[RS_NAME_MAX + 1];
	char		lock[1102];
	char		huge[2 * RS_KEY_SIZE];
	RsKey		key;
	RsError		error;

	fill(ns, RS_NAMESPACE_MAX);
	fill(name, RS_NAME_MAX);
	rs_redis_stream_key(&key, ns, name);
	unit_ok(key.length == 128 + 1 + 17 + 512, "the longest stream key fits");
	rs_redis_delay_key(&key, ns, name);
	unit_ok(key.length == 128 + 1 + 17 + 512 + 6, "the longest delay key fits");
	rs_redis_offset_key(&key, ns, name, name);
	unit_ok(key.length == 128 + 1 + 17 + 512 + 1 + 512, "the longest offset key fits");
	rs_redis_consumer_lock_key(&key, ns, name, name);
	unit_ok(key.length == 128 + 1 + 24 + 512 + 1 + 512, "the longest consumer's lock key fits");
	rs_redis_delayer_offset_key(&key, ns, name);
	unit_ok(key.length == 128 + 1 + 17 + 512 + 6 + 8, "the longest delayer's offset key fits");
	fill(lock, 1100);
	unit_ok(rs_redis_lock_key(&key, ns, lock, &error) && key.length == 128 + 1 + 15 + 1100,
			"the longest lock key fits");
	fill(lock, 1101);
	unit_ok(!rs_redis_lock_key(&key, ns, lock, &error), "a longer lock name is refused");
	unit_ok(!rs_redis_lock_key(&key, ns, "", &error), "an empty lock name is refused");
	unit_ok(!rs_redis_lock_key(&key, ns, "trimmer:a\nb", &error),
			"a lock name with a control character is refused");

	fill(huge, sizeof(huge) - 1);
	rs_redis_offset_key(&key, huge, huge, huge);
	unit_ok(key.length == RS_KEY_SIZE - 1 && key.text[key.length] == '\0',
			"unchecked names are cut, not written past the end");
}

int
main(void)
{
	test_names();
	test_keys();
	test_more_keys();
	test_longest();
	return unit_done();
}
