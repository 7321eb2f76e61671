"""Operational space control of a 7-joint arm (Khatib 1987): OSC_POSE without robosuite's Python.

Fixed impedance, delta actions in the world frame, position and orientation decoupled, posture in
the null space.  numpy and mujoco only; knows an arm's joints and its end-effector site, no task.
"""

from collections.abc import Sequence

import mujoco
import numpy as np

from pirl_jax.envs import panda

KP = 150.0  # 1/s^2, position and orientation
KD = 2.0 * np.sqrt(KP)  # 1/s, critically damped
POSTURE_KP = 10.0
POSTURE_KD = 2.0 * np.sqrt(POSTURE_KP)


class OperationalSpaceController:
    """Torques that pull the end effector to a goal pose.

    `data` must be fresh (mj_step1 or mj_forward) at every call.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        joints: Sequence[str],
        site: str,
        posture_rad: Sequence[float],
    ):
        """`joints` are neighbours in the model; `posture_rad` is what the null space prefers."""
        self._model = model
        self._data = data
        first = model.joint(joints[0])
        last = model.joint(joints[-1])
        # slices, so that the arm's part of every array is a view
        self._dofs = slice(int(first.dofadr[0]), int(last.dofadr[0]) + 1)
        self._qpos = slice(int(first.qposadr[0]), int(last.qposadr[0]) + 1)
        self._site = model.site(site).id
        self._posture_rad = np.array(posture_rad)
        # written by mujoco at every call
        self._jac = np.zeros((6, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._goal_m = np.zeros(3)
        self._goal_rot = np.eye(3)

    def reset(self) -> None:
        """The goal is where the end effector is."""
        self._goal_m = self._position_m().copy()
        self._goal_rot = self._rotation().copy()

    def set_goal(self, action_6: np.ndarray) -> None:
        """Goal = current pose + clipped, scaled delta.

        A zero rotation keeps the rotation of the goal before: robosuite's rule.
        """
        delta = np.clip(action_6, -1.0, 1.0) * panda.MAX_DELTA
        self._goal_m = self._position_m() + delta[:3]
        if np.any(np.abs(delta[3:]) > 0.0):
            self._goal_rot = rotation(delta[3:]) @ self._rotation()

    def torques(self) -> np.ndarray:
        """Joint torques [7] (N m), not yet clipped to the actuators' limits."""
        data = self._data
        jac = self._jac
        mujoco.mj_jacSite(self._model, data, jac[:3], jac[3:], self._site)
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        jac_67 = jac[:, self._dofs]
        mass_77 = self._mass[self._dofs, self._dofs]
        qvel_7 = data.qvel[self._dofs]

        # accelerations that the goal asks for
        wish_6 = -KD * (jac_67 @ qvel_7)
        wish_6[:3] += KP * (self._goal_m - self._position_m())
        wish_6[3:] += KP * orientation_error(self._goal_rot, self._rotation())
        away_7 = self._posture_rad - data.qpos[self._qpos]
        posture_7 = POSTURE_KP * away_7 - POSTURE_KD * qvel_7

        # J M^-1 J^T, the inverse of the task-space inertia
        inverse_66 = jac_67 @ np.linalg.solve(mass_77, jac_67.T)
        wrench_6 = np.empty(6)
        wrench_6[:3] = np.linalg.solve(inverse_66[:3, :3], wish_6[:3])
        wrench_6[3:] = np.linalg.solve(inverse_66[3:, 3:], wish_6[3:])
        # (I - J^T Jbar^T) M posture, with Jbar = M^-1 J^T (J M^-1 J^T)^-1
        wrench_6 -= np.linalg.solve(inverse_66, jac_67 @ posture_7)
        gravity_7 = data.qfrc_bias[self._dofs]
        return jac_67.T @ wrench_6 + mass_77 @ posture_7 + gravity_7

    def _position_m(self) -> np.ndarray:
        """[3], a view."""
        return self._data.site_xpos[self._site]

    def _rotation(self) -> np.ndarray:
        """[3,3], a view."""
        return self._data.site_xmat[self._site].reshape(3, 3)


def orientation_error(goal_33: np.ndarray, current_33: np.ndarray) -> np.ndarray:
    """Rotation vector [3] from current to goal: half the sum of the columns' cross products.

    Its length is the sine of the angle.
    """
    turn = goal_33 @ current_33.T
    x = turn[2, 1] - turn[1, 2]
    y = turn[0, 2] - turn[2, 0]
    z = turn[1, 0] - turn[0, 1]
    return 0.5 * np.array([x, y, z])


def rotation(rotation_rad: np.ndarray) -> np.ndarray:
    """Rotation matrix [3,3] of a rotation vector [3] (rad)."""
    angle_rad = np.linalg.norm(rotation_rad)
    axis = np.asarray(rotation_rad, np.float64) / max(angle_rad, 1e-12)  # no turn has no axis
    quat_wxyz = np.zeros(4)
    matrix_9 = np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat_wxyz, axis, angle_rad)
    mujoco.mju_quat2Mat(matrix_9, quat_wxyz)
    return matrix_9.reshape(3, 3)
