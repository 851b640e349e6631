"""What a delta file holds, in words and numbers."""

import torch
from torch import Tensor

from sepme.delta import ConceptDelta
from sepme.report import table

#: How many prompts are listed where not all are asked for.
FEW = 5


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


def describe(delta: ConceptDelta, *, prompts: bool = False) -> str:
    """Provenance, size and promises of a delta; all its prompts if asked for."""
    found = delta.provenance
    facts = [
        ("concept", f"{delta.concept} ({found.kind})"),
        ("made for", f"{found.base_name}, {found.base[:12]}"),
        ("made by", _eraser(delta)),
        ("versions", ", ".join(f"{name} {v}" for name, v in sorted(found.versions.items()))),
        ("digest", delta.digest[:12]),
        ("layers", len(delta.paths)),
        ("rank", f"{delta.rank}{'' if delta.basis is None else ', one basis for all layers'}"),
        ("norms", f"||Δ||₁/M = {delta.norm():.4g}, ||Δ||_F = {delta.frobenius():.4g}"),
    ]
    if found.after:
        facts.append(("trained after", ", ".join(digest[:12] for digest in found.after)))
    lines = [f"{subject:<13} {finding}" for subject, finding in facts]
    lines += ["", *_listed("forgets", delta.forgotten, prompts)]
    lines += ["", *_listed("keeps", delta.kept, prompts), "", _layers(delta)]
    return "\n".join(lines)


def _eraser(delta: ConceptDelta) -> str:
    found, settings = delta.provenance, delta.provenance.settings
    if settings.get("eraser") == "sepme" and found.iterations == 0:
        return f"the closed form, keep_rtol {settings['keep_rtol']:g}"
    if settings.get("eraser") != "sepme":
        return "arithmetic on other deltas" if "sum" in settings else "not recorded"
    jointly = f", jointly: {', '.join(settings['jointly'])}" if "jointly" in settings else ""
    return (
        f"training, {settings['parametrisation']}, {found.iterations} iterations, "
        f"seed {found.seed}{jointly}"
    )


def _listed(verb: str, prompts: tuple[str, ...], every: bool) -> list[str]:
    """A heading and the first prompts, or all of them."""
    shown = prompts if every else prompts[:FEW]
    more = [f"  ... and {len(prompts) - FEW} more (--prompts)"] if len(prompts) > len(shown) else []
    return [f"{verb} {len(prompts)} prompts", *(f'  "{prompt}"' for prompt in shown), *more]


def _layers(delta: ConceptDelta) -> str:
    """A line a layer: size of the change, and how fast its singular values fall."""
    rows = []
    for path, values in spectra(delta).items():
        falling = " ".join(f"{float(value):.3g}" for value in values[:4])
        rows.append(
            (path, f"{float(values.norm()):.4g}", falling + (" ..." if values[4:].numel() else ""))
        )
    return table(("layer", "||Δ||_F", "singular values"), rows)
