"""A server as people run it, in threads of the process that checks it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn

from steerloop.serve.__main__ import listening, open_served, parse, server
from steerloop.serve.app import Served

WAIT = 60.0  # seconds for what should take less than one


class Client:
    """Plain HTTP to a server, no client library between."""

    def __init__(self, served: Served, port: int) -> None:
        self.served, self.port, self.url = served, port, f"http://127.0.0.1:{port}"

    def send(self, path: str, body: Any = None, method: str = "", **headers: str
             ) -> tuple[int, Any]:
        """Status and what came, of a body that is sent as JSON or, if bytes, as it is."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} | {
            k.replace("_", "-"): x for k, x in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path,
                           None if body is None else raw, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        kind = answer.getheader("content-type", "")
        return answer.status, json.loads(text) if kind.startswith("application/json") else text

    def socket(self, body: Any, path: str = "/v1/chat/completions") -> socket.socket:
        """A connection over which a request was sent, and nothing read."""
        raw = json.dumps(body).encode()
        there = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        head = (f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"content-length: {len(raw)}\r\n\r\n")
        there.sendall(head.encode() + raw)
        return there

    def until(self, flying: int, waiting: int = 0) -> None:
        """Wait until so many rows are in flight, and so many wait."""
        end = time.monotonic() + WAIT
        while self.served.engine.load != (flying, waiting):
            assert time.monotonic() < end, self.served.engine.load
            time.sleep(0.01)


@contextmanager
def serving(run: Path, *argv: str, app: Any = None) -> Iterator[Client]:
    """A server of a run on a free port until the block ends; `app` wraps the application."""
    args = parse([str(run), "--port", "0", *argv])
    with listening(args.host, args.port) as there:
        served = open_served(args)
        made: uvicorn.Server = server(served, args)
        if app:
            made.config.app = app(made.config.app)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [there]}, daemon=True)
        thread.start()
        try:
            yield Client(served, there.getsockname()[1])
        finally:
            made.should_exit = True
            thread.join(WAIT)
            served.engine.end()
            served.engine.join(WAIT)
    assert not thread.is_alive() and not served.engine.is_alive()
