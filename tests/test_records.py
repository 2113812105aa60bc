"""Manifests, metric files, samples: what a run leaves, and how it is cut back when a run resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from teenytinyllama.chat.generation import generate_texts
from teenytinyllama.checkpointing.checkpoints import Marker, write_marker
from teenytinyllama.checks import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    RunFailedError,
    StoppedResumable,
    run_main,
)
from teenytinyllama.models import load_tokenizer
from teenytinyllama.stage_folder import (
    StageFolder,
    numbered_jsonl_records,
    read_jsonl_records,
    read_manifest,
    sha256_file,
    sha256_json,
    write_json,
)
from teenytinyllama.training.metrics import (
    append_jsonl,
    describe_turn,
    lowest_held_out,
    plot_loss,
    read_jsonl,
    rewind_jsonl,
)
from teenytinyllama.training.pretrain import warn_of_repeats
from teenytinyllama.watching.run_report import draw_panels


def test_manifest_round_trip_and_hashes(tmp_path: Path) -> None:
    StageFolder(tmp_path, "pack", "rows").finish({"rows": 3})
    manifest = read_manifest("packed", tmp_path, "pack", "fix")
    assert manifest["rows"] == 3
    assert {"package_version", "command", "commit", "created", "versions"} <= set(manifest)
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": True}


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_jsonl(path, {"step": step, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]
    rewind_jsonl(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n'
    rewind_jsonl(tmp_path / "none.jsonl", 0)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_damaged_records_are_skipped_or_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl_records(path) == []
    path.write_bytes(b'{"step": 1}\n\n[]\n{"kwh": 2}\n{"step": 3}\r\n{"step": 4')
    assert read_jsonl_records(path) == [{"step": 1}, {"kwh": 2}, {"step": 3}]
    check = lambda record: record["step"]  # noqa: E731
    assert [number for number, _ in numbered_jsonl_records(path, check)] == [1, 5]
    with pytest.raises(InputError, match=r"metrics.jsonl: line 3 is damaged \(no JSON object\)\. Restore it\."):
        read_jsonl_records(path, check, fix="Restore it.")
    path.write_bytes(b'{"step": 1}\n{"kwh": 2}\n')
    with pytest.raises(InputError, match=r"line 2 is damaged \('step' is missing\)"):
        read_jsonl_records(path, check, fix="Restore it.")
    path.write_bytes(b'{"step": 1}\n{"step": 4')
    assert read_jsonl_records(path, check, fix="Restore it.") == [{"step": 1}]  # the last line is being written
    with pytest.raises(InputError, match="line 2 is damaged"):
        read_jsonl_records(path, check, fix="Restore it.", is_ended=True)


def scored(*scores: tuple[int, float, int]) -> list[dict]:
    """Records of evaluations: step, bits per byte, bytes read."""
    records = [{"step": step, "tokens": 8 * step, "bits_per_byte": score, "scored_bytes": size}
               for step, score, size in scores]  # fmt: skip
    return [{"step": 0, "tokens": 0, "loss": 3.0}, *records]


def test_the_best_evaluation_is_found_and_told_of(tmp_path: Path) -> None:
    records = scored((0, 4.0, 100), (10, 2.0, 100), (20, 2.02, 100), (20, 1.9, 500))
    assert lowest_held_out(records) == {"step": 10, "tokens": 80, "bits_per_byte": 2.0}
    assert describe_turn(tmp_path, records, 7.5) == (
        "best at step 10 of 20 (2.0000 bits per byte; 2.0200 at the end): the rows were read 7.5 times, which was too "
        "often. Train on more text, or end near that step. No checkpoint with a better score was kept."
    )
    for step in (10, 15, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (15, 20):  # 10 was not saved to its end, and 15 not scored
        write_marker(tmp_path / f"checkpoint-{step}", Marker(step, 1, 0))
    assert str(describe_turn(tmp_path, records, 7.5)).endswith("No checkpoint with a better score was kept.")
    (tmp_path / "checkpoint-10" / "complete.json").write_text("damaged")  # its score is known all the same
    assert str(describe_turn(tmp_path, records, 7.5)).endswith(" checkpoint-10 has 2.0000.")
    assert "the learning rate may be too high" in str(describe_turn(tmp_path, records, 0.9))
    records[3]["bits_per_byte"] = 2.009  # within what evaluations differ by
    assert describe_turn(tmp_path, records, 7.5) is None


@pytest.mark.parametrize(
    ("scores", "lowest", "told"),
    [
        ([], None, None),
        ([(0, 3.0, 100), (20, 3.5, 500)], None, None),  # one evaluation alone
        ([(0, 3.0, 100), (10, 3.5, 100), (10, 3.4, 500)], 0, "the learning rate may be too high"),  # of other text
        # Made longer, so that evaluations read more: only those count.
        ([(10, 2.5, 100), (20, 2.6, 100), (20, 2.6, 500), (30, 2.2, 200), (40, 2.0, 200), (40, 2.1, 500)], 40, None),
        ([(10, 2.1, 100), (20, 2.0, 100), (30, 2.2, 200), (40, 3.0, 200), (40, 3.1, 500)], 30, "best at step 30 of 40"),
        # Stopped by a cap between two evaluations: how it ended is not known.
        ([(20, 2.5, 100), (40, 2.6, 100), (47, 2.3, 500)], 20, None),
    ],
)
def test_only_evaluations_of_the_same_text_are_compared(
    scores: list[tuple[int, float, int]], lowest: int | None, told: str | None, tmp_path: Path
) -> None:
    records = scored(*scores)
    found = lowest_held_out(records)
    assert (found and found["step"]) == lowest
    said = describe_turn(tmp_path, records, 2.0)
    assert (said is None) == (told is None)
    assert told is None or told in str(said)


@pytest.mark.parametrize(("epochs", "said"), [(4.0, None), (4.2, "4.2 times"), (20.43, "20.4 times")])
def test_rows_that_are_read_often_are_spoken_of(epochs: float, said: str | None) -> None:
    lines = warn_of_repeats(epochs)
    assert (said is None) == (not lines)
    assert said is None or said in lines["repeats"]


@pytest.mark.parametrize("records", [[], [{"step": 1, "tokens": 9, "loss": 3.0}],
                         [{"step": 0, "tokens": 0, "bits_per_byte": 3.0}, {"step": 1, "tokens": 9, "loss": 3.0}]])  # fmt: skip
def test_the_plot_needs_neither_curve(tmp_path: Path, records: list[dict]) -> None:
    for record in records:
        append_jsonl(tmp_path / "m.jsonl", record)
    plot_loss(tmp_path / "m.jsonl", tmp_path / "loss.png")
    assert [path.name for path in tmp_path.glob("*.png")] == ["loss.png"]


def drawn(folder: Path, records: list[dict], monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, list[float]]]:
    """Return the curves of a plot by their names: the label of their axis, and their values."""
    from matplotlib.figure import Figure

    for record in records:
        append_jsonl(folder / "m.jsonl", record)
    curves, save = {}, Figure.savefig

    def look(figure: Any, path: Path) -> None:
        save(figure, path)
        for axis in figure.axes:
            for line in axis.lines:
                curves[line.get_label()] = (axis.get_ylabel(), list(line.get_ydata()))

    monkeypatch.setattr(Figure, "savefig", look)
    plot_loss(folder / "m.jsonl", folder / "loss.png")
    return curves


def test_the_plot_has_one_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = {"step": 1, "tokens": 9, "bits_per_byte": 1.2, "nats_per_token": 3.1}
    train = {"step": 1, "tokens": 9, "loss": 3.0, "train_bits_per_byte": 1.1}
    (tmp_path / "a").mkdir()
    curves = drawn(tmp_path / "a", [train, score], monkeypatch)
    assert curves == {"training loss": ("bits per byte", [1.1]), "held-out bits per byte": ("bits per byte", [1.2])}
    del train["train_bits_per_byte"]  # tuning, and older runs
    (tmp_path / "b").mkdir()
    curves = drawn(tmp_path / "b", [train, score], monkeypatch)
    assert curves == {"training loss": ("nats per token", [3.0]), "held-out nats per token": ("nats per token", [3.1])}


def test_a_score_of_all_documents_is_no_point_of_the_curve_of_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"step": 1, "tokens": 9, "loss": 3.0, "train_bits_per_byte": 1.1}
    scores = [{"step": 1, "tokens": tokens, "bits_per_byte": score, "nats_per_token": 3.0, "documents": documents}
              for tokens, score, documents in ((0, 2.0, 20), (9, 1.5, 20), (9, 1.2, 21))]  # fmt: skip
    curves = drawn(tmp_path, [train, *scores], monkeypatch)
    assert curves["held-out bits per byte"][1] == [2.0, 1.5]
    assert curves["all documents held out"][1] == [1.2]
    (panel,) = [panel for panel in draw_panels([train, *scores], []) if panel.title == "bits per byte"]
    last = dict(zip((name for name, _ in panel.curves), panel.last, strict=True))
    assert last == {"training": "1.1", "held out": "1.5", "all held-out documents": "1.2"}


def test_sampling_depends_on_its_seed_alone_and_leaves_the_random_state(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=600, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=3)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    state = torch.get_rng_state()
    first = generate_texts(model, tokenizer, ["Era uma vez", "</s> é texto"], 12, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert generate_texts(model, tokenizer, ["Era uma vez", "</s> é texto"], 12, seed=1) == first
    assert generate_texts(model, tokenizer, ["Era uma vez", "</s> é texto"], 12, seed=2) != first
    assert first[1].startswith("</s> é texto")
    prompts = ["Era", "uma vez uma menina que morava", "O"]  # of different lengths: padded, and none sees the padding
    alone = [generate_texts(model, tokenizer, [prompt], 12, seed=1, temperature=0)[0] for prompt in prompts]
    assert generate_texts(model, tokenizer, prompts, 12, seed=1, temperature=0) == alone
    assert generate_texts(model, tokenizer, [], 12, seed=1) == []
    assert generate_texts(model, tokenizer, ["palavra " * 30], 500, seed=1)[0].startswith("palavra")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("x=1: no"), EXIT_BAD_INPUT, "error: x=1: no"),
        (RunFailedError("diverged"), EXIT_FAILED, "failed: diverged"),
        (StoppedResumable("saved"), EXIT_RESUMABLE, "stopped: saved"),
    ],
)
def test_known_outcomes_are_one_line_on_rank_zero(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    assert run_main(fail) == code
    assert capsys.readouterr().err == text + "\n"
    monkeypatch.setenv("RANK", "1")
    assert run_main(fail) == code
    assert capsys.readouterr().err == ""


def test_unknown_failures_keep_their_traceback() -> None:
    def fail() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_main(fail)
