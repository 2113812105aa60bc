"""`ttl card --check`: numbers and metadata of a card against the run's files, whatever happened to its prose."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from card_runs import EVALUATIONS, RUN, changed, evaluation, write_rows, write_run, write_whole_run

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.cli import main
from teenytinyllama.publishing.card import check_model_card, write_model_card


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = write_whole_run(tmp_path / "lhama-serra")
    write_model_card(folder)
    return folder


def edit(folder: Path, pattern: str, replacement: str) -> None:
    """Replace the first match in the card."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    edited = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert edited != text
    path.write_text(edited, encoding="utf-8")


def test_a_card_as_written_agrees(run_folder: Path):
    assert re.search(r"README\.md: \d{3} numbers and \d+ keys of metadata agree", check_model_card(run_folder))


@pytest.mark.parametrize("language", ["en", "pt", "both"])
def test_name_and_languages_are_those_of_the_card(run_folder: Path, language: str):
    write_model_card(run_folder, repository="ana/lhama-460m", language=language)
    assert "agree" in check_model_card(run_folder)
    with pytest.raises(InputError, match=r"lhama-460m, but the run's files say outra-7b"):
        check_model_card(run_folder, repository="ana/outra-7b")


def test_edited_prose_agrees(run_folder: Path):
    edit(run_folder, r"^It is a plain Llama checkpoint;.*$", "It loads without any code of ours.\n\nWe like it.")
    edit(run_folder, r"^## Limitations$", "## What it cannot do")
    edit(run_folder, r"^\| Parameters \|", "| Number of parameters |")
    edit(run_folder, r"^- teenytinyllama$", "- teenytinyllama\n- minha-etiqueta")
    edit(run_folder, r"^language: pt$", "language: pt\nthumbnail: lhama.png")
    path = run_folder / "README.md"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "agree" in check_model_card(run_folder)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"\*\*17\.12\*\*", "**16.12**", r"line \d+ \(Evaluations\): 16\.12, but the run's files say 17\.12"),
        (r"\*\*17,12\*\*", "**16,12**", r"line \d+ \(Avaliações\): 16,12, but the run's files say 17,12"),
        (r"19\.24 ± 1\.04", "19.24 ± 0.04", r"\(Exams\): 0\.04, but the run's files say 1\.04"),
        (r"-0\.95", "0.95", r"\(Exams\): 0\.95, but the run's files say -0\.95"),
        (r"`a{40}`", f"`{'a' * 39}0`", r"\(How it was made\): a{39}0 is not in the run's files"),
        (r"3\.1\.1|2\.13\.0", "2.14.0", r"2\.14\.0, but the run's files say 2\.13\.0"),
        (r"^It is a plain", "We trained it 3 times. It is a plain", r"\(Summary\): 3 is not in the run's files"),
        (r"^\| 2,048,000 \| 250 \| 40\.25.*\n", "", r"40\.25 of the run's files is missing \(\| 2,048,000 \| 250"),
        (r"^  emissions: 59\.3$", "  emissions: 0.0593", r"co2_eq_emissions is \{emissions: 0\.0593,"),
        (r"^license: apache-2\.0$", "license: mit", r"line \d+ \(metadata\): license is mit, but the run's files say apache"),
        (r"^pipeline_tag: .*\n", "", r"metadata: pipeline_tag is missing; the run's files say text-generation"),
        (r"^- teenytinyllama\n", "", r"tags is \[llama, portuguese\]"),
        (r"^language: pt$", "language: pt\nscore: 99", r"line \d+ \(metadata\): score=99 is not in the run's files"),
        (r"value: 19\.24", "value: 29.24", r"line \d+ \(metadata\): model-index is"),
    ],
)  # fmt: skip
def test_a_changed_number_or_key_is_named(run_folder: Path, pattern: str, replacement: str, message: str):
    edit(run_folder, pattern, replacement)
    with pytest.raises(InputError, match=message) as caught:
        check_model_card(run_folder)
    assert "disagrees with the run's files in " in str(caught.value)
    assert "write the card again with `ttl card" in str(caught.value)


def test_the_line_is_that_of_the_file(run_folder: Path):
    edit(run_folder, r"\*\*17\.12\*\*", "**16.12**")
    lines = (run_folder / "README.md").read_text(encoding="utf-8").split("\n")
    line = 1 + next(index for index, text in enumerate(lines) if "**16.12**" in text)
    with pytest.raises(InputError, match=rf"line {line} \(Evaluations\): 16\.12"):
        check_model_card(run_folder)


def test_two_numbers_that_changed_places_are_found(run_folder: Path):
    edit(run_folder, r"\| 500 of 8,192", "| 8,192 of 500")
    with pytest.raises(InputError, match="in 2 place"):
        check_model_card(run_folder, language="both")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("model.num_parameters", 2_557_633),
        ("data.sources.contos.bytes", 3_410_000),
        ("data.packed_sha256", "0" * 64),
        ("training.seconds", 5500.0),
        ("results.final.bits_per_byte", 1.3),
        ("results.final.per_source.contos.perplexity", 16.6),
        ("config.license", "mit"),
        ("versions.torch", "2.14.0"),
    ],
)
def test_a_run_that_changed_no_longer_agrees(run_folder: Path, keys: str, value: Any):
    write_run(run_folder, changed(keys, value))
    with pytest.raises(InputError, match="disagrees with the run's files"):
        check_model_card(run_folder)


def test_every_file_of_the_run_counts(run_folder: Path):
    write_rows(run_folder / "metrics.jsonl", [*EVALUATIONS[:2], evaluation(500, 18.6, 0.61)])
    with pytest.raises(InputError, match=r"18\.50, but the run's files say 18\.60"):
        check_model_card(run_folder)
    write_run(run_folder, RUN)
    results = json.loads((run_folder / "results.json").read_text())
    results["scores"][1]["value"] = 0.5
    (run_folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"46\.72, but the run's files say 50\.00"):
        check_model_card(run_folder)


def test_many_disagreements_are_counted(run_folder: Path):
    (run_folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"(?s)in \d\d place.*\n  and \d+ more"):
        check_model_card(run_folder)


def test_refuses_what_is_no_card(run_folder: Path):
    path = run_folder / "README.md"
    for content, message in {
        "# Lhama\n": r"README\.md: has no metadata between two lines of ---",
        "---\na: [\n---\n": r"README\.md: its metadata is not valid YAML",
        "---\n- a\n---\n": r"README\.md: its metadata is no YAML mapping",
    }.items():
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            check_model_card(run_folder)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"README\.md: no such file. Write the card with `ttl card"):
        check_model_card(run_folder)


def test_the_command(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(run_folder)
    assert main(["card", folder, "--language", "pt", "--repository", "ana/lhama"]) == 0
    assert "ana/lhama" in (run_folder / "README.md").read_text()
    assert main(["card", folder, "--check"]) == 0
    assert "keys of metadata agree" in capsys.readouterr().out
    edit(run_folder, r"17,12", "11,12")
    assert main(["card", "--check", folder]) == 2
    assert "11,12, but the run's files say 17,12" in capsys.readouterr().err
    assert main(["card", folder, "--language", "fr"]) == 2
    assert "language=fr: must be one of both, en, pt" in capsys.readouterr().err
