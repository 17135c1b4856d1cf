"""
On a GPU, if there is one: a model computes there what it computes on the CPU, in one go and token by token, in bfloat16
and compiled.

    python -m pytest -q tests/test_cuda.py
"""
import pytest
import torch
from helpers import awake, relative, small, tokens

from common.checkpoint import load_model, models
from common.machine import precision
from common.optimizer import make_optimizers
from train import Progress, Train, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
each_model = pytest.mark.parametrize("name", models())


def loss_and_gradients(model, idx):
    loss = model(idx[:, :-1], idx[:, 1:])[1]
    weights = [p for p in model.parameters() if p.requires_grad]
    return [t.detach().cpu() for t in (loss, *torch.autograd.grad(loss, weights))]


@each_model
def test_as_on_the_cpu(name):
    model, idx = awake(load_model(name)), tokens((2, 13))
    cpu = loss_and_gradients(model, idx)
    gpu = loss_and_gradients(model.cuda(), idx.cuda())
    assert max(relative(a, b) for a, b in zip(gpu, cpu)) < 1e-6


@each_model
@torch.no_grad()
def test_a_stream_as_one_text(name):
    """Read in pieces on the GPU, token by token on the CPU."""
    model, idx = awake(load_model(name)), tokens((1, 40))
    state = {}
    cpu = torch.cat([model(token, state=state)[0] for token in idx.split(1, 1)], 1)
    state = {}
    model.cuda()
    gpu = torch.cat([model(piece.cuda(), state=state)[0] for piece in idx.split((1, 2, 7, 1, 29), 1)], 1)
    assert relative(gpu.cpu(), cpu) < 1e-9


@each_model
@pytest.mark.parametrize("dtype, compiled", [("bfloat16", False), ("bfloat16", True)])
def test_learns_as_in_float32(name, dtype, compiled):
    """40 iterations on one small text, in float32 and in another way: the losses stay together."""
    module, data = load_model(name), tokens((200,)).numpy()
    curves = []
    for how in (dict(dtype="float32"), dict(dtype=dtype, compile=compiled)):
        torch.manual_seed(0)
        train = Train(max_iters=40, batch_size=4, device="cuda", **how)
        model = module.Model(small(module)).cuda()
        curves.append([loss for loss, _ in fit(model, data, train, Progress(), make_optimizers(model, train))])
    assert precision(torch.device("cuda"), dtype)[1] == dtype
    plain, other = map(torch.tensor, curves)
    assert plain[-1] < plain[0] - 0.1
    assert (plain - other).abs()[:10].max() < 0.02 and (plain - other).abs().max() < 0.2
    assert (plain != other).any()
