# %% [markdown]
# # A teacher that learns, and how it collapses
#
# The methods of `atsc-plugin quickstart`, called from Python: one teacher, one student network, five recipes on
# digits100, a **toy** of composed handwritten digits. Then a look at ATSC's teacher: as released it collapses, held
# it lives. About two minutes on two idle cores.
#
# This file is a notebook in jupytext's percent format: open it in VS Code or PyCharm, or make an .ipynb with
# `jupytext --to ipynb examples/quickstart.py`. It needs matplotlib (`pip install matplotlib`).

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import atsc_plugin

atsc_plugin.register()  # our methods and keys join mdistiller, or the embedded host where mdistiller is absent

from atsc_plugin import build  # noqa: E402
from atsc_plugin.config import load_cfg  # noqa: E402
from atsc_plugin.quickstart import teacher  # noqa: E402

# %% [markdown]
# ## A run from Python
#
# A run is a configuration file and keys that replace its own, as on the command line. `build.prepare` makes the
# data, the networks and the distiller, `trainer_of` the trainer; `train` returns the content of `result.json`.

# %%
IMAGES, EPOCHS = 1000, 4  # training images, passes over them; small batches, so that there are steps enough
OUTPUT = tempfile.mkdtemp()
KEYS = {
    "DATASET.DIGITS100.TRAIN_IMAGES": IMAGES,
    "DATASET.DIGITS100.VAL_IMAGES": 500,
    "DATASET.DIGITS100.TEST_IMAGES": 500,
    "DATASET.TEST.BATCH_SIZE": 125,
    "DISTILLER.TEACHER_CKPT": f"{teacher.SHIPPED}.safetensors",  # a resnet20 that ships with the package
    "SOLVER.EPOCHS": EPOCHS,
    "SOLVER.BATCH_SIZE": 16,
    "SOLVER.LR_DECAY_STAGES": f"[{EPOCHS - 1}]",
    "ATSC.GUARD": "none",  # a collapse is what we want to see here
    "LOG.PREFIX": OUTPUT,
}


def run(method):
    """(result.json, the lines of log.jsonl) of one run."""
    words = [str(word) for pair in KEYS.items() for word in pair]
    prepared = build.prepare(load_cfg(f"configs/quickstart/{method}.yaml", words))
    result = build.trainer_of(prepared).train()
    return result, [json.loads(line) for line in (prepared.folder / "log.jsonl").read_text().splitlines()]


METHODS = {
    "vanilla": "vanilla",
    "KD": "kd",
    "SimKD": "simkd",
    "ATSC": "atsc",
    "ATSC as released": "atsc_published",
}
runs = {name: run(method) for name, method in METHODS.items()}

# %% [markdown]
# ## The students
#
# SimKD and ATSC learn the teacher's features and use its classifier, so they learn fast; the other two would need
# many more epochs. This is one seed: it shows how fast the methods learn here, not how they rank.

# %%
figure, (students, teachers, scales) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
epochs = range(1, EPOCHS + 1)
for name, (result, log) in runs.items():
    students.plot(epochs, [line["top1"] for line in log], marker="o", label=name)
    before, after = result["teacher_top1_before"], result["teacher_top1_after"]
    print(f"{name:17} student {result['top1_last']:5.2f}   teacher {before} -> {after}")
students.set(title="student, top-1 on validation images", xlabel="epoch", ylabel="%")
students.legend()

# %% [markdown]
# ## The collapse
#
# ATSC's feature loss is not detached from the teacher: it moves the teacher, too. Nothing else acts on the
# teacher's trunk but the drift term, which holds it to its start. As released (weight 1, convolution kernels only)
# that is too weak: the untrained student pulls the teacher to a map without information, where both agree. Held
# (weight 10, all weights: the default here) the teacher lives.
#
# The log has the teacher's accuracy and the spread of its feature map against the start, measured after every
# epoch.

# %%
for name in ("ATSC", "ATSC as released"):
    log = runs[name][1]
    teachers.plot([0, *epochs], [log[0]["start_top1"], *(line["teacher_top1"] for line in log)], marker="o", label=name)
    scales.plot([0, *epochs], [1.0, *(line["feature_scale"] for line in log)], marker="o", label=name)
teachers.set(title="teacher, top-1", xlabel="epoch", ylabel="%", ylim=(0, 100))
scales.set(title="spread of the teacher's map, start = 1", xlabel="epoch", ylim=(0, 1.1))
teachers.legend()
figure.savefig(Path(OUTPUT) / "quickstart.png", dpi=100)
print(f"drawn: {OUTPUT}/quickstart.png")

# %% [markdown]
# ## The deployed student
#
# What leaves a run is one module, from images to logits.

# %%
import torch  # noqa: E402

student = atsc_plugin.load_student(next(Path(OUTPUT).glob("quickstart/simkd*/seed_1")))
print(student.card["method"], student(torch.zeros(1, 3, 32, 32)).shape)

# %% [markdown]
# Next: all methods with five seeds (`atsc-plugin leaderboard --suite configs/leaderboard/quick.yaml --jobs 2`),
# your own pictures (docs/tutorial.md), what is known of ATSC (docs/atsc.md).
