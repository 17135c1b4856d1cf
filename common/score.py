"""
How good a model is, as it is used: its loss on a text that it reads once, as a stream, carrying its `state`. Beside it
the loss in cold windows, each read from nothing, for comparison with others' tables. And whether it cheats.
"""
import copy
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from common.counter import Counter

LONGEST = 2**18             # tokens of a text that are scored: a quarter of a million
NEAR = 64                   # tokens at the beginning of a text among which every place is searched for a leak


@contextmanager
def evaluating(model):
    """The model in eval mode, and afterwards as it was, also when the block is left early."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)

ROUNDING = 1e-9         # nats: differences of the logits of 1e-5, which float32 makes, are below it


def nats(logits, y):                                             # (B, T, V), (B, T) -> (B, T)
    """The loss of each token y."""
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none")


@torch.inference_mode()
def token_losses(model, tokens, chunk, autocast=nullcontext(), tell=lambda share: None, state=None, score=nats):
    """Nats of every token after the first: tokens (B, N + 1) -> (B, N), read `chunk` at a time as B streams, which go
    on from a `state` that was filled before. Another `score` of logits and tokens may give several numbers a token."""
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.asarray(tokens).astype(np.int64)).to(device)
    inputs = tokens[:, :-1].split(chunk, 1)
    targets = tokens[:, 1:].split(chunk, 1)
    state, losses = {} if state is None else state, []
    with evaluating(model):
        for i, (x, y) in enumerate(zip(inputs, targets)):
            with autocast:
                logits = model(x, state=state)[0]                                       # (B, chunk, V)
            losses.append(score(logits.float(), y).cpu())
            tell((i + 1) / len(inputs))
    return torch.cat(losses, 1).numpy()


def evaluate(model, data, streams, length, autocast=nullcontext()):
    """Mean nats per token of `streams` streams of `length` tokens, evenly spaced over the text: the ruler of a run."""
    length = min(length, len(data) - 1)
    starts = np.unique(np.linspace(0, len(data) - 1 - length, streams).astype(int))
    tokens = np.stack([data[s:s + length + 1] for s in starts])
    return float(token_losses(model, tokens, model.config.block_size, autocast).mean(dtype=np.float64))


def stream_loss(model, data, autocast=nullcontext(), tell=lambda share: None):
    """Mean nats per token of the text read once from its beginning (at most its first LONGEST tokens)."""
    chunk = max(model.config.block_size, 512)
    losses = token_losses(model, data[None, :LONGEST + 1], chunk, autocast, tell)
    return float(losses.mean(dtype=np.float64))


def cold_loss(model, data, batch_size, autocast=nullcontext()):
    """Mean nats per token of the same text in windows of block_size, each read from nothing."""
    T = model.config.block_size
    data = data[:LONGEST + 1]
    starts = np.arange(0, len(data) - 1, T)
    whole = [s for s in starts if s + T < len(data)]
    batches = [whole[i:i + batch_size] for i in range(0, len(whole), batch_size)]
    batches += [[s] for s in starts[len(whole):]]                                       # the rest
    losses = []
    for batch in batches:
        tokens = np.stack([data[s:s + T + 1] for s in batch])
        losses.append(token_losses(model, tokens, T, autocast).ravel())
    return float(np.concatenate(losses).mean(dtype=np.float64))


def counter_loss(data):
    """What counting gets you: nats per token of the same text for the best Kneser-Ney counter of order 1 to 7, which
    has seen the training text (at most its last two million tokens)."""
    counter = Counter(data.train[-2**21:], data.meta["vocab_size"], order=7)
    text = data.val[:LONGEST + 1]
    return min(-counter.log_probs(text, order)[1:].mean() for order in range(1, 8))


# Cheating.

@torch.inference_mode()
def leak(model, tokens, cuts=8):
    """(nats, t, s): the largest move of an earlier prediction, at token s, when the tokens from t on are replaced or
    cut off; 0 for a causal model. On a copy in float64, where rounding is far below any leak that matters. At a few
    places t, and at all near the beginning: what a token shares with its neighbour alone leaks at no other."""
    V = model.config.vocab_size
    idx = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None, :model.config.block_size]
    T = idx.shape[1]
    predict = lambda idx: model(idx)[0].log_softmax(-1)
    moves = lambda a, b: (a - b).nan_to_num().abs().amax(-1)     # a token that is never expected, -inf, may stay so
    try:
        model = copy.deepcopy(model).cpu().double().eval()
        whole = predict(idx)
    except (RuntimeError, TypeError):   # a model that insists on float32
        model = model.float()
        whole = predict(idx)
    worst = (0.0, 0, 0)
    for t in sorted({max(1, T * i // cuts) for i in range(1, cuts)} | {T - 1}):
        if not 0 < t < T:
            continue
        edited = idx.clone()
        edited[:, t:] = (idx[:, t:] + torch.arange(1, T - t + 1)) % V
        for other in (edited, idx[:, :t]):
            moved = moves(predict(other)[0, :t], whole[0, :t])   # (t,)
            if moved.max() > worst[0]:
                worst = (moved.max().item(), t, int(moved.argmax()))
    if T < 2:
        return worst
    start = idx[:, :NEAR]
    s = torch.arange(start.shape[1])
    before = predict(start)
    for t in s[1:, None].split(max(1, 2**21 // (len(s) * V))):                          # (places, 1)
        edited = torch.where(s < t, start, (start + s - t + 1) % V)                     # (places, T)
        moved = moves(predict(edited), before) * (s < t)
        if moved.max() > worst[0]:
            place, token = np.unravel_index(int(moved.argmax()), moved.shape)
            worst = (moved.max().item(), int(t[place]), int(token))
    return worst


@torch.inference_mode()
def influence(model, idx):                                       # (T,) -> (T, T) nats
    """How far each prediction (column) moves when one token (row) is replaced: KL(before || after).

    Right of the diagonal stands who influences whom. Left of it a causal model has zeros: there, a
    prediction moved although only a later token was changed. Less than ROUNDING counts as 0."""
    idx = torch.as_tensor(idx, dtype=torch.long, device=next(model.parameters()).device)
    T = len(idx)
    V = model.config.vocab_size
    other = idx.roll(T // 2)                                     # a token of the same text
    other = torch.where(other == idx, (idx + 1) % V, other)
    changed = torch.where(torch.eye(T, dtype=torch.bool, device=idx.device), other, idx)
    rows = []
    for part in changed.split(max(1, min(32, 2**21 // (T * V)))):
        with evaluating(model):
            logits = model(torch.cat([idx[None], part]))[0].float()
        p = torch.softmax(logits[:1], -1)
        d = logits[1:] - logits[:1]
        d -= (p * d).sum(-1, keepdim=True)
        # after is p e^d / E[e^d], so KL = log E[e^d] - E[d], and E[d] = 0: no digit is lost
        rows.append(torch.log1p((p * d.clamp(max=80).expm1()).sum(-1)))
    kl = torch.cat(rows).cpu().numpy()
    return np.where(kl < ROUNDING, 0, kl)


def verdict(kl):
    """What an influence map says about seeing the future -> (nats, the sentence)."""
    below = np.tril(kl, -1)
    token, prediction = np.unravel_index(below.argmax(), below.shape)
    nats = float(below[token, prediction])
    if nats == 0:
        return nats, "no prediction moved when a later token was changed: it does not see the future"
    return nats, (f"tokens see the future: changing token {token} moved the prediction at token "
                  f"{prediction} by {nats:.2g} nats; its loss is not to be believed")
