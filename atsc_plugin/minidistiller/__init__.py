"""The embedded host: what the plugin runs on when mdistiller is not installed.

Module paths, model names, parameter names and numbers are those of mdistiller (github.com/megvii-research/mdistiller)
at commit a08d46f, so checkpoints move in both directions; the code is written here. It holds what the plugin needs
and no more: the networks and loaders of CIFAR-100, Tiny-ImageNet and ImageNet, Vanilla, KD, DKD and ReviewKD, the
config tree and a plain trainer. Nothing here knows the plugin but its errors; atsc_plugin.host is the only caller.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
# Where data/ and download_ckpts/ lie: in a checkout beside the package as mdistiller has them, else where one works.
HOME = _CHECKOUT if (_CHECKOUT / "setup.py").is_file() else Path.cwd()

__version__ = "embedded-a08d46f"
