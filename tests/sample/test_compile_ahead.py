"""What is compiled while the weights are read is what the first answers then run, and an error of it waits for its place."""

import logging
import threading

import jax
import pytest
from test_stream import CFG, VOCAB, requests
from tiny import tiny_model

from lumina_jax.cli.ahead import meanwhile
from lumina_jax.config import MeshConfig
from lumina_jax.sample.stream import compile_ahead, stream
from lumina_jax.sharding import make_mesh, shardings


def test_the_first_answers_run_what_was_compiled_ahead(caplog):
    model = tiny_model()
    model = jax.device_put(model, shardings(model, make_mesh(MeshConfig(fsdp=1), jax.local_devices()[:1])))
    form = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), model)
    prompts, sizes = requests(5)
    keys = list(jax.random.split(jax.random.key(2), 5))
    options = dict(sizes=sizes, keys=keys, rows=2, opens=[size is not None for size in sizes])

    def compiled(work) -> set[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING), jax.log_compiles():
            work()
        names = ("jit(prefill)", "jit(decode)")
        lines = [record.getMessage() for record in caplog.records if "XLA compilation" in record.getMessage()]
        return {name for name in names for line in lines if name in line}

    ahead = compiled(lambda: compile_ahead(form, prompts, keys[0], CFG, VOCAB, **options))
    assert ahead == {"jit(prefill)", "jit(decode)"}
    assert compiled(lambda: next(stream(model, prompts, keys[0], CFG, VOCAB, **options))) == set()


def test_the_block_ends_when_the_work_has_and_errors_of_the_work_are_left_to_others():
    done = threading.Event()
    with meanwhile(done.set):
        pass
    assert done.is_set()
    with meanwhile(lambda: 1 / 0):
        pass
    with pytest.raises(ValueError, match="weights"), meanwhile(done.set):
        raise ValueError("weights")
