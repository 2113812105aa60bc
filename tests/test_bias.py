"""Suite bias: the pairs and prompts, what is measured of them, and what is refused."""

import difflib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_chat import tiny_model
from transformers import BertConfig, BertForSequenceClassification

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.cleaning.toxicity import ToxicityConfig
from teenytinyllama.evaluation.bias import (
    BEYOND_WORDS,
    NATS,
    PREFERRED,
    SUBJECTS,
    TOXIC,
    TOXIC_GAP,
    format_bias,
    largest_gap,
    pair_measures,
    random_twin,
    read_bias_prompts,
    read_pairs,
    sentence_nats,
    toxicity_judge,
    toxicity_measures,
)
from teenytinyllama.models import load_tokenizer
from teenytinyllama.tokenizer.encode import encode_texts


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer("tokenizer", str(tokenizer_folder))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("bias") / "model"
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A text classifier with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        pad_token_id=tokenizer.pad_token_id, id2label={0: "not toxic", 1: "toxic"}, label2id={"not toxic": 0, "toxic": 1},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bias") / "classifier"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- the data


def test_pairs_differ_in_as_little_as_possible() -> None:
    pairs = read_pairs()
    assert len(pairs) >= 200
    assert Counter(pair.subject for pair in pairs).keys() == SUBJECTS.keys()
    for pair in pairs:
        first, second = pair.stereotyped.split(), pair.counter.split()
        changes = [
            one
            for one in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
            if one[0] != "equal"
        ]
        assert 1 <= len(changes) <= 2, pair
        assert pair.group_a != pair.group_b
        assert all(
            text == unicodedata.normalize("NFC", text).strip() and text.endswith(".")
            for text in (pair.stereotyped, pair.counter)
        )
    sentences = [text for pair in pairs for text in (pair.stereotyped, pair.counter)]
    assert len(set(sentences)) == len(sentences)


def test_each_subject_speaks_well_and_badly() -> None:
    counts = Counter((pair.subject, pair.tone) for pair in read_pairs())
    for subject in SUBJECTS:
        good, bad = counts[subject, "positive"], counts[subject, "negative"]
        assert good + bad >= 40
        assert 0.4 <= good / (good + bad) <= 0.6


def test_prompts_ask_the_same_of_every_group() -> None:
    prompts = read_bias_prompts()
    assert len(prompts) >= 60
    assert set(Counter((subject, group) for subject, group, _ in prompts).values()) == {6}


def test_words_that_differ() -> None:
    pair = next(pair for pair in read_pairs() if pair.subject == "gender")
    assert pair.words() == ("O engenheiro", "A engenheira")


# --- what is measured


def test_likelihood_is_that_of_the_whole_sentence(tokenizer: Any) -> None:
    model = tiny_model(tokenizer).eval()
    text = "A menina vem com o cachorro."
    ids = torch.tensor([[tokenizer.bos_token_id, *encode_texts(tokenizer, [text])[0]]])
    with torch.no_grad():
        expected = -float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert sentence_nats(model, tokenizer, [text, "Oi."], 2)[0] == pytest.approx(expected, abs=1e-3)


def test_a_model_that_learnt_the_prejudice_is_found(tokenizer: Any) -> None:
    """Trained on the stereotyped sentences of one subject alone, it prefers them there."""
    model = tiny_model(tokenizer)
    texts = [pair.stereotyped for pair in read_pairs() if pair.subject == "age"]
    rows = [[tokenizer.bos_token_id, *ids] for ids in encode_texts(tokenizer, texts)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    labels = torch.where(ids == tokenizer.pad_token_id, -100, ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {(one.metric, one.part): one for one in pair_measures(model.eval(), tokenizer, 64)}
    assert found[PREFERRED, "age"].value > 0.9
    assert found[NATS, "age"].value > 2
    assert found[BEYOND_WORDS, "age"].value > 0.8
    assert found[PREFERRED, "age"].num_items == sum(pair.subject == "age" for pair in read_pairs())
    untrained = {(one.metric, one.part): one.value for one in pair_measures(random_twin(model), tokenizer, 64)}
    assert 0.3 < untrained[PREFERRED, None] < 0.7


def test_a_classifier_that_hates_one_group_is_found(tokenizer: Any) -> None:
    model = tiny_model(tokenizer).eval()
    measures = toxicity_measures(model, tokenizer, lambda texts: ["idoso" in text.split()[:3] for text in texts])
    found = {(one.metric, one.part): one.value for one in measures}
    assert found[TOXIC, "age: vizinho idoso"] > found[TOXIC, "age: vizinho jovem"] == 0
    assert found[TOXIC_GAP, "gender"] == 0


def test_the_gap_of_groups_has_an_honest_chance() -> None:
    values = np.array([1.0] * 6 + [0.0] * 6)
    gap, chance = largest_gap(values, ["a"] * 6 + ["b"] * 6)
    assert gap == 1
    assert 0 < chance < 0.02
    gap, chance = largest_gap(np.array([1.0, 0.0] * 6), ["a"] * 6 + ["b"] * 6)
    assert (gap, chance) == (0, 1)


# --- the verb


def test_the_suite_writes_figures_beside_random_weights(
    tmp_path: Path, model_folder: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation"
    arguments = ["evaluate", str(model_folder), "--suite", "bias", "--output_dir", str(output)]
    assert cli.main(arguments) == 0
    text = (output / "results.md").read_text(encoding="utf-8")
    for part in ("## Prejudice", "| all | ", "| skin colour | ", "bias_toxicity | needs a classifier"):
        assert part in text
    measures = json.loads((output / "measures.json").read_text())
    assert {one["metric"] for one in measures} >= {PREFERRED, PREFERRED + "_random", BEYOND_WORDS}
    before = (output / "parts" / "final" / "bias.json").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert (output / "parts" / "final" / "bias.json").stat().st_mtime_ns == before, "measured once"
    assert cli.main([*arguments, "--toxicity", f"{{model: {classifier}, label: toxic, threshold: 0.5}}"]) == 0
    text = (output / "results.md").read_text(encoding="utf-8")
    assert "| skin: homem negro | 6 | " in text
    assert "needs a classifier" not in text
    assert text.count("## Prejudice") == 1
    capsys.readouterr()


def test_what_is_no_judge_or_no_model_is_refused(tmp_path: Path, model_folder: Path, classifier: Path) -> None:
    with pytest.raises(InputError, match=r"toxicity.label=rude: the model has no such label"):
        toxicity_judge(ToxicityConfig(model=str(classifier), label="rude"))
    arguments = ["--suite", "bias", "--output_dir", str(tmp_path / "evaluation")]
    assert cli.main(["evaluate", str(classifier), *arguments]) == 2
    assert (
        cli.main(["evaluate", str(model_folder), *arguments, "--toxicity", f"{{model: {model_folder}, label: 1}}"]) == 2
    )
    assert not (tmp_path / "evaluation").exists()


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert format_bias([]) == []
