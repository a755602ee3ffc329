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

/* Makes it cover the id. */
static void
cover(RsHeld *held, const RsStreamId *id)
{
	if (rs_redis_id_compare(id, &held->first) < 0)
		held->first = *id;
	if (rs_redis_id_compare(id, &held->last) > 0)
		held->last = *id;
}

void
rs_held_add(RsWorkStream *stream, uint64 top, const char *server, const RsStreamId *id)
{
	RsHeld	   *held = find(stream->delay, top, server);

	if (held == NULL)
	{
		held = add(stream, top, server);
		held->first = held->last = *id;
	}
	cover(held, id);
}

/* They are nobody's any more: what they are is found out when they are read. */
void
rs_held_add_ended(RsWorkStream *stream, const RsStreamId *first, const RsStreamId *last)
{
	rs_held_add(stream, 0, "", first);
	rs_held_add(stream, 0, "", last);
	find(stream->delay, 0, "")->ended = true;
}

static void
take_out(RsDelayState *state, int index)
{
	if (state->held[index].server != NULL)
		pfree(state->held[index].server);
	state->held[index] = state->held[--state->nheld];
}

/* Their order is that of their messages: of two transactions that have ended one may have waited for
 * the other. */
bool
rs_held_take(RsDelayState *state, RsStreamId *first, RsStreamId *last)
{
	bool		found = false;
	int			i = 0;

	for (int j = 0; j < state->nheld; j++)
	{
		const RsHeld *held = &state->held[j];

		if (!held->ended || (found && rs_redis_id_compare(&held->first, first) >= 0))
			continue;
		*first = held->first;
		*last = held->last;
		found = true;
	}
	while (i < state->nheld)
	{
		const RsHeld *held = &state->held[i];

		if (!held->ended || rs_redis_id_compare(&held->first, last) > 0)
		{
			i++;
			continue;
		}
		if (rs_redis_id_compare(&held->last, last) > 0)
			*last = held->last;
		take_out(state, i);
		i = 0;					/* it may reach others now */
	}
	return found;
}

static bool
still_runs(const RsHeld *held)
{
	uint64		ignored;

	return rs_verdict(held->top, &ignored) == RS_VERDICT_RUNNING;
}

bool
rs_held_has_ended(const RsDelayState *state)
{
	for (int i = 0; i < state->nheld; i++)
		if (state->held[i].server == NULL && !state->held[i].ended && !still_runs(&state->held[i]))
			return true;
	return false;
}

/* One that was forgotten is asked about at the next step. */
static bool
server_is_gone(RsWork *work, const char *server)
{
	RsServerLife life = rs_server_life(work, server);

	if (life == RS_SERVER_UNKNOWN)
		rs_server_note(work, server);
	return life == RS_SERVER_GONE;
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

		if (held->ended)
			continue;
		if (held->server == NULL)
			held->ended = !still_runs(held);
		else if (held->server[0] == '\0')
			held->ended = true;
		else
			held->ended = server_is_gone(work, held->server);
		if (held->ended)
			state->look_at = 0;
	}
	rs_work_end(work);
}

void
rs_delay_forget(RsDelayState *state)
{
	while (state->nheld > 0)
		take_out(state, 0);
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
