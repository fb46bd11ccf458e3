"""What a suite expands to: one job a run, each with a whole configuration file of its own.

A trial (KEY VALUE at the end of the command line) gets a project folder of its own, named after its keys, so that it is
never taken for the suite; a finished run of another configuration is refused before anything starts.
"""

import ast
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from atsc_plugin.engine.run_files import PLACES, read_json, read_tree
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.files import write_text
from atsc_plugin.keys import DEFAULTS, flatten

NAMES = ("EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "EXPERIMENT.SEED")  # make no other configuration


@dataclass(frozen=True)
class Job:
    """One run: an arm on a pair with a seed. `facts` is what job.json says of it."""

    name: str
    arm: str
    seed: int
    config: Path
    folder: Path
    tree: dict = field(repr=False, hash=False, compare=False)
    facts: dict = field(repr=False, hash=False, compare=False)
    source: Path | None = None  # the run that leaves this one its teacher

    @property
    def title(self):
        return f"{self.name}, seed {self.seed}"

    @property
    def log(self):
        return self.folder.parent / f"seed_{self.seed}.log"

    @property
    def done(self):
        return (self.folder / "result.json").exists()

    @property
    def stopped(self):
        """Its guard ended it: an outcome, not something to go on with."""
        return not self.done and (self.folder / "stopped.json").exists()

    @property
    def left_teacher(self):
        """The file in which the source's teacher is kept, None for a job without one."""
        return self.source and self.source / "teacher_last"

    @property
    def epochs(self):
        return self.tree.get("SOLVER", {}).get("EPOCHS", 240)

    @property
    def teacher(self):
        """The teacher's name (or names), None for a student trained without one."""
        node = self.tree.get("DISTILLER", {})
        return None if node.get("TYPE", "NONE") == "NONE" else node.get("TEACHERS") or node.get("TEACHER")

    def epochs_done(self):
        path = self.folder / "log.jsonl"
        return min(self.epochs, path.read_bytes().count(b"\n")) if path.exists() else 0


def parse_overrides(words):
    """[(key, value)] of KEY VALUE ...; what belongs to the runner is refused."""
    problems = []
    if len(words) % 2:
        problems.append(f"overrides come as KEY VALUE pairs; '{words[-1]}' has no value. Add one.")
    for key in words[::2]:
        if key in ("EXPERIMENT.SEED", "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "LOG.PREFIX", "TEACHER.SEED"):
            problems.append(f"{key} is the suite's own; use --seeds, --output or the suite file.")
        elif "." not in key:
            problems.append(f"'{key}' is no key; expected e.g. SOLVER.EPOCHS.")
    if problems:
        raise ConfigError(problems)
    return [(key, _value(text)) for key, text in zip(words[::2], words[1::2], strict=True)]


def _value(text):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def project_of(suite, overrides):
    """The suite's folder name, with the overrides that change results in it."""
    added = [f"{key}={value}" for key, value in overrides if not key.startswith(PLACES)]
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([suite.name, *added]))
    return name if len(name) <= 100 else f"{name[:87]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def expand(suite, output, *, seeds=None, arms=None, pairs=None, overrides=()):
    """All jobs: pair by pair, in each seed by seed, so that what is interrupted has whole columns."""
    project = project_of(suite, overrides)
    jobs = []
    for pair in pairs or suite.pairs:
        for teacher_seed in suite.teacher_seeds:
            for seed in seeds or suite.seeds:
                members = [suite.arms[arm] for arm in arms or suite.arms if pair in suite.arms[arm].pairs]
                members.sort(key=lambda arm: arm.adapted_by is not None)  # behind those that leave them a teacher
                jobs += [_job(suite, arm, pair, teacher_seed, seed, project, output, overrides) for arm in members]
    return jobs


def _job(suite, arm, pair, teacher_seed, seed, project, output, overrides):
    def named(arm_name):
        parts = [pair, arm_name, f"teacher{teacher_seed}" if len(suite.teacher_seeds) > 1 else None]
        return ",".join(part for part in parts if part)

    name, folder = named(arm.name), Path(output) / project
    own = {"EXPERIMENT.PROJECT": project, "EXPERIMENT.NAME": name}
    if teacher_seed is not None:
        own["TEACHER.SEED"] = teacher_seed
    tree = _tree(suite, arm, pair, {**dict(overrides), **own})
    facts = {
        "suite": suite.name, "suite_file": suite.path, "arm": arm.name, "pair": pair, "seed": seed,
        "cfg": arm.cfg.replace("{pair}", pair or ""), "set": arm.keys, "stretch": arm.stretch, "trials": arm.trials,
        "adapted_by": arm.adapted_by, "teacher_file": tree.get("DISTILLER", {}).get("TEACHER_CKPT") or None,
        "notes": suite.notes, "images": suite.images, "against": suite.against, "primary": suite.primary,
        "overrides": [word for key, value in overrides for word in (key, str(value))],
    }  # fmt: skip
    source = folder / named(arm.adapted_by) / f"seed_{seed}" if arm.adapted_by else None
    place = folder / name / f"seed_{seed}"
    return Job(name, arm.name, seed, folder / "configs" / f"{name}.yaml", place, tree, facts, source)


def _tree(suite, arm, pair, last):
    """The whole configuration of an arm on a pair; `last` are the keys that win over all others."""
    tree = read_tree(arm.config(pair))
    for key, value in {**suite.common, **suite.pairs[pair], **arm.keys, **last}.items():
        put(tree, key, value)
    if arm.stretch != 1:
        solver = tree.setdefault("SOLVER", {})
        solver["EPOCHS"] = max(1, round(solver.get("EPOCHS", 240) * arm.stretch))
        stages = solver.get("LR_DECAY_STAGES", [150, 180, 210])  # the host's, as its 240 epochs
        solver["LR_DECAY_STAGES"] = [round(stage * arm.stretch) for stage in stages]
    return tree


def put(tree, key, value):
    """Set a dotted key in a nested tree; whole numbers become decimals where the file has one."""
    *path, leaf = key.split(".")
    for step in path:
        tree = tree.setdefault(step, {})
        if not isinstance(tree, dict):
            raise PluginError(f"{key}: {step} is a key, not a group of keys. Check its spelling.")
    decimal = isinstance(tree.get(leaf), float) and type(value) is int
    tree[leaf] = float(value) if decimal else value


def write_configs(jobs):
    """Every job's configuration, once a name."""
    for config, job in {job.config: job for job in jobs}.items():
        config.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(job.tree)
        if not config.exists() or config.read_text(encoding="utf-8") != text:
            write_text(text, config)


def refuse_lost_teachers(jobs):
    """A job whose teacher another run must leave needs that run: finished, or among those to come."""
    methods = {job.folder: job.tree.get("DISTILLER", {}).get("TYPE", "NONE") for job in jobs}
    problems = []
    for job in jobs:
        if job.source is None:
            continue
        arm = job.facts["adapted_by"]
        if job.source not in methods and not (job.done or (job.source / "result.json").exists()):
            problems.append(f"{job.title} starts from the teacher that {job.source} leaves; add {arm} to --arms")
        elif methods.get(job.source, "ATSC") != "ATSC":
            problems.append(f"{job.title}: adapted_by wants an arm of ATSC, and {arm} is of {methods[job.source]}")
    if problems:
        raise ConfigError(problems[:5])


def refuse_other_configurations(jobs):
    """A finished run whose cfg.yaml says otherwise would silently stand for the one that is asked for."""
    problems = []
    for job in jobs:
        stored = job.folder / "cfg.yaml"
        if not (job.done or job.stopped) or not stored.is_file():
            continue
        differ = _changes(job, _keys_of(stored))
        if differ:
            kind = "finished" if job.done else "stopped"
            problems.append(f"{job.folder} is a {kind} run of another configuration: {'; '.join(differ[:4])}")
    if problems:
        more = [f"... and {len(problems) - 5} more"] if len(problems) > 5 else []
        way_out = "give the suite another name, another --output, or move those folders away"
        raise ConfigError([*problems[:5], *more, way_out])


def _keys_of(path):
    return flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _changes(job, before):
    """What a job asks otherwise than a run's configuration says; a key that one lacks has its default."""
    now, told = flatten(job.tree), []
    defaults = DEFAULTS | _hosts_defaults(job, now)
    for key in sorted(now.keys() | (before.keys() & defaults.keys())):
        was = before.get(key, defaults.get(key, now.get(key)))
        asked = now.get(key, defaults.get(key, was))
        if was != asked and not key.startswith((*PLACES, *NAMES)) and not _runners_own(key, job, now):
            told.append(f"{key} was {was}, asked {asked}")
    return told


def _hosts_defaults(job, now):
    """Of those host's keys that this job's last written configuration had and that have left it since."""
    if not job.config.is_file():
        return {}
    gone = _keys_of(job.config).keys() - now.keys() - DEFAULTS.keys()
    if not gone:
        return {}
    from atsc_plugin.host import CFG  # seconds, as it imports torch; hence only where it is needed

    host = flatten(yaml.safe_load(CFG.dump()))
    return {key: host[key] for key in gone & host.keys()}


def _runners_own(key, job, now):
    """The file that a source left is filled in by the runner; what network a deployed student is, by its card."""
    if job.source:
        return key == "DISTILLER.TEACHER_CKPT"
    return key == "DISTILLER.TEACHER" and bool(now.get("DISTILLER.TEACHER_CKPT"))


def note(job, **changes):
    """Write what is known of a job into its job.json."""
    from atsc_plugin.files import write_json

    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(
        {**job.facts, **(read_json(job.folder, "job.json") or {}), **job.facts, **changes}, job.folder / "job.json"
    )
