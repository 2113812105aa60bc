"""Checks of one run: its config, rows and model together, its learning rate, and what it needs against what is free.

Each check asks the code that the training itself will run (`training/run_plan.py`, `planning/memory.py`), and turns a
refusal into a line, so that a user sees all of them at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import build
from ..checkpointing.checkpoints import read_marker
from ..checks import InputError, ensure_folder, format_bytes, free_disk_bytes
from ..data.packed import RowLook, as_line, check_packed, look_at_rows
from ..distributed import deepspeed_settings
from ..energy.meter import check_energy
from ..gpus import free_memory_bytes
from ..planning.memory import USED_SHARE, choose_rows, memory_need, row_divisors
from ..presets import count_parameters, flops_per_token
from ..stage_folder import MANIFEST_NAME
from . import Diagnosis, State, check_clock, check_rate, check_writing, judge_rows, refusal_of, show_hours, show_rows

if TYPE_CHECKING:
    from ..data.packed import PackedCorpus

SPEED_STEPS = 20  # of the speed test
_LONGEST_TEST_SECONDS = 180.0  # of a speed test without a GPU
_LONG_HOURS, _ENDLESS_HOURS = 30 * 24.0, 90 * 24.0  # a run of so long is warned of, or without a GPU not begun
# Memory of the computer that a rank on a GPU takes: Python, torch and the driver hold about 3 GB. Assumed.
_HOST_BYTES_A_RANK = 3_000_000_000


@dataclass
class Examination:
    """What was found of a run, and what the measurements that follow have to know.

    Attributes:
        found: diagnoses, in order.
        rows: decoded rows, as lines.
        skipped: checks that could not be made, by the reason.
        facts: numbers and values for the network and the speed test; JSON values.
    """

    found: list[Diagnosis] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"found": [asdict(item) for item in self.found], "rows": self.rows, "skipped": self.skipped,
                "facts": self.facts}  # fmt: skip

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Turn a refusal in the block into a finding of that name."""
        try:
            yield
        except InputError as error:
            self.found.append(refusal_of(name, error))

    def add(self, name: str, state: State, text: str, fix: str = "") -> None:
        """Add what a check has found."""
        self.found.append(Diagnosis(name, state, text, fix))

    @property
    def stopped(self) -> bool:
        """Return whether any check says stop."""
        return any(item.state == "stop" for item in self.found)


@dataclass(frozen=True)
class Place:
    """Where a run is to compute.

    Attributes:
        num_ranks: ranks that will train, on this machine.
        uses_gpu: whether each has a GPU.
        picture: where the learning rate is drawn; None: beside the run's folder.
    """

    num_ranks: int
    uses_gpu: bool
    picture: str | None = None


def examine(kind: str, values: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return the examination of a training, as JSON values; call it for planned ranks (`before_ranks`).

    Args:
        kind: pretrain, sft or dpo.
        values: the checked values of its config.
        place: where it is to compute.
    """
    examination = Examination()
    (_examine_pretraining if kind == "pretrain" else _examine_tuning)(examination, kind, values, place)
    if values.get("output_dir") and _takes_files(examination, values["output_dir"]):
        folder = Path(values["output_dir"])
        checkpoint = int(examination.facts.get("checkpoint_bytes", 0))
        examination.found += [check_clock(folder), check_writing(folder, checkpoint)]
    return examination.to_json()


def _takes_files(examination: Examination, folder: str) -> bool:
    """Return whether a folder can be written to; where it cannot, a finding says so once."""
    try:
        ensure_folder("output_dir", folder)
    except InputError as error:
        if all(item.state != "stop" for item in examination.found):
            examination.found.append(refusal_of("folder", error))
        examination.skipped |= dict.fromkeys(("clock", "writing"), "of output_dir, which is refused")
        return False
    return True


def _examine_pretraining(examination: Examination, kind: str, values: dict[str, Any], place: Place) -> None:
    from ..training.caps import has_caps
    from ..training.config import PretrainConfig
    from ..training.decay import branch_values
    from ..training.run_plan import begun_state, check_inputs, check_space, open_parts, pack_inputs, with_batch
    from ..training.settings import planned_for

    with examination.check("config"):
        values = branch_values(PretrainConfig, values)
        if values.get("inputs"):
            if not (Path(str(values.get("output_dir"))) / "packed" / MANIFEST_NAME).is_file():
                _, early, shape = check_inputs(values, place.num_ranks)
                _say_config(examination, early, place)
                reason = "`ttl pretrain` packs inputs when it starts. `ttl pack` first, and packed in place of inputs"
                examination.skipped |= dict.fromkeys(("rows", "agreement", "speed"), reason)
                _examine_needs(examination, early, shape, place)
                return
            values = pack_inputs(values, place.num_ranks)  # they are packed already
        values = with_batch(values, place.num_ranks)
        is_open = has_caps(values) and not values.get("max_tokens") and values.get("max_steps", -1) <= 0
        if is_open:
            values = {**values, "max_steps": 1}  # stands for the length that the speed test will tell
        with planned_for(place.num_ranks):
            config = build(PretrainConfig, {**values, "use_cpu": True})
        check_energy(config)
        _say_config(examination, config, place)
    if examination.stopped:
        return
    with examination.check("agreement"):
        packed, tokenizer, shape = open_parts(config)
        _say_agreement(examination, tokenizer, shape, packed.manifest)
    if examination.stopped:
        return
    with examination.check("rows"):
        check_packed(packed, vocab_size=shape.vocab_size)
        _say_rows(examination, look_at_rows(packed, tokenizer))
    with examination.check("folder"):
        state, _ = begun_state(config, packed)
        _say_state(examination, config, state)
        with examination.check("disk"):
            check_space(config, Path(str(config.output_dir)), state, shape)
    _examine_needs(examination, config, shape, place, is_open)
    examination.facts |= _facts_of_speed(config, values, packed, shape, place, is_open)
    if not place.uses_gpu:
        _bound_speed_test(examination, shape, packed.train.shape[1], place.num_ranks)


def _examine_needs(examination: Examination, config: Any, shape: Any, place: Place, is_open: bool = False) -> None:
    """Check what a run needs against what is free, and draw its learning rate."""
    from ..training.run_plan import size_of_checkpoint

    precise_for(config, place)
    examination.facts |= {
        "checkpoint_bytes": size_of_checkpoint(config, shape),
        "gradient_bytes": (2 if config.precision != "fp32" and _zero_stage() else 4) * count_parameters(shape),
    }
    if not any(item.name in ("disk", "folder") and item.state == "stop" for item in examination.found):
        _say_disk(examination, config, shape)
    examination.found += list(check_memory(config, shape, place))
    if is_open:
        examination.skipped["rate"] = "the length of the run follows from its caps"
        return
    with examination.check("rate"):
        examination.found.append(check_rate(config, place.picture))


def precise_for(config: Any, place: Place) -> None:
    """Give a config that was resolved for the CPU the precision that ranks on GPUs will choose."""
    from ..gpus import choose_precision

    if place.uses_gpu and config.precision_reason == "use_cpu":
        precision, config.precision_reason = choose_precision()
        config.bf16, config.fp16 = precision == "bf16", precision == "fp16"


def _zero_stage() -> int | None:
    settings = deepspeed_settings(None)
    return None if settings is None else int(settings.get("zero_optimization", {}).get("stage", 0))


def _say_config(examination: Examination, config: Any, place: Place) -> None:
    tokens = config.rows_per_step * config.tokens_per_row
    text = f"{config.max_steps:,} steps of {tokens:,} tokens = {config.max_steps * tokens:,} tokens"
    examination.add("config", "ok", f"{text}, on {place.num_ranks} rank{'s' * (place.num_ranks > 1)}")


def _say_agreement(examination: Examination, tokenizer: Any, shape: Any, manifest: dict[str, Any]) -> None:
    """Say how tokenizer, rows and model agree; what disagrees was refused, but for the special tokens of a model."""
    special = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    own = {role: getattr(shape, f"{role}_token_id", None) for role in ("bos", "eos")}
    other = [
        f"{role} {own[role]} there, {special[role]} in the tokenizer" for role in own if own[role] != special[role]
    ]
    text = (
        f"rows and model are of one tokenizer (sha256 {manifest['tokenizer_sha256'][:12]}): {len(tokenizer):,} tokens "
        f"in {shape.vocab_size:,} embeddings, rows of {manifest['context']:,} tokens, "
        + ", ".join(f"{role} {place}" for role, place in special.items())
    )
    if other:
        fix = "Its config.json should have the tokenizer's: answers end at that token"
        examination.add("agreement", "warning", f"special tokens of the model differ ({'; '.join(other)})", fix)
        return
    examination.add("agreement", "ok", text)


def _say_rows(examination: Examination, look: RowLook) -> None:
    examination.rows += show_rows(look)
    examination.found += judge_rows(look)


def _say_state(examination: Examination, config: Any, state: str) -> None:
    from ..training.run_plan import describe_continuation, steps_done

    folder = Path(str(config.output_dir))
    done = steps_done(folder)
    if state == "complete":
        text = f"output_dir={folder} is complete"
        examination.add("folder", "warning", text, describe_continuation(folder).capitalize())
        examination.skipped["speed"] = "the run is complete"
        return
    begins = f"goes on from step {done:,}" if done else "begins" if state == "new" else "begins again"
    examination.add("folder", "ok", f"the run {begins} in {folder}")


def _say_disk(examination: Examination, config: Any, shape: Any) -> None:
    """Say what the checkpoints need where there is room for them; where there is none, that was refused."""
    from ..training.run_plan import space_to_come

    folder = Path(str(config.output_dir))
    count, each, final = space_to_come(config, folder, shape)
    needed, free = count * each + final, free_disk_bytes(folder)
    text = (
        f"{count} checkpoint{'s' * (count > 1)} of {format_bytes(each)} and a final model of {format_bytes(final)}: "
        f"{format_bytes(needed)} of {format_bytes(free)} free"
    )
    if 1.05 * needed > free:
        examination.add("disk", "stop", text, "Free some space, lower save_total_limit, or choose another disk")
        return
    tight = needed > 0.8 * free
    fix = "Others may fill the rest: lower save_total_limit, or free some space" if tight else ""
    examination.add("disk", "warning" if tight else "ok", text, fix)


def check_memory(config: Any, shape: Any, place: Place) -> Iterator[Diagnosis]:
    """Yield how the memory that each rank needs compares with what is free, on GPUs and on the computer.

    Args:
        config: a `RunSettings`, with everything derived and the precision of the ranks.
        shape: the model's config.
        place: where it is to compute.
    """
    import torch

    stage = _zero_stage()
    speed = config.speed_plan(shape, stage or 0)
    compiled = speed.compile_layers and place.uses_gpu  # as `trials.compiles_trial`
    how = config.computation(speed, stage, place.num_ranks, on_gpu=place.uses_gpu, compiled=compiled)
    need = memory_need(shape, config.longest_row, how)
    device = "gpu" if place.uses_gpu else "cpu"
    if place.uses_gpu:
        gpus = min(place.num_ranks, torch.cuda.device_count())
        free = min(free_memory_bytes(torch.device("cuda", index)) for index in range(gpus))
    else:
        free = free_memory_bytes(torch.device("cpu"), place.num_ranks)
    divisors = row_divisors(config.rows_per_step // place.num_ranks)
    rows = choose_rows(divisors, need, free, config.longest_row, device)
    rows = config.per_device_train_batch_size if config.micro_batch_given else rows
    state, fix = judge_memory(need.total_bytes(1), need.total_bytes(rows), free, USED_SHARE[device])
    text = (
        f"each rank needs about {format_bytes(need.total_bytes(rows))} with {rows} row{'s' * (rows > 1)} at once "
        f"({format_bytes(need.state_bytes)} of it weights, gradients and optimizer), {format_bytes(free)} are free on "
        f"{'each GPU' if place.uses_gpu else 'the CPU for each'}"
    )
    yield Diagnosis("memory", state, text, fix)
    if place.uses_gpu:
        free, needed = free_memory_bytes(torch.device("cpu")), place.num_ranks * _HOST_BYTES_A_RANK
        fix = "End other programs: Linux kills a rank when memory runs out" if free < needed else ""
        text = f"the ranks take about {format_bytes(needed)} of the computer's memory, {format_bytes(free)} are free"
        yield Diagnosis("host RAM", "warning" if fix else "ok", text, fix)


def judge_memory(least_bytes: int, bytes_needed: int, free_bytes: int, used_share: float) -> tuple[State, str]:
    """Return what a need of memory means, and the fix.

    Args:
        least_bytes: of a micro-batch of one row.
        bytes_needed: of the micro-batch that is chosen or given.
        free_bytes: of the rank that has least.
        used_share: of the free memory that is planned with, see `USED_SHARE`.
    """
    if least_bytes > free_bytes:
        return "stop", "Set activation_checkpointing: true, take ranks under ZeRO, shorter rows or a smaller model"
    if bytes_needed > used_share * free_bytes:
        return "warning", "That may not fit: leave per_device_train_batch_size out, and one that fits is chosen"
    return "ok", ""


def _facts_of_speed(
    config: Any, values: dict[str, Any], packed: "PackedCorpus", shape: Any, place: Place, is_open: bool
) -> dict[str, Any]:
    """Return what the speed test needs: the values of a run like this one, how much is left, and what it costs."""
    from ..training.run_plan import steps_done

    done = steps_done(Path(str(config.output_dir)))
    if config.decay_from is not None:
        done = max(done, read_marker(Path(config.decay_from)).step)  # made by the run that it is a branch of
    left = 0 if is_open else config.max_steps - done
    speed = config.speed_plan(shape, _zero_stage() or 0)
    without = ("max_tokens", "max_steps", "decay_from", "lr_scheduler_kwargs", "inputs")
    test = {key: value for key, value in values.items() if key not in without}
    return {
        "test": {
            **test,
            "packed": str(packed.folder),
            "tokens_per_step": config.tokens_per_step,
            "lr_scheduler_type": "constant_with_warmup",
            "compile_layers": speed.compile_layers,
            "preflight": False,
        },
        "warmup_steps": config.get_warmup_steps(config.max_steps),
        "tokens_left": left * config.tokens_per_step,
        "saves_left": 0 if is_open or config.save_strategy == "no" else max(1, left // max(1, int(config.save_steps))),
        "grid": [config.country_iso_code, config.region],
        "price": config.price,
    }


def _bound_speed_test(examination: Examination, shape: Any, context: int, num_ranks: int) -> None:
    """Without a GPU let the steps of the speed test have few rows, or leave it out and say how long the run takes."""
    from ..training.speed import expected_seconds

    facts = examination.facts
    test, row_flops = facts["test"], context * flops_per_token(shape, context)
    least = int(test.get("per_device_train_batch_size") or 1)
    seconds = expected_seconds(SPEED_STEPS * least * num_ranks * row_flops, num_ranks)  # of the shortest test
    if seconds <= _LONGEST_TEST_SECONDS:
        rows = int(_LONGEST_TEST_SECONDS / seconds) * least
        test["tokens_per_step"] = min(test["tokens_per_step"], rows * num_ranks * context)
        facts["test_seconds"] = seconds * test["tokens_per_step"] / (least * num_ranks * context)
        return
    del facts["test"]
    hours = expected_seconds(facts["tokens_left"] / context * row_flops, num_ranks) / 3600
    text = (
        f"not tested: without a GPU {SPEED_STEPS} steps would take about {show_hours(seconds / 3600)}, and the whole "
        f"run about {show_hours(hours)}, estimated from a short matrix product"
    )
    state: State = "stop" if hours > _ENDLESS_HOURS else "warning"
    examination.add("speed", state, text, "Rent a GPU (`ttl plan` says what it costs), or train a smaller size")


def _examine_tuning(examination: Examination, kind: str, values: dict[str, Any], place: Place) -> None:
    """Check a tuning on instructions or preferences, whose rows were looked at when they were prepared."""
    from ..training.settings import planned_for
    from ..tuning.base import DPO, SFT

    tuning = {"sft": SFT, "dpo": DPO}[kind]
    examination.skipped["speed"] = "the speed of pretraining alone is tested"
    if values.get("inputs"):
        reason = f"`ttl {kind}` prepares inputs when it starts, and checks them before; run it without training first"
        examination.skipped |= dict.fromkeys(("config", "agreement", "memory", "rate"), reason)
        return
    with examination.check("config"), planned_for(place.num_ranks):
        config = build(tuning.config, {**values, "use_cpu": True})
        _say_config(examination, config, place)
    if examination.stopped:
        return
    with examination.check("agreement"):
        plan = tuning.plan(config)
        text = f"rows of {plan.data} are by the tokenizer and chat template of {config.model_name_or_path}"
        examination.add("agreement", "ok", text)
        _say_state(examination, config, plan.state)
        examination.rows += _prepared_rows(plan)
        _examine_needs(examination, config, plan.model_config, place)


def _prepared_rows(plan: Any) -> list[str]:
    """Return the first three prepared rows as lines."""
    import itertools

    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(plan.data / "train.parquet")
    names = [name for name in ("input_ids", "prompt_ids", "chosen_ids") if name in file.schema_arrow.names]
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(16, columns=names))
    ids = [list(itertools.chain.from_iterable(row[name] for name in names)) for row in itertools.islice(rows, 3)]
    return [f"row {number:<8,} {as_line(str(plan.tokenizer.decode(tokens)))}" for number, tokens in enumerate(ids)]


def judge_speed(speed: Any, values: dict[str, Any], facts: dict[str, Any], bytes_per_second: float) -> Diagnosis:
    """Return hours, energy, emissions and money of a run by its speed test, and whether its caps pay for it.

    Args:
        speed: a `MeasuredSpeed`.
        values: of the run; `packed` is taken from the facts.
        facts: see `Examination`.
        bytes_per_second: that the run's disk takes; 0: not known.
    """
    from ..energy.emissions import grid_intensity
    from ..training.caps import CAP_KEYS
    from ..training.speed import hours_for, tokens_within

    values = {**values, "packed": facts["test"]["packed"]}
    caps = {key: float(values[key]) for key in CAP_KEYS if values.get(key) is not None}
    price, tokens, state, fix = facts["price"], float(facts["tokens_left"]), "ok", ""
    paid, cap = tokens_within(caps, float(price or 0), speed, values) if caps else (tokens, "")
    if cap and paid < facts["test"]["tokens_per_step"] * SPEED_STEPS:
        text = f"{cap}={caps[cap]:g} pays for {max(0.0, paid):,.0f} tokens, less than {SPEED_STEPS} steps"
        return Diagnosis("speed", "stop", text, "Raise it, or lower tokens_per_step")
    if cap and (paid < tokens or not tokens):
        state, fix = ("warning", f"{cap} ends the run after {paid / 1e6:,.2f}M tokens") if tokens else ("ok", "")
        tokens = paid
    saving = facts["saves_left"] * facts["checkpoint_bytes"] / bytes_per_second / 3600 if bytes_per_second else 0.0
    hours = hours_for(tokens, speed, values) + saving
    kwh = speed.watts / 1000 * hours
    kg = kwh * grid_intensity(*facts["grid"]) / 1000
    money = f"{price * speed.num_gpus * hours:,.2f} USD" if price is not None else "no money, as no price is given"
    energy = f"{kwh:,.3g} kWh, {kg:,.3g} kg CO2e" if speed.watts else "energy not measured"
    if not speed.watts:
        state, fix = "warning", "The meter measured nothing: no cap on energy can hold"
    text = (
        f"{speed.tokens_per_second:,.0f} tokens/s at {speed.watts:.0f} W on {speed.num_ranks} x {speed.hardware}: "
        f"{tokens / 1e6:,.2f}M tokens take {show_hours(hours)}, {energy}, {money} (this test: "
        f"{speed.spent_kwh:.3g} kWh)"
    )
    if state == "ok" and hours > _LONG_HOURS:
        state, fix = "warning", "That is over a month: take faster GPUs, fewer tokens or a smaller size"
    found: State = "warning" if state == "warning" else "ok"
    return Diagnosis("speed", found, text, fix, hours)
