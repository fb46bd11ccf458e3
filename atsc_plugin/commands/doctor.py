"""Say what is here and what is missing, with the remedy; exit status 1 when training could not start."""

import os
import platform
from importlib import metadata
from pathlib import Path

from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.errors import PluginError

PACKAGES = ("torch", "torchvision", "yacs", "tensorboardX", "numpy", "scipy", "scikit-learn", "safetensors", "tqdm")
EXAMPLES = """
  doctor
  doctor --cfg configs/quickstart/simkd.yaml
"""


def parser():
    options = Parser("doctor", __doc__, EXAMPLES)
    options.add_argument("--cfg", metavar="FILE", help="also check that this configuration could start training")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override")
    return options


def run(args):
    problems = []
    print(f"python       {platform.python_version()} on {platform.system()}, {os.cpu_count()} cores")
    print(f"packages     {', '.join(_versions(problems))}")
    if not problems:
        _host_and_devices(args, problems)
    for problem in problems:
        print(f"MISSING      {problem}")
    print("training could not start" if problems else "training can start")
    return 1 if problems else 0


def _versions(problems):
    for name in PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            problems.append(f"package {name}: pip install {name}")


def _host_and_devices(args, problems):
    import torch

    try:
        import atsc_plugin

        atsc_plugin.register()
    except PluginError as error:
        problems.append(f"host: {error}")
        return
    from atsc_plugin import host

    print(f"host         {host.TITLE} ({host.FOLDER})")
    print(f"methods      {', '.join(host.distiller_dict)}")
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)] or [f"cpu, {torch.get_num_threads()} threads"]
    print(f"devices      {', '.join(names)}")
    _data_and_teachers(host)
    if args.cfg:
        _config(args, problems)


def _data_and_teachers(host):
    from atsc_plugin.data.containers import find_cifar100

    places = {name: host.data_place(name) for name in host.host_datasets()}
    there = {name: place for name, place in places.items() if place.is_dir()}
    if container := find_cifar100(host.data_root()):
        there["cifar100"] = container
    print(f"data         digits100 (composed here) and {', '.join(there) or 'none'} of {', '.join(places)}")
    for name, place in places.items():
        print(f"             {name}: {f'found: {there[name]}' if name in there else f'not found at {place}'}")
    files = {name: entry[1] for name, entry in host.cifar_model_dict.items() if entry[1]}
    found = [name for name, path in files.items() if Path(path).is_file()]
    root = Path(os.path.commonpath(list(files.values()))) if files else "no folder"
    print(f"teachers     {', '.join(found) or 'none'} of {', '.join(files)} in {Path(root).resolve()}")
    if len(there) < len(places) or len(found) < len(files):
        print("             what is absent stops only the configs that use it: DATASET.ROOT or DATASET.DOWNLOAD,")
        print("             DISTILLER.TEACHER_CKPT or TEACHER.TRAIN_IF_MISSING; configs/quickstart needs neither")


def _config(args, problems):
    from atsc_plugin import build

    try:
        cfg = registered_cfg(args.cfg, args.opts)
        build.check_place(build.place(cfg, args.opts)[1])
        prepared = build.prepare(cfg, args.opts, dry=True)
        for label, text in build.plan(prepared):
            print(f"{label:<12} {text}")
    except PluginError as error:
        problems.append(f"{args.cfg}: {error}")
