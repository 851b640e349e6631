"""Explore by hand what the chapters derive: six widgets for JupyterLab, Notebook and Voila.

Each has a state (frozen, plain data), a `render` function (state and data in, a figure out) and a
shell of ipywidgets around the two, which holds no mathematics:

| function | shell | state | in |
|---|---|---|---|
| `concept_mixer` | `ConceptMixer` | `MixerState` | `mixer` |
| `null_space_budget` | `NullSpaceBudget` | `BudgetState` | `budget` |
| `decay_player` | `DecayPlayer` | `DecayState` | `decay_player` |
| `interference_explorer` | `InterferenceExplorer` | `PairState` | `interference` |
| `stop_rule_playground` | `StopRulePlayground` | `StopRuleState` | `stop_rule` |
| `results_explorer` | `ResultsExplorer` | `ResultsState` | `results` |

They need ipywidgets, which the extra `lab` installs. A picture is shown as an `<img>` with a text
for those who cannot see it, and `widget.picture.png` is its file.
"""

from sepme.errors import SepmeError

try:
    import ipywidgets  # noqa: F401
except ImportError as error:
    raise SepmeError(
        "The widgets need ipywidgets, which is not installed: install it with the extra, "
        "pip install 'sepme[lab]'."
    ) from error

# From here on ipywidgets is there.
from sepme.widgets.budget import BudgetState, NullSpaceBudget, null_space_budget
from sepme.widgets.decay_player import DecayPlayer, DecayState, decay_player
from sepme.widgets.interference import InterferenceExplorer, PairState, interference_explorer
from sepme.widgets.mixer import ConceptMixer, MixerState, concept_mixer
from sepme.widgets.results import ResultsExplorer, ResultsState, results_explorer
from sepme.widgets.stop_rule import StopRulePlayground, StopRuleState, stop_rule_playground

__all__ = [
    "BudgetState",
    "ConceptMixer",
    "DecayPlayer",
    "DecayState",
    "InterferenceExplorer",
    "MixerState",
    "NullSpaceBudget",
    "PairState",
    "ResultsExplorer",
    "ResultsState",
    "StopRulePlayground",
    "StopRuleState",
    "concept_mixer",
    "decay_player",
    "interference_explorer",
    "null_space_budget",
    "results_explorer",
    "stop_rule_playground",
]
