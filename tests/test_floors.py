"""The architecture, proved by reading the imports: a file uses only what lies below it."""

import ast
import graphlib
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from project_sources import REPO, imports, module_name, project_sources

FLOORS = (
    (
        "errors",
        "numbers",
        "text",
        "run_config",
        "pod_config",
        "config",
        "history",
        "released",
        "vocab",
        "batch",
        "places",
        "first_checks",
        "open_files",
        "storage",
        "progress",
        "faults",
        "extras",
        "compile_cache",
    ),
    ("layout", "conversation", "sharding", "pictures", "hub"),
    ("model", "cluster", "pixels"),
    ("data", "train", "sample"),
    ("toyworld", "evaluate", "pods"),
    ("cli",),
    ("face",),
)
"""The rooms of each floor: packages of lumina_jax, or single files of it. A file imports from lower floors and from its own
room; the single files of one floor count as one room. Inside a room no imports go in a circle. A new room is named here."""
OUTSIDE = ("configs", "convert", "tests", "run")
ALLOWED = (("cli", "convert"),)
"""(room, root) pairs: what of OUTSIDE a room may import nevertheless. Only the command line joins convert with the others."""
TORCH = ("torch", "torchvision", "transformers")


def floor_and_room(module: str) -> tuple[int, str] | None:
    """(floor, room) of a module of lumina_jax; None when FLOORS does not name its room."""
    first = module.split(".")[1]
    package = (REPO / "lumina_jax" / first).is_dir()
    return next(((floor, first * package) for floor, rooms in enumerate(FLOORS) if first in rooms), None)


def broken_laws(sources: dict[str, str]) -> list[str]:
    """The imports of ``sources`` (module name -> text) that break the floors, one line each."""
    wrong, graph = [], {}
    known = {*sources, *map(module_name, (REPO / "lumina_jax").rglob("*.py"))}
    for module, source in sources.items():
        if module == "lumina_jax":
            plain = imports(source, top_level_only=True)
            heavy = [n for n in imports(source) if n in plain or not n.startswith("lumina_jax.face.")]
            heavy = [n for n in heavy if n.split(".")[0] not in sys.stdlib_module_names]
            wrong += [f"lumina_jax/__init__.py imports {name}; it must import nothing" for name in heavy]
            continue
        if (home := floor_and_room(module)) is None:
            wrong.append(f"{module} has no floor; name its room in FLOORS of {Path(__file__).name}")
            continue
        floor, room = home
        for name in imports(source):
            root = name.split(".")[0]
            if not root:
                wrong.append(f"{module} imports {name}; write the full name")
            elif (root in OUTSIDE or root in TORCH) and (room, root) not in ALLOWED:
                wrong.append(f"{module} imports {name}, which lumina_jax never does")
            elif root == "lumina_jax" and name != "lumina_jax.__version__":
                target = floor_and_room(name) if "." in name else None
                if target is None:
                    wrong.append(f"{module} imports {name}, which has no floor")
                elif target == home:
                    graph.setdefault(module, set()).add(module_of(name, known))
                elif target[0] >= floor:
                    wrong.append(f"{module} (floor {floor}) imports {name} (floor {target[0]}), which is not below it")
    return wrong + [f"imports go in a circle: {' -> '.join(circle)}" for circle in circles(graph)]


def module_of(name: str, known: Iterable[str]) -> str:
    """The module that an imported name lies in: the longest prefix of the name among ``known``."""
    parts = name.split(".")
    return next(m for n in range(len(parts), 0, -1) if (m := ".".join(parts[:n])) in known)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The first circle of a graph (module -> modules it imports), if any: the modules along it, the first again at the end."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


@pytest.mark.smoke
def test_every_file_imports_only_from_below():
    sources = project_sources("lumina_jax")
    assert len(sources) > 5
    assert not broken_laws(sources), "\n".join(broken_laws(sources))


def test_convert_imports_torch_only_inside_functions():
    for module, source in project_sources("convert").items():
        torch = set(TORCH) & {name.split(".")[0] for name in imports(source, top_level_only=True)}
        assert not torch, f"{module} imports {torch} at its top; move it into the function"


def test_the_command_line_imports_its_rooms_only_inside_functions():
    for path in (REPO / "run.py", *sorted((REPO / "lumina_jax" / "cli").glob("*.py"))):
        for name in imports(path.read_text(), top_level_only=True):
            light = name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                ("lumina_jax.cli.", "lumina_jax.errors.", "lumina_jax.numbers.", "lumina_jax.__version__")
            )
            assert light, (
                f"{path.name} imports {name} at its top, which --help would wait for; move it into the function"
            )


BACKEND_FILES = (
    "lumina_jax.model.backend",
    "lumina_jax.model.cached_attention",
    "lumina_jax.model.cpu",
    "lumina_jax.model.cudnn",
    "lumina_jax.model.splash",
    "lumina_jax.model.rotation",
)


def platform_questions(sources: dict[str, str]) -> list[str]:
    """The uses of ``platform`` and ``default_backend`` in model, sample and train outside of BACKEND_FILES, one line each."""
    rooms = tuple(f"lumina_jax.{room}." for room in ("model", "sample", "train"))
    names = [
        (module, node.lineno, getattr(node, "id", getattr(node, "attr", None)))
        for module, source in sources.items()
        if module.startswith(rooms) and module not in BACKEND_FILES
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name | ast.Attribute)
    ]
    return [f"{module}, line {line}: {name}" for module, line, name in names if name in ("platform", "default_backend")]


def test_only_the_backend_files_ask_for_the_platform():
    assert not platform_questions(project_sources("lumina_jax"))
    fork = "from lumina_jax.sharding import platform\nif platform() == 'cpu': pass"
    assert len(platform_questions({"lumina_jax.sample.loop": fork, "lumina_jax.model.cpu": fork})) == 1
    assert platform_questions({"lumina_jax.train.step": "import jax\nx = jax.default_backend()"})


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
        ("lumina_jax.face.loading", "from lumina_jax.cli.models import load_for_sampling"),
        ("lumina_jax", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lumina_jax.face import load"),
    ],
)
def test_the_reader_accepts_what_is_below(module, source):
    assert broken_laws({module: source}) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lumina_jax.layout", "from lumina_jax.model.params import weight"),
        ("lumina_jax.vocab", "def f():\n    from lumina_jax import layout"),
        ("lumina_jax.train.step", "from lumina_jax.data import pipeline"),
        ("lumina_jax.sample.decode", "import lumina_jax.train.loss"),
        ("lumina_jax.evaluate.loss", "from lumina_jax.toyworld import judge"),
        ("lumina_jax.train.step", "from convert import load_model"),
        ("lumina_jax.train.step", "import run"),
        ("lumina_jax.cli.sample", "import run"),
        ("lumina_jax.cli.sample", "import torch"),
        ("lumina_jax.pods.plan", "from lumina_jax.cli.experiments import load_experiment"),
        ("lumina_jax.pictures.pixels", "import torch.nn"),
        ("lumina_jax.pictures.pixels", "from .vocab import Vocab"),
        ("lumina_jax.pictures.pixels", "import lumina_jax"),
        ("lumina_jax.unplaced", ""),
        ("lumina_jax", "from lumina_jax.vocab import Vocab"),
        ("lumina_jax", "from lumina_jax.face import load"),
        ("lumina_jax.cli.sample", "from lumina_jax.face import load"),
        ("lumina_jax.face.loading", "from convert import load_model"),
    ],
)
def test_the_reader_refuses_what_is_not(module, source):
    assert len(broken_laws({module: source})) == 1


def test_a_circle_inside_a_room_is_refused():
    files = {
        "lumina_jax.model.one": "from lumina_jax.model.two import a",
        "lumina_jax.model.two": "from lumina_jax.model import three",
        "lumina_jax.model.three": "import lumina_jax.model.one",
    }
    (line,) = broken_laws(files)
    assert all(module in line for module in files)
    del files["lumina_jax.model.three"]
    assert broken_laws(files | {"lumina_jax.model.three": ""}) == []
