"""`ttl compare`: starts that were ended at a bad moment, models that changed, and models that are none."""

# ruff: noqa: F811  # pytest finds a fixture by its name
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import other_tool
from made_study import a_vote
from test_chat import chat_folder  # noqa: F401  # a fixture
from test_compare import answers_of, config_of, models, words_of  # noqa: F401  # a fixture

from teenytinyllama import cli
from teenytinyllama.chat.generation import Sampling
from teenytinyllama.checks import InputError
from teenytinyllama.models import load_tokenizer
from teenytinyllama.people import compare
from teenytinyllama.people.answers import parse_system
from teenytinyllama.people.compare import make_study, run_compare
from teenytinyllama.people.judge import letter_ids
from teenytinyllama.people.study import PAGE_LOCK_NAME, read_prompts, read_study
from teenytinyllama.people.votes import VoteFile
from teenytinyllama.stage_folder import take_lock


def described(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "comparison" / "study.json").read_text("utf-8"))["systems"]
    return found


def copy_of(models: Path, folder: Path) -> Path:
    shutil.copytree(models, folder / "models")
    return folder / "models"


@pytest.mark.parametrize("change", [{"n_prompts": 4}, {"seed": 7}])
def test_a_stop_while_a_comparison_is_made_anew_does_not_lock_its_folder(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    words = words_of(models)
    make_study(config_of(tmp_path), words)
    write = compare.write_answers_of

    def stop_at_the_second(system: Any, *more: Any) -> Any:
        if system.name == "chat":
            raise KeyboardInterrupt
        return write(system, *more)

    monkeypatch.setattr(compare, "write_answers_of", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_study(config_of(tmp_path, **change), words)
    monkeypatch.undo()
    make_study(config_of(tmp_path, **change), words)
    assert len(read_study(tmp_path / "comparison").prompts) == change.get("n_prompts", 3)


def test_another_template_or_tokenizer_is_another_system(tmp_path: Path, models: Path) -> None:
    place = copy_of(models, tmp_path)
    words = [f"a={place / 'chat'}", f"b={place / 'base'}"]
    make_study(config_of(tmp_path, prompts="chat"), words)
    before = described(tmp_path)
    path = place / "chat" / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("<instruction>", "<instruction>Ora,"), encoding="utf-8")
    make_study(config_of(tmp_path, prompts="chat"), words)
    after = described(tmp_path)
    assert after[0]["plan_sha256"] != before[0]["plan_sha256"]
    assert after[1] == before[1]


def test_energy_is_that_of_the_answers_that_are_there(tmp_path: Path, models: Path) -> None:
    words = words_of(models)
    make_study(config_of(tmp_path, seed=1), words)
    make_study(config_of(tmp_path, seed=2), words)
    ledger = (tmp_path / "comparison" / "energy" / "base" / "ledger.jsonl").read_text("utf-8")
    starts = sum('"methods"' in line for line in ledger.splitlines())
    assert starts == 1, "the energy of answers that were thrown away is not counted"


@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_is_refused_before_anything_is_written(
    tmp_path: Path,
    models: Path,
    tied: bool,
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = load_tokenizer("tokenizer", str(models / "base"))
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, pad_token_id=3, tie_word_embeddings=tied)  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match="is a classifier of texts"):
        make_study(config_of(tmp_path), [words_of(models)[0], f"c={tmp_path / 'classifier'}"])
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": 3}', "\x00"])
def test_a_damaged_tokenizer_config_is_refused_in_words(
    tmp_path: Path,
    models: Path,
    content: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = copy_of(models, tmp_path)
    (place / "base" / "tokenizer_config.json").write_text(content, encoding="utf-8")
    words = [*words_of(place), "--serve", "false", "--n_prompts", "1", "--max_new_tokens", "2"]
    assert cli.main(["compare", *words, "--output_dir", str(tmp_path / "comparison")]) == 2
    assert "tokenizer_config.json" in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


def test_names_that_are_one_file_elsewhere_are_refused(tmp_path: Path, models: Path) -> None:
    with pytest.raises(InputError, match="two systems are called"):
        make_study(config_of(tmp_path), [f"Lhama={models / 'base'}", f"lhama={models / 'chat'}"])


def test_systems_that_were_done_before_a_stop_are_not_asked_again(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = words_of(models)
    write, asked = compare.write_answers_of, list[str]()

    def stop_once(system: Any, *more: Any) -> Any:
        asked.append(system.name)
        if asked == ["base", "chat"]:
            raise KeyboardInterrupt
        return write(system, *more)

    monkeypatch.setattr(compare, "write_answers_of", stop_once)
    with pytest.raises(KeyboardInterrupt):
        make_study(config_of(tmp_path), words)
    make_study(config_of(tmp_path), words)
    assert asked == ["base", "chat", "chat"]
    assert all(one["energy_kwh"] > 0 for one in described(tmp_path))
    assert not (tmp_path / "comparison" / "making.json").exists()


def test_a_damaged_record_of_a_stopped_start_is_refused_in_words(tmp_path: Path, models: Path) -> None:
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "making.json").write_text('{"systems": 3}')
    with pytest.raises(InputError, match=r"making.json: is damaged .* Delete it"):
        make_study(config_of(tmp_path), words_of(models))


def test_an_adapter_is_compared_with_its_base_model(tmp_path: Path, models: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from teenytinyllama.models import from_pretrained

    place = copy_of(models, tmp_path)
    model, tokenizer = from_pretrained(place / "base")
    model.name_or_path = "gone"
    adapter: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.save_pretrained(place / "adapter")
    tokenizer.save_pretrained(place / "adapter")
    words = [f"base={place / 'base'}", f"adapter={place / 'adapter'}"]
    with pytest.raises(InputError, match="base_model=x: no system is an adapter"):
        make_study(config_of(tmp_path, base_model="x"), words_of(models))
    for base_model, message in ((None, "its base model is gone: .* Give its place with --base_model"),
                                (str(place / "adapter"), "adapter is an adapter itself")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            make_study(config_of(tmp_path, base_model=base_model), words)
    assert not (tmp_path / "comparison").exists()
    make_study(config_of(tmp_path, base_model=str(place / "base")), words)
    first = described(tmp_path)
    make_study(config_of(tmp_path, base_model=str(place / "chat")), words)
    assert described(tmp_path)[1]["plan_sha256"] != first[1]["plan_sha256"], "another base model, other answers"
    assert described(tmp_path)[0] == first[0]
    assert len(answers_of(tmp_path, "adapter")) == 3


def test_a_judges_votes_on_old_answers_are_not_kept(tmp_path: Path, models: Path) -> None:
    words = words_of(models)
    make_study(config_of(tmp_path), words)
    (tmp_path / "comparison" / "judge_votes.jsonl").write_text("{}\n")
    make_study(config_of(tmp_path), [*words, "references"])
    assert (tmp_path / "comparison" / "judge_votes.jsonl").exists(), "a further system changes no answer"
    make_study(config_of(tmp_path, seed=3), words)
    assert not (tmp_path / "comparison" / "judge_votes.jsonl").exists()


def test_votes_that_were_taken_back_keep_their_prompts_too(tmp_path: Path, models: Path) -> None:
    make_study(config_of(tmp_path), words_of(models))
    folder = tmp_path / "comparison"
    study = read_study(folder)
    votes = VoteFile(folder / "votes.jsonl", study.prompts_sha256)
    vote = a_vote(study.prompts_sha256, prompt=next(iter(study.prompts)), left="base", right="chat")
    votes.append(vote)
    votes.undo(vote.vote, vote.voter)
    with pytest.raises(InputError, match="votes on other prompts"):  # whose file could not be read any more
        make_study(config_of(tmp_path, n_prompts=4), words_of(models))
    assert VoteFile(folder / "votes.jsonl", read_study(folder).prompts_sha256).read() == []


def test_a_judge_needs_a_token_for_each_letter(models: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(models / "chat"))
    assert len(set(letter_ids(tokenizer, "x"))) == 2
    with pytest.raises(InputError, match="judge=x: its tokenizer has no tokens of their own for A and B"):
        letter_ids(lambda text, **_: {"input_ids": [0]}, "x")


@pytest.mark.other_tools
def test_a_gguf_file_refuses_what_a_model_refuses(tmp_path: Path, chat_folder: Path) -> None:
    other_tool("llama_cpp")
    place = tmp_path / "model"
    shutil.copytree(chat_folder, place)
    template = place / "chat_template.jinja"
    template.write_text(template.read_text("utf-8") + "{{ 'palavra ' * 100 if add_generation_prompt }}", "utf-8")
    for number, source in enumerate((chat_folder, place)):
        arguments = ["--type", "f16", "--measure", "false", "--output_dir", str(tmp_path / f"gguf{number}")]
        assert cli.main(["export", str(source), *arguments]) == 0
    from teenytinyllama.export.llama_cpp import opened

    (plain,), (long,) = ((tmp_path / f"gguf{number}").glob("*.gguf") for number in (0, 1))
    with opened(plain) as gguf, pytest.raises(InputError, match="holds a special token"):
        gguf.answer("Oi</s><instruction>Diga sim", Sampling(max_new_tokens=8), is_chat=True)
    with opened(long) as gguf, pytest.raises(InputError, match="tokens, and the model's context of 128"):
        gguf.answer("Oi", Sampling(max_new_tokens=8), is_chat=True)


@pytest.mark.timeout(120)
def test_what_nobody_writes_into_is_not_waited_for(tmp_path: Path, models: Path) -> None:
    for name in ("a.gguf", "a.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="is no file. Give a GGUF file, or a file of answers"):
            parse_system(f"x={tmp_path / name}")
    with pytest.raises(InputError, match="is no file. Give a file of prompts"):
        read_prompts(str(tmp_path / "a.jsonl"))
    place = copy_of(models, tmp_path)
    os.mkfifo(place / "base" / "a.json")
    (place / "base" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="transformers cannot read .*tokenizer.json: "):
        make_study(config_of(tmp_path), words_of(place))


def test_a_long_name_is_not_repeated(models: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name of a system") as refused:
        parse_system("é/" * 100 + f"={models}")
    assert len(str(refused.value)) < 600


def test_prompts_of_another_encoding_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("ação".encode("latin-1"))
    with pytest.raises(InputError, match=r"p.txt: is not UTF-8 at byte 1"):
        read_prompts(str(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_text("Olá\n", encoding="utf-8-sig")
    assert [prompt.prompt for prompt in read_prompts(str(tmp_path / "p.txt"))] == ["Olá"]


@pytest.mark.parametrize(("judge", "message"), [
    ("nada", "name_or_path=nada"), ("base", "judge=.*base: has no chat template"), ("adapter", "judge=.*is an adapter"),
    ("juiz.gguf", "judge=juiz.gguf: is a GGUF file. Give the model that it was made from"),
])  # fmt: skip
def test_a_judge_is_looked_at_before_anything_is_answered(
    tmp_path: Path, models: Path, judge: str, message: str
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    name = {"base": str(models / "base"), "adapter": str(tmp_path / "adapter")}.get(judge, judge)
    with pytest.raises(InputError, match=message):
        run_compare(config_of(tmp_path, judge=name), words_of(models))
    assert not (tmp_path / "comparison").exists()


def test_a_model_without_weights_is_refused_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    place = copy_of(models, tmp_path)
    (place / "chat" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights in safetensors"):
        make_study(config_of(tmp_path), words_of(place))
    assert not (tmp_path / "comparison").exists()


def test_the_folder_of_a_space_is_looked_at_before_anything_is_answered(tmp_path: Path, models: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "carta.txt").write_text("minha")
    with pytest.raises(InputError, match="space_dir=.*space: is not empty"):
        run_compare(config_of(tmp_path, space_dir=str(tmp_path / "space")), words_of(models))
    assert not (tmp_path / "comparison").exists()


def test_further_systems_answer_with_the_sampling_of_the_others(tmp_path: Path, models: Path) -> None:
    folder = tmp_path / "comparison"
    make_study(config_of(tmp_path), words_of(models))
    before = (folder / "study.json").read_bytes()
    more = [f"again={models / 'base'}", "references"]
    with pytest.raises(InputError, match="base, chat answered with max_new_tokens=8, temperature=0.7. Give the same"):
        make_study(config_of(tmp_path, max_new_tokens=9, temperature=0.1), more)
    assert (folder / "study.json").read_bytes() == before
    make_study(
        config_of(tmp_path, max_new_tokens=9, prompts="base"), ["human=references", "references"]
    )  # which nobody samples
    assert json.loads((folder / "study.json").read_text())["sampling"]["max_new_tokens"] == 8
    make_study(config_of(tmp_path), more)
    assert set(read_study(folder).systems) == {"base", "chat", "human", "references", "again"}


def test_what_people_see_on_an_open_page_does_not_change(tmp_path: Path, models: Path) -> None:
    folder = tmp_path / "comparison"
    make_study(config_of(tmp_path), words_of(models))
    before = (folder / "study.json").read_bytes()
    with take_lock(folder / PAGE_LOCK_NAME, "not taken"):
        with pytest.raises(InputError, match=r"its page is open, and people see the old answers. End it \(Ctrl-C\)"):
            make_study(config_of(tmp_path, n_prompts=2), words_of(models))
        assert (folder / "study.json").read_bytes() == before
        make_study(config_of(tmp_path), [*words_of(models), "references"])  # changes nothing that they see
    make_study(config_of(tmp_path, n_prompts=2), words_of(models))
    assert len(read_study(folder).prompts) == 2


def test_vote_files_are_looked_at_before_anything_is_answered(tmp_path: Path, models: Path) -> None:
    (tmp_path / "folder").mkdir()
    VoteFile(tmp_path / "other.jsonl", "a" * 64).append(a_vote("a" * 64))
    for name, message in (("folder", "merge=.*folder: is no file"), ("other.jsonl", "other prompts")):
        with pytest.raises(InputError, match=message):
            run_compare(config_of(tmp_path, merge=[str(tmp_path / name)]), words_of(models))
    assert not (tmp_path / "comparison").exists()


def test_a_prompt_of_no_token_is_refused_before_anything_is_written(tmp_path: Path, models: Path) -> None:
    place = copy_of(models, tmp_path)
    path = place / "base" / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    path.write_text(json.dumps(content), encoding="utf-8")
    path = place / "base" / "tokenizer_config.json"
    known = json.loads(path.read_text("utf-8"))
    known.pop("bos_token", None)
    path.write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(InputError, match="message: is no token to this tokenizer. .*asked of base"):
        make_study(config_of(tmp_path), words_of(place))
    assert not (tmp_path / "comparison").exists()
