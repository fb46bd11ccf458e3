"""ONNX files: written from a torch.export program with the student's card inside, and run by ONNX Runtime.

The card is the file's metadata property "atsc_plugin.card", so that the one file says how images are prepared and what
the classes are called. Reading needs ONNX Runtime and no torch.
"""

import importlib
import json

from atsc_plugin import cards
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import as_plugin_error, first_line

CARD = "atsc_plugin.card"
OLDEST_OPSET = 18  # torch's exporter has no implementations below, and ONNX's converter fails on such networks
INSTALL = 'pip install "atsc_plugin[export]", or pip install onnx onnxscript onnxruntime'


def need(name):
    """An optional package of the export extra, or how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(f"ONNX files need the package {name}, which does not import ({error}). {INSTALL}.") from error


def check_opset(opset):
    """Refuse an operator set that no version of the exporter can write; None means the exporter's own choice."""
    newest = need("onnx").defs.onnx_opset_version()
    need("onnxscript")
    need("onnxruntime")
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise PluginError(f"--opset is {opset}; expected {OLDEST_OPSET} to {newest} with the onnx installed here.")


def write(program, card, path, opset):
    """The program at `path`, with the card in its metadata."""
    import torch

    try:
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=["image"], output_names=["logits"], verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise PluginError(
            f"torch's exporter cannot write this network as ONNX ({first_line(cause)}). Use --format torch."
        ) from error
    model = exported.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset is not None and written != opset:
        raise PluginError(
            f"--opset is {opset}, but the exporter could only write {written}. Use --opset {written}, or leave it out."
        )
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, json.dumps(card)
    model.producer_name = "atsc_plugin"
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def session(path, threads=0):
    """An ONNX Runtime session on the CPU; a file that it cannot run is refused."""
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        reason = " ".join(str(error).rpartition("failed:")[2].split())[-200:]
        raise PluginError(
            f"ONNX Runtime {runtime.__version__} cannot run {path.name} (... {reason}); expected a file of `export "
            "--format onnx`. A lower --opset suits an older runtime."
        ) from error


def predictor(opened):
    """predict(array) -> logits of a session."""
    name = opened.get_inputs()[0].name
    return lambda images: opened.run(None, {name: images})[0]


def read(path):
    return predictor(session(path))


def card_of(opened, path):
    """The card inside an ONNX file."""
    with as_plugin_error(f"{path} has metadata that cannot be read ({{}}); expected a file of `export --format onnx`."):
        text = opened.get_modelmeta().custom_metadata_map.get(CARD)
    if text is None:
        raise PluginError(
            f"{path} has no card (metadata property {CARD}), so it is unknown how its images are prepared; expected a "
            "file of `export --format onnx`."
        )
    return cards.parse(text, path)


def classes_of(opened, path):
    """How many logits a file gives; one that is no network of one image and one row of logits is refused."""
    inputs, outputs = opened.get_inputs(), opened.get_outputs()
    sides = [len(entry.shape) for entry in (*inputs, *outputs)]
    if sides != [4, 2]:
        raise PluginError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs of {sides} dimensions; expected one image (4) "
            "and its logits (2). Export it again."
        )
    return outputs[0].shape[1]
