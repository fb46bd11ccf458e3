"""A suite's runs, and the commands that make them.

`expand` lists the runs. `check` has a process of its own load every configuration, since this one imports no torch and
knows no method. `jobs_of` lists the commands: teachers that may be missing, teachers that a run leaves to another one,
and the runs. A job names the jobs that must end before it.
A trial (KEY VALUE at the end of the command line) gets a project folder of its own, named after its keys, so that it is
never taken for the suite; a finished run of another configuration is refused before anything starts.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from atsc_plugin.engine.run_dir import PLACES, read_tree
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.files import write_text
from atsc_plugin.keys import DEFAULTS, flatten, names_in
from atsc_plugin.leaderboard.suite import Arm, Suite, is_plain

COMMAND = (sys.executable, "-m", "atsc_plugin")
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "EXPERIMENT.SEED")  # make no other configuration
THE_RUNNERS = ("EXPERIMENT.SEED", "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "LOG.PREFIX", "TEACHER.SEED")
EPOCHS, STAGES = 240, [150, 180, 210]  # mdistiller's own, where a configuration names none
MAX_RUNS = 20_000


@dataclass(frozen=True)
class Run:
    """One run directory to be: an arm on a pair with a seed. `keys` is its configuration, `record` its job.json."""

    name: str
    arm: str
    seed: int
    config: Path
    folder: Path
    keys: dict = field(repr=False, hash=False, compare=False)
    record: dict = field(repr=False, hash=False, compare=False)
    source: Path | None = None  # the run directory whose teacher this run starts from

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def stopped(self) -> bool:
        """ATSC's guard ended it: an outcome, not something to resume."""
        return not self.done and (self.folder / "stopped.json").exists()

    @property
    def left_teacher(self) -> Path | None:
        """The file that the source's teacher is written to."""
        return self.source and self.source / "teacher_last"

    @property
    def epochs(self) -> int:
        epochs = self.keys.get("SOLVER.EPOCHS", EPOCHS)
        return epochs if type(epochs) is int else 0

    def epochs_done(self) -> int:
        path = self.folder / "log.jsonl"
        return min(self.epochs, path.read_bytes().count(b"\n")) if path.is_file() else 0


@dataclass(frozen=True)
class Job:
    """One command. `needs` are the keys of jobs that must end well first; `makes` is the file that shows success."""

    key: str
    title: str
    argv: tuple
    log: Path
    needs: tuple = ()
    makes: Path | None = None
    run: Run | None = None
    takes_keys: bool = True  # whether KEY VALUE may follow


def parse_overrides(pairs: list) -> list:
    """[(key, value)] of KEY VALUE ...; keys that the runner sets itself are refused."""
    problems = []
    if len(pairs) % 2:
        problems.append(f"overrides come as KEY VALUE pairs; '{pairs[-1]}' has no value. Add one.")
    for key in pairs[::2]:
        if key in THE_RUNNERS:
            problems.append(f"{key} is set by the runner; use --seeds, --output or the suite file.")
        elif "." not in key:
            problems.append(f"'{key}' is no key; expected e.g. SOLVER.EPOCHS.")
    if problems:
        raise ConfigError(problems)
    return [(key, _value(text)) for key, text in zip(pairs[::2], pairs[1::2], strict=True)]


def _value(text):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return names_in(text)
    value = list(value) if isinstance(value, tuple) else value
    return value if is_plain(value) else text


def project_of(suite: Suite, overrides: list) -> str:
    """The suite's folder name, with the overrides that change results in it."""
    added = [f"{key}={value}" for key, value in overrides if not key.startswith(PLACES)]
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([suite.name, *added]))
    return name if len(name) <= 100 else f"{name[:87]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def expand(suite: Suite, output, *, seeds=None, arms=None, pairs=None, overrides=()) -> list:
    """All runs: pair by pair, in each seed by seed, so that an interrupted suite has whole columns."""
    seeds, arms, pairs = seeds or suite.seeds, arms or list(suite.arms), pairs or list(suite.pairs)
    count = len(seeds) * len(arms) * len(pairs) * len(suite.teacher_seeds)
    if count > MAX_RUNS:
        raise PluginError(f"{suite.path} makes {count:,} runs; expected at most {MAX_RUNS:,}. Name fewer.")
    folder, runs = Path(output) / project_of(suite, overrides), []
    for pair in pairs:
        members = [suite.arms[arm] for arm in arms if pair in suite.arms[arm].pairs]
        members.sort(key=lambda arm: arm.adapted_by is not None)  # after the arms that leave them a teacher
        for teacher_seed in suite.teacher_seeds:
            crossed = f"teacher{teacher_seed}" if len(suite.teacher_seeds) > 1 else None
            names = {arm: ",".join(filter(None, (pair, arm, crossed))) for arm in suite.arms}
            last = dict(overrides) | ({} if teacher_seed is None else {"TEACHER.SEED": teacher_seed})
            keys = {arm.name: _keys(suite, arm, pair, last, folder.name, names[arm.name]) for arm in members}
            for seed in seeds:
                seeded = [arm for arm in members if arm.seeds is None or seed in arm.seeds]
                runs += [_run(suite, arm, pair, seed, folder, names, keys[arm.name], overrides) for arm in seeded]
    return runs


def _keys(suite, arm, pair, last, project, name):
    """The flat configuration of an arm on a pair; whole numbers become decimals where its file or default has one."""
    keys = flatten(read_tree(arm.config(pair)))
    last = last | {"EXPERIMENT.PROJECT": project, "EXPERIMENT.NAME": name}
    for key, value in (suite.common | suite.pairs[pair] | arm.set | last).items():
        decimal = isinstance(keys.get(key, DEFAULTS.get(key)), float) and type(value) is int
        keys[key] = float(value) if decimal else value
    epochs, stages = keys.get("SOLVER.EPOCHS", EPOCHS), keys.get("SOLVER.LR_DECAY_STAGES", STAGES)
    if arm.stretch != 1 and type(epochs) is int and isinstance(stages, list):
        keys["SOLVER.EPOCHS"] = max(1, round(epochs * arm.stretch))
        keys["SOLVER.LR_DECAY_STAGES"] = [
            round(stage * arm.stretch) if type(stage) is int else stage for stage in stages
        ]
        if type(warmup := keys.get("SOLVER.WARMUP_EPOCHS")) is int:
            keys["SOLVER.WARMUP_EPOCHS"] = round(warmup * arm.stretch)
    return keys


def _run(suite: Suite, arm: Arm, pair, seed, folder, names, keys, overrides):
    name = names[arm.name]
    record = {
        "suite": suite.name, "suite_file": suite.path, "arm": arm.name, "display": arm.display, "pair": pair,
        "seed": seed, "cfg": arm.cfg.replace("{pair}", pair or ""), "set": arm.set, "stretch": arm.stretch,
        "common": suite.common | suite.pairs[pair], "trials": arm.trials, "adapted_by": arm.adapted_by,
        "teacher_file": keys.get("DISTILLER.TEACHER_CKPT") or None,
        "notes": suite.notes, "images": suite.images, "against": suite.against, "primary": suite.primary,
        "overrides": [word for key, value in overrides for word in (key, str(value))],
    }  # fmt: skip
    source = folder / names[arm.adapted_by] / f"seed_{seed}" if arm.adapted_by else None
    place = folder / name / f"seed_{seed}"
    return Run(name, arm.name, seed, folder / "configs" / f"{name}.yaml", place, keys, record, source)


def write_configs(runs: list, folder: Path | None = None) -> list:
    """Every run's configuration as a file, once a name, in its own place or in `folder`; the files."""
    files = {folder / run.config.name if folder else run.config: run for run in runs}
    for path, run in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(_nested(run.keys))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(text, path)
    return list(files)


def _nested(keys):
    tree = {}
    for key, value in keys.items():
        *path, leaf = key.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise PluginError(f"{key}: {step} is a key, not a group of keys. Check its spelling.")
        node[leaf] = value
    return tree


def check(runs: list, estimate: bool = False, device: str | None = "cpu", threads: int | None = None) -> dict:
    """{run name: its resolved keys, the teachers it needs, whether it leaves one}; mistakes are told, nothing is built.

    With `estimate` also how long an epoch takes on the device. Where a run says what it was made with, the resolved
    keys are compared with it, so that no finished run silently stands for another configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in write_configs(runs, Path(folder))]
        argv = [*COMMAND, "prepare", "--check", "--json", *["--estimate"] * estimate, "--cfg", *files]
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, env=environment(device, threads))
        output, errors = (text.decode(errors="replace").strip() for text in (done.stdout, done.stderr))
        if done.returncode:
            said = (errors or output or f"status {done.returncode}").removeprefix("error: ")
            raise PluginError(f"The suite was not started. {said.replace(f'{folder}{os.sep}', '')}")
    answer = json.loads(output.splitlines()[-1])
    checked = {Path(path).stem: facts for path, facts in answer["configs"].items()}
    _refuse(_lost_teachers(runs, checked))
    way_out = "give the suite another name, another --output, or move those folders away"
    _refuse(_other_configurations(runs, checked, answer["defaults"]), way_out)
    return checked


def _refuse(problems, *way_out):
    more = [f"... and {len(problems) - 5} more"] if len(problems) > 5 else []
    if problems:
        raise ConfigError([*problems[:5], *more, *way_out])


def _lost_teachers(runs, checked):
    """A run that starts from another run's teacher needs that run: finished, or among those to come."""
    names, problems = {run.folder: run.name for run in runs}, []
    for run in runs:
        arm = run.record["adapted_by"]
        if run.source is None or run.done:
            continue
        if run.source in names:
            if not checked[names[run.source]]["leaves_teacher"]:
                problems.append(f"{run.title}: adapted_by wants an arm whose teacher learns; that of {arm} does not")
        elif not (run.source / "result.json").exists():
            problems.append(f"{run.title} starts from the teacher that {run.source} leaves; add {arm} to --arms")
    return problems


def _other_configurations(runs, checked, defaults):
    """Finished and stopped runs whose cfg.yaml differs from what is asked; a key that it lacks had its default."""
    problems = []
    for run in runs:
        stored = run.folder / "cfg.yaml"
        if not (run.done or run.stopped) or not stored.is_file():
            continue
        free = (*PLACES, *NAMES, *(["DISTILLER.TEACHER_CKPT"] if run.source else []))
        before, changes = flatten(read_tree(stored)), []
        for key, asked in sorted(checked[run.name]["keys"].items()):
            was = before.get(key, defaults.get(key))
            if was != asked and not key.startswith(free):
                changes.append(f"{key} was {was}, asked {asked}")
        if changes:
            kind = "finished" if run.done else "stopped"
            problems.append(f"{run.folder} is a {kind} run of another configuration: {'; '.join(changes[:4])}")
    return problems


def jobs_of(runs: list, checked: dict) -> list:
    """The commands that make the runs which have not ended yet; teachers that a finished run had are not looked for."""
    had = {teacher["recipe"] for run in runs if run.done for teacher in checked[run.name]["teachers"]}
    waiting = [run for run in runs if not (run.done or run.stopped)]
    to_come, teachers, copies, trainings = {run.folder for run in waiting}, {}, {}, []
    for run in waiting:
        needs = [str(run.source)] if run.source in to_come else []
        for teacher in checked[run.name]["teachers"] if run.source is None else ():
            if teacher["recipe"] not in had:
                job = teachers.setdefault(teacher["recipe"], _teacher(run, teacher))
                needs.append(job.key)
        if run.source is not None and not run.left_teacher.exists():
            job = copies.setdefault(run.source, _copy(run, run.source in to_come))
            needs.append(job.key)
        trainings.append(_training(run, tuple(needs)))
    return [*teachers.values(), *copies.values(), *trainings]  # a teacher that was left is copied at once


def _teacher(run, teacher):
    argv = (*COMMAND, "prepare", "--teacher", str(teacher["number"]), "--cfg", str(run.config), "LOG.PREFIX",
            str(run.folder.parents[2]))  # fmt: skip
    name = f"teacher {teacher['name']}, seed {teacher['seed']}"
    file = re.sub(r"[/:, ]+", "_", name)  # a network can be called timm/vit or package.nets:Small
    log = run.config.with_name(f"{file}_{teacher['recipe'][:8]}.log")
    return Job(f"teacher {teacher['recipe']}", name, argv, log)


def _copy(run, to_come):
    argv, needs = (*COMMAND, "adapted", str(run.source)), (str(run.source),) if to_come else ()
    log = run.source.parent / f"{run.source.name}.teacher.log"
    title = f"teacher that {run.source.parent.name}, {run.source.name.replace('_', ' ')} leaves"
    return Job(f"copy {run.source}", title, argv, log, needs, run.left_teacher, takes_keys=False)


def _training(run, needs):
    argv = (*COMMAND, "train", "--cfg", str(run.config), "--resume", "EXPERIMENT.SEED", str(run.seed), "LOG.PREFIX",
            str(run.folder.parents[2]))  # fmt: skip
    argv += ("DISTILLER.TEACHER_CKPT", str(run.left_teacher)) if run.source else ()
    log = run.folder.parent / f"{run.folder.name}.log"
    return Job(str(run.folder), run.title, argv, log, needs, run.folder / "result.json", run)


def environment(device: str | None = None, threads: int | None = None) -> dict:
    """The environment of a command: this package, its share of the cores, its device and no other."""
    added = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    if threads:
        added["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        added["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    return {**os.environ, **added}
