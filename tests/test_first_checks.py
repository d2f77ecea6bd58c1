"""Whatever is wrong with an address is said within seconds, and named as it was given."""

import socket
from contextlib import closing

import pytest
from gcs_server import GcsFault

import run
from lumina_jax import first_checks
from lumina_jax.cli.checks import check_run
from lumina_jax.errors import InputError, MissingFileError, StorageError
from lumina_jax.faults import is_transient
from lumina_jax.first_checks import check_readable, check_space, check_writable


def test_addresses_are_tried_and_named_as_given(memory, tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="memory://bucket/gone"):
        check_readable("memory://bucket/gone")
    check_writable("memory://bucket/new")
    assert memory.fs.store == {}
    with pytest.raises(InputError, match=r"https://example\.com/x is an address of the web"):
        check_writable("https://example.com/x")

    def forbidden(*_, **__):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(type(memory.fs), "pipe_file", forbidden)
    with pytest.raises(StorageError, match=r"memory://bucket/new.*403 Forbidden; check its permissions"):
        check_writable("memory://bucket/new")
    check_space(str(tmp_path / "not/yet"), 1)
    with pytest.raises(StorageError, match=r"not/yet has .* GB free, but 1,000,000,000,000\.0 GB will be written"):
        check_space(str(tmp_path / "not/yet"), 10**21)


def test_a_bucket_that_is_not_there_is_final(gcs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="gs://gone/out cannot be written: its bucket is not there") as caught:
        check_writable("gs://gone/out")
    assert sum(gcs.requests.values()) == 1 and not is_transient(caught.value)
    assert run.main(["sample", "--prompt", "x", "--out", "gs://gone/out"]) == 2
    assert "gs://gone/out" in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_a_run_asks_once_for_what_it_reads(gcs):
    cfg = run.load_experiment("configs/toy_stage1.py", ["out=gs://bucket/out", "start=gs://gone/run"])
    with pytest.raises(InputError, match="start: gs://gone/run is missing"):
        check_run(cfg)
    assert sum(gcs.requests.values()) <= 3


@pytest.mark.parametrize("silent", [True, False], ids=["no answer", "no connection"])
def test_a_store_out_of_reach_is_named_within_seconds_and_a_restart_may_help(silent, gcs, monkeypatch):
    monkeypatch.setattr(first_checks, "FIRST_SECONDS", 0.5)
    if silent:
        gcs.faults.append(GcsFault("", seconds=5, times=-1))
    else:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free.getsockname()[1]}")
    for check in (check_readable, check_writable):
        with pytest.raises(
            StorageError, match=r"gs://bucket/away: its store did not answer .* check the address"
        ) as caught:
            check("gs://bucket/away")
        assert is_transient(caught.value)


def test_an_answer_that_comes_late_but_comes_is_waited_for(gcs):
    gcs.faults += [GcsFault("POST", status=503), GcsFault("POST", seconds=0.2)]
    check_writable("gs://bucket/out")
    assert not gcs.buckets.objects("bucket")
