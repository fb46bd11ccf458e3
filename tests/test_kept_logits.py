"""The last epoch's test logits: those that were scored, in the images' order, in a file of the stated size."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atsc_plugin.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["SOLVER.EPOCHS", "1", "DATASET.DIGITS100.TRAIN_IMAGES", "100", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "150", "EXPERIMENT.NAME", "run"]  # fmt: skip


@pytest.mark.parametrize("keep", ["last", "none"])
def test_the_last_epochs_logits_are_kept_unless_told_otherwise(tmp_path, monkeypatch, keep):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/quickstart/vanilla.yaml")
    assert main(["train", "--cfg", config, *SMALL, "LOG.KEEP_LOGITS", keep]) == 0
    folder = next(Path("output").rglob("result.json")).parent
    file = folder / "logits_last.safetensors"
    assert file.exists() == (keep == "last")
    if keep == "last":
        kept = load_file(file)
        assert (kept["logits"].dtype, kept["logits"].shape, kept["labels"].shape) == (torch.float16, (150, 100), (150,))
        assert 0 <= file.stat().st_size - 2 * 150 * 100 - 2 * 150 < 300  # the header
        top1 = 100 * (kept["logits"].argmax(1) == kept["labels"]).double().mean().item()
        result = json.loads((folder / "result.json").read_text())
        assert top1 == pytest.approx(result["top1_last"], abs=100 / 150)  # fp16 may turn a tie
