"""What suites with robosuite's Panda share: names in the models, scale of actions, the state.

numpy only.  Refuses to know suites, tasks and simulators.
"""

import numpy as np

CAMERAS = ("agentview", "robot0_eye_in_hand")  # in the models; the order of TimeStep.images
GRIP_SITE = "gripper0_grip_site"  # the point between the fingertips
# m and rad of a control step for an action of 1: robosuite's OSC_POSE
MAX_DELTA = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])


def axis_angle(quat_xyzw: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad), angle in [0, 2 pi], of a unit quaternion [4].

    q and -q are not identified: the policies of robosuite, openpi and RLinf have learned from both.
    """
    w = np.clip(quat_xyzw[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quat_xyzw[:3] * 2.0 * np.arccos(w) / sine


def state_vector(
    position_m: np.ndarray, quat_xyzw: np.ndarray, gripper_m: np.ndarray
) -> np.ndarray:
    """The policy's state [8] float32, in the order of all published LIBERO data.

    position_m [3] and quat_xyzw [4] are those of the end effector, gripper_m [2] is the positions
    of the two finger joints.
    """
    rotation_rad = axis_angle(quat_xyzw)
    return np.concatenate([position_m, rotation_rad, gripper_m]).astype(np.float32)
