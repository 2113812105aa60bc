"""Reference cards: rendered from files of published figures, each with its source."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from card_runs import split_card

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.evaluation.results import is_trivial
from teenytinyllama.model_files import PUBLISHED_MODELS
from teenytinyllama.presets import PRESETS
from teenytinyllama.publishing.card import read_reference, render_reference_card, write_reference_cards

FOLDER = Path(__file__).resolve().parent.parent / "model_cards"
FILES = sorted(FOLDER.glob("*.yaml"))
MINIMAL = """
repository: ana/lhama
run: {stage: pretrain, model: {num_parameters: 5}}
sources: [{en: size, pt: tamanho, url: https://example.org}]
"""


def test_there_is_one_for_each_published_model():
    assert {read_reference(path).name for path in FILES} == set(PUBLISHED_MODELS.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cards_are_what_their_files_say(path: Path):
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert card == render_reference_card(path), "run `make cards`"
    metadata, body = split_card(card)
    assert metadata["co2_eq_emissions"]["emissions"] > 1000, "grams, not kilograms"
    assert "None" not in body
    assert "not published" not in body, "rows without a figure are left out"


def test_figures_agree_with_the_presets_and_among_themselves():
    for path in FILES:
        facts = read_reference(path)
        size = re.search(r"\d+m", facts.name)
        assert size
        preset, model = PRESETS[size[0]], facts.run["model"]
        for key in ("num_parameters", "num_hidden_layers", "hidden_size"):
            assert model[key] == getattr(preset, key), (path, key)
        training = facts.run["training"]
        if training["steps"]:
            assert training["tokens"] == training["steps"] * training["tokens_per_step"]
        for row in facts.evaluations:
            assert row["tokens"] == row["step"] * 8192
        energy = facts.energy or {}
        if energy["kwh"]:
            assert energy["kwh"] == pytest.approx(energy["cpu_kwh"] + energy["gpu_kwh"] + energy["ram_kwh"])


def test_the_constant_answer_to_faquad_is_recognised():
    facts = read_reference(FOLDER / "teenytinyllama-160m.yaml")
    assert facts.results
    trivial = {(score.suite, score.name) for score in facts.results.scores if is_trivial(score)}
    assert ("Portuguese tasks (authors' run)", "FaQuAD-NLI") in trivial
    assert ("Portuguese tasks (authors' run)", "ASSIN2 RTE") not in trivial


def test_what_a_file_leaves_out_is_left_out(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    metadata, body = split_card(render_reference_card(path))
    assert "| Parameters | 5 |" in body
    for absent in ("Tokens seen", "Vocabulary", "kWh", "How it was made", "Samples", "±"):
        assert absent not in body
    assert not {"co2_eq_emissions", "model-index", "datasets", "metrics", "widget"} & set(metadata)
    assert "- [size](https://example.org)" in body
    assert "- [tamanho](https://example.org)" in body


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("repository: ana/lhama", "", r"a\.yaml: key repository is missing"),
        ("stage: pretrain", "stage: pack", r"key run\.stage=pack: must be one of pretrain, sft, dpo"),
        ("num_parameters", "parameters", r"key run\.model\.parameters is unknown"),
        ("run: {", "colour: red\nrun: {", r"key colour is unknown"),
        ("{num_parameters: 5}", "5", r"key run\.model must be a mapping"),
        ("en: size, ", "", r"key sources\[0\] lacks en: each figure needs its source"),
        ("run: {", "evaluations: [{loss: 3}]\nrun: {", r"key evaluations\[0\]\.loss is unknown"),
        ("run: {", "suites: [{suite: a, value: 1, colour: 2}]\nrun: {", r"key suites\[0\]\.colour is unknown"),
        ("run: {", "suites: [{suite: a, scores: [{task: a}]}]\nrun: {", r"key scores\[0\]\.name is missing"),
        ("run: {", "run: [", r"a\.yaml: is not valid YAML"),
    ],
)
def test_refuses_wrong_files(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "a.yaml"
    path.write_text(MINIMAL.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        render_reference_card(path)


def test_writing(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no YAML files of published figures"):
        write_reference_cards(tmp_path)
    with pytest.raises(MissingFileError, match=r"reference=.*nada\.yaml: no such file"):
        read_reference(tmp_path / "nada.yaml")
    shutil.copy(FILES[0], tmp_path / "a.yaml")
    assert write_reference_cards(tmp_path) == [tmp_path / "a.md"]
    assert yaml.safe_load((tmp_path / "a.md").read_text().split("---\n")[1])["library_name"] == "transformers"
