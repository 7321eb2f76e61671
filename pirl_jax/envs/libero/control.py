"""The torques of robosuite's OSC_POSE controller for one arm, bit by bit, without its Python.

robosuite computes them in about fifty small numpy calls per physics step; here it is two compiled functions.  Every
floating-point operation is kept, in the same order, in the same library (numpy and numba bring different BLAS
libraries) and on arrays of the same memory layout, which decides the BLAS routine.  Goals stay robosuite's business:
`set_goal` is its own.  Needs numba, which robosuite needs too; imports neither robosuite nor LIBERO.
"""

import mujoco
import numba
import numpy as np

NULL_GAIN = 10.0  # 1/s^2, pull towards the initial posture; robosuite's constant


class ArmControl:
    """Writes the controls of one physics step.  Created anew after every reset, as robosuite's controller is."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot):
        controller = robot.controller
        self._model, self._data, self._controller = model, data, controller
        self._dofs = np.array(controller.qvel_index, np.int64)
        self._qpos_index = np.array(controller.qpos_index, np.int64)
        self._gains = controller.kp, controller.kd, controller.initial_joint
        self._site = robot.eef_site_id
        self._position_m, self._rotation_9 = (
            data.site_xpos[self._site],
            data.site_xmat[self._site],
        )  # views
        self._qpos, self._qvel, self._bias, self._ctrl = (
            data.qpos,
            data.qvel,
            data.qfrc_bias,
            data.ctrl,
        )
        self._mass = data.qM
        self._jac_pos_3V, self._jac_rot_3V = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._mass_address_77 = _mass_addresses(model, self._dofs)
        self._twist_6, self._wrench_6, self._torque_7 = (
            np.zeros(6),
            np.zeros(6),
            np.zeros(len(self._dofs)),
        )
        self._halves = (
            *np.split(self._twist_6, 2),
            *np.split(self._wrench_6, 2),
        )  # views: position, rotation
        lambdas = np.zeros((3, 3), order="F"), np.zeros((3, 3), order="F")
        self._results = (
            np.zeros(3),
            np.zeros(3),
            *lambdas,
            np.zeros((len(self._dofs), 6)),
            np.zeros(len(self._dofs)),
        )
        arm, fingers = (
            np.array(robot._ref_joint_actuator_indexes),
            np.array(robot._ref_joint_gripper_actuator_indexes),
        )
        self._actuators = arm, *model.actuator_ctrlrange[arm].T.copy()
        low, high = model.actuator_ctrlrange[fingers].T
        self._fingers = (
            fingers,
            0.5 * (high + low),
            0.5 * (high - low),
        )  # middle and half of the range (m)
        self._speed = robot.gripper.speed  # of the ramp, per physics step

    def set_goal(self, action_6: np.ndarray) -> None:
        """New goal pose from the current one; `data` must be fresh (mj_step1)."""
        controller = self._controller
        controller.ee_pos = self._position_m.copy()
        controller.ee_ori_mat = self._rotation_9.reshape(3, 3).copy()
        controller.new_update = (
            False  # else set_goal runs a forward pass and refreshes what it does not need
        )
        controller.set_goal(action_6)

    def apply(self, grip_2: np.ndarray, direction: float) -> None:
        """Set data.ctrl for the physics step that begins; `data` must be fresh.

        grip_2 is the gripper's ramp, moved in place by one physics step; direction: -1 opens, 1 closes, 0 holds.
        """
        mujoco.mj_jacSite(self._model, self._data, self._jac_pos_3V, self._jac_rot_3V, self._site)
        velocity_3, spin_3, wrench_pos_3, wrench_rot_3 = self._halves
        np.dot(self._jac_pos_3V, self._qvel, out=velocity_3)
        np.dot(self._jac_rot_3V, self._qvel, out=spin_3)
        force_3, torque_3, lambda_pos, lambda_rot, jac_T_76, posture_7 = self._results
        _operational_space(
            *self._results,
            self._jac_pos_3V,
            self._jac_rot_3V,
            self._mass,
            self._mass_address_77,
            self._qpos,
            self._qvel,
            self._qpos_index,
            self._dofs,
            self._position_m,
            self._rotation_9,
            self._twist_6,
            self._controller.goal_pos,
            self._controller.goal_ori,
            *self._gains,
        )
        np.dot(lambda_pos, force_3, out=wrench_pos_3)
        np.dot(lambda_rot, torque_3, out=wrench_rot_3)
        np.dot(jac_T_76, self._wrench_6, out=self._torque_7)
        _actuate(
            self._ctrl,
            self._torque_7,
            self._bias,
            posture_7,
            self._dofs,
            *self._actuators,
            grip_2,
            direction,
            self._speed,
            *self._fingers,
        )


def _mass_addresses(model: mujoco.MjModel, dofs: np.ndarray) -> np.ndarray:
    """[7,7]: where data.qM keeps the arm's inertia.  Each row of qM runs from a degree of freedom to its root."""
    address = np.zeros((len(dofs), len(dofs)), np.int64)
    for i, dof in enumerate(dofs):
        ancestor = dof
        for offset in range(i + 1):
            if ancestor != dofs[i - offset]:
                raise RuntimeError(f"the arm is no chain from the world: degrees of freedom {dofs}")
            address[i, i - offset] = address[i - offset, i] = model.dof_Madr[dof] + offset
            ancestor = model.dof_parentid[ancestor]
    return address


@numba.njit(cache=True)
def _columns(matrix, index):
    """matrix[:, index] in Fortran order, as numpy's fancy indexing lays it out."""
    out = np.empty((len(index), len(matrix))).T
    for j in range(len(index)):
        for i in range(len(matrix)):
            out[i, j] = matrix[i, index[j]]
    return out


@numba.njit(cache=True)
def _orientation_error(goal, current):
    """Half the sum of the cross products of the frames' axes, goal against current: [3], about a rotation vector."""
    error = np.empty(3)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross_3 = current[j] * goal[k] - current[k] * goal[j]  # of axes 0, 1, 2
        error[i] = 0.5 * (cross_3[0] + cross_3[1] + cross_3[2])
    return error


@numba.njit(cache=True)
def _operational_space(
    force_3,
    torque_3,
    lambda_pos,
    lambda_rot,
    jac_T_76,
    posture_7,
    jac_pos_3V,
    jac_rot_3V,
    mass_M,
    mass_address_77,
    qpos,
    qvel,
    qpos_index,
    dofs,
    position_m,
    rotation_9,
    twist_6,
    goal_position_m,
    goal_rotation,
    kp_6,
    kd_6,
    posture_goal_7,
):
    """Khatib (1987).  The first line of arguments is written.

    Desired accelerations [3] and [3], task-space inertias [3,3] and [3,3], J^T [7,6], null-space torques [7].
    """
    jac_pos, jac_rot, jac_67 = _columns(jac_pos_3V, dofs), _columns(jac_rot_3V, dofs), jac_T_76.T
    jac_67[:3], jac_67[3:] = jac_pos, jac_rot
    mass = np.empty((len(dofs), len(dofs))).T
    for j in range(len(dofs)):
        for i in range(len(dofs)):
            mass[i, j] = mass_M[mass_address_77[i, j]]

    force_3[:] = (goal_position_m - position_m) * kp_6[:3] + -twist_6[:3] * kd_6[:3]
    turn_3 = _orientation_error(goal_rotation, rotation_9.reshape(3, 3))
    torque_3[:] = turn_3 * kp_6[3:] + -twist_6[3:] * kd_6[3:]

    mass_inv = np.linalg.inv(mass)
    lambda_full = np.linalg.pinv(np.dot(np.dot(jac_67, mass_inv), jac_T_76))
    lambda_pos[:] = np.linalg.pinv(np.dot(np.dot(jac_pos, mass_inv), jac_pos.T))
    lambda_rot[:] = np.linalg.pinv(np.dot(np.dot(jac_rot, mass_inv), jac_rot.T))
    null = np.eye(len(dofs)) - np.dot(np.dot(np.dot(mass_inv, jac_T_76), lambda_full), jac_67)

    pull_7 = NULL_GAIN * (posture_goal_7 - qpos[qpos_index]) - np.sqrt(NULL_GAIN) * 2.0 * qvel[dofs]
    posture_7[:] = np.dot(null.T, np.dot(mass, pull_7))


@numba.njit(cache=True)
def _actuate(
    ctrl,
    torque_7,
    bias_V,
    posture_7,
    dofs,
    arm,
    low,
    high,
    grip_2,
    direction,
    speed,
    fingers,
    middle,
    half,
):
    """Arm: torque + gravity + posture, clipped.  Fingers: position targets along the ramp."""
    for i in range(len(dofs)):
        torque = (torque_7[i] + bias_V[dofs[i]]) + posture_7[i]
        ctrl[arm[i]] = min(max(torque, low[i]), high[i])
    for i in range(2):
        towards = -speed if i == 0 else speed  # the two fingers move against each other
        grip_2[i] = min(max(grip_2[i] + towards * direction, -1.0), 1.0)
        ctrl[fingers[i]] = middle[i] + half[i] * grip_2[i]
