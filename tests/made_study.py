"""Folders of comparisons with made-up answers, for the tests of votes and of their page."""

import hashlib
import json
from pathlib import Path
from typing import Any

from teenytinyllama.people.study import Study
from teenytinyllama.people.votes import Vote, new_vote_id
from teenytinyllama.stage_folder import sha256_file

MARKUP = '<img src=x onerror="pwned=1"><script>pwned=1</script> **a** ${pwned=1}\n  segunda linha'
KINDS = ("letter", "story", "list")
SYSTEMS = ("lhama-secreta-160m", "mini-oculta-base", "pessoa-escondida")


def hexed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return sha256_file(path)


def write_study(
    folder: Path, prompts: int = 12, systems: tuple[str, ...] = SYSTEMS, kind: str = "chat", **answers: dict[int, str]
) -> Path:
    """Write a study; `answers` replaces those of a system (with _ for -) by the prompts' numbers."""
    rows = [
        {"id": f"p-{number:02}", "kind": KINDS[number % 3], "prompt": f"Escreva a carta número {number}."}
        for number in range(prompts)
    ]
    described = []
    for place, name in enumerate(systems):
        own = answers.get(name.replace("-", "_"), {})
        texts = [own.get(number, f"Resposta {chr(97 + place)} ao pedido {number}.") for number in range(prompts)]
        given = [{"id": row["id"], "prompt_sha256": hexed(row["prompt"]), "answer": text, "tokens": 5, "ended": True}
                 for row, text in zip(rows, texts, strict=True)]  # fmt: skip
        sha256 = write_lines(folder / "answers" / f"{name}.jsonl", given)
        described.append({"name": name, "source": name, "sha256": sha256, "human": False, "energy_kwh": None,
                          "tokens": 60})  # fmt: skip
    content = {"format": 1, "seed": 0, "prompts_sha256": write_lines(folder / "prompts.jsonl", rows), "kind": kind,
               "systems": described}  # fmt: skip
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def a_vote(prompts_sha256: str = "a" * 64, **changes: Any) -> Vote:
    content: dict[str, Any] = {
        "vote": new_vote_id(), "time": "2026-01-31T12:00:00Z", "voter": "Ana", "prompt": "p-00",
        "prompts_sha256": prompts_sha256, "left": SYSTEMS[0], "right": SYSTEMS[1], "choice": "left",
        "answers": {"left": "b" * 64, "right": "c" * 64},
    }  # fmt: skip
    return Vote(**content | changes)


def vote_on(study: Study, left: str, right: str, **changes: Any) -> Vote:
    """Return a vote on two answers of a study, to its first prompt unless another is given."""
    prompt = changes.pop("prompt", next(iter(study.prompts)))
    answers = {"left": study.answer_sha256(left, prompt), "right": study.answer_sha256(right, prompt)}
    return a_vote(study.prompts_sha256, prompt=prompt, left=left, right=right, **{"answers": answers, **changes})
