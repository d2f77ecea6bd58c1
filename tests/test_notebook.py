"""The notebook: its cells run in order, in one process and an empty folder, on the shipped model; it is kept without outputs."""

import json

from PIL import Image
from project_sources import REPO, project_sources
from test_names import missing_imports

NOTEBOOK = REPO / "examples" / "lumina_jax.ipynb"
SKIPPED = {
    "install": "installs packages into the Python that runs it",
    "hub": "chooses weights of the hub, which no test can reach",
}
"""Tags of cells that are only checked for syntax and imports, and why they are not run."""
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    """The tags of a cell."""
    return cell["metadata"].get("tags", [])


def test_the_cells_run_on_the_shipped_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "notebook"}
    for number, cell in enumerate(CELLS):
        if not set(tags(cell)) & set(SKIPPED):
            exec(compile("".join(cell["source"]), f"cell {number} of {NOTEBOOK.name}", "exec"), names)
    size = names["SIZE"]
    groups = (names["painted"], names["edited"], names["depth"], names["first"].pictures, names["second"].pictures)
    assert [len(group) for group in groups] == [len(names["PROMPTS"]), 1, 1, 1, 1]
    assert all(isinstance(picture, Image.Image) and picture.size == size for group in groups for picture in group)
    assert "green" in names["answer"].text
    assert abs(names["looked"].shares.sum() - 1) < 1e-3
    assert "end-of-line" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_all_cells_are_kept_without_outputs_and_import_what_exists():
    sources = {f"cell{number}": "".join(cell["source"]) for number, cell in enumerate(CELLS)}
    assert missing_imports(project_sources() | sources) == []
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in CELLS)


def test_each_reason_to_skip_a_cell_is_of_use():
    assert {tag for cell in CELLS for tag in tags(cell)} == set(SKIPPED)
