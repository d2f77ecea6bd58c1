"""The package as it is built."""

import zipfile
from pathlib import Path

import pytest
from project_sources import REPO


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A folder as ``pip install .`` fills it: the wheel of the repository, unpacked."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("site-packages")
    (built,) = WheelBuilder(str(REPO)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder)
    return folder
