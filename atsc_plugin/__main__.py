"""python -m atsc_plugin COMMAND ...: the same commands as tools/, for an installed wheel too.

A mistake in the input or the surroundings ends with a message and exit status 2, never with a traceback.
"""

import os

# Spinning OpenMP threads cost a 66 ms step 1.4 s beside one busy process on two cores; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import difflib
import importlib
import sys
import traceback

from atsc_plugin import __version__
from atsc_plugin.errors import Interrupted, PluginError, RunStopped, out_of_memory, started_as, wrapped
from atsc_plugin.untrusted import message_of, printable

COMMANDS = {
    "quickstart": "compare four methods on a toy data set, in minutes",
    "train": "train a student, and its teacher where it is missing",
    "teachers": "train missing teachers, or several seeds of one",
    "eval": "accuracy of a run, a deployed student or a checkpoint",
    "export": "write a trained student as ONNX, torch.export or safetensors",
    "predict": "classes of image files, by a run or an ONNX file",
    "prepare": "check config files, and train the teachers they lack",
    "leaderboard": "run every method and seed of a suite, then write the page",
    "report": "compare finished runs in one table",
    "adapted": "write out the teacher that an ATSC run left",
    "bench": "measure a training step, the data loader or an epoch here",
    "gpu-check": "check and time all GPU paths here, in minutes",
    "launch": "run a host's own script with our methods registered",
    "doctor": "say what is here, what is missing and how to get it",
}
MODULES = {"eval": "commands.evaluate", "gpu-check": "commands.gpu_check"}


def usage():
    start, width = started_as(), max(map(len, COMMANDS))
    examples = (f"  {start} quickstart", f"  {start} train --cfg configs/quickstart/simkd.yaml")
    commands = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    last = "--allow PACKAGE: networks called package.module:Name may run that package's code"
    return "\n".join(["examples:", *examples, "", "commands, each with a --help of its own:", *commands, "", last])


def main(argv=None):
    """Run one command; the exit status: 0 done, 1 found wanting, 2 a mistake that was told, 3 a stopped run, 128 + a
    signal's number: ended by it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "--version"):
        print(f"atsc_plugin {__version__}" if argv == ["--version"] else usage())
        return 0 if argv else 2
    command, *arguments = _allowed(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8, nor the terminal
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(COMMANDS)}."
        _say(f"error: '{printable(command)}' is no command. {hint}")
        return 2
    module = importlib.import_module(f"atsc_plugin.{MODULES.get(command, f'commands.{command}')}")
    args = module.parse(arguments) if hasattr(module, "parse") else module.parser().parse_intermixed_args(arguments)
    status = _run(module, args)
    if status and "torch.distributed" in sys.modules:
        from atsc_plugin.engine import distributed

        distributed.leave(status)
    return status


def _allowed(argv):
    """The arguments without `--allow PACKAGE`, which goes into the environment, where child processes find it too.

    What `launch` passes on is the script's own: there it is ATSC_ALLOW alone.
    """
    if argv[0] == "launch":
        return argv
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--allow", action="append", default=[])
    given, rest = options.parse_known_args(argv)
    if given.allow:
        os.environ["ATSC_ALLOW"] = ",".join([*os.environ.get("ATSC_ALLOW", "").split(","), *given.allow])
    return rest


def _run(module, args):
    """The command's exit status; every error that a person can mend is told in a few lines."""
    try:
        status = module.run(args)
        sys.stdout.flush()
        return status
    except PluginError as error:
        _say(f"{_who()}error: {message_of(error)}")
    except RunStopped as stop:
        _say(f"stopped: {message_of(stop)}")
        return 3
    except Interrupted as end:  # it has said how to go on
        return end.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads us (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        _say(f"error: {message_of(error.strerror or error)}{message_of(place)}. What was written before is intact.")
    except Exception as error:
        if not out_of_memory(error):
            traceback.print_exc()  # a mistake of the program; ranks must end here too
            return 1
        _say(
            f"{_who()}error: memory ran out ({str(error).splitlines()[0][:160] if str(error) else 'MemoryError'}). "
            "Lower SOLVER.BATCH_SIZE or DATASET.TEST.BATCH_SIZE, or raise SOLVER.ACCUMULATE, which takes the memory of "
            "one micro-batch. SOLVER.AMP bf16 takes about half. What was written before is intact."
        )
    return 2


def _say(message):
    print(wrapped(message, sys.stderr), file=sys.stderr)


def _who():
    """Which rank speaks, where torchrun started several."""
    return "" if os.environ.get("RANK", "0") == "0" else f"rank {os.environ['RANK']}: "


if __name__ == "__main__":
    sys.exit(main())
