"""`ttl compare`: systems, prompts, answers that are written once, what is refused, and a judge."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import other_tool
from made_study import a_vote, vote_on
from test_chat import ANSWER, QUESTION, chat_folder, tiny_model  # noqa: F401  # a fixture

from teenytinyllama import cli
from teenytinyllama.chat.generation import Sampling
from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.checks import InputError
from teenytinyllama.models import load_tokenizer
from teenytinyllama.people.answers import parse_system, read_given
from teenytinyllama.people.compare import CompareConfig, make_study, plan_study, run_compare
from teenytinyllama.people.judge import describe_judge, format_judge
from teenytinyllama.people.study import KINDS, Prompt, dump_prompts, read_prompts, read_study, spread
from teenytinyllama.people.votes import JUDGE_VOTES_NAME, VoteFile


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder with a base model and a chat model; weights large enough for texts that differ."""
    top = tmp_path_factory.mktemp("models")
    for name in ("base", "chat"):
        tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
        if name == "chat":
            install_chat_template(tokenizer)
        model = tiny_model(tokenizer, context=256)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_((6 if name == "base" else 5) if weight.ndim == 2 else 1)
        model.save_pretrained(top / name)
        tokenizer.save_pretrained(top / name)
    return top


def config_of(folder: Path, **more: Any) -> CompareConfig:
    return CompareConfig(
        output_dir=str(folder / "comparison"), **{"n_prompts": 3, "max_new_tokens": 8, "serve": False, **more}
    )


def words_of(models: Path) -> list[str]:
    return [f"base={models / 'base'}", f"chat={models / 'chat'}"]


def answers_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "comparison" / "answers" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# --- prompts


def test_own_prompts_are_fifteen_of_each_kind() -> None:
    for form in ("chat", "base"):
        prompts = read_prompts(form)
        assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(KINDS, 15)
        assert len({prompt.prompt for prompt in prompts}) == 120
        assert all(prompt.reference for prompt in prompts)
    for prompt in prompts:  # of the form base: a person's answer goes on, and does not say the end again
        end, begin = (re.findall(r"\w+", text.lower()) for text in (prompt.prompt, prompt.reference or ""))
        assert end[-2:] != begin[:2], prompt.id
        assert (prompt.reference or " ").strip() == prompt.reference


def test_prompts_are_spread_over_the_kinds() -> None:
    chosen = spread(read_prompts("chat"), 20)
    assert sorted(Counter(prompt.kind for prompt in chosen).values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    with pytest.raises(InputError, match="n_prompts=121: must lie between 1 and 120"):
        spread(read_prompts("chat"), 121)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "kind": "letter", "prompt": "Escreva."},
        {"prompt": "Diga.", "reference": "Digo."},
        {"question": "Quem?", "reference": "Eu.", "answer": "de um modelo"},
        {"instruction": "Some.", "input": "2 e 2", "output": "4"},
        {"messages": [{"role": "user", "content": "Oi?"}, {"role": "assistant", "content": "Olá."}]},
    ]
    found = read_prompts(str(write_rows(tmp_path / "p.jsonl", rows)))
    assert found[:3] == [Prompt("a", "letter", "Escreva."), Prompt("p-0002", "", "Diga.", "Digo."),
                         Prompt("p-0003", "", "Quem?", "Eu.")]  # fmt: skip
    assert [(prompt.prompt, prompt.reference) for prompt in found[3:]] == [("Some.\n\n2 e 2", "4"), ("Oi?", "Olá.")]
    (tmp_path / "p.txt").write_text("Um.\n\nDois.\n", encoding="utf-8")
    assert [prompt.prompt for prompt in read_prompts(str(tmp_path / "p.txt"))] == ["Um.", "Dois."]


@pytest.mark.parametrize(("rows", "message"), [
    ([], "holds no prompt"),
    ([{"x": 1}], "row 1: no known form"),
    ([{"prompt": 3}], "row 1: prompt is no text"),
    ([{"prompt": " \n"}], "row 1: its prompt is empty"),
    ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "two prompts have the id 'x'"),
    ([{"prompt": "a"}, {"prompt": "a"}], "two prompts have the text 'a'"),
])  # fmt: skip
def test_files_without_prompts_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(str(write_rows(tmp_path / "p.jsonl", rows)))
    with pytest.raises(InputError, match="prompts=nada"):
        read_prompts("nada")


# --- systems


def test_systems_are_named_by_their_place(tmp_path: Path, models: Path) -> None:
    chat = parse_system(str(models / "chat"))
    assert (chat.form, chat.name.endswith("-chat")) == ("model", True)
    assert parse_system("lhama=ana/modelo@step100").revision == "step100"
    assert parse_system("ana/modelo@step100").name == "ana-modelo-step100"
    assert parse_system("references").form == "references"
    assert parse_system(f"outro={write_rows(tmp_path / 'a.jsonl', [{}])}").form == "answers"
    for word, message in (("a.gguf", "MODEL=a.gguf"), (f"a/b={models}", "'a/b' cannot be the name of a system")):
        with pytest.raises(InputError, match=message):
            parse_system(word)


def test_what_is_no_comparison_is_refused_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    base, chat = words_of(models)
    for words, message in (
        ([base], "1 system given, and a comparison needs two or more"),
        ([base, base], "two systems are called base"),
        ([base, "x=nada"], "name_or_path=nada: neither a folder nor"),
        ([base, f"x={models}"], "config.json"),
    ):
        with pytest.raises(InputError, match=message):
            make_study(config_of(tmp_path), words)
    assert not (tmp_path / "comparison").exists()
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "carta.txt").write_text("minha")
    with pytest.raises(InputError, match=r"holds carta.txt and no comparison. Choose a new folder"):
        make_study(config_of(tmp_path), [base, chat])
    assert cli.main(["compare", "--output_dir", str(tmp_path / "novo"), "--serve", "false"]) == 2


@pytest.mark.parametrize(("rows", "message"), [
    ([{"id": "a", "answer": "1"}], r"answers 1 of the 2 prompts .none to b."),
    ([{"id": "a", "answer": "1"}, {"id": "a", "answer": "2"}], "row 2: answers the prompt 'a' again"),
    ([{"id": "a", "answer": 1}], "row 1: has no text in answer"),
    ([{"answer": "1"}], "row 1: has neither id nor prompt"),
    ([{"id": "c", "answer": "1"}], "1 rows belong to none of them, such as 'c'"),
    ([{"id": "a", "prompt": "outra", "answer": "1"}], "row 1: was given to another text than the prompt 'a'"),
    ([{"id": "a", "prompt_sha256": "0", "answer": "1"}], "row 1: was given to another text than the prompt 'a'"),
])  # fmt: skip
def test_answers_that_do_not_belong_to_the_prompts(tmp_path: Path, rows: list[Any], message: str) -> None:
    prompts = [Prompt("a", "", "Um?"), Prompt("b", "", "Dois?")]
    with pytest.raises(InputError, match=message):
        read_given(parse_system(f"x={write_rows(tmp_path / 'x.jsonl', rows)}"), prompts)
    with pytest.raises(InputError, match="2 prompts have no reference"):
        read_given(parse_system("references"), prompts)


def test_answers_made_elsewhere_are_found_by_id_or_by_text(tmp_path: Path) -> None:
    prompts = [Prompt("a", "", "Um?"), Prompt("b", "", "Dois?")]
    rows = [{"prompt": "Dois?", "answer": "2", "tokens": 3, "ended": False}, {"id": "a", "answer": "1"}]
    found = read_given(parse_system(f"x={write_rows(tmp_path / 'x.jsonl', rows)}"), prompts)
    assert [(one.id, one.answer, one.tokens, one.ended) for one in found] == [("a", "1", 0, True), ("b", "2", 3, False)]
    for names in ((1, 2), ("row-1", "row-2"), ([1], [2])):  # names of the file's own, and white space behind a prompt
        rows = [
            {"id": name, "prompt": text, "answer": text} for name, text in zip(names, ("Dois? \n", "Um?"), strict=True)
        ]
        found = read_given(parse_system(f"x={write_rows(tmp_path / 'y.jsonl', rows)}"), prompts)
        assert [(one.id, one.answer) for one in found] == [("a", "Um?"), ("b", "Dois?")]


# --- the study


def test_answers_are_written_once(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words_of(models), "gente=references"]
    make_study(config_of(tmp_path), words)
    study = read_study(tmp_path / "comparison")
    assert study.systems == ("base", "chat", "gente")
    assert study.kind == "base", "one model has no chat template"
    assert len(study.prompts) == 3
    described = json.loads((tmp_path / "comparison" / "study.json").read_text())["systems"]
    assert described[0]["energy_kwh"] > 0
    assert [one["human"] for one in described] == [False, False, True]
    assert all(0 < answer["tokens"] <= 8 for answer in answers_of(tmp_path, "base"))
    before = (tmp_path / "comparison" / "answers" / "base.jsonl").stat()
    capsys.readouterr()
    make_study(config_of(tmp_path), words)
    assert "answers    base: are there" in capsys.readouterr().out
    assert (tmp_path / "comparison" / "answers" / "base.jsonl").stat().st_mtime_ns == before.st_mtime_ns
    first = answers_of(tmp_path, "base")
    make_study(config_of(tmp_path, seed=7), words)
    assert answers_of(tmp_path, "base") != first
    shutil.rmtree(tmp_path / "comparison")
    make_study(config_of(tmp_path), words[:2])
    assert answers_of(tmp_path, "base") == first, "the same seed gives the same answers"


def test_an_answer_does_not_depend_on_the_others(tmp_path: Path, models: Path) -> None:
    words = words_of(models)
    (tmp_path / "many").mkdir()
    make_study(config_of(tmp_path / "many", n_prompts=16), words)
    (tmp_path / "few").mkdir()
    make_study(config_of(tmp_path / "few", n_prompts=8), words)
    many = {one["id"]: one["answer"] for one in answers_of(tmp_path / "many", "base")}
    assert all(many[one["id"]] == one["answer"] for one in answers_of(tmp_path / "few", "base"))


def test_chat_models_are_asked_in_their_template(tmp_path: Path, models: Path) -> None:
    chat = models / "chat"
    plan = plan_study(config_of(tmp_path), [f"a={chat}", f"b={chat}"])
    assert plan.kind == "chat"
    assert all(one.is_chat for one in plan.plans.values())
    assert not plan_study(config_of(tmp_path, prompts="base"), [f"a={chat}", f"b={chat}"]).plans["a"].is_chat
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Pergunta {number}?"} for number in range(3)])
    mixed = plan_study(config_of(tmp_path, prompts=str(file)), words_of(models))
    assert (mixed.kind, mixed.plans["chat"].is_chat, mixed.plans["base"].is_chat) == ("file", True, False)


@pytest.mark.slow
def test_a_killed_start_is_gone_on_with(tmp_path: Path, models: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    make_study(config_of(whole, n_prompts=24), words_of(models))
    command = [sys.executable, "-m", "teenytinyllama", "compare", *words_of(models), "--n_prompts", "24",
               "--max_new_tokens", "8", "--serve", "false", "--output_dir", str(tmp_path / "comparison")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "comparison" / "answers" / "base.jsonl.partial"
    until = time.monotonic() + 120
    while (not partial.is_file() or partial.read_bytes().count(b"\n") < 3) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.is_file()
    with partial.open("ab") as file:
        file.write(b'{"id": "torn')
    with pytest.raises(InputError, match="was stopped while answers were written. Name its systems as before"):
        run_compare(config_of(tmp_path), [])
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    for name in ("base", "chat"):
        assert answers_of(tmp_path, name) == answers_of(whole, name)
    assert not partial.exists()


def test_what_was_voted_on_does_not_change(tmp_path: Path, models: Path) -> None:
    words = words_of(models)
    make_study(config_of(tmp_path), words)
    folder = tmp_path / "comparison"
    study = read_study(folder)
    VoteFile(folder / "votes.jsonl", study.prompts_sha256).append(vote_on(study, "base", "chat"))
    for more, message in (
        ({"n_prompts": 4}, "votes on other prompts"),
        ({"seed": 1}, "votes on other answers of base"),
    ):
        with pytest.raises(InputError, match=message):
            make_study(config_of(tmp_path, **more), words)
    make_study(config_of(tmp_path), [*words, "references"])
    assert read_study(folder).systems == ("base", "chat", "references"), "a further system changes no vote"
    described = json.loads((folder / "study.json").read_text("utf-8"))["systems"]
    assert [one["tokens"] for one in described] == [*(one["tokens"] for one in described[:2]), None], "nobody counted"
    assert cli.main(["compare", "--output_dir", str(folder), "--serve", "false"]) == 0
    assert (folder / "results.md").is_file()


@pytest.mark.slow
def test_vote_files_of_others_are_added_once(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study(config_of(tmp_path), words_of(models))
    folder = tmp_path / "comparison"
    study = read_study(folder)
    other = VoteFile(tmp_path / "other.jsonl", study.prompts_sha256)
    other.append(vote_on(study, "base", "chat"))
    for said in ("1 vote added, 0 were here already", "0 votes added, 1 were here already"):
        assert cli.main(["compare", "--output_dir", str(folder), "--serve", "false", "--merge", str(other.path)]) == 0
        assert said in capsys.readouterr().out
    before = (folder / "votes.jsonl").read_bytes()
    for left, changes, message in (
        ("base", {"answers": {"left": "b" * 64, "right": "c" * 64}}, "other answers of base than those in"),
        ("base", {"prompt": "p-99", "answers": {"left": "b", "right": "c"}}, "votes on p-99, no prompt of"),
        ("novo", {"answers": {"left": "b", "right": "c"}}, "votes on novo, which study.json does not name. Let novo"),
    ):
        file = VoteFile(tmp_path / "strange.jsonl", study.prompts_sha256)
        file.path.unlink(missing_ok=True)
        file.append(
            a_vote(
                study.prompts_sha256, **{"prompt": next(iter(study.prompts)), "left": left, "right": "chat", **changes}
            )
        )
        assert cli.main(["compare", "--output_dir", str(folder), "--serve", "false", "--merge", str(file.path)]) == 2
        assert message in capsys.readouterr().err
    assert (folder / "votes.jsonl").read_bytes() == before, "what is refused is not written"


def test_prompts_keep_their_form(tmp_path: Path) -> None:
    prompts = [Prompt("a", "letter", "Olá\nmundo", None), Prompt("b", "", "Oi", "Tchau")]
    path = tmp_path / "p.jsonl"
    path.write_bytes(dump_prompts(prompts))
    assert read_prompts(str(path)) == prompts


@pytest.mark.parametrize(("change", "message"), [
    ({"port": 70_000}, "port=70000: must lie between 0 and 65535"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"country_iso_code": "XXX"}, "country_iso_code=XXX"),
])  # fmt: skip
def test_values_out_of_range_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, **change)


# --- the judge and llama.cpp


def test_a_judge_sees_both_orders(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "comparison"
    words = words_of(models)
    arguments = [
        "compare",
        *words,
        "--n_prompts",
        "3",
        "--max_new_tokens",
        "4",
        "--serve",
        "false",
        "--output_dir",
        str(folder),
    ]
    assert cli.main([*arguments, "--judge", str(models / "base")]) == 2
    assert "has no chat template, so it cannot be asked" in capsys.readouterr().err
    assert cli.main([*arguments, "--judge", str(models / "chat")]) == 0
    said = capsys.readouterr().out
    assert "pairs in both orders; it chose the first answer in" in said
    votes = VoteFile(folder / JUDGE_VOTES_NAME, read_study(folder).prompts_sha256).read()
    assert len(votes) == 6
    assert {(vote.left, vote.right) for vote in votes} == {("base", "chat"), ("chat", "base")}
    assert not (folder / "votes.jsonl").exists(), "a judge's votes are none of people"


def test_a_judge_that_takes_the_first_answer_decides_nothing() -> None:
    biased = [a_vote(left=left, right=right, choice="left") for left, right in (("a", "b"), ("b", "a"))]
    found = describe_judge(biased, "juiz", 0)
    assert (found["first_chosen"], found["pairs_decided_by_the_order"], found["wins"]) == (1.0, 1, {})
    steady = [a_vote(left="a", right="b", choice="left"), a_vote(left="b", right="a", choice="right")]
    found = describe_judge(steady, "juiz", 0)
    assert found["wins"] == {"a": {"won": 1, "of": 1}, "b": {"won": 0, "of": 1}}
    assert "a 1 of 1, b 0 of 1. This is a model's opinion" in format_judge(found)
    assert "no pair of answers fits" in format_judge(describe_judge([], "juiz", 2))


@pytest.mark.other_tools
def test_a_gguf_file_answers_like_the_model(tmp_path: Path, chat_folder: Path) -> None:  # noqa: F811
    other_tool("llama_cpp")
    exported = tmp_path / "gguf"
    arguments = ["--type", "f16", "--measure", "false", "--output_dir", str(exported)]
    assert cli.main(["export", str(chat_folder), *arguments]) == 0
    (file,) = exported.glob("*.gguf")
    asked = write_rows(tmp_path / "p.jsonl", [{"prompt": QUESTION}, {"prompt": "Quem é?"}])
    words = [f"model={chat_folder}", f"file={file}"]
    make_study(config_of(tmp_path, prompts=str(asked), n_prompts=None, temperature=0.0, max_new_tokens=24), words)
    written, read = answers_of(tmp_path, "model"), answers_of(tmp_path, "file")
    assert written[0]["answer"] == read[0]["answer"] == ANSWER
    assert written[0]["ended"]
    assert read[0]["ended"]
    from teenytinyllama.export.llama_cpp import opened

    with opened(file) as gguf:
        assert gguf.is_chat
        with pytest.raises(InputError, match="and the model's context of 128 must also hold 50 of the answer"):
            gguf.answer("palavra " * 300, Sampling(max_new_tokens=50), is_chat=True)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    asked = write_rows(tmp_path / "p.jsonl", [{"prompt": "Oi"}, {"prompt": "palavra " * 400}])
    with pytest.raises(
        InputError, match="prompts: p-0002: message: .* the model's context of 256 must also hold 8 .*of base"
    ):
        make_study(config_of(tmp_path, prompts=str(asked), n_prompts=None), words_of(models))
    assert not (tmp_path / "comparison").exists()
