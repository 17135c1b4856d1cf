"""How good a model is: its loss on a text."""
import numpy as np
import torch


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
