"""Google Cloud Storage on this machine: an emulator, and in front of it what goes wrong on a network.

A process that has the environment variable STORAGE_EMULATOR_HOST and no credentials takes it for the real one.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


@dataclasses.dataclass
class Fault:
    """What becomes of requests.

    Attributes:
        method: GET, POST, PUT or DELETE.
        part: what their path holds.
        kind: a status; `broken` (the connection ends without an answer) or `short` (in the middle of it).
        times: how many of them.
        after: how many go well before.
    """

    method: str
    part: str
    kind: str
    times: int = 1
    after: int = 0


class Store:
    """The emulator's content, the faults that wait, and the requests that came."""

    def __init__(self) -> None:
        self.content = Storage(use_memory_fs=True, data_dir=None)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str]] = []
        self.lock = threading.RLock()
        self.url = ""

    def put(self, name: str, data: bytes) -> None:
        """Stores an object in the bucket `bucket`, by the client's own upload."""
        self.bucket().blob(name).upload_from_string(data)

    def get(self, name: str) -> bytes:
        """Its content."""
        return self.bucket().blob(name).download_as_bytes()

    def names(self, prefix: str = "") -> list[str]:
        """The objects of the bucket."""
        return [blob.name for blob in self.bucket().list_blobs(prefix=prefix)]

    def bucket(self) -> Any:
        """The bucket `bucket`."""
        from google.cloud import storage

        return storage.Client.create_anonymous_client().bucket("bucket")

    def fault(self, method: str, path: str) -> str | None:
        """The fault of a request, which is used up by it."""
        for fault in self.faults:
            if fault.method == method and fault.part in path and fault.times:
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault.kind
        return None


class _Front(RequestHandler):
    def __init__(self, store: Store, *args: Any) -> None:
        self.store = store
        super().__init__(store.content, *args)

    def _handle(self, method: str) -> None:
        with self.store.lock:
            self.store.requests.append((method, self.path, self.headers.get("Range", "")))
            kind = self.store.fault(method, self.path)
            if kind is None:
                getattr(super(), f"do_{method}")()
                return
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if kind == "short":
                socket, self.wfile = self.wfile, io.BytesIO()
                getattr(super(), f"do_{method}")()
                answer = self.wfile.getvalue()
                self.wfile = socket
                self.wfile.write(answer[: len(answer) - max(1, int(len(answer) * 0.3))])
            elif kind != "broken":
                body = json.dumps({"error": {"code": int(kind), "message": f"fault {kind}"}}).encode()
                self.send_response(int(kind))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
        self.close_connection = True

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")


@contextmanager
def serving() -> Iterator[Store]:
    """A store with an empty bucket, `bucket`, on a free port of this machine."""
    store = Store()
    create_bucket("bucket", store.content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Front, store))
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
