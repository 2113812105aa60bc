"""The site: it builds strictly, asks no other host for anything, and has every page in both languages."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SITE = REPOSITORY / "docs" / "site"
GUIDES = REPOSITORY / "docs" / "guides"

pytest.importorskip("zensical", reason="needs the extra: pip install 'teenytinyllama[docs]'")


def load(name: str) -> ModuleType:
    """A program of docs/site as a module; the folder is no package."""
    sys.path.insert(0, str(SITE))
    try:
        spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SITE))
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, str(SITE / "build.py"), "--output", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path, place: str) -> set[str]:
    return {
        path.parent.relative_to(site / place).as_posix()
        for path in (site / place).rglob("index.html")
        if place or path.relative_to(site).parts[0] != "pt"
    }


@pytest.mark.slow
def test_both_languages_have_the_same_pages(site: Path) -> None:
    assert pages(site, "") == pages(site, "pt")
    assert {path.name for path in (GUIDES / "en").iterdir()} == {path.name for path in (GUIDES / "pt").iterdir()}
    guides = {path.stem for path in (GUIDES / "en").glob("*.md")} - {"index"}
    assert {f"guides/{name}" for name in guides} <= pages(site, "")
    assert {"reference/corpus", "reference/lab-log", "api/models"} <= pages(site, "")


def test_every_guide_is_in_the_menu() -> None:
    build = load("build")
    listed = {*build.BEGIN, *build.GROW, *build.HELP, "index"}
    assert {path.stem for path in (GUIDES / "en").glob("*.md")} <= listed


@pytest.mark.slow
def test_a_page_asks_no_other_host_for_anything(site: Path) -> None:
    """What a browser loads by itself: scripts, styles, pictures, fonts, frames. Links are for the reader to follow."""
    loading = re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data)\s*=\s*[\"']?(?:https?:)?//[^\"'>\s]*"
        r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*"
    )
    checked = list(site.rglob("*.html"))
    assert len(checked) > 40
    for page in checked:
        assert loading.search(page.read_text(encoding="utf-8")) is None, page
    for style in site.rglob("*.css"):
        assert re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) is None, style


@pytest.mark.slow
def test_mermaid_is_loaded_from_the_site_where_a_page_has_a_diagram(site: Path) -> None:
    for page, own in ((site / "index.html", "./assets/"), (site / "pt" / "index.html", "./assets/")):
        text = page.read_text(encoding="utf-8")
        assert '<pre class="mermaid">' in text
        mermaid, theme = text.index(f'src="{own}mermaid.tiny.js"'), text.index("javascripts/bundle")
        assert mermaid < theme, "the theme's program would ask a CDN for it"
        assert (page.parent / own / "mermaid.tiny.js").stat().st_size > 1_000_000
    assert "mermaid.tiny.js" not in (site / "guides" / "trouble" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_links_to_the_other_language_lead_to_the_same_page(site: Path) -> None:
    for page in (path for path in site.rglob("index.html")):
        found = re.search(r'class="site-language" href="([^"]+)"', page.read_text(encoding="utf-8"))
        assert found is not None, page
        other = (page.parent / found[1] / "index.html").resolve()
        here = page.relative_to(site)
        wanted = Path(*here.parts[1:]) if here.parts[0] == "pt" else Path("pt") / here
        assert other.relative_to(site.resolve()) == wanted


@pytest.mark.slow
def test_search_speaks_both_languages(site: Path) -> None:
    for place, word in (("", "tokenizer"), ("pt", "tokenizador")):
        text = (site / place / "search.json").read_text(encoding="utf-8")
        assert word in text
        assert "Keep one of the two lines" in text, "a refusal of arguments.py"
        assert "reference/gpu/" in text
        assert "reference/lab-log/" not in text
    assert 'lang="pt-BR"' in (site / "pt" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_refusal_is_found(site: Path) -> None:
    refusals = load("refusals")
    found = refusals.collect_refusals()
    assert len(found) > 700
    assert {"refused", "failed"} == {refusal.kind for refusal in found}
    text = html.unescape((site / "guides" / "refusals" / "index.html").read_text(encoding="utf-8"))
    missing = [refusal.message for refusal in found if refusal.message not in text]
    assert missing == []
    assert any("Keep one of the two lines" in refusal.message for refusal in found)


def test_messages_are_read_as_a_user_sees_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "FIX = 'Mend it.'\n"
        "class NearError(InputError): pass\n"
        "ensure(x > 0, f'x={x}: must be positive, not {x + 1}. ' + FIX)\n"
        "raise NearError(f'{a.very_long_call(with_arguments, and_more)} is near' if near else 'far')\n"
        "raise RunFailedError('stopped')\n"
        "raise ValueError('not ours')\n"
        "ensure(y, text)\n"
        "def check(z):\n"
        "    why = f'{z} is odd'\n"
        "    ensure(z, why)\n"
        "    raise InputError(_far(z))\n"
        "def _far(z):\n"
        "    return 'far' if z else 'very far'\n"
    )
    found = load("refusals").collect_refusals(tmp_path)
    assert [(refusal.line, refusal.kind, refusal.message) for refusal in found] == [
        (3, "refused", "x={x}: must be positive, not {x + 1}. Mend it."),
        (4, "refused", "{...} is near | far"),
        (5, "failed", "stopped"),
        (10, "refused", "{z} is odd"),
        (11, "refused", "far | very far"),
    ]


def test_troubles_quote_what_the_library_says() -> None:
    """Each heading of the trouble pages is part of a message that exists; Linux says the one of a full disk."""
    messages = " ".join(refusal.message for refusal in load("refusals").collect_refusals())
    messages += " No space left on device is not valid UTF-8 set check_first_loss: false to go on"
    for language in ("en", "pt"):
        text = (GUIDES / language / "trouble.md").read_text(encoding="utf-8")
        headings = [line for line in text.splitlines() if line.startswith("## `")]
        assert len(headings) == 15
        for quoted in re.findall(r"`([^`]+)`", " ".join(headings)):
            for part in quoted.split(" ... "):
                assert part in messages, part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A\n\n[x](nothing.md)", "nothing.md: no such file"),
        ("# A\n\n[x](../pt/export.md)", "is of the other language"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(text: str, message: str) -> None:
    build = load("build")
    with pytest.raises(SystemExit, match=message):
        build.follow_links(text, GUIDES / "en" / "export.md", build.LANGUAGES[0])


def test_links_and_blocks_become_what_the_site_reads() -> None:
    build = load("build")
    english = build.LANGUAGES[0]
    text = "[a](../../gpu.md#x) ![b](../../images/gpu-progress.png) [c](../../../recipes/pack.py) [d](#d) `[e](f)`"
    followed = build.follow_links(text.replace(" `[e](f)`", ""), GUIDES / "en" / "export.md", english)
    assert followed == "[a](../reference/gpu.md#x) ![b](../images/gpu-progress.png) c [d](#d)"
    assert build.follow_links("```md\n[x](y)\n```", GUIDES / "en" / "export.md", english) == "```md\n[x](y)\n```"
    assert (
        build.separate_blocks("Text:\n* one\n* two\nof it\n| a |\n|---|")
        == "Text:\n\n* one\n* two\nof it\n\n| a |\n|---|"
    )


def test_a_page_without_a_heading_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("no heading")
    with pytest.raises(SystemExit, match="has no heading"):
        load("build").title_of(tmp_path / "page.md")


@pytest.mark.slow
def test_in_a_browser(browser: Any, site: Path) -> None:
    """The diagram is drawn, search finds a message, and nothing is asked of another host, on a desktop and a phone."""
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, asked = f"http://127.0.0.1:{server.server_port}/", []
    try:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.on("request", lambda request: asked.append(request.url))
            for place in ("", "pt/"):
                page.goto(address + place)
                page.wait_for_selector("div.mermaid", state="attached", timeout=60_000)
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            page.keyboard.press("Control+k")
            page.wait_for_timeout(1000)  # until the field has the keyboard
            page.keyboard.type("Keep one of the two lines")
            page.get_by_text("arguments.py").first.wait_for(timeout=60_000)
            page.keyboard.press("Escape")
            page.goto(address + "pt/guides/trouble/")
            page.locator("a.site-language").click()
            page.wait_for_url(address + "guides/trouble/")
            page.close()
    finally:
        server.shutdown()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
