/*
 * reply.c
 *	  Takes replies out of the bytes that were read.
 *
 * hiredis parses; what it makes of a reply is ours to choose.  The sender
 * checks a million replies a second and needs of each no more than its type,
 * so in the light mode nothing is built: the functions below only remember the
 * outermost element.  A text is copied, because the reader moves its buffer as
 * soon as the reply is complete.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* hiredis 1.0 changed the type of an array's count. */
#if HIREDIS_MAJOR >= 1
typedef size_t ArrayCount;
#else
typedef int ArrayCount;
#endif

/* A text's memory is kept for the next one up to this size. */
#define TEXT_KEEP_MAX 16384

static bool
known_type(int hiredis_type, RsReplyType *type)
{
	switch (hiredis_type)
	{
		case REDIS_REPLY_STATUS:
			*type = RS_REPLY_STATUS;
			return true;
		case REDIS_REPLY_ERROR:
			*type = RS_REPLY_ERROR;
			return true;
		case REDIS_REPLY_INTEGER:
			*type = RS_REPLY_INTEGER;
			return true;
		case REDIS_REPLY_STRING:
			*type = RS_REPLY_STRING;
			return true;
		case REDIS_REPLY_NIL:
			*type = RS_REPLY_NIL;
			return true;
		case REDIS_REPLY_ARRAY:
			*type = RS_REPLY_ARRAY;
			return true;
	}
	return false;				/* RESP3, which nobody asked for */
}

static bool
keep_text(RsConnection *connection, const char *text, size_t length)
{
	if (length > connection->text_size)
	{
		char	   *room = malloc(length);

		if (room == NULL)
			return false;
		if (connection->text != connection->text_room)
			free(connection->text);
		connection->text = room;
		connection->text_size = length;
	}
	memcpy(connection->text, text, length);
	connection->text_length = length;
	return true;
}

/*
 * The light mode's functions.  Each returns something that is not NULL, which
 * the reader takes for the object it asked for: the connection.
 */
static RsConnection *
note_type(const redisReadTask *task)
{
	RsConnection *connection = task->privdata;

	if (task->parent == NULL)
		connection->light_known = known_type(task->type, &connection->light_type);
	return connection;
}

static void *
light_string(const redisReadTask *task, char *text, size_t length)
{
	RsConnection *connection = note_type(task);

	if (task->parent == NULL && !keep_text(connection, text, length))
		return NULL;
	return connection;
}

static void *
light_array(const redisReadTask *task, ArrayCount count)
{
	(void) count;
	return note_type(task);
}

static void *
light_integer(const redisReadTask *task, long long integer)
{
	RsConnection *connection = note_type(task);

	if (task->parent == NULL)
		connection->light_integer = integer;
	return connection;
}

/* The task of a nil has the type of what is absent. */
static void *
light_nil(const redisReadTask *task)
{
	RsConnection *connection = note_type(task);

	if (task->parent == NULL)
		connection->light_type = RS_REPLY_NIL;
	return connection;
}

/* Functions of RESP3 types, where hiredis knows them, stay NULL: replies of
 * such types are then consumed and not known. */
static redisReplyObjectFunctions light_functions = {
	.createString = light_string,
	.createArray = light_array,
	.createInteger = light_integer,
	.createNil = light_nil
};

void
rs_redis_forget_reply(RsConnection *connection)
{
	if (connection->tree != NULL)
	{
		freeReplyObject(connection->tree);
		connection->tree = NULL;
	}
	if (connection->text_size > TEXT_KEEP_MAX)
	{
		free(connection->text);
		connection->text = connection->text_room;
		connection->text_size = sizeof(connection->text_room);
	}
}

static bool
fill_light(RsConnection *connection, RsReply *reply)
{
	reply->type = connection->light_type;
	if (connection->light_type == RS_REPLY_INTEGER)
		reply->integer = connection->light_integer;
	if (connection->light_type == RS_REPLY_STATUS || connection->light_type == RS_REPLY_ERROR ||
		connection->light_type == RS_REPLY_STRING)
	{
		reply->text = connection->text;
		reply->length = connection->text_length;
	}
	return connection->light_known;
}

static bool
fill_tree(RsConnection *connection, RsReply *reply)
{
	redisReply *tree = connection->tree;

	reply->tree = tree;
	if (!known_type(tree->type, &reply->type))
		return false;
	if (reply->type == RS_REPLY_INTEGER)
		reply->integer = tree->integer;
	if (reply->type == RS_REPLY_STATUS || reply->type == RS_REPLY_ERROR ||
		reply->type == RS_REPLY_STRING)
	{
		reply->text = tree->str;
		reply->length = (size_t) tree->len;
	}
	return true;
}

int
rs_redis_take_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *reason)
{
	redisReader *reader = connection->context->reader;
	redisReplyObjectFunctions *functions = tree ? connection->tree_functions : &light_functions;
	bool		begun = reader->ridx > 0;	/* inside an array */
	void	   *object = NULL;
	bool		known;

	rs_redis_forget_reply(connection);
	memset(reply, 0, sizeof(*reply));

	/* The functions of one kind must not meet the objects of the other.  Until
	 * an array has begun, the reader holds no object. */
	if (begun && reader->fn != functions)
	{
		rs_redis_error(reason, "a reply was begun in one way and asked for in another");
		return -1;
	}
	if (!begun)
	{
		reader->fn = functions;
		connection->light_known = false;
		connection->text_length = 0;
	}

	if (redisReaderGetReply(reader, &object) != REDIS_OK)
	{
		rs_redis_error(reason, "%s", reader->errstr);
		return -1;
	}
	if (object == NULL)
		return 0;

	if (tree)
		connection->tree = object;
	known = tree ? fill_tree(connection, reply) : fill_light(connection, reply);
	if (known)
		return 1;

	/* As after the errors that the reader finds, nothing more can be taken. */
	reader->err = REDIS_ERR_PROTOCOL;
	strcpy(reader->errstr, "Protocol error, a reply of a type that RESP2 does not have");
	rs_redis_error(reason, "%s", reader->errstr);
	return -1;
}

int
rs_redis_reply(RsConnection *connection, bool tree, RsReply *reply, RsError *error)
{
	int			result = rs_redis_take_reply(connection, tree, reply, error);

	if (result < 0)
		rs_redis_error(error, "reply from %s: %s", connection->target, error->text);
	return result;
}
