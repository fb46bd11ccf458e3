"""examples/: the notebook is executed, on a few images and for one epoch."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.py"


def test_the_notebook_trains_every_method_and_draws_the_teachers_that_learn(here, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(here / "out"))
    text = NOTEBOOK.read_text(encoding="utf-8")
    for full, small in (("IMAGES, EPOCHS = 1000, 4", "IMAGES, EPOCHS = 100, 1"), ('IMAGES": 500', 'IMAGES": 100')):
        assert full in text
        text = text.replace(full, small)
    names = {"__name__": "__main__"}
    exec(compile(text, str(NOTEBOOK), "exec"), names)
    assert (here / "out" / "quickstart.png").stat().st_size > 10_000
    moved = {name: result["networks"][0]["moved"] for name, (result, _) in names["runs"].items() if result["networks"]}
    assert moved == {"KD": False, "SimKD": False, "ATSC": True, "ATSC as released": True}
    assert "SIMKD torch.Size([1, 100])" in capsys.readouterr().out
