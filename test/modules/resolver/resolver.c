/*
 * resolver.c
 *	  Names of hosts as tests want them, for any program that is started with LD_PRELOAD:
 *
 *	unknown.test	does not exist
 *	held.test		is 127.0.0.1, as soon as there is the file that REDSTREAM_TEST_RESOLVER names; until then the
 *					name server is silent.  Who asks is found in that file's name with ".asked", a line with
 *					the process id.
 */
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAUSE 10000				/* microseconds */

typedef int (*Getaddrinfo) (const char *, const char *, const struct addrinfo *,
							struct addrinfo **);

static void
note_asked(const char *file)
{
	char		name[1024];
	FILE	   *asked;

	snprintf(name, sizeof(name), "%s.asked", file);
	asked = fopen(name, "a");
	if (asked == NULL)
		abort();
	fprintf(asked, "%d\n", (int) getpid());
	fclose(asked);
}

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **found)
{
	Getaddrinfo original = (Getaddrinfo) dlsym(RTLD_NEXT, "getaddrinfo");
	const char *file = getenv("REDSTREAM_TEST_RESOLVER");
	int			numeric = hints != NULL && (hints->ai_flags & AI_NUMERICHOST) != 0;

	if (file != NULL && node != NULL && !numeric && strcmp(node, "held.test") == 0)
	{
		note_asked(file);
		while (access(file, F_OK) != 0)
			usleep(PAUSE);
		node = "127.0.0.1";
	}
	if (node != NULL && strcmp(node, "unknown.test") == 0)
		return EAI_NONAME;
	return original(node, service, hints, found);
}
