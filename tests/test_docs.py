"""Numbers in README and docs are those of the committed files, and what the pages name exists."""

import json
import re

import pytest
from commands import ROOT

from fada_jax.errors import UserError
from fada_jax.methods import SYSTEMS
from fada_jax.reporting import paper
from fada_jax.scripts import docs_numbers
from fada_jax.scripts.pages import systems

PAGES = {str(page.relative_to(ROOT)): page for page in docs_numbers.pages()}
# Of all pages in docs/ but those that are generated as a whole.
WORDS, APPENDIX = 11_500, "docs/errors.md"
GENERATED = (APPENDIX, "docs/configs.md")
# Decimals that are settings, definitions, versions or the paper's numbers, not measurements of ours.
SETTINGS = {
    *("0.001", "0.01", "0.03", "0.1", "0.2", "0.5", "0.7", "0.9", "1.0", "1.01", "1.3", "1.5", "1.8", "7.5"),
    *("1e-14", "1e-6", "1e-5", "1e-4", "2.5e-4", "5e-4", "2.0", "3.11", "3.13", "0.10.2", "0.17.1", "2.21"),
}


@pytest.fixture(scope="module")
def results():
    return docs_numbers.read_results()


@pytest.mark.parametrize("page", PAGES)
def test_every_number_is_that_of_its_file(page, results):
    text = PAGES[page].read_text()
    assert docs_numbers.fill(text, results) == text, "run make docs-numbers"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("docs/configs.md", "docs/interface.md")])
def test_no_measured_number_is_typed(page):
    left_out = r"<!-- numbers:.*?<!-- /numbers -->|<!--=.*?<!--/-->|```.*?```|`[^`\n]*`|\]\([^)]*\)|\d{4}-\d\d-\d\d"
    text = re.sub(left_out, "", PAGES[page].read_text(), flags=re.DOTALL)
    typed = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)+(?:e-\d+)?|(?<![\w.])\d+e-\d+", text)) - SETTINGS
    assert not typed, f"{typed}: put a measured number into docs/results and mark its place"


def test_a_changed_number_changes_the_page(results):
    page = PAGES["README.md"].read_text()
    changed = json.loads(json.dumps(results))
    changed["gta5"]["mean"]["adapted"] += 1
    changed["experiments"]["demo"]["minutes"] = 99
    filled = docs_numbers.fill(page, changed)
    assert filled != page and "about <!--=experiments.demo.minutes-->99<!--/--> minutes" in filled
    assert docs_numbers.fill(filled, results) == page


def test_a_name_that_is_not_there_is_refused(results):
    for text in ("<!--=gta5.mean.nothing-->1<!--/-->", "<!-- numbers:tuning.nothing -->\n<!-- /numbers -->"):
        with pytest.raises(UserError, match="nothing is called 'nothing'"):
            docs_numbers.fill(text, results)


def test_components_are_summarised_as_by_hand(tmp_path):
    path = tmp_path / "x_components.csv"
    path.write_text(
        "seed,source_only,colour_matching_global,colour_matching_image,adapted\n0,1,2,1,4\n1,2,2,1,7\n2,3,2,1,7\n"
    )
    task = docs_numbers.components(path)
    assert task["mean"]["adapted"] == 6 and task["sd"]["source_only"] == 1 and task["scores"]["matched"] == [2, 2, 2]
    gain = task["over"]["source_only"]["adapted"]  # 3, 5, 4; t(0.975, 2) = 4.3027.
    assert gain["mean"] == 4
    assert gain["high"] - gain["mean"] == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_systems_are_those_of_the_tables(results):
    """Every row of the paper's tables 1 to 3 and every system that adapts; ours are empty until they are measured."""
    page, own = PAGES["docs/systems.md"].read_text(), {method for method in systems.PRINTED.values() if method}
    sources = {"Source DeepLab-v2", "Source Dilation-Frontend", "FADA-MST"}
    assert {row.method for task in paper.CLASS_SETS for row in paper.rows(task)} == (own - {"hard"}) | sources
    assert all(f"<!--=system.{name}.code-->" in page for name in systems.PRINTED)
    assert all(f"`{name}`" in page for name, system in SYSTEMS.items() if system.adapts)
    facts = systems.system_facts({})
    assert facts["siban"]["status"] == "not here" and facts["fada"]["code"] == "`fada.py`"
    assert facts["fada"]["ours"] == "" and facts["clan"]["paper"].startswith("43.2 / 47.8\\* ResNet-101; 36.6 / ")
    assert facts["crosscity"]["paper"] == "Rome 42.9, Rio 42.5, Tokyo 42.8, Taipei 39.6"
    measured = systems.system_facts({"tasks": {"gta5_to_cityscapes": {"fada": {"text": "29.3 ± 0.8"}}}})
    assert measured["fada"]["ours"] == "29.3 ± 0.8 / -" and measured["fada"]["status"] == "measured"
    changed = docs_numbers.fill(page, {**results, "system": measured})
    assert "<!--=system.fada.ours-->29.3 ± 0.8 / -<!--/-->" in changed
    task = {"source_only": {"label": "source only", "seeds": {"0": 20.0, "1": 22.0, "2": 21.0}}}
    task |= {"control": task["source_only"]}
    task["clan"] = {"label": "CLAN", "seeds": {"0": 23.0, "1": 27.0, "2": 25.0}}  # As above: 3, 5, 4.
    text = docs_numbers.fill("<!-- numbers:systems.t -->\n<!-- /numbers -->", {"systems": {"tasks": {"t": task}}})
    assert "|CLAN|23.0|27.0|25.0|25.0 ± 2.0|+4.0 [+1.5, +6.5]||" in text


def test_pages_are_short():
    pages = {page: path for page, path in PAGES.items() if page not in ("README.md", *GENERATED)}
    words = {page: len(path.read_text().split()) for page, path in pages.items()}
    assert sum(words.values()) <= WORDS, words
    assert len(PAGES["README.md"].read_text().splitlines()) <= 150


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        if page != "README.md":
            assert f"- {page.removeprefix('docs/')}\n" in navigation


def test_links_of_the_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), (page, target)


def test_commands_of_the_readme_are_those_of_make():
    readme, makefile = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "Makefile"))
    for command in ("--numprocesses=2 --dist=loadfile --no-loadscope-reorder", "-c constraints.txt"):
        assert command in readme and command in makefile
