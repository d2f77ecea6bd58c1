"""The save that is under way in the background, and what is said when it fails: at once, not at the next one."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lumina_jax.errors import StorageError
from lumina_jax.train.integrity import is_complete
from lumina_jax.train.run_folder import step_folders


class BackgroundSave:
    """The newest save into ``folder``. ``failed`` stays true when one has failed."""

    def __init__(self, folder: epath.Path):
        self._folder, self.failed = folder, False
        self._saving: tuple[int, Future[bool]] | None = None

    def begin(self, step: int, save: Callable[[], ocp.AsyncResponse[bool]]) -> None:
        """Calls ``save``, which returns while the checkpoint of ``step`` is still written. Raises StorageError."""
        with self._failures(step):
            self._saving = step, _in_background(save().result)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._saving is None or self._saving[1].done()

    def check(self, wait: bool) -> None:
        """Raises StorageError when the save failed; ``wait`` for its end, else this takes no time."""
        if self._saving and (wait or self.idle):
            (step, saved), self._saving = self._saving, None
            with self._failures(step):
                saved.result()

    @contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        """Names the checkpoint that could not be saved, and what is left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # a device, not a disk
            raise
        except (OSError, ValueError, RuntimeError) as error:
            self.failed = True
            whole = [path.name for path in step_folders(self._folder) if is_complete(path)]
            left = f"the newest that is whole is that of step {whole[0]}" if whole else "there is none before it"
            raise StorageError(
                f"{self._folder / str(step)} could not be saved: {' '.join(str(error).split())}; {left}; check the free space, the "
                "permissions and the connection, then start again"
            ) from error


def _in_background(wait: Callable[[], bool]) -> "Future[bool]":
    """The outcome of ``wait``, which a thread calls that never keeps the process from ending."""
    outcome: Future[bool] = Future()

    def run() -> None:
        try:
            outcome.set_result(wait())
        except BaseException as error:  # raised where the outcome is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, name="waiting for a save", daemon=True).start()
    return outcome
