"""The one door to the knowledge-distillation host: no other file names mdistiller or the embedded host.

One host a process, chosen at import: mdistiller where it is installed and whole, the embedded host where it is absent.
An mdistiller that is there but does not import is an error with its cause, never a silent mixture of the two.
`ATSC_HOST=mdistiller|embedded|auto` overrides. Everybody writes `from atsc_plugin.host import CFG, Distiller, ...`.
"""

import importlib
import importlib.util
import os
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from atsc_plugin import habits
from atsc_plugin.data import pictures
from atsc_plugin.errors import HostError
from atsc_plugin.untrusted import expand_user

REAL, EMBEDDED = "mdistiller", "atsc_plugin.minidistiller"
# Without these there is no registry to join; everything else is probed for, since forks differ in it.
REQUIRED = {"distillers": ["distiller_dict"], "distillers._base": ["Distiller"], "engine.cfg": ["CFG"]}
OPTIONAL = {
    "engine": ["trainer_dict"],
    "models": ["cifar_model_dict", "tiny_imagenet_model_dict", "imagenet_model_dict"],
    "dataset": ["get_dataset"],
    "distillers.DKD": ["dkd_loss"],
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
    folder = _folder(REAL)
    if spec.origin is None and not (folder / "engine" / "cfg.py").is_file():  # usually the checkout, from its parent
        raise HostError(
            f"{folder} is a folder named mdistiller but not the package (it has no __init__.py and no engine/cfg.py). "
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
    """Where a package lies; some forks have no __init__.py there, which Python takes for a package all the same."""
    spec = importlib.util.find_spec(root)
    return Path(spec.origin).parent if spec.origin else Path(next(iter(spec.submodule_search_locations)))


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
FOLDER = str(_folder(ROOT))
VERSION = _version(ROOT, FOLDER)

CFG = _surface["CFG"]
Distiller = habits.adapted(_surface["Distiller"], CFG)
distiller_dict = _surface["distiller_dict"]
trainer_dict = _surface["trainer_dict"]
dkd_loss = _surface["dkd_loss"]
cifar_model_dict = _surface["cifar_model_dict"] or {}
tiny_imagenet_model_dict = _surface["tiny_imagenet_model_dict"] or {}
imagenet_model_dict = _surface["imagenet_model_dict"] or {}


def models_for(dataset):
    """{name: (constructor, teacher checkpoint or None)} for a DATASET.TYPE; ours and cifar take the CIFAR models."""
    if dataset == "imagenet":
        return {name: (net, None) for name, net in imagenet_model_dict.items()}
    return tiny_imagenet_model_dict if dataset == "tiny_imagenet" else cifar_model_dict


def new_network(dataset, name, classes):
    """A freshly initialised network, drawn from torch's global stream."""
    if dataset == "imagenet":
        return imagenet_model_dict[name](pretrained=False)
    return models_for(dataset)[name][0](num_classes=classes)


def image_size(node):
    """Side in pixels of the images that the networks see; `node` is DATASET, with our keys or without."""
    return node.get("IMAGE_SIZE", 0) or {"imagenet": 224, "tiny_imagenet": 64}.get(node.TYPE, 32)


def host_datasets():
    """The DATASET.TYPE values whose loading is the host's."""
    return tuple(CONTENT)


# What lies in the data folder for each of the host's data sets, and where it comes from.
CONTENT = {
    "cifar100": (
        "cifar-100-python",
        "unpack cifar-100-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html)",
    ),
    "tiny_imagenet": (
        "tiny-imagenet-200",
        "unpack tiny-imagenet-200.zip (cs231n.stanford.edu), val sorted into classes,",
    ),
    "imagenet": ("imagenet", "put train/ and val/ with a folder a class (image-net.org)"),
}

# Constants inside the host's transforms; a deployed student's card carries them so that it can be used without a host.
NORMALISATION = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def data_place(dataset, root=""):
    """The folder a data set is read from: below DATASET.ROOT, or below the `data` folder beside the host's package."""
    if root:
        return expand_user(root) / CONTENT[dataset][0]
    beside = Path(FOLDER).parent if NAME == "mdistiller" else Path(FOLDER).parents[1]
    return beside / "data" / CONTENT[dataset][0]


def get_dataset(cfg):
    """The host's loaders (train, val, number of training images, classes), with DATASET.ROOT honoured on both hosts."""
    if _surface["get_dataset"] is None:
        raise HostError(f"This mdistiller ({FOLDER}) has no dataset.get_dataset; expected one. {WAY_OUT}.")
    place, name = data_place(cfg.DATASET.TYPE, cfg.DATASET.ROOT), cfg.DATASET.TYPE
    fetched = cfg.DATASET.DOWNLOAD and name == "cifar100"  # the only one that a host can download
    if not fetched and not place.is_dir():
        title = {"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet", "imagenet": "ImageNet"}[name]
        raise HostError(
            f"{title} is not here: looked for {place}.\nThere {CONTENT[name][1]}, or name another folder with "
            f"DATASET.ROOT{', or with network access set DATASET.DOWNLOAD True' if name == 'cifar100' else ''}.\n"
            "configs/quickstart/*.yaml run without it, on digits made here."
        )
    with _reading_from(name, place):
        found = _surface["get_dataset"](cfg)
    for loader in found[:2]:
        if hasattr(loader.dataset, "loader"):  # torchvision's folders open whatever Pillow recognises, EPS among it
            loader.dataset.loader = pictures.as_torchvision
    return found


@contextmanager
def _reading_from(dataset, place):
    """The host has no key for its folders: its modules ask a function or read a constant, and either can be changed."""
    module = importlib.import_module(f"{ROOT}.dataset.{dataset}")
    answers = {"get_data_folder": lambda: str(place.parent), "data_folder": str(place)}
    before = {name: getattr(module, name) for name in answers if hasattr(module, name)}
    for name in before:
        setattr(module, name, answers[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
