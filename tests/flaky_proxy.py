"""A TCP proxy before a real server that spoils the next few connections in a chosen way, or a share of all calls."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["refuse", "cut", "busy"]
_METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class FlakyProxy:
    """`with FlakyProxy("http://host:port") as proxy: proxy.spoil("cut", times=3)`; `proxy.endpoint` is its address.

    refuse: the connection is closed unread. busy: the answer is 503. cut: the answer ends after `cut_bytes`.
    share: of every call that passes, the probability that it is answered with 503 in place of the server.
    """

    def __init__(self, endpoint: str, *, cut_bytes: int = 2000, share: float = 0.0, seed: int = 0) -> None:
        address = urlsplit(endpoint)
        self._target = (str(address.hostname), int(address.port or 80))
        self._cut_bytes = cut_bytes
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: list[socket.socket] = []
        self._share, self._random = share, random.Random(seed)
        self.spoiled = self.num_calls = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def spoil(self, fault: Fault, *, times: int) -> None:
        """Close what is open; the next so many connections fail in this way."""
        with self._lock:
            self._faults += [fault] * times
            for end in self._open:
                _shut(end)
            self._open.clear()

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            fault = self._faults.pop(0) if self._faults else None
            self.spoiled += fault is not None
        with client, contextlib.suppress(OSError):
            if fault == "busy":
                client.recv(65536)
                client.sendall(_BUSY)
            if fault in ("busy", "refuse"):
                return
            with socket.create_connection(self._target) as server:
                self._open += [client, server]
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                _pump(server, client, limit=self._cut_bytes if fault == "cut" else None)
                _shut(client)
                _shut(server)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        """Pass calls on until the client ends or one is spoiled."""
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(_METHODS) and self._is_spoiled():
                    client.sendall(_BUSY)
                    _shut(server)
                    return
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _is_spoiled(self) -> bool:
        with self._lock:
            self.num_calls += 1
            is_spoiled = self._random.random() < self._share
            self.spoiled += is_spoiled
            return is_spoiled


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, sink: socket.socket, *, limit: int | None = None) -> None:
    """Pass bytes on until the source ends or the limit is reached."""
    passed = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data if limit is None else data[: limit - passed])
            passed += len(data)
            if limit is not None and passed >= limit:
                return
        sink.shutdown(socket.SHUT_WR)
