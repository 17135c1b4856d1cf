"""The page of a run: what enters it, how large it gets, and what a reader can do with it in a browser."""
import base64
import json
import math
import os
import re
import sys
import tempfile
import time
import unicodedata
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from helpers import TINY, after

import sample as G
import train as T
from common import page as P
from common.checkpoint import load_model, models
from common.pictures import draw_portrait, letters
from common.score import influence, verdict
from data.text import Tokenizer

HOSTILE = ("</script><script>hacked = 1</script>\n<img src=x onerror=\"hacked = 2\"> <b onmouseover=hacked=3>&lt;\n"
           "]]> <!-- \\u003c \u2028\u2029 \U0001f30a שלום مرحبا \u202eright to left\u202c \x00\x07\x1b[31m\x7f "
           "e\u0301 \ufeff'\"`${1}\n")


# A small model with everything that a page can show. It sees the future if told to.

@dataclass
class Config:
    vocab_size: int = 256
    block_size: int = 16
    leaky: bool = False
    note: str = HOSTILE


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
    model = model or Toy()
    for step in steps:
        progress = T.Progress(step, step / 2, rows=[[0, 0.0, "", 4.0, 5.0, 0, 0]])
        for i in range(1, step + 1):
            loss = 4 - i / 20
            progress.rows.append([i, i / 2, loss, loss if i in steps else "", "", 0, 0])
        progress.samples = [f"--- iteration {step}\n{HOSTILE} at {step}\n\n"]
        going = live or step < steps[-1]
        train = T.Train("<i>toy</i>", dataset="a/<b>.txt", out=str(path.parent), max_iters=20 + going)
        P.write_run(model, data, tokenizer, train, progress, going, counter=counter)
    return P.read_page(path)


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
    module = load_model(name)
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
    assert kl.any(0).all() and not np.triu(kl, 2).any()          # the next prediction, no later one
    assert influence(Toy(), [7]).shape == (1, 1) and verdict(influence(Toy(), [7]))[0] == 0
    assert influence(Toy(), [7, 7, 7]).diagonal().all()         # a token that differs is found


def test_a_leak_is_measured():
    idx = [*b"tokens see the f"]
    kl = influence(Toy(Config(leaky=True)), idx)
    nats, sentence = verdict(kl)
    truth = brute_force(Toy(Config(leaky=True)), idx)
    assert nats == pytest.approx(np.tril(truth, -1).max(), rel=1e-3) and nats > 0.01
    said = re.search(r"token (\d+) moved .* token (\d+) by (\S+) nats; its loss is not to", sentence)
    token, prediction, said = said.groups()
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


def test_a_portrait_is_given_the_letters_of_its_tokens(monkeypatch):
    text = "a b\n$\u202e\U0001f30a\u05e9\u00e9"
    data = SimpleNamespace(val=np.arange(9))
    chars = Tokenizer({"kind": "char", "chars": text})
    asked = []
    for portrait in (lambda model, tokens, path, text="": asked.append(text), lambda *args: asked.append(len(args))):
        monkeypatch.setattr(sys.modules[__name__], "portrait", portrait)
        draw_portrait(Toy(), data, chars, "x.png")
    assert asked == ["a b\u21b5$\u00b7\u00b7\u00b7\u00e9", 3]
    assert letters(Tokenizer({"kind": "byte"}), "h\u00e9".encode()) == "h\u00b7\u00b7"
    assert letters(SimpleNamespace(token_bytes=lambda i: b"the"), [1]) == ""


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
    moments = [m | {"portrait": "x" * 3_000_000} for m in moments]
    P.write_page(tmp_path / "huge.html", data | {"moments": moments})
    assert [m["step"] for m in P.read_page(tmp_path / "huge.html")["moments"]] == [30]


def test_what_is_not_a_page(tmp_path):
    half = b'<script type="application/json" id="data">{"a": </script>'
    for content in (b"", b"<html>", half, b"\xff\xfe\x00"):
        (tmp_path / "index.html").write_bytes(content)
        assert P.read_page(tmp_path / "index.html") == {}
    assert P.read_page(tmp_path / "none.html") == {} and P.read_page(tmp_path) == {}


# Runs.

@pytest.fixture
def momentum(monkeypatch):
    """The file momentum.py as a module, with a portrait that is drawn quickly."""
    module = load_model("momentum")
    monkeypatch.setattr(module, "portrait", portrait)
    return module


def page_of(folder):
    return P.read_page(folder / "index.html")


def test_a_run_writes_its_page(inside, text_file, tmp_path, momentum, capsys):
    args = [*TINY, f"dataset={text_file}", "eval_interval=1"]
    inside(*args, "max_iters=3")
    out, data = tmp_path / "out/momentum", page_of(tmp_path / "out/momentum")
    said = capsys.readouterr().out
    assert "open out/momentum/index.html and watch" in said
    assert [m["step"] for m in data["moments"]] == [0, 1, 2, 3] and not data["live"] and data["done"] == 1
    assert data["name"] == "momentum on play.txt"
    assert data["moments"][-1]["portrait"].startswith("data:image/webp;base64,")
    assert len(data["validation"]) == 5 and len(data["training"]) == 3      # the last: the whole text
    assert data["settings"]["n_embd"] == 16 and data["counter"] > 0
    assert data["moments"][0]["sample"] in (out / "sample.txt").read_text()
    inside("resume=true", "max_iters=5")
    assert [m["step"] for m in page_of(out)["moments"]] == [0, 1, 2, 3, 4, 5]
    inside(*args, "max_iters=1", "overwrite=true")
    assert [m["step"] for m in page_of(out)["moments"]] == [0, 1]


def test_a_run_that_is_stopped_leaves_its_page(inside, text_file, tmp_path, momentum, monkeypatch):
    caught = []
    monkeypatch.setattr(T, "interrupts", lambda: nullcontext(caught))
    monkeypatch.setattr(T, "clip_gradients", after(0, T.clip_gradients, lambda: caught.append(2)))
    inside(*TINY, f"dataset={text_file}", "max_iters=90")
    data = page_of(tmp_path / "out/momentum")
    assert not data["live"] and data["done"] == pytest.approx(1 / 90)
    assert [m["step"] for m in data["moments"]] == [0, 1] and data["moments"][-1]["loss"] is None


def test_a_readers_own_model(inside, text_file, tmp_path, momentum, monkeypatch, capsys):
    """No trace, no portrait, and a loss that the future has told it."""
    monkeypatch.delattr(momentum, "portrait")
    monkeypatch.delattr(momentum, "trace", raising=False)
    forward = momentum.Model.forward

    def leaky(self, idx, targets=None, state=None):
        logits, loss = forward(self, idx, targets, state)
        return logits + logits.mean(1, keepdim=True), loss
    monkeypatch.setattr(momentum.Model, "forward", leaky)
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    moment = page_of(tmp_path / "out/momentum")["moments"][-1]
    assert [q["name"] for q in moment["seen"]] == ["loss", "entropy of the prediction"] and moment["portrait"] is None
    assert moment["influence"]["leak"] > 0 and moment["sample"]
    assert "warning: tokens see the future" in capsys.readouterr().err


def test_what_cannot_be_drawn_costs_a_note(inside, text_file, tmp_path, momentum, monkeypatch, capsys):
    wrong = {"x": (np.zeros((2, 3, 4, 5)), "", "")}
    monkeypatch.setattr(momentum, "portrait", lambda *args: 1 / 0)
    monkeypatch.setattr(momentum, "trace", lambda model, idx: wrong, raising=False)
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    said = capsys.readouterr()
    assert "note: no trace (ValueError: x has shape (2, 3, 4, 5), not (T,)" in said.err
    assert "note: no physics.png; resume=true draws again (ZeroDivisionError" in said.err
    assert "the validation text as a stream" in said.out
    assert len(page_of(tmp_path / "out/momentum")["moments"]) == 3
    monkeypatch.setattr(P, "write_atomic", lambda *args: open("/nonexistent/folder/file"))
    inside(*TINY, f"dataset={text_file}", "max_iters=2", "overwrite=true")
    assert "note: no page (FileNotFoundError" in capsys.readouterr().err


def test_a_page_for_any_text(inside, text_file, tmp_path, momentum, monkeypatch, capsys):
    inside(*TINY, f"dataset={text_file}", "max_iters=2")
    monkeypatch.setattr(sys, "argv", ["sample.py", "prompt=A:\nwave", "tokens=30", "page=true"])
    G.main()
    said = capsys.readouterr()
    data = P.read_page(tmp_path / "out/momentum/sample.html")
    assert "open out/momentum/sample.html" in said.err
    assert "".join(data["text"]).startswith("A:\nwave") and said.out.endswith("".join(data["text"]))
    assert not data["live"] and len(data["ids"]) == 37
    assert data["moments"][0]["influence"]["shape"] == [16, 16]
    loss = np.frombuffer(base64.b64decode(data["moments"][0]["seen"][0]["data"]), "<u2")
    assert len(loss) == 37 and data["moments"][0]["loss"] > 0


# In a browser.

@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("no chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium):
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture(scope="module")
def toy_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(P, "SHARES", {"portrait": 1, "influence": 1})
        write(path, HOSTILE + "To be, or not to be, that is the question.\n" * 2, counter=2.5)
    return path


def test_the_checks_can_fail(chromium, tmp_path):
    """The browser reports what is logged, thrown and requested, and text that is not escaped does harm."""
    script = "var hacked = 1; console.error('e'); fetch('http://example.org/x'); boo()"
    (tmp_path / "bad.html").write_text(f"<script>{script}</script>")
    chromium.open(tmp_path / "bad.html")
    found = str(chromium.complaints())
    assert "boo" in found and "http://example.org/x" in found and "'e'" in found
    assert chromium.js("hacked") == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_is_text(browser, toy_page, width):
    browser.open(toy_page, width)
    data = P.read_page(toy_page)
    assert browser.js("typeof hacked") == "undefined"
    assert browser.js("[document.scripts.length, document.images.length]") == [2, 1]
    assert browser.js("document.title") == "<i>toy</i> on <b>.txt"
    shown = browser.js("tokens.map(e => e.textContent)")
    assert len(shown) == len(data["text"]) == P.PASSAGE
    for text, seen in zip(data["text"], shown):
        if text and text.isprintable() and not unicodedata.combining(text):
            assert seen == text
        else:
            assert seen.strip() and not re.search("[\x00-\x09\u2028-\u202e\ufeff]", seen), (text, seen)
    sample = browser.js("$('new').textContent")
    assert "<img src=x onerror=" in sample and "\u2039202e\u203aright to left" in sample
    assert browser.js("document.documentElement.scrollWidth") <= width


def test_hostile_labels_are_text(browser, tmp_path, monkeypatch):
    """Names, units and meanings come from a reader's own file."""
    def mine(model, idx):
        n = idx.shape[1]
        return {HOSTILE: (np.ones((2, n)), HOSTILE, HOSTILE), "<b>cloud": (np.ones((2, n, 3)), HOSTILE, HOSTILE),
                3: (np.arange(n), None, None)}
    monkeypatch.setattr(sys.modules[__name__], "trace", mine)
    write(tmp_path / "index.html", "to be or not " * 9)
    browser.open(tmp_path / "index.html", 390)
    for option in (HOSTILE, "3"):
        browser.set("colour", option)
        assert browser.js("$('colour').value") == option and colours(browser)[0] != ""
    assert "3: 30" in browser.js("(choose(30), $('measured').innerText)")
    assert browser.js("typeof hacked") == "undefined"
    assert browser.js("[document.scripts.length, document.images.length]") == [2, 1]
    for part in ("$('measured').innerText", "$('clouds').innerText", "$('colour').innerText"):
        shown = browser.js(part)
        assert "<img src=x onerror=" in shown or "<b>cloud" in shown
        assert not re.search("[\u2028-\u202e\ufeff\x07\x1b]", shown), part
    assert browser.js("document.documentElement.scrollWidth") <= 390


def test_every_token_can_be_pointed_at(browser, toy_page):
    browser.open(toy_page)
    for i in range(0, P.PASSAGE):
        browser.point(f"tokens[{i}]")
        assert browser.js("S.token") == i
    panel = browser.js("$('panel').innerText")
    assert f"token {P.PASSAGE - 1} of {P.PASSAGE}" in panel
    assert "influence is measured for the first 16 tokens" in panel
    browser.point("tokens[5]")
    chances = browser.js("[...$('panel').querySelectorAll('.rows b')].slice(0, 5).map(e => e.textContent)")
    assert 0 < sum(float(p.removesuffix("%")) for p in chances) <= 100
    panel = browser.js("$('panel').innerText")
    assert "1 back" in panel and "1 ahead" in panel
    assert browser.js("document.querySelectorAll('.from').length") == 1         # the toy sees one token back
    measured = browser.js("$('measured').innerText").replace("\xa0", " ")
    for words in ("warmth, layer 0: \u2212187 K", "counts from below zero", "charge </script>", "e & <b>"):
        assert words in measured
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
    end = P.PASSAGE - 1
    for key, token in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1),
                       ("End", end), ("ArrowRight", end), ("Home", 0), ("ArrowLeft", 0)):
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
    assert options == ["loss", "entropy of the prediction", "warmth", "charge </script>",
                       "influence on the chosen token", "influence of the chosen token"]
    seen = set()
    browser.js("choose(8)")
    for option in options:
        browser.set("colour", option)
        seen.add(tuple(colours(browser)))
        assert browser.js("$('layers').hidden") == (option != "warmth")
        assert browser.js("$('meaning').textContent.length") > 5
        assert browser.js("$('high').textContent") != "\u2014"
    assert len(seen) == len(options)
    browser.set("colour", "warmth")
    first = colours(browser)
    browser.set("layer", 2)
    assert colours(browser) != first and "warmth, layer 2:" in browser.js("$('measured').innerText")
    browser.set("colour", "charge </script>")
    assert colours(browser)[0] == "" and colours(browser)[1] != ""      # NaN has no colour
    assert "\u2014" in browser.js("(choose(0), $('measured').innerText)")
    browser.set("colour", "influence of the chosen token")
    browser.js("choose(3)")
    one = colours(browser)
    browser.js("choose(8)")
    assert colours(browser) != one


def test_brightness_falls_along_the_colours(browser, toy_page):
    """Without hue, the scale still tells low from high; the text on it has a contrast of 4.5 at least."""
    browser.open(toy_page)
    ramp = np.array(browser.js("[...Array(101).keys()].map(i => mix(INK, i / 100))")) / 255
    ink = browser.js("[...Array(101).keys()].map(i => readable(mix(INK, i / 100)))")
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) < 0).all()
    for background, colour in zip(light, ink):
        text = 1.0 if colour == "#fff" else 0.0
        contrast = (max(background, text) + 0.05) / (min(background, text) + 0.05)
        assert contrast > 4.5, (background, colour, contrast)


def test_the_moments_of_the_training(browser, toy_page):
    browser.open(toy_page)
    assert browser.js("$('when').textContent") == "iteration 20"
    assert browser.js("$('new').textContent").endswith("at 20")
    browser.set("moment", 0)
    assert browser.js("$('when').textContent") == "iteration 0"
    assert browser.js("$('old').textContent").endswith("at 0")
    browser.wait("$('picture').naturalWidth > 0")
    assert "iteration" in browser.js("$('caption').textContent")
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
    readout = lambda: browser.js("$('loss').querySelector('.readout').textContent")
    browser.point("$('loss')", 0.9, 0.6)
    assert re.search(r"iteration \d+: \S+ nats = \S+ bits per byte", readout())
    browser.js("$('loss').focus()")
    browser.key("ArrowLeft")
    assert "validation, iteration 10: 3.5 nats" in readout()
    assert "counting letters gets you here: 2.5" in browser.js("$('loss').textContent")
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
    assert re.match(r"Replacing token 4 .* after token 5 .* 1 tokens later, by 0\.\d+ nats", said)
    browser.js("$('map').focus()")
    browser.key("ArrowDown")
    browser.key("ArrowDown")
    assert re.match(r"Replacing token 6 .* 1 tokens earlier, by 0 nats", browser.js("$('cell').textContent"))
    assert browser.js("$('reach').querySelectorAll('path').length") == 1
    write(tmp_path / "index.html", model=Toy(Config(leaky=True)))
    browser.open(tmp_path / "index.html")
    assert browser.js("$('verdict').classList.contains('bad')")
    assert "Tokens see the future: changing token" in browser.js("$('verdict').textContent")


def test_a_page_without_trace_and_portrait(browser, tmp_path, monkeypatch):
    monkeypatch.delattr(sys.modules[__name__], "trace")
    monkeypatch.delattr(sys.modules[__name__], "portrait")
    write(tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    assert browser.js("$('physics').hidden") and not browser.js("$('influence').hidden")
    assert browser.js("[...$('colour').options].length") == 4 and len(set(colours(browser))) > 5


LATER = "(() => { const now = Date.now; Date.now = () => now() + 6000; })()"


def test_a_live_page_loads_itself_again(browser, tmp_path):
    """And is then where the reader was: menu, sliders, token, focus, place; the last page stays as it is."""
    write(tmp_path / "index.html", HOSTILE + "to be or not " * 20, live=True)
    browser.open(tmp_path / "index.html", height=500)
    assert "95% done" in browser.js("$('clock').textContent") and not browser.js("$('follow').hidden")
    browser.set("colour", "warmth")
    browser.set("layer", 1)
    browser.set("moment", 1)
    browser.js("choose(33, true); scrollTo(0, 777); window.stale = true")
    browser.js(LATER)
    browser.wait("!window.stale && document.readyState === 'complete'")
    assert browser.js("[$('colour').value, $('layer').value, S.moment, scrollY]") == ["warmth", "1", 10, 777]
    assert browser.js("[S.token, tokens.indexOf(document.activeElement)]") == [33, 33]
    write(tmp_path / "index.html", HOSTILE + "to be or not " * 20)
    browser.js("window.stale = true; " + LATER)
    browser.wait("!window.stale && document.readyState === 'complete'")
    assert browser.js("$('follow').hidden")
    browser.js("window.stale = true; " + LATER)
    time.sleep(2.5)
    assert browser.js("window.stale")


def test_five_thousand_characters(browser, tmp_path):
    text = (HOSTILE * 30)[:5000]
    tokenizer = Tokenizer({"kind": "char", "chars": "".join(sorted(set(text)))})
    model = Toy(Config(vocab_size=tokenizer.vocab_size, block_size=64))
    P.write_text(tmp_path / "sample.html", model, tokenizer, "toy", tokenizer.encode(text))
    assert os.path.getsize(tmp_path / "sample.html") < 1e6
    browser.open(tmp_path / "sample.html", 390, 800)
    assert browser.js("tokens.length") == 5000 and browser.js("typeof hacked") == "undefined"
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.js("tokens[2500].focus()")
    browser.key("End")
    assert browser.js("S.token") == 4999 and "token 4999 of 5000" in browser.js("$('panel').innerText")
