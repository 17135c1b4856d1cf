"""LESSONS.md: its commands run, its files do what it says, and every number of its answers is computed here."""
import importlib
import json
import math
import re
import shutil
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import test_experiments
import test_models
import torch
from helpers import commands, printed, shortened, tokens

import sample
import train
from common import checkpoint
from common.checkpoint import ROOT, load_model, models, tensor_bytes
from common.counter import Counter
from common.page import read_page
from common.score import influence, leak

PAGE = (ROOT / "LESSONS.md").read_text("utf-8")
ANSWERS = re.findall(r"^(?:## (Station \d)|\*\*(\d+)\.).*?<details><summary>Answer</summary>\n(.*?)</details>",
                     PAGE, re.M | re.S)
YOURS = {"mine", "cheat"}
ANSWERS = {station or number: answer for station, number, answer in ANSWERS}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the model files and, as LESSONS.md prints them, mine.py and cheat.py beside them."""
    folder = tmp_path_factory.mktemp("desk")
    for name in sorted({*models()} - YOURS):
        load_model(name)                                # from where they are: only their names are looked up here
        shutil.copy(ROOT / f"{name}.py", folder)
    for name in YOURS:
        (folder / f"{name}.py").write_text(printed(f"{name}.py"), "utf-8")
        sys.modules.pop(f"_nanophysics_{name}", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "ROOT", folder)
        patch.syspath_prepend(ROOT / "experiments")
        patch.chdir(folder)
        yield folder
    for name in YOURS:
        sys.modules.pop(f"_nanophysics_{name}", None)


# The commands.

@pytest.fixture
def type_in(desk, text_file, monkeypatch, capsys):
    """Run the words of a command in a short form, in this process -> stdout and stderr."""
    import lab
    monkeypatch.setattr(lab.os, "sched_getaffinity", lambda pid: {0}, raising=False)

    def run(words):
        script, *given = shortened(words, text_file)
        if script.startswith("experiments/"):
            name = script[12:-3]
            short = [*test_experiments.TINY[name].split(), f"dataset={text_file}"]
            kept = [w for w in given if w.split("=")[0] in ("models", "out")]
            keys = {w.split("=")[0] for w in kept}
            given = [w for w in short if w.split("=")[0] not in keys] + kept
            main = importlib.import_module(name).main
        else:
            main = {"train.py": train.main, "sample.py": sample.main}[script]
        monkeypatch.setattr(sys, "argv", [script, *given])
        capsys.readouterr()
        try:
            main()
        finally:
            torch.set_flush_denormal(False)
        return capsys.readouterr()
    return run


def test_commands(type_in, desk):
    """Every command of the page, one after the other, and what the page says that it leaves."""
    said = {}
    for words in commands(PAGE):
        said[" ".join(words[:2])] = type_in(words)
    for file in re.findall(r"`(out/[\w/.]+)`", PAGE):
        assert (desk / file).exists(), file
    assert "no token sees the future" in said["train.py model=mine"].out
    assert "warning: tokens see the future" in said["train.py model=cheat"].err
    assert said["sample.py model=mine"].out.startswith("A:") and len(said["sample.py model=mine"].out) == 5

    pages = {name: read_page(desk / f"out/{name}/index.html")["moments"][-1] for name in ("momentum", "mine", "cheat")}
    assert pages["mine"]["influence"]["leak"] == pages["momentum"]["influence"]["leak"] == 0
    assert pages["cheat"]["influence"]["leak"] > 1e-6 and "see the future" in pages["cheat"]["influence"]["sentence"]

    import lab
    rows = [row for row in lab.read_csv(desk / "out/who/race.csv") if row["final"]]
    leaks = {row["model"]: row["leak"] for row in rows}
    assert max(leaks["mine"], leaks["momentum"]) < 1e-10 and leaks["cheat"] > 1e-6, leaks


def test_the_leak_test_of_mine(desk):
    """What `python -m pytest -q -k "mine and (causal or streams)"` runs; the cheat fails it."""
    assert 'python -m pytest -q -k "mine and (causal or streams)"' in PAGE
    test_models.test_causal("mine", {})
    test_models.test_streams("mine", {})
    with pytest.raises(AssertionError, match="move earlier logits"):
        test_models.test_causal("cheat", {})


def test_mine_is_twelve_lines_of_model():
    model = printed("mine.py").partition("class Model")
    assert len([line for line in (model[1] + model[2]).splitlines() if line.strip()]) == 12
    assert max(map(len, printed("mine.py").splitlines())) <= 100


def test_the_plan_has_ninety_minutes():
    plan = [(int(a), int(b)) for a, b in re.findall(r"^\| (\d+)-(\d+) \|", PAGE, re.M)]
    assert plan[0][0] == 0 and plan[-1][1] == 90
    assert all(end == begin for (_, end), (begin, _) in zip(plan, plan[1:])) and all(a < b for a, b in plan)


def test_every_station_has_its_parts():
    stations = re.findall(r"^## (Station \d): .*?(?=^## )", PAGE, re.M | re.S)
    assert stations == [f"Station {n}" for n in range(1, 5)]
    for text in re.findall(r"^## Station .*?(?=^## )", PAGE, re.M | re.S):
        question = text.partition("<details>")[0]
        parts = [question.count(part) for part in ("**Predict:**", "**Picture:**", "**Question:**", "\n    python ")]
        assert parts == [1, 1, 1, 1], text[:40]
        assert question.index("**Predict:**") < question.index("\n    python "), "first write, then run"


# The numbers.

def bold(answer):
    return re.findall(r"\*\*(.+?)\*\*", ANSWERS[answer])


def counting(reads, key="nats"):
    import lab
    return {row["order"] or row["model"]: row[key] for row in lab.read_csv(ROOT / "assets/counting.csv")
            if row["reads"] == reads}


def gain(filtered, wave):
    """How much louder a filter makes the fastest wave, which flips its sign at every token."""
    return float((filtered / wave)[0, -1, 0])


FASTEST = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[None, :, None]     # (1, T, 1)


def station_1():
    stream = counting("stream")
    best = min(stream, key=stream.get)
    after = counting("after the training text")
    ngrams = counting("stream", "ngrams")
    assert stream[8] > stream[7] and min(after.values()) > stream[best]
    files = [f"{after[name]:.3f}" for name in ("bz2", "xz", "gzip")]
    return [f"{best:.0f}", f"{best - 1:.0f}", f"{stream[best]:.3f}", *files, f"{ngrams[8] - ngrams[7]:,.0f}"]


def station_2():
    m = load_model("momentum")
    half = gain(m.shear(FASTEST, -0.5), FASTEST)
    text = torch.randn(1, 9, 1)
    assert torch.equal(m.shear(text, 0), text)
    delayed = torch.cat((text[:, :1], text[:, :-1]), 1)
    assert (m.shear(text, -1) - delayed).abs().max() < 1e-6
    return [f"{abs(half):.0f}", "0", "-1"]


def station_3():
    kl = influence(test_models.awake(load_model("momentum")), tokens((12,)))
    assert np.triu(kl, 1).max() > 0
    return [f"{np.tril(kl, -1).max():.0f}"]


def station_4():
    before, after = reach("cheat")
    return [str(before), str(after)]


def reach(name, layers=1):
    """How many tokens a stack of this file's mixers sees before and after a token."""
    torch.manual_seed(0)
    model = load_model(name).Model(load_model(name).Config(n_embd=8)).double()
    x = torch.randn(1, 8, 31, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(layers):
        y = model.mix(y)
    y[0, :, 15].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    return 15 - int(seen.min()), int(seen.max()) - 15


def exercise_1():
    assert counting("stream", "ngrams")[1] == 65
    return [f"{math.log(65):.3f}"]


def exercise_2():
    nats = min(counting("stream").values())
    assert f"{nats:.3f}" == "1.516"
    return [f"{nats / math.log(2):.3f}", f"{math.exp(nats):.1f}"]


def exercise_3():
    m = load_model("momentum")
    constant = torch.ones(1, 5, 1)
    assert torch.equal(m.shear(constant, 0.3), constant)
    return ["1", *(f"{abs(gain(m.shear(FASTEST, gamma), FASTEST)):g}" for gamma in (0.3, 1, -0.5))]


def exercise_4():
    text = "abracadabra"
    counter = Counter(["abcdr".index(c) for c in text], 5, order=3)
    before = {letter: {a for a, b in zip(text, text[1:]) if b == letter} for letter in "ab"}
    assert before["a"] == set("rcd")
    return [*map(str, counter.sizes), str(len(before["a"])), str(len(before["b"]))]


def exercise_5():
    module = load_model("wavefield")
    heads = [part for part in module.Model(module.Config()).modules() if hasattr(part, "reach")]
    assert max(part.reach().max().item() for part in heads) == pytest.approx(128, rel=1e-5)
    return [f"{128 * math.log(2):.1f}", f"{math.exp(-512 / 128):.1%}"]


def exercise_6():
    module = load_model("momentum")
    model = module.Model(module.Config(vocab_size=65))
    size = lambda part: sum(p.numel() for p in part.parameters() if p.requires_grad)
    mlp = sum(size(block.mlp) for block in model.blocks)
    return [f"{size(model.wte):,}", f"{size(model.blocks[0]):,}", f"{size(model):,}", f"{mlp / size(model):.0%}"]


@torch.no_grad()
def exercise_7():
    sizes = {}
    for name in ("momentum", "mine"):
        module = load_model(name)
        model, state = module.Model(module.Config(vocab_size=65)), {}
        for chunk in (100, 28, 128):
            model(torch.zeros(1, chunk, dtype=torch.long), state=state)
            sizes.setdefault(name, []).append(tensor_bytes(state))
    assert sizes["momentum"][1] == sizes["momentum"][2] and len(set(sizes["mine"])) == 1
    return [f"{sizes[name][-1]:,}" for name in ("momentum", "mine")]


def exercise_8():
    return [str(reach("cheat")[1]), str(reach("cheat", layers=3)[1])]


def exercise_9():
    viscosity = load_model("hydra").viscosity
    gains = [gain(viscosity(FASTEST, 0.3, kind), FASTEST) for kind in ("upwind", "one_sided")]
    assert abs(gain(viscosity(FASTEST, 1.01, "upwind"), FASTEST)) > 1
    most = gain(viscosity(FASTEST, 1, "upwind"), FASTEST)
    with pytest.raises(ValueError, match="nu=1.1"):
        load_model("hydra").Config(nu=1.1)
    return [*(f"{g:.1f}" for g in gains), f"{abs(most):.0f}"]


@pytest.mark.parametrize("answer", list(ANSWERS))
def test_numbers_of_an_answer(answer, desk):
    """What is bold in an answer is what comes out here; any other long number is a given one."""
    name = "exercise_" + answer if answer.isdigit() else answer.lower().replace(" ", "_")
    if name == "exercise_10":
        return                                          # its answer is code: test_the_reference_of_mine
    assert bold(answer) == globals()[name]()
    rest = re.sub(r"\*\*.+?\*\*|```.*?```|`.*?`|\[.*?\]\(.*?\)|^    .*$", "", ANSWERS[answer], flags=re.M | re.S)
    given = {"65", "128", "512", "192", "0.5", "0.3", "1.516", "10,000"}
    loose = [n for n in re.findall(r"\d[\d,.]*\d", rest) if n not in given and not (n.isdigit() and int(n) <= 20)]
    assert not loose, f"not checked: {loose}"


def test_there_are_four_stations_and_ten_exercises():
    assert list(ANSWERS) == [f"Station {n}" for n in range(1, 5)] + [str(n) for n in range(1, 11)]


def blocks(answer):
    return re.findall(r"^```python\n(.*?)^```$", ANSWERS[answer], re.M | re.S)


def make(code):
    module = type(sys)("made_here")
    sys.modules["made_here"] = module                   # where a dataclass looks for its names
    exec(code, vars(module))
    return module


def test_the_cheat_made_honest():
    """With the two lines of the answer nothing leaks; with only one of them there are not as many predictions."""
    cheat = printed("cheat.py")
    old = [line for line in cheat.splitlines(True) if line.strip().startswith(("self.mix =", "x = self.mix("))]
    new = blocks("8")
    assert len(old) == len(new) == 2
    with_layer = cheat.replace(old[0], new[0])
    idx = tokens((1, 16))
    for source, length, leaks in ((cheat, 16, True), (with_layer, 12, None), (cheat.replace(old[1], new[1]), 20, None),
                                  (with_layer.replace(old[1], new[1]), 16, False)):
        module = make(source)
        torch.manual_seed(0)
        model = module.Model(module.Config(vocab_size=23, block_size=16, n_embd=16)).double()
        assert model(idx)[0].shape == (1, length, 23)
        if leaks is not None:
            assert (leak(model, idx[0].numpy())[0] > 1e-6) == leaks


def test_the_reference_of_mine(desk, monkeypatch):
    """The answer to exercise 10 agrees with torch; with a sign wrong it does not."""
    reference, = blocks("10")
    agree = test_models.test_numpy_and_torch_agree
    for broken in (False, True):
        code = reference.replace("(1 - z) * n", "(1 + z) * n") if broken else reference
        monkeypatch.setattr(load_model("mine"), "forward_ref", make(code).forward_ref, raising=False)
        with pytest.raises(AssertionError) if broken else nullcontext():
            agree("mine", {})


# The workflow and the citation.

def test_the_workflow_runs_the_test_command_of_the_readme():
    text = (ROOT / ".github/workflows/test.yml").read_text()
    command = re.search(r"pip install .*pytest -n 2", (ROOT / "README.md").read_text())[0]
    assert command in text
    systems, versions = (json.loads(re.search(rf"{key}: (\[.*\])", text)[1].replace("ubuntu", '"ubuntu')
                         .replace("macos", '"macos').replace("windows", '"windows').replace("latest", 'latest"'))
                         for key in ("os", "python"))
    assert systems == ["ubuntu-latest", "macos-latest", "windows-latest"] and versions == ["3.10", "3.13"]


def test_the_citation_names_every_original():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    for name in {*models()} - YOURS:
        assert f"the original of {name}.py" in text, name
    assert "2602.04902" in text and "10.5281/zenodo.15634703" in text
