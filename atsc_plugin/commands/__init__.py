"""One module a command: `parser()` for its options and `run(args)`, which returns the exit status."""

import argparse

from atsc_plugin.untrusted import expand_user


def parser_of(command: str, about: str, examples: str) -> argparse.ArgumentParser:
    """A command's parser; its --help begins with examples, one a line, written without `python -m atsc_plugin`."""
    text = f"examples:\n{examples.strip(chr(10))}\n\n{about}"
    return argparse.ArgumentParser(command, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


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
    path = expand_user(args.path)
    beside = (path if path.is_dir() else path.parent) / "cfg.yaml"
    return registered_cfg(args.cfg or beside, args.opts) if args.cfg or beside.is_file() else None
