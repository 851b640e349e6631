"""The paper's scenes on any model with a judge: who is erased when, by which method, measured how.

| room | holds |
|---|---|
| `protocol` | scenes, moments, roles, and who plays the nine concepts |
| `methods` | SepME's variants and the baselines, each making and putting on its changes |
| `pictures` | pictures by content, never drawn twice |
| `measures` | ACC, LPIPS, FID and KID of one cell |
| `run` | all cells, resumable, into `scenes_<kind>.csv` |
| `published`, `summary`, `tables`, `plots` | the printed numbers, means by role, Markdown, bars |
"""

from sepme.scenes.protocol import CASTS, SCENES, WATERMARK, Moment, arrivals, cast, moments
from sepme.scenes.run import Plan, merge_tables, read_rows, run_scenes

__all__ = [
    "CASTS",
    "SCENES",
    "WATERMARK",
    "Moment",
    "Plan",
    "arrivals",
    "cast",
    "merge_tables",
    "moments",
    "read_rows",
    "run_scenes",
]
