"""A proxy in front of an object store that fails the way networks and servers do, on command."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from stand_in import Server, serving

# What can happen to one request.
ERROR_500, ERROR_503, RESET, CUT, DRIP, STALE, ANSWER_LOST = FAULTS = (
    "500",
    "503",
    "connection reset",
    "body cut short",
    "slow drip",
    "stale listing",
    "answer lost",
)
FORBIDDEN = "403"

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
_DRIP_SECONDS = 1.0


@dataclass
class FaultProxy:
    """What the proxy is to do, and what it has done. Faults are off until there is a rate."""

    url: str
    """Of the proxy."""
    seed: int = 0
    rate: float = 0.0
    """The share of requests that meet a fault."""
    kinds: tuple[str, ...] = FAULTS
    most: int | None = None
    """So many faults in all; None for any number."""
    on_request: object = None
    """Called with (method, path) before a request is passed on, in the request's own thread; may block."""
    done: Counter = field(default_factory=Counter)
    """Faults so far, by kind."""
    requests: int = 0

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self.listings = {}

    def reseed(self, seed, rate=0.0, kinds=FAULTS, most=None):
        """Start anew."""
        with self._lock:
            self.seed, self.rate, self.kinds, self.most = seed, rate, kinds, most
            self.done, self.requests, self.on_request = Counter(), 0, None
            self._random = random.Random(seed)
            self.listings.clear()

    def fault_for(self, method, path):
        """Decide what happens to a request, or None."""
        with self._lock:
            self.requests += 1
            strikes = self._random.random() < self.rate
            kind = self._random.choice(self.kinds)
            possible = {
                CUT: method == "GET",
                DRIP: method == "GET",
                STALE: method == "GET" and path in self.listings,
                ANSWER_LOST: method in ("PUT", "POST", "DELETE"),
            }
            if (
                not strikes
                or not possible.get(kind, True)
                or (self.most is not None and self.done.total() >= self.most)
            ):
                return None
            self.done[kind] += 1
            return kind


@contextmanager
def fault_proxy(upstream):
    """Run a proxy in front of a server: yield its `FaultProxy`."""
    server = Server(_Handler)
    server.upstream = urlsplit(upstream).netloc
    server.control = FaultProxy(server.url)
    with serving(server):
        yield server.control


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def _handle(self):
        control = self.server.control
        body = self._body()
        if control.on_request:
            control.on_request(self.command, self.path)
        fault = control.fault_for(self.command, self.path)
        if fault == RESET:
            return self._reset()
        if fault in (ERROR_500, ERROR_503, FORBIDDEN):
            return self._error(fault)
        status, headers, content = self._pass_on(body)
        if self.command == "GET" and "list-type" in self.path and status == 200:
            # The oldest answer is the one that stays.
            old = control.listings.setdefault(self.path, (headers, content))
            if fault == STALE:
                headers, content = old
        if fault == ANSWER_LOST:
            return self._reset()
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and name.lower() not in ("content-length", "date", "server"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == CUT:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self._reset()
        if fault == DRIP:
            pieces = 10
            for i in range(pieces):
                self.wfile.write(content[len(content) * i // pieces : len(content) * (i + 1) // pieces])
                self.wfile.flush()
                time.sleep(_DRIP_SECONDS / pieces)
            return None
        self.wfile.write(content)
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _pass_on(self, body):
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP_BY_HOP}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _error(self, fault):
        code = {ERROR_500: "InternalError", ERROR_503: "SlowDown", FORBIDDEN: "AccessDenied"}[fault]
        message = "Access Denied" if fault == FORBIDDEN else "injected"
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(int(fault))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self):
        """Close with RST, not FIN: what was sent may be lost, and the other side sees a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
