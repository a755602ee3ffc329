// keep_copy.mjs DIRECTORY: keeps a copy of the table products, a file for each row.
//
// The directory stands for whatever it is that you keep up to date. A message only says which row
// has changed: the row is read from the table as it is now, and is gone if it is not there any
// more. So it does no harm to do a batch twice.

import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { createClient } from 'redis';
import { Consumer } from './consumer.mjs';

const directory = process.argv[2];
const slowness = 1000 * (process.env.SECONDS_PER_ROW ?? 0); // to have something to interrupt

const database = new pg.Pool(); // PGHOST and so on
// Without this, a connection that is lost while nobody uses it ends the process. The pool makes another.
database.on('error', (error) => console.error(error.message));

async function keepCopy(batch) {
  const ids = [...new Set(batch.map(({ payload }) => payload.id))];
  console.log(`works on ${batch.length} messages from ${batch[0].id}`);
  // No transaction: the query sees what is committed by now. A snapshot older than the message
  // would not do.
  const result = await database.query(
    'SELECT id, row_to_json(products)::text AS row FROM products WHERE id = ANY ($1)', [ids]);
  const rows = new Map(result.rows.map(({ id, row }) => [Number(id), row]));
  for (const id of ids) {
    const file = join(directory, String(id));
    if (rows.has(id)) await writeFile(file, `${rows.get(id)}\n`);
    else await rm(file, { force: true });
    await sleep(slowness);
  }
  console.log('done');
}

const url = new URL(process.env.REDSTREAM_URL);
const client = createClient(
  url.protocol === 'unix:' ? { socket: { path: url.pathname } } : { url: url.href });
const consumer = new Consumer(client, 'products', 'copy');
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => consumer.stop());
await consumer.consume(keepCopy);
await database.end();
