"""One module a command: `parser()` for its options and `run(args)`, which returns the exit status."""

import argparse


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
