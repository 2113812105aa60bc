"""The page of a run: what it shows, that it loads nothing, that texts stay texts, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE
from teenytinyllama.cli import main
from teenytinyllama.watching.curves import Curve, draw_panel, running_mean, shown, thin_points, ticks_between
from teenytinyllama.watching.run_report import draw_panels, read_facts

REPOSITORY = Path(__file__).resolve().parent.parent


def make_unfinished(folder: Path, steps: int = 300) -> Path:
    """What a run has on the disk while it trains."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        records.append({"step": step, "tokens": step * 1000, "loss": 2 + 7 / step, "train_bits_per_byte": 0.7 + 2 / step,
                        "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 100.0, "mfu": 0.4, "kwh": step / 1e4,
                        "projected_kwh": 0.05, "usd": None})  # fmt: skip
        if step % 100 == 0:
            records.append({"step": step, "tokens": step * 1000, "bits_per_byte": 0.8, "nats_per_token": 2.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + '{"step": 3')
    samples = [
        {"step": step, "prompt": "Era <i>uma</i> vez", "text": f"</pre><script>alert({step})</script> açaí"}
        for step in (0, 300)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    (folder / "bad_steps.jsonl").write_text('{"step": 150, "reason": "</title><b>x</b>"}\n')
    (folder / "config.yaml").write_text('preset: tiny\nmax_tokens: 600000\nlicense: "<img src=x>"\n')
    (folder / "environment.json").write_text(
        '{"identity": {"preset": "tiny"}, "device": "a GPU", "versions": {"torch": "2"}}'
    )
    return folder


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_of_a_run_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_unfinished(tmp_path / "run")
    assert main(["report", str(folder)]) == EXIT_DONE
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = page_of(folder)
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == len(draw_panels([], [])) + 7
    for text in ("300 of 600", "not complete", "steps left take about", "0:50:00", "0.03 of 0.05", "a GPU", "1 bad step,",
                 "loss (nats per token), after its first fall", "ttl report RUN --follow"):  # fmt: skip
        assert text in page.text, text
    assert not [attrs for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "refresh"]
    before = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == EXIT_DONE  # over its own page
    assert len((folder / "report.html").read_bytes()) == pytest.approx(len(before), rel=0.01)
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "samples.jsonl", "bad_steps.jsonl", "config.yaml",
                                                        "environment.json", "report.html"}  # fmt: skip


def test_the_page_loads_nothing_and_runs_no_text(tmp_path: Path) -> None:
    folder = make_unfinished(tmp_path / "run")
    main(["report", str(folder)])
    page = page_of(folder)
    names = {tag for tag, _ in page.tags}
    assert not names & {"img", "link", "iframe", "object", "embed", "form", "i>", "audio", "video", "base"}
    assert [tag for tag, _ in page.tags].count("script") == 2  # its readings and its own
    assert not [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "action")]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, which nobody opens
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert "</pre><script>alert(300)</script> açaí" in page.text  # as text
    assert "<img src=x>" in page.text


def test_the_page_of_a_complete_run_and_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from card_runs import RUN

    folder = make_unfinished(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps(RUN))
    assert main(["report", str(folder), "--follow"]) == EXIT_DONE  # there is nothing to wait for
    assert "is written every" not in capsys.readouterr().out
    page = page_of(folder)
    assert "complete (pretrain)" in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("http-equiv") == "refresh"]
    assert "steps left" not in page.text
    assert "num_parameters" in page.text


def test_follow_writes_until_the_run_is_complete(tmp_path: Path) -> None:
    folder = make_unfinished(tmp_path / "run")
    command = [sys.executable, "-m", "teenytinyllama", "report", str(folder), "--follow", "--every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as following:
        assert following.stdout is not None
        assert "is written every 1 s until the run is complete" in following.stdout.readline()
        _wait_for(folder / "report.html", 'http-equiv="refresh" content="1"')
        (folder / "run.json").write_text(json.dumps({"stage": "sft"}))
        assert following.wait(60) == EXIT_DONE
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "complete (sft)" in text
    assert "refresh" not in text.replace("reads the page again", "").partition("<style>")[0]


def test_an_interrupt_ends_the_following_and_not_more(tmp_path: Path) -> None:
    folder = make_unfinished(tmp_path / "run")
    command = [sys.executable, "-m", "teenytinyllama", "report", str(folder), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as following:  # fmt: skip
        _wait_for(folder / "report.html", "refresh")
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == EXIT_DONE
        assert following.stderr is not None
        assert following.stderr.read() == ""


def _wait_for(path: Path, text: str) -> None:
    for _ in range(600):
        if path.is_file() and text in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never said {text}")


def test_damaged_and_missing_records_leave_a_page(tmp_path: Path) -> None:
    folder = make_unfinished(tmp_path / "run", steps=5)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:3], '{"step": "x"}', "garbage", "[]", *lines[3:5], ""]))
    (folder / "samples.jsonl").write_text('{"step": 1}\n')
    (folder / "config.yaml").write_text("preset: [")
    (folder / "environment.json").write_text("{")
    facts = read_facts(folder)
    assert facts["remarks"][0] == "3 damaged lines of metrics.jsonl left out"
    assert facts["samples"] == []
    assert main(["report", str(folder)]) == EXIT_DONE
    for name in ("metrics.jsonl", "samples.jsonl", "config.yaml", "bad_steps.jsonl"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == EXIT_DONE
    assert "the first figures come with the first log line" in page_of(folder).text
    assert "No figures yet." in page_of(folder).text


def test_preferences_have_their_own_plots() -> None:
    records = [{"step": step, "tokens": step, "loss": 0.6, "margins": 0.1 * step, "accuracies": 0.7} for step in (1, 2)]
    records.append({"step": 2, "tokens": 2, "preference_loss": 0.5, "accuracy": 0.8, "margin": 0.2})
    panels = draw_panels(records, [])
    assert [panel.title for panel in panels] == [
        "loss (-log sigmoid of the margin)",
        "accuracy of preferences",
        "margin of preferences",
    ]
    assert [name for name, _ in panels[0].curves] == ["training", "held out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: ttl report: needs the run's folder."),
        (["nada"], "error: run=nada: no such folder. Give the output_dir of a training."),
        (["empty"], "error: run=empty: is no run, it has neither environment.json nor metrics.jsonl."),
        (["packed"], "error: run=packed: was made by 'pack', which trains nothing."),
        (["run", "--every", "0"], "error: every=0.0: must be from 1 to 86400 seconds, such as 15."),
        (["run", "--output_file", "empty"], "error: output_file=empty: is a folder. Name a file in it, such as report.html."),
        (["run", "--output_file", "mine.html"], "error: output_file=mine.html: exists and is no page of ours. Name another file."),
        (["run", "--output_file", "mine.html/x.html"], "error: output_file="),
        (["run", "--output_file", "/proc/nada/x.html"], "error: output_file="),
    ],
)  # fmt: skip
def test_refusals(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_unfinished(tmp_path / "run", steps=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "run.json").write_text('{"stage": "pack"}')
    (tmp_path / "mine.html").write_text("<html>mine")
    assert main(["report", *words]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.startswith(message)
    assert (tmp_path / "mine.html").read_text() == "<html>mine"
    assert not (tmp_path / "run" / "report.html").exists()


def test_thinning_keeps_spikes_and_the_newest_point() -> None:
    points = [(float(place), 9.0 if place == 4321 else 1.0 + place / 1e6) for place in range(10_000)]
    points[-1] = (9999.0, 1.0099)  # neither the lowest nor the highest of its part
    kept = thin_points(points, 100)
    assert len(kept) <= 100
    assert (4321.0, 9.0) in kept
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)
    assert thin_points(points[:50], 100) == points[:50]


def test_ticks_are_round() -> None:
    assert ticks_between(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks_between(0.12, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert ticks_between(3, 3) == [3]
    assert [shown(value) for value in (0, 1234, 2.5e6, 3.28e9, 1e-05, 0.4567891)] == [
        "0",
        "1.234k",
        "2.5M",
        "3.28G",
        "1e-05",
        "0.4568",
    ]


def test_axes_and_smoothing() -> None:
    wide = [(1.0, 0.01), (2.0, 1.0), (3.0, 100.0)]
    drawn = draw_panel("norm", [Curve("a", tuple(wide))], can_be_log=True)
    assert drawn is not None
    assert drawn.title == "norm (logarithmic)"
    labels = [shape["text"] for shape in drawn.shapes if shape["tag"] == "text"]
    assert {"0.01", "1", "100"} <= set(labels)
    assert draw_panel("nothing", [Curve("a", ())]) is None
    alone = draw_panel("one", [Curve("a", ((5.0, 2.0),))])  # one point is a dot
    assert alone is not None
    assert [shape["tag"] for shape in alone.shapes].count("circle") == 1
    flat = draw_panel("flat", [Curve("a", ((0.0, 0.0), (1.0, 0.0)))])
    assert flat is not None
    assert running_mean([(float(place), float(place % 2)) for place in range(10)]) == ()
    smooth = running_mean([(float(place), float(place % 2)) for place in range(1000)])
    assert all(value == pytest.approx(0.5, abs=0.03) for _, value in smooth)


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, tmp_path: Path) -> None:
    folder = make_unfinished(tmp_path / "run")
    main(["report", str(folder)])
    for width, scheme, colour in ((1200, "light", "rgb(255, 255, 255)"), (360, "dark", "rgb(20, 22, 26)")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((folder / "report.html").as_uri())
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.hover("figure[data-panel='0'] svg", position={"x": 150, "y": 50})
        assert " at " in page.inner_text("figure[data-panel='0'] .key")
        assert said == []
        assert asked == [(folder / "report.html").as_uri()]
        page.close()


def test_both_shares_of_the_peak_are_drawn_by_their_names() -> None:
    records = [
        {"step": step, "tokens": step, "loss": 1.0, "mfu": 0.52, "mfu_matrix_products": 0.455} for step in (1, 2)
    ]
    (panel,) = [panel for panel in draw_panels(records, []) if panel.title == "MFU (%)"]
    assert [name for name, _ in panel.curves] == ["6N+12LhT", "matrix products alone"]
    assert panel.last == ("52", "45.5")
