"""Bytes become pixels rightly, or are refused with a reason; pixels become views that cover the frame."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plants.errors import InputError
from plants.geometry import Geometry, Photometry
from plants.images import decode, tensor_digest
from plants.views import (
    PAD_VALUE,
    photometry_lut,
    scale,
    view_boxes,
    views,
)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 32, channels: int | None = 3, *, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def png(*, width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray) -> bytes:
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width=width, height=height, depth=16, colour={1: 0, 2: 4, 3: 2, 4: 6}[channels], rows=rows)


def deep_tiff(values: np.ndarray, *, order: str = "<", extra_samples: int | None = None) -> bytes:
    """An uncompressed 16-bit TIFF written by hand."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels >= 3 else 1),
        (273, 4, 1, 16),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    if extra_samples is not None:
        entries.append((338, 3, 1, extra_samples))
    bits = struct.pack(f"{order}4H", 16, 16, 16, 16)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(f"{order}H2x", value) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 16 + len(data)) + bits + data + directory + b"\0\0\0\0"


def refusal(data: bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, source="line3/part.png", **options)
    assert "line3/part.png" in str(caught.value)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_colour_comes_back_unchanged(kind):
    pixels = noise()
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_photograph_comes_back_close_to_what_was_stored(kind):
    pixels = np.full((40, 50, 3), (200, 40, 90), np.uint8)
    assert np.abs(decode(encoded(Image.fromarray(pixels), kind)).astype(int) - pixels).max() <= 8


def test_grey_is_the_same_in_all_three_channels():
    grey = noise(channels=None)
    assert np.array_equal(decode(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    grey = noise(channels=None)
    pixels = decode(encoded(Image.fromarray(grey).convert("1", dither=Image.Dither.NONE), "PNG"))
    assert np.array_equal(pixels[..., 0], np.where(grey > 127, 255, 0))


def test_palette_images_show_their_colours_and_not_their_indices():
    image = Image.new("P", (6, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (3, 0, 6, 4))
    pixels = decode(encoded(image, "PNG"))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[0, 5].tolist() == [200, 100, 50]


def test_transparent_areas_are_black_whatever_colour_hides_there():
    pixels = np.full((4, 6, 4), (90, 180, 30, 255), np.uint8)
    pixels[:, 3:, 3] = 0
    pixels[:, 2, 3] = 128
    found = decode(encoded(Image.fromarray(pixels), "PNG"))
    assert found[0, 0].tolist() == [90, 180, 30]
    assert found[0, 4].tolist() == [0, 0, 0]
    assert np.abs(found[0, 2].astype(int) - [45, 90, 15]).max() <= 1


def test_a_transparent_palette_entry_is_black():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([1, 2, 3, 200, 100, 50])
    assert not decode(encoded(image, "PNG", transparency=1)).any()


def test_grey_with_alpha_is_laid_on_black():
    image = Image.merge("LA", (Image.new("L", (4, 4), 200), Image.new("L", (4, 4), 0)))
    assert not decode(encoded(image, "PNG")).any()


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode(encoded(image, "JPEG", quality=95))[8, 8]
    assert red[0] > 200
    assert red[1] < 60
    assert red[2] < 60


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_rotated_frame_stands_upright(orientation, turn, kind):
    pixels = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind, exif=exif)), np.rot90(pixels, turn))


def test_a_phone_photograph_with_a_preview_gives_its_main_picture():
    main, preview = Image.new("RGB", (32, 16), (250, 0, 0)), Image.new("RGB", (8, 4))
    pixels = decode(encoded(main, "MPO", save_all=True, append_images=[preview]))
    assert pixels.shape == (16, 32, 3)
    assert pixels[8, 8, 0] > 200


def test_a_single_frame_gif_is_an_image():
    assert decode(encoded(Image.new("P", (5, 4)), "GIF")).shape == (4, 5, 3)


# --- 12 and 16 bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_saturated(kind):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(values), kind), bit_depth=16)
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_twelve_bit_values_in_sixteen_bit_files_use_the_whole_range():
    values = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"), bit_depth=12)
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_a_window_maps_its_ends_to_black_and_white():
    values = np.array([[0, 1000, 2000, 3000, 60000]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"), bit_depth=16, window=(1000, 3000))
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_window_also_holds_for_eight_bit_frames():
    values = np.array([[0, 50, 100, 150, 250]], dtype=np.uint8)
    pixels = decode(encoded(Image.fromarray(values), "PNG"), window=(50, 150))
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("write", [deep_png, deep_tiff, lambda v: deep_tiff(v, order=">")])
def test_sixteen_bit_colour_keeps_its_low_byte(write):
    values = np.random.default_rng(3).integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    pixels = decode(write(values), bit_depth=12)
    assert np.array_equal(pixels, np.floor(values * (255 / 4095) + 0.5).astype(np.uint8))


def test_sixteen_bit_colour_with_alpha_is_laid_on_black():
    values = np.full((4, 4, 4), 65535, np.uint16)
    values[0, 0, 3] = 0
    for data in (deep_png(values), deep_tiff(values, extra_samples=2)):
        pixels = decode(data, bit_depth=16)
        assert pixels[0, 0].tolist() == [0, 0, 0]
        assert pixels[1, 1].tolist() == [255, 255, 255]


def test_a_sixteen_bit_frame_in_an_eight_bit_environment_is_refused_with_the_remedy():
    data = encoded(Image.fromarray(np.full((4, 4), 5000, np.uint16)), "PNG")
    assert "bit_depth: 16" in refusal(data)
    assert "bit_depth: 16" in refusal(deep_png(np.zeros((4, 4, 3), np.uint16)))


def test_an_eight_bit_frame_in_a_sixteen_bit_environment_is_refused():
    assert "8-bit data" in refusal(encoded(Image.new("L", (4, 4)), "PNG"), bit_depth=16)


def test_a_value_beyond_twelve_bits_is_refused_rather_than_clipped():
    data = encoded(Image.fromarray(np.full((4, 4), 5000, np.uint16)), "PNG")
    assert "5000" in refusal(data, bit_depth=12)


def test_signed_values_are_read_while_positive_and_refused_when_negative():
    high = encoded(Image.fromarray(np.full((4, 4), 4095, np.int32)), "TIFF")
    assert decode(high, bit_depth=12)[0, 0, 0] == 255
    low = encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF")
    assert "-5" in refusal(low, bit_depth=12)


def test_floating_point_and_deep_grey_with_alpha_are_refused():
    assert "cannot be read" in refusal(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), bit_depth=16)
    assert "cannot be read" in refusal(deep_png(np.zeros((4, 4, 2), np.uint16)), bit_depth=16)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_empty_file_is_refused():
    assert "0 bytes" in refusal(b"")


def test_a_text_file_named_as_an_image_is_refused():
    assert "not a readable image" in refusal(b"This is a text file, whatever it is called.\n" * 20)


def test_html_and_svg_are_refused():
    for data in (
        b"<!doctype html><img src=x>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"P5 2 2 255 abcd",
    ):
        assert "not a readable image" in refusal(data)


def test_a_file_over_the_byte_limit_is_refused_before_it_is_opened():
    assert "MiB" in refusal(bytes(2_000), max_bytes=1_000)


@pytest.mark.parametrize("side", [8_100, 30_000])
def test_a_decompression_bomb_is_refused_without_being_unpacked(side):
    bomb = png(width=side, height=side, depth=8, colour=2, rows=bytes(1_000))
    assert "pixels" in refusal(bomb)


def test_the_pixel_limit_is_a_setting():
    data = encoded(Image.new("L", (40, 30)), "PNG")
    assert "40 x 30" in refusal(data, max_pixels=1_000)
    assert decode(data, max_pixels=1_200).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused(kind):
    frames = [Image.new("RGB", (8, 8), (i * 60, 255 - i * 60, i)) for i in range(3)]
    assert "several frames" in refusal(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(kind, share):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    said = refusal(data[: int(len(data) * share)])
    assert any(words in said for words in ("cannot be decoded", "cut short", "not a readable image"))


def test_a_jpeg_with_a_damaged_middle_is_refused():
    data = bytearray(encoded(Image.fromarray(noise(64, 64)), "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 8] = b"\xff\x01\xff\x02\xff\x03\xff\x04"
    assert "corrupt" in refusal(bytes(data))


def test_a_jpeg_whose_scan_was_cut_but_whose_end_was_kept_is_refused():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", quality=90)
    assert "JPEG" in refusal(data[: data.index(b"\xff\xda")] + b"\xff\xd9")


def test_a_whole_thumbnail_does_not_hide_a_damaged_picture():
    thumbnail = encoded(Image.new("RGB", (8, 8)), "JPEG")
    exif = b"Exif\0\0" + thumbnail
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", quality=90, exif=exif)
    assert decode(data).shape == (64, 64, 3)
    cut = data.rindex(b"\xff\xda") + 200
    assert "corrupt" in refusal(data[:cut] + b"\xff\x02" + data[cut:])


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"quality": 100}, {"subsampling": 0}])
def test_every_kind_of_sound_jpeg_is_read(options):
    assert decode(encoded(Image.fromarray(noise(70, 50)), "JPEG", **options)).shape == (70, 50, 3)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(Image.fromarray(noise()), "JPEG")
    assert np.array_equal(decode(data + b"vendor data \xff\x01"), decode(data))


@pytest.mark.filterwarnings("ignore:Tag data larger:UserWarning")
@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_raises_anything_but_a_clear_error(seed):
    rng = np.random.default_rng(seed)
    kind = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")[seed % 6]
    data = bytearray(encoded(Image.fromarray(noise(20, 20, seed=seed)), kind))
    for _ in range(6):
        data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
    with contextlib.suppress(InputError):
        assert decode(bytes(data)).dtype == np.uint8


# --- views -----------------------------------------------------------------------------------------------------------


def seen(pixels: np.ndarray, *, size_px: int = 16, photometry: Photometry | None = None, **geometry):
    return views(pixels, geometry=Geometry(**geometry), photometry=photometry or Photometry(), size_px=size_px)


def test_whole_stretches_the_frame_over_the_input():
    found = seen(np.full((20, 60, 3), 200, np.uint8), fit="whole")
    assert found.pixels.shape == (1, 16, 16, 3)
    assert (found.pixels == 200).all()
    assert found.boxes.tolist() == [[0, 0, 60, 20]]


def test_letterbox_keeps_the_aspect_and_pads_with_grey():
    found = seen(np.full((20, 40, 3), 200, np.uint8), fit="letterbox").pixels[0]
    assert (found[:4] == PAD_VALUE).all()
    assert (found[4:12] == 200).all()
    assert (found[12:] == PAD_VALUE).all()


def test_nothing_is_cropped_away_by_letterbox():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, [0, -1]] = 255
    found = seen(pixels, fit="letterbox", size_px=32).pixels[0]
    assert (found[16, [0, -1]] > 0).all()


def test_the_region_of_interest_is_what_is_seen():
    pixels = np.zeros((50, 50, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    found = seen(pixels, roi=(20, 10, 40, 30), fit="whole")
    assert (found.pixels == 255).all()
    assert found.boxes.tolist() == [[20, 10, 40, 30]]


def test_a_region_outside_the_frame_is_refused():
    with pytest.raises(InputError, match="leaves a frame of 50 x 40"):
        seen(np.zeros((40, 50, 3), np.uint8), roi=(0, 0, 60, 20))


@pytest.mark.parametrize(
    ("width", "height", "tile_px", "overlap_px"),
    [(2048, 1536, 256, 32), (100, 100, 16, 0), (97, 33, 32, 31), (20, 100, 32, 8), (10, 10, 32, 0), (64, 64, 64, 16)],
)
def test_tiles_cover_every_pixel_and_end_at_the_borders(width, height, tile_px, overlap_px):
    boxes = view_boxes(width, height, geometry=Geometry(fit="tiles", tile_px=tile_px, overlap_px=overlap_px))
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes.tolist():
        at_border = x0 == 0 or y0 == 0 or x1 == width or y1 == height
        assert at_border or (x1 - x0, y1 - y0) == (min(tile_px, width), min(tile_px, height))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    assert boxes.min(axis=0).tolist()[:2] == [0, 0]
    assert boxes.max(axis=0).tolist()[2:] == [width, height]


@pytest.mark.parametrize("at", [0, 1, 40, 97, 130, 180])
def test_a_defect_no_larger_than_the_overlap_lies_whole_in_some_tile(at):
    boxes = view_boxes(200, 48, geometry=Geometry(fit="tiles", tile_px=48, overlap_px=20))
    assert any(x0 <= at and at + 20 <= x1 for x0, _, x1, _ in boxes.tolist())


def test_each_tile_shows_its_own_box():
    pixels = noise(70, 90)
    found = seen(pixels, fit="tiles", tile_px=32, size_px=32)
    for view, (x0, y0, x1, y1) in zip(found.pixels, found.boxes.tolist(), strict=True):
        assert np.array_equal(view, pixels[y0:y1, x0:x1])


@pytest.mark.parametrize("roi", [None, (7, 3, 88, 66)])
def test_beyond_the_borders_a_tile_shows_their_mirror_image(roi):
    pixels = noise(70, 90)
    x0, y0, x1, y1 = roi or (0, 0, 90, 70)
    found = seen(pixels, roi=roi, fit="tiles", tile_px=32, overlap_px=8, size_px=32)
    mirrored = np.pad(pixels[y0:y1, x0:x1], ((4, 4), (4, 4), (0, 0)), mode="symmetric")
    assert np.array_equal(found.pixels[0], mirrored[:32, :32])
    assert np.array_equal(found.pixels[-1], mirrored[-32:, -32:])
    assert found.boxes[0].tolist() == [x0, y0, x0 + 28, y0 + 28]
    assert found.boxes[-1].tolist() == [x1 - 28, y1 - 28, x1, y1]


@pytest.mark.parametrize(("length", "tile_px", "overlap_px"), [(200, 48, 20), (97, 32, 31), (49, 48, 9)])
def test_every_point_lies_half_an_overlap_within_some_tile(length, tile_px, overlap_px):
    """Also at the borders, where tiles reach beyond them."""
    line = np.tile(np.arange(length), (tile_px, 1))[..., None].repeat(3, axis=2).astype(np.uint8)
    geometry = Geometry(fit="tiles", tile_px=tile_px, overlap_px=overlap_px)
    found = views(line, geometry=geometry, photometry=Photometry(), size_px=tile_px)
    inner = found.pixels[:, 0, overlap_px // 2 : tile_px - overlap_px // 2, 0]
    assert {*inner.ravel().tolist()} == {*range(length)}


def test_a_frame_smaller_than_a_tile_keeps_its_scale():
    found = seen(np.full((16, 8, 3), 200, np.uint8), fit="tiles", tile_px=16, size_px=32).pixels[0]
    assert (found[:, 8:24] == 200).all()
    assert (found[:, :8] == PAD_VALUE).all()


def test_tiles_of_a_region_lie_within_it():
    boxes = view_boxes(100, 100, geometry=Geometry(roi=(10, 20, 74, 84), fit="tiles", tile_px=32))
    assert boxes.min(axis=0).tolist()[:2] == [10, 20]
    assert boxes.max(axis=0).tolist()[2:] == [74, 84]


def test_too_many_tiles_are_refused_with_the_field():
    with pytest.raises(InputError, match="tile_px"):
        view_boxes(8000, 8000, geometry=Geometry(fit="tiles", tile_px=16))


def test_photometry_undoes_gain_offset_and_gamma():
    table = photometry_lut(Photometry(gain=2, offset=0.1, gamma=0.5))
    assert table[0] == round(255 * 0.1**0.5)
    assert table[51] == round(255 * 0.5**0.5)
    assert table[200] == 255


def test_photometry_changes_the_frame_but_not_the_margins():
    found = seen(np.full((8, 16, 3), 100, np.uint8), photometry=Photometry(gain=2), fit="letterbox").pixels[0]
    assert (found[8] == 200).all()
    assert (found[0] == PAD_VALUE).all()


def test_neutral_photometry_costs_nothing():
    assert photometry_lut(Photometry()) is None


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (Geometry(fit="whole"), (96 / 400, 96 / 200)),
        (Geometry(fit="letterbox"), (96 / 400, 96 / 400)),
        (Geometry(fit="tiles", tile_px=48), (2.0, 2.0)),
        (Geometry(fit="whole", roi=(0, 0, 48, 96)), (2.0, 1.0)),
    ],
)
def test_scale_says_how_large_a_frame_pixel_is_at_the_input(geometry, expected):
    assert scale(400, 200, geometry=geometry, size_px=96) == pytest.approx(expected)


def test_the_same_frame_gives_the_same_tensor_and_another_frame_another():
    first, again, other = (seen(noise(seed=s), fit="whole").pixels for s in (0, 0, 1))
    assert tensor_digest(first) == tensor_digest(again)
    assert tensor_digest(first) != tensor_digest(other)
    assert tensor_digest(first) != tensor_digest(first.reshape(1, 8, 32, 3))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_frame_of_20_megapixels_takes_eleven_bytes_a_pixel(tmp_path, form):
    """At its peak, in a process of its own."""
    for name, size in (("small", (50, 40)), ("large", (5000, 4000))):
        Image.linear_gradient("L").resize(size).save(tmp_path / name, form)
    program = """
import sys
from pathlib import Path
from plants.images import decode

def memory(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) * 1024

small, data = (Path(sys.argv[1], name).read_bytes() for name in ("small", "large"))
decode(small)
before = memory("VmRSS")
decode(data)
print((memory("VmHWM") - before) / 20e6)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 3 < float(done.stdout) < 11.5


@pytest.mark.parametrize("tail", [b",", b",\0\0\0\0\x3c\0\x28\0", b",\0\0\0\0\x3c\0\x28\0\0", b"!", b"!\xf9\4\0"])
def test_a_gif_cut_short_where_a_second_frame_begins_raises_nothing_but_a_clear_error(tail):
    gif = encoded(Image.new("P", (60, 40)), "GIF")
    with contextlib.suppress(InputError):
        assert decode(gif[:-1] + tail).shape == (40, 60, 3)
