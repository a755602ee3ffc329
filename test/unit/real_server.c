/*
 * real_server.c
 *	  See real_server.h.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "real_server.h"

bool
real_is_installed(void)
{
	return system("redis-server --version >/dev/null 2>&1") == 0;
}

void
real_start(RealServer *server, const char *password)
{
	char		socket_path[100];
	char		log[100];

	strcpy(server->directory, "/tmp/redstream-unit-XXXXXX");
	if (mkdtemp(server->directory) == NULL)
		exit(2);
	snprintf(socket_path, sizeof(socket_path), "%s/socket", server->directory);
	snprintf(log, sizeof(log), "%s/log", server->directory);
	snprintf(server->url, sizeof(server->url), "unix://%s", socket_path);

	fflush(NULL);
	server->pid = fork();
	if (server->pid < 0)
		exit(2);
	if (server->pid == 0)
	{
		execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", socket_path,
			   "--dir", server->directory, "--logfile", log, "--save", "", "--appendonly", "no",
			   "--requirepass", password, (char *) NULL);
		_exit(127);
	}
}

void
real_stop(RealServer *server)
{
	static const char *const files[] = {"socket", "log"};
	char		path[120];
	size_t		i;

	kill(server->pid, SIGKILL);
	waitpid(server->pid, NULL, 0);
	for (i = 0; i < 2; i++)
	{
		snprintf(path, sizeof(path), "%s/%s", server->directory, files[i]);
		unlink(path);
	}
	rmdir(server->directory);
}

RsConnection *
real_connect(const RealServer *server, const RsConnectOptions *options, RsServerInfo *info,
			 RsError *error)
{
	long long	end = fake_now_ms() + PATIENCE_MS;
	struct timespec pause = {0, 10000000};
	RsConnection *connection;

	while ((connection = client_connect(server->url, options, info, error)) == NULL &&
		   fake_now_ms() < end && waitpid(server->pid, NULL, WNOHANG) == 0)
		nanosleep(&pause, NULL);
	return connection;
}

bool
real_command(RsConnection *connection, const char *words, RsReply *reply)
{
	char		copy[200];
	const char *arguments[16];
	int			count = 0;
	char	   *word;
	RsError		error;

	snprintf(copy, sizeof(copy), "%s", words);
	for (word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
		arguments[count++] = word;
	if (rs_redis_command(connection, count, arguments, NULL, PATIENCE_MS, reply, &error))
		return true;
	printf("# %s\n", error.text);
	return false;
}
