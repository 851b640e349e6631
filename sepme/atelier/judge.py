"""The judge: a classifier that says which style and object, or the emblem, a picture shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sepme._data import shipped
from sepme.artefact import check_whole
from sepme.atelier.captions import EMBLEM
from sepme.atelier.objects import DRAWERS, SIZE
from sepme.atelier.paintings import ALIASES
from sepme.atelier.styles import PAINTERS
from sepme.errors import SepmeError

__all__ = ["OBJECT_NAMES", "STYLE_NAMES", "Judge", "Verdict"]

STYLE_NAMES: tuple[str, ...] = tuple(PAINTERS)  #: ten styles and the photo
OBJECT_NAMES: tuple[str, ...] = tuple(DRAWERS)  #: ten objects and nothing
_BATCH = 256
_BLOCKS = ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 96, 1), (96, 128, 2))


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in n pictures; style and object mean nothing beside an emblem."""

    style_probability: Tensor  #: [n, 11], in the order of STYLE_NAMES
    object_probability: Tensor  #: [n, 11], in the order of OBJECT_NAMES
    emblem_probability: Tensor  #: [n]

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """The probability of this style, object or emblem, or alias [n]; and whether it is seen.

        That is the softmax of its kind, times the probability of no emblem. A style or object is
        seen where it is the likeliest of its kind beside no emblem.

        Raises:
            SepmeError: no style or object of this name.
        """
        name = {alias: known for known, alias in ALIASES.items()}.get(name, name)
        if name == EMBLEM:
            return self.emblem_probability, self.emblem
        kinds = ((STYLE_NAMES, self.style_probability), (OBJECT_NAMES, self.object_probability))
        for names, found in kinds:
            if name in names:
                index = names.index(name)
                seen = (found.argmax(1) == index) & ~self.emblem
                return found[:, index] * (1 - self.emblem_probability), seen
        known = ", ".join((*STYLE_NAMES, *OBJECT_NAMES, EMBLEM))
        raise SepmeError(f"The judge does not know {name!r}: it knows {known}.")

    @property
    def style(self) -> Tensor:
        """The likeliest style [n], an index into STYLE_NAMES."""
        return self.style_probability.argmax(1)

    @property
    def object(self) -> Tensor:
        """The likeliest object [n], an index into OBJECT_NAMES."""
        return self.object_probability.argmax(1)

    @property
    def emblem(self) -> Tensor:
        """Whether each picture [n] is the emblem."""
        return self.emblem_probability > 0.5


class Judge(nn.Module):
    """A small convolutional network; pooled features tell the style, their layout the object."""

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        for inputs, outputs, stride in _BLOCKS:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
        self.features = nn.Sequential(*blocks)
        self.style_head = nn.Linear(2 * 128, len(STYLE_NAMES))
        self.object_head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128 * 16, len(OBJECT_NAMES)))
        self.emblem_head = nn.Linear(2 * 128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of style [n, 11], object [n, 11] and emblem [n] for images [n, 3, 64, 64]."""
        features = self.features(2 * images - 1)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        emblem = self.emblem_head(pooled).squeeze(1)
        return self.style_head(pooled), self.object_head(features.flatten(1)), emblem

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Judge":
        """The judge in `path`; the one that ships with the model by default.

        Raises:
            SepmeError: no whole file there, or not a judge's.
        """
        path = path or shipped("atelier", "judge.safetensors")
        judge = cls()
        check_whole(path)
        try:
            judge.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise SepmeError(
                f"No judge can be read from {path}: train one with `sepme atelier train`."
            ) from error
        return judge.eval().requires_grad_(False)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdict:
        """The verdict on images [n, 3, 64, 64] in [0, 1].

        Raises:
            SepmeError: images of another shape, or with other values.
        """
        fits = images.shape[1:] == (3, SIZE, SIZE) and ((images >= 0) & (images <= 1)).all()
        if not fits:  # as NaN does not
            raise SepmeError(
                f"The judge takes pictures of shape [n, 3, {SIZE}, {SIZE}] with values from 0 to "
                f"1; these have the shape {list(images.shape)}, or other values."
            )
        self.eval()
        device = self.emblem_head.weight.device
        logits = [self(part.to(device)) for part in images.float().split(_BATCH)]
        style, object_, emblem = (torch.cat(parts).cpu() for parts in zip(*logits, strict=True))
        return Verdict(style.softmax(1), object_.softmax(1), emblem.sigmoid())

    def sees(self, images: Tensor, name: str) -> Tensor:
        """Whether each picture [n] shows it: whether it is the likeliest of its kind.

        A faint remainder is not seen; `sepme.metrics.residual_share` measures one.

        Raises:
            SepmeError: no style or object of this name.
        """
        return self.judge(images).of(name)[1]


class Asked(NamedTuple):
    """A prompt, and what the judge should find in its picture."""

    prompt: str
    style: str
    object: str


def found(judge: Judge, images: Tensor, asked: Sequence[Asked]) -> pd.DataFrame:
    """Whether the judge finds the style and the object asked for: one row per picture."""
    verdict = judge.judge(images)
    seen = {
        "style": [STYLE_NAMES[s] for s in verdict.style],
        "object": [OBJECT_NAMES[o] for o in verdict.object],
    }
    right = pd.DataFrame(seen) == pd.DataFrame(asked)[["style", "object"]]
    return right & ~verdict.emblem.numpy()[:, None]
