from __future__ import annotations

import io
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from plants.errors import InputError
from plants.images import decode
from plants.sniff import claim


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*extra: bytes) -> bytes:
    """A PNG of 8 x 8 pixels with these chunks before its pixels."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes((8 * 3 + 1) * 8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + pixels + chunk(b"IEND", b"")


def saved(kind: str, *, size: tuple[int, int] = (37, 23), **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind, **kwargs)
    return buffer.getvalue()


def pages(count: int, *, then: int = 0) -> bytes:
    """A TIFF of so many pages; `then` is where the last one says that the next begins."""
    tags = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (278, 4), (279, 16)]
    size = 2 + 12 * len(tags) + 4
    found = b"II*\0" + struct.pack("<I", 8)
    for page in range(1, count + 1):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        following = 8 + size * page if page < count else then
        found += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return found


def exif_of(num_tags: int) -> bytes:
    tags = b"".join(struct.pack(">HHII", 0x9000 + n % 3000, 2, 4_000_000, 26) for n in range(num_tags))
    return chunk(b"eXIf", b"MM\0*" + struct.pack(">IH", 8, num_tags) + tags + bytes(4))


def many_scans(times: int) -> bytes:
    """A progressive JPEG whose first scan is there so many times."""
    data = saved("JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    second = min(at for at in (data.find(mark, first + 2) for mark in (b"\xff\xda", b"\xff\xc4")) if at > 0)
    return data[:second] + data[first:second] * times + data[second:]


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
    ],
)
def test_the_header_of_every_format_says_how_many_pixels_there_are(kind: str, kwargs: dict[str, object]):
    assert claim(saved(kind, **kwargs)) == (37 * 23, None)


def test_thirty_four_bytes_of_webp_are_known_to_be_sixty_four_megapixels():
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(buffer, "WEBP", lossless=True, method=0)
    assert len(buffer.getvalue()) < 100
    assert claim(buffer.getvalue()).num_pixels == 64_000_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50 << 20)))), "not a readable image"),
        (
            png_with(*[chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(900_000))) for n in range(80)]),
            "not a readable",
        ),
        (png_with(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20)))), "not a readable image"),
        (png_with(*[chunk(b"tEXt", b"k\0v")] * 1_000_000), "more than 16,384 chunks"),
        (png_with(*[chunk(b"IDAT", b"")] * 1_000_000), "more than 16,384 chunks"),
        (png_with(exif_of(60_000)), "EXIF block"),
        (b"\xff\xd8" + b"\xff\xfe\0\x02" * 5_000_000 + b"\xff\xd9", "more than 2,048 segments"),
        (b"\xff\xd8" + b"\xff\xff\xff\xfe\0\x02" * 5_000_000 + b"\xff\xd9", "more than 2,048 segments"),
        (b"\xff\xd8" + b"\xff" * 20_000_000, "bytes of filling"),
        (many_scans(200), "corrupt"),
        (pages(100_000), "several frames"),
        (pages(3, then=8), "several frames"),
        (b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(12 * 60_000), "60,000 tags"),
    ],
    ids=[
        *("text", "texts", "profile", "chunks", "pixel-chunks", "exif", "segments", "filled-segments", "filling"),
        *("scans", "pages", "circle", "tags"),
    ],
)
def test_a_file_that_would_keep_a_decoder_busy_is_refused_in_a_moment_and_in_silence(data: bytes, words: str):
    begun = time.process_time()
    with warnings.catch_warnings(action="error"), pytest.raises(InputError, match=words) as caught:
        decode(data, source="frame.png")
    assert time.process_time() - begun < 1
    assert caught.value.remedy


def test_ten_scans_and_a_profile_are_no_reason_to_refuse():
    assert decode(saved("JPEG", progressive=True, icc_profile=bytes(200_000))).shape == (23, 37, 3)


def test_no_header_however_broken_makes_the_claim_raise():
    seeds = [saved(kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")] + [pages(2), png_with(exif_of(3))]
    for seed in range(3000):
        chance = random.Random(seed)
        data = bytearray(chance.choice(seeds)[: chance.randint(0, 400)])
        for _ in range(chance.randint(0, 8)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        assert claim(bytes(data)).num_pixels >= 0
