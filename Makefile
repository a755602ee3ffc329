# redstream - announces row changes over Redis streams
#
# make, make install and make installcheck work as with any extension;
# PG_CONFIG says for which PostgreSQL.  "make help" tells what else there is.

EXTENSION = redstream
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" redstream.control)
MODULE_big = redstream
PGFILEDESC = "redstream - announces row changes over Redis streams"

DATA = sql/redstream--1.0.sql
OBJS = \
	src/redstream.o src/identity.o src/processes.o src/progress.o \
	src/settings.o src/stats.o \
	src/api/asking.o src/api/attach.o src/api/attach_options.o \
	src/api/attachments.o src/api/batch.o src/api/batches.o src/api/bulk.o \
	src/api/condition.o src/api/consume.o src/api/consumers.o src/api/emit.o \
	src/api/keyset.o src/api/lag.o src/api/looking.o src/api/progress.o \
	src/api/rows.o src/api/running.o src/api/streams.o src/api/target.o \
	src/api/workers.o \
	src/capture/announced.o src/capture/attached.o src/capture/compile.o \
	src/capture/function.o src/capture/guard.o src/capture/payload.o \
	src/capture/plan.o src/capture/row.o src/capture/shard.o \
	src/capture/trigger.o src/capture/truncate.o \
	src/consuming/lease.o src/consuming/offsets.o src/consuming/session.o \
	src/spool/book.o src/spool/fetch.o src/spool/store.o \
	src/transaction/announce.o src/transaction/log.o \
	src/transaction/spooling.o src/transaction/stream.o \
	src/transaction/transaction.o \
	src/transport/exchange.o src/transport/flight.o src/transport/lane.o \
	src/transport/link.o src/transport/lives.o src/transport/marker.o \
	src/transport/publication.o src/transport/sender.o src/transport/shared.o \
	src/worker/chunk.o src/worker/commands.o src/worker/delayer.o \
	src/worker/deliver.o src/worker/held.o src/worker/launcher.o \
	src/worker/move.o src/worker/registry.o src/worker/run.o \
	src/worker/servers.o src/worker/spooler.o src/worker/transfer.o src/worker/trim_cut.o src/worker/trim_history.o \
	src/worker/trim_judge.o src/worker/trim_look.o src/worker/trimmer.o \
	src/worker/verdict.o src/worker/work.o src/worker/worker.o \
	src/redis/connection.o src/redis/error.o src/redis/greeting.o \
	src/redis/keys.o src/redis/lock.o src/redis/pipeline.o \
	src/redis/reading.o src/redis/reply.o src/redis/resolve.o \
	src/redis/resp.o src/redis/socket.o src/redis/stream.o \
	src/redis/stream_id.o src/redis/turn.o src/redis/url.o

# The program redstream-consumer knows no PostgreSQL.
PROGRAM_OBJS = \
	src/consumer/batch.o src/consumer/feed.o src/consumer/gather.o \
	src/consumer/handler.o src/consumer/json.o src/consumer/keeper.o \
	src/consumer/link.o src/consumer/log.o src/consumer/main.o \
	src/consumer/options.o src/consumer/output.o src/consumer/report.o \
	src/consumer/run.o src/consumer/settle.o src/consumer/tries.o \
	src/consumer/wait.o $(filter src/redis/%, $(OBJS))

# These need no PostgreSQL beforehand: the first row installs what is missing
# by itself, and works on a copy of this directory.
OWN_GOALS = check demo soak bench bench-large bench-delayer bench-bulk bench-consumer \
	bench-outage \
	unit clean help

ifneq (,$(filter $(OWN_GOALS), $(MAKECMDGOALS)))

.PHONY: $(MAKECMDGOALS)
.NOTPARALLEL:

check:
	@test/check

demo:
	@test/in-copy test/demo

soak:
	@test/in-copy test/soak/run

bench:
	@test/in-copy test/bench/run

bench-large:
	@test/in-copy test/bench/large

bench-delayer:
	@test/in-copy test/bench/delayer

bench-bulk:
	@test/in-copy test/bench/bulk

bench-consumer:
	@test/in-copy test/bench/consumer

bench-outage:
	@test/in-copy test/bench/outage

unit:
	$(MAKE) -C test/unit check

clean:
	rm -f redstream.so libredstream.a libredstream.pc $(OBJS)
	rm -f redstream-consumer $(PROGRAM_OBJS)
	rm -rf results output_iso tmp_check regression.diffs regression.out
	$(if $(wildcard test/unit/Makefile), $(MAKE) -C test/unit clean)

help:
	@echo 'make               build for the PostgreSQL of PG_CONFIG (now: $(or $(PG_CONFIG),pg_config))'
	@echo 'make install       put it where that PostgreSQL looks for extensions'
	@echo 'make installcheck  run the SQL tests against the running server'
	@echo 'make check         run every test; needs nothing beforehand'
	@echo '                   ONLY="unit regress isolation tap demo bench soak examples"  only these suites'
	@echo '                   TAP=test/t/001_*.pl                      only these TAP tests'
	@echo 'make demo          see it work; needs nothing beforehand; KEEP=1 to play on'
	@echo 'make soak          everything goes wrong, for DURATION=10m: is anything lost? SEED=n for the same faults again'
	@echo 'make bench         measure it; needs nothing beforehand; BEFORE=DIR  next to the source tree there, too'
	@echo 'make bench-large   what one transaction of 5,000,000 rows costs itself and others'
	@echo 'make bench-delayer how fast due messages are moved, and what that costs Redis'
	@echo 'make bench-bulk    what announcing many rows at once costs'
	@echo 'make bench-consumer how fast consumers read'
	@echo 'make bench-outage   what an outage costs, and how fast the spool is delivered'
	@echo 'make unit          run the unit tests here'
	@echo 'make clean         remove what was built'

# Other goals on the same line: "make clean all".
$(filter-out $(OWN_GOALS), $(MAKECMDGOALS)):
	$(MAKE) $@

else # what PGXS does

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq (,$(wildcard $(PGXS)))
$(error $(PG_CONFIG) knows no PGXS to build extensions with: install postgresql-server-dev-15, or set PG_CONFIG)
endif
ifeq (,$(shell pkg-config --version 2>/dev/null))
$(error pkg-config not found: install the package pkg-config)
endif
require = $(if $(filter 0, $(shell pkg-config --exists $(1); echo $$?)),,$(error $(1) not found: install the package $(2)))
$(call require,hiredis,libhiredis-dev)
$(call require,json-c,libjson-c-dev)

# PostgreSQL's headers as system headers, since they do not pass -Wextra; and its
# callbacks have parameters that not everyone needs.
PG_CPPFLAGS = -Isrc -isystem $(includedir_server) $(shell pkg-config --cflags hiredis json-c)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter $(if $(WERROR), -Werror)
SHLIB_LINK = $(shell pkg-config --libs hiredis json-c) -pthread

# No bitcode for the JIT compiler: it has nothing to inline here.
override with_llvm = no

REGRESS = $(patsubst sql/%.sql, %, $(filter-out sql/redstream--%, $(sort $(wildcard sql/*.sql))))
ISOLATION = $(patsubst test/specs/%.spec, %, $(sort $(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl
PROVE_FLAGS = -I test/lib

include $(PGXS)

$(OBJS) $(PROGRAM_OBJS): $(wildcard src/*.h src/*/*.h)

# PGXS builds a module or a program, not both.
all: redstream-consumer

src/consumer/options.o: override CPPFLAGS += -DREDSTREAM_VERSION='"$(EXTVERSION)"'
src/consumer/options.o: redstream.control

redstream-consumer: $(PROGRAM_OBJS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(shell pkg-config --libs hiredis) -pthread

install: install-program
uninstall: uninstall-program

.PHONY: install-program uninstall-program
install-program: redstream-consumer
	$(MKDIR_P) '$(DESTDIR)$(bindir)' '$(DESTDIR)$(mandir)/man1'
	$(INSTALL_PROGRAM) redstream-consumer '$(DESTDIR)$(bindir)/redstream-consumer'
	$(INSTALL_DATA) doc/redstream-consumer.1 '$(DESTDIR)$(mandir)/man1/redstream-consumer.1'

uninstall-program:
	rm -f '$(DESTDIR)$(bindir)/redstream-consumer' '$(DESTDIR)$(mandir)/man1/redstream-consumer.1'

endif
