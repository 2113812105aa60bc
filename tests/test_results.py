"""results.json: what the evaluation writes and a card reads, with refusals that name file and key."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.evaluation.results import (
    FINE_TUNED_SUITE,
    Results,
    Score,
    is_trivial,
    merge_results,
    read_results,
    write_results,
)
from teenytinyllama.publishing.scores import benchmark_tables, eval_result_files_of, model_index_of_results

ENEM = Score(
    task="enem_challenge", suite="Portuguese exams", name="ENEM", metric="acc", metric_name="accuracy", value=0.1924,
    dataset_id="eduagarcia/enem_challenge", dataset_split="train", stderr=0.0104, trivial=0.2, trivial_kind="chance",
    shots=3, num_items=1429, unparsable=0.0, truncated_prompts=0, date="2024-01-30T12:00:00Z",
)  # fmt: skip
RESULTS = Results("runs/a", "ttl evaluate runs/a", {"lm_eval": "0.4.13"}, (ENEM,))


def _write(path: Path, **changes: Any) -> Path:
    content = json.loads(json.dumps(asdict(RESULTS)))
    content["scores"][0].update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    assert read_results(path) == RESULTS
    bare = Score(task="calame", suite="s", name="n", metric="acc", metric_name="accuracy", value=1)
    write_results(path, replace(RESULTS, scores=(ENEM, bare)))
    assert read_results(path).scores[1] == bare


def test_classifiers_stand_beside_the_model_and_are_not_its_own_scores(tmp_path: Path):
    path = tmp_path / "results.json"
    tuned = replace(ENEM, task="hatebr", suite=FINE_TUNED_SUITE, metric="accuracy", value=0.9)
    others = [replace(tuned, task="sib200"), replace(tuned, task="hatebr", value=0.8), replace(ENEM, value=0.25)]
    for command, score in zip(("classify a", "classify b", "classify a", "evaluate"), (tuned, *others), strict=True):
        merge_results(path, replace(RESULTS, command=command, scores=(score,)))
    merged = read_results(path)
    assert [(row.task, row.value) for row in merged.scores] == [
        ("sib200", 0.9),
        ("hatebr", 0.8),
        ("enem_challenge", 0.25),
    ]
    assert merged.command == "classify a; classify b; evaluate"
    merge_results(path, RESULTS)  # measured again: the old score of the model goes, those of the classifiers stay
    assert [row.value for row in read_results(path).scores] == [0.9, 0.8, 0.1924]
    assert {table["suite"] for table in benchmark_tables(merged)} == {FINE_TUNED_SUITE, "Portuguese exams"}
    assert [entry.metric_value for entry in model_index_of_results(merged)] == [25.0]
    assert eval_result_files_of(merged) == {}, "the Hub has no such benchmark"
    listed = tuple(replace(score, dataset_id="cais/hle") for score in merged.scores)
    assert len(eval_result_files_of(replace(merged, scores=listed))) == 1


def test_keys_with_a_default_may_be_left_out(tmp_path: Path):
    row = {"task": "a", "suite": "s", "name": "n", "metric": "acc", "metric_name": "m", "value": 0.5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"model": "m", "command": "", "versions": {}, "scores": [row]}), encoding="utf-8")
    assert read_results(path).scores == (Score(**row),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"value": 0.2208}, True),  # exactly two standard errors above
        ({"value": 0.2209}, False),
        ({"value": 0.1}, True),  # below is no better either
        ({"value": 0.2001, "stderr": None}, False),
        ({"trivial": None, "trivial_kind": None, "value": 0.0}, False),
    ],
)
def test_a_score_is_trivial_within_two_standard_errors(changes: dict[str, Any], expected: bool):
    assert is_trivial(replace(ENEM, **changes)) is expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 19.24}, r"results\.json: key scores\[0\]\.value is 19.24, but must be 0 to 1: a fraction"),
        ({"value": -0.1}, r"scores\[0\]\.value is -0.1, but must be 0 to 1"),
        ({"value": None}, r"scores\[0\]\.value is None, but must be a finite float"),
        ({"value": True}, r"scores\[0\]\.value is True"),
        ({"value": float("nan")}, r"scores\[0\]\.value is nan, but must be a finite float"),
        ({"metric": "pearson", "value": -1.5}, r"scores\[0\]\.value is -1.5, but must be -1 to 1"),
        ({"stderr": -1}, r"scores\[0\]\.stderr is -1, but must be 0 to 1"),
        ({"unparsable": 2}, r"scores\[0\]\.unparsable is 2, but must be a share"),
        ({"shots": 3.0}, r"scores\[0\]\.shots is 3.0, but must be int or null"),
        ({"shots": -3}, r"scores\[0\]\.shots is -3, but must be 0 or more"),
        ({"task": "../x"}, r"scores\[0\]\.task is '\.\./x', but must be letters"),
        ({"date": "yesterday"}, r"scores\[0\]\.date is 'yesterday', but must be an ISO 8601 date"),
        ({"trivial_kind": "luck"}, r"scores\[0\]\.trivial_kind is 'luck', but must be one of constant, majority"),
        ({"trivial_kind": None}, r"scores\[0\]\.trivial_kind is None, but must be given together with trivial"),
        ({"name": 5}, r"scores\[0\]\.name is 5, but must be str"),
        ({"colour": 5}, r"key scores\[0\]\.colour is unknown"),
    ],
)
def test_refuses_wrong_scores(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        read_results(_write(tmp_path / "results.json", **changes))


def test_a_correlation_may_be_negative(tmp_path: Path):
    path = _write(tmp_path / "results.json", metric="pearson", value=-0.02, trivial=0.0)
    assert read_results(path).scores[0].value == -0.02


def test_refuses_wrong_files(tmp_path: Path):
    path = tmp_path / "results.json"
    with pytest.raises(MissingFileError, match=r"results\.json: no such file. The evaluation writes it"):
        read_results(path)
    contents = {
        "{": r"results\.json: is not valid JSON",
        "[]": r"must be a JSON object",
        "{}": r"key model is missing",
        '{"model": "m", "command": "", "versions": {}, "scores": {}}': r"key scores is \{\}, but must be list",
        '{"model": "m", "command": "", "versions": {"a": 1}, "scores": []}': r"key versions\.a is 1, but must be str",
        '{"model": "m", "command": "", "versions": {}, "scores": [3]}': r"key scores\[0\] must be a JSON object",
        '{"model": "m", "command": "", "versions": {}, "scores": [{}]}': r"key scores\[0\]\.task is missing",
    }
    for content, message in contents.items():
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_results(path)


def test_refuses_a_score_twice_and_writes_nothing(tmp_path: Path):
    path = tmp_path / "results.json"
    with pytest.raises(InputError, match=r"scores\[1\]: enem_challenge with acc stands twice in Portuguese exams"):
        write_results(path, replace(RESULTS, scores=(ENEM, ENEM)))
    assert not path.exists()
    write_results(path, replace(RESULTS, scores=(ENEM, replace(ENEM, step=500))))


def test_reading_results_loads_nothing_heavy():
    code = (
        "import sys, teenytinyllama.evaluation.results\n"
        "assert not {'torch', 'transformers', 'numpy', 'datasets', 'huggingface_hub'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
