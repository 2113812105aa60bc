"""Conversations become tokens with labels, in a folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.checks import InputError
from teenytinyllama.data.conversations import ConversationsConfig, prepare_conversations
from teenytinyllama.energy.emissions import read_emissions
from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.models import load_tokenizer
from teenytinyllama.stage_folder import read_manifest


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    loaded = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(loaded)
    return loaded


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
    return found


def pairs(how_many: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Quem é a menina {i}?", "completion": f"A menina {i} é boa."} for i in range(how_many)]


def turns(*words: int) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": "casa " * n} for i, n in enumerate(words)]}


def test_rows_hold_the_tokens_of_the_template_and_learn_the_answers(tmp_path: Path, tokenizer: Any) -> None:
    config = ConversationsConfig(
        inputs=[write(tmp_path / "a.jsonl", pairs(200))], output_dir=str(tmp_path / "out"), validation_fraction=0.2
    )
    folder = prepare_conversations(config, tokenizer)
    manifest = read_manifest("output_dir", folder, "conversations", "")
    seen = 0
    for split in ("train", "validation"):
        rows = rows_of(folder, split)
        assert manifest[split]["conversations"] == len(rows) > 10
        assert {name: source["documents"] for name, source in manifest[split]["sources"].items()} == {"a": len(rows)}
        assert manifest[split]["tokens"] == sum(len(row["input_ids"]) for row in rows)
        for row in rows:
            seen += 1
            assert row["input_ids"] == tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
            learnt = [label for label in row["labels"] if label != -100]
            assert tokenizer.decode(learnt) == row["messages"][1]["content"] + "</s>"
            assert all(label in (-100, index) for label, index in zip(row["labels"], row["input_ids"], strict=True))
    assert seen == 200
    before = (folder / "train.parquet").stat().st_mtime_ns
    assert prepare_conversations(config, tokenizer) == folder
    assert (folder / "train.parquet").stat().st_mtime_ns == before, "made a second time"
    config.assistant_only_loss = False
    with pytest.raises(InputError, match="holds conversations of other inputs or settings"):
        prepare_conversations(config, tokenizer)
    config.output_dir = str(tmp_path / "all")
    assert all(row["labels"] == row["input_ids"] for row in rows_of(prepare_conversations(config, tokenizer), "train"))


@pytest.mark.parametrize("assistant_only", [True, False])
def test_an_answer_of_weight_0_is_read_and_not_learnt(tmp_path: Path, tokenizer: Any, assistant_only: bool) -> None:
    row = turns(1, 2, 1, 3, 1, 4)
    for place, weight in ((1, 0), (3, 1), (5, 0)):
        row["messages"][place]["weight"] = weight
    config = ConversationsConfig(
        inputs=[write(tmp_path / "a.jsonl", [row])], output_dir=str(tmp_path / "out"), validation_fraction=0.0,
        assistant_only_loss=assistant_only,
    )  # fmt: skip
    found = rows_of(prepare_conversations(config, tokenizer), "train")[0]
    learnt = tokenizer.decode([label for label in found["labels"] if label != -100])
    assert learnt.count("casa") == (3 if assistant_only else 6)
    assert [turn["weight"] for turn in found["messages"]] == [None, 0, None, None, None, 0]
    assert found["input_ids"] == tokenizer.apply_chat_template(found["messages"], return_dict=True)["input_ids"]


def test_a_part_of_which_nothing_is_learnt_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    row = turns(2, 4, 2, 5)
    row["messages"][1]["weight"] = 0
    config = ConversationsConfig(
        inputs=[write(tmp_path / "a.jsonl", [row])], output_dir=str(tmp_path / "out"), context=24,
        validation_fraction=0.0,
    )  # fmt: skip
    folder = prepare_conversations(config, tokenizer)
    assert len(rows_of(folder, "train")) == 1
    assert read_manifest("x", folder, "conversations", "")["dropped"] == {"no answer with a weight above 0": 1}


@pytest.mark.parametrize(
    ("long_conversations", "kept", "dropped"),
    [
        ("split", [[2, 2], [3, 3]], {"longer than the context": 1}),
        ("drop", [], {"longer than the context": 1}),
        ("cut", [[2, 2, 14]], {"cut at the context": 1}),
    ],
)
def test_a_long_conversation(
    tmp_path: Path, tokenizer: Any, long_conversations: Any, kept: list[list[int]], dropped: dict[str, int]
) -> None:
    config = ConversationsConfig(
        inputs=[write(tmp_path / "a.jsonl", [turns(1, 1), turns(2, 2, 90, 2, 3, 3)])], output_dir=str(tmp_path / "out"),
        context=40, validation_fraction=0.0, long_conversations=long_conversations,
    )  # fmt: skip
    folder = prepare_conversations(config, tokenizer)
    rows = rows_of(folder, "train")
    assert [[len(message["content"].split()) for message in row["messages"]] for row in rows] == [[1, 1], *kept]
    assert all(len(row["input_ids"]) <= 40 for row in rows)
    for row in rows:  # bits per byte divide by the bytes of the messages, so they hold what the tokens hold
        held = "".join(message["content"] for message in row["messages"])
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == held
    assert read_manifest("x", folder, "conversations", "")["dropped"] == dropped


def test_a_cut_before_the_answer_leaves_a_row_out(tmp_path: Path, tokenizer: Any) -> None:
    config = ConversationsConfig(
        inputs=[write(tmp_path / "a.jsonl", [turns(1, 1), turns(90, 2)])], output_dir=str(tmp_path / "out"),
        context=40, validation_fraction=0.0, long_conversations="cut",
    )  # fmt: skip
    folder = prepare_conversations(config, tokenizer)
    assert len(rows_of(folder, "train")) == 1
    assert read_manifest("x", folder, "conversations", "")["dropped"] == {"longer than the context": 1}


def test_nothing_held_out_is_learnt(tmp_path: Path, tokenizer: Any) -> None:
    asked = pairs(3)
    config = ConversationsConfig(
        inputs=[
            write(tmp_path / "a.jsonl", [*pairs(5), {"prompt": asked[0]["prompt"].upper(), "completion": "Outra."}])
        ],
        validation_inputs=[write(tmp_path / "b.jsonl", asked)],
        output_dir=str(tmp_path / "out"),
    )
    folder = prepare_conversations(config, tokenizer)
    assert len(rows_of(folder, "validation")) == 3
    assert [row["messages"][0]["content"] for row in rows_of(folder, "train")] == [
        row["prompt"] for row in pairs(5)[3:]
    ]
    assert read_manifest("x", folder, "conversations", "")["dropped"] == {
        "asked or answered in validation_inputs too": 4
    }


def test_bad_rows_are_refused_or_counted(tmp_path: Path, tokenizer: Any) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    path = write(tmp_path / "a.jsonl", [*pairs(4), bad, {"text": "x"}])
    config = ConversationsConfig(inputs=[path], output_dir=str(tmp_path / "out"), validation_fraction=0.0)
    with pytest.raises(
        InputError, match="2 rows are no conversation .1 x roles that do not alternate, first a.jsonl:5; 1 x no known form, "
        "first a.jsonl:6.. Mend them, or set invalid_rows: drop",
    ):  # fmt: skip
        prepare_conversations(config, tokenizer)
    assert not (tmp_path / "out").exists()
    config.invalid_rows = "drop"
    folder = prepare_conversations(config, tokenizer)
    assert len(rows_of(folder, "train")) == 4
    manifest = read_manifest("x", folder, "conversations", "")
    assert manifest["dropped"] == {"roles that do not alternate": 1, "no known form": 1}
    assert manifest["first_dropped"]["no known form"] == "a.jsonl:6"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "inputs=..: empty. Give at least one file of conversations"),
        ({"output_dir": ""}, "output_dir: missing. Give a folder for the tokens"),
        ({"context": 8}, "context=8: must be at least 16 tokens"),
        ({"validation_fraction": 0.9}, "validation_fraction=0.9: must lie between 0 and 0.5"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConversationsConfig(**{"inputs": ["a.jsonl"], "output_dir": "out", **changes})


def test_bad_inputs_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    empty = write(tmp_path / "a.jsonl", [turns(99, 99)])
    config = ConversationsConfig(inputs=[empty], output_dir=str(tmp_path / "out"), context=16)
    with pytest.raises(InputError, match="a.jsonl: hold no conversation to learn from .1 x longer than the context"):
        prepare_conversations(config, tokenizer)
    config.output_dir = str(tmp_path)
    with pytest.raises(InputError, match="is not empty .a.jsonl.. Choose an empty or new folder"):
        prepare_conversations(config, tokenizer)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.parquet").write_text("mine")
    config.output_dir = str(tmp_path / "mine")
    with pytest.raises(InputError, match="is not empty .train.parquet."):
        prepare_conversations(config, tokenizer)
    assert (tmp_path / "mine" / "train.parquet").read_text() == "mine"
    config.output_dir = empty
    with pytest.raises(InputError, match="output_dir=.*a.jsonl: is a file. Choose a folder"):
        prepare_conversations(config, tokenizer)
    config.inputs, config.output_dir = [str(tmp_path / "a.csv")], str(tmp_path / "out")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match="unknown kind of file. Known are .parquet, .jsonl, .json, .ndjson"):
        prepare_conversations(config, tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config.inputs = [empty]
    with pytest.raises(InputError, match="assistant_only_loss=True: the chat template has no {% generation %} marks"):
        prepare_conversations(config, tokenizer)


def test_the_preparation_is_measured_and_a_place_is_no_other_data(tmp_path: Path, tokenizer: Any) -> None:
    where = {"inputs": [write(tmp_path / "a.jsonl", pairs(50))], "output_dir": str(tmp_path / "out")}
    folder = prepare_conversations(ConversationsConfig(**where, country_iso_code="PRT", pue=1.2), tokenizer)
    total = read_emissions(folder / "emissions.csv")
    account = read_ledger(folder)
    assert total is not None
    assert account is not None
    assert (total.country_iso_code, total.pue) == ("PRT", pytest.approx(1.2))
    assert 0 < account.total.energy_kwh == pytest.approx(total.energy_kwh)
    before = (folder / "run.json").read_bytes()
    assert prepare_conversations(ConversationsConfig(**where), tokenizer) == folder
    assert (folder / "run.json").read_bytes() == before
    # what a kill leaves behind the measurement is no reason to refuse
    (folder / "run.json").unlink()
    for split in ("train", "validation"):
        (folder / f"{split}.parquet").unlink()
    assert prepare_conversations(ConversationsConfig(**where), tokenizer) == folder
    # bad rows leave nothing
    bad = ConversationsConfig(inputs=[write(tmp_path / "b.jsonl", [{"x": 1}])], output_dir=str(tmp_path / "none"))
    with pytest.raises(InputError, match="are no conversation"):
        prepare_conversations(bad, tokenizer)
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="region=x: country_iso_code=BRA has one intensity only"):
        prepare_conversations(ConversationsConfig(**{**where, "region": "x"}), tokenizer)
