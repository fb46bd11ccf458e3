"""Run directories of any shape, made by hand, for tests of what reads them."""

import json

import yaml

from atsc_plugin import report

RESULT = {
    "method": "KD", "teacher": "resnet20", "student": "resnet8", "dataset": "digits100", "data": "digits100-5000",
    "image_size": 32, "classes": 100, "seed": 1, "epochs": 6, "top1_last": 70.0, "top1_best": 71.0, "top5_last": 90.0,
    "selected_on": "val", "best_epoch": 5, "teacher_top1_before": 88.5, "teacher_top1_after": 88.5, "seconds": 60.0,
    "images_per_second": 500.0, "peak_memory_mb": 900.0, "params_student": 100, "params_deployed": 120,
    "params_trained": 110, "host": "embedded", "host_version": "v", "torch": "2.9", "device": "cpu (2 threads)",
}  # fmt: skip


def make_run(root, arm, seed, top1, method="KD", *, best=None, cfg=None, job=None, log=(), **changes):
    """root/arm/seed_K as a finished run leaves it; `top1` None leaves out result.json."""
    folder = root / arm / f"seed_{seed}"
    folder.mkdir(parents=True)
    teacher = {"teacher": None, "teacher_top1_before": None, "teacher_top1_after": None} if method == "NONE" else {}
    result = {**RESULT, "method": method, "seed": seed, "top1_last": top1, "top1_best": best or top1, **teacher}
    result |= changes
    tree = {
        "DISTILLER": {"TYPE": method, "TEACHER": "resnet20", "STUDENT": result["student"], "TEACHER_CKPT": ""},
        "SOLVER": {"EPOCHS": result["epochs"], "LR": 0.05},
        "DATASET": {"TYPE": result["dataset"]},
        "TEACHER": {"SEED": 1, "EPOCHS": 10},
        **(cfg or {}),
    }
    (folder / "cfg.yaml").write_text(yaml.safe_dump(tree))
    (folder / "about.json").write_text(json.dumps({"commit": "abc1234", "command": "train --cfg x.yaml"}))
    if job:
        (folder / "job.json").write_text(json.dumps(job))
    if log:
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if top1 is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def tables_of(root):
    return report.compared([root])[0]


def row(table, label):
    return next(row for row in table.rows if row.label == label)
