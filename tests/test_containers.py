"""CIFAR-100 out of every container: the same images, labels, identity and batches; what is wrong with one is told."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar100_files import CONTAINERS, class_folders, encoded, made, npz, packed_npz, pickles, python2_pickle, write
from torchvision.datasets import CIFAR100
from torchvision.transforms import functional as tv

import atsc_plugin
from atsc_plugin import build, host
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.data import containers
from atsc_plugin.data.containers import CLASS_NAMES, find_cifar100, read_cifar100
from atsc_plugin.errors import PluginError

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cifar100" / "vanilla.yaml"
SMALL = ["SOLVER.BATCH_SIZE", "8", "SOLVER.EPOCHS", "1", "DISTILLER.STUDENT", "resnet8", "DATASET.NUM_WORKERS", "0"]


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch):
    atsc_plugin.register()
    monkeypatch.chdir(tmp_path)


def needs(kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")


def data(root, *more):
    cfg = load_cfg(CONFIG, ["DATASET.ROOT", str(root), *SMALL, *more])
    return build.data_of(cfg, torch.device("cpu"))


def batches(loader):
    torch.manual_seed(4)  # for loaders of the host's, which draw globally
    return list(loader)


def equal(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_images_and_labels_that_were_written(tmp_path, kind):
    needs(kind)
    container = find_cifar100(write(kind, tmp_path / "c"))
    assert container.kind == kind
    for split, (images, labels) in read_cifar100(container).items():
        assert np.array_equal(images, made()[split][0])
        assert np.array_equal(labels, made()[split][1])
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("kind", CONTAINERS[1:])
@pytest.mark.parametrize("loader", ["auto", "host"])
def test_batches_statistics_and_identity_are_those_of_the_pickles(tmp_path, kind, loader):
    needs(kind)
    more = ["DATASET.LOADER", loader]
    first, second = (data(write(k, tmp_path / k), *more) for k in ("pickles", kind))
    assert equal(batches(first.train), batches(second.train))
    assert equal(batches(first.test), batches(second.test))
    assert first.facts() == second.facts()
    assert (first.identity, first.test_identity) == (second.identity, second.test_identity)
    assert first.source != second.source


def test_a_batch_is_mdistillers_transforms_of_the_files_pixels_for_the_same_draws(tmp_path):
    loader = data(write("packed npz", tmp_path)).train
    order, (tops, lefts), flips = loader._drawn(0)
    image, target, index = next(iter(loader))
    for row, number in enumerate(index.tolist()):
        pixels, label = made()["train"][0][number], made()["train"][1][number]
        picture = tv.crop(tv.pad(tv.to_pil_image(pixels), [4]), int(tops[row]), int(lefts[row]), 32, 32)
        picture = tv.hflip(picture) if flips[row] else picture
        expected = tv.normalize(tv.to_tensor(picture), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
        assert torch.equal(image[row], expected)
        assert (int(target[row]), number) == (label, int(order[row]))


def test_torchvision_reads_the_same_from_the_pickles(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    root = write("pickles", tmp_path)
    ours = read_cifar100(find_cifar100(root))
    for split in ("train", "test"):
        theirs = CIFAR100(root, train=split == "train")
        assert np.array_equal(theirs.data, ours[split][0])
        assert theirs.targets == ours[split][1].tolist()
    assert hasattr(CIFAR100(root), "meta")  # torchvision's own __init__ is back in its place


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_every_protocol_and_of_python_2_are_read(tmp_path, protocol):
    pickles(tmp_path, made(), list(CLASS_NAMES), protocol)
    images, labels = made()["test"]
    (tmp_path / "cifar-100-python" / "test").write_bytes(python2_pickle(images, labels))
    read = read_cifar100(find_cifar100(tmp_path / "cifar-100-python"))
    assert all(np.array_equal(read[split][i], made()[split][i]) for split in read for i in (0, 1))


class Runs:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("split", ["train", "meta"])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(tmp_path, split):
    write("pickles", tmp_path)
    (tmp_path / "cifar-100-python" / split).write_bytes(pickle.dumps({"data": Runs(), "fine_label_names": Runs()}))
    with pytest.raises(PluginError, match="it asks for (posix|nt).system, which is neither a number nor an array"):
        read_cifar100(find_cifar100(tmp_path))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x80\x02}", pickle.dumps([1]), pickle.dumps({"data": 3}), pickle.dumps({"fine_labels": []}),
     pickle.dumps({"data": np.zeros((2, 5), np.uint8), "fine_labels": [1, 2]}),
     pickle.dumps({"data": np.zeros((2, 3072)), "fine_labels": [1, 2]}),
     pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 10**30]}),
     pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1]}),
     b"cnumpy\nndarray\n(I9000000000000000\ntR.",
     b"\x80\x02}r\xff\xff\xff\x7f.",  # place 2 ** 31 - 1 of the memo: 32 GiB
     b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00."],  # a bytearray of 1 TiB
)  # fmt: skip
def test_a_damaged_pickle_is_told(tmp_path, content):
    write("pickles", tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    with pytest.raises(PluginError, match="expected|again"):
        read_cifar100(find_cifar100(tmp_path))


def test_labels_are_cifar100s_whatever_order_the_container_names_its_classes_in(tmp_path):
    assert tuple(sorted(CLASS_NAMES)) == CLASS_NAMES
    assert (len(set(CLASS_NAMES)), CLASS_NAMES[8], CLASS_NAMES[-1]) == (100, "bicycle", "worm")
    names = ["worm", "Aquarium Fish", "bicycle"]  # labels 99, 1 and 8
    splits = made(classes=(0, 1, 2))
    expected = np.array([99, 1, 8])[splits["train"][1]]
    for kind in ("npz", "packed npz"):
        read = read_cifar100(find_cifar100(write(kind, tmp_path / kind, splits, names)))
        assert np.array_equal(read["train"][1], expected)
    folders = read_cifar100(find_cifar100(class_folders(tmp_path / "f", splits, ["wolf", "baby", "man"])))
    assert folders["train"][1].tolist() == sorted([97, 2, 46] * 4)  # class after class


@pytest.mark.parametrize("kind", ["npz", "class folders"])
def test_classes_that_are_not_cifar100s_are_refused_by_name(tmp_path, kind):
    root = write(kind, tmp_path, made(classes=(0, 1)), ["worm", "\x1b[31mcat"])
    with pytest.raises(PluginError, match=r"1 class names that are not CIFAR-100's \('\\+x1b\[31mcat'\)"):
        data(root)


def wrong_npz(**changes):
    return lambda folder: npz(folder, made(), list(CLASS_NAMES), **changes)


def wrong_pack(**changes):
    return lambda folder: packed_npz(folder, made(), list(CLASS_NAMES), **changes)


PICTURE = encoded(np.zeros((32, 32, 3), np.uint8), "WEBP")


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (wrong_npz(train_images=np.zeros((3, 16, 16, 3), np.uint8), train_labels=np.zeros(3, int)), "N x 32 x 32 x 3"),
        (wrong_npz(train_labels=np.full(12, 100)), "labels run from 100 to 100; expected 0 to 99"),
        (wrong_npz(train_labels=np.full(12, 2**63, np.uint64)), "9223372036854775808"),
        (wrong_npz(val_images=made()["test"][0], val_labels=made()["test"][1]), "also has val"),
        (wrong_pack(train_blob=np.zeros(9, np.uint8)), "do not cut the blob"),
        (wrong_pack(train_offsets=np.array([0, 5, 3])), "do not cut the blob"),
        (wrong_pack(train_offsets=np.array(3)), "do not cut the blob"),
        (wrong_pack(train_labels=np.zeros(11, int)), "picture 2 cannot be used .32x128 pixels after 8 of 11 images"),
        (wrong_pack(train_labels=np.zeros(13, int)), "12 images, but 13 labels"),
        (wrong_pack(train_labels=np.zeros(0, int)), "0 labels; expected 1 to 100,000"),
        (wrong_pack(train_labels=np.zeros(12)), "labels are float64"),
        (wrong_pack(train_blob=np.frombuffer(b"no picture", np.uint8), train_offsets=np.array([0, 10])), "picture 0"),
        (wrong_pack(train_blob=np.frombuffer(encoded(np.zeros((32, 32, 3), np.uint8), "PNG"), np.uint8),
                    train_offsets=np.array([0, 60])), "expected WEBP"),
        (wrong_pack(class_names=np.array("apple")), "1 to 99|0 to 0"),
    ],
)  # fmt: skip
def test_a_wrong_npz_is_told(tmp_path, writer, message):
    with pytest.raises(PluginError, match=message):
        read_cifar100(find_cifar100(writer(tmp_path)))


def test_a_damaged_pack_is_told(tmp_path):
    path = packed_npz(tmp_path, made(), list(CLASS_NAMES))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(PluginError, match="cannot be read as .npz"):
        read_cifar100(find_cifar100(path))


@pytest.mark.parametrize("damage", ["text", "other columns", "no test", "a label is missing", "no picture"])
def test_a_wrong_parquet_is_told(tmp_path, damage):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write("parquet", tmp_path)
    train = tmp_path / "train-00000-of-00002.parquet"
    table = parquet.read_table(train)
    if damage == "text":
        train.write_text("hello")
    elif damage == "no test":
        for path in tmp_path.glob("test*"):
            path.unlink()
    else:
        name = {"other columns": "img", "a label is missing": "fine_label", "no picture": "img"}[damage]
        column = pyarrow.array([None] * len(table), table.schema.field(name).type)
        label = "picture" if damage == "other columns" else name
        table = table.set_column(table.schema.get_field_index(name), label, column)
        parquet.write_table(table, train)
    with pytest.raises(PluginError, match="parquet|picture 0|labels are object"):
        read_cifar100(find_cifar100(tmp_path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    needs("parquet")
    root = write("parquet", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PluginError, match=r'pip install "atsc_plugin\[parquet\]"'):
        data(root)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_split_larger_than_any_cifar100_is_refused(tmp_path, monkeypatch, kind):
    needs(kind)
    monkeypatch.setattr(containers, "MOST", 11)
    with pytest.raises(PluginError, match="expected (1 to 11|uint8 N x 32 x 32 x 3, N from 1 to 11)"):
        read_cifar100(find_cifar100(write(kind, tmp_path)))


def test_an_array_that_claims_petabytes_is_refused(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000000,), }"
    header = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    with zipfile.ZipFile(tmp_path / "cifar100.npz", "w") as archive:
        for name in ("train_blob", "train_offsets", "train_labels", "test_blob", "test_offsets", "test_labels"):
            archive.writestr(f"{name}.npy", header)
    with pytest.raises(PluginError, match="cannot be read as .npz"):
        read_cifar100(find_cifar100(tmp_path))


def test_a_file_or_folder_that_holds_none_is_told(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"archive")
    assert find_cifar100(tmp_path) is None
    with pytest.raises(PluginError, match="Unpack an archive and name its folder"):
        data(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(PluginError, match="there is no file .*absent.npz. Name another one with DATASET.ROOT"):
        data(tmp_path / "absent.npz")
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(
        PluginError,
        match=r"CIFAR-100 is not here: looked for .*cifar-100-python.\nIn \S+ unpack cifar-100-python.tar.gz",
    ):
        data(tmp_path)


def test_the_validation_split_is_not_part_of_the_identity(tmp_path):
    root = write("npz", tmp_path)
    whole, cut = data(root), data(root, "DATASET.VAL_SPLIT", "0.25")
    assert cut.identity.startswith("cifar100-9-")
    assert (cut.train_images, len(cut.val.labels)) == (9, 3)
    assert cut.test_identity == whole.test_identity
    assert whole.identity.startswith("cifar100-12-")


def test_one_other_pixel_label_or_order_is_another_identity(tmp_path):
    splits = made()
    identities = {data(write("npz", tmp_path / "a", splits)).identity}
    images, labels = splits["train"]
    other = images.copy()
    other[3, 4, 5, 1] ^= 1
    for number, pair in enumerate([(other, labels), (images, labels[::-1]), (images[::-1], labels)]):
        identities.add(data(write("npz", tmp_path / str(number), {**splits, "train": pair})).identity)
    assert len(identities) == 4


def test_a_run_on_an_npz_records_the_hash_of_its_images(tmp_path, capsys):
    root = write("packed npz", tmp_path / "data")
    assert main(["doctor", "--cfg", str(CONFIG), "DATASET.ROOT", str(root)]) == 0
    assert f"from packed npz {root}" in capsys.readouterr().out
    assert main(["train", "--cfg", str(CONFIG), "DATASET.ROOT", str(root), *SMALL]) == 0
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    loaded = data(root)
    assert (result["data"], result["test_data"]) == (loaded.identity, loaded.test_identity)
    assert loaded.identity.startswith("cifar100-12-")


def test_doctor_says_which_container_lies_in_the_hosts_data_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "data_root", lambda root="": tmp_path / "data")
    assert main(["doctor"]) == 0
    assert f"cifar100: not found at {tmp_path / 'data' / 'cifar-100-python'}" in capsys.readouterr().out
    path = write("npz", tmp_path / "data")
    assert main(["doctor"]) == 0
    assert f"cifar100: found: npz {path}" in capsys.readouterr().out


@pytest.mark.skipif("MDISTILLER_PATH" not in os.environ, reason="MDISTILLER_PATH names no checkout of mdistiller")
def test_the_real_mdistiller_builds_its_own_data_sets_around_the_images(tmp_path):
    root = write("packed npz", tmp_path, made(train=200, classes=range(100)))
    code = (
        "import sys, torch, atsc_plugin; from atsc_plugin import build, host; from atsc_plugin.config import load_cfg\n"
        "assert host.NAME == 'mdistiller'; atsc_plugin.register(); device = torch.device('cpu')\n"
        "common = ['DATASET.ROOT', sys.argv[2], 'SOLVER.BATCH_SIZE', '8', 'DATASET.NUM_WORKERS', '0']\n"
        "data = build.data_of(load_cfg(sys.argv[1], common), device)\n"
        "print(data.identity, type(data.train).__name__, len(next(iter(data.train))))\n"
        "data = build.data_of(load_cfg(sys.argv[1], [*common, 'DISTILLER.TYPE', 'CRD', 'CRD.NCE.K', '5',\n"
        "    'DISTILLER.TEACHER', 'resnet20']), device)\n"
        "images, labels, index, contrast = next(iter(data.train))\n"
        "print(data.identity, type(data.train).__name__, tuple(contrast.shape))\n"
    )
    paths = os.pathsep.join([str(Path(atsc_plugin.__file__).parents[1]), os.environ["MDISTILLER_PATH"]])
    env = {**os.environ, "PYTHONPATH": paths, "ATSC_HOST": "mdistiller"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(CONFIG), str(root)], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    identity = data(root).identity
    assert first == f"{identity} DeviceLoader 3"
    assert second == f"{identity} WorkerLoader (8, 6)"
