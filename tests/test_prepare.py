"""`prepare` for the leaderboard: what configurations come to, and one teacher of several at a time."""

import json
from pathlib import Path

import pytest

from atsc_plugin.__main__ import main
from atsc_plugin.bench import estimate

QUICK = Path(__file__).resolve().parents[1] / "configs" / "quickstart"
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "100", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "100", "TEACHER.EPOCHS", "1"]  # fmt: skip


def facts_of(capsys, *names, more=()):
    files = [str(QUICK / f"{name}.yaml") for name in names]
    assert main(["prepare", "--check", "--json", *more, "--cfg", *files]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer["defaults"], [answer["configs"][file] for file in files]


def test_configurations_come_to_their_keys_and_the_teachers_they_need(here, capsys):
    defaults, (several, one, scratch, none) = facts_of(capsys, "atsc_multi", "kd", "dml", "vanilla")
    assert [(teacher["name"], teacher["seed"]) for teacher in several["teachers"]] == [
        ("resnet20", k) for k in (1, 2, 3)
    ]
    assert one["teachers"] == several["teachers"][:1]  # the same recipe: trained once for both
    assert len({teacher["recipe"] for teacher in several["teachers"]}) == 3
    assert none["teachers"] == none["teacher_names"] == []
    assert (scratch["teachers"], scratch["teacher_names"]) == ([], ["resnet20"])
    assert [facts["leaves_teacher"] for facts in (several, one, scratch, none)] == [True, False, True, False]
    assert (defaults["DISTILLER.TYPE"], one["keys"]["DISTILLER.TYPE"]) == ("NONE", "KD")
    assert {facts["epoch"] for facts in (several, one, scratch, none)} == {None}
    assert list(here.iterdir()) == []


def test_an_epoch_is_estimated_where_the_leaderboard_asks_for_it(here, capsys, monkeypatch):
    """resnet8 and resnet20 have 12,507,392 and 40,818,944 multiplications an image; digits100 has 5,000 images."""
    monkeypatch.setattr(estimate, "measured_rate", lambda device: 1e9)
    _, (kd,) = facts_of(capsys, "kd", more=["--estimate"])
    assert kd["epoch"]["seconds"] == pytest.approx(5000 * 2 * (3 * 12_507_392 + 40_818_944) / 1e9)


def test_one_teacher_of_several_is_trained_alone(here, capsys):
    words = ["--cfg", str(QUICK / "averkd.yaml"), "DISTILLER.TEACHERS", "[resnet8, resnet8]", *SMALL]
    assert main(["prepare", "--teacher", "2", *words]) == 0
    assert len(list(Path("output/teachers").glob("resnet8-*.pth"))) == 1
    capsys.readouterr()
    assert main(["teachers", "--dry-run", *words]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "training it here" in first
    assert "trained here before" in second


@pytest.mark.parametrize("number", ["0", "2"])
def test_a_teacher_that_the_configuration_does_not_have_is_refused(here, capsys, number):
    assert main(["prepare", "--teacher", number, "--cfg", str(QUICK / "kd.yaml"), *SMALL]) == 2
    assert f"--teacher is {number}; expected 1 to 1" in capsys.readouterr().err
