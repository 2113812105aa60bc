"""The help of `ttl`, `ttl VERB --help` and `recipe.py --help`.

Keys are listed by what they are about, those that most people set first, at most 100 columns wide. Headings are bold on
a terminal alone, and never where the variable NO_COLOR is set (https://no-color.org).
"""

import dataclasses
import enum
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Union

from .progress import has_colours

if TYPE_CHECKING:
    pass

WIDTH = 100
# The verbs of a first model of one's own, in the order of the work, and each in a line of its own.
FIRST_VERBS = {
    "init": "make a folder with the recipes, to read and to change",
    "tokenizer": "learn how Portuguese words are cut into tokens",
    "pack": "turn your texts into rows of tokens",
    "pretrain": "train the model; it goes on where it was interrupted",
    "evaluate": "measure it on held-out text and on benchmarks",
    "chat": "talk with it",
}
_GROUP_TITLES = {
    "begin": "To begin with",
    "data": "Texts and tokens",
    "train": "Training",
    "measure": "Measuring and comparing",
    "share": "Writing down and sharing",
    "talk": "Talking with a model",
}
# A command of each verb, as a stranger would type it. A test parses each of them.
EXAMPLES = {
    "demo": "ttl demo --output_dir runs/demo",
    "init": "ttl init my-model",
    "plan": "ttl plan --budget 500 --gpu h100 --price 2.5",
    "doctor": "ttl doctor recipes/configs/160m/pretrain.yaml --accelerate ddp",
    "tokenizer": "ttl tokenizer --inputs corpus --vocab_size 32000 --output_dir outputs/tokenizer",
    "corpus": "ttl corpus --config recipes/configs/corpus.yaml --sample 200",
    "pack": "ttl pack --inputs corpus --tokenizer outputs/tokenizer --output_dir outputs/packed",
    "conversations": "ttl conversations --inputs questions.jsonl --model_name_or_path outputs/base "
                     "--output_dir outputs/conversations",
    "pretrain": "ttl pretrain --preset 160m --tokenizer outputs/tokenizer --packed outputs/packed "
                "--max_tokens 3.28e9 --output_dir outputs/base",
    "sft": "ttl sft --model_name_or_path outputs/base --inputs questions.jsonl --output_dir outputs/chat",
    "dpo": "ttl dpo --model_name_or_path outputs/chat --inputs pairs.jsonl --output_dir outputs/dpo",
    "merge": "ttl merge outputs/adapter outputs/merged",
    "lab": "ttl lab --config recipes/configs/lab.yaml --seeds 42 43",
    "report": "ttl report outputs/base --follow",
    "evaluate": "ttl evaluate outputs/base --held_out outputs/packed --output_dir outputs/evaluation",
    "classify": "ttl classify assin2_rte outputs/base --seeds 3 --output_dir outputs/classify",
    "bench": "ttl bench outputs/base base.gguf --output_dir outputs/bench",
    "compare": "ttl compare outputs/chat outputs/dpo --prompts chat --output_dir comparison",
    "emissions": "ttl emissions outputs/base outputs/chat --elsewhere PRT,USA",
    "card": "ttl card outputs/base --repository maria/modelo",
    "publish": "ttl publish outputs/base --to maria/modelo --dry_run",
    "export": "ttl export outputs/base --format gguf --type q8_0,q4_k_m",
    "chat": "ttl chat outputs/chat --temperature 0.5",
    "app": "ttl app outputs/chat --port 7860",
    "serve": "ttl serve outputs/chat --port 8080",
}  # fmt: skip
# What most people set, in the order in which they think of it; it is shown even where a library's class defines it.
_NEEDED_KEYS = (
    "preset model_name_or_path tokenizer inputs packed conversations preferences task suite format type to public "
    "output_dir vocab_size context max_tokens num_train_epochs tokens_per_step learning_rate budget gpu price prompts "
    "report_to"
)
_NEEDED = {key: place for place, key in enumerate(_NEEDED_KEYS.split())}
# Of the keys of TrainingArguments that we leave as they are, those that everybody needs, in our words.
_OF_LIBRARY = {
    "output_dir": "folder of the run; the same command with the same folder goes on there",
    "report_to": "trackers that get the figures of metrics.jsonl too: trackio, tensorboard, wandb and others",
}
# Headings with their keys. A key that stands nowhere here comes last, under its own heading.
_TOPICS = {
    "how it writes": "max_new_tokens temperature top_k top_p repetition_penalty system instructions",
    "texts and rows":
        "validation_inputs validation_fraction text_column metadata_column txt_unit encoding invalid_rows data_dir "
        "long_conversations train_file validation_file test_file dataset_revision pair_column label_column held_out "
        "held_out_max_tokens registers limit max_train_rows group_by_length max_bytes audit_bytes num_superwords",
    "the model":
        "model_revision revision base_model shape attn_implementation lora_r lora_alpha lora_dropout lora_targets "
        "use_dora merge precision dtype random_init save_model",
    "how it learns":
        "optimizer embedding_learning_rate lr_scheduler_type warmup_steps decay_fraction decay_from weight_decay "
        "adam_beta2 beta pairs_per_step packing assistant_only_loss select",
    "when it ends": "max_hours max_cost max_kwh hard_stop",
    "bad steps and checks before it starts":
        "on_bad_step spike_factor max_bad_steps check_first_loss preflight skip_damaged",
    "what is logged, scored and saved":
        "logging_steps logging_first_step logging_nan_inf_filter eval_strategy eval_steps eval_max_tokens save_steps "
        "save_total_limit sample_prompts sample_new_tokens cloze_items signal_data_dir signal_items final_answers "
        "final_answer_tokens",
    "speed and memory":
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps gradient_checkpointing "
        "bf16 fp16 compile_layers chunked_loss ddp_find_unused_parameters num_workers batch_size threads use_cpu",
    "several GPUs or machines":
        "accelerate num_processes num_machines machine_rank main_process_ip main_process_port",
    "chance": "seed seeds",
    "energy": "country_iso_code region pue mfu watts",
    "card and licence": "license card_language language repository",
}  # fmt: skip
_TOPIC_OF = {key: topic for topic, keys in _TOPICS.items() for key in keys.split()}
_FEW_KEYS = 8  # a shorter list needs no headings


class HelpVerb(Protocol):
    """What help needs of a verb of the table `cli.VERBS`, which see."""

    @property
    def group(self) -> str: ...  # noqa: D102
    @property
    def about(self) -> str: ...  # noqa: D102
    @property
    def usage(self) -> str: ...  # noqa: D102
    @property
    def words(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def own_only(self) -> bool: ...  # noqa: D102


def bold(text: str) -> str:
    """Return a text that is bold where standard output has colours, and else the text itself."""
    return f"\033[1m{text}\033[0m" if has_colours(sys.stdout) else text


def _row(name: str, text: str, left: int = 16) -> str:
    """Return a name and what it is, in two columns."""
    lines = textwrap.wrap(text, WIDTH - left, break_long_words=False, break_on_hyphens=False)
    return f"  {bold(name)}{' ' * (left - 2 - len(name))}" + f"\n{' ' * left}".join(lines)


def describe_first_steps(verbs: Mapping[str, HelpVerb], version: str) -> str:
    """Return what `ttl` alone says: the verbs of a first model, and then all others by what they are for.

    Args:
        verbs: the table of verbs.
        version: of this package.
    """
    first = "\n".join(_row(name, text) for name, text in FIRST_VERBS.items())
    groups = []
    for group, members in itertools.groupby(verbs.items(), key=lambda item: item[1].group):
        rows = "\n".join(_row(name, verb.about) for name, verb in members if name not in FIRST_VERBS)
        groups.append(f"{bold(_GROUP_TITLES.get(group, group))}\n{rows}")
    others = "\n\n".join(groups)
    return (
        f"ttl {version}: open Portuguese language models from raw text to the Hub\n\n"
        "usage: ttl VERB [--config file.yaml] [--key value ...]\n\n"
        f"{bold('Your first model, in this order')}   (`ttl demo` does it all at once, in minutes, offline)\n"
        f"{first}\n\n{others}\n\n"
        "`ttl VERB --help` lists the keys of a verb.\n"
        "Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped, resumable."
    )


def describe_verb(name: str, verb: HelpVerb, classes: Sequence[type], data_class: type | None) -> str:
    """Return the help of a verb: what it does, an example, its arguments and its keys.

    Args:
        name: of the verb.
        verb: from the table.
        classes: the dataclasses whose keys it takes.
        data_class: of `publish`, the keys that data has beside.
    """
    about = "\n".join(textwrap.wrap(f"ttl {name}: {verb.about}", WIDTH))
    usage = f"usage: ttl {name} {verb.usage}[--config file.yaml] [--key value ...]"
    rows = [_row(word.name, word.what, max(16, len(word.name) + 4)) for word in dict.fromkeys(verb.words)]
    words = "".join(f"{row}\n" for row in rows) + "\n" * bool(rows)
    example = f"{bold('example')}\n{_in_lines(EXAMPLES[name])}\n\n" if name in EXAMPLES else ""
    described = describe_keys(*classes, own_only=verb.own_only)
    if data_class is not None:
        described += f"\n\n{bold('of data:')}\n\n{describe_keys(data_class)}"
    return f"{about}\n\n{usage}\n\n{example}{words}{described}"


def _in_lines(command: str) -> str:
    """Return a command in lines that a shell takes as one, each broken before a key."""
    lines = ["  "]
    for part in command.replace(" --", "\n--").split("\n"):
        if len(lines[-1]) + len(part) + 3 > WIDTH:
            lines.append("      ")
        lines[-1] += part + " "
    return "\\\n".join(lines).rstrip()


def describe_keys(*classes: type, own_only: bool = False) -> str:
    """Return a help text: every key of some configs with its type, default and meaning, by topic.

    Args:
        classes: config dataclasses.
        own_only: leave out the keys inherited from a library's class and list only their names.
    """
    topics: dict[str, list[tuple[int, str]]] = {"most needed": [], **{topic: [] for topic in _TOPICS}, "more": []}
    inherited: list[str] = []
    for cls in classes:
        hints, ours = typing.get_type_hints(cls), own_keys(cls)
        for place, field in enumerate(item for item in dataclasses.fields(cls) if item.init):
            is_ours = field.name in ours or cls.__module__.split(".")[0] != __package__
            if own_only and not is_ours and field.name not in _OF_LIBRARY:
                inherited.append(field.name)
                continue
            needed = _is_required(field) or field.name in _NEEDED
            topic = "most needed" if needed else _TOPIC_OF.get(field.name, "more")
            text = str(field.metadata.get("help", "")) if is_ours else _OF_LIBRARY.get(field.name, "")
            order = _NEEDED.get(field.name, len(_NEEDED) + place)
            topics[topic].append((order, _describe_key(field, hints[field.name], text)))
    filled = {topic: [text for _, text in sorted(keys, key=lambda key: key[0])]
              for topic, keys in topics.items() if keys}  # fmt: skip
    if sum(map(len, filled.values())) <= _FEW_KEYS:
        lines = "\n".join(itertools.chain(*filled.values()))
    else:
        lines = "\n\n".join(f"{bold(topic)}\n" + "\n".join(keys) for topic, keys in filled.items())
    if inherited:
        names = _indented(", ".join(sorted(inherited)), 2)
        lines += f"\n\nalso every key of the library's arguments:\n{names}"
    return lines


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _describe_key(field: "dataclasses.Field[Any]", hint: Any, about: str) -> str:
    """Return the lines of one key with what it is about."""
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    tail = "required" if _is_required(field) else f"default {_as_yaml(default)}"
    head = _indented(f"--{field.name}  ({describe_type(hint)}; {tail})", 2, 8)
    text = " ".join(about.replace("%%", "%").split())
    return f"{head}\n{_indented(text, 8)}" if text else head


def _indented(text: str, indent: int, next_indent: int | None = None) -> str:
    """Return a text in lines of at most `WIDTH` columns; its words, and the spaces in its first line, stay whole."""
    later = " " * (indent if next_indent is None else next_indent)
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=later, break_on_hyphens=False)


def own_keys(cls: type) -> set[str]:
    """Return the keys of a config that are ours: defined here or with another default than the library's class."""
    package = __name__.split(".")[0]
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] == package]
    return {name for base in ours for name in inspect.get_annotations(base)}


def describe_type(hint: Any) -> str:
    """Return in words what values a type hint allows."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is Literal:
        known = [str(value).lower() if isinstance(value, bool) else str(value) for value in typing.get_args(hint)]
        return known[0] if len(known) == 1 else "one of " + ", ".join(known)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(part) for part in typing.get_args(hint)))
    if hint is type(None):
        return "null"
    if hint is bool:
        return "true or false"
    names = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    origin = typing.get_origin(hint) or hint
    inner = f" of {describe_type(typing.get_args(hint)[0])}" if origin is list and typing.get_args(hint) else ""
    return names.get(origin, str(hint)) + inner


def _as_yaml(value: Any) -> str:
    """Return a default as a YAML file would have it: null, true and "", not Python's None, True and nothing."""
    return {"None": "null", "True": "true", "False": "false", "": '""'}.get(str(value), str(value))
