"""The paper's scenes on any model with a judge: what is erased when, by which method.

| module | holds |
|---|---|
| `protocol` | scenes, moments, roles, the nine evaluated concepts, and the two protocols |
| `methods` | SepME's variants and the baselines: train their changes, switch them on |
| `images` | images drawn once for each model state, and the measures of a cell |
| `run` | measures all cells, resumable, into `scenes_<kind>.csv` |
| `tables` | the measured and the published tables, means by role, Markdown |
| `figures` | every figure of the paper from both |
| `demo` | the whole story in one run: erase, compose, judge, restore |
"""

from sepme.scenes.figures import COMPARED, FIGURES, Sources, method_looks
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import (
    ALONE,
    EVALUATED,
    PROTOCOLS,
    ROLES,
    SCENES,
    Protocol,
    arrivals,
    moments,
)
from sepme.scenes.run import Plan, merge_tables, run_scenes
from sepme.scenes.tables import (
    MEASURED,
    PUBLISHED,
    RESULTS,
    complete,
    family,
    published,
    read_table,
    role_means,
    role_table,
)

__all__ = [
    "ALONE",
    "COMPARED",
    "EVALUATED",
    "FIGURES",
    "MEASURED",
    "METHODS",
    "PROTOCOLS",
    "PUBLISHED",
    "RESULTS",
    "ROLES",
    "SCENES",
    "Plan",
    "Protocol",
    "Sources",
    "arrivals",
    "complete",
    "family",
    "merge_tables",
    "method_looks",
    "moments",
    "published",
    "read_table",
    "role_means",
    "role_table",
    "run_scenes",
]
