/*
 * payload.h
 *	  A JSON object that is filled again for every row.  For the files of this
 *	  directory; the only one that knows json-c is payload.c.
 */
#ifndef RS_CAPTURE_PAYLOAD_H
#define RS_CAPTURE_PAYLOAD_H

typedef struct RsPayload RsPayload;

/* An object with these keys, in UTF-8, that lives as long as the context. */
extern RsPayload *rs_payload_create(MemoryContext context, int count, char **keys);

/* Sets a member to a string, to be quoted and escaped; or to something that is
 * JSON already.  Text is UTF-8. */
extern void rs_payload_set_string(RsPayload *payload, int member, const char *text, size_t length);
extern void rs_payload_set_json(RsPayload *payload, int member, const char *text, size_t length);

/* The object's text without spaces, good until the next call for it. */
extern const char *rs_payload_text(RsPayload *payload, size_t *length);

#endif							/* RS_CAPTURE_PAYLOAD_H */
