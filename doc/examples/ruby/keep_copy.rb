# keep_copy.rb DIRECTORY: keeps a copy of the table products, a file for each row.
#
# The directory stands for whatever it is that you keep up to date. A message only says which row
# has changed: the row is read from the table as it is now, and is gone if it is not there any more.
# So it does no harm to do a batch twice.

require "pg"
require "redis"
require_relative "consumer"

directory = ARGV.fetch(0)
slowness = ENV.fetch("SECONDS_PER_ROW", 0).to_f # to have something to interrupt
$stdout.sync = true

consumer = Consumer.new(Redis.new(url: ENV.fetch("REDSTREAM_URL")), "products", "copy")
%w[TERM INT].each { |signal| trap(signal) { consumer.stop } }
consumer.consume do |batch|
  ids = batch.map { |_, payload| payload["id"] }.uniq
  puts "works on #{batch.size} messages from #{batch.first[0]}"
  # Connects for each batch, to PGHOST and so on, so that a server that was restarted is no case of
  # its own. The query sees what is committed by now: a snapshot older than the messages would not do.
  query = "SELECT id, row_to_json(products)::text FROM products WHERE id = ANY ($1)"
  rows = PG.connect { |database| database.exec_params(query, [PG::TextEncoder::Array.new.encode(ids)]).values.to_h }
  ids.each do |id|
    file = File.join(directory, id.to_s)
    if rows[id.to_s]
      File.write(file, rows[id.to_s] + "\n")
    elsif File.exist?(file)
      File.delete(file)
    end
    sleep slowness
  end
  puts "done"
end
