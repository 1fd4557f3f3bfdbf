"""From an HTTP body to the frames and fields of a part, with limits before work.

The body is read with a bound and never touches the disk. It is either one raw image or `multipart/form-data` with any
number of files named `image` and the fields of a part; fields may also come in the query. Decoding pixels is
`plants.images`' business.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from plants import images
from plants.sniff import claim
from serving.schemas import Refusal

FIELDS = ("part_id", "product", "environment", "deadline_ms", "map")
MAX_FIELD_CHARS = 200
MAX_FRAMES = 64
MAX_PIXELS = 320_000_000
"""Of all frames of a part, as their headers claim: 64 frames of 5 megapixels. Flat areas cost no bytes, but time."""
MAX_PARTS = MAX_FRAMES + 2 * len(FIELDS)
"""Parts of a multipart body. More are refused while it is parsed; files too many are counted up to here and said."""
BODY_S = 30.0
"""How long a body may take to come: 40 MB at 1.4 MB a second."""
_TEXT = re.compile(r"^(text/|application/(json|xml|xhtml|javascript))")


@dataclass(frozen=True, slots=True)
class Frame:
    """One image as it came."""

    image: str
    data: bytes
    num_pixels: int = field(init=False)
    """As its header claims, 0 where that is not to be read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_pixels", claim(self.data).num_pixels)

    @property
    def sha256(self) -> str:
        """Digest of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def weight(self) -> int:
        """How long it takes, in bytes of an ordinary JPEG, which has two pixels a byte or more."""
        return max(len(self.data), self.num_pixels // 4)


@dataclass(frozen=True, slots=True)
class PartRequest:
    """One part to judge: its frames and what the caller said about it."""

    plant: str
    frames: tuple[Frame, ...]
    environment: str | None = None
    part_id: str | None = None
    product: str | None = None
    deadline_ms: float | None = None
    wants_map: bool = False
    """Whether the answer is to show, as a picture, what the verdict was drawn from."""


def declared_length(length: str | None, *, limit: int, plant: str) -> int | None:
    """What Content-Length says, None where it says nothing. Raises Refusal 413 over the limit."""
    if length is None or not (length.isascii() and length.isdigit()):
        return None
    if len(length) > 18 or int(length) > limit:
        raise _too_large(limit, plant=plant)
    return int(length)


async def read_body(
    chunks: AsyncIterator[bytes],
    *,
    length: str | None,
    limit: int,
    plant: str,
    timeout_s: float = BODY_S,
    hold: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The whole body; `hold` is told of its bytes before they are kept, and may raise.

    Raises Refusal: 413 as soon as the header or the bytes so far say that it is over the limit, 408 where it is not
    there within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s) as patience:
            return await _read_body(chunks, length=length, limit=limit, plant=plant, hold=hold)
    except TimeoutError:
        if not patience.expired():
            raise  # somebody else's, the part's deadline
        raise Refusal(
            f"the body was not there within {timeout_s:g} s",
            status=408,
            plant=plant,
            field="body",
            remedy="Send it again, in smaller requests where the link is slow",
        ) from None


def _too_large(limit: int, *, plant: str) -> Refusal:
    return Refusal(
        f"the body is larger than {limit >> 20} MB",
        status=413,
        plant=plant,
        field="image",
        remedy="Send fewer or smaller frames in one request",
    )


async def _read_body(
    chunks: AsyncIterator[bytes], *, length: str | None, limit: int, plant: str, hold: Callable[[int], None]
) -> bytes:
    declared_length(length, limit=limit, plant=plant)
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > limit:
            raise _too_large(limit, plant=plant)
        hold(len(chunk))
        body += chunk
    return bytes(body)


def fields_of_query(plant: str, query: Mapping[str, str]) -> dict[str, str | float | bool | None]:
    """The part's fields that the address names. Raises Refusal for an impossible one, before a body is read."""
    return _checked(plant, {name: query[name] for name in FIELDS if name in query})


def part_digest(part: PartRequest) -> str:
    """What was sent, whatever its deadline: a retry has less time left and is the same part."""
    asked = (part.environment, part.part_id, part.product, *([True] if part.wants_map else []))
    said = (part.plant, *asked, [(f.image, f.sha256) for f in part.frames])
    return hashlib.sha256(repr(said).encode()).hexdigest()


def checked_key(plant: str, key: str | None) -> str | None:
    """The Idempotency-Key, None where there is none. Raises Refusal for one that could not stand in a log."""
    if key is not None and not (0 < len(key) <= MAX_FIELD_CHARS and key.isascii() and key.isprintable()):
        raise Refusal(
            f"Idempotency-Key must be printable ASCII and at most {MAX_FIELD_CHARS} characters long",
            plant=plant,
            field="Idempotency-Key",
            remedy="Send a random name such as a UUID",
        )
    return key


def parse(plant: str, *, body: bytes, content_type: str | None, query: Mapping[str, str]) -> PartRequest:
    """The part in a body. Raises Refusal for a body without an image, of another kind, or with an impossible field."""
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        frames, fields = _multipart(plant, body=body, boundary=options.get(b"boundary", b""))
    elif _TEXT.match(kind.decode("latin-1")):
        raise Refusal(
            f"{kind.decode('latin-1')} is not an image",
            status=415,
            plant=plant,
            field="Content-Type",
            remedy="Send the image itself (image/jpeg, image/png, ...) or multipart/form-data with `image`",
        )
    else:
        is_image = bool(body) and kind != b"application/x-www-form-urlencoded"
        frames, fields = ([Frame("body", body)] if is_image else []), {}
    if not frames:
        raise Refusal(
            "there is no image in the request", plant=plant, field="image", remedy="Send at least one file as `image`"
        )
    num_pixels = sum(min(frame.num_pixels, images.MAX_PIXELS) for frame in frames)  # the decoder names one too large
    if num_pixels > MAX_PIXELS:
        raise Refusal(
            f"{num_pixels / 1e6:.0f} megapixels in one request, {MAX_PIXELS / 1e6:.0f} are the most",
            status=413,
            plant=plant,
            field="image",
            remedy="Send fewer or smaller frames of one part",
        )
    known = {name: query[name] for name in FIELDS if name in query} | fields
    return PartRequest(plant, tuple(frames), **_checked(plant, known))  # type: ignore[arg-type]


def _checked(plant: str, fields: Mapping[str, str]) -> dict[str, str | float | bool | None]:
    for name, value in fields.items():
        if len(value) > MAX_FIELD_CHARS or not value.isprintable():
            raise Refusal(
                f"{name} must be printable and at most {MAX_FIELD_CHARS} characters long", plant=plant, field=name
            )
    found: dict[str, str | float | bool | None] = {name: value or None for name, value in fields.items()}
    if "map" in found:
        del found["map"]
        found["wants_map"] = _switch(plant, fields["map"])
    if found.get("deadline_ms") is not None:
        found["deadline_ms"] = _deadline(plant, fields["deadline_ms"])
    return found


def _switch(plant: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise Refusal(
            f"map {text[:20]!r} is neither true nor false",
            plant=plant,
            field="map",
            remedy="Send map=true for a picture, or leave it out",
        )
    return text == "true"


def _deadline(plant: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 600_000:
        raise Refusal(
            f"deadline_ms {text[:20]!r} is not a number of milliseconds between 0 and 600000",
            plant=plant,
            field="deadline_ms",
            remedy="Leave it out where the line can wait",
        )
    return value


@dataclass(slots=True)
class _Part:
    headers: dict[str, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)


class _TooManyParts(Exception):
    """Raised into the parser, which would go through megabytes of empty parts."""


class _Reader:
    """Collects the parts of a multipart body as the parser finds them."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._name = bytearray()
        self._value = bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise _TooManyParts
        self.parts.append(_Part())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self.parts[-1].headers[self._name.decode("latin-1").lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def on_end(self) -> None:
        self.ended = True


def _multipart(plant: str, *, body: bytes, boundary: bytes) -> tuple[list[Frame], dict[str, str]]:
    broken = Refusal(
        "the multipart body is broken off or malformed",
        plant=plant,
        field="body",
        remedy="Let an HTTP library write it: files={'image': ...}",
    )
    reader = _Reader()
    names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "end")
    try:
        parser = MultipartParser(boundary, {f"on_{n}": getattr(reader, f"on_{n}") for n in names})  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise broken from None
    except _TooManyParts:
        raise Refusal(
            f"the multipart body has more than {MAX_PARTS} parts",
            plant=plant,
            field="body",
            remedy=f"Send at most {MAX_FRAMES} frames of one part",
        ) from None
    if not reader.ended:
        raise broken
    frames: list[Frame] = []
    fields: dict[str, str] = {}
    for part in reader.parts:
        _, options = parse_options_header(part.headers.get("content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "image":
            frames.append(Frame(_file_name(options.get(b"filename", b""), len(frames)), bytes(part.data)))
        elif name in FIELDS:
            fields[name] = part.data.decode("utf-8", "replace")
        else:
            raise Refusal(
                f"unknown field {name[:40]!r}",
                plant=plant,
                field=name[:40] or "body",
                remedy=f"Known fields: image, {', '.join(FIELDS)}",
            )
    if len(frames) > MAX_FRAMES:
        raise Refusal(f"{len(frames)} frames in one request, {MAX_FRAMES} is the most", plant=plant, field="image")
    return frames, fields


def _file_name(raw: bytes, index: int) -> str:
    name = raw.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(c for c in name if c.isprintable())[:120]
    return name or f"image-{index}"
