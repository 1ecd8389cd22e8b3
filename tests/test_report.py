"""`genlab report`: the page holds everything, loads nothing, runs no script of a stranger, and works when clicked."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from finished import run_folder
from PIL import Image

from genlab import cli
from genlab.results.page import pictures

pytest.importorskip("plotly")
EVIL = "<script>alert(1)<&script><img src=x onerror=alert(2)>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four runs in three settings, one with a name that is a script, and their page."""
    folder = tmp_path_factory.mktemp("report")
    for seed, bits in ((0, 1.25), (1, 1.75)):
        run_folder(folder / "runs" / f"a{seed}", f"seed={seed}", bits=bits)
    evil = run_folder(folder / "runs" / EVIL, "train.ema=0.5", bits=0.5)
    config = evil / "config.yaml"
    config.write_text(config.read_text().replace("fused: true", f"fused: {json.dumps('</script>' + EVIL)}"))
    metrics = evil / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("train/", f"train/{EVIL}/"))
    run_folder(folder / "runs" / "mnist", "data=mnist", bits=None)
    assert cli.run(["report", str(folder / "runs"), f"out={folder / 'page.html'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "page.html").read_text())


def test_the_page_refers_to_nothing_outside_itself(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
        assert "url(" not in attributes.get("style", "")
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert all(word.startswith("'sha256-") for word in rules["script-src"].split())
    assert "url(" not in page.text
    assert "@import" not in page.text
    ours = page.scripts[-1]
    assert not re.search(r"https?:|fetch\(|XMLHttp|WebSocket|innerHTML|insertAdjacent|import\(", ours)


def test_texts_of_runs_are_escaped(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3  # the data, plotly's and ours
    assert tags.count("img") == 4  # one for each run
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL in page.text  # as text
    data = json.loads(next(text for text in page.scripts if text.startswith("{")))
    assert EVIL in [run["name"] for run in data["runs"]]
    assert "<" not in page.scripts[0]


def test_curves_pictures_and_results_are_on_the_page(page, folder):
    runs = {run["name"]: run for run in json.loads(page.scripts[0])["runs"]}
    assert runs["a0"]["curves"]["valid/bits_per_dim"] == [[10, 3.0], [20, 2.0]]
    assert runs["a0"]["colour"] == runs["a1"]["colour"] != runs[EVIL]["colour"]
    assert runs["a0"]["measure"] == runs[EVIL]["measure"] != runs["mnist"]["measure"]
    (step, picture), _ = runs["a0"]["pictures"]["samples"]
    assert step == 10
    assert base64.b64decode(picture) == (folder / "runs" / "a0" / "samples" / "step=000010.png").read_bytes()
    assert "1.5000 ± 0.3536" in page.text
    assert "unfinished" in page.text


def test_only_whole_pngs_of_the_run_become_part_of_the_page(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    for step in range(100):
        Image.new("L", (4, 4), step).save(samples / f"step={step:06d}.png")
    found = pictures.pictures(tmp_path)["samples"]
    assert (len(found), found[0][0], found[-1][0]) == (pictures.MOST, 0, 99)
    for path in samples.iterdir():
        path.unlink()
    (tmp_path / "secret.png").write_text("a secret")
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    whole = (tmp_path / "picture.png").read_bytes()
    (samples / "step=000001.png").symlink_to(tmp_path / "picture.png")
    (samples / "step=000002.png").write_text("no picture")
    (samples / "step=000003.png").write_bytes(whole[:40])
    Image.new("L", (5000, 5000)).save(samples / "step=000004.png")
    (samples / "notes.png").write_bytes(whole)
    (tmp_path / "completions").symlink_to(samples)
    assert pictures.pictures(tmp_path) == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [([], "needs run folders"), (["nowhere"], "does not exist"), (["runs", "out=page.txt"], ".html")],
    ids=" ".join,
)
def test_wrong_requests_are_one_sentence_and_write_nothing(words, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "runs" / "a")
    assert cli.run(["report", *words]) == 2
    assert sentence in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_missing_package_is_named(folder, monkeypatch, capfd):
    monkeypatch.setattr("genlab.results.page.page.find_spec", lambda name: None)
    assert cli.run(["report", str(folder / "runs"), f"out={folder / 'other.html'}"]) == 2
    assert "pip install plotly" in capfd.readouterr().err


# ---- in a browser


@pytest.fixture
def browser(fresh):
    """Chromium without a window and without a network."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_the_page_sorts_filters_and_slides(folder, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong, requests = [], []
    page.on("pageerror", lambda error: wrong.append(error))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: (wrong.append("a script of a run"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((folder / "page.html").as_uri())

    def names():
        return page.locator("#runs tbody tr:visible th").all_inner_texts()

    page.locator("#runs thead button", has_text="test").click()
    assert names() == [EVIL, "a0", "a1", "mnist"]  # without a number at the end
    page.locator("#runs thead button", has_text="test").click()
    assert names() == ["a1", "a0", EVIL, "mnist"]
    assert page.locator("#runs thead th", has_text="test").get_attribute("aria-sort") == "descending"

    assert page.locator(".chart").count() == 2  # values of two data sets are apart
    assert page.locator(".chart .scatterlayer .trace").count() == 7  # the last run has another name for one
    assert page.locator(".chart").first.locator(".modebar-btn").count() == 4  # none that sends data to plotly's makers
    page.locator("#filter").fill("a seed=1")
    assert names() == ["a1"]
    assert page.locator("#count").inner_text() == "1 of 4 runs"
    assert page.locator(".chart .scatterlayer .trace").count() == 2
    assert page.locator("#cards figure:visible").count() == 1
    assert page.locator("#configs thead th:visible").all_inner_texts() == ["key", "a1"]
    page.locator(".chart .point").first.hover(force=True)
    page.locator(".hoverlayer", has_text="step 10").wait_for()
    page.locator("#filter").fill("")
    assert len(names()) == 4

    image = page.locator("#cards img").first
    last = image.get_attribute("src")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#at").inner_text() == "10"
    assert image.get_attribute("src") != last
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8

    shown = page.locator("#configs tbody tr:visible").count()
    assert "train.ema" in page.locator("#configs tbody tr:visible th").all_inner_texts()
    page.locator("#differences").uncheck()
    assert page.locator("#configs tbody tr:visible").count() > shown > 0

    page.set_viewport_size({"width": 400, "height": 800})
    for _ in range(50):  # plotly redraws after a while
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 400:
            page.wait_for_timeout(100)
    assert width <= 400
    assert not wrong
    assert all(url.startswith(("data:", "blob:")) for url in requests[1:]), requests
