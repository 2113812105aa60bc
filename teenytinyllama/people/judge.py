"""Judge: a chat model of this machine that judges the same pairs as people do, in both orders.

Its votes are in `judge_votes.jsonl` and never among those of people. It is asked for one letter, and the likelier of
the two counts, so that a model which cannot keep to a form still judges. How much the order decides is reported: a
judge that mostly takes the first answer says nothing.
"""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..chat.template import ConversationEncoder
from ..checks import counted, ensure
from ..disk import replace_file
from ..model_files import check_config, check_weights, is_adapter, locate
from ..models import from_pretrained, load_tokenizer, place_for_answers
from ..progress import progress
from ..stage_folder import utc_now, write_json
from .study import Study
from .votes import JUDGE_VOTES_NAME, MOST_VOTER_CHARACTERS, Vote, new_vote_id

JUDGE_NAME = "judge.json"
_QUESTION = (
    "Duas respostas ao mesmo pedido:\n\nPedido: {prompt}\n\nResposta A: {left}\n\nResposta B: {right}\n\n"
    "Qual das duas é melhor? Responda só com a letra A ou B."
)


def check_judge(name: str) -> None:
    """Check what can be known of a judge before anything is answered: that it is there, and can be asked.

    Raises:
        InputError: no such model, a GGUF file, one without a chat template, or one without letters.
    """
    ensure(Path(name).suffix != ".gguf", f"judge={name}: is a GGUF file. Give the model that it was made from.")
    source = locate(name, None)
    ensure(not is_adapter(source), f"judge={name}: is an adapter. Give a whole model: ttl merge {name} FOLDER")
    check_config(source)
    check_weights(source)
    tokenizer = load_tokenizer("judge", name)
    ensure(tokenizer.chat_template, f"judge={name}: has no chat template, so it cannot be asked. Give a chat model.")
    ConversationEncoder(tokenizer)
    letter_ids(tokenizer, name)


def judge_study(study: Study, name: str, use_cpu: bool) -> str:
    """Let a model judge every pair of different answers in both orders, write its votes, and say how it judged.

    Args:
        study: the comparison.
        name: of the model: a folder or a Hub repository.
        use_cpu: judge on the processor, also where there is a GPU.

    Returns:
        What was found, for the terminal.

    Raises:
        InputError: see `check_judge`; or no pair of different answers.
    """
    check_judge(name)
    loaded, tokenizer = from_pretrained(name)
    model, note = place_for_answers(loaded, use_cpu)
    encoder = ConversationEncoder(tokenizer)
    letters = letter_ids(tokenizer, name)
    pairs = [(prompt, one, other) for prompt in study.prompts for one, other in itertools.combinations(study.systems, 2)
             if not study.are_equal(prompt, one, other)]  # fmt: skip
    ensure(pairs, f"judge={name}: all systems gave the same answers; there is nothing to judge.")
    votes: list[Vote] = []
    left_out = 0
    for prompt, one, other in progress(pairs, "judging", "pairs"):
        for left, right in ((one, other), (other, one)):
            text = _QUESTION.format(prompt=study.prompts[prompt], left=study.answers[left][prompt],
                                    right=study.answers[right][prompt])  # fmt: skip
            ids = encoder.encode([{"role": "user", "content": text}], for_answer=True).ids
            if len(ids) >= int(model.config.max_position_embeddings):
                left_out += 1
                continue
            first, second = _letter_logits(model, ids, letters)
            votes.append(_as_vote(study, name, prompt, left, right, "left" if first > second else "right"))
    replace_file(
        study.folder / JUDGE_VOTES_NAME,
        "".join(json.dumps(vars(vote), ensure_ascii=False) + "\n" for vote in votes).encode(),
    )
    found = describe_judge(votes, name, left_out)
    write_json(study.folder / JUDGE_NAME, {**found, "note": note})
    return format_judge(found)


def letter_ids(tokenizer: Any, name: str) -> list[int]:
    """Return the tokens that an answer of one letter, A or B, begins with.

    Raises:
        InputError: the letters have no tokens of their own, so that every answer would seem to be the same.
    """
    rows = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    found = [int(ids[-1]) for ids in rows if ids]
    ensure(
        len(set(found)) == 2,
        f"judge={name}: its tokenizer has no tokens of their own for A and B. Give another model.",
    )
    return found


def _letter_logits(model: Any, ids: list[int], letters: list[int]) -> tuple[float, float]:
    """Return the logits of the two letters as the first token of the answer."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
    return float(logits[letters[0]]), float(logits[letters[1]])


def _as_vote(study: Study, name: str, prompt: str, left: str, right: str, choice: str) -> Vote:
    return Vote(
        vote=new_vote_id(), time=utc_now(), voter=Path(name).name[-MOST_VOTER_CHARACTERS:] or "judge", prompt=prompt,
        prompts_sha256=study.prompts_sha256, left=left, right=right, choice=choice,
        answers={"left": study.answer_sha256(left, prompt), "right": study.answer_sha256(right, prompt)},
    )  # fmt: skip


def describe_judge(votes: list[Vote], name: str, left_out: int) -> dict[str, Any]:
    """Return what a judge's votes say: how often the order decided, and who won where it did not.

    Args:
        votes: of the judge, each pair in both orders where both fit.
        name: of the model.
        left_out: orders that did not fit into its context.
    """
    by_pair: dict[tuple[str, frozenset[str]], list[str]] = {}
    for vote in votes:
        winner = vote.left if vote.choice == "left" else vote.right
        by_pair.setdefault((vote.prompt, vote.systems), []).append(winner)
    both = [(pair, won) for pair, won in by_pair.items() if len(won) == 2]
    steady = [(pair, won[0]) for pair, won in both if won[0] == won[1]]
    wins, played = Counter(winner for _, winner in steady), Counter(name for (_, pair), _ in steady for name in pair)
    return {
        "judge": name,
        "orders": len(votes),
        "orders_left_out": left_out,
        "first_chosen": sum(vote.choice == "left" for vote in votes) / len(votes) if votes else None,
        "pairs": len(both),
        "pairs_decided_by_the_order": len(both) - len(steady),
        "wins": {name: {"won": wins[name], "of": played[name]} for name in sorted(played)},
    }


def format_judge(found: dict[str, Any]) -> str:
    """Return what a judge found, in lines."""
    if not found["orders"]:
        return f"judge      {found['judge']}: no pair of answers fits into its context"
    wins = ", ".join(f"{name} {one['won']} of {one['of']}" for name, one in found["wins"].items()) or "no pair"
    return (
        f"judge      {found['judge']}: {counted(found['pairs'], 'pair')} in both orders; it chose the first answer in "
        f"{found['first_chosen']:.0%} of the orders, and the order alone decided "
        f"{found['pairs_decided_by_the_order']}. The others: {wins}. This is a model's opinion, not a person's."
    )
