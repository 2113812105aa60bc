"""What a comparison gives on: a dataset with a card, its page as a Space folder, and what a model's card says of it.

Nicknames are replaced by p1, p2 and so on, in votes and figures alike; comments of voters stay at home unless they are
asked for, because people write names into them. No nickname and no comment goes over into a model's card: a card is
public, and those who voted were not asked for more than their votes.
"""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..checks import InputError, counted, ensure, ensure_file, ensure_folder
from ..disk import scratch_folder
from ..publishing.safety import Upload, UploadFile, record_file
from ..publishing.wording import card_environment, card_languages, one_line, without_places
from ..stage_folder import (
    CARD_NAME,
    PEOPLE_NAME,
    RESULTS_NAME,
    RESULTS_TABLE_NAME,
    __version__,
    find_manifest,
    parse_record,
    write_json,
)
from .study import ANSWERS_FOLDER, PROMPTS_NAME, STUDY_NAME, Study, read_study
from .study_report import COMPARISON_PLOT_NAME, write_report
from .votes import VOTES_NAME, Vote, VoteFile

ANSWERS_NAME, RECORD_NAME = "answers.jsonl", "comparison.json"
_SPACE_APP = '''"""The page of a blind comparison; votes lie in `/data/comparison`, or without it beside this file."""

import os
import shutil

import uvicorn

from teenytinyllama.people.voting import make_voting_app

folder, disk = "comparison", os.environ.get("VOTES_DISK", "/data")
if os.access(disk, os.W_OK):  # what is there stays when the Space starts again
    folder = shutil.copytree(folder, os.path.join(disk, folder), dirs_exist_ok=True)
name = os.environ.get("SPACE_HOST", "127.0.0.1")  # the Hub says under which name the Space is asked for
uvicorn.run(make_voting_app(folder, host=name, framed=True), host="0.0.0.0", port=7860, log_level="warning")
'''
_DOCKERFILE = """FROM python:3.12-slim
RUN useradd -m -u 1000 user
USER user
ENV PATH=/home/user/.local/bin:$PATH
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY --chown=user . .
CMD ["python", "app.py"]
"""
_SPACE_CARD = """---
title: {title}
sdk: docker
app_port: 7860
short_description: Compare respostas sem saber de quem são
---

Uma comparação às cegas entre {systems} modelos de linguagem em português, com {prompts} pedidos, feita com
[teenytinyllama](https://pypi.org/project/teenytinyllama/) {version}.

O disco de um Space é apagado quando ele reinicia, e os votos com ele. Antes de convidar alguém, ligue a ele um bucket
(privado: os votos trazem apelidos e comentários), em `/data`:

```text
hf buckets create owner/votos --private
hf spaces volumes set owner/name -v hf://buckets/owner/votos:/data
```

Depois, junte os votos aos da comparação de onde o Space veio:

```text
hf buckets cp hf://buckets/owner/votos/comparison/votes.jsonl votos.jsonl
ttl compare --output_dir comparison --merge votos.jsonl --serve false
```
"""


def anonymous(votes: list[Vote], comments: bool = False) -> list[Vote]:
    """Return votes with p1, p2 … in place of nicknames, in the order in which people came; and without comments."""
    names: dict[str, str] = {}
    for vote in votes:
        names.setdefault(vote.voter, f"p{len(names) + 1}")
    return [replace(vote, voter=names[vote.voter], comment=vote.comment if comments else "") for vote in votes]


def answer_rows(study: Study) -> list[dict[str, Any]]:
    """Return a row for each answer: prompt, kind, system and text."""
    return [
        {"id": prompt, "kind": study.kinds[prompt], "prompt": text, "system": system,
         "answer": study.answers[system][prompt]}
        for prompt, text in study.prompts.items() for system in study.systems
    ]  # fmt: skip


def vote_rows(study: Study, votes: list[Vote]) -> list[dict[str, Any]]:
    """Return a row for each vote; its marks are two columns, so that every row has the same ones."""
    rows = []
    for vote in votes:
        row = {key: value for key, value in asdict(vote).items() if key not in ("marks", "answers", "prompts_sha256")}
        row |= {"kind": study.kinds[vote.prompt], "marks_left": vote.marks["left"], "marks_right": vote.marks["right"]}
        rows.append(row)
    return rows


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def study_upload(folder: Path, repository: str, license: str, language: str | None = None) -> Upload:
    """Return the upload of a comparison: answers and votes as two configurations of a dataset, figures and card.

    Args:
        folder: of `ttl compare`.
        repository: `owner/name`; empty for a folder.
        license: of answers and votes.
        language: of the card: en, pt or both.

    Raises:
        InputError: no comparison, or nobody has voted.
    """
    study = read_study(folder)
    votes = anonymous(VoteFile(folder / VOTES_NAME, study.prompts_sha256).read())
    ensure(votes, f"{folder}: nobody has voted yet, so there is nothing to share. Let people vote: `ttl compare`.")
    described = without_places(parse_record((folder / STUDY_NAME).read_bytes()))
    with scratch_folder() as scratch:  # figures of the same votes, with p1 in place of a nickname
        copy = scratch / "study"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(VOTES_NAME, "*.lock", "energy", "offers.json"))
        file = VoteFile(copy / VOTES_NAME, study.prompts_sha256)
        for vote in votes:
            file.append(vote)
        text = write_report(copy).read_bytes()
        results = without_places(parse_record((copy / RESULTS_NAME).read_bytes()))
        plot = (copy / COMPARISON_PLOT_NAME).read_bytes()
    card = render_study_card(results, described, repository, license, language)
    files = [
        UploadFile(CARD_NAME, card.encode()),
        UploadFile(VOTES_NAME, _lines(vote_rows(study, votes))),
        UploadFile(ANSWERS_NAME, _lines(answer_rows(study))),
        UploadFile(PROMPTS_NAME, (folder / PROMPTS_NAME).read_bytes()),
        UploadFile(RESULTS_NAME, json.dumps(results, ensure_ascii=False, indent=1).encode()),
        UploadFile(RESULTS_TABLE_NAME, text),
        UploadFile(COMPARISON_PLOT_NAME, plot),
    ]
    more = {key: described.get(key) for key in ("systems", "kind", "seed", "sampling")}
    record = record_file(RECORD_NAME, {"prompts_sha256": study.prompts_sha256}, [file.path for file in files], more)
    message = f"comparison: {counted(len(votes), 'vote')} on {counted(len(study.systems), 'system')}"
    return Upload(repository, "dataset", "main", (*files, record), message, record=RECORD_NAME)


def render_study_card(
    results: dict[str, Any], described: dict[str, Any], repository: str, license: str, language: str | None
) -> str:
    """Return the card of a comparison: YAML front matter, and its figures in one language or both.

    Args:
        results: of `results.json`, with p1 in place of nicknames.
        described: of `study.json`.
        repository: `owner/name` that the example loads; empty: not known yet.
        license: of the Hub's licences.
        language: en, pt or both.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        language="pt",
        license=license,
        pretty_name="Comparação às cegas de modelos em português",
        tags=["teenytinyllama", "human-feedback", "portuguese"],
        annotations_creators=["crowdsourced"],
        configs=[{"config_name": "votes", "data_files": VOTES_NAME, "default": True},
                 {"config_name": "answers", "data_files": ANSWERS_NAME}],
    )  # fmt: skip
    systems = [
        {"name": one["name"], "human": one.get("human"), "source": one.get("source") or "", **{
            part: [100 * one[part][key] for key in ("value", "low", "high")] for part in ("share", "both_bad")}}
        for one in results["systems"]
    ]  # fmt: skip
    bodies = [
        card_environment(name).get_template(f"comparison_card.{name}.md.jinja").render(
            name=one_line(repository.rsplit("/", 1)[-1] or "comparison"), repository=repository, systems=systems,
            votes=results["votes"], people=results["people"], prompts=results["prompts"], repeats=results["repeats"],
            random=len(results["looks_random"]), kind=described["kind"], version=__version__,
        )
        for name in card_languages(language)
    ]  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n---\n\n".join(bodies)


def check_space(folder: Path) -> None:
    """Check that a Space can be written into a folder.

    Raises:
        InputError: it cannot be made, or holds something.
    """
    ensure_folder("space_dir", folder)
    ensure(not folder.exists() or not any(folder.iterdir()), f"space_dir={folder}: is not empty. Give a new folder.")


def write_space(study: Study, folder: Path) -> Path:
    """Write the page of a comparison as a Space, into a new folder: nobody's votes go along, and no model.

    Raises:
        InputError: the folder holds something.
    """
    check_space(folder)
    target = folder / "comparison"
    (target / ANSWERS_FOLDER).mkdir(parents=True)
    for name in (STUDY_NAME, PROMPTS_NAME, *(f"{ANSWERS_FOLDER}/{system}.jsonl" for system in study.systems)):
        shutil.copyfile(study.folder / name, target / name)
    described = without_places(parse_record((target / STUDY_NAME).read_bytes()))
    (target / STUDY_NAME).write_text(json.dumps(described, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    texts = {
        "app.py": _SPACE_APP,
        "Dockerfile": _DOCKERFILE,
        "requirements.txt": f"teenytinyllama[people]=={__version__}\n",
        "README.md": _SPACE_CARD.format(
            title="Comparação às cegas", systems=len(study.systems), prompts=len(study.prompts), version=__version__
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


_FIX = "Write it again with `ttl card RUN --comparison FOLDER`."
_SHARE = {"value": float, "low": float, "high": float, "votes": int}


def facts_for_card(folder: str | Path) -> dict[str, Any]:
    """Return what a card may say of a comparison, without nicknames.

    Returns:
        `votes`, `people`, `prompts` and `looks_random` (numbers), `alpha` (None if unknown) and `systems`, the
        strongest first, each with `name`, `source`, `share` of wins and `both_bad`; see `study_report`.

    Raises:
        InputError: the folder has no report, or a damaged one.
    """
    fix = "Write the report with `ttl compare` first."
    path = ensure_file("comparison", Path(folder) / RESULTS_NAME, fix)
    try:
        results = parse_record(path.read_bytes())
        return {
            "format": 1,
            **{key: results[key] for key in ("votes", "people", "prompts")},
            "looks_random": len(results["looks_random"]),
            "alpha": results["agreement"]["alpha"],
            "systems": [
                {"name": system["name"], "source": Path(str(system["source"])).name,
                 **{key: {part: system[key][part] for part in _SHARE} for key in ("share", "both_bad")}}
                for system in results["systems"]
            ],
        }  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no report of a comparison ({error!r}). {fix}") from error


def take_votes(run: str | Path, comparison: str | None, check: bool = False) -> None:
    """Write what a card says of a comparison into the folder of a run that took part in it; nothing for None.

    Args:
        run: folder of a finished run.
        comparison: folder of `ttl compare`.
        check: whether the card is only to be checked: then nothing may be written.

    Raises:
        InputError: no finished run, no report, a run that is none of the comparison's systems, or a check.
    """
    if comparison is None:
        return
    ensure(not check, f"comparison={comparison}: a check writes nothing. Leave out comparison or check.")
    run, field = Path(run), f"comparison={comparison}"
    ensure(find_manifest(run) is not None, f"run={run}: is no finished run. Give the output_dir of `ttl pretrain`.")
    facts = facts_for_card(comparison)
    sources = {
        system["name"]: str(system["source"])
        for system in parse_record((Path(comparison) / RESULTS_NAME).read_bytes())["systems"]
    }
    own = [name for name, source in sources.items() if Path(source).resolve() == run.resolve()]
    ensure(own, f"{field}: none of its systems with votes is {run} ({', '.join(sources.values())}). Give its folder.")
    write_json(run / PEOPLE_NAME, {**facts, "system": own[0]})


def read_votes(run: Path) -> dict[str, Any] | None:
    """Return what `take_votes` wrote into a run's folder, or None.

    Raises:
        InputError: the file is damaged.
    """
    path = run / PEOPLE_NAME
    if not path.is_file():
        return None
    try:
        found = parse_record(path.read_bytes())
        for key in ("votes", "people", "prompts", "looks_random"):
            _ensure_type(found[key], int, key)
        if found["alpha"] is not None:
            _ensure_type(found["alpha"], float, "alpha")
        names = [system["name"] for system in found["systems"]]
        _ensure_type(found["system"], str, "system")
        for system in found["systems"]:
            _ensure_type(system["name"], str, "name")
            for share in (system["share"], system["both_bad"]):
                for key, kind in _SHARE.items():
                    _ensure_type(share[key], kind, key)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}). {_FIX}") from error
    ensure(found["system"] in names, f"{path}: names {found['system']}, which is none of its systems. {_FIX}")
    return found


def _ensure_type(value: object, kind: type, key: str) -> None:
    is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    if not (isinstance(value, str) if kind is str else is_number):
        raise ValueError(f"{key}={value!r}")
