"""Answers token by token: what the terminal shows while a model writes."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checks import ensure
from ..models import end_token_ids
from ..tokenizer.encode import compose, encode_texts
from .template import ConversationEncoder, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LARGEST_SEED = 2**31 - 1  # which every library takes


@dataclass
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = field(default=256, metadata={"help": "most tokens of an answer"})
    temperature: float = field(default=0.7, metadata={"help": "0: always the likeliest token; higher: more variety"})
    top_k: int = field(default=50, metadata={"help": "only the k likeliest tokens; 0: all"})
    top_p: float = field(default=0.9, metadata={"help": "only the likeliest tokens that together have this share"})
    repetition_penalty: float = field(
        default=1.2, metadata={"help": "above 1: tokens that were there before get less likely; small models need it"}
    )
    seed: int = field(default=42, metadata={"help": "the same seed and messages give the same answers"})

    def __post_init__(self) -> None:
        """Refuse values that nothing can be sampled with.

        Raises:
            InputError: a number outside its range.
        """
        ensure(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens}: must be at least 1.")
        ensure(
            self.temperature == 0 or 0.01 <= self.temperature <= 100,  # others overflow
            f"temperature={self.temperature}: must be 0, or lie in [0.01, 100]. 0.7 is usual.",
        )
        ensure(self.top_k >= 0, f"top_k={self.top_k}: must be 0 (no limit) or more. 50 is usual.")
        ensure(0 < self.top_p <= 1, f"top_p={self.top_p}: must lie in (0, 1]. 0.9 is usual.")
        ensure(
            self.repetition_penalty > 0, f"repetition_penalty={self.repetition_penalty}: must be positive. 1 is none."
        )
        ensure(0 <= self.seed <= LARGEST_SEED, f"seed={self.seed}: must lie between 0 and {LARGEST_SEED}.")

    def to_generate(self) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`."""
        same: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {**same, "do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {**same, "do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


class Reply:
    """An answer being written: iterate over it for its text; leave the loop, and the model stops.

    Attributes:
        ids: the tokens written, once the iteration is over.
        ended: whether the model ended it, with its end token; otherwise it was cut.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        ids: list[int],
        sampling: Sampling,
        end: int | None = None,
        is_answer: bool = True,
    ) -> None:
        """Prepare an answer to the tokens `ids`; the model begins with the iteration.

        Args:
            model: writes it.
            tokenizer: of the model.
            ids: the prompt.
            sampling: how the next token is chosen.
            end: a token that ends it beside the model's own: many chat models are published without it in
                generation_config.json, and would write both sides of the conversation.
            is_answer: leave out white space before the first word; a continuation of a text needs it.
        """
        self.is_answer = is_answer
        self.model, self.tokenizer, self.prompt, self.sampling = model, tokenizer, ids, sampling
        self.ends = end_token_ids(model, tokenizer) | (set() if end is None else {end})
        self.ids: list[int] = []
        self.ended = False
        self._error: BaseException | None = None
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces of whole words.

        Raises:
            Exception: whatever went wrong in the model.
        """
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        thread = threading.Thread(target=self._generate, args=(streamer,), daemon=True)
        thread.start()
        try:
            yield from without_leading_space(streamer) if self.is_answer else streamer
        finally:  # also when nobody reads on
            self._stop.set()
            thread.join()
        if self._error is not None:
            raise self._error

    def _generate(self, streamer: Any) -> None:
        import torch
        from transformers import StoppingCriteriaList

        stop = self._stop

        def stopped(input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), stop.is_set(), device=input_ids.device)

        tokenizer, generator = self.tokenizer, self.model
        input_ids = torch.tensor([self.prompt], device=self.model.device)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        try:
            torch.manual_seed(self.sampling.seed)
            output: Any = generator.generate(  # type: ignore[operator]
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stopped]),  # type: ignore[list-item]
                pad_token_id=pad,
                eos_token_id=sorted(self.ends) or None,
                **self.sampling.to_generate(),
            )
        except BaseException as error:  # handed to the reader, who waits for the streamer in another thread
            self._error = error
            streamer.text_queue.put(streamer.stop_signal)
            return
        self.ids = output[0, len(self.prompt) :].tolist()
        self.ended = bool(self.ids) and self.ids[-1] in self.ends


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of an answer without the white space that it begins with.

    Many a tokenizer writes a space before a word, also before the first one after the mark of an answer.
    """
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        begun = begun or bool(text)
        yield text


class Chat:
    """A conversation with a model, or completions by one that has no chat template."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", sampling: Sampling, system: str = ""
    ) -> None:
        """Begin with a system text, or none.

        Raises:
            InputError: a system text for a model without a chat template.
        """
        ensure(
            tokenizer.chat_template or not system,
            f"system={system}: this model has no chat template, so it cannot be told anything. Leave system out.",
        )
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.encoder = ConversationEncoder(tokenizer) if tokenizer.chat_template else None
        self.end = self.encoder.end_of_answer() if self.encoder else None
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []
        self.dropped_turns = 0

    def reset(self) -> None:
        """Forget the conversation, but not the system text."""
        self.turns, self.dropped_turns = [], 0

    def answer(self, text: str) -> Reply:
        """Return the answer to a message, about to be written; `keep` it when it is.

        The oldest turns are left out when the context has no room for them and for an answer.

        Raises:
            InputError: the message alone is too long, or holds a special token that cannot be kept apart.
        """
        context = int(getattr(self.model.config, "max_position_embeddings", 2048))
        room = min(self.sampling.max_new_tokens, context // 2)
        turns = self.turns
        ids = self._prompt(turns, text)
        while len(ids) + room > context and turns:
            turns = turns[2:]
            ids = self._prompt(turns, text)
        ensure(
            len(ids) + room <= context,
            f"message: {len(ids)} tokens, and the model's context of {context} must also hold {room} of the answer. "
            "Shorten the message.",
        )
        self.dropped_turns += (len(self.turns) - len(turns)) // 2
        self.turns = turns
        room = min(self.sampling.max_new_tokens, context - len(ids))
        sampling = Sampling(**{**vars(self.sampling), "max_new_tokens": room})
        return Reply(self.model, self.tokenizer, ids, sampling, self.end, is_answer=self.encoder is not None)

    def _prompt(self, turns: list[Message], text: str) -> list[int]:
        if self.encoder is None:
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return start + encode_texts(self.tokenizer, [compose(text)])[0]
        messages = [*self.system, *turns, {"role": "user", "content": text}]
        return self.encoder.encode(messages, for_answer=True).ids

    def keep(self, text: str, answer: str) -> None:
        """Add a message and its answer to the conversation; completions keep nothing."""
        if self.encoder is not None:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.strip()}]
