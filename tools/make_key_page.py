"""Write docs/configs.md from atsc_plugin/keys.py; --check only compares. usage: make_key_page.py [--check]"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PAGE = ROOT / "docs" / "configs.md"
HEAD = """# Writing a configuration

This page is written by `tools/make_key_page.py` from `atsc_plugin/keys.py`; a test keeps the two equal.

A configuration is a YAML file in mdistiller's style: upper-case groups, one screen, no inheritance. `train --cfg FILE
KEY VALUE ...` reads it over the host's defaults, then applies the overrides. The files also load by mdistiller's own
merge, which is strict about types: write `1.0` for a decimal key, never `1`; `1.0e-4`, never `1e-4` (YAML reads that
as text); switches are words such as `none` and `auto`, because YAML reads `on`, `off`, `yes` and `no` as booleans. On
the command line whole numbers are fine for decimal keys. Every mistake is told at once, before any work.

A pair of your own is three lines over an existing file:

```bash
python tools/train.py --cfg configs/cifar100/simkd/res32x4_res8x4.yaml DISTILLER.TEACHER wrn_40_2 DISTILLER.STUDENT vgg8
```

Your own images: `DATASET.TYPE npz` with `DATASET.ROOT file.npz` (arrays `train_images`, `train_labels`,
`test_images`, `test_labels`, optionally `val_*` and `class_names`; uint8 N x H x W x 3), or `DATASET.TYPE folder`
with `DATASET.ROOT dir` (`train/` and `val/` or `test/`, a folder a class). Without a teacher file add
`TEACHER.TRAIN_IF_MISSING True`.

CIFAR-100 (`DATASET.TYPE cifar100`): `DATASET.ROOT` is a file or folder with its images in any of these containers: the
original pickles (`cifar-100-python/`), `cifar100.npz` (arrays as above, or lossless WebP columns as `train_blob`,
`train_offsets`, `train_labels`), `train/` and `test/` with a folder a class, Hugging Face's `train*.parquet` and
`test*.parquet` (`pip install "atsc_plugin[parquet]"`). Images, normalisation and augmentation are the same for all;
`doctor --cfg FILE` and `train --dry-run` say which one is read. result.json has a hash of images, labels and order.

The files below `configs/cifar100`, `configs/imagenet` and `configs/tiny_imagenet` are written by
`tools/make_configs.py` from one table a data set. Keys of the host (SOLVER, KD, DKD, REVIEWKD, ...) are mdistiller's
and keep its defaults, but for LOG.WANDB, which is off on the embedded host.

## Our keys

`symbol` is the paper's or the released code's name where it has one.

"""


def text():
    """The whole page."""
    from atsc_plugin.keys import KEYS

    groups = {}
    for key in KEYS:
        groups.setdefault(key.name.split(".")[0], []).append(key)
    parts = [HEAD]
    for group, keys in groups.items():
        parts.append(f"### {group}\n\n| key | default | symbol | meaning |\n|---|---|---|---|\n")
        for key in keys:
            default = f"`{key.default!r}`".replace("'", '"')
            meaning = key.meaning.replace("|", "\\|")
            parts.append(f"| `{key.name}` | {default} | {key.symbol} | {meaning} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def main(check):
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text(), encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text():
        print("docs/configs.md differs from the keys; run tools/make_key_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
