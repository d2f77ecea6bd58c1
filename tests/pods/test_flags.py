"""The options of each chip: the TPU compiler that is installed neither refuses one nor warns of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lumina_jax.model.tpu import CONTINUATION, KINDS, OPTIONS, SPARSECORE, compiler_options, contradictions
from lumina_jax.pods.chips import CHIPS

BENCH = Path(__file__).resolve().parents[1] / "bench/compiler_options.py"


def check(*arguments: str) -> list[dict]:
    """The lines of the benchmark, which is a process of its own: libtpu reads what it logs when it is loaded."""
    result = subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_no_option_is_refused_or_warned_of(tpu_compiler):
    results = check()
    assert [result["chip"] for result in results] == list(CHIPS)
    for result in results:
        assert not result["refused"], result
        assert not result["warnings"], result
        offloads = SPARSECORE.items() <= OPTIONS[result["chip"]].items()
        assert (result["sparsecore_calls"] > 0) == offloads, result


@pytest.mark.parametrize(
    "wrong", [{"xla_tpu_no_such_option": "true"}, CONTINUATION | dict.fromkeys(SPARSECORE, "false")]
)
def test_a_wrong_option_is_noticed(wrong, tpu_compiler):
    (result,) = check("--only", "v6e", *(f"--add={name}={value}" for name, value in wrong.items()))
    assert result["refused"] or result["warnings"]


@pytest.mark.smoke
def test_a_device_gets_the_options_of_its_chip():
    assert set(KINDS.values()) == set(OPTIONS)
    assert compiler_options("TPU v5 lite")["xla_tpu_scoped_vmem_limit_kib"] == "65536"
    assert compiler_options("cpu") is None


@pytest.mark.smoke
def test_the_environment_s_contradictions_are_told():
    options = {"xla_tpu_limit": "5", "xla_tpu_fusion": "false"}
    assert not contradictions(options, {"LIBTPU_INIT_ARGS": "--xla_tpu_limit=5 --xla_tpu_fusion=False --other=1"})
    environment = {"LIBTPU_INIT_ARGS": "--xla_tpu_limit=7", "XLA_FLAGS": "--xla_tpu_fusion"}
    limit, fusion = contradictions(options, environment)
    assert "LIBTPU_INIT_ARGS sets xla_tpu_limit=7" in limit
    assert "xla_tpu_limit=5, which outweighs it" in limit
    assert "XLA_FLAGS sets xla_tpu_fusion=true" in fusion
