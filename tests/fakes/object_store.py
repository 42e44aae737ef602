"""Cloud Storage on this machine: an emulator, and a front before it that breaks what it is told to
break.

The client libraries find it by STORAGE_EMULATOR_HOST. The front adds what the emulator lacks and
the libraries rely on: 416 beyond an object's end, and 404 for a generation that is gone and for
buckets that are not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator.server import create_server

BUCKET = "some-bucket"


@dataclasses.dataclass
class Fault:
    """What becomes of the next `times` requests of this kind.

    Attributes:
        what: a status; `"broken"`, the connection is cut in the middle of the content, of the
            request's if it has one, else of the answer's; `"lost"`, the request is carried out and
            its answer never sent; `"short"`, an answer that is whole by its own headers, with half
            of the bytes that were asked for; or `"changed"`, one with a byte changed.
        on: a regular expression for `METHOD path?query`, with nothing quoted.
        times: how many requests.
        after: how many of them pass before.
    """

    what: int | str
    on: str
    times: int = 1
    after: int = 0


class Store:
    """The store: its objects, and what is to be broken.

    Attributes:
        host: where the front listens.
        faults: what is still to be broken.
        requests: what has been asked for, as `METHOD path?query`.
        broken: what has been broken, each with the request.
    """

    def __init__(self, emulator: int, host: str) -> None:
        self._emulator = emulator
        self.host = host
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.broken: list[tuple[int | str, str]] = []
        self._lock = threading.Lock()

    def noted(self, request: str) -> int | str | None:
        """Notes a request; returns what is to become of it, if not what it asks for."""
        with self._lock:
            self.requests.append(request)
            fault = next(
                (fault for fault in self.faults if fault.times and re.search(fault.on, request)),
                None,
            )
            if fault is None:
                return None
            if fault.after:
                fault.after -= 1
                return None
            fault.times -= 1
            self.broken.append((fault.what, request))
            return fault.what

    def asked(self, on: str) -> list[str]:
        """The requests that match a regular expression."""
        return [request for request in self.requests if re.search(on, request)]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, bytes]:
        """Asks the emulator itself: status, headers, content."""
        connection = http.client.HTTPConnection("127.0.0.1", self._emulator, timeout=30)
        with contextlib.closing(connection):
            # The host is where objects say that they are.
            connection.request(method, path, body, {"Host": self.host, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def put(self, name: str, data: bytes) -> None:
        """Stores an object."""
        path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, safe='')}"
        status, _, _ = self.ask("POST", path, data, {"Content-Type": "application/octet-stream"})
        assert status == 200

    def described(self, name: str) -> dict[str, Any] | None:
        """An object's metadata, or None where there is none."""
        status, _, content = self.ask("GET", f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}")
        return json.loads(content) if status == 200 else None

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """The objects below a prefix, by what follows it."""
        _, _, content = self.ask("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quote(prefix, safe='')}")
        names = [item["name"] for item in json.loads(content)["items"]]
        return {
            name[len(prefix) :]: self.ask("GET", f"/{BUCKET}/{quote(name)}")[2] for name in names
        }


class _Front(BaseHTTPRequestHandler):
    store: Store

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.store.noted(f"{self.command} {unquote(self.path)}")
        if fault == "broken" and length:
            self.rfile.read(length // 2)
            self._cut()
            return
        body = self._body(length)
        if isinstance(fault, int):
            self._answer(
                fault,
                json.dumps(
                    {
                        "error": {
                            "code": fault,
                            "message": "not now" if fault != 403 else "no permission",
                        }
                    }
                ).encode(),
            )
        else:
            self._forward(body, fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes, fault: str | None) -> None:
        if (bucket := re.search(r"/b/([^/?]+)", self.path)) and bucket[1] != BUCKET:
            self._answer(
                404, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}'
            )
            return
        hidden = ("host", "connection", "transfer-encoding", "content-length")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in hidden}
        url, range_ = urlsplit(self.path), self.headers.get("Range", "")
        wanted = parse_qs(url.query).get("generation")
        if self.command == "GET" and (wanted or range_):
            # Its metadata stands at the same path of the other interface.
            _, _, content = self.store.ask("GET", url.path.replace("/download/", "/", 1))
            found = json.loads(content or b"{}")
            if wanted and found.get("generation") not in (None, wanted[0]):
                self._answer(404, b'{"error": {"code": 404, "message": "No such object"}}')
                return
            start = re.match(r"bytes=(\d+)-", range_)
            if start and found and int(start[1]) >= int(found["size"]):
                self._answer(416, b"")
                return
        status, answered, content = self.store.ask(
            self.command, self.path, body if body or self.command != "GET" else None, headers
        )
        kept = {
            key: value
            for key, value in answered.items()
            if key.lower() not in ("content-length", "server", "date", "connection")
        }
        if fault == "lost":
            self._cut()
        elif fault == "short":
            sizes = re.match(r"bytes (\d+)-\d+/(\d+)", kept.get("Content-Range", ""))
            content = content[: len(content) // 2]
            if sizes:
                kept["Content-Range"] = (
                    f"bytes {sizes[1]}-{int(sizes[1]) + len(content) - 1}/{sizes[2]}"
                )
            self._answer(status, content, kept)
        elif fault == "changed":
            self._answer(status, content[:-1] + bytes([content[-1] ^ 1]), kept)
        elif fault == "broken":
            self._answer(status, content, kept, sent=len(content) // 2)
            self._cut()
        else:
            self._answer(status, content, kept)

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {"Content-Type": "application/json"}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])
        self.wfile.flush()

    def _cut(self) -> None:
        """Resets the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running() -> Iterator[Store]:
    """A store with an empty bucket."""
    port = _free_port()
    emulator = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    emulator.start()
    front = ThreadingHTTPServer(("127.0.0.1", 0), _Front)
    store = _Front.store = Store(port, f"127.0.0.1:{front.server_address[1]}")
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        front.shutdown()
        front.server_close()
        emulator.stop()
