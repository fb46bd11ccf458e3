"""The most likely classes of image files, by a run directory, a deployed student or an exported ONNX file.

Images are resized and normalised as the model's card says. One that cannot be read is named and skipped, and the exit
status is 1 then.
"""

import json
import sys

import numpy as np

from atsc_plugin.commands import Parser, tell_unfinished
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import as_plugin_error, expand_user, printable

EXAMPLES = """
  predict photo.png --model output/quickstart/simkd,res20,res8/seed_1
  predict photos/ more/cat.jpg --model student.onnx --top 3
  predict photos/ --model deploy_best.safetensors --json > predictions.json
"""


def parser():
    options = Parser("predict", __doc__, EXAMPLES)
    add = options.add_argument
    add("images", nargs="+", metavar="FILE_OR_FOLDER", help="image files, or folders of them")
    add("--model", required=True, help="run directory, deploy_* file, or .onnx file of `export`")
    add("--which", choices=("last", "best"), default="last", help="of a run directory (default: last)")
    add("--top", type=int, default=5, metavar="K", help="classes to name for an image (default: 5)")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return options


def run(args):
    from atsc_plugin.data import pictures

    if args.top < 1:
        raise PluginError(f"--top is {args.top}; expected at least 1.")
    predict, card = model_of(args.model, args.which)
    names = card.get("class_names") or [str(number) for number in range(card["classes"])]
    files, size = pictures.find(args.images), pictures.batch_of(card)
    images, skipped = [], []
    for start in range(0, len(files), size):
        read, pixels = [], []
        for file in files[start : start + size]:
            try:
                pixels.append(pictures.read(file, card))
                read.append(file)
            except pictures.Unreadable as error:
                skipped.append({"file": str(file), "reason": str(error)})
                print(f"skipped {printable(file)}: {printable(error)}", file=sys.stderr)
        if read:
            best = [_top(row, names, args.top) for row in _logits(predict, np.stack(pixels), card, args.model)]
            images += [{"file": str(file), "top": top} for file, top in zip(read, best, strict=True)]
        if not args.json:
            _print(images[len(images) - len(read) :])
    if args.json:
        print(json.dumps({"model": args.model, "images": images, "skipped": skipped}, indent=1))
    if skipped:
        print(f"{len(skipped)} of {len(images) + len(skipped)} images skipped", file=sys.stderr)
    return 1 if skipped else 0


def _logits(predict, pixels, card, model):
    """Finite logits, a row an image and a column a class; a model that gives none is refused."""
    wanted = (len(pixels), card["classes"])
    with as_plugin_error(
        f"{model} cannot predict images of {card['image_size']} pixels ({{}}). Export the student again."
    ):
        logits = np.asarray(predict(pixels))
        if logits.shape != wanted or logits.dtype.kind != "f":
            raise ValueError(f"it gives {logits.dtype} {logits.shape}, expected floating-point {wanted}")
        if not np.isfinite(logits).all():
            raise ValueError("its logits are not finite: its training diverged, or its card is wrong")
    return logits


def _top(logits, names, count):
    """The highest classes of one image with their softmax probabilities."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [{"class": int(i), "name": names[i], "probability": round(float(probabilities[i]), 6)} for i in order]


def _print(images):
    for image in images:
        best = "  ".join(f"{printable(entry['name'])} {100 * entry['probability']:.1f}%" for entry in image["top"])
        print(f"{printable(image['file'])}: {best}", flush=True)


def model_of(path, which="last"):
    """(predict(uint8 N x H x W x 3) -> logits, card) of a run, a deploy file or an ONNX file."""
    path = expand_user(path)
    if path.suffix == ".onnx":
        return _from_onnx(path)
    if path.suffix == ".pt2":
        raise PluginError(f"{path} is a torch.export program; predict reads run directories, deploy_* and .onnx files.")
    import torch

    from atsc_plugin import students
    from atsc_plugin.data.pictures import normalised

    module, card = students.load(path, which)
    tell_unfinished(path)

    def predict(pixels):
        with torch.inference_mode():
            return module(torch.from_numpy(normalised(pixels, card))).numpy()

    return predict, card


def _from_onnx(path):
    """An ONNX file of `export`; its card is inside, torch is not needed."""
    from atsc_plugin.data.pictures import normalised
    from atsc_plugin.export import onnx_files

    if not path.is_file():
        raise PluginError(f"There is no {path}; expected a file of `export --format onnx`.")
    opened = onnx_files.session(path)
    card = onnx_files.card_of(opened, path)
    names, classes = card.get("class_names") or [], onnx_files.classes_of(opened, path)
    if card["classes"] != classes or len(names) not in (0, classes):
        raise PluginError(
            f"{path} gives {classes} logits, its card speaks of {card['classes']} classes and {len(names)} names; "
            "expected the same number. Export it again."
        )
    forward = onnx_files.predictor(opened)
    if opened.get_inputs()[0].type == "tensor(uint8)":  # --preprocess: normalised inside
        return forward, card
    return lambda pixels: forward(normalised(pixels, card)), card
