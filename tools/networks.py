#!/usr/bin/env python
"""Write the table of docs/networks.md: each network as a SimKD teacher, or refused by name. Minutes on a CPU.

    python tools/networks.py            timm's test networks and torchvision's families at their smallest
    python tools/networks.py --onnx     also export every deployed student, and compare its logits

Every network teaches a resnet8 for one step; the deployed student is written, rebuilt by name and compared.
"""

import sys
import tempfile
import warnings
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
SIDES = {"alexnet": 64, "inception_v3": 96, "googlenet": 64, "maxvit_t": 224}  # the others: 32 pixels


def networks():
    """(name, image size) of each row."""
    import timm

    yield from ((f"timm/{name}", 32) for name in timm.list_models("test_*"))
    yield from ((f"torchvision/{name}", SIDES.get(name, 32)) for name in TORCHVISION)


def row(name, side, onnx):
    """[network, pixels, target, side, channels, tail, difference rebuilt, of ONNX], or why it is refused."""
    cfg = host.CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "SIMKD", "DISTILLER.TEACHER", name, "DISTILLER.STUDENT", "resnet8"])
    cfg.merge_from_list(["DATASET.TYPE", "npz", "DATASET.IMAGE_SIZE", side])
    torch.manual_seed(0)
    try:
        teacher = named.new_network("npz", name, CLASSES, side)
        distiller = host.distiller_dict["SIMKD"](host.new_network("npz", "resnet8", CLASSES), teacher, cfg)
    except PluginError as error:
        return [name, side, f"refused: {error}", "", "", "", "", ""]
    facts, image = distiller.maps[0], torch.randn(4, 3, side, side)
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05)
    distiller.train()(image=image, target=torch.arange(4), epoch=1)[1]["loss_feat"].backward()
    torch.nn.utils.clip_grad_norm_(distiller.get_learnable_parameters(), 1.0)  # random teachers' maps reach 1e8
    optimizer.step()
    module = deployed_of(contract.of(distiller, cfg)).eval()
    card = {**named.card_facts(cfg.DISTILLER), "dataset": "npz", "classes": CLASSES, "image_size": side}
    card |= {"mean": [], "std": [], **module.facts()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        stem = Path(folder) / "deploy_last"
        checkpoint.save_tensors(tensors_of(module), stem, card)
        wanted, rebuilt = module(image), students.load(stem)[0](image)
        differences = [f"{(rebuilt - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9):.0e}", ""]
        if onnx:
            drop_modules(module.backbone, module.unused)
            with verified.quiet():
                verified.FORMATS["onnx"].write(module, card, f"{stem}.onnx", False, None)
            found = torch.from_numpy(verified.FORMATS["onnx"].read(f"{stem}.onnx")(image.numpy()))
            differences[1] = f"{(found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9):.0e}"
    tail = ", ".join(path.removeprefix("network.") for path, _ in facts.tail)
    return [name, side, "vector" if facts.vector else "map", facts.size, facts.channels, tail, *differences]


def main(onnx):
    warnings.simplefilter("ignore")
    import timm
    import torchvision

    atsc_plugin.register()
    lines = [f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}.", ""]
    lines += [
        "| network | px | target | side | channels | tail | rebuilt | ONNX |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in networks():
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row(name, side, onnx)) + " |")
        print(lines[-1], flush=True)
    page = ROOT / "docs/networks.md"
    head, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(head + marker + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("--onnx" in sys.argv[1:])
