"""Install atsc_plugin: `pip install -e .` for the plugin, `pip install -e ".[test]"` for the plugin and its tests."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "atsc_plugin" / "__init__.py").read_text()).group(1)

EXPORT = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"]  # ONNX files: written by the first two, run by the last

setup(
    name="atsc_plugin",
    version=VERSION,
    description="Adaptive-teacher distillation for mdistiller: methods, trainer and commands registered from outside",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[*find_packages(include=["atsc_plugin", "atsc_plugin.*"]), "atsc_plugin.configs"],
    package_dir={"atsc_plugin.configs": "configs"},  # a wheel carries the configuration files inside the package
    package_data={
        "atsc_plugin.configs": ["**/*.yaml"],
        "atsc_plugin.report": ["*.csv", "*.css", "*.js"],
        "atsc_plugin.quickstart": ["teacher.safetensors", "teacher.json"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.9",  # exports a map that is read by a hook
        "torchvision>=0.24",  # CIFAR-100 reader and the host's transforms
        "yacs>=0.1.8",  # the host's config tree
        "tensorboardX>=2.6",  # the host's event files
        "numpy>=2.0",  # reads checkpoints with the numbers of either generation
        "scipy>=1.13",  # t-tests with confidence_interval in report; mdistiller's OFD imports it without naming it
        "scikit-learn>=1.5",  # the handwritten digits inside digits100
        "filelock>=4.0",  # one process a run directory, a cached teacher, a suite; a forked worker keeps no lock
        "safetensors>=0.4",  # deployed students: a format that cannot run code
        "tqdm>=4.60",
        "pyyaml>=6.0",
    ],
    extras_require={
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",  # -n auto: one process a core
            "ruff>=0.6",
            "mypy>=1.10",
            "pre-commit>=3.5",
            "hypothesis>=6.100",
            "setuptools>=70.1",
            "pyarrow>=15",
            "matplotlib>=3.8",  # examples/quickstart.py
            "timm>=1.0",
            "accelerate>=1.0",  # examples/*_loop.py: 5 MB beside what timm brings, and 30
            "lightning>=2.4",
            *EXPORT,
        ],
        "export": EXPORT,
        "timm": ["timm>=1.0"],  # networks "timm/NAME"
        "plots": ["matplotlib>=3.8"],  # the curves of `report --out`
        "parquet": ["pyarrow>=15"],  # CIFAR-100 as Hugging Face has it
        "examples": ["accelerate>=1.0", "lightning>=2.4"],  # examples/*_loop.py; Lightning brings 30 MB
        "slurm": ["submitit>=1.5"],  # `leaderboard --launcher submitit`
    },
    entry_points={"console_scripts": ["atsc-plugin = atsc_plugin.__main__:main"]},
)
