/*
 * shared.c
 *	  Asks for and lays out the transport's shared memory.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "processes.h"
#include "progress.h"
#include "settings.h"
#include "spool/spool.h"
#include "stats.h"
#include "transport/shared.h"

RsShared   *rs_shared;

static shmem_request_hook_type previous_shmem_request;
static shmem_startup_hook_type previous_shmem_startup;

static Size
shared_size(void)
{
	Size		lane = add_size(mul_size(sizeof(RsEntry), rs_lane_entries()), rs_lane_size());
	Size		size = offsetof(RsShared, slots);

	size = add_size(size, mul_size(sizeof(RsSlot), MaxBackends));
	return add_size(MAXALIGN(size), mul_size(2, lane));
}

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(rs_stats_shmem_size());
	RequestAddinShmemSpace(rs_processes_shmem_size());
	RequestAddinShmemSpace(rs_spool_shmem_size());
	RequestAddinShmemSpace(rs_progress_shmem_size());
}

/* Lays a lane out at "memory"; returns the end. */
static char *
init_lane(RsLane *lane, int tranche, char *memory)
{
	LWLockInitialize(&lane->lock, tranche);
	lane->head_byte = 0;
	pg_atomic_init_u64(&lane->head, 0);
	pg_atomic_init_u64(&lane->tail, 0);
	pg_atomic_init_u64(&lane->tail_byte, 0);
	ConditionVariableInit(&lane->space);
	lane->entries = (RsEntry *) memory;
	for (uint32 i = 0; i < rs_lane_entries(); i++)
		pg_atomic_init_u64(&lane->entries[i].tag, 0);
	lane->bytes = memory + sizeof(RsEntry) * rs_lane_entries();
	return lane->bytes + rs_lane_size();
}

static void
init_shared(void)
{
	char	   *memory = (char *) rs_shared;
	int			tranche = LWLockNewTrancheId();

	LWLockRegisterTranche(tranche, "redstream_lane");
	pg_atomic_init_u32(&rs_shared->link, RS_LINK_UNKNOWN);
	pg_atomic_init_u32(&rs_shared->sender, RS_NO_PROCESS);
	pg_atomic_init_u32(&rs_shared->attention, RS_ATTENTION_NONE);
	pg_atomic_init_u64(&rs_shared->progress, 0);
	pg_atomic_init_u32(&rs_shared->nlives, 0);
	for (int i = 0; i < RS_LIVES; i++)
		pg_atomic_init_u64(&rs_shared->lives[i].began_ms, 0);
	pg_atomic_init_u64(&rs_shared->redis, 0);
	pg_atomic_init_u64(&rs_shared->doubts, 0);
	SpinLockInit(&rs_shared->mutex);
	rs_shared->since = 0;
	rs_shared->last_error[0] = '\0';
	rs_shared->last_error_at = 0;
	rs_shared->sender_started = 0;
	rs_shared->run_id[0] = '\0';
	rs_shared->client_id = 0;
	rs_shared->marker_sent = 0;
	rs_shared->marker = 0;
	for (int i = 0; i < MaxBackends; i++)
	{
		RsSlot	   *slot = &rs_shared->slots[i];

		memset(slot, 0, sizeof(RsSlot));
		pg_atomic_init_u64(&slot->awaited, 0);
		pg_atomic_init_u32(&slot->busy, 0);
		SpinLockInit(&slot->mutex);
	}
	memory += MAXALIGN(offsetof(RsShared, slots) + sizeof(RsSlot) * MaxBackends);
	memory = init_lane(&rs_shared->delay, tranche, memory);
	(void) init_lane(&rs_shared->main, tranche, memory);
}

static void
startup_shmem(void)
{
	bool		found;

	if (previous_shmem_startup)
		previous_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	rs_shared = ShmemInitStruct("redstream transport", shared_size(), &found);
	if (!found)
		init_shared();
	rs_stats_shmem_init();
	rs_processes_shmem_init();
	rs_spool_shmem_init();
	rs_progress_shmem_init();
	LWLockRelease(AddinShmemInitLock);
}

/*
 * The sender restarts at once when it ends (it spaces its own starts), and is
 * not there while the server is a standby.
 */
static void
register_sender(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 0;
	strlcpy(worker.bgw_library_name, "redstream", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "redstream_sender_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "redstream sender", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "redstream sender", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
rs_transport_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
	register_sender();
}

bool
rs_transport_ready(void)
{
	return rs_shared != NULL;
}

uint64
rs_transport_redis(void)
{
	return pg_atomic_read_u64(&rs_shared->redis);
}

void
rs_transport_status(RsTransportStatus *status)
{
	RsLane	   *delay = &rs_shared->delay;
	RsLane	   *main = &rs_shared->main;

	memset(status, 0, sizeof(*status));
	status->connected = pg_atomic_read_u32(&rs_shared->link) == RS_LINK_UP;
	SpinLockAcquire(&rs_shared->mutex);
	status->since = rs_shared->since;
	memcpy(status->last_error, rs_shared->last_error, sizeof(status->last_error));
	status->last_error_at = rs_shared->last_error_at;
	SpinLockRelease(&rs_shared->mutex);

	LWLockAcquire(&delay->lock, LW_SHARED);
	status->delay_bytes = delay->head_byte - pg_atomic_read_u64(&delay->tail_byte);
	LWLockRelease(&delay->lock);
	LWLockAcquire(&main->lock, LW_SHARED);
	status->main_bytes = main->head_byte - pg_atomic_read_u64(&main->tail_byte);
	LWLockRelease(&main->lock);
}
