"""
The page of a run: one HTML file, written at every evaluation, that needs no server and no network.

It shows what a model does with a passage of text, at every moment of its training: the loss of each
token, the likeliest next ones, which token moves which prediction, the model's portrait, and
whatever quantities its file traces:

    trace(model, idx) -> {name: (array, unit, what it means)}       idx (1, T); in a model file
        array (T,) or (L, T)    a number for each token, in each layer: a colour of the text
        array (L, T, 3)         a point in space: shown on a sphere that can be turned

All of it enters page.html as JSON, and the script there shows it as text, never as HTML. The page
is its own memory: what earlier evaluations showed is read from the file that it replaces.
"""
import base64
import codecs
import io
import json
import math
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from common.files import note, write_atomic
from common.pictures import column, draw_portrait, plain_style
from common.score import evaluating, influence, verdict

TEMPLATE = Path(__file__).with_name("page.html")
DATA = re.compile(r'(?<=<script type="application/json" id="data">).*?(?=</script>)', re.S)
LIMIT = 2_000_000       # bytes of a page
MOMENTS = 12            # evaluations on it, evenly spaced
PASSAGE = 192           # tokens of the validation text; and those of any text that are traced
LONGEST = 5000          # tokens of any text
SHARES = {"portrait": 0.027, "influence": 0.01}         # of the training time that each may take


# What a model says about a text.

def pack(array):
    """Numbers for JSON, NaN and infinity included: the upper halves of float32, three digits."""
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4").astype(np.uint64)
    halves = ((bits + 0x8000) >> 16).astype("<u2")
    return {"shape": np.shape(array), "data": base64.b64encode(halves).decode()}


def quantity(name, array, unit, meaning, T):
    if isinstance(array, torch.Tensor):
        array = array.detach().float().cpu()
    array = np.asarray(array)
    shape = array.shape
    if not (len(shape) in (1, 2) and shape[-1] == T or len(shape) == 3 and shape[1:] == (T, 3)):
        raise ValueError(f"{name} has shape {shape}, not (T,), (L, T) or (L, T, 3) with T = {T}")
    words = {"name": str(name), "unit": str(unit or ""), "meaning": str(meaning or "")}
    return words | pack(array)


@torch.no_grad()
def read(model, idx):                                            # (T,) -> a look at the text
    """The loss of each token, the five likeliest of each prediction, and what the model traces."""
    block = model.config.block_size
    T = len(idx)
    loss, entropy, likeliest, chance = [torch.full((1,), math.nan)], [], [], []
    state = {}
    with evaluating(model):
        for start in range(0, T, block):                         # as sample.py reads a prompt
            logits = model(idx[None, start:start + block], state=state)[0][0]
            log = torch.log_softmax(logits.float(), -1).cpu()
            after = idx[start + 1:start + block + 1, None].cpu()
            loss.append(-log[:len(after)].gather(1, after)[:, 0])
            entropy.append(-(log.exp() * log).sum(-1))
            top = log.topk(min(5, log.shape[1]))
            likeliest += top.indices.tolist()
            chance.append(top.values)
    loss = torch.cat(loss)
    seen = [quantity("loss", loss, "nats",
                     "-log of the probability that the model gave to this token: its surprise", T),
            quantity("entropy of the prediction", torch.cat(entropy), "nats",
                     "how open it is what comes after this token; 0: the model is certain", T)]
    trace = getattr(sys.modules[type(model).__module__], "trace", None)
    if trace:
        with note("trace"), evaluating(model):
            for name, (array, unit, meaning) in trace(model, idx[None, :PASSAGE]).items():
                seen.append(quantity(name, array, unit, meaning, min(T, PASSAGE)))
    mean = loss[1:].mean().item() if T > 1 else None
    return {"loss": mean, "seen": seen, "likeliest": likeliest, "chance": pack(torch.cat(chance))}


def influenced(model, idx, reach):
    """The influence map of the first `reach` tokens, in one pass as in training."""
    reach = min(reach, model.config.block_size, int((2e8 / model.config.vocab_size) ** 0.5))
    kl = influence(model, idx[:reach])
    nats, sentence = verdict(kl)
    return {"leak": nats, "sentence": sentence, **pack(kl)}


def small(png):
    """A picture as a URL of about 50 kB: 1,000 pixels, WebP."""
    from PIL import Image
    with Image.open(io.BytesIO(png)) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "webp", quality=78)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def drawn(model, data, tokenizer):
    with plain_style(), tempfile.TemporaryDirectory() as folder:
        draw_portrait(model, data, tokenizer, f"{folder}/physics.png")
        return small(Path(folder, "physics.png").read_bytes())


def spell(tokenizer, ids, moments):
    """The text as it appears token by token, and a name for every token that is mentioned."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = [decoder.decode(tokenizer.token_bytes(i)) for i in ids]
    mentioned = set(ids)
    for moment in moments:
        mentioned.update(*moment["likeliest"])
    names = {}
    for i in sorted(mentioned):
        name = tokenizer.token_bytes(i)
        try:
            names[i] = name.decode()
        except UnicodeDecodeError:                               # a part of a character
            names[i] = "".join(f"\\x{byte:02x}" for byte in name)
    return {"ids": ids, "text": text, "names": names}


# The file.

def write_page(path, data):
    """The template with the data in it. If that is too large, every other earlier moment goes."""
    template = TEMPLATE.read_text("utf-8")
    while True:
        text = json.dumps(data, allow_nan=False, default=str)    # ASCII: no line separator is left
        for c in "<>&":
            text = text.replace(c, f"\\u{ord(c):04x}")
        page = DATA.sub(lambda _: text, template).encode()
        if len(page) <= LIMIT or len(data["moments"]) == 1:
            return write_atomic(path, page)
        del data["moments"][-2::-2]


def read_page(path):
    """The data in a page; {} if there is none."""
    try:
        return json.loads(DATA.search(Path(path).read_text("utf-8"))[0])
    except (OSError, ValueError, TypeError):
        return {}


def thin(moments):
    """At most MOMENTS of them: those go whose neighbours are nearest to each other."""
    while len(moments) > MOMENTS:
        gaps = [b["step"] - a["step"] for a, b in zip(moments, moments[2:])]
        del moments[1 + gaps.index(min(gaps))]


def curves(rows):
    """The training loss as the means of at most 300 stretches, and the evaluations."""
    train = column(rows, 2).T
    stretches = np.array_split(train, min(300, len(train))) if len(train) else []
    means = [stretch.mean(0).tolist() for stretch in stretches]
    return {"training": means, "validation": column(rows, 3).T.tolist()}


def about_model(model, name):
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return [["model", f"{name}, {size:,} parameters"],
            ["device", str(next(model.parameters()).device)]]


@note("page")
def write_run(model, data, tokenizer, train, progress, live, portrait=None, counter=None):
    """Write the page of a run, index.html in the folder train.out.

    live: the run goes on; portrait: a picture that is drawn already; counter: nats per token that
    one gets by counting, to compare with."""
    with suppress(Exception), plain_style():                     # not counted: loss.png needs it
        import matplotlib.figure  # noqa: F401
    path = Path(train.out, "index.html")
    text_name = Path(train.dataset).name
    done = progress.share(train)
    planned = 0 if train.max_iters else 60 * (train.minutes or 3)
    ids = data.val[:PASSAGE].tolist()
    idx = torch.tensor(ids, device=next(model.parameters()).device)
    moments = []
    spent = {"portrait": 0, "influence": 0}                      # seconds, so far
    latest = {"portrait": 1, "influence": 0.2}                   # the last time; at first a guess
    old = read_page(path)
    if progress.step and old.get("ids") == ids:                  # not the page of an earlier run
        moments = [moment for moment in old["moments"] if moment["step"] < progress.step]
        spent, latest = old["spent"], old["latest"]

    def afford(part, function, *args):
        """Call it if there is time for it, and remember how long it took."""
        allowed = SHARES[part] * max(progress.seconds, planned / 3)
        if done < 1 and spent[part] + latest[part] > allowed:
            return None
        began = time.perf_counter()
        with note(part):
            made = function(*args)
            latest[part] = time.perf_counter() - began
            spent[part] += latest[part]
            return made

    losses = {row[0]: row[3] for row in progress.rows if row[3] != ""}
    sample = progress.samples[-1].partition("\n")[2].strip("\n")
    moment = read(model, idx) | {"step": progress.step, "loss": losses.get(progress.step)}
    moment |= {"sample": sample[:LONGEST], "portrait": None}
    moment["influence"] = afford("influence", influenced, model, idx, 48 if live else PASSAGE)
    if portrait:
        moment["portrait"] = small(portrait.read_bytes())
    elif done < 1 and hasattr(sys.modules[type(model).__module__], "portrait"):
        moment["portrait"] = afford("portrait", drawn, model, data, tokenizer)
    moments.append(moment)
    thin(moments)

    tokens = progress.step * train.batch_size * train.grad_accum * model.config.block_size
    facts = about_model(model, train.model)
    facts.append(["text", f"{text_name}, {len(data.train):,} tokens to train on"])
    facts.append(["trained", f"{progress.step:,} iterations, {progress.seconds:,.0f} s"])
    if progress.seconds:
        facts.append(["speed", f"{tokens / progress.seconds:,.0f} tokens/s"])
    settings = vars(model.config) | vars(train)
    left = progress.seconds * (1 / done - 1) if done else planned
    write_page(path, {
        "name": f"{train.model} on {text_name}", "facts": facts, "settings": settings,
        "bits": data.bits, "counter": counter,
        "done": min(1, done), "left": left, "live": live, "written": time.time(),
        "spent": spent, "latest": latest,
        **curves(progress.rows), **spell(tokenizer, ids, moments), "moments": moments})


def write_text(path, model, tokenizer, name, ids):
    """Write the page of one text, given as tokens."""
    ids = [int(i) for i in ids[:LONGEST]]
    idx = torch.tensor(ids, device=next(model.parameters()).device)
    moment = read(model, idx) | {"step": 0, "sample": None, "portrait": None}
    moment["influence"] = influenced(model, idx, PASSAGE)
    size = sum(len(tokenizer.token_bytes(i)) for i in ids[1:])
    facts = [*about_model(model, name), ["text", f"{len(ids):,} tokens"]]
    write_page(path, {
        "name": f"{name} reads a text", "facts": facts, "settings": vars(model.config),
        "bits": (len(ids) - 1) / max(1, size) / math.log(2), "counter": None,
        "done": 1, "left": 0, "live": False, "written": time.time(),
        "training": [], "validation": [],
        **spell(tokenizer, ids, [moment]), "moments": [moment]})
