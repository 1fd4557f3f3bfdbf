from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from serving.intake import Frame, PartRequest, parse, read_body
from serving.schemas import Refusal


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def multipart(**kwargs: object) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", **kwargs)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"]


def parsed(body: bytes, content_type: str | None = None, **query: str) -> PartRequest:
    return parse("mill", body=body, content_type=content_type, query=query)


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read():
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with pytest.raises(Refusal) as caught:
        asyncio.run(read_body(never(), length=str((40 << 20) + 1), limit=40 << 20, plant="mill"))
    assert caught.value.status == 413
    assert caught.value.body["plant"] == "mill"


def test_a_body_without_a_length_is_refused_at_the_limit_not_at_its_end():
    sent = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            sent.append(1)
            yield b"x" * 1000

    with pytest.raises(Refusal, match="larger"):
        asyncio.run(read_body(endless(), length=None, limit=4500, plant="mill"))
    assert len(sent) == 5


def test_a_body_at_the_limit_is_read_whole():
    body = asyncio.run(read_body(chunks(b"ab", b"cd"), length="4", limit=4, plant="mill"))
    assert body == b"abcd"


def test_several_frames_and_the_fields_of_a_part_come_out_of_a_form():
    body, kind = multipart(
        data={"part_id": "4711", "environment": "cam-1", "product": "plate", "deadline_ms": "250"},
        files=[
            ("image", ("größe.png", b"\x89PNG\r\n--not a boundary", "image/png")),
            ("image", ("b.jpg", b"\xff\xd8")),
        ],
    )
    part = parsed(body, kind)
    assert part.frames == (Frame("größe.png", b"\x89PNG\r\n--not a boundary"), Frame("b.jpg", b"\xff\xd8"))
    assert (part.part_id, part.environment, part.product, part.deadline_ms) == ("4711", "cam-1", "plate", 250.0)


def test_a_raw_body_is_one_frame_and_its_fields_come_from_the_query():
    part = parsed(b"\xff\xd8 pixels", "image/jpeg", part_id="7", debug="1")
    assert part.frames == (Frame("body", b"\xff\xd8 pixels"),)
    assert part.part_id == "7"


def test_a_form_field_wins_over_the_same_field_of_the_query():
    body, kind = multipart(data={"part_id": "form"}, files={"image": ("a", b"x")})
    assert parsed(body, kind, part_id="query").part_id == "form"


def test_a_file_name_keeps_no_folders_and_no_control_characters():
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../etc/pass\twd"\r\n\r\nx\r\n--b--\r\n'
    assert parsed(form, "multipart/form-data; boundary=b").frames == (Frame("passwd", b"x"),)


@pytest.mark.parametrize(
    ("body", "kind", "status", "field"),
    [
        (b"", None, 422, "image"),
        (b"", "image/jpeg", 422, "image"),
        (b"<html></html>", "text/html; charset=utf-8", 415, "Content-Type"),
        (b'{"image": 1}', "application/json", 415, "Content-Type"),
        (b"no boundary anywhere", "multipart/form-data; boundary=abc", 422, "body"),
        (b"x", "multipart/form-data", 422, "body"),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhalf',
            "multipart/form-data; boundary=b",
            422,
            "body",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="part_id"\r\n\r\n1\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
            "image",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="part"\r\n\r\n1\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
            "part",
        ),
    ],
)
def test_a_body_without_an_image_is_refused_with_the_field_that_is_wrong(
    body: bytes, kind: str | None, status: int, field: str
):
    with pytest.raises(Refusal) as caught:
        parsed(body, kind)
    assert (caught.value.status, caught.value.field) == (status, field)
    assert caught.value.remedy


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "1e9"])
def test_a_deadline_that_is_no_time_is_refused(value: str):
    with pytest.raises(Refusal) as caught:
        parsed(b"x", "image/png", deadline_ms=value)
    assert caught.value.field == "deadline_ms"


@pytest.mark.parametrize("value", ["x" * 201, "line\nbreak", "nul\0"])
def test_a_part_id_that_could_not_stand_in_a_log_is_refused(value: str):
    with pytest.raises(Refusal) as caught:
        parsed(b"x", "image/png", part_id=value)
    assert caught.value.field == "part_id"


def test_more_frames_than_a_part_can_have_are_refused():
    body, kind = multipart(files=[("image", (f"{n}.jpg", b"x")) for n in range(65)])
    with pytest.raises(Refusal, match="65 frames"):
        parsed(body, kind)
