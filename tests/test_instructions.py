"""Rows of many forms become conversations."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.data import instructions, turns
from teenytinyllama.data.instructions import Conversation, Counts, read_conversations, split_to_fit
from teenytinyllama.data.readers import read_records
from teenytinyllama.data.turns import RowError, read_turns

USER, ASSISTANT = {"role": "user", "content": "Oi?"}, {"role": "assistant", "content": "Olá."}
SYSTEM = {"role": "system", "content": "Seja breve."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": " Oi? "}, {"from": "gpt", "value": "Olá.\n"}], "source": "x"},
        {"instruction": "Oi?", "input": "", "output": "Olá."},
        {"instruction": "Oi?", "input": None, "output": "Olá."},
        {"instruction": "Oi?", "context": "", "response": "Ola\u0301."},
        {"prompt": "Oi?", "completion": "Olá."},
        {"prompt": "Oi?", "completion": "Olá.", "messages": [{"role": "user", "content": ""}, {"role": "assistant"}]},
        {"messages": [USER, ASSISTANT, {"role": None, "content": None}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Oi?"}, {"type": "text", "text": None}]},
                ASSISTANT,
            ]
        },
        {"prompt": "Oi?", "response": "Olá.", "messages": None},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"question": "Oi?", "answer": "Olá."},
        {"input": "Oi?", "output": "Olá."},
        {"prompt": "Oi?", "question": " Oi? ", "completion": "Olá.", "output": "Olá."},
        {"messages": [{"role": "Human", "content": "Oi?"}, {"role": "chatgpt", "content": "Olá."}]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "text", "text": "Ol"}, {"type": "text", "text": "á."}]},
            ]
        },
        # what joined data sets leave behind: columns that are there and empty
        {"instruction": None, "prompt": "Oi?", "completion": "Olá.", "messages": []},
        {"instruction": "", "input": float("nan"), "prompt": "Oi?", "completion": "", "output": "Olá."},
        {
            "messages": [],
            "conversations": [
                {"role": None, "content": None, "from": "human", "value": "Oi?", "weight": None},
                {"role": None, "content": "", "from": "gpt", "value": "Olá.", "weight": 1},
                None,
            ],
        },
        {"messages": [{"role": "system", "content": " "}, USER, ASSISTANT], "system_prompt": None},
    ],
)
def test_every_form_gives_the_same_turns(row: dict[str, Any]) -> None:
    assert read_turns(row).messages == [USER, ASSISTANT]


def test_inputs_and_system_texts() -> None:
    assert read_turns({"instruction": "Some.", "input": "1 e 2", "output": "3", "system": "Conte."}).messages == [
        {"role": "system", "content": "Conte."},
        {"role": "user", "content": "Some.\n\n1 e 2"},
        {"role": "assistant", "content": "3"},
    ]
    dolly = {"instruction": "Quando?", "context": "Foi em 1822.", "response": "Em 1822."}
    assert read_turns(dolly).messages[0]["content"] == "Quando?\n\nFoi em 1822."
    messages = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "E?"}, ASSISTANT]
    assert read_turns({"messages": messages}).messages == messages


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Oi"}, turns.UNKNOWN_FORM),
        ({"prompt": "Oi", "chosen": "a", "rejected": "b"}, turns.UNKNOWN_FORM),
        ({"messages": ["Oi"]}, turns.NOT_TEXT),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, turns.NOT_TEXT),
        ({"prompt": "Oi", "completion": 3}, turns.NOT_TEXT),
        ({"instruction": "Oi", "input": 3, "output": "a"}, turns.NOT_TEXT),
        ({"prompt": "Oi", "completion": "\ud83d"}, turns.NOT_UNICODE),
        ({"messages": [{"role": "tool", "content": "x"}, ASSISTANT]}, turns.TOOL_TURN),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "soma"}]}]}, turns.TOOL_TURN),
        ({"messages": [{"role": "narrador", "content": "x"}, ASSISTANT]}, f"{turns.UNKNOWN_ROLE}: 'narrador'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT]},
            f"{turns.OTHER_PART}: 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": "y"}]}, ASSISTANT]},
            f"{turns.OTHER_PART}: 'image_url'",
        ),
        ({"messages": [{**USER, "from": "gpt"}, ASSISTANT]}, "role and from that differ"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, turns.BAD_WEIGHT),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, turns.NOTHING_LEARNT),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "Outra coisa."}, turns.TWO_SYSTEMS),
        (
            {"messages": [USER, ASSISTANT], "conversations": [USER, {**ASSISTANT, "content": "Não."}]},
            "messages and conversations that differ",
        ),
        ({"prompt": "Oi?", "question": "E aí?", "answer": "Olá."}, "prompt and question that differ"),
        ({"prompt": "Oi?", "completion": "Olá.", "output": "Não."}, "completion and output that differ"),
        ({"messages": [USER, {**ASSISTANT, "value": "Não."}]}, "content and value that differ"),
        ({"prompt": "Oi?", "completion": "Olá.", "label": False}, turns.ONE_ANSWER_LABELLED),
        ({"prompt": "Oi?", "completion": "  "}, turns.EMPTY_TURN),
        ({"instruction": "Oi?", "system": 3, "output": "a"}, turns.NOT_TEXT),
        ({"instruction": "Oi?", "history": "x", "output": "a"}, turns.NOT_TEXT),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, turns.EMPTY_TURN),
        ({"messages": [ASSISTANT, USER]}, turns.BAD_ORDER),
        ({"messages": [USER, USER, ASSISTANT]}, turns.BAD_ORDER),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, turns.BAD_ORDER),
        ({"messages": [USER, ASSISTANT, USER]}, turns.NO_ANSWER),
        ({"messages": [SYSTEM]}, turns.NO_ANSWER),
        ({"messages": []}, turns.NO_ANSWER),
    ],
)
def test_rows_that_are_no_conversation_have_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as error:
        read_turns(row)
    assert str(error.value) == reason


TURNS_FORMS: list[dict[str, Any]] = [
    {"messages": [USER, ASSISTANT]},
    {"instruction": "Oi?", "output": "Olá."},
    {"prompt": [USER], "completion": "Olá."},
]


@pytest.mark.parametrize("form", TURNS_FORMS)
@pytest.mark.parametrize("name", turns.SYSTEM_KEYS)
def test_a_system_column_begins_every_form(form: dict[str, Any], name: str) -> None:
    assert read_turns({**form, name: "Seja breve. "}) == turns.Turns([SYSTEM, USER, ASSISTANT], [])
    pair = turns.read_pair({"prompt": "Oi?", "chosen": "Olá.", "rejected": "Não.", name: "Seja breve."})
    assert (pair.chosen, pair.unused) == ([SYSTEM, USER, ASSISTANT], [])
    assert (
        read_turns({"messages": [{**SYSTEM, "role": "developer"}, USER, ASSISTANT], name: "Seja  breve."}).messages[0]
        == SYSTEM
    )


def test_a_history_comes_before_the_question() -> None:
    more = [{"role": "user", "content": "E?"}, {"role": "assistant", "content": "Sim."}]
    row = {"instruction": "E?", "output": "Sim.", "history": [["Oi?", "Olá."]], "system": "Seja breve."}
    assert read_turns(row) == turns.Turns([SYSTEM, USER, ASSISTANT, *more], [])
    assert read_turns({**row, "history": [USER, ASSISTANT]}).messages == [SYSTEM, USER, ASSISTANT, *more]
    pair = turns.read_pair({"question": "E?", "chosen": "Sim.", "rejected": "Não.", "history": [["Oi?", "Olá."]]})
    assert pair.chosen == [USER, ASSISTANT, *more]


def test_columns_that_no_turn_is_made_of_are_counted_by_name() -> None:
    named = {"role": "user", "content": "Oi?", "name": "Ana", "weight": 1}
    rows: list[dict[str, Any]] = [
        {
            "messages": [named, ASSISTANT],
            "id": 7,
            "prompt": "Oi?",
            "source": "s",
            "metadata": "license: MIT",
            "nota": None,
        },
        {"instruction": "E?", "output": "Sim.", "id": 8},
        {"text": "nada", "id": 9},
    ]
    counts = Counts()
    assert len(list(read_conversations((("f:1", "f", row) for row in rows), counts, 0.0))) == 2
    assert counts.unused == {"id": 2, "prompt": 1, "turn.name": 1}


def test_unused_columns_have_names_that_can_be_written_however_deep_they_are() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert read_turns({"messages": [USER, ASSISTANT], "x": deep, "\ud83d": 1}).unused == ["x", "\\ud83d"]


def test_many_reasons_are_counted_without_what_was_found() -> None:
    counts = Counts()
    for number in range(500):
        counts.drop(f"{turns.UNKNOWN_ROLE}: 'pessoa {number}'", f"a:{number}")
    assert (len(counts.dropped), counts.dropped[turns.UNKNOWN_ROLE], counts.dropped.total()) == (21, 480, 500)
    assert counts.first_dropped[turns.UNKNOWN_ROLE] == "a:20"


def test_duplicates_and_bad_rows_are_counted_with_their_first_place() -> None:
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("a:1", "a", {"messages": [USER, ASSISTANT]}),
        ("a:2", "a", {"prompt": "oi? ", "completion": "OLÁ."}),  # the same but for case and space
        ("a:3", "a", {"prompt": "Oi?", "completion": "Outra."}),
        ("a:4", "a", {"text": "x"}),
        ("b:1", "b", {"text": "x"}),
        ("b:2", "b", {"prompt": "Oi?", "completion": "Mais.", "source": "s"}),
    ]
    counts = Counts()
    kept = list(read_conversations(rows, counts, 0.0))
    assert [place for _, _, place in kept] == ["a:1", "a:3", "b:2"]
    assert [(split, conversation.source) for split, conversation, _ in kept] == [("train", s) for s in "aas"]
    assert counts.dropped == {instructions.DUPLICATE: 1, turns.UNKNOWN_FORM: 2}
    assert counts.first_dropped == {instructions.DUPLICATE: "a:2", turns.UNKNOWN_FORM: "a:4"}


def test_the_split_is_by_the_first_question() -> None:
    rows = [(f"a:{i}", "a", {"prompt": f"Pergunta {i % 200}?", "completion": f"Resposta {i}."}) for i in range(1_000)]
    sides: dict[str, set[str]] = {}
    for split, conversation, _ in read_conversations(rows, Counts(), 0.2):
        sides.setdefault(conversation.first_question(), set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert 20 < sum(found == {"validation"} for found in sides.values()) < 60
    half = {c.first_question(): s for s, c, _ in read_conversations(rows[:500], Counts(), 0.2)}
    assert all(sides[question] == {split} for question, split in half.items()), "more data moved a question"


@pytest.mark.parametrize("how_many", [2, 3, 10])
@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_of_two_questions_one_is_held_out(how_many: int, fraction: float) -> None:
    rows = [(f"a:{i}", "a", {"prompt": f"Pergunta {i}?", "completion": f"Resposta {i}."}) for i in range(how_many)]
    splits = {place: split for split, _, place in read_conversations(rows, Counts(), fraction)}
    assert set(splits.values()) == {"train", "validation"}
    assert splits == {place: split for split, _, place in read_conversations(rows[::-1], Counts(), fraction)}
    assert {split for split, _, _ in read_conversations(rows, Counts(), 0.0)} == {"train"}
    assert {split for split, _, _ in read_conversations(rows[:1], Counts(), 0.5)} == {"train"}


def test_questions_with_the_same_long_answer_stay_on_one_side() -> None:
    rows = [
        ("", "s", {"prompt": f"De que modo {number} se pergunta?", "answer": f"Responde-se por extenso, e sempre assim, {number // 5}."})
        for number in range(500)
    ]  # fmt: skip
    # one more question joins the answers 0 and 1 into one family
    rows.append(("", "s", {"messages": [
        {"role": "user", "content": "E os dois?"}, {"role": "assistant", "content": rows[0][2]["answer"]},
        {"role": "user", "content": "E mais?"}, {"role": "assistant", "content": rows[5][2]["answer"].upper()},
    ]}))  # fmt: skip
    sides: dict[str, set[str]] = {}
    for split, conversation, _ in read_conversations(rows, Counts(), 0.3):
        sides.setdefault(conversation.messages[-1]["content"].casefold(), set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert sides[rows[0][2]["answer"].casefold()] == sides[rows[5][2]["answer"].casefold()]
    assert {next(iter(found)) for found in sides.values()} == {"train", "validation"}
    short = [("", "s", {"prompt": f"Quanto é {number}?", "answer": "A resposta é 7."}) for number in range(200)]
    assert {split for split, _, _ in read_conversations(short, Counts(), 0.3)} == {"train", "validation"}


def test_a_conversation_is_split_where_it_fits() -> None:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": "x" * n} for i, n in enumerate([1, 1, 3, 3, 9, 9, 1, 2, 1, 1])
    ]

    def fits(messages: list[dict[str, str]]) -> bool:
        return sum(len(message["content"]) for message in messages) <= 10 + len(SYSTEM["content"])

    parts, left_out = split_to_fit(Conversation([SYSTEM, *turns], "s"), fits)
    assert [part.messages for part in parts] == [[SYSTEM, *turns[:4]], [SYSTEM, *turns[6:]]]
    assert left_out == 1
    assert {part.source for part in parts} == {"s"}
    assert split_to_fit(Conversation(turns[4:6]), fits) == ([Conversation(turns[4:6])], 0)


def test_rows_of_all_files_are_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "Oi?", "completion": "Olá."}, {"prompt": "É?", "completion": "É."}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert all(list(read_records("inputs", file)) == rows for file in files)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "inputs=.*a.json: not JSON .*Give one list of objects"),
        ("a.json", b"3", "inputs=.*a.json: must be one list of JSON objects"),
        ("a.json", b'["x"]', "must be one list of JSON objects"),
        ("a.json", b'["\xff"]', "byte 2 is not valid UTF-8"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b"{}\n{", "line 2 is not JSON"),
        ("a.parquet", b"x", "not a readable parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_records("inputs", tmp_path / name))


@pytest.mark.slow
def test_real_instructions(real_data: Path) -> None:
    counts = Counts()
    folder = real_data / "instruct"
    rows = (
        (f"{path.name}:{number}", path.stem, row)
        for path in sorted(folder.glob("*.parquet"))
        if "preference" not in path.name
        for number, row in enumerate(read_records("inputs", path), start=1)
    )
    kept = Counter(split for split, _, _ in read_conversations(rows, counts, 0.03))
    assert kept["train"] > 17_000
    assert 300 < kept["validation"] < 900
    assert sum(counts.dropped.values()) < 10


def test_dates_outside_python_s_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    days = pyarrow.array([-(10**17)], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["Oi?"], "day": days}), path)
    with pytest.raises(InputError, match=r"inputs=.*a\.parquet: a row after row 0 cannot be read"):
        list(read_records("inputs", path))
