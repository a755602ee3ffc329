/*
 * run.c
 *	  One step of a job in a backend, as the worker would do it now.
 *
 * The connection is closed on the way out, however that is.  Locks need no care then: a step releases its
 * own, and one that was interrupted leaves one to expire, as a worker that dies does.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "worker/work.h"

typedef bool (*Step) (RsWork *work, RsError *error);

static void
redis_failed(const RsError *error)
{
	CHECK_FOR_INTERRUPTS();		/* the reason, if there is one */
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not ask Redis: %s", error->text),
			 errhint("See redstream.url and redstream.stats.")));
}

static bool
is_worth_telling(const RsJobReport *report)
{
	return report->stream != NULL &&
		(report->locked || report->moved > 0 || report->dropped > 0 || report->held > 0 ||
		 report->trimmed > 0 || report->error != NULL);
}

static void
run(RsWork *work, RsJob job, Step step, RsReportTo report, void *argument)
{
	RsError		error;
	ListCell   *cell;

	if (!rs_work_refresh(work))
		return;
	if (!rs_work_connect(work, &error) || !rs_work_know(work, &error) || !step(work, &error))
		redis_failed(&error);
	foreach(cell, work->streams)
	{
		const RsWorkStream *stream = lfirst(cell);

		if (is_worth_telling(&stream->reports[job]))
			report(argument, &stream->reports[job]);
	}
}

static void
run_and_leave(RsJob job, Step step, RsWait wait, RsReportTo report, void *argument)
{
	RsWork	   *work = rs_work_create(CurrentMemoryContext, wait, false);

	PG_TRY();
	{
		run(work, job, step, report, argument);
	}
	PG_FINALLY();
	{
		rs_work_disconnect(work);
	}
	PG_END_TRY();
	MemoryContextDelete(work->context);
}

void
rs_worker_run_delayer(RsWait wait, RsReportTo report, void *argument)
{
	run_and_leave(RS_JOB_DELAYER, rs_delayer_step, wait, report, argument);
}

void
rs_worker_run_trimmer(RsWait wait, RsReportTo report, void *argument)
{
	run_and_leave(RS_JOB_TRIMMER, rs_trimmer_step, wait, report, argument);
}
