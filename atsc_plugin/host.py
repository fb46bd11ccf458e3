"""The one door to the knowledge-distillation host: no other file names mdistiller or the embedded host.

One host a process, chosen at import: mdistiller where it is installed and whole, the embedded host where it is absent.
An mdistiller that is there but does not import is an error with its cause, never a silent mixture of the two.
`ATSC_HOST=mdistiller|embedded|auto` overrides. Everybody writes `from atsc_plugin.host import CFG, Distiller, ...`.
"""

import importlib
import importlib.util
import os
from importlib import metadata
from pathlib import Path

from atsc_plugin.errors import HostError

REAL, EMBEDDED = "mdistiller", "atsc_plugin.minidistiller"
# Without these there is no registry to join; everything else is probed for, since forks differ in it.
REQUIRED = {"distillers": ["distiller_dict"], "distillers._base": ["Distiller"], "engine.cfg": ["CFG"]}
OPTIONAL = {
    "engine": ["trainer_dict"],
    "models": ["cifar_model_dict", "tiny_imagenet_model_dict", "imagenet_model_dict"],
    "dataset": ["get_dataset"],
}
WAY_OUT = "ATSC_HOST=embedded runs on the embedded host instead"


def choose(wanted=None):
    """The package to use as host: 'mdistiller' or the embedded one's path."""
    wanted = (wanted or os.environ.get("ATSC_HOST") or "auto").lower()
    if wanted not in ("mdistiller", "embedded", "auto"):
        raise HostError(
            f"ATSC_HOST is '{wanted}'; expected mdistiller, embedded or auto. Set one of these or unset it."
        )
    if wanted == "embedded":
        return EMBEDDED
    spec = importlib.util.find_spec(REAL)
    if spec is None and wanted == "auto":
        return EMBEDDED
    if spec is None:
        raise HostError(
            "ATSC_HOST=mdistiller, but no package mdistiller can be imported. Put a checkout of "
            f"megvii-research/mdistiller on PYTHONPATH, or: {WAY_OUT}."
        )
    if spec.origin is None:  # a bare folder of that name, usually the checkout seen from its parent
        folder = next(iter(spec.submodule_search_locations), "?")
        raise HostError(
            f"{folder} is a folder named mdistiller but not the package (it has no __init__.py). "
            f"If it is a checkout, put it on PYTHONPATH (PYTHONPATH={folder}); {WAY_OUT}."
        )
    return REAL


def load(root):
    """Import all of the host that we use; returns {name: object}, None for what a fork does not have."""
    surface = {}
    for path, names in [*REQUIRED.items(), *OPTIONAL.items()]:
        module = f"{root}.{path}"
        required = path in REQUIRED
        if not required and importlib.util.find_spec(module) is None:
            surface.update(dict.fromkeys(names))
            continue
        try:
            loaded = importlib.import_module(module)
        except Exception as error:  # whatever a broken install throws, the person is told which part and why
            raise HostError(
                f"mdistiller is installed ({_folder(root)}) but {module} does not import: "
                f"{type(error).__name__}: {error}. Mend that (pip installs a missing package), or: {WAY_OUT}."
            ) from error
        for name in names:
            if required and not hasattr(loaded, name):
                raise HostError(
                    f"{module} has no {name}, which every mdistiller has; expected a fork of it. {WAY_OUT}."
                )
            surface[name] = getattr(loaded, name, None)
    return surface


def _folder(root):
    spec = importlib.util.find_spec(root)
    return str(Path(spec.origin).parent)


def _version(root, folder):
    """mdistiller carries no version: the installed one, else its checkout's commit, else 'unknown'."""
    if root == EMBEDDED:
        return importlib.import_module(root).__version__
    git = Path(folder).parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        commit = (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
        return f"commit {commit[:12]}"
    except OSError:
        pass
    try:
        return metadata.version(root)
    except metadata.PackageNotFoundError:
        return "unknown"


ROOT = choose()
NAME = "embedded" if ROOT == EMBEDDED else "mdistiller"
_surface = load(ROOT)
FOLDER = _folder(ROOT)
VERSION = _version(ROOT, FOLDER)

CFG = _surface["CFG"]
Distiller = _surface["Distiller"]
distiller_dict = _surface["distiller_dict"]
trainer_dict = _surface["trainer_dict"]
cifar_model_dict = _surface["cifar_model_dict"] or {}
tiny_imagenet_model_dict = _surface["tiny_imagenet_model_dict"] or {}
imagenet_model_dict = _surface["imagenet_model_dict"] or {}


def models_for(dataset):
    """{name: (constructor, teacher checkpoint or None)} for a DATASET.TYPE; ours and cifar take the CIFAR models."""
    if dataset == "imagenet":
        return {name: (net, None) for name, net in imagenet_model_dict.items()}
    return tiny_imagenet_model_dict if dataset == "tiny_imagenet" else cifar_model_dict


def image_size(dataset):
    """Side in pixels of the images a DATASET.TYPE's networks are built for."""
    return {"imagenet": 224, "tiny_imagenet": 64}.get(dataset, 32)


def host_datasets():
    """The DATASET.TYPE values whose loading is the host's; models_for says whether it has networks for them."""
    return ("cifar100",) if NAME == "embedded" else ("cifar100", "tiny_imagenet", "imagenet")


# What a person is told beyond "unknown" when the embedded host lacks a data set of mdistiller's.
HOST_LIMITS = (
    dict.fromkeys(("tiny_imagenet", "imagenet"), " (the embedded host has it not yet; mdistiller has)")
    if NAME == "embedded"
    else {}
)


def cifar100_folder(root=""):
    """Where the host looks for CIFAR-100: DATASET.ROOT when set, else the `data` folder beside the host's package."""
    return Path(root).expanduser() if root else Path(FOLDER).parent / "data" if NAME == "mdistiller" else _own_data()


def _own_data():
    return Path(importlib.import_module(f"{EMBEDDED}.dataset.cifar100").get_data_folder())


def get_dataset(cfg):
    """The host's loaders (train, val, number of training images, classes), with DATASET.ROOT honoured on both hosts."""
    if _surface["get_dataset"] is None:
        raise HostError(f"This mdistiller ({FOLDER}) has no dataset.get_dataset; expected one. {WAY_OUT}.")
    root = str(cifar100_folder(cfg.DATASET.ROOT))
    if cfg.DATASET.TYPE == "cifar100" and not cfg.DATASET.DOWNLOAD and not (Path(root) / "cifar-100-python").is_dir():
        raise HostError(absent_cifar100(root))
    if cfg.DATASET.TYPE == "cifar100":
        # The host has no key for the folder; its loader asks this function, so the answer is what we can change.
        module = importlib.import_module(f"{ROOT}.dataset.cifar100")
        original, module.get_data_folder = module.get_data_folder, lambda: root
        try:
            return _surface["get_dataset"](cfg)
        finally:
            module.get_data_folder = original
    return _surface["get_dataset"](cfg)


def absent_cifar100(root):
    return (
        f"CIFAR-100 is not here: looked for {Path(root) / 'cifar-100-python'}.\n"
        "Unpack cifar-100-python.tar.gz there (from https://www.cs.toronto.edu/~kriz/cifar.html), name another folder "
        "with DATASET.ROOT, or with network access set DATASET.DOWNLOAD True.\n"
        "configs/quickstart/*.yaml run without it, on digits made here."
    )
