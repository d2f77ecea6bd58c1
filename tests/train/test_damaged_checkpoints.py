"""A checkpoint that is not whole is named and passed over: by training, which sets it aside, and by all who read a run."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_parts import assert_equal, experiment, host_state

from convert.convert import Target, convert
from lumina_jax.errors import InputError
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.train.checkpoint import Saver, flatten, load_weights, newest, read_experiment
from lumina_jax.train.integrity import checksums
from lumina_jax.train.step import TrainState, state_shapes

MESH = (1, 1, 1)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(experiment(MESH).mesh, jax.devices()[:1])


def state_of(step: int) -> TrainState:
    state = host_state(replace(experiment(MESH), seed=step))
    return state._replace(
        step=np.int32(step), opt=jax.tree.map(lambda moment: moment + np.ones_like(moment), state.opt)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run's folder with whole checkpoints of steps 3 and 5."""
    cfg = replace(experiment(MESH), out=str(tmp_path_factory.mktemp("whole")))
    saver = Saver(cfg)
    for step in (3, 5):
        saver.save(step, jax.tree.map(jnp.asarray, state_of(step)))
    saver.close()
    return Path(cfg.out)


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of ``whole``, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def restore(run: Path) -> tuple[int, TrainState] | None:
    cfg = replace(experiment(MESH), out=str(run))
    return Saver(cfg).restore(state_shapes(cfg, one_device()))


def files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def largest(checkpoint: Path) -> Path:
    """The file that holds the numbers."""
    return max(files(checkpoint), key=lambda file: file.stat().st_size)


def flip(file: Path, place: int, bits: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= bits
    file.write_bytes(content)


def gone(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    os.truncate(file, 0)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    flip(file, file.stat().st_size // 3)


@pytest.mark.parametrize("damage", [gone, empty, cut, flipped])
def test_whatever_happens_to_a_file_the_state_is_that_of_a_save(run, damage, capsys):
    """Some of the files are needed and some are not; in no case are there wrong numbers, or an error."""
    checkpoint, kept = run / "checkpoints/5", run / "5"
    checkpoint.rename(kept)
    steps = []
    for file in files(kept):
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(kept, checkpoint)
        damage(checkpoint / file.relative_to(kept)) if file.stat().st_size else None
        step, state = restore(run)
        assert_equal(state, jax.tree.map(jnp.asarray, state_of(step)))
        aside = [path.name for path in (run / "checkpoints").iterdir() if path.name not in ("3", "5")]
        assert len(aside) == (step == 3)
        for name in aside:
            shutil.rmtree(run / "checkpoints" / name)
        steps.append(step)
    assert steps.count(3) >= 3
    assert f"{checkpoint} is not whole: " in capsys.readouterr().err


def test_a_flipped_bit_in_the_numbers_is_noticed(run):
    """Each bit of a float counts: the least changes the sign or the last place of one number alone."""
    data = largest(run / "checkpoints/5")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, data.stat().st_size, 10):
        flip(data, place, bits := 1 << rng.integers(8))
        step, state = restore(run)
        if step == 3:
            (aside,) = (run / "checkpoints").glob("5.damaged*")
            aside.rename(run / "checkpoints/5")
        assert_equal(state, jax.tree.map(jnp.asarray, state_of(step)))
        flip(data, place, bits)


def test_checksums_see_every_bit_and_the_order_but_not_the_mesh():
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    changes = {"same": x, "swapped": x[::-1], "shape": x.reshape(6, 8), "zeros": x * 0}
    for bit in range(32):
        changes[bit] = (x.view(np.uint32) ^ (np.arange(48).reshape(8, 6) == 17) * np.uint32(1 << bit)).view(np.float32)
    sums = checksums({str(name): jnp.asarray(value) for name, value in changes.items()})
    assert len(set(sums.values())) == len(sums)
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b")))
    stacked = jnp.stack([split, split + 1])
    assert checksums({"same": split})["same"] == sums["same"]
    assert checksums({"stacked": stacked}, by_layer=True) == checksums({"stacked": stacked})


def test_the_damaged_one_is_kept_under_another_name_when_its_number_is_written_again(run):
    for _ in range(2):
        empty(run / "checkpoints/5/state/manifest.ocdbt")
        assert restore(run)[0] == 3
        saver = Saver(replace(experiment(MESH), out=str(run)))
        saver.save(5, jax.tree.map(jnp.asarray, state_of(5)))
        saver.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "5", "5.damaged", "5.damaged2"]


def test_a_run_without_a_whole_checkpoint_is_refused_and_nothing_is_renamed(run):
    empty(run / "checkpoints/5/state/_METADATA")
    (run / "checkpoints/3/commit_success.txt").unlink()
    for read in (restore, newest):
        with pytest.raises(
            InputError, match=r"5: it does not say what it holds; .*3: it has no commit_success.txt.*whole"
        ) as e:
            read(run)
        assert "\n" not in str(e.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "5"]


def test_a_first_checkpoint_that_never_finished_does_not_count(run, capsys):
    shutil.rmtree(run / "checkpoints/5")
    (run / "checkpoints/3/commit_success.txt").unlink()
    assert restore(run) is None
    assert "is now 3.unfinished, and training starts from step 0" in capsys.readouterr().err


def test_readers_take_the_older_one_and_say_so(run, capsys):
    cut(largest(run / "checkpoints/5"))
    assert newest(run).name == "3"
    assert capsys.readouterr().err.count("checkpoints/5 is not whole: ") == 1
    convert(run, run.with_name("exported"), Target("ours"), show=False)
    assert newest(run.with_name("exported")).name == "0" and (run / "checkpoints/5").is_dir()


def test_weights_that_changed_on_disk_are_refused(run):
    data = largest(run / "checkpoints/5")
    flip(data, data.read_bytes().index(np.asarray(flatten(state_of(5))["model/embedding"]).tobytes()) + 10)
    mesh = one_device()
    shapes = state_shapes(experiment(MESH), mesh).model
    with pytest.raises(InputError, match=r"checkpoints/5 is damaged: the numbers of model/embedding are not those"):
        load_weights(newest(run), shapes)


def test_checkpoints_without_checksums_are_read_as_before(run, monkeypatch):
    monkeypatch.setattr("lumina_jax.train.checkpoint.sealed", lambda metadata, sums: metadata)
    state, cfg = state_of(7), replace(experiment(MESH), out=str(run))
    saver = Saver(cfg)
    saver.save(7, jax.device_put(state, shardings(state, one_device())))
    saver.close()
    assert read_experiment(newest(run)) == cfg
    assert restore(run)[0] == 7


@pytest.mark.parametrize("name", ["q[1]", "100%", "x%41", "#7 a?b", "{a,b}*", "é😀", "two\nlines"])
def test_a_checkpoint_in_a_folder_of_any_name_is_whole(name, tmp_path):
    cfg = replace(experiment(MESH), out=str(tmp_path / name))
    saver = Saver(cfg)
    saver.save(3, jax.tree.map(jnp.asarray, state_of(3)))
    saver.close()
    assert newest(cfg.out) == tmp_path / name / "checkpoints/3"
    step, state = restore(Path(cfg.out))
    assert step == 3
    assert_equal(state, jax.tree.map(jnp.asarray, state_of(3)))


@pytest.mark.parametrize("name", ["a\\b", "\udcff"])
def test_a_folder_that_no_checkpoint_can_be_written_to_is_refused_before_training(name, tmp_path):
    with pytest.raises(InputError, match="give another"):
        Saver(replace(experiment(MESH), out=str(tmp_path / name)))
