"""One process of a run that trains nothing: python fault_worker.py '{"coordinator": HOST:PORT, "processes": 2, "index": 0, ...}'.

It imports no JAX, so that a test can afford several. A step is a barrier, and may take ``limit`` seconds; ``error_at`` is the step
before which it raises EIO, ``hang_at`` that in which it hangs, until there is a file ``released_by``.
"""

import errno
import json
import os
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

from lumina_jax.cli.ending import tell_error
from lumina_jax.cluster.address import Address
from lumina_jax.cluster.processes import ProcessGroup, SingleProcess
from lumina_jax.config import PodConfig


def main(
    coordinator: str,
    processes: int,
    index: int,
    steps: int = 10**9,
    seconds: float = 0.05,
    error_at: int = 0,
    hang_at: int = 0,
    limit: float = 0.0,
    released_by: str = "",
    limits: dict[str, float] | None = None,
) -> int:
    try:
        with ExitStack() as stack:
            config, address = PodConfig(**(limits or {})), Address(coordinator, processes, index)
            group = SingleProcess(config)
            if processes > 1:
                group = stack.enter_context(closing(ProcessGroup(address, config, "faults")))
            stack.enter_context(group.guard())
            for step in range(1, steps + 1):
                group.doing(f"step {step}", limit)
                print(step, flush=True)
                if step == error_at:
                    raise OSError(errno.EIO, "Input/output error", "tokens-00000")
                while step == hang_at and not Path(released_by).is_file():
                    time.sleep(0.1)
                group.barrier(f"step {step}", 60)
                time.sleep(seconds)
    except OSError as error:
        return tell_error("run.py train", error)
    return 0


if __name__ == "__main__":
    code = main(**json.loads(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)
