/*
 * payload.c
 *	  The JSON text of a message, by json-c.
 *
 * The object and its members are made once for a plan; a row only replaces the
 * members' texts, so that nothing is allocated as a rule.  Members are strings.
 * Those that stand for numbers, null and the like print themselves as they are.
 *
 * json-c allocates with malloc and can fail; whatever it holds belongs to the
 * payload, which a callback of its memory context frees, so that errors may be thrown
 * anywhere.  (This file must not include utils/builtins.h: it declares a function
 * json_object, json-c a type of that name.)
 */
#include "postgres.h"

#include <json-c/json.h>

#include "utils/memutils.h"

#include "capture/payload.h"

struct RsPayload
{
	json_object *object;
	int			count;
	json_object *members[FLEXIBLE_ARRAY_MEMBER];
};

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("Failed while making the payload of a message.")));
}

static void
free_payload(void *argument)
{
	RsPayload  *payload = argument;

	if (payload->object != NULL)
		json_object_put(payload->object);
}

RsPayload *
rs_payload_create(MemoryContext context, int count, char **keys)
{
	RsPayload  *payload = MemoryContextAllocZero(context, offsetof(RsPayload, members) +
												 sizeof(json_object *) * count);
	MemoryContextCallback *callback = MemoryContextAllocZero(context, sizeof(*callback));

	callback->func = free_payload;
	callback->arg = payload;
	MemoryContextRegisterResetCallback(context, callback);
	payload->object = json_object_new_object();
	if (payload->object == NULL)
		out_of_memory();
	payload->count = count;
	for (int i = 0; i < count; i++)
	{
		payload->members[i] = json_object_new_string("");
		if (payload->members[i] == NULL ||
			json_object_object_add(payload->object, keys[i], payload->members[i]) != 0)
			out_of_memory();
	}
	return payload;
}

static void
set_text(RsPayload *payload, int member, const char *text, size_t length)
{
	Assert(member < payload->count);
	if (!json_object_set_string_len(payload->members[member], text, length))
		out_of_memory();
}

void
rs_payload_set_string(RsPayload *payload, int member, const char *text, size_t length)
{
	set_text(payload, member, text, length);
	json_object_set_serializer(payload->members[member], NULL, NULL, NULL);
}

static int
print_as_is(json_object *member, struct printbuf *out, int level, int flags)
{
	return printbuf_memappend(out, json_object_get_string(member),
							  json_object_get_string_len(member));
}

void
rs_payload_set_json(RsPayload *payload, int member, const char *text, size_t length)
{
	set_text(payload, member, text, length);
	json_object_set_serializer(payload->members[member], print_as_is, NULL, NULL);
}

const char *
rs_payload_text(RsPayload *payload, size_t *length)
{
	const char *text = json_object_to_json_string_length(payload->object,
														 JSON_C_TO_STRING_PLAIN |
														 JSON_C_TO_STRING_NOSLASHESCAPE,
														 length);

	if (text == NULL)
		out_of_memory();
	return text;
}
