"""Textual inversion: new words whose embeddings are learnt from images of a concept.

Gal et al., *An Image is Worth One Word*, ICLR 2023 (arXiv 2208.01618). The new words replace the
concept's name. They are rows behind the text encoder's table of token embeddings, which is extended
for one call at a time, so neither tokenizer nor encoder changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme._checks import above_zero, whole
from sepme.baselines._train import noised
from sepme.baselines.prompts import end_mask, places, token_ids
from sepme.errors import SepmeError
from sepme.model import Backbone


@dataclass(frozen=True)
class InversionSettings:
    """How the new words are learnt; the defaults are those of Forget-Me-Not's code."""

    words: int = 4
    iterations: int = 500
    learning_rate: float = 1e-3
    batch: int = 1

    def __post_init__(self) -> None:
        whole(1, words=self.words, iterations=self.iterations, batch=self.batch)
        above_zero(learning_rate=self.learning_rate)


def with_new_words(
    backbone: Backbone, prompt: str, name: str, words: int, end: str = "none"
) -> tuple[Tensor, Tensor]:
    """Token ids of a prompt with new words in place of the concept's name, and a mask of bool.

    The mask marks the new words and the end-of-text positions `end`; both are `[tokens]`.
    """
    known = len(_table(backbone))
    ids = backbone.pipe.tokenizer(prompt, truncation=False).input_ids
    ids[places(backbone, prompt, name, ids)[0]] = range(known, known + words)
    if len(ids) > backbone.tokens:
        raise SepmeError(f"{words} new words do not fit into {prompt!r}: use fewer words.")
    padding = token_ids(backbone, "")[-1]
    padded = torch.tensor(ids + [padding] * (backbone.tokens - len(ids)))
    return padded, (padded >= known) | end_mask(backbone, padded, end)


def encode(backbone: Backbone, ids: Tensor, learnt: Tensor) -> Tensor:
    """Text embeddings `[n, tokens, d_in]` of token ids `[n, tokens]`, new words included."""
    encoder, table = backbone.pipe.text_encoder, _table(backbone)
    name = next(name for name, value in encoder.named_parameters() if value is table)
    extended = {name: torch.cat([table.detach(), learnt])}
    return torch.func.functional_call(encoder, extended, (ids,))[0]


def invert(
    backbone: Backbone,
    name: str,
    prompts: Sequence[str],
    images: Tensor,
    settings: InversionSettings,
    generator: torch.Generator,
) -> Tensor:
    """Learn new words `[words, d_in]`: they minimise `MSE(eps(x_t, e(prompt), t), noise)`.

    The images are latents `[n, c, h, w]`, with one prompt each that names the concept.
    """
    found = [with_new_words(backbone, prompt, name, settings.words)[0] for prompt in prompts]
    ids = torch.stack(found).to(backbone.device)
    learnt = _start(backbone, name, settings.words, generator).requires_grad_()
    optimiser = torch.optim.AdamW([learnt], lr=settings.learning_rate, weight_decay=0.0)
    for _ in range(settings.iterations):
        x_t, t, noise, chosen = noised(backbone, images, settings.batch, generator)
        loss = mse_loss(backbone.epsilon(x_t, t, encode(backbone, ids[chosen], learnt)), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return learnt.detach()


def _start(backbone: Backbone, name: str, words: int, generator: torch.Generator) -> Tensor:
    """The name's own embeddings, repeated where there are fewer, with noise from then on."""
    table = _table(backbone).detach()
    own = backbone.pipe.tokenizer(name, add_special_tokens=False).input_ids
    learnt = table[[own[i % len(own)] for i in range(words)]].clone()
    noise = torch.randn(learnt.shape, generator=generator).to(learnt) * table.std()
    noise[: len(own)] = 0.0
    return learnt + noise


def _table(backbone: Backbone) -> Tensor:
    """The text encoder's token embeddings `[vocabulary, d_in]`."""
    return backbone.pipe.text_encoder.get_input_embeddings().weight
