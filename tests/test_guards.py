"""Steps whose numbers go wrong: the real Trainer on rows of which one makes the loss not finite, or a spike."""

import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_pretrain import losses, make_values, run
from transformers import Trainer, TrainerCallback

from teenytinyllama.arguments import build
from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, complete_checkpoints, recorded_left_out
from teenytinyllama.checks import InputError, RunFailedError, StoppedResumable
from teenytinyllama.data.packed import describe_rows, load_packed
from teenytinyllama.models import load_tokenizer
from teenytinyllama.publishing.card import write_model_card
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training import guards
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.pretrain import TrainingRows

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    small = {"sample_prompts": [], "cloze_items": 0, "eval_strategy": "no", "per_device_train_batch_size": 4}
    return {**make_values(tmp_path, packed_folder, tokenizer_folder), **small}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, packed_folder: Path) -> Callable[..., None]:
    """Return a function that makes some packed rows multiply the loss of their micro-batch."""
    original, factors = Trainer.compute_loss, dict[int, float]()
    packed = load_packed(packed_folder)

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, inputs, *args, **kwargs)
        for row, factor in factors.items() if model.training else ():
            if any(np.array_equal(ids, packed.train[row]) for ids in inputs["input_ids"].numpy()):
                loss = loss * factor
        return loss

    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)

    def add(*rows: int, factor: float = math.nan) -> None:
        factors.update(dict.fromkeys(rows, factor))

    return add


def bad_steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


def rates(folder: Path) -> list[float]:
    return [record["learning_rate"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]


def weights(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def test_a_bad_step_stops_the_run_and_its_documents_are_named(
    values: dict[str, Any], poison: Callable[..., None], capsys: pytest.CaptureFixture[str], packed_folder: Path
) -> None:
    poison(45)  # of step 6, in its second micro-batch; the log lines come later
    with pytest.raises(RunFailedError, match="loss=nan at step 6: training has diverged.*on_bad_step: rewind"):
        run({**values, "logging_steps": 8, "logging_first_step": False})
    folder = Path(values["output_dir"])
    assert checkpoint_faults(folder / "checkpoint-4") == []
    assert [step for step, _ in complete_checkpoints(folder)] == [4]
    (record,) = bad_steps(folder)
    assert (record["step"], record["loss"], record["action"]) == (6, "nan", "stop")
    assert [part["rows"] for part in record["micro_batches"]] == [[44, 45, 46, 47], [40, 41, 42, 43]], "the worst first"
    assert record["micro_batches"][0]["loss"] == "nan"
    assert 0 < record["micro_batches"][1]["loss"] < 20
    assert {found["row"] for found in record["documents"]} == set(range(40, 48))
    assert {found["source"] for found in record["documents"]} <= {"contos", "curtas"}
    said = capsys.readouterr().out
    assert "bad step   6: loss=nan; the run stops. Its worst rows of train.npy: 44, 45, 46, 47" in said
    assert f"row 44, document {record['documents'][0]['document']} of {record['documents'][0]['source']}: " in said
    assert "guards     a step whose loss or gradient norm is not finite stops the run (on_bad_step)" in said
    (event,) = [found for found in read_jsonl(folder / "metrics.jsonl") if "bad_step" in found]
    assert (event["step"], event["bad_step"], event["action"]) == (6, 6, "stop")
    # The same command meets it again, and rewind then goes on without those rows.
    with pytest.raises(RunFailedError, match="loss=nan at step 6"):
        run(values)
    assert len(bad_steps(folder)) == 1
    run({**values, "on_bad_step": "rewind"})
    assert json.loads((folder / "run.json").read_text())["training"]["bad_steps"] == {
        "skipped": 0, "returns": 1, "rows_left_out": 8}  # fmt: skip


class Moments(TrainerCallback):
    """Weights and optimizer after each step, by their sums."""

    def __init__(self) -> None:
        self.steps: dict[int, list[float]] = {}
        self.rates: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = [*kwargs["model"].parameters()]
        for each in kwargs["optimizer"].state.values():
            kept += [value for value in each.values() if torch.is_tensor(value)]
        self.steps[state.global_step] = [float(tensor.detach().double().abs().sum()) for tensor in kept]
        self.rates[state.global_step] = kwargs["lr_scheduler"].get_last_lr()[0]


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moments]:
    seen, original = Moments(), Trainer.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(seen)

    monkeypatch.setattr(Trainer, "__init__", made)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "normuon"])
def test_a_step_that_is_skipped_changes_nothing_but_the_schedule(
    values: dict[str, Any], poison: Callable[..., None], moments: Moments, optimizer: str
) -> None:
    usual = run({**values, "optimizer": optimizer, "output_dir": values["output_dir"] + "-usual"})
    rates = dict(moments.rates)
    poison(45)
    folder = run({**values, "optimizer": optimizer, "on_bad_step": "skip", "logging_steps": 2})
    assert moments.steps[6] == moments.steps[5]
    assert all(moments.steps[step] != moments.steps[step - 1] for step in (2, 3, 4, 5, 7, 8))
    assert moments.rates == rates, "the learning rate is that of the step's number"
    logged = [record for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in logged] == [1, 2, 4, 6, 8]
    assert logged[3]["loss"] == pytest.approx(losses(usual)[4]), "step 5 alone"
    assert logged[3]["grad_norm"] is None
    assert all(math.isfinite(record["loss"]) for record in logged)
    assert [record["action"] for record in bad_steps(folder)] == ["skip"]
    assert json.loads((folder / "run.json").read_text())["training"]["bad_steps"]["skipped"] == 1
    assert weights(folder) != weights(usual)
    assert "Bad steps" not in write_model_card(usual).read_text()
    card = write_model_card(folder).read_text()
    assert "| Bad steps | 1 skipped, 0 returns to a checkpoint without 0 rows" in card
    assert "| Passos ruins | 1 pulados" in card


@pytest.mark.slow
def test_without_a_bad_step_guards_change_nothing(values: dict[str, Any]) -> None:
    hashes = set()
    for action in ("stop", "skip", "rewind"):
        folder = run({**values, "on_bad_step": action, "output_dir": f"{values['output_dir']}-{action}"})
        assert not (folder / "bad_steps.jsonl").exists()
        hashes.add(weights(folder))
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_run_goes_back_and_on_without_the_rows(
    values: dict[str, Any], poison: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    poison(45)
    folder = run({**values, "on_bad_step": "rewind"})
    said = capsys.readouterr().out
    assert "bad step   6: loss=nan; the run goes back (number 1, at most 10)" in said
    assert "resumed from" in said
    assert "left out   8 rows, of bad steps (6)" in said
    (record,) = recorded_left_out(folder)
    assert {key: record[key] for key in ("step", "checkpoint", "rows")} == {
        "step": 6, "checkpoint": 4, "rows": [[40, 8]]}  # fmt: skip
    events = [found for found in read_jsonl(folder / "metrics.jsonl") if "bad_step" in found]
    assert [(event["step"], event["bad_step"], event["action"]) for event in events] == [(4, 6, "rewind")]
    assert [record["step"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record] == [*range(1, 9)]
    # Killed after it went back, and resumed: the same weights. So too where the record of the folder is lost.
    for loses_record in (False, True):
        expected, state = weights(folder), json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())
        assert state["stateful_callbacks"]["StepGuard"]["attributes"]["left_out"] == recorded_left_out(folder)
        (folder / "run.json").unlink()
        (folder / "model.safetensors").unlink()
        (folder / "checkpoint-8" / "complete.json").unlink()
        if loses_record:
            environment = json.loads((folder / "environment.json").read_text())
            (folder / "environment.json").write_text(json.dumps({**environment, "left_out": []}))
        run({**values, "on_bad_step": "rewind"})
        assert weights(folder) == expected
    assert len(bad_steps(folder)) == 2, "without the record it met the rows again, and went back again"


@pytest.mark.slow
def test_a_kill_between_the_record_and_the_next_step_loses_nothing(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(45)
    expected = weights(run({**values, "on_bad_step": "rewind", "output_dir": values["output_dir"] + "-whole"}))

    def killed(*_: Any) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(guards, "count_from_now", killed)
        with pytest.raises(SystemExit):
            run({**values, "on_bad_step": "rewind"})
    folder = run({**values, "on_bad_step": "rewind"})
    assert weights(folder) == expected
    assert len(bad_steps(folder)) == 1
    events = [found for found in read_jsonl(folder / "metrics.jsonl") if "bad_step" in found]
    assert [event["bad_step"] for event in events] == [6]


def test_the_model_before_a_return_is_gone_before_the_next_is_made(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begin = list[tuple[Any, Any]](), guards.StepGuard.on_train_begin
    left: list[bool] = []

    def began(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begin(self, args, state, control, **kwargs)
        made.append((weakref.ref(self.trainer.model), weakref.ref(self.trainer.optimizer.optimizer)))

    def counted() -> None:
        left.extend(reference() is not None for reference in made[0])

    monkeypatch.setattr(guards.StepGuard, "on_train_begin", began)
    monkeypatch.setattr(guards, "count_from_now", counted)
    poison(45)
    run({**values, "on_bad_step": "rewind"})
    assert left == [False, False]


def test_a_signal_on_the_way_back_is_not_lost(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(45)
    record = guards.record_left_out

    def signalled(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(guards, "record_left_out", signalled)
        with pytest.raises(StoppedResumable, match="a signal; the same command goes back to the newest checkpoint"):
            run({**values, "on_bad_step": "rewind"})
    folder = run({**values, "on_bad_step": "rewind"})
    assert len(bad_steps(folder)) == 1
    assert recorded_left_out(folder)[0]["rows"] == [[40, 8]]


class Event:
    """Stands for an event of CUDA; what is told of it: the step under way when it was waited for."""

    waited: ClassVar[list["Event"]] = []

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        Event.waited.append(self)


@pytest.mark.slow
@pytest.mark.parametrize(("save_steps", "saved", "waits"), [(4, [4], 6), (6, [], 6)])
def test_on_a_gpu_the_numbers_are_read_one_step_later_but_before_a_save(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch, moments: "Moments",
    save_steps: int, saved: list[int], waits: int,
) -> None:  # fmt: skip
    empty, made = torch.empty, guards.StepGuard.__init__

    def on_gpu(self: Any, *args: Any) -> None:
        made(self, *args)
        self._reads_later = True

    monkeypatch.setattr(guards.StepGuard, "__init__", on_gpu)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **keys: empty(*size, **keys))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.waited.clear()
    poison(45)
    keys = {**values, "logging_steps": 8, "logging_first_step": False, "save_steps": save_steps}
    with pytest.raises(RunFailedError, match="loss=nan at step 6"):
        run(keys)
    folder = Path(values["output_dir"])
    assert [step for step, _ in complete_checkpoints(folder)] == saved
    assert max(moments.steps) == 6
    assert len(Event.waited) == waits
    (record,) = bad_steps(folder)
    assert record["micro_batches"][0]["rows"] == [44, 45, 46, 47]
    run({**keys, "on_bad_step": "rewind"})
    assert recorded_left_out(folder)[0] == {
        "step": 6, "checkpoint": max(saved, default=0), "rows": [[40, 8]], "reason": "loss=nan"}  # fmt: skip


@pytest.mark.slow
def test_a_second_return_to_a_checkpoint_leaves_out_more(values: dict[str, Any], poison: Callable[..., None]) -> None:
    poison(45, 53)  # the rows of step 7, which become those of step 6
    folder = run({**values, "on_bad_step": "rewind"})
    assert [record["rows"] for record in recorded_left_out(folder)] == [[[40, 8]], [[32, 8], [48, 8]]]
    assert json.loads((folder / "run.json").read_text())["training"]["bad_steps"]["rows_left_out"] == 24
    events = [found for found in read_jsonl(folder / "metrics.jsonl") if "bad_step" in found]
    assert [(event["bad_step"], event["number_of_return"]) for event in events] == [(6, 1), (6, 2)]


@pytest.mark.slow
def test_the_number_of_bad_steps_is_bounded(values: dict[str, Any], poison: Callable[..., None]) -> None:
    poison(45, 50, 60)
    for action, steps in (("skip", [6, 7, 8]), ("rewind", [6, 6, 5])):
        folder = Path(f"{values['output_dir']}-{action}")
        keys = {**values, "on_bad_step": action, "output_dir": str(folder), "max_bad_steps": 2}
        with pytest.raises(
            RunFailedError, match="loss=nan at step [58]: training has diverged.*number 3, and max_bad_steps=2"
        ):
            run(keys)
        assert [record["step"] for record in bad_steps(folder)] == steps
        assert [record["action"] for record in bad_steps(folder)] == [action, action, "stop"]
        assert checkpoint_faults(folder / "checkpoint-4") == []
        run({**keys, "max_bad_steps": 3})
        assert weights(folder)


@pytest.mark.parametrize("factor", [6.0, 0.0])
def test_spikes_are_found_by_the_steps_before(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(guards, "LEAST_STEPS", 4)
    poison(45, factor=30.0)
    keys = {**values, "on_bad_step": "skip", "spike_factor": factor}
    folder = run(keys)
    if factor:
        (record,) = bad_steps(folder)
        assert record["step"] == 6
        assert record["reason"].startswith("loss=")
        assert " above " in record["reason"]
    assert (folder / "bad_steps.jsonl").exists() == bool(factor)
    # A run that goes on from a checkpoint has the steps before it in mind.
    (folder / "run.json").unlink()
    (folder / "checkpoint-8" / "complete.json").unlink()
    expected = weights(folder)
    assert weights(run(keys)) == expected


def test_a_gradient_alone_can_be_a_spike(
    values: dict[str, Any], poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "LEAST_STEPS", 4)
    poison(45, factor=30.0)
    losses_of = Trainer.compute_loss

    def hidden(*args: Any, **kwargs: Any) -> Any:
        loss = losses_of(*args, **kwargs)
        return loss - (loss - 3.2).detach()  # half a step's mean: the gradient stays

    monkeypatch.setattr(Trainer, "compute_loss", hidden)
    folder = run({**values, "on_bad_step": "skip"})
    (record,) = bad_steps(folder)
    assert record["step"] == 6
    assert record["reason"].startswith("gradient norm=")


def test_what_a_usual_value_is() -> None:
    usual = guards.UsualRange(6.0, 0.01)
    usual.values.extend([3.0] * 63)
    assert usual.limit() == math.inf, "too few steps to tell"
    usual.values.append(3.0)
    assert usual.limit() == pytest.approx(3 * 1.06), "a deviation counts as 1 % at least"
    usual.values.extend([2.0, 4.0] * 64)
    assert usual.limit() == pytest.approx(3 + 6 * 1.4826)
    assert guards.UsualRange(0.0, 0.01).limit() == math.inf


def test_rows_that_are_left_out_are_stepped_over() -> None:
    rows = TrainingRows(np.arange(20)[:, None], 30, seed=1)
    before = [rows.row_of(index) for index in range(30)]
    rows.left_out = [(4, 4), (12, 2), (22, 1)]
    left = [place for place in range(37) if not (4 <= place < 8 or 12 <= place < 14 or place == 22)]
    assert [rows.place_of(index) for index in range(30)] == left
    assert [rows.row_of(index) for index in range(23)] == [before[place] for place in left[:23]]
    assert rows[4]["input_ids"].tolist() == [8]
    assert rows.__getitems__([3, 4]).tolist() == [[3], [8]]


def test_documents_of_rows_are_found_with_their_beginnings(packed_folder: Path, tokenizer_folder: Path) -> None:
    packed, tokenizer = load_packed(packed_folder), load_tokenizer("tokenizer", str(tokenizer_folder))
    found = describe_rows(packed, tokenizer, range(len(packed.train)))
    numbers = sorted({record["document"] for record in found})
    assert numbers == [*range(1, len(numbers) + 1)]
    total = sum(source["documents"] for source in packed.manifest["sources"].values())
    assert total - 1 <= len(numbers) <= total
    texts: dict[int, set[str]] = {}
    for record in found:
        texts.setdefault(record["document"], set()).add(record["text"])
    assert all(len(names) == 1 for names in texts.values()), "a document has one beginning, in whichever row it is met"
    first = sum(source["documents"] for name, source in packed.manifest["sources"].items() if name == "contos")
    assert all(record["source"] == ("contos" if record["document"] <= first else "curtas") for record in found)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"spike_factor": 1.0}, "spike_factor=1.0: must be 2 or more, 6 is usual; or 0 for none"),
        ({"max_bad_steps": 0}, "max_bad_steps=0: must be 1 or more"),
        ({"on_bad_step": "ignore"}, "on_bad_step"),
    ],
)
def test_keys_that_mean_nothing_are_refused(values: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run({**values, **keys})


def test_a_checkpoint_from_before_rows_were_left_out_is_refused(
    values: dict[str, Any], poison: Callable[..., None]
) -> None:
    folder = run({**values, "max_tokens": 1024})
    environment = json.loads((folder / "environment.json").read_text())
    record = {"step": 2, "checkpoint": 0, "rows": [[8, 8]], "reason": "loss=nan"}
    (folder / "environment.json").write_text(json.dumps({**environment, "left_out": [record]}))
    with pytest.raises(InputError, match=r"checkpoint-4 has trained on rows of the bad step 2.*Delete that checkpoint"):
        run(values)


def test_skipping_is_refused_where_it_would_not_hold(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for zero, message in (
        ({"stage": 3}, "on_bad_step=skip: not under ZeRO stage 3.*on_bad_step: stop"),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, "not with zero_optimization.offload_optimizer"),
    ):
        settings = {"zero_optimization": zero}
        monkeypatch.setattr("teenytinyllama.training.config.deepspeed_settings", lambda *_, found=settings: found)
        with pytest.raises(InputError, match=message):
            build(PretrainConfig, {**values, "on_bad_step": "skip"})
        build(PretrainConfig, values)


def start_ranks(values: dict[str, Any], place: Path, name: str, factor: float) -> subprocess.CompletedProcess[str]:
    """Train on two ranks, one of which gets the bad row 45."""
    place.mkdir(exist_ok=True)
    (place / "x.yaml").write_text(yaml.safe_dump(values))
    code = (
        "import sys, pathlib; from teenytinyllama.launching.launch import launch\n"
        f"sys.exit(launch(pathlib.Path({str(REPOSITORY / 'tests' / 'ranks' / 'bad_rows.py')!r}), "
        f"['--config', {str(place / 'x.yaml')!r}], "
        f"{str(REPOSITORY / 'recipes' / 'accelerate' / f'{name}.yaml')!r}, 2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "BAD_ROW": "45", "BAD_FACTOR": str(factor)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = [checkpoint / "model.safetensors", *sorted((checkpoint / "optimizer").glob("*.safetensors"))]
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "bf16", "optimizer", "factor"),
    [
        ("ddp", False, "adamw", math.inf),
        ("zero2", False, "adamw", 30.0),
        ("zero1", True, "normuon", 30.0),
        ("zero2", True, "adamw", math.inf),
    ],
    ids=["ddp-infinite", "zero2-spike", "zero1-bf16-normuon-spike", "zero2-bf16-infinite"],
)
def test_two_ranks_skip_and_go_back_together(
    name: str, bf16: bool, optimizer: str, factor: float, values: dict[str, Any], tmp_path: Path,
    poison: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(guards, "LEAST_STEPS", 4)
    values |= {"per_device_train_batch_size": 2, "save_steps": 1, "save_total_limit": 20, "optimizer": optimizer}
    values |= {"bf16": bf16, "logging_steps": 1}
    poison(45, factor=factor)
    for action in ("skip", "rewind"):
        folder = tmp_path / f"{name}-{action}"
        keys = {**values, "on_bad_step": action, "output_dir": str(folder)}
        done = start_ranks(keys, tmp_path / action, name, factor)
        assert done.returncode == 0, done.stdout + done.stderr
        record = bad_steps(folder)[0]
        assert (record["step"], record["action"]) == (6, action)
        assert record["loss"] == "inf" if math.isinf(factor) else record["loss"] > 20
        worst = record["micro_batches"][0]
        assert (worst["rank"], worst["rows"]) == (0, [44, 45])
        if action == "skip":
            before, after = (tensors_of(folder / f"checkpoint-{step}") for step in (5, 6))
            assert all(torch.equal(before[key], after[key]) for key in before)
            assert any(
                not torch.equal(after[key], tensor) for key, tensor in tensors_of(folder / "checkpoint-7").items()
            )
        else:
            assert recorded_left_out(folder)[0]["rows"] == [[40, 8]]
            assert "resumed from" in done.stdout
            assert done.stdout.count("the model before is gone") == 2
        if not bf16:
            alone = run({**keys, "output_dir": str(tmp_path / f"alone-{action}")})
            assert losses(folder) == pytest.approx(losses(alone), abs=2e-5)
            assert rates(folder) == rates(alone)
    # Killed after it went back, and resumed: the same.
    expected = weights(folder)
    (folder / "run.json").unlink()
    for step in (7, 8):
        (folder / f"checkpoint-{step}" / "complete.json").unlink()
    assert start_ranks(keys, tmp_path / "rewind", name, factor).returncode == 0
    assert weights(folder) == expected
    assert len(bad_steps(folder)) == 1
