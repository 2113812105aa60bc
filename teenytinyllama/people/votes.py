"""Votes: what a vote holds, and the file to which votes are appended, so that a kill at any moment loses none.

Each vote is one line of JSON, on the disk before the voter sees the next pair. A vote that is taken back stays in the
file; a line of its own takes it back. So files of several people can be merged by the ids of their votes.
"""

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checks import counted, ensure
from ..disk import sync_to_disk
from ..stage_folder import numbered_jsonl_records, parse_record, take_lock, utc_now
from .study import STUDY_NAME, Study

VOTES_NAME, JUDGE_VOTES_NAME = "votes.jsonl", "judge_votes.jsonl"
CHOICES = ("left", "right", "both_good", "both_bad")
SIDES = ("left", "right")
MARKS = ("language", "sense", "truth")  # in which an answer is bad
MOST_COMMENT_CHARACTERS, MOST_VOTER_CHARACTERS = 2000, 40
MOST_SECONDS = 86_400.0  # of one vote: a page that was left open for a day says no more
_LOCK_SECONDS = 30  # an append takes milliseconds; a disk of the network more


@dataclass(frozen=True)
class Vote:
    """One judgement of two answers to a prompt.

    Attributes:
        vote: id, 32 hex digits.
        time: UTC, such as 2026-01-31T12:00:00Z.
        voter: nickname, or the name of a judge model.
        prompt: id of the prompt.
        prompts_sha256: of the file of prompts, in hex.
        left: name of the system on the left side, which the page calls A.
        right: name of the system on the right side, which the page calls B.
        choice: one of `CHOICES`.
        marks: for each of `SIDES`, those of `MARKS` in which the answer is bad.
        comment: free text.
        seconds: how long the voter saw the pair.
        repeat: whether the voter had judged the pair before.
        answers: for each of `SIDES`, the sha256 of the answer's text in hex.
    """

    vote: str
    time: str
    voter: str
    prompt: str
    prompts_sha256: str
    left: str
    right: str
    choice: str
    marks: dict[str, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    comment: str = ""
    seconds: float = 0.0
    repeat: bool = False
    answers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the types and values of a vote, wherever it comes from.

        Raises:
            ValueError: a value that no vote has.
            TypeError: a value of another type.
        """
        for name in ("vote", "time", "voter", "prompt", "prompts_sha256", "left", "right", "choice", "comment"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is no text")
        check_vote_id(self.vote)
        _check(self.voter and len(self.voter) <= MOST_VOTER_CHARACTERS, "voter is empty or too long")
        _check(self.left != self.right, "left and right are the same system")
        _check(self.choice in CHOICES, f"choice is none of {', '.join(CHOICES)}")
        _check(len(self.comment) <= MOST_COMMENT_CHARACTERS, "comment is too long")
        check_marks(self.marks)
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float):
            raise TypeError("seconds is no number")
        _check(0 <= self.seconds <= MOST_SECONDS, "seconds is out of range")  # false for NaN too
        if not isinstance(self.repeat, bool):
            raise TypeError("repeat is neither true nor false")
        if not isinstance(self.answers, dict) or not all(isinstance(self.answers.get(side), str) for side in SIDES):
            raise TypeError("answers has no sha256 of both sides")

    @property
    def systems(self) -> frozenset[str]:
        """The two systems, whatever their sides."""
        return frozenset((self.left, self.right))


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_vote_id(text: object) -> None:
    """Check that a value is the id of a vote.

    Raises:
        ValueError: it is not 32 hex digits.
    """
    _check(isinstance(text, str) and len(text) == 32 and not set(text) - set("0123456789abcdef"), "no id of a vote")


def check_marks(marks: object) -> None:
    """Check the marks of a vote: a list for each side, of different known marks.

    Raises:
        ValueError: they are something else.
    """
    _check(isinstance(marks, dict) and set(marks) == set(SIDES), "marks must have left and right")
    assert isinstance(marks, dict)
    for given in marks.values():
        _check(isinstance(given, list) and all(isinstance(mark, str) for mark in given), "marks must be lists of texts")
        _check(
            set(given) <= set(MARKS) and len(given) == len(set(given)), f"marks can be {', '.join(MARKS)}, each once"
        )


def new_vote_id() -> str:
    """Return an id that no vote has."""
    return uuid.uuid4().hex


def _parse(record: dict[str, Any]) -> Vote | None:
    """Return the vote of a line, or None for a line that takes a vote back.

    Raises:
        ValueError, KeyError, TypeError: the line is neither.
    """
    if "undo" in record:
        check_vote_id(record["undo"])
        if not isinstance(record["voter"], str) or not isinstance(record["time"], str):
            raise TypeError("voter or time is no text")
        return None
    return Vote(**{known.name: record[known.name] for known in fields(Vote)})


@dataclass
class _Lines:
    """What a vote file holds: votes by id, and the lines by which votes were taken back, by the vote's id."""

    votes: dict[str, Vote] = field(default_factory=dict)
    undos: dict[str, dict[str, Any]] = field(default_factory=dict)

    def active(self) -> list[Vote]:
        return [vote for vote in self.votes.values() if vote.vote not in self.undos]


class VoteFile:
    """A file of votes on the prompts of one study; several processes may append to it at once.

    Attributes:
        path: of the file, which need not exist yet.
        prompts_sha256: of the study's prompts, in hex.
    """

    def __init__(self, path: Path, prompts_sha256: str) -> None:
        self.path, self.prompts_sha256 = Path(path), prompts_sha256
        self._read_at: tuple[int, int] | None = None  # size in bytes and time of change in ns, when last read
        self._lines = _Lines()

    def read(self) -> list[Vote]:
        """Return the votes that were not taken back, in the order in which they were given; none without a file.

        Lines that occur twice, as in files that were joined by hand, count once. A last line that a kill has cut off is
        left out.

        Raises:
            InputError: a line is damaged, or a vote of other prompts; the message names file and line.
        """
        state = self.path.stat() if self.path.is_file() else None
        changed_at = (state.st_size, state.st_mtime_ns) if state else (0, 0)
        if changed_at != self._read_at:
            self._lines, self._read_at = self._read_lines(), changed_at
        return self._lines.active()

    def append(self, vote: Vote) -> None:
        """Write a vote to the disk; afterwards no kill and no power cut loses it.

        Raises:
            ValueError: the vote is of other prompts, or its id is already there.
        """
        _check(vote.prompts_sha256 == self.prompts_sha256, "the vote is of other prompts")
        with take_lock(self._lock_path, self._refusal, _LOCK_SECONDS):
            self.read()
            _check(vote.vote not in self._lines.votes, f"the vote {vote.vote} is already there")
            self._write([asdict(vote)])

    def undo(self, vote_id: str, voter: str) -> None:
        """Take a vote back.

        Raises:
            ValueError: the voter has given no such vote, or has already taken it back.
        """
        with take_lock(self._lock_path, self._refusal, _LOCK_SECONDS):
            given = {vote.vote: vote.voter for vote in self.read()}
            _check(given.get(vote_id) == voter, f"{voter} has no vote {vote_id} to take back")
            self._write([{"undo": vote_id, "time": utc_now(), "voter": voter}])

    def merge(self, others: Iterable[Path]) -> tuple[int, int]:
        """Append the votes of other files that are not here yet, and what takes votes back.

        All files are read and checked before anything is written.

        Args:
            others: files of votes on the same prompts.

        Returns:
            How many votes were added, and how many were already here.

        Raises:
            InputError: a file is missing, damaged, or has votes of other prompts; or one id stands for two votes.
        """
        found = []
        for path in others:
            ensure(Path(path).is_file(), f"{path}: no such file of votes. Give the {VOTES_NAME} of another person.")
            found.append((path, VoteFile(path, self.prompts_sha256)._read_lines()))
        with take_lock(self._lock_path, self._refusal, _LOCK_SECONDS):
            self.read()
            new: dict[str, Vote] = {}
            undos: dict[str, dict[str, Any]] = {}
            known = 0
            for path, lines in found:
                for vote in lines.votes.values():
                    here = self._lines.votes.get(vote.vote) or new.get(vote.vote)
                    ensure(
                        here in (None, vote),
                        f"{path}: the vote {vote.vote} is another one in {self.path}. One of the files was changed.",
                    )
                    if here is None:
                        new[vote.vote] = vote
                    else:
                        known += 1
                undos |= {vote: line for vote, line in lines.undos.items() if vote not in self._lines.undos}
            if new or undos:
                self._write([*(asdict(vote) for vote in new.values()), *undos.values()])
        return len(new), known

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    @property
    def _refusal(self) -> str:
        return f"{self.path}: another process has been writing to it for {_LOCK_SECONDS} seconds. End that process."

    def _read_lines(self) -> _Lines:
        lines = _Lines()
        fix = "Mend or delete the line; votes in other lines are whole."
        for number, record in numbered_jsonl_records(self.path, _parse, fix):
            vote = _parse(record)
            if vote is None:
                lines.undos.setdefault(record["undo"], record)
                continue
            ensure(
                vote.prompts_sha256 == self.prompts_sha256,
                f"{self.path}: line {number} is a vote of other prompts (sha256 {vote.prompts_sha256[:12]}, not "
                f"{self.prompts_sha256[:12]}). Keep the votes of each study in its own folder.",
            )
            ensure(
                lines.votes.setdefault(vote.vote, vote) == vote,
                f"{self.path}: line {number} has the id of another vote, {vote.vote}. {fix}",
            )
        for vote_id, record in lines.undos.items():
            ensure(
                vote_id not in lines.votes or lines.votes[vote_id].voter == record["voter"],
                f"{self.path}: {record['voter']} takes back the vote {vote_id} of another person. {fix}",
            )
        return lines

    def _write(self, records: list[dict[str, Any]]) -> None:
        """Append lines under the lock; a line that a kill has cut off is set aside first.

        Raises:
            OSError: the disk is full or broken; the file is then as it was.
        """
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8")
        is_new, self._read_at = not self.path.exists(), None
        with self.path.open("ab+", buffering=0) as file:
            self._set_aside(file.fileno())
            end = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(content)
                while left:
                    left = left[os.write(file.fileno(), left) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
        if is_new:
            sync_to_disk(self.path.parent)

    def _set_aside(self, descriptor: int) -> None:
        """Move a last line without a line break to a file beside; a whole vote that lacks only the break gets it."""
        content = self.path.read_bytes()
        line = content[content.rfind(b"\n") + 1 :]
        if not line:
            return
        try:
            _parse(parse_record(line))
        except (ValueError, KeyError, TypeError):
            with self.path.with_name(self.path.name + ".torn").open("ab") as torn:
                torn.write(line + b"\n")
                torn.flush()
                os.fsync(torn.fileno())
            os.ftruncate(descriptor, len(content) - len(line))
        else:
            os.write(descriptor, b"\n")


def ensure_votes_of(study: Study, votes: Iterable[Vote], path: Path) -> None:
    """Check that votes are on the answers that a study holds.

    Raises:
        InputError: a vote is on a prompt or a system that the study does not have, or on another text of a system.
    """
    for vote in votes:
        ensure(vote.prompt in study.prompts, f"{path}: has votes on {vote.prompt}, no prompt of {study.folder}.")
        for side in SIDES:
            name = vote.left if side == "left" else vote.right
            ensure(
                name in study.systems,
                f"{path}: has votes on {name}, which {STUDY_NAME} does not name. Let {name} answer here first.",
            )
            ensure(
                vote.answers[side] == study.answer_sha256(name, vote.prompt),
                f"{path}: has votes on other answers of {name} than those in {study.folder}. Count votes of copies of "
                "one comparison only.",
            )


def describe_votes(votes: list[Vote]) -> str:
    """Return how many votes there are, and of how many people."""
    if not votes:
        return "no votes yet"
    people = len({vote.voter for vote in votes})
    return f"{counted(len(votes), 'vote')} of {'1 person' if people == 1 else f'{people} people'}"
