/*
 * identity.c
 *	  Who this server is, in Redis.
 *
 * None of it changes under a process that writes: a promotion comes before the
 * first transaction.  During recovery the timeline is not to be asked for.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"

#include "identity.h"

#define XACT_PREFIX "xact:"

const char *
rs_identity_xact_field(void)
{
	static char field[64];

	Assert(!RecoveryInProgress());
	if (field[0] == '\0')
		snprintf(field, sizeof(field), XACT_PREFIX UINT64_FORMAT ":%u",
				 GetSystemIdentifier(), GetWALInsertionTimeLine());
	return field;
}

const char *
rs_identity_server(void)
{
	return rs_identity_xact_field() + strlen(XACT_PREFIX);
}

void
rs_identity_streams_key(RsKey *key, const char *ns)
{
	rs_redis_streams_key(key, ns, GetSystemIdentifier(), MyDatabaseId);
}

const char *
rs_identity_token(void)
{
	static char token[17];

	if (token[0] == '\0')
	{
		char		host[256] = "";
		char		place[MAXPGPATH + 300];
		int			length;

		(void) gethostname(host, sizeof(host) - 1);
		length = snprintf(place, sizeof(place), "%s\n%d\n%s", host, PostPortNumber, DataDir);
		snprintf(token, sizeof(token), "%016llx", (unsigned long long)
				 hash_bytes_extended((unsigned char *) place, length, 0));
	}
	return token;
}
