"""A trained student as ONNX, torch.export or safetensors; a file is kept only when it agrees with the student.

The batch size is free in every format. Without --preprocess the input is float32 N x 3 x H x W, normalised as the card
says; with it uint8 N x H x W x 3, RGB 0..255, as image libraries have it. The card travels inside the ONNX file.
"""

from pathlib import Path
from types import SimpleNamespace

from atsc_plugin.commands import Parser, add_student_options, cfg_of_student, tell_unfinished
from atsc_plugin.errors import PluginError, wrapped
from atsc_plugin.untrusted import printable

EXAMPLES = """
  export output/quickstart/simkd,res20,res8/seed_1 --format onnx                    writes deploy_last.onnx in the run
  export output/quickstart/simkd,res20,res8/seed_1 --format onnx --preprocess --output student.onnx
  export RUN/deploy_best.safetensors --format torch --images photos/
  export RUN/latest --format safetensors        deploy files of a run that a host's own trainer made
  export RUN --format onnx --benchmark          prints a table, too, of size and latency against the teacher
"""


def parser():
    options = Parser("export", __doc__, EXAMPLES)
    add = options.add_argument
    add("--format", required=True, choices=("onnx", "torch", "safetensors"), help="what to write")
    add("--output", metavar="FILE", help="default: beside the source, with the ending of the format")
    add("--preprocess", action="store_true", help="put the normalisation inside; the input is uint8 then")
    add("--opset", type=int, metavar="N", help="ONNX operator set (default: the exporter's own)")
    add("--check", type=int, default=256, metavar="N", help="test images to compare on (default: 256)")
    add("--images", metavar="PATH", help="compare on these image files instead of the run's test images")
    add("--benchmark", action="store_true", help="print sizes and latencies, beside the teacher's")
    add("--compile", action="store_true", help="benchmark torch.compile, too; needs a C++ compiler")
    add_student_options(options)
    return options


def run(args):
    import torch

    from atsc_plugin import build, students
    from atsc_plugin.export import verified

    if args.check < 1:
        raise PluginError(f"--check is {args.check}; expected at least 1: no file is kept that was not compared.")
    source = students.check_there(args.path)
    output = Path(args.output) if args.output else _beside(source, args.which, verified.FORMATS[args.format].ending)
    verified.check_request(args.format, output, args.preprocess, args.opset)
    if args.format == "safetensors" and students.is_deployed(source):
        _check_not_itself(output, students.stem_of(source, args.which))
    cfg, self_contained = cfg_of_student(args), bool(args.images) and students.is_deployed(source)
    if cfg is None and not self_contained:
        raise PluginError(
            f"No cfg.yaml lies beside {source}, so its data set is unknown. Name its configuration with --cfg FILE"
            + (", or images to compare on with --images PATH." if students.is_deployed(source) else ".")
        )
    data = None if self_contained else build.data_of(cfg, torch.device("cpu"))
    opened = students.open_student(source, args.which, cfg, data, build.skeleton)
    tell_unfinished(args.path)
    if opened.card is None:
        raise PluginError(
            f"{source} is a {opened.source}, which does not predict by its student alone; expected a method whose "
            "deployed student is known. Export is not possible."
        )
    if args.images:
        pixels = verified.pixels_of_files(args.images, opened.card, args.check)
    else:
        pixels = verified.pixels_of_data(data, args.check)
    options = {"preprocess": args.preprocess, "opset": args.opset}
    files, result = verified.verified_export(opened.module, opened.card, output, args.format, pixels, **options)
    for file in files:
        print(f"{printable(file)}  {file.stat().st_size:,} bytes")
    print(wrapped(f"reloaded and compared: {result.text()}"))
    if args.benchmark:
        _benchmark(opened, cfg, args.compile)
    return 0


def _beside(source, which, ending):
    """Where an export goes without --output: into the run, under the name of the student."""
    if source.is_dir():
        return source / f"deploy_{which}{ending}"
    names = {"latest": "deploy_last", "best": "deploy_best"}
    stem = source.with_suffix("") if source.suffix in (".safetensors", ".json", ".pth") else source
    return stem.with_name(names.get(stem.name, stem.name) + ending)


def _check_not_itself(output, stem):
    """A deploy pair is already what --format safetensors writes: it needs another name to be written again."""
    if output.resolve().with_suffix("") == stem.resolve():
        raise PluginError(f"{output} is the student to be exported itself; name another file with --output.")


def _benchmark(opened, cfg, with_compiled):
    from atsc_plugin import teachers
    from atsc_plugin.export import latency

    card, teacher = opened.card, None
    if cfg is not None and (first := next(iter(teachers.configs_by_teacher(cfg)), None)) is not None:
        data = SimpleNamespace(**{name: card[name] for name in ("classes", "image_size", "mean", "std")})
        teacher = teachers.new_teacher(first, data)
        print(f"teacher: a {first.DISTILLER.TEACHER}, whose weights do not matter here")
    print(latency.report(opened.module, teacher, card["image_size"], with_compiled))
