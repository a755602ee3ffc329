# A consumer of a redstream stream, to copy into a program.
#
#   consumer = Consumer.new(Redis.new, "products", "indexer")
#   trap("TERM") { consumer.stop }
#   consumer.consume { |batch| ... }    # returns after stop
#
# The block gets a batch, an array of [id, payload], and commits it by returning. If it raises, or
# the process dies, the same batch comes again, here or in another process, so it must do no harm to
# do it twice. Of several processes with one name one works and the others stand by. One that hangs
# for longer than the lock lives (stopped, swapped out) may still be at its batch when the next one
# begins: a store that cares can skip, without an error, a batch whose last id is not newer than what
# it has.

require "json"
require "logger"
require "redis"
require "securerandom"

class Consumer
  LOCK_MS = 5000
  EXTEND_EVERY = 1 # second, of the 5 that the lock lives
  LONGEST_WAIT = 1 # second, so that stop is noticed
  FIRST_PAUSE = 0.1 # second, after a failure
  LONGEST_PAUSE = 30

  # Registers the consumer, too: the trimmer waits for who is registered. The first write needs no memory,
  # so that a Redis that is full lets the others through: consumers are what the trimmer waits for.
  TAKE = <<~LUA
    local holder = redis.call('GET', KEYS[1])
    if holder and holder ~= ARGV[1] then return 0 end
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    redis.call('SADD', KEYS[2], ARGV[3])
    return 1
  LUA

  EXTEND = <<~LUA
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])
  LUA

  # The list has one element, which wakes one of those who stand by.
  RELEASE = <<~LUA
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('RPUSH', KEYS[2], '1')
    return 1
  LUA

  # Only for who has the lock, and never back. An id is two numbers of 64 bits, more than a number
  # of Lua holds: compared as digits.
  COMMIT = <<~LUA
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
    return 1
  LUA

  # What no waiting will heal. Stop the consumer; SELECT redstream.add_consumer(stream, name,
  # start => id) sets the offset: to that of a message that cannot be read, which goes past it; or,
  # once the copy is up to date, to '$'.
  class StreamError < StandardError; end

  def initialize(redis, stream, name, namespace: "", batch_size: 1000,
                 logger: Logger.new($stderr))
    ns = namespace.empty? ? "" : "#{namespace}:"
    @redis, @extender = redis.dup, redis.dup # connections of its own: they wait
    @name, @batch_size, @logger = name, batch_size, logger
    @stream = "#{ns}redstream:stream:#{stream}"
    @offset = "#{ns}redstream:offset:#{stream}:#{name}"
    @lock = "#{ns}redstream:lock:consumer:#{stream}:#{name}"
    @notify = "#{@lock}.notify"
    @registry = "#{ns}redstream:consumers:#{stream}"
    @history = "#{ns}redstream:history:#{stream}"
    @holder = SecureRandom.hex(16)
    @stopping = false
  end

  # Ends consume after the batch it is at. May be called from a trap or another thread.
  def stop
    @stopping = true
  end

  # Hands over batches until stop. What fails is logged and tried again, with growing pauses.
  def consume(&handler)
    pause = FIRST_PAUSE
    until @stopping
      begin
        turn(&handler)
        pause = FIRST_PAUSE
        next
      rescue Redis::BaseError, StreamError => e
        @logger.error("#{@name}: #{e.message}")
      rescue StandardError => e
        @logger.error("#{@name}: the batch is not committed and will come again: #{e.full_message}")
      end
      rest(pause)
      pause = [2 * pause, LONGEST_PAUSE].min
    end
  end

  private

  def turn
    if @redis.eval(TAKE, [@lock, @registry], [@holder, LOCK_MS, @name]) == 0
      return stand_by(@redis.pttl(@lock) / 1000.0) # until it is released, or expires
    end

    begin
      after, batch = read
      unless batch.empty?
        extending { yield batch }
        if @redis.eval(COMMIT, [@lock, @offset], [@holder, batch.last[0]]) == 0
          @logger.error("#{@name}: the lock was lost; batch #{batch.last[0]} is not committed")
        end
      end
    ensure
      @redis.eval(RELEASE, [@lock, @notify], [@holder])
    end
    if batch.empty?
      @redis.xread(@stream, after, count: 1, block: LONGEST_WAIT * 1000)
    elsif !@redis.exists?(@notify) # somebody was woken: let them have their turn
      stand_by(0.1)
    end
  end

  # The offset, and the batch behind it.
  def read
    offset = @redis.get(@offset) || "0-0"
    check(offset)
    batch = []
    @redis.xrange(@stream, "(#{offset}", count: @batch_size).each do |id, fields|
      batch << [id, parse(fields["payload"])]
    rescue JSON::ParserError => e
      break unless batch.empty? # first what came before it

      raise StreamError, "message #{id} has no payload that is JSON: #{e.message}"
    end
    [offset, batch]
  end

  def parse(payload)
    text = String.new(payload || "", encoding: Encoding::UTF_8)
    raise JSON::ParserError, "not UTF-8" unless text.valid_encoding?

    JSON.parse(text)
  end

  # Consumers that get nothing, or not all, are not to be silent about it.
  def check(offset)
    return unless less?("0-0", offset)

    text = "the offset is #{offset}, but the stream"
    raise StreamError, "#{text} is gone: deleted, or lost by Redis" unless @redis.exists?(@stream)

    last = @redis.xinfo(:stream, @stream)["last-generated-id"]
    raise StreamError, "#{text} has not come farther than #{last}" if less?(last, offset)

    refilled = @redis.hget(@history, "refilled")
    return unless refilled && less?(offset, refilled)

    raise StreamError, "#{text} was deleted and filled again, from #{refilled} on"
  end

  def less?(one, other)
    a, b = [one, other].map { |id| id.split("-").map(&:to_i) }
    a[0] < b[0] || (a[0] == b[0] && a[1].to_i < b[1].to_i)
  end

  # Extends the lock meanwhile, in a thread, which the handler must let run.
  def extending
    mutex, finished, done = Mutex.new, ConditionVariable.new, false
    thread = Thread.new do
      mutex.synchronize do
        until done
          finished.wait(mutex, EXTEND_EVERY)
          extend_lock unless done
        end
      end
    end
    yield
  ensure
    mutex.synchronize { done = true; finished.signal }
    thread.join
  end

  def extend_lock
    @extender.eval(EXTEND, [@lock], [@holder, LOCK_MS])
  rescue Redis::BaseError
    # the commit will tell whether the lock is lost
  end

  # Until the lock is released, for so long at most.
  def stand_by(seconds)
    @redis.brpop(@notify, timeout: seconds.clamp(0.05, LONGEST_WAIT))
  end

  def rest(seconds)
    finish = now + seconds
    sleep 0.05 until @stopping || now >= finish
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
