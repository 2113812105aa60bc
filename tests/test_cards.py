"""Model cards: every number from the run's files, both languages, hostile text kept inert, refusals by file and key."""

import copy
import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from card_runs import (
    CHECKPOINT,
    EVALUATIONS,
    RESULTS,
    RUN,
    changed,
    emission_columns,
    energy_row,
    evaluation,
    split_card,
    write_checkpoints,
    write_emissions,
    write_rows,
    write_run,
    write_whole_run,
)
from jinja2 import UndefinedError

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.evaluation.results import Results, write_results
from teenytinyllama.publishing.card import render_model_card, write_model_card
from teenytinyllama.publishing.facts import thin
from teenytinyllama.publishing.scores import eval_result_files, eval_result_files_of
from teenytinyllama.publishing.wording import (
    card_environment,
    escape_markdown,
    fenced_block,
    inline_code,
    link,
    texts,
)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_whole_run(tmp_path / "lhama-serra")


def english(folder: Path, **more: Any) -> str:
    return split_card(render_model_card(folder, language="en", **more))[1]


def test_every_number_comes_from_the_run(run_folder: Path):
    body = english(run_folder)
    for shown in (
        "# lhama-serra\n", "2,557,632 parameters", "4 × 192", "2,048 entries", "256 tokens", "500 of 8,192 tokens",
        "4,096,000 (4.50 epochs)", "1.50 h, 759 tokens/s on average, evaluations and saves included (median of steps: 758)", "AMD EPYC, 2 processes", "fp32, gloo, DeepSpeed ZeRO-2 |",
        "| contos | 1,200 | 3.40 | 900,000 | CC0-1.0 |", "| all | 1,234 | 3.50 | 925,000 | |", "910,000 tokens",
        "12 held-out whole documents", "| before training | 3.0123 | 2,048.70 |", "**1.2346** | **17.12**",
        "| contos | 1.2000 | 16.50 |", "Era uma vez uma lhama que vivia na serra.", "written by teenytinyllama 0.1.0",
        "at step 500", "```bash\nttl pretrain --config pretrain.yaml\n```", f"`{'a' * 40}`", f"`{'b' * 64}`",
        f"`{'c' * 64}`", f"| `model.safetensors` | `{'d' * 64}` |", "torch 2.13.0, transformers 5.23.0",
        "2024-01-30T12:00:00Z", "![Loss by training step](loss.png)",
        "Beside this card: [metrics.jsonl](./metrics.jsonl), [samples.jsonl](./samples.jsonl), "
        "[results.json](./results.json), [emissions.csv](./emissions.csv), [checkpoints.json](./checkpoints.json).",
        "| 2,048,000 | 250 | 40.25 | 4.0250 | 0.31 | 0.031 |", "the same 19,690 held-out tokens",
        "| ENEM | accuracy | 3 | 19.24 ± 1.04 | -0.95 | 20.00 (chance) |", "ENEM: 1.25 % of the answers",
        "ENEM: 7 prompts", "Measured with lm\\_eval 0.4.13.",
        "| CALAME | accuracy | 46.72 ± 1.10 | 2.13 (one answer to everything) |", "| 2,048,000 | 250 | 31.11 ± 1.17 |",
        "| RTE | macro F1 | 15 | 53.97 | not known |", "| STS | Pearson | 15 | -0.24 | not known |",
        "Source of the figures: [Published](https://example.org/rte)", "Source of the figures: a table in a paper",
        "above it by more than two standard errors: ENEM (accuracy).**", "```bash\nttl evaluate runs/lhama\n```",
        "| `step250` | 2,048,000 | 3.2500 | 1.5000 | 0.31 | 0.031 | `f1f1f1f1f1f1` |", 'revision="step250"',
    ):  # fmt: skip
        assert shown in body, shown
    assert "um um um" not in body, "only the last step's samples belong in the card"


def test_sections_stand_in_the_order_of_the_ancestors_cards(run_folder: Path):
    names = ["summary", "details", "uses", "out_of_scope", "usage", "limitations", "evaluations", "benchmarks",
             "checkpoints", "license", "citation"]  # fmt: skip
    for stage in ("pretrain", "sft", "dpo"):
        body = split_card(render_model_card(write_run(run_folder, changed("stage", stage))))[1]
        expected = [texts(language)[name] for language in ("en", "pt") for name in names]
        assert re.findall(r"^## (.+)$", body, flags=re.MULTILINE) == expected


def test_metadata(run_folder: Path):
    metadata, _ = split_card(render_model_card(run_folder))
    index = metadata.pop("model-index")
    assert metadata == {
        "language": "pt",
        "language_details": "pt-BR",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["teenytinyllama", "llama", "portuguese"],
        "datasets": ["ana/noticias"],
        "metrics": ["perplexity", "accuracy", "f1", "pearsonr"],
        "widget": [{"text": "Era uma vez"}],
        "co2_eq_emissions": {
            "emissions": 59.3,  # grams: (0.0393 + 0.02) kg
            "source": "CodeCarbon",
            "training_type": "pre-training",
            "geographical_location": "BRA",
            "hardware_used": "AMD EPYC",
        },
    }
    assert [entry["name"] for entry in index] == ["lhama-serra"]
    held_out, enem, calame, rte, sts = index[0]["results"]
    assert held_out["dataset"]["name"] == "held-out part of contos, ana/noticias"
    assert [(found["type"], found["value"]) for found in held_out["metrics"]] == [
        ("perplexity", 17.125), ("bits_per_byte", 1.23456)
    ]  # fmt: skip
    assert enem == {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"name": "ENEM", "type": "eduagarcia/enem_challenge", "config": "enem_challenge", "split": "train",
                    "revision": "e" * 40, "args": {"num_few_shot": 3}},
        "metrics": [{"type": "accuracy", "value": 19.24, "name": "accuracy", "args": {"stderr": 1.04}}],
    }  # fmt: skip
    assert calame["dataset"]["type"] == "CALAME"
    assert rte["source"] == {"url": "https://example.org/rte", "name": "Published"}
    assert sts["metrics"][0]["value"] == -0.24
    assert "source" not in sts, "the Hub wants an address"


def test_tasks_on_one_dataset_stay_apart_in_the_model_index(run_folder: Path):
    twice = [replace(RESULTS.scores[0], suite=suite, value=value) for suite, value in (("Um", 0.25), ("Dois", 0.5))]
    write_results(run_folder / "results.json", replace(RESULTS, scores=(*RESULTS.scores, *twice)))
    found = split_card(render_model_card(run_folder))[0]["model-index"][0]["results"]
    enem = [entry for entry in found if entry["dataset"]["name"] == "ENEM"]
    assert [[metric["value"] for metric in entry["metrics"]] for entry in enem] == [[19.24], [25.0], [50.0]]
    assert {entry["dataset"]["config"] for entry in enem} == {
        "enem_challenge", "enem_challenge (Um)", "enem_challenge (Dois)"
    }  # fmt: skip
    assert eval_result_files(run_folder) == {}, "no Portuguese data set is on the Hub's list of benchmarks"
    listed = tuple(replace(score, dataset_id="openai/gsm8k") for score in (RESULTS.scores[0], *twice))
    assert sorted(eval_result_files_of(replace(RESULTS, scores=listed))) == [
        ".eval_results/enem_challenge-Dois-acc.yaml", ".eval_results/enem_challenge-Um-acc.yaml",
        ".eval_results/enem_challenge.yaml",
    ]  # fmt: skip


def test_result_files_are_read_by_the_hub_client(run_folder: Path):
    from huggingface_hub import parse_eval_result_entries

    on_the_list = replace(RESULTS.scores[0], task="gsm8k_5_shot", dataset_id="openai/gsm8k")
    write_results(run_folder / "results.json", replace(RESULTS, scores=(*RESULTS.scores, on_the_list)))
    files = eval_result_files(run_folder)
    assert list(files) == [".eval_results/gsm8k_5_shot.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/gsm8k_5_shot.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 19.24)
    assert (entry.dataset_revision, entry.date) == ("e" * 40, "2024-01-30")
    assert entry.notes == (
        "acc in percent; standard error 1.04; 3-shot; 1429 items; no better than a trivial answer (chance: 20.0); "
        "lm_eval 0.4.13"
    )
    (run_folder / "results.json").unlink()
    assert eval_result_files(run_folder) == {}


def test_portuguese_has_its_own_number_forms(run_folder: Path):
    body = split_card(render_model_card(run_folder, language="pt"))[1]
    for shown in (
        "2.557.632 parâmetros", "4.096.000 (4,50 épocas)", "| contos | 1.200 | 3,40 | 900.000 | CC0-1.0 |",
        "| antes do treino | 3,0123 | 2.048,70 |", "| Emissões | 0,0593 kg CO₂e (BRA) |", "19,24 ± 1,04",
        "todo número vem deles", "2 processos",
    ):  # fmt: skip
        assert shown in body, shown
    assert "## Details" not in body


def test_both_languages_is_the_default_and_the_config_can_say_otherwise(run_folder: Path):
    both = split_card(render_model_card(run_folder))[1]
    assert both.index("## Details") < both.index("# Português\n") < both.index("## Detalhes")
    assert "](#português)" in both[: both.index("## Summary")]
    write_run(run_folder, changed("config.card_language", "pt"))
    assert "## Details" not in render_model_card(run_folder)
    assert "## Detalhes" not in english(run_folder)
    with pytest.raises(InputError, match=r"language=fr: must be one of both, en, pt"):
        render_model_card(run_folder, language="fr")


def test_both_languages_say_the_same_things():
    def fields(text: str) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", text))

    english_texts, portuguese_texts = texts("en"), texts("pt")
    assert list(english_texts) == list(portuguese_texts)
    for key, text in english_texts.items():
        assert fields(text) == fields(portuguese_texts[key]), key


def test_no_number_stands_in_a_template():
    folder = Path(render_model_card.__code__.co_filename).parent
    files = [*(folder / "texts").glob("*.yaml"), *(folder / "templates").glob("*.jinja")]
    assert len(files) >= 6
    for path in files:
        text = re.sub(
            r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|sha256|UTF-8|int32", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert not re.search(r"\d", re.sub(r"\[-?\d\]|\[0, |\[1\]", "", text)), path


def test_a_bare_number_in_a_sentence_is_refused():
    environment = card_environment("pt")
    with pytest.raises(TypeError, match="context: tokens=5 must be text"):
        environment.from_string("{{ say('context', tokens=5) }}").render()
    assert environment.from_string("{{ 1234.5 | fixed(1) }} {{ none | count }}").render() == "1.234,5 não medido"


def test_long_tables_of_evaluations_are_thinned_and_say_so(run_folder: Path):
    rows = [evaluation(step, 2000 / (step + 1), step / 1000) for step in range(40)]
    write_rows(run_folder / "metrics.jsonl", rows)
    body = english(run_folder)
    assert (
        len(re.findall(r"^\| [\d,]+ \| \d+ \| [\d,.]+ \| [\d,.]+ \| [\de.-]+ \| [\de.-]+ \|$", body, re.MULTILINE))
        == 12
    )
    assert "12 of 40 evaluations are shown" in body
    assert "| 319,488 | 39 |" in body, "the last one is always there"
    for length in (0, 1, 12, 13, 1000):
        kept = thin(list(range(length)))
        assert len(kept) == min(length, 12)
        assert kept == sorted(set(kept))
        assert kept[:1] == [0][:length]
        assert kept[-1:] == [length - 1][:length]


def test_evaluations_of_other_documents_stay_out_of_the_table(run_folder: Path):
    rows = [*EVALUATIONS, {**evaluation(500, 99.5, 0.62), "scored_tokens": 30_000}]
    write_rows(run_folder / "metrics.jsonl", rows)
    assert "99.50" not in english(run_folder)


def test_refuses_damaged_evaluations_and_checkpoints(run_folder: Path):
    write_rows(run_folder / "metrics.jsonl", [{"step": 1, "bits_per_byte": 1.0}])
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1: key tokens is missing"):
        render_model_card(run_folder)
    write_rows(run_folder / "metrics.jsonl", [])
    for content, message in {
        "{": r"checkpoints\.json: is not valid JSON .*Publish the run again",
        "{}": r"checkpoints\.json: must hold a list of checkpoints",
        json.dumps([CHECKPOINT]): r"checkpoints\.json: must hold a list of checkpoints",
        '{"checkpoints": [{}]}': r"checkpoints\.json: key \[0\]\.sha256 is missing",
        '{"checkpoints": [{"sha256": {}}]}': r"checkpoints\.json: key \[0\]\.branch is missing",
        json.dumps(
            {"checkpoints": [{**CHECKPOINT, "sha256": {}, "loss": "3"}]}
        ): r"key \[0\]\.loss is '3', but must be a finite int or float or null",
    }.items():
        (run_folder / "checkpoints.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            render_model_card(run_folder)


def test_checkpoints_can_be_given_before_they_are_recorded(run_folder: Path):
    body = english(run_folder, checkpoints=[{**CHECKPOINT, "branch": "step125", "bits_per_byte": None}])
    assert "| `step125` | 2,048,000 | 3.2500 | not measured |" in body
    assert "step250" not in body
    (run_folder / "checkpoints.json").unlink()
    assert "This repository holds the final model alone." in english(run_folder)


def test_a_run_without_benchmarks_says_so(run_folder: Path):
    (run_folder / "results.json").unlink()
    body = english(run_folder)
    assert "The model was not evaluated on benchmarks." in body
    assert "standard error" not in body


def test_names_of_files_are_those_of_the_runs():
    from teenytinyllama.publishing import facts
    from teenytinyllama.training import metrics

    assert facts.METRICS_NAME == metrics.METRICS_NAME


def test_energy_adds_the_last_row_of_each_start(run_folder: Path):
    body = english(run_folder)
    for shown in ("| Energy | 0.6 kWh |", "processor | 0.3 kWh", "GPU | 0.15 kWh", "memory | 0.15 kWh",
                  "| Emissions | 0.0593 kg CO₂e (BRA) |", "1.00 h in 2 starts"):  # fmt: skip
        assert shown in body, shown


@pytest.mark.parametrize("rows", [None, [], [energy_row("um", 0.0, 0.0)]])
def test_energy_that_was_not_measured_is_never_zero(run_folder: Path, rows: list[dict[str, Any]] | None):
    (run_folder / "emissions.csv").unlink()
    if rows is not None:
        write_emissions(run_folder / "emissions.csv", *rows)
    metadata, body = split_card(render_model_card(run_folder))
    assert "co2_eq_emissions" not in metadata
    assert "The energy of this run was not measured" in body
    assert "A energia deste treino não foi medida" in body
    assert "kWh" not in body
    assert "starts up to then" not in body


def test_a_gpu_that_codecarbon_did_not_see_is_not_zero(run_folder: Path):
    write_emissions(run_folder / "emissions.csv", {**energy_row("um", 0.4, 0.04), "gpu_energy": 0.0})
    assert "| of which GPU | none seen by CodeCarbon |" in render_model_card(run_folder)


def test_refuses_an_emissions_file_that_is_no_measurement(run_folder: Path):
    write_emissions(run_folder / "emissions.csv", energy_row("um", float("nan"), 0.04))
    with pytest.raises(InputError, match=r"emissions.csv: line 2 has energy_consumed=nan.*remove that line"):
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
    run = changed("model.base_model", "nicholasKluge/TeenyTinyLlama-160m")
    run["model"]["preset"] = run["commit"] = run["training"]["zero_stage"] = None
    metadata, body = split_card(render_model_card(write_run(tmp_path / "a", run)))
    assert metadata["base_model"] == "nicholasKluge/TeenyTinyLlama-160m"
    assert (metadata["base_model_relation"], metadata["library_name"]) == ("finetune", "transformers")
    assert "pre-trained further from `nicholasKluge/TeenyTinyLlama-160m`" in body
    assert "not recorded (installed package)" in body
    assert "ZeRO" not in body
    assert "Preset" not in body
    run["stage"], run["model"]["base_model"] = "sft", "runs/160m"
    metadata, body = split_card(render_model_card(write_run(tmp_path / "b", run)))
    assert "conversational" in metadata["tags"]
    assert '[{"role": "user", "content": "O que é a Amazônia?"}]' in body
    assert "instruction-tuned from `runs/160m`" in body
    assert "ajustado por instruções a partir de `runs/160m`" in body
    assert metadata["widget"] == [{"messages": [{"role": "user", "content": "Era uma vez"}]}]
    run["model"]["base_is_local"] = True  # a folder whose name has the form of somebody's repository
    metadata, _ = split_card(render_model_card(write_run(tmp_path / "local", run)))
    assert not {"base_model", "base_model_relation"} & set(metadata)
    run["model"]["base_is_local"] = False
    run["stage"], run["model"]["base_model"] = "dpo", "../runs/160m"
    metadata, body = split_card(render_model_card(write_run(tmp_path / "c", run)))
    assert not {"base_model", "base_model_relation"} & set(metadata), (
        "a folder on a machine is no base model on the Hub"
    )
    assert "tuned on preferences (DPO)" in body


def test_results_without_held_out_documents_are_not_numbers(tmp_path: Path):
    run = copy.deepcopy(RUN)
    run["results"]["initial"] = run["results"]["final"] = {"bits_per_byte": None, "perplexity": None, "per_source": {}}
    assert "**not measured** | **not measured**" in render_model_card(write_run(tmp_path, run, samples=[]))


def test_name_of_repository_in_title_and_examples(run_folder: Path):
    card = render_model_card(run_folder, repository="ana/lhama_160m")
    assert "# lhama\\_160m" in card
    assert 'AutoModelForCausalLM.from_pretrained("ana/lhama_160m", revision="main")' in card
    assert "  author = {ana}," in card
    assert "https://huggingface.co/ana/lhama_160m" in card
    write_run(run_folder, changed("config.hub_model_id", "ana/outra"))
    assert 'model="ana/outra"' in render_model_card(run_folder)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_examples_run_as_printed(tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]):
    from tokenizers import Tokenizer, decoders, models
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = write_run(tmp_path / "modelo", changed("stage", stage))
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

    blocks = re.findall(r"```python\n(.*?)\n```", english(folder, repository=str(folder)), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert str(folder) in block
        exec(compile(block, "card", "exec"), {})
    if stage == "pretrain":
        assert "Era uma vez uma lhama que" in capsys.readouterr().out


@pytest.mark.parametrize("recorded", [[], None, "ana/noticias", [7, "ana/x\nlicense: mit"]])
def test_only_what_was_read_from_the_hub_is_a_dataset_there(run_folder: Path, recorded: Any):
    """A column of a local file can name any source, with a slash or without."""
    metadata, body = split_card(render_model_card(write_run(run_folder, changed("data.hub_datasets", recorded))))
    assert "datasets" not in metadata
    assert "| ana/noticias | 34 |" in body


def test_licences_with_conditions_are_named(run_folder: Path):
    assert "conditions on commercial use or on derived works (CC-BY-NC-4.0)" in render_model_card(run_folder)
    run = changed("data.sources.ana/noticias", {"documents": 1, "bytes": 1, "tokens": 1, "licenses": []})
    card = render_model_card(write_run(run_folder, run))
    assert "conditions on commercial use" not in card
    assert "| ana/noticias | 1 | 0.00 | 1 | not stated |" in card


def test_the_card_of_an_adapter(run_folder: Path):
    run = changed("stage", "sft")
    run["model"]["base_model"] = "nicholasKluge/TeenyTinyLlama-160m"
    (write_run(run_folder, run) / "adapter_config.json").write_text("{}", encoding="utf-8")
    metadata, body = split_card(render_model_card(run_folder))
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert "from peft import AutoPeftModelForCausalLM" in body
    assert "from transformers import pipeline" not in body
    assert "an adapter alone (LoRA)" in body
    assert "must be where it was" not in body
    run["model"]["base_model"] = "../runs/160m"
    assert "The base model must be where it was at training time (`../runs/160m`)" in english(
        write_run(run_folder, run)
    )
    (run_folder / "config.json").write_text("{}", encoding="utf-8")  # a whole model with its adapter merged in
    assert split_card(render_model_card(run_folder))[0]["library_name"] == "transformers"


HOSTILE = (
    'x\n---\nlicense: mit\n# Título\n| a | b |\n<img src=x onerror="y">[clique](http://mau.example)`{{ 7*7 }}\u202e'
    "![a](http://mau.example/a.png) <http://mau.example/b> http://mau.example/c"
)


def marks_of(body: str) -> tuple[set[str], list[str], int]:
    """Return the addresses of a text's links and pictures, its HTML, and the number of its headings and tables' cells."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    addresses, html, count = set(), [], 0
    tokens = [part for token in markdown.parse(body) for part in (token, *(token.children or []))]
    for token in tokens:
        addresses |= {str(token.attrs[name]) for name in ("href", "src") if name in token.attrs}
        html += [token.content] if token.type.startswith("html") else []
        count += token.type in ("heading_open", "hr", "td_open", "th_open")
    return addresses, html, count


def assert_harmless(folder: Path, plain: str, added_cells: int = 0) -> str:
    """The folder's card has no link, HTML, heading or cell that the plain card lacks; return its body."""
    metadata, body = split_card(render_model_card(folder))
    addresses, html, count = marks_of(body)
    assert addresses <= marks_of(plain)[0]
    assert not html
    assert count == marks_of(plain)[2] + added_cells
    assert "\u202e" not in body
    from huggingface_hub import ModelCard

    card = ModelCard(render_model_card(folder), ignore_metadata_errors=False)
    assert yaml.safe_load(card.data.to_yaml()) == metadata
    return body


def test_hostile_samples_stay_inside_their_fence(run_folder: Path):
    plain = split_card(render_model_card(run_folder))[1]
    text = f"Era uma vez\n```\n{HOSTILE}\n`````\n<script>fim()</script>\r~~~"
    write_run(run_folder, RUN, [{"step": 500, "prompt": HOSTILE, "text": text}])
    body = assert_harmless(run_folder, plain)
    fences = re.findall(r"^((`{6,})text\n.*?\n\2)$", body, flags=re.DOTALL | re.MULTILINE)
    assert len(fences) == 2, body
    assert "<script>" in fences[0][0]
    assert "{{ 7*7 }}" in fences[0][0]
    assert "\r" not in body
    assert "mau.example" not in body.replace(fences[0][0], "")
    metadata = split_card(render_model_card(run_folder))[0]
    assert metadata["license"] == "apache-2.0"
    assert metadata["widget"][0]["text"].startswith("x\n---\nlicense: mit")
    assert "\u202e" not in metadata["widget"][0]["text"]


@pytest.mark.parametrize(
    "keys",
    ["command", "created", "training.hardware", "training.precision", "model.base_model", "config.hub_model_id",
     "commit", "package_version", "versions.torch", "hashes.model", "data.sources.contos.licenses", "model.preset"],
)  # fmt: skip
def test_hostile_metadata_cannot_inject_yaml_or_markdown(run_folder: Path, keys: str):
    added = {"model.base_model": 4, "hashes.model": 4}.get(keys, 0)  # the row that the plain card does not have, twice
    run = changed(keys, [HOSTILE] if keys.endswith("licenses") else HOSTILE)
    run["data"]["sources"][HOSTILE] = {"documents": 1, "bytes": 1, "tokens": 1, "licenses": []}
    run["results"]["final"]["per_source"][HOSTILE] = {"bits_per_byte": 1.0, "perplexity": 2.0}
    plain_metadata, plain = split_card(render_model_card(run_folder))
    assert_harmless(write_run(run_folder, run), plain, added_cells=2 * (5 + 3) + added)
    metadata = split_card(render_model_card(run_folder))[0]
    assert set(metadata) == set(plain_metadata)
    assert metadata["license"] == plain_metadata["license"]


@pytest.mark.parametrize(
    ("stated", "identifier"),
    [("Apache 2.0", "apache-2.0"), ("Apache License, Version 2.0", "apache-2.0"), ("The MIT License", "mit"),
     ("CC BY-SA 4.0", "cc-by-sa-4.0"), ("CC-BY-4.0 International", "cc-by-4.0"), ("CC0", "cc0-1.0"), ("GPLv3", "gpl-3.0"),
     ("GPL-3.0-or-later", "gpl-3.0"), ("Llama 3.1", "llama3.1"), ("ODC-By 1.0", "odc-by"), ("EUPL 1.2", "eupl-1.2"),
     (None, "apache-2.0")],
)  # fmt: skip
def test_the_licence_of_a_model_is_the_hubs_name_of_it(run_folder: Path, stated: str | None, identifier: str):
    write_run(run_folder, changed("config.license", stated))
    assert split_card(render_model_card(run_folder))[0]["license"] == identifier


@pytest.mark.parametrize("stated", ["other", "minha", "apache 1.1", HOSTILE])
def test_a_licence_that_the_hub_does_not_know_is_refused(run_folder: Path, stated: str):
    write_run(run_folder, changed("config.license", stated))
    with pytest.raises(
        InputError, match=r"run\.json: config\.license=.* names of licences only.* such as apache-2\.0"
    ) as caught:
        render_model_card(run_folder)
    assert "\n" not in str(caught.value)


def test_hostile_scores_and_checkpoints_are_inert(run_folder: Path):
    plain = split_card(render_model_card(run_folder))[1]
    texts_of_scores = dict.fromkeys(("suite", "name", "metric_name", "harness"), HOSTILE)
    scores = tuple(
        replace(score, **texts_of_scores, source=HOSTILE if score.source else None, dataset_config=HOSTILE)
        for score in RESULTS.scores
    )
    shared = [replace(score, suite=HOSTILE + score.suite) for score in scores]
    results = Results(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, tuple(shared))
    write_results(run_folder / "results.json", results)
    write_checkpoints(run_folder, {**CHECKPOINT, "branch": HOSTILE + '"); import os', "sha256": "`|<b>" + HOSTILE})
    # One suite instead of three: fewer headings and heads of tables, nothing else.
    suites_before = {score.suite for score in RESULTS.scores}
    body = split_card(render_model_card(run_folder))[1]
    addresses, html, _ = marks_of(body)
    assert addresses <= marks_of(plain)[0]
    assert not html
    assert len(suites_before) == 3
    code = "".join(re.findall(r"```python\n(.*?)\n```", body, flags=re.DOTALL))
    assert "import os" not in code
    for content in eval_result_files(run_folder).values():
        (entry,) = yaml.safe_load(content)
        assert set(entry) <= {"dataset", "value", "date", "notes", "source"}
        assert "\u202e" not in content.decode()


def test_escaping():
    assert escape_markdown("<b>|*a_\n# [x](y)") == r"&lt;b&gt;\|\*a\_ \# \[x\](y)"
    assert escape_markdown(escape_markdown("a*b")) == r"a\*b"
    assert inline_code("a``b`") == "``` a``b` ```"
    assert inline_code("a|b") == r"`a\|b`"
    assert link("a](b)", "https://example.org/x?a=1") == r"[a\](b)](https://example.org/x?a=1)"
    for address in ("http://x.org", "javascript:a()", "https://x.org/>b", "https://x.org/ b", "https://x.org/\nb"):
        assert link("texto", address) == "texto"
    assert fenced_block("a\n````\nb", "bash") == "`````bash\na\n````\nb\n`````"


def test_a_missing_template_variable_raises():
    environment = card_environment("en")
    for template in ("{{ ausente }}", "{{ run.ausente }}", "{{ ausente | count }}", "{% if ausente %}x{% endif %}"):
        with pytest.raises(UndefinedError, match="ausente"):
            environment.from_string(template).render(run={})


def test_all_templates_are_complete_without_defaults(run_folder: Path):
    """Each variable the main template names is given: rendering without one fails."""
    template = card_environment("en").get_template("model_card.md.jinja")
    with pytest.raises(UndefinedError, match="training"):
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
        render_model_card(write_run(tmp_path, changed("stage", "pack")))


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
        render_model_card(write_run(tmp_path, changed(keys, value)))


def test_refuses_damaged_samples(run_folder: Path):
    (run_folder / "samples.jsonl").write_text('{"step": 1, "prompt": "a", "text": "ab"}\n{"st', encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl: line 2 is damaged .*remove that line"):
        render_model_card(run_folder)
    (run_folder / "samples.jsonl").write_text('{"step": 1, "prompt": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1: key text is missing"):
        render_model_card(run_folder)


def test_the_building_s_share_and_the_region_are_stated(run_folder: Path):
    write_emissions(run_folder / "emissions.csv", {**energy_row("a", 1.0, 0.1), "pue": "1.25", "region": "california"})
    card = render_model_card(run_folder)
    assert "(BRA (california))" in card
    assert "The energy is that of the machine times a PUE of 1.25, for cooling and losses" in card
    write_emissions(run_folder / "emissions.csv", energy_row("a", 1.0, 0.1))
    assert "PUE" not in render_model_card(run_folder)


def test_a_run_without_samples_says_so(run_folder: Path):
    (run_folder / "samples.jsonl").unlink()
    assert "The run kept no samples." in render_model_card(run_folder)


def test_codecarbon_still_writes_the_columns_that_are_read():
    assert importlib.metadata.version("codecarbon")
    needed = {"run_id", "duration", "emissions", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed"}
    assert needed | {"country_iso_code"} <= set(emission_columns())
