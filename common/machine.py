"""What the machine gives: devices and their memory, processes of one run, interruptions."""
import ctypes
import math
import os
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from common.settings import UserError


def rank():
    """The number of this process in its run. Variables that a cluster has left in the environment do not count."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def pick_device(name):
    """torch.device for auto, cpu, cuda, cuda:1, mps."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK'] if dist.is_torchelastic_launched() else 0}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception:                                   # torch has many words for it
        raise UserError(f"device={name} is not there or cannot be used; device=cpu always works") from None
    return device


def tune_cpu():
    """Two things that a training step on a CPU should not wait for -> could memory be told?

    Numbers that decay to denormals become zero, instead of slow. And glibc keeps what is freed for the next step: by
    itself it hands large blocks back to the system and takes them anew at once, page by page."""
    torch.set_flush_denormal(True)
    trim_threshold = -1                                 # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mmap_threshold = -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):        # no glibc: macOS, musl, Windows
        return False
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


def has_bfloat16(device):
    """Does the device multiply matrices faster in bfloat16? A CPU does with AVX512-BF16, AMX or, under Linux, ARM's.
    A GPU from before Ampere (a T4, say) only emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known = getattr(torch.cpu, "get_capabilities", dict)()                  # an older torch cannot tell
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or sys.platform == "linux" and known.get("bf16"))


class LinearInBfloat16(TorchFunctionMode):
    """A context in which F.linear, and nothing else, multiplies in bfloat16, forward and backward.

    On a CPU autocast is too eager: attention and rotations gain nothing in bfloat16 and lose digits on the way."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            return self.linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def linear(input, weight, bias=None):
        if bias is not None:
            bias = bias.bfloat16()
        return F.linear(input.bfloat16(), weight.bfloat16(), bias).to(input.dtype)


def precision(device, dtype, compiled=False):
    """(context, name): matrix products in bfloat16 if asked for, or by themselves where that is faster; else float32.
    compiled: torch.compile looks through autocast, but not through a context of our own."""
    if dtype == "float32" or dtype == "auto" and not has_bfloat16(device):
        return nullcontext(), "float32"
    if device.type == "cpu" and not compiled:
        return LinearInBfloat16(), "bfloat16"
    return torch.autocast(device.type, torch.bfloat16), "bfloat16"


def check_sizes(train, config, data, device, world):
    """Refuse what cannot work, before allocating: weights, gradients and moments, activations and logits, batches."""
    L, C, V, T = (getattr(config, key, 1) for key in ("n_layer", "n_embd", "vocab_size", "block_size"))
    steps = getattr(config, "n_steps", 1)               # Euler steps keep what layers keep
    known = {"n_layer", "n_embd", "vocab_size", "block_size", "n_head", "n_steps"}
    most = max([1, *(value for key, value in vars(config).items() if type(value) is int and key not in known)])
    share = world if device.type == "cuda" else 1       # processes on a CPU share its memory, too
    need = 16 * (8 * L * C * C + V * C + 1000 * L + C * most)
    need += 4 * train.batch_size * T * (20 * L * C * steps + 3 * V + 4 * train.grad_accum + most) / share
    if device.type == "cuda":
        have = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf"):
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        have = math.inf
    if need > have:
        raise UserError(f"these sizes need about {need / 2**30:,.0f} GiB and {device} has {have / 2**30:,.0f}; "
                        "lower n_embd, n_layer, block_size, batch_size, grad_accum or whatever you raised")
    if train.batch_size % world:
        raise UserError(f"batch_size={train.batch_size} does not divide over {world} processes; choose a multiple")
    shortest = min(len(data.train), len(data.val))
    if shortest < T + 2:
        raise UserError(f"{train.dataset} is too short: {shortest} tokens for block_size={T}; lower it or add text")


@dataclass
class Processes:
    """The processes that share a run. The default is one alone, for which every method is trivial."""
    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def join(self):
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def largest(self, number):
        """The largest of all processes' numbers: how they agree on the time, and on stopping."""
        if self.world == 1:
            return number
        numbers = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.item()

    def mean(self, tensor):
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor / self.world

    def parallel(self, model):
        return model if self.world == 1 else DistributedDataParallel(model)

    def exchange(self, net, now):
        """The context of a backward pass: gradients are averaged over the processes now, or only added up here."""
        return nullcontext() if now or self.world == 1 else net.no_sync()

    def close(self):
        if self.world > 1:
            dist.destroy_process_group()


def torchrun(device):
    """The processes that torchrun started, or this one alone; they do not yet know of each other."""
    if dist.is_torchelastic_launched():
        return Processes(rank(), int(os.environ["WORLD_SIZE"]), device)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        print("note: WORLD_SIZE is set, but torchrun did not start this process: it trains alone", file=sys.stderr)
    return Processes(device=device)


@contextmanager
def interrupts():
    """A list that collects SIGINT, SIGTERM and SIGHUP instead of dying of them."""
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield caught                                    # Python lets only the main thread catch them
        return
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:     # nohup means: go on
        signals.append(signal.SIGHUP)
    handlers = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in signals}
    try:
        yield caught
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
