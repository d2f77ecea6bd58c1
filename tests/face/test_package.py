"""What pip installs: all that the code reads, the versions that the tests run on, and one command line under two names."""

import sys
import tomllib
from importlib import import_module

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from project_sources import REPO

import lumina_jax
import run
from lumina_jax.cli import ending
from lumina_jax.cli.parser import as_called
from lumina_jax.errors import InputError
from lumina_jax.extras import install

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(file: str) -> list[Requirement]:
    """The requirements of a file of the repository, without those of the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in (REPO / file).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def for_python(version: str, found: list[Requirement]) -> dict[str, Requirement]:
    """By name, the requirements that hold on a Python."""
    on = {"python_version": version, "python_full_version": f"{version}.1"}
    return {each.name.lower().replace("_", "-"): each for each in found if not each.marker or each.marker.evaluate(on)}


@pytest.mark.parametrize(
    ("python", "file"),
    [
        ("3.11", "requirements.txt"),
        ("3.12", "requirements.txt"),
        ("3.13", "requirements.txt"),
        ("3.12", "requirements-jax012.txt"),
    ],
)
def test_the_versions_of_the_tests_are_all_that_the_package_asks_for(python, file):
    pins = for_python(python, requirements(file) + requirements("requirements-base.txt"))
    ranges = for_python(python, list(map(Requirement, PROJECT["dependencies"])))
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "==" and ranges[name].specifier.contains(version.version), f"{pin}: {ranges[name]}"


@pytest.mark.parametrize(
    ("file", "extras"), [("requirements-test.txt", ["test"]), ("lumina_jax/data/requirements-cloud.txt", ["gcs", "s3"])]
)
def test_the_versions_of_the_extras_are_in_their_ranges(file, extras):
    pins = for_python("3.12", requirements(file))
    ranges = for_python("3.12", [Requirement(line) for extra in extras for line in EXTRAS[extra]])
    assert pins.keys() == ranges.keys()
    assert all(ranges[name].specifier.contains(next(iter(pin.specifier)).version) for name, pin in pins.items())


def test_the_package_holds_all_that_the_code_reads_and_no_more(wheel):
    shipped = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    for folder in ("lumina_jax", "convert", "configs"):
        files = {path.relative_to(REPO).as_posix() for path in (REPO / folder).rglob("*") if path.is_file()}
        assert {name for name in files if "__pycache__" not in name} <= shipped
    assert {
        "lumina_jax/assets/toy/model.safetensors",
        "lumina_jax/py.typed",
        "lumina_jax/pods/compiled.json",
    } <= shipped
    roots = {name.split("/")[0] for name in shipped}
    assert roots == {"lumina_jax", "convert", "configs", f"lumina_jax-{lumina_jax.__version__}.dist-info"}


def test_the_version_has_one_home(wheel):
    metadata = (wheel / f"lumina_jax-{lumina_jax.__version__}.dist-info/METADATA").read_text(encoding="utf-8")
    assert f"\nVersion: {Version(lumina_jax.__version__)}\n" in metadata and PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT


def test_the_console_script_is_run_py(monkeypatch, capsys):
    module, _, name = PROJECT["scripts"]["lumina-jax"].partition(":")
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lumina-jax", "sample", "--prompt", "x", "--image", "y.png"])
    with pytest.raises(SystemExit) as ended:
        getattr(import_module(module), name)()
    assert ended.value.code == 2 and import_module(module).main is run.main
    error = capsys.readouterr().err
    assert "lumina-jax sample" in error and "run.py" not in error


def test_a_process_names_itself_as_it_was_called(monkeypatch, capsys):
    assert as_called("see run.py train --help") == "see run.py train --help"
    monkeypatch.setattr(sys, "argv", ["lumina-jax"])
    ending.tell_error("lumina-jax train", InputError("no shards; run.py pretokenize writes them"))
    with pytest.raises(SystemExit):
        run.main(["train", "--help"])
    printed = capsys.readouterr()
    assert printed.err == "lumina-jax train: no shards; lumina-jax pretokenize writes them\n"
    assert "usage: lumina-jax train" in printed.out and "run.py" not in printed.out


def test_an_extra_is_installed_for_the_copy_that_runs(monkeypatch, tmp_path):
    assert install("gcs") == f"pip install -e '{REPO}[gcs]'"
    monkeypatch.setattr("lumina_jax.extras.PACKAGE", tmp_path / "site-packages/lumina_jax")
    assert install("gcs") == 'pip install "lumina-jax[gcs]"'
