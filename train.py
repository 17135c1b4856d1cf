"""
Train any model of this folder on any text.

    python train.py model=fluidlm                         three minutes, then look into out/fluidlm/
    python train.py model=momentum gamma=0 lr=2e-3        settings are key=value; `help` lists them
    python train.py model=hydra max_iters=2000            iterations instead of minutes: repeatable
    python train.py model=hydra resume=true               go on after Ctrl-C, a crash or a power cut
    torchrun --standalone --nproc_per_node=2 train.py model=wavefield

A model is a file that defines `Config` and `Model` (see README): drop in mine.py, and `model=mine`
trains. Everything random is a function of (seed, step): all models see the same batches, and a
resumed run is an unbroken one.
"""
import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")        # idle threads yield to a busy neighbour

import common.start  # noqa: F401

# isort: split

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from common.checkpoint import COLUMNS, ROOT, finite, load_model, restore, save_checkpoint
from common.files import lock, sha256, write_atomic, write_csv
from common.machine import Processes, check_sizes, interrupts, pick_device, precision, rank, torchrun, tune_cpu
from common.optimizer import clip_gradients, make_optimizers
from common.page import write_run
from common.pictures import draw, draw_loss, draw_portrait
from common.resume import beginning, compare, model_meant, remembered
from common.score import LONGEST, cold_loss, counter_loss, evaluate, leak, stream_loss
from common.settings import UserError, guard, settings, split, visible
from data.text import Tokenizer, ensure_dataset, load_dataset
from sample import generate

KEPT = "the last good checkpoint is kept, resume=true with a lower lr goes on from it"


@dataclass
class Train:
    model: str = "momentum"             # the file to train: momentum, wavefield, ... or yours
    preset: str = ""                    # named settings from the model's PRESETS, e.g. original
    dataset: str = "plays"              # a folder of data/, or the path of any text file
    out: str = ""                       # folder for checkpoint, log, pictures; default out/<model>
    device: str = "auto"                # auto: cuda if there is one, else cpu; or cpu, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where that is faster
    seed: int = 1337                    # of the initial weights, the batches and the dropout
    max_iters: int = 0                  # stop after this many iterations; 0: `minutes` decides
    minutes: float = 0.0                # minutes of training; 0: three, unless max_iters is given
    batch_size: int = 16                # sequences per pass, over all processes
    grad_accum: int = 1                 # passes per iteration
    lr: float = 1e-2                    # peak learning rate
    optimizer: Literal["muon", "adamw"] = "muon"    # muon: hidden matrices only, the rest is adamw
    weight_decay: float = 0.1           # of the weights of Linear and Embedding
    clip: Literal["global", "layer", "off"] = "global"      # gradient norm at most 1, of what
    warmup: int = 50                    # iterations while lr rises; it falls in the second half
    eval_interval: int = 0              # iterations between evaluations; 0: ten evaluations a run
    eval_iters: int = 8                 # block_sizes of text that each stream of an evaluation reads
    init: str = ""                      # a checkpoint whose weights to begin with, on any text
    resume: bool = False                # go on from ckpt.pt in the folder `out`
    overwrite: bool = False             # start over in a folder that holds a run
    compile: bool = False               # torch.compile: takes a minute, may help large models on cuda


@dataclass
class Progress:
    """How far a run is: all that it needs, besides weights and optimizers, to go on later."""
    step: int = 0                       # iterations done
    seconds: float = 0.0                # spent in them
    best: float = math.inf              # lowest validation loss so far
    rows: list = field(default_factory=list)        # log.csv
    samples: list = field(default_factory=list)     # sample.txt

    def share(self, train):
        """The part of the run that is done, 0 to 1."""
        if train.max_iters:
            return self.step / train.max_iters
        return self.seconds / 60 / (train.minutes or 3.0)


def get_batch(data, block_size, seed, step, batch_size, grad_accum=1, rank=0, world=1):
    """Inputs and targets (grad_accum, B, T), from (seed, step); a process takes its share."""
    rng = np.random.default_rng((seed, step))
    start = rng.integers(len(data) - block_size, size=(grad_accum, batch_size))
    start = np.array_split(start, world, 1)[rank]
    at = start[..., None] + np.arange(block_size + 1)
    window = torch.from_numpy(data[at].astype(np.int64))
    return window[..., :-1], window[..., 1:]


def fit(model, data, train, progress, optimizers=None, team=Processes(), clock=time.perf_counter,
        stop=()):
    """Train `model` on the tokens `data` until `progress` is complete: yields (loss, lr) after steps.

    It stops when something stands in `stop`. Only the steps count as seconds, whatever the caller
    does in between. FloatingPointError before a loss that is not finite reaches the weights."""
    tune_cpu()
    device = next(model.parameters()).device
    autocast, _ = precision(device, train.dtype, train.compile)
    if optimizers is None:
        optimizers = make_optimizers(model, train)
    net = team.parallel(model)
    if train.compile:
        net = torch.compile(net)

    while not team.largest(len(stop)):
        began = clock()
        done = team.largest(progress.share(train))
        if done >= 1:
            return

        # the learning rate rises, stays, and falls to zero in the second half
        lr = train.lr * min(1, (progress.step + 1) / max(1, train.warmup), 2 - 2 * done)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

        # forward and backward, in grad_accum passes
        model.train()
        model.progress = done
        torch.manual_seed(hash((train.seed, progress.step, team.rank)) % 2**62)     # for dropout
        x, y = get_batch(data, model.config.block_size, train.seed, progress.step, train.batch_size,
                         train.grad_accum, team.rank, team.world)
        loss = torch.zeros((), device=device)
        for i in range(train.grad_accum):
            with autocast, team.exchange(net, now=i == train.grad_accum - 1):
                part = net(x[i].to(device), y[i].to(device))[1] / train.grad_accum
            part.backward()
            loss += part.detach()
        loss = team.mean(loss).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of iteration {progress.step + 1} is {loss}")

        # the step
        clip_gradients(model, train.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.seconds += clock() - began
        yield loss, lr


def run(train, config, module, data, ckpt=None):
    """Train and write everything into train.out -> nats per token on the whole validation text."""
    out = Path(train.out)
    device = pick_device(train.device)
    team = torchrun(device)
    check_sizes(train, config, data, device, team.world)
    team.join()
    autocast, dtype = precision(device, train.dtype, train.compile)
    torch.manual_seed(train.seed)
    model = module.Model(config).to(device)
    optimizers = make_optimizers(model, train)
    progress = Progress()
    if ckpt:
        restore(model, optimizers, ckpt, ckpt["path"])
        progress = Progress(**ckpt["progress"])
    text_name = Path(train.dataset).name
    tokenizer = Tokenizer(data.meta["tokenizer"])
    about = dict(name=train.model, config=asdict(config), train=asdict(train), meta=data.meta,
                 tokens=torch.tensor(data.val[:512].astype(np.int64)),
                 sha256=sha256(Path(module.__file__).read_bytes()))
    rows = progress.rows
    counter = counter_loss(data)
    page = partial(write_run, model, data, tokenizer, train, progress, counter=counter)
    live = sys.stdout.isatty()          # a screen shows one line that changes, a file gets many

    def say(text, end="\n"):
        try:
            if team.rank == 0:
                print(visible(text), end=end, flush=True)
        except OSError:                 # nobody reads on: stop as after Ctrl-C, and lose nothing
            caught.append("stdout is closed")

    def tell(share):
        """How far a long score is, on a screen."""
        if live:
            say(f"{share:.0%}", end="\x1b[K\r")

    def save(name):
        states = [optimizer.state_dict() for optimizer in optimizers]
        ckpt = dict(about, model=model.state_dict(), optimizers=states, progress=asdict(progress))
        if not finite(ckpt):
            raise UserError(f"the weights after iteration {progress.step} are not finite; {KEPT}")
        save_checkpoint(out / name, ckpt)
        write_csv(out / "log.csv", COLUMNS, rows)
        write_atomic(out / "sample.txt", "".join(progress.samples).encode())

    def report():
        """Evaluate, show a sample of text, keep the latest and the best: by one ruler all run long."""
        length = train.eval_iters * config.block_size
        loss = evaluate(model, data.val, train.batch_size, length, autocast)
        if not math.isfinite(loss):
            raise UserError(f"the validation loss after iteration {progress.step} is {loss}; "
                            + KEPT)
        rows[-1][3:5] = round(loss, 6), round(loss * data.bits, 6)
        with autocast:
            written = list(generate(model, data.val[:8].astype(np.int64), 160))
        text = tokenizer.decode(written)
        title = f"iteration {progress.step}, validation loss {loss:.4f}"
        progress.samples.append(f"--- {title}\n{text}\n\n")
        say(f"{title}, {loss * data.bits:.3f} bits per byte\n    " + text.replace("\n", "\n    "))
        if loss < progress.best:
            progress.best = loss
            save("best.pt")
        save("ckpt.pt")
        if progress.share(train) < 1:
            page(live=True)

    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    budget = f"{train.minutes or 3:g} minutes"
    if train.max_iters:
        budget = f"{train.max_iters} iterations"
    shown = time.perf_counter()
    with interrupts() as caught:
        say(f"{train.model}: {size:,} parameters; {text_name}: {len(data.train):,} tokens; "
            f"{team.world} x {device}, {dtype}; {budget}; open {out}/index.html and watch")
        say(f"counting letters gets you to {counter:.3f} nats per token")
        if not rows:
            rows.append([0, 0.0, "", "", "", 0.0, 0.0])
            if team.rank == 0:
                report()
        done = team.largest(progress.share(train))
        before = progress.seconds
        try:
            steps = fit(model, data.train, train, progress, optimizers, team, stop=caught)
            for loss, lr in steps:
                taken = max(progress.seconds - before, 1e-9)
                before = progress.seconds
                speed = round(train.batch_size * train.grad_accum * config.block_size / taken)
                rows.append([progress.step, round(progress.seconds, 3), loss, "", "", lr, speed])
                last, done = done, team.largest(progress.share(train))
                if train.eval_interval:
                    due = progress.step % train.eval_interval == 0
                else:
                    due = int(10 * done) > int(10 * last)
                if due and done < 1 and team.rank == 0:
                    report()
                elif time.perf_counter() - shown > (1 if live else 10):
                    shown = time.perf_counter()
                    left = progress.seconds / done - progress.seconds
                    say(f"iteration {progress.step}: loss {loss:.4f}, {speed:,} tokens/s, "
                        f"{left:.0f} s left", end="\x1b[K\r" if live else "\n")
        except FloatingPointError as e:
            if team.rank == 0:
                page(live=False)
            raise UserError(f"{e}; {KEPT}") from None
        if team.rank == 0:
            save("ckpt.pt")             # before the long score of the whole text, too
    team.close()
    if team.rank > 0:
        return None
    if done < 1:
        page(live=False)
        say(f"\nstopped and saved after iteration {progress.step}; add resume=true to go on")
        return None

    if rows[-1][3] == "":
        report()
    read = min(len(data.val) - 1, LONGEST)
    say(f"reading {read:,} of {len(data.val) - 1:,} validation tokens as one stream ...")
    loss = stream_loss(model, data.val, autocast, tell)
    cold = cold_loss(model, data.val, train.batch_size, autocast)
    rows.append([progress.step, round(progress.seconds, 3), "", loss, loss * data.bits, 0.0, 0.0])
    save("ckpt.pt")
    pictures = {"loss.png": lambda path: draw_loss(rows, counter, f"{train.model} on {text_name}", path)}
    if hasattr(module, "portrait"):
        pictures["physics.png"] = partial(draw_portrait, model, data, tokenizer)
    drawn = draw(out, pictures)
    page(live=False, portrait=drawn.get("physics.png"))
    say(f"{progress.step} iterations in {progress.seconds:.0f} s; the validation text as a stream: "
        f"{loss:.4f} nats per token, {loss * data.bits:.4f} bits per byte "
        f"({cold:.4f} nats in windows from nothing; a counter: {counter:.4f})")
    nats, later, earlier = leak(model, data.val[:config.block_size])
    if nats > 1e-6:
        print(f"warning: tokens see the future: changing the text from token {later} on moved the "
              f"prediction at token {earlier} by {nats:.2g} nats; this loss is not to be believed",
              file=sys.stderr)
    else:
        say("no token sees the future: changing later ones moved no earlier prediction")
    say(f"look at {', '.join(f'{out}/{name}' for name in ['index.html', *drawn])}; "
        f"python sample.py ckpt={out}/ckpt.pt writes more")
    return loss


def main():
    given = split(sys.argv[1:])
    name = model_meant(given, Train.model)
    module = load_model(name)
    presets = getattr(module, "PRESETS", {})
    preset = given.get("preset", "")
    if preset and preset not in presets:
        raise UserError(f"no preset '{preset}'; there are {', '.join(presets)}")
    defaults = {"model": name} | presets.get(preset, {})
    train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
    for a, b in (("max_iters", "minutes"), ("resume", "overwrite")):
        if getattr(train, a) and getattr(train, b):
            raise UserError(f"{a} and {b} contradict each other; give one")
    train.out = out = train.out or f"out/{train.model}"
    with nullcontext() if rank() else lock(out):
        ckpt = beginning(train)
        spec = None
        if ckpt:
            defaults = remembered(ckpt, given) | defaults
            train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
            train.out = out
            spec = ckpt["meta"].get("tokenizer")
        data = load_dataset(ensure_dataset(train.dataset, ROOT / "data", Path("out/data"), out, spec))
        if "vocab_size" in given and config.vocab_size != data.meta["vocab_size"]:
            raise UserError(f"vocab_size={config.vocab_size} is not that of {train.dataset}; "
                            "leave it out")
        config.vocab_size = data.meta["vocab_size"]
        if ckpt:
            compare(ckpt, train, config, data)
        run(train, config, module, data, ckpt)


if __name__ == "__main__":
    guard(main)
