// A consumer of a redstream stream, to copy into a program.
//
//   const consumer = new Consumer(createClient(), 'products', 'indexer');
//   process.on('SIGTERM', () => consumer.stop());
//   await consumer.consume(async (batch) => { ... });   // returns after stop()
//
// The handler gets a batch, an array of {id, payload}, and commits it by returning. If it throws,
// or the process dies, the same batch comes again, here or in another process, so it must do no
// harm to do it twice. Of several processes with one name one works and the others stand by. One
// that hangs for longer than the lock lives (stopped, swapped out) may still be at its batch when
// the next one begins: a store that cares can skip, without an error, a batch whose last id is not
// newer than what it has.

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

const LOCK_MS = 5000;
const EXTEND_EVERY = 1000; // ms
const LONGEST_WAIT = 1000; // ms, so that stop() is noticed
const FIRST_PAUSE = 100; // ms, after a failure
const LONGEST_PAUSE = 30000;

// Registers the consumer, too: the trimmer waits for who is registered. The first write needs no memory,
// so that a Redis that is full lets the others through: consumers are what the trimmer waits for.
const TAKE = `
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
return 1`;

const EXTEND = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`;

// The list has one element, which wakes one of those who stand by.
const RELEASE = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('RPUSH', KEYS[2], '1')
return 1`;

// Only for who has the lock, and never back. An id is two numbers of 64 bits, more than a number of
// Lua holds: compared as digits.
const COMMIT = `
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
return 1`;

// What no waiting will heal. Stop the consumer; SELECT redstream.add_consumer(stream, name,
// start => id) sets the offset: to that of a message that cannot be read, which goes past it; or,
// once the copy is up to date, to '$'.
class StreamError extends Error {}

export class Consumer {
  constructor(client, stream, name, { namespace = '', batchSize = 1000, log = console.error } = {}) {
    const ns = namespace && `${namespace}:`;
    // A connection of its own, since it waits; while it is away commands fail, and do not queue up.
    this.redis = client.duplicate({ disableOfflineQueue: true });
    this.redis.on('error', (error) => log(`${name}: ${error.message}`));
    Object.assign(this, { name, batchSize, log, stopping: false });
    this.stream = `${ns}redstream:stream:${stream}`;
    this.offset = `${ns}redstream:offset:${stream}:${name}`;
    this.lock = `${ns}redstream:lock:consumer:${stream}:${name}`;
    this.notify = `${this.lock}.notify`;
    this.registry = `${ns}redstream:consumers:${stream}`;
    this.history = `${ns}redstream:history:${stream}`;
    this.holder = randomBytes(16).toString('hex');
  }

  // Ends consume() after the batch it is at.
  stop() {
    this.stopping = true;
  }

  // Hands over batches until stop(). What fails is logged and tried again, with growing pauses.
  async consume(handler) {
    let pause = FIRST_PAUSE;
    this.redis.connect().catch(() => {}); // goes on trying, and tells 'error'
    while (!this.stopping && !this.redis.isReady) await sleep(50);
    while (!this.stopping) {
      try {
        await this.turn(handler);
        pause = FIRST_PAUSE;
      } catch (error) {
        this.log(`${this.name}: ${error instanceof StreamError ? error.message : error.stack}`);
        await this.rest(pause);
        pause = Math.min(2 * pause, LONGEST_PAUSE);
      }
    }
    this.redis.destroy();
  }

  async turn(handler) {
    if (!(await this.script(TAKE, [this.lock, this.registry], LOCK_MS, this.name))) {
      return this.standBy(await this.redis.pTTL(this.lock)); // until it is released, or expires
    }
    let after, batch;
    try {
      ({ after, batch } = await this.read());
      if (batch.length > 0) {
        await this.extending(() => handler(batch));
        const last = batch.at(-1).id;
        if (!(await this.script(COMMIT, [this.lock, this.offset], last))) {
          this.log(`${this.name}: the lock was lost; batch ${last} is not committed`);
        }
      }
    } finally {
      await this.script(RELEASE, [this.lock, this.notify]);
    }
    if (batch.length === 0) {
      await this.redis.xRead({ key: this.stream, id: after }, { COUNT: 1, BLOCK: LONGEST_WAIT });
    } else if (!(await this.redis.exists(this.notify))) {
      await this.standBy(100); // somebody was woken: let them have their turn
    }
  }

  // The offset, and the batch behind it.
  async read() {
    const after = (await this.redis.get(this.offset)) ?? '0-0';
    await this.check(after);
    const batch = [];
    const messages = await this.redis.xRange(this.stream, `(${after}`, '+', { COUNT: this.batchSize });
    for (const { id, message } of messages) {
      try {
        batch.push({ id, payload: JSON.parse(message.payload) }); // rounds numbers beyond 2^53
      } catch (error) {
        if (batch.length > 0) break; // first what came before it
        throw new StreamError(`message ${id} has no payload that is JSON: ${error.message}`);
      }
    }
    return { after, batch };
  }

  // Consumers that get nothing, or not all, are not to be silent about it.
  async check(offset) {
    if (!isLess('0-0', offset)) return;
    const text = `the offset is ${offset}, but the stream`;
    if (!(await this.redis.exists(this.stream))) {
      throw new StreamError(`${text} is gone: deleted, or lost by Redis`);
    }
    const last = (await this.redis.xInfoStream(this.stream))['last-generated-id'];
    if (isLess(last, offset)) {
      throw new StreamError(`${text} has not come farther than ${last}`);
    }
    const refilled = await this.redis.hGet(this.history, 'refilled');
    if (refilled && isLess(offset, refilled)) {
      throw new StreamError(`${text} was deleted and filled again, from ${refilled} on`);
    }
  }

  // Extends the lock meanwhile, by a timer, which the handler must let run: it awaits what it does.
  async extending(work) {
    const timer = setInterval(() => {
      this.script(EXTEND, [this.lock], LOCK_MS).catch(() => {}); // the commit will tell
    }, EXTEND_EVERY);
    try {
      await work();
    } finally {
      clearInterval(timer);
    }
  }

  // Until the lock is released, for so long at most.
  async standBy(ms) {
    await this.redis.brPop(this.notify, Math.min(Math.max(ms, 50), LONGEST_WAIT) / 1000);
  }

  script(text, keys, ...rest) {
    return this.redis.eval(text, { keys, arguments: [this.holder, ...rest.map(String)] });
  }

  async rest(ms) {
    const end = Date.now() + ms;
    while (!this.stopping && Date.now() < end) await sleep(50);
  }
}

function isLess(one, other) {
  const [a, b] = [one, other].map((id) => id.split('-').map(BigInt));
  return a[0] < b[0] || (a[0] === b[0] && (a[1] ?? 0n) < (b[1] ?? 0n));
}
