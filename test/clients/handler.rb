# What Redstream::Clients starts: the example's consumer, with a handler that does as the test says.

require_relative "../../doc/examples/ruby/consumer"

TAG, SOCKET, STREAM, BATCH_SIZE, DIRECTORY, NAMESPACE = ARGV

def write(what, batch)
  words = [TAG, what] + batch.map { |id, payload| "#{id}:#{payload['n']}" }
  File.open("#{DIRECTORY}/journal", "a") { |journal| journal.write(words.join(" ") + "\n") }
end

def told?(what)
  File.exist?("#{DIRECTORY}/#{what}") || File.exist?("#{DIRECTORY}/#{what}.#{TAG}")
end

consumer = Consumer.new(Redis.new(path: SOCKET), STREAM, "c",
                        namespace: NAMESPACE, batch_size: BATCH_SIZE.to_i)
trap("TERM") { consumer.stop }
consumer.consume do |batch|
  write("begin", batch)
  sleep 0.02 while told?("hold")
  raise "told to fail" if told?("fail")

  write("end", batch)
end
