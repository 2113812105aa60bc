"""`ttl compare`: starts that were ended at a bad moment, models that changed, and models that are none."""

# ruff: noqa: F811  # pytest finds a fixture by its name
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compare import answers_of, config_of, models, words_of  # noqa: F401  # a fixture

from teenytinyllama import cli
from teenytinyllama.checks import InputError
from teenytinyllama.models import load_tokenizer
from teenytinyllama.people import compare
from teenytinyllama.people.compare import make_study
from teenytinyllama.people.study import read_study


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
