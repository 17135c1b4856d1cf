"""
Train any model of this folder on any text.

    python train.py model=fluidlm                         three minutes, then look into out/fluidlm/
    python train.py model=momentum gamma=0 lr=2e-3        every setting is key=value; `help` lists them all
    python train.py model=hydra max_iters=2000            count iterations instead of minutes: exactly repeatable
    python train.py model=hydra resume=true               go on after Ctrl-C, a crash or a power cut
    torchrun --standalone --nproc_per_node=2 train.py model=wavefield

A model is a file that defines `Config` and `Model` (see README): drop in mine.py and `model=mine` trains. Everything
random is a function of (seed, step): all models see the same batches, and a resumed run is an unbroken one.
"""
import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")        # idle threads yield: a busy neighbour costs 5x instead of 10x

import csv
import importlib.util
import io
import math
import re
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.record import COLUMNS, draw, draw_loss, finite, interrupts, load_checkpoint
from data.settings import UserError, did_you_mean, first_line, guard, settings, split  # noqa: F401
from data.text import Tokenizer, ensure_dataset, load_dataset, lock, sha256, write_atomic

ROOT = Path(__file__).resolve().parent
RANK, LOCAL_RANK = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))         # torchrun says so
WORLD = int(os.environ.get("WORLD_SIZE", 1))


@dataclass
class Train:
    model: str = "momentum"             # the file to train: momentum, fluidlm, hydra, wavefield, advection_glu, yours
    preset: str = ""                    # named settings from the model's PRESETS, e.g. seed
    dataset: str = "plays"              # a folder of data/, or the path of any text file
    out: str = ""                       # folder for the checkpoint, log, pictures; default out/<model>
    device: str = "auto"                # auto takes cuda if there is one, else cpu; or cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"      # auto: bfloat16 autocast on cuda, float32 elsewhere
    seed: int = 1337                    # of the initial weights, the batches and the dropout
    max_iters: int = 0                  # stop after so many iterations; 0: `minutes` decides
    minutes: float = 0.0                # stop after so many minutes; 0: three, unless max_iters is given
    batch_size: int = 16                # sequences per pass, over all processes
    grad_accum: int = 1                 # passes per iteration
    lr: float = 1e-2                    # peak learning rate
    optimizer: Literal["muon", "adamw"] = "muon"    # muon: for hidden matrices, adamw for the rest; adamw: for all
    weight_decay: float = 0.1           # of the weights of Linear and Embedding
    clip: Literal["global", "layer", "off"] = "global"          # gradient norm at most 1: of all, or of each layer
    warmup: int = 50                    # iterations in which the learning rate rises; it falls in the run's second half
    eval_interval: int = 0              # iterations between evaluations, samples, checkpoints; 0: ten times a run
    eval_iters: int = 8                 # batches of the validation text in each evaluation
    resume: bool = False                # go on from ckpt.pt in the folder `out`
    overwrite: bool = False             # start over in a folder that holds a run
    compile: bool = False               # torch.compile: worth it on cuda, not on a CPU


# The models.

def models():
    """The names of the files beside this one that define a Model."""
    files = [p for p in ROOT.glob("*.py") if p.is_file()]                               # and not an editor's lock
    return sorted(p.stem for p in files if re.search(r"^class Model\b", p.read_text("utf-8", "replace"), re.M))


def load_model(name):
    """The model file as a module, by path: an installed package called `hydra` cannot get in the way."""
    if name not in models():
        raise UserError(f"no model '{name}'; {did_you_mean(name, models())}there are {', '.join(models())}")
    key = f"_nanophysics_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


# The optimizer.

class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, so that no direction of a matrix is left behind (K. Jordan, 2024).
    The factor 0.2 sqrt(max(rows, columns)) gives a step the size of AdamW's (arXiv 2502.16982): one lr serves both."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(m, group["momentum"])                                   # Nesterov
                x = x.T if len(x) > x.shape[1] else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):      # Newton-Schulz: singular values to about 1. In bf16 this is 10x slower on a CPU
                    s = x @ x.T
                    x = torch.addmm(x, torch.addmm(s, s, s, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
                x = x.T if x.shape != p.shape else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def make_optimizers(model, train):
    """[AdamW] or [Muon, AdamW]; weight decay on the weights of Linear and Embedding only."""
    weights = lambda kind: {id(m.weight) for m in model.modules() if isinstance(m, kind)}
    embedding, linear = weights(torch.nn.Embedding), weights(torch.nn.Linear)
    hidden, decay, other = [], [], []
    for p in model.parameters():
        if p.requires_grad:
            muon = train.optimizer == "muon" and id(p) in linear - embedding
            (hidden if muon else decay if id(p) in linear | embedding else other).append(p)
    groups = [dict(params=decay, weight_decay=train.weight_decay), dict(params=other, weight_decay=0.0)]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=train.lr, betas=(0.9, 0.95), fused=True)
    return [Muon(hidden, train.lr, train.weight_decay), adamw] if hidden else [adamw]


def clip_gradients(model, how):
    """Scale gradients down to norm 1: of everything at once, or of the embedding, the head and each layer apart."""
    parts = {}
    for name, p in model.named_parameters():
        if p.grad is not None and how != "off":
            layer = re.match(r"\w+\.\d+|\w+", name)[0] if how == "layer" else "all"
            parts.setdefault(layer, []).append(p)
    for part in parts.values():
        torch.nn.utils.clip_grad_norm_(part, 1.0)


# Reading and writing text.

def get_batch(data, block_size, seed, step, batch_size, grad_accum=1, rank=0, world=1):
    """Inputs and targets (grad_accum, B, T): a function of (seed, step) alone; each process takes its share."""
    at = np.random.default_rng((seed, step)).integers(len(data) - block_size, size=(grad_accum, batch_size))
    at = np.array_split(at, world, 1)[rank][..., None] + np.arange(block_size + 1)
    window = torch.from_numpy(data[at].astype(np.int64))
    return window[..., :-1], window[..., 1:]


@torch.inference_mode()
def evaluate(model, data, batch_size, device, context, limit=None):
    """Nats per token over the text in windows of block_size; `limit` takes so many evenly spaced windows, else all."""
    T, model_was_training = model.config.block_size, model.training
    model.eval()
    starts = np.arange(0, len(data) - 1, T)
    if limit and limit < len(starts) - 1:
        starts = starts[np.linspace(0, len(starts) - 2, limit).astype(int)]
    whole = [s for s in starts if s + T < len(data)]
    batches = [whole[i:i + batch_size] for i in range(0, len(whole), batch_size)] + [[s] for s in starts[len(whole):]]
    total = count = 0
    for batch in batches:
        window = torch.from_numpy(np.stack([data[s:s + T + 1] for s in batch]).astype(np.int64)).to(device)
        x, y = window[:, :-1], window[:, 1:]
        with context:
            total += model(x, y)[1].item() * y.numel()
        count += y.numel()
    model.train(model_was_training)
    return total / count


@torch.inference_mode()
def generate(model, ids, tokens, temperature=0.8, top_k=40, top_p=1.0, seed=1, state=None):
    """Yield `tokens` new tokens after the prompt `ids`: the prompt in chunks, then one at a time through `state`."""
    device, state = next(model.parameters()).device, {} if state is None else state
    generator, model_was_training = torch.Generator().manual_seed(seed), model.training
    model.eval()
    for chunk in torch.as_tensor(ids, dtype=torch.long, device=device).split(model.config.block_size):
        logits = model(chunk[None], state=state)[0][0, -1]
    k = top_k if temperature >= 1e-4 else 1             # 0 takes the likeliest, and no division overflows
    for i in range(tokens):
        p, order = torch.softmax(logits.float().cpu() / max(temperature, 1e-4), 0).sort(descending=True)
        p[k or len(p):] = 0
        p[p.cumsum(0) - p >= top_p * p.sum()] = 0                                       # always keeps the first
        new = order[torch.multinomial(p, 1, generator=generator)]
        yield int(new)
        if i + 1 < tokens:
            logits = model(new.reshape(1, 1).to(device), state=state)[0][0, -1]
    model.train(model_was_training)


# A model made again from its checkpoint.

@contextmanager
def fitting(path):
    """Whatever torch or a Config says about settings and shapes that are not the checkpoint's, in one line."""
    try:
        yield
    except Exception as e:
        raise UserError(f"{path} does not fit ({first_line(e)}); keep to the settings it was made with, "
                        "or train again") from None


def build(ckpt, path, device="cpu"):
    """The model of a checkpoint and its tokenizer."""
    module = load_model(ckpt["name"])
    with fitting(path):
        model = module.Model(module.Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
    if ckpt["sha256"] != sha256(Path(module.__file__).read_bytes()):
        print(f"note: {ckpt['name']}.py has changed since this checkpoint", file=sys.stderr)
    tokenizer = Tokenizer(ckpt["meta"].get("tokenizer"))
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path} knows {tokenizer.vocab_size} tokens for a vocabulary of {model.config.vocab_size}; "
                        "train again")
    return model.to(device), tokenizer


# The run.

def pick_device(name):
    """torch.device for auto, cpu, cuda, cuda:1, mps."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(f"cuda:{LOCAL_RANK}" if name == "cuda" else name)
        torch.zeros(1, device=device).item()
    except Exception:                                   # torch has many words for it
        raise UserError(f"device={name} is not there or cannot be used; device=cpu always works") from None
    return device


def check_sizes(train, config, data, device):
    """Refuse what cannot work, before allocating: weights, gradients and moments, activations and logits, batches."""
    L, C, V, T = (getattr(config, key, 1) for key in ("n_layer", "n_embd", "vocab_size", "block_size"))
    need = 16 * (8 * L * C * C + V * C + 1000 * L)
    share = WORLD if device.type == "cuda" else 1       # processes on a CPU share its memory, too
    need += 4 * train.batch_size * T * (20 * L * C + 3 * V + 4 * train.grad_accum) / share
    if device.type == "cuda":
        have = torch.cuda.mem_get_info(device)[0]
    else:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    if need > have:
        raise UserError(f"these sizes need about {need / 2**30:,.0f} GiB and {device} has {have / 2**30:,.0f}; "
                        "lower n_embd, n_layer, block_size, batch_size or grad_accum")
    if train.batch_size % WORLD:
        raise UserError(f"batch_size={train.batch_size} does not divide over {WORLD} processes; choose a multiple")
    if (shortest := min(len(data.train), len(data.val))) < T + 2:
        raise UserError(f"{train.dataset} is too short: {shortest} tokens for block_size={T}; lower it or add text")


def run(train, config, module, data, ckpt=None, clock=time.perf_counter):
    """Train and write everything into train.out -> loss on the whole validation text, in nats per token."""
    master, T, live, out = RANK == 0, config.block_size, sys.stdout.isatty(), Path(train.out)
    device = pick_device(train.device)
    check_sizes(train, config, data, device)
    if WORLD > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    bf16 = train.dtype == "bfloat16" or train.dtype == "auto" and device.type == "cuda"
    context = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    minutes = 0 if train.max_iters else train.minutes or 3.0
    torch.set_flush_denormal(True)                      # decayed waves and states become zero instead of slow
    torch.manual_seed(train.seed)
    model = module.Model(config).to(device)
    optimizers = make_optimizers(model, train)
    step, seconds, best, rows, samples = 0, 0.0, math.inf, [], []
    if ckpt:
        with fitting(out / "ckpt.pt"):
            model.load_state_dict(ckpt["model"])
            for optimizer, saved in zip(optimizers, ckpt["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        step, seconds, best, rows, samples = (ckpt[key] for key in ("step", "seconds", "best", "rows", "samples"))
    net = DistributedDataParallel(model) if WORLD > 1 else model
    net = torch.compile(net) if train.compile else net
    tokenizer, few = Tokenizer(data.meta["tokenizer"]), train.eval_iters * train.batch_size
    code = sha256(Path(module.__file__).read_bytes())   # of the file as it was loaded, whatever becomes of it
    kept = "the last good checkpoint is kept, resume=true with a lower lr goes on from it"
    bits = data.meta["val"]["tokens"] / data.meta["val"]["bytes"] / math.log(2)         # nats a token -> bits a byte

    def say(text, end="\n"):
        try:
            if master:
                print(text, end=end, flush=True)
        except OSError:                                 # nobody reads on: stop as after Ctrl-C, and lose nothing
            caught.append(signal.SIGTERM)

    def save(name="ckpt.pt"):
        state = dict(
            name=train.model, config=asdict(config), train=asdict(train), meta=data.meta, model=model.state_dict(),
            optimizers=[o.state_dict() for o in optimizers], step=step, seconds=seconds, best=best, rows=rows,
            samples=samples, tokens=torch.tensor(data.val[:512].astype(np.int64)),
            sha256=code)
        if not finite(state):
            raise UserError(f"the weights after iteration {step} are not finite; {kept}")
        buffer, table = io.BytesIO(), io.StringIO()
        torch.save(state, buffer)
        write_atomic(out / name, buffer.getbuffer())
        csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
        write_atomic(out / "log.csv", table.getvalue().encode())
        write_atomic(out / "sample.txt", "".join(samples).encode())

    def report(limit):
        """Evaluate, show a sample of text, keep the latest and the best."""
        nonlocal best
        val = evaluate(model, data.val, train.batch_size, device, context, limit)
        if not math.isfinite(val):
            raise UserError(f"the validation loss after iteration {step} is {val}; {kept}")
        rows[-1][3:5] = round(val, 6), round(val * bits, 6)
        with context:
            text = tokenizer.decode(list(generate(model, data.val[:8].astype(np.int64), 160)))
        samples.append(f"--- iteration {step}, validation loss {val:.4f}\n{text}\n\n")
        say(f"iteration {step}: validation loss {val:.4f}, {val * bits:.3f} bits per byte\n    "
            + text.replace("\n", "\n    "))
        if val < best:
            best = val
            save("best.pt")
        save()
        return val

    share = lambda: step / train.max_iters if train.max_iters else seconds / 60 / minutes      # of the run, done

    with interrupts() as caught:
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(f"{train.model}: {size:,} parameters; {Path(train.dataset).name}: {len(data.train):,} tokens; "
            f"{WORLD} x {device}, {'bfloat16' if bf16 else 'float32'}; "
            f"{f'{minutes:g} minutes' if minutes else f'{train.max_iters} iterations'}; {out}/")
        if not rows:
            rows.append([0, 0.0, "", "", "", 0.0, 0.0])
            if master:
                report(few)
        model.train()
        shown = clock()
        began = shown - seconds
        while True:
            seconds = clock() - began
            done, stop = share(), bool(caught)
            if WORLD > 1:                               # all processes agree on the time and on stopping
                agreed = torch.tensor([done, stop], dtype=torch.float64, device=device)
                dist.all_reduce(agreed, dist.ReduceOp.MAX)
                done, stop = agreed.tolist()
            if stop or done >= 1:
                break
            lr = train.lr * min(1, (step + 1) / max(1, train.warmup), 2 - 2 * done)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = lr
            model.progress = done
            torch.manual_seed(hash((train.seed, step, RANK)) % 2**62)                   # dropout's own randomness
            x, y = get_batch(data.train, T, train.seed, step, train.batch_size, train.grad_accum, RANK, WORLD)
            loss = torch.zeros((), device=device)
            for k in range(train.grad_accum):
                with context, nullcontext() if k == train.grad_accum - 1 or WORLD == 1 else net.no_sync():
                    part = net(x[k].to(device), y[k].to(device))[1] / train.grad_accum
                part.backward()
                loss += part.detach() / WORLD
            if WORLD > 1:
                dist.all_reduce(loss)
            loss = loss.item()
            if not math.isfinite(loss):
                raise UserError(f"the loss of iteration {step + 1} is {loss}; {kept}")
            clip_gradients(model, train.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            before, step, seconds = seconds, step + 1, clock() - began
            speed = round(x.numel() * WORLD / max(seconds - before, 1e-9))
            rows.append([step, round(seconds, 3), loss, "", "", lr, speed])
            due = int(10 * share()) > int(10 * done) if not train.eval_interval else step % train.eval_interval == 0
            if master and due and share() < 1:
                report(few)
            elif clock() - shown > (1 if live else 10):
                shown = clock()
                say(f"iteration {step}: loss {loss:.4f}, {speed:,} tokens/s, {seconds / share() - seconds:.0f} s left",
                    end="\x1b[K\r" if live else "\n")
        if master:                                      # before the long score of the whole text, too
            save()
    if not master:
        return None
    if stop:
        say(f"\nstopped and saved after iteration {step}; add resume=true to go on")
        return None
    if step > rows[-1][0] or rows[-1][2] != "":         # not when a finished run is resumed
        rows.append([step, round(seconds, 3), "", "", "", 0.0, 0.0])
    val = report(None)
    pictures = {"loss.png": lambda path: draw_loss(rows, f"{train.model} on {Path(train.dataset).name}", path)}
    if hasattr(module, "portrait"):
        pictures["physics.png"] = lambda path: module.portrait(model, data.val[:512].astype(np.int64), path)
    draw(out, pictures)
    say(f"{step} iterations in {seconds:.0f} s; the whole validation text: {val:.4f} nats per token, "
        f"{val * bits:.4f} bits per byte\n"
        f"look at {', '.join(f'{out}/{name}' for name in pictures)}; python sample.py model={train.model} writes more")
    return val


def main():
    given = split(sys.argv[1:])
    module = load_model(given.get("model", Train.model))
    presets, preset = getattr(module, "PRESETS", {}), given.get("preset", "")
    if preset and preset not in presets:
        raise UserError(f"no preset '{preset}' in {Path(module.__file__).name}; there are {', '.join(presets)}")
    defaults, ckpt = dict(presets.get(preset, {})), None
    train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
    for a, b in (("max_iters", "minutes"), ("resume", "overwrite")):
        if getattr(train, a) and getattr(train, b):
            raise UserError(f"{a} and {b} contradict each other; give one")
    out = train.out or f"out/{train.model}"
    with lock(out) if RANK == 0 else nullcontext():
        file = Path(out, "ckpt.pt")
        if file.exists() and not train.resume and not train.overwrite:
            raise UserError(f"{out} holds a run; resume=true goes on, overwrite=true starts over, out=... keeps both")
        if train.resume and file.exists():
            ckpt = load_checkpoint(file)
            budget = {"max_iters": 0, "minutes": 0.0} if "max_iters" in given or "minutes" in given else {}
            defaults = ckpt["train"] | ckpt["config"] | budget | defaults
            train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
        elif train.resume:
            print(f"note: no checkpoint in {out} yet; starting at iteration 0", file=sys.stderr)
        train.out = out
        data = load_dataset(ensure_dataset(train.dataset, ROOT / "data", Path("out/data")))
        if "vocab_size" in given and config.vocab_size != data.meta["vocab_size"]:
            raise UserError(f"vocab_size={config.vocab_size} is not that of {train.dataset}; leave it out")
        config.vocab_size = data.meta["vocab_size"]
        if ckpt and ([ckpt["name"], ckpt["config"], ckpt["meta"].get("tokenizer")]
                     != [train.model, asdict(config), data.meta["tokenizer"]]):
            raise UserError(f"{file} has another shape or vocabulary; resume with the settings it was made with")
        run(train, config, module, data, ckpt)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    guard(main)
