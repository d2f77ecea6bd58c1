"""The Python sources of the project, read and not imported: what tests/test_floors.py and tests/test_names.py judge."""

import ast
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
ROOTS = ("lumina_jax", "convert", "configs", "tests")


def module_name(path: Path) -> str:
    """Dotted name of a file below the repository: lumina_jax/model/__init__.py -> "lumina_jax.model"."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_sources(*roots: str) -> dict[str, str]:
    """Module name -> text of every Python file below ``roots``; without roots of the whole project, run.py included."""
    files = [path for root in roots or ROOTS for path in (REPO / root).rglob("*.py")]
    files += [] if roots else [REPO / "run.py"]
    return {module_name(path): path.read_text(encoding="utf-8") for path in sorted(files)}


def imports(source: str, top_level_only: bool = False) -> list[str]:
    """The dotted names a source imports; ``from a import b`` gives "a.b".

    ``top_level_only`` leaves out what a plain import of the file does not run: functions, and blocks under TYPE_CHECKING.
    """
    names = []
    for node in _nodes(ast.parse(source), into_functions=not top_level_only):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += ["." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def module_bindings(source: str) -> set[str]:
    """The names that a module has once it is imported: what its top level defines, assigns or imports, and its ``__all__``."""
    names = set()
    for node in _nodes(ast.parse(source), into_functions=False):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names |= set(ast.literal_eval(node.value))  # a module may find these when they are asked for
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _nodes(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """Every node below ``tree``. Without ``into_functions`` those of functions and of TYPE_CHECKING blocks are left out."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        yield node
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if into_functions or not (is_function or is_typing):
            nodes += ast.iter_child_nodes(node)
