"""Bad requests without end, from a seed: broken images, mutated forms, odd fields, headers, methods and addresses.

Every request is bytes on a socket, so nothing on our side mends it. `fault` says what is wrong with an answer: only a
fault of the server counts, whatever was sent.
"""

from __future__ import annotations

import io
import json
import random
import re
import socket
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")
QUERY = ("environment", "part_id", "product", "deadline_ms", "token", "%ff")
MAY_BE_EMPTY = frozenset((400, 405, 431, 501, 505))
"""Answers of the HTTP server itself, before there is a request of ours."""
ODD = (
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e999",
    "\0",
    "é",
    "𝔘",
    "a" * 5000,
    "../../etc/passwd",
    "%00",
    "';--",
    "{{7*7}}",
    "\r\nX: y",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status 0 where nothing did."""

    status: int
    head: str
    body: bytes


@cache
def images() -> tuple[bytes, ...]:
    """A whole image of every format and some odd but legal ones."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = []
    for kind in FORMATS:
        for image in (noise, noise.convert("L"), noise.convert("P")):
            if (kind, image.mode) == ("JPEG", "P"):
                continue
            buffer = io.BytesIO()
            image.save(buffer, kind)
            found.append(buffer.getvalue())
    deep = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))
    for image, kind, kwargs in (
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (noise, "TIFF", {"compression": "tiff_lzw"}),
        (noise.convert("RGBA"), "PNG", {}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise.convert("F"), "TIFF", {}),
        (noise, "JPEG", {"progressive": True}),
        (noise, "GIF", {"save_all": True, "append_images": [noise]}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **kwargs)  # type: ignore[arg-type]
        found.append(buffer.getvalue())
    return tuple(found)


def mutated(data: bytes, chance: random.Random, *, times: int = 6) -> bytes:
    """The bytes with some flipped, cut out, doubled, moved or replaced by what parsers stumble over."""
    found = bytearray(data)
    for _ in range(chance.randint(0, times)):
        at = chance.randrange(len(found) + 1)
        size = min(len(found) - at, chance.choice((1, 2, 4, 8, 64, 1024)))
        match chance.randrange(6):
            case 0 if size:
                found[at] = chance.randrange(256)
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = found[at : at + size]
            case 3:
                found[at : at + size] = chance.choice((b"\0", b"\xff")) * size
            case 4:
                found[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
            case 5:
                found[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\r\n--"))
    return bytes(found)


def request(chance: random.Random, *, plant: str, token: str) -> bytes:
    """One request, most of them wrong in one way or several."""
    body, kind = _body(chance)
    headers = {"Host": "x", "Connection": "close", "Authorization": f"Bearer {token}", "Content-Type": kind}
    headers["Content-Length"] = str(len(body))
    if chance.random() < 0.3:
        headers["Idempotency-Key"] = chance.choice((*ODD[:3], f"k{chance.randrange(50)}", "x" * 300))
    if chance.random() < 0.1:
        headers["Authorization"] = chance.choice(
            ("", "Bearer", f"bearer {token}", f"Basic {token}", "Bearer \xff", token)
        )
    if chance.random() < 0.1:
        headers["Content-Length"] = chance.choice(("0", "-1", "1e9", "99999999999999999999", str(len(body) // 2), "x"))
    if chance.random() < 0.05:
        del headers["Content-Length"]
        headers["Transfer-Encoding"] = chance.choice(("chunked", "gzip", "identity", "chunked, chunked"))
        body = chance.choice(
            (b"5\r\nabcde\r\n0\r\n\r\n", b"ffffffffff\r\n", b"zz\r\n", b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        )
    if chance.random() < 0.1:
        headers[chance.choice(("Expect", "Range", "Content-Encoding", "X-" + "a" * 9000, "Accept"))] = chance.choice(
            ODD
        )
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if chance.random() < 0.05:
        lines.append(chance.choice(("Content-Length: 3", "no colon", ": empty", "Authorization: Bearer other")))
    method = chance.choices(("POST", "GET", "PUT", "HEAD", "OPTIONS", "BREW"), (30, 5, 1, 1, 1, 1))[0]
    head = "\r\n".join([f"{method} {_target(chance, plant=plant)} HTTP/1.1", *lines]) + "\r\n\r\n"
    found = head.encode("utf-8", "replace") + body
    if chance.random() < 0.1:
        found = mutated(found[:2000], chance, times=3) + found[2000:]
    return found if b"\r\n\r\n" in found else found + b"\r\n\r\n"  # one without an end is waited for, rightly


def _body(chance: random.Random) -> tuple[bytes, str]:
    image = chance.choice(images())
    image = image if chance.random() < 0.2 else mutated(image, chance)
    if chance.random() < 0.5:
        return image, chance.choice(("image/png", "image/jpeg", "", "text/html", "application/json", "x/y; z=\xff"))
    boundary = chance.choice(("b", "b" * 70, "--", "'", ""))
    parts = []
    for _ in range(chance.choice((0, 1, 1, 2, 3, 80))):
        name = chance.choices(
            ("image", "part_id", "environment", "deadline_ms", "product", "?", ""), (6, 1, 1, 1, 1, 1, 1)
        )[0]
        file = f'; filename="{chance.choice(("a.png", *ODD[:9]))}"' if name == "image" else ""
        value = image if name == "image" else chance.choice(("cam-1", "5", *ODD)).encode("utf-8", "replace")
        head = f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode("utf-8", "replace")
        parts.append(b"--" + boundary.encode() + b"\r\n" + head + value + b"\r\n")
    body = b"".join(parts) + b"--" + boundary.encode() + b"--\r\n"
    body = mutated(body, chance) if chance.random() < 0.5 else body
    return body, chance.choice((f"multipart/form-data; boundary={boundary}",) * 5 + ("multipart/form-data",))


def _target(chance: random.Random, *, plant: str) -> str:
    name = chance.choices((plant, quote(chance.choice(ODD)[:900]), chance.choice(ODD[5:8])), (20, 2, 1))[0]
    verb = chance.choices(("predict", "", "metrics", "promote", "rollback", "..", "feedback"), (20, 1, 1, 2, 1, 1, 1))[
        0
    ]
    query = [f"{chance.choice(QUERY)}={quote(chance.choice(ODD))}" for _ in range(chance.choice((0, 0, 0, 1, 2)))]
    if chance.random() < 0.8:
        query.append("environment=cam-1")
    path = (
        f"/plants/{name}/{verb}".rstrip("/") if chance.random() < 0.97 else chance.choice(("/", "/metrics", "*", "//"))
    )
    return "".join(c for c in path + ("?" + "&".join(query) if query else "") if c not in "\r\n ")


def asked(port: int, data: bytes, *, timeout_s: float = 30.0) -> Reply:
    """The reply to these bytes; status 0 where the server hung up on them, which is an answer too.

    Raises TimeoutError where it neither answers nor hangs up.
    """
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as line:
            line.sendall(data)
            while not _is_whole(received) and (piece := line.recv(65536)):
                received += piece
    except (ConnectionResetError, BrokenPipeError):
        pass  # what was read before counts
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head[9:12].isdigit() else 0
    return Reply(status, head.decode("latin-1"), body)


def _is_whole(received: bytes) -> bool:
    """Whether the reply has come to its end: a request whose `Connection: close` was mutated keeps the line open."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return bool(end) and not head.startswith(b"HTTP/1.1 1") and length is not None and len(body) >= int(length[1])


def fault(reply: Reply) -> str | None:
    """What the server did wrong, or None."""
    if reply.status in (0, 100):
        return None
    if reply.status >= 500 and not (reply.status == 503 and "retry-after" in reply.head):
        return f"status {reply.status}"
    if "transfer-encoding: chunked" in reply.head or re.search(r"^HTTP/1.1 (20\d|304)", reply.head):
        return None
    if not reply.body or "content-type: text/plain" in reply.head:
        return None if reply.status in MAY_BE_EMPTY or not reply.body else f"status {reply.status} in plain text"
    try:
        said = json.loads(reply.body)
    except ValueError:
        return f"status {reply.status} with {reply.body[:80]!r}"
    if set(said) != {"error", "plant", "field", "remedy"} or "Traceback" in str(said) or "\n" in said["error"]:
        return f"status {reply.status} with {said}"
    return None
