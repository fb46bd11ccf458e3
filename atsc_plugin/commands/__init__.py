"""One module a command: `parser()` for its options and `run(args)`, which returns the exit status."""

import argparse
import re
import sys
import textwrap
from typing import NoReturn

from atsc_plugin.errors import started_as, wrapped
from atsc_plugin.untrusted import expand_user, printable

WIDTH = 78  # columns of a --help, in a terminal of 80


class Parser(argparse.ArgumentParser):
    """A command's parser, whose --help begins with examples that can be copied."""

    def __init__(self, command: str, about: str, examples: str) -> None:
        text = "\n\n".join(textwrap.fill(" ".join(part.split()), WIDTH) for part in about.split("\n\n"))
        super().__init__(
            f"{started_as()} {command}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.examples = ["\n".join(_example(each.strip())) for each in examples.strip().splitlines()]

    def error(self, message: str) -> NoReturn:
        """argparse's own message, and a line that would have worked."""
        message = message.removesuffix(", KEY VALUE")  # it takes optional keys for required ones
        super().error(f"{message}\nfor example:\n{self.examples[0]}")

    def format_help(self) -> str:
        lines = "\n".join(self.examples)
        return f"examples:\n{lines}\n\n{super().format_help()}"


def _example(line: str) -> list[str]:
    """`command arguments   remark` as lines of at most WIDTH: the whole command, and the remark above it."""
    words, _, remark = line.partition("   ")
    program = "" if words.startswith("torchrun ") else f"{started_as()} "
    words = re.sub(r"(--[\w-]+|[A-Z_.]{6,}) (?!--)", "\\1\0", program + words)  # an option or key stays with its value
    broken = textwrap.wrap(words, WIDTH - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    broken = [each.replace("\0", " ") for each in broken]
    above = [f"  # {remark.strip()}"] if remark else []
    return [*above, *(f"  {each} \\" for each in broken[:-1]), f"  {broken[-1]}"]


def registered_cfg(path, overrides=()):
    """Register our methods with the host, then config.load_cfg."""
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin.config import load_cfg

    return load_cfg(path, overrides)


def add_student_options(options: argparse.ArgumentParser) -> None:
    """What `eval` and `export` ask about a student; `cfg_of_student` and students.open_student read it."""
    options.add_argument("path", help="run directory, deploy_* file or checkpoint")
    options.add_argument("--which", choices=("last", "best"), default="last", help="of a run directory (default: last)")
    options.add_argument("--cfg", metavar="FILE", help="configuration, where no cfg.yaml lies beside the file")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. DATASET.ROOT /data")


def cfg_of_student(args: argparse.Namespace):
    """The configuration that --cfg names or that lies beside the student; None where there is neither."""
    beside = _folder_of(args.path) / "cfg.yaml"
    return registered_cfg(args.cfg or beside, args.opts) if args.cfg or beside.is_file() else None


def tell_unfinished(path: str) -> None:
    """Say on stderr that a student is of a run that has not ended: its figures are no result yet."""
    from atsc_plugin.engine import run_dir

    folder = _folder_of(path)
    lines = run_dir.log_lines(folder)
    if lines and not (folder / "result.json").is_file():
        text = f"the run {printable(folder)} has not ended; its student has learned for {lines[-1]['epoch']} epochs."
        print(wrapped(f"note: {text} `train --resume` goes on with it."), file=sys.stderr)


def _folder_of(student):
    """The run directory that a student's path is, or that its file lies in."""
    path = expand_user(student)
    return path if path.is_dir() else path.parent
