"""Stands for `python -m atsc_plugin` in tests of the leaderboard: the same commands and files, without torch.

A configuration's STUB.DO says what `train` does besides: fail, out_of_memory, killed, stop, interrupt, wait_for NAME.
Every command appends a line to events.txt: what it is, and the device that it sees.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

DEFAULTS = {"SOLVER.EPOCHS": 240, "SOLVER.LR": 0.05, "DISTILLER.TYPE": "NONE", "DISTILLER.TEACHER": "big",
            "DISTILLER.STUDENT": "small", "DATASET.TYPE": "toy", "TEACHER.SEED": 1, "STUB.DO": "",
            "DISTILLER.TEACHER_CKPT": ""}  # fmt: skip


def flatten(tree, prefix=""):
    flat = {}
    for step, value in tree.items():
        flat |= flatten(value, f"{prefix}{step}.") if isinstance(value, dict) else {f"{prefix}{step}": value}
    return flat


def resolved(path):
    return DEFAULTS | flatten(yaml.safe_load(Path(path).read_text()))


def event(text):
    with open("events.txt", "a") as file:
        file.write(f"{text} on {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")


def wait_for(text):
    until = time.monotonic() + 30
    while text not in Path("events.txt").read_text():
        if time.monotonic() > until:
            sys.exit(f"error: nobody wrote {text}")
        time.sleep(0.02)


def check(files, estimate):
    configs = {}
    for path in files:
        keys = resolved(path)
        if "SOLVER.LRR" in keys:
            sys.exit(f"error: The configuration has a mistake:\n  - {path}: SOLVER.LRR is no key")
        teacher = {"number": 1, "name": keys["DISTILLER.TEACHER"], "seed": keys["TEACHER.SEED"]}
        teacher["recipe"] = hashlib.sha256(f"{teacher['name']}-{teacher['seed']}".encode()).hexdigest()
        wanted = [] if keys["DISTILLER.TYPE"] == "NONE" else [teacher]
        configs[path] = {"keys": keys, "teachers": wanted, "teacher_names": [each["name"] for each in wanted],
                         "leaves_teacher": keys["DISTILLER.TYPE"] == "LEARNS", "epoch": None}  # fmt: skip
        if estimate and keys.get("STUB.EPOCH"):
            configs[path]["epoch"] = {"seconds": keys["STUB.EPOCH"], "how": f"estimated for {estimate}"}
    print("a line of the host's")
    print(json.dumps({"defaults": DEFAULTS, "configs": configs}))


def prepare(argv):
    keys = resolved(argv[argv.index("--cfg") + 1])
    event(f"teacher {keys['DISTILLER.TEACHER']}")
    act(keys.get("STUB.TEACHER", ""), None)
    event(f"end of teacher {keys['DISTILLER.TEACHER']}")


def train(argv):
    keys = resolved(argv[argv.index("--cfg") + 1])
    words = argv[argv.index("EXPERIMENT.SEED") :]
    given = dict(zip(words[::2], words[1::2], strict=True))
    name, seed = keys["EXPERIMENT.NAME"], given["EXPERIMENT.SEED"]
    folder = Path(given["LOG.PREFIX"]) / keys["EXPERIMENT.PROJECT"] / name / f"seed_{seed}"
    event(f"{name} {seed}")
    print("resuming" if (folder / "log.jsonl").exists() else "starting", flush=True)
    keys["DISTILLER.TEACHER_CKPT"] = given.get("DISTILLER.TEACHER_CKPT", "")
    (folder / "cfg.yaml").write_text(yaml.safe_dump(keys))
    (folder / "log.jsonl").write_text("{}\n")
    act(keys["STUB.DO"], folder)
    result = {"epochs": keys["SOLVER.EPOCHS"], "seconds": 3600.0, "device": "a toy", "start": given}
    (folder / "result.json").write_text(json.dumps(result))


def act(what, folder):
    what, _, rest = what.partition(" ")
    if what == "fail":
        sys.exit("error: it cannot be\n  - for this reason")
    if what == "out_of_memory":
        sys.exit("Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait_for":
        wait_for(rest)
    if what == "stop":
        (folder / "stopped.json").write_text('{"epoch": 2, "reason": "the teacher collapsed"}')
        sys.exit(3)
    if what == "interrupt" and not Path("interrupted").exists():
        Path("interrupted").touch()
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)


def main(argv):
    if argv[0] == "prepare" and "--check" in argv:
        estimate = os.environ.get("OMP_NUM_THREADS") + " threads" if "--estimate" in argv else None
        check(argv[argv.index("--cfg") + 1 :], estimate)
    elif argv[0] == "adapted":
        event(f"adapted {Path(argv[1]).parent.name}")
        (Path(argv[1]) / "teacher_last").touch()
    else:
        {"prepare": prepare, "train": train}[argv[0]](argv)


if __name__ == "__main__":
    main(sys.argv[1:])
