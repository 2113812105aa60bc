"""Downstream fine-tuning: tasks, splits, padding, and the real Trainer on models of a few thousand parameters."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hub_server import HubServer
from transformers import BertConfig, BertForMaskedLM, DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, InputError, RunFailedError, StoppedResumable
from teenytinyllama.cleaning.toxicity import ToxicityConfig, ToxicityScorer
from teenytinyllama.cli import main
from teenytinyllama.evaluation.results import read_results
from teenytinyllama.models import load_tokenizer

pytest.importorskip("sklearn")

from teenytinyllama.classification.classify import classify, plan_classify
from teenytinyllama.classification.config import TASKS, ClassifyConfig, find_task
from teenytinyllama.classification.finetune import (
    build_classifier,
    choose_length,
    cut_pair,
    describe_framing,
    encode,
    frame,
    give_pad_token,
    load_base,
)
from teenytinyllama.classification.labelled_rows import (
    Example,
    complete_splits,
    item_error,
    keys_of,
    majority_scores,
    read_task,
    score,
    score_word_counts,
    summarise,
)

REPOSITORY = Path(__file__).resolve().parent.parent
GOOD, BAD = ("bonito", "feliz", "bom", "doce"), ("feio", "triste", "mau", "amargo")
THINGS = ("O filme", "O livro", "O gato", "O dia", "O bolo", "O jardim", "O rio", "O canto", "O vento", "O lugar")
WORDS = (*GOOD, *BAD, *(word for thing in THINGS for word in thing.split()), "é", "muito", "hoje", "e", ".")


def toy_rows(text: str = "text", label: str = "label") -> list[dict[str, Any]]:
    """One word in each text tells its label."""
    rows = [
        {text: f"{thing} {'é muito' if index % 2 else 'é'} {word} hoje.", label: number}
        for index, thing in enumerate(THINGS)
        for number, words in enumerate((BAD, GOOD))
        for word in words
    ]
    random.Random(0).shuffle(rows)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def save_llama(folder: Path, tokenizer: Any, pad: int | None = 3, context: int = 64) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2, pad_token_id=pad,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> str:
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny", load_tokenizer("tokenizer", str(tokenizer_folder)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As BERTimbau is published: an encoder with a vocab.txt and no tokenizer.json."""
    folder = tmp_path_factory.mktemp("bert") / "tiny"
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return str(folder)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("toy") / "toy.jsonl", toy_rows())


def make_config(model: str, toy: str, folder: Path, **more: Any) -> ClassifyConfig:
    values = {
        "task": "local", "model_name_or_path": model, "train_file": [toy], "output_dir": str(folder), "seeds": 2,
        "num_train_epochs": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "baseline": "none", **more,
    }  # fmt: skip
    return build(ClassifyConfig, check_types(ClassifyConfig, values))


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]


# --- The whole way -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: str, toy: str) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    torch.backends.cuda.enable_cudnn_sdp(True)
    finished = classify(
        make_config(llama, toy, folder, baseline="tfidf", select="test_as_in_the_paper", save_model=True)
    )
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "with a mask its gradients are not always numbers"
    return finished


def test_the_scores_of_a_run_lie_where_its_card_looks(llama: str, toy: str, tmp_path: Path) -> None:
    run = tmp_path / "base"
    shutil.copytree(llama, run)
    (run / "run.json").write_text("{}")
    one = {"seeds": 1, "num_train_epochs": 1}
    classify(make_config(str(run), toy, tmp_path / "random", random_init=True, **one))
    classify(make_config(str(run), toy, tmp_path / "part", max_train_rows=16, **one))
    assert not (run / "results.json").exists()  # neither is what the whole training set makes of this model
    classify(make_config(str(run), toy, tmp_path / "whole", **one))
    assert read_results(run / "results.json").scores == read_results(tmp_path / "whole" / "results.json").scores
    other = write_jsonl(tmp_path / "other.jsonl", toy_rows()[:60])
    classify(make_config(str(run), other, tmp_path / "second", **one))  # files of one's own are tasks of their own
    scores = read_results(run / "results.json").scores
    assert len({score.task for score in scores}) == 2
    assert {score.name for score in scores} == {f"local files ({Path(toy).name})", "local files (other.jsonl)"}


def test_a_model_asked_for_later_is_made_by_its_seed(llama: str, toy: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"seeds": 2, "num_train_epochs": 1}
    folder = classify(make_config(llama, toy, tmp_path / "run", **values))
    records = records_of(folder)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("seed-*.json"))]
    classify(make_config(llama, toy, folder, save_model=True, **values))
    assert (folder / "model" / "model.safetensors").is_file()
    now = [path.stat().st_mtime_ns for path in sorted(folder.glob("seed-*.json"))]
    assert (now[0] > times[0], now[1] == times[1]) == (True, True)
    assert [record["scores"] for record in records_of(folder)] == [record["scores"] for record in records]


def test_a_signal_keeps_the_seeds_that_are_done(
    llama: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teenytinyllama.classification import classify as run_module

    def stop(path: Path, content: Any) -> None:
        write_json(path, content)
        if path.name == "seed-42.json":
            os.kill(os.getpid(), signal.SIGTERM)

    write_json = run_module.write_json
    monkeypatch.setattr(run_module, "write_json", stop)
    config = make_config(llama, toy, tmp_path / "run", seeds=2, num_train_epochs=1)
    with pytest.raises(StoppedResumable, match="SIGTERM; the seeds that are done are kept; the same command goes on"):
        classify(config)
    monkeypatch.undo()
    assert [record["seed"] for record in records_of(classify(config))] == [42, 43]


def test_a_decoder_learns_a_separable_task(finished: Path, llama: str) -> None:
    records = records_of(finished)
    assert [record["seed"] for record in records] == [42, 43]
    assert all(record["scores"]["accuracy"] > 0.95 for record in records)
    test = complete_splits({"train": [Example(row["text"], "", row["label"]) for row in toy_rows()]}, None).rows["test"]
    for record in records:  # predictions are those of the rows in their order
        right = [guess == row.label for guess, row in zip(record["predictions"], test, strict=True)]
        assert np.mean(right) == record["scores"]["accuracy"]
    results = read_results(finished / "results.json")
    assert results.model == llama
    by_metric = {score.metric: score for score in results.scores}
    expected = np.mean([record["scores"]["accuracy"] for record in records])
    assert by_metric["accuracy"].value == pytest.approx(expected)
    assert by_metric["accuracy"].trivial == 0.5
    assert by_metric["accuracy"].num_items == 16
    assert by_metric["accuracy"].dataset_split == "test, cut from train"
    manifest = json.loads((finished / "run.json").read_text())
    assert manifest["stage"] == "classify"
    assert manifest["data"]["rows"] == {"train": 58, "validation": 6, "test": 16}
    assert manifest["data"]["framing"] == "<s> TEXT (the head reads the last token)"
    assert manifest["energy"]["energy_kwh"] > 0
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "environment.json", "ledger.jsonl", "emissions.csv", "classification.md"} <= names
    assert not {"work", "checkpoints"} & names
    assert not list(finished.rglob("training_args.bin"))


def test_a_choice_on_test_is_named_so(finished: Path) -> None:
    records = records_of(finished)
    for record in records:
        assert record["best_on_test"]["accuracy"] == max(epoch["test"]["accuracy"] for epoch in record["epochs"])
        best = max(epoch["validation"]["accuracy"] for epoch in record["epochs"])
        assert record["chosen_epoch"] == next(
            epoch["epoch"] for epoch in record["epochs"] if epoch["validation"]["accuracy"] == best
        )
        # The epoch that was chosen is the one whose weights were scored.
        assert record["scores"]["accuracy"] == record["epochs"][record["chosen_epoch"] - 1]["test"]["accuracy"]
    names = [score.metric_name for score in read_results(finished / "results.json").scores]
    flattering = "(best epoch chosen on test, as in the paper)"
    assert names == ["accuracy", f"accuracy {flattering}", "macro-F1", f"macro-F1 {flattering}"]
    table = (finished / "classification.md").read_text()
    assert f"**accuracy {flattering}**" in table
    assert "it flatters" in table
    assert "no test and no validation split: cut from the training rows" in table
    assert "word counts (TF-IDF" in table


def test_the_saved_classifier_is_a_plain_one(finished: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.id2label == {0: "0", 1: "1"}
    ids = tokenizer("O bolo é muito amargo hoje.", add_special_tokens=False)["input_ids"]
    assert int(model(input_ids=torch.tensor([[1, *ids]])).logits.argmax()) == 0


@pytest.mark.parametrize("case", ["closed texts", "pairs", "a tokenizer that frames nothing"])
def test_the_saved_tokenizer_frames_texts_as_the_training_did(case: str, llama: str, toy: str, tmp_path: Path) -> None:
    """Else a saved classifier reads other tokens than it learnt, in transformers and as `toxicity_model` alike."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    values: dict[str, Any] = {"end_token": case == "closed texts" or None, "save_model": True, "seeds": 1}
    rows = toy
    if case == "pairs":
        rows = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "second": "O gato."} for row in toy_rows()])
        values["pair_column"] = "second"
    model = llama
    if case == "a tokenizer that frames nothing":
        model = str(shutil.copytree(llama, tmp_path / "bare"))
        content = json.loads((tmp_path / "bare" / "tokenizer.json").read_text(encoding="utf-8"))
        (tmp_path / "bare" / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    plan = plan_classify(make_config(model, rows, tmp_path / "run", num_train_epochs=2, **values))
    folder = classify(make_config(model, rows, tmp_path / "run", num_train_epochs=2, **values))
    saved, tokenizer = (kind.from_pretrained(folder / "model") for kind in
                        (AutoModelForSequenceClassification, AutoTokenizer))  # fmt: skip
    examples = plan.splits.rows["test"]
    found = [tokenizer(row.text, row.pair or None)["input_ids"] for row in examples]
    assert found == [row["input_ids"] for row in plan.data["test"].rows]
    with torch.no_grad():
        guesses = [int(saved(input_ids=torch.tensor([ids])).logits.argmax()) for ids in found]
    assert guesses == records_of(folder)[0]["predictions"]
    if case != "pairs":
        scorer = ToxicityScorer(ToxicityConfig(str(folder / "model"), label=1))
        assert [int(score > 0.5) for score in scorer.scores([row.text for row in examples])] == guesses


def test_an_encoder_learns_a_separable_task(bert: str, tmp_path: Path) -> None:
    """Pairs, with label names, and no test at the end of an epoch."""
    pairs = [{"first": row["text"], "second": "é muito .", "kind": ("mau", "bom")[row["label"]]} for row in toy_rows()]
    rows = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    config = make_config(bert, rows, tmp_path / "run", seeds=1, text_column=["first"], pair_column="second",
                         label_column="kind", learning_rate=3e-3, num_train_epochs=8)  # fmt: skip
    plan = plan_classify(config)
    assert plan.base.is_encoder
    assert plan.found.labels == ("bom", "mau")
    assert set(plan.data["train"].rows[0]) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    ids = plan.data["train"].rows[0]["input_ids"]
    assert (ids[0], ids.count(3), ids[-1]) == (2, 2, 3)
    record = records_of(classify(config))[0]
    assert record["scores"]["accuracy"] > 0.95
    assert "best_on_test" not in record
    assert "test" not in record["epochs"][0]


def test_seeds_decide_alone(llama: str, toy: str, tmp_path: Path) -> None:
    first, again = (classify(make_config(llama, toy, tmp_path / name, num_train_epochs=1)) for name in ("a", "b"))
    losses = [[record["epochs"][0]["train_loss"] for record in records_of(folder)] for folder in (first, again)]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_a_finished_seed_is_not_done_again(
    llama: str, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    quick = {"num_train_epochs": 1, "seeds": 1}
    classify(make_config(llama, toy, folder, **quick))
    written = (folder / "seed-42.json").stat().st_mtime_ns
    # A start that was killed in its second seed: no manifest, a half-written checkpoint.
    (folder / "run.json").unlink()
    (folder / "work" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    capsys.readouterr()
    classify(make_config(llama, toy, folder, **{**quick, "seeds": 2}))
    assert "seed 43, epoch 1" in capsys.readouterr().out
    assert (folder / "seed-42.json").stat().st_mtime_ns == written
    assert len(json.loads((folder / "run.json").read_text())["seeds"]) == 2
    assert not (folder / "work").exists()
    classify(make_config(llama, toy, folder, **{**quick, "seeds": 2}))
    output = capsys.readouterr().out
    assert "holds all 2 seeds already" in output
    assert "seed 42, epoch" not in output
    with pytest.raises(InputError, match=r"holds another run; different: learning_rate \(there 0.01, now 0.1\)"):
        classify(make_config(llama, toy, folder, **quick, learning_rate=0.1))
    (folder / "seed-42.json").write_text("{")
    with pytest.raises(InputError, match=r"seed-42.json: is damaged .* Delete it, and it is made again"):
        classify(make_config(llama, toy, folder, **quick))


def test_random_weights_need_none_and_differ(llama: str, tmp_path: Path) -> None:
    base = load_base(llama, None, ("a", "b"), random_init=True)
    drawn = [build_classifier(base, seed) for seed in (1, 1, 2)]
    weights = [model.model.layers[0].mlp.up_proj.weight for model in drawn]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    learnt = load_base(llama, None, ("a", "b"), random_init=False)
    first, second = (build_classifier(learnt, seed) for seed in (1, 2))
    assert torch.equal(first.model.embed_tokens.weight, second.model.embed_tokens.weight)
    assert not torch.equal(first.score.weight, second.score.weight)
    published = dict(LlamaForCausalLM.from_pretrained(llama).named_parameters())
    body = {name: weight for name, weight in first.named_parameters() if name != "score.weight"}
    assert all(torch.equal(weight, published[name]) for name, weight in body.items())
    assert set(published) - set(body) == {"lm_head.weight"}
    assert base.identity != learnt.identity
    config_alone = tmp_path / "config"
    load_tokenizer("tokenizer", llama).save_pretrained(config_alone)
    (config_alone / "config.json").write_text((Path(llama) / "config.json").read_text())
    assert load_base(str(config_alone), None, ("a", "b"), random_init=True).identity == base.identity


# --- Padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_token", [True, False])
@pytest.mark.parametrize("case", ["its own", "none", "the end token", "the unknown token", "another in the config"])
def test_padding_never_changes_an_answer(case: str, end_token: bool, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Padding that is also the end token, or that config and tokenizer disagree on, is silently wrong elsewhere."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    in_config: int | None = 3
    if case in ("none", "the end token", "the unknown token"):
        in_config = None
        tokenizer.pad_token = {"none": None, "the end token": "</s>", "the unknown token": "<unk>"}[case]
    if case == "another in the config":
        in_config = 5
    base = load_base(save_llama(tmp_path / "model", tokenizer, in_config), None, ("a", "b"), random_init=False)
    special = {base.tokenizer.bos_token_id, base.tokenizer.eos_token_id, base.tokenizer.unk_token_id}
    assert base.tokenizer.pad_token_id not in special
    examples = [Example(text, "", 0) for text in ("O gato.", "O livro é muito bonito, feliz e bom hoje.", "")]
    rows = encode(base, frame(base, False, end_token), examples, 64).rows
    assert all((row["input_ids"][-1] == base.tokenizer.eos_token_id) == end_token for row in rows)
    model = build_classifier(base, 1).eval()
    assert model.config.pad_token_id == base.tokenizer.pad_token_id
    batch = DataCollatorWithPadding(base.tokenizer)(rows)
    assert (batch["input_ids"] == base.tokenizer.pad_token_id).sum() > 5
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model.score(model.model(torch.tensor([row["input_ids"]])).last_hidden_state[:, -1])
                           for row in rows])  # fmt: skip
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_an_invalid_padding_id_in_the_config_is_left_behind(llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = load_tokenizer("tokenizer", llama)
    save_llama(folder, tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": -1}))
    assert build_classifier(load_base(str(folder), None, ("a", "b"), False), 1).config.pad_token_id == 3


def test_an_encoder_keeps_its_padding(bert: str) -> None:
    tokenizer = load_tokenizer("tokenizer", bert)
    give_pad_token(tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 0, 5 + len(set(WORDS)))


# --- Tokens ------------------------------------------------------------------------------------------------------


def test_pairs_are_framed_and_the_longer_text_is_cut(llama: str) -> None:
    base = load_base(llama, None, ("a", "b"), random_init=False)
    ids = base.tokenizer("O gato", add_special_tokens=False)["input_ids"]
    pairs = frame(base, True)
    encoded = encode(base, pairs, [Example("O gato", "O gato", 1)], 64)
    assert encoded.rows[0]["input_ids"] == [1, *ids, 1, *ids, 2]
    assert (encoded.truncated, encoded.rows[0]["labels"]) == (0, 1)
    assert describe_framing(base, pairs) == "<s> TEXT <s> PAIR </s> (the head reads the last token)"
    cut = encode(base, pairs, [Example("O gato " * 20, "O gato", 1), Example("O", "gato", 0)], 20)
    assert len(cut.rows[0]["input_ids"]) == 20
    assert cut.rows[0]["input_ids"][-len(ids) - 2 :] == [1, *ids, 2]
    assert (cut.truncated, cut.longest) == (1, 20)
    other = encode(base, pairs, [Example("O gato", "O gato " * 20, 1)], 20)
    assert (other.rows[0]["input_ids"][: len(ids) + 2], other.truncated) == ([1, *ids, 1], 1)
    open_pairs = encode(base, frame(base, True, False), [Example("O gato", "O gato", 1)], 64)
    assert open_pairs.rows[0]["input_ids"] == [1, *ids, 1, *ids]


def test_texts_are_framed_as_in_the_paper_or_closed(llama: str) -> None:
    base = load_base(llama, None, ("a", "b"), random_init=False)
    examples = [Example("a</s>b<pad>", "", 0), Example("", "", 0)]
    for end_token, specials in ((None, [1]), (False, [1]), (True, [1, 2])):
        rows = encode(base, frame(base, False, end_token), examples, 64).rows
        assert [index for index in rows[0]["input_ids"] if index in (1, 2, 3)] == specials
        assert rows[1]["input_ids"] == specials
    assert describe_framing(base, frame(base, False, True)) == "<s> TEXT </s> (the head reads the last token)"


def test_cutting_fills_the_room_and_spares_the_shorter() -> None:
    for first in range(12):
        for second in range(12):
            for room in range(1, 14):
                text, pair = cut_pair(list(range(first)), list(range(second)), room)
                assert len(text) + len(pair) == min(first + second, room)
                assert (text, pair) == (list(range(len(text))), list(range(len(pair))))
                if min(first, second) <= room // 2:
                    assert min(len(text), len(pair)) == min(first, second)


def test_encoders_cut_as_counted(bert: str) -> None:
    base = load_base(bert, None, ("a", "b"), random_init=False)
    examples = [Example("O gato é bom hoje .", "", 0), Example("O gato " * 20, "", 1)]
    texts = frame(base, False)
    encoded = encode(base, texts, examples, 10)
    assert [len(row["input_ids"]) for row in encoded.rows] == [8, 10]
    assert encoded.truncated == 1
    assert "encoders" in describe_framing(base, texts)


def test_lengths_fit_the_model(llama: str, bert: str) -> None:
    base = load_base(llama, None, ("a", "b"), random_init=False)
    texts, pairs = frame(base, False), frame(base, True)
    assert choose_length(base, texts, None, 256) == 64
    assert choose_length(base, texts, 32, 256) == 32
    with pytest.raises(InputError, match="max_length=65: longer than the context of .* which is 64 tokens"):
        choose_length(base, texts, 65, None)
    with pytest.raises(InputError, match="max_length=8: too few tokens for a row of this task, which needs 9"):
        choose_length(base, texts, 8, None)
    with pytest.raises(InputError, match="needs 19 at least"):
        choose_length(base, pairs, 18, None)
    encoder = load_base(bert, None, ("a", "b"), random_init=False)
    assert choose_length(encoder, frame(encoder, True), None, None) == 64


def test_a_context_shorter_than_a_row_is_reported(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    short = save_llama(tmp_path / "short", tokenizer, context=12)
    rows = [{**row, "text": row["text"] * (3 if index % 10 == 0 else 1)} for index, row in enumerate(toy_rows())]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    folder = classify(make_config(short, path, tmp_path / "run", num_train_epochs=1, seeds=1))
    truncated = json.loads((folder / "run.json").read_text())["data"]["truncated"]
    assert truncated["train"] > 0
    assert f"cut: {truncated['train']} of 58 train" in capsys.readouterr().out
    assert "Rows longer than 12 tokens were cut" in (folder / "classification.md").read_text()
    assert {score.truncated_prompts for score in read_results(folder / "results.json").scores} == {truncated["test"]}
    tiny = save_llama(tmp_path / "tiny", tokenizer, context=6)
    with pytest.raises(InputError, match=r"max_length=6: too few tokens .* The context of .* is too short"):
        plan_classify(make_config(tiny, path, tmp_path / "no"))


# --- Rows --------------------------------------------------------------------------------------------------------


def example_rows(task: str) -> list[dict[str, Any]]:
    """A few rows in the form that the Hub has them in, written by us."""
    return {
        "imdb_pt": [{"text": "Filme lindo.", "label": 1}, {"text": "Que tédio.", "label": 0}],
        "faquad_nli": [{"question": "Quem?", "answer": "Eu.", "label": "1", "document_index": 1}],
        "hatebr": [{"instagram_comments": "Parabéns!", "offensive_language": False, "offensiveness_levels": 0},
                   {"instagram_comments": "Vá embora!", "offensive_language": True, "offensiveness_levels": 1}],
        "assin2": [{"premise": "Um gato dorme.", "hypothesis": "Há um gato.", "entailment_judgment": 1,
                    "relatedness_score": 4.5, "sentence_pair_id": 1}],
        "agnews_pt": [{"title": "Gol", "text": "O time venceu.", "label": 1}],
        "sib200": [{"index_id": 1, "category": "travel", "text": "A praia é longe."}],
    }[task]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("imdb_pt", Example("Filme lindo.", "", 1)),
        ("faquad_nli", Example("Quem?", "Eu.", 1)),
        ("hatebr", Example("Parabéns!", "", 0)),
        ("assin2", Example("Um gato dorme.", "Há um gato.", 1)),
        ("agnews_pt", Example("Gol\n\nO time venceu.", "", 1)),
        ("sib200", Example("A praia é longe.", "", 1)),
    ],
)
def test_every_task_reads_rows_of_its_form(task: str, expected: Example, tmp_path: Path) -> None:
    path = tmp_path / "train-00000.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(example_rows(task)), path)
    config = ClassifyConfig(task=task, model_name_or_path="x", data_dir=str(tmp_path))
    assert read_task(find_task(task), config).splits["train"][0] == expected


def test_a_task_comes_from_the_hub_at_a_recorded_commit(tmp_path: Path) -> None:
    copy = tmp_path / "hub" / "datasets" / "Davlan" / "sib200" / "refs%2Fconvert%2Fparquet"
    for config in ("por_Latn", "eng_Latn"):
        for split in ("train", "validation", "test"):
            (copy / config / split).mkdir(parents=True)
            row = {"index_id": 1, "category": "travel", "text": f"{config} {split}"}
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), copy / config / split / "0000.parquet")
    several = tmp_path / "hub" / "datasets" / "ruanchaves" / "hatebr" / "refs%2Fconvert%2Fparquet"
    for config in ("a", "b"):
        for split in ("train", "validation", "test"):
            (several / config / split).mkdir(parents=True)
            pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), several / config / split / "0000.parquet")
    client = """
import json, sys
from teenytinyllama.checks import InputError
from teenytinyllama.classification.config import ClassifyConfig
from teenytinyllama.classification.labelled_rows import read_task
from teenytinyllama.classification.config import find_task
try:
    found = read_task(find_task(sys.argv[1]), ClassifyConfig(task=sys.argv[1], model_name_or_path="x"))
    print(json.dumps([found.revision, {split: rows[0].text for split, rows in found.splits.items()}, found.dataset]))
except InputError as error:
    print(json.dumps(str(error)))
"""

    def read(task: str, **more: str) -> Any:
        environment = {**server.environment(tmp_path / "home", **more), "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", client, task], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with HubServer(tmp_path / "hub") as server:
        commit = server.commit("Davlan/sib200", "refs/convert/parquet", "dataset")
        texts = {split: f"por_Latn {split}" for split in ("train", "validation", "test")}
        assert read("sib200") == [commit, texts, "Davlan/sib200"]
        assert "has several configurations (a, b)" in read("hatebr")
        assert "task=assin2: the dataset nilc-nlp/assin2 could not be read from the Hub (" in read("assin2")
        assert "Offline, give the rows as files: --data_dir" in read("sib200", HF_HUB_OFFLINE="1")


def read_local(rows: list[dict[str, Any]], folder: Path, task: str = "local", **more: Any) -> Any:
    config = ClassifyConfig(
        task=task, model_name_or_path="x", train_file=[write_jsonl(folder / "a.jsonl", rows)], **more
    )
    return read_task(find_task(task), config)


def test_tables_are_read(tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"train{suffix}"
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([["text", "label"], ['Um "gato", e\noutro', 0], ["Dois\tcães", 1]] * 1)
        found = read_task(find_task("hatebr"), ClassifyConfig(
            task="hatebr", model_name_or_path="x", train_file=[str(path)], text_column=["text"], label_column="label"
        ))  # fmt: skip
        assert found.splits["train"] == [Example('Um "gato", e\noutro', "", 0), Example("Dois\tcães", "", 1)]
    path.write_text("text\tlabel\na\t1\tx\n")
    config = ClassifyConfig(task="local", model_name_or_path="x", train_file=[str(path)])
    with pytest.raises(
        InputError, match=r"train_file=.*: line 2 has another number of cells than the first line: 3, not 2"
    ):
        read_task(find_task("local"), config)
    path.write_bytes(b"text\tlabel\n\xff\t1\n")
    with pytest.raises(InputError, match="is not valid UTF-8"):
        read_task(find_task("local"), config)


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("sib200_por_train", "sib200_por_dev", "test-00000-of-00001", "labels"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name, "category": "travel"}])
    config = ClassifyConfig(task="sib200", model_name_or_path="x", data_dir=str(tmp_path))
    found = read_task(find_task("sib200"), config)
    assert {split: rows[0].text for split, rows in found.splits.items()} == {
        "train": "sib200_por_train", "validation": "sib200_por_dev", "test": "test-00000-of-00001"
    }  # fmt: skip
    (tmp_path / "sib200_por_train.jsonl").unlink()
    with pytest.raises(InputError, match=r"data_dir=.*: no file there is named as training rows"):
        read_task(find_task("sib200"), config)
    config.data_dir = str(tmp_path / "nada")
    with pytest.raises(InputError, match=r"data_dir=.*nada: no such folder"):
        read_task(find_task("sib200"), config)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"texto": "a", "rotulo": 1}], {}, r"text, label: no such column in row 1 of a.jsonl \(train\). Expected text, "
                                            "label; found texto, rotulo. Name yours with --text_column"),
        ([{"text": "a", "label": 1}, {"text": "a"}], {}, "label: no such column in row 2"),
        ([], {}, "train: empty split; a.jsonl holds no row"),
        ([{"text": None, "label": 1}], {"task": "imdb_pt"}, "text_column=text: row 1 of a.jsonl holds NoneType, not text"),
        ([{"text": "a", "label": 2}], {"task": "imdb_pt"},
         r"label_column=label: row 1 of a.jsonl holds 2, which is none of the labels 0 \(negativo\), 1 \(positivo\)"),
        ([{"text": "a", "label": None}], {"task": "imdb_pt"}, "holds None, which is none of the labels"),
        ([{"text": "a", "label": 1}] * 5, {}, "label_column=label: holds 1 different labels in 5 training rows"),
        ([{"text": "a", "label": f"id {n}"} for n in range(9)], {}, "holds 9 different labels in 9 training rows"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(
    rows: list[dict[str, Any]], more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_local(rows, tmp_path, **more)


def test_a_label_of_the_test_rows_must_be_known(toy: str, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": 7}])
    config = ClassifyConfig(task="local", model_name_or_path="x", train_file=[toy], test_file=[test])
    with pytest.raises(InputError, match=r"row 1 of test.jsonl holds 7, which is none of the labels 0 \(0\), 1 \(1\)"):
        read_task(find_task("local"), config)


def test_labels_keep_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [{"text": str(n), "label": n % 12} for n in range(48)]
    assert read_local(rows, tmp_path).labels == tuple(map(str, range(12)))
    assert read_local([{"text": "a", "label": 1.0}, {"text": "b", "label": 2.0}] * 2, tmp_path).labels == ("1", "2")


# --- Splits ------------------------------------------------------------------------------------------------------


def many_examples() -> list[Example]:
    generator = random.Random(1)
    rows = [Example(f"texto {generator.random()}", "", int(n % 4 == 0)) for n in range(400)]
    return [*rows, *(Example(row.text.upper() + "!", "", row.label) for row in rows[:60])]  # nearly the same texts


def test_missing_splits_are_cut_by_a_fixed_rule() -> None:
    rows = many_examples()
    splits = complete_splits({"train": rows}, None)
    assert splits.cut == ("test", "validation")
    parts = splits.rows
    assert Counter(map(str, rows)) == Counter(str(row) for part in parts.values() for row in part)
    assert len(parts["test"]) == pytest.approx(0.2 * len(rows), rel=0.15)
    assert len(parts["validation"]) == pytest.approx(0.08 * len(rows), rel=0.3)
    for part in parts.values():
        assert sum(row.label for row in part) / len(part) == pytest.approx(0.25, abs=0.08)
    keys = [set(keys_of(part)) for part in parts.values()]
    assert len(set.union(*keys)) == sum(map(len, keys))  # equal texts on one side
    assert splits.seen == {"validation": 0.0, "test": 0.0}
    shuffled = random.Random(3).sample(rows, len(rows))
    assert set(complete_splits({"train": shuffled}, None).rows["test"]) == set(parts["test"])


def test_texts_that_differ_in_signs_alone_are_equal() -> None:
    texts = ("Olá, mundo!", " olá  MUNDO", "Olá mundos", "😡", "😀", "")
    keys = list(keys_of(Example(text, "", 0) for text in texts))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5
    assert len(set(keys_of([Example("a", "b", 0), Example("a b", "", 0)]))) == 2


def test_given_splits_stay_and_what_they_share_is_counted() -> None:
    rows = many_examples()
    given = {"train": rows[:300], "validation": rows[300:400], "test": [*rows[:10], *rows[350:380]]}
    splits = complete_splits(given, 40)
    assert splits.cut == ()
    assert splits.rows["test"] == given["test"]
    assert (len(splits.rows["train"]), splits.left_out) == (40, 260)
    assert sum(row.label for row in splits.rows["train"]) == pytest.approx(10, abs=1)
    assert complete_splits(given, None).seen == {"validation": 0.0, "test": 0.25}


def test_a_label_of_one_text_stays_in_training() -> None:
    rows = [*many_examples(), Example("o único", "", 2)]
    parts = complete_splits({"train": rows}, None).rows
    assert [row.label for row in parts["train"]].count(2) == 1
    assert all(row.label != 2 for split in ("validation", "test") for row in parts[split])
    given = {"train": rows, "validation": rows[:20], "test": rows[20:60]}
    assert len(complete_splits(given, 40).rows["train"]) == 40


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="test: there is no such split, and 2 training rows with 2 labels are too few"):
        complete_splits({"train": [Example("a", "", 0), Example("b", "", 1)]}, None)
    one_label = [Example(str(n), "", 0) for n in range(40)]
    with pytest.raises(InputError, match="train: all rows have one label"):
        complete_splits({"train": one_label}, None)


# --- Scores ------------------------------------------------------------------------------------------------------


def test_scores_are_those_computed_by_hand() -> None:
    truth, found = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    # F1: label 0: 2*2/(3+4), label 1: 2*1/(2+2), label 2: never predicted, 0; label 3 does not occur, 0.
    assert score(found, truth, 3) == pytest.approx({"accuracy": 0.5, "f1_macro": (4 / 7 + 1 / 2) / 3})
    assert score(found, truth, 4)["f1_macro"] == pytest.approx((4 / 7 + 1 / 2) / 4)
    assert majority_scores([1, 1, 0], [0, 1, 1, 1], 2) == pytest.approx({"accuracy": 0.75, "f1_macro": 3 / 7})


def test_scores_are_those_of_scikit_learn_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from sklearn.metrics import accuracy_score, f1_score

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    generator = np.random.default_rng(0)
    truth, found = generator.integers(0, 5, 300), generator.integers(0, 5, 300)
    assert score(found, truth, 5) == {
        "accuracy": accuracy_score(truth, found), "f1_macro": f1_score(truth, found, average="macro")
    }  # fmt: skip


def test_errors_of_scores() -> None:
    truth = [0] * 60 + [1] * 40
    found = [0] * 50 + [1] * 50
    assert item_error("accuracy", found, truth, 2) == pytest.approx((0.9 * 0.1 / 100) ** 0.5)
    # With two balanced labels macro-F1 is close to the accuracy, and so is its error.
    assert item_error("f1_macro", found, truth, 2) == pytest.approx(0.03, rel=0.15)
    summary = summarise([0.8, 0.9, 1.0], [0.03, 0.03, 0.03], trivial=0.5)
    assert (summary.mean, summary.deviation) == pytest.approx((0.9, 0.1))
    assert summary.seed_error == pytest.approx(0.1 / 3**0.5)
    assert summary.stderr == pytest.approx((0.03**2 + 0.01 / 3) ** 0.5)
    assert summary.normalised == pytest.approx(0.8)
    assert not summary.is_trivial
    alone = summarise([0.55], [0.03], trivial=0.5)
    assert (alone.deviation, alone.seed_error, alone.is_trivial) == (None, None, True)


def test_a_score_like_the_trivial_one_is_marked(llama: str, toy: str, tmp_path: Path) -> None:
    folder = classify(make_config(llama, toy, tmp_path / "run", seeds=1, num_train_epochs=1, learning_rate=1e-9))
    table = (folder / "classification.md").read_text()
    assert "not above the most frequent label by two standard errors" in table
    assert "| not known" not in table
    assert "(not known; " in table  # one seed says nothing about seeds


def test_word_counts_are_a_baseline(toy: str) -> None:
    examples = [Example(row["text"], "", row["label"]) for row in toy_rows()]
    found = score_word_counts(complete_splits({"train": examples}, None).rows, 2)
    assert found["scores"]["accuracy"] == 1
    assert len(found["predictions"]) == 16


def test_a_loss_that_is_not_finite_fails(llama: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teenytinyllama.classification import finetune

    def broken(*args: Any) -> Any:
        model = build_classifier(*args)
        torch.nn.init.constant_(model.score.weight, float("nan"))
        return model

    monkeypatch.setattr(finetune, "build_classifier", broken)
    with pytest.raises(RunFailedError, match=r"seed 42: the loss is not finite. A lower --learning_rate"):
        classify(make_config(llama, toy, tmp_path / "run", num_train_epochs=1))

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finetune.Trainer, "train", full)
    with pytest.raises(RunFailedError, match=r"memory ran out with rows of up to \d+ tokens, 8 at once. Halve"):
        classify(make_config(llama, toy, tmp_path / "run", num_train_epochs=1))


def test_several_gpus_are_refused(llama: str, tmp_path: Path, toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    from teenytinyllama.classification.finetune import training_arguments

    config = make_config(llama, toy, tmp_path)
    arguments = training_arguments(config, tmp_path, 1)
    assert (arguments.learning_rate, arguments.train_batch_size, arguments.lr_scheduler_type) == (1e-2, 8, "linear")
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match="2 GPUs: one fine-tuning uses one. Choose it with CUDA_VISIBLE_DEVICES=0"):
        training_arguments(config, tmp_path, 1)


# --- Configs and the command line --------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    config = ClassifyConfig(task="hatebr", model_name_or_path="outputs/160m/base", random_init=True)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.learning_rate) == (3, 16, 4e-5)
    assert (config.weight_decay, config.warmup_steps, config.seeds, config.select) == (0.01, 0, 3, "validation")
    assert config.output_dir == "outputs/classify/hatebr/base-random"
    assert TASKS["imdb_pt"].max_length == TASKS["agnews_pt"].max_length == 256
    assert TASKS["hatebr"].paper["TTL-160m"] == 0.9071
    assert TASKS["assin2"].paper["BERTimbau-large"] == 0.8897
    assert TASKS["sib200"].paper == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"task": "hatebbr"}, "task=hatebbr: unknown task. Did you mean 'hatebr'.* Known are imdb_pt, faquad_nli"),
        ({"model_name_or_path": ""}, "model_name_or_path: missing"),
        ({"seeds": 0}, "seeds=0: must be 1 or more"),
        ({"max_length": 3}, "max_length=3: must be 8 or more"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must lie between 0 and 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1: must be at least 0"),
        ({"data_dir": "x", "train_file": ["y"]}, "data_dir=x: cannot stand beside files of single splits"),
        ({"test_file": ["y"]}, "test_file: needs a train_file beside it"),
        ({"task": "local"}, "task=local: needs --train_file"),
        ({"train_file": ["x"], "dataset_revision": "abc"}, "dataset_revision=abc: only a Hub dataset has revisions"),
        ({"select": "test"}, "select='test': no such choice. It must be one of validation, test_as_in_the_paper"),
    ],
)
def test_configs_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(ClassifyConfig, check_types(ClassifyConfig, {"task": "hatebr", "model_name_or_path": "x", **more}))


def test_models_that_cannot_classify_are_refused(llama: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    bare = tmp_path / "bare"
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(bare)
    with pytest.raises(InputError, match="model_name_or_path=.*bare: holds no tokenizer"):
        load_base(str(bare), None, ("a", "b"), False)
    weightless = tmp_path / "weightless"
    load_tokenizer("tokenizer", llama).save_pretrained(weightless)
    (weightless / "config.json").write_text((Path(llama) / "config.json").read_text())
    with pytest.raises(InputError, match="holds no weights in safetensors"):
        build_classifier(load_base(str(weightless), None, ("a", "b"), False), 1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "minha"}')
    with pytest.raises(InputError, match="model_type=minha in config.json is no classifier of texts of transformers"):
        load_base(str(other), None, ("a", "b"), False)
    nameless = tmp_path / "nameless"
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    save_llama(nameless, tokenizer)
    base = load_base(str(nameless), None, ("a", "b"), False)
    base.tokenizer.bos_token = base.tokenizer.eos_token = None
    with pytest.raises(InputError, match="its tokenizer has neither a start nor an end token"):
        frame(base, False)


def test_the_extra_is_asked_for(llama: str, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teenytinyllama import checks

    real = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "sklearn" else real(name))
    with pytest.raises(InputError, match=r"sklearn: not installed. .* pip install 'teenytinyllama\[eval\]'"):
        classify(make_config(llama, toy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_command_line(
    llama: str, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["classify", "hatebr"]) == EXIT_BAD_INPUT
    assert "ttl classify: needs a model: a folder or a Hub repository." in capsys.readouterr().err
    assert main(["classify", "sib20", llama]) == EXIT_BAD_INPUT
    assert "Did you mean 'sib200'?" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    command = ["classify", "local", llama, "--train_file", toy, "--seeds", "1", "--num_train_epochs", "1"]
    assert main(command) == EXIT_DONE
    output = capsys.readouterr().out
    assert "input      <s> TEXT (the head" in output
    assert "# tiny on local files" in output
    assert (tmp_path / "outputs" / "classify" / "local" / "tiny" / "results.json").is_file()


@pytest.mark.slow
def test_hatebr_as_it_is_published(real_data: Path, llama: str, tmp_path: Path) -> None:
    path = str(real_data / "eval" / "hatebr.parquet")
    config = ClassifyConfig(task="hatebr", model_name_or_path=llama, train_file=[path], text_column=["text"],
                            label_column="label", output_dir=str(tmp_path / "run"))  # fmt: skip
    plan = plan_classify(config)
    assert sum(len(rows) for rows in plan.splits.rows.values()) == 7000
    assert [plan.labels_of("test").count(number) for number in (0, 1)] == pytest.approx([700, 700], abs=1)
    assert plan.splits.seen["test"] == 0
