"""Folders, tar shards and Parquet: every published form is read, bad members are listed, nothing is lost."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import noise

from lumina_jax.data.sources import Source, open_source
from lumina_jax.data.sources import webdataset as tars
from lumina_jax.vocab import IMAGE_SYMBOL

LUMINA = [{"from": "human", "value": f"What? {IMAGE_SYMBOL}"}, {"from": "gpt", "value": "A dog."}]
LLAVA = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]


def png(seed: int, size=(12, 8)) -> bytes:
    file = io.BytesIO()
    noise(size, seed).save(file, "PNG")
    return file.getvalue()


def reason(source: Source, index: int) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        source[index]
    return str(error.value)


def is_noise(image, seed: int) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(noise((12, 8), seed)))


# Folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(["a.png", "b.PNG", "sub/a.png", "c.png", "d.png", "bad.png"]):
        (tmp_path / name).write_bytes(png(seed))
    (tmp_path / "a.txt").write_text("an a\n")
    (tmp_path / "b.caption").write_text("a b")
    (tmp_path / "sub" / "a.json").write_text(json.dumps({"conversations": LUMINA, "image": "elsewhere.png"}))
    (tmp_path / "d.json").write_text(json.dumps({"text": "a d", "seed": 3}))
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "orphan.txt").write_text("no image")
    (tmp_path / "notes.md").write_text("not ours")
    return tmp_path


def test_a_folder_reads_each_image_with_its_caption_file(folder):
    source = open_source(f"folder:{folder}")
    assert len(source) == 7
    assert [source[i].caption for i in (0, 1, 4)] == ["an a", "a b", "a d"]
    assert source[6].turns == [(f"What? {IMAGE_SYMBOL}", "A dog.")] and is_noise(source[6].images[0], 2)
    assert "bad.png: bad.txt: byte 0xff at offset 0 is no UTF-8" in reason(source, 2)
    assert "c.png: no caption beside it; looked for .txt" in reason(source, 3)
    assert "orphan.txt: a record with a caption has one image" in reason(source, 5)


def test_the_fingerprint_of_a_folder_follows_names_and_captions(folder):
    before = open_source(f"folder:{folder}").fingerprint
    assert open_source(f"folder:{folder}/").fingerprint == before
    (folder / "a.txt").write_text("an b\n")
    changed = open_source(f"folder:{folder}").fingerprint
    (folder / "a.png").rename(folder / "e.png")
    assert len({before, changed, open_source(f"folder:{folder}").fingerprint}) == 3


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        open_source(f"folder:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(f"folder:{tmp_path}/none")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_of_an_image_folder_comes_first(folder, kind):
    rows = [{"file_name": "sub/a.png", "text": "two"}, {"file_name": "none.png", "text": "x"}]
    lines = map(json.dumps, rows) if kind == "jsonl" else ["file_name,text", *(",".join(row.values()) for row in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines))
    source = open_source(f"folder:{folder}")
    assert source[0].caption == "two" and is_noise(source[0].images[0], 2)
    assert "none.png: No such file" in reason(source, 1)
    # What no row names is read as in a folder without metadata.
    assert len(source) == 2 + 6 and [source[i].caption for i in (2, 3, 6)] == ["an a", "a b", "a d"]
    assert "c.png: no caption beside it" in reason(source, 5)


def test_metadata_may_hold_dialogues(folder):
    rows = [{"file_name": "a.png", "conversations": LLAVA}, {"file_names": ["a.png"], "conversations": LUMINA}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(f"folder:{folder}")
    assert [source[i].turns[0][0] for i in range(2)] == [f"{IMAGE_SYMBOL}\nWhat?", f"What? {IMAGE_SYMBOL}"]


# Tar shards


def write_tar(path, members: dict[str, bytes], **options) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    write_tar(
        tmp_path / "s-00.tar",
        {
            "000.png": png(0),
            "000.txt": "a dög".encode(),
            "000.json": json.dumps({"caption": "other", "status": "success", "url": "http://none"}).encode(),
            "001.json": json.dumps({"caption": "from json"}).encode(),
            "001.png": png(1),
            "x/002.0.png": png(2),
            "x/002.1.png": png(3),
            "x/002.json": json.dumps(
                {"conversations": [{"from": "human", "value": "<image>?<image>"}, LLAVA[1]]}
            ).encode(),
            "003.png": png(4),
        },
        format=tarfile.PAX_FORMAT,
    )
    long = "y" * 120 + "/ü004"
    write_tar(
        tmp_path / "s-01.tar",
        {
            f"{long}.PNG": png(5),
            f"{long}.caption": b"long name",
            "005.txt": b"no image",
            "006.jpg": b"broken",
            "006.txt": b"x",
            "007.json": json.dumps({"conversations": LUMINA}).encode(),
            "007.png": png(6),
            "008.json": json.dumps({"conversations": [LLAVA[1]]}).encode(),
            "009.png": png(7),
            "009.txt": b"the last",
        },
        format=tarfile.GNU_FORMAT,
    )
    return tmp_path


def test_tar_shards_read_by_number(shards):
    source = open_source(f"webdataset:{shards}/s-{{00..01}}.tar")
    assert len(source) == 10
    assert [source[i].caption for i in (9, 0, 4, 1)] == ["the last", "a dög", "long name", "from json"]
    assert [is_noise(source[i].images[0], seed) for i, seed in {0: 0, 1: 1, 4: 5, 9: 7}.items()] == [True] * 4
    two = source[2]
    assert two.turns[0][0] == f"{IMAGE_SYMBOL}?{IMAGE_SYMBOL}"
    assert [is_noise(image, seed) for image, seed in zip(two.images, (2, 3), strict=True)] == [True] * 2
    assert source[7].turns[0][0] == f"What? {IMAGE_SYMBOL}"
    assert "s-00.tar/003: no caption: the sample holds 003.png" in reason(source, 3)
    assert "s-01.tar/005: a record with a caption has one image" in reason(source, 5)
    assert "s-01.tar/006.jpg: no image that Pillow can read" in reason(source, 6)
    assert "s-01.tar/008: message 0 is from 'gpt'" in reason(source, 8)


def test_an_index_is_used_while_the_shards_stay_the_same(shards, monkeypatch):
    spec = f"webdataset:{shards}/s-*.tar@{shards}/kept/index.npz"
    first = open_source(spec)
    with monkeypatch.context() as patch:
        patch.setattr(tars, "_samples", None)
        again = open_source(spec)
    assert again.fingerprint == first.fingerprint and again[0].caption == "a dög"
    write_tar(shards / "s-02.tar", {"010.png": png(8), "010.txt": b"new"})
    grown = open_source(spec)
    assert len(grown) == 11 and grown[10].caption == "new" and grown.fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["cut in a member", "cut in a header", "header overwritten", "empty", "no tar"])
def test_a_damaged_shard_keeps_the_samples_before_the_damage(tmp_path, damage):
    members = {f"{i:03d}.{kind}": png(i) if kind == "png" else b"x" * 700 for i in range(4) for kind in ("png", "txt")}
    write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar") as tar:
        third = tar.getmember("002.png").offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    if damage == "cut in a member":
        content = content[: third + 700]
    elif damage == "cut in a header":
        content = content[: third + 100]
    elif damage == "header overwritten":
        content[third : third + 512] = b"?" * 512
    else:
        content = b"" if damage == "empty" else b"<html>" * 200
    (tmp_path / "a.tar").write_bytes(bytes(content))
    write_tar(tmp_path / "b.tar", {"z.png": png(9), "z.txt": b"after"})
    source = open_source(f"webdataset:{tmp_path}/*.tar")
    kept = 0 if damage in ("empty", "no tar") else 2
    assert [source[i].caption for i in range(kept)] == ["x" * 700] * kept
    assert "a.tar" in reason(source, kept)
    assert len(source) == kept + 2 and source[kept + 1].caption == "after"


def test_folders_and_padding_in_a_shard_are_no_records(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {"x": None, "x/0.png": png(0), "y": None, "x/0.txt": b"zero", "z": None}.items():
            member = tarfile.TarInfo(name)
            member.type, member.size = (tarfile.REGTYPE, len(content)) if content else (tarfile.DIRTYPE, 0)
            tar.addfile(member, io.BytesIO(content or b""))
    write_tar(tmp_path / "b.tar", {})
    source = open_source(f"webdataset:{tmp_path}/*.tar")
    assert len(source) == 1 and source[0].caption == "zero"


def test_a_compressed_shard_is_an_error(tmp_path):
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed"):
        open_source(f"webdataset:{tmp_path}/*.gz")


# Parquet


def features(**kinds: str) -> dict[str, str]:
    metadata = {name: {"_type": kind} for name, kind in kinds.items()}
    return {"huggingface": json.dumps({"info": {"features": metadata}})}


def write_parquet(path, columns: dict, metadata: dict[str, str] | None = None, group: int = 2) -> None:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


def test_parquet_rows_read_by_number(tmp_path):
    (tmp_path / "far.png").write_bytes(png(4))
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
    images += [{"bytes": None, "path": "far.png"}, {"bytes": b"broken", "path": "broken.png"}, None]
    captions = [f"caption {i}" for i in range(7)]
    for name, rows_of_file in (("a-0.parquet", slice(0, 5)), ("a-1.parquet", slice(5, 7))):
        columns = {
            "image": images[rows_of_file],
            "text": captions[rows_of_file],
            "weight": [[0.0]] * len(images[rows_of_file]),
        }
        write_parquet(tmp_path / name, columns, features(image="Image", text="Value"))
    source = open_source(f"parquet:{tmp_path}/a-*.parquet")
    assert len(source) == 7
    for index in (4, 0, 3, 2, 1, 0):
        assert source[index].caption == f"caption {index}" and is_noise(source[index].images[0], index)
    assert "a-1.parquet, row group 0, row 0, broken.png: no image that Pillow can read" in reason(source, 5)
    assert "a-1.parquet, row group 0, row 1: a record with a caption has one image" in reason(source, 6)
    with pytest.raises(IndexError):
        source[7]
    assert pickle.loads(pickle.dumps(source))[3].caption == "caption 3"


def test_parquet_dialogues(tmp_path):
    system = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yo"},
    ]
    write_parquet(tmp_path / "text.parquet", {"conversations": [system], "source": ["x"]})
    assert open_source(f"parquet:{tmp_path}/text.parquet")[0].turns == [("Be brief.\n\nHi", "Yo")]
    images = [[{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}], [{"bytes": png(2), "path": None}], []]
    talks = [
        [{"from": "human", "value": "<image> <image>"}, LLAVA[1]],
        LLAVA,
        [{"from": "human", "value": "Hi"}, LLAVA[1]],
    ]
    write_parquet(tmp_path / "talks.parquet", {"images": images, "conversations": talks})
    source = open_source(f"parquet:{tmp_path}/talks.parquet")
    assert [len(source[i].images) for i in range(3)] == [2, 1, 0]
    assert source[1].turns[0][0] == f"{IMAGE_SYMBOL}\nWhat?" and is_noise(source[1].images[0], 2)


def test_parquet_columns_may_be_given(tmp_path):
    columns = {"photo": [png(0)], "image": ["none.png"], "en": ["english"], "text": ["other"]}
    write_parquet(tmp_path / "a.parquet", columns)
    metadata = open_source(f"parquet:{tmp_path}/a.parquet@image=photo,text=en")[0]
    assert metadata.caption == "english" and is_noise(metadata.images[0], 0)
    write_parquet(tmp_path / "a.parquet", columns, features(photo="Image"))
    assert is_noise(open_source(f"parquet:{tmp_path}/a.parquet")[0].images[0], 0)
    with pytest.raises(ValueError, match="no column 'foto', only photo, image"):
        open_source(f"parquet:{tmp_path}/a.parquet@image=foto")
    write_parquet(tmp_path / "a.parquet", {"x": [1], "y": [2]})
    with pytest.raises(ValueError, match="has columns x, y: which is the image"):
        open_source(f"parquet:{tmp_path}/a.parquet")


def test_a_cut_parquet_file_is_an_error_at_once(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [png(0)], "text": ["x"]})
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file, or is cut short"):
        open_source(f"parquet:{tmp_path}/a.parquet")


def test_a_damaged_row_group_is_a_bad_record(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [png(i) for i in range(4)], "text": ["x"] * 4})
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:200] = b"\xff" * 196
    (tmp_path / "a.parquet").write_bytes(bytes(content))
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert "a.parquet" in reason(source, 0)
    assert source[3].caption == "x"
