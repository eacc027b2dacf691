"""A web server on this machine that misbehaves as told: cuts connections, ignores ranges, sends another file."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does; changed by a test at any time.

    Attributes:
        data: The file.
        cut_after: Bytes of each answer after which the connection is closed; as many answers as there are numbers.
        ranges: Whether it answers requests for a part.
        tags: Whether it sends an ETag.
        status: Sent in place of the file, as many times as there are numbers.
        requests: Range headers that came in, None for whole files.
    """

    data: bytes
    cut_after: list[int] = field(default_factory=list)
    ranges: bool = True
    tags: bool = True
    status: list[int] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'


def handler(behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.requests.append(wanted)
            if behaviour.status:
                self.send_error(behaviour.status.pop(0))
                return
            start = self.start_of(wanted)
            if start is not None and start >= len(behaviour.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(behaviour.data)}")
                self.end_headers()
                return
            self.send_response(200 if start is None else 206)
            body = behaviour.data[start or 0 :]
            if start is not None:
                self.send_header("Content-Range", f"bytes {start}-{len(behaviour.data) - 1}/{len(behaviour.data)}")
            self.send_header("Content-Length", str(len(body)))
            if behaviour.tags:
                self.send_header("ETag", behaviour.tag)
            self.end_headers()
            self.wfile.write(body[: behaviour.cut_after.pop(0)] if behaviour.cut_after else body)

        def start_of(self, wanted: str | None) -> int | None:
            if wanted is None or not behaviour.ranges:
                return None
            if self.headers.get("If-Range", behaviour.tag) != behaviour.tag:
                return None
            return int(wanted.removeprefix("bytes=").partition("-")[0])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Serve on this machine while the block runs; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(behaviour))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
