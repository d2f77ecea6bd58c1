"""Which checkpoint a run goes on from, which are kept, and when a save that failed is said."""

import resource
import time
from pathlib import Path

import jax
import pytest
from small_runs import data_file, flip, names, restored, save, small_cfg, small_state
from train_parts import experiment

from lumina_jax.config import Experiment, override
from lumina_jax.errors import InputError, StorageError
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.deep_check import deep_damage, stored_bytes
from lumina_jax.train.save_clock import SaveClock


def damage(cfg: Experiment, step: int) -> None:
    """Flips a bit of a weight of a checkpoint."""
    file, start = data_file(Path(cfg.out, "checkpoints", str(step)), small_state(step))
    flip(file, start + 9)


def test_a_run_goes_back_to_the_step_that_resume_names_and_then_on_from_there(tmp_path, capsys):
    cfg = small_cfg(tmp_path, "keep=5")
    save(cfg, 2, 4, 6)
    back = small_cfg(tmp_path, "keep=5", "resume=2")
    assert restored(back) == 2
    assert names(cfg) == ["2", "4.unused", "6.unused"]
    assert "4 is now 4.unused, and training goes on from step 2" in capsys.readouterr().err
    save(back, 3)  # the same command once more, as in a loop that restarts it
    assert restored(back) == 3 and restored(cfg) == 3
    with pytest.raises(InputError, match=r"resume=6: there is no checkpoint of that step; .*holds 3, 2; choose"):
        restored(small_cfg(tmp_path, "resume=6"))


def test_strict_refuses_damage_but_not_a_write_that_never_finished(tmp_path):
    cfg = small_cfg(tmp_path, "resume=strict", "keep=5")
    assert restored(cfg) == 0
    save(cfg, 2, 4, 6)
    Path(tmp_path, "checkpoints/6/commit_success.txt").unlink()
    assert restored(cfg) == 4 and names(cfg) == ["2", "4", "6.unfinished"]
    damage(cfg, 4)
    with pytest.raises(InputError, match=r"checkpoints/4 is not whole: the numbers of model/w are not .*resume=newest"):
        restored(cfg)
    assert names(cfg) == ["2", "4", "6.unfinished"] and restored(small_cfg(tmp_path)) == 2


def test_a_process_that_does_not_see_the_chosen_checkpoint_ends_the_run_and_nothing_is_renamed(tmp_path, monkeypatch):
    """As through a mount with an old listing; the others would go on without it, or from another step."""
    cfg = small_cfg(tmp_path)
    save(cfg, 2, 4)
    monkeypatch.setattr("lumina_jax.train.run_folder.is_complete", lambda checkpoint: checkpoint.name != "4")
    with pytest.raises(
        InputError, match=r"process 0 on .* does not see .*checkpoints/4, which process 0 sees: mount out"
    ):
        restored(cfg)
    assert names(cfg) == ["2", "4"]


def test_resume_is_a_word_a_number_or_a_group_of_fields():
    for change in ("resume=8", "resume.point=8"):
        assert override(Experiment(), [change, "resume.allow=optim.lr"]).resume.point == "8"
    with pytest.raises(InputError, match=r"resume='latest'; choose 'newest', 'strict' or the step"):
        override(Experiment(), ["resume=latest"])


def test_what_one_rule_keeps_is_kept(tmp_path):
    cfg = small_cfg(tmp_path, "keep=1", "keep_every=10", "keep_best=1")
    losses = {2: 3.0, 7: 1.0, 12: 2.0, 18: 4.0, 21: 5.0, 24: 6.0}
    save(cfg, 2, 7, 12, heldout=losses)
    save(cfg, 18, 21, 24, heldout=losses)  # a restarted run reads the losses of the first
    assert names(cfg) == ["12", "21", "24", "7"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what of the save was still under way
def test_a_save_that_failed_is_said_at_once(tmp_path, caplog):
    cfg, saver = small_cfg(tmp_path), Saver(small_cfg(tmp_path))
    saver.save(2, small_state(2))
    saver.check(wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # as a quota
    try:
        with pytest.raises(
            StorageError, match=r"checkpoints/4 could not be saved: .*is that of step 2; check the free"
        ):
            saver.save(4, small_state(4))
            saver.check(wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saver.close()
    assert not caplog.records  # and by nobody else
    assert restored(cfg) == 2


def test_nothing_is_saved_where_the_folder_is_no_longer_this_runs(tmp_path):
    def lost() -> None:
        raise StorageError("taken over")

    saver = Saver(small_cfg(tmp_path), lost)
    for write in (saver.check, lambda: saver.save(2, small_state(2))):
        with pytest.raises(StorageError, match="taken over"):
            write()
    assert not Path(tmp_path, "checkpoints").exists()


def test_a_save_is_due_so_many_minutes_after_the_last():
    mesh = make_mesh(experiment((1, 1, 1)).mesh, jax.devices()[:1])
    clock = SaveClock(0.05 / 60, mesh)
    assert not clock.due()
    time.sleep(0.06)
    assert clock.due()
    clock.saved()
    assert not clock.due() and not SaveClock(0, mesh).due()


def test_a_deep_look_finds_every_flipped_bit_of_the_numbers(tmp_path):
    save(small_cfg(tmp_path), 2)
    checkpoint = Path(tmp_path, "checkpoints/2")
    counted = []
    assert deep_damage(checkpoint, counted.append) == "" and sum(counted) == stored_bytes(checkpoint) == 4108
    file, start = data_file(checkpoint, small_state(2))
    for place in (start, start + 100, start + 2047):
        flip(file, place, 1 << place % 8)
        assert deep_damage(checkpoint) == "the numbers of model/w are not those that were saved"
        flip(file, place, 1 << place % 8)
    assert deep_damage(checkpoint) == ""
