"""The same jobs on a SLURM cluster, through submitit (extra `slurm`): one cluster job a run, the same suite file.

A job that SLURM ends for its time limit or preempts is put back into the queue and resumes from `latest`.
"""

import os
import sys
import time
from dataclasses import dataclass

from atsc_plugin.errors import PluginError
from atsc_plugin.suites import launch, runner


def _submitit():
    try:
        import submitit
    except ImportError as error:
        raise PluginError(
            'The launcher submitit is not installed: pip install "atsc_plugin[slurm]", or use --launcher local.'
        ) from error
    return submitit


def parse_options(words):
    """{name: value} of KEY=VALUE words, which are submitit's own: timeout_min=600 gpus_per_node=1 slurm_partition=a."""
    options = {}
    for word in words or ():
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise PluginError(f"--slurm got '{word}'; expected KEY=VALUE, e.g. timeout_min=600 slurm_partition=gpu.")
        options[name] = int(value) if value.isdigit() else value
    return options


@dataclass
class Call:
    """What a cluster node runs: the one job, or the teacher it lacks."""

    job: object
    teacher: bool = False

    def __call__(self):
        processes = launch.Processes()
        return (launch.train_teacher if self.teacher else launch.run_job)(self.job, processes)

    def checkpoint(self):
        """Called by submitit when SLURM takes the node away: the same call again, which resumes."""
        return _submitit().helpers.DelayedSubmission(self)


class Cluster:
    """Submits and waits; `kind` is submitit's: None finds SLURM, `local` and `debug` need none."""

    def __init__(self, folder, name, at_once, options, kind=None):
        submitit = _submitit()
        os.environ["PYTHONPATH"] = launch.environment(None, None)["PYTHONPATH"]  # the nodes find the package, too
        try:
            self.executor = submitit.AutoExecutor(folder=str(folder), cluster=kind)
            given = {"timeout_min": 24 * 60, "name": name, **options}
            if self.executor.cluster == "slurm":
                given["slurm_array_parallelism"] = at_once
            self.executor.update_parameters(**given)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise PluginError(f"submitit refused: {error}. Check --slurm, or use --launcher local.") from error

    def run(self, jobs, waiting):
        """[(job, reason)] of those that failed; teachers first. Ctrl-C cancels what was submitted."""
        lacking = {}
        groups = runner.teacher_groups(jobs, waiting)
        for job, reason in self._all(groups, [Call(job, teacher=True) for job in groups]):
            lacking[runner.teacher_key(job)] = reason
        able = [job for job in waiting if not job.teacher or runner.teacher_key(job) not in lacking]
        failures = [(job, lacking[runner.teacher_key(job)]) for job in waiting if job not in able]
        for part in ([job for job in able if not job.source], [job for job in able if job.source]):
            failures += self._all(part, [Call(job) for job in part])
        return failures

    def _all(self, jobs, calls):
        if not calls:
            return []
        with self.executor.batch():
            handles = [self.executor.submit(call) for call in calls]
        failures, left, pace = [], dict(enumerate(handles)), runner.Pace(jobs)
        print(f"submitted {len(handles)}: {', '.join(str(handle.job_id) for handle in handles[:5])} ...", flush=True)
        try:
            while left:
                for number, handle in list(left.items()):
                    if handle.done():
                        del left[number]
                        reason = _outcome(handle)
                        failures += [(jobs[number], reason)] if reason else []
                        said = f"FAILED ({reason})" if reason else "ok"
                        said += pace.left([job for job, _ in failures]) if left and not calls[number].teacher else ""
                        print(f"[{len(calls) - len(left)}/{len(calls)}] {jobs[number].title}: {said}", flush=True)
                time.sleep(0.2 if self.executor.cluster != "slurm" else 20)
        except KeyboardInterrupt:
            print("interrupted: cancelling what was submitted", file=sys.stderr, flush=True)
            for handle in left.values():
                handle.cancel()
            raise PluginError("Interrupted; the same command goes on where it stopped.") from None
        return failures


def _outcome(handle):
    """None, or why the job failed: its own words, or what the cluster says."""
    try:
        return handle.result()
    except Exception as error:  # the cluster killed it, the node died: submitit throws many kinds
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
