"""A folder of `ttl corpus` as a dataset: its shards, and what its passport says, for card and `dataset.json`."""

import json
from pathlib import Path
from typing import Any

from ..checks import ensure, hub_license
from ..corpus.passport import render_markdown
from ..corpus.provenance import PASSPORT_NAME, describe_corpus, read_passport
from ..corpus.text_statistics import PEOPLES
from ..data.input_files import list_data_files
from ..stage_folder import find_manifest, sha256_file
from .safety import UploadFile, inside
from .wording import without_place

_MOST_REASONS = 3  # of a source's drops that its line in the card names


def corpus_inputs(folder: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the inputs of a folder of `ttl corpus`, the settings to read them with, and facts for the card.

    Raises:
        InputError: a file is a link to elsewhere, or not the one that the passport describes.
    """
    passport = read_passport(folder)
    ensure(passport is not None, f"source={folder}: has no {PASSPORT_NAME}. Run the same `ttl corpus` again first.")
    assert passport is not None
    splits = {split: folder / split for split in ("train", "validation") if (folder / split).is_dir()}
    files = [path for place in splits.values() for path in list_data_files(place, (".parquet",))]
    found = {str(path.relative_to(folder)): sha256_file(inside(folder, path)) for path in files}
    ensure(
        found == passport["files"],
        f"source={folder}: its parquet files are not those that {PASSPORT_NAME} describes. Run `ttl corpus` again, or "
        "publish the files themselves.",
    )
    settings: dict[str, Any] = {"validation_fraction": 0.0}
    if "validation" in splits:
        settings["validation_inputs"] = [str(splits["validation"])]
    facts = {"passport": passport_facts(folder, passport), "built": find_manifest(folder)}
    return [str(splits["train"])], settings, facts


def passport_facts(folder: Path, passport: dict[str, Any]) -> dict[str, Any]:
    """Return what a card tells of a passport.

    Returns:
        `describe_corpus`, with `read`, `kept`, `megabytes_read` and most frequent `reasons` of each source; the shares
        of registers and topics in the tokens; professions and groups by number of mentions; steps that were left out;
        `public`, the passport without places of the machine that made it.
    """
    facts, whole = describe_corpus(folder, passport), passport["whole"]
    for name, source in passport["sources"].items():
        read = source["steps"].get("read", {"documents_in": 0, "bytes_in": 0})
        drops = [(number, step, reason) for step, count in source["steps"].items()
                 for reason, number in count["reasons"].items()]  # fmt: skip
        facts["sources"].setdefault(name, {key: source[key] for key in ("license", "url", "revision", "register")})
        facts["sources"][name] |= {
            "read": read["documents_in"], "megabytes_read": read["bytes_in"] / 1e6,
            "kept": source["statistics"]["documents"], "megabytes": source["statistics"]["bytes"] / 1e6,
            "reasons": sorted(drops, reverse=True)[:_MOST_REASONS],
        }  # fmt: skip
    total = max(1, whole["tokens"])
    balance = {kind: sorted(((100 * tokens / total, name) for name, tokens in counts.items()), reverse=True)
               for kind, counts in (("registers", passport["registers"]), ("topics", whole["topics"]))}  # fmt: skip
    professions = sorted(whole["professions"].items(), key=lambda item: -sum(item[1].values()))
    groups = sorted(whole["groups"].items(), key=lambda item: -item[1])
    public = {**passport, "sources": {
        name: {**source, "inputs": list(map(without_place, source["inputs"]))} for name, source in
        passport["sources"].items()
    }}  # fmt: skip
    return {
        **facts, **balance, "terms": passport["licence"]["terms"], "left_out": passport["left_out"],
        "professions": [(name, *(counts.get(who, 0) for who in ("women", "men", "not said")))
                        for name, counts in professions],
        "groups": [(name, name in PEOPLES, number, whole["group_documents"].get(name, 0),
                    whole["group_toxic"].get(name, 0)) for name, number in groups],
        "public": public,
    }  # fmt: skip


def license_of_whole(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the key of a card's metadata for a corpus that can be given under one of the Hub's licences, else none."""
    passport = facts.get("passport")
    name = hub_license(passport["licence"]) if passport else None
    return {"license": name} if name not in (None, "other", "unknown") else {}


def passport_files(facts: dict[str, Any]) -> list[UploadFile]:
    """Return the passport as it is published: numbers and tables.

    The page stays at home: it shows documents that were dropped, as toxic or before personal data was masked.
    """
    if "passport" not in facts:
        return []
    public = facts["passport"]["public"]
    return [UploadFile(PASSPORT_NAME, json.dumps(public, ensure_ascii=False, indent=2).encode()),
            UploadFile("passport.md", render_markdown(public).encode())]  # fmt: skip
