"""The options of each chip: the TPU compiler that is installed neither refuses one nor warns of it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lumina_jax.cli.compiler import say_compiler_options
from lumina_jax.model.backend import DeviceJit
from lumina_jax.model.tpu import CONTINUATION, KINDS, OPTIONS, SPARSECORE, compiler_options, contradictions
from lumina_jax.pods import compiler
from lumina_jax.pods.chips import CHIPS
from lumina_jax.pods.compile import PROGRAMS, compile_programs
from lumina_jax.pods.compiler import POD_SET, compiler_line
from lumina_jax.pods.topology import parse
from lumina_jax.sample import decode
from tests.pods.tiny_experiment import TINY

REPO = Path(__file__).resolve().parents[2]
BENCH = REPO / "tests/bench/compiler_options.py"


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


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_is_compiled_with_the_options_of_its_chip(program, tpu_compiler, monkeypatch):
    monkeypatch.setitem(OPTIONS, "v5e", {"xla_tpu_no_such_option": "true"})
    monkeypatch.setattr(
        decode, "prefill", DeviceJit(decode.prefill.__wrapped__, static_argnames=("copies", "vocab", "program"))
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_tpu_no_such_option'"):
        list(compile_programs(TINY, parse("v5e:2x2"), (program,)))


@pytest.mark.smoke
def test_the_set_of_a_pod_is_the_one_that_launch_installs(monkeypatch):
    launch = (REPO / "lumina_jax/pods/LAUNCH.md").read_text()
    assert launch.count(f'"jax[tpu]=={POD_SET["jax"]}"') == 2
    assert f"--python {POD_SET['Python']}" in launch
    assert f"libtpu=={POD_SET['libtpu']}; python_version >=" in (REPO / "lumina_jax/pods/requirements.txt").read_text()
    assert f"jax=={POD_SET['jax']}; python_version >=" in (REPO / "requirements.txt").read_text()
    monkeypatch.setattr(compiler, "installed_set", lambda: POD_SET)
    assert compiler_line() in launch
    monkeypatch.setattr(compiler, "installed_set", lambda: POD_SET | {"libtpu": "0.0.1"})
    assert "libtpu 0.0.1, Python 3.12; LAUNCH.md installs another" in compiler_line()


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


class FakeTpu:
    """What is asked of a jax.Device."""

    def __init__(self, kind: str):
        self.device_kind = kind


@pytest.mark.smoke
def test_a_run_on_a_tpu_prints_its_options_once(monkeypatch, capsys):
    say_compiler_options()
    assert capsys.readouterr() == ("", "")  # on CPU there is nothing to say
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: [FakeTpu("TPU v6 lite")])
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1024")
    say_compiler_options()
    options, warning = capsys.readouterr().err.splitlines()
    assert options.startswith("compiler options for TPU v6 lite: xla_tpu_enable_async_collective_fusion=false ")
    assert "1024" in warning
    assert "98304, which outweighs it" in warning
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    say_compiler_options()
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(jax, "devices", lambda: [FakeTpu("TPU v9")])
    say_compiler_options()
    assert "warning: no compiler options are known for TPU v9" in capsys.readouterr().err
