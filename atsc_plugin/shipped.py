"""The configuration files that come with the plugin, found from any working directory."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_file(path):
    """`path` itself if it exists, else the file of that name that is shipped: a wheel carries configs/ inside."""
    path = Path(path)
    if path.exists() or path.is_absolute() or path.parts[:1] != ("configs",):
        return path
    for root in (PACKAGE, PACKAGE.parent):
        if (root / path).exists():
            return root / path
    return path
