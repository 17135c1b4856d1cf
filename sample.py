"""
Write text with a trained model, one character at a time, for as long as you like.

    python sample.py model=fluidlm prompt="ROMEO:" tokens=500 temperature=0.8

The prompt and every new token go through the model's `state`: what a model must remember to go on.
Two of the five hold a state that never grows; the others a key/value cache of block_size tokens.
The last line says how large it is.
"""
import common.start  # noqa: F401

# isort: split
import codecs
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.checkpoint import any_prompt, build, load_checkpoint, tensor_bytes
from common.machine import pick_device
from common.page import write_text
from common.score import evaluating
from common.settings import UserError, guard, settings, show


@dataclass
class Sample:
    model: str = "momentum"             # whose checkpoint: out/<model>/ckpt.pt
    ckpt: str = ""                      # or the path of any checkpoint
    prompt: str = "\n"                  # the text to go on from
    tokens: int = 500                   # how many tokens to write
    temperature: float = 0.8            # below 1 sharpens the distribution; 0: always the likeliest
    top_k: int = 40                     # only the k likeliest tokens; 0: all
    top_p: float = 1.0                  # only the likeliest that together have this probability
    seed: int = 1                       # of the random choices
    page: bool = False                  # a page that shows what the model makes of this text
    device: str = "auto"                # auto: cuda if there is one, else cpu; or cpu, cuda:1, mps

    def __post_init__(self):
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature={self.temperature} should be between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} should be above 0 and at most 1")


@torch.inference_mode()
def generate(model, ids, tokens, temperature=0.8, top_k=40, top_p=1.0, seed=1, state=None):
    """Yield new tokens after the prompt `ids`: the prompt in chunks, then one by one."""
    device = next(model.parameters()).device
    if state is None:
        state = {}
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.as_tensor(ids, dtype=torch.long, device=device)
    if temperature < 1e-4:              # take the likeliest; no division overflows
        temperature, top_k = 1.0, 1
    with evaluating(model):
        for chunk in prompt.split(model.config.block_size):
            logits = model(chunk[None], state=state)[0][0, -1]
        for i in range(tokens):
            probs = torch.softmax(logits.float().cpu() / temperature, 0)
            probs, order = probs.sort(descending=True)
            probs[top_k or len(probs):] = 0
            probs[probs.cumsum(0) - probs >= max(top_p, 1e-9) * probs.sum()] = 0    # always keeps the first
            new = order[torch.multinomial(probs, 1, generator=generator)]
            yield int(new)
            if i + 1 < tokens:
                logits = model(new.reshape(1, 1).to(device), state=state)[0][0, -1]


def main():
    s = settings(sys.argv[1:], Sample)
    path = Path(s.ckpt or f"out/{s.model}/ckpt.pt")
    ckpt = load_checkpoint(path)
    model, tokenizer = build(ckpt, path, pick_device(s.device))
    torch.set_flush_denormal(True)
    s.prompt = any_prompt(s.prompt, tokenizer, ckpt)
    ids = tokenizer.encode(s.prompt)
    if len(ids) == 0:
        raise UserError("the prompt is empty; give it at least one character, prompt=\"...\"")
    show(s.prompt)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")   # half a letter
    state = {}
    written = []
    began = time.perf_counter()
    ids = ids.astype("int64")
    for new in generate(model, ids, s.tokens, s.temperature, s.top_k, s.top_p, s.seed, state):
        if not written:
            began = time.perf_counter()                 # the prompt is not counted
        written.append(new)
        show(decoder.decode(tokenizer.token_bytes(new)))
    speed = max(0, s.tokens - 1) / max(1e-9, time.perf_counter() - began)
    print(f"\n--- {speed:.0f} tokens/s; the state holds {tensor_bytes(state):,} bytes "
          f"after {len(ids) + s.tokens} tokens", file=sys.stderr)
    if s.page:
        page = path.with_name("sample.html")
        write_text(page, model, tokenizer, ckpt["name"], [*ids, *written])
        print(f"--- open {page} to see what {ckpt['name']} makes of it", file=sys.stderr)


if __name__ == "__main__":
    guard(main)
