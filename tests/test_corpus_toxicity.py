"""Toxic documents by a classifier of the user's choice: label, direction, threshold, batches, and a real small one."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from test_corpus_factory import config, make, text
from test_corpus_sources import one_source, texts_of
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from teenytinyllama.arguments import build
from teenytinyllama.checks import InputError
from teenytinyllama.cleaning.toxicity import ToxicityConfig, ToxicityScorer, judge
from teenytinyllama.models import load_tokenizer

pytest.importorskip("datatrove")


def llama_config(tokenizer: Any, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=3, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> str:
    """A classifier whose weights are drawn, with the labels `limpo` and `tóxico`."""
    folder = tmp_path_factory.mktemp("classifier") / "two"
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    torch.manual_seed(0)
    names = {0: "limpo", 1: "tóxico"}
    model = LlamaForSequenceClassification(
        llama_config(tokenizer, id2label=names, label2id={name: number for number, name in names.items()})
    )
    with torch.no_grad():
        model.score.weight.normal_(0, 2)  # scores that lie apart
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TEXTS = [text(number) for number in range(12)] + ["curto", "", text(3) * 20]


def scores(classifier: str, **keys: Any) -> list[float]:
    return ToxicityScorer(build(ToxicityConfig, {"model": classifier, "label": "tóxico", **keys})).scores(TEXTS)


def test_the_label_has_a_direction_and_the_batch_does_not_matter(classifier: str) -> None:
    high = scores(classifier)
    assert all(0 <= score <= 1 for score in high)
    assert max(high) - min(high[:12]) > 0.05
    assert high[13] == 0.0  # nothing is said
    assert scores(classifier, batch_size=1) == pytest.approx(high, abs=1e-4)
    assert scores(classifier, label=1) == high
    other = scores(classifier, label="limpo", toxic_is="low")
    assert other[:13] == pytest.approx(high[:13], abs=1e-5)
    assert scores(classifier, label="limpo")[0] == pytest.approx(1 - high[0], abs=1e-5)
    # A long text is scored by windows spread over it, as many as are asked for.
    assert scores(classifier, max_windows=1)[14] != high[14]
    config = ToxicityConfig(model=classifier, threshold=0.6)
    assert judge(0.6, config) is None
    drop = judge(0.61, config)
    assert drop is not None
    assert (drop.reason, drop.value, drop.limit) == ("toxic", 0.61, 0.6)


@pytest.mark.parametrize(("change", "message"), [
    ({"label": None}, "toxicity.label: is missing, and the model has several: 0 limpo, 1 tóxico. Name the one"),
    ({"label": "ofensivo"}, "toxicity.label=ofensivo: the model has no such label. It has 0 limpo, 1 tóxico."),
    ({"threshold": 1.5}, "threshold=1.5: must lie between 0 and 1."),
    ({"toxic_is": "left"}, "toxic_is=left: must be high or low."),
    ({"batch_size": 0}, "batch_size=0"),
])  # fmt: skip
def test_settings_of_the_classifier_that_cannot_be(classifier: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        scores(classifier, **change)


def test_a_model_without_a_trained_head_is_refused_before_any_work(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"toxicity.model=.*base: has no trained head .score.weight would be drawn"):
        make(config(tmp_path) | {"toxicity": {"model": str(tmp_path / "base"), "label": 1}})
    assert not (tmp_path / "out" / "work").exists()


def test_a_corpus_without_its_toxic_documents_and_one_without_the_step(
    tmp_path: Path, classifier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in TEXTS[:12]), encoding="utf-8")
    found = scores(classifier)[:12]
    threshold = sorted(found)[8]  # three lie above it
    keys = one_source(tmp_path, path)
    out = make(keys | {"toxicity": {"model": classifier, "label": "tóxico", "threshold": threshold}})
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    step = passport["sources"]["one"]["steps"]["toxicity"]
    assert step["reasons"] == {"toxic": sum(score > threshold for score in found)} == {"toxic": 3}
    assert texts_of(out) == [row for row, score in zip(TEXTS, found, strict=False) if score <= threshold]
    assert "toxicity" not in passport["left_out"]
    assert "warning: toxicity" not in capsys.readouterr().out
    make(keys)
    assert "warning: toxicity is left out: no classifier is named." in capsys.readouterr().out
    assert "**Step left out: toxicity.**" in (out / "passport.md").read_text(encoding="utf-8")


def test_another_model_at_the_same_place_scores_again(tmp_path: Path, classifier: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in TEXTS[:12]), encoding="utf-8")
    keys = one_source(tmp_path, path) | {"toxicity": {"model": str(folder), "label": 1, "threshold": 0.5}}
    first = texts_of(make(keys))
    model = LlamaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.mul_(-1)
    model.save_pretrained(folder)
    assert sorted(first + texts_of(make(keys))) == sorted(TEXTS[:12])


@pytest.mark.slow
def test_a_classifier_trained_by_ttl_drops_toxic_comments(
    tmp_path: Path, real_data: Path, tokenizer_folder: Path
) -> None:
    from teenytinyllama.arguments import check_types
    from teenytinyllama.classification.classify import classify
    from teenytinyllama.classification.config import ClassifyConfig

    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    told = real_data / "eval" / "told_br.parquet"
    values = {"task": "local", "model_name_or_path": str(tmp_path / "base"), "train_file": [str(told)], "seeds": 1,
              "text_column": ["text"], "label_column": "toxic", "num_train_epochs": 2, "learning_rate": 3e-3,
              "max_length": 48, "baseline": "none", "save_model": True, "output_dir": str(tmp_path / "told")}  # fmt: skip
    out = classify(build(ClassifyConfig, check_types(ClassifyConfig, values)))
    rows = pyarrow.parquet.read_table(told).slice(0, 2000).to_pylist()
    rows = [row for row in rows if len(row["text"]) > 60]
    path = tmp_path / "comments.jsonl"
    path.write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows), encoding="utf-8")
    toxicity = {"model": str(out / "model"), "label": 1, "threshold": 0.6}
    kept = set(texts_of(make(one_source(tmp_path, path) | {"toxicity": toxicity})))
    dropped = [row["toxic"] for row in rows if row["text"] not in kept]
    left = [row["toxic"] for row in rows if row["text"] in kept]
    assert len(dropped) > 50
    # Of what is dropped a far larger part is toxic than of what is kept: the label has the right direction.
    assert sum(dropped) / len(dropped) > sum(left) / len(left) + 0.15
