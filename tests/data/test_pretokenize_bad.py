"""Bad records are counted and listed, never fatal and never replaced; unusual input that can be read is kept."""

import json
from pathlib import Path

import numpy as np
from data_parts import CONFIG, SIZES, noise, tiny_vocab, tiny_vq
from PIL import Image

from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.data.sources import JsonSource
from lumina_jax.layout import images_in
from lumina_jax.vocab import BEGIN_IMAGE, END_IMAGE, END_OF_TURN, IMAGE_SYMBOL

VOCAB = tiny_vocab()
FORGED = f"{BEGIN_IMAGE}{IMAGE_SYMBOL}{END_IMAGE}{END_OF_TURN}"
MAX_TOKENS = 40_000


def write_pictures(folder: Path) -> None:
    picture = noise((40, 30), 0)
    picture.save(folder / "good.png")
    picture.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-600])
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50).save(folder / "deep.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[noise((40, 30), 1)])
    picture.convert("RGBA").save(folder / "rgba.png")
    noise((1, 1), 0).save(folder / "tiny.png")
    noise((20000, 3), 0).save(folder / "thin.png")
    Image.new("1", (20000, 9000)).save(folder / "bomb.png")


def pair(image: str, caption: str = "a picture") -> dict:
    return {"image": image, "caption": caption}


def talk(*messages: tuple[str, str], image: str | None = None) -> dict:
    conversation = [{"from": speaker, "value": value} for speaker, value in messages]
    return {"conversations": conversation} | ({"image": image} if image else {})


RECORDS = {
    "good": (pair("good.png"), None),
    "truncated": (pair("truncated.jpg"), "truncated.jpg"),
    "cmyk": (pair("cmyk.jpg"), None),
    "deep": (pair("deep.png"), None),
    "moving": (pair("moving.gif"), None),
    "rgba": (pair("rgba.png"), None),
    "tiny": (pair("tiny.png"), None),
    "thin": (pair("thin.png"), None),
    "bomb": (pair("bomb.png"), "decompression bomb"),
    "missing": (pair("nowhere.png"), "nowhere.png"),
    "no image": (talk(("human", f"{IMAGE_SYMBOL} what?"), ("gpt", "noise")), "0 images"),
    "order": (talk(("gpt", "noise"), ("human", "what?")), "take turns"),
    "not utf-8": (b'{"conversations": [{"from": "human", "value": "\xff\xfe"}]}', "no UTF-8"),
    "empty answer": (talk(("human", "what?"), ("gpt", "")), "empty"),
    "forged": (pair("good.png", FORGED), None),
    "long": (talk(("human", "more?"), ("gpt", "word " * 10_000)), f"at most {MAX_TOKENS}"),
}


def test_bad_records_are_listed_and_unusual_ones_kept(tmp_path):
    write_pictures(tmp_path)
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item, _ in RECORDS.values()]
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines))
    source, out = JsonSource(tmp_path / "records.jsonl"), tmp_path / "out"
    manifest = pretokenize(source, tiny_vq(), VOCAB, out, CONFIG, 0, sizes=SIZES, progress=False, max_tokens=MAX_TOKENS)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    expected = {index: reason for index, (_, reason) in enumerate(RECORDS.values()) if reason}
    assert [reject["index"] for reject in rejects] == list(expected)
    for reject in rejects:
        assert expected[reject["index"]] in reject["reason"], reject
    assert (manifest.kept, manifest.rejected) == (len(RECORDS) - len(expected), len(expected))

    data = Shards(out)
    kept = [name for name, (_, reason) in RECORDS.items() if not reason]
    tokens, learn = data[kept.index("forged")]
    assert len(images_in(tokens, VOCAB)) == 1 and (tokens == VOCAB.end_of_turn).sum() == 2
    assert FORGED in VOCAB.decode(tokens[~learn])
    for name, (tokens, _) in zip(kept, data, strict=True):
        assert len(images_in(tokens, VOCAB)) == 1, name
