"""Hostile files: every one ends in success or in a short message, none in a traceback, a hang or a started program.

The drawn ones are a few here; `tools/torture.py fuzz --inputs 300` runs more of them.
"""

import json
import os
import random
import resource
import shutil

import numpy as np
import pytest
import torch
from deploy_files import write_student
from hostile import (
    SMALL,
    Hang,
    arrays_of,
    case,
    ended_well,
    fake_ghostscript,
    inside,
    npz_bytes,
    npz_that_claims,
    output_of,
    shows_no_control_characters,
    time_limit,
)
from run_folders import make_run

import atsc_plugin

INPUTS = int(os.environ.get("ATSC_FUZZ_INPUTS", 20))
ARRAYS = arrays_of(random.Random(0))
VANILLA = ["--cfg", "configs/quickstart/vanilla.yaml"]
FEW = [str(word) for pair in SMALL.items() for word in pair]
FIRST = int(os.environ.get("ATSC_FUZZ_FIRST", 0))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    atsc_plugin.register()


def test_drawn_hostile_files_end_in_success_or_a_message(tmp_path_factory):
    top = tmp_path_factory.mktemp("hostile")
    wrong, slowest = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fake_ghostscript(top / "path") as trace:
        for seed in range(FIRST, FIRST + INPUTS):
            place = top / f"case_{seed}"
            place.mkdir()
            argv = ["could not be made"]
            try:
                with inside(place):
                    argv, allowed = case(seed, place)
                    with time_limit():
                        _, printed = ended_well(argv, allowed)
                assert shows_no_control_characters(printed), ascii(printed)
                assert not trace.exists(), "gs was started"
            except (Exception, Hang) as error:
                wrong.append(f"{seed}: {ascii(argv)[:400]}: {type(error).__name__}: {ascii(str(error))[:600]}")
                trace.unlink(missing_ok=True)
            shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {INPUTS}:\n" + "\n".join(wrong)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - slowest
    assert grown < 3 << 20, f"{grown >> 10} MiB were taken"  # in KiB


# ---- what an audit found, one by one ----


def told(argv, *parts):
    """The command ends by itself with status 2, and its message holds the parts."""
    with time_limit():
        status, printed = output_of(argv)
    assert status == 2, printed
    assert shows_no_control_characters(printed)
    assert [part for part in parts if part not in printed] == [], printed


def dry_run(*words):
    return ["train", *VANILLA, "--dry-run", *map(str, words)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "cannot be read as .npz"),
        (npz_bytes(ARRAYS)[:-30], "cannot be read as .npz (File is not a zip file)"),
        (npz_bytes(ARRAYS, encrypted=True), "is encrypted"),
        (npz_that_claims((10**15, 3, 3, 1)), "says uint8 (1000000000000000, 3, 3, 1), and 0 bytes follow"),
        (npz_that_claims((10**9,), "<U0"), "expected uint8 N x H x W x 3"),
        (npz_bytes({**ARRAYS, "class_names": np.array("a")}), "class_names is <U1 (); expected a list of names"),
        (npz_bytes({**ARRAYS, "train_labels": np.full(8, 10**9)}), "train_labels has 1000000000 at 0; expected"),
        (npz_bytes({**ARRAYS, "train_labels": np.full(8, 2**64 - 1, np.uint64)}), "has 18446744073709551615 at 0"),
        (npz_bytes({**ARRAYS, "train_images": ARRAYS["train_images"][:, :0]}), "expected uint8 N x H x W x 3"),
    ],
)  # fmt: skip
def test_a_hostile_npz_is_told(here, content, part):
    (here / "d.npz").write_bytes(content)
    told(dry_run("DATASET.TYPE", "npz", "DATASET.ROOT", "d.npz"), part)


def test_a_pipe_as_npz_is_told(here):
    os.mkfifo("d.npz")
    told(dry_run("DATASET.TYPE", "npz", "DATASET.ROOT", "d.npz"), "d.npz is a pipe or a device")


def test_labels_of_uint64_are_labels(here):
    (here / "d.npz").write_bytes(npz_bytes({**ARRAYS, "train_labels": np.arange(8, dtype=np.uint64) % 3}))
    with time_limit():
        assert output_of(dry_run("DATASET.TYPE", "npz", "DATASET.ROOT", "d.npz"))[0] == 0


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("DATASET.IMAGE_SIZE", 10**6, "expected at most 2,048"),
        ("DATASET.DIGITS100.TRAIN_IMAGES", 10**12, "expected at most 200,000"),
        ("DATASET.PADDING", 10**9, "expected at most 1,024"),
        ("SOLVER.BATCH_SIZE", 10**12, "expected at most 1,000,000"),
        ("DATASET.NUM_WORKERS", 10**6, "expected at most 1,024"),
        ("DATASET.ROOT", "\udcff", "bytes that are not UTF-8"),
        ("LOG.PREFIX", "\x1b[31m", "LOG.PREFIX: got '\\x1b[31m'"),
    ],
)
def test_a_size_without_bounds_is_told(here, key, value, part):
    told(dry_run(key, value), key, part)


def test_images_that_would_not_fit_once_resized_are_told_before(here, monkeypatch):
    monkeypatch.setattr("atsc_plugin.data.datasets._free_bytes", lambda device: 200_000_000)
    (here / "d.npz").write_bytes(npz_bytes(ARRAYS))
    words = ["DATASET.TYPE", "npz", "DATASET.ROOT", "d.npz", "DATASET.IMAGE_SIZE", "2048"]
    told(dry_run(*words), "16 images of 2048 x 2048 pixels", "Set DATASET.IMAGE_SIZE or DATASET.PADDING lower")


@pytest.mark.parametrize("content", ["a: &a [*a]", "[" * 100_000, "a: " + "9" * 5000, "\0"])
@pytest.mark.parametrize("command", [["train", "--cfg"], ["leaderboard", "--suite"]])
def test_hostile_yaml_is_told(here, command, content):
    (here / "c.yaml").write_text(content)
    told([*command, "c.yaml", "--dry-run"], "c.yaml is not valid YAML")


@pytest.mark.parametrize("command", [["train", "--cfg"], ["leaderboard", "--suite"]])
def test_a_device_as_configuration_is_told(here, command):
    told([*command, "/dev/zero", "--dry-run"], "/dev/zero is a pipe or a device")


@pytest.mark.parametrize("content", ["[]", "5", '"x"', "true", "[" * 200_000, '{"seed": {}}'])
@pytest.mark.parametrize("name", ["result.json", "job.json"])
def test_a_run_whose_files_are_none_of_ours_is_skipped_and_the_others_are_reported(here, name, content):
    make_run(here / "runs", "kd", 1, 70.0)
    (make_run(here / "runs", "odd", 1, 60.0) / name).write_text(content)
    with time_limit():
        status, printed = output_of(["report", "runs"])
    assert status == 0
    assert f"skipped: runs/odd/seed_1: runs/odd/seed_1/{name} " in printed
    assert "70.00" in printed


def test_a_suite_of_more_runs_than_anybody_can_make_is_told(here):
    arms = {f"a{i}": {"cfg": "configs/quickstart/kd.yaml"} for i in range(30)}
    (here / "s.yaml").write_text(json.dumps({"name": "s", "seeds": list(range(4000)), "arms": arms}))
    told(["leaderboard", "--suite", "s.yaml", "--dry-run"], "120,000 runs; expected at most 20,000")


@pytest.mark.parametrize("command", ["eval", "export", "train"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_whose_keys_are_integers_is_told(here, command, wrapped):
    state = {1: torch.zeros(2), (2, 3): torch.zeros(2)}
    torch.save({"model": state} if wrapped else state, "t.pth")
    kd = ["--cfg", "configs/quickstart/kd.yaml", "DISTILLER.TEACHER_CKPT", "t.pth"]
    argv = {"eval": ["eval", "t.pth", *VANILLA], "export": ["export", "t.pth", *VANILLA, "--format", "safetensors"],
            "train": ["train", *kd]}  # fmt: skip
    told([*argv[command], *FEW], "t.pth holds no network weights")


def test_a_tensor_that_says_it_is_larger_than_its_file_is_told(here):
    torch.save({"checksum": "0", "a": torch.zeros(1).expand(10**12)}, "t.pth")
    told(["eval", "t.pth", *VANILLA, *FEW], "a tensor of (1000000000000,) has no numbers")


def test_a_student_of_other_classes_than_the_data_is_told(here):
    write_student(here / "small", classes=10)
    told(
        ["eval", "small", *VANILLA, *FEW],
        "tells 10 classes apart, digits100 has 100",
    )
