"""The site: the guides in English and Portuguese, the pages for engineers, and the library's own interface.

    python docs/site/build.py        # or make docs; then: python -m http.server --directory build/site

Zensical makes one site a language, so that menus and search speak it: English at the top, Portuguese in `pt/`. Both
have the same pages under the same names. Of `docs/` a copy is made in `build/docs/LANGUAGE/`; there `guides/LANGUAGE`
becomes `guides`, and links follow. A link or a page that is missing fails the build. No network is used.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refusals import collect_refusals, refusals_page

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCS, SITE = REPOSITORY / "docs", REPOSITORY / "docs" / "site"
# Where the repository and the site are on the web; while empty, links to files of the repository are plain text.
REPOSITORY_URL = ""
SITE_URL = ""

# The pages of each section, in the order of the menu. A page that is not there yet is left out, in both languages.
BEGIN = ("first-model", "own-texts", "instruction-tuning", "export")
GROW = ("budget", "cluster", "evaluation", "votes", "energy", "publishing")
HELP = ("trouble", "refusals", "questions")
REFERENCE = ("corpus", "recipe", "evaluation", "people", "export", "reliability")
MEASURED = ("performance", "gpu", "plan-500-usd", "lab-log")
# The journal is long and about everything, so search would find it before the page that helps.
NOT_SEARCHED = ("lab-log.md",)
# The modules whose docstrings are pages: what a program imports, and the configs behind the verbs' keys.
MODULES = (
    "models", "presets", "tokenizer.train", "data.pack", "data.packed", "training.config", "tuning.config",
    "evaluation.config", "planning.config", "corpus.config", "export.export", "chat.generation", "stage_folder",
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """What differs between the two sites.

    Attributes:
        code: `en` or `pt`, as the folder of the guides is called.
        theme: the theme's name for the language.
        place: folder of the site below `build/site`.
        words: titles of sections and columns.
    """

    code: str
    theme: str
    place: str
    words: dict[str, str]


LANGUAGES = (
    Language(
        "en",
        "en",
        "",
        {
            "home": "Home", "begin": "Begin", "grow": "Go further", "help": "Help", "reference": "Reference",
            "measured": "Measured", "api": "Python", "message": "message",
            "failed": "exit code 1", "to_dark": "Dark", "to_light": "Light",
            "description": "Make an open Portuguese language model of your own",
        },
    ),
    Language(
        "pt",
        "pt-BR",
        "pt",
        {
            "home": "Início", "begin": "Comece aqui", "grow": "Vá além", "help": "Ajuda",
            "reference": "Referência (em inglês)", "measured": "Medições (em inglês)", "api": "Python (em inglês)",
            "message": "mensagem", "failed": "código de saída 1",
            "to_dark": "Escuro", "to_light": "Claro",
            "description": "Faça o seu próprio modelo de linguagem aberto em português",
        },
    ),
)  # fmt: skip

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LIST_OR_TABLE = re.compile(r"\s*(?:[*+-] |\d+\. |\|)")


def place_of(path: Path, language: Language) -> Path | None:
    """Return where a file of docs/ lies among a site's pages; None if it belongs to the other language or to none."""
    parts = path.relative_to(DOCS).parts
    if parts[0] == "guides" and len(parts) == 3:
        if parts[1] != language.code:
            return None
        return Path("index.md") if parts[2] == "index.md" else Path("guides", parts[2])
    if parts[0] == "images":
        return Path(*parts)
    return Path("reference", parts[0]) if len(parts) == 1 and path.suffix == ".md" else None


def follow_links(text: str, source: Path, language: Language) -> str:
    """Return a page's Markdown with its links leading from its place in the site to the places of their targets.

    Raises:
        SystemExit: a link leads to a file that does not exist, or into the other language.
    """
    here = place_of(source, language)
    assert here is not None

    def follow(match: re.Match[str]) -> str:
        picture, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = Path(os.path.normpath(source.parent / target))
        if not path.exists():
            raise SystemExit(f"{source.relative_to(REPOSITORY)}: {target}: no such file")
        place = place_of(path, language) if path.is_relative_to(DOCS) else None
        if place is not None:
            return f"{picture}[{label}]({os.path.relpath(place, here.parent)}{anchor})"
        if path.is_relative_to(DOCS / "guides"):
            raise SystemExit(f"{source.relative_to(REPOSITORY)}: {target}: is of the other language")
        if not REPOSITORY_URL:
            return label
        return f"[{label}]({REPOSITORY_URL}/blob/main/{path.relative_to(REPOSITORY).as_posix()}{anchor})"

    return _outside_code(text, lambda part: _LINK.sub(follow, part))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return the text with `change` applied to what stands outside fenced blocks."""
    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.M | re.S)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def separate_blocks(text: str) -> str:
    """Return Markdown with an empty line before lists and tables: the site's parser asks for it, unlike GitHub."""

    def separate(part: str) -> str:
        lines: list[str] = []
        for line in part.split("\n"):
            begins = _LIST_OR_TABLE.match(line) is not None
            if begins and lines and lines[-1].strip() and not _continues(lines, line):
                lines.append("")
            lines.append(line)
        return "\n".join(lines)

    return _outside_code(text, separate)


def _continues(lines: list[str], line: str) -> bool:
    """Return whether a line of a list or table goes on with one that has begun above."""
    if line.lstrip().startswith("|"):
        return lines[-1].lstrip().startswith("|")
    for before in reversed(lines):
        if not before.strip():
            return False
        if _LIST_OR_TABLE.match(before) and not before.lstrip().startswith("|"):
            return True
    return False


def title_of(path: Path) -> str:
    """Return the first heading of a page.

    Raises:
        SystemExit: it has none.
    """
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise SystemExit(f"{path}: has no heading `# ...`")
    return found[1].replace("`", "").strip()


def write_pages(pages: Path, language: Language) -> None:
    """Write the Markdown of one site: guides and pages for engineers copied, messages and interface made."""
    for source in sorted(DOCS.rglob("*")):
        place = place_of(source, language) if source.is_file() else None
        if place is None:
            continue
        target = pages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = follow_links(source.read_text(encoding="utf-8"), source, language)
            head = "---\nsearch:\n  exclude: true\n---\n\n" if source.name in NOT_SEARCHED else ""
            target.write_text(head + separate_blocks(text), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    with (pages / "guides" / "refusals.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{refusals_page(collect_refusals(), language.words)}")
    (pages / "api").mkdir()
    for module in MODULES:
        page = f"# teenytinyllama.{module}\n\n::: teenytinyllama.{module}\n"
        (pages / "api" / f"{module}.md").write_text(page, encoding="utf-8")
    (pages / "assets").mkdir()
    shutil.copyfile(SITE / "site.css", pages / "assets" / "site.css")
    shutil.copyfile(SITE / "vendor" / "mermaid.tiny.js", pages / "assets" / "mermaid.tiny.js")


def menu(pages: Path, language: Language) -> list[dict[str, object]]:
    """Return the site's menu: sections of pages with their titles."""

    def section(name: str, folder: str, names: tuple[str, ...]) -> dict[str, object]:
        files = [pages / folder / f"{page}.md" for page in names]
        entries = [
            {title_of(file).removeprefix("teenytinyllama."): f"{folder}/{file.name}"} for file in files if file.exists()
        ]
        return {language.words[name]: entries}

    sections = [
        section("begin", "guides", BEGIN),
        section("grow", "guides", GROW),
        section("help", "guides", HELP),
        section("reference", "reference", REFERENCE),
        section("measured", "reference", MEASURED),
        section("api", "api", MODULES),
    ]
    filled = [part for part in sections if any(part.values())]
    return [{language.words["home"]: "index.md"}, *filled]


def as_toml(value: object) -> str:
    """Return lists of tables of texts, such as the menu, in TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {as_toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_settings(work: Path, language: Language, site_url: str) -> None:
    """Write zensical.toml of one site from the template beside this file."""
    text = (SITE / "zensical.toml").read_text(encoding="utf-8")
    here = f"{site_url.rstrip('/')}/{language.place}".rstrip("/") + "/" if site_url else ""
    filled = {
        "NAV": as_toml(menu(work / "pages", language)), "SITE_URL": here, "THEME_LANGUAGE": language.theme,
        "SEARCH_LANGUAGE": language.code, "SOURCE": REPOSITORY.as_posix(), "TO_DARK": language.words["to_dark"],
        "TO_LIGHT": language.words["to_light"], "DESCRIPTION": language.words["description"],
        "TO_ENGLISH": "../" if language.place else "./", "TO_PORTUGUESE": "./" if language.place else "pt/",
    }  # fmt: skip
    text = re.sub(rf"\b(?:{'|'.join(filled)})\b", lambda match: filled[match[0]], text)
    (work / "zensical.toml").write_text(text, encoding="utf-8")


def build(output: Path, site_url: str) -> None:
    """Build both languages into `output`, which is replaced.

    Raises:
        SystemExit: a page, a link or a name in a docstring is missing; Zensical has printed which.
    """
    work = output.parent / "docs"
    for folder in (output, work):
        shutil.rmtree(folder, ignore_errors=True)
    for language in LANGUAGES:
        place = work / language.code
        write_pages(place / "pages", language)
        shutil.copytree(SITE / "theme", place / "theme")
        write_settings(place, language, site_url)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(place / "zensical.toml")]
        if subprocess.run(command, cwd=place, check=False).returncode:
            raise SystemExit(f"the site in {language.code} was not built: see above")
        shutil.copytree(place / "html", output / language.place, dirs_exist_ok=True)


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "site", help="folder, replaced")
    parser.add_argument("--site_url", default=SITE_URL, help="address at which the site will be, for its map of pages")
    options = parser.parse_args()
    build(options.output.absolute(), options.site_url)
    sys.stdout.write(f"{options.output}/index.html; python -m http.server --directory {options.output}\n")


if __name__ == "__main__":
    main()
