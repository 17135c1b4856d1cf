r"""
Write text with a trained model, one token at a time, for as long as you like.

    python sample.py model=fluidlm prompt="ROMEO:" tokens=500 temperature=0.8
    python sample.py prompt=file:scene.txt stop="\n\n" samples=3     a file goes on, three times
    python sample.py chat=true                      you type a line, it goes on, in turns

The prompt and every new token go through the model's `state`: what a model must remember to go on.
Two of the five hold a state that never grows; the others a key/value cache of block_size tokens.
The last line says how large it is. In a chat every turn goes on from the state of the last one:
nothing is read twice.
"""
import common.start  # noqa: F401

# isort: split
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.checkpoint import build, load_checkpoint, tensor_bytes
from common.machine import pick_device
from common.page import write_text
from common.score import evaluating
from common.settings import guard, settings, show
from common.writing import decoded, heard, read_prompt, read_stop, until


@dataclass
class Sample:
    model: str = "momentum"             # whose checkpoint: out/<model>/ckpt.pt
    ckpt: str = ""                      # or the path of any checkpoint
    prompt: str = ""                    # the text to go on from; or file:scene.txt, from a file
    stop: str = ""                      # end before this text; \n is a newline, \t a tab
    tokens: int = 500                   # how many tokens to write, at most
    samples: int = 1                    # how many texts, each with a random seed of its own
    chat: bool = False                  # in turns: you type a line, it goes on, from its state
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
        if self.chat and self.samples > 1:
            raise ValueError("chat=true is one text; leave out samples")


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


def write(model, tokenizer, ids, s, state):
    """Print what comes after the tokens `ids`, as it comes -> its tokens, how many a second."""
    written = []
    began = 0
    new = generate(model, ids, s.tokens, s.temperature, s.top_k, s.top_p, s.seed, state)
    for text in until(decoded(tokenizer, new, written), s.stop):
        if not began:                                   # the prompt is not counted
            began = time.perf_counter()
        show(text)
    seconds = time.perf_counter() - began
    return written, max(0, len(written) - 1) / max(1e-9, seconds)


def main():
    s = settings(sys.argv[1:], Sample)
    path = Path(s.ckpt or f"out/{s.model}/ckpt.pt")
    ckpt = load_checkpoint(path)
    model, tokenizer = build(ckpt, path, pick_device(s.device))
    torch.set_flush_denormal(True)
    s.stop = read_stop(s.stop, tokenizer)
    prompt = read_prompt(s.prompt, tokenizer)
    ids = tokenizer.encode(prompt).tolist()
    speed = 0
    for n in range(s.samples):
        if s.samples > 1:
            print(f"\n--- {n + 1} of {s.samples}")
        show(prompt)
        text = ids
        unread = ids
        state = {}
        for said in heard(tokenizer) if s.chat else [[]]:
            written, speed = write(model, tokenizer, unread + said, s, state)
            text = text + said + written
            unread = written[-1:]                       # the last token was written, but never read
            s.seed += 1
    print(f"\n--- {speed:.0f} tokens/s; the state holds {tensor_bytes(state):,} bytes "
          f"after {len(text):,} tokens", file=sys.stderr)
    if s.page:
        page = path.with_name("sample.html")
        write_text(page, model, tokenizer, ckpt["name"], text)
        print(f"--- open {page} to see what {ckpt['name']} makes of it", file=sys.stderr)


if __name__ == "__main__":
    guard(main)
