"""A trained student as ONNX, torch.export or safetensors; a file is kept only when it agrees with the student."""

import argparse
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import expand_user, printable

EXAMPLES = """examples:
  export output/quickstart/simkd,res20,res8/seed_1 --format onnx                    -> deploy_last.onnx in the run
  export output/quickstart/simkd,res20,res8/seed_1 --format onnx --preprocess --output student.onnx
  export RUN/deploy_best.safetensors --format torch --images photos/
  export RUN/latest --format safetensors        deploy files of a run that a host's own trainer made
  export RUN --format onnx --benchmark          and a table of size and latency against the teacher

The batch size is free in every format. Without --preprocess the input is float32 N x 3 x H x W, normalised as the card
says; with it uint8 N x H x W x 3, RGB 0..255, as image libraries have it. The card travels inside the ONNX file.
"""


def parser():
    words = argparse.ArgumentParser(
        "export", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("path", help="run directory, deploy_* file or checkpoint")
    words.add_argument("--format", required=True, choices=("onnx", "torch", "safetensors"), help="what to write")
    words.add_argument("--output", metavar="FILE", help="default: beside the source, with the ending of the format")
    words.add_argument("--which", choices=("last", "best"), default="last", help="of a run directory (default: last)")
    words.add_argument(
        "--preprocess", action="store_true", help="put the normalisation inside; the input is uint8 then"
    )
    words.add_argument("--opset", type=int, metavar="N", help="ONNX operator set (default: the exporter's own)")
    words.add_argument("--check", type=int, default=256, metavar="N", help="test images to compare on (default: 256)")
    words.add_argument("--images", metavar="PATH", help="compare on these image files instead of the run's test images")
    words.add_argument("--cfg", metavar="FILE", help="configuration, where no cfg.yaml lies beside the file")
    words.add_argument("--benchmark", action="store_true", help="print sizes and latencies, beside the teacher's")
    words.add_argument("--compile", action="store_true", help="benchmark torch.compile, too; needs a C++ compiler")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. DATASET.ROOT /data")
    return words


def run(args):
    import atsc_plugin

    if args.check < 1:
        raise PluginError(f"--check is {args.check}; expected at least 1: no file is kept that was not compared.")
    atsc_plugin.register()
    from atsc_plugin.export.formats import FORMATS, check_request, folder_of

    check_request(args.format, args.preprocess, args.opset)
    source = expand_user(args.path)
    output = Path(args.output) if args.output else _beside(source, args.which, FORMATS[args.format].ending)
    folder_of(output)
    module, card, cfg = _student(source, args)
    if args.format == "safetensors":
        _check_not_itself(output, source, args.which)
    pixels = _pixels(args, card, cfg)
    from atsc_plugin.export.checked import export

    files, agreement = export(module, card, output, args.format, pixels, preprocess=args.preprocess, opset=args.opset)
    for file in files:
        print(f"{printable(file)}  {file.stat().st_size:,} bytes")
    print(f"reloaded and compared: {agreement.text()}")
    if args.benchmark:
        _benchmark(module, card, cfg, args.compile)
    return 0


def _beside(source, which, ending):
    """Where an export goes that was not told: into the run, under the name of the student."""
    if source.is_dir():
        return source / f"deploy_{which}{ending}"
    names = {"latest": "deploy_last", "best": "deploy_best"}
    stem = source.with_suffix("") if source.suffix in (".safetensors", ".json", ".pth") else source
    return stem.with_name(names.get(stem.name, stem.name) + ending)


def _check_not_itself(output, source, which):
    """A deploy file is already what --format safetensors writes: it needs another name to be written again."""
    there = source / f"deploy_{which}.safetensors" if source.is_dir() else source
    if there.suffix in (".safetensors", ".json") and there.resolve().with_suffix("") == output.resolve().with_suffix(
        ""
    ):
        raise PluginError(f"{output} is the student to be exported itself; name another file with --output.")


def _student(source, args):
    """(module, card, cfg or None) of a run, a deploy file, or a checkpoint with its configuration."""
    from atsc_plugin import students
    from atsc_plugin.config import load_cfg
    from atsc_plugin.export import sources

    own = (source if source.is_dir() else source.parent) / "cfg.yaml"
    cfg = load_cfg(args.cfg or own, args.opts) if args.cfg or own.is_file() else None
    stem = source.with_suffix("") if source.suffix in students.ENDINGS else source
    if source.is_dir() or Path(f"{stem}.json").is_file():
        return *students.load(source, args.which), cfg
    if not source.is_file():
        raise PluginError(f"There is no {source}; expected a run directory, a deploy_* file or a checkpoint.")
    if cfg is None:
        raise PluginError(f"{own} is not there, so it is unknown what {source} is. Name its configuration with --cfg.")
    return *sources.of_checkpoint(source, cfg, sources.data_of(cfg)), cfg


def _pixels(args, card, cfg):
    """The images to compare on, uint8: the named ones, or the first test images of the run's data set."""
    from atsc_plugin.export import sources

    if args.images:
        return sources.pixels_of_files(args.images, card, args.check)
    if cfg is None:
        raise PluginError(
            "No cfg.yaml lies beside the student, so its data set is unknown. Name images to compare on with --images "
            "PATH, or its configuration with --cfg FILE."
        )
    return sources.test_pixels(sources.data_of(cfg), card, args.check)


def _benchmark(module, card, cfg, with_compiled):
    from atsc_plugin import build
    from atsc_plugin.export.latency import table

    teacher = None
    if cfg is not None and cfg.DISTILLER.TYPE != "NONE":
        teacher = build.network(cfg, "TEACHER", card["classes"], 0)
        print(f"teacher: a {cfg.DISTILLER.TEACHER} with random weights, which cost the same time")
    print("\n".join(table(module, teacher, card, with_compiled)))
