"""One process of a conversion, started by the tests: python convert_worker.py JSON.

JSON is the arguments of main; ``steps`` are [[SOURCE, DESTINATION, LAYOUT, SHARDS], ...].
"""

import json
import sys

sys.modules["torch"] = None  # nothing here may need torch

import jax  # noqa: E402


def main(
    steps: list[tuple[str, str, str, int | None]],
    mesh: list[int],
    devices: int,
    rank: int,
    processes: int,
    port: int,
    counts: str,
) -> None:
    """Takes part in one conversion after the other; writes to ``counts`` how many bytes this process read for each."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=rank)
    from convert import convert
    from lumina_jax.config import MeshConfig
    from lumina_jax.sharding import make_mesh

    open_source, bytes_read = convert.open_source, []

    def counted(path: str):
        source = open_source(path)
        inner = source.read

        def count(*arguments):
            array = inner(*arguments)
            bytes_read[-1] += array.nbytes
            return array

        source.read = count
        return source

    convert.open_source = counted
    replica, fsdp, tensor = mesh
    for source, destination, layout, shards in steps:
        bytes_read.append(0)
        convert.convert(
            source,
            destination,
            convert.Target(layout, shards),
            make_mesh(MeshConfig(replica, fsdp, tensor)),
            show=False,
        )
    with open(f"{counts}/{rank}.json", "w") as file:
        json.dump(bytes_read, file)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
