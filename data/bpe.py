"""
Byte-pair encoding: start from the 256 bytes and, again and again, make the commonest pair of neighbours one token.

A text is first cut into words by GPT-2's pattern and no token crosses a cut, so training needs each distinct word only
once, with its count. One merge changes few words: the counts of pairs are kept up to date instead of counted afresh.
Of equally common pairs the one with the smaller numbers wins. Encoding is tiktoken's, with the ranks found here.
"""
import base64
import heapq
from collections import Counter, defaultdict
from itertools import pairwise

from common.settings import UserError

try:
    import regex
    import tiktoken
except ImportError as e:
    raise UserError(f"byte-pair encoding needs {e.name}; run pip install tiktoken") from None

# GPT-2's cuts, in the form that tiktoken found to run fastest.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def train(text, vocab_size):
    """The tokens learned from a text, as bytes in rank order; fewer than asked if no pair is left that occurs twice."""
    seen = Counter(regex.findall(PATTERN, text))
    words, times = [list(word.encode()) for word in seen], list(seen.values())
    count, where = Counter(), defaultdict(set)          # how often a pair occurs, and in which words (a few too many)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            count[pair] += times[w]
            where[pair].add(w)
    heap = [(-n, pair) for pair, n in count.items()]
    heapq.heapify(heap)
    tokens = [bytes([i]) for i in range(256)]
    while heap and len(tokens) < vocab_size:
        n, pair = heapq.heappop(heap)
        if n > -2:
            break
        if n != -count[pair]:                           # a count only falls once its pair is in the heap,
            heapq.heappush(heap, (-count[pair], pair))  # so mending it when it comes up is soon enough
            continue
        (a, b), new, fresh = pair, len(tokens), set()
        tokens.append(tokens[a] + tokens[b])
        for w in where.pop(pair):
            word, merged, i, n = words[w], [], 0, times[w]
            while i < len(word):
                if word[i] != a or word[i + 1:i + 2] != [b]:
                    merged.append(word[i])
                    i += 1
                    continue
                beside = []                             # the pairs that `new` makes with its neighbours
                if merged:
                    count[merged[-1], a] -= n
                    beside.append((merged[-1], new))
                if i + 2 < len(word):
                    count[b, word[i + 2]] -= n
                    beside.append((new, word[i + 2]))
                for p in beside:
                    count[p] += n
                    where[p].add(w)
                fresh.update(beside)
                merged.append(new)
                i += 2
            words[w] = merged
        del count[pair]
        for p in fresh:
            heapq.heappush(heap, (-count[p], p))
    return tokens


def spec(tokens):
    """The plain dict that Tokenizer wants."""
    return {"kind": "bpe", "ranks": [base64.b64encode(token).decode() for token in tokens]}


def load(spec):
    """The tiktoken encoding of a spec, and its tokens as bytes."""
    ranks = spec.get("ranks")
    try:
        tokens = [base64.b64decode(rank, validate=True) for rank in ranks if isinstance(ranks, list)]
    except (TypeError, ValueError):
        tokens = []
    if not 256 <= len(tokens) == len(set(tokens)) <= 65536 or not all(tokens) or {*map(len, tokens[:256])} != {1}:
        raise UserError("the ranks of the tokenizer are broken; prepare the data again")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}), tokens


def load_gpt2():
    """GPT-2's own encoding, which tiktoken fetches once and caches, and its tokens as bytes."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as e:                              # requests, ssl and tiktoken itself have kinds of their own
        raise UserError(f"tiktoken cannot fetch GPT-2's vocab.bpe and encoder.json ({type(e).__name__}); go online "
                        "once, set TIKTOKEN_CACHE_DIR to a folder that has them, or use level=bpe") from None
    return gpt2, [gpt2.decode_single_token_bytes(i) for i in range(gpt2.n_vocab)]


def to_file(spec):
    """The contents of a .tiktoken file: a line `base64 rank` for each token."""
    return "".join(f"{token} {rank}\n" for rank, token in enumerate(spec["ranks"])).encode()


def from_file(data):
    """The spec in a .tiktoken file. Not by tiktoken's loader: it remembers a file by its path, even when it changes."""
    lines = [line.split(" ") for line in data.decode("latin-1").split("\n")[:-1]]
    if any(line[1:] != [str(i)] for i, line in enumerate(lines)):
        raise UserError("the ranks are not in order; prepare the data again")
    return {"kind": "bpe", "ranks": [line[0] for line in lines]}
