"""
What the experiments share: settings with a quick and a full set, jobs spread over the cores, short trainings,
stopwatches, intervals.

A job is a tuple of names and numbers, its result a few numbers more: together a row of a CSV. Rows are written as
they come, so a long experiment can be stopped and continued with resume=true. One thread per process: timings repeat,
and two jobs on two cores do not disturb each other.
"""
import csv
import importlib
import inspect
import io
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import files
from common.checkpoint import ROOT, load_model, save_checkpoint
from common.optimizer import make_optimizers
from common.pictures import draw
from common.score import evaluate, stream_loss
from common.settings import UserError, did_you_mean, settings, split
from data.text import ensure_dataset, load_dataset
from train import Progress, Train, fit

COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()        # Okabe and Ito
NAMES = "momentum wavefield fluidlm hydra advection_glu".split()
COLOUR = dict(zip(NAMES, COLOURS)) | {"baseline": "#777777", "lstm": "#56B4E9", "counter": "#000000"}

torch.set_num_threads(1)


def read_settings(Settings, full):
    """Settings from the command line; full=true takes the values of `full` as defaults."""
    argv = sys.argv[1:]
    wanted = split(argv).get("full", "").lower() == "true"
    return settings(argv, Settings, defaults=full if wanted else {})


def chosen(text, names):
    """The names in a list with commas."""
    for name in text.split(","):
        if name not in names:
            raise UserError(f"no '{name}'; {did_you_mean(name, list(names))}there are {', '.join(names)}")
    return text.split(",")


def number(text):
    """What a cell of a CSV says: a number if it can be one."""
    try:
        return float(text)
    except ValueError:
        return text


def write_csv(path, columns, rows):
    """Rows of a table as a file; numbers with at most six digits after the first."""
    files.write_csv(path, columns, [[f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in rows])


def read_csv(path):
    """The rows of a CSV as dicts; none if there is no file."""
    if not Path(path).exists():
        return []
    return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(Path(path).read_text()))]


def collect(path, columns, work, jobs, resume=False):
    """The rows, as dicts, of work(*job) for every job: a list of lists that go on after the columns of the job itself.
    resume: jobs whose rows are in the CSV already are not done again."""
    jobs, keys = list(dict.fromkeys(jobs)), columns[:len(jobs[0])]
    wanted, done = {tuple(number(str(v)) for v in job): job for job in jobs}, {}
    for row in read_csv(path) if resume else []:
        key = tuple(row.get(k) for k in keys)
        if key in wanted and list(row) == columns:
            done.setdefault(wanted[key], []).append([row[k] for k in columns[len(keys):]])
    todo, began = [job for job in jobs if job not in done], time.perf_counter()

    def finished(job, results):
        done[job] = results
        write_csv(path, columns, [[*j, *r] for j in jobs for r in done.get(j, [])])
        values = ", ".join(f"{k} {v:.4g}" for k, v in zip(columns[len(keys):], results[-1]) if not isinstance(v, str))
        print(f"{time.perf_counter() - began:5.0f} s {len(done):3d}/{len(jobs)} ", *job, f"  {values}", flush=True)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if min(cores, len(todo)) <= 1:
        for job in todo:
            finished(job, work(*job))
    else:
        waiting, running, cores = iter(todo), {}, min(cores, len(todo))
        with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
            while len(done) < len(jobs):                # none is queued: after Ctrl-C no other job begins
                running |= {pool.submit(work, *job): job for job in islice(waiting, cores - len(running))}
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished(running.pop(future), future.result())
    write_csv(path, columns, [[*j, *r] for j in jobs for r in done[j]])
    return read_csv(path)


def get_data(dataset):
    return load_dataset(ensure_dataset(dataset, ROOT / "data", Path("out/data")))


def entrant(name):
    """The module of a model file, or of the LSTM, which is a rival and no model of ours."""
    return importlib.import_module("lstm") if name == "lstm" else load_model(name)


def untrained(name, data, changes, small):
    """A model for this data, with these changes of its Config."""
    module = entrant(name)
    sizes = dict(n_layer=1, n_embd=16, block_size=16) if small else {}
    sizes = {key: value for key, value in sizes.items() if hasattr(module.Config, key)}
    return module.Model(module.Config(**{"vocab_size": data.meta["vocab_size"]} | sizes | changes))


def short_run(name, dataset, changes={}, small=False, alter=lambda model: None, evaluations=10, **settings):
    """Train a model -> model, data, progress. Rows are (iter, seconds, train_loss, val_loss, bits_per_byte); the last
    one has the loss of the whole validation text as a stream, those before it that of train.py's evaluations.

    changes: of its Config; settings: of train.py, whose minutes are CPU time here, evaluations not counted;
    alter(model) comes before training; small: to try a script out."""
    data = get_data(dataset)
    module = entrant(name)
    train = Train(model=name, dataset=dataset, device="cpu", **getattr(module, "RECIPE", {}) | settings)
    torch.manual_seed(train.seed)
    model = untrained(name, data, changes, small)
    alter(model)
    optimizers = module.make_optimizers(model, train) if name == "lstm" else make_optimizers(model, train)
    progress = Progress()

    def record(loss, val):
        progress.rows.append([progress.step, progress.seconds, loss, val, val * data.bits])

    def score():
        return evaluate(model, data.val, 16, train.eval_iters * model.config.block_size)

    record("", score())
    done = 0.0
    try:
        for loss, _ in fit(model, data.train, train, progress, optimizers, clock=time.process_time):
            last, done = done, progress.share(train)
            if int(evaluations * done) > int(evaluations * last):
                record(loss, score())
            else:
                progress.rows.append([progress.step, progress.seconds, loss, "", ""])
    except FloatingPointError as e:
        raise UserError(f"{name} diverged: {e}; lower lr") from None
    record("", stream_loss(model, data.val))
    return model.eval(), data, progress


def trained(name, dataset, changes={}, small=False, **settings):
    """As short_run; but what was trained once is kept in out/trained: race, streams and others look at the same
    models. A changed model file, loop, optimizer or text is trained anew."""
    data = get_data(dataset)
    code = [inspect.getsource(module) for module in map(inspect.getmodule, (fit, make_optimizers, trained))]
    made_from = [name, sorted(changes.items()), small, sorted(settings.items()), *code,
                 Path(entrant(name).__file__).read_text("utf-8"), files.sha256(data.train), files.sha256(data.val)]
    file = Path("out/trained", f"{name}-{files.sha256(repr(made_from).encode())[:16]}.pt")
    if not file.exists():
        model, _, progress = short_run(name, dataset, changes, small, **settings)
        save_checkpoint(file, dict(model=model.state_dict(), progress=asdict(progress)))
    kept = torch.load(file, weights_only=True)
    model = untrained(name, data, changes, small)
    model.load_state_dict(kept["model"])
    return model.eval(), data, Progress(**kept["progress"])


def quantile_of_t(freedom):
    """Student's t that 2.5% exceed, with so many degrees of freedom; from six on by Cornish and Fisher, to 0.001."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571)
    if freedom <= len(table):
        return table[freedom - 1]
    z = 1.959964
    first = (z ** 3 + z) / (4 * freedom)
    second = (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
    third = (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * freedom ** 3)
    return z + first + second + third


def interval(values):                                            # -> mean, low, high
    """The mean and its 95% interval by Student's t; nan as its ends if there is one value only."""
    values = np.array(list(values), float)
    if len(values) < 2:
        return float(values.mean()), math.nan, math.nan
    half = quantile_of_t(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def paired(a, b):                                                # {seed: value} twice -> mean, low, high
    """The difference a - b, seed by seed: what two runs owe to the same seed drops out."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise UserError("nothing to compare: the two share no seed; run both with the same seeds")
    return interval([a[seed] - b[seed] for seed in seeds])


def said(three, digits=3, unit=""):
    """The same as words: mean [low, high], or the mean alone where there is no interval."""
    mean, low, high = (f"{v:+.{digits}f}{unit}" for v in three)
    return mean if math.isnan(three[1]) else f"{mean} [{low}, {high}]"


def save_picture(fig, out, name):
    """Write a figure, whole or not at all."""
    Path(out).mkdir(parents=True, exist_ok=True)
    draw(out, {name: lambda path: fig.savefig(path, dpi=110)})
    print(f"wrote {Path(out, name).with_suffix('.csv')} and {Path(out, name)}")
