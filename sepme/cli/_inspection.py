"""What a delta file holds, in words and numbers."""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sepme.delta import ConceptDelta
from sepme.plots import spectrum

__all__ = ["describe", "spectra", "spectrum_figure"]

#: How many prompts are listed where not all are asked for.
FEW = 5
#: The most layers that a drawn spectrum shows, those that change most.
LAYERS = 8


def spectra(delta: ConceptDelta) -> dict[str, Tensor]:
    """Module path -> singular values of its weight change, largest first, `[rank]`.

    With `up = Q_u R_u` and `down^T = Q_d R_d` those of `up @ down` are those of `R_u R_d^T`, which
    is small.
    """
    values = {}
    for path in delta.paths:
        _, r_up = torch.linalg.qr(delta.up[path].double())
        _, r_down = torch.linalg.qr(delta.down[path].double().T)
        values[path] = torch.linalg.svdvals(r_up @ r_down.T)
    return values


def spectrum_figure(delta: ConceptDelta) -> Figure:
    """The singular values of the layers that change most."""
    figure, found = Figure(figsize=(7.2, 4), layout="constrained", dpi=150), spectra(delta)
    largest = sorted(found, key=lambda path: -float(found[path].norm()))[:LAYERS]
    shown = {path.replace(".transformer_blocks", ""): found[path] for path in largest}
    spectrum(shown, figure.subplots())
    return figure


def describe(delta: ConceptDelta, *, prompts: bool = False) -> str:
    """Provenance, size and promises of a delta; all its prompts if asked for."""
    found = delta.provenance
    facts = {
        "concept": f"{delta.concept} ({found.kind})",
        "made for": f"{found.base_name}, {found.base[:12]}",
        "made by": _made_by(delta),
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(found.versions.items())),
        "digest": delta.digest[:12],
        "layers": len(delta.paths),
        "rank": f"{delta.rank}{'' if delta.basis is None else ', one basis for all layers'}",
        "norms": f"||Δ||₁/M = {delta.norm():.4g}, ||Δ||_F = {delta.frobenius():.4g}",
    }
    if found.after:
        facts["trained after"] = ", ".join(digest[:12] for digest in found.after)
    lines = [f"{subject:<13} {finding}" for subject, finding in facts.items()]
    for verb, listed in (("forgets", delta.forgotten), ("keeps", delta.kept)):
        shown = listed if prompts else listed[:FEW]
        lines += ["", f"{verb} {len(listed)} prompts", *(f'  "{prompt}"' for prompt in shown)]
        if len(listed) > len(shown):
            lines.append(f"  ... and {len(listed) - FEW} more (--prompts)")
    return "\n".join([*lines, "", _layers(delta)])


def _made_by(delta: ConceptDelta) -> str:
    found, settings = delta.provenance, delta.provenance.settings
    if "imported" in settings:
        return f"another program: {settings['imported']}, sha256 {settings['sha256'][:12]}"
    if settings.get("eraser") != "sepme":
        return "arithmetic on other deltas" if "sum" in settings else "not recorded"
    if found.iterations == 0:
        return f"the closed form, keep_rtol {settings.get('keep_rtol')}"
    jointly = f", jointly: {', '.join(settings['jointly'])}" if "jointly" in settings else ""
    return (
        f"training, {settings.get('parametrisation')}, {found.iterations} iterations, "
        f"seed {found.seed}{jointly}"
    )


def _layers(delta: ConceptDelta) -> str:
    """A line a layer: size of the change, and how fast its singular values fall."""
    rows = []
    for path, values in spectra(delta).items():
        falling = " ".join(f"{value:.3g}" for value in values[:4].tolist())
        more = " ..." if len(values) > 4 else ""
        rows.append([path, f"{values.norm():.4g}", falling + more])
    return pd.DataFrame(rows, columns=["layer", "||Δ||_F", "singular values"]).to_string(
        index=False
    )
