"""docs/tutorial.md: its commands are run word for word, in its order, in one process on tiny networks."""

import json
import re
import shlex
from pathlib import Path

from atsc_plugin.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"


def run_blocks(page):
    """Run the marked blocks as a shell does: assignments, tools/COMMAND.py by `main`, and python's here-documents."""
    variables = {}
    for block in re.findall(r"<!-- walk -->\n```bash\n(.*?)```", page, flags=re.DOTALL):
        here_document = re.match(r"python - <<'END'\n(.*?)END\n", block, flags=re.DOTALL)
        if here_document:
            exec(compile(here_document[1], str(PAGE), "exec"), {"__name__": "__main__"})
        for line in block[here_document.end() if here_document else 0 :].splitlines():
            words = [word.replace("$RUN", variables.get("RUN", "$RUN")) for word in shlex.split(line)]
            if assigned := re.fullmatch(r"([A-Z]+)=(\S+)", line):
                variables[assigned[1]] = assigned[2]
                continue
            assert words[0] == "python"
            assert (ROOT / words[1]).is_file()
            assert main([Path(words[1]).stem, *words[2:]]) == 0, line


def small_recipes(place):
    """The page's configurations where it looks for them: one with tiny networks and one epoch, one of 64 pixels."""
    small = {
        "quickstart/simkd.yaml": [
            (r'"resnet20"', '"tiny_teacher"'),
            (r'"resnet8"', '"tiny"'),
            (r"EPOCHS: \d+", "EPOCHS: 1"),
        ],
        "folder/resnet50_mobilenetv3.yaml": [("IMAGE_SIZE: 224", "IMAGE_SIZE: 64")],
    }
    for name, changes in small.items():
        path = place / "configs" / name
        text = (ROOT / "configs" / name).read_text(encoding="utf-8")
        for old, new in changes:
            text = re.sub(old, new, text)
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")


def test_the_tutorial_runs_from_a_folder_of_pictures_to_an_onnx_file_and_a_chain(here, tiny_networks, capsys):
    small_recipes(here)
    run_blocks(PAGE.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert "256 of 256 top-1 equal" in printed
    by_file = json.loads(printed[printed.index('{\n "model"') :].partition("\n}")[0] + "\n}")
    assert len(by_file["images"]) == len(list(Path("pictures/test/digit_7").iterdir()))
    assert re.search(r"^class \d$", printed, re.MULTILINE)
    assert "torch.Size([1, 10])" in printed
    assert "student torchvision/mobilenet_v3_large" in re.sub(" +", " ", printed)
    result = json.loads((here / "output/quickstart/chain/seed_1/result.json").read_text())
    assert (result["teacher"], result["student"], result["classes"]) == ("tiny", "tiny", 10)
