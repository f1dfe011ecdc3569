"""An HTTP proxy on loopback that passes requests to an S3 store and spoils some of the answers.

Signatures keep working: they cover the Host header that the client sent, which is passed on as it is.
Which request is spoilt depends on the seed, the request and how often it came, not on the order of
threads; so a failure can be repeated with the seed that the test prints.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "error_500",
    "slow_down",
    "reset_before",
    "reset_amid",
    "lost_answer",
    "truncated",
    "flipped",
    "slow",
    "stall",
]
"""Before the store sees the request: `error_500`, `slow_down` (503), `reset_before`.
After it did: `lost_answer`, `reset_amid` half of it, `truncated` (an orderly end after half of the
bytes that Content-Length promises), `flipped` (one bit of an object's bytes, up or down, each time another;
a listing's XML is spared: nothing could notice), `slow` (in 20 pieces), `stall` (5 s of nothing)."""

_NOT_FORWARDED = frozenset({"expect", "connection", "keep-alive"})
_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>"


@dataclass(frozen=True)
class Request:
    """What a rule may look at."""

    method: str
    path: str
    """With the query, as sent."""
    span: str
    """The Range header, or ""."""

    @property
    def is_of_object(self) -> bool:
        """Say whether object bytes travel, rather than a listing."""
        return self.method in ("GET", "PUT") and "list-type=" not in self.path


@dataclass(kw_only=True)
class FaultProxy:
    """Rules that may be changed while requests come, and counts of what was done."""

    target: str
    """The store's URL."""
    seed: int
    rates: Mapping[Fault, float] = field(default_factory=dict[Fault, float])
    """The share of requests that each fault befalls; their sum is at most 1."""
    script: list[Fault] = field(default_factory=list[Fault])
    """Befall the next requests that `concerns` names, one each, before any rate."""
    concerns: Callable[[Request], bool] = lambda request: True
    stall_s: float = 5.0
    slow_s: float = 0.5
    url: str = ""
    """Where the proxy listens."""
    injected: Counter[str] = field(default_factory=Counter[str])
    num_requests: int = 0
    _seen: Counter[Request] = field(default_factory=Counter[Request])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, request: Request) -> Fault | None:
        """Draw what befalls a request, and count it."""
        with self._lock:
            self.num_requests += 1
            occurrence = self._seen[request] = self._seen[request] + 1
            chosen = self._draw(request, occurrence) if self.concerns(request) else None
            if chosen is not None:
                self.injected[chosen] += 1
            return chosen

    def _draw(self, request: Request, occurrence: int) -> Fault | None:
        if self.script:
            return self.script.pop(0)
        drawn = random.Random(f"{self.seed} {request} {occurrence}").random()
        for fault, rate in self.rates.items():
            if drawn < rate:
                return None if fault == "flipped" and not request.is_of_object else fault
            drawn -= rate
        return None

    def __str__(self) -> str:
        return f"fault proxy, seed {self.seed}: {self.num_requests} requests, {dict(self.injected)}"


@contextmanager
def fault_proxy(proxy: FaultProxy) -> Generator[FaultProxy]:
    """Run a proxy; its `url` is set."""
    server = _Server(("127.0.0.1", 0), partial(_Handler, proxy))
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05))
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        print(proxy)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Either end may hang up at any time, and does so here."""


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def __init__(self, proxy: FaultProxy, *arguments: object) -> None:
        self._proxy = proxy
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the counts tell."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers.get("Range") or "")
        fault = self._proxy.choose(request)
        if fault == "error_500":
            return self._answer_error(500, "InternalError")
        if fault == "slow_down":
            return self._answer_error(503, "SlowDown")
        if fault == "reset_before":
            return self._reset()
        if fault == "flipped" and self.command == "PUT":
            body = self._flip(body)
        try:
            status, headers, content = self._ask_store(body)
        except (OSError, http.client.HTTPException):
            return self._reset()  # As the store itself does when it dies.
        if fault == "lost_answer":
            return self._reset()
        if fault == "flipped" and self.command == "GET" and status < 300:
            content = self._flip(content)
        if fault == "stall":
            time.sleep(self._proxy.stall_s)
        return self._answer(status, headers, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _ask_store(self, body: bytes) -> tuple[int, Sequence[tuple[str, str]], bytes]:
        store = http.client.HTTPConnection(urlsplit(self._proxy.target).netloc, timeout=60)
        try:
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _NOT_FORWARDED:
                    store.putheader(name, value)
            store.endheaders(body)
            answer = store.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            store.close()

    def _answer(
        self, status: int, headers: Sequence[tuple[str, str]], content: bytes, fault: Fault | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", dict(headers).get("Content-Length", "0"))
        elif status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in ("reset_amid", "truncated"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "reset_amid":
                return self._reset()
            self.close_connection = True
            return None
        if fault == "slow":
            piece = max(1, -(-len(content) // 20))
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                time.sleep(self._proxy.slow_s / 20)
        else:
            self.wfile.write(content)
        return None

    def _answer_error(self, status: int, code: str) -> None:
        content = b"" if self.command == "HEAD" else _ERROR.format(code=code).encode()
        self._answer(status, [("Content-Type", "application/xml")], content, None)

    def _flip(self, content: bytes) -> bytes:
        flipped = bytearray(content)
        if flipped:
            flipped[self._proxy.num_requests % len(flipped)] ^= 0x10
        return bytes(flipped)

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        # Not shutdown: that would send FIN first.
        self.connection.close()
