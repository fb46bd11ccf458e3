"""What an earlier run left in the directory, and what of the configuration may change when it is continued."""

from pathlib import Path

import yaml

from atsc_plugin import untrusted
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import flatten
from atsc_plugin.methods.base import class_of
from atsc_plugin.registration import all_keys

FREE = (*run_dir.FREE, "EXPERIMENT.PROJECT", "EXPERIMENT.NAME", "EXPERIMENT.TAG")
UNSAID = ("LOG.", "TEACHER.CACHE")  # make no other run


def complete(folder, cfg):
    """True, and said, when this very run is finished; an error when another configuration's is."""
    result = run_dir.read_json(folder, "result.json")
    if result is None:
        return False
    changes = differences(folder, cfg)
    other = [f"{name} was {old}, asked {new}" for name, old, new in changes if not name.startswith(UNSAID)]
    if other:
        raise PluginError(
            f"{folder} holds a finished run of another configuration ({'; '.join(other[:5])}). "
            "Give this one an EXPERIMENT.NAME of its own, or --overwrite."
        )
    scores = [f"{result[key]:.2f}" for key in ("top1_last", "top1_best") if isinstance(result.get(key), float)]
    summary = f"test top-1 {' last, '.join(scores)} best epoch"
    print(f"{folder} is complete: {summary}. Nothing to do; --overwrite runs it again.")
    return True


def refuse_unfinished(folder):
    """Without --resume or --overwrite an unfinished run is not touched."""
    stopped = run_dir.read_json(folder, "stopped.json")
    what = f"a run that was stopped ({stopped.get('reason')})" if stopped else "an unfinished run"
    raise PluginError(f"{folder} holds {what}. Continue it with --resume, or start anew with --overwrite.")


def say_changes(folder, cfg):
    """Print each key that differs from the run's own, and which value holds; refuse those that cannot change."""
    changes = differences(folder, cfg)
    free = [name for name in FREE if name != "SOLVER.EPOCHS" or cfg.SOLVER.SCHEDULE != "cosine"]  # which ends there
    fixed = [change for change in changes if not change[0].startswith((*free, *run_dir.KEPT))]
    if fixed:
        lines = "".join(f"\n  - {name} was {old}, asked {new}" for name, old, new in fixed)
        raise PluginError(
            f"{folder} was started with another configuration, and these cannot change inside a run:{lines}\n"
            "Resume with the same keys, or start anew with --overwrite."
        )
    for name, old, new in changes:
        holds = "no effect, the checkpoint's teacher holds" if name in run_dir.KEPT else "the new value holds"
        print(f"resuming with {name}: was {old}, asked {new}; {holds}", flush=True)


def differences(folder, cfg):
    """(key, value in the directory's cfg.yaml, value asked) of each that differs; a newer key has its default.

    What follows from the networks is in the file, and not in what is asked.
    """
    stored, asked = flatten(_stored(folder)), flatten(yaml.safe_load(cfg.dump()))
    defaults = {key.name: key.default for key in all_keys()}
    names = sorted((stored.keys() | asked.keys()) - set(class_of(cfg.DISTILLER.TYPE).derives(cfg)))
    changes = [(name, stored.get(name, defaults.get(name, "absent")), asked.get(name, "absent")) for name in names]
    return [change for change in changes if change[1] != change[2]]


def _stored(folder):
    path = Path(folder) / "cfg.yaml"
    try:
        tree = untrusted.read_yaml(path, "The configuration")
    except PluginError as error:
        raise PluginError(f"{error} Start anew with --overwrite.") from error
    if not isinstance(tree, dict):
        raise PluginError(f"{path} holds no configuration, so it is unknown what runs here. Start with --overwrite.")
    return tree
