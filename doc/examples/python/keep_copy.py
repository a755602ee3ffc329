"""keep_copy.py DIRECTORY: keeps a copy of the table products, a file for each row.

The directory stands for whatever it is that you keep up to date. A message only says which row has
changed: the row is read from the table as it is now, and is gone if it is not there any more. So it
does no harm to do a batch twice.
"""
import logging
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import redis

from consumer import Consumer

directory = Path(sys.argv[1])
slowness = float(os.environ.get("SECONDS_PER_ROW", 0))  # to have something to interrupt


def keep_copy(batch):
    ids = list({payload["id"] for _, payload in batch})
    print(f"works on {len(batch)} messages from {batch[0][0]}", flush=True)
    # Connects for each batch, to PGHOST and so on, so that a server that was restarted is no case of its
    # own. The query sees what is committed by now: a snapshot older than the messages would not do.
    with closing(psycopg2.connect("")) as database, database.cursor() as cursor:
        query = "SELECT id, row_to_json(products)::text FROM products WHERE id = ANY (%s)"
        cursor.execute(query, (ids,))
        rows = dict(cursor)
    for id in ids:
        file = directory / str(id)
        if id in rows:
            file.write_text(rows[id] + "\n")
        else:
            file.unlink(missing_ok=True)
        time.sleep(slowness)
    print("done", flush=True)


logging.basicConfig(format="%(message)s")
client = redis.Redis.from_url(os.environ["REDSTREAM_URL"], socket_timeout=5)
consumer = Consumer(client, "products", "copy")
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: consumer.stop())
consumer.consume(keep_copy)
