/*
 * test_json.c
 *	  What of a payload is JSON in UTF-8, and where it is wrong.
 */
#include <stdlib.h>

#include "consumer/consumer.h"
#include "unit.h"

static const char *const good[] = {
	"0", "-0", "1", "-1", "10", "1.0", "-1.50", "1e5", "1E+5", "1e-05", "0.0e0", "0e1",
	"123456789012345678901234567890.123456789012345678901234567890e1000000",
	"true", "false", "null", "\"\"", "\"a\"", "[]", "{}", "[[]]", "[{}]", "{\"\":{}}",
	"[1,2]", "[1 , 2 ]", "{\"a\":1}", "{\"a\":1,\"a\":2}", "{ \"a\" : [ 1 , { \"b\" : null } ] , \"c\" : \"d\" }",
	" 1", "1 ", "\t\n\r 1 \t\n\r", "[\n1\r\n]", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\uD800\\uabCd\"",
	"\"\x7f\"", "\"\xc2\x80\"", "\"\xdf\xbf\"", "\"\xe0\xa0\x80\"", "\"\xed\x9f\xbf\"", "\"\xee\x80\x80\"",
	"\"\xef\xbf\xbf\"", "\"\xf0\x90\x80\x80\"", "\"\xf4\x8f\xbf\xbf\"", "\"\xe2\x80\xa8\"",
};

static const struct
{
	const char *text;
	size_t		where;
	const char *wrong;
}			bad[] =
{
	{"", 0, "it ends too early"},
	{" ", 1, "it ends too early"},
	{"x", 0, "something that is no value"},
	{"NaN", 0, "something that is no value"},
	{"Infinity", 0, "something that is no value"},
	{"-Infinity", 1, "a number without a digit where one must be"},
	{"'a'", 0, "something that is no value"},
	{"/**/1", 0, "something that is no value"},
	{"\xef\xbb\xbf" "1", 0, "something that is no value"},
	{"nul", 3, "it ends too early"},
	{"nulL", 3, "an unknown word"},
	{"True", 0, "something that is no value"},
	{"nullx", 4, "something after the value"},
	{"1 2", 2, "something after the value"},
	{"{}{}", 2, "something after the value"},
	{"01", 1, "something after the value"},
	{"-01", 2, "something after the value"},
	{"-", 1, "it ends too early"},
	{"+1", 0, "something that is no value"},
	{".5", 0, "something that is no value"},
	{"1.", 2, "it ends too early"},
	{"1.e5", 2, "a number without a digit where one must be"},
	{"1e", 2, "it ends too early"},
	{"1e+", 3, "it ends too early"},
	{"1ex", 2, "a number without a digit where one must be"},
	{"0x10", 1, "something after the value"},
	{"[", 1, "it ends too early"},
	{"[1", 2, "it ends too early"},
	{"[1,", 3, "it ends too early"},
	{"[1,]", 3, "something that is no value"},
	{"[,1]", 1, "something that is no value"},
	{"[1 2]", 3, "an array without a comma or bracket where one must be"},
	{"[1}", 2, "an array without a comma or bracket where one must be"},
	{"]", 0, "something that is no value"},
	{"{", 1, "it ends too early"},
	{"{1:2}", 1, "an object without a name where one must be"},
	{"{a:2}", 1, "an object without a name where one must be"},
	{"{\"a\"}", 4, "a name without a colon"},
	{"{\"a\":}", 5, "something that is no value"},
	{"{\"a\":1,}", 7, "an object without a name where one must be"},
	{"{\"a\":1]", 6, "an object without a comma or brace where one must be"},
	{"{\"a\":1", 6, "it ends too early"},
	{"[{\"a\":[1,{\"b\":2]}]", 15, "an object without a comma or brace where one must be"},
	{"\"", 1, "it ends too early"},
	{"\"a", 2, "it ends too early"},
	{"\"\\\"", 3, "it ends too early"},
	{"\"\\", 2, "it ends too early"},
	{"\"\\a\"", 2, "an unknown escape"},
	{"\"\\u12g4\"", 5, "an escape \\u without four hexadecimal digits"},
	{"\"\\u123\"", 6, "an escape \\u without four hexadecimal digits"},
	{"\"\\u12", 5, "it ends too early"},
	{"\"\n\"", 1, "a control character in a string"},
	{"\"\t\"", 1, "a control character in a string"},
	{"\"\x1f\"", 1, "a control character in a string"},
	{"\"\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xbf\"", 1, "bytes that are not UTF-8"},
	{"\"\xc0\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xc1\xbf\"", 1, "bytes that are not UTF-8"},
	{"\"\xc2\"", 1, "bytes that are not UTF-8"},
	{"\"\xc2\xc0\"", 1, "bytes that are not UTF-8"},
	{"\"\xe0\x9f\xbf\"", 1, "bytes that are not UTF-8"},
	{"\"\xed\xa0\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xe2\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xf0\x8f\xbf\xbf\"", 1, "bytes that are not UTF-8"},
	{"\"\xf4\x90\x80\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xf5\x80\x80\x80\"", 1, "bytes that are not UTF-8"},
	{"\"\xff\"", 1, "bytes that are not UTF-8"},
	{"\"ab\xf0\x90\x80", 3, "bytes that are not UTF-8"},
	{"\xc3\xa9", 0, "something that is no value"},
};

/* A copy of its own for each text, without a terminator: reading past the end is seen. */
static const char *
check(const char *text, size_t length, size_t *where)
{
	char	   *copy = malloc(length > 0 ? length : 1);
	const char *wrong;

	memcpy(copy, text, length);
	wrong = rs_consumer_json_check(copy, length, where);
	free(copy);
	return wrong;
}

static void
test_texts(void)
{
	size_t		where;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		unit_same(check(good[i], strlen(good[i]), &where), NULL, good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		unit_same(check(bad[i].text, strlen(bad[i].text), &where), bad[i].wrong, bad[i].text);
		unit_ok(where == bad[i].where, "where \"%s\" is wrong: %zu", bad[i].text, where);
	}
	unit_same(check("\"\0\"", 3, &where), "a control character in a string", "a zero byte in a string");
	unit_same(check("1\0", 2, &where), "something after the value", "a zero byte behind a value");
	unit_same(check("\"\\\0\"", 4, &where), "an unknown escape", "a zero byte in an escape");
	unit_same(check("\"\\u\0" "000\"", 8, &where), "an escape \\u without four hexadecimal digits",
			  "a zero byte in a number");
}

/* Every beginning of a valid text but the whole is refused, and does not lead past its end. */
static void
test_beginnings(void)
{
	const char *text = "{\"a\\u00e9\":[-1.5e+7,true,false,null,\"\xf0\x9f\x98\x80\"],\"b\":{\"c\":[{}]}}";
	size_t		where;
	bool		refused = true;

	for (size_t length = 0; length < strlen(text); length++)
		refused = refused && check(text, length, &where) != NULL && where <= length;
	unit_ok(refused, "no beginning of a text is a text");
	unit_same(check(text, strlen(text), &where), NULL, "but the whole is");
}

static void
test_depth(void)
{
	size_t		length = 2 * (RS_JSON_DEPTH + 1);
	char	   *text = malloc(length);
	size_t		where;

	memset(text, '[', length / 2);
	memset(text + length / 2, ']', length / 2);
	unit_same(check(text + 1, length - 2, &where), NULL, "as deep as may be");
	unit_same(check(text, length, &where), "too deep an array or object", "deeper");
	unit_ok(where == RS_JSON_DEPTH, "and where");
	text[length / 2] = '}';
	unit_same(check(text + 1, length - 2, &where),
			  "something that is no value", "the wrong end at the deepest");
	free(text);
}

int
main(void)
{
	test_texts();
	test_beginnings();
	test_depth();
	return unit_done();
}
