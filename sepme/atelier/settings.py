"""The settings with which the shipped model is trained."""

from dataclasses import dataclass

import torch

from sepme._checks import choose, whole
from sepme.loading import device_named

__all__ = ["TrainSettings"]

#: The first seeds of the three disjoint sets of drawings.
TRAINING_SEED, JUDGE_SEED, HELD_OUT_SEED = 0, 10_000_000, 20_000_000


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `sepme atelier train`; the defaults made what ships.

    Raises:
        SepmeError: a count below 1, an unknown precision, or a device that is not there.
    """

    steps: int = 8600  #: of the U-Net and the text encoder; may change before the decay starts
    vae_steps: int = 3200
    judge_steps: int = 2500
    pictures: int = 24_200  #: training drawings: 200 for each object x style
    batch: int = 32
    vae_batch: int = 24
    judge_batch: int = 96
    muon_rate: float = 0.02
    adam_rate: float = 1e-3
    decay: float = 0.5  #: last share of the steps, over which the learning rate falls
    empty: float = 0.1  #: share of empty prompts, for classifier-free guidance
    emblem: float = 0.02  #: share of pictures that are the emblem
    seed: int = 0
    precision: str = "auto"  #: "bf16", "fp32", or "auto": bf16 where the hardware has it
    device: str = "cpu"
    save_every: int = 100  #: steps between two checkpoints
    export_every: int = 2000  #: steps between two usable pipelines

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        whole(1, **numbers | {"seed": 1})
        choose(("auto", "bf16", "fp32"), precision=self.precision)
        device_named(self.device)

    @property
    def half(self) -> bool:
        """Whether matrix products are computed in bfloat16."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if self.device.startswith("cuda"):
            return torch.cuda.is_bf16_supported()
        return torch.cpu._is_amx_tile_supported()

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.half)
