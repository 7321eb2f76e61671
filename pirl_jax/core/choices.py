"""Long lists of names that a field may take.

Core knows no table of the floors above; a test compares these names with their tables.
"""

import itertools

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
SUITES = (
    *LIBERO,
    *("libero_90", "libero_130"),  # the second is all of LIBERO
    *PRO,
    *PLUS,
    *("tabletop", "probe_constant", "probe_observed", "probe_delayed"),
    *("probe_action", "probe_conditioned"),
)
# Rows of models/variants.py GEMMA; no name is the one of the model's size.
VARIANTS = (
    *("", "gemma_2b", "gemma_300m", "gemma_2b_lora", "gemma_300m_lora"),
    *("dummy", "small", "small_expert", "tiny", "tiny_expert"),
)
