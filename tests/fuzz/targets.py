"""What is fuzzed: decoders and parsers, each with small valid inputs, the words of its formats, and a call.

The law: a call returns, or raises a UserError. Nothing else is raised; no input crashes, hangs or fills the memory.
"""

import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "pictures")]

from picture_corpus import PAIRS, corpus  # noqa: E402

from lumina_jax.config import DataConfig, SampleConfig  # noqa: E402
from lumina_jax.data.sources import open_source  # noqa: E402
from lumina_jax.data.sources.adapters import dialogue, imagefolder, mini_gemini, openhermes, pair  # noqa: E402
from lumina_jax.data.sources.csv_rows import RowFormat  # noqa: E402
from lumina_jax.data.sources.images import ImageFile  # noqa: E402
from lumina_jax.data.sources.json_list import unchanged  # noqa: E402
from lumina_jax.data.sources.record import stored_record  # noqa: E402
from lumina_jax.data.sources.token_record import StoredTokens  # noqa: E402
from lumina_jax.errors import UserError  # noqa: E402
from lumina_jax.model.patchvq import PatchVQ  # noqa: E402
from lumina_jax.pictures.pixels import crop, decode, whiten  # noqa: E402
from lumina_jax.sample.files import read_lines  # noqa: E402
from lumina_jax.sample.prompt import PromptBuilder  # noqa: E402
from lumina_jax.text import decode_text, parse_json  # noqa: E402
from lumina_jax.vocab import Vocab  # noqa: E402

ROW_FORMATS = [RowFormat(delimiter, quoted) for delimiter in ",;\t|" for quoted in (True, False)]
PIXELS = 1 << 20
"""Pillow's limit while fuzzing: larger pictures, which are refused by the same rule, would only take time."""
RECORDS = 20
"""Records read of each input."""


@dataclass(frozen=True)
class FuzzTarget:
    """``seeds`` makes valid inputs; ``call`` is tried with mutated ones, in an empty folder of its own."""

    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes]
    call: Callable[[bytes], object]


def picture_seeds() -> list[bytes]:
    """A small file or two of every kind of picture in every container."""
    contents = [case.content for case in itertools.islice(corpus(3 * len(PAIRS)), 3 * len(PAIRS))]
    return [content for content in contents if 0 < len(content) <= 1 << 14]


def picture(content: bytes) -> None:
    whiten(crop(decode(content, "the file"), (16, 16), (0.5, 0.5)))


def record(**fields: object) -> dict[str, object]:
    return fields


CONVERSATION = [{"from": "human", "value": "What is <|image|>?"}, {"from": "gpt", "value": "A dog 🐕, 1.5 m."}]
RECORDS_OF_JSON = [
    {"conversations": CONVERSATION, "image": "a.png"},
    {"conversations": [{"from": "system", "value": "Be kind."}, *CONVERSATION], "image": ["a.png"]},
    {"image": "a.png", "caption": "a “dog”\n\u2028 on the \\ left"},
    {"url": "b/ä.png", "captions": ["one", "two"], "n": 1e5, "deep": [[{"x": None}], True]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": -12},
]


def json_seeds() -> list[bytes]:
    lines = [json.dumps(item, ensure_ascii=number % 2 == 0) for number, item in enumerate(RECORDS_OF_JSON)]
    texts = ["\n".join(lines), f"[{', '.join(lines)}]", json.dumps(RECORDS_OF_JSON, indent=1), lines[0], "[]"]
    texts += [json.dumps({"data": RECORDS_OF_JSON}), "\r\n".join(lines) + "\r\n"]
    return [text.encode(code) for text in texts for code in ("utf-8", "utf-8-sig", "utf-16", "utf-32")]


def csv_seeds() -> list[bytes]:
    texts = [
        'image,caption\na.png,a dog\nb.png,"a ""cat"", two\nlines"\n',
        "sep=;\nfile_name;text\na.png;a dog\n",
        "caption\turl\na dog\thttp-like/a.png\r\na 'cat'\tb.png\r\n",
        "a dog,a/b.png\na cat,c.png\n",
        '"image"|"caption"|"x"\n"a.png"|"a dog"|1\n',
    ]
    return [text.encode(code) for text in texts for code in ("utf-8", "utf-8-sig", "utf-16", "utf-32")]


def _png(side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def tar_seeds() -> list[bytes]:
    def packed(format: int, files: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("s/3.png")
            link.type, link.linkname = tarfile.SYMTYPE, "1.png"
            tar.addfile(link)
        return file.getvalue()[:8192]

    files = {
        **{
            "s/1.png": _png(),
            "s/1.txt": b"a dog",
            "s/2.jpg": _png(),
            "s/2.json": json.dumps(RECORDS_OF_JSON[0]).encode(),
        },
        **{"s/._1.png": b"\0\5\x16\7", "__MACOSX/s": b"", "s/3.txt": b"a cat", "ä" * 120 + ".txt": b"long"},
    }
    few = dict(list(files.items())[:2])
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [packed(form, some) for form in formats for some in (few, files) if form or some is few]


def parquet_seeds() -> list[bytes]:
    columns = {
        "image": [{"bytes": _png(), "path": "a.png"}, {"bytes": None, "path": "b.png"}],
        "caption": ["a dog", "a cat"],
    }
    tables = [pa.table(columns), pa.table({"text": ["a"] * 9, "image_path": ["a.png"] * 9})]
    turns = [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]]
    tables.append(pa.table({"conversations": turns}))
    contents = []
    for table, options in itertools.product(
        tables, ({}, {"compression": "none", "use_dictionary": False}, {"compression": "zstd"})
    ):
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=4, **options)
        contents.append(file.getvalue())
    return contents


def prompt_seeds() -> list[bytes]:
    lines = [
        {"prompt": "A lighthouse at dusk."},
        {"prompt": "雪", "size": "96x64", "seed": 3},
        {"task": "question", "prompt": "What?", "image": "a.png", "seed": None},
        {"task": "edit", "prompt": "Make it red.", "images": ["a.png", "a.png"]},
        {"conversations": [{"from": "human", "value": "What?<|image|>"}], "image": ["a.png"], "codes": [None]},
    ]
    texts = ["\n".join(map(json.dumps, lines)), json.dumps(lines), "A cat.\n\nA dog \u2028 and\r\na {fox} [bold] %s\n"]
    return [text.encode(code) for text in texts for code in ("utf-8", "utf-8-sig", "utf-16")]


def spec_seeds() -> list[bytes]:
    specs = """folder:d folder:d@captions=txt webdataset:a.tar webdataset:{a,b}-{000..003}.tar webdataset:*.tar@i.npz
    parquet:a.parquet parquet:*.parquet@image=x,text=y pairs:a.csv@d pairs:a.tsv@quoted=yes a.jsonl a.csv
    openhermes:a.json mini-gemini:a.json@d magicbrush:d coco-pose:d d A.JSON"""
    return specs.encode().split()


def files_read(*names: str, kinds: Sequence[str] = ("",)) -> Callable[[bytes], None]:
    """A call that writes the input as one of the files ``names``, and reads its records as one of the ``kinds`` of sources.

    Which ones follows from the content, so that a saved input tells them.
    """

    def call(content: bytes) -> None:
        number = zlib.crc32(content)
        name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
        Path(name).write_bytes(content)
        source = open_source(kind.format(name) if kind else name)
        for index in range(min(len(source), RECORDS)):
            refusable(lambda index=index: source.stored(index))

    return call


def refusable(read: Callable[[], object]) -> None:
    """One record: a UserError is its reason, and does not end the reading of the others."""
    try:
        read()
    except UserError:
        return


def prompts(content: bytes) -> None:
    path = Path("p" + (".txt", ".jsonl", ".json")[zlib.crc32(content) % 3])
    path.write_bytes(content)
    Path("a.png").exists() or Path("a.png").write_bytes(_png(64))
    for line in read_lines(path)[:RECORDS]:
        refusable(lambda line=line: prompt_builder().from_record(line.record(), Path(), lambda task: SampleConfig()))


_BUILDERS: list[PromptBuilder] = []


def prompt_builder() -> PromptBuilder:
    if not _BUILDERS:
        toy = REPO / "assets" / "toy"
        few_codes = PatchVQ(PatchVQ.load(toy / "vq.npz").codebook[:4])
        _BUILDERS.append(PromptBuilder(few_codes, Vocab.load(toy), DataConfig(size=512), as_is=True))
    return _BUILDERS[0]


def spec(content: bytes) -> None:
    text = os.fsdecode(content)
    # Other places, networks and packages that take long to import are no parsers.
    if (
        not any(part in text for part in ("//", "..", "/.", "~", "tfds", "refcoco", "\\"))
        and ":/" not in text
        and "@/" not in text
    ):
        open_source(text[1:] if text.startswith("/") else text)


def json_text(content: bytes) -> None:
    parse_json(content)


def record_seeds() -> list[bytes]:
    return [json.dumps(item, ensure_ascii=number % 2 == 0).encode() for number, item in enumerate(RECORDS_OF_JSON * 2)]


def record_text(content: bytes) -> None:
    """A record of JSON in each of the forms it may have, without its file."""
    item = parse_json(content)
    for adapt in (unchanged, openhermes, mini_gemini, dialogue, pair, imagefolder):
        refusable(lambda adapt=adapt: stored_record(adapt(item), lambda image: ImageFile(f"{image}", b"")))


def row_seeds() -> list[bytes]:
    return [
        b'a.png,"a ""dog"", two\nlines"',
        b"a.png;a dog",
        "a.png\tein Hündchen".encode(),
        b'"a"|"b"|""',
        b"a,'b',c\r",
    ]


def row(content: bytes) -> None:
    text = decode_text(content, "the row")
    for form in ROW_FORMATS:
        refusable(lambda form=form: form.fields(text))


JSON_WORDS = (
    *rb'[ ] { } " , : \ null true NaN -Infinity 1e999 -0 \u0000 \ud800 \udc00 "" [] {}'.split(),
    *b'"image" "text" "conversations" "caption" "from" "value" "human" "gpt" <|image|> <image>'.split(),
    *(b"\n", b"\r\n", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"9" * 400),
)
CSV_WORDS = (
    *b'" "" , ; | \' image caption url sep= a.png /'.split(),
    *(b"\t", b"\n", b"\r", b"\r\n", b"\0", b"sep=,\n", b" ", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"x" * 300),
)
TAR_WORDS = (
    *b"././@LongLink PaxHeader path= 77777777777 00000000000 .png .txt .json L K x g S 1".split(),
    *(b"ustar\x0000", b"ustar  \0", b"21 size=99999999999\n", b"GNU.sparse.size=1\n", b"\x80\0\0\0", b"\0" * 512),
)
PARQUET_WORDS = (
    *b"PAR1 image caption bytes".split(),
    *(b"\x15\x00", b"\x19\x1c", b"\x18", b"\xff\xff\xff\x7f", b"\0" * 8),
)
PICTURE_WORDS = (
    *b"IHDR PLTE IDAT IEND tRNS iCCP eXIf zTXt iTXt acTL fcTL fdAT gAMA RIFF WEBP VP8L VP8X ANIM ALPH GIF89a".split(),
    *b"ftyp avif heic meta iprp ispe mdat BM P6 qoif acsp Adobe".split(),
    *(
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xe1",
        b"\xff\xee",
    ),
    *(
        b"VP8 ",
        b"\x21\xf9\x04",
        b"\x2c",
        b"II*\0",
        b"MM\0*",
        b"jP  ",
        b"\xff\x4f",
        b"\xff\x51",
        b"P5 ",
        b"\n#",
        b"DDS ",
    ),
    *(b"\x01\xda", b"\x0a\x05", b"Exif\0\0", b"ICC_PROFILE\0", b"999999999 ", b"/* XPM */"),
)
PROMPT_WORDS = (*JSON_WORDS, *b'"prompt" "size" "96x64" "task" "seed" "images" "a.png" "edit" x'.split())
SPEC_WORDS = (*b": @ , = { } .. * ? [ ] % # folder pairs".split(), b"\0", b"\xff", b" ")


def pickle_seeds() -> list[bytes]:
    samples = [
        {"token": [0, 7, 300, 70_000, 8710], "label": [-100, -100, 300, 70_000, 8710], "id": 3},
        {"token": [*range(1200)], "label": [*range(1200)], "id": "a"},
    ]
    return [pickle.dumps(sample, protocol) for sample in samples for protocol in (2, 4, 5)]


def token_file(content: bytes) -> None:
    StoredTokens("the file", {"id": 3}, content).decode()


PICKLE_WORDS = (
    *b"( ) ] } a e s u . N R b o i c P Q 0 2 K\x05 M\x05\x05 h\x00 q\x00 (h\x00e".split(),
    *(b"\x80\x04", b"\x93", b"\x94", b"\x85", b"\x81", b"\x82\x01", b"\x97", b"\x8a\x01\x05", b"\x95" + b"\xff" * 8),
    *(b"J\x9c\xff\xff\xff", b"X\xff\xff\xff\xff", b"r\xff\xff\xff\xff", b"\x8c\x05token", b"cos\nsystem\n"),
)
TARGETS = {
    "pickles": FuzzTarget(pickle_seeds, PICKLE_WORDS, token_file),
    "pictures": FuzzTarget(picture_seeds, PICTURE_WORDS, picture),
    "json": FuzzTarget(
        json_seeds,
        JSON_WORDS,
        files_read("a.json", "a.jsonl", kinds=("", "", "openhermes:{}", "mini-gemini:{}@d", "pairs:{}")),
    ),
    "json_text": FuzzTarget(json_seeds, JSON_WORDS, json_text),
    "records": FuzzTarget(record_seeds, JSON_WORDS, record_text),
    "rows": FuzzTarget(row_seeds, CSV_WORDS, row),
    "csv": FuzzTarget(
        csv_seeds, CSV_WORDS, files_read("a.csv", "a.tsv", kinds=("", "pairs:{}@quoted=yes", "pairs:{}@quoted=no"))
    ),
    "tar": FuzzTarget(tar_seeds, TAR_WORDS, files_read("a.tar", kinds=("webdataset:{}",))),
    "parquet": FuzzTarget(parquet_seeds, PARQUET_WORDS, files_read("a.parquet", kinds=("parquet:{}",))),
    "prompts": FuzzTarget(prompt_seeds, PROMPT_WORDS, prompts),
    "specs": FuzzTarget(spec_seeds, SPEC_WORDS, spec),
}
