// What Redstream::Clients starts: the example's consumer, with a handler that does as the test says.

import { appendFileSync, existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { Consumer } from '../../doc/examples/node/consumer.mjs';

const { createClient } = createRequire(new URL('../../doc/examples/node/', import.meta.url))('redis');
const [tag, path, stream, batchSize, directory, namespace] = process.argv.slice(2);

function write(what, batch) {
  const words = batch.map(({ id, payload }) => `${id}:${payload.n}`);
  appendFileSync(`${directory}/journal`, `${[tag, what, ...words].join(' ')}\n`);
}

function isTold(what) {
  return existsSync(`${directory}/${what}`) || existsSync(`${directory}/${what}.${tag}`);
}

const client = createClient({ socket: { path } });
const consumer = new Consumer(client, stream, 'c', { namespace, batchSize: Number(batchSize) });
process.on('SIGTERM', () => consumer.stop());
await consumer.consume(async (batch) => {
  write('begin', batch);
  while (isTold('hold')) await sleep(20);
  if (isTold('fail')) throw new Error('told to fail');
  write('end', batch);
});
