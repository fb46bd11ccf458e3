"""docs/deploy.md: its commands are run in its order, as one shell script, on a smaller data set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def commands():
    """The marked blocks of the page, in order."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    return re.findall(r"<!-- walk -->\n```bash\n(.*?)```", page, flags=re.S)


def small_quickstart(place):
    """configs/quickstart/simkd.yaml with fewer images and epochs, where the page looks for it."""
    content = yaml.safe_load((ROOT / "configs/quickstart/simkd.yaml").read_text())
    content["DATASET"]["DIGITS100"] = {"TRAIN_IMAGES": 300, "VAL_IMAGES": 100, "TEST_IMAGES": 120}
    content["SOLVER"]["EPOCHS"] = content["TEACHER"]["EPOCHS"] = 1
    path = place / "configs" / "quickstart" / "simkd.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))


def test_the_walk_of_the_page_runs_from_training_to_prediction_and_a_chain(tmp_path):
    blocks = commands()
    assert len(blocks) >= 5
    small_quickstart(tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "ATSC_HOST": "embedded"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert "120 of 120 top-1 equal" in done.stdout
    by_file = dict(re.findall(r"^pictures/(\d\d)\.png: (\d\d) ", done.stdout, flags=re.M))
    assert sorted(by_file) == ["07", "42", "99"]
    by_run = json.loads(done.stdout[done.stdout.index('{\n "model"') :].partition("\n}")[0] + "\n}")
    assert by_run["images"][0]["top"][0]["name"] == by_file["42"]
    assert "torch.Size([1, 100])" in done.stdout
    result = json.loads((tmp_path / "output/quickstart/chain/seed_1/result.json").read_text())
    assert (result["teacher"], result["student"]) == ("resnet8", "resnet8")
