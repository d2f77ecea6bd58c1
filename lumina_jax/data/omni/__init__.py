"""The published sets of Omni-SFT as sources: files as they are published in, dialogs out. OMNI.md tells of each."""

from collections.abc import Callable

from lumina_jax.data.omni import depth, normals
from lumina_jax.data.omni.boxes import MdetrViews, ReferViews, TfdsViews
from lumina_jax.data.omni.captions import open_captions
from lumina_jax.data.omni.edits import EditSource
from lumina_jax.data.omni.options import choice, parse
from lumina_jax.data.omni.pose import PoseViews
from lumina_jax.data.omni.segments import SegmentViews
from lumina_jax.data.omni.sessions import MagicBrushFolder, MagicBrushParquet, SeedSessions
from lumina_jax.data.omni.views import Views, ViewSource
from lumina_jax.data.sources import files
from lumina_jax.data.sources.record import StoredSource
from lumina_jax.errors import InputError

FOLDER = {"captions": "", "match": "*"}
"""Options of sets whose views are found in a folder; with ``captions`` photos are painted from the pictures."""


def open_set(name: str, rest: str) -> StoredSource:
    """The set ``name`` of SETS as ``rest``, a PATH or PATH@option=value,..., describes it.

    Raises ValueError for an option that is not known or a form that is not the set's, OSError when a file is not there.
    """
    return SETS[name](rest)


def _magicbrush(rest: str) -> StoredSource:
    path, given = parse(rest, {"turns": "0"})
    most = _whole(given["turns"], "turns")
    return EditSource((MagicBrushParquet if path.endswith(".parquet") else MagicBrushFolder)(path), most)


def _seed_edit(rest: str) -> StoredSource:
    path, given = parse(rest, {"subset": "multi_turn", "turns": "0"})
    subset = choice(given["subset"], "subset", ("real", "multi_turn"))
    most = _whole(given["turns"], "turns")
    return EditSource(SeedSessions(files.join(path, f"{subset}_editing")), most)


def _vkitti2(rest: str) -> StoredSource:
    path, given = parse(rest, FOLDER)
    return _source(depth.vkitti2(path, given["match"]), given["captions"])


def _sintel(rest: str) -> StoredSource:
    path, given = parse(rest, {**FOLDER, "pass": "final"})
    render = choice(given["pass"], "pass", ("final", "clean"))
    return _source(depth.sintel(path, given["match"], render), given["captions"])


def _nyuv2(rest: str) -> StoredSource:
    path, given = parse(rest, {**FOLDER, "split": "train"})
    split = choice(given["split"], "split", ("train", "test"))
    return _source(normals.nyuv2(path, given["match"], split), given["captions"])


def _scannet(rest: str) -> StoredSource:
    path, given = parse(rest, FOLDER)
    return _source(normals.scannet(path, given["match"]), given["captions"])


def _coco_pose(rest: str) -> StoredSource:
    path, given = parse(rest, {"captions": "", "split": "train2017"})
    return _source(PoseViews(path, given["split"]), given["captions"])


def _oneformer(rest: str) -> StoredSource:
    path, given = parse(rest, {"images": "", "labels": "ade20k", "captions": ""})
    if not given["images"]:
        raise InputError(f"oneformer:{rest}: say where the images of the maps lie: oneformer:MAPS@images=DIR")
    return _source(SegmentViews(path, given["images"], given["labels"]), given["captions"])


def _refcoco(rest: str) -> StoredSource:
    chosen = {"dataset": "refcoco", "dataset_partition": "unc", "split": "train"}
    path, given = parse(rest, {"images": "", "data_dir": "", **chosen})
    if not path.endswith(".json"):
        return ViewSource(TfdsViews(path, given["data_dir"] or None))
    if not given["images"]:
        raise InputError(f"refcoco:{rest}: say where COCO's train2014 lies: refcoco:FILE.json@images=DIR")
    if path.rpartition("/")[2] == "refcoco.json":
        return ViewSource(ReferViews(path, given["images"], {key: given[key] for key in chosen}))
    return ViewSource(MdetrViews(path, given["images"]))


def _source(views: Views, captions: str) -> StoredSource:
    return ViewSource(views, open_captions(captions) if captions else None)


def _whole(value: str, name: str) -> int:
    if not value.isdigit():
        raise InputError(f"{name}={value}; give a whole number")
    return int(value)


SETS: dict[str, Callable[[str], StoredSource]] = {
    "magicbrush": _magicbrush,
    "seed-edit": _seed_edit,
    "vkitti2": _vkitti2,
    "sintel": _sintel,
    "nyuv2": _nyuv2,
    "scannet": _scannet,
    "coco-pose": _coco_pose,
    "oneformer": _oneformer,
    "refcoco": _refcoco,
}
