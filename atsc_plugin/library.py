"""Every method as a module for somebody's own training loop: networks, data, optimizer and schedule stay the loop's.

`distiller` makes it of networks and options, and joins no registry. The loop calls it like a network and says
`after_step()` after each step of its optimizer. What contract.py lets an engine ask of a method is asked here on the
loop's behalf; a method that needs more than one optimizer step a batch is refused by name.
"""

from __future__ import annotations

import copy
import io
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from yacs.config import CfgNode

from atsc_plugin import contract, host, students
from atsc_plugin.cards import stem_of
from atsc_plugin.config import set_key, value_problems
from atsc_plugin.contract import Contract
from atsc_plugin.engine import checkpoint, distributed, precision
from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
from atsc_plugin.errors import ConfigError, ModelRefused, PluginError
from atsc_plugin.keys import add_keys, changed, did_you_mean, find, flatten, unknown_name
from atsc_plugin.methods.base import class_of, constructor_problems, load_methods
from atsc_plugin.networks import named
from atsc_plugin.networks.adapter import adapt, unwrapped
from atsc_plugin.networks.deployed import DeployedStudent, deployed_of, drop_modules, tensors_of
from atsc_plugin.networks.maps import check_classes, evaluating, probe_image
from atsc_plugin.registration import all_keys
from atsc_plugin.untrusted import as_plugin_error

FROZEN = WeakTensorKeyDictionary()  # parameters that a distiller froze; the next one that gets them thaws them
NEVER = 10**9  # an epoch that no schedule reaches
DATA = "own"  # DATASET.TYPE of images that only the loop knows
LOOP_WORDS = {"SOLVER.LR": "lr", "DISTILLER.TYPE": "method", "DISTILLER.TEACHERS": "teacher"}


class Output(NamedTuple):
    """What a training step gives; `loss` is the sum of `losses`."""

    logits: Tensor
    loss: Tensor
    losses: dict[str, Tensor]


def distiller(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    method: str,
    image_size: int,
    loader: Iterable[Any] | None,
    options: Mapping[str, Any],
) -> Distillation:
    """A method of the registry around these networks; the package's function of this name says how it is used."""
    kinds, ours, asked = {**load_methods(), **host.distiller_dict}, all_keys(), method
    method = asked.upper() if isinstance(asked, str) else ""
    if method not in kinds:
        raise ConfigError([unknown_name("method", method or asked, kinds)])
    if type(image_size) is not int or image_size < 1:
        raise ConfigError([f"image_size: got {image_size!r}, expected the side of square images in pixels, e.g. 224."])
    kind, teachers = class_of(method), _listed(teacher)
    _check_modules(kind, method, student, teachers)
    for network in (student, *teachers):
        for parameter in network.parameters():
            if FROZEN.pop(parameter, False):
                parameter.requires_grad_(True)
    for network in teachers:  # loops for KD freeze theirs; each method freezes what it does not move
        if not any(parameter.requires_grad for parameter in network.parameters()):
            network.requires_grad_(True)
    trainable = [p for network in (student, *teachers) for p in network.parameters() if p.requires_grad]
    networks = [_adapted(network, image_size) for network in (student, *teachers)]
    names = _names(networks)
    cfg = _configuration(ours, method, names, image_size)
    keys = keys_of(cfg, kind.nodes() or (method,))
    with _in_words_of(keys), named.at_hand(dict(zip(names, networks, strict=True))):
        own = [key for key in ours if key.name in keys.values()]
        problems = _set_options(cfg, keys, own, options) + value_problems(cfg, own)
        problems += constructor_problems(kind, cfg) + _out_of_reach(kind, cfg)
        if problems:
            raise ConfigError(problems)
        chosen = {keys[option] for option in options}
        inner = _built(kinds[method], kind, cfg, networks, chosen)
        _check_formats(inner, networks)
        made = Distillation(inner, cfg, keys, loader)
    FROZEN.update((parameter, True) for parameter in trainable if not parameter.requires_grad)
    return made


# ---- networks ----


def name_of(network: nn.Module) -> str:
    """The name by which networks/named.py builds such a network, if one can be told: timm/NAME, else module:Class."""
    network = unwrapped(network)
    known = vars(network).get("pretrained_cfg")
    if type(network).__module__.startswith("timm.") and isinstance(known, dict) and known.get("architecture"):
        return f"timm/{known['architecture']}"
    return f"{type(network).__module__}:{type(network).__qualname__}"


def _listed(teacher):
    if teacher is None:
        return []
    return list(teacher) if isinstance(teacher, (list, tuple, nn.ModuleList)) else [teacher]


def _check_modules(kind, method, student, teachers):
    """Refuse what is no network, one in two roles, and a number of teachers that the method does not learn from."""
    for role, network in (("student", student), *(("teacher", each) for each in teachers)):
        if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
            raise ModelRefused(f"The {role} is a {type(network).__name__}; expected an nn.Module with parameters.")
        if "_orig_mod" in network._modules or network._compiled_call_impl is not None:
            raise ModelRefused(f"The {role} is compiled; its maps cannot be read. Compile the distiller instead.")
    fits = {contract.NONE: not teachers, contract.ONE: len(teachers) == 1, contract.SEVERAL: len(teachers) > 0}
    wanted = {contract.NONE: "no teacher", contract.ONE: "one teacher", contract.SEVERAL: "one teacher or several"}
    if not fits[kind.TEACHERS]:
        instead = f", or use method {kind.MULTI}" if kind.MULTI and teachers else ""
        raise ModelRefused(f"{method} got {len(teachers)} teachers; expected {wanted[kind.TEACHERS]}{instead}.")
    if not any(parameter.requires_grad or parameter in FROZEN for parameter in student.parameters()):
        raise ModelRefused("All parameters of the student are frozen; expected some to train: requires_grad_(True).")
    if any(each is student for each in teachers):
        raise ModelRefused("The student and a teacher are the same network object; expected different ones. Copy it.")


def _check_formats(inner, networks):
    """Refuse networks of several number formats, and what a method adds in another one: no image fits both."""
    own = {id(parameter) for network in networks for parameter in network.parameters()}
    formats = {next(network.parameters()).dtype for network in networks}
    formats |= {parameter.dtype for parameter in inner.parameters() if id(parameter) not in own}
    if len(formats) > 1:
        raise ModelRefused(
            f"The networks and the layers that the method adds are {', '.join(sorted(map(str, formats)))}; expected "
            "one number format. Hand over float32 networks and use torch.autocast in your loop."
        )


def _adapted(network, image_size):
    """The network with the host's outputs; one that does not classify such images is refused by name."""
    name = name_of(network)
    refusal = f"{name} does not run on two images of {image_size} pixels ({{}}). Use another network or image_size."
    with as_plugin_error(refusal, ModelRefused):
        adapted = adapt(network, image_size)
        shape = tuple(_logits(adapted, image_size).shape)
    if len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        raise ModelRefused(f"{name} gives {shape} for two images; expected (2, classes), and two classes or more.")
    return adapted


@torch.no_grad()
def _logits(network, image_size):
    with evaluating(network):
        return network(probe_image(network, image_size))[0]


def _names(networks):
    """What each network is called in messages, and where a method draws another of its kind; no name twice."""
    names: list[str] = []
    for network in networks:
        name = name_of(network)
        names.append(f"{name}#{len(names)}" if name in names else name)
    return names


def _built(make, kind, cfg, networks, chosen):
    """The method's distiller. Options that follow from the networks are filled in, but for the `chosen` ones."""
    (student, *teachers), size = networks, cfg.DATASET.IMAGE_SIZE
    derived = kind.derived(cfg, student, teachers, size)
    for key in derived.keys() - chosen:
        set_key(cfg, key, derived[key], strict=True)
    cfg.freeze()
    first, *others = [_logits(network, size).shape[1] for network in networks]
    for other, name in zip(others, cfg.DISTILLER.TEACHERS, strict=True) if kind.TEACHER_CLASSES else ():
        check_classes(first, other, f"student {cfg.DISTILLER.STUDENT}", f"teacher {name}")
    if not teachers:
        return make(student)
    refusal = f"{cfg.DISTILLER.TYPE} cannot be built around these networks ({{}}). Use others, or another method."
    with as_plugin_error(refusal, ModelRefused):
        inner = make(student, teachers if kind.TEACHERS == contract.SEVERAL else teachers[0], cfg)
    if misfits := contract.of(inner, cfg).misfits(size):
        raise ModelRefused("\n".join(misfits))
    return inner


# ---- options ----


def _configuration(keys, method, names, image_size):
    """The tree with all keys; what the loop decides has values that refuse nothing."""
    cfg = host.CFG.clone()
    cfg.defrost()
    add_keys(cfg, keys)
    cfg.DISTILLER.TYPE, cfg.DISTILLER.STUDENT = method, names[0]
    cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHERS = ([*names[1:], ""])[0], names[1:]
    cfg.DATASET.TYPE, cfg.DATASET.IMAGE_SIZE = DATA, image_size
    cfg.SOLVER.TRAINER, cfg.SOLVER.LR, cfg.SOLVER.EPOCHS = "plugin", 0.0, NEVER
    cfg.EXPERIMENT.SEED = torch.initial_seed() % 2**63  # networks that are drawn anew follow torch.manual_seed
    cfg.EXPERIMENT.SELECT_ON = "val"  # what report() is given
    return cfg


def keys_of(cfg: CfgNode, nodes: Sequence[str]) -> dict[str, str]:
    """{option: key}. ATSC.DRIFT.WEIGHT is drift_weight; where two nodes have such a key, the node comes before it."""
    keys: dict[str, list[str]] = {}
    for key in (f"{node}.{name}" for node in nodes if node in cfg for name in flatten(cfg[node])):
        keys.setdefault(_option(key.partition(".")[2]), []).append(key)
    unique = {option: found[0] for option, found in keys.items() if len(found) == 1}
    return unique | {_option(key): key for found in keys.values() if len(found) > 1 for key in found}


def _option(key):
    return key.replace(".", "_").lower()


def _set_options(cfg, keys, own, options):
    """Set each option; what is wrong with their names and types, all at once."""
    problems, typed = [], {key.name for key in own}
    for option, value in options.items():
        if option in keys:
            node, leaf = find(cfg, keys[option])
            if type(value) is int and type(node[leaf]) is float:
                value = float(value)
            elif type(value) is float and type(node[leaf]) is int and keys[option] not in typed:
                node[leaf] = float(node[leaf])  # the host's KD.TEMPERATURE is a whole number, for no reason of KD's
            problems += set_key(cfg, keys[option], value, strict=True)
        else:
            hint = did_you_mean(option, keys) or f"; expected one of {', '.join(keys) or 'none'}."
            problems.append(f"{option} is no option of {cfg.DISTILLER.TYPE}{hint}")
    return problems


def _out_of_reach(kind, cfg):
    """What the method needs that a loop of somebody's own cannot give."""
    problems, needs = [], kind.needs(cfg)
    if contract.SECOND_STEP in needs:
        problems.append(
            f"{needs[contract.SECOND_STEP]}, and a loop of your own makes one. Use another value, or our trainer "
            "(python -m atsc_plugin train)."
        )
    if kind.more_arguments(1):
        problems.append(
            f"{cfg.DISTILLER.TYPE} keeps something of every training image and asks for its number, which a loop of "
            "your own does not hand over. Use our trainer (python -m atsc_plugin train)."
        )
    return problems


def in_words_of(keys: Mapping[str, str], text: str) -> str:
    """A message with the options in place of the configuration's keys."""
    words = {key: option for option, key in keys.items()} | LOOP_WORDS
    words |= {key.partition(".")[2]: option for option, key in keys.items() if key.count(".") > 1}
    found = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{found})\b", lambda match: words[match[0]], text)


@contextmanager
def _in_words_of(keys: Mapping[str, str]) -> Iterator[None]:
    """Errors within speak of options."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([in_words_of(keys, problem) for problem in error.problems]) from None
    except PluginError as error:
        raise type(error)(in_words_of(keys, str(error))) from error


# ---- the module ----


class Distillation(nn.Module):
    """A method in somebody's own loop: d(x, y) in training mode gives an Output, d(x) in eval mode the prediction.

    Its state_dict has all that an exact continuation needs: the networks, and in one tensor of bytes (`_extra_state`)
    theta_0, the networks as they began, and where in the epoch it is.
    """

    def __init__(self, inner: nn.Module, cfg: CfgNode, keys: dict[str, str], loader: Iterable[Any] | None) -> None:
        super().__init__()
        self.inner, self._cfg, self._keys = inner, cfg, keys
        self.epoch, self.step = 1, 0  # where the loop is: the epoch, and the steps made in it
        self._entered: int | None = None  # the epoch that the method was told of
        self._weight: tuple[int, int] | None = None  # (a weight, its version) when the last step was over
        method = self.method
        method.driven = True
        inner.to(next(method.student.parameters()).device)
        self._begin(loader)
        moving = {id(parameter) for group in self.param_groups(0.0) for parameter in group["params"]}
        for parameter in inner.parameters():  # DDP and its like expect a gradient wherever one is possible
            parameter.requires_grad_(id(parameter) in moving and parameter.requires_grad)
        precision.keep_full(method.student, *(network.module for network in method.networks()))
        stored = inner.state_dict(keep_vars=True)
        unstored = [f"inner.{name}" for name, _ in inner.named_buffers() if name not in stored]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, unstored)
        self._start = {net.name: _copied(net.module) for net in method.networks() if net.moves}
        self.train()

    def _begin(self, loader):
        """Let the method begin; one that trains something first does it here, into a cache that is thrown away."""
        gpus = {parameter.device for parameter in self.inner.parameters() if parameter.is_cuda}
        with tempfile.TemporaryDirectory() as folder, distributed.alone(), torch.random.fork_rng(gpus):
            self._cfg.defrost()
            self._cfg.TEACHER.CACHE = folder
            self._cfg.freeze()
            try:
                self.method.begin(None if loader is None else _Handed(loader))
            except PluginError as error:
                if loader is not None:
                    raise
                raise PluginError(
                    f"{self._cfg.DISTILLER.TYPE} trains something before the student. Hand over the training images: "
                    "distiller(..., loader=batches of (images, labels))."
                ) from error

    @property
    def method(self) -> Contract:
        """What contract.py lets an engine ask."""
        return contract.of(self.inner, self._cfg)

    @property
    def student(self) -> nn.Module:
        return self.method.student

    # ---- the step ----

    def forward(self, x: Tensor, y: Tensor | None = None, epoch: int | None = None) -> Output | Tensor:
        """Training mode: the step's Output, of images and their labels. Eval mode: the logits of the prediction."""
        if not self.training:
            return self.inner(image=x)
        self._enter(y, epoch)
        try:
            logits, losses = self.inner(image=x, target=y, epoch=self.epoch)
        except RuntimeError as error:
            side, got = self._cfg.DATASET.IMAGE_SIZE, tuple(x.shape[-2:])
            if got == (side, side) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise PluginError(
                f"{self._cfg.DISTILLER.TYPE} was built for images of {side} x {side} pixels and got {got[0]} x "
                f"{got[1]}. Build it with their image_size, or resize them. ({error})"
            ) from error
        losses = {name: term.mean() if term.ndim else term for name, term in losses.items()}
        return Output(logits, sum(losses.values()), losses)

    def _enter(self, y, epoch):
        """Tell the method where the loop is; refuse a call that lacks something."""
        method, name = self.method, self._cfg.DISTILLER.TYPE
        if y is None:
            raise PluginError("d(x) in training mode has no labels; expected d(x, y). For a prediction call d.eval().")
        if y.dim() != 1 and method.HARD_LABELS:
            raise PluginError(
                f"{name} got labels of shape {tuple(y.shape)}; expected a class number an image, since mixed or "
                "smoothed labels would make another method of it."
            )
        if epoch is None and self.scheduled:
            raise PluginError(f"{name} has a schedule: expected d(x, y, epoch=...), counted from 1.")
        if epoch is not None and epoch < 1:
            raise PluginError(f"The epoch is {epoch}; epochs are counted from 1. Pass epoch + 1.")
        if epoch not in (None, self.epoch):
            self.epoch, self.step = epoch, 0
        if self._entered != self.epoch:
            self._entered = self.epoch
            method.before_epoch(self.epoch)
        method.before_step(self.epoch, self.step)
        self._watch()

    def _watch(self):
        """A warning where weights have moved and nobody said after_step: averages would stay where they are."""
        now = self._weight_now()
        if self._weight and self._weight[0] == now[0] and self._weight[1] != now[1] and self._counts_steps:
            warnings.warn(
                "The weights have moved without d.after_step(); call it after optimizer.step().", stacklevel=4
            )
        if not self._weight or self._weight[0] != now[0]:
            self._weight = now

    def _weight_now(self):
        weight = next(parameter for parameter in self.parameters() if parameter.requires_grad)
        return id(weight), weight._version

    @property
    def _counts_steps(self) -> bool:
        kind = type(self.method)
        return (kind.after_step, kind.before_step) != (Contract.after_step, Contract.before_step)

    def after_step(self) -> None:
        """To be called after each step of the optimizer."""
        self.method.after_step()
        self.step += 1
        self._weight = self._weight_now()

    @property
    def scheduled(self) -> bool:
        """Whether a step depends on the epoch, so that d(x, y) wants to be told."""
        return self.method.phase(1) != self.method.phase(NEVER)

    @property
    def idle_parameters(self) -> bool:
        """Whether some learning parameters get no gradient in some steps: DDP's find_unused_parameters."""
        return self.scheduled or contract.IDLE_PARAMETERS in self.method.needs(self._cfg)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer moves, each group with its own rate; a rate at which a term diverges is refused."""
        method, cfg = self.method, changed(self._cfg, {"SOLVER.LR": float(lr)})
        known = method.problems(self._cfg)
        with _in_words_of(self._keys):
            if problems := [problem for problem in method.problems(cfg) if problem not in known]:
                raise ConfigError(problems)
        entries = method.param_groups(cfg)
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        plain = ({name: value for name, value in group.items() if name != "lr_scale"} for group in groups)
        return [{**rest, "lr": lr * group.get("lr_scale", 1.0)} for group, rest in zip(groups, plain, strict=True)]

    # ---- what comes of it ----

    def report(self, loader: Iterable[Any]) -> dict[str, Any]:
        """Figures on batches (images, labels): top1, top5 (percent), nll, ece; each network beside the student before
        the first step and now (teacher_top1_before, teacher_top1_after); the method's own; the guard's `warning`, and
        whether it would `stop`.

        It costs an evaluation of the student and of each network beside it, two where that one moves.
        """
        if isinstance(loader, Iterator):
            raise PluginError("report() goes through its batches several times; expected a DataLoader or a list.")
        method, device = self.method, next(self.student.parameters()).device
        with evaluating(self), distributed.alone():
            scores = evaluate(in_eval_mode(self), loader, device, "student")
            figures = {"top1": scores["top1"], "top5": scores["top5"], "nll": scores["loss"], "ece": scores["ece"]}
            for network in method.networks():
                figures |= self._before_and_after(network, loader, device)
            said = method.after_epoch(self.epoch, loader)
        warning = said.warning and in_words_of(self._keys, said.warning)
        if warning:
            warnings.warn(warning, stacklevel=2)
        return {**said.figures, **figures, "warning": warning, "stop": said.stop}

    def _before_and_after(self, network, loader, device):
        def top1():
            return evaluate(in_eval_mode(network.module), loader, device, network.name)["top1"]

        name, after = network.name.replace(".", "_"), top1()
        before = after
        if network.name in self._start:
            now = _copied(network.module)
            checkpoint.load_bare(network.module, self._start[network.name])
            try:
                before = top1()
            finally:
                checkpoint.load_bare(network.module, now)
        return {f"{name}_top1_before": before, f"{name}_top1_after": after}

    def deployed(self) -> DeployedStudent:
        """What leaves: a copy of the student, and what it needs of the teacher, as a module image -> logits."""
        module = copy.deepcopy(deployed_of(self.method))
        drop_modules(module.backbone, module.unused)
        return module.eval()

    def save(
        self,
        path: str | Path,
        *,
        student: str = "",
        student_args: Mapping[str, Any] | None = None,
        teacher: str = "",
        teacher_args: Mapping[str, Any] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        class_names: Sequence[str] = (),
    ) -> None:
        """Write `path`.safetensors and its card `path`.json, which atsc_plugin.load_student(path) opens.

        The card names the student's class, so that it can be built again as Name(num_classes=N, **student_args).
        `student` is another name for it, such as "torchvision/resnet18". `teacher` and its arguments are the same for
        a teacher of which the student takes several layers. mean, std and class_names are for those who use it. Written
        only if what is opened predicts the same.
        """
        module = self.deployed().cpu().float()
        facts, size = module.facts(), self._cfg.DATASET.IMAGE_SIZE
        tails = [head["tail"] for head in facts["heads"] if "tail" in head]
        for tail in tails:
            tail["network"] = teacher or tail["network"].partition("#")[0]
            tail |= {"args": _arguments(teacher_args)} if teacher_args else {}
        card = {
            **host.IDENTITY,
            "method": self._cfg.DISTILLER.TYPE,
            "student": student or self._cfg.DISTILLER.STUDENT,
            "student_args": _arguments(student_args or {}),
            "dataset": DATA,
            "classes": _logits_of(module, size).shape[1],
            "image_size": size,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "class_names": list(class_names),
            **facts,
        }
        _check_rebuilt(module, card, [card["student"], *(tail["network"] for tail in tails)])
        stem = stem_of(path)
        stem.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(tensors_of(module), stem, card)

    # ---- continuing ----

    def get_extra_state(self) -> Tensor:
        method = self.method
        with distributed.alone():
            state = {"constants": method.constants(), "run": method.run_state(), "start": self._start}
        file = io.BytesIO()
        torch.save({**state, "epoch": self.epoch, "step": self.step, "method": self._cfg.DISTILLER.TYPE}, file)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        method, content = self.method, io.BytesIO(state.cpu().numpy().tobytes())
        stored = torch.load(content, map_location="cpu", weights_only=True)
        asked, found = self._cfg.DISTILLER.TYPE, stored.get("method")
        if found not in (None, asked):  # None: an earlier version's
            raise PluginError(
                f"This state is of method {found}; expected one of {asked}. Build the distiller with {found}."
            )
        method.load_constants(stored["constants"])
        with distributed.alone():
            method.load_run_state(stored["run"])
        self._start, self.epoch, self.step = stored["start"], stored["epoch"], stored["step"]
        self._entered = self._weight = None


class _Handed:
    """The loop's own batches, as a method asks for them: loaders(batch size, seed)."""

    def __init__(self, loader):
        facts = {"name": DATA, "identity": DATA, "mean": [], "std": [], "train_images": 0}
        self.data = SimpleNamespace(train=loader, val=None, **facts)

    def __call__(self, batch_size, seed):
        return self.data


def _copied(module):
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


# ---- the card ----


def _arguments(keywords):
    return [f"{name}={value!r}" for name, value in keywords.items()]


@torch.no_grad()
def _logits_of(module, size):
    return module(probe_image(module, size))


def _check_rebuilt(module, card, names):
    """Refuse to write what load_student would not open, or would open as another student."""
    scripts = [name for name in names if name.startswith("__main__:") or "<locals>" in name]
    if scripts:
        raise PluginError(
            f"{scripts[0]} is defined in a script or inside a function, so no other process can build it. Put it into "
            'a module, and say d.save(path, student="module:Name").'
        )
    hint = (
        "Say how the networks are built: d.save(path, student='package.module:Name' or 'torchvision/NAME', "
        "student_args={...}), and teacher=, teacher_args= where it takes several layers of the teacher."
    )
    packages = {name.partition(":")[0] for name in names if ":" in name}
    with tempfile.TemporaryDirectory() as folder, named.letting_in(packages):
        checkpoint.save_tensors(tensors_of(module), Path(folder) / "student", card)
        try:
            again, _ = students.load(Path(folder) / "student")
        except PluginError as error:
            raise PluginError(f"The student cannot be built again from its card: {error} {hint}") from error
    wanted = _logits_of(module, card["image_size"])
    if not torch.allclose(_logits_of(again, card["image_size"]), wanted, rtol=1e-4, atol=1e-5):
        raise PluginError(f"The student built again from its card predicts something else. {hint}")
