"""
A language model that only counts: interpolated modified Kneser-Ney, the rival of every model here.

    p(w | h) = (c(h w) - D) / c(h) + gamma(h) p(w | h')     h': h without its first token
    gamma(h) = sum_w D / c(h)                               so that all p(w | h) add up to 1

The last h' is empty, and behind it stands 1 / V: no token is impossible. For the longest context
c(h w) is how often h w occurs; for every shorter one, after how many different tokens: "Francisco"
is frequent, but only after "San", so elsewhere it is unlikely. c(h) = sum_w c(h w); D depends on
the count, see `discounts`. Where h was never seen, p(w | h) = p(w | h').

S. F. Chen, J. Goodman: An Empirical Study of Smoothing Techniques for Language Modeling, Harvard
TR-10-98, 1998; R. Kneser, H. Ney: Improved Backing-off for M-gram Language Modeling, ICASSP 1995.
"""
import numpy as np


def discounts(counts):
    """[0, D1, D2, D3], taken from counts of 0, 1, 2, and 3 or more (Chen & Goodman).
    D_i = i - (i + 1) Y n_{i+1} / n_i with Y = n1 / (n1 + 2 n2), where n_i n-grams have the count i.
    Half of the count if a small text makes nonsense of that."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    i = np.arange(1, 4)
    if n[1:5].all():
        Y = n[1] / (n[1] + 2 * n[2])
        D = i - (i + 1) * Y * n[i + 1] / n[i]
        if (D > 0).all():
            return np.append(0, D)
    return np.append(0, i / 2)


def share(context, counts, contexts):
    """(c - D) / c(h) of each n-gram h w, gamma(h) of each context h; last, of the never seen."""
    D = discounts(counts)[np.minimum(counts, 3)]                    # (K,)
    total = np.bincount(context, counts, contexts + 1)              # (contexts + 1,)
    taken = np.bincount(context, D, contexts + 1)
    kept = np.append((counts - D) / total[context], 0)              # (K + 1,)
    gamma = np.ones(contexts + 1)
    np.divide(taken, total, out=gamma, where=total > 0)
    return kept, gamma


class Counter:
    """The K different n-grams of a text are numbered from 0, for n = 1 .. order; number K stands
    for all others. The key of each is (number of its first n - 1 tokens) V + (its last token)."""

    def __init__(self, tokens, vocab_size, order=7):
        self.V = V = vocab_size
        self.order = order
        self.levels = []
        self.sizes = []                                             # K of each n
        tokens = self.check(tokens)                                 # (T,)
        ids = np.zeros(len(tokens) + 1, np.int64)                   # the empty n-gram
        K = 1
        for n in range(1, order + 1):
            key = ids[:-1] * V + tokens[n - 1:]                     # (T - n + 1,)
            keys, ids, often = np.unique(key, return_inverse=True, return_counts=True)
            pairs = ids[1:] * V + tokens[:-n]                       # n-gram, the token before it
            pairs, _ = np.unique(pairs, return_counts=True)         # sorts, which beats its hashes
            after = np.bincount(pairs // V, minlength=len(keys))
            after[ids[:1]] += 1                                     # the first: after nothing
            shares = [share(keys // V, counts, K) for counts in (after, often)]
            self.levels.append((np.append(keys, 2**62), shares))
            K = len(keys)
            self.sizes.append(K)

    def check(self, tokens):
        """As int64; a token beyond the vocabulary would be read as part of another key."""
        tokens = np.asarray(tokens, np.int64)
        if ((tokens < 0) | (tokens >= self.V)).any():
            raise ValueError(f"tokens beyond the vocabulary of {self.V}")
        return tokens

    def log_probs(self, tokens, order=None, window=None):
        """ln p of each token given those before it in its row, (..., T) -> (..., T).
        order: of the model, up to self.order; after n tokens only, it is n + 1. window: predict in
        cold windows of this length, each after one token that is given, as `evaluate` of train.py
        does; [1:] are the predictions."""
        tokens = self.check(tokens)
        order = self.order if order is None else order
        if not 1 <= order <= self.order:
            raise ValueError(f"order={order} should be from 1 to {self.order}")
        context_length = np.arange(tokens.shape[-1])
        if window:
            context_length[1:] = np.arange(tokens.shape[-1] - 1) % window + 1
        longest = np.minimum(context_length + 1, order)             # n that may be used: (T,)
        p = np.full(tokens.shape, 1 / self.V)
        ids = np.zeros(tokens.shape, np.int64)
        for n, (keys, shares) in enumerate(self.levels[:order], 1):
            context = np.roll(ids, 1, -1)                           # wrong at n > longest, not used
            key = context * self.V + tokens
            ids = np.searchsorted(keys, key)
            ids[keys[ids] != key] = len(keys) - 1
            for (kept, gamma), here in zip(shares, (longest > n, longest == n)):
                p = np.where(here, kept[ids] + gamma[context] * p, p)
        return np.log(p)

    def distribution(self, context):
        """p of every token after the context: (T,) -> (V,)."""
        context = self.check(context)[-self.order:]
        rows = np.tile(np.append(context, 0), (self.V, 1))          # (V, T + 1)
        rows[:, -1] = np.arange(self.V)
        return np.exp(self.log_probs(rows)[:, -1])
