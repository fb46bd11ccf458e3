#!/usr/bin/env python
"""Write the tables of docs/networks.md: each network as SimKD's teacher and as KD's student, or refused by name.

    python tools/networks.py             timm's test networks, families of timm and torchvision
    python tools/networks.py --onnx 60   also export deployed students and compare their logits, for 60 minutes at most

Every network teaches a resnet8 for one step of SimKD, and learns from a resnet8 for one step of KD; the deployed
student is written, rebuilt by name and compared. With --onnx a second table has CNN and ViT teaching CNN and ViT by KD,
SimKD and ATSC, and rows that the page has in full, by the same versions, stay. Minutes on a CPU; an hour with --onnx.
"""

import argparse
import re
import sys
import tempfile
import time
import warnings
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import atsc_plugin
from atsc_plugin import contract, host, students
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError
from atsc_plugin.export import verified
from atsc_plugin.networks import named
from atsc_plugin.networks.deployed import deployed_of, drop_modules, tensors_of

ROOT = Path(__file__).resolve().parents[1]
MARKER = "<!-- Below this line tools/networks.py writes. -->\n"
CLASSES = 10
TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
]  # fmt: skip
TIMM = [  # of each family a small one
    "cait_xxs24_224", "coat_lite_tiny", "convit_tiny", "convnext_atto", "davit_tiny", "dla46_c", "dpn48b",
    "edgenext_xx_small", "efficientformerv2_s0", "efficientnet_lite0", "efficientvit_b0", "efficientvit_m0",
    "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_100", "hardcorenas_a",
    "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "lcnet_050", "legacy_seresnet18", "levit_128s",
    "mambaout_femto", "mixer_s32_224", "mobilenetv3_small_050", "mobilevit_xxs", "nf_regnet_b0", "pit_ti_224",
    "poolformer_s12", "pvt_v2_b0", "regnetx_002", "repghostnet_050", "repvit_m0_9", "resnest14d", "rexnet_100",
    "selecsls42b", "skresnet18", "starnet_s1", "swiftformer_xs", "tiny_vit_5m_224", "tinynet_e", "twins_svt_small",
    "visformer_tiny", "vit_tiny_patch16_224",
]  # fmt: skip
KINDS = ["timm/test_resnet", "timm/test_vit"]
DIRECTIONS = ["method", "teacher", "student", "rebuilt", "torch.export", "ONNX"]
COLUMNS = ["network", "px", "target", "side", "channels", "tail", "rebuilt", "ONNX", "as student: rebuilt", "ONNX"]
LARGEST = 10**8  # parameters of a student that is exported: gigabytes are copied several times over
SIDES = {"alexnet": 64, "inception_v3": 96, "googlenet": 64, "maxvit_t": 224}  # the others: 32 pixels


def networks():
    """(name, image size) of each row."""
    import timm

    yield from ((f"timm/{name}", 32) for name in timm.list_models("test_*"))
    yield from ((f"timm/{name}", 64) for name in TIMM)
    yield from ((f"torchvision/{name}", SIDES.get(name, 32)) for name in TORCHVISION)


def row(name, side, formats):
    """The cells of COLUMNS; a refusal says why."""
    return [name, side, *as_teacher(name, side, formats), *as_student(name, side, formats)]


def as_teacher(name, side, formats):
    try:
        distiller, cfg = distiller_of("SIMKD", name, "resnet8", side)
    except PluginError as error:
        return [f"refused: {error}", "", "", "", "", ""]
    facts = distiller.maps[0]
    tail = ", ".join(path.removeprefix("network.") for path, _ in facts.tail)
    found = "vector" if facts.vector else "map", facts.size, facts.channels, tail
    return [*found, *filled(differences(distiller, cfg, side, formats))]


def as_student(name, side, formats):
    try:
        return filled(differences(*distiller_of("KD", "resnet8", name, side), side, formats))
    except PluginError as error:
        return [f"refused: {error}", ""]


def filled(cells):
    return cells if len(cells) == 2 else [*cells, "not tried"]


def distiller_of(method, teacher, student, side):
    """(a distiller on random weights, its configuration)"""
    cfg = host.CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", method, "DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student])
    cfg.merge_from_list(["DATASET.TYPE", "npz", "DATASET.IMAGE_SIZE", side])
    torch.manual_seed(0)
    networks = [named.new_network("npz", name, CLASSES, side) for name in (teacher, student)]
    return host.distiller_dict[method](*networks[::-1], cfg), cfg


def direction(method, teacher, student):
    """The row of a method with a teacher and a student."""
    made = distiller_of(method, teacher, student, 32)
    return [method, teacher, student, *differences(*made, 32, ["torch", "onnx"])]


def differences(distiller, cfg, side, formats):
    """Largest difference of a logit by the largest logit, or a refusal: what is rebuilt by name, then each format."""
    method, image = contract.of(distiller, cfg), torch.randn(4, 3, side, side)
    method.begin()
    parameters = method.get_learnable_parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    sum(distiller.train()(image=image, target=torch.arange(4), epoch=1)[1].values()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)  # random teachers' maps reach 1e8
    optimizer.step()
    module = deployed_of(method).eval()
    card = {**named.card_facts(cfg.DISTILLER), "dataset": "npz", "classes": CLASSES, "image_size": side}
    card |= {"mean": [], "std": [], **module.facts()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)  # a head that begins with zeros would make all logits equal
        stem = Path(folder) / "deploy_last"
        checkpoint.save_tensors(tensors_of(module), stem, card)
        wanted, found = module(image), [students.load(stem)[0](image)]
        formats = formats if sum(map(torch.numel, tensors_of(module).values())) < LARGEST else []
        drop_modules(module.backbone, module.unused)
        for name in formats:
            kind = verified.FORMATS[name]
            place = stem.with_suffix(kind.ending)
            try:
                with verified.quiet():
                    kind.write(module, card, place, False, None)
                    found.append(torch.from_numpy(kind.read(place)(image.numpy())))
            except PluginError as error:
                found.append(f"refused: {error}")
    largest = wanted.abs().max().clamp_min(1e-9)
    return [other if isinstance(other, str) else f"{(other - wanted).abs().max() / largest:.0e}" for other in found]


def table(columns, rows):
    """The lines of a table, printed as they come."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for cells in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
        print(lines[-1], flush=True)
    return lines


def in_full(text, versions):
    """The rows of a page, as cells, that these versions wrote with a figure in the last column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    rows = [row for row in rows if len(row) in (len(DIRECTIONS), len(COLUMNS))]
    return [row for row in rows if versions in text and re.match(r"\de[+-]\d+$|refused", row[-1])]


def main(minutes):
    warnings.simplefilter("ignore")
    import timm
    import torchvision

    atsc_plugin.register()
    end, page = time.monotonic() + 60 * minutes, ROOT / "docs/networks.md"
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}."
    there = in_full(page.read_text(encoding="utf-8"), versions) if minutes else []
    lines = [versions, ""]

    def rows(keys, make):
        for key in keys:
            yield next((row for row in there if row[: len(key)] == list(map(str, key))), None) or make(*key)

    if minutes:
        directions = product(("KD", "SIMKD", "ATSC"), KINDS, KINDS)
        lines += [*table(DIRECTIONS, rows(directions, direction)), ""]
    lines += table(COLUMNS, rows(networks(), lambda *key: row(*key, ["onnx"] if time.monotonic() < end else [])))
    head, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(head + marker + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=float, default=0.0, metavar="MINUTES", help="export too, for so long")
    main(parser.parse_args().onnx)
