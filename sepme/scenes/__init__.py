"""The paper's scenes on any model with a judge: what is erased when, by which method.

| module | holds |
|---|---|
| `protocol` | scenes, moments, roles, and the nine evaluated concepts |
| `methods` | SepME's variants and the baselines: train their changes, switch them on |
| `images` | images drawn once for each model state, and the measures of a cell |
| `run` | measures all cells, resumable, into `scenes_<kind>.csv` |
| `tables` | the measured and the published tables, means by role, Markdown |
| `figures` | every figure of the paper from both |
| `demo` | the whole story in one run: erase, compose, judge, restore |
"""

from sepme.scenes.protocol import ALONE, EVALUATED, ROLES, SCENES, arrivals, moments
from sepme.scenes.run import Plan, merge_tables, run_scenes
from sepme.scenes.tables import complete, published, read_table, role_means, role_table

__all__ = [
    "ALONE",
    "EVALUATED",
    "ROLES",
    "SCENES",
    "Plan",
    "arrivals",
    "complete",
    "merge_tables",
    "moments",
    "published",
    "read_table",
    "role_means",
    "role_table",
    "run_scenes",
]
