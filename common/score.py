"""How good a model is: its loss on a text, and which token moves which prediction."""
import numpy as np
import torch

ROUNDING = 1e-9         # nats: differences of the logits of 1e-5, which float32 makes, are below it


@torch.inference_mode()
def evaluate(model, data, batch_size, device, context, limit=None):
    """Nats per token in windows of block_size: `limit` of them, evenly spaced, or all."""
    T = model.config.block_size
    starts = np.arange(0, len(data) - 1, T)
    if limit and limit < len(starts) - 1:
        starts = starts[np.linspace(0, len(starts) - 2, limit).astype(int)]
    whole = [s for s in starts if s + T < len(data)]
    batches = [whole[i:i + batch_size] for i in range(0, len(whole), batch_size)]
    batches += [[s] for s in starts[len(whole):]]                                       # the rest
    was_training = model.training
    model.eval()
    total = 0.0
    count = 0
    for batch in batches:
        window = np.stack([data[s:s + T + 1] for s in batch]).astype(np.int64)
        window = torch.from_numpy(window).to(device)
        targets = window[:, 1:]
        with context:
            loss = model(window[:, :-1], targets)[1]
        total += loss.item() * targets.numel()
        count += targets.numel()
    model.train(was_training)
    return total / count


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
    was_training = model.training
    model.eval()
    rows = []
    for part in changed.split(max(1, min(32, 2**21 // (T * V)))):
        logits = model(torch.cat([idx[None], part]))[0].float()
        p = torch.softmax(logits[:1], -1)
        d = logits[1:] - logits[:1]
        d -= (p * d).sum(-1, keepdim=True)
        # after is p e^d / E[e^d], so KL = log E[e^d] - E[d], and E[d] = 0: no digit is lost
        rows.append(torch.log1p((p * d.clamp(max=80).expm1()).sum(-1)))
    model.train(was_training)
    kl = torch.cat(rows).cpu().numpy()
    return np.where(kl < ROUNDING, 0, kl)


def leak(kl):
    """What an influence map says about seeing the future -> (nats, the sentence)."""
    below = np.tril(kl, -1)
    token, prediction = np.unravel_index(below.argmax(), below.shape)
    nats = float(below[token, prediction])
    if nats == 0:
        return nats, "no prediction moved when a later token was changed: it does not see the future"
    return nats, (f"tokens see the future: changing token {token} moved the prediction at token "
                  f"{prediction} by {nats:.2g} nats; its loss is not to be believed")
