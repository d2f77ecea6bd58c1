"""How soon thousands of processes join, meet and learn of a death: ``python tests/bench/coordination.py --processes 4096``.

One process of this machine is the coordinator; others hold the connections of the simulated processes, 512 each. The soft limit
of open files is set to 1,024 before, as it usually is. Prints one JSON line: the seconds from the start until all were told that
the run begins (they join staggered, 1,000 a second), then until all met at a barrier, and from the death of one of them until all
others were told; and the processor seconds that the coordinator took, of which --rest says how long all only step.
"""

import argparse
import json
import multiprocessing
import resource
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

from simulated_processes import simulate

from lumina_jax.cluster.coordinator import Coordinator
from lumina_jax.config import PodConfig

USUAL_LIMIT, EACH = 1024, 512
TOKEN = b"a bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=256, help="simulated processes (256)")
    parser.add_argument(
        "--rest", type=float, default=0.0, help="seconds of steps between the barrier and the death (0)"
    )
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_LIMIT, hard))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = options.processes
    shares = [range(begin, min(begin + EACH, processes)) for begin in range(0, processes, EACH)]
    with ProcessPoolExecutor(len(shares), multiprocessing.get_context("fork")) as pool:
        pool.submit(time.monotonic).result()
        start = time.monotonic()
        Coordinator(port, processes, PodConfig(), TOKEN)
        runs = [pool.submit(simulate, port, share, start, TOKEN, processes - 1, options.rest) for share in shares]
        cpu_before = time.process_time()
        times = [run.result() for run in runs]
        cpu = time.process_time() - cpu_before
    result = {
        "benchmark": "coordination",
        "processes": processes,
        "seconds_to_join": round(max(t.begun for t in times) - start, 2),
        "seconds_to_meet": round(max(t.released for t in times) - max(t.begun for t in times), 2),
        "seconds_to_notice_a_death": round(max(t.told for t in times) - times[-1].died, 2),
        "processor_seconds_of_the_coordinator": round(cpu, 2),
        "limit_of_open_files": {"before": USUAL_LIMIT, "after": resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
