"""The knowledge-distillation host: no other file names mdistiller or the embedded host.

One host a process, chosen at import: mdistiller where it is installed and whole, the embedded host where it is absent.
An mdistiller that is there but does not import is an error with its cause, never a silent mixture of the two.
`ATSC_HOST=mdistiller|embedded|auto` overrides. Everybody writes `from atsc_plugin.host import CFG, Distiller, ...`.
What differs between mdistiller's forks is levelled here; docs/hosts.md has the table.
"""

import importlib
import importlib.util
import inspect
import os
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path

from torch import nn

from atsc_plugin import minidistiller
from atsc_plugin.errors import HostError, PluginError
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
FORKS_COSINE = "LR_COS"  # DeepKD's key in SOLVER; its WARMUP_EPOCHS (20) and MIN_LR (0.00005) go with it
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
            if required and name not in vars(loaded):
                raise HostError(
                    f"{module} has no {name}, which every mdistiller has; expected a fork of it. {WAY_OUT}."
                )
            surface[name] = vars(loaded).get(name)
    return surface


def _folder(root):
    """Where a package lies; some forks have no __init__.py there, which Python takes for a package all the same."""
    spec = importlib.util.find_spec(root)
    return Path(spec.origin).parent if spec.origin else Path(next(iter(spec.submodule_search_locations)))


def _version(root, folder):
    """mdistiller carries no version: the installed one, else its checkout's commit, else 'version unknown'."""
    if root == EMBEDDED:
        return importlib.import_module(root).__version__
    try:
        return f"commit {_commit(Path(folder).parent / '.git')[:12]}"
    except (OSError, StopIteration):
        pass
    try:
        return metadata.version(root)
    except metadata.PackageNotFoundError:
        return "version unknown"


def _commit(git):
    """The commit of a checkout, without calling git."""
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    ref = head.removeprefix("ref: ")
    if (git / ref).exists():
        return (git / ref).read_text().strip()
    return next(line.split()[0] for line in (git / "packed-refs").read_text().splitlines() if line.endswith(f" {ref}"))


def _plain_distiller(base, default_cfg):
    """A subclass of a host's Distiller that is constructed with (student, teacher, cfg), whatever a fork's wants."""

    class Distiller(base):
        def __init__(self, student, teacher, cfg=None):
            args, keywords = _base_arguments(base, student, teacher, cfg or default_cfg)
            super().__init__(*args, **keywords)
            self.student, self.teacher = student, teacher  # a fork may have kept them in a list, or elsewhere

        def train(self, mode=True):
            """The teacher stays in eval mode; a fork's own train() may expect a list of teachers."""
            nn.Module.train(self, mode)
            self.teacher.eval()
            return self

    Distiller.__doc__ = base.__doc__
    return Distiller


def _base_arguments(base, student, teacher, cfg):
    """(args, keywords) of a host's Distiller: student, teacher, and the config where it has a place for it."""
    parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    demanded = [p for p in positional if p.default is p.empty]
    if len(demanded) > 3 or (len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        names = ", ".join(p.name for p in parameters)
        raise HostError(
            f"{base.__module__}.{base.__name__} is constructed with ({names}); expected (student, teacher) or "
            "(student, teacher, cfg). ATSC_HOST=embedded runs on the embedded host instead."
        )
    many = len(positional) > 1 and positional[1].name.endswith("s")  # teachers, model_teachers
    listed = [teacher] if many and not isinstance(teacher, nn.ModuleList) else teacher
    if any(p.name == "cfg" for p in parameters):  # some have it optional, and use it
        return (student, listed), {"cfg": cfg}
    return ((student, listed, cfg) if len(demanded) > 2 else (student, listed)), {}


ROOT = choose()
NAME = "embedded" if ROOT == EMBEDDED else "mdistiller"
_surface = load(ROOT)
FOLDER = str(_folder(ROOT))
VERSION = _version(ROOT, FOLDER)
IDENTITY = {"host": NAME, "host_version": VERSION}  # as cards, about.json and result.json have it
TITLE = VERSION if VERSION.startswith(NAME) else f"{NAME} {VERSION}"  # the embedded host's version names it

CFG = _surface["CFG"]
Distiller = _plain_distiller(_surface["Distiller"], CFG)
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


def warmup_epochs(solver):
    """Epochs of a rising rate; where WARMUP_EPOCHS is a fork's own key, they go with a cosine alone."""
    return 0 if FORKS_COSINE in solver and solver.SCHEDULE == "steps" else solver.WARMUP_EPOCHS


# The data sets that the host loads: what lies in the data folder, and where it comes from.
CONTENT = {
    "cifar100": (
        "cifar-100-python",
        "unpack cifar-100-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html), or put cifar100.npz, "
        "train/ and test/ with a folder a class, or train*.parquet and test*.parquet",
    ),
    "tiny_imagenet": (
        "tiny-imagenet-200",
        "unpack tiny-imagenet-200.zip (cs231n.stanford.edu), val sorted into classes,",
    ),
    "imagenet": ("imagenet", "put imagenet/train and imagenet/val with a folder a class (image-net.org)"),
}

# Constants inside the host's transforms; a deployed student's card carries them so that it can be used without a host.
NORMALISATION = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def data_root(root=""):
    """DATASET.ROOT, or the host's own `data` folder; minidistiller.HOME says where the embedded host has it."""
    if root:
        return expand_user(root)
    return (Path(FOLDER).parent if NAME == "mdistiller" else minidistiller.HOME) / "data"


def data_place(dataset, root=""):
    """The folder a data set is read from."""
    return data_root(root) / CONTENT[dataset][0]


def get_dataset(cfg, cifar100=None):
    """The host's loaders (train, val, number of training images, classes), with DATASET.ROOT honoured on both hosts.

    `cifar100` is (splits, class names) of CIFAR-100 from another container than the pickles that hosts read: the host's
    own data sets, transforms and loaders are built around those images.
    """
    if _surface["get_dataset"] is None:
        raise HostError(f"This mdistiller ({FOLDER}) has no dataset.get_dataset; expected one. {WAY_OUT}.")
    place, name = data_place(cfg.DATASET.TYPE, cfg.DATASET.ROOT), cfg.DATASET.TYPE
    fetched = cfg.DATASET.DOWNLOAD and name == "cifar100"  # the only one that a host can download
    present = place.is_dir() and (name != "cifar100" or all((place / part).is_file() for part in ("train", "test")))
    if cifar100 is None and not fetched and not present:
        title = {"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet", "imagenet": "ImageNet"}[name]
        raise HostError(
            f"{title} is not here: looked for {place}.\nIn {place.parent} {CONTENT[name][1]}, or name another folder "
            f"with DATASET.ROOT{', or with network access set DATASET.DOWNLOAD True' if name == 'cifar100' else ''}.\n"
            "configs/quickstart/*.yaml run without it, on digits made here."
        )
    with _reading_from(name, place, cifar100):
        try:
            return _surface["get_dataset"](cfg)
        except (RuntimeError, OSError) as error:  # torchvision's words for a damaged file
            if isinstance(error, PluginError):
                raise
            raise HostError(f"The host's {name} cannot be loaded from {place}: {error}") from error


@contextmanager
def _reading_from(dataset, place, cifar100=None):
    """The host has no key for its folders: its modules ask a function or read a constant, and either can be changed."""
    module = importlib.import_module(f"{ROOT}.dataset.{dataset}")
    answers = {"get_data_folder": lambda: str(place.parent), "data_folder": str(place)}
    before = {name: getattr(module, name) for name in answers if hasattr(module, name)}
    for name in before:
        setattr(module, name, answers[name])
    try:
        with _torchvision_given(*cifar100) if cifar100 is not None else nullcontext():
            yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _torchvision_given(splits, class_names):
    """torchvision's CIFAR100, from which every host derives its own, takes these images instead of reading pickles."""
    from torchvision.datasets import CIFAR100, VisionDataset

    def filled(self, root, train=True, transform=None, target_transform=None, download=False):
        VisionDataset.__init__(self, root, transform=transform, target_transform=target_transform)
        self.train = train
        self.data, labels = splits["train" if train else "test"]
        self.targets, self.classes = labels.tolist(), list(class_names)
        self.class_to_idx = {name: label for label, name in enumerate(class_names)}

    before, own = CIFAR100.__init__, "__init__" in vars(CIFAR100)  # torchvision 0.22 inherits it from CIFAR10
    CIFAR100.__init__ = filled
    try:
        yield
    finally:
        if own:
            CIFAR100.__init__ = before
        else:
            del CIFAR100.__init__
