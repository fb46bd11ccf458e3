#!/usr/bin/env python
"""Kill runs at random moments and compare what becomes of them with a run that was left alone; throw rubbish at the
commands.

    python tools/torture.py kill --times 20              SIGKILL at random, --resume until complete: bit-equal?
    python tools/torture.py kill --times 5 --ranks 2     the same with two processes under torchrun (gloo on a CPU)
    python tools/torture.py fuzz --configs 500 --checkpoints 200 --inputs 300

A kill may fall into the start, the training of the teacher, an epoch, an evaluation or the writing of a file. Exit
status 0 when every run ended equal to its twin: weights, optimizer, deployed files, log lines and result, apart from
fields of time and memory.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

KEYS = """
    DATASET.DIGITS100.TRAIN_IMAGES 640 DATASET.DIGITS100.VAL_IMAGES 200 DATASET.DIGITS100.TEST_IMAGES 200
    DISTILLER.TEACHER resnet8 TEACHER.EPOCHS 2 TEACHER.LR_DECAY_STAGES [] SOLVER.BATCH_SIZE 32 SOLVER.EPOCHS 4
    SOLVER.LR_DECAY_STAGES [3] LOG.CHECKPOINT_STEPS 3 LOG.SAVE_CHECKPOINT_FREQ 2
    EXPERIMENT.NAME run EXPERIMENT.DEVICE cpu
"""  # made small: one run takes half a minute
MARK = "ATSC_TORTURED"  # in the environment of all processes of one life, whatever session torchrun puts them into
TIMING = ("seconds", "images_per_second", "memory_mb")  # fields of time and memory end so


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kill = kinds.add_parser("kill", help="random SIGKILLs, compared with the uninterrupted twin")
    kill.add_argument("--times", type=int, default=20, help="runs to kill (default: 20)")
    kill.add_argument("--kills", type=int, default=3, help="at most so many kills a run, at least one (default: 3)")
    kill.add_argument("--ranks", type=int, default=1, help="processes a run; more than one under torchrun")
    kill.add_argument("--seed", type=int, default=0, help="of the moments at which is killed")
    kill.add_argument("--cfg", default=str(ROOT / "configs/quickstart/atsc.yaml"), help="what to run, made small")
    kill.add_argument("--keep", action="store_true", help="keep the directories of the runs")
    kill.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further keys")
    fuzz = kinds.add_parser("fuzz", help="random configurations and damaged files, each told and none lost")
    fuzz.add_argument("--configs", type=int, default=500)
    fuzz.add_argument("--checkpoints", type=int, default=200)
    fuzz.add_argument("--inputs", type=int, default=300, help="hostile files of every kind (default: 300)")
    fuzz.add_argument("--first", type=int, default=0, help="of the hostile files' seeds, for others than the last time")
    return parser


# ---- one run ----


def command(args, place, resume):
    """The command line of a run below `place`, which has a teacher's cache of its own."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}"] if args.ranks > 1 else []
    )
    own = ["LOG.PREFIX", str(place / "output"), "TEACHER.CACHE", str(place / "teachers")]
    train = ["-m", "atsc_plugin", "train", "--cfg", args.cfg, *(["--resume"] if resume else [])]
    return [sys.executable, *launcher, *train, *KEYS.split(), *own, *args.opts]


def live(args, place, resume, seconds=None):
    """One life of a run: its exit status, or None when it was killed after `seconds`."""
    mark = f"{place}-{time.monotonic_ns()}"
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": python_path, MARK: mark}
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "said.txt", "a") as said:
        process = subprocess.Popen(command(args, place, resume), stdout=said, stderr=said, env=environment)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_all(mark, process)


def _kill_all(mark, process):
    """SIGKILL to the launcher, its ranks and their workers, until none is left."""
    process.kill()
    while found := [number for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(number, mark)]:
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.poll()  # a zombie has no environment left
        time.sleep(0.01)
    process.wait()


def _has(number, mark):
    """Whether the mark is in a process's environment; a dead one has none."""
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def run_of(place):
    return next((place / "output").glob("*/*/seed_*"), place / "nothing")


def reached(place):
    """How far a run had come, in words."""
    folder = run_of(place)
    if not folder.is_dir():
        return "before its directory was made" + (", teacher begun" if (place / "teachers").is_dir() else "")
    lines = (folder / "log.jsonl").read_bytes().count(b"\n") if (folder / "log.jsonl").exists() else 0
    return f"{lines} epochs logged" + ("" if (folder / "latest").exists() else ", no checkpoint")


# ---- comparing ----


def without_timing(tree):
    if isinstance(tree, dict):
        return {key: without_timing(value) for key, value in tree.items() if not str(key).endswith(TIMING)}
    return tree


def facts_of(place):
    """{what: value or digest} of everything that must be equal in a run and its twin."""
    from atsc_plugin.engine import checkpoint

    folder = run_of(place)
    facts = {"result.json": without_timing(json.loads((folder / "result.json").read_text()))}
    for number, line in enumerate((folder / "log.jsonl").read_text().splitlines(), 1):
        facts[f"log line {number}"] = without_timing(json.loads(line))
    for path in [folder / name for name in ("latest", "best", "student_best")] + sorted(folder.glob("epoch_*")):
        for key, value in without_timing(checkpoint.load(path)).items():
            facts[f"{path.name}: {key}"] = checkpoint.digest(value)
    for path in sorted(folder.glob("deploy_*.safetensors")):
        facts[path.name] = checkpoint.digest(checkpoint.load_tensors(path))
    for path in sorted((place / "teachers").glob("*.pth")):
        facts["teacher"] = checkpoint.digest(checkpoint.load(path)["model"])
    return facts


def differences(one, other):
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


# ---- the two tortures ----


def kill(args):
    draw, top = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="torture-"))
    print(f"{args.times} runs, up to {args.kills} kills each, {args.ranks} process(es) a run; in {top}", flush=True)
    started = time.monotonic()
    if status := live(args, top / "twin", resume=False):
        print((top / "twin" / "said.txt").read_text()[-3000:], file=sys.stderr)
        sys.exit(f"the uninterrupted twin ended with status {status}")
    length, twin = time.monotonic() - started, facts_of(top / "twin")
    print(f"the uninterrupted twin took {length:.0f} s; {len(twin)} things to compare", flush=True)
    equal, kills, inside = 0, 0, 0
    for number in range(1, args.times + 1):
        good, lives = _torture_one(args, top / f"run_{number}", twin, length, draw)
        equal, kills = equal + good, kills + len(lives)
        inside += (top / f"run_{number}" / "said.txt").read_text().count(" after step ")
        mean = (time.monotonic() - started) / (number + 1)
        print(
            f"[{number}/{args.times}] {'equal' if good else 'DIFFERENT'}; killed at {'; '.join(lives)}"
            f"  (about {mean * (args.times - number) / 60:.0f} min left)",
            flush=True,
        )
        if good and not args.keep:
            shutil.rmtree(top / f"run_{number}")
    told = f"{kills} kills, of which {inside} were gone on from inside an epoch; {time.monotonic() - started:.0f} s"
    print(f"{equal} of {args.times} runs equal to their twin after {told}")
    if equal == args.times and not args.keep:
        shutil.rmtree(top)
    return 0 if equal == args.times else 1


def _torture_one(args, place, twin, length, draw):
    """(equal to the twin, where each kill fell)."""
    wanted, lives = draw.randint(1, args.kills), []
    while True:
        seconds = draw.uniform(0.0, length) if len(lives) < wanted else None
        status = live(args, place, resume=True, seconds=seconds)
        if status is None:
            lives.append(f"{seconds:.1f} s ({reached(place)})")
        elif status == 0 and (lives or wanted == 0):
            break
        elif status == 0:  # it was done before the blow fell: once more, from the beginning
            shutil.rmtree(place)
        else:
            print((place / "said.txt").read_text()[-3000:], file=sys.stderr)
            return False, [*lives, f"ended with status {status}"]
    wrong = differences(twin, facts_of(place))
    for name in wrong[:10]:
        print(f"    differs: {name}", flush=True)
    return not wrong, lives


def fuzz(args):
    given = {"CONFIGS": args.configs, "CHECKPOINTS": args.checkpoints, "INPUTS": args.inputs, "FIRST": args.first}
    numbers = {f"ATSC_FUZZ_{name}": str(number) for name, number in given.items()}
    files = [str(ROOT / "tests" / name) for name in ("test_hostile.py", "test_fuzz.py")]
    test = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", *files]
    return subprocess.run(test, cwd=ROOT, env={**os.environ, **numbers}).returncode


if __name__ == "__main__":
    arguments = options().parse_args()
    sys.exit({"kill": kill, "fuzz": fuzz}[arguments.kind](arguments))
