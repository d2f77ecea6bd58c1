"""Whether a request fits into the devices' memory, from its shapes alone: asked before anything is compiled."""

import os
from pathlib import Path

from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon

CGROUP = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container, in bytes or "max"."""


def check_memory(model: Chameleon, prompt: int, slots: int, rows: int, distinct: int, int8: bool = False) -> None:
    """Raises InputError where prompts of ``prompt`` tokens and a cache of ``slots`` for ``rows`` sequences, ``distinct`` of them
    different, take more than the memory that the devices of ``model`` have left; ``int8`` is that of SampleConfig.cache.

    It counts the cache and one copy of the attention scores of the prompts, which is less than what programs really take.
    """
    cfg = model.cfg
    per_slot = cfg.head_dim + 2 if int8 else cfg.head_dim * model.head.dtype.itemsize  # codes, and a scale of two bytes
    cache = 2 * cfg.layers * rows * cfg.kv_heads * slots * per_slot
    scores = 4 * distinct * cfg.heads * prompt**2
    available = available_memory(model)
    if cache + scores > available:
        raise InputError(
            f"{rows} sequences of up to {slots:,} tokens take {(cache + scores) / 1e9:,.1f} GB (cache {cache / 1e9:,.1f}, prompts "
            f"{scores / 1e9:,.1f}), but {available / 1e9:,.1f} GB are left; shorten the prompts or lower --rows or --max-new-tokens"
        )


def available_memory(model: Chameleon) -> int:
    """The bytes left on the devices that hold ``model``; of devices that do not tell, as CPUs, the memory of the machine."""
    stats = [device.memory_stats() for device in model.head[...].sharding.device_set]
    if all(stats):
        return sum(device["bytes_limit"] - device["bytes_in_use"] for device in stats)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine
