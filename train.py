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
import difflib
import hashlib
import importlib.util
import inspect
import io
import math
import re
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.text import Tokenizer, UserError, ensure_dataset, load_dataset, write_atomic

ROOT = Path(__file__).resolve().parent


@dataclass
class Train:
    model: str = "momentum"             # the file to train: momentum, fluidlm, hydra, wavefield, advection_glu, yours
    preset: str = ""                    # named settings from the model's PRESETS, e.g. seed
    dataset: str = "plays"              # a folder of data/, or the path of any text file
    out: str = ""                       # folder for everything that is written; default out/<model>
    device: str = "auto"                # auto takes cuda if there is one, else cpu; or cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"      # auto: bfloat16 autocast on cuda, float32 elsewhere
    seed: int = 1337                    # of the initial weights, the batches and the dropout
    max_iters: int = 0                  # stop after so many iterations; 0: `minutes` decides
    minutes: float = 0.0                # stop after so many minutes of training; 0 and max_iters=0: three
    batch_size: int = 16                # sequences per pass, over all processes
    grad_accum: int = 1                 # passes per iteration
    lr: float = 1e-2                    # peak learning rate
    optimizer: Literal["muon", "adamw"] = "muon"    # muon: for hidden matrices, adamw for the rest; adamw: for all
    weight_decay: float = 0.1           # of matrices and embeddings
    clip: Literal["global", "layer", "off"] = "global"          # gradient norm at most 1: of all, or of each layer
    warmup: int = 50                    # iterations in which the learning rate rises; in the second half it falls to 0
    eval_interval: int = 0              # iterations between evaluations, samples, checkpoints; 0: ten times a run
    eval_iters: int = 8                 # batches of the validation text in each evaluation
    resume: bool = False                # go on from out/ckpt.pt
    overwrite: bool = False             # start over in a folder that holds a run
    compile: bool = False               # torch.compile: worth it on cuda, not on a CPU

    def __post_init__(self):
        for key in ("lr", "weight_decay", "minutes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key):g} should be 0 or more")


# Settings: every key=value is a field of a dataclass, its comment is the help text.

POSITIVE = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "batch_size", "grad_accum", "eval_iters"}


def convert(key, text, kind):
    """The value of `key=text` as the type of its field; UserError says what it should be."""
    if get_args(kind):
        if text in get_args(kind):
            return text
        raise UserError(f"{key}={text} should be one of {', '.join(get_args(kind))}")
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UserError(f"{key}={text} should be true or false")
    if kind is str:
        return text
    try:
        number = int(text) if kind is int and re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        raise UserError(f"{key}={text} should be a {'whole ' if kind is int else ''}number") from None
    if not math.isfinite(number) or abs(number) > 1e18:
        raise UserError(f"{key}={text} should be a finite number")
    if key == "dropout" and not 0 <= number < 1:
        raise UserError(f"{key}={text} should be 0 or more and below 1")
    if kind is int:
        if number != int(number):
            raise UserError(f"{key}={text} should be a whole number")
        number = int(number)
        if number < (key in POSITIVE):
            raise UserError(f"{key}={text} should be {int(key in POSITIVE)} or more")
    return number


def split(argv):
    """['a=1', '--b=2'] -> {'a': '1', 'b': '2'}; 'help' -> {'help': ''}."""
    given = {}
    for arg in argv:
        key, equals, text = arg.removeprefix("--").partition("=")
        if not equals and key not in ("help", "-h"):
            raise UserError(f"'{arg}' is not a setting; settings look like key=value, and help lists them")
        if key in given:
            raise UserError(f"{key} is given twice; keep one")
        given["help" if key == "-h" else key] = text
    return given


def settings(argv, *classes, defaults={}):
    """Instances of the dataclasses, from their defaults, then `defaults`, then the key=value words of argv."""
    given = split(argv)
    kinds = {key: kind for c in classes for key, kind in get_type_hints(c).items()}
    if "help" in given:
        for c in classes:
            comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(c), re.M))
            print(f"\n{sys.modules[c.__module__].__file__}")
            for f in fields(c):
                kind = "|".join(get_args(kinds[f.name])) or kinds[f.name].__name__
                value = defaults.get(f.name, f.default)
                print(f"  {f.name + '=' + str(value):<24} {kind:<8} {comments.get(f.name, '')}")
        sys.exit(0)
    for key in given:
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, 1)
            raise UserError(f"no setting '{key}'; {f'did you mean {close[0]}? ' if close else ''}add help to list them")
    values = defaults | {key: convert(key, text, kinds[key]) for key, text in given.items()}
    try:
        made = [c(**{f.name: values[f.name] for f in fields(c) if f.name in values}) for c in classes]
    except ValueError as e:
        raise UserError(str(e)) from None
    return made[0] if len(made) == 1 else made


def guard(main):
    """Run main(); whatever a user can mend ends in one line and exit status 2."""
    try:
        main()
        sys.stdout.flush()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; lower batch_size, block_size or n_embd", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                             # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except dist.DistBackendError as e:
        print(f"error: lost a process of the run ({str(e).splitlines()[0]}); go on with resume=true", file=sys.stderr)
        sys.exit(2)


def models():
    """The names of the files beside this one that define a Model."""
    return sorted(p.stem for p in ROOT.glob("*.py") if re.search(r"^class Model\b", p.read_text(), re.M))


def load_model(name):
    """The model file as a module, by path: an installed package called `hydra` cannot get in the way."""
    if name not in models():
        close = "".join(f"did you mean {m}? " for m in difflib.get_close_matches(name, models(), 1))
        raise UserError(f"no model '{name}'; {close}there are {', '.join(models())}")
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
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
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
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight not in embeddings]
    hidden = [p for p in matrices if p.requires_grad] if train.optimizer == "muon" else []
    decay = [p for p in [*embeddings, *matrices] if p.requires_grad and not any(p is h for h in hidden)]
    other = [p for p in model.parameters() if p.requires_grad and not any(p is q for q in [*hidden, *decay])]
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
        window = np.stack([data[s:s + T + 1] for s in batch]).astype(np.int64)
        window = torch.from_numpy(window).to(device)
        with context:
            loss = model(window[:, :-1], window[:, 1:])[1].item()
        total, count = total + loss * window[:, 1:].numel(), count + window[:, 1:].numel()
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
    for i in range(tokens):
        logits = logits.float().cpu()
        if temperature == 0:
            new = logits.argmax()
        else:
            p, order = torch.softmax(logits / temperature, 0).sort(descending=True)
            p[top_k or len(p):] = 0
            p[p.cumsum(0) - p >= top_p * p.sum()] = 0                                   # always keeps the first
            new = order[torch.multinomial(p, 1, generator=generator)]
        yield int(new)
        if i + 1 < tokens:
            logits = model(new.reshape(1, 1).to(device), state=state)[0][0, -1]
    model.train(model_was_training)


# Checkpoints: one dict of plain types and tensors.

def save_checkpoint(path, ckpt):
    buffer = io.BytesIO()
    torch.save(ckpt, buffer)
    write_atomic(path, buffer.getbuffer())


def load_checkpoint(path):
    """The dict in a checkpoint file. weights_only: a foreign file is read as data or refused, its code never runs."""
    kinds = dict(name=str, config=dict, train=dict, meta=dict, model=dict, optimizers=list, step=int, seconds=float,
                 best=float, rows=list, samples=list, tokens=torch.Tensor, sha256=str)
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}; train first, or say ckpt=path") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; say ckpt=path") from None
    except Exception as e:                              # torch.load meets broken bytes with a dozen kinds of exception
        raise UserError(f"{path} is not a checkpoint of this project or is damaged ({type(e).__name__}); "
                        "use best.pt beside it, or train again") from None
    if not isinstance(ckpt, dict) or any(not isinstance(ckpt.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} is not a checkpoint of this project; train one with train.py")
    for key, value in ckpt["model"].items():
        if not isinstance(value, torch.Tensor) or not torch.isfinite(value).all():
            raise UserError(f"{path} holds numbers that are not finite ({key}); use best.pt beside it, or train again")
    return ckpt


def build(ckpt, path, device="cpu"):
    """The model of a checkpoint, its module and its tokenizer."""
    module = load_model(ckpt["name"])
    try:
        model = module.Model(module.Config(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
    except Exception as e:
        raise UserError(f"{path} does not fit {ckpt['name']}.py ({str(e).splitlines()[0]}); train again") from None
    if ckpt["sha256"] != file_sha256(module.__file__):
        print(f"note: {ckpt['name']}.py has changed since this checkpoint", file=sys.stderr)
    return model.to(device), module, Tokenizer(ckpt["meta"].get("tokenizer"))


def file_sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# The run.

def pick_device(name, local_rank=0):
    """torch.device for auto, cpu, cuda, cuda:1, mps."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device={name} is not there or cannot be used; device=cpu always works") from None
    return device


def check_memory(train, config, device):
    """Refuse what cannot fit, before allocating: weights, gradients and moments, then activations and logits."""
    L, C, V, T = (getattr(config, key, 1) for key in ("n_layer", "n_embd", "vocab_size", "block_size"))
    need = 16 * (8 * L * C * C + V * C + 1000 * L) + 4 * train.batch_size * T * (20 * L * C + 3 * V)
    if device.type == "cuda":
        have = torch.cuda.mem_get_info(device)[0]
    else:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    if need > have:
        raise UserError(f"these sizes need about {need / 2**30:,.0f} GiB and {device} has {have / 2**30:,.0f}; "
                        "lower n_embd, n_layer, block_size or batch_size")


def draw_loss(rows, title, path):
    from matplotlib.figure import Figure
    ax = Figure(figsize=(8, 4.5), layout="constrained").subplots()
    train = np.array([(row[0], row[2]) for row in rows if row[2] != ""]).reshape(-1, 2)
    val = np.array([(row[0], row[3]) for row in rows if row[3] != ""]).reshape(-1, 2)
    width = max(1, len(train) // 100)
    ax.plot(train[:, 0], train[:, 1], color="#0072B2", alpha=0.2, lw=0.8)
    ax.plot(train[width - 1:, 0], np.convolve(train[:, 1], np.ones(width) / width, "valid"), color="#0072B2",
            label=f"train, mean of {width}")
    ax.plot(val[:, 0], val[:, 1], "o-", color="#D55E00", label="validation")
    ax.set(xlabel="iteration", ylabel="loss (nats per token)", title=title)
    ax.legend()
    ax.grid(alpha=0.3)
    ax.figure.savefig(path, dpi=110)


def draw(out, drawings):
    """Each drawing(path) writes its picture(s) into a temporary folder, from where they are moved into place."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".tmp-") as folder:
        for name, drawing in drawings.items():
            drawing(str(Path(folder, name)))
        for path in Path(folder).iterdir():
            os.replace(path, Path(out, path.name))


COLUMNS = ["iter", "seconds", "train_loss", "val_loss", "bits_per_byte", "lr", "tokens_per_s"]


def run(train, config, module, data, ckpt=None, clock=time.perf_counter):
    """Train and write everything into train.out -> loss on the whole validation text, in nats per token."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master, T, live = rank == 0, config.block_size, sys.stdout.isatty()
    device = pick_device(train.device, int(os.environ.get("LOCAL_RANK", 0)))
    check_memory(train, config, device)
    if train.batch_size % world:
        raise UserError(f"batch_size={train.batch_size} does not divide over {world} processes; choose a multiple")
    if (shortest := min(len(data.train), len(data.val))) < T + 2:
        raise UserError(f"{train.dataset} is too short: {shortest} tokens for block_size={T}; lower it or add text")
    if world > 1:
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
        model.load_state_dict(ckpt["model"])
        for optimizer, saved in zip(optimizers, ckpt["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds, best, rows, samples = (ckpt[key] for key in ("step", "seconds", "best", "rows", "samples"))
    net = DistributedDataParallel(model) if world > 1 else model
    net = torch.compile(net) if train.compile else net
    tokenizer, out = Tokenizer(data.meta["tokenizer"]), Path(train.out)
    bits = data.meta["val"]["tokens"] / data.meta["val"]["bytes"] / math.log(2)         # nats a token -> bits a byte
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    length = f"{train.max_iters} iterations" if train.max_iters else f"{minutes:g} minutes"
    say = print if master else lambda *args, **options: None
    say(f"{train.model}: {size:,} parameters; {Path(train.dataset).name}: {len(data.train):,} tokens; "
        f"{world} x {device}, {'bfloat16' if bf16 else 'float32'}; {length}; {out}/", flush=True)

    def save(name="ckpt.pt"):
        if not all(torch.isfinite(p).all() for p in model.parameters()):
            raise UserError(f"weights not finite after iteration {step}; the last good checkpoint is kept, lower lr")
        save_checkpoint(out / name, dict(
            name=train.model, config=asdict(config), train=asdict(train), meta=data.meta, model=model.state_dict(),
            optimizers=[o.state_dict() for o in optimizers], step=step, seconds=seconds, best=best, rows=rows,
            samples=samples, tokens=torch.tensor(data.val[:512].astype(np.int64)), sha256=file_sha256(module.__file__)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        write_atomic(out / "log.csv", text.getvalue().encode())
        write_atomic(out / "sample.txt", "".join(samples).encode())

    def report(limit):
        """Evaluate, show a sample of text, keep the latest and the best."""
        nonlocal best
        val = evaluate(model, data.val, train.batch_size, device, context, limit)
        if not math.isfinite(val):
            raise UserError(f"validation loss {val} after iteration {step}; the last good checkpoint is kept, lower lr")
        rows[-1][3:5] = round(val, 6), round(val * bits, 6)
        with context:
            text = tokenizer.decode(list(generate(model, data.val[:8].astype(np.int64), 160)))
        samples.append(f"--- iteration {step}, validation loss {val:.4f}\n{text}\n\n")
        say(f"iteration {step}: validation loss {val:.4f}, {val * bits:.3f} bits per byte\n    "
            + text.replace("\n", "\n    "), flush=True)
        if val < best:
            best = val
            save("best.pt")
        save()
        return val

    caught, few = [], train.eval_iters * train.batch_size
    note = lambda number, frame: caught.append(number)
    handlers = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    if not rows:
        rows.append([0, 0.0, "", "", "", 0.0, 0.0])
        if master:
            report(few)
    model.train()
    began = shown = clock()
    began, every = began - seconds, train.eval_interval or max(1, train.max_iters // 10)
    while True:
        seconds = clock() - began
        fraction = step / train.max_iters if train.max_iters else seconds / 60 / minutes
        if world > 1:                                   # all processes agree on the time and on stopping
            agreed = torch.tensor([fraction, float(bool(caught))], device=device)
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
            fraction, caught[:] = agreed[0].item(), [signal.SIGTERM] * int(agreed[1])
        if fraction >= 1 or caught:
            break
        lr = train.lr * min(1, (step + 1) / max(1, train.warmup), 2 - 2 * fraction)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr
        model.progress = fraction
        torch.manual_seed(hash((train.seed, step, rank)) % 2**62)                       # dropout's own randomness
        x, y = get_batch(data.train, T, train.seed, step, train.batch_size, train.grad_accum, rank, world)
        loss = torch.zeros((), device=device)
        for k in range(train.grad_accum):
            with context, nullcontext() if k == train.grad_accum - 1 or world == 1 else net.no_sync():
                part = net(x[k].to(device), y[k].to(device))[1] / train.grad_accum
            part.backward()
            loss += part.detach() / world
        if world > 1:
            dist.all_reduce(loss)
        loss = loss.item()
        if not math.isfinite(loss):
            raise UserError(f"the loss at iteration {step + 1} is {loss}; the last good checkpoint is kept, lower lr")
        clip_gradients(model, train.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, now = step + 1, clock() - began
        speed = round(x.numel() * world / max(now - seconds, 1e-9))
        rows.append([step, round(now, 3), loss, "", "", lr, speed])
        tenth = not train.max_iters and int(10 * now / 60 / minutes) > int(10 * fraction)
        if master and step != train.max_iters and (tenth if minutes and not train.eval_interval else step % every == 0):
            seconds = now
            report(few)
        elif clock() - shown > (1 if live else 10):
            shown = clock()
            left = now * (1 / max(fraction, 1e-9) - 1)
            say(f"iteration {step}: loss {loss:.4f}, {speed:,} tokens/s, {left:.0f} s left",
                end="\r" if live else "\n", flush=True)
    for s, handler in handlers.items():
        signal.signal(s, handler)
    if not master:
        return None
    if caught:
        save()
        say(f"\nstopped and saved after iteration {step}; add resume=true to go on")
        return None
    if step > rows[-1][0] or rows[-1][2] != "":         # not when a finished run is resumed
        rows.append([step, round(seconds, 3), "", "", "", 0.0, 0.0])
    val = report(None)
    draw(out, {"loss.png": lambda path: draw_loss(rows, f"{train.model} on {Path(train.dataset).name}", path),
               "physics.png": lambda path: module.portrait(model, data.val[:512].astype(np.int64), path)})
    say(f"{step} iterations in {seconds:.0f} s; the whole validation text: {val:.4f} nats per token, "
        f"{val * bits:.4f} bits per byte\n"
        f"look at {out}/loss.png and {out}/physics.png; python sample.py model={train.model} writes more")
    return val


def main():
    given = split(sys.argv[1:])
    module = load_model(given.get("model", Train.model))
    presets, preset = getattr(module, "PRESETS", {}), given.get("preset", "")
    if preset and preset not in presets:
        raise UserError(f"no preset '{preset}' in {Path(module.__file__).name}; there are {', '.join(presets)}")
    defaults, ckpt = dict(presets.get(preset, {})), None
    train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
    defaults["out"] = out = train.out or f"out/{train.model}"
    if Path(out, "ckpt.pt").exists():
        if train.resume:
            ckpt = load_checkpoint(Path(out, "ckpt.pt"))
            defaults |= ckpt["train"] | ckpt["config"] | {"out": out}
            if "max_iters" in given or "minutes" in given:
                defaults |= {"max_iters": 0, "minutes": 0.0}
        elif not train.overwrite:
            raise UserError(f"{out} holds a run; resume=true goes on, overwrite=true starts over, out=... keeps both")
    train, config = settings(sys.argv[1:], Train, module.Config, defaults=defaults)
    if train.max_iters and train.minutes:
        raise UserError("max_iters and minutes contradict each other; give one")
    data = load_dataset(ensure_dataset(train.dataset, ROOT / "data", Path("out/data")))
    config.vocab_size = data.meta["vocab_size"]
    if ckpt and (ckpt["config"] != asdict(config) or ckpt["meta"]["tokenizer"] != data.meta["tokenizer"]):
        raise UserError(f"{out}/ckpt.pt has another shape or vocabulary; resume with the settings it was made with")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the folder {out}: {e.strerror}; give another with out=...") from None
    run(train, config, module, data, ckpt)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    guard(main)
