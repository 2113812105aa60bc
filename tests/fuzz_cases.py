"""Cases of bad input: a valid config of a verb, broken in one to three places. A case is plain data and can be kept."""

import copy
import dataclasses
import functools
import json
import math
import typing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml
from fuzz_world import CONFIGS
from hypothesis import strategies as st

from teenytinyllama.arguments import _hints
from teenytinyllama.cli import VERBS, _find_class
from teenytinyllama.help_text import own_keys
from teenytinyllama.launching.ranks import RankOptions

# No valid path outside the case's folder is among them: what is accepted as an output would be written there.
PATHS = ["", ".", "in", "in/texts", "in/texts/contos.jsonl", "in/tokenizer", "in/packed", "in/run", "in/run/checkpoint-2",
         "in/model", "in/chat", "in/adapter", "in/conversations", "in/preferences", "in/instructions.jsonl",
         "in/preferences.jsonl", "in/labels.csv", "in/benchmarks", "in/pages", "in/odd", "in/nada", "in/texts/*.jsonl",
         "in/**", "in/[", "in/text", "in/texts/", "in/texts/contos.jsonl/x", "in/../in/texts", "./in//texts", "config.yaml", "sample",
         "/dev/null", "/dev/null/x", "/proc/nada", "/proc/self/x", "~nobody-here/x", "hf://datasets/ana/x", "hf://datasets/ana/x@main",
         "hf://", "hf:///", "hf://datasets/ana", "https://exemplo.br/x.jsonl", "file:///nada", "s3://a/b", "ana/modelo", "ana", "ana/b/c",
         "160m", "folder:", "folder:out", "folder:in/run", "x" * 300, "a/" * 600, "\u00e7\u00e3\U0001f600", "in/pasta com espa\u00e7o", "-", "--", "-x", "out",
         "out/x", "$HOME", "%s", "{}", "\\", "in\\texts"]  # fmt: skip
ODD_FILES = ["wrong_columns.parquet", "nulls.parquet", "all_null.parquet", "numbers.parquet", "no_rows.parquet", "nested.parquet",
             "lists.parquet", "bytes.parquet", "empty_texts.parquet", "odd_texts.parquet", "values.jsonl", "null_text.jsonl", "no_text.jsonl",
             "odd_turns.jsonl", "same_pair.jsonl", "metadata.jsonl", "mixed.jsonl", "empty.jsonl", "empty.parquet", "empty.txt", "empty.csv",
             "empty.html", "empty.json", "blank.jsonl", "array.json", "number.json", "half.json", "deep.jsonl", "deep.json",
             "huge_number.jsonl", "latin1.txt", "latin1.jsonl", "nul.txt", "utf16.txt", "bom.csv", "surrogate.jsonl", "ragged.csv",
             "quotes.csv", "no_header.csv", "one_label.csv", "same_columns.csv", "huge_field.csv", "tabs.tsv", "zip.parquet",
             "magic.parquet", "cut.jsonl.gz", "not.jsonl.gz", "garbage.html", "deep.html", "page.warc", "cut.warc.gz", "long_line.txt",
             "program.exe", "hora:10.parquet", "empty_folder", "folder.jsonl", "loop.jsonl", "nowhere.txt"]  # fmt: skip
NUMBERS: list[Any] = [0, 1, 2, -1, 3, 7, 8, 17, 64, 1000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400,
                      0.0, -0.0, 0.5, 1.5, -0.1, 1e-300, 5e-324, 1e300, math.inf, -math.inf, math.nan, 0.999999, 1.0, 99.9]  # fmt: skip
TEXTS = ["", " ", "a", "null", "true", "no", "1", "nan", "1e400", "0x10", "1:30", "\u00e9\u0301", "\u202etxt", "\u200b", "\ufeff", "a\0b", "a\nb", "\t", "x" * 5000,
         "\ud800", "../..", "en", "pt", "utf-8", "utf-16", "latin-1", "rot13", "idna", "hex", "cp037", "text", "label", "label,text", "metadata",
         "conversations", "all", "auto", "muon", "sdpa", "eager", "flash_attention_2", "cpu", "h100", "H100", "tiny", "1b1", "BRA", "bra", "XXX",
         "mit", "other", "{{ x }}", "%(a)s", "${A}", "'; --", "<script>", "0.1M", "1e9M", "M", "-1M", "steps", "best", "epoch"]  # fmt: skip
NESTED: list[Any] = [[], {}, [[]], [None], [{}], {"": ""}, {"a": None}, {"a": {"b": {"c": [1, {"d": []}]}}}, {1: 2}, {None: 1}, {True: "x"},
                     [1, "a", None, {}], [["a"], ["b"]], ["", ""], {"hidden_size": 0}, {"hidden_size": "x"}, {"vocab_size": 10**9},
                     {"num_attention_heads": 3}, {"num_hidden_layers": 10**6}, {"a": ["in/texts"]}, {"x": False}, {"enabled": True},
                     ["in/texts"] * 3, ["in/odd/empty.jsonl", "in/texts"], {"a": {"inputs": ["in/texts"], "license": "mit"}},
                     {"learning_rate": []}, {"a": {"learning_rate": [0.1, 0.1]}}, [0, 0], ["a"] * 200]  # fmt: skip
YAML_ODDITIES = ["\n!!python/object/apply:os.getcwd []\n", "\n? [a]\n: b\n", "\nx: &a [*a]\n", "\n<<: {seed: 1}\n", "\n---\n", "\n...\n",
                 "\n\tseed: 1\n", "\nseed: 1\nseed: 2\n", "\n%YAML 1.1\n---\n", "\n- a\n", "\n: x\n", "\nnull: x\n", "\n1: x\n", "\ntrue: x\n",
                 "\nseed: !!int abc\n", "\nseed: !!binary x\n", "\nseed: 2026-01-01\n", "\nseed: *nada\n", "\nseed: [1\n", "\nseed: {a: 1\n",
                 '\nseed: "\\x00"\n', "\nseed: 'a\n", "\n@\n", "\n`\n", "\n\u2028\n", "\n\x85\n", "\n\x07\n", "\nconfig: config.yaml\n", "\n" + "[" * 3000,
                 "\n" + "a: {" * 400, "\nseed: |\n", "\nseed: >-\n  1\n", "\nseed: ~\n", "\n#", "\n\ufeff", "\r", "\nself: 1\n", "\n__class__: 1\n",
                 "\nseed: !!set {1, 2}\n", "\nseed: !!omap [a: 1]\n", "\nseed: !!timestamp 1\n", "\nseed: 0o17\n", "\nseed: 1_000\n", "\nseed: .inf\n"]  # fmt: skip
WORDS = ["--", "---", "--=", "--config", "--config=", "--config=in/nada.yaml", "--config=in", "--config=/dev/null", "--seed", "--seed=",
         "--seed=1", "--seed=x", "--output_dir=", "--output-dir=out", "--help=1", "-h1", "-", "", " ", "x", "--x", "--\u00e9=1", "--seed=[1",
         "--seed=!!int x", "--a=b=c", "--\udcff=1", "\udcff", "--config=\udcff", "--seed=1e999", "--inputs=", "--num_processes=0",
         "--num_processes=-1", "--num_processes=2", "--accelerate=nada", "--accelerate=in", "--accelerate=in/labels.csv", "--accelerate=cpu2",
         "--machine_rank=5", "--num_machines=0", "--deepspeed=in/labels.csv", "--token=hf_x", "--nodes=1", "--follow=1"]  # fmt: skip
DAMAGES = [
    "cut",
    "flip",
    "empty",
    "remove",
    "folder",
    "loop",
    "pipe",
    "other",
    "value",
    "drop",
    "bytes",
    "nul",
    "long",
    "twice",
]
# Keys that would make a valid config wait for others, or start servers: left as they are.
LEFT_ALONE = {"follow", "num_machines", "main_process_ip", "answer_seconds", "give_up_seconds", "poll_seconds"}


class _Dumper(yaml.SafeDumper):
    """Writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class Case:
    """A call of `ttl`.

    Attributes:
        verb: what is called.
        variant: of `CONFIGS[verb]`.
        edits: of its keys, in order: (key, what, value), where `what` is set, drop, rename or inside.
        oddity: text added to the YAML.
        words: added to the command line.
        damages: of the inputs: (which input, which file of it, what, where, value), the numbers modulo what is there.
        typed: keys stand on the command line, not in a file.
    """

    verb: str
    variant: int
    edits: list[tuple[str, str, Any]] = field(default_factory=list)
    oddity: str = ""
    words: list[str] = field(default_factory=list)
    damages: list[tuple[int, int, str, int, Any]] = field(default_factory=list)
    typed: bool = False

    def values(self) -> dict[str, Any]:
        """Return the keys of the config after the edits."""
        values = copy.deepcopy(CONFIGS[self.verb][self.variant])
        for key, what, shared in self.edits:
            value = copy.deepcopy(shared)
            if what == "drop":
                values.pop(key, None)
            elif what == "rename" and key in values:
                values[f"{key[:-1]}{key[-1]}{key[-1]}"] = values.pop(key)
            elif what == "inside" and isinstance(values.get(key), dict | list) and values[key]:
                _replace_inside(values[key], value)
            else:
                values[key] = value
        return values

    def to_text(self) -> str:
        """Return the case as text, see `from_text`."""
        return yaml.dump(dataclasses.asdict(self), Dumper=_Dumper, sort_keys=False)


def from_text(text: str) -> Case:
    """Return the case that `Case.to_text` wrote."""
    read = yaml.safe_load(text)
    return Case(**{**read, "edits": [tuple(edit) for edit in read["edits"]],
                   "damages": [tuple(damage) for damage in read["damages"]]})  # fmt: skip


def _replace_inside(value: Any, new: Any) -> None:
    """Replace the last part of the last part, and so on, of a nested value."""
    while True:
        place = list(value)[-1] if isinstance(value, dict) else len(value) - 1
        inner = value[place]
        if not (isinstance(inner, dict | list) and inner):
            value[place] = new
            return
        value = inner


def input_names(values: Any) -> list[str]:
    """Return the first two parts of every path of the config that lies in `in`."""
    if isinstance(values, dict):
        return input_names([*values, *values.values()])
    if isinstance(values, list | tuple):
        return list(dict.fromkeys(name for value in values for name in input_names(value)))
    if not isinstance(values, str) or not values.removeprefix("folder:").removeprefix("./").startswith("in/"):
        return []
    parts = Path(values.removeprefix("folder:")).parts
    return [parts[1]] if len(parts) > 1 and ".." not in parts and not set(parts[1]) & set("*[?") else []


@functools.cache
def keys_of(verb: str) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return the keys of a verb that are ours, those of the library, and the type hint of each."""
    places = [place for place in (VERBS[verb].config, VERBS[verb].data_config) if place]
    classes = [*map(_find_class, places), *([RankOptions] if VERBS[verb].ranks else [])]
    hints: dict[str, Any] = {}
    own: set[str] = set()
    for cls in classes:
        hints |= {
            name: hint
            for name, hint in _hints(cls).items()
            if name in {f.name for f in dataclasses.fields(cls) if f.init}
        }
        own |= own_keys(cls)
    known = sorted(set(hints) - LEFT_ALONE)
    return [key for key in known if key in own], [key for key in known if key not in own], hints


def _valid(hint: Any) -> list[Any]:
    """Return some values of the type, in range or not."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return [part for part in parts if part not in ("ray", "slurm")]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [member.value for member in hint]
    if hint is bool:
        return [True, False]
    if hint in (int, float):
        return NUMBERS
    if hint is str:
        return [*TEXTS, *PATHS]
    if typing.get_origin(hint) is list and parts:
        return [[value] for value in _valid(parts[0])]
    return [value for part in parts for value in _valid(part)] or [None]


@st.composite
def _values(draw: st.DrawFn, hint: Any) -> Any:
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return draw(st.sampled_from(_valid(hint)))
    pool = {4: NUMBERS, 5: TEXTS, 6: NESTED, 7: [None, True, False]}.get(kind)
    if pool is not None:
        return draw(st.sampled_from(pool))
    wrapped = draw(st.sampled_from([*PATHS, *(f"in/odd/{name}" for name in ODD_FILES)]))
    return [wrapped] if kind == 9 else wrapped


@st.composite
def _edits(draw: st.DrawFn, verb: str, variant: int) -> tuple[str, str, Any]:
    given = [*CONFIGS[verb][variant]]
    own, library, hints = keys_of(verb)
    which = draw(st.integers(0, 9))
    key = draw(st.sampled_from(given if which < 5 else own if which < 9 or not library else library))
    if key == "_":
        words = list(CONFIGS[verb][variant]["_"])
        words[draw(st.integers(0, len(words) - 1))] = draw(_values(str))
        return key, "set", [word if isinstance(word, str) else "in/odd" for word in words]
    what = draw(st.sampled_from(["set"] * 6 + ["drop", "rename", "inside", "inside"]))
    return key, what, draw(_values(hints.get(key, str)))


_DAMAGES = st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from(DAMAGES), st.integers(0, 10_000),
                     st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from(NESTED[:13]), st.none()))  # fmt: skip


@st.composite
def cases(draw: st.DrawFn, verbs: tuple[str, ...] = tuple(CONFIGS)) -> Case:
    """Draw a case with at least one thing that may be wrong."""
    verb = draw(st.sampled_from(verbs))
    variant = draw(st.integers(0, len(CONFIGS[verb]) - 1))
    kind = draw(st.integers(0, 19))
    edits, damages, words, oddity = [], [], [], ""
    if kind < 11:
        edits = draw(st.lists(_edits(verb, variant), min_size=1, max_size=3))
    if kind in (10, *range(11, 17)):
        damages = draw(st.lists(_DAMAGES, min_size=1, max_size=2))
    if kind == 17 or kind == 19:
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))
    if kind >= 18:
        oddity = draw(st.sampled_from(YAML_ODDITIES))
    return Case(verb, variant, edits, oddity, words, damages, typed=draw(st.integers(0, 5)) == 0)


def yaml_text(values: dict[str, Any]) -> str:
    """Return the config as YAML, the words without a key left out."""
    return yaml.dump({key: value for key, value in values.items() if key != "_"}, Dumper=_Dumper, sort_keys=False,
                     allow_unicode=True)  # fmt: skip


def command(case: Case) -> tuple[list[str], str]:
    """Return the words after `ttl`, and the text of `config.yaml`."""
    values = case.values()
    free = values.get("_", [])
    words = [case.verb, *(word for word in (free if isinstance(free, list) else [free]) if isinstance(word, str))]
    text = yaml_text(values) + case.oddity
    if not case.typed:
        return [*words, "--config", "config.yaml", *case.words], text
    for key, value in values.items():
        if key == "_":
            continue
        items = value if isinstance(value, list) and value else [value]
        shown = [item if isinstance(item, str) else json.dumps(item) if isinstance(item, dict | list | bool) or item is None else str(item)
                 for item in items]  # fmt: skip
        words += [f"--{key}", *shown]
    return [*words, *case.words, *(["--config", "config.yaml"] if case.oddity else [])], case.oddity
