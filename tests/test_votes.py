"""Votes on the disk, the choice of pairs, and the folder of a study: what is kept, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_study import SYSTEMS, a_vote, write_lines, write_study

from teenytinyllama.checks import InputError
from teenytinyllama.people.booth import REPEAT_AFTER, OfferedPair, PairChooser, fit_strengths, vote_item
from teenytinyllama.people.study import read_study
from teenytinyllama.people.votes import Vote, VoteFile, describe_votes

SHA = "a" * 64


# --- the file of votes


def test_votes_come_back_and_can_be_taken_back(tmp_path: Path) -> None:
    file = VoteFile(tmp_path / "votes.jsonl", SHA)
    assert file.read() == []
    marks = {"left": ["truth", "sense"], "right": []}
    one = a_vote(comment="ótima\n\u2028“aspas”", marks=marks, seconds=3.5, repeat=True)
    two = a_vote(voter="Beto")
    file.append(one)
    file.append(two)
    assert file.read() == VoteFile(file.path, SHA).read() == [one, two]
    assert describe_votes(file.read()) == "2 votes of 2 people"
    file.undo(one.vote, "Ana")
    assert VoteFile(file.path, SHA).read() == [two]
    assert describe_votes([two]) == "1 vote of 1 person"
    assert file.path.read_bytes().count(b"\n") == 3  # nothing is ever deleted
    for vote_id, voter in ((one.vote, "Ana"), (two.vote, "Ana"), ("f" * 32, "Ana")):
        with pytest.raises(ValueError, match=f"{voter} has no vote {vote_id} to take back"):
            file.undo(vote_id, voter)
    with pytest.raises(ValueError, match="is already there"):
        file.append(two)
    with pytest.raises(ValueError, match="of other prompts"):
        file.append(a_vote("d" * 64))
    assert describe_votes([]) == "no votes yet"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"vote": "7"}, "no id of a vote"),
        ({"voter": ""}, "voter is empty or too long"),
        ({"voter": 7}, "voter is no text"),
        ({"right": SYSTEMS[0]}, "left and right are the same system"),
        ({"choice": "both"}, "choice is none of left, right, both_good, both_bad"),
        ({"comment": "x" * 2001}, "comment is too long"),
        ({"marks": {"left": []}}, "marks must have left and right"),
        ({"marks": {"left": "truth", "right": []}}, "marks must be lists of texts"),
        ({"marks": {"left": ["style"], "right": []}}, "marks can be language, sense, truth, each once"),
        ({"marks": {"left": ["truth"] * 2, "right": []}}, "marks can be language, sense, truth, each once"),
        ({"seconds": float("nan")}, "seconds is out of range"),
        ({"seconds": True}, "seconds is no number"),
        ({"repeat": 1}, "repeat is neither true nor false"),
        ({"answers": {"left": SHA}}, "answers has no sha256 of both sides"),
    ],
)
def test_what_is_no_vote_is_refused_with_file_and_line(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    write_lines(path, [asdict(a_vote()), asdict(a_vote()) | change, asdict(a_vote())])
    with pytest.raises(InputError, match=rf"votes.jsonl: line 2 is damaged \({re.escape(error)}"):
        VoteFile(path, SHA).read()


def test_damage_in_the_middle_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    whole = json.dumps(asdict(a_vote()))
    for line, reason in (("{oops", "Expecting"), ('{"vote": "x"}', "'time' is missing"), ("7", "no JSON object")):
        path.write_text(f"{whole}\n{line}\n{whole}\n")
        before = path.read_bytes()
        with pytest.raises(InputError, match=rf"votes.jsonl: line 2 is damaged \({reason}.*Mend or delete the line"):
            VoteFile(path, SHA).append(a_vote())
        assert path.read_bytes() == before
    undo = {"undo": "f" * 32, "time": "x", "voter": 7}
    write_lines(path, [undo, undo])
    with pytest.raises(InputError, match=r"line 1 is damaged \(voter or time is no text\)"):
        VoteFile(path, SHA).read()


def test_votes_of_other_prompts_and_of_two_meanings_are_refused(tmp_path: Path) -> None:
    path, vote = tmp_path / "votes.jsonl", a_vote()
    write_lines(path, [asdict(vote), asdict(a_vote("d" * 64))])
    with pytest.raises(
        InputError, match=r"line 2 is a vote of other prompts \(sha256 dddddddddddd, not aaaaaaaaaaaa\)"
    ):
        VoteFile(path, SHA).read()
    write_lines(path, [asdict(vote), asdict(a_vote(vote=vote.vote, choice="right"))])
    with pytest.raises(InputError, match="line 2 has the id of another vote"):
        VoteFile(path, SHA).read()
    write_lines(path, [asdict(vote), {"undo": vote.vote, "time": "x", "voter": "Beto"}])
    with pytest.raises(InputError, match=f"Beto takes back the vote {vote.vote} of another person"):
        VoteFile(path, SHA).read()
    write_lines(path, [asdict(vote), asdict(vote)])  # two files joined by hand
    assert VoteFile(path, SHA).read() == [vote]


def test_a_line_cut_anywhere_is_set_aside(tmp_path: Path) -> None:
    path, first, last = tmp_path / "votes.jsonl", a_vote(), a_vote(comment="é" * 20)
    whole = json.dumps(asdict(first)).encode() + b"\n"
    torn = json.dumps(asdict(last), ensure_ascii=False).encode()
    for cut in (*range(1, len(torn), 7), len(torn) - 1):
        path.write_bytes(whole + torn[:cut])
        file = VoteFile(path, SHA)
        assert file.read() == [first]
        new = a_vote()
        file.append(new)
        assert file.read() == VoteFile(path, SHA).read() == [first, new]
        assert path.with_name("votes.jsonl.torn").read_bytes().endswith(torn[:cut] + b"\n")
    path.write_bytes(whole + torn)  # only the line break was lost: the vote is whole
    file = VoteFile(path, SHA)
    file.append(new)
    assert VoteFile(path, SHA).read() == [first, last, new]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = VoteFile(tmp_path / "votes.jsonl", SHA)
    file.append(a_vote())
    before, write = file.path.read_bytes(), os.write

    def fill(descriptor: int, content: Any) -> int:
        if len(content) < 100:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[:-50])

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(OSError, match="No space left"):
        file.append(a_vote())
    monkeypatch.undo()
    assert file.path.read_bytes() == before
    file.append(a_vote())
    assert len(file.read()) == 2


def test_merging_counts_no_vote_twice(tmp_path: Path) -> None:
    mine, theirs = VoteFile(tmp_path / "votes.jsonl", SHA), VoteFile(tmp_path / "b.jsonl", SHA)
    shared, own, other, gone = a_vote(), a_vote(), a_vote(voter="Beto"), a_vote(voter="Beto")
    for file, votes in ((mine, (shared, own, gone)), (theirs, (shared, other, gone))):
        for vote in votes:
            file.append(vote)
    theirs.undo(gone.vote, "Beto")
    assert mine.merge([theirs.path]) == (1, 2)
    assert mine.read() == [shared, own, other]
    before = mine.path.read_bytes()
    assert mine.merge([theirs.path, theirs.path]) == (0, 6)
    assert mine.path.read_bytes() == before
    with pytest.raises(InputError, match=r"none: no such file of votes. Give the votes.jsonl of another person"):
        mine.merge([theirs.path, tmp_path / "none"])
    write_lines(theirs.path, [asdict(a_vote(vote=shared.vote, choice="right")), asdict(a_vote())])
    with pytest.raises(InputError, match=rf"b.jsonl: the vote {shared.vote} is another one in .*votes.jsonl"):
        mine.merge([theirs.path])
    write_lines(theirs.path, [asdict(a_vote("d" * 64))])
    with pytest.raises(InputError, match="b.jsonl: line 1 is a vote of other prompts"):
        mine.merge([theirs.path])
    assert mine.path.read_bytes() == before


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"

    def write(voter: str) -> None:
        for _ in range(15):
            VoteFile(path, SHA).append(a_vote(voter=voter))

    threads = [threading.Thread(target=write, args=(f"v{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(vote.voter for vote in VoteFile(path, SHA).read()) == {f"v{number}": 15 for number in range(4)}


# Appends votes and says the id of each after it is written; with MIDDLE it dies in the middle of writing the third.
_WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from made_study import a_vote
from teenytinyllama.people.votes import VoteFile
file, write, count = VoteFile(Path(sys.argv[1]), "a" * 64), os.write, 0
def torn(descriptor, content):
    write(descriptor, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    vote = a_vote()
    if sys.argv[2] == "MIDDLE" and count == 2:
        os.write = torn
    file.append(vote)
    print(vote.vote, flush=True)
    count += 1
"""


@pytest.mark.parametrize("when", ["MIDDLE", "BETWEEN"])
def test_a_killed_process_loses_no_vote_that_it_has_confirmed(when: str, tmp_path: Path) -> None:
    path, tests = tmp_path / "votes.jsonl", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    command = [sys.executable, "-c", _WRITER, str(path), when, str(tests)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline().strip() for _ in range(2)]
        if when == "BETWEEN":
            writer.kill()
        said += [line.strip() for line in writer.stdout if len(line) == 33]
    assert writer.returncode == -signal.SIGKILL
    file = VoteFile(path, SHA)
    found = [vote.vote for vote in file.read()]
    assert found[: len(said)] == said
    assert len(found) <= len(said) + 1  # one that was written and not yet said
    if when == "MIDDLE":
        assert not path.read_bytes().endswith(b"\n")
    new = a_vote()
    file.append(new)
    assert [vote.vote for vote in VoteFile(path, SHA).read()] == [*found, new.vote]
    assert path.with_name("votes.jsonl.torn").exists() or when == "BETWEEN"


# --- the folder of a study


def change_json(folder: Path, **changes: Any) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, name: str) -> None:
    systems = json.loads((folder / "study.json").read_text())["systems"]
    change_json(folder, systems=[systems[0] | {"name": name}, *systems[1:]])


def replace_answers(folder: Path, rows: list[dict[str, Any]]) -> None:
    systems = json.loads((folder / "study.json").read_text())["systems"]
    sha256 = write_lines(folder / "answers" / f"{SYSTEMS[0]}.jsonl", rows)
    change_json(folder, systems=[systems[0] | {"sha256": sha256}, *systems[1:]])


def replace_prompts(folder: Path, rows: list[dict[str, Any]]) -> None:
    change_json(folder, prompts_sha256=write_lines(folder / "prompts.jsonl", rows))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "study.json").unlink(), "has no study.json, so it is no folder of a comparison. `ttl compare`"),
        (lambda f: (f / "study.json").write_text("[]"), r"study.json: is damaged \(no JSON object\). Make the study again"),
        (lambda f: change_json(f, format=2), "has format 2, and this version reads format 1"),
        (lambda f: change_json(f, systems=[]), r"names 0 system\(s\), and a comparison needs two or more"),
        (lambda f: change_json(f, systems=[{}]), r"is damaged \('name' is missing\)"),
        (lambda f: change_json(f, kind="x"), "prompts_sha256 or kind has a value of no known form"),
        (lambda f: rename(f, "../answers"), "'../answers' cannot be the name of a system"),
        (lambda f: rename(f, 7), "the name or the sha256 of a system is no text"),
        (lambda f: rename(f, SYSTEMS[1]), "names a system twice"),
        (lambda f: (f / "prompts.jsonl").unlink(), "prompts.jsonl: no such file"),
        (lambda f: (f / "prompts.jsonl").write_text("{}"), "prompts.jsonl: was changed after the study was made"),
        (lambda f: replace_prompts(f, [{"id": "a", "prompt": "x"}] * 2), "holds no prompt, or two of one id"),
        (lambda f: replace_prompts(f, [{"id": "a", "prompt": 7}]), "line 1 is damaged .id and prompt must be texts"),
        (lambda f: (f / "answers" / f"{SYSTEMS[0]}.jsonl").unlink(), f"{SYSTEMS[0]}.jsonl: no such file"),
        (lambda f: write_lines(f / "answers" / f"{SYSTEMS[0]}.jsonl", [{}]), "was changed after the study was made, so"),
        (lambda f: replace_answers(f, [{"id": "p-00", "answer": 7}]), "line 1 is damaged .id and answer must be texts"),
        (lambda f: replace_answers(f, [{"id": "x", "answer": ""}]), "the answer 'x' belongs to no prompt"),
        (lambda f: replace_answers(f, [{"id": "p-00", "answer": "", "prompt_sha256": "0"}]), "'p-00' belongs to no prompt"),
        (lambda f: replace_answers(f, [{"id": "p-00", "answer": "a"}]), r"has no answer to 1 prompts, first \['p-01'\]"),
        (lambda f: replace_answers(f, [{"id": f"p-0{n}", "answer": "a"} for n in (0, 1, 1)]), "answers a prompt twice"),
    ],
)  # fmt: skip
def test_a_folder_whose_files_do_not_fit_is_refused(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    write_study(tmp_path, prompts=2)
    read_study(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read_study(tmp_path)


# --- the choice of pairs


def judge(chooser: PairChooser, votes: list[Vote], voter: str, choice: str = "left") -> OfferedPair | None:
    pair = chooser.choose(voter, votes)
    if pair is not None:
        votes.append(
            a_vote(voter=voter, prompt=pair.prompt, left=pair.left, right=pair.right, repeat=pair.repeat, choice=choice)
        )
    return pair


def test_a_person_judges_every_pair_once_and_some_twice(tmp_path: Path) -> None:
    chooser = PairChooser(read_study(write_study(tmp_path)), seed=3)
    votes: list[Vote] = []
    pairs = []
    while pair := judge(chooser, votes, "Ana"):
        pairs.append(pair)
    new = [pair for pair in pairs if not pair.repeat]
    assert len(new) == len({pair.item for pair in new}) == len(chooser.items) == 12 * 3
    assert [place for place, pair in enumerate(pairs) if pair.repeat] == [9, 19, 29, 39][: len(pairs) - len(new)]
    assert len(pairs) - len(new) >= 3
    for place, pair in enumerate(pairs):
        if pair.repeat:
            first = next(number for number, old in enumerate(pairs) if old.item == pair.item)
            assert place - first > REPEAT_AFTER
            assert (pairs[first].left, pairs[first].right) == (pair.right, pair.left)
    again: list[Vote] = []
    assert [judge(chooser, again, "Ana") for _ in pairs] == pairs
    other, again = PairChooser(read_study(tmp_path), seed=4), []
    assert [judge(other, again, "Ana") for _ in pairs] != pairs


def test_pairs_prompts_kinds_and_sides_are_balanced(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, prompts=30))
    chooser = PairChooser(study, seed=1)
    votes: list[Vote] = []
    rotation = ("left", "right", "both_good", "both_bad")
    for turn in range(60):
        judge(chooser, votes, f"v{turn % 5}", rotation[turn % 4])
    new = [vote for vote in votes if not vote.repeat]
    pairs = Counter(vote.systems for vote in new)
    assert len(pairs) == 3
    assert max(pairs.values()) - min(pairs.values()) <= 6
    kinds = Counter(study.kinds[vote.prompt] for vote in new)
    assert max(kinds.values()) - min(kinds.values()) <= 6
    assert len({vote.prompt for vote in new}) == 30
    for systems in pairs:
        lefts = Counter(vote.left for vote in new if vote.systems == systems)
        assert abs(lefts[min(systems)] - lefts[max(systems)]) <= 4
    assert all(before.prompt != after.prompt or after.repeat for voter in {vote.voter for vote in votes}
               for before, after in zip(*[[v for v in votes if v.voter == voter][k:] for k in (0, 1)], strict=False))  # fmt: skip
    people = {item: {v.voter for v in new if vote_item(v) == item} for item in map(vote_item, new)}
    assert sum(len(voters) > 1 for voters in people.values()) >= 8  # agreement needs pairs that several people judged


def test_votes_go_where_they_say_most(tmp_path: Path) -> None:
    chooser = PairChooser(read_study(write_study(tmp_path, prompts=60)), seed=1)
    votes: list[Vote] = []
    strong = {SYSTEMS[0]: 0, SYSTEMS[1]: 0, SYSTEMS[2]: -9}  # the first two are equal, the third always loses
    for turn in range(90):
        pair = chooser.choose(f"v{turn % 3}", votes)
        assert pair is not None
        gap = strong[pair.left] - strong[pair.right]
        choice = "left" if gap > 0 else "right" if gap < 0 else ("left", "right")[turn % 2]
        votes.append(a_vote(voter=f"v{turn % 3}", prompt=pair.prompt, left=pair.left, right=pair.right, choice=choice,
                            repeat=pair.repeat))  # fmt: skip
    pairs = Counter(vote.systems for vote in votes if not vote.repeat)
    assert pairs[frozenset(SYSTEMS[:2])] > 1.2 * max(pairs[frozenset((name, SYSTEMS[2]))] for name in SYSTEMS[:2]), (
        pairs
    )
    strengths, _ = fit_strengths(
        np.array([[SYSTEMS.index(v.left), SYSTEMS.index(v.right)] for v in votes]),
        np.array([float(v.choice == "left") for v in votes]), 3,
    )  # fmt: skip
    assert abs(strengths[0] - strengths[1]) < 1 < min(strengths[:2]) - strengths[2]


def test_people_at_the_same_time_get_different_pairs(tmp_path: Path) -> None:
    chooser = PairChooser(read_study(write_study(tmp_path)), seed=0)
    pending: list[OfferedPair] = []
    for number in range(6):
        pair = chooser.choose(f"v{number}", [], pending)
        assert pair is not None
        pending.append(pair)
    assert len({pair.item for pair in pending}) == 6
    assert Counter(frozenset((pair.left, pair.right)) for pair in pending) == dict.fromkeys(
        {frozenset((pair.left, pair.right)) for pair in pending}, 2
    )


def test_equal_answers_are_not_offered(tmp_path: Path) -> None:
    same = dict.fromkeys(range(3), "igual ")
    study = read_study(write_study(tmp_path, 3, lhama_secreta_160m=same, mini_oculta_base={0: "igual"}))
    items = PairChooser(study).items
    assert len(items) == 8
    assert ("p-00", frozenset(SYSTEMS[:2])) not in items
    write_study(tmp_path, 3, SYSTEMS[:2], lhama_secreta_160m=same, mini_oculta_base=same)
    assert PairChooser(read_study(tmp_path)).choose("Ana", []) is None
