/*
 * redstream.c
 *	  The module's entry point: what is set up when the library is loaded.
 *
 * Preloaded, the library has shared memory, the sender, the launcher, hooks and the
 * transaction callbacks.  Loaded by a session alone it has its settings and the functions
 * that look at Redis and consume; a captured write then fails and says what is missing.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "capture/capture.h"
#include "consuming/consuming.h"
#include "settings.h"
#include "transaction/transaction.h"
#include "transport/transport.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	rs_settings_define(process_shared_preload_libraries_in_progress);
	rs_consuming_init();
	if (!process_shared_preload_libraries_in_progress)
		return;
	rs_transport_init();
	rs_transaction_init();
	rs_capture_init();
	rs_worker_init();
}
