"""What Redstream::Clients starts: the example's consumer, with a handler that does as the test says."""
import os
import signal
import sys
import time

import redis

tag, socket, stream, batch_size, directory, namespace = sys.argv[1:]
sys.path.insert(0, "doc/examples/python")
from consumer import Consumer  # noqa: E402


def write(what, batch):
    with open(f"{directory}/journal", "a") as journal:
        words = [tag, what] + [f"{id}:{payload['n']}" for id, payload in batch]
        journal.write(" ".join(words) + "\n")


def is_told(what):
    return os.path.exists(f"{directory}/{what}") or os.path.exists(f"{directory}/{what}.{tag}")


def handler(batch):
    write("begin", batch)
    while is_told("hold"):
        time.sleep(0.02)
    if is_told("fail"):
        raise RuntimeError("told to fail")
    write("end", batch)


client = redis.Redis(unix_socket_path=socket, socket_timeout=5)
consumer = Consumer(client, stream, "c", namespace=namespace, batch_size=int(batch_size))
signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
consumer.consume(handler)
