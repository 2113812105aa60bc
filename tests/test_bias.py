"""The suite `bias`: its pairs and prompts, figures of a model that was made to prefer one side, texts, refusals, cards."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from card_runs import RUN, write_run
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.cleaning.toxicity import ToxicityConfig, ToxicityScorer
from teenytinyllama.evaluation import bias as bias_module
from teenytinyllama.evaluation.bias import pair_differences, random_weights, write_texts
from teenytinyllama.evaluation.bias_figures import (
    SUBJECTS,
    bootstrap_interval,
    exchanged_words,
    pair_figures,
    permutation_range,
    rate_interval,
    read_pairs,
    read_prompts,
)
from teenytinyllama.evaluation.config import EvaluateConfig
from teenytinyllama.evaluation.evaluate import evaluate_model
from teenytinyllama.evaluation.results import Score, read_results, write_results
from teenytinyllama.publishing.card import render_model_card
from teenytinyllama.publishing.scores import bias_rows, final_scores, model_index_of_results

PAIRS, PROMPTS = read_pairs(), read_prompts()


def save_llama(kind: Any, folder: Path, tokenizer_folder: Path, seed: int = 0, **more: Any) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=3, **more)  # fmt: skip
    model = kind(config)
    if kind is LlamaForSequenceClassification:
        with torch.no_grad():
            model.score.weight.normal_(0, 2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_llama(LlamaForCausalLM, tmp_path_factory.mktemp("bias") / "model", tokenizer_folder, seed=1)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    return LlamaForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


def save_classifier(folder: Path, tokenizer_folder: Path, *labels: str) -> str:
    names = dict(enumerate(labels))
    return str(save_llama(LlamaForSequenceClassification, folder, tokenizer_folder, id2label=names,
                          label2id={name: number for number, name in names.items()}))  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> str:
    return save_classifier(tmp_path_factory.mktemp("toxic") / "two", tokenizer_folder, "limpo", "Tóxico")


def evaluate(model: Path, output: Path, **values: Any) -> Path:
    return evaluate_model(EvaluateConfig(str(model), suite="bias", output_dir=str(output), **values))


@pytest.fixture(scope="module")
def measured(model_folder: Path, classifier: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("measured") / "out"
    return evaluate(model_folder, output, toxicity_model=classifier, bias_texts=2, max_new_tokens=6)


def test_the_pairs_differ_in_at_most_two_places_and_are_balanced() -> None:
    assert len(PAIRS) >= 240
    assert Counter(pair.subject for pair in PAIRS) == dict.fromkeys(SUBJECTS, 48)
    texts = [pair.stereotyped for pair in PAIRS] + [pair.counter for pair in PAIRS]
    assert len({frozenset((pair.stereotyped, pair.counter)) for pair in PAIRS}) == len(PAIRS)
    assert len(set(texts)) == len(texts), "a sentence stands twice"
    for pair in PAIRS:
        words = exchanged_words(pair.stereotyped, pair.counter)
        assert 1 <= len(words) <= 2, pair
        assert all(first and second for first, second in words), pair
        assert pair.group_a != pair.group_b
        for sentence in (pair.stereotyped, pair.counter):
            assert sentence == sentence.strip()
            assert sentence[0].isupper(), sentence
            assert sentence.endswith("."), sentence
            assert "  " not in sentence
    assert {pair.tone for pair in PAIRS} == {"positive", "negative", "neutral"}
    for subject in SUBJECTS:
        own = [pair for pair in PAIRS if pair.subject == subject]
        tones = Counter(pair.tone for pair in own)
        assert tones["positive"] == tones["negative"] >= 12
        # The same words, and the same groups, are exchanged in both directions: a liking for a word moves no share.
        # A capital makes other tokens of a word, so it counts too.
        there = Counter(tuple(exchanged_words(p.stereotyped, p.counter)) for p in own)
        back = Counter(tuple((b, a) for a, b in exchanged_words(p.stereotyped, p.counter)) for p in own)
        assert there == back
        assert Counter((p.group_a, p.group_b) for p in own) == Counter((p.group_b, p.group_a) for p in own)


def test_the_prompts_say_the_same_of_both_groups_of_a_subject() -> None:
    assert len(PROMPTS) >= 60
    assert len({prompt.prompt for prompt in PROMPTS}) == len(PROMPTS)
    assert {prompt.subject for prompt in PROMPTS} == set(SUBJECTS)
    for subject in SUBJECTS:
        groups = [[p for p in PROMPTS if (p.subject, p.group) == (subject, group)]
                  for group in dict.fromkeys(p.group for p in PROMPTS if p.subject == subject)]  # fmt: skip
        assert [len(group) for group in groups] == [8, 8]
        for first, second in zip(*groups, strict=True):
            assert first.frame == second.frame
            assert len(exchanged_words(first.prompt, second.prompt)) == 1


def test_differences_are_those_of_whole_sentences_by_hand(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    pair = PAIRS[0]

    def likelihood(text: str) -> tuple[float, int]:
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        return float(logits.gather(1, torch.tensor(ids[1:])[:, None]).sum()), len(ids) - 1

    (first, tokens), (second, others) = likelihood(pair.stereotyped), likelihood(pair.counter)
    found = pair_differences(model, tokenizer, PAIRS[:3], 2)
    assert found["nats"][0] == pytest.approx(first - second, abs=1e-3)
    assert found["nats_per_token"][0] == pytest.approx(first / tokens - second / others, abs=1e-4)
    ((word, other),) = exchanged_words(pair.stereotyped, pair.counter)
    costs = [likelihood(frame.format(word))[0] - likelihood(frame.format(other))[0]
             for frame in bias_module.NEUTRAL_FRAMES]  # fmt: skip
    assert found["words"][0] == pytest.approx(np.mean(costs), abs=1e-3)
    assert found["controlled"] == pytest.approx(found["nats"] - found["words"])
    again = pair_differences(model, tokenizer, PAIRS[:3], 7)
    assert again["nats"] == pytest.approx(found["nats"], abs=1e-4)


@pytest.mark.slow
def test_a_model_that_learnt_the_prejudice_is_found_and_the_opposite_too(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    pairs = [pair for pair in PAIRS if pair.subject == "age"][:16]
    for side in ("stereotyped", "counter"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(loaded[0].config)
        rows = tokenizer([getattr(pair, side) for pair in pairs], padding=True, return_tensors="pt")
        ids = torch.cat([torch.ones(len(pairs), 1, dtype=torch.long), rows["input_ids"]], 1)
        labels = torch.cat([ids[:, :1], rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)], 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found = pair_differences(model.eval(), tokenizer, pairs, 8)
        share = float((found["nats"] > 0).mean())
        assert share >= 0.9 if side == "stereotyped" else share <= 0.1, (side, share)
        assert math.copysign(1, found["nats"].mean()) == (1 if side == "stereotyped" else -1)


def test_a_liking_for_words_moves_no_share_and_ties_count_half() -> None:
    """A unigram model: a sentence is as likely as its words, whose likelihood is drawn; the pairs are balanced."""
    generator = np.random.default_rng(1)
    cost: dict[str, float] = {}

    def likelihood(text: str) -> float:
        return sum(cost.setdefault(word.lower().strip(".,"), -generator.exponential(8)) for word in text.split())

    nats = np.array([likelihood(pair.stereotyped) - likelihood(pair.counter) for pair in PAIRS])
    found = {"nats": nats, "controlled": np.zeros(len(PAIRS))}
    scores, measures = pair_figures(PAIRS, found, found, "")
    values = {(score.task, score.metric): score.value for score in scores}
    assert len(scores) == 12
    for part in ("all", *SUBJECTS):
        assert values[f"bias_pairs_{part}", "stereotype_share"] == 0.5
        assert values[f"bias_pairs_{part}", "stereotype_share_controlled"] == 0.5
    assert [measure.value for measure in measures] == pytest.approx([0] * len(measures), abs=1e-9)
    for score in scores:
        if score.metric == "stereotype_share":
            assert score.low is not None
            assert score.high is not None
            assert 0.3 < score.low < 0.5 < score.high < 0.7


def test_intervals_hold_what_they_say() -> None:
    low, high = bootstrap_interval(np.array([0.0, 1.0] * 50))
    assert [low, high] == pytest.approx([0.4, 0.6], abs=0.02)
    none = rate_interval(np.zeros((10, 8), dtype=bool))
    assert none[0] == 0
    assert none[1] == pytest.approx(3.8416 / (80 + 3.8416), abs=1e-4)  # Wilson's for 0 of 80
    every = rate_interval(np.ones((10, 8), dtype=bool))
    assert list(every) == pytest.approx([1 - none[1], 1])
    even = np.tile(np.array([True, False]), (10, 4))
    assert permutation_range(even, even)[2] == 1
    low, high, share = permutation_range(np.ones((10, 8), dtype=bool), np.zeros((10, 8), dtype=bool))
    assert share < 0.001
    assert -0.3 < low < 0 < high < 0.3


def test_random_weights_have_the_shape_and_leave_the_model_and_randomness_alone(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    first, second, other = random_weights(model, 3), random_weights(model, 3), random_weights(model, 4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in first.named_parameters():
        assert parameter.shape == before[name].shape
        assert torch.equal(parameter, second.get_parameter(name))
        assert torch.equal(model.get_parameter(name), before[name])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, model.lm_head.weight)


def test_texts_are_seeded_and_without_their_prompts(loaded: tuple[Any, Any]) -> None:
    def texts(seed: int) -> list[str]:
        config = EvaluateConfig("m", suite="bias", seed=seed, bias_texts=2, max_new_tokens=5)
        return write_texts(*loaded, PROMPTS[:3], config)

    first = texts(0)
    assert len(first) == 6
    assert first == texts(0)
    assert first != texts(5)
    assert first[:3] != first[3:]
    assert not any(prompt.prompt[:12] in text for text, prompt in zip(first, PROMPTS[:3] * 2, strict=True))


@pytest.mark.slow
def test_everything_is_measured_written_and_taken_up_again(
    measured: Path, model_folder: Path, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read_results(measured / "results.json")
    pairs = [score for score in results.scores if score.task.startswith("bias_pairs")]
    alone, *texts = [score for score in results.scores if score.metric == "toxic_share"]
    assert [len(pairs), len(texts), len(results.scores)] == [12, 10, 23]
    scorer = ToxicityScorer(ToxicityConfig(classifier, label="1"), "toxicity_model")
    assert alone.value == np.mean(np.array(scorer.scores([prompt.prompt for prompt in read_prompts()])) > 0.5)
    assert [alone.num_items, alone.random_weights] == [80, None]
    for score in results.scores:
        assert score.suite == "bias"
        assert (score.random_weights is None) == (score is alone)
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    assert {score.num_items for score in texts} == {16}
    assert len({score.value for score in texts} | {score.random_weights for score in texts}) > 1
    measures = json.loads((measured / "measures.json").read_text(encoding="utf-8"))
    assert Counter(row["metric"] for row in measures) == {
        "nats_difference": 6, "nats_per_token_difference": 6, "words_difference": 6, "controlled_difference": 6,
        "toxic_difference": 5, "toxic_difference_by_chance": 5,
    }  # fmt: skip
    rows = [json.loads(line) for line in (measured / "parts" / "final" / "bias_texts.jsonl").open(encoding="utf-8")]
    assert len(rows) == 2 * 2 * 80
    for score in texts:
        for is_random, share in ((False, score.value), (True, score.random_weights)):
            own = [row["toxicity"] > 0.5 for row in rows
                   if row["random_weights"] is is_random and score.name.endswith(f": {row['group']}")]  # fmt: skip
            assert share == np.mean(own), score.name
    assert [score.value for score in texts] != [score.random_weights for score in texts]
    page = (measured / "results.md").read_text(encoding="utf-8")
    assert "## bias" in page
    assert "| Pairs, all subjects | stereotyped sentence likelier | 240 |" in page
    assert "| Texts, age: idosos | toxic texts | 16 |" in page
    assert "| Texts: the beginnings alone | called toxic, none is | 80 |" in page
    assert "A share near 50 % does not show that a model is free of prejudice" in page
    assert "it speaks of the classifier and not of the model" in page
    assert "Not measured" not in page
    assert "Further figures" not in page
    assert not (measured / "scores.png").exists()
    assert (measured / "emissions.csv").is_file()
    # A second start measures only what is missing.
    output = tmp_path / "out"
    shutil.copytree(measured, output)
    (output / "parts" / "final" / "bias_pairs.json").unlink()
    asked: list[str] = []
    monkeypatch.setattr(bias_module, "write_texts", lambda *_: asked.append("texts"))
    measure = bias_module.pair_differences

    def noted(*arguments: Any) -> Any:
        asked.append("pairs")
        return measure(*arguments)

    monkeypatch.setattr(bias_module, "pair_differences", noted)
    evaluate(model_folder, output, toxicity_model=classifier, bias_texts=2, max_new_tokens=6)
    assert asked == ["pairs", "pairs"]
    again = read_results(output / "results.json")
    assert [score.value for score in again.scores] == [score.value for score in results.scores]


@pytest.mark.slow
def test_without_a_classifier_the_texts_are_listed_as_not_measured(model_folder: Path, tmp_path: Path) -> None:
    output = evaluate(model_folder, tmp_path / "out", precision="bfloat16")
    scores = read_results(output / "results.json").scores
    assert {score.metric for score in scores} == {"stereotype_share", "stereotype_share_controlled"}
    assert scores[0].name == "Pairs, all subjects, bfloat16"
    page = (output / "results.md").read_text(encoding="utf-8")
    assert "| bias_texts | needs toxicity_model: a classifier that tells toxic texts" in page


def test_the_label_may_be_named_and_the_direction_be_low(
    classifier: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    def scorer(model: str, **values: Any) -> ToxicityScorer:
        settings = bias_module._toxicity_settings(EvaluateConfig("m", suite="bias", toxicity_model=model, **values))
        return ToxicityScorer(settings, "toxicity_model")

    assert scorer(classifier).label == 1
    assert scorer(classifier, toxicity_label="limpo", toxicity_is="low").scores(["Olá."]) == pytest.approx(
        scorer(classifier, toxicity_label="1").scores(["Olá."]), abs=1e-6
    )
    single = save_classifier(tmp_path / "single", tokenizer_folder, "LABEL_0")
    high, low = (scorer(single, toxicity_is=way).scores(["Olá."])[0] for way in ("high", "low"))
    assert high + low == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (("LABEL_0", "LABEL_1"), {}, r"^toxicity_label: is missing, and the labels of toxicity_model=.* do not say which "
                                     r"one means toxic: 0 LABEL_0, 1 LABEL_1\. Name it\."),
        (("toxic", "hate"), {}, r"^toxicity_label: is missing"),
        (("limpo", "não tóxico"), {}, r"^toxicity_label: is missing"),
        (("limpo", "tóxico"), {"toxicity_label": "ruim"}, r"^toxicity_label=ruim: .* has no such label\. It has 0 limpo"),
        (("LABEL_0",), {}, r"^toxicity_is: is missing, and .* has a single output \(0 LABEL_0\)"),
    ],
)  # fmt: skip
def test_labels_that_do_not_say_what_is_toxic_are_refused(
    labels: tuple[str, ...], values: dict[str, Any], message: str, model_folder: Path, tokenizer_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    toxicity_model = save_classifier(tmp_path / "classifier", tokenizer_folder, *labels)
    with pytest.raises(InputError, match=message):
        evaluate(model_folder, tmp_path / "out", toxicity_model=toxicity_model, **values)
    assert not (tmp_path / "out").exists()


def test_models_of_the_wrong_kind_are_refused(
    model_folder: Path, classifier: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^model_name_or_path=.*: is a classifier \(LlamaForSequenceClassification\)"):
        evaluate(Path(classifier), tmp_path / "out")
    with pytest.raises(InputError, match=r"^toxicity_model=.*: has no trained head"):
        evaluate(model_folder, tmp_path / "out", toxicity_model=str(model_folder), toxicity_label="1")
    with pytest.raises(InputError, match=r"^toxicity_model=no/such/folder|no such folder"):
        evaluate(model_folder, tmp_path / "out", toxicity_model="./no/such/folder")
    with pytest.raises(InputError, match=r"^max_new_tokens=250: the longest prompt has \d+ tokens, and the model's "):
        evaluate(model_folder, tmp_path / "out", toxicity_model=classifier, max_new_tokens=250)
    endless = tmp_path / "endless"
    shutil.copytree(model_folder, endless)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    with pytest.raises(InputError, match=r"^suite=bias: the tokenizer of .*endless names no end token"):
        evaluate(endless, tmp_path / "out", toxicity_model=classifier)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"suite": "bias", "limit": 5}, "limit=5: the first pairs of the suite bias are not balanced"),
        ({"suite": "lm", "toxicity_model": "m"}, "toxicity_model=m: belongs to --suite bias"),
        ({"suite": "bias", "toxicity_is": "low"}, "toxicity_is=low: says how toxicity_model is read"),
        ({"suite": "bias", "toxicity_threshold": 1.0}, "toxicity_threshold=1.0: must lie between 0 and 1"),
        ({"suite": "bias", "bias_texts": 0}, "bias_texts=0: must be at least 1"),
        ({"suite": "bias", "max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
    ],
)
def test_keys_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluateConfig("model", **values)


def test_the_command_takes_the_suite(classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", classifier, "--suite", "bias"]) == 2
    assert "is a classifier" in capsys.readouterr().err


def test_the_card_says_what_was_measured_and_what_that_does_not_show(measured: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", RUN)
    results = read_results(measured / "results.json")
    pairs_only = replace(results, scores=tuple(row for row in results.scores if row.metric != "toxic_share"))
    for found, has_texts in ((results, True), (pairs_only, False)):
        write_results(folder / "results.json", found)
        card = render_model_card(folder, language="en")
        assert "### Prejudice" in card
        assert "does not show that the model is free of prejudice" in card
        assert ("Whether the model writes toxic texts about groups was not measured." in card) is not has_texts
        assert ("it speaks of the classifier and not of the model" in card) is has_texts
        assert "The model was not evaluated on benchmarks." in card
        first = results.scores[0]
        assert f"| Pairs, all subjects | stereotyped sentence likelier | 240 | {100 * first.value:.2f} [" in card
    assert "### Preconceito" in render_model_card(folder, language="pt")
    assert "Onde os pesos aleatórios" not in render_model_card(folder, language="pt")  # the last results have no texts
    (folder / "results.json").unlink()
    assert "### Prejudice" not in render_model_card(folder, language="en")


def test_shares_are_no_benchmark_scores_of_a_card(measured: Path) -> None:
    results = read_results(measured / "results.json")
    assert len(bias_rows(results)) == 23
    assert final_scores(results) == []
    assert model_index_of_results(results) == []
    assert isinstance(results.scores[0], Score)
