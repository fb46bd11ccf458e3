"""Programs in processes of their own, without four seconds of importing torch for each.

`python_run(argv)` stands for `subprocess.run`: a server that has imported torch, and nothing of ours, forks itself and
runs the program as Python would: `-m MODULE`, `-c CODE` or a script, PYTHONPATH, working directory, exit status. It is
started by the first call of a test process and ends with it. Run as a script, this file is the server.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path


@cache
def _server():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    )


def python_run(argv, cwd=None, env=None, **_):
    """CompletedProcess of [python, ...], its output as text."""
    assert argv[0] == sys.executable
    server = _server()
    job = {"argv": [str(word) for word in argv[1:]], "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
    print(json.dumps(job), file=server.stdin, flush=True)
    return subprocess.CompletedProcess(argv, *json.loads(server.stdout.readline()))


def _program(argv, cwd, env):
    """What Python does with such a command line; the exit status."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind = argv[0] if argv[0] in ("-m", "-c") else None
    first = cwd if kind else str(Path(argv[0]).resolve().parent)
    sys.path[:1] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = argv[1:] if kind == "-m" else argv
    try:
        if kind == "-m":
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(argv[1], {"__name__": "__main__"})
        else:
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, (int, type(None))):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forked(job):
    """[status, stdout, stderr] of a fork that runs the program."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(900)  # seconds; what hangs is ended
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                status = _program(**job)
                sys.stdout.flush(), sys.stderr.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return [status, *texts]


if __name__ == "__main__":
    import torch
    import torch._dynamo  # the first optimizer imports it

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)
