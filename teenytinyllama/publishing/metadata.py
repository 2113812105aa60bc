"""The front matter of a card: what the Hub files a model under, its emissions in grams, and its scores."""

import re
from typing import Any

from .benchmarks import metric_ids, model_index_of_held_out, model_index_of_results
from .escaping import one_line
from .facts import CardFacts

_MAX_WIDGET_CHARACTERS = 300
_WIDGET_INVISIBLE = re.compile(r"[^\S\n]+")


def front_matter(facts: CardFacts) -> str:
    """Return the metadata as YAML, without the marks around it."""
    from huggingface_hub import ModelCardData

    run = facts.run
    index = model_index_of_held_out(run) + (model_index_of_results(facts.results) if facts.results else [])
    data = ModelCardData(
        language="pt",
        license=facts.license,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["teenytinyllama", "llama", "portuguese", *(["conversational"] if facts.is_chat else [])],
        base_model=facts.hub_base,
        datasets=facts.hub_datasets or None,
        metrics=_metrics(facts) or None,
        model_name=facts.name.rsplit("/", 1)[-1] if index else None,
        eval_results=index or None,
        **_more(facts),
    )
    return str(data.to_yaml())


def _metrics(facts: CardFacts) -> list[str]:
    """Return the Hub's names of all metrics in the card."""
    has_perplexity = facts.run["results"]["final"]["perplexity"] is not None or facts.evaluations
    own = ["accuracy"] if facts.run["stage"] == "dpo" else ["perplexity"] if has_perplexity else []
    return list(dict.fromkeys(own + (metric_ids(facts.results) if facts.results else [])))


def _more(facts: CardFacts) -> dict[str, Any]:
    """Return the keys that not every card has, and that the Hub's client takes as they are."""
    more: dict[str, Any] = {}
    if facts.hub_base is not None:
        more["base_model_relation"] = "adapter" if facts.is_adapter else "finetune"
    prompts = [_widget_text(prompt) for prompt in facts.prompts]
    if prompts:
        more["widget"] = [
            {"messages": [{"role": "user", "content": prompt}]} if facts.is_chat else {"text": prompt}
            for prompt in prompts
        ]
    if facts.energy is not None:
        more["co2_eq_emissions"] = {
            "emissions": float(f"{facts.energy['kg'] * 1000:.4g}"),  # in grams, as the Hub wants them
            "source": "CodeCarbon",
            "training_type": "fine-tuning" if facts.is_chat else "pre-training",
            "geographical_location": one_line(facts.energy["country"]),
            "hardware_used": one_line(facts.run["training"]["hardware"]),
        }
    return more


def _widget_text(prompt: str) -> str:
    """Return a prompt for the model's page: its lines without invisible characters, not endless."""
    lines = (_WIDGET_INVISIBLE.sub(" ", one_line(line)) for line in prompt.split("\n"))
    return "\n".join(lines).strip()[:_MAX_WIDGET_CHARACTERS]
