"""Runs of seconds through the command line, and what they leave."""

from pathlib import Path

from atsc_plugin.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "configs" / "quickstart"
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "200", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "150"]  # fmt: skip

TINY = ["DISTILLER.TEACHER", "tiny_teacher", "DISTILLER.STUDENT", "tiny"]  # of the fixture tiny_networks


def train(method, *words, name="run"):
    return main(
        ["train", "--cfg", str(QUICK / f"{method}.yaml"), *words, "EXPERIMENT.NAME", name, "SOLVER.EPOCHS", "1", *SMALL]
    )


def tiny(method, *words, name="run"):
    """The same on tiny networks, for tests that look at the command and not at the method."""
    return train(method, *TINY, *words, name=name)


def run_folder(here, name="run"):
    return next((here / "output" / "quickstart").glob(f"{name}*")) / "seed_1"


def refused(capsys, status, *parts):
    """The last command failed as it should: status 2, a short message with these parts, no traceback."""
    said = capsys.readouterr()
    assert status == 2
    for part in parts:
        assert part in said.err, said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    return said
