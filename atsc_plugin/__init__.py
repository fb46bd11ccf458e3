"""ATSC and its neighbours for mdistiller, registered from outside.

Importing this package does nothing and needs no torch. `register()` adds our distillers, trainer and config keys to
mdistiller, or to the embedded host where mdistiller is absent; `unregister()` takes exactly them away again.
"""

__version__ = "0.1.0"


def register(leave=()):
    """Add our distillers, trainer and config keys to the host; calling it again changes nothing.

    A fork that has a method of its own under one of our names keeps it with `leave`, e.g. register(leave=["SIMKD"]).
    """
    from atsc_plugin import registration

    registration.register(leave)


def unregister():
    """Take our entries and keys off the host again, and nothing that is somebody else's."""
    from atsc_plugin import registration

    registration.unregister()


def load_student(path, which="last", allow=()):
    """The deployed student of a run directory or deploy file: a module in eval mode whose forward gives logits.

    `which` is the "last" or "best" epoch of a run directory; `module.card` tells how it was made. A student of your own
    package (package.module:Name) is built only if `allow` names the package.
    """
    from atsc_plugin import students

    return students.load_student(path, which, allow)
