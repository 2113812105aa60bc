"""Exported files for others: their card, the files for Ollama, and what `ttl publish EXPORT` sends to a repository."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.generation import Sampling
from ..chat.template import TEMPLATE_PATH
from ..checks import ensure
from ..publishing.contents import present_files
from ..publishing.safety import Upload, UploadFile, inside, record_file
from ..publishing.wording import LANGUAGE_DETAILS, Language, Markdown, card_environment, card_languages, one_line
from ..stage_folder import CARD_NAME, MANIFEST_NAME, read_manifest, sha256_file
from ..tokenizer.files import EOS_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Files that Ollama reads: the first of a folder, the others of a repository on the Hub
# (`ollama run hf.co/owner/name`; huggingface.co/docs/hub/ollama, "Custom Chat Template and Parameters").
MODELFILE_NAME, OLLAMA_TEMPLATE_NAME, OLLAMA_PARAMETERS_NAME = "Modelfile", "template", "params"
# Our chat template in Go's language. Ollama fills it in once for each turn, a system text with the first one, cuts the
# last one off where the answer stands, and puts the start token in front by itself (github.com/ollama/ollama, docs).
_OLLAMA_CHAT = """{{ if .Prompt }}<instruction>{{ if .System }}{{ .System }}

{{ end }}{{ .Prompt }}</instruction>{{ end }}{{ .Response }}</s>"""

QUALITY_PLOT_NAME = "quality.png"
EXPORT_RECORD_NAME = "export.json"
_BESIDE = (MODELFILE_NAME, OLLAMA_TEMPLATE_NAME, OLLAMA_PARAMETERS_NAME)
_LIBRARIES = {"gguf": "gguf", "int8": "transformers", "safetensors": "transformers"}


def render_export_card(content: dict[str, Any], repository: str = "", language: str | None = None) -> str:
    """Return the card of exported files: YAML front matter and Markdown.

    Args:
        content: of `run.json`, whose numbers the card quotes.
        repository: `owner/name` that the examples name; empty: not known yet.
        language: en, pt or both.
    """
    from huggingface_hub import ModelCardData

    is_gguf = content["format"] == "gguf"
    data = ModelCardData(
        language="pt",
        language_details=LANGUAGE_DETAILS,
        license=content["license"],
        library_name=_LIBRARIES[content["format"]],
        pipeline_tag="text-generation",
        tags=["teenytinyllama", "llama", "portuguese", *(["gguf", "llama.cpp"] if is_gguf else []),
              *(["conversational"] if content["is_chat"] else [])],
        base_model=content["model"],
        base_model_relation="quantized" if content["model"] and content["format"] != "safetensors" else None,
    )  # fmt: skip
    bodies = [_body(content, repository, name) for name in card_languages(language)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n---\n\n".join(bodies)


def _body(content: dict[str, Any], repository: str, language: Language) -> str:
    rows = [
        {**row, "megabytes": row["bytes"] / 1e6, "written": row.get("tensors") or {}, "checks": row.get("checks"),
         "bits_per_byte": row.get("bits_per_byte"), "cloze": (row.get("signal") or {}).get("cloze_acc"),
         "speed": row.get("speed")}
        for row in content["files"]
    ]  # fmt: skip
    reference = content.get("reference")
    return card_environment(language).get_template(f"export_card.{language}.md.jinja").render(
        name=one_line(repository.rsplit("/", 1)[-1] or content["name"]),
        repository=Markdown(repository),
        files=rows,
        first=Markdown(rows[0]["path"]),
        tag=Markdown(re.sub(r".*-|\.gguf$", "", rows[0]["path"])),
        reference=reference,
        reference_cloze=((reference or {}).get("signal") or {}).get("cloze_acc"),
        bits=8,
        precision="float32",
        reference_type="F32",
        reference_megabytes=4 * content["parameters"] / 1e6,
        has_speed=all(row["speed"] for row in rows) and bool(reference),
        **{key: content[key] for key in ("format", "model", "parameters", "context", "is_chat", "package_version")
           if key in content},
    )  # fmt: skip


def export_upload(folder: Path, repository: str, revision: str = "main", language: str | None = None) -> Upload:
    """Return the upload of an export to a repository, or to a branch of its model's.

    Args:
        folder: of `ttl export`.
        repository: `owner/name`; empty for a folder.
        revision: the branch.
        language: of the card.

    Raises:
        InputError: the folder holds no complete export, or a file that has changed since.
    """
    content = read_manifest("EXPORT", folder, "export", "Give the folder of `ttl export`.")
    for row in content["files"]:
        for name, sha256 in {row["path"]: row["sha256"], **row.get("others", {})}.items():
            path = folder / name
            found = sha256_file(path) if path.is_file() else "no such file"
            ensure(
                found == sha256,
                f"{path}: has changed since the export (sha256 {found}, {MANIFEST_NAME} says {sha256}). Export the "
                "model again into a new folder.",
            )
    names = [name for row in content["files"] for name in (row["path"], *row.get("others", {}))]
    beside = [name for name in (*_BESIDE, QUALITY_PLOT_NAME) if (folder / name).is_file()]
    card = render_export_card(content, repository, language)
    files = [UploadFile(CARD_NAME, card.encode()), *present_files(folder, (MANIFEST_NAME,))]
    files += [UploadFile(name, inside(folder, folder / name)) for name in (*beside, *names)]
    identity = {"export_of": content["plan_sha256"]}
    record = record_file(EXPORT_RECORD_NAME, identity, [file.path for file in files], {"format": content["format"]})
    message = f"export: {content['format']} {', '.join(row['type'] for row in content['files'])}"
    return Upload(repository, "model", revision, (*files, record), message, record=EXPORT_RECORD_NAME)


def ollama_files(path: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return the files for Ollama by their names.

    Args:
        path: of the GGUF file beside them.
        model: whose context is named.
        tokenizer: with our chat template, another, or none: Ollama has templates of its own for some others.
    """
    sampling = Sampling()
    parameters: dict[str, Any] = {
        "num_ctx": model.config.max_position_embeddings, "temperature": sampling.temperature, "top_k": sampling.top_k,
        "top_p": sampling.top_p, "repeat_penalty": sampling.repetition_penalty,
    }  # fmt: skip
    template = None if tokenizer.chat_template else "{{ .Prompt }}"
    if tokenizer.chat_template == TEMPLATE_PATH.read_text(encoding="utf-8"):
        template, parameters["stop"] = _OLLAMA_CHAT, [EOS_TOKEN]
    lines = [f"FROM ./{path}", *([f'TEMPLATE """{template}"""'] if template else [])]
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {json.dumps(item)}" for item in values]
    files = {MODELFILE_NAME: "\n".join(lines) + "\n", OLLAMA_PARAMETERS_NAME: json.dumps(parameters, indent=1) + "\n"}
    return {**files, OLLAMA_TEMPLATE_NAME: template} if template else files
