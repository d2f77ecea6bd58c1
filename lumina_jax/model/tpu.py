"""Options of the TPU compiler for each chip, with their reasons. No other file names any.

Every program of a model is compiled with them, on a chip and ahead of time without one: by way of :func:`.backend.jit`, and by
``run.py compile``. A test compiles a step with them for each chip and fails when the compiler refuses or warns of one.
"""

import shlex
from collections.abc import Mapping

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""The chip of each ``device_kind`` of JAX; those of one chip are of different releases of libtpu."""

REPLICAS = {
    # Overlap the all-reduce of a layer's gradients over the replicas with the next layer's backward pass, also where sizes differ.
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
CONTINUATION = {
    # Split an all-gather into steps that run inside the matrix products around it. Together they make the gathers of the
    # next layer's weights asynchronous; without them each gather blocks the chip.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
NO_CONTINUATION = {
    # The compiler supports CONTINUATION on v5e alone: elsewhere a program may hang or compute wrong results. Said, not only left
    # out, because an option of a program outweighs LIBTPU_INIT_ARGS, where launch scripts for older compilers ask for it.
    "xla_tpu_enable_async_collective_fusion": "false",
}
SPARSECORE = {
    # The SparseCores run collectives while the TensorCore computes: gathers over one axis of the torus or two, and reductions.
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    # Let collectives queue at the SparseCores. Otherwise the scheduler keeps one in flight and the TensorCore waits for it before
    # the next may start: 0.030 s of waiting in a 7B step on v6e in place of 0.060 s.
    "xla_tpu_enable_sparse_core_offload_queuing_in_lhs": "true",
}

OPTIONS = {
    # A larger scoped VMEM limit has no effect: the matrix products of the 7B model compile alike from 16 to 48 MiB. Nor has
    # SPARSECORE: all collectives stay where they are.
    "v4": NO_CONTINUATION | REPLICAS,
    # The matrix products of the 7B step run at 0.79 of the peak with 16 MiB (default), at 0.97 with 64 MiB: a step 14% shorter.
    "v5e": CONTINUATION | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "65536"},
    # VMEM for the tiles of a matrix product: those of the 7B MLP run at 0.52 to 0.78 of the peak with 16 MiB, at 0.93 to 0.97
    # with 48 MiB (a step 21% shorter). More gains nothing and compiles far longer.
    "v5p": NO_CONTINUATION | SPARSECORE | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "49152"},
    # Matrix units of 256 x 256 need larger tiles still.
    "v6e": NO_CONTINUATION | SPARSECORE | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "98304"},
    # Of 64 MiB. The products of a 7B step run at 0.57 of the peak with the default, at 0.71 with 48 MiB.
    "tpu7x": NO_CONTINUATION | SPARSECORE | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "49152"},
}
"""Options by the name of a chip, the same for every libtpu of requirements.txt."""


def compiler_options(kind: str) -> dict[str, str] | None:
    """For ``jax.jit(compiler_options=...)``: those of the chip with this ``device_kind``, None for one that is not known."""
    return dict(OPTIONS[KINDS[kind]]) if kind in KINDS else None


def contradictions(options: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """A sentence for each of ``options`` that a variable of ``environment`` sets to another value, with both and which counts."""
    lines = []
    for variable in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        for flag in shlex.split(environment.get(variable, "")):
            name, _, value = flag.lstrip("-").partition("=")
            value = value or "true"
            if value.lower() != options.get(name, value.lower()):
                lines.append(
                    f"{variable} sets {name}={value}, but programs are compiled with {name}={options[name]}, which outweighs it; "
                    f"remove it from {variable}"
                )
    return lines
