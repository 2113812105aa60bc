"""Generation: the texts that a model writes, several in one batch or one word by word, and the chat with its turns."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..checks import ensure
from ..tokenizer.encode import compose, encode_texts
from .template import ConversationEncoder, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LARGEST_SEED = 2**31 - 1  # which every library takes
WRITING_THREAD = "writing an answer"  # the name of the thread in which a model writes a `Reply`


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
            0.01 <= self.repetition_penalty <= 100,  # others overflow, too
            f"repetition_penalty={self.repetition_penalty}: must lie in [0.01, 100]. 1 is none.",
        )
        ensure(0 <= self.seed <= LARGEST_SEED, f"seed={self.seed}: must lie between 0 and {LARGEST_SEED}.")

    def to_generate(self) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`."""
        same: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {**same, **_GREEDY}
        return {**same, "do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


_TOP_K = 50
_GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}


# A cache of fixed size with a compiled step pays on a GPU from so many steps on, a step being one more token of every
# text of a batch. Source: docs/gpu.md, one H200: with 160m a step takes 11.2 ms with the usual cache and 2.6 compiled,
# and compiling takes 17 to 23 s; with 460m 21.3 and 3.7 ms, and 28 to 40 s. On a processor it does not pay: a step of
# 160m got 16 ms shorter, of 238, after more than four minutes of compiling (docs/export.md).
_COMPILED_PAYS_FROM_STEPS = 2_600
_MOST_CACHE_SHARE = 0.25  # of the GPU's free memory


def choose_cache(model: "PreTrainedModel", batch: int, steps: int) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` for the fastest cache that pays.

    The fixed cache is as long as the model's context, whatever the texts' lengths are: a batch size is compiled for
    once. Texts of a chat, samples of a training and single batches always have too few steps.

    Args:
        model: on its device.
        batch: texts written at once.
        steps: decoding steps that are still to come at this batch size, over all calls.
    """
    if model.device.type != "cuda" or steps < _COMPILED_PAYS_FROM_STEPS:
        return cache_arguments("dynamic", model.device.type)
    import torch
    from transformers import GenerationConfig

    context = int(getattr(model.config, "max_position_embeddings", 0))
    needed = batch * context * _cache_bytes_per_token(model.config, model.dtype.itemsize)
    free, _ = torch.cuda.mem_get_info(model.device)
    if not 0 < needed <= free * _MOST_CACHE_SHARE or not hasattr(GenerationConfig(), "max_cache_len"):
        return cache_arguments("dynamic", "cuda")
    return {**cache_arguments("compiled", "cuda"), "max_cache_len": context}


def _cache_bytes_per_token(config: Any, item_bytes: int) -> int:
    """Return the bytes of the keys and values of one token in all layers; 0 for a model that does not say its shape."""
    heads: Any = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // (
        getattr(config, "num_attention_heads", 0) or 1
    )
    return 2 * int(getattr(config, "num_hidden_layers", 0)) * int(heads) * int(width) * item_bytes


def cache_arguments(cache: str, device: str) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` that choose its cache.

    Args:
        cache: dynamic: grows with the text; static: of a fixed size; graphs: static, and the steps are replayed as CUDA
            graphs; compiled: static, and the step is compiled.
        device: type of the model's device: transformers compiles on a processor only if it is told to.
    """
    if cache == "dynamic":
        return {}
    if cache == "static":
        return {"cache_implementation": "static", "disable_compile": True}
    from transformers import CompileConfig

    if cache == "graphs":
        config = CompileConfig(backend="cudagraphs", mode="default")
    else:
        config = CompileConfig() if device == "cuda" else CompileConfig(mode="default")
        config._compile_all_devices = True  # type: ignore[assignment]
    return {"cache_implementation": "static", "compile_config": config}


@dataclass(frozen=True)
class Continuation:
    """What a model wrote behind a prompt.

    Attributes:
        ids: the tokens, with the end token if it wrote one.
        ended: whether it wrote an end token; otherwise the text was cut.
    """

    ids: list[int]
    ended: bool


def generate_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[str],
    new_tokens: int,
    seed: int,
    temperature: float = 0.8,
    synced_gpus: bool | None = None,
) -> list[str]:
    """Return each prompt with its continuation by the model; prompts are encoded as plain text after `<s>`."""
    rows = encode_prompts(tokenizer, prompts)
    written = generate_ids(model, tokenizer, rows, new_tokens, seed, temperature, synced_gpus=synced_gpus)
    texts = (row + continuation.ids for row, continuation in zip(rows, written, strict=True))
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in texts]


def encode_prompts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the tokens of texts that a model is to go on with: `<s>`, if the tokenizer has it, and the plain text."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [start + ids for ids in encode_texts(tokenizer, [compose(text) for text in texts])]


def generate_ids(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[list[int]],
    new_tokens: int,
    seed: int,
    temperature: float = 0.8,
    repetition_penalty: float = 1.0,
    synced_gpus: bool | None = None,
    calls: int = 0,
) -> list[Continuation]:
    """Return what a model writes behind each of several prompts, all in one batch, which takes about as long as one.

    Args:
        model: the model.
        tokenizer: of the model; its padding token, or else its end token, fills shorter rows on the left.
        rows: the prompts' token ids, of any lengths.
        new_tokens: most tokens written; the model's context may allow fewer.
        seed: of the sampling.
        temperature: of the sampling from the 50 likeliest tokens; 0 for the likeliest token each time.
        repetition_penalty: above 1, tokens that were there before get less likely.
        synced_gpus: whether all ranks generate together, as under ZeRO 3.
        calls: how many such batches are to come, this one included, by which the cache is chosen (`choose_cache`); 0:
            always the usual cache, as during a training, which must not change by its samples.
    """
    if not rows:
        return []
    room = model.config.max_position_embeddings - max(map(len, rows))
    sampling = {"do_sample": True, "temperature": temperature, "top_k": _TOP_K} if temperature else _GREEDY
    most = max(1, min(new_tokens, room))
    arguments = {
        **sampling,
        "max_new_tokens": most,
        "repetition_penalty": repetition_penalty,
        "synced_gpus": synced_gpus,
        **choose_cache(model, len(rows), calls * most),
    }
    return _generate(model, tokenizer, rows, seed, end_token_ids(model, tokenizer), arguments)


def end_token_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that end a text, by the model's generation config or else by the tokenizer."""
    config = model.generation_config
    ends = tokenizer.eos_token_id if config is None or config.eos_token_id is None else config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[list[int]],
    seed: int,
    ends: set[int],
    arguments: dict[str, Any],
) -> list[Continuation]:
    """Return the continuations of a batch of prompts: the one call of transformers' `generate`.

    Randomness comes from `seed` alone, and the global random state is left as it was: sampling during a training does
    not change the training.

    Args:
        model: the model.
        tokenizer: of the model.
        rows: the prompts' token ids; shorter ones are padded on the left.
        seed: of the sampling.
        ends: tokens that end a text.
        arguments: further ones of `generate`.
    """
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, rows))
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    generator: Any = model  # transformers types `generate` as a tensor
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        output = generator.generate(
            input_ids, attention_mask=mask, pad_token_id=pad, eos_token_id=sorted(ends) or None, **arguments
        )
    return [_until_end(ids[longest:].tolist(), ends) for ids in output]


def _until_end(ids: list[int], ends: set[int]) -> Continuation:
    """Return a continuation up to its first end token, behind which there is padding."""
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), None)
    return Continuation(ids[:length], length is not None)


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
        thread = threading.Thread(target=self._write, args=(streamer,), name=WRITING_THREAD, daemon=True)
        thread.start()
        try:
            yield from without_leading_space(streamer) if self.is_answer else streamer
        finally:  # also when nobody reads on
            self._stop.set()
            thread.join()
        if self._error is not None:
            raise self._error

    def _write(self, streamer: Any) -> None:
        """Let the model write into the streamer, in a thread of its own, until it ends or `_stop` is set."""
        import torch
        from transformers import StoppingCriteriaList

        def stopped(input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)

        arguments = {
            **self.sampling.to_generate(),
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([stopped]),  # type: ignore[list-item]
        }
        try:
            seed = self.sampling.seed
            (written,) = _generate(self.model, self.tokenizer, [self.prompt], seed, self.ends, arguments)
        except BaseException as error:  # handed to the reader, who waits for the streamer in another thread
            self._error = error
            streamer.text_queue.put(streamer.stop_signal)
            return
        self.ids, self.ended = written.ids, written.ended


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of an answer without the white space that it begins with.

    Many a tokenizer writes a space before a word, also before the first one after the mark of an answer.
    """
    begun = False
    for piece in pieces:
        text = piece if begun else piece.lstrip()
        begun = begun or bool(text)
        yield text


def context_of(config: Any) -> int:
    """Return how many tokens a prompt and its answer may have, by a model's config."""
    return int(getattr(config, "max_position_embeddings", 2048))


def room_for_answer(num_tokens: int, new_tokens: int, context: int) -> int:
    """Return how many tokens of an answer must have room behind a message: those asked for, at most half the context.

    Raises:
        InputError: the message leaves less.
    """
    room = min(new_tokens, context // 2)
    ensure(
        num_tokens + room <= context,
        f"message: {num_tokens} tokens, and the model's context of {context} must also hold {room} of the answer. "
        "Shorten the message.",
    )
    return room


def fit_message(
    tokenizer: "PreTrainedTokenizerBase",
    encoder: ConversationEncoder | None,
    context: int,
    sampling: Sampling,
    text: str,
    turns: Sequence[Message] = (),
    system: Sequence[Message] = (),
) -> tuple[list[Message], list[int]]:
    """Return the turns before a message that fit with it and an answer into the context, and all their tokens.

    The oldest turns are left out first. Without an encoder the text is one to be gone on with.

    Raises:
        InputError: the message alone is too long, is no token, or holds a special token that cannot be kept apart.
    """

    def encode(kept: list[Message]) -> list[int]:
        if encoder is None:
            return encode_prompts(tokenizer, [text])[0]
        return encoder.encode([*system, *kept, {"role": "user", "content": text}], for_answer=True).ids

    kept = list(turns)
    ids = encode(kept)
    while len(ids) + min(sampling.max_new_tokens, context // 2) > context and kept:
        kept = kept[2:]
        ids = encode(kept)
    ensure(ids, "message: is no token to this tokenizer. Write a message, or copy the model's tokenizer again.")
    room_for_answer(len(ids), sampling.max_new_tokens, context)
    return kept, ids


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
            InputError: the message alone is too long, is no token, or holds a special token that cannot be kept apart.
        """
        context = context_of(self.model.config)
        turns, ids = fit_message(self.tokenizer, self.encoder, context, self.sampling, text, self.turns, self.system)
        self.dropped_turns += (len(self.turns) - len(turns)) // 2
        self.turns = turns
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, context - len(ids)))
        return Reply(self.model, self.tokenizer, ids, sampling, self.end, is_answer=self.encoder is not None)

    def keep(self, text: str, answer: str) -> None:
        """Add a message and its answer to the conversation; completions keep nothing."""
        if self.encoder is not None:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.strip()}]
