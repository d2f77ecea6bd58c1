"""Laws of shown pictures: upright, in sRGB, cut alike however they are stored; and where the original shows another picture."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hand_files import hand_png, png
from picture_corpus import turned
from PIL import Image, ImageCms
from profiles import P3, cmyk_profile, gray_profile, rgb_profile

from lumina_jax.data.omni.pictures import levels, painted, vectors
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.errors import InputError, cause_of
from lumina_jax.pictures import formats, viewer
from lumina_jax.pictures.pixels import crop, decode, whiten

SIZE = (60, 44)
"""Of the crops, of pictures twice to four times as large."""
RNG = np.random.default_rng(0)


def smooth(channels: int, seed: int = 0, size: tuple[int, int] = (190, 130)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, channels), np.uint8)
    planes = map(Image.fromarray, np.moveaxis(coarse, -1, 0))
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], -1)


def file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def seen(content: bytes) -> np.ndarray:
    return np.asarray(whiten(decode(content, "file")))


def cut(content: bytes) -> np.ndarray:
    """The crop that a model sees, u8[Y X 3]."""
    return np.asarray(whiten(crop(decode(content, "file"), SIZE, (0.4, 0.6))))


def original(content: bytes) -> np.ndarray:
    """The crop that the original makes: in the file's own mode, without metadata."""
    return np.asarray(whiten(crop(Image.open(io.BytesIO(content)), SIZE, (0.4, 0.6))))


PHOTO = Image.fromarray(smooth(3))
SPRITE = PHOTO.quantize(24)
KEYED = SPRITE.convert("RGBA")
KEYED.putalpha(Image.fromarray(np.where(np.asarray(SPRITE) == 7, 0, 255).astype(np.uint8)))
INK = PHOTO.convert("1")
GRAY = PHOTO.convert("L")
LOOKS = {
    "palette": (file(SPRITE), file(SPRITE.convert("RGB"))),
    "palette of 16 colours": (file(PHOTO.quantize(16), bits=4), file(PHOTO.quantize(16).convert("RGB"))),
    "1 bit": (file(INK), file(INK.convert("RGB"))),
    "1 bit TIFF": (file(INK, "TIFF", compression="group4"), file(INK.convert("RGB"))),
    "gray": (file(GRAY), file(GRAY.convert("RGB"))),
    "GIF": (file(SPRITE, "GIF"), file(SPRITE.convert("RGB"))),
    "transparent GIF": (file(SPRITE, "GIF", transparency=7, optimize=False), file(KEYED)),
    "transparent palette": (file(SPRITE, transparency=7), file(KEYED)),
    "key colour": (
        file(SPRITE.convert("RGB"), transparency=tuple(SPRITE.getpalette()[21:24])),
        file(KEYED),
    ),
    "BMP of a palette": (file(SPRITE, "BMP"), file(SPRITE.convert("RGB"))),
    "opaque RGBA": (file(PHOTO.convert("RGBA")), file(PHOTO)),
    "opaque LA": (file(GRAY.convert("LA")), file(GRAY.convert("RGB"))),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_picture_is_cut_alike_however_its_pixels_are_stored(look):
    stored, plain = LOOKS[look]
    np.testing.assert_array_equal(cut(stored), cut(plain))


PLAIN = {
    "JPEG": file(PHOTO, "JPEG", quality=90),
    "PNG": file(PHOTO),
    "WebP": file(PHOTO, "WEBP"),
    "BMP": file(PHOTO, "BMP"),
    "with an sRGB profile": file(PHOTO, icc_profile=ImageCms.ImageCmsProfile(viewer.SRGB).tobytes()),
    "with orientation 1": file(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\1\0\0\0\0\0\0\0"),
    "gray": file(GRAY),
    "transparent": file(Image.fromarray(smooth(4), "RGBA")),
}
ANOTHER = {
    "its orientation is ignored": file(
        PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"
    ),
    "its profile is ignored": file(PHOTO, icc_profile=rgb_profile(P3, 1.8)),
    "its inks are mixed without their profile": file(PHOTO.convert("CMYK"), "TIFF", icc_profile=cmyk_profile(0.9)),
    "its gray has another gamma": file(GRAY, icc_profile=gray_profile(1.0)),
    "its palette is resized by nearest neighbour": file(SPRITE),
    "its black and white are resized by nearest neighbour": file(INK),
    "its key colour is opaque": file(SPRITE.convert("RGB"), transparency=tuple(SPRITE.getpalette()[21:24])),
    "its 16 bits are clipped": hand_png(16, 0)(smooth(1)[..., 0].astype(np.uint16) * 257, b"", b"", 1),
    "Lab is taken for transparent": file(
        ImageCms.profileToProfile(PHOTO, viewer.SRGB, ImageCms.createProfile("LAB"), outputMode="LAB"), "TIFF"
    ),
}


@pytest.mark.parametrize("picture", PLAIN)
def test_the_original_cuts_plain_pictures_bit_for_bit_alike(picture):
    np.testing.assert_array_equal(cut(PLAIN[picture]), original(PLAIN[picture]))


@pytest.mark.parametrize("fault", ANOTHER)
def test_where_the_original_cuts_another_picture_than_a_viewer_shows(fault):
    assert np.abs(cut(ANOTHER[fault]).astype(int) - original(ANOTHER[fault])).mean() > 2


def test_a_plain_picture_is_not_copied(monkeypatch):
    def copied(*_, **__):
        raise AssertionError("an extra copy")

    for name in ("convert", "copy", "transpose", "putalpha"):
        monkeypatch.setattr(Image.Image, name, copied)
    for content in (PLAIN["JPEG"], PLAIN["PNG"], PLAIN["with orientation 1"], PLAIN["with an sRGB profile"]):
        assert decode(content, "file").mode == "RGB"


def test_a_decoded_picture_that_is_saved_is_the_same_when_it_is_decoded_again():
    for content in [*PLAIN.values(), *ANOTHER.values(), *(stored for stored, _ in LOOKS.values())]:
        image = decode(content, "file")
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(np.asarray(decode(file(image, kind), "again")), np.asarray(image))


def test_a_transparent_colour_does_not_bleed():
    red = np.zeros((120, 160, 4), np.uint8)
    red[...] = (255, 0, 0, 0)
    red[:, 80:] = (0, 90, 0, 255)
    edge = cut(file(Image.fromarray(red, "RGBA"))).astype(int)
    # From white to green, red and blue stay equal.
    assert np.abs(edge[..., 0] - edge[..., 2]).max() <= 2


def test_a_gif_is_transparent_where_its_first_frame_does_not_lie():
    content = bytearray(file(Image.new("RGB", (20, 10), (10, 20, 200)), "GIF"))
    content[6:10] = (40, 0, 30, 0)  # the canvas, 40 x 30
    at = content.index(b",\0\0\0\0")
    content[at + 1 : at + 5] = (5, 0, 7, 0)  # the frame's left and upper edge
    expected = np.full((30, 40, 3), 255)
    expected[7:17, 5:25] = (10, 20, 200)
    np.testing.assert_array_equal(seen(bytes(content)), expected)


def test_a_key_of_16_bits_and_one_wider_than_its_pixels():
    levels = np.array([[[0x1234, 0, 0xFFFF], [0, 0, 0], [0x8080, 1, 2]]], np.uint16)
    rgb = hand_png(16, 2, levels[0, 0].astype(">u2").tobytes())(levels, b"", b"", 1)
    assert seen(rgb)[0].tolist() == [[255] * 3, [0] * 3, [128, 0, 0]]
    # The PNG standard: of a key, only as many bits count as its pixels have.
    gray = hand_png(2, 0, b"\xff\x01")(np.uint16([[0, 1, 2, 3]]), b"", b"", 1)
    assert seen(gray)[0, :, 0].tolist() == [0, 255, 170, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_file_is_that_of_its_shown_picture(kind, orientation):
    photo = Image.fromarray(turned(smooth(3), orientation))
    exif = Image.Exif()
    exif[0x112] = orientation
    content = file(photo, kind, exif=exif.tobytes())
    with formats.opened(content, "file") as image:
        size = viewer.shown_size(image)
    assert size == (190, 130)
    difference = np.abs(seen(content).astype(int) - smooth(3))
    assert difference.mean() < 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # as formats.py does outside of pytest
def test_damaged_metadata_are_ignored():
    profile = rgb_profile(P3, 2.2)
    for options in ({"icc_profile": b"no profile"}, {"icc_profile": profile[:200]}, {"icc_profile": gray_profile(1.0)}):
        np.testing.assert_array_equal(seen(file(PHOTO, **options)), smooth(3))
    np.testing.assert_array_equal(seen(file(PHOTO, "TIFF", tiffinfo={34675: 7})), smooth(3))
    for exif in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0XX", RNG.bytes(40)):
        np.testing.assert_array_equal(seen(png(PHOTO.size, 8, 2, rows(PHOTO), eXIf=exif)), smooth(3))


def rows(image: Image.Image) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(image))


def test_labels_keep_their_own_colours_through_any_copy():
    content = painted("labels", SPRITE).content
    labels = decode(content, "labels")
    assert labels.mode == "P"
    colours = {tuple(colour) for colour in np.asarray(SPRITE.convert("RGB")).reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in cut(content).reshape(-1, 3).tolist()} <= colours
    np.testing.assert_array_equal(levels(painted("labels", SPRITE), "map"), np.asarray(SPRITE))


def test_maps_are_read_raw():
    depth = RNG.integers(0, 65536, (9, 7), np.uint16)
    exif = Image.Exif()
    exif[0x112] = 6
    content = hand_png(16, 0)(depth, exif.tobytes(), gray_profile(1.0), 1)
    np.testing.assert_array_equal(levels(ImageFile("depth", content), "depth map"), depth)
    normals = file(PHOTO, icc_profile=rgb_profile(P3, 1.8), exif=exif)
    np.testing.assert_array_equal(vectors(ImageFile("normals", normals)), np.asarray(PHOTO))


def test_every_ending_of_a_format_that_is_read_is_listed():
    Image.init()
    registered = {suffix for suffix, kind in Image.registered_extensions().items() if kind in {*formats.FORMATS, "MPO"}}
    assert registered <= set(formats.SUFFIXES) and not set(formats.SUFFIXES) & set(formats.UNREADABLE)
    assert not {"EPS", "WMF", "IM", "SPIDER", "MPEG"} & set(formats.FORMATS) and set(formats.FORMATS) <= set(Image.OPEN)
    for suffix in (".jpe", ".jfif", ".tga", ".heic", ".hif", ".avifs", ".j2k", ".apng", ".dib", ".mpo", ".pbm"):
        assert suffix in formats.SUFFIXES


@pytest.mark.parametrize("suffix", [".svg", ".cr2", ".nef", ".dng", ".jxl", ".eps", ".pdf", ".xcf", ".psb", ".raw"])
def test_a_picture_without_a_decoder_is_refused_by_name_with_the_cure(suffix):
    kind = formats.UNREADABLE[suffix]
    with pytest.raises(
        InputError, match=f"a/b{suffix.upper()}: no decoder for {kind}; convert it to PNG or JPEG"
    ) as raised:
        decode(b"bytes of an unknown kind", f"a/b{suffix.upper()}")
    assert cause_of(raised.value) == f"no decoder for {kind}"


@pytest.mark.parametrize(("name", "tags"), [("a.nef", {}), ("a.tif", {50706: b"\1\4\0\0"}), ("a.tif", {254: 1})])
def test_the_preview_in_a_camera_s_file_is_not_its_picture(name, tags):
    with pytest.raises(InputError, match="no decoder for a camera's raw format"):
        decode(file(PHOTO, "TIFF", tiffinfo=tags), name)
    assert decode(file(PHOTO, "JPEG"), "a.nef").size == PHOTO.size  # its content decides


def test_a_tiff_that_claims_more_rows_than_it_holds_is_refused_at_once():
    content = bytearray(file(PHOTO, "TIFF"))
    at = content.index(b"\x01\x01\x04\0\1\0\0\0")  # the field of its height
    content[at + 8 : at + 12] = (300_000).to_bytes(4, "little")
    with pytest.raises(InputError, match="its strips hold 24700 of 190x300000 pixels") as raised:
        decode(bytes(content), "file")
    assert cause_of(raised.value) == "damaged picture"


def test_pictures_up_to_the_limit_of_pixels_are_read_without_a_word():
    """Beyond MAX_IMAGE_PIXELS Pillow warns, beyond twice as many it refuses. Damaged files make it remark on them."""
    code = """
import io, sys
from PIL import Image
from lumina_jax.pictures.pixels import decode
Image.MAX_IMAGE_PIXELS = 1000
def saved(size, kind="PNG", **options):
    file = io.BytesIO(); Image.new("RGB", size).save(file, kind, **options); return file.getvalue()
assert decode(saved((50, 40)), "large").size == (50, 40)
try:
    decode(saved((50, 41)), "larger")
except ValueError as error:
    print(error)
decode(saved((20, 20), "JPEG", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x09\\0\\x12"), "damaged EXIF")
"""
    result = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "larger: " in result.stdout and "2000" in result.stdout and result.stderr == ""


def test_threads_share_profiles():
    contents = [file(PHOTO, icc_profile=rgb_profile(P3, 1.5 + 0.1 * number)) for number in range(4)] * 8
    expected = [seen(content) for content in contents[:4]]
    with ThreadPoolExecutor(8) as pool:
        for number, picture in enumerate(pool.map(seen, contents)):
            np.testing.assert_array_equal(picture, expected[number % 4])
