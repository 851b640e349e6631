"""Forget-Me-Not: take the attention away from the words of the concept.

Zhang et al., *Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models*, CVPR 2024
workshop (arXiv 2303.17591). Over all cross-attentions, heads and pixels, with A the attention
probabilities and S the token positions of the concept in the prompt:

    L = || A[:, S] ||_F

The published code first inverts the concept into new words (textual inversion), and counts the
end-of-text token among S. On Stable Diffusion 2.x, which it was written for, that is one position;
on 1.x all of the padding.

The inverted embedding is used only where the attention is measured. The result changes the UNet
alone, and forgets ordinary prompts as far as the new words resemble the concept's name.

The SepME authors ran another loss, on the logits before the softmax, which draws the concept's
prompt to the same prompt without it; gradients flow into both:

    L = sum over layers of MSE( logits("a painting of {name}"), logits("a painting of") )

The images are drawn from the concept's own prompts.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sepme._checks import choose, whole
from sepme.baselines._inversion import InversionSettings, encode, invert, with_new_words
from sepme.baselines._train import SEPME_PAPER, Objective, Student, TrainingSettings, drawn, noised
from sepme.baselines.prompts import ENDS, OWN, check_prompt, concept_mask, pairs, token_ids
from sepme.concept import Concept, evenly
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import mix

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class FMNSettings(TrainingSettings):
    """How Forget-Me-Not is trained. Its code trains the whole UNet, or "attn2" only."""

    iterations: int = 35
    learning_rate: float = 2e-6
    trains: str = "all"
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    clip: float | None = 1.0
    #: Where the attention is measured; "{prompts}" for the concept's own.
    prompt: str = "a photo of {name}"
    style_prompt: str = "a photo in the style of {name}"  #: the same for the kind "style"
    scores: str = "probabilities"  #: "probabilities" after the softmax, or "logits" before it
    reference: str = "a painting of"  #: of "logits" only: the prompt without the concept
    end: str = "all"  #: of "probabilities" only: which end-of-text positions count, one of `ENDS`
    images: int = 10
    #: Textual inversion before the forgetting; None for the concept's own name.
    inversion: InversionSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(prompt=self.prompt, style_prompt=self.style_prompt)
        choose(("probabilities", "logits"), scores=self.scores)
        choose(ENDS, end=self.end)
        whole(1, images=self.images)
        if self.inversion is not None and self.scores == "logits":
            raise SepmeError("The loss on logits knows no inverted word: leave out inversion.")


_ATELIER = FMNSettings(
    iterations=150, learning_rate=1e-4, batch=4, trains="attn2", prompt=OWN, style_prompt=OWN
)

#: * `official`: the published configuration without textual inversion. * `sepme_paper`: the loss on
#:   logits, as the SepME authors ran it (20, 30 or 50 iterations). * `atelier`: the mildest rates
#:   found for the shipped model that erase all four concepts tried
#:   (`benchmarks/results/tune_baselines.csv`), on the concept's own prompts. They damage other
#:   concepts too. A hundred iterations damage less, but swirl stays. With inverted words, no rate
#:   was found that erases the boat alone.
PRESETS: Mapping[str, FMNSettings] = {
    "official": FMNSettings(),
    "sepme_paper": FMNSettings(
        **SEPME_PAPER,
        iterations=50,
        prompt="a painting of {name}",
        style_prompt="a painting of {name}",
        scores="logits",
    ),
    "atelier": _ATELIER,
}
PRESETS_INVERTED: Mapping[str, FMNSettings] = {
    "official": FMNSettings(inversion=InversionSettings()),
    "atelier": replace(_ATELIER, inversion=InversionSettings(words=1, iterations=200, batch=4)),
}


def objective(student: Student, concept: Concept, settings: FMNSettings) -> Objective:
    """Forget-Me-Not's loss for one concept, on images that the original draws once.

    Raises:
        SepmeError: the model has two text encoders.
    """
    backbone, name, inversion = student.backbone, concept.name, settings.inversion
    if backbone.xl:
        raise SepmeError(
            "Forget-Me-Not learns new words of one text encoder, and Stable Diffusion XL has two: "
            "use it with 1.x or 2.x."
        )
    template = settings.style_prompt if concept.kind == "style" else settings.prompt
    measured = [text for text, _ in evenly(pairs(concept, template), settings.images)]
    found = [_tokens(backbone, prompt, name, settings) for prompt in measured]
    ids, mask = (torch.stack(part).to(backbone.device) for part in zip(*found, strict=True))

    def prepare(seed: int) -> dict[str, Tensor]:
        own = [text for text, _ in pairs(concept, OWN)]
        images = drawn(backbone, own, settings.images, seed)
        learnt = torch.zeros(0, backbone.d_in).to(images)
        if inversion is not None:
            rng = torch.Generator().manual_seed(mix(seed, -2))
            learnt = invert(backbone, name, measured, images, inversion, rng)
        return {"images": images, "learnt": learnt}

    def loss(fixed: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x_t, t, _, chosen = noised(backbone, fixed["images"], settings.batch, rng)
        with torch.no_grad():
            c = encode(backbone, ids[chosen], fixed["learnt"])
        if settings.scores == "logits":
            c_0 = backbone.encode([settings.reference]).expand_as(c)
            return logits_loss(student, x_t, t, c, c_0), t
        return attention_loss(student, x_t, t, c, mask[chosen]), t

    return Objective("FMN", tuple(dict.fromkeys(measured)), loss, prepare)


def _tokens(backbone: Backbone, prompt: str, name: str, s: FMNSettings) -> tuple[Tensor, Tensor]:
    """Token ids of a prompt, and which of them name the concept, both `[tokens]`."""
    if s.inversion is not None:
        return with_new_words(backbone, prompt, name, s.inversion.words, s.end)
    mask = concept_mask(backbone, prompt, name, s.end)
    return torch.tensor(token_ids(backbone, prompt)), mask


# ---------------------------------------------------------------------- the losses
def attention_loss(student: Student, x_t: Tensor, t: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """`|| A[:, S] ||_F` over all cross-attentions, heads and pixels.

    Args:
        c: `[n, tokens, d_in]`.
        mask: S, `[n, tokens]` of bool.
    """
    attention = (logits.softmax(-1) for logits in attention_logits(student, x_t, t, c))
    seen = [A.masked_fill(~mask[:, None, None], 0.0).square().sum() for A in attention]
    return torch.stack(seen).sum().sqrt()


def logits_loss(student: Student, x_t: Tensor, t: Tensor, c: Tensor, c_0: Tensor) -> Tensor:
    """`sum over layers of MSE(logits(c), logits(c_0))`."""
    both = attention_logits(student, torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c, c_0]))
    return torch.stack([mse_loss(*logits.chunk(2)) for logits in both]).sum()


def attention_logits(student: Student, x_t: Tensor, t: Tensor, c: Tensor) -> list[Tensor]:
    """`q k^T / sqrt(d)` of every cross-attention, `[n, heads, pixels, tokens]` each."""
    logits: list[Tensor] = []
    queries: list[Tensor] = []  # an attention's query is computed right before its key

    def query(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        queries.append(output)

    def key(attention: nn.Module, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        pair = (queries.pop(), output)
        q, k = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in pair)
        logits.append(attention.scale * q @ k.mT)

    named = student.backbone.unet.named_modules()
    with ExitStack() as hooks:
        for attention in (module for name, module in named if name.endswith("attn2")):
            hooks.enter_context(attention.to_q.register_forward_hook(query))
            hooks.enter_context(attention.to_k.register_forward_hook(partial(key, attention)))
        student.epsilon(x_t, t, c)
    return logits
