"""The page of a run: what enters it, how large it gets, and what a reader can do with it in a browser."""
import base64
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY

import sample as G
import train as T
from common import page as P
from common.checkpoint import models
from common.score import influence, verdict
from data.text import Tokenizer

HOSTILE = ("</script><script>hacked = 1</script>\n<img src=x onerror=\"hacked = 2\"> <b onmouseover=hacked=3>&lt;\n"
           "]]> <!-- \\u003c \u2028\u2029 \U0001f30a שלום مرحبا \u202eright to left\u202c \x00\x07\x1b[31m\x7f e\u0301 \ufeff'\"`${1}\n")


# A small model with everything that a page can show. It sees the future if told to.

@dataclass
class Config:
    vocab_size: int = 256
    block_size: int = 16
    leaky: bool = False


class Toy(torch.nn.Module):
    def __init__(self, config=Config()):
        super().__init__()
        torch.manual_seed(0)
        self.config = config
        self.embedding = torch.nn.Embedding(config.vocab_size, 8)
        self.head = torch.nn.Linear(8, config.vocab_size)

    def forward(self, idx, targets=None, state=None):
        x = self.embedding(idx)
        state = {} if state is None else state
        before = state.get("x", torch.zeros_like(x[:, :1]))
        state["x"] = x[:, -1:]
        x = x + torch.cat((before, x[:, :-1]), 1)               # a token and the one before it
        if self.config.leaky:
            x = x + x.mean(1, keepdim=True)
        return 2 * self.head(x), None


def trace(model, idx):
    n = idx.shape[1]
    angle = torch.linspace(0, 6, n)
    ring = torch.stack((angle.cos(), angle.sin(), 0 * angle), -1)
    return {"warmth": (torch.arange(3 * n).reshape(3, n) - n, "K", "counts from below zero"),
            "charge </script>": (np.where(np.arange(n) % 5, 0.5, np.nan), "e & <b>", "a number per token"),
            "orbit": (torch.stack((ring, ring.roll(1, -1))), "", "goes round in a ring")}


def portrait(model, tokens, path):
    from matplotlib.figure import Figure
    ax = Figure(figsize=(3, 2)).subplots()
    ax.plot(tokens[:50])
    ax.figure.savefig(path)


def write(path, text=HOSTILE, model=None, steps=(0, 10, 20), live=False, counter=None):
    """A page of a run of the toy on this text, with a moment for each of the steps."""
    tokenizer = Tokenizer({"kind": "byte"})
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
    data = SimpleNamespace(train=ids, val=ids, bits=1 / math.log(2), meta={})
    about = {"name": "<i>toy</i>", "config": {"note": HOSTILE}, "train": vars(T.Train(dataset="a/<b>.txt"))}
    model = model or Toy()
    for step in steps:
        progress = T.Progress(step, step / 2, rows=[[0, 0.0, "", 4.0, 5.0, 0, 0]])
        progress.rows += [[i, i / 2, 4 - i / 20, 4 - i / 20 if i in steps else "", "", 0, 0] for i in range(1, step + 1)]
        progress.samples = [f"--- iteration {step}\n{HOSTILE} at {step}\n\n"]
        going = live or step < steps[-1]
        P.write_run(path.parent, model, data, tokenizer, about, progress, step / 20 if going else 1, going, counter=counter)
    return P.read_page(path.parent / "index.html")


def brute_force(model, idx):
    """KL(before || after) in float64, one pair of passes for each token."""
    T = len(idx)
    model = model.double().eval()
    predict = lambda idx: torch.log_softmax(model(torch.as_tensor(idx)[None])[0][0], -1).detach().numpy()
    kl = np.zeros((T, T))
    for i in range(T):
        other = np.array(idx)
        other[i] = idx[(i - T // 2) % T]
        if other[i] == idx[i]:
            other[i] = (idx[i] + 1) % model.config.vocab_size
        p, q = predict(idx), predict(other)
        for j in range(T):
            kl[i, j] = sum(np.exp(p[j]) * (p[j] - q[j]))
    return kl


@pytest.mark.parametrize("name", models())
def test_influence_is_that_of_brute_force(name):
    module = T.load_model(name)
    torch.manual_seed(0)
    model = module.Model(module.Config(vocab_size=11, block_size=16, n_layer=1, n_embd=16)).train()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    idx = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9])
    kl = influence(model, idx)
    assert kl.shape == (13, 13) and (kl >= 0).all() and model.training
    assert not np.tril(kl, -1).any() and verdict(kl)[0] == 0
    truth = brute_force(model, idx)
    assert abs(kl - truth).max() < 1e-5 * truth.max(), abs(kl - truth).max()


def test_influence_of_a_large_vocabulary_and_of_one_token():
    kl = influence(Toy(Config(vocab_size=20000)), np.arange(32))
    assert kl.any(0).all() and not np.triu(kl, 2).any()       # the next prediction, no later one
    assert influence(Toy(), [7]).shape == (1, 1) and verdict(influence(Toy(), [7]))[0] == 0
    assert influence(Toy(), [7, 7, 7]).diagonal().all()                            # a token that differs is found


def test_a_leak_is_measured():
    idx = [*b"tokens see the f"]
    kl = influence(Toy(Config(leaky=True)), idx)
    nats, sentence = verdict(kl)
    truth = brute_force(Toy(Config(leaky=True)), idx)
    assert nats == pytest.approx(np.tril(truth, -1).max(), rel=1e-3) and nats > 0.01
    token, prediction, said = re.search(r"token (\d+) .* token (\d+) by (\S+) nats; its loss is not to be", sentence).groups()
    assert int(token) > int(prediction) and float(said) == pytest.approx(nats, rel=0.1)


def test_numbers_keep_three_digits():
    x = np.array([[0, 1, -2.345678, 1e-9], [np.nan, np.inf, -np.inf, 3e38]])
    packed = json.loads(json.dumps(P.pack(x)))
    half = np.frombuffer(base64.b64decode(packed["data"]), "<u2").astype("<u4")
    back = (half << 16).view("<f4").reshape(packed["shape"])
    np.testing.assert_allclose(back, x, rtol=1 / 256)


def test_halves_of_characters_have_a_name():
    tokenizer = Tokenizer({"kind": "byte"})
    ids = list("aé\U0001f30a".encode()) + [0xff]
    spelled = P.spell(tokenizer, ids, [{"likeliest": [[65, 66]]}])
    assert spelled["text"] == ["a", "", "é", "", "", "", "\U0001f30a", "\ufffd"]
    assert spelled["names"][0xc3] == "\\xc3" and spelled["names"][65] == "A" and spelled["ids"] == ids


def test_text_enters_the_page_as_data(tmp_path):
    data = write(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    template = P.TEMPLATE.read_text()
    for tag in ("<script", "</script", "<img", "<b", "<!--"):
        assert page.count(tag) == template.count(tag), tag
    assert not re.search("[\u2028\u2029\x00]", page) and len(page) == len(page.encode())
    assert not re.search(r"https?:|//\w|\beval\b|innerHTML|src=", template)
    assert data["settings"]["note"] == HOSTILE and HOSTILE.strip("\n") in data["moments"][-1]["sample"]
    assert b"".join(bytes([i]) for i in data["ids"]).decode(errors="ignore") in HOSTILE
    assert [m["step"] for m in data["moments"]] == [0, 10, 20] and not data["live"]


def test_a_page_stays_below_two_megabytes(tmp_path):
    data = write(tmp_path / "index.html")
    moment = data["moments"][-1]
    moments = [moment | {"step": i, "portrait": "x" * 150_000} for i in range(31)]
    P.thin(moments)
    steps = [m["step"] for m in moments]
    assert len(steps) == 12 and steps[0] == 0 and steps[-1] == 30 and max(np.diff(steps)) <= 4
    P.write_page(tmp_path / "large.html", data | {"moments": list(moments)})
    assert 1e6 < os.path.getsize(tmp_path / "large.html") <= 2e6
    kept = [m["step"] for m in P.read_page(tmp_path / "large.html")["moments"]]
    assert kept[-1] == 30 and set(kept) < set(steps)
    P.write_page(tmp_path / "huge.html", data | {"moments": [m | {"portrait": "x" * 3_000_000} for m in moments]})
    assert [m["step"] for m in P.read_page(tmp_path / "huge.html")["moments"]] == [30]


def test_what_is_not_a_page(tmp_path):
    for content in (b"", b"<html>", b'<script type="application/json" id="data">{"a": </script>', b"\xff\xfe\x00"):
        (tmp_path / "index.html").write_bytes(content)
        assert P.read_page(tmp_path / "index.html") == {}
    assert P.read_page(tmp_path / "none.html") == {} and P.read_page(tmp_path) == {}


# Runs.

def page_of(folder):
    return P.read_page(folder / "index.html")


def test_a_run_writes_its_page(inside, text_file, tmp_path, capsys):
    args = [*TINY, f"dataset={text_file}", "eval_interval=1"]
    inside(*args, "max_iters=3")
    out, data = tmp_path / "out/momentum", page_of(tmp_path / "out/momentum")
    said = capsys.readouterr().out
    assert "open out/momentum/index.html and watch" in said and "does not see the future" in said
    assert [m["step"] for m in data["moments"]] == [0, 1, 2, 3] and not data["live"] and data["done"] == 1
    assert data["name"] == "momentum on play.txt" and data["moments"][-1]["portrait"].startswith("data:image/webp")
    assert len(data["validation"]) == 4 and len(data["training"]) == 3 and data["settings"]["n_embd"] == 16
    assert data["moments"][0]["sample"] in (out / "sample.txt").read_text()
    inside("resume=true", "max_iters=5")
    assert [m["step"] for m in page_of(out)["moments"]] == [0, 1, 2, 3, 4, 5]
    inside(*args, "max_iters=1", "overwrite=true")
    assert [m["step"] for m in page_of(out)["moments"]] == [0, 1]


def test_a_run_that_is_stopped_leaves_its_page(inside, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(T, "interrupts", lambda: nullcontext([2]))
    inside(*TINY, f"dataset={text_file}", "max_iters=9")
    data = page_of(tmp_path / "out/momentum")
    assert not data["live"] and data["done"] == pytest.approx(1 / 9) and data["moments"][-1]["influence"] is None


def test_a_readers_own_model(inside, text_file, tmp_path, monkeypatch, capsys):
    """No trace, no portrait, and a loss that the future has told it."""
    module = T.load_model("momentum")
    monkeypatch.delattr(module, "portrait")
    monkeypatch.delattr(module, "trace", raising=False)
    forward = module.Model.forward

    def leaky(self, idx, targets=None, state=None):
        logits, loss = forward(self, idx, targets, state)
        return logits + logits.mean(1, keepdim=True), loss
    monkeypatch.setattr(module.Model, "forward", leaky)
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    moment = page_of(tmp_path / "out/momentum")["moments"][-1]
    assert [q["name"] for q in moment["seen"]] == ["loss", "entropy"] and moment["portrait"] is None
    assert moment["influence"]["leak"] > 0 and moment["sample"]
    assert re.search(r"warning: tokens see the future: changing token \d+ moved", capsys.readouterr().out)


def test_what_cannot_be_drawn_costs_a_note(inside, text_file, tmp_path, monkeypatch, capsys):
    module = T.load_model("momentum")
    monkeypatch.setattr(module, "portrait", lambda *args: 1 / 0)
    monkeypatch.setattr(module, "trace", lambda model, idx: {"x": (np.zeros((2, 3, 4, 5)), "", "")}, raising=False)
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    said = capsys.readouterr()
    assert "note: no trace (ValueError: x has shape (2, 3, 4, 5) instead of (T,)" in said.err
    assert "note: no physics.png" in said.err and "division by zero" in said.err and "bits per byte" in said.out
    assert len(page_of(tmp_path / "out/momentum")["moments"]) == 3
    monkeypatch.setattr(P, "write_atomic", lambda *args: open("/nonexistent/folder/file"))
    inside(*TINY, f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert "note: no page (FileNotFoundError" in capsys.readouterr().err


def test_a_page_for_any_text(inside, text_file, tmp_path, monkeypatch, capsys):
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    monkeypatch.setattr(sys, "argv", ["sample.py", "prompt=A:\nwave", "tokens=30", "page=true"])
    G.main()
    said = capsys.readouterr()
    data = P.read_page(tmp_path / "out/momentum/sample.html")
    assert "open out/momentum/sample.html" in said.err and "".join(data["text"]) == said.out.rpartition("A:\nwave")[1] + said.out.rpartition("A:\nwave")[2].removesuffix("\n")
    assert not data["live"] and len(data["ids"]) == 37 and data["moments"][0]["influence"]["shape"] == [16, 16]
    loss = np.frombuffer(base64.b64decode(data["moments"][0]["seen"][0]["data"]), "<u2")
    assert len(loss) == 37 and data["moments"][0]["loss"] > 0


# In a browser: Chromium over the pipe of its DevTools protocol, with nothing but the standard library.

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
         "--disable-component-update --disable-extensions --hide-scrollbars --remote-debugging-pipe").split()


class Browser:
    """One tab. Whatever the page logs, throws or asks the network for is kept in `events`."""

    def __init__(self, folder):
        to_child, self.out = os.pipe()
        self.into, from_child = os.pipe()
        command = 'exec "$0" "$@" 3<&%d 4>&%d' % (to_child, from_child)
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.count, self.events, self.session = b"", 0, [], None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.into, 2**20)
            assert piece, "the browser is gone"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path, width=1280, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.js("if (window.save) { removeEventListener('pagehide', save); sessionStorage.clear(); }")
        self.call("Page.navigate", url="about:blank")
        self.events = []
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, limit=30):
        end = time.monotonic() + limit
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def point(self, selector, dx=0.5, dy=0.5):
        """Move the mouse to a place in an element -> (x, y)."""
        box = self.js(f"""(() => {{
            const e = {selector};
            e.scrollIntoView({{block: "center"}});
            const r = e.getClientRects()[0];
            return [r.left + {dx} * r.width, r.top + {dy} * r.height];
        }})()""")
        self.mouse("mouseMoved", *box)
        return box

    def click(self, selector):
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def set(self, id, value):
        """What a reader does to a slider or a menu."""
        self.js(f"""$({id!r}).value = {json.dumps(value)};
                    $({id!r}).dispatchEvent(new Event($({id!r}).tagName === "SELECT" ? "change" : "input", {{bubbles: true}}))""")

    def complaints(self):
        """What went to the console, was thrown, or left for the network."""
        self.js("1")                                             # events so far have come
        found = []
        for event in self.events:
            method, params = event["method"], event["params"]
            if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                found.append(params)
            if method == "Network.requestWillBeSent":
                if not params["request"]["url"].startswith(("file:", "data:")):
                    found.append(params["request"]["url"])
        return found

    def shot(self, path):
        """The whole page as a picture, to look at."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("no chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.session = None
        browser.call("Browser.close")
        browser.process.wait(30)


@pytest.fixture
def browser(chromium):
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture(scope="module")
def toy_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    write(path, HOSTILE + "To be, or not to be, that is the question.\n" * 2, counter=2.5)
    return path


def test_the_checks_can_fail(chromium, tmp_path):
    """The browser reports what is logged, thrown and requested, and text that is not escaped does harm."""
    (tmp_path / "bad.html").write_text("<script>var hacked = 1; console.error('e'); fetch('http://example.org/x'); boo()</script>")
    chromium.open(tmp_path / "bad.html")
    found = str(chromium.complaints())
    assert "boo" in found and "http://example.org/x" in found and "'e'" in found and chromium.js("hacked") == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_is_text(browser, toy_page, width):
    browser.open(toy_page, width)
    data = P.read_page(toy_page)
    assert browser.js("typeof hacked") == "undefined" and browser.js("document.scripts.length") == 2
    assert browser.js("document.images.length") == 1 and browser.js("document.title") == "<i>toy</i> on <b>.txt"
    shown = browser.js("tokens.map(e => e.textContent)")
    assert len(shown) == len(data["text"]) == P.PASSAGE
    for text, seen in zip(data["text"], shown):
        if text and text.isprintable() and not unicodedata.combining(text):
            assert seen == text
        else:
            assert seen.strip() and not re.search("[\x00-\x09\u2028-\u202e\ufeff]", seen), (text, seen)
    assert "<img src=x onerror=" in browser.js("$('new').textContent") and "\u2039202e\u203a" in browser.js("$('new').textContent")
    assert browser.js("document.documentElement.scrollWidth") <= width


def test_every_token_can_be_pointed_at(browser, toy_page):
    browser.open(toy_page)
    for i in range(0, P.PASSAGE):
        browser.point(f"tokens[{i}]")
        assert browser.js("S.token") == i
    panel = browser.js("$('panel').innerText")
    assert f"token {P.PASSAGE - 1} of {P.PASSAGE}" in panel and "influence is measured for the first 16 tokens" in panel
    browser.point("tokens[5]")
    assert len(browser.js("[...$('panel').querySelectorAll('.rows')[0].querySelectorAll('b')].map(e => e.textContent)")) == 5
    chance = sum(float(p[:-1]) for p in browser.js("[...$('panel').querySelectorAll('.rows')[0].querySelectorAll('b')].map(e => e.textContent)"))
    assert 0 < chance <= 100
    assert "1 back" in browser.js("$('panel').innerText") and "1 ahead" in browser.js("$('panel').innerText")
    assert browser.js("document.querySelectorAll('.passage .from').length") == 1         # the toy sees one token back
    measured = browser.js("$('measured').innerText")
    assert "warmth, layer 0: \u2212187 K" in measured and "counts from below zero" in measured and "e & <b>" in measured
    browser.click("tokens[5]")
    browser.point("tokens[9]")
    assert browser.js("S.token") == 5                            # kept until Esc
    browser.key("Escape")
    browser.point("tokens[8]")
    browser.point("tokens[9]")
    assert browser.js("S.token") == 9


def test_the_text_by_keyboard(browser, toy_page):
    browser.open(toy_page)
    browser.js("tokens[S.token].focus()")
    for key, token in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", P.PASSAGE - 1),
                       ("ArrowRight", P.PASSAGE - 1), ("Home", 0), ("ArrowLeft", 0)):
        browser.key(key)
        assert browser.js("[S.token, tokens.indexOf(document.activeElement)]") == [token, token], key
    browser.key("ArrowDown")
    below = browser.js("S.token")
    assert browser.js(f"tokens[{below}].getClientRects()[0].top > tokens[0].getClientRects()[0].bottom - 9")
    browser.key("ArrowUp")
    assert browser.js("S.token") == 0
    assert browser.js("document.querySelectorAll('.passage [tabindex=\"0\"]').length") == 1


def colours(browser):
    return browser.js("tokens.map(e => e.style.backgroundColor)")


def test_colours_and_layers(browser, toy_page):
    browser.open(toy_page)
    options = browser.js("[...$('colour').options].map(o => o.value)")
    assert options == ["loss", "entropy", "warmth", "charge </script>", "influence on the chosen token",
                       "influence of the chosen token"]
    seen = set()
    browser.js("choose(8)")
    for option in options:
        browser.set("colour", option)
        seen.add(tuple(colours(browser)))
        assert browser.js("$('layers').hidden") == (option != "warmth")
        assert browser.js("$('meaning').textContent.length") > 5 and browser.js("$('high').textContent") != "\u2014"
    assert len(seen) == len(options)
    browser.set("colour", "warmth")
    first = colours(browser)
    browser.set("layer", 2)
    assert colours(browser) != first and "warmth, layer 2:" in browser.js("$('measured').innerText")
    browser.set("colour", "charge </script>")
    assert colours(browser)[0] == "" and colours(browser)[1] != ""                      # NaN has no colour
    assert "\u2014" in browser.js("(choose(0), $('measured').innerText)")
    browser.set("colour", "influence of the chosen token")
    browser.js("choose(3)")
    one = colours(browser)
    browser.js("choose(8)")
    assert colours(browser) != one


def test_brightness_falls_along_the_colours(browser, toy_page):
    """Read without hue, the scale still tells low from high; and the text on it has a contrast of 4.5 at least."""
    browser.open(toy_page)
    ramp = np.array(browser.js("[...Array(101).keys()].map(i => mix(INK, i / 100))")) / 255
    ink = browser.js("[...Array(101).keys()].map(i => readable(mix(INK, i / 100)))")
    light = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) < 0).all()
    for background, colour in zip(light, ink):
        text = 1.0 if colour == "#fff" else 0.0
        contrast = (max(background, text) + 0.05) / (min(background, text) + 0.05)
        assert contrast > 4.5, (background, colour, contrast)


def test_the_moments_of_the_training(browser, toy_page):
    browser.open(toy_page)
    assert browser.js("$('when').textContent") == "iteration 20" and "at 20" in browser.js("$('new').textContent")
    browser.set("moment", 0)
    assert browser.js("$('when').textContent") == "iteration 0" and browser.js("$('old').textContent").endswith("at 0")
    assert browser.js("$('picture').naturalWidth") > 0 and "iteration" in browser.js("$('caption').textContent")
    assert browser.js("$('clock').textContent") == "finished" and browser.js("$('follow').hidden")
    browser.click("$('play')")
    browser.wait("$('when').textContent === 'iteration 10'")
    browser.wait("$('when').textContent === 'iteration 20' && !S.playing")
    browser.click("$('play')")
    assert browser.js("S.playing && here() === 0")
    browser.click("$('play')")
    assert not browser.js("S.playing")


def test_the_loss(browser, toy_page):
    browser.open(toy_page)
    browser.point("$('loss')", 0.9, 0.6)
    assert re.search(r"iteration \d+: \S+ nats = \S+ bits per byte", browser.js("$('loss').querySelector('.readout').textContent"))
    browser.js("$('loss').focus()")
    browser.key("ArrowLeft")
    assert "validation, iteration 10: 3.5 nats" in browser.js("$('loss').querySelector('.readout').textContent")
    assert "a table of counts: 2.5" in browser.js("$('loss').textContent")
    assert browser.js("$('bits').textContent") == "4.328 bits per byte"


def test_the_sphere_turns(browser, toy_page):
    browser.open(toy_page)
    picture = lambda: browser.js("globes[0].canvas.toDataURL()")
    before = picture()
    x, y = browser.point("globes[0].canvas")
    browser.mouse("mousePressed", x, y, button="left", clickCount=1)
    browser.mouse("mouseMoved", x + 80, y + 30, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 80, y + 30, button="left", clickCount=1)
    turned = picture()
    browser.js("globes[0].canvas.focus()")
    browser.key("ArrowRight")
    moved = picture()
    browser.set("layer orbit", 0.5)
    assert len({before, turned, moved, picture()}) == 4
    spot = browser.js("globes[0].spots[7].slice(0, 2).map(v => v / globes[0].canvas.clientWidth)")
    browser.point("globes[0].canvas", *spot)
    assert re.search(r"token (6|7|8)$", browser.js("globes[0].caption.textContent"))


def test_leak_and_influence(browser, toy_page, tmp_path):
    browser.open(toy_page)
    assert "does not see the future" in browser.js("$('verdict').textContent")
    assert not browser.js("$('verdict').classList.contains('bad')")
    browser.point("$('map')", 5.5 / 16, 4.5 / 16)
    said = browser.js("$('cell').textContent")
    assert re.match(r"Replacing token 4 .* prediction after token 5 .* 1 tokens later, by 0\.\d+ nats", said)
    browser.js("$('map').focus()")
    browser.key("ArrowDown")
    browser.key("ArrowDown")
    assert re.match(r"Replacing token 6 .* 1 tokens earlier, by 0 nats", browser.js("$('cell').textContent"))
    assert browser.js("$('reach').querySelectorAll('path').length") == 1
    write(tmp_path / "index.html", model=Toy(Config(leaky=True)))
    browser.open(tmp_path / "index.html")
    assert browser.js("$('verdict').classList.contains('bad')")
    assert re.search(r"Tokens see the future: changing token \d+ moved", browser.js("$('verdict').textContent"))


def test_a_page_without_trace_and_portrait(browser, tmp_path, monkeypatch):
    monkeypatch.delattr(sys.modules[__name__], "trace")
    monkeypatch.delattr(sys.modules[__name__], "portrait")
    write(tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    assert browser.js("$('physics').hidden") and not browser.js("$('influence').hidden")
    assert browser.js("[...$('colour').options].length") == 4 and len(set(colours(browser))) > 5


def test_a_live_page_loads_itself_again(browser, tmp_path):
    """And is then where the reader was: menu, sliders, token, focus, place; the last page stays as it is."""
    write(tmp_path / "index.html", HOSTILE + "to be or not " * 20, live=True)
    browser.open(tmp_path / "index.html", height=500)
    assert "100% done" in browser.js("$('clock').textContent") and not browser.js("$('follow').hidden")
    browser.set("colour", "warmth")
    browser.set("layer", 1)
    browser.set("moment", 1)
    browser.js("choose(33, true); scrollTo(0, 777); window.stale = true")
    browser.js("""(() => { const now = Date.now; Date.now = () => now() + 6000; })()""")
    browser.wait("!window.stale && document.readyState === 'complete'")
    assert browser.js("[S.colour, S.layer, S.moment, S.token, scrollY]") == ["warmth", 1, 10, 33, 777]
    assert browser.js("tokens.indexOf(document.activeElement)") == 33 and browser.js("$('colour').value") == "warmth"
    write(tmp_path / "index.html", HOSTILE + "to be or not " * 20)
    browser.js("window.stale = true; (() => { const now = Date.now; Date.now = () => now() + 6000; })()")
    browser.wait("!window.stale && document.readyState === 'complete'")
    assert browser.js("$('follow').hidden")
    browser.js("window.stale = true; (() => { const now = Date.now; Date.now = () => now() + 9000; })()")
    time.sleep(2.5)
    assert browser.js("window.stale")


def test_five_thousand_characters(browser, tmp_path):
    text = (HOSTILE * 30)[:5000]
    tokenizer = Tokenizer({"kind": "char", "chars": "".join(sorted(set(text)))})
    model = Toy(Config(vocab_size=tokenizer.vocab_size, block_size=64))
    P.write_text(tmp_path / "sample.html", model, tokenizer, "toy", tokenizer.encode(text + "more"[:0]))
    assert os.path.getsize(tmp_path / "sample.html") < 1e6
    browser.open(tmp_path / "sample.html", 390, 800)
    assert browser.js("tokens.length") == 5000 and browser.js("typeof hacked") == "undefined"
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.js("tokens[2500].focus()")
    browser.key("End")
    assert browser.js("S.token") == 4999 and "token 4999 of 5000" in browser.js("$('panel').innerText")
