"""Options of the TPU compiler for each chip, with their reasons. No other file names any.

``run.py compile`` passes them to the compiler; a run on a pod reads them from LIBTPU_INIT_ARGS (:func:`libtpu_init_args`).
"""

from lumina_jax.pods.chips import Chip

OVERLAP = {
    # Split an all-gather into steps that run inside the matrix products around it. Together they make the gathers of the
    # next layer's weights asynchronous; without them each gather blocks the chip.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
REPLICAS = {
    # Overlap the all-reduce of a layer's gradients over the replicas with the next layer's backward pass, also where sizes differ.
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}

_FLAGS = {
    # A larger scoped VMEM limit has no effect: the matrix products of the 7B model compile alike from 16 to 48 MiB.
    "v4": OVERLAP | REPLICAS,
    # The matrix products of the 7B step run at 0.79 of the peak with 16 MiB (default), at 0.97 with 64 MiB: a step 14% shorter.
    "v5e": OVERLAP | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "65536"},
    # VMEM for the tiles of a matrix product: those of the 7B MLP run at 0.52 to 0.78 of the peak with 16 MiB, at 0.93 to 0.97
    # with 48 MiB (a step 21% shorter). More gains nothing and compiles far longer.
    "v5p": OVERLAP | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "49152"},
    # Matrix units of 256 x 256 need larger tiles still. The compiler warns that OVERLAP is not tuned for v6e, but with it
    # hides 57 of the 101 ms of collectives of the 7B step at 4,608 tokens; without it all of them block.
    "v6e": OVERLAP | REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "98304"},
    # The compiler refuses OVERLAP here, which is made for v5e alone.
    "tpu7x": REPLICAS | {"xla_tpu_scoped_vmem_limit_kib": "49152"},
}


def compiler_options(chip: Chip) -> dict[str, str]:
    """For ``lowered.compile(compiler_options=...)``."""
    return dict(_FLAGS[chip.name])


def libtpu_init_args(chip: Chip) -> str:
    """The value of the environment variable LIBTPU_INIT_ARGS that gives a run on a pod the same options."""
    return " ".join(f"--{name}={value}" for name, value in compiler_options(chip).items())
