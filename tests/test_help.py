"""Help: every verb has an example that its own parser takes, every key is said, and all of it fits 100 columns."""

import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from teenytinyllama.arguments import check_types, merge_config, split_command
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, InputError
from teenytinyllama.cli import VERBS, _find_class, main
from teenytinyllama.help_text import (
    _NEEDED,
    _TOPIC_OF,
    EXAMPLES,
    FIRST_VERBS,
    WIDTH,
    bold,
    describe_keys,
    has_colours,
)
from teenytinyllama.launching.ranks import RankOptions

REPOSITORY = Path(__file__).resolve().parent.parent


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    main(list(argv))
    return capsys.readouterr().out


def test_without_a_verb_the_first_model_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_BAD_INPUT
    text = capsys.readouterr().out
    assert len(FIRST_VERBS) == 6
    assert set(FIRST_VERBS) <= set(VERBS)
    rows = re.findall(r"^  (\w+) ", text, re.M)
    assert rows[:6] == list(FIRST_VERBS)
    assert sorted(rows) == sorted(VERBS)  # each once
    assert max(map(len, text.splitlines())) <= WIDTH
    assert main(["--help"]) == EXIT_DONE
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name, "--help")
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    verb = VERBS[name]
    listed = re.findall(r"^  --(\w+)  \(", text.partition("of data:")[0], re.M)
    assert len(listed) == len(set(listed))
    keys = {item.name for item in fields(_find_class(verb.config)) if item.init}
    assert keys <= set(re.findall(r"\w+", text))
    example = text.partition("example\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    assert example.split() == EXAMPLES[name].split()


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_a_verb_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys exist and their values are valid; the files that it names are of a reader's own."""
    monkeypatch.chdir(REPOSITORY)
    program, given, *argv = shlex.split(EXAMPLES[name])
    assert (program, given) == ("ttl", name)
    verb = VERBS[name]
    cls = _find_class(verb.config)
    most = 10_000 if any(word.many for word in verb.words) else len(verb.words)
    free, overrides = split_command(argv, cls, RankOptions, most_words=most)
    needed = [word for word in verb.words if not word.name.startswith("[")]
    assert len(free) >= len(needed)
    ranks = {key: overrides.pop(key) for key in RankOptions.__dataclass_fields__ if verb.ranks and key in overrides}
    check_types(RankOptions, ranks)
    words = {word.key: free if word.many else value for word, value in zip(verb.words, free, strict=False) if word.key}
    values = merge_config(cls, overrides | words)
    required = {item.name for item in fields(cls) if item.init and "required)" in describe_keys(cls)
                and f"--{item.name}  (" in describe_keys(cls) and _is_required(cls, item.name)}  # fmt: skip
    assert required <= set(values)


def _is_required(cls: type, name: str) -> bool:
    from dataclasses import MISSING

    found = next(item for item in fields(cls) if item.name == name)
    return found.default is MISSING and found.default_factory is MISSING


def test_an_example_with_a_key_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXAMPLES, "pack", "ttl pack --input corpus")
    with pytest.raises(InputError, match="input: unknown key"):
        test_the_example_of_a_verb_is_taken("pack", monkeypatch)


def test_topics_name_keys_that_exist() -> None:
    known = {item.name for verb in VERBS.values() for place in (verb.config, verb.data_config) if place
             for item in fields(_find_class(place))} | set(RankOptions.__dataclass_fields__)  # fmt: skip
    assert set(_TOPIC_OF) - known == set()
    assert set(_NEEDED) - known <= {"prompts"}
    assert not set(_NEEDED) & set(_TOPIC_OF)


@dataclass
class Several:
    seed: int = field(default=1, metadata={"help": "of chance"})
    output_dir: str = field(default="", metadata={"help": "where " + "it is written " * 20})
    a: int = 1
    b: int = 1
    c: int = 1
    d: int = 1
    e: int = 1
    f: int = 1
    g: int = 1


def test_keys_stand_by_topic_and_wrapped() -> None:
    text = describe_keys(Several)
    assert text.index("most needed\n  --output_dir") < text.index("chance\n  --seed") < text.index("more\n  --a ")
    assert "\n        where it is written it is " in text
    assert max(map(len, text.splitlines())) <= WIDTH


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_stand_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not has_colours(io.StringIO())
    assert has_colours(Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    assert bold("x") == "\033[1mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert bold("x") == "x"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert bold("x") == "x"


def test_a_pipe_gets_no_colours() -> None:
    done = subprocess.run([sys.executable, "-m", "teenytinyllama"], capture_output=True, check=False, cwd=REPOSITORY,
                          env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    assert done.returncode == EXIT_BAD_INPUT
    assert b"\033" not in done.stdout
