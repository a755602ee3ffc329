/*
 * greeting_script.h
 *	  The greeting as bytes: what a client without a password sends, and what a
 *	  server answers that has nothing against it.
 */
#ifndef RS_GREETING_SCRIPT_H
#define RS_GREETING_SCRIPT_H

#define SENT_HELLO "*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n"
#define SENT_CLIENT_ID "*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n"
#define SENT_INFO "*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n"
#define SENT_GREETING SENT_HELLO SENT_CLIENT_ID SENT_INFO

/* HELLO's reply; "server" and "version" are bulks: "$5\r\nredis\r\n". */
#define HELLO_REPLY(server, version) \
	"*14\r\n$6\r\nserver\r\n" server "$7\r\nversion\r\n" version \
	"$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:7\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n" \
	"$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
#define HELLO_FINE HELLO_REPLY("$5\r\nredis\r\n", "$6\r\n7.0.15\r\n")
#define RUN_ID "0123456789abcdef0123456789abcdef01234567"
#define INFO_FINE "$96\r\n# Server\r\nredis_version:7.0.15\r\nrun_id:" RUN_ID "\r\ntcp_port:6379\r\n\r\n"
#define REST_FINE ":7\r\n" INFO_FINE
#define GREETING_FINE HELLO_FINE REST_FINE

#endif							/* RS_GREETING_SCRIPT_H */
