"""Explore by hand what the chapters derive: six widgets for JupyterLab, Notebook and Voila.

| function | module | what is explored |
|---|---|---|
| `concept_mixer` | `mixer` | which concepts are erased, and what the model draws then |
| `null_space_budget` | `budget` | what is kept, and which directions that leaves free |
| `decay_player` | `decay_player` | how a concept fades while its delta is trained |
| `interference_explorer` | `interference` | who disturbs whom |
| `stop_rule_playground` | `stop_rule` | when eq. 4 stops a training |
| `results_explorer` | `results` | the paper's tables and ours |

Each has a state (frozen, plain data), a `render` function (state and data in, a figure out), a
`describe` function (the same in words), and controls around them that hold no mathematics. A
control is an attribute of the widget, and has a class of its own for tests and styles, like
`sepme-mixer-draw`. A picture is an `<img>` with a text for those who cannot see it;
`widget.picture.png` is its file. It is greyed while the controls say something else.
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
from sepme.widgets.budget import BudgetState, null_space_budget
from sepme.widgets.decay_player import decay_player
from sepme.widgets.interference import PairState, interference_explorer
from sepme.widgets.mixer import concept_mixer
from sepme.widgets.results import ResultsState, results_explorer
from sepme.widgets.stop_rule import StopRuleState, stop_rule_playground

__all__ = [
    "BudgetState",
    "PairState",
    "ResultsState",
    "StopRuleState",
    "concept_mixer",
    "decay_player",
    "interference_explorer",
    "null_space_budget",
    "results_explorer",
    "stop_rule_playground",
]
