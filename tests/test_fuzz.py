"""Bad input of every kind: never a traceback, a hang or a file written. `make fuzz N=10000` runs more."""

from collections import Counter
from pathlib import Path

import fuzz
import pytest
from fuzz_cases import CONFIGS, Case, cases, from_text
from fuzz_oracle import run_as_process, run_in_process
from fuzz_world import make_world
from hypothesis import HealthCheck, given, note, settings

CASES, PROCESSES = 500, 20
QUIET = list(HealthCheck)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "variant"), [(verb, number) for verb, some in CONFIGS.items() for number in range(len(some))]
)
def test_what_is_broken_was_valid(verb: str, variant: int, world: Path, tmp_path: Path) -> None:
    assert run_in_process(Case(verb, variant), world, tmp_path / "case") in ("0", "begins")


@pytest.mark.slow
@pytest.mark.timeout(0)  # each case has an alarm of its own
def test_bad_input_is_refused_in_words(world: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    answers: Counter[str] = Counter()

    @settings(max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
    @given(cases())
    def run(case: Case) -> None:
        note(case.to_text())  # `python tests/fuzz.py replay FILE` takes it
        answers[run_in_process(case, world, tmp_path_factory.mktemp("case") / "case")] += 1  # raises at a fault

    run()
    assert answers.total() >= CASES
    assert answers["2"] > CASES / 2, "most cases are refused; if not, nothing bad is drawn"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_bad_input_is_refused_by_the_command(world: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    answers: Counter[str] = Counter()

    @settings(max_examples=PROCESSES, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
    @given(
        cases(tuple(verb for verb in CONFIGS if verb not in ("demo", "app", "compare", "serve")))
    )  # minutes, or serving
    def run(case: Case) -> None:
        note(case.to_text())
        answers[run_as_process(case, world, tmp_path_factory.mktemp("case") / "case")] += 1

    run()
    assert answers.total() >= PROCESSES
    assert answers["2"] > 0


def test_a_case_is_kept_as_it_was() -> None:
    case = Case("pack", 1, [("context", "set", {None: [float("inf"), "\ud800"]}), ("inputs", "drop", None)], "\n\x07", ["--\udcff"],
                [(0, 1, "cut", 5, 10**30)], typed=True)  # fmt: skip
    assert from_text(case.to_text()) == case


def test_cases_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def run_chunk(number: int, size: int, *_: object) -> dict[str, object]:
        seeds.append(number)
        return {"seed": number, "cases": size, "codes": {"2": size}, "faults": {}, "slowest": [0.0, "pack"]}

    monkeypatch.setattr(fuzz, "PLACE", tmp_path)
    monkeypatch.setattr(fuzz, "make_world", lambda folder: folder)
    monkeypatch.setattr(fuzz, "run_chunk", run_chunk)
    for wanted in ("300", "600"):
        with pytest.raises(SystemExit) as ended:
            fuzz.main([wanted])
        assert ended.value.code == 0
    assert seeds == [1, 2, 3, 4]
