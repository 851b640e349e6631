"""Textual inversion: new words whose embeddings are learnt from images of a concept.

Gal et al., *An Image is Worth One Word*, ICLR 2023 (arXiv 2208.01618). The new words stand where
the concept's name stood, as rows behind the text encoder's table of token embeddings. The table is
extended for the length of one call only, so neither tokenizer nor encoder changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme._checks import above_zero, at_least
from sepme.baselines.prompts import token_ids
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
        at_least(1, words=self.words, iterations=self.iterations, batch=self.batch)
        above_zero(learning_rate=self.learning_rate)


def with_new_words(backbone: Backbone, prompt: str, name: str, words: int) -> Tensor:
    """Token ids `[tokens]` of a prompt with the new words in place of the concept's name.

    Raises:
        SepmeError: the prompt does not name the concept, or the new words do not fit into it.
    """
    tokenizer, table = backbone.pipe.tokenizer, len(_table(backbone)[1])
    ids = tokenizer(prompt, truncation=False).input_ids
    wanted = tokenizer(name, add_special_tokens=False).input_ids
    start = next((i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted), None)
    if start is None:
        raise SepmeError(
            f"The prompt {prompt!r} does not name {name!r}: use one that contains the concept's "
            "name."
        )
    ids[start : start + len(wanted)] = range(table, table + words)
    if len(ids) > backbone.tokens:
        raise SepmeError(
            f"{words} new words do not fit into {prompt!r}, which may have {backbone.tokens} "
            "tokens: use fewer words or a shorter prompt."
        )
    padding = token_ids(backbone, "")[-1]
    return torch.tensor(ids + [padding] * (backbone.tokens - len(ids)), device=backbone.device)


def new_words(backbone: Backbone, ids: Tensor) -> Tensor:
    """Which of the token ids are new words, bool of the same shape."""
    return ids >= len(_table(backbone)[1])


def encode(backbone: Backbone, ids: Tensor, learnt: Tensor) -> Tensor:
    """Text embeddings `[n, tokens, d_in]` of token ids `[n, tokens]`, new words included."""
    name, table = _table(backbone)
    extended = {name: torch.cat([table, learnt])}
    return torch.func.functional_call(backbone.pipe.text_encoder, extended, (ids,))[0]


def invert(
    backbone: Backbone,
    name: str,
    prompts: Sequence[str],
    images: Tensor,
    settings: InversionSettings,
    generator: torch.Generator,
) -> Tensor:
    """Learn the new words `[words, d_in]` with which the prompts describe the images best.

    `MSE(eps(x_t, e(prompt with the new words), t), noise)`, over the words alone. They start from
    the name's own embeddings, repeated where there are fewer, with noise from the second round on.

    Args:
        prompts: one an image; each names the concept.
        images: latents `[n, c, h, w]`.
    """
    ids = torch.stack([with_new_words(backbone, p, name, settings.words) for p in prompts])
    learnt = _start(backbone, name, settings.words, generator).requires_grad_()
    optimiser = torch.optim.AdamW([learnt], lr=settings.learning_rate, weight_decay=0.0)
    for _ in range(settings.iterations):
        chosen = torch.randint(len(images), (settings.batch,), generator=generator)
        t = torch.randint(backbone.timesteps, (settings.batch,), generator=generator)
        noise = torch.randn(images[chosen].shape, generator=generator).to(images)
        t = t.to(backbone.device)
        x_t = backbone.add_noise(images[chosen], noise, t)
        loss = mse_loss(backbone.epsilon(x_t, t, encode(backbone, ids[chosen], learnt)), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return learnt.detach()


def _start(backbone: Backbone, name: str, words: int, generator: torch.Generator) -> Tensor:
    table = _table(backbone)[1]
    own = backbone.pipe.tokenizer(name, add_special_tokens=False).input_ids
    learnt = table[[own[i % len(own)] for i in range(words)]].clone()
    noise = torch.randn(learnt.shape, generator=generator).to(learnt) * table.std()
    noise[: len(own)] = 0.0
    return learnt + noise


def _table(backbone: Backbone) -> tuple[str, Tensor]:
    """Name and value of the text encoder's table of token embeddings `[vocabulary, d]`."""
    encoder = backbone.pipe.text_encoder
    table = encoder.get_input_embeddings().weight
    name = next(name for name, value in encoder.named_parameters() if value is table)
    return name, table.detach()
