"""Accuracy, loss and calibration by hand, and the file of the last epoch's logits."""

import math

import pytest
import torch
from runs import config, tiny_loader
from safetensors.torch import load_file
from tiny import TinyNet

from atsc_plugin.engine.evaluate import BINS, calibration_sums, correct, evaluate, expected_calibration_error
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import distiller_dict

CPU = torch.device("cpu")


def logits_of(*confidences):
    """Two classes; the first is predicted with these probabilities."""
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in confidences])


def test_hits_are_counted_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    target = torch.tensor([0, 0, 0])  # ranked first, third, second
    assert [correct(logits, target, k).item() for k in (1, 2, 5)] == [1, 2, 3]
    scores = evaluate(lambda image: image, [(logits, target)], CPU)
    assert scores["top1"] == pytest.approx(100 / 3)
    assert scores["top5"] == 100.0
    assert scores["images"] == 3


def test_the_loss_is_the_mean_negative_log_likelihood_over_images_of_unequal_batches():
    logits, target = logits_of(0.5, 0.8, 0.9), torch.tensor([0, 0, 1])
    batches = [(logits[:2], target[:2]), (logits[2:], target[2:])]
    scores = evaluate(lambda image: image, batches, CPU)
    assert scores["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.8) + math.log(0.1)) / 3)


def test_the_calibration_error_of_four_images_by_hand():
    """15 bins of 1/15: confidence .55 lies in bin 9 of 1..15 (8.25 rounded up), .95 and .96 in bin 15, .7 in bin 11.

    Bin 9: one image, a hit: |1 - .55| = .45. Bin 11: one image, a miss: |0 - .7| = .7. Bin 15: two images, one hit:
    |1 - (.95 + .96)| = .91 in all. ECE = (.45 + .7 + .91) / 4 = .515.
    """
    logits, target = logits_of(0.55, 0.7, 0.95, 0.96), torch.tensor([0, 1, 0, 1])
    sums = calibration_sums(logits, target)
    assert BINS == 15
    assert {number + 1: count for number, count in enumerate(sums[0].tolist()) if count} == {9: 1, 11: 1, 15: 2}
    assert expected_calibration_error(sums).item() == pytest.approx(0.515, abs=1e-6)
    # the same in two batches: sums over images, not a mean of batches
    batches = [(logits[:3], target[:3]), (logits[3:], target[3:])]
    assert evaluate(lambda image: image, batches, CPU)["ece"] == pytest.approx(0.515, abs=1e-6)


def test_a_bin_has_its_upper_edge_and_certainty_lies_in_the_last():
    logits = torch.tensor([[100.0, 0.0], [0.0, 0.0]])  # confidence 1 and 1/2 = 7.5 / 15, hence bin 8
    sums = calibration_sums(logits, torch.tensor([0, 0]))
    assert [number + 1 for number, count in enumerate(sums[0].tolist()) if count] == [8, 15]
    assert expected_calibration_error(sums).item() == pytest.approx((abs(1 - 1) + abs(1 - 0.5)) / 2)


def test_confidence_is_the_largest_probability_and_not_the_targets():
    """Right with .6 and wrong with .6 of three classes: |1 - 1.2| / 2 = .1, whatever the target's probability."""
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]).log()
    assert expected_calibration_error(calibration_sums(logits, torch.tensor([0, 2]))).item() == pytest.approx(0.1)


@pytest.mark.parametrize("keep", ["last", "none"])
def test_the_last_epochs_logits_are_kept_unless_told_otherwise(tmp_path, keep):
    cfg = config(tmp_path, "DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", 1, "LOG.KEEP_LOGITS", keep)
    distiller = distiller_dict["NONE"](TinyNet())
    test = tiny_loader(start=2, count=21)
    trainer = PluginTrainer("t", distiller, tiny_loader(seed=1), tiny_loader(), cfg, test_loader=test)
    result = trainer.train()
    file = trainer.folder / "logits_last.safetensors"
    assert file.exists() == (keep == "last")
    if keep == "last":
        kept = load_file(file)
        assert (kept["logits"].dtype, kept["logits"].shape) == (torch.float16, (21, 10))
        assert kept["labels"].tolist() == [index % 10 for index in range(21)]  # in the order of the images
        assert 0 <= file.stat().st_size - 2 * 21 * 10 - 2 * 21 < 300  # the header
        top1 = 100 * (kept["logits"].argmax(1) == kept["labels"]).double().mean().item()
        assert top1 == pytest.approx(result["top1_last"], abs=100 / 21)  # fp16 may turn a tie
