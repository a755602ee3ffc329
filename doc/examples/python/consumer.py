"""A consumer of a redstream stream, to copy into a program.

    consumer = Consumer(redis.Redis(socket_timeout=5), "products", "indexer")
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    consumer.consume(handler)       # returns after stop()

The handler gets a batch, a list of (id, payload), and commits it by returning. If it raises, or the
process dies, the same batch comes again, here or in another process, so it must do no harm to do it
twice. Of several processes with one name one works and the others stand by. One that hangs for
longer than the lock lives (stopped, swapped out) may still be at its batch when the next one
begins: a store that cares can skip, without an error, a batch whose last id is not newer than what
it has.
"""
import json
import logging
import secrets
import threading
import time
from contextlib import contextmanager, suppress

import redis

LOCK_MS = 5000
EXTEND_EVERY = 1  # second, of the 5 that the lock lives
LONGEST_WAIT = 1  # second, so that stop() is noticed; less than the client's socket_timeout
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30  # seconds, after a failure

log = logging.getLogger("redstream")

# Registers the consumer, too: the trimmer waits for who is registered. The first write needs no memory,
# so that a Redis that is full lets the others through: consumers are what the trimmer waits for.
TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
return 1"""

EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])"""

# The list has one element, which wakes one of those who stand by.
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('RPUSH', KEYS[2], '1')
return 1"""

# Only for who has the lock, and never back. An id is two numbers of 64 bits, more than a number of
# Lua holds: compared as digits.
COMMIT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local function parts(id)
  local ms, seq = string.match(id, '^0*(%d*)%-?0*(%d*)$')
  return ms or '', seq or ''
end
local function less(a, b) return #a < #b or (#a == #b and a < b) end
redis.call('PEXPIRE', KEYS[1], 5000) -- needs no memory, as above
local old_ms, old_seq = parts(redis.call('GET', KEYS[2]) or '')
local ms, seq = parts(ARGV[2])
if less(old_ms, ms) or (old_ms == ms and less(old_seq, seq)) then
  redis.call('SET', KEYS[2], ARGV[2])
end
return 1"""


class StreamError(Exception):
    """What no waiting will heal. Stop the consumer; SELECT redstream.add_consumer(stream, name,
    start => id) sets the offset: to that of a message that cannot be read, which goes past it; or,
    once the copy is up to date, to '$'."""


def number(id):
    ms, _, seq = id.partition(b"-")
    return int(ms), int(seq or 0)


class Consumer:
    def __init__(self, client, stream, name, namespace="", batch_size=1000):
        """The client must not have decode_responses. It may be used elsewhere, too."""
        ns = namespace and namespace + ":"
        self.redis, self.name, self.batch_size = client, name, batch_size
        self.stream = f"{ns}redstream:stream:{stream}"
        self.offset = f"{ns}redstream:offset:{stream}:{name}"
        self.lock = f"{ns}redstream:lock:consumer:{stream}:{name}"
        self.notify = self.lock + ".notify"
        self.registry = f"{ns}redstream:consumers:{stream}"
        self.history = f"{ns}redstream:history:{stream}"
        self.holder = secrets.token_hex(16)
        self.stopping = False

    def stop(self):
        """Ends consume() after the batch it is at. For signal handlers and other threads, too."""
        self.stopping = True

    def consume(self, handler):
        """Hands over batches until stop(). What fails is logged and tried again, with growing pauses."""
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                self.turn(handler)
                pause = FIRST_PAUSE
            except (redis.RedisError, StreamError) as error:
                log.error("%s: %s", self.name, error)
            except Exception:
                log.exception("%s: the batch is not committed and will come again", self.name)
            else:
                continue
            self.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def turn(self, handler):
        if not self.redis.eval(TAKE, 2, self.lock, self.registry, self.holder, LOCK_MS, self.name):
            self.stand_by(self.redis.pttl(self.lock) / 1000)  # until it is released, or expires
            return
        try:
            after, batch = self.read()
            if batch:
                with self.extending():
                    handler(batch)
                last = batch[-1][0]
                if not self.redis.eval(COMMIT, 2, self.lock, self.offset, self.holder, last):
                    log.error("%s: the lock was lost; batch %s is not committed", self.name, last)
        finally:
            self.redis.eval(RELEASE, 2, self.lock, self.notify, self.holder)
        if not batch:
            self.redis.xread({self.stream: after}, count=1, block=LONGEST_WAIT * 1000)
        elif not self.redis.exists(self.notify):  # somebody was woken: let them have their turn
            self.stand_by(0.1)

    def read(self):
        """The offset, and the batch behind it."""
        offset = self.redis.get(self.offset) or b"0-0"
        self.check(offset)
        batch = []
        for id, fields in self.redis.xrange(self.stream, b"(" + offset, count=self.batch_size):
            try:
                batch.append((id.decode(), json.loads(fields[b"payload"])))
            except (KeyError, ValueError, RecursionError) as error:
                if batch:
                    break  # first what came before it
                text = f"message {id.decode()} has no payload that is JSON: {error!r}"
                raise StreamError(text) from error
        return offset, batch

    def check(self, offset):
        """Consumers that get nothing, or not all, are not to be silent about it."""
        if number(offset) == (0, 0):
            return
        text = f"the offset is {offset.decode()}, but the stream "
        if not self.redis.exists(self.stream):
            raise StreamError(text + "is gone: deleted, or lost by Redis")
        last = self.redis.xinfo_stream(self.stream)["last-generated-id"]
        if number(last) < number(offset):
            raise StreamError(text + f"has not come farther than {last.decode()}")
        refilled = self.redis.hget(self.history, "refilled")
        if refilled and number(offset) < number(refilled):
            raise StreamError(text + f"was deleted and filled again, from {refilled.decode()} on")

    @contextmanager
    def extending(self):
        """Extends the lock meanwhile, in a thread, which the handler must let run."""
        done = threading.Event()

        def extend():
            while not done.wait(EXTEND_EVERY):
                with suppress(redis.RedisError):  # the commit will tell whether the lock is lost
                    self.redis.eval(EXTEND, 1, self.lock, self.holder, LOCK_MS)

        thread = threading.Thread(target=extend, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def stand_by(self, seconds):
        """Until the lock is released, for so long at most."""
        self.redis.brpop(self.notify, timeout=min(max(seconds, 0.05), LONGEST_WAIT))

    def sleep(self, seconds):
        end = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            time.sleep(0.05)
