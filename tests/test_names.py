"""Names, proved by reading the sources: what is imported exists, and no two public classes share a name."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_sources import module_bindings, project_sources


def missing_imports(sources: dict[str, str]) -> list[str]:
    """The imports of ``sources`` (module name -> text) that lead to no module or no name of them, one line each.

    Read are ``from a import b`` and ``import a``, inside functions too, and uses ``a.b`` of an imported module a.
    """
    modules = _Modules(sources)
    wrong = []
    for importer, source in sources.items():
        tree = ast.parse(source)
        aliases = {}
        for line, module, name, alias in _imported(tree):
            if not modules.of_project(module):
                continue
            if not modules.has(module, name):
                wrong.append(f"{importer}, line {line}: {module} has no {name}" if name else f"{importer}: no {module}")
            elif target := modules.as_module(module, name):
                aliases[alias] = target
        # A name that is also assigned somewhere may be another thing at the place of use.
        assigned = {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assigned |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = aliases.get(node.value.id)
                if target and node.value.id not in assigned and not modules.has(target, node.attr):
                    wrong.append(f"{importer}, line {node.lineno}: {target} has no {node.attr}")
    return wrong


def shared_class_names(sources: dict[str, str]) -> list[str]:
    """The names of more than one public class of ``sources``, one line each."""
    homes = defaultdict(list)
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    return [f"{name}: {', '.join(modules)}" for name, modules in sorted(homes.items()) if len(modules) > 1]


class _Modules:
    """The modules of ``sources`` and the names each binds; those of tests also as pytest finds them, without their folders."""

    def __init__(self, sources: dict[str, str]):
        self.bindings = {module: module_bindings(source) | DUNDERS for module, source in sources.items()}
        for module in sources:
            for end in range(1, len(parts := module.split("."))):  # packages, with and without an __init__.py
                self.bindings.setdefault(".".join(parts[:end]), set(DUNDERS))
        for module in [module for module in sources if module.startswith("tests.")]:
            _, *folders, file = module.split(".")
            for short in (".".join([*folders, file]), file):
                self.bindings.setdefault(short, self.bindings[module])
            for end in range(1, len(folders) + 1):
                self.bindings.setdefault(".".join(folders[:end]), set(DUNDERS))
        self.roots = {module.split(".")[0] for module in self.bindings}

    def of_project(self, module: str) -> bool:
        return module.split(".")[0] in self.roots

    def has(self, module: str, name: str) -> bool:
        """Whether ``from module import name`` works; without a name, ``import module``."""
        return module in self.bindings and (
            name in ("", "*") or name in self.bindings[module] or f"{module}.{name}" in self.bindings
        )

    def as_module(self, module: str, name: str) -> str:
        """The module that an import binds, "" when it binds something else."""
        full = f"{module}.{name}" if name else module
        return full if full in self.bindings and name not in self.bindings.get(module, ()) else ""


DUNDERS = {"__doc__", "__file__", "__name__", "__path__"}


def _imported(tree: ast.AST) -> Iterator[tuple[int, str, str, str]]:
    """(line, module, name, name it is bound to) of every import; the name is "" for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, "", alias.asname or ("" if "." in alias.name else alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, node.module, alias.name, alias.asname or alias.name


@pytest.mark.smoke
def test_every_imported_name_exists():
    wrong = missing_imports(project_sources())
    assert not wrong, "\n".join(wrong)


@pytest.mark.smoke
def test_no_two_files_of_tests_share_a_name():
    """pytest takes the second for the first wherever a worker collects both."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_classes_share_a_name():
    assert not shared_class_names(project_sources())


PLANTED = {
    "lumina_jax": "",
    "lumina_jax.kept": "import os\nKEPT = 1\ndef kept(): inner = 2\nif KEPT:\n    also = 3",
    "lumina_jax.room.inside": "class Inside: pass",
    "tests.room.test_parts": "",
}


@pytest.mark.parametrize(
    "source",
    [
        "from lumina_jax.kept import KEPT, also, kept, os",
        "from lumina_jax.room import inside\ninside.Inside",
        "import lumina_jax.room.inside\nfrom lumina_jax import kept as other\nother.kept",
        "import numpy as np\nfrom jax import anything\nnp.anything",
        "from lumina_jax import kept\ndef f(kept): return kept.anything",
        "import project_sources",
    ],
)
def test_imports_of_what_is_there_pass(source):
    assert missing_imports(PLANTED | {"tests.project_sources": "", "tests.planted": source}) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from lumina_jax.kept import gone", "lumina_jax.kept has no gone"),
        ("from lumina_jax.kept import inner", "lumina_jax.kept has no inner"),
        ("def f():\n    from lumina_jax.gone import anything", "line 2: lumina_jax.gone has no anything"),
        ("import lumina_jax.gone", "no lumina_jax.gone"),
        ("from lumina_jax import gone", "lumina_jax has no gone"),
        (
            "from lumina_jax.room import inside\ndef f():\n    inside.Gone()",
            "line 3: lumina_jax.room.inside has no Gone",
        ),
        ("import project_sources\nproject_sources.gone", "line 2: project_sources has no gone"),
    ],
)
def test_a_planted_import_of_what_is_gone_is_refused(source, message):
    (line,) = missing_imports(PLANTED | {"tests.project_sources": "", "tests.planted": source})
    assert line.startswith("tests.planted") and message in line


def test_a_planted_second_class_of_a_name_is_refused():
    sources = {"lumina_jax.one": "class Desk: pass\nclass _Part: pass", "tests.bench.two": "class _Part: pass"}
    assert shared_class_names(sources) == []
    assert shared_class_names(sources | {"tests.test_three": "def f():\n    class Desk: pass"}) == [
        "Desk: lumina_jax.one, tests.test_three"
    ]
