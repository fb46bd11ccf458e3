"""The page and the plots: one file, nothing fetched, every name escaped; rendered where there is a Chromium."""

import builtins
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from run_folders import make_run

from atsc_plugin import report
from atsc_plugin.__main__ import main
from atsc_plugin.report import layout, plots

HOSTILE = "<script>alert('x')</script>&\"'$_"
VOID = {"meta", "link", "br", "img", "input", "use", "path", "rect"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Open tags, links, texts; a tag closed out of order fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.texts, self.scripts, self.ids = [], [], [], 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "xlink:href", "action") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        assert not any(name.startswith("on") for name in attrs), attrs
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def runs(tmp_path):
    """Three arms with three seeds, one of them named by somebody who means harm."""
    for seed in (1, 2, 3):
        log = [{"epoch": e, "top1": 10.0 * e + seed, "teacher_top1": 80.0 - e, "drift": 0.1 * e} for e in (1, 2, 3)]
        make_run(tmp_path / "runs", "low", seed, 30.0 + seed, "NONE", log=log[:2], job={"suite": "s", "arm": "low"})
        job = {"suite": "s", "arm": HOSTILE, "notes": [HOSTILE], "cfg": HOSTILE, "trials": 0}
        make_run(tmp_path / "runs", "high", seed, 90.0 + seed, "ATSC", log=log, job=job, host=HOSTILE)
        make_run(tmp_path / "runs", "middle", seed, 60.0 + seed, "KD", job={"suite": "s", "arm": "middle"})
    return tmp_path / "runs"


def test_the_page_is_whole_fetches_nothing_and_escapes_every_name(runs, tmp_path):
    assert main(["report", str(runs), "--out", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "leaderboard.html").read_text()
    read = Reader(text)
    assert read.scripts == 1  # the page's own; the name's stayed text
    assert any(HOSTILE in part for part in read.texts)
    assert len(read.ids) == len(set(read.ids))
    for address in read.addresses:
        assert address.startswith(("../runs/", "#")), address
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    for address in {one for one in read.addresses if one.startswith("..")}:
        assert (tmp_path / "page" / address).exists(), address


def test_every_row_links_to_its_log_and_config_and_says_how_to_run_it_again(runs, tmp_path, without_plots):
    report.write([runs], tmp_path / "page")
    text = (tmp_path / "page" / "leaderboard.html").read_text()
    for seed in (1, 2, 3):
        assert f'seed {seed}: <a href="../runs/low/seed_{seed}/log.jsonl">log</a>' in text
        assert f'<a href="../runs/middle/seed_{seed}/cfg.yaml">config</a>' in text
    assert "LOG.PREFIX again EXPERIMENT.NAME low EXPERIMENT.SEED 1" in text
    assert set(re.findall(r'<a href="#(.*?)"', text)) == set(re.findall(r'<span id="(.*?)"', text))


def test_without_matplotlib_the_tables_come_and_say_how_to_get_plots(runs, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main(["report", str(runs), "--out", str(tmp_path / "page")]) == 0
    assert 'pip install "atsc_plugin[plots]"' in capsys.readouterr().out
    assert 'pip install "atsc_plugin[plots]"' in " ".join(
        Reader((tmp_path / "page/leaderboard.html").read_text()).texts
    )
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {"leaderboard.html", "leaderboard.md", "leaderboard.csv"}


@pytest.mark.skipif(not plots.available(), reason="no matplotlib here")
class TestPlots:
    def test_there_is_a_plot_of_everything_that_was_logged_and_of_nothing_else(self, runs):
        (table,) = report.compared([runs])[0]
        drawn = dict(plots.draw(table))
        assert list(drawn) == ["Accuracy over epochs", "Accuracy against training time",
                               "Teacher's accuracy over epochs", "Teacher's drift over epochs"]  # fmt: skip
        for svg in drawn.values():
            assert "currentColor" in svg  # axes and words follow the page's colour
            assert plots.INK not in svg
        (other,) = report.compared([runs / "middle"])[0]
        assert [title for title, _ in plots.draw(other)] == ["Accuracy against training time"]  # it logged no epoch

    def test_the_picture_has_every_colour_of_its_curves(self, runs):
        """A palette too small made two arms of one colour."""
        from PIL import Image

        picture = Image.open(io.BytesIO(plots.picture(layout.sections(report.compared([runs])[0])))).convert("RGB")
        seen = {colour for _, colour in picture.getcolors(256)}
        for wanted in plots.COLOURS[:3]:
            red, green, blue = (int(wanted[k : k + 2], 16) for k in (1, 3, 5))
            assert any(abs(r - red) + abs(g - green) + abs(b - blue) < 12 for r, g, b in seen), wanted

    def test_several_teachers_have_no_line_of_their_accuracy(self, tmp_path):
        two = {"teacher": ["resnet20"] * 2, "teacher_top1_before": [93.0, 88.0], "teacher_top1_after": [91.0, 80.0]}
        make_run(tmp_path, "two", 1, 70.0, "ATSC_MULTI", **two)
        ((_, svg),) = plots.draw(report.compared([tmp_path])[0][0])
        assert "the teacher, before" not in svg
        make_run(tmp_path, "one", 1, 70.0)
        make_run(tmp_path, "other", 1, 71.0)
        drawn = dict(plots.draw(report.compared([tmp_path])[0][0]))
        assert "the teacher, before" in drawn["Accuracy against training time"]

    def test_tables_stand_one_above_the_other_whatever_each_of_them_logged(self, runs):
        from PIL import Image

        parts = layout.sections([*report.compared([runs])[0], *report.compared([runs / "middle"])[0]])
        sizes = [Image.open(io.BytesIO(plots.picture(part))).size for part in (parts, parts[:1], parts[1:])]
        (width, height), (left, first), (right, second) = sizes
        assert width == max(left, right)  # the second table has one panel
        assert second < height < first + second  # two panels of the first table's four, and titles

    @pytest.mark.parametrize("label", ["kd", "simkd_after_trunk_ce_slow_feat_10", "m" * 60])
    def test_the_legend_stays_inside_the_picture_however_long_the_names(self, label):
        def fill(axes):
            for height in range(5):
                axes.plot([1, 2], [height, height], label=plots._plain(label))

        figure = plots._figure([("title", fill)])
        figure.draw_without_rendering()
        box = figure.legends[-1].get_window_extent()
        assert (len(figure.legends), 0 <= box.x0 <= box.x1 <= figure.bbox.width) == (1, True)
        assert box.y1 < figure.axes[0].get_window_extent().y0  # below the axes

    def test_a_record_has_a_picture_for_its_page(self, runs, tmp_path):
        record = tmp_path / "record"
        assert main(["report", str(runs), "--record", str(record)]) == 0
        assert (record / "figures.png").is_file() and "figures.png" in (record / "README.md").read_text()
        assert main(["report", "--record", str(record), "--check"]) == 0

    def test_the_names_of_crowded_points_do_not_touch(self):
        def fill(axes):
            axes.plot([1.0, 2.0], [80.0, 84.0])
            points = [(1.4 + 0.05 * k, 82 + 0.01 * k, f"method number {k}", plots.INK) for k in range(6)]
            plots._name(axes, [*points, (-math.inf, 82.0, "a line", plots.INK)])

        figure = plots._figure([("title", fill)])
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) >= 6  # a name without a place beside its point stands in the legend alone
        assert not [one for k, one in enumerate(boxes) for other in boxes[:k] if one.overlaps(other)]

    def test_a_band_is_mean_and_spread_over_the_seeds_that_reached_the_epoch(self, runs):
        (table,) = report.compared([runs])[0]
        points = plots.by_epoch(next(row for row in table.rows if row.any("method") == "ATSC"), "top1")
        assert points == {1: [11.0, 12.0, 13.0], 2: [21.0, 22.0, 23.0], 3: [31.0, 32.0, 33.0]}

    def test_several_teachers_are_drawn_as_their_mean(self):
        lines = [{"epoch": 1, "t1_drift": 0.1, "t2_drift": 0.3, "t1_drift_conv1": 9.0}, {"epoch": 2, "drift": 0.5}]
        row = SimpleNamespace(runs=[SimpleNamespace(log=lines)])
        assert plots.by_epoch(row, "drift") == {1: [pytest.approx(0.2)], 2: [0.5]}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_chromium_it_renders_fits_the_window_and_sorts(runs, tmp_path):
    assert main(["report", str(runs), "--out", str(tmp_path / "page")]) == 0
    whole = (tmp_path / "page" / "leaderboard.html").read_text()
    probe = (
        "<script>document.querySelectorAll('table')[0].querySelectorAll('th button')[2].click();"
        "document.title = `${document.documentElement.scrollWidth <= innerWidth} ${typeof alerted}`</script></body>"
    )
    (tmp_path / "page" / "probe.html").write_text(whole.replace("</body>", probe))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page" / "probe.html").as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "<title>true undefined</title>" in done.stdout, done.stderr[-500:]
    body = done.stdout.partition("<tbody>")[2].partition("</tbody>")[0]
    order = [re.sub("<.*?>", "", row).strip() for row in re.findall(r"<tr>(<td.*?</td>)", body)]
    assert order[0].startswith("&lt;script&gt;")  # 92, 62, 32: highest first
    assert order[1:] == ["middle", "low"]
