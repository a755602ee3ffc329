/*
 * held.c
 *	  Messages that stay in a delay stream though they are due.
 *
 * Remembered are not the messages, of which there may be millions, but whom they
 * wait for and between which ids they are.  So a tick costs nothing for them, and
 * when a transaction has ended only its stretch of the stream is read again.  There are
 * at most as many entries as transactions can run and be prepared, and servers
 * write to the stream.
 */
#include "postgres.h"

#include "worker/delay.h"

static RsHeld *
find(RsDelayState *state, uint64 top, const char *server)
{
	for (int i = 0; i < state->nheld; i++)
	{
		RsHeld	   *held = &state->held[i];

		if (server == NULL ? held->server == NULL && held->top == top :
			held->server != NULL && strcmp(held->server, server) == 0)
			return held;
	}
	return NULL;
}

static RsHeld *
add(RsWorkStream *stream, uint64 top, const char *server)
{
	RsDelayState *state = stream->delay;
	RsHeld	   *held;

	if (state->nheld == state->held_size)
	{
		int			size = Max(8, state->held_size * 2);

		state->held = state->held == NULL ?
			MemoryContextAlloc(stream->context, size * sizeof(RsHeld)) :
			repalloc(state->held, size * sizeof(RsHeld));
		state->held_size = size;
	}
	held = &state->held[state->nheld];
	memset(held, 0, sizeof(*held));
	held->top = top;
	if (server != NULL)
		held->server = MemoryContextStrdup(stream->context, server);
	state->nheld++;
	return held;
}

RsHeld *
rs_held_add(RsWorkStream *stream, uint64 top, const char *server, const RsStreamId *id)
{
	RsHeld	   *held = find(stream->delay, top, server);

	if (held == NULL)
	{
		held = add(stream, top, server);
		held->first = held->last = *id;
	}
	if (rs_redis_id_compare(id, &held->first) < 0)
		held->first = *id;
	if (rs_redis_id_compare(id, &held->last) > 0)
		held->last = *id;
	return held;
}

void
rs_held_remove(RsDelayState *state, int index)
{
	if (state->held[index].server != NULL)
		pfree(state->held[index].server);
	state->held[index] = state->held[--state->nheld];
}

void
rs_held_recheck(RsWork *work, RsDelayState *state)
{
	if (state->nheld == 0)
		return;
	rs_work_begin(work);
	for (int i = 0; i < state->nheld; i++)
	{
		RsHeld	   *held = &state->held[i];
		uint64		top;

		if (held->server != NULL)
			held->ended = rs_server_life(work, held->server) == RS_SERVER_GONE;
		else if (!held->ended)
			held->ended = rs_verdict(held->top, &top) != RS_VERDICT_RUNNING;
	}
	rs_work_end(work);
}

void
rs_delay_forget(RsDelayState *state)
{
	while (state->nheld > 0)
		rs_held_remove(state, 0);
	state->cursor.ms = state->cursor.seq = 0;
}

bool
rs_held_first(const RsDelayState *state, RsStreamId *id)
{
	for (int i = 0; i < state->nheld; i++)
		if (i == 0 || rs_redis_id_compare(&state->held[i].first, id) < 0)
			*id = state->held[i].first;
	return state->nheld > 0;
}
