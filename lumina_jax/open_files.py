"""The limit of open files of this process, raised where its hard limit allows."""

import resource

from lumina_jax.errors import StorageError

SPARE_FILES = 256
"""Open files for everything else that a process does."""


def allow_open_files(count: int, what: str, cure: str) -> None:
    """Raises this process's soft limit of open files to hold ``count`` of them beside SPARE_FILES.

    Raises StorageError when its hard limit is lower: "``what``, which needs N open files, but M are allowed; ``cure``".
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StorageError(f"{what}, which needs {needed} open files, but {hard} are allowed; {cure}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
