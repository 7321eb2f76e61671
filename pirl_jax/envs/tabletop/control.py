"""Operational space control of one 7-joint arm (Khatib 1987), lean: the law of robosuite's OSC_POSE without its Python.

Fixed impedance, delta actions in the world frame, position and orientation decoupled, posture in the null space.
numpy and mujoco only; knows an arm's joints and its end-effector site, no task.
"""

import mujoco
import numpy as np

KP = 150.0  # 1/s^2, position and orientation
KD = 2.0 * np.sqrt(KP)  # critically damped
POSTURE_KP = 10.0
POSTURE_KD = 2.0 * np.sqrt(POSTURE_KP)
MAX_DELTA = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])  # m and rad for an action of 1


class OperationalSpaceController:
    """Torques that pull the end effector to a goal pose; `data` must be fresh (mj_step1 or mj_forward)."""

    def __init__(self, model, data, joints, site: str, posture):
        self._model, self._data = model, data
        dof = [int(model.joint(name).dofadr[0]) for name in joints]
        qpos = [int(model.joint(name).qposadr[0]) for name in joints]
        self._dof, self._qpos = slice(dof[0], dof[-1] + 1), slice(qpos[0], qpos[-1] + 1)
        self._site = model.site(site).id
        self._posture = np.array(posture)  # joint angles the null space prefers
        self._jac = np.zeros((6, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._goal_pos, self._goal_rot = np.zeros(3), np.eye(3)

    def reset(self):
        """The goal is where the end effector is."""
        self._goal_pos = self._data.site_xpos[self._site].copy()
        self._goal_rot = self._data.site_xmat[self._site].reshape(3, 3).copy()

    def set_goal(self, action_6):
        """Goal = current pose + clipped, scaled delta; a zero rotation keeps the old goal's (robosuite's rule)."""
        delta = np.clip(action_6, -1.0, 1.0) * MAX_DELTA
        self._goal_pos = self._data.site_xpos[self._site] + delta[:3]
        if np.any(np.abs(delta[3:]) > 0.0):
            self._goal_rot = rotation(delta[3:]) @ self._data.site_xmat[self._site].reshape(3, 3)

    def torques(self) -> np.ndarray:
        """Joint torques [7], N m, not yet clipped to the actuators' limits."""
        data, jac = self._data, self._jac
        mujoco.mj_jacSite(self._model, data, jac[:3], jac[3:], self._site)
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        jac_6j, mass_jj = jac[:, self._dof], self._mass[self._dof, self._dof]
        qvel = data.qvel[self._dof]
        twist = jac_6j @ qvel
        wish = -KD * twist
        wish[:3] += KP * (self._goal_pos - data.site_xpos[self._site])
        wish[3:] += KP * orientation_error(self._goal_rot, data.site_xmat[self._site].reshape(3, 3))
        posture = POSTURE_KP * (self._posture - data.qpos[self._qpos]) - POSTURE_KD * qvel
        inertia_inv = jac_6j @ np.linalg.solve(
            mass_jj, jac_6j.T
        )  # J M^-1 J^T, the inverse of the task-space inertia
        wrench = np.empty(6)
        wrench[:3] = np.linalg.solve(inertia_inv[:3, :3], wish[:3])
        wrench[3:] = np.linalg.solve(inertia_inv[3:, 3:], wish[3:])
        # (I - J^T Jbar^T) M posture, with Jbar = M^-1 J^T (J M^-1 J^T)^-1
        wrench -= np.linalg.solve(inertia_inv, jac_6j @ posture)
        return jac_6j.T @ wrench + mass_jj @ posture + data.qfrc_bias[self._dof]


def orientation_error(goal_33, current_33) -> np.ndarray:
    """Rotation vector from current to goal (its sine: half the sum of the columns' cross products)."""
    e = goal_33 @ current_33.T
    return 0.5 * np.array([e[2, 1] - e[1, 2], e[0, 2] - e[2, 0], e[1, 0] - e[0, 1]])


def rotation(rotvec) -> np.ndarray:
    """Rotation matrix [3,3] of an axis-angle vector (rad)."""
    angle = np.linalg.norm(rotvec)
    quat, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat, np.asarray(rotvec, np.float64) / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)
