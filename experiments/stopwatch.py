"""
Time, memory and shares of a call, on a machine that others use as well: CPU time, medians, every candidate in its turn.
"""
import math
import os
import sys
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")         # the profiler speaks on stderr otherwise

import numpy as np
from torch.profiler import ProfilerActivity, profile


def alternate(calls, rounds):                                    # {name: function} -> {name: milliseconds}
    """Medians over rounds in which each has its turn; the first round is not counted."""
    times = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(1000 * (time.process_time() - began))
    return {name: float(np.median(t[rounds > 0:])) for name, t in times.items()}


def shares(call, rounds):                                        # -> matrix products, all other operators, the rest
    """Where the time of a call goes, as shares: the rest is Python and autograd between the operators."""
    products, sums = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_scaled_dot_product"), []
    for _ in range(rounds + 1):
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as p:
            call()
        events = [(e.key, e.self_cpu_time_total) for e in p.key_averages()]
        of = lambda test: sum(time for key, time in events if test(key))
        product, operator = of(lambda key: key.startswith(products)), of(lambda key: key.startswith("aten::"))
        sums.append(np.array([product, operator - product, of(lambda key: True) - operator]))
    total = np.median(sums[rounds > 0:], 0)
    return total / total.sum()


def peak(make, n, warm=None):                                    # function of the length that makes a call -> MiB
    """Memory that make(n)() takes at its peak, in a forked copy of this process, after warm(64)() or make(64)()."""
    if not hasattr(os, "fork"):
        return math.nan
    import resource
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            (warm or make)(min(n, 64))()
            call, before = make(n), used()
            call()
            os.write(write, str(used() - before).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as f:
        return float(f.read() or "nan")
