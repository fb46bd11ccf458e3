"""ATSC and its neighbours for mdistiller, registered from outside.

Importing this package does nothing and needs no torch. `register()` adds our distillers, trainer and config keys to
mdistiller, or to the embedded host where mdistiller is absent; `unregister()` takes exactly them away again.
`distiller()` serves a training loop of your own and registers nothing.
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


def distiller(student, teacher, method, *, image_size, loader=None, **options):
    """A method as a module for a training loop of your own, around any networks that map images to logits.

    d = atsc_plugin.distiller(student, teacher, method="ATSC", image_size=224, drift_weight=10.0); in training mode
    d(x, y, epoch=None) gives `.logits`, `.loss` and `.losses`, in eval mode d(x) the prediction. The optimizer moves
    d.param_groups(lr); d.after_step() follows each step of it. Options are the method's keys without its name, in lower
    case, a point as an underscore: ATSC.DRIFT.WEIGHT is drift_weight. `teacher` is trained already, or a list for
    methods of several, or None for the plain student. `loader` gives batches (images, labels) to a method that trains
    something before the student. docs/library.md shows the loop. No registry is touched.
    """
    from atsc_plugin import library

    return library.distiller(student, teacher, method, image_size, loader, options)


def load_student(path, which="last", allow=()):
    """The deployed student of a run directory or deploy file: a module in eval mode whose forward gives logits.

    `which` is the "last" or "best" epoch of a run directory; `module.card` tells how it was made. A student of your own
    package (package.module:Name) is built only if `allow` names the package.
    """
    from atsc_plugin import students

    return students.load_student(path, which, allow)
