"""The chain of steps that clean one document, with the settings of its source; and those of the steps behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..checks import InputError, MissingPackageError, ensure, near_name
from ..cleaning import Drop
from ..cleaning.language import (
    LanguageConfig,
    NormaliseConfig,
    VarietyConfig,
    check_language,
    check_variety,
    ensure_identifier,
    ensure_normaliser,
    identify,
    normalise,
    variety_of,
)
from ..cleaning.page_text import (
    BoilerplateConfig,
    HtmlConfig,
    drop_if_emptied,
    ensure_html_reader,
    remove_boilerplate,
    text_of_html,
)
from ..cleaning.personal_data import PersonalDataConfig, mask_personal_data
from ..cleaning.quality import QualityConfig, check_quality
from ..data.input_files import resolve_files
from ..data.readers import read_records
from .config import BuildConfig, EvaluationSetConfig, SourceConfig, nested
from .decontamination import DecontaminationConfig, EvaluationIndex, item_texts
from .duplicates import preference_order
from .minhash import DuplicatesConfig
from .shards import Draft

# The steps in their order, each with its config. Language comes before quality, whose rules are for Portuguese, and
# personal data last, so that no rule sees a placeholder.
STEP_CONFIGS: dict[str, type] = {
    "html": HtmlConfig,
    "normalise": NormaliseConfig,
    "boilerplate": BoilerplateConfig,
    "language": LanguageConfig,
    "variety": VarietyConfig,
    "quality": QualityConfig,
    "personal_data": PersonalDataConfig,
}
Changes = dict[str, int]
StepFunction = Callable[[Draft, Any], tuple[Drop | None, Changes]]


@dataclass(frozen=True)
class Step:
    """One step of a source's chain.

    Attributes:
        name: as the passport and the config call it.
        function: changes a draft, and returns why it is dropped and what was changed.
        config: of the step.
        where: its key in the config.
    """

    name: str
    function: StepFunction
    config: Any
    where: str

    def __call__(self, draft: Draft) -> tuple[Drop | None, Changes]:
        """Apply the step to a draft."""
        return self.function(draft, self.config)


def _html(draft: Draft, config: HtmlConfig) -> tuple[Drop | None, Changes]:
    if not draft.is_page:
        return None, {}
    draft.text, changes = text_of_html(draft.page, config, draft.declared)
    draft.is_page, draft.page = False, b""
    return (None if draft.text.strip() else Drop("no text", 0, 1)), changes


def _normalise(draft: Draft, config: NormaliseConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = normalise(draft.text, config)
    return None, changes


def _boilerplate(draft: Draft, config: BoilerplateConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = remove_boilerplate(draft.text, config)
    return drop_if_emptied(draft.text, changes), changes


def _language(draft: Draft, config: LanguageConfig) -> tuple[Drop | None, Changes]:
    found = identify(draft.text, config.language)
    draft.notes["language_score"] = round(found.score, 4)
    return check_language(found, config), {}


def _variety(draft: Draft, config: VarietyConfig) -> tuple[Drop | None, Changes]:
    found = variety_of(draft.text)
    draft.notes["variety"] = found.variety
    return check_variety(found, config), {f"documents_in_{found.variety}": 1}


def _quality(draft: Draft, config: QualityConfig) -> tuple[Drop | None, Changes]:
    return check_quality(draft.text, config), {}


def _personal_data(draft: Draft, config: PersonalDataConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = mask_personal_data(draft.text, config)
    return None, changes


_FUNCTIONS: dict[str, StepFunction] = {
    "html": _html,
    "normalise": _normalise,
    "boilerplate": _boilerplate,
    "language": _language,
    "variety": _variety,
    "quality": _quality,
    "personal_data": _personal_data,
}


def build_chain(config: BuildConfig, source_name: str) -> list[Step]:
    """Return the steps of a source, those that are not switched off.

    Args:
        config: of the corpus.
        source_name: whose own settings come on top.

    Raises:
        InputError: a step that there is not, a setting that its config refuses, or a package that it needs.
    """
    source: SourceConfig = config.source_configs[source_name]
    unknown = [name for name in source.steps if name not in STEP_CONFIGS]
    ensure(
        not unknown,
        f"sources.{source_name}.steps.{(unknown or [''])[0]}: no such step of a source."
        f"{near_name((unknown or [''])[0], STEP_CONFIGS)} There are {', '.join(STEP_CONFIGS)}.",
    )
    steps = []
    for name, cls in STEP_CONFIGS.items():
        common, own = getattr(config, name), source.steps.get(name)
        if own is False or (common is False and own is None):
            continue
        where = name if own is None else f"sources.{source_name}.steps.{name}"
        settings = nested(cls, where, {**(common or {}), **(own or {})})
        steps.append(Step(name, _FUNCTIONS[name], settings, where))
    return steps


def ensure_packages_of(steps: list[Step]) -> None:
    """Check that the packages which the steps need are installed.

    Raises:
        MissingPackageError: one is not; the message has the pip line.
        InputError: the identifier does not know the language.
    """
    checks: dict[str, Callable[[Any], None]] = {
        "html": lambda _: ensure_html_reader(),
        "normalise": ensure_normaliser,
        "language": ensure_identifier,
    }
    for step in steps:
        if step.name in checks:
            try:
                checks[step.name](step.config)
            except MissingPackageError:
                raise
            except InputError as error:
                raise InputError(f"{step.where}.{error}") from error


def duplicates_config(config: BuildConfig) -> tuple[DuplicatesConfig, list[str]]:
    """Return the config of the step of duplicates, and the sources whose documents stay first.

    Raises:
        InputError: a setting is refused.
    """
    values = dict(config.duplicates or {})
    preferred = values.pop("prefer", [])
    preferred = [preferred] if isinstance(preferred, str) else preferred
    ensure(
        isinstance(preferred, list) and all(isinstance(name, str) for name in preferred),
        f"duplicates.prefer={preferred}: must be a list of sources.",
    )
    found: DuplicatesConfig = nested(DuplicatesConfig, "duplicates", values)
    try:
        found.check()
        preference_order(list(config.source_configs), preferred)
    except InputError as error:
        raise InputError(f"duplicates.{error}") from error
    return found, preferred


def evaluation_sets(config: BuildConfig) -> dict[str, EvaluationSetConfig]:
    """Return the evaluation sets by name; none where the step is left out.

    Raises:
        InputError: no set, or one that cannot be.
    """
    if config.decontamination is False:
        return {}
    sets = config.decontamination.get("sets")
    ensure(
        isinstance(sets, dict) and sets,
        "decontamination.sets: is missing. Name the evaluation sets: name: {inputs: [file], columns: [question]}; or "
        "set decontamination: false.",
    )
    return {str(name): nested(EvaluationSetConfig, f"decontamination.sets.{name}", place)
            for name, place in (sets or {}).items()}  # fmt: skip


def evaluation_index(config: BuildConfig) -> EvaluationIndex | None:
    """Return the items of all evaluation sets, or None where none is given.

    Raises:
        InputError: no set, a set that cannot be read, or a column that it does not have.
    """
    if config.decontamination is False:
        return None
    sets = evaluation_sets(config)
    values = {name: value for name, value in config.decontamination.items() if name != "sets"}
    settings = nested(DecontaminationConfig, "decontamination", values)
    items: dict[str, list[list[str]]] = {}
    for name, place in sets.items():
        key = f"decontamination.sets.{name}"
        items[name] = []
        for file in resolve_files(f"{key}.inputs", place.inputs):
            for row in read_records(f"{key}.inputs", file.path):
                try:
                    items[name].append(item_texts(row, place.columns))
                except InputError as error:
                    raise InputError(f"{key}.{error}") from error
    return EvaluationIndex.from_sets(items, settings)
