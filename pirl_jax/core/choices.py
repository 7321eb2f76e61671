"""Long lists of names that a field may take.

Core knows no table of the floors above; a test compares these names with their tables.
"""

import itertools
import re

LIBERO = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# LIBERO-PRO's suites: each of those under each of its perturbations.
PRO = tuple(
    f"{suite}_{dimension}"
    for suite, dimension in itertools.product(LIBERO, ("lan", "object", "swap", "task"))
)
# LIBERO-Plus's: all its tasks that perturb one of those in one way.
PLUS = tuple(
    f"{suite}_plus_{dimension}"
    for suite, dimension in itertools.product(
        LIBERO,
        (
            *("camera", "robot", "language", "noise", "layout"),
            *("light", "background", "distractors"),  # with its own assets
        ),
    )
)
OWN = "MODULE:CLASS"  # in lists of names
OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class NamesOrOwn(tuple):
    """Names; somebody's own class is one of them, too."""

    def __contains__(self, name: object) -> bool:
        is_own = isinstance(name, str) and OWN_CLASS.fullmatch(name) is not None
        return is_own or super().__contains__(name)


SUITES = NamesOrOwn(
    (
        *LIBERO,
        *("libero_90", "libero_130"),  # the second is all of LIBERO
        *PRO,
        *PLUS,
        *("tabletop", "probe_constant", "probe_observed", "probe_delayed"),
        *("probe_action", "probe_conditioned"),
        OWN,
    )
)
# Rows of models/variants.py GEMMA; no name is the one of the model's size.
VARIANTS = (
    *("", "gemma_2b", "gemma_300m", "gemma_2b_lora", "gemma_300m_lora"),
    *("dummy", "small", "small_expert", "tiny", "tiny_expert"),
)
