"""load_student and the cards: found by run or file, complete, without side effects, and refused with the way out."""

import json
import sys
from pathlib import Path

import pytest
import torch
from deploy_files import card_of, write_student
from forks import python_run

import atsc_plugin
from atsc_plugin import students
from atsc_plugin.errors import PluginError

ROOT = Path(__file__).resolve().parents[1]


def test_a_deployed_student_is_loaded_by_its_run_or_by_either_of_its_files(tmp_path):
    written = write_student(tmp_path / "deploy_last")
    image = torch.randn(3, 3, 32, 32)
    for path in (
        tmp_path,
        tmp_path / "deploy_last.json",
        tmp_path / "deploy_last.safetensors",
        tmp_path / "deploy_last",
    ):
        student = atsc_plugin.load_student(path)
        assert not student.training
        assert torch.equal(student(image), written(image))
        assert student.card["student"] == "resnet8"


def test_best_and_last_are_two_students(tmp_path):
    write_student(tmp_path / "deploy_last", seed=1)
    write_student(tmp_path / "deploy_best", seed=2)
    image = torch.randn(2, 3, 32, 32)
    last, best = (atsc_plugin.load_student(tmp_path, which)(image) for which in ("last", "best"))
    assert not torch.equal(last, best)
    with pytest.raises(PluginError, match="expected last or best"):
        atsc_plugin.load_student(tmp_path, "first")


def test_loading_moves_no_random_draw(tmp_path):
    write_student(tmp_path / "deploy_last")
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    atsc_plugin.load_student(tmp_path)
    assert torch.equal(torch.rand(1), wanted)


def test_loading_needs_no_registration(tmp_path):
    write_student(tmp_path / "deploy_last")
    code = (
        "import atsc_plugin\n"
        f"student = atsc_plugin.load_student({str(tmp_path)!r})\n"
        "from atsc_plugin.host import distiller_dict; assert 'SIMKD' not in distiller_dict\n"
        "print(student.card['classes'])"
    )
    done = python_run([sys.executable, "-c", code], cwd=ROOT)
    assert done.stdout.strip() == "10", done.stderr


def test_the_card_is_completed_from_the_host_and_the_run(tmp_path):
    """A run started by a host's own script does not know its data set's normalisation; the host does."""
    write_student(tmp_path / "deploy_best", without=("mean", "std", "class_names", "image_size"), dataset="cifar100")
    (tmp_path / "result.json").write_text(json.dumps({"top1_best": 71.5, "top1_last": 70.0}))
    card = atsc_plugin.load_student(tmp_path, "best").card
    assert card["mean"] == [0.5071, 0.4867, 0.4408]
    assert card["image_size"] == 32
    assert card["class_names"] == []
    assert card["test_top1"] == 71.5


def test_class_names_that_do_not_count_as_many_as_the_classes_are_refused(tmp_path):
    write_student(tmp_path / "deploy_last", class_names=["a", "b", "c"])
    with pytest.raises(PluginError, match="has 3 class_names, but the student tells 10 classes apart"):
        atsc_plugin.load_student(tmp_path)


def test_a_folder_without_a_student_says_which_kind_of_folder_it_is(tmp_path):
    with pytest.raises(PluginError, match="is no run directory"):
        atsc_plugin.load_student(tmp_path)
    (tmp_path / "cfg.yaml").write_text("")
    with pytest.raises(PluginError, match="no finished epoch yet.*train --resume"):
        atsc_plugin.load_student(tmp_path)
    (tmp_path / "latest").write_text("")
    with pytest.raises(PluginError, match="a host's own trainer writes none.*export .*latest --format safetensors"):
        atsc_plugin.load_student(tmp_path)
    (tmp_path / "seed_3").mkdir()
    with pytest.raises(PluginError, match="holds runs, not one run; name one of .*seed_3"):
        atsc_plugin.load_student(tmp_path)


def test_eval_and_export_of_a_folder_of_runs_say_so_and_ask_for_no_configuration(tmp_path):
    (tmp_path / "seed_3").mkdir()
    with pytest.raises(PluginError, match="holds runs, not one run; name one of .*seed_3"):
        students.check_there(tmp_path)
    (tmp_path / "latest").write_text("")  # mdistiller's own run directory: checkpoints and nothing else
    assert students.check_there(tmp_path) == tmp_path


def test_a_file_that_is_no_deploy_file_is_told(tmp_path):
    with pytest.raises(PluginError, match="There is no .*none.json; expected a run directory"):
        atsc_plugin.load_student(tmp_path / "none.safetensors")
    (tmp_path / "latest").write_text("")
    with pytest.raises(PluginError, match="are read by `export`"):
        atsc_plugin.load_student(tmp_path / "latest")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PluginError, match="expected JSON written by a run"):
        atsc_plugin.load_student(tmp_path / "broken")
    (tmp_path / "lone.json").write_text(json.dumps(card_of()))
    with pytest.raises(PluginError, match="lone.safetensors is not a readable safetensors file"):
        atsc_plugin.load_student(tmp_path / "lone")
