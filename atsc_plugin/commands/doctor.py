"""Say what is here and what is missing, with the remedy; exit status 1 when training could not start."""

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.errors import PluginError, wrapped

PACKAGES = ("torch", "torchvision", "yacs", "tensorboardX", "numpy", "scipy", "scikit-learn", "filelock", "safetensors",
            "tqdm", "pyyaml")  # fmt: skip
EXAMPLES = """
  doctor
  doctor --cfg configs/quickstart/simkd.yaml
"""


def parser():
    options = Parser("doctor", __doc__, EXAMPLES)
    options.add_argument("--cfg", metavar="FILE", help="also check that this configuration could start training")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of --cfg to override")
    return options


def run(args):
    if args.opts and not args.cfg:
        raise PluginError(f"{args.opts[0]} changes a configuration, and none is named. Add --cfg FILE.")
    versions = installed()
    problems = [f"package {name}: pip install {name}" for name, version in versions.items() if not version]
    _say("python", f"{platform.python_version()} on {platform.system()}, {os.cpu_count()} cores")
    _say("packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    if not problems:
        _host_and_devices(args, problems)
    for problem in problems:
        _say("MISSING", problem)
    print("training could not start" if problems else "training can start")
    return 1 if problems else 0


def _say(label, text):
    print(wrapped(f"{label:<12} {text}", indent=13))


def installed():
    """{package that setup.py asks for: its version, None where it is missing}"""
    versions = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _host_and_devices(args, problems):
    import torch

    try:
        import atsc_plugin

        atsc_plugin.register()
    except PluginError as error:
        problems.append(f"host: {error}")
        return
    from atsc_plugin import host
    from atsc_plugin.engine.devices import device_name, processor_name

    _say("host", f"{host.TITLE} ({host.FOLDER})")
    _say("methods", ", ".join(host.distiller_dict))
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)] or [device_name(torch.device("cpu"))]
    _say("devices", ", ".join(names))
    _say("processor", processor_name())
    _data_and_teachers(host)
    if args.cfg:
        _config(args, problems)


def _data_and_teachers(host):
    from atsc_plugin.data.containers import find_cifar100

    places = {name: host.data_place(name) for name in host.CONTENT}
    there = {name: place for name, place in places.items() if place.is_dir()}
    if container := find_cifar100(host.data_root()):
        there["cifar100"] = container
    _say("data", "digits100: composed here")
    for name, place in places.items():
        _say("", f"{name}: {f'found: {there[name]}' if name in there else f'not found at {place}'}")
    files = {name: entry[1] for name, entry in host.cifar_model_dict.items() if entry[1]}
    found = [name for name, path in files.items() if Path(path).is_file()]
    root = Path(os.path.commonpath(list(files.values()))) if files else "no folder"
    _say("teachers", f"{', '.join(found) or 'none'} of {', '.join(files)} in {Path(root).resolve()}")
    if len(there) < len(places) or len(found) < len(files):
        _say("", "Only configurations that use absent data or teachers are affected; configs/quickstart is not.")
        _say(
            "", "Data: DATASET.ROOT or DATASET.DOWNLOAD. Teachers: DISTILLER.TEACHER_CKPT or TEACHER.TRAIN_IF_MISSING."
        )


def _config(args, problems):
    from atsc_plugin import build

    try:
        cfg = registered_cfg(args.cfg, args.opts)
        build.check_place(build.place(cfg, args.opts)[1])
        prepared = build.prepare(cfg, args.opts, dry=True)
        for label, text in build.plan(prepared):
            _say(label, text)
    except PluginError as error:
        problems.append(f"{args.cfg}: {error}")
