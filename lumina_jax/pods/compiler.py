"""Which compiler compiles for a pod here, and which one a pod has that was set up after LAUNCH.md."""

import importlib.metadata
import platform

POD_SET = {"jax": "0.11.2", "libtpu": "0.0.48.1", "Python": "3.12"}
"""What LAUNCH.md installs on the hosts of a pod; requirements.txt beside this file installs the same on that Python."""


def installed_set() -> dict[str, str]:
    """The versions here of what POD_SET names; "none" for a package that is not installed."""
    versions = {}
    for package in ("jax", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions | {"Python": ".".join(platform.python_version_tuple()[:2])}


def compiler_line() -> str:
    """The versions that compile, and whether a pod has the same."""
    installed = installed_set()
    if installed == POD_SET:
        return f"compiler: {_words(installed)}, the set that LAUNCH.md installs on a pod"
    return (
        f"compiler: {_words(installed)}; LAUNCH.md installs another on a pod, {_words(POD_SET)}, and programs of two compilers "
        "differ: make a Python 3.12 environment and install lumina_jax/pods/requirements.txt there"
    )


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
