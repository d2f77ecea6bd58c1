"""The published sets of Omni-SFT as sources: reads the files as they are published, yields dialogs. OMNI.md describes each."""

from collections.abc import Callable, Mapping

from lumina_jax.data.omni import depth, normals
from lumina_jax.data.omni.boxes import MdetrViews, ReferViews, TfdsViews
from lumina_jax.data.omni.captions import open_captions
from lumina_jax.data.omni.edits import EditSource
from lumina_jax.data.omni.pose import PoseViews
from lumina_jax.data.omni.segments import SegmentViews
from lumina_jax.data.omni.sessions import MagicBrushFolder, MagicBrushParquet, SeedSessions
from lumina_jax.data.omni.views import FolderViews, Views, ViewSource
from lumina_jax.data.sources import files
from lumina_jax.data.sources.options import choice, parse
from lumina_jax.data.sources.record import StoredSource
from lumina_jax.errors import InputError

Opener = Callable[[str], StoredSource]


def _magicbrush(rest: str) -> StoredSource:
    path, options = parse(rest, {"turns": "0"})
    max_turns = _max_turns(options)
    return EditSource((MagicBrushParquet if path.endswith(".parquet") else MagicBrushFolder)(path), max_turns)


def _seed_edit(rest: str) -> StoredSource:
    path, options = parse(rest, {"subset": "multi_turn", "turns": "0"})
    subset = choice(options["subset"], "subset", ("real", "multi_turn"))
    max_turns = _max_turns(options)
    return EditSource(SeedSessions(files.join(path, f"{subset}_editing")), max_turns)


def _folder(views: Callable[..., FolderViews], option: str = "", values: tuple[str, ...] = ("",)) -> Opener:
    """A set that is a folder of files; ``option``, with ``values`` of which the first is the default, is passed to ``views``."""

    def open_folder(rest: str) -> StoredSource:
        path, options = parse(rest, {"captions": "", "match": "*"} | ({option: values[0]} if option else {}))
        arguments = [choice(options[option], option, values)] if option else []
        return _source(views(path, options["match"], *arguments), options["captions"])

    return open_folder


def _coco_pose(rest: str) -> StoredSource:
    path, options = parse(rest, {"captions": "", "split": "train2017"})
    return _source(PoseViews(path, options["split"]), options["captions"])


def _oneformer(rest: str) -> StoredSource:
    path, options = parse(rest, {"images": "", "labels": "ade20k", "captions": ""})
    if not options["images"]:
        raise InputError(f"oneformer:{rest}: name the folder of the maps' images: oneformer:MAPS@images=DIR")
    return _source(SegmentViews(path, options["images"], options["labels"]), options["captions"])


def _refcoco(rest: str) -> StoredSource:
    selection = {"dataset": "refcoco", "dataset_partition": "unc", "split": "train"}
    path, options = parse(rest, {"images": "", "data_dir": "", **selection})
    if not path.endswith(".json"):
        return ViewSource(TfdsViews(path, options["data_dir"] or None))
    if not options["images"]:
        raise InputError(f"refcoco:{rest}: name the folder of COCO's train2014: refcoco:FILE.json@images=DIR")
    if path.rpartition("/")[2] == "refcoco.json":
        return ViewSource(ReferViews(path, options["images"], {key: options[key] for key in selection}))
    return ViewSource(MdetrViews(path, options["images"]))


def _source(views: Views, captions: str) -> StoredSource:
    return ViewSource(views, open_captions(captions) if captions else None)


def _max_turns(options: Mapping[str, str]) -> int:
    turns = options["turns"]
    if not turns.isdigit():
        raise InputError(f"turns={turns}; give a whole number: the most turns of a dialog, or 0 for no limit")
    return int(turns)


SETS: dict[str, Opener] = {
    "magicbrush": _magicbrush,
    "seed-edit": _seed_edit,
    "vkitti2": _folder(depth.vkitti2),
    "sintel": _folder(depth.sintel, "pass", ("final", "clean")),
    "nyuv2": _folder(normals.nyuv2, "split", ("train", "test")),
    "scannet": _folder(normals.scannet),
    "coco-pose": _coco_pose,
    "oneformer": _oneformer,
    "refcoco": _refcoco,
}
"""Open a set from PATH or PATH@option=value,...: InputError for an unknown option or files of another form."""
