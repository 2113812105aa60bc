"""The report of a comparison and what a model card takes over."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from card_runs import split_card, write_whole_run
from made_study import hexed, write_lines

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from people_simulation import SimulatedStudy, simulate_ballots

from teenytinyllama.checks import InputError
from teenytinyllama.people.share import facts_for_card, take_votes
from teenytinyllama.people.study_report import read_ballots, write_report
from teenytinyllama.publishing.card import check_model_card, render_model_card, write_model_card
from teenytinyllama.stage_folder import sha256_file

NAMES = {"s0": "outro | modelo", "s1": "lhama"}


def line(number: int, **changes: Any) -> dict[str, Any]:
    answers = {side: hexed(changes.get(side, name)) for side, name in (("left", "lhama"), ("right", NAMES["s0"]))}
    return {"vote": f"{number:032x}", "time": f"2026-01-31T12:{number // 60:02}:{number % 60:02}Z", "voter": "ana",
            "prompt": "q1", "left": "lhama", "right": "outro | modelo", "choice": "left",
            "marks": {"left": [], "right": ["sense"]}, "comment": "", "seconds": 1.0, "repeat": False,
            "answers": answers, **changes}  # fmt: skip


def write_votes(folder: Path, lines: list[dict[str, Any]], end: str = "") -> None:
    sha256 = sha256_file(folder / "prompts.jsonl")
    rows = [row if "undo" in row else {"prompts_sha256": sha256, **row} for row in lines]
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end, encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_whole_run(tmp_path / "lhama-serra")


@pytest.fixture
def study(tmp_path: Path, run_folder: Path) -> Path:
    folder = tmp_path / "comparison"
    folder.mkdir()
    sources = {"outro | modelo": "ana/outro", "lhama": str(run_folder), "novo": "novo"}
    ballots = simulate_ballots(SimulatedStudy(strengths=(0, 1.5), people=3, votes_each=20, num_prompts=20), 0)
    kinds = {f"q{number}": "list" for number in range(150)}
    kinds |= {ballot.prompt: ballot.kind for ballot in ballots} | {"q1": "letter"}
    prompts = [{"id": prompt, "kind": kind, "prompt": "?"} for prompt, kind in kinds.items()]
    prompts_sha256 = write_lines(folder / "prompts.jsonl", prompts)
    systems = []
    for name, source in sources.items():
        answers = [{"id": prompt, "answer": name} for prompt in kinds]
        systems.append({
            "name": name, "source": source, "sha256": write_lines(folder / "answers" / f"{name}.jsonl", answers),
            "human": name == "outro | modelo", "energy_kwh": 0.00125 if name == "lhama" else None, "tokens": 4100,
        })  # fmt: skip
    described = {"format": 1, "kind": "chat", "prompts_sha256": prompts_sha256, "systems": systems}
    (folder / "study.json").write_text(json.dumps(described))
    rows = [line(number, voter=f"<b>{ballot.voter}", prompt=ballot.prompt, left=NAMES[ballot.left], right=NAMES[ballot.right],
                 choice=ballot.choice, repeat=ballot.repeat) for number, ballot in enumerate(ballots)]  # fmt: skip
    write_votes(folder, rows)
    return folder


def test_the_report_holds_what_the_votes_say(study: Path):
    text = write_report(study).read_text(encoding="utf-8")
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    assert results["format"] == 1
    assert (results["votes"], results["repeats"], results["people"], results["prompts"]) == (60, 6, 3, 20)
    assert [system["name"] for system in results["systems"]] == ["lhama", "outro | modelo"]
    assert results["unjudged"] == ["novo"]
    assert sum(results["pairs"][0]["wins"]) == 60
    for part in ("| lhama | ", "outro \\| modelo (human)", "Nobody has judged novo yet", "0.00125", "&lt;b&gt;p0",
                 "## What this does not show", "Krippendorff's alpha"):  # fmt: skip
        assert part in text, part
    assert "<b>" not in text
    assert (study / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert not list(study.glob("*.partial"))
    before = (study / "results.json").read_bytes()
    write_report(study)
    assert (study / "results.json").read_bytes() == before


def test_faults_are_reported_only_where_somebody_marked_one(study: Path):
    assert "| language | sense | truth |" in write_report(study).read_text(encoding="utf-8")
    write_votes(study, [line(number, marks={"left": [], "right": []}) for number in range(3)])
    text = write_report(study).read_text(encoding="utf-8")
    assert "Nobody marked an answer as bad in language, sense or truth" in text
    assert "| language | sense | truth |" not in text


@pytest.mark.slow
def test_figures_without_a_random_clicker_stand_beside(study: Path):
    ballots = simulate_ballots(SimulatedStudy(strengths=(0, 2.5), votes_each=150, num_prompts=150, random_people=1), 1)
    write_votes(study, [line(number, voter=ballot.voter, prompt=ballot.prompt, left=NAMES[ballot.left],
                             right=NAMES[ballot.right], choice=ballot.choice, repeat=ballot.repeat)
                        for number, ballot in enumerate(ballots)])  # fmt: skip
    assert "### Without p4" in write_report(study).read_text(encoding="utf-8")
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    assert results["looks_random"] == ["p4"]
    with_all, without = (found["pairs"][0]["win_rate"]["value"] for found in (results, results["without_random"]))
    assert without > with_all


def test_undone_votes_and_a_torn_last_line_do_not_count(study: Path):
    undo = {"undo": line(1)["vote"], "time": "2026-01-31T13:00:00Z", "voter": "ana"}
    rows = [line(1), line(2, choice="both_bad"), line(2, choice="both_bad"), undo]
    write_votes(study, rows, end='{"vote": "3')
    found = read_ballots(study)
    assert [ballot.choice for ballot in found] == ["both_bad"]
    assert found[0].marks == ((), ("sense",))


@pytest.mark.parametrize(("change", "message"), [
    ({"choice": "up"}, "line 2 .*choice is none of left, right"),
    ({"voter": ""}, "line 2 .*voter is empty"),
    ({"right": "lhama"}, "line 2 .*left and right are the same system"),
    ({"right": "x"}, "has votes on x, which study.json does not name"),
])  # fmt: skip
def test_damaged_votes_are_refused_and_nothing_is_written(study: Path, change: dict[str, Any], message: str):
    write_votes(study, [line(1), line(2, **change), line(3)])
    with pytest.raises(InputError, match=message):
        write_report(study)
    assert not (study / "results.json").exists()


def test_a_folder_without_study_or_votes_is_refused(study: Path, tmp_path: Path):
    with pytest.raises(InputError, match="has no study.json, so it is no folder of a comparison"):
        write_report(tmp_path / "nowhere")
    write_votes(study, [])
    with pytest.raises(InputError, match="holds no votes yet. Let somebody vote"):
        write_report(study)
    (study / "study.json").write_text("{}")
    with pytest.raises(InputError, match=r"study.json: is damaged"):
        write_report(study)


def test_the_card_of_a_run_shows_the_votes_without_nicknames(study: Path, run_folder: Path):
    assert "What people say" not in render_model_card(run_folder)
    write_report(study)
    take_votes(run_folder, str(study))
    write_model_card(run_folder)
    body = split_card((run_folder / "README.md").read_text(encoding="utf-8"))[1]
    found = facts_for_card(study)
    share = found["systems"][0]["share"]
    cell = f"| **lhama** | {100 * share['value']:.0f} % ({100 * share['low']:.0f} to {100 * share['high']:.0f}) |"
    for part in ("### What people say", "### O que dizem as pessoas", "60 votes of 3 people on 20 prompts", cell,
                 "[people.json](./people.json)", "| outro \\| modelo |"):  # fmt: skip
        assert part in body, part
    assert "p0" not in (run_folder / "people.json").read_text(encoding="utf-8")
    assert str(run_folder) not in (run_folder / "people.json").read_text(encoding="utf-8")
    check_model_card(run_folder)


def test_what_cannot_be_taken_over_is_refused(study: Path, run_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match="results.json: no such file or folder. Write the report"):
        take_votes(run_folder, str(study))
    write_report(study)
    with pytest.raises(InputError, match="a check writes nothing"):
        take_votes(run_folder, str(study), check=True)
    with pytest.raises(InputError, match="is no finished run"):
        take_votes(tmp_path / "nowhere", str(study))
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    with pytest.raises(InputError, match="none of its systems with votes is"):
        take_votes(other, str(study))
    (study / "results.json").write_text('{"votes": 1}')
    with pytest.raises(InputError, match="is no report of a comparison"):
        take_votes(run_folder, str(study))
    assert not (run_folder / "people.json").exists()


@pytest.mark.slow
def test_a_damaged_record_of_votes_is_refused(study: Path, run_folder: Path):
    write_report(study)
    take_votes(run_folder, str(study))
    path = run_folder / "people.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"votes": "60"}, "is damaged"),
        ({"system": "x"}, "names x, which is none of its systems"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=message):
            render_model_card(run_folder)
