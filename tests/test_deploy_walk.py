"""docs/deploy.md: the commands of its walk are run word for word, in its order, in one process on tiny data."""

import json
import re
import shlex
from pathlib import Path

import yaml

from atsc_plugin.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def run_blocks(page):
    """Run the marked blocks as a shell does: assignments, tools/COMMAND.py by `main`, and python's here-documents."""
    variables = {}
    for block in re.findall(r"<!-- walk -->\n```bash\n(.*?)```", page, flags=re.S):
        if here_document := re.fullmatch(r"python - <<'END'\n(.*)END\n", block, flags=re.S):
            exec(compile(here_document[1], "docs/deploy.md", "exec"), {"__name__": "__main__"})
            continue
        for line in block.splitlines():
            words = [word.replace("$RUN", variables.get("RUN", "$RUN")) for word in shlex.split(line)]
            if assigned := re.fullmatch(r"([A-Z]+)=(\S+)", line):
                variables[assigned[1]] = assigned[2]
                continue
            assert words[0] == "python"
            assert (ROOT / words[1]).is_file()
            assert main([Path(words[1]).stem, *words[2:]]) == 0, line


def small_quickstart(place):
    """configs/quickstart/simkd.yaml with tiny networks, fewer images and epochs, where the page looks for it."""
    content = yaml.safe_load((ROOT / "configs/quickstart/simkd.yaml").read_text())
    content["DATASET"]["DIGITS100"] = {"TRAIN_IMAGES": 100, "VAL_IMAGES": 100, "TEST_IMAGES": 100}
    content["DISTILLER"] |= {"TEACHER": "tiny_teacher", "STUDENT": "tiny"}
    content["SOLVER"]["EPOCHS"] = content["TEACHER"]["EPOCHS"] = 1
    path = place / "configs" / "quickstart" / "simkd.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content))


def test_the_walk_of_the_page_runs_from_training_to_prediction_and_a_chain(here, tiny_networks, capsys):
    small_quickstart(here)
    run_blocks((ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert "100 of 100 top-1 equal" in printed
    by_file = dict(re.findall(r"^pictures/(\d\d)\.png: (\d\d) ", printed, flags=re.M))
    assert sorted(by_file) == ["07", "42", "99"]
    by_run = json.loads(printed[printed.index('{\n "model"') :].partition("\n}")[0] + "\n}")
    assert by_run["images"][0]["top"][0]["name"] == by_file["42"]
    assert "torch.Size([1, 100])" in printed
    result = json.loads((here / "output/quickstart/chain/seed_1/result.json").read_text())
    assert (result["teacher"], result["student"]) == ("tiny", "tiny")
