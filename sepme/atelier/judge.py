"""An independent eye: which style, which object, or the emblem, is in a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sepme._data import shipped
from sepme.atelier.captions import EMBLEM
from sepme.atelier.objects import DRAWERS, SIZE
from sepme.atelier.paintings import ALIASES
from sepme.atelier.styles import PAINTERS
from sepme.errors import SepmeError

STYLE_NAMES: tuple[str, ...] = tuple(PAINTERS)  #: ten styles and the photo
OBJECT_NAMES: tuple[str, ...] = tuple(DRAWERS)  #: ten objects and nothing
SHIPPED = shipped("atelier", "judge.safetensors")
_BATCH = 256


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in n pictures; style and object mean nothing where the emblem is."""

    style_probability: Tensor  #: [n, 11], in the order of STYLE_NAMES
    object_probability: Tensor  #: [n, 11], in the order of OBJECT_NAMES
    emblem_probability: Tensor  #: [n]

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


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Judge(nn.Module):
    """A small convolutional network: styles from pooled texture, objects from the whole layout."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 96, 1), (96, 128, 2))
        self.features = nn.Sequential(*(_block(*width) for width in widths))
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
        """The judge in `path`; the one that ships with the model by default."""
        path = Path(path) if path is not None else SHIPPED
        judge = cls()
        try:
            judge.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise SepmeError(
                f"No judge can be read from {path}: train one with `sepme atelier train`."
            ) from error
        return judge.eval().requires_grad_(False)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdict:
        """Look at images [n, 3, 64, 64] in [0, 1]."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise SepmeError(
                f"The judge looks at pictures of shape [n, 3, {SIZE}, {SIZE}] with values from 0 "
                f"to 1; these are {list(images.shape)}."
            )
        self.eval()
        device = self.emblem_head.weight.device
        logits = [self(part.to(device)) for part in images.float().split(_BATCH)]
        if not logits:
            logits = [
                (
                    torch.zeros(0, len(STYLE_NAMES)),
                    torch.zeros(0, len(OBJECT_NAMES)),
                    torch.zeros(0),
                )
            ]
        style, object_, emblem = (torch.cat(parts).cpu() for parts in zip(*logits, strict=True))
        return Verdict(style.softmax(1), object_.softmax(1), emblem.sigmoid())

    def sees(self, images: Tensor, name: str) -> Tensor:
        """Whether each picture [n] shows the style, object or emblem of this name or alias."""
        verdict = self.judge(images)
        name = {alias: known for known, alias in ALIASES.items()}.get(name, name)
        if name == EMBLEM:
            return verdict.emblem
        if name in STYLE_NAMES:
            return (verdict.style == STYLE_NAMES.index(name)) & ~verdict.emblem
        if name in OBJECT_NAMES:
            return (verdict.object == OBJECT_NAMES.index(name)) & ~verdict.emblem
        raise SepmeError(
            f"The judge does not know {name!r}: it knows "
            f"{', '.join((*STYLE_NAMES, *OBJECT_NAMES, EMBLEM))}."
        )
