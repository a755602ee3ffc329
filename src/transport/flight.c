/*
 * flight.c
 *	  The sender's queue of commands under way.
 */
#include "postgres.h"

#include "stats.h"
#include "transport/flight.h"

#define CAPACITY 4096
#define RESERVE 4				/* a range's reply adds two, their end one, and behind all is a WAIT */
#define PIECES_PER_WRITE 128	/* well below IOV_MAX */

static struct
{
	RsFlight	ring[CAPACITY];
	uint64		oldest;			/* first one not acknowledged */
	uint64		front;			/* replies come for this one */
	uint64		unwritten;		/* first one with bytes to be written */
	uint64		end;
}			flights;

static RsFlight *
at(uint64 number)
{
	return &flights.ring[number % CAPACITY];
}

int
rs_flights_room(void)
{
	return CAPACITY - RESERVE - (int) (flights.end - flights.oldest);
}

bool
rs_flights_empty(void)
{
	return flights.end == flights.front;
}

void
rs_flights_push(const RsFlight *flight)
{
	Assert(flights.end - flights.oldest < CAPACITY);
	*at(flights.end++) = *flight;
}

RsFlight *
rs_flights_front(void)
{
	return rs_flights_empty() ? NULL : at(flights.front);
}

void
rs_flights_answered(void)
{
	Assert(!rs_flights_empty());
	flights.front++;
	flights.unwritten = Max(flights.unwritten, flights.front);
}

RsFlight *
rs_flights_oldest(void)
{
	return flights.oldest == flights.front ? NULL : at(flights.oldest);
}

void
rs_flights_pop(void)
{
	Assert(flights.oldest < flights.front);
	flights.oldest++;
}

/* How many messages of ours the flight has to bring home. */
static uint64
messages(const RsFlight *flight)
{
	return flight->kind == RS_FLIGHT_ENTRY || flight->kind == RS_FLIGHT_COPY ?
		flight->replies + flight->taken : 0;
}

uint64
rs_flights_clear(void)
{
	uint64		written = 0;

	for (uint64 i = flights.oldest; i < flights.unwritten; i++)
		written += messages(at(i));
	flights.oldest = flights.front = flights.unwritten = flights.end;
	return written;
}

bool
rs_flights_unwritten(void)
{
	return flights.unwritten < flights.end;
}

/* Takes "written" bytes off the flight; returns those left over for the next. */
static size_t
consume(RsFlight *flight, size_t written)
{
	while (flight->npieces > 0)
	{
		struct iovec *piece = &flight->pieces[0];
		size_t		part = Min(written, piece->iov_len);

		piece->iov_base = (char *) piece->iov_base + part;
		piece->iov_len -= part;
		written -= part;
		if (piece->iov_len > 0)
			break;
		flight->pieces[0] = flight->pieces[1];
		flight->npieces--;
	}
	return written;
}

bool
rs_flights_write(RsConnection *connection, bool *any, RsError *error)
{
	*any = false;
	while (rs_flights_unwritten())
	{
		struct iovec vector[PIECES_PER_WRITE];
		int			count = 0;
		ssize_t		written;
		size_t		rest;

		for (uint64 i = flights.unwritten; i < flights.end && count <= PIECES_PER_WRITE - 2; i++)
			for (int j = 0; j < at(i)->npieces; j++)
				vector[count++] = at(i)->pieces[j];
		written = count == 0 ? 0 : rs_redis_write(connection, vector, count, error);
		if (written < 0)
			return false;
		*any |= written > 0;
		rest = written;
		while (rs_flights_unwritten())
		{
			rest = consume(at(flights.unwritten), rest);
			if (at(flights.unwritten)->npieces > 0)
				break;
			rs_stats_add(RS_COUNT_SENT, messages(at(flights.unwritten)));
			flights.unwritten++;
		}
		if (written == 0)
			break;
	}
	return true;
}
