"""Loggers of a run: the same numbers and pictures in each, one run there for all starts, and none that ends or delays a step.

The services are small modules with the calls of the real packages; where those are installed, they write to local files.
"""

import errno
import json
import struct
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from lumina_jax.cli.checks import check_run
from lumina_jax.config import Experiment, LogConfig
from lumina_jax.errors import InputError, MissingPackageError, StorageError
from lumina_jax.train.loggers import logger as logger_room
from lumina_jax.train.loggers.logger import BackgroundLogger
from lumina_jax.train.loggers.opened import IDS, Loggers, check_packages
from lumina_jax.train.loggers.tensorboard import TensorBoardLogger
from lumina_jax.train.run_files import RunFiles

PICTURE = Image.new("RGB", (16, 8), "red")


def fake_wandb(calls: list) -> ModuleType:
    """The part of wandb that is used; ``calls`` gets what it is told."""
    module = ModuleType("wandb")

    def init(**settings: object) -> SimpleNamespace:
        calls.append(("init", settings["id"], settings["resume"], settings["project"]))
        return SimpleNamespace(
            define_metric=lambda *names, **axis: calls.append(("axis", *names, axis)),
            log=lambda values: calls.append(("log", values)),
            finish=lambda exit_code: calls.append(("finish", exit_code)),
        )

    module.init, module.Settings, module.Image = init, lambda **_: None, lambda image: ("image", image.size)
    return module


def fake_mlflow(calls: list) -> tuple[ModuleType, ModuleType]:
    """The part of mlflow that is used, and its entities; ``calls`` gets what it is told."""
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.__path__ = []
    entities.Metric = lambda name, value, when, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    answers = {
        "get_experiment_by_name": None,
        "create_experiment": "experiment",
        "create_run": SimpleNamespace(info=SimpleNamespace(run_id="new")),
    }

    class MlflowClient:
        def __init__(self, address: str):
            calls.append(("client", address))

        def __getattr__(self, name: str):
            return lambda *given, **named: (calls.append((name, *given, named)), answers.get(name))[1]

    module.MlflowClient, module.entities = MlflowClient, entities
    return module, entities


@pytest.fixture
def services(monkeypatch) -> tuple[list, list]:
    """What the W&B and the MLflow of this test were told."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    wandb, mlflow = [], []
    module, entities = fake_mlflow(mlflow)
    for name, fake in {"wandb": fake_wandb(wandb), "mlflow": module, "mlflow.entities": entities}.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return wandb, mlflow


def cfg_at(out, *to: str) -> Experiment:
    return Experiment(name="n", out=str(out), log=LogConfig(to=to, project="p"))


def log_a_point(cfg: Experiment, start: int, said: list, error: BaseException | None = None) -> None:
    loggers = Loggers(cfg, RunFiles(cfg.out), start, said.append)
    loggers.scalars(start + 10, {"loss": 2.5, "held_out": 3.0})
    loggers.image(start + 10, "samples", PICTURE)
    loggers.close(error)


def test_each_gets_the_same_and_a_run_goes_on_in_the_same_one(services, tmp_path):
    (wandb, mlflow), said = services, []
    cfg = cfg_at(tmp_path, "tensorboard", "wandb", "mlflow")
    log_a_point(cfg, 0, said)
    log_a_point(cfg, 20, said, ValueError())
    first = json.loads((tmp_path / IDS).read_text())
    runs = [call[1] for call in wandb if call[0] == "init"]
    assert runs == [first["wandb"]] * 2 and said == []
    points = [call[1] for call in wandb if call[0] == "log"]
    sheet = {"samples": ("image", (16, 8))}
    numbers = {"loss": 2.5, "held_out": 3.0}
    assert points == [dict(step=step, **values) for step in (10, 30) for values in (numbers, sheet)]
    assert [call[1] for call in wandb if call[0] == "finish"] == [0, 1]
    metrics = [call[2] for call in mlflow if call[0] == "log_batch" and len(call) == 4]
    assert metrics == [[(name, value, step) for name, value in numbers.items()] for step in (10, 30)]
    pictures = [(call[1], call[2].size, call[3]) for call in mlflow if call[0] == "log_image"]
    assert pictures == [("new", (16, 8), {"key": "samples", "step": step}) for step in (10, 30)]
    assert sum(call[0] == "create_run" for call in mlflow) == 1
    assert [call[1:3] for call in mlflow if call[0] == "set_terminated"] == [("new", "FINISHED"), ("new", "FAILED")]
    assert list((tmp_path / "tensorboard").glob("events*"))
    log_a_point(cfg, 0, said)  # begins anew: without a checkpoint it is another run
    assert json.loads((tmp_path / IDS).read_text())["wandb"] != first["wandb"]


def test_a_service_that_fails_or_hangs_is_said_once_and_no_call_waits(monkeypatch):
    said, go_on = [], threading.Event()
    monkeypatch.setattr(logger_room, "HURRY_SECONDS", 0.1)
    monkeypatch.setattr(logger_room, "QUEUED", 3)

    def failing():
        raise ConnectionError("no route\nto host")

    logger = BackgroundLogger("wandb", failing, said.append)
    for step in range(3):
        logger.scalars(step, {"loss": 1.0})
    logger.close()
    assert said == ["wandb fails: ConnectionError: no route; some points are not in it, and the run goes on"]
    said.clear()
    hanging = BackgroundLogger("mlflow", go_on.wait, said.append)
    begun = time.monotonic()
    for step in range(3000):
        hanging.scalars(step, {"loss": 1.0})
    hanging.close(KeyboardInterrupt())
    go_on.set()
    assert time.monotonic() - begun < 30
    assert said[-1] == "mlflow has not taken all in 0 s; the run ends without it"


def test_a_service_that_fails_behind_the_beginning_of_a_run_goes_on_in_it(services, tmp_path, monkeypatch):
    """MLflow answers each second request: what begins as one run there stays one, whatever is lost of it."""
    (_, mlflow), said, client = services, [], sys.modules["mlflow"].MlflowClient

    class Flaky(client):
        failures = 2

        def log_batch(self, *given: object, **named: object) -> None:
            if Flaky.failures:
                Flaky.failures -= 1
                raise ConnectionError("no route")
            mlflow.append(("log_batch", *given, named))

    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", Flaky)
    log_a_point(cfg_at(tmp_path, "mlflow"), 0, said)
    assert sum(call[0] == "create_run" for call in mlflow) == 1 and len(said) == 1
    assert [call[1] for call in mlflow if call[0] == "log_image"] == ["new"]
    assert json.loads((tmp_path / IDS).read_text()) == {"mlflow": "new"}


def test_a_service_that_ends_its_process_ends_neither_run_nor_thread():
    said, taken = [], []

    class Leaving:
        def scalars(self, step: int, values: object) -> None:
            if step == 0:
                raise SystemExit(1)
            taken.append(step)

        def close(self, error: object) -> None:
            taken.append("closed")

    logger = BackgroundLogger("wandb", Leaving, said.append)
    for step in range(2):
        logger.scalars(step, {"loss": 1.0})
    logger.close()
    assert taken == [1, "closed"]
    assert said == ["wandb fails: SystemExit: 1; some points are not in it, and the run goes on"]


def test_a_disk_that_refuses_tensorboard_is_named_and_nobody_waits(services, tmp_path, monkeypatch):
    """And those that come behind it are closed all the same."""
    (wandb, _), full = services, OSError(errno.ENOSPC, "No space left on device")
    loggers = Loggers(cfg_at(tmp_path, "tensorboard", "wandb"), RunFiles(str(tmp_path)), 0, print)

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as disk:
        disk.setattr(RecordWriter, "write", refuse)
        disk.setattr(RecordWriter, "flush", refuse)
        for step in range(100):  # more than any queue holds
            with pytest.raises(StorageError, match=r"tensorboard: .*No space left on device"):
                loggers.scalars(step, {"loss": 1.0})
        with pytest.raises(StorageError, match="No space left on device"):
            loggers.close()
        loggers.close(full)
    assert ("finish", 0) in wandb


def test_tensorboard_has_on_the_disk_what_it_took_when_it_is_flushed(tmp_path):
    logger = TensorBoardLogger(tmp_path, 7)
    for step in range(8, 108):
        logger.scalars(step, {"loss": step / 2})
    logger.image(108, "samples", PICTURE)
    logger.flush()
    content = b"".join(file.read_bytes() for file in tmp_path.glob("events*"))
    events, start = [], 0
    while start < len(content):  # length, its checksum, the event, its checksum
        (length,) = struct.unpack_from("<Q", content, start)
        events.append(Event.FromString(content[start + 12 : start + 12 + length]))
        start += length + 16
    points = [
        (event.step, value.simple_value) for event in events for value in event.summary.value if value.tag == "loss"
    ]
    assert points == [(step, step / 2) for step in range(8, 108)]
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [8]
    assert [(value.tag, value.image.width, value.image.height) for value in events[-1].summary.value] == [
        ("samples", 16, 8)
    ]
    logger.close()


def test_a_folder_of_the_name_of_a_service_is_not_its_package(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingPackageError, match=r"log.to=wandb .* pip install wandb"):
        check_packages(LogConfig(to=("wandb",)))


def test_what_is_unknown_or_not_installed_is_named_before_any_work(tmp_path, monkeypatch):
    for wrong in ({"to": ("tensorbord",)}, {"to": ("wandb", "wandb")}, {"project": ""}, {"every": 0}):
        with pytest.raises(InputError, match="log"):
            LogConfig(**wrong)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"log.to=mlflow .* pip install mlflow"):
        check_run(cfg_at(tmp_path, "tensorboard", "mlflow"))
    check_packages(LogConfig())
    check_packages(LogConfig(to=()))


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_the_real_package_takes_it_offline(service, tmp_path, monkeypatch):
    package, said = pytest.importorskip(service), []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for start in (0, 20):
        log_a_point(cfg_at(tmp_path, service), start, said)
    assert said == []
    run_id = json.loads((tmp_path / IDS).read_text())[service]
    if service == "wandb":
        assert len(list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) in (1, 2)
        return
    client = package.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.5), (30, 2.5)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.params["optim.lr"]
    assert list((tmp_path / "mlflow_pictures").rglob("*.png"))
