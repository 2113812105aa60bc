"""Model cards: every number from the run's files, hostile text kept inert, refusals that name file and key."""

import copy
import csv
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import UndefinedError

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.publishing.cards import render_model_card, write_model_card
from teenytinyllama.publishing.escaping import card_environment, escape_markdown, fenced_block, inline_code

RUN: dict[str, Any] = {
    "package_version": "0.1.0",
    "stage": "pretrain",
    "command": "ttl pretrain --config pretrain.yaml",
    "commit": "a" * 40,
    "created": "2024-01-30T12:00:00Z",
    "config": {"license": "apache-2.0", "hub_model_id": None},
    "model": {
        "preset": "tiny",
        "base_model": None,
        "num_parameters": 2_557_632,
        "num_hidden_layers": 4,
        "hidden_size": 192,
        "vocab_size": 2048,
        "context": 256,
    },
    "data": {
        "packed": "packed",
        "tokenizer_sha256": "b" * 64,
        "packed_sha256": "c" * 64,
        "sources": {
            "contos": {"documents": 1200, "bytes": 3_400_000, "tokens": 900_000, "licenses": ["CC0-1.0"]},
            "ana/noticias": {"documents": 34, "bytes": 100_000, "tokens": 25_000, "licenses": ["CC-BY-NC-4.0"]},
        },
        "train_tokens": 910_000,
        "validation_documents": 12,
    },
    "training": {
        "steps": 500,
        "tokens": 4_096_000,
        "tokens_per_step": 8192,
        "epochs": 4.5,
        "seconds": 5400.0,
        "tokens_per_second": 758.5,
        "world_size": 2,
        "backend": "gloo",
        "zero_stage": 2,
        "precision": "fp32",
        "hardware": "AMD EPYC",
    },
    "results": {
        "initial": {"bits_per_byte": 3.01234, "perplexity": 2048.7},
        "final": {
            "bits_per_byte": 1.23456,
            "perplexity": 17.125,
            "per_source": {"contos": {"bits_per_byte": 1.2, "perplexity": 16.5}},
        },
    },
    "hashes": {"model.safetensors": "d" * 64},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
SAMPLES = [
    {"step": 250, "prompt": "Era uma vez", "text": "Era uma vez um um um"},
    {"step": 500, "prompt": "Era uma vez", "text": "Era uma vez uma lhama que vivia na serra."},
]


def _emission_columns() -> list[str]:
    """Return CodeCarbon's own columns, so that a change of its file is noticed here."""
    from dataclasses import fields

    from codecarbon.output_methods.emissions_data import EmissionsData

    return [field.name for field in fields(EmissionsData)]


def _write_emissions(path: Path, *rows: dict[str, Any]) -> None:
    columns = _emission_columns()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            zeros = {"cpu_energy": 0.0, "gpu_energy": 0.0, "ram_energy": 0.0, "duration": 0.0}
            writer.writerow({**dict.fromkeys(columns, ""), **zeros, "country_iso_code": "BRA", **row})


def _energy(run_id: str, kwh: float, kg: float) -> dict[str, Any]:
    parts = {"cpu_energy": kwh / 2, "gpu_energy": kwh / 4, "ram_energy": kwh / 4, "duration": 1800.0}
    return {"run_id": run_id, "energy_consumed": kwh, "emissions": kg, **parts}


def _write_run(folder: Path, run: dict[str, Any], samples: list[dict[str, Any]] = SAMPLES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    (folder / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 500, "loss": 2.8}\n', encoding="utf-8")
    return folder


def _changed(keys: str, value: Any) -> dict[str, Any]:
    """Return RUN with one nested key set."""
    run = copy.deepcopy(RUN)
    *parents, last = keys.split(".")
    place = run
    for key in parents:
        place = place[key]
    place[last] = value
    return run


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Return the front matter, read as YAML, and the body."""
    opening, metadata, body = re.split(r"^---$\n", card, maxsplit=2, flags=re.MULTILINE)
    assert opening == ""
    return yaml.safe_load(metadata), body


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = _write_run(tmp_path / "lhama-serra", RUN)
    (folder / "loss.png").write_bytes(b"png")
    # Two starts; the rows of a start are cumulative, and the starts' rows are mixed.
    rows = [
        _energy("um", 0.1, 0.01),
        _energy("dois", 0.05, 0.004),
        _energy("um", 0.4, 0.0393),
        _energy("dois", 0.2, 0.02),
    ]
    _write_emissions(folder / "emissions.csv", *rows)
    return folder


def test_every_number_comes_from_the_run(run_folder: Path):
    metadata, body = _split(render_model_card(run_folder))
    for shown in (
        "# lhama-serra\n", "2,557,632 parameters", "4 x 192", "2,048 entries", "256 tokens", "500 of 8,192 tokens",
        "4,096,000 (4.50 epochs)", "1.50 h, 758 tokens/s", "AMD EPYC, 2 processes", "fp32, gloo, DeepSpeed ZeRO-2 |",
        "| contos | 1,200 | 3.4 | 900,000 | CC0-1.0 |", "| all | 1,234 | 3.5 | 925,000 | |", "910,000 tokens",
        "12 whole documents", "| before training | 3.0123 | 2,048.70 |", "**1.2346** | **17.12**",
        "| contos | 1.2000 | 16.50 |", "Era uma vez uma lhama que vivia na serra.", "written by teenytinyllama 0.1.0",
        "at step 500", "```bash\nttl pretrain --config pretrain.yaml\n```", f"`{'a' * 40}`", f"`{'b' * 64}`",
        f"`{'c' * 64}`", f"| `model.safetensors` | `{'d' * 64}` |", "torch 2.13.0, transformers 5.23.0",
        "2024-01-30T12:00:00Z", "![Loss by training step](loss.png)",
        "Beside this card: [metrics.jsonl](metrics.jsonl), [samples.jsonl](samples.jsonl), [emissions.csv](emissions.csv).",
    ):  # fmt: skip
        assert shown in body, shown
    assert "um um um" not in body, "only the last step's samples belong in the card"
    assert metadata == {
        "language": "pt",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["teenytinyllama", "llama", "portuguese"],
        "datasets": ["ana/noticias"],
        "metrics": ["perplexity"],
        "co2_eq_emissions": {
            "emissions": 59.3,  # grams: (0.0393 + 0.02) kg
            "source": "CodeCarbon",
            "training_type": "pre-training",
            "geographical_location": "BRA",
            "hardware_used": "AMD EPYC",
        },
    }


def test_energy_adds_the_last_row_of_each_start(run_folder: Path):
    body = _split(render_model_card(run_folder))[1]
    for shown in ("| Energy | 0.6 kWh |", "processor | 0.3 kWh", "GPU | 0.15 kWh", "memory | 0.15 kWh",
                  "| Emissions | 0.0593 kg CO2e (BRA) |", "1.00 h in 2 starts"):  # fmt: skip
        assert shown in body, shown


@pytest.mark.parametrize("rows", [None, [], [_energy("um", 0.0, 0.0)]])
def test_energy_that_was_not_measured_is_never_zero(run_folder: Path, rows: list[dict[str, Any]] | None):
    (run_folder / "emissions.csv").unlink()
    if rows is not None:
        _write_emissions(run_folder / "emissions.csv", *rows)
    metadata, body = _split(render_model_card(run_folder))
    assert "co2_eq_emissions" not in metadata
    assert "The energy of this run was not measured" in body
    assert "kWh" not in body


def test_a_gpu_that_codecarbon_did_not_see_is_not_zero(run_folder: Path):
    _write_emissions(run_folder / "emissions.csv", {**_energy("um", 0.4, 0.04), "gpu_energy": 0.0})
    assert "| of which GPU | none seen by CodeCarbon |" in render_model_card(run_folder)


def test_refuses_an_emissions_file_that_is_no_measurement(run_folder: Path):
    _write_emissions(run_folder / "emissions.csv", _energy("um", float("nan"), 0.04))
    with pytest.raises(InputError, match=r"emissions.csv: column energy_consumed adds up to nan.*Move the file away"):
        render_model_card(run_folder)
    (run_folder / "emissions.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"emissions.csv: not a codecarbon file"):
        render_model_card(run_folder)


def test_front_matter_is_read_by_the_hub_client(run_folder: Path):
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_model_card(run_folder))
    assert card.data.language == "pt"
    assert card.data.co2_eq_emissions["emissions"] == 59.3
    assert card.text.lstrip().startswith("# lhama-serra")


def test_continued_and_tuned_models(tmp_path: Path):
    run = _changed("model.base_model", "nicholasKluge/TeenyTinyLlama-160m")
    run["model"]["preset"] = run["commit"] = run["training"]["zero_stage"] = None
    metadata, body = _split(render_model_card(_write_run(tmp_path / "a", run)))
    assert metadata["base_model"] == "nicholasKluge/TeenyTinyLlama-160m"
    assert "pre-trained further from `nicholasKluge/TeenyTinyLlama-160m`" in body
    assert "not recorded (installed package)" in body
    assert "ZeRO" not in body
    assert "Preset" not in body
    run["stage"], run["model"]["base_model"] = "sft", "runs/160m"
    metadata, body = _split(render_model_card(_write_run(tmp_path / "b", run)))
    assert "conversational" in metadata["tags"]
    assert '[{"role": "user", "content": "O que é a Amazônia?"}]' in body
    assert "instruction-tuned\nfrom `runs/160m`" in body
    run["stage"], run["model"]["base_model"] = "dpo", "../runs/160m"
    metadata, body = _split(render_model_card(_write_run(tmp_path / "c", run)))
    assert "base_model" not in metadata, "a folder on somebody's machine is no base model on the Hub"
    assert "tuned on preferences (DPO)" in body


def test_results_without_held_out_documents_are_not_numbers(tmp_path: Path):
    run = copy.deepcopy(RUN)
    run["results"]["initial"] = run["results"]["final"] = {"bits_per_byte": None, "perplexity": None, "per_source": {}}
    assert "**not measured** | **not measured**" in render_model_card(_write_run(tmp_path, run, samples=[]))


def test_name_of_repository_in_title_and_examples(run_folder: Path):
    card = render_model_card(run_folder, repository="ana/lhama_160m")
    assert "# lhama\\_160m" in card
    assert 'AutoModelForCausalLM.from_pretrained("ana/lhama_160m")' in card
    _write_run(run_folder, _changed("config.hub_model_id", "ana/outra"))
    assert 'model="ana/outra"' in render_model_card(run_folder)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_examples_run_as_printed(tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]):
    from tokenizers import Tokenizer, decoders, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = _write_run(tmp_path / "modelo", _changed("stage", stage))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, bos_token_id=1, eos_token_id=2, pad_token_id=3, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    bytes_only = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE({name: number for number, name in enumerate(bytes_only)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": template}
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=names, **special).save_pretrained(folder)

    blocks = re.findall(r"```python\n(.*?)\n```", render_model_card(folder, repository=str(folder)), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert str(folder) in block
        exec(compile(block, "card", "exec"), {})
    if stage == "pretrain":
        assert "Era uma vez uma lhama que" in capsys.readouterr().out


def test_licences_with_conditions_are_named(run_folder: Path):
    assert "conditions on commercial use or on derived works (CC-BY-NC-4.0)" in render_model_card(run_folder)
    run = _changed("data.sources.ana/noticias", {"documents": 1, "bytes": 1, "tokens": 1, "licenses": []})
    card = render_model_card(_write_run(run_folder, run))
    assert "conditions on commercial use" not in card
    assert "| ana/noticias | 1 | 0.0 | 1 | not stated |" in card


HOSTILE = (
    'x\n---\nlicense: mit\n# Título\n| a | b |\n<img src=x onerror="y">[clique](http://mau.example)`{{ 7*7 }}\u202e'
)


def test_hostile_samples_stay_inside_their_fence(tmp_path: Path):
    text = f"Era uma vez\n```\n{HOSTILE}\n`````\n<script>fim()</script>\r~~~"
    _, body = _split(render_model_card(_write_run(tmp_path, RUN, [{"step": 500, "prompt": "Era", "text": text}])))
    fence = re.search(r"^(`{6,})text\n(.*?)\n\1$", body, flags=re.DOTALL | re.MULTILINE)
    assert fence, body
    assert "<script>" in fence[2]
    assert "{{ 7*7 }}" in fence[2]
    assert "\u202e" not in body
    assert "\r" not in body
    outside = body.replace(fence[0], "")
    assert "script" not in outside
    assert "mau.example" not in outside


@pytest.mark.parametrize(
    "keys",
    ["command", "created", "config.license", "training.hardware", "training.precision", "model.base_model", "config.hub_model_id",
     "commit", "package_version", "versions.torch", "hashes.model", "data.sources.contos.licenses", "model.preset"],
)  # fmt: skip
def test_hostile_metadata_cannot_inject_yaml_or_markdown(run_folder: Path, keys: str):
    from huggingface_hub import ModelCard

    run = _changed(keys, [HOSTILE] if keys.endswith("licenses") else HOSTILE)
    run["data"]["sources"][HOSTILE] = {"documents": 1, "bytes": 1, "tokens": 1, "licenses": []}
    run["results"]["final"]["per_source"][HOSTILE] = {"bits_per_byte": 1.0, "perplexity": 2.0}
    plain_metadata, plain_body = _split(render_model_card(run_folder))
    metadata, body = _split(render_model_card(_write_run(run_folder, run)))
    assert set(metadata) == set(plain_metadata)
    assert metadata["license"] == (plain_metadata["license"] if keys != "config.license" else metadata["license"])
    assert "\n" not in metadata["license"]
    assert (
        yaml.safe_load(ModelCard(render_model_card(run_folder), ignore_metadata_errors=False).data.to_yaml())
        == metadata
    )
    # What is left outside code: no mark of HTML, links or headings that the plain card does not have.
    prose = re.sub(r"(`{3,})\w*\n.*?\n\1", "", body, flags=re.DOTALL)
    prose = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", prose)
    assert "<img" not in prose
    assert not re.search(r"(?<!\\)\[clique(?!\\)\]", prose)
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    plain_headings = [line for line in plain_body.splitlines() if line.startswith("#")]
    assert headings[1:] == plain_headings[1:]
    assert "\n---" not in prose
    for line in (line for line in prose.splitlines() if line.startswith("| contos") and "CC" in line):
        assert len(re.findall(r"(?<!\\)\|", line)) == 6


def test_escaping():
    assert escape_markdown("<b>|*a_\n# [x](y)") == r"&lt;b&gt;\|\*a\_ \# \[x\](y)"
    assert escape_markdown(escape_markdown("a*b")) == r"a\*b"
    assert inline_code("a``b`") == "``` a``b` ```"
    assert inline_code("a|b") == r"`a\|b`"
    assert fenced_block("a\n````\nb", "bash") == "`````bash\na\n````\nb\n`````"


def test_a_missing_template_variable_raises():
    environment = card_environment()
    for template in ("{{ ausente }}", "{{ run.ausente }}", "{{ ausente | count }}", "{% if ausente %}x{% endif %}"):
        with pytest.raises(UndefinedError, match="ausente"):
            environment.from_string(template).render(run={})


def test_all_templates_are_complete_without_defaults(run_folder: Path):
    """Each variable the main template names is given: rendering without one fails."""
    template = card_environment().get_template("model_card.md.jinja")
    with pytest.raises(UndefinedError):
        template.render(**{key: value for key, value in RUN.items() if key != "training"})


def test_write_replaces_an_older_card_and_nothing_on_refusal(run_folder: Path):
    (run_folder / "README.md").write_text("antigo", encoding="utf-8")
    path = write_model_card(run_folder)
    assert path == run_folder / "README.md"
    written = path.read_text(encoding="utf-8")
    assert written == render_model_card(run_folder)
    (run_folder / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: key stage is missing"):
        write_model_card(run_folder)
    assert path.read_text(encoding="utf-8") == written
    assert not list(run_folder.glob("*.partial"))


def test_refuses_what_is_no_finished_run(tmp_path: Path):
    with pytest.raises(
        MissingFileError, match=r"run_folder=.*nada: no such folder. Give the output_dir of `ttl pretrain`"
    ):
        render_model_card(tmp_path / "nada")
    with pytest.raises(InputError, match=r"is not a run folder, it has no run\.json"):
        render_model_card(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"the run is not complete, .*Run the same command again to resume"):
        render_model_card(tmp_path)
    for content, message in {"{": "run.json: is not valid JSON", "[]": "run.json: must hold a JSON object"}.items():
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            render_model_card(tmp_path)
    with pytest.raises(InputError, match=r"stage=pack has no model card. It must be one of pretrain, sft, dpo"):
        render_model_card(_write_run(tmp_path, _changed("stage", "pack")))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("model", {}, r"run\.json: key model\.preset is missing"),
        ("training.steps", "500", r"key training\.steps is '500', but must be a finite int"),
        ("training.steps", True, r"key training\.steps is True"),
        ("training.seconds", float("nan"), r"key training\.seconds is nan, but must be a finite int or float"),
        ("results.final", {"bits_per_byte": 1.0}, r"key results\.final\.perplexity is missing"),
        ("results.final.per_source.contos", {}, r"key results\.final\.per_source\.contos\.bits_per_byte is missing"),
        ("data.sources.contos", {"documents": 1}, r"key data\.sources\.contos\.bytes is missing"),
        ("data.sources", [], r"key data\.sources is \[\], but must be dict"),
        ("commit", 5, r"key commit is 5, but must be str or null"),
    ],
)
def test_refuses_missing_and_wrong_keys(tmp_path: Path, keys: str, value: Any, message: str):
    with pytest.raises(InputError, match=message):
        render_model_card(_write_run(tmp_path, _changed(keys, value)))


def test_refuses_damaged_samples(run_folder: Path):
    (run_folder / "samples.jsonl").write_text('{"step": 1, "prompt": "a", "text": "ab"}\n{"st', encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl: line 2 is not valid JSON .*Remove that line"):
        render_model_card(run_folder)
    (run_folder / "samples.jsonl").write_text('{"step": 1, "prompt": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1: key text is missing"):
        render_model_card(run_folder)


def test_the_building_s_share_and_the_region_are_stated(run_folder: Path):
    _write_emissions(run_folder / "emissions.csv", {**_energy("a", 1.0, 0.1), "pue": "1.25", "region": "california"})
    card = render_model_card(run_folder)
    assert "kg CO2e (BRA (california))" in card
    assert "The energy is that of the machine times a PUE of 1.25, for cooling and losses" in card
    _write_emissions(run_folder / "emissions.csv", _energy("a", 1.0, 0.1))
    assert "PUE" not in render_model_card(run_folder)


def test_a_run_without_samples_says_so(run_folder: Path):
    (run_folder / "samples.jsonl").unlink()
    assert "The run kept no samples." in render_model_card(run_folder)


def test_codecarbon_still_writes_the_columns_that_are_read():
    assert importlib.metadata.version("codecarbon")
    needed = {"run_id", "duration", "emissions", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed"}
    assert needed | {"country_iso_code"} <= set(_emission_columns())
