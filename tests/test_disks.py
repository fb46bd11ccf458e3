"""Disks that fail and files that are damaged: the last good checkpoint stays, is found, and the run goes on from it."""

import os
import resource
import shutil
import signal

import pytest
from runs import Before, assert_the_same_run, config, dying, latest_of, trainer_of

from atsc_plugin.engine import checkpoint, run_dir
from atsc_plugin.errors import PluginError


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path)


@pytest.fixture
def made(cfg, tmp_path):
    """made(name): the trainer of a run, the same every time."""
    return lambda name: trainer_of(cfg, tmp_path / name)


@pytest.fixture
def finished(whole, made):
    """The trainer of a copy of the whole run, not yet begun."""
    trainer = made("copy")
    shutil.copytree(whole.folder, trainer.folder)
    return trainer


# ---- disks that fail ----


def test_a_full_disk_ends_the_run_with_a_message_and_the_last_good_checkpoint(made, cfg, whole):
    """A limit on the size of files fails writes as a full disk does: in the middle, with an OSError below torch."""
    cfg.LOG.CHECKPOINT_STEPS = 1
    trainer, before = made("full"), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step):
        if step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    trainer.step = Before(trainer.step, fill)
    try:
        with pytest.raises(PluginError, match=r"File too large.*`latest`, written after step 1 of epoch 2.*--resume"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert latest_of(trainer.folder)["inside"]["meters"]["steps"] == 1
    assert not list(trainer.folder.glob(".*.part"))
    again = made("full")
    again.train(resume=True)
    assert_the_same_run(whole, again)


def test_a_lost_permission_ends_the_run_with_the_last_good_checkpoint(made, monkeypatch):
    trainer, original = made("lost"), os.replace

    def denied(source, target):
        if str(target).endswith("latest") and trainer.checkpoints.saved:
            raise PermissionError(13, "Permission denied", str(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(PluginError, match=r"Permission denied.*`latest`, written after epoch 1"):
        trainer.train()
    monkeypatch.undo()
    assert latest_of(trainer.folder)["epoch"] == 1


def test_a_line_that_does_not_fit_the_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    run_dir.append_line(tmp_path, {"epoch": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_dir.append_line(tmp_path, {"epoch": 2})
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'


# ---- latest and the one before it ----


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "missing"])
def test_a_damaged_latest_is_recognised_said_and_kept_and_the_previous_one_used(finished, whole, capsys, damage):
    path = finished.folder / "latest"
    content = bytearray(path.read_bytes())
    if damage == "one bit":  # in the middle of a weight: it still loads, and only the checksum knows
        weight = checkpoint.load(path)["model"]["projector.0.weight"].numpy().tobytes()
        content[content.find(weight) + 5] ^= 1
    (finished.folder / "result.json").unlink()
    path.write_bytes({"truncated": content[:-100], "one bit": content, "empty": b"", "missing": b""}[damage])
    if damage == "missing":  # killed between two renames
        path.unlink()
    finished.train(resume=True)
    said = capsys.readouterr().out
    assert "after epoch 2" in said
    assert ("continuing from latest_previous" in said) == (damage != "missing")
    assert (finished.folder / "latest_refused").exists() == (damage != "missing")
    assert_the_same_run(whole, finished)


def test_where_both_are_damaged_both_reasons_are_told_and_nothing_is_changed(finished):
    for name in ("latest", "latest_previous"):
        (finished.folder / name).write_bytes(name.encode())
    with pytest.raises(PluginError, match=r"(?s)none was changed.*copy/latest was not.*copy/latest_previous was not"):
        finished.train(resume=True)
    for name in ("latest", "latest_previous"):
        assert (finished.folder / name).read_bytes() == name.encode()


def test_a_run_that_starts_anew_continues_from_nothing_of_an_older_one_and_clears_half_written_files(finished):
    (finished.folder / ".best.abc.part").write_text("half")
    finished.step = Before(finished.step, dying(1))
    with pytest.raises(KeyboardInterrupt):
        finished.train()
    assert not run_dir.has_checkpoint(finished.folder)
    assert not (finished.folder / "result.json").exists()
    assert not list(finished.folder.glob(".*"))
