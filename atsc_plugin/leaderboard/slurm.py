"""The same jobs on a SLURM cluster, through submitit (extra `slurm`): one cluster job a command, the same suite file.

A job that SLURM ends for its time limit or preempts is put back into the queue and resumes from `latest`.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.leaderboard.jobs import Job, environment
from atsc_plugin.leaderboard.runner import Attempt


def _submitit():
    try:
        import submitit
    except ImportError as error:
        raise PluginError(
            'The launcher submitit is not installed: pip install "atsc_plugin[slurm]", or use --launcher local.'
        ) from error
    return submitit


def parse_options(pairs) -> dict:
    """{name: value} of KEY=VALUE pairs, which are submitit's own: timeout_min=600 gpus_per_node=1 slurm_partition=a."""
    options = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise PluginError(f"--slurm got '{pair}'; expected KEY=VALUE, e.g. timeout_min=600 slurm_partition=gpu.")
        options[name] = int(value) if value.isdecimal() else value
    return options


@dataclass
class Call:
    """What a cluster node runs: one job."""

    job: Job

    def __call__(self) -> str | None:
        attempt = Attempt(self.job)
        while not attempt.start():
            time.sleep(0.5)
        while not attempt.done():
            time.sleep(0.5)
        return attempt.result()

    def checkpoint(self):
        """Called by submitit when SLURM takes the node away: the same call again, which resumes."""
        return _submitit().helpers.DelayedSubmission(self)


class Cluster:
    """Submits what is ready, at most `at_once` jobs at a time (None: all); `kind` is submitit's, None finds SLURM."""

    def __init__(self, folder: Path, name: str, at_once: int | None, options: dict, kind: str | None = None):
        submitit = _submitit()
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # the nodes find the package, too
        self.at_once, self.handles = at_once, []
        try:
            self.executor = submitit.AutoExecutor(folder=str(folder), cluster=kind)
            self.executor.update_parameters(**{"timeout_min": 24 * 60, "name": name, **options})
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise PluginError(f"submitit refused: {error}. Check --slurm, or use --launcher local.") from error
        self.pause = 20.0 if self.executor.cluster == "slurm" else 0.2

    def start(self, ready: list) -> list:
        """[(job, submitit's job)] of the jobs that were submitted now."""
        self.handles = [handle for handle in self.handles if not handle.done()]
        ready = ready if self.at_once is None else ready[: max(0, self.at_once - len(self.handles))]
        if not ready:
            return []
        try:
            with self.executor.batch():
                handles = [self.executor.submit(Call(job)) for job in ready]
        except (RuntimeError, OSError) as error:
            raise PluginError(f"submitit could not submit: {error}. Check --slurm and the partition.") from error
        print(f"submitted {len(handles)}: {', '.join(str(handle.job_id) for handle in handles[:5])} ...", flush=True)
        self.handles += handles
        return list(zip(ready, handles, strict=True))

    def end(self, handles: list, hurry) -> None:
        """Cancel what was submitted."""
        for handle in handles:
            handle.cancel()
