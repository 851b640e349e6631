"""What the settings of all trained baselines have in common, and how they are checked."""

from dataclasses import dataclass

from sepme._checks import above_zero, at_least, below_one, choose
from sepme.errors import SepmeError

#: Which parameters of the UNet a method trains; see `sepme.baselines._train.select`.
SELECTORS = ("attn2", "attn2_kv", "not_attn2", "all")
#: The prompts of the concept itself, in place of a template.
OWN = "{prompts}"


def check_prompt(name: str, template: str) -> None:
    """A template names the concept ("a photo of {name}"), or is `OWN`."""
    if template != OWN and template.replace("{name}", "", 1) == template:
        raise SepmeError(
            f"{name} = '{template}' does not name the concept: write {{name}} where it belongs, "
            f"or '{OWN}' for the concept's own prompts."
        )


@dataclass(frozen=True)
class TrainingSettings:
    """How a baseline is trained, whatever its loss. Subclasses add the loss.

    Raises:
        SepmeError: a value that makes no sense.
    """

    iterations: int = 1000
    learning_rate: float = 1e-5
    batch: int = 1
    """Noised images an iteration."""
    trains: str = "attn2"
    """"attn2" (every parameter of the cross-attention), "attn2_kv" (its to_k and to_v only),
    "not_attn2" (all but the cross-attention, the time embedding and the output) or "all"."""
    optimiser: str = "adam"
    """"adam" or "adamw"."""
    weight_decay: float = 0.0
    """Of "adamw" only."""
    clip: float | None = None
    """Largest norm of the gradient over all trained parameters; None for no limit."""
    ema: float | None = None
    """If given, the result is the running mean of the parameters with this decay."""

    def __post_init__(self) -> None:
        choose(SELECTORS, trains=self.trains)
        choose(("adam", "adamw"), optimiser=self.optimiser)
        at_least(1, iterations=self.iterations, batch=self.batch)
        above_zero(learning_rate=self.learning_rate)
        at_least(0, weight_decay=self.weight_decay)
        if self.weight_decay and self.optimiser != "adamw":
            raise SepmeError("Only optimiser='adamw' decays weights: leave out weight_decay.")
        if self.clip is not None:
            above_zero(clip=self.clip)
        below_one(ema=self.ema)
