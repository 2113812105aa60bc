"""Voting booth: which two answers a person judges next, the pairs before people now, and the votes of one study.

The page is told texts only, never a name of a system.

The two systems are those whose next vote narrows the estimate most: the pair of largest `w * v`, where `w = p (1 - p)`
is the information of one vote under the Bradley-Terry model with the strengths that the votes show so far, and `v` the
variance of the difference of the two strengths. By the matrix determinant lemma a vote multiplies the determinant of
the information matrix by `1 + w * v`: the greedy step of a D-optimal design (Atkinson, Donev and Tobias, "Optimum
Experimental Designs", Oxford 2007, chapter 11). Prompts are balanced within a pair of systems, then kinds of prompts.

Every choice follows from the study's seed, the votes and the pairs that others have before them now.
"""

import hashlib
import math
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from ..stage_folder import parse_record, utc_now, write_json
from .study import Study
from .votes import (
    CHOICES,
    MOST_SECONDS,
    MOST_VOTER_CHARACTERS,
    SIDES,
    VOTES_NAME,
    Vote,
    VoteFile,
    check_marks,
    ensure_votes_of,
    new_vote_id,
)

REPEAT_EVERY = 10  # votes of a person: the last of so many is a repetition, if there is something to repeat
REPEAT_AFTER = 8  # votes that lie at least between a pair and its repetition
SHARED_EVERY = 4  # votes of a person: the last of so many is on a pair that others judged, to measure agreement
_PRIOR_VARIANCE = 1.0  # of a strength, on the logit scale: keeps the strengths finite while there are few votes
_NEWTON_STEPS, _NEWTON_ENOUGH = 50, 1e-8
_MOST_IMBALANCE = 2  # how often more a system may stand on one side than on the other before the side is no more drawn

Item = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class OfferedPair:
    """Two answers to a prompt, and the sides on which they stand.

    Attributes:
        prompt: id of the prompt.
        left: name of the system on the left side.
        right: name of the system on the right side.
        repeat: whether the person has judged these two answers before.
    """

    prompt: str
    left: str
    right: str
    repeat: bool = False

    @property
    def item(self) -> Item:
        """The prompt and the two systems, whatever their sides."""
        return self.prompt, frozenset((self.left, self.right))


def vote_item(vote: Vote) -> Item:
    """Return the prompt and the two systems of a vote, whatever their sides."""
    return vote.prompt, vote.systems


class PairChooser:
    """Chooses the pairs of one study.

    Attributes:
        study: the prompts and the answers.
        seed: draws the order of what is equally good.
        items: all prompts and pairs of systems whose answers differ.
    """

    def __init__(self, study: Study, seed: int = 0) -> None:
        self.study, self.seed = study, seed
        self.items: set[Item] = {
            (prompt, frozenset(pair))
            for prompt in study.prompts
            for pair in combinations(study.systems, 2)
            if not study.are_equal(prompt, *pair)
        }

    def choose(self, voter: str, votes: list[Vote], pending: Iterable[OfferedPair] = ()) -> OfferedPair | None:
        """Return the next pair of a person, or None after the last.

        Args:
            voter: the person.
            votes: of everybody, in the order in which they were given.
            pending: pairs that other people have before them now; each counts as a vote on its way.
        """
        own = [vote for vote in votes if vote.voter == voter]
        if len(own) % REPEAT_EVERY == REPEAT_EVERY - 1 and (again := self._repetition(own)):
            return again
        left = self.items - {vote_item(vote) for vote in own}
        if not left:
            return None
        pending = list(pending)
        others = Counter(vote_item(vote) for vote in votes if vote.voter != voter and not vote.repeat)
        if len(own) % SHARED_EVERY == SHARED_EVERY - 1:
            left = self._least_shared(left, others) or left
        coming = others + Counter(pair.item for pair in pending)
        order = self._pairs_by_gain(votes, pending, voter, len(own))
        systems = next(pair for pair in order if any(item[1] == pair for item in left))
        prompts = [prompt for prompt, pair in left if pair == systems]
        return self._on_sides(self._best_prompt(prompts, systems, coming, own), systems, voter, votes)

    def _repetition(self, own: list[Vote]) -> OfferedPair | None:
        """Return one of a person's own pairs, judged once and long enough ago, with its sides swapped."""
        judged = Counter(vote_item(vote) for vote in own)
        old = [vote for vote in own[: max(0, len(own) - REPEAT_AFTER)] if judged[vote_item(vote)] == 1]
        old = [vote for vote in old if vote_item(vote) in self.items]
        if not old:
            return None
        vote = min(old, key=lambda vote: self._draw("repeat", len(own), vote.voter, vote.prompt, vote.left))
        return OfferedPair(vote.prompt, left=vote.right, right=vote.left, repeat=True)

    @staticmethod
    def _least_shared(left: set[Item], others: Counter[Item]) -> set[Item]:
        """Return the items that others have judged, those with the fewest such votes only."""
        least = min((others[item] for item in left if others[item]), default=0)
        return {item for item in left if least and others[item] == least}

    def _pairs_by_gain(
        self, votes: list[Vote], pending: list[OfferedPair], voter: str, turn: int
    ) -> list[frozenset[str]]:
        """Return the pairs of systems, that whose next vote says most first."""
        place = {name: number for number, name in enumerate(self.study.systems)}
        judged = [vote for vote in votes if not vote.repeat and vote.systems <= place.keys()]
        rows = [(place[vote.left], place[vote.right]) for vote in judged]
        rows += [(place[pair.left], place[pair.right]) for pair in pending if not pair.repeat]
        scores = [{"left": 1.0, "right": 0.0}.get(vote.choice, 0.5) for vote in judged]
        scores += [math.nan] * (len(rows) - len(scores))  # on their way: they inform, and nobody knows what they say
        strengths, covariance = fit_strengths(np.array(rows).reshape(-1, 2), np.array(scores), len(place))

        def gain(pair: tuple[str, str]) -> float:
            one, other = place[pair[0]], place[pair[1]]
            probability = 1 / (1 + math.exp(strengths[other] - strengths[one]))
            variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
            return round(float(probability * (1 - probability) * variance), 9)

        pairs = sorted(combinations(self.study.systems, 2), key=lambda pair: self._draw("pair", voter, turn, *pair))
        return [frozenset(pair) for pair in sorted(pairs, key=gain, reverse=True)]

    def _best_prompt(self, prompts: list[str], systems: frozenset[str], coming: Counter[Item], own: list[Vote]) -> str:
        """Return the prompt with the fewest votes: on these systems, of its kind, at all; the last are drawn."""
        given = coming + Counter(vote_item(vote) for vote in own)
        of_prompt: Counter[str] = Counter()
        of_kind: Counter[str] = Counter()
        for (prompt, _), count in given.items():
            of_prompt[prompt] += count
            of_kind[self.study.kinds.get(prompt, "")] += count
        sizes = Counter(self.study.kinds.values())
        last = own[-1].prompt if own else None  # the same prompt twice running tires

        def order(prompt: str) -> tuple[object, ...]:
            kind = self.study.kinds[prompt]
            return (
                given[prompt, systems],
                prompt == last,
                of_kind[kind] / sizes[kind],
                of_prompt[prompt],
                self._draw("prompt", prompt),
            )

        return min(prompts, key=order)

    def _on_sides(self, prompt: str, systems: frozenset[str], voter: str, votes: list[Vote]) -> OfferedPair:
        """Draw the sides, unless the person, or else everybody, has had a system too often on one of them."""
        one, other = sorted(systems)
        same = [vote for vote in votes if vote.systems == systems and not vote.repeat]
        for given in ([vote for vote in same if vote.voter == voter], same):
            more_on_left = sum(1 if vote.left == one else -1 for vote in given)
            if abs(more_on_left) >= _MOST_IMBALANCE:
                is_left = more_on_left < 0
                break
        else:
            is_left = self._draw("side", voter, prompt, one, other) < 0.5
        return OfferedPair(prompt, one, other) if is_left else OfferedPair(prompt, other, one)

    def _draw(self, *words: object) -> float:
        """Return a number in [0, 1) that the seed and the words alone decide."""
        text = "\x1f".join(map(str, (self.seed, *words)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48


def fit_strengths(rows: np.ndarray, scores: np.ndarray, systems: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the Bradley-Terry model with a normal prior, for the choice of pairs only.

    Args:
        rows: votes x 2, numbers of the left and the right system.
        scores: votes; 1 where the left one won, 0 where the right one did, 0.5 for a tie, NaN for a vote to come, which
            counts for the information alone.
        systems: how many there are.

    Returns:
        strengths: systems, logits with mean near 0.
        covariance: systems x systems, the inverse of the information at the strengths.
    """
    strengths = np.zeros(systems)
    design = np.zeros((len(rows), systems))
    design[np.arange(len(rows)), rows[:, 0].astype(int)] = 1
    design[np.arange(len(rows)), rows[:, 1].astype(int)] = -1
    prior = np.eye(systems) / _PRIOR_VARIANCE
    is_given = ~np.isnan(scores)
    known, won = design[is_given], scores[is_given]
    for _ in range(_NEWTON_STEPS):
        probabilities = 1 / (1 + np.exp(-(known @ strengths)))
        slope = known.T @ (won - probabilities) - prior @ strengths
        curve = (known.T * (probabilities * (1 - probabilities))) @ known + prior
        step = np.linalg.solve(curve, slope)
        strengths = strengths + step
        if np.abs(step).max() < _NEWTON_ENOUGH:
            break
    probabilities = 1 / (1 + np.exp(-(design @ strengths)))
    information = (design.T * (probabilities * (1 - probabilities))) @ design + prior
    return strengths, np.linalg.inv(information)


OFFERS_NAME = "offers.json"
MOST_VOTERS = 1000  # so that nobody fills the disk with nicknames
_WAITING_SECONDS = 1800.0  # a pair that nobody has judged for so long no longer counts as a vote on its way

# What the page shows to a voter when a request is refused.
_NO_VOTER = f"O apelido precisa ter de 1 a {MOST_VOTER_CHARACTERS} letras, algarismos ou sinais."
_NO_PAIR = "Este par não está mais com você. Veja o par atual."
NO_VOTE = "O voto não tem a forma esperada. Recarregue a página."
_NO_UNDO = "Este voto não pode mais ser desfeito."
_TOO_MANY = "Já há apelidos demais neste estudo."


class RefusedRequestError(Exception):
    """A request that is not carried out; the message is for the voter, the status is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Offer:
    """A pair that is before a person now.

    Attributes:
        id: will be the id of the vote, so that a request that is sent twice counts once.
        pair: what is judged.
        since: seconds since 1970.
        choice: for a vote that was taken back: what it said, else empty.
        marks: as in `Vote`, of a vote that was taken back.
        comment: of a vote that was taken back.
    """

    id: str
    pair: OfferedPair
    since: float
    choice: str = ""
    marks: dict[str, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    comment: str = ""


class VotingBooth:
    """The votes of one study, and the pairs that are before people now; all requests go through its lock.

    Pairs before people are kept in a file as well: who reloads the page sees the same pair, also after the server was
    killed.
    """

    def __init__(self, study: Study, seed: int = 0) -> None:
        """Read the votes that there are.

        Raises:
            InputError: the file of votes is damaged or has votes of other prompts or answers.
        """
        self.study, self.chooser = study, PairChooser(study, seed)
        self.file = VoteFile(study.folder / VOTES_NAME, study.prompts_sha256)
        ensure_votes_of(study, self.file.read(), self.file.path)
        self._offers_path = study.folder / OFFERS_NAME
        self._offers = self._read_offers()
        self._lock = threading.Lock()

    def count(self, name: object) -> dict[str, Any]:
        """Return how many votes a nickname has, for a person who has just chosen it."""
        with self._lock:
            voter = self._voter(name)
            return {"voter": voter, "votes": sum(vote.voter == voter for vote in self.file.read())}

    def state(self, name: object) -> dict[str, Any]:
        """Return the pair that a person judges now, with how far everybody is.

        Raises:
            RefusedRequestError: no nickname.
        """
        with self._lock:
            return self._state(self._voter(name))

    def vote(self, body: dict[str, Any]) -> dict[str, Any]:
        """Write a vote and return the next pair; a vote that is already there is not written again.

        Raises:
            RefusedRequestError: the body is no vote, or not for the pair that is before this person.
        """
        with self._lock:
            voter = self._voter(body.get("voter"))
            offer = self._offers.get(voter)
            given = [vote.vote for vote in self.file.read() if vote.voter == voter]
            if body.get("offer") in given:
                return {**self._state(voter), "already": True}
            if offer is None or body.get("offer") != offer.id:
                raise RefusedRequestError(409, _NO_PAIR)
            self.file.append(self._as_vote(voter, offer, body))
            del self._offers[voter]
            return self._state(voter)

    def undo(self, body: dict[str, Any]) -> dict[str, Any]:
        """Take a person's last vote back and offer its pair again, with the marks and the comment that it had.

        Raises:
            RefusedRequestError: it is not the last vote of this person.
        """
        with self._lock:
            voter = self._voter(body.get("voter"))
            last = self._last(voter)
            if last is None or body.get("vote") != last.vote or last.prompt not in self.study.prompts:
                raise RefusedRequestError(409, _NO_UNDO)
            self.file.undo(last.vote, voter)
            pair = OfferedPair(last.prompt, last.left, last.right, last.repeat)
            self._offers[voter] = Offer(new_vote_id(), pair, time.time(), last.choice, last.marks, last.comment)
            self._write_offers()
            return self._state(voter)

    def _voter(self, name: object) -> str:
        """Return a nickname in the form in which it stands in the votes; `ana` is `Ana` who has voted before.

        Raises:
            RefusedRequestError: it is empty, too long or has characters that cannot be seen.
        """
        if not isinstance(name, str) or len(name) > 4 * MOST_VOTER_CHARACTERS:
            raise RefusedRequestError(422, _NO_VOTER)
        name = " ".join(unicodedata.normalize("NFC", name).split())
        # Categories C: control characters, formats that turn the direction of writing, halves of surrogate pairs.
        if not 1 <= len(name) <= MOST_VOTER_CHARACTERS or any(unicodedata.category(sign)[0] == "C" for sign in name):
            raise RefusedRequestError(422, _NO_VOTER)
        known = dict.fromkeys([vote.voter for vote in self.file.read()]) | dict.fromkeys(self._offers)
        found = next((voter for voter in known if voter.casefold() == name.casefold()), None)
        if found is None and len(known) >= MOST_VOTERS:
            raise RefusedRequestError(429, _TOO_MANY)
        return found or name

    def _last(self, voter: str) -> Vote | None:
        return next((vote for vote in reversed(self.file.read()) if vote.voter == voter), None)

    def _as_vote(self, voter: str, offer: Offer, body: dict[str, Any]) -> Vote:
        pair, comment, seconds = offer.pair, body.get("comment", ""), body.get("seconds", 0)
        try:
            check_marks(body.get("marks"))
            if body.get("choice") not in CHOICES or not isinstance(comment, str) or isinstance(seconds, bool):
                raise ValueError
            # Halves of surrogate pairs have no bytes in UTF-8.
            comment = comment.encode("utf-8", "replace").decode("utf-8").replace("\0", "").strip()
            return Vote(
                vote=offer.id, time=utc_now(), voter=voter, prompt=pair.prompt,
                prompts_sha256=self.study.prompts_sha256, left=pair.left, right=pair.right, choice=body["choice"],
                marks={side: body["marks"][side] for side in SIDES}, comment=comment,
                seconds=round(min(float(seconds), MOST_SECONDS), 1), repeat=pair.repeat,
                answers={side: self.study.answer_sha256(getattr(pair, side), pair.prompt) for side in SIDES},
            )  # fmt: skip
        except (ValueError, TypeError, OverflowError) as error:
            raise RefusedRequestError(422, NO_VOTE) from error

    def _state(self, voter: str) -> dict[str, Any]:
        votes, last = self.file.read(), self._last(voter)
        offer = self._offers.get(voter) or self._new_offer(voter, votes)
        own = sum(vote.voter == voter for vote in votes)
        judged = {(vote.prompt, vote.systems) for vote in votes if vote.voter == voter}
        state: dict[str, Any] = {
            "voter": voter,
            "kind": self.study.kind,
            "votes": own,
            "everybody": len(votes),
            "judged": len(judged & self.chooser.items),
            "all": len(self.chooser.items),
            "undo": last.vote if last else None,
            "offer": None,
        }
        if offer is not None:
            answers, pair = self.study.answers, offer.pair
            state |= {
                "offer": offer.id,
                "prompt": self.study.prompts[pair.prompt],
                "answers": {side: answers[getattr(pair, side)][pair.prompt] for side in SIDES},
                "before": {"choice": offer.choice, "marks": offer.marks, "comment": offer.comment},
            }
        return state

    def _new_offer(self, voter: str, votes: list[Vote]) -> Offer | None:
        now = time.time()
        pending = [offer.pair for name, offer in self._offers.items()
                   if name != voter and now - offer.since < _WAITING_SECONDS]  # fmt: skip
        pair = self.chooser.choose(voter, votes, pending)
        if pair is None:
            return None
        self._offers[voter] = Offer(new_vote_id(), pair, now)
        self._write_offers()
        return self._offers[voter]

    def _write_offers(self) -> None:
        write_json(self._offers_path, {voter: asdict(offer) for voter, offer in self._offers.items()})

    def _read_offers(self) -> dict[str, Offer]:
        """Return the pairs that were before people when the server ended; what cannot be read is offered anew."""
        offers: dict[str, Offer] = {}
        given = {vote.vote for vote in self.file.read()}
        with suppress(OSError, ValueError, KeyError, TypeError):
            for voter, content in parse_record(self._offers_path.read_bytes()).items():
                offer = Offer(**content)
                offer = replace(offer, pair=OfferedPair(**content["pair"]), since=float(offer.since))
                check_marks(offer.marks)
                if offer.id not in given and offer.pair.item in self.chooser.items:
                    offers[voter] = offer
        return offers
