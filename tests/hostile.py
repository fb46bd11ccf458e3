"""Files that a stranger might hand over, drawn by a seed, and a way to run a command on them with a time limit.

`case(draw, place)` writes one hostile file below `place` and gives the command line that meets it. `ended_well` runs a
command in this process: it must end by itself within LIMIT seconds, in success or in a short message with status 2.
"""

import contextlib
import io
import json
import os
import random
import signal
import struct
import unicodedata
import zlib
from collections import Counter

import numpy as np
import torch
import yaml
from deploy_files import card_of, write_student
from PIL import EpsImagePlugin, Image
from run_folders import RESULT, make_run

from atsc_plugin.__main__ import main

LIMIT, WAIT = 10, 100  # seconds
SMALL = {
    "DATASET.DIGITS100.TRAIN_IMAGES": 100,
    "DATASET.DIGITS100.VAL_IMAGES": 100,
    "DATASET.DIGITS100.TEST_IMAGES": 100,
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
ESCAPE = "\x1b]0;x\x07\x1b[31m"
seen = Counter()


class Hang(BaseException):
    """No Exception, so that no handler of the program takes it for its own."""


# ---- running a command ----


@contextlib.contextmanager
def inside(folder):
    """The block runs in `folder`."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def time_limit():
    """LIMIT seconds of computing, and WAIT seconds by the clock, which a busy machine may need."""

    def ring(number, _frame):
        raise Hang(f"still running after {LIMIT if number == signal.SIGPROF else WAIT} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT), signal.SIGALRM: (signal.ITIMER_REAL, WAIT)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def output_of(argv):
    """(exit status, all that was printed) of a command; anything but an exit is an error of ours and rises."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal's
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = main(argv)
        except SystemExit as end:  # argparse's own refusal
            status = end.code
    out.flush()
    return status, out.buffer.getvalue().decode()


def ended_well(argv, allowed=(0, 2)):
    status, printed = output_of(argv)
    assert status in allowed, printed
    assert "Traceback" not in printed
    if status == 2:
        assert "error:" in printed
        assert 20 < len(printed.split("error:", 1)[1].strip()) < 6000, printed
    seen[f"{argv[0]}: status {status}"] += 1
    return status, printed


def shows_no_control_characters(printed):
    return not [c for c in printed if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t\r"]


@contextlib.contextmanager
def fake_ghostscript(folder):
    """A program `gs` first on PATH; gives the file that it leaves when it is started."""
    programs, trace = folder / "programs", folder / "gs_was_started"
    programs.mkdir(parents=True)
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {trace}\ncat > /dev/null\nexit 1\n")
    (programs / "gs").chmod(0o755)
    EpsImagePlugin.gs_binary = None  # where Pillow remembers whether there is one
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}{os.pathsep}{before}"
    try:
        yield trace
    finally:
        os.environ["PATH"], EpsImagePlugin.gs_binary = before, None


# ---- drawing ----


def value(draw, depth=0):
    """A JSON or YAML value of no particular use."""
    simple = [
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        7,
        10**9,
        10**19,
        10**400,
        -(10**30),
        0.0,
        -0.5,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "nan",
        ESCAPE,
        "\udcff",
        "\u202e",
        "../..",
        "/dev/zero",
        "a" * 5000,
        "feats",
        "logits",
    ]
    kind = draw.randrange(8)
    if depth > 2 or kind < 5:
        return draw.choice(simple)
    if kind == 5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 6:
        return {f"k{i}": value(draw, depth + 1) for i in range(draw.randrange(3))}
    return [value(draw, 3)] * draw.choice([3, 10, 100])


def deep(kind, levels):
    return {"list": "[" * levels + "]" * levels, "dict": '{"a":' * levels + "1" + "}" * levels}[kind]


def text_of(draw, content):
    """JSON of a mapping with something done to a field or to the whole."""
    kind = draw.randrange(10)
    if kind < 6 and content:
        name = draw.choice(sorted(content))
        return json.dumps({**content, name: value(draw)})
    if kind == 6 and content:
        name = draw.choice(sorted(content))
        whole = json.dumps({**content, name: "@@"})
        return whole.replace('"@@"', deep(draw.choice(["list", "dict"]), draw.choice([60, 990, 200_000])))
    if kind == 7:
        return json.dumps(value(draw))
    if kind == 8:
        return draw.choice(["", "{", "[", "null", "\ufeff{}", "{}", '{"a": 1e999}', '{"a":' + "9" * 5000 + "}", "NaN"])
    return json.dumps({name: entry for name, entry in content.items() if draw.random() < 0.8})


def mangled(draw, content):
    """Bytes with something done to them."""
    at, size = draw.randrange(len(content) + 1), draw.choice([1, 4, 100, 2000])
    fill = draw.randbytes(size)
    kinds = [
        content[:at],
        content[:at] + fill + content[at + size :],
        content[:at] + fill + content[at:],
        content[:at] + content[at + size :],
        content[:at] + b"\xff" * size + content[at + size :],
        fill,
    ]
    return draw.choice(kinds)


# ---- one kind of file each: (place, draw) -> (command line, statuses that are right) ----


def png(width, height, depth=8, colour=2, body=b"\0" * 40):
    """A PNG with this header, whatever its body holds."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def encoded(draw, kind):
    buffer = io.BytesIO()
    pixels = np.frombuffer(draw.randbytes(32 * 32 * 3), np.uint8).reshape(32, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = draw.choice([1, 6, 8, 99, 0])
    Image.fromarray(pixels).save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    return buffer.getvalue()


def picture(draw):
    whole = encoded(draw, draw.choice(["PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF", "ICO", "TGA", "PDF", "EPS"]))
    return draw.choice(
        [
            whole,
            mangled(draw, whole),
            EPS,
            b"",
            b"\0" * 100,
            png(2**31 - 1, 2**31 - 1),
            png(100_000, 100_000),
            png(0, 0),
            png(1, 60_000),
            png(4, 4, 16, 0),
            png(4, 4, 16, 2),
            b"P5 4 4 65535\n" + b"\x80\0" * 16,
            b"P6 9999999 9999999 255\n",
            b"Pf 4 4 -1.0\n" + b"\0" * 64,
            b"II*\0" + b"\xff" * 60,
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        ]
    )


def name_of_a_file(draw):
    return draw.choice([b"x", b"\xff\xfe", ESCAPE.encode(), "\u202egnp".encode(), b"a\nb", b"-x", b"%s{}", b" "])


def some_picture(place, draw):
    photos = place / "photos"
    photos.mkdir()
    Image.new("RGB", (32, 32)).save(photos / "good.png")
    ending = draw.choice([b".png", b".jpg", b".bmp", b".webp", b".ppm"])
    path = os.path.join(os.fsencode(photos), name_of_a_file(draw) + ending)
    kind = draw.randrange(12)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        os.symlink(draw.choice([path, b"/dev/zero", b"/nowhere", b"/"]), path)
    else:
        with open(path, "wb") as file:
            file.write(picture(draw))
    write_student(place / "small")
    onnx_student(place / "cut.onnx", json.dumps(card_of(dataset="imagenet")))  # whose images are cut, not squeezed
    model = str(place / draw.choice(["small", "cut.onnx"]))
    return ["predict", str(photos), "--model", model, *draw.choice([[], ["--json"]])], (0, 1)


def some_folder(place, draw):
    tree = os.fsencode(place / "tree")
    names = [b"cat", name_of_a_file(draw)]
    for split in (b"train", b"test"):
        for name in names:
            os.makedirs(os.path.join(tree, split, name))
            with open(os.path.join(tree, split, name, b"a.png"), "wb") as file:
                file.write(encoded(draw, "PNG"))
    odd = os.path.join(tree, b"train", b"cat", name_of_a_file(draw) + b".jpg")
    if draw.randrange(4) == 0:
        os.mkfifo(odd)
    elif draw.randrange(2):
        with open(odd, "wb") as file:
            file.write(picture(draw))
    words = [
        "DATASET.TYPE",
        "folder",
        "DATASET.ROOT",
        str(place / "tree"),
        "DATASET.IMAGE_SIZE",
        draw.choice(["0", "32"]),
    ]
    return ["train", "--cfg", "configs/quickstart/vanilla.yaml", "--dry-run", *words], (0, 2)


def student(place, draw):
    write_student(
        place / "small", heads=draw.choice([0, 1, 2]), classes=100, class_names=[ESCAPE, *map(str, range(99))]
    )
    Image.new("RGB", (32, 32)).save(place / "good.png")
    keys = {"DATASET": {"TYPE": "digits100"}, "DISTILLER": {"TYPE": "NONE", "STUDENT": "resnet8"}}
    (place / "cfg.yaml").write_text(yaml.safe_dump(keys))
    small = [str(word) for pair in SMALL.items() for word in pair]
    stem = str(place / "small")
    return draw.choice(
        [
            ["predict", str(place / "good.png"), "--model", stem],
            ["eval", stem, *small],
            [
                "export",
                stem,
                "--format",
                "safetensors",
                "--output",
                str(place / "out"),
                "--images",
                str(place / "good.png"),
            ],
            [
                "train",
                "--cfg",
                "configs/quickstart/kd.yaml",
                "--dry-run",
                "DISTILLER.TEACHER_CKPT",
                f"{stem}.json",
                *small,
            ],
        ]
    )


def some_card(place, draw):
    words = student(place, draw)
    content = json.loads((place / "small.json").read_text())
    if content["heads"] and draw.random() < 0.4:
        head = draw.choice(content["heads"])
        head[draw.choice(sorted(head))] = value(draw)
        text = json.dumps(content)
    else:
        text = text_of(draw, content)
    (place / "small.json").write_text(text)
    return words, (0, 2)


def some_tensors(place, draw):
    words = student(place, draw)
    path = place / "small.safetensors"
    content = path.read_bytes()
    header = draw.choice(
        [
            json.dumps({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}),
            deep("list", 100_000),
            json.dumps({"backbone.fc.weight": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
            "[]",
            "null",
        ]
    ).encode()
    lies = draw.choice([struct.pack("<Q", len(header)) + header, struct.pack("<Q", 2**63) + header])
    path.write_bytes(draw.choice([lies, mangled(draw, content), mangled(draw, content)]))
    return words, (0, 2)


def arrays_of(draw):
    pixels = np.frombuffer(draw.randbytes(8 * 32 * 32 * 3), np.uint8).reshape(8, 32, 32, 3)
    return {
        "train_images": pixels,
        "train_labels": np.arange(8) % 3,
        "test_images": pixels,
        "test_labels": np.arange(8) % 3,
        "class_names": np.array(["a", "b", "c"]),
    }


ODD_ARRAYS = [
    lambda: np.array("a"),
    lambda: np.zeros(0),
    lambda: np.full(8, 10**9),
    lambda: np.full(8, 2**64 - 1, np.uint64),
    lambda: np.arange(8, dtype=np.uint64) % 3,
    lambda: np.zeros(8, "O"),
    lambda: np.zeros((8, 0, 0, 3), np.uint8),
    lambda: np.zeros((8, 32, 32, 3)),
    lambda: np.array([ESCAPE, "\udcff", "b"]),
    lambda: np.array([b"\xff\xfe", b"b", b"c"]),
    lambda: np.zeros(8, [("a", "i4")]),
    lambda: np.full(8, -5),
    lambda: np.zeros(8, bool),
    lambda: np.zeros(8, "M8[s]"),
    lambda: np.array(["x" * 5000, "y", "z"]),
    lambda: np.zeros(3, "V0"),
    lambda: np.float16([1, np.nan, 2]),
]


def npz_bytes(arrays, encrypted=False):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = bytearray(buffer.getvalue())
    if encrypted:  # the flag alone, in the central directory and in the local headers
        for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
            at = content.find(mark)
            while at >= 0:
                content[at + offset] |= 1
                at = content.find(mark, at + 4)
    return bytes(content)


def npz_that_claims(shape, dtype="|u1", length=0):
    """An .npz whose headers promise more than there is."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels", "class_names"):
            entry = io.BytesIO()
            np.lib.format.write_array_header_1_0(entry, {"descr": dtype, "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", entry.getvalue() + b"\0" * length)
    return buffer.getvalue()


def some_npz(place, draw):
    arrays, kind = arrays_of(draw), draw.randrange(8)
    if kind < 3:
        arrays[draw.choice(sorted(arrays))] = draw.choice(ODD_ARRAYS)()
        content = npz_bytes(arrays)
    elif kind == 3:
        shape = draw.choice([(10**15, 3, 3, 3), (10**6, 10**6, 10**6, 3), (0,), (-1, -1), (2**62, 0), (8, 32, 32, 3)])
        content = npz_that_claims(shape, draw.choice(["|u1", "<i8", "<U1", "<U0", "|O"]), draw.choice([0, 1, 3, 10**6]))
    elif kind == 4:
        content = npz_bytes(arrays, encrypted=True)
    elif kind == 5:
        content = draw.choice([b"", b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY\x01\0" + b"(" * 5000, b"\x80\x04."])
    else:
        content = mangled(draw, npz_bytes(arrays))
    (place / "d.npz").write_bytes(content)
    if draw.randrange(20) == 0:
        (place / "d.npz").unlink()
        os.mkfifo(place / "d.npz")
    words = ["DATASET.TYPE", "npz", "DATASET.ROOT", str(place / "d.npz")]
    return ["train", "--cfg", "configs/quickstart/vanilla.yaml", "--dry-run", *words], (0, 2)


def some_run_file(place, draw):
    job = {
        "suite": "s",
        "suite_file": "s.yaml",
        "arm": "kd",
        "pair": None,
        "seed": 1,
        "cfg": "c.yaml",
        "set": {},
        "common": {},
        "stretch": 1,
        "trials": 0,
        "adapted_by": None,
        "notes": ["n"],
        "images": None,
        "overrides": ["SOLVER.LR", "1"],
        "at_once": 2,
        "status": "done",
        "reason": None,
    }
    line = {
        "epoch": 1,
        "loss": 1.0,
        "teacher_top1": 9.0,
        "start_top1": 10.0,
        "teacher_agreement": 0.9,
        "feature_scale": 1.0,
    }
    runs = place / "runs"
    make_run(runs, "kd", 1, 70.0, job=job, log=[line])
    make_run(runs, "vanilla", 1, 60.0, "NONE", job={**job, "arm": "vanilla"})
    folder = make_run(runs, name_of_a_file(draw).decode("utf-8", "surrogateescape"), 2, 65.0, job=job, log=[line])
    about = json.loads((folder / "about.json").read_text())
    stopped = {"epoch": 1, "reason": "lost"}
    contents = {"result.json": RESULT, "job.json": job, "about.json": about, "stopped.json": stopped, "log.jsonl": line}
    name = draw.choice([*contents, "cfg.yaml"])
    path = folder / name
    if name == "cfg.yaml":
        path.write_bytes(yaml_bytes(draw, yaml.safe_load(path.read_text())))
    elif draw.randrange(12) == 0:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    else:
        path.write_text(text_of(draw, contents[name]))
    if draw.random() < 0.5 and name in ("job.json", "cfg.yaml", "stopped.json"):
        (folder / "result.json").unlink()  # a run that failed is told from these files alone
    return ["report", str(runs), *draw.choice([[], ["--out", str(place / "page")], ["--json"]])], (0, 2)


def yaml_bytes(draw, tree):
    kind = draw.randrange(8)
    if kind < 3:
        group = draw.choice(sorted(tree))
        entry = value(draw)
        changed = {**tree[group], draw.choice([*tree[group], "NEW"]): entry} if isinstance(tree[group], dict) else entry
        return yaml.safe_dump({**tree, group: draw.choice([changed, changed, entry])}, allow_unicode=False).encode()
    bomb = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
    merges = "\n".join(
        ["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12))]
    )
    odd = [
        "a: &a [*a]",
        "a: &a {<<: *a}",
        bomb,
        merges,
        deep("list", 100_000),
        "a: " + deep("list", 60),
        "- " * 3000 + "a",
        "a: 2001-99-99",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "a: " + "1:" * 3000 + "1",
        "? [a, b]\n: 1",
        "a: !!python/object/apply:os.system ['touch x']",
        "\ufeff",
        "a: !!binary x",
        "a: !!set {b}",
        'SOLVER: {LR: "\\e[31m"}',
        'LOG: {PREFIX: "\\e]0;x\\a"}',
        "a: b\n" * 9000,
        "x" * 300_000,
        "--- a\n--- b",
        "\n".join(f"KEY{i}: 1" for i in range(3000)),
        "a: " + "[" * 900,
        "%YAML 9.9\n---\na: 1",
        "&a a: *b",
    ]
    if kind < 7:
        return draw.choice(odd).encode()
    return mangled(draw, yaml.safe_dump(tree).encode())


def some_yaml(place, draw):
    trees = {
        "train": {
            "DISTILLER": {"TYPE": "NONE", "STUDENT": "resnet8"},
            "DATASET": {"TYPE": "digits100"},
            "SOLVER": {"EPOCHS": 1},
        },
        "leaderboard": {
            "name": "s",
            "seeds": [1],
            "arms": {"kd": {"cfg": "configs/quickstart/kd.yaml"}},
            "notes": ["n"],
            "common": {"SOLVER.EPOCHS": 1},
        },
    }
    command = draw.choice(sorted(trees))
    path = place / "c.yaml"
    path.write_bytes(yaml_bytes(draw, trees[command]))
    if draw.randrange(20) == 0:
        path.unlink()
        draw.choice([os.mkfifo, lambda p: os.symlink("/dev/zero", p)])(path)
    option = "--cfg" if command == "train" else "--suite"
    small = [str(word) for pair in SMALL.items() for word in pair]
    return [command, option, str(path), "--dry-run", *small], (0, 2)


def some_checkpoint(place, draw):
    from atsc_plugin.host import cifar_model_dict

    state = cifar_model_dict["resnet8"][0](num_classes=100).state_dict()
    first, loop = next(iter(state)), []
    loop.append(loop)
    odd = draw.choice(
        [
            {1: state[first]},
            {"model": {1: state[first]}},
            {(1, 2): 3},
            {"model": {**state, 7: 1}},
            {"model": list(state)},
            {"model": {**state, first: "text"}},
            {"model": {**state, first: state[first].to_sparse()}},
            loop,
            5,
            None,
            [],
            {},
            {"model": {**state, first: torch.zeros(1).expand(10**9)}},
            {"model": {**state, first: torch.empty(16, 3, 3, 3, device="meta")}},
            {"model": {**state, first: state[first].to(torch.complex64)}},
            {"checksum": "x", "model": loop},
            {"state_dict": 5, "model": 5},
            {"model": {f"student.{name}": 1 for name in state}},
            {"model": {f"student.{name}": t for name, t in state.items()}},
            {"checksum": 5, "a": torch.zeros(1).expand(10**12)},
            {"arch": ESCAPE, "state_dict": {"a": torch.zeros(1)}},
            {"proj": {}, "model": state},
        ]
    )
    path = place / draw.choice(["latest", "t.pth", "student_best"])
    torch.save(odd, path)
    if draw.random() < 0.3:
        torch.save({"model": state}, path)
        path.write_bytes(mangled(draw, path.read_bytes()))
    small = [str(word) for pair in SMALL.items() for word in pair]
    vanilla = ["--cfg", "configs/quickstart/vanilla.yaml"]
    Image.new("RGB", (32, 32)).save(place / "good.png")
    return draw.choice(
        [
            ["eval", str(path), *vanilla, "DISTILLER.STUDENT", "resnet8", *small],
            [
                "export",
                str(path),
                *vanilla,
                "--format",
                "safetensors",
                "--output",
                str(place / "out"),
                "DISTILLER.STUDENT",
                "resnet8",
                *small,
            ],
            [
                "train",
                "--cfg",
                "configs/quickstart/kd.yaml",
                "SOLVER.EPOCHS",
                "1",
                "DISTILLER.TEACHER",
                "resnet8",
                "DISTILLER.TEACHER_CKPT",
                str(path),
                *small,
            ],
        ]
    ), (0, 2, 3)


def onnx_student(path, card, classes=10):
    """A smallest network as ONNX: the mean over the image, then a linear layer; the card as it is given."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((3, classes), np.float32), "weight"),
        numpy_helper.from_array(np.arange(classes, dtype=np.float32), "bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = "atsc_plugin.card", card
    path.write_bytes(model.SerializeToString())


def some_onnx(place, draw):
    text = text_of(draw, card_of())
    onnx_student(place / "s.onnx", text, draw.choice([10, 10, 10, 3]))
    if draw.random() < 0.2:
        (place / "s.onnx").write_bytes(mangled(draw, (place / "s.onnx").read_bytes()))
    Image.new("RGB", (32, 32)).save(place / "good.png")
    return ["predict", str(place / "good.png"), "--model", str(place / "s.onnx")], (0, 2)


def some_override(place, draw):
    key = draw.choice(
        [
            "DATASET.IMAGE_SIZE",
            "DATASET.DIGITS100.TRAIN_IMAGES",
            "DATASET.PADDING",
            "SOLVER.BATCH_SIZE",
            "DATASET.NUM_WORKERS",
            "EXPERIMENT.SEED",
            "DATASET.TEST.BATCH_SIZE",
            "DATASET.ROOT",
            "LOG.PREFIX",
            "EXPERIMENT.NAME",
            "DATASET.MEAN",
            "SOLVER.EPOCHS",
            "TEACHER.EPOCHS",
            "DISTILLER.TEACHER_CKPT",
        ]
    )
    word = draw.choice(
        [
            "1000000",
            "1000000000000",
            "9" * 30,
            "9" * 5000,
            "-1",
            "nan",
            "1e400",
            "[" * 500,
            "\udcff",
            ESCAPE,
            "~nobody_here/x",
            "/dev/zero",
            "a" * 300,
            "[" + "1.0," * 5000 + "]",
        ]
    )
    small = [str(part) for pair in SMALL.items() for part in pair if pair[0] != key]
    return ["train", "--cfg", "configs/quickstart/kd.yaml", "--dry-run", *small, key, word], (0, 2)


KINDS = [
    some_picture,
    some_folder,
    some_card,
    some_tensors,
    some_npz,
    some_run_file,
    some_yaml,
    some_checkpoint,
    some_onnx,
    some_override,
]


def case(seed, place):
    """(command line, statuses that are right) of one hostile file, written below `place`."""
    draw = random.Random(seed)
    words, allowed = KINDS[seed % len(KINDS)](place, draw)
    return [
        *words,
        *(["LOG.PREFIX", str(place / "output")] if words[0] == "train" and "LOG.PREFIX" not in words else []),
    ], allowed
