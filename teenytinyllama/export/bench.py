"""The bench: how fast a model writes, in which memory and with how much energy, by each engine of this machine.

Every engine gets the same prompts of real text and writes the same number of tokens, always the likeliest, past any end
token. The engines take turns, so that what else the machine does meets all of them alike.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checks import (
    InputError,
    RunFailedError,
    available_cores,
    counted,
    ensure,
    ensure_file,
    ensure_folder,
    ensure_packages,
)
from ..disk import scratch_folder
from ..energy.emissions import GridSettings
from ..energy.ledger import read_ledger
from ..energy.meter import check_energy
from ..energy.recorder import Recorder
from ..progress import progress, say
from ..stage_folder import (
    BENCH_NAME,
    BENCH_TABLE_NAME,
    EMISSIONS_NAME,
    LEDGER_NAME,
    StageFolder,
    sha256_json,
    versions,
    write_json,
)
from .engines import ABOUT_ENGINES, LLAMA_CPP, NEEDS_GPU, EngineName, EngineProcess, EngineSpec, Written, started_engine
from .llama_cpp import idle_cores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWERS_OF_ENERGY = 1_000  # the figure is Wh per so many answers
LEAST_METERED_SECONDS = 3  # of a measurement of energy: codecarbon reads a load that is a mean of about a second
_Engines = dict[str, tuple[EngineProcess, float]]  # by their names, with the MB of their files
_DEFAULT_ENGINES: tuple[EngineName, ...] = ("dynamic", "static", "compiled", "continuous")
_MOST_PROMPT_TEXTS = 400  # of the embedded corpus, about 30,000 tokens


@dataclass
class BenchConfig(GridSettings):
    """`ttl bench MODEL [FILE.gguf ...]`: which engines write what, how often."""

    output_dir: str = field(metadata={"help": "new folder for bench.json and bench.md"})
    prompt_tokens: int = field(default=128, metadata={"help": "tokens of each prompt, real text"})
    new_tokens: int = field(default=100, metadata={"help": "tokens written behind each prompt: an answer"})
    batch_sizes: list[int] | int = field(
        default_factory=lambda: [1, 8], metadata={"help": "texts written at once; llama.cpp writes one at a time"}
    )
    engines: list[EngineName] | None = field(
        default=None,
        metadata={"help": "of transformers: " + "; ".join(f"{name}: {ABOUT_ENGINES[name]}" for name in ABOUT_ENGINES
                          if name != LLAMA_CPP) + ". Default all, graphs only on a GPU"},
    )  # fmt: skip
    repeats: int = field(
        default=5, metadata={"help": "how often each engine writes at each batch size; the median counts"}
    )
    answers: int = field(
        default=8, metadata={"help": "answers over which energy is measured; a measurement should last some seconds"}
    )
    dtype: Literal["saved", "float32", "bfloat16", "float16"] = field(
        default="saved",
        metadata={"help": "of transformers' engines; saved: as the model was saved, as `ttl chat` does"},
    )
    threads: int | None = field(default=None, metadata={"help": "of the processor; default one for each idle core"})
    use_cpu: bool = field(default=False, metadata={"help": "measure the processor, also where there is a GPU"})
    seed: int = field(default=0, metadata={"help": "of everything random"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, before anything is loaded.

        Raises:
            InputError: a number out of range, no batch size, or a grid that is not known.
        """
        for key, least, most in (("prompt_tokens", 2, 10**5), ("new_tokens", 2, 10**5), ("repeats", 1, 1000),
                                 ("answers", 1, 10**5)):  # fmt: skip
            value = getattr(self, key)
            ensure(least <= value <= most, f"{key}={value}: must lie between {least} and {most:,}.")
        sizes = self.sizes
        ensure(sizes, "batch_sizes=[]: empty. Give at least one, such as 1 8.")
        for size in sizes:
            ensure(1 <= size <= 1024, f"batch_sizes={size}: must lie between 1 and 1,024.")
        self.batch_sizes = sorted(set(sizes))
        ensure(self.engines != [], "engines=[]: empty. Leave it out, or give at least one, such as dynamic.")
        ensure(
            self.threads is None or 1 <= self.threads <= available_cores(),
            f"threads={self.threads}: must lie between 1 and {available_cores()}, the cores that may be used here.",
        )
        check_energy(self)

    @property
    def sizes(self) -> list[int]:
        """Return the batch sizes, the smallest first."""
        return [self.batch_sizes] if isinstance(self.batch_sizes, int) else self.batch_sizes


@dataclass
class Case:
    """One engine at one batch size.

    Attributes:
        engine: its name, for llama.cpp with the file's.
        device: where it computes and in which dtype.
        batch: texts written at once.
        file_mb: size of the weights or of the GGUF file, in 10^6 bytes.
        load_seconds: until the model was ready, libraries included.
        warm_up_seconds: of the first writing, compiling included.
        first_token_seconds, prompt_tokens_per_second, new_tokens_per_second: of each repeat.
        peak_mb: most memory, in 10^6 bytes: of the GPU's tensors there, otherwise of the whole process.
        wh_per_thousand: Wh that the whole machine used for 1,000 answers; None: not measured.
        differs_from: token (from 1) where a text first differs from the first engine's; None: all are the same.
        ids: of its texts.
    """

    engine: str
    device: str
    batch: int
    file_mb: float
    load_seconds: float
    warm_up_seconds: float
    first_token_seconds: list[float] = field(default_factory=list)
    prompt_tokens_per_second: list[float] = field(default_factory=list)
    new_tokens_per_second: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    wh_per_thousand: float | None = None
    differs_from: int | None = None
    ids: list[list[int]] = field(default_factory=list)

    def add(self, written: Written, prompt_tokens: int) -> None:
        """Add a repeat."""
        self.first_token_seconds.append(written.first_seconds)
        self.prompt_tokens_per_second.append(written.prompt_speed(prompt_tokens))
        self.new_tokens_per_second.append(written.speed)
        self.peak_mb = max(self.peak_mb, written.peak_bytes / 1e6)
        self.ids = written.ids


@dataclass
class _Bench:
    """A bench on its way."""

    config: BenchConfig
    model: str
    files: list[Path]
    prompts: list[list[int]]
    model_mb: float
    threads: int
    cases: list[Case] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def specs(self) -> dict[str, tuple[EngineSpec, float]]:
        """Return what each engine is told, by its name in the table, and the MB of its file."""
        config = self.config
        same: dict[str, Any] = {"prompts": self.prompts, "new_tokens": config.new_tokens, "seed": config.seed,
                                "threads": self.threads, "use_cpu": config.use_cpu}  # fmt: skip
        told: dict[str, Any] = {"dtype": config.dtype, "revision": config.revision, "base_model": config.base_model}
        found: dict[str, tuple[EngineSpec, float]]
        found = {name: (EngineSpec(name, self.model, **same, **told), self.model_mb)
                 for name in config.engines or _DEFAULT_ENGINES}  # fmt: skip
        for path in self.files:
            found[f"{LLAMA_CPP} {path.name}"] = EngineSpec(LLAMA_CPP, str(path), **same), path.stat().st_size / 1e6
        return found


def run_bench(config: BenchConfig, words: Sequence[str]) -> Path:
    """Measure a model and GGUF files, write `bench.json` and `bench.md`, and return their folder.

    Args:
        config: see `BenchConfig`.
        words: the model (a folder, a Hub repository, a short name), then GGUF files of it.

    Raises:
        InputError: no such model or file, prompts and answers that do not fit, an engine that this machine cannot run,
            or an output folder that holds something else.
        RunFailedError: no engine could write.
    """
    bench = _prepare(config, words)
    identity = {**asdict(config), "model": bench.model, "files": [str(path) for path in bench.files],
                "prompts": bench.prompts}  # fmt: skip
    names = (BENCH_NAME, BENCH_TABLE_NAME, EMISSIONS_NAME, LEDGER_NAME)
    place = StageFolder(Path(config.output_dir), "bench", "measurements", frozenset(names))
    if place.is_done(sha256_json(identity)):
        print(f"{place.path} holds these measurements already")
        return place.path
    with place.held("measuring into it"), scratch_folder() as scratch:
        recorder = Recorder(place.path, config)
        try:
            _measure(bench, recorder, scratch)
        finally:
            recorder.write(last=True)
        content = _content(bench, place.path)
        write_json(place.path / BENCH_NAME, content)
        table = render_bench(content)
        (place.path / BENCH_TABLE_NAME).write_text(table, encoding="utf-8")
        place.finish({"plan_sha256": sha256_json(identity), "model": bench.model})
    print(table)
    return place.path


def _prepare(config: BenchConfig, words: Sequence[str]) -> _Bench:
    """Check everything that can be refused, and read the prompts.

    Raises:
        InputError: see `run_bench`.
    """
    model_name, *rest = words
    ensure(not model_name.endswith(".gguf"), f"{model_name}: give the model first: ttl bench MODEL {model_name}.")
    files = [ensure_file("FILE.gguf", word, "`ttl export MODEL --format gguf` makes one.") for word in rest]
    for path in files:
        ensure(path.is_file(), f"FILE.gguf={path}: is no file. Give a GGUF file.")
    names = [path.name for path in files]
    ensure(len(set(names)) == len(names), f"{', '.join(names)}: two files of one name. Rename one.")
    if files:
        ensure_packages("gguf", "gguf", "llama_cpp")
    ensure_folder("output_dir", config.output_dir)
    from ..gpus import has_accelerator
    from ..models import from_pretrained

    for engine in config.engines or ():
        ensure(
            engine not in NEEDS_GPU or (has_accelerator() and not config.use_cpu),
            f"engines={engine}: needs an NVIDIA or AMD GPU. Leave it out.",
        )
    model, tokenizer = from_pretrained(model_name, config.revision, config.base_model)
    context = int(getattr(model.config, "max_position_embeddings", 2**31))
    asked = config.prompt_tokens + config.new_tokens
    ensure(
        asked <= context,
        f"prompt_tokens={config.prompt_tokens}, new_tokens={config.new_tokens}: {asked} tokens, and the model's "
        f"context has {context}. Lower one of them.",
    )
    for path in files:
        _check_file(path, model)
    prompts = real_prompts(tokenizer, config.prompt_tokens, max(config.sizes))
    if config.engines is None and has_accelerator() and not config.use_cpu:
        config.engines = ["dynamic", "static", "graphs", "compiled", "continuous"]
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return _Bench(config, model_name, files, prompts, size / 1e6, config.threads or idle_cores())


def _check_file(path: Path, model: "PreTrainedModel") -> None:
    """Check that a file is a GGUF with the vocabulary and the layers of the model.

    Raises:
        InputError: it is not, so that the same prompts would mean something else to it.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
        kind = str(fields["general.architecture"].contents())
        layers = int(fields[f"{kind}.block_count"].contents())
        tokens = len(fields["tokenizer.ggml.tokens"].data)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: is no whole GGUF file of a model ({error}). Export the model again.") from error
    config: Any = model.config
    ensure(
        (layers, tokens) == (config.num_hidden_layers, config.vocab_size),
        f"{path}: has {layers} layers and {tokens:,} tokens, and the model {config.num_hidden_layers} and "
        f"{config.vocab_size:,}. Give a GGUF file of the same model.",
    )


def real_prompts(tokenizer: "PreTrainedTokenizerBase", prompt_tokens: int, count: int) -> list[list[int]]:
    """Return so many different prompts of so many tokens: the embedded corpus's held-out texts, cut into pieces."""
    from ..data.sample import sample_documents
    from ..tokenizer.encode import encode_texts

    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    texts = [row["text"] for row in sample_documents("validation", _MOST_PROMPT_TEXTS)]
    ids = [token for row in encode_texts(tokenizer, texts) for token in row]
    length = prompt_tokens - len(start)
    return [start + [ids[(index * length + place) % len(ids)] for place in range(length)] for index in range(count)]


def _measure(bench: _Bench, recorder: Recorder, scratch: Path) -> None:
    """Load all engines, then measure them batch size by batch size, in turns; each case is added to the bench.

    Raises:
        InputError: an engine refuses its file.
        RunFailedError: no engine could write.
    """
    with contextlib.ExitStack() as stack:
        engines: _Engines = {}
        for number, (name, (spec, file_mb)) in enumerate(bench.specs().items()):
            print(f"loading    {name}", flush=True)
            with _set_aside(bench, name):
                engines[name] = stack.enter_context(started_engine(spec, scratch / f"{number}.log")), file_mb
        sizes = sorted({*bench.config.sizes, *([1] if bench.files else [])})
        with progress(None, "measuring", "rounds", total=len(sizes) * (bench.config.repeats + 2)) as bar:
            for batch in sizes:
                fits = {name: engine for name, engine in engines.items() if name not in bench.failed and (
                    batch == 1 if name.startswith(LLAMA_CPP) else batch in bench.config.sizes)}  # fmt: skip
                _measure_batch(bench, recorder, batch, fits, bar.update)
    if not bench.cases:
        raise RunFailedError(
            f"no engine could write: {'; '.join(f'{name}: {why}' for name, why in bench.failed.items())}"
        )


def _meter(recorder: Recorder, engine: EngineProcess, answers: int, batch: int) -> float | None:
    """Return the Wh that the whole machine uses while an engine writes 1,000 answers; None: nothing is measured."""
    before, begun, written = recorder.write().energy_kwh, time.monotonic(), 0
    while written < answers or time.monotonic() - begun < LEAST_METERED_SECONDS:
        engine.write()
        written += batch
    kwh = recorder.write().energy_kwh - before
    return None if recorder.failure else kwh * 1000 * ANSWERS_OF_ENERGY / written


@contextlib.contextmanager
def _set_aside(bench: _Bench, name: str) -> Iterator[None]:
    """Note an engine whose process ends within the block; the others are still measured."""
    try:
        yield
    except RunFailedError as error:
        bench.failed[name] = str(error)
        say(f"warning    {name} is left out: {error}")


def _measure_batch(
    bench: _Bench, recorder: Recorder, batch: int, engines: _Engines, on_round: Callable[[], object]
) -> None:
    """Measure some engines at one batch size: each warms up, then they write in turns, then each is metered."""
    config, cases = bench.config, dict[str, Case]()
    for name, (engine, file_mb) in engines.items():
        with _set_aside(bench, name):
            warm_up, about = engine.set_batch(batch), engine.about
            cases[name] = Case(name, about["device"], batch, file_mb, about["load_seconds"], warm_up)
    on_round()
    for repeat in range(config.repeats):
        say(f"measuring  {counted(batch, 'text')} at once, {repeat + 1} of {config.repeats}")
        for name, case in cases.items():
            if name not in bench.failed:
                with _set_aside(bench, name):
                    case.add(engines[name][0].write(), config.prompt_tokens)
        on_round()
    for name, case in cases.items():
        if name not in bench.failed:
            with _set_aside(bench, name):
                case.wh_per_thousand = _meter(recorder, engines[name][0], config.answers, batch)
    on_round()
    whole = [case for name, case in cases.items() if name not in bench.failed]
    for case in whole:
        case.differs_from = first_difference(whole[0].ids, case.ids)
        speed = statistics.median(case.new_tokens_per_second)
        say(f"measured   {case.engine}, {counted(batch, 'text')} at once: {speed:,.1f} new tokens/s")
    bench.cases += whole


def first_difference(first: list[list[int]], second: list[list[int]]) -> int | None:
    """Return the place (from 1) of the first token, over all texts, where two engines differ; None: they do not.

    >>> first_difference([[5, 6, 7], [5, 6]], [[5, 6, 8], [5, 6]])
    3
    """
    places = [place for one, other in zip(first, second, strict=False)
              for place, (a, b) in enumerate(zip(one, other, strict=False), start=1) if a != b]  # fmt: skip
    return min(places, default=None)


def _content(bench: _Bench, folder: Path) -> dict[str, Any]:
    """Return what `bench.json` holds."""
    account = read_ledger(folder)
    start = account.starts[-1] if account else None
    from ..gpus import device_name

    cases = []
    for case in bench.cases:
        row = {key: value for key, value in asdict(case).items() if key != "ids"}
        for key in ("first_token_seconds", "prompt_tokens_per_second", "new_tokens_per_second"):
            row[key] = {"median": statistics.median(row[key]), "least": min(row[key]), "most": max(row[key])}
        cases.append(row)
    config = bench.config
    return {
        "model": bench.model,
        "prompt_tokens": config.prompt_tokens, "new_tokens": config.new_tokens, "repeats": config.repeats,
        "answers": config.answers, "threads": bench.threads,
        "cases": cases,
        "failed": bench.failed,
        "machine": device_name(),
        "versions": versions(("torch", "transformers", "llama_cpp_python")),
        "energy": {"methods": start.methods if start else [], "warnings": start.warnings if start else [],
                   "answers": ANSWERS_OF_ENERGY, "answer_tokens": config.new_tokens},
    }  # fmt: skip


_HEAD = ("engine", "texts at once", "prompt tokens/s", "new tokens/s", "spread", "first token, s", "warm-up, s",
         "peak MB", "file MB", "Wh / 1,000 answers", "same text")  # fmt: skip


def render_bench(content: dict[str, Any]) -> str:
    """Return the table of a bench and what its figures are, in Markdown.

    Args:
        content: see `bench.json`.
    """
    rows = [_HEAD, ("---",) * len(_HEAD), *map(_row, content["cases"])]
    lines = [f"# Speed, memory and energy of {content['model']}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    devices = dict.fromkeys(f"{case['engine']}: {case['device']}" for case in content["cases"])
    energy = content["energy"]
    lines += [
        "",
        f"- Prompts of {content['prompt_tokens']} tokens of real text; {content['new_tokens']} tokens written behind "
        f"each, the likeliest ones, past any end token. Medians of {counted(content['repeats'], 'repeat')}, in turns; "
        f"spread: the slowest and the fastest. Threads: {content['threads']}.",
        "- New tokens/s: without the first one, which is the prompt's. Warm-up: the first writing, compiling included; "
        "in no other figure. Peak: tensors on the GPU, or all memory of the engine's own process on the processor.",
        f"- Energy: of the whole machine, for {energy['answers']:,} answers of {energy['answer_tokens']} tokens, from "
        f"at least {counted(content['answers'], 'answer')} and {LEAST_METERED_SECONDS} seconds "
        f"each, by {', '.join(energy['methods']) or 'no meter'}.",
        *(f"- {text[0].upper()}{text[1:]}." for text in energy["warnings"]),
        "- Same text: as the first engine's at that batch size.",
        f"- {'; '.join(devices)}. Machine: {content['machine']}.",
        f"- {', '.join(f'{name} {version}' for name, version in content['versions'].items())}.",
        *(f"- {name} was left out: {why}" for name, why in content["failed"].items()),
    ]
    return "\n".join(lines) + "\n"


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    """Return a case's cells, as `_HEAD` names them."""
    speed, differs, energy = case["new_tokens_per_second"], case["differs_from"], case["wh_per_thousand"]
    return (
        case["engine"], str(case["batch"]), f"{case['prompt_tokens_per_second']['median']:,.0f}",
        f"{speed['median']:,.1f}", f"{speed['least']:,.1f} to {speed['most']:,.1f}",
        f"{case['first_token_seconds']['median']:.3f}", f"{case['warm_up_seconds']:.1f}", f"{case['peak_mb']:,.0f}",
        f"{case['file_mb']:,.1f}", "not measured" if energy is None else f"{energy:.3g}",
        "yes" if differs is None else f"differs from token {differs}",
    )  # fmt: skip
