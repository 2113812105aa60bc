"""The `ttl` command: one table of verbs, each with its config and the function that does its work.

Help, parsing, refusals and near names come from the table. Nothing heavy is imported before a verb needs it.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RESUMABLE, InputError, ensure, near_name, run_main
from .help_text import describe_first_steps, describe_verb
from .launching.launch import launch, recipes_folder, start_training
from .launching.processes import ended_by_signals, stopped_by_signals
from .launching.ranks import RankOptions, plan_ranks
from .stage_folder import __version__


@dataclass
class CardConfig:
    """`ttl card RUN`: the run, and what its card says beside the run's figures."""

    run: str = field(metadata={"help": "folder of a finished run"})
    check: bool = field(default=False, metadata={"help": "compare the card's numbers with the run's, write nothing"})
    language: str | None = field(default=None, metadata={"help": "en, pt or both; null: the run's card_language"})
    repository: str | None = field(default=None, metadata={"help": "owner/name that the card's example loads"})
    comparison: str | None = field(default=None, metadata={"help": "a comparison whose votes the card shows"})


@dataclass
class MergeConfig:
    """`ttl merge ADAPTER FOLDER`: a LoRA adapter and where the whole model is written."""

    adapter: str = field(metadata={"help": "folder or Hub repository of the adapter"})
    folder: str = field(metadata={"help": "new or empty folder for the whole model"})
    base_model: str | None = field(default=None, metadata={"help": "the base model, if it is not where it was"})


@dataclass(frozen=True)
class Word:
    """An argument that is written without a key, such as the model in `ttl chat MODEL`.

    Attributes:
        name: what help calls it.
        what: it is, for the refusal when it is missing.
        key: of the config, whose value it gives; None: the verb's function gets it beside the config.
        many: one or more of them.
        may_lack: none of them is allowed too.
    """

    name: str
    what: str
    key: str | None = None
    many: bool = False
    may_lack: bool = False


@dataclass(frozen=True)
class Verb:
    """One verb of `ttl`.

    Attributes:
        run: does the work with the config (or its checked values), and then the words without a key of the config, and
            for ranks the `RankOptions`; returns an exit code or None. The first line of its docstring is the help.
        config: `module:class` of the config, below this package.
        data_config: of `publish`, the config where the words name data and no run.
        group: heading of the help that it stands under.
        words: arguments without a key, in order.
        ranks: it may start several ranks, so it takes the keys of `RankOptions` as well, and values, not a config.
        values: `run` takes the checked values, because the config cannot be made before its data is.
        forks: `run` gets whether this process may be forked.
        own_only: help describes our keys alone and lists the names of TrainingArguments' hundred.
        reads: it reads its command line itself, because a file there decides which keys it has.
        after_signal: what Ctrl-C leaves. Ranks, `evaluate` and `classify` say it themselves once they work.
        lasts: until somebody ends it, so that a signal is its usual end.
    """

    run: Callable[..., int | None]
    config: str
    group: str
    words: tuple[Word, ...] = ()
    data_config: str = ""
    ranks: bool = False
    values: bool = False
    forks: bool = False
    own_only: bool = False
    reads: bool = False
    after_signal: str = "the same command starts again"
    lasts: bool = False

    @property
    def about(self) -> str:
        """Return what the verb does, in a line."""
        return (self.run.__doc__ or "").splitlines()[0]

    @property
    def usage(self) -> str:
        """Return the arguments without a key, as help writes them: `MODEL `."""
        return "".join(f"{word.name} {'... ' * (word.many and '...' not in word.name)}" for word in self.words)


def init(config: Any) -> None:
    """Copy the recipes and configs to DIR/recipes, to read and to change."""
    from .demo import copy_recipes

    copy_recipes(recipes_folder(), Path(config.folder))


def plan(config: Any) -> None:
    """Say which model a budget buys, in tokens, hours, kWh, kg CO2e, memory and money, before anything is spent."""
    from .planning.table import report_plan

    print(report_plan(config, recipes_folder()))


def doctor(argv: list[str], may_fork: bool) -> int:
    """Show versions and hardware for a bug report; with RUN.yaml say whether the run should start: go or stop."""
    from .doctor.preflight import run_doctor

    return run_doctor(argv, may_fork)


def tokenizer(config: Any) -> None:
    """Train a Portuguese tokenizer and audit it on held-out documents."""
    from .tokenizer.train import build_tokenizer

    build_tokenizer(config)


def corpus(config: Any) -> None:
    """Make a clean, documented corpus out of raw pages and texts: cleaned, deduplicated, decontaminated, mixed."""
    from .corpus.factory import build_corpus

    print(build_corpus(config))


def pack(config: Any) -> None:
    """Turn documents into fixed rows of tokens."""
    from .data.pack import pack as pack_corpus
    from .data.packed import print_summary

    print_summary(pack_corpus(config))


def conversations(config: Any) -> None:
    """Turn instruction files into tokens with labels, to be tuned on."""
    from .tuning.base import prepare

    prepare(config)


def pretrain(values: dict[str, Any], options: RankOptions, may_fork: bool) -> int:
    """Pretrain from a preset, or continue a model, on packed rows or on texts."""
    return start_training("pretrain", values, options, may_fork=may_fork)


def sft(values: dict[str, Any], options: RankOptions, may_fork: bool) -> int:
    """Tune a model on instructions, all weights or LoRA."""
    return start_training("sft", values, options, may_fork=may_fork)


def dpo(values: dict[str, Any], options: RankOptions, may_fork: bool) -> int:
    """Tune a chat model on preferences, pairs of answers."""
    return start_training("dpo", values, options, may_fork=may_fork)


def lab(config: Any, may_fork: bool) -> None:
    """Train a grid of small models side by side, compare them in a table, and fit a scaling law to them."""
    from .lab.runs import run_lab

    print(run_lab(config, may_fork))


def classify(config: Any) -> None:
    """Fine-tune a model on a classification task over several seeds, and write the table of scores."""
    from .classification.classify import classify as run_classify

    run_classify(config)


def demo(values: dict[str, Any]) -> int:
    """Make a tiny Portuguese model from the embedded stories, offline; output_dir is runs/demo unless given."""
    from .demo import run_demo

    return run_demo(values, recipes_folder())


def card(config: CardConfig) -> None:
    """Write a run's model card, or check the numbers of the one that is there."""
    from .people.share import take_votes
    from .publishing.card import check_model_card, write_model_card

    take_votes(config.run, config.comparison, config.check)
    print((check_model_card if config.check else write_model_card)(config.run, config.repository, config.language))


def publish(config: Any, source: list[str]) -> None:
    """Publish a run with its checkpoints, an export, a comparison, or data, on the Hub or in a folder."""
    from .people.study import STUDY_NAME
    from .publishing.follow import run_publish
    from .publishing.publish import publish_export, publish_study
    from .publishing.publish_dataset import PublishDatasetConfig, publish_dataset
    from .stage_folder import find_manifest

    if isinstance(config, PublishDatasetConfig):
        publish_dataset(source, config)
    elif (find_manifest(Path(source[0])) or {}).get("stage") == "export":
        publish_export(Path(source[0]), config)
    elif (Path(source[0]) / STUDY_NAME).is_file():
        publish_study(Path(source[0]), config)
    else:
        run_publish(Path(source[0]), config)


def emissions(config: Any) -> None:
    """Report what runs consumed and emitted."""
    from .publishing.energy_report import parse_elsewhere, write_energy_reports

    folders = [Path(run) for run in config.runs]
    print(write_energy_reports(folders, config.price, parse_elsewhere(config.elsewhere)))


def report(config: Any) -> None:
    """Write a page about a run, with its curves and texts, while it trains or afterwards."""
    from .watching.run_report import run_report

    print(run_report(config))


def merge(config: MergeConfig) -> None:
    """Add a LoRA adapter into its base model, and write the whole model."""
    from .models import merge_adapter

    print(merge_adapter(config.adapter, Path(config.folder), config.base_model))


def export(config: Any) -> None:
    """Write a model in another form: GGUF for llama.cpp and Ollama, 8 bits, another precision."""
    from .export.export import run_export

    print(run_export(config))


def chat(config: Any, model: str) -> int:
    """Talk with a model in the terminal, or check its chat template."""
    from .chat.terminal import run_chat

    return run_chat(model, config)


def serve(config: Any, model: str) -> int:
    """Serve a model or a GGUF file to programs on this machine: llama.cpp's server, with the OpenAI interface."""
    from .export.serve import run_serve

    return run_serve(model, config)


def app(config: Any, model: str) -> int:
    """Serve a page to talk with a model, or write it as a Hugging Face Space."""
    from .chat.space import run_app

    return run_app(model, config)


def compare(config: Any, words: list[str]) -> int:
    """Let people judge the answers of models blindly, side by side on a page, and write who is better."""
    from .people.compare import run_compare

    return run_compare(config, words)


def bench(config: Any, words: list[str]) -> None:
    """Measure how fast a model writes, in which memory and with how much energy, beside llama.cpp."""
    from .export.bench import run_bench

    run_bench(config, words)


def evaluate(values: dict[str, Any], options: RankOptions, may_fork: bool) -> int:
    """Measure a model: bits per byte of held-out text, and benchmarks in Portuguese."""
    from .arguments import build, write_yaml
    from .disk import scratch_folder
    from .evaluation.config import EvaluateConfig
    from .stage_folder import CONFIG_NAME, RESULTS_TABLE_NAME, command_line

    config, script = build(EvaluateConfig, dict(values)), recipes_folder() / "evaluate.py"
    options.ensure_one_machine("evaluate", "Use --nodes=1, or leave num_machines out.")
    if plan_ranks(script, [], options.accelerate, options.num_processes).num_processes > 1:
        os.environ.setdefault("TTL_COMMAND", command_line())
        with scratch_folder() as folder:
            write_yaml(folder / CONFIG_NAME, values)
            words = ["--config", str(folder / CONFIG_NAME)]
            return launch(script, words, options.accelerate, options.num_processes)
    from .evaluation.evaluate import evaluate_model

    output = evaluate_model(config)
    print((output / RESULTS_TABLE_NAME).read_text(encoding="utf-8"))
    print(output)
    return EXIT_DONE


_MODEL = Word("MODEL", "a model: a folder or a Hub repository")
_MODEL_KEY = Word("MODEL", "a model: a folder or a Hub repository", "model_name_or_path")
_RESUMES = "nothing on disk was lost; the same command starts again or goes on"

# In the order in which help lists them.
VERBS: dict[str, Verb] = {
    "demo": Verb(demo, "training.config:PretrainConfig", "begin", values=True, own_only=True,
                 after_signal="what is complete is kept; the same command goes on"),
    "init": Verb(init, "demo:InitConfig", "begin", (Word("DIR", "the folder to make", "folder"),)),
    "plan": Verb(plan, "planning.config:PlanConfig", "begin"),
    "doctor": Verb(doctor, "doctor.preflight:DoctorOptions", "begin",
                   (Word("[RUN.yaml]", "config of a pretraining or tuning, whose keys can follow: --key value"),),
                   reads=True),
    "tokenizer": Verb(tokenizer, "tokenizer.train:TokenizerConfig", "data"),
    "corpus": Verb(corpus, "corpus.config:BuildConfig", "data",
                   after_signal="complete shards are kept; the same command goes on"),
    "pack": Verb(pack, "data.pack:PackConfig", "data",
                 after_signal="what is packed is kept; the same command goes on"),
    "conversations": Verb(conversations, "data.conversations:ConversationsConfig", "data"),
    "pretrain": Verb(pretrain, "training.config:PretrainConfig", "train", ranks=True, own_only=True,
                     after_signal=_RESUMES),
    "sft": Verb(sft, "tuning.config:SftConfig", "train", ranks=True, own_only=True, after_signal=_RESUMES),
    "dpo": Verb(dpo, "tuning.config:DpoConfig", "train", ranks=True, own_only=True, after_signal=_RESUMES),
    "merge": Verb(merge, "cli:MergeConfig", "train",
                  (Word("ADAPTER", "an adapter, and the folder for the whole model", "adapter"),
                   Word("FOLDER", "an adapter, and the folder for the whole model", "folder"))),
    "report": Verb(report, "watching.run_report:ReportConfig", "train", (Word("RUN", "the run's folder", "run"),),
                   lasts=True),
    "lab": Verb(lab, "lab.config:LabConfig", "measure", forks=True,
                after_signal="the rows of runs that have ended are kept; the same command goes on"),
    "evaluate": Verb(evaluate, "evaluation.config:EvaluateConfig", "measure", (_MODEL_KEY,), ranks=True),
    "classify": Verb(classify, "classification.config:ClassifyConfig", "measure",
                     (Word("TASK", "a task, and a model", "task"), _MODEL_KEY)),
    "compare": Verb(compare, "people.compare:CompareConfig", "measure",
                    (Word("[MODEL ...]", "two systems or more: folders, repositories (@branch), GGUF files, files of "
                          "answers, references; NAME=SOURCE names one", many=True, may_lack=True),),
                    after_signal="answers and votes are kept; the same command goes on"),
    "bench": Verb(bench, "export.bench:BenchConfig", "measure",
                  (Word("MODEL [FILE.gguf]", "a model (folder or Hub repository), then GGUF files of it", many=True),)),
    "emissions": Verb(emissions, "publishing.energy_report:EmissionsConfig", "share",
                      (Word("RUN", "the folders of one or more runs", "runs", many=True),)),
    "card": Verb(card, "cli:CardConfig", "share", (Word("RUN", "the run's folder", "run"),)),
    "publish": Verb(publish, "publishing.publish:PublishConfig", "share",
                    (Word("RUN|DATA", "a run (its output_dir), an export, or data (a folder or files)", many=True),),
                    data_config="publishing.publish_dataset:PublishDatasetConfig",
                    after_signal="what is published stays; the same command goes on"),
    "export": Verb(export, "export.export:ExportConfig", "share", (_MODEL_KEY,)),
    "chat": Verb(chat, "chat.terminal:ChatConfig", "talk", (_MODEL,), lasts=True),
    "app": Verb(app, "chat.page:AppConfig", "talk", (_MODEL,), lasts=True),
    "serve": Verb(serve, "export.serve:ServeConfig", "talk", (_MODEL,), lasts=True),
}  # fmt: skip


def _find_class(place: str) -> type:
    module, _, name = place.partition(":")
    found: type = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


def _config_class(verb: Verb, words: list[str]) -> type:
    """Return the config class of a verb; where there is one for data too, the words tell which it is.

    Raises:
        InputError: several words that are no data.
    """
    if verb.data_config:
        from .publishing.dataset_content import is_dataset

        if is_dataset(words):
            return _find_class(verb.data_config)
        ensure(len(words) == 1, f"ttl publish: one run at a time, and {', '.join(words)} are no data of a known kind.")
    return _find_class(verb.config)


def _call(name: str, argv: list[str], is_command: bool) -> int:
    """Parse the command line of a verb and do its work; `is_command`: this process is the `ttl` command alone.

    Raises:
        InputError: see `split_command`, `merge_config` and `build`; also a word that is missing.
    """
    from .arguments import build, check_types, merge_config, split_command

    verb = VERBS[name]
    if verb.reads:
        return verb.run(argv, is_command) or EXIT_DONE
    places = [place for place in (verb.config, verb.data_config) if place]
    classes = [*map(_find_class, places), *([RankOptions] if verb.ranks else [])]
    most = 10_000 if any(word.many for word in verb.words) else len(verb.words)
    free, overrides = split_command(argv, *classes, most_words=most)
    words: list[Any] = [free] if verb.words and verb.words[0].many else list(free)
    given = dict(zip(verb.words, words, strict=False))
    for word in verb.words:
        elsewhere = word.key in overrides or (word.key and "config" in overrides)
        ensure(given.get(word) or elsewhere or word.may_lack, f"ttl {name}: needs {word.what}.")
    options = {key: overrides.pop(key) for key in RankOptions.__dataclass_fields__ if verb.ranks and key in overrides}
    ranks: list[Any] = [RankOptions(**check_types(RankOptions, options))] if verb.ranks else []
    ranks += [is_command] if verb.ranks or verb.forks else []
    cls = _config_class(verb, free)
    values = merge_config(cls, overrides | {word.key: value for word, value in given.items() if word.key})
    config = values if verb.ranks or verb.values else build(cls, values)
    return verb.run(config, *(value for word, value in given.items() if not word.key), *ranks) or EXIT_DONE


def _describe_verb(name: str) -> str:
    verb = VERBS[name]
    classes = [_find_class(verb.config), *([RankOptions] if verb.ranks else [])]
    data_class = _find_class("publishing.dataset_content:DatasetOptions") if verb.data_config else None
    return describe_verb(name, verb, classes, data_class)


def _run(argv: list[str], is_command: bool) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(describe_first_steps(VERBS, __version__))
        return EXIT_DONE if argv else EXIT_BAD_INPUT
    if argv[0] == "--version":
        print(__version__)
        return EXIT_DONE
    if argv[0] not in VERBS:
        raise InputError(f"{argv[0]}: unknown verb.{near_name(argv[0], VERBS)} `ttl --help` lists them.")
    ensure("\0" not in "".join(argv), f"{argv!r}: holds the character NUL, which no path can. Write it without.")
    name, *rest = argv
    if {"--help", "-h"} & set(rest):
        print(_describe_verb(name))
        return EXIT_DONE
    if VERBS[name].lasts:
        with ended_by_signals():
            return _call(name, rest, is_command)
        return EXIT_DONE  # the block was ended by a signal
    from .energy.recorder import counted_time

    with stopped_by_signals(VERBS[name].after_signal), counted_time():
        return _call(name, rest, is_command)


def main(argv: list[str] | None = None) -> int:
    """Run the `ttl` command and return its exit code."""
    # OpenMP's threads wait in a loop that keeps a core busy, for milliseconds: beside other programs a training on a
    # processor made 445 tokens/s instead of 3,900. Some microseconds cost an idle computer a tenth (docs/lab-log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    code = run_main(lambda: _run(sys.argv[1:] if argv is None else argv, is_command=argv is None))
    if argv is None and code == EXIT_RESUMABLE:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not change how this process ends
    return code
