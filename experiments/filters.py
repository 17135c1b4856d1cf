"""
What does each token mixer do to slow and to fast changes along the text?

On a frozen model each mixer is a linear filter over tokens: gain and phase against frequency. Lines are formulas,
dots are measured: the torch operator is given a single 1 among zeros, and its answer is Fourier-transformed. The
table has all of them; the picture shows the gain of three.

    momentum         q_t + gamma (q_t - q_{t-1})             H = 1 + gamma - gamma e^{-iw}: gain 1 to 1 + 2 gamma
    fluidlm, upwind  u_t + D_d (u_{t-d} - u_t)               H = 1 - D_d + D_d e^{-iwd}, d = 1, 4, 16: smooths
    fluidlm, original u_t + D_d (u_t - 2 u_{t-d} + u_{t-2d})  H = 1 + D_d (1 - e^{-iwd})^2: up to 1 + 4 D_d
    hydra, upwind    z_t + nu (z_{t-1} - z_t)                H = 1 - nu + nu e^{-iw}: smooths
    hydra, one_sided z_t + nu (z_t - 2 z_{t-1} + z_{t-2})    H = 1 + nu (1 - e^{-iw})^2: slow waves less, fast ones more
    wavefield        k_h(c) = e^{-alpha c} cos(omega c + phi) / Z at every stride-th cell: a resonator for each head
    advection_glu    its transport acts on each token for itself: gain 1 at all frequencies. Only its attention mixes

    python experiments/filters.py              a minute; trained waves from out/wavefield/ckpt.pt or a short training
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import COLOURS, NAMES, read_settings, save_picture, short_run, write_csv
from labels import name_ends

from common.checkpoint import build, load_checkpoint, load_model
from common.settings import UserError, guard

momentum, wavefield, fluidlm, hydra, advection = map(load_model, NAMES)
COLUMNS = "mixer setting frequency gain phase measured_gain measured_phase".split()


@dataclass
class Settings:
    out: str = "assets"                         # folder of filters.csv and filters.png
    full: bool = False                          # 600 iterations of training instead of 100
    ckpt: str = "out/wavefield/ckpt.pt"         # trained waves; if there is no such file, a training of max_iters
    dataset: str = "plays"                      # the text of that training
    max_iters: int = 100                        # its iterations
    layer: int = 0                              # whose waves are drawn
    small: bool = False                         # a tiny model, to try the script out


def measured(f, w, N=2 ** 15):                                   # (1, N, 1) -> (1, N, 1), (n,) -> complex (n,)
    """Response of a causal filter to e^{iwt}: the transform of its answer to a single 1."""
    x = torch.zeros(1, N, 1, dtype=torch.float64)
    x[0, 32] = 1                                                 # not at the edge
    y = f(x)[0, 32:, 0].detach().numpy()
    return np.exp(-1j * np.outer(w, np.arange(len(y)))) @ y


def mixers(w, trained, layer):
    """(mixer, setting, formula on w, torch operator) of everything that is drawn."""
    z, out = np.exp(-1j * w), []
    for g in (0.3, 1.0, 4.0):
        gamma = torch.tensor([g], dtype=torch.float64)
        out.append(("momentum", f"gamma = {g:g}", 1 + g - g * z, lambda x, gamma=gamma: momentum.shear(x, gamma)))
    D = torch.nn.functional.softplus(fluidlm.Model(fluidlm.Config()).blocks[0].diff).detach().double()         # (3, C)
    for kind in ("upwind", "original"):
        for i, d in enumerate(fluidlm.DILATIONS):
            coef, only = D[i, 0], D[:, :1] * torch.eye(3).double()[:, i:i + 1]

            def diffusion(x, only=only, kind=kind):
                return x + fluidlm.laplacian(torch.nn.functional.pad(x, (0, 0, 32, 0)), only, x.shape[1], kind)
            H = 1 + coef.item() * ((1 - z ** d) ** 2 if kind == "original" else z ** d - 1)
            out.append((f"fluidlm, {kind}", f"d = {d}, D = {coef:.2f}", H, diffusion))
    for kind in ("upwind", "one_sided"):
        for nu in (0.3, 1.0):
            H = 1 - nu + nu * z if kind == "upwind" else 1 + nu * (1 - z) ** 2
            out.append(("hydra", f"{kind}, nu = {nu:g}", H, lambda x, a=(nu, kind): hydra.viscosity(x, *a)))
    for name, model in (("waves at first", wavefield.Model(trained.config)), ("waves trained", trained)):
        attn, c = model.blocks[layer].attn, model.config
        alpha = torch.nn.functional.softplus(attn.damp).detach().double()
        omega, phi, field = attn.omega.detach().double(), attn.phi.detach().double(), c.stride * c.block_size
        for h in range(c.n_head):
            a, o, p = alpha[h].item(), omega[h].item(), phi[h].item()
            Z = sum(abs(math.exp(-a * k) * math.cos(o * k + p)) for k in range(field))
            pole = np.exp((-a + 1j * o) * c.stride)
            H = (np.exp(1j * p) / (1 - pole * z) + np.exp(-1j * p) / (1 - pole.conj() * z)) / (2 * Z)
            own = alpha[h:h + 1], omega[h:h + 1], phi[h:h + 1], c.stride, field
            wave = lambda x, own=own: wavefield.wave_scan(x[:, :, None], *own)[0][:, :, 0]
            out.append((name, f"reach {1 / (a * c.stride):.3g}", H, wave))
    s = math.log(math.e - 1)                                                                   # softplus(s) = 1
    out.append(("advection_glu", "field and viscosity frozen at 1", 1 + 0 * z, lambda x: advection.advection(
        x, torch.ones_like(x), torch.full_like(x, s), -1.0)))
    return out


def draw(curves, w, at, s):
    """The shear, both stencils of the viscosity, and three of the waves: the shortest, one between, the longest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    of = {(mixer, setting): (H, dots) for mixer, setting, H, dots in curves}
    waves = sorted((float(c[1].split()[1]), i) for i, c in enumerate(curves) if c[0] == "waves trained")
    waves = dict.fromkeys((waves[0], waves[len(waves) // 2], waves[-1]))     # one and the same, if there is but one
    shown = [("momentum:\nshear, gamma = 1", *of["momentum", "gamma = 1"], COLOURS[0]),
             ("hydra:\none-sided, nu = 0.3", *of["hydra", "one_sided, nu = 0.3"], COLOURS[3]),
             ("hydra:\nupwind, nu = 0.3", *of["hydra", "upwind, nu = 0.3"], "#777777")]
    shown += [(f"wavefield:\nreach {reach:.3g} tokens", *curves[i][2:], colour)
              for (reach, i), colour in zip(waves, (COLOURS[1], COLOURS[4], COLOURS[6]))]
    with rc_context({"font.size": 16}):
        ax = Figure(figsize=(10, 8), layout="constrained").subplots()
        for _, H, dots, colour in shown:
            ax.loglog(w, abs(H), color=colour, lw=2.5)
            ax.loglog(w[at], abs(dots), "o", ms=7, color=colour)
        ax.set(xlabel=f"frequency (radians per token); trained waves of layer {s.layer}",
               ylabel="gain (lines: the formula, dots: the code)")
        name_ends(ax, [(math.pi, abs(H[-1]), name, colour) for name, H, _, colour in shown], room=0.6, gap=0.11)
        ax.set_xticks([math.pi / n for n in (128, 16, 2)], ["π/128", "π/16", "π/2"])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.figure.suptitle("Every token mixer is a filter along the text")
        save_picture(ax.figure, s.out, "filters.png")


def main():
    s = read_settings(Settings, dict(max_iters=600))
    w = np.geomspace(math.pi / 160, math.pi, 320)
    at, rows, curves = np.arange(10, 320, 21), [], []
    trained = (build(load_checkpoint(s.ckpt), s.ckpt)[0] if Path(s.ckpt).exists() else
               short_run("wavefield", s.dataset, small=s.small, max_iters=s.max_iters)[0])
    if not hasattr(trained.config, "stride"):
        raise UserError(f"{s.ckpt} is of another model; give a checkpoint of wavefield")
    if s.layer >= trained.config.n_layer:
        raise UserError(f"layer={s.layer} is not one of the {trained.config.n_layer}, which count from 0")
    with torch.inference_mode():
        for mixer, setting, H, f in mixers(w, trained, s.layer):
            dots = measured(f, w[at])
            curves.append((mixer, setting, H, dots))
            rows += [(mixer, setting, float(w[i]), *(float(g(v)) for v in (H[i], d) for g in (abs, np.angle)))
                     for i, d in zip(at, dots)]
            print(f"{mixer:<15} {setting:<32} gain {abs(H[0]):7.3f} slow, {abs(H[-1]):7.3f} fast;"
                  f" formula and operator differ by {abs(dots - H[at]).max() / abs(H[at]).max():.0e}")
    write_csv(Path(s.out, "filters.csv"), COLUMNS, rows)
    draw(curves, w, at, s)


if __name__ == "__main__":
    guard(main)
