"""The architecture, proved by reading the imports: a file uses only what lies below it."""

import ast
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# One dict per floor, room -> its files; a file may import those before it in its room, and every file of a lower floor.
# The room "" is the files that lie in lumina_jax itself. A new file must be given its place here.
FLOORS = (
    {"": ("config", "vocab", "batch", "page")},
    {"": ("layout", "conversation", "pixels", "maps", "marks", "measures", "sharding")},
    {"model": ("params", "int8", "parts", "rotation", "attention", "splash", "chameleon", "vqvae", "patchvq")},
    {
        "data": (
            "meter",
            "folder",
            "shards",
            "sources.files",
            "sources.recent",
            "sources.images",
            "sources.record",
            "sources.spans",
            "sources.adapters",
            "sources.lumina",
            "sources.table",
            "sources.folder",
            "sources.webdataset",
            "sources.parquet",
            "sources.prepared",
            "omni.options",
            "omni.members",
            "omni.captions",
            "omni.pictures",
            "omni.views",
            "omni.depth",
            "omni.normals",
            "omni.segments",
            "omni.pose",
            "omni.boxes",
            "omni.sessions",
            "omni.edits",
            "omni",
            "sources",
            "items.items_dataset_builder",
            "items",
            "prepare",
            "export",
            "totals",
            "encode",
            "making",
            "pretokenize",
            "beam",
            "order",
            "index",
            "mixture",
            "packing",
            "buckets",
            "pipeline",
            "sheet",
            "inspect",
        ),
        "train": (
            "roll",
            "desk",
            "processes",
            "agreement",
            "loss",
            "optim",
            "step",
            "programs",
            "trace",
            "checkpoint",
            "metrics",
            "loop",
        ),
        "sample": ("guidance", "request", "speculative", "loop", "decode", "stream", "picture", "ask", "live", "job"),
    },
    {
        "toyworld": (
            "figures",
            "scenes",
            "captions",
            "judge",
            "views",
            "edits",
            "questions",
            "exercises",
            "omni_judge",
            "source",
            "omni",
            "tokenizer",
            "fit",
            "omni_fit",
            "drawings",
            "report",
            "score",
            "tasks",
            "task_sheet",
            "grow",
            "quickstart",
            "omni_quickstart",
        ),
        "evaluate": ("heldout", "reconstruction", "attention", "refine"),
        "pods": (
            "chips",
            "topology",
            "flags",
            "hlo",
            "kernels",
            "traffic",
            "collectives",
            "executable",
            "compile",
            "report",
            "plan",
        ),
    },
    {
        "cli": (
            "experiments",
            "models",
            "processes",
            "quickstart",
            "pretokenize",
            "data",
            "train",
            "sample",
            "convert",
            "evaluate",
        ),
    },
)
OUTSIDE = ("configs", "convert", "tests", "run")
ALLOWED = (("cli", "convert"),)
"""(room, root): what of OUTSIDE a room may import after all; the command line joins convert with the others."""
TORCH = ("torch", "torchvision", "transformers")


def places() -> dict[str, tuple[int, str, int]]:
    """Module name -> (floor, room, rank in its room); a room's own __init__ stands behind its files."""
    found = {}
    for floor, rooms in enumerate(FLOORS):
        for room, files in rooms.items():
            package = f"lumina_jax.{room}" if room else "lumina_jax"
            found |= {f"{package}.{file}": (floor, room, rank) for rank, file in enumerate(files)}
            if room:
                found[package] = (floor, room, len(files))
    return found


def imports(source: str, top_level_only: bool = False) -> list[str]:
    """The dotted names a source imports; ``from a import b`` gives "a.b"."""
    names = []
    nodes = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += ["." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names]
        if not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return names


def module_of(name: str, known: dict) -> str | None:
    """The placed module that an imported name lies in: its longest known beginning."""
    parts = name.split(".")
    return next((m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in known), None)


def broken_laws(sources: dict[str, str]) -> list[str]:
    """What is wrong with the imports of ``sources`` (module name -> text), one line each."""
    known, wrong = places(), []
    for module, source in sources.items():
        if module == "lumina_jax":
            wrong += [f"lumina_jax/__init__.py imports {name}; it must import nothing" for name in imports(source)]
            continue
        if module not in known:
            wrong.append(f"{module} has no place; give it one in FLOORS of {Path(__file__).name}")
            continue
        floor, room, rank = known[module]
        for name in imports(source):
            root = name.split(".")[0]
            if not root:
                wrong.append(f"{module} imports {name}; write the full name")
            elif (root in OUTSIDE or root in TORCH) and (room, root) not in ALLOWED:
                wrong.append(f"{module} imports {name}, which lumina_jax never does")
            elif root == "lumina_jax":
                target = module_of(name, known)
                if target is None:
                    wrong.append(f"{module} imports {name}, which has no place")
                    continue
                target_floor, target_room, target_rank = known[target]
                same_room = (target_floor, target_room) == (floor, room)
                if not (target_rank < rank if same_room else target_floor < floor):
                    wrong.append(
                        f"{module} (floor {floor}) imports {target} (floor {target_floor}), which is not below it"
                    )
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.smoke
def test_every_file_imports_only_from_below():
    files = sorted((REPO / "lumina_jax").rglob("*.py"))
    sources = {module_name(path): path.read_text() for path in files}
    assert len(sources) > 5
    assert not broken_laws(sources), "\n".join(broken_laws(sources))


def test_convert_imports_torch_only_inside_functions():
    for path in sorted((REPO / "convert").rglob("*.py")):
        roots = {name.split(".")[0] for name in imports(path.read_text(), top_level_only=True)}
        assert not roots & set(TORCH), f"{path.name} imports {roots & set(TORCH)} at its top; move it into the function"


def test_the_command_line_imports_its_rooms_only_inside_functions():
    for path in (REPO / "run.py", *sorted((REPO / "lumina_jax" / "cli").glob("*.py"))):
        for name in imports(path.read_text(), top_level_only=True):
            light = name.split(".")[0] in sys.stdlib_module_names or name.startswith("lumina_jax.cli.")
            assert light, (
                f"{path.name} imports {name} at its top, which --help would wait for; move it into the function"
            )


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lumina_jax.layout", "from lumina_jax.vocab import Vocab"),
        ("lumina_jax.conversation", "from lumina_jax.layout import encode_grid"),
        ("lumina_jax.train.step", "from lumina_jax.train import loss, optim\nfrom lumina_jax.batch import Batch"),
        ("lumina_jax.train.step", "import jax\nimport numpy as np\nfrom lumina_jax.model.params import weight"),
        ("lumina_jax.sample", "from lumina_jax.sample.decode import generate"),
        ("lumina_jax.toyworld.judge", "from lumina_jax.sample import generate"),
        ("lumina_jax.cli.convert", "def f():\n    from convert import load_model"),
    ],
)
def test_the_reader_accepts_what_is_below(module, source):
    assert broken_laws({module: source}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lumina_jax.layout", "from lumina_jax.conversation import tokenize"),
        ("lumina_jax.vocab", "def f():\n    from lumina_jax import layout"),
        ("lumina_jax.model.parts", "from lumina_jax.model.attention import Attention"),
        ("lumina_jax.model.parts", "from lumina_jax.model import weight"),
        ("lumina_jax.train.step", "from lumina_jax.data import pipeline"),
        ("lumina_jax.sample.decode", "import lumina_jax.train.loss"),
        ("lumina_jax.evaluate.loss", "from lumina_jax.toyworld import judge"),
        ("lumina_jax.train.step", "from convert import load_model"),
        ("lumina_jax.train.step", "import run"),
        ("lumina_jax.cli.sample", "import run"),
        ("lumina_jax.cli.sample", "import torch"),
        ("lumina_jax.pods.plan", "from lumina_jax.cli.experiments import load_experiment"),
        ("lumina_jax.pixels", "import torch.nn"),
        ("lumina_jax.pixels", "from .vocab import Vocab"),
        ("lumina_jax.pixels", "import lumina_jax"),
        ("lumina_jax.unplaced", ""),
        ("lumina_jax", "from lumina_jax.vocab import Vocab"),
    ],
)
def test_the_reader_refuses_what_is_not(module, source):
    assert len(broken_laws({module: source})) == 1
