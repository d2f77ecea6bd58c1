"""Which files hold pictures, and opening them: their content decides, never their name."""

import io
import posixpath
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pillow_heif
from PIL import Image, UnidentifiedImageError

from lumina_jax.errors import InputError, cause_of

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "SUN": (".ras",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "FLI": (".fli", ".flc"),
    "PIXAR": (".pxr",),
    "MSP": (".msp",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "PCD": (".pcd",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
"""Pillow's name of each format that is read, and the endings of its files. Only these are tried, in this order, TGA last since it
has no signature: Pillow would hand PostScript to an external program."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The endings, in small letters, of the files that can be read."""

CAMERA_RAW = "a camera's raw format"
NO_DECODER = {
    "SVG": (".svg", ".svgz"),
    "PostScript": (".eps", ".ps", ".ai"),
    "PDF": (".pdf",),
    "Windows Metafile": (".wmf", ".emf"),
    "JPEG XL": (".jxl",),
    "JPEG XR": (".jxr", ".wdp", ".hdp"),
    "GIMP's XCF": (".xcf",),
    "Krita": (".kra",),
    "Photoshop's PSB": (".psb",),
    "OpenEXR": (".exr",),
    "Radiance HDR": (".hdr",),
    "DPX": (".dpx",),
    "DICOM": (".dcm",),
    "DjVu": (".djvu", ".djv"),
    "PICT": (".pct", ".pict"),
    "BPG": (".bpg",),
    "FLIF": (".flif",),
    "LabEye's IM": (".im",),
    CAMERA_RAW: (
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".raf", ".rw2"),
        *(".rwl", ".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".mos", ".mrw", ".kdc", ".dcr", ".erf", ".mef"),
        ".gpr",
    ),
}
"""What people call each format of pictures for which there is no decoder, and the endings of its files."""

UNREADABLE = {suffix: kind for kind, suffixes in NO_DECODER.items() for suffix in suffixes}
"""Ending, in small letters -> format of NO_DECODER."""

SIGNATURES = (
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"gimp xcf", "GIMP's XCF"),
    (0, b"8BPS\0\2", "Photoshop's PSB"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows Metafile"),
    (40, b" EMF", "Windows Metafile"),
    (0, b"AT&TFORM", "DjVu"),
    (128, b"DICM", "DICOM"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (8, b"CR\2\0", CAMERA_RAW),
    (4, b"ftypcrx ", CAMERA_RAW),
    (0, b"FUJIFILMCCD-RAW", CAMERA_RAW),
    (0, b"IIU\0", CAMERA_RAW),
    (0, b"IIRO", CAMERA_RAW),
    (0, b"FOVb", CAMERA_RAW),
    (0, b"\0MRM", CAMERA_RAW),
)
"""(position, bytes there, format) of files for which there is no decoder."""

PREFIX = 16
"""The bytes by which Pillow tells formats."""
SVG_HEAD = 1024
"""An SVG file names itself in its first so many bytes."""
SUBFILE_TYPE, REDUCED, DNG_VERSION = 254, 1, 50706
"""TIFF's tags by which a camera's raw file is told; its first image is a small preview."""

Image.init()  # before threads decode: none of them may find the formats half registered
pillow_heif.register_heif_opener()
# A file that is not right is refused with its reason; Pillow's remarks on others would only be noise. A picture beyond
# MAX_IMAGE_PIXELS is read; Pillow itself refuses one of twice as many pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def suffix_of(kind: str) -> str:
    """The ending by which files of Pillow's format ``kind`` are known to be pictures: its name, or the first of FORMATS."""
    return suffix if (suffix := f".{kind.lower()}") in SUFFIXES else FORMATS[kind][0]


@contextmanager
def opened(content: bytes, label: str) -> Iterator[Image.Image]:
    """Opens the bytes of a picture file: an image of Pillow, not yet loaded, in the file's own mode.

    Raises InputError, its message beginning with ``label`` (such as the file's name), when the file is damaged, of a format
    without a decoder, no picture, or has more than 2 * Image.MAX_IMAGE_PIXELS pixels; so does everything that fails inside.
    """
    try:
        with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
            if image.format == "TIFF":
                _check_tiff(image, content, label)
            yield image
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{label}: {error}", cause=cause_of(error)) from error
    except UnidentifiedImageError as error:
        raise _unidentified(content, label) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{label}: {error} Store it smaller.", cause="picture too large") from error
    except Exception as error:  # on damaged files Pillow's readers raise whatever their parsing runs into
        raise InputError(f"{label}: {str(error) or type(error).__name__}", cause="damaged picture") from error


def _check_tiff(image: Image.Image, content: bytes, label: str) -> None:
    """Raises InputError for a camera's raw file, of which Pillow would read the preview, and where pixels are missing."""
    raw = CAMERA_RAW in (_named(label), _signed(content)) or DNG_VERSION in image.tag_v2
    if raw or image.tag_v2.get(SUBFILE_TYPE) == REDUCED:
        raise _no_decoder(CAMERA_RAW)
    stored = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in image.tile)
    if stored < image.width * image.height:
        raise InputError(
            f"its strips hold {stored} of {image.width}x{image.height} pixels; it is damaged, get it again",
            cause="damaged picture",
        )


def _unidentified(content: bytes, label: str) -> InputError:
    if not content:
        return InputError(f"{label}: no picture; it is empty", cause="empty file")
    if kind := _signed(content) or _named(label):
        error = _no_decoder(kind)
        return InputError(f"{label}: {error}", cause=error.cause)
    for kind in FORMATS:
        accepts = Image.OPEN[kind][1]
        if accepts and accepts(content[:PREFIX].ljust(PREFIX, b"\0")) is True:
            return InputError(
                f"{label}: this {kind} file is damaged, or of a kind that Pillow cannot read; convert it to PNG or JPEG",
                cause="damaged picture",
            )
    return InputError(
        f"{label}: no image that Pillow can read; its first bytes are {content[:8].hex(' ')}", cause="no picture"
    )


def _no_decoder(kind: str) -> InputError:
    return InputError(f"no decoder for {kind}; convert it to PNG or JPEG", cause=f"no decoder for {kind}")


def _signed(content: bytes) -> str | None:
    """The format of NO_DECODER that a file's content shows, or None."""
    head = content[:SVG_HEAD].lower()
    if b"<svg" in head and b"<html" not in head:
        return "SVG"
    return next((kind for at, sign, kind in SIGNATURES if content.startswith(sign, at)), None)


def _named(label: str) -> str | None:
    """The format of NO_DECODER to which a file's name belongs, or None."""
    return UNREADABLE.get(posixpath.splitext(label)[1].lower())
