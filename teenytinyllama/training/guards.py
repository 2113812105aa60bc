"""Guards of pretraining: what is done about a step whose numbers have gone wrong, and which documents were in it.

A step is bad when its loss or its gradient norm is not finite, or lies far above those of the steps before it. `stop`
ends the run, `skip` leaves that step's update out, `rewind` goes back to the newest checkpoint and on without the
step's rows. Loss and norm are of the whole optimizer step over all ranks, which decide alike: from one reduction of the
two numbers, and from the numbers of the steps before, which checkpoints hold.

Where a decision can wait, the two numbers are read one step later, when the GPU has computed them anyway; before a log,
an evaluation and a save they are read at once. A skip cannot wait: it costs the wait for the GPU's queue once a step.
"""

import gc
import json
import math
import statistics
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import distributed
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..checkpointing.checkpoints import complete_checkpoints, ranges_of, record_left_out, recorded_left_out
from ..checks import RunFailedError, StoppedResumable, beside_the_model, counted, ensure
from ..data.packed import describe_rows
from ..disk import replace_file
from ..distributed import any_rank, from_first, num_ranks
from ..energy.recorder import count_from_now
from ..stage_folder import BAD_STEPS_NAME, ENVIRONMENT_NAME, METRICS_NAME, read_jsonl_records, utc_now
from .library import skip_bad_steps
from .metrics import DIVERGED, append_jsonl

# Window and factor of OLMo-core's SkipStepOptimizer, which skips a step whose loss or gradient norm lies 6 standard
# deviations above the mean of 128 steps, once it has seen half of them. Here median and median absolute deviation stand
# for the two, so that an outlier that was let pass does not widen the range, and bad values are never counted.
WINDOW_STEPS, LEAST_STEPS, USUAL_FACTOR = 128, 64, 6.0
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
# The deviation counts as no less than these shares of the median. In 1,929 log lines of four runs without trouble the
# rule with these floors then found no loss and one gradient norm (1.90, usual 0.48).
_LOSS_FLOOR, _NORM_FLOOR = 0.01, 0.1
_SHOWN_DOCUMENTS, _DOCUMENT_KEYS = 3, ("row", "document", "source", "text")  # on the console; the file has all

Result = TypeVar("Result")


class ReturnToCheckpointError(Exception):
    """A bad step under `rewind`: the training goes on from the newest checkpoint; raised on all ranks at once."""

    def __init__(self, was_asked_to_stop: Callable[[], bool], device: torch.device) -> None:
        """Remember how to find out whether a signal came meanwhile, on this rank."""
        self.was_asked_to_stop, self.device = was_asked_to_stop, device


def with_returns(attempt: Callable[[], Result]) -> Result:
    """Return what an attempt to train returns; one that goes back to a checkpoint is followed by another.

    Raises:
        StoppedResumable: a signal came while it went back.
    """
    while True:
        try:
            return attempt()
        except ReturnToCheckpointError as back:
            was_asked_to_stop, device = back.was_asked_to_stop, back.device
        # Here the attempt's model, optimizer and engine are held by nothing but circles of references.
        if any_rank(was_asked_to_stop(), device):
            raise StoppedResumable("a signal; the same command goes back to the newest checkpoint and on from there")
        AcceleratorState._reset_state()  # accelerate makes one engine of DeepSpeed's a state
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # what was compiled holds the layers, and their number is limited
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        count_from_now()


def check_guards(config: Any) -> None:
    """Check the keys of the guards.

    Raises:
        InputError: a factor that would call every second step a spike, or no bad step allowed.
    """
    factor = config.spike_factor
    ensure(
        factor is None or factor == 0 or factor >= 2,
        f"spike_factor={factor}: must be 2 or more, {USUAL_FACTOR:g} is usual; or 0 for none.",
    )
    ensure(config.max_bad_steps >= 1, f"max_bad_steps={config.max_bad_steps}: must be 1 or more.")


def spike_factor_of(config: Any) -> float:
    """Return the factor by which a config tells spikes; 0: it tells none."""
    if config.spike_factor is not None:
        return float(config.spike_factor)
    return 0.0 if config.on_bad_step == "stop" else USUAL_FACTOR


def describe_guards(config: Any) -> str:
    """Return what is done about which steps, for the banner."""
    factor, most = spike_factor_of(config), counted(config.max_bad_steps, "time")
    spikes = f", or more than {factor:g} deviations above the median of {WINDOW_STEPS} steps" if factor else ""
    what = {
        "stop": "stops the run",
        "skip": f"is not taken, {most} at most",
        "rewind": f"sends the run back to its newest checkpoint and on without the step's rows, {most} at most",
    }[config.on_bad_step]
    return f"a step whose loss or gradient norm is not finite{spikes} {what} (on_bad_step)"


class UsualRange:
    """What a figure of a step usually is, by the last steps that were not bad."""

    def __init__(self, factor: float, floor: float) -> None:
        """Allow `factor` deviations; one is at least `floor` times the median. 0 deviations: any finite value."""
        self.factor, self.floor = factor, floor
        self.values: deque[float] = deque(maxlen=WINDOW_STEPS)

    def limit(self) -> float:
        """Return the highest value that is no spike."""
        if not self.factor or len(self.values) < LEAST_STEPS:
            return math.inf
        median = statistics.median(self.values)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in self.values)
        return median + self.factor * max(deviation, self.floor * abs(median))


class GuardedTrainer:
    """Mixed into a Trainer's class, in front of it: shows a `StepGuard` the losses, and logs what it has let pass."""

    guard: "StepGuard | None" = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's loss; that of a training step is also shown to the guard."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self.guard is not None and model.training:
            self.guard.losses.append(loss.detach())
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the Trainer's loss for its sum; one that is not finite would stay in that sum for ever."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        skips = self.guard is not None and self.guard.action == "skip"
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0) if skips else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, the loss being the mean of the steps that were taken."""
        super().log(logs if self.guard is None else self.guard.without_skipped(logs), *args, **kwargs)  # type: ignore[misc]


class StepGuard(TrainerCallback, ExportableState):
    """Judges each optimizer step of a pretraining. Must come after the callbacks that decide on logs and saves.

    Attributes:
        action: `on_bad_step` of the config.
        losses: of the micro-batches of the step that is under way, on this rank: shares of the step's mean.
        skipped: bad steps that were not taken.
        left_out: rows that are left out: of which bad `step`, found on the way from which `checkpoint` (a step), and
            `rows`, ranges (first, count) in the endless order of rows.
    """

    def __init__(self, trainer: Any, config: Any, plan: Any, was_asked_to_stop: Callable[[], bool]) -> None:
        """Guard a run.

        Args:
            trainer: a `GuardedTrainer`, whose `train_dataset` are `TrainingRows`.
            config: a `PretrainConfig`.
            plan: the checked plan.
            was_asked_to_stop: returns whether a signal has come to this rank.
        """
        self.trainer, self.config, self.plan, self.was_asked_to_stop = trainer, config, plan, was_asked_to_stop
        self.action: str = config.on_bad_step
        self.folder: Path = plan.folder
        self.losses: list[torch.Tensor] = []
        self.skipped, self.left_out = 0, list[dict[str, Any]]()
        factor = spike_factor_of(config)
        self._usual = (UsualRange(factor, _LOSS_FLOOR), UsualRange(factor, _NORM_FLOOR))
        self._norm: Any = None
        self._began = 0  # the step of the checkpoint that this start goes on from
        self._reads_later = config.device.type == "cuda" and self.action != "skip"
        self._sent: tuple[int, torch.Tensor, torch.cuda.Event | None, list[torch.Tensor]] | None = None
        self._taken, self._has_skipped = list[float](), False  # since the last log

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run that goes on from it decides alike."""
        kept = {"skipped": self.skipped, "left_out": self.left_out}
        usual = {"usual_losses": list(self._usual[0].values), "usual_norms": list(self._usual[1].values)}
        return {"args": {}, "attributes": {**kept, **usual}}

    def describe(self) -> dict[str, int]:
        """Return the counts of a run for its manifest."""
        counts = {"skipped": self.skipped, "returns": len(self.left_out)}
        return {**counts, "rows_left_out": sum(count for _, count in ranges_of(self.left_out))}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Take over what the checkpoint and the run's folder know, and get between the gradients and the optimizer.

        Raises:
            InputError: the checkpoint was saved before rows were left out that it had trained on.
            RunFailedError: this DeepSpeed cannot be asked to leave a step out.
        """
        self._began = state.global_step
        states: Any = state.stateful_callbacks
        found = states.get(type(self).__name__, {}).get("attributes", {}) if state.global_step else {}
        self.skipped = found.get("skipped", 0)
        for usual, name in zip(self._usual, ("usual_losses", "usual_norms"), strict=True):
            usual.values.extend(found.get(name, []))
        self._take_left_out(found.get("left_out", []), state.global_step)
        states[type(self).__name__] = self.state()
        accelerator = self.trainer.accelerator
        accelerator.clip_grad_norm_ = self._remembered(accelerator.clip_grad_norm_)
        if self.action == "skip":
            skip_bad_steps(self.trainer, self.is_bad)
        if state.is_world_process_zero:
            with beside_the_model(f"cutting back {BAD_STEPS_NAME}"):
                self._cut_back(state.global_step)
            if self.left_out:
                steps = ", ".join(f"{record['step']:,}" for record in self.left_out)
                rows = counted(self.describe()["rows_left_out"], "row")
                tqdm.write(f"{'left out':10} {rows}, of bad steps ({steps}); see {self.folder / BAD_STEPS_NAME}")

    def _take_left_out(self, saved: list[dict[str, Any]], step: int) -> None:
        recorded = from_first(lambda: recorded_left_out(self.folder))
        rows = self.trainer.train_dataset
        rows.left_out = ranges_of(saved)
        done = rows.place_of(step * self.config.rows_per_step)
        for record in recorded:
            ensure(
                record in saved or all(first >= done for first, _ in record["rows"]),
                f"output_dir={self.folder}: checkpoint-{step} has trained on rows of the bad step {record['step']}, "
                f"which the run left out since ({ENVIRONMENT_NAME}). Delete that checkpoint; the run goes on from the "
                "one before.",
            )
        self.left_out = saved + [record for record in recorded if record not in saved]
        rows.left_out = ranges_of(self.left_out)
        if self.left_out != recorded and self.trainer.is_world_process_zero():
            record_left_out(self.folder, self.left_out)

    def _cut_back(self, step: int) -> None:
        """Drop what will be met again, and tell metrics.jsonl of a return to this step."""
        path = self.folder / BAD_STEPS_NAME
        records = read_jsonl_records(path)
        kept = [record for record in records if record.get("action") == "rewind" or record.get("step", 0) <= step]
        if len(kept) < len(records):
            replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        known = {record.get("number_of_return") for record in read_jsonl_records(self.folder / METRICS_NAME)}
        for number, record in enumerate(self.left_out, start=1):
            if record["checkpoint"] == step and number not in known:
                self._write_event(step, record["step"], "rewind", record["reason"], number_of_return=number)

    def _remembered(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        def clip_and_remember(*args: Any, **kwargs: Any) -> Any:
            self._norm = clip(*args, **kwargs)
            return self._norm

        return clip_and_remember

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the step whose gradients are complete, on a GPU the one before it; a skip is asked for later."""
        if self.action == "skip":
            return
        self._read()
        self._send(self._norm)
        if not self._reads_later:
            self._read()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Judge the step at once if something is made of it now."""
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if is_last or control.should_log or control.should_evaluate or control.should_save:
            self._read()

    def is_bad(self, norm: Any = None) -> bool:
        """Return whether the step that is under way is bad; its gradient norm is that of the Trainer if not given."""
        self._send(self._norm if norm is None else norm)
        return self._read()

    def _send(self, norm: Any) -> None:
        """Let the device add up loss and norm of the step over all ranks; on a GPU nothing waits for them."""
        device, losses = self.config.device, self.losses
        self.losses = []
        known = norm if torch.is_tensor(norm) else torch.full((), 0.0 if norm is None else float(norm), device=device)
        numbers = torch.stack([torch.stack(losses).float().sum(), known.detach().float().to(device)])
        if num_ranks() > 1:
            numbers = numbers.cpu() if distributed.get_backend() in ("gloo", "mpi") else numbers
            distributed.all_reduce(numbers)
            numbers = numbers / num_ranks()
        event = None
        if self._reads_later:
            answer = torch.empty(2, pin_memory=True)
            answer.copy_(numbers, non_blocking=True)
            event, numbers = torch.cuda.Event(), answer
            event.record()
        self._sent = (self.trainer.state.global_step + 1, numbers, event, losses)

    def _read(self) -> bool:
        """Judge the numbers that were sent last, once; return whether their step is bad and is to be skipped."""
        if self._sent is None:
            return False
        (step, numbers, event, losses), self._sent = self._sent, None
        if event is not None:
            event.synchronize()
        loss, norm = (float(number) for number in numbers.tolist())
        norm = math.inf if norm < 0 else norm  # DeepSpeed's sign of a norm that is not finite
        reason = self._reason(loss, norm)
        if reason:
            self._meet_bad_step(step, loss, norm, reason, losses)
            self._has_skipped = True
            return True
        for usual, value in zip(self._usual, (loss, norm), strict=True):
            if math.isfinite(value):
                usual.values.append(value)
        self._taken.append(loss)
        return False

    def _reason(self, loss: float, norm: float) -> str:
        """Return why a step is bad, or an empty text."""
        limits = [usual.limit() for usual in self._usual]
        if not math.isfinite(loss) or loss > limits[0]:
            return f"loss={loss:.6g}" + (f" above {limits[0]:.4g}" if math.isfinite(loss) else "")
        if not math.isfinite(norm):  # in fp16 the loss scale is lowered, and the step is not taken
            return "" if self.config.precision == "fp16" else f"gradient norm={norm:.6g}"
        return f"gradient norm={norm:.6g} above {limits[1]:.4g}" if norm > limits[1] else ""

    def _meet_bad_step(self, step: int, loss: float, norm: float, reason: str, losses: list[torch.Tensor]) -> None:
        """Record a bad step, and stop, skip or go back; all ranks call this at the same step."""
        number, most = self.skipped + len(self.left_out) + 1, self.config.max_bad_steps
        action = "stop" if number > most else self.action
        record = {"step": step, "reason": reason, "loss": _json(loss), "gradient_norm": _json(norm), "action": action}
        if action == "rewind":
            record |= from_first(lambda: self._rows_to_leave_out(step))
            self.left_out.append({**{key: record[key] for key in ("step", "checkpoint", "rows")}, "reason": reason})
        self._write(record | {"number": number}, losses)
        if action == "stop":
            self._stop(step, reason, number)
        if action == "rewind":
            self._go_back()
        self.skipped += 1
        if self.trainer.is_world_process_zero():
            self._write_event(step, step, action, reason)

    def _stop(self, step: int, reason: str, number: int) -> NoReturn:
        if self.trainer.is_world_process_zero():
            self._write_event(step, step, "stop", reason)
        way_out = (
            "Set on_bad_step: rewind, and the same command goes on without those rows; or lower learning_rate or "
            "lengthen warmup_steps and start in a new folder."
        )
        if self.action != "stop":
            way_out = (
                f"It is bad step number {number}, and max_bad_steps={self.config.max_bad_steps}. A higher number lets "
                "the same command go on; so many speak for a lower learning_rate, in a new folder."
            )
        raise RunFailedError(
            f"{reason} at step {step}: {DIVERGED}. Its documents are named in {self.folder / BAD_STEPS_NAME}. The last "
            f"complete checkpoint is from before. {way_out}"
        )

    def _rows_to_leave_out(self, step: int) -> dict[str, Any]:
        """Return the checkpoint that the run goes back to, and the rows that it then leaves out.

        They are those of the bad step. Each further return to the same checkpoint leaves out those of twice as many
        steps before it. Source: PaLM (arXiv 2204.02311, 5.1) went back about 100 steps and left out 200 to 500 batches
        around a spike, which then did not come again, and came from the state of the weights as much as from the rows.
        """
        start = self._began if self.config.decay_from else 0
        before = max((at for at, _ in complete_checkpoints(self.folder) if at < step), default=start)
        width = 2 ** sum(record["checkpoint"] == before for record in self.left_out)
        rows, per_step = self.trainer.train_dataset, self.config.rows_per_step
        places = [rows.place_of(index) for index in range(max(before, step - width) * per_step, step * per_step)]
        ranges: list[list[int]] = []
        for place in places:
            if ranges and place == sum(ranges[-1]):
                ranges[-1][1] += 1
            else:
                ranges.append([place, 1])
        return {"checkpoint": before, "rows": ranges}

    def _go_back(self) -> NoReturn:
        trainer = self.trainer
        if trainer.is_world_process_zero():
            record_left_out(self.folder, self.left_out)
        from_first(lambda: None)  # no rank goes back before the rows are on record
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        engine = trainer.model_wrapped
        if hasattr(engine, "zero_optimization_stage"):
            engine.destroy()  # its hooks hold the model
        raise ReturnToCheckpointError(self.was_asked_to_stop, self.config.device)

    def _write(self, record: dict[str, Any], losses: list[torch.Tensor]) -> None:
        """Append a bad step with its documents to `bad_steps.jsonl`, and print it."""
        mine = [float(loss) * len(losses) for loss in losses]
        gathered: list[Any] = [mine] * num_ranks()
        if num_ranks() > 1:
            distributed.all_gather_object(gathered, mine)
        if not self.trainer.is_world_process_zero():
            return
        step, per_step, rows = record["step"], self.config.rows_per_step, self.trainer.train_dataset
        numbers = [rows.row_of(index) for index in range((step - 1) * per_step, step * per_step)]
        parts, size = [], per_step // sum(map(len, gathered))
        for rank, shares in enumerate(gathered):
            for number, loss in enumerate(shares):
                first = (number * len(gathered) + rank) * size
                parts.append({"rank": rank, "loss": loss, "rows": numbers[first : first + size]})
        parts.sort(key=lambda part: part["loss"] if math.isfinite(part["loss"]) else math.inf, reverse=True)
        worst = parts[0]["rows"]
        with beside_the_model(f"naming the documents of step {step}"):
            ordered = [row for part in parts for row in part["rows"]]
            record["documents"] = describe_rows(self.plan.packed, self.plan.tokenizer, ordered)
        record["micro_batches"] = [{**part, "loss": _json(part["loss"])} for part in parts]
        with beside_the_model(f"writing {BAD_STEPS_NAME}"):
            append_jsonl(self.folder / BAD_STEPS_NAME, {**record, "created": utc_now()})
        which = f"number {record['number']}, at most {self.config.max_bad_steps}"
        done = {"stop": "the run stops", "skip": f"it is not taken ({which})", "rewind": f"the run goes back ({which})"}
        tqdm.write(f"{'bad step':10} {step:,}: {record['reason']}; {done[record['action']]}. Its worst rows of "
                   f"train.npy: {', '.join(map(str, worst[:8]))}{', …' * (len(worst) > 8)}")  # fmt: skip
        shown = [found for found in record.get("documents", []) if found["row"] in worst][:_SHOWN_DOCUMENTS]
        for row, document, source, text in ((found[key] for key in _DOCUMENT_KEYS) for found in shown):
            tqdm.write(f"{'':10} row {row}, document {document} of {source}: {text}")

    def _write_event(self, at_step: int, step: int, action: str, reason: str, **more: int) -> None:
        tokens = at_step * self.config.rows_per_step * self.config.tokens_per_row
        event = {"step": at_step, "tokens": tokens, "bad_step": step, "action": action, "reason": reason, **more}
        with beside_the_model(f"writing {METRICS_NAME}"):
            append_jsonl(self.folder / METRICS_NAME, event)

    def without_skipped(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the figures of a log line, its loss that of the steps that were taken, if any was skipped since."""
        if "loss" not in logs:
            return logs
        if self._has_skipped:
            logs = {**logs, "loss": statistics.fmean(self._taken)} if self._taken else {}
            if not math.isfinite(logs.get("grad_norm") or 0.0):
                del logs["grad_norm"]
        self._taken, self._has_skipped = [], False
        return logs


def _json(value: float) -> float | str:
    """Return a number that JSON can hold, or its name."""
    return value if math.isfinite(value) else str(value)
