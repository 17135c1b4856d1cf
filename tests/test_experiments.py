"""Every experiment runs from end to end, with tiny numbers, and leaves its table and its picture."""
import csv

import pytest
import torch

from train import ROOT, load_model

TINY = {"induction": "steps=1 depth=1 gammas=0,1",
        "speed": "training=64 kernel=64 stream=64 rounds=0",
        "filters": "small=true max_iters=2",
        "race": "small=true minutes=0.0005 max_iters=1 models=baseline,wavefield",
        "ablate": "small=true max_iters=1 models=momentum"}


def table(folder, name):
    with open(folder / "pictures" / f"{name}.csv", newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("name", TINY)
def test_runs(name, cli, text_file, tmp_path):
    text = [f"dataset={text_file}"] if "small" in TINY[name] else []
    done = cli(f"experiments/{name}.py", "out=pictures", *TINY[name].split(), *text)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [f"{name}.csv", f"{name}.png"]
    assert (tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Warning" not in done.stderr, done.stderr
    rows = table(tmp_path, name)
    assert rows and all(None not in row and None not in row.values() for row in rows)
    if name == "filters":
        for row in rows:
            error = abs(float(row["gain"]) - float(row["measured_gain"]))
            assert error < 1e-6 * max(1, float(row["gain"])), row
        assert {row["mixer"] for row in rows} > {"momentum", "fluidlm", "hydra", "advection_glu"}
    if name == "race":
        final = [row for row in rows if row["final"] == "1"]
        assert len(final) == 2 * 2 and all(float(row["leak"]) < 1e-10 for row in final)
        assert "NaN" not in done.stdout and "nan" not in done.stdout


def test_what_is_there_is_not_done_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import common
    done, path, columns = [], tmp_path / "table.csv", "name n word value".split()
    work = lambda *job: done.append(job) or [[f"{n} of 2", job[1] / 3] for n in (1, 2)]
    jobs = [("a", 1.0), ("b", 2)]
    for more in ([], [("c", 3)]):
        for job in jobs + more:                         # one job at a time: no worker processes
            rows = common.collect(path, columns, work, [job], resume=True)
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    rows = common.collect(path, columns, work, [*jobs, ("c", 3)], resume=True)
    assert done == [("a", 1.0), ("b", 2), ("a", 1.0), ("b", 2), ("c", 3), ("a", 1.0), ("b", 2)]     # only c was kept
    assert [row["word"] for row in rows] == ["1 of 2", "2 of 2"] * 3 and rows[3]["value"] == pytest.approx(2 / 3)
    assert common.collect(path, columns, work, [*jobs, ("c", 3)], resume=True) == rows and len(done) == 7
    common.collect(path, [*columns[:3], "other"], work, [("c", 3)], resume=True)
    assert len(done) == 8                               # another kind of table


def test_every_experiment_has_a_short_question_and_a_short_script():
    for path in ROOT.glob("experiments/*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 150 and lines[0] == '"""', f"{path} has {len(lines)} lines"


def test_every_term_can_be_left_out(monkeypatch):
    """Each ablation moves the logits of a model whose weights are all awake, and no gradient reaches what it froze."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import ablate
    idx = torch.randint(23, (2, 12), generator=torch.Generator().manual_seed(1))
    for name, terms in ablate.TERMS.items():
        module = load_model(name)
        logits = {}
        for term, alter in {"": lambda model: None, **terms}.items():
            torch.manual_seed(0)
            model = module.Model(module.Config(vocab_size=23, block_size=12, n_layer=3, n_embd=32)).double().eval()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * torch.randn_like(p))
            alter(model)
            logits[term] = model(idx)[0].detach()
            assert term == "" or (logits[term] - logits[""]).abs().max() > 1e-6, (name, term)
            frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
            model(idx, idx)[1].backward()
            assert all(dict(model.named_parameters())[key].grad is None for key in frozen), (name, term)
