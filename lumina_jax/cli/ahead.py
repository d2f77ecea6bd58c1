"""The prompts of run.py sample, made before the weights are read, so that their programs are compiled meanwhile."""

import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from lumina_jax.cli.live import programs


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Does ``work`` in a thread during the block, and waits for its end; an error of ``work`` is not raised.

    It does ahead of time what is done again where it is needed, and an error is raised there. Ctrl-C does not wait.
    """

    def attempt() -> None:
        try:
            work()
        except Exception:  # raised again where the main thread does the same
            return

    thread = threading.Thread(target=attempt, name="compiling ahead", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        thread.join()
        raise
    thread.join()


class PromptsAhead:
    """What ``make`` (vocab, image tokenizer, experiment) returns, a tuple that begins with the prompts; made once for one vocab.

    Called with the form of the model (convert.model_form) it makes them, and returns a context in which their programs are
    compiled.
    """

    def __init__(self, options: Namespace, share: tuple[int, int], make: Callable[..., tuple]):
        self._options, self._share, self._make = options, share, make
        self._made: tuple[object, tuple] | None = None

    def __call__(self, form, vocab, vq, experiment) -> AbstractContextManager[None]:
        from lumina_jax.sample.job import Job, compile_job

        options, prompts = self._options, self.made(vocab, vq, experiment)[0]
        job = Job(prompts, options.seed, options.per_prompt, options.rows, self._share)
        if not job.items:
            return nullcontext()
        return self._compiled(form, lambda: compile_job(form, vocab, job), [prompts[index] for index, _ in job.items])

    @contextmanager
    def _compiled(self, form, work: Callable[[], object], prompts: list) -> Iterator[None]:
        with programs(form, prompts, self._options.rows, "painting the first answers"), meanwhile(work):
            yield

    def made(self, vocab, vq, experiment) -> tuple:
        """What ``make`` returns."""
        if self._made is None or self._made[0] != vocab:
            self._made = vocab, self._make(vocab, vq, experiment)
        return self._made[1]
