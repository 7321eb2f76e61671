"""What the legs of all scripts in LIBERO have in common: how near, how high, for how long."""

ABOVE_M = 0.06  # of the grip site over the grasp, before and after
NEAR_M = 0.02
FINE_M = 0.008

# Control steps.  A leg that has not arrived after so many is stuck, at a joint's limit say.
CLOSE_STEPS = 10
OPEN_STEPS = 8
MOST_STEPS = 40
MOST_FINE_STEPS = 28


def never() -> bool:
    """Ends a script: what is still to be done is planned anew."""
    return False
