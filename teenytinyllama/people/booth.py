"""VotingBooth: the votes of one study, the pairs that are before people now, and what the page is told of them.

The page is told texts only, never a name of a system.
"""

import threading
import time
import unicodedata
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..stage_folder import parse_record, utc_now, write_json
from .pairing import OfferedPair, PairChooser
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
    new_vote_id,
)

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
            InputError: the file of votes is damaged or has votes of other prompts.
        """
        self.study, self.chooser = study, PairChooser(study, seed)
        self.file = VoteFile(study.folder / VOTES_NAME, study.prompts_sha256)
        self.file.read()
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
