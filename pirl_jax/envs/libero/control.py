"""The torques of robosuite's OSC_POSE controller for one arm, bit by bit, without its Python.

robosuite computes them in about fifty small numpy calls per physics step; here it is two
compiled functions.  Every floating-point operation is kept, in the same order, in the same
library (numpy and numba bring different BLAS libraries) and on arrays of the same memory layout,
which decides the BLAS routine.  Goals stay robosuite's business: `set_goal` is its own.  Needs
numba, which robosuite needs too; imports neither robosuite nor LIBERO.
"""

from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np

NULL_GAIN = 10.0  # 1/s^2, pull towards the initial posture; robosuite's constant


# numba passes these on to compiled code as they are; shapes with a 7 are of the arm's joints.
class Arm(NamedTuple):
    """What the law knows of one arm; constant between two resets."""

    dofs_7: np.ndarray  # places in qvel
    qpos_index_7: np.ndarray  # places in qpos
    mass_address_77: np.ndarray  # places in qM
    kp_6: np.ndarray  # 1/s^2, position and rotation
    kd_6: np.ndarray  # 1/s
    posture_rad_7: np.ndarray  # what the null space prefers


class Live(NamedTuple):
    """Views of what mujoco keeps up to date."""

    qpos: np.ndarray
    qvel: np.ndarray
    mass: np.ndarray  # [nM] the inertia matrix, sparse
    position_m_3: np.ndarray  # of the end effector
    rotation_9: np.ndarray


class Terms(NamedTuple):
    """What `_operational_space` writes: the factors of products that belong to numpy's BLAS."""

    force_3: np.ndarray  # acceleration wished for
    torque_3: np.ndarray  # angular acceleration wished for
    lambda_position_33: np.ndarray  # task-space inertia
    lambda_rotation_33: np.ndarray
    jac_transposed_76: np.ndarray
    posture_7: np.ndarray  # torques in the null space (N m)


class Motors(NamedTuple):
    """The actuators: their places in ctrl and their ranges."""

    arm_7: np.ndarray
    low_7: np.ndarray  # N m
    high_7: np.ndarray
    fingers_2: np.ndarray
    middle_m_2: np.ndarray  # of the range of a finger's position
    half_m_2: np.ndarray
    speed: float  # of the gripper's ramp, per physics step


class ArmControl:
    """Writes the controls of one physics step.

    Created anew after every reset, as robosuite's controller is.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: Any):
        """`robot` is robosuite's, of the same model.

        Raises:
            RuntimeError: the arm is no chain of joints from the world.
        """
        self._model = model
        self._data = data
        self._controller = robot.controller
        self._site = robot.eef_site_id
        self._arm = _arm(model, robot.controller)
        self._live = _live(data, self._site)
        self._ctrl = data.ctrl
        self._bias = data.qfrc_bias  # gravity and what else acts without control (N m)
        self._motors = _motors(model, robot)
        self._terms = _terms(num_joints=len(self._arm.dofs_7))
        # Written at every step; the halves of twist and wrench are views.
        self._jac_position = np.zeros((3, model.nv))
        self._jac_rotation = np.zeros((3, model.nv))
        self._twist_6 = np.zeros(6)
        self._wrench_6 = np.zeros(6)
        self._velocity_3, self._spin_3 = np.split(self._twist_6, 2)
        self._push_3, self._turn_3 = np.split(self._wrench_6, 2)
        self._torque_7 = np.zeros(len(self._arm.dofs_7))

    def set_goal(self, action_6: np.ndarray) -> None:
        """New goal pose from the current one; `data` must be fresh (mj_step1)."""
        controller = self._controller
        controller.ee_pos = self._live.position_m_3.copy()
        controller.ee_ori_mat = self._live.rotation_9.reshape(3, 3).copy()
        # else set_goal runs a forward pass and refreshes what it does not need
        controller.new_update = False
        controller.set_goal(action_6)

    def apply(self, grip_2: np.ndarray, direction: float) -> None:
        """Set data.ctrl for the physics step that begins; `data` must be fresh.

        grip_2 is the gripper's ramp, moved in place by one physics step; direction: -1 opens, 1
        closes, 0 holds.
        """
        terms = self._terms
        mujoco.mj_jacSite(
            self._model, self._data, self._jac_position, self._jac_rotation, self._site
        )
        np.dot(self._jac_position, self._live.qvel, out=self._velocity_3)
        np.dot(self._jac_rotation, self._live.qvel, out=self._spin_3)
        _operational_space(
            terms,
            self._arm,
            self._live,
            self._jac_position,
            self._jac_rotation,
            self._twist_6,
            self._controller.goal_pos,
            self._controller.goal_ori,
        )
        np.dot(terms.lambda_position_33, terms.force_3, out=self._push_3)
        np.dot(terms.lambda_rotation_33, terms.torque_3, out=self._turn_3)
        np.dot(terms.jac_transposed_76, self._wrench_6, out=self._torque_7)
        _actuate(
            self._ctrl,
            self._motors,
            self._bias,
            self._arm.dofs_7,
            self._torque_7,
            terms.posture_7,
            grip_2,
            direction,
        )


def _arm(model: mujoco.MjModel, controller: Any) -> Arm:
    dofs_7 = np.array(controller.qvel_index, np.int64)
    return Arm(
        dofs_7=dofs_7,
        qpos_index_7=np.array(controller.qpos_index, np.int64),
        mass_address_77=_mass_addresses(model, dofs_7),
        kp_6=controller.kp,
        kd_6=controller.kd,
        posture_rad_7=controller.initial_joint,
    )


def _live(data: mujoco.MjData, site: int) -> Live:
    return Live(
        qpos=data.qpos,
        qvel=data.qvel,
        mass=data.qM,
        position_m_3=data.site_xpos[site],
        rotation_9=data.site_xmat[site],
    )


def _terms(num_joints: int) -> Terms:
    return Terms(
        force_3=np.zeros(3),
        torque_3=np.zeros(3),
        # Fortran order, as robosuite's own are
        lambda_position_33=np.zeros((3, 3), order="F"),
        lambda_rotation_33=np.zeros((3, 3), order="F"),
        jac_transposed_76=np.zeros((num_joints, 6)),
        posture_7=np.zeros(num_joints),
    )


def _motors(model: mujoco.MjModel, robot: Any) -> Motors:
    arm_7 = np.array(robot._ref_joint_actuator_indexes)
    fingers_2 = np.array(robot._ref_joint_gripper_actuator_indexes)
    arm_low_7, arm_high_7 = model.actuator_ctrlrange[arm_7].T.copy()
    low_2, high_2 = model.actuator_ctrlrange[fingers_2].T
    return Motors(
        arm_7=arm_7,
        low_7=arm_low_7,
        high_7=arm_high_7,
        fingers_2=fingers_2,
        middle_m_2=0.5 * (high_2 + low_2),
        half_m_2=0.5 * (high_2 - low_2),
        speed=robot.gripper.speed,
    )


def _mass_addresses(model: mujoco.MjModel, dofs: np.ndarray) -> np.ndarray:
    """[7,7]: where data.qM keeps the arm's inertia.

    Each row of qM runs from a degree of freedom to its root.
    """
    address = np.zeros((len(dofs), len(dofs)), np.int64)
    for i, dof in enumerate(dofs):
        ancestor = dof
        for offset in range(i + 1):
            j = i - offset
            if ancestor != dofs[j]:
                raise RuntimeError(f"the arm is no chain from the world: degrees of freedom {dofs}")
            address[i, j] = model.dof_Madr[dof] + offset
            address[j, i] = address[i, j]
            ancestor = model.dof_parentid[ancestor]
    return address


@numba.njit(cache=True)
def _columns(matrix: np.ndarray, index: np.ndarray) -> np.ndarray:
    """matrix[:, index] in Fortran order, as numpy's fancy indexing lays it out."""
    out = np.empty((len(index), len(matrix))).T
    for j in range(len(index)):
        for i in range(len(matrix)):
            out[i, j] = matrix[i, index[j]]
    return out


@numba.njit(cache=True)
def _dense(mass: np.ndarray, address: np.ndarray) -> np.ndarray:
    """The arm's inertia matrix [7,7] in Fortran order, as robosuite's fancy indexing gives it."""
    num_joints = len(address)
    out = np.empty((num_joints, num_joints)).T
    for j in range(num_joints):
        for i in range(num_joints):
            out[i, j] = mass[address[i, j]]
    return out


@numba.njit(cache=True)
def _orientation_error(goal_33: np.ndarray, current_33: np.ndarray) -> np.ndarray:
    """[3], about a rotation vector (rad) from current to goal.

    Half the sum of the cross products of the frames' axes, goal against current.
    """
    error_3 = np.empty(3)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross_3 = current_33[j] * goal_33[k] - current_33[k] * goal_33[j]  # of axes 0, 1, 2
        error_3[i] = 0.5 * (cross_3[0] + cross_3[1] + cross_3[2])
    return error_3


@numba.njit(cache=True)
def _operational_space(
    terms: Terms,
    arm: Arm,
    live: Live,
    jac_position: np.ndarray,
    jac_rotation: np.ndarray,
    twist_6: np.ndarray,
    goal_position_m: np.ndarray,
    goal_rotation: np.ndarray,
) -> None:
    """Writes `terms`; Khatib (1987), with position and rotation decoupled.

    The Jacobians are [3,nv], the goal [3] and [3,3].  Every line is one of robosuite's, in its
    order: another one that is as good algebra is other bits.
    """
    jac_position_37 = _columns(jac_position, arm.dofs_7)
    jac_rotation_37 = _columns(jac_rotation, arm.dofs_7)
    jac_transposed_76 = terms.jac_transposed_76
    jac_67 = jac_transposed_76.T  # a view: filling it fills the other
    jac_67[:3] = jac_position_37
    jac_67[3:] = jac_rotation_37
    mass_77 = _dense(live.mass, arm.mass_address_77)

    offset_3 = goal_position_m - live.position_m_3
    terms.force_3[:] = offset_3 * arm.kp_6[:3] + -twist_6[:3] * arm.kd_6[:3]
    turn_3 = _orientation_error(goal_rotation, live.rotation_9.reshape(3, 3))
    terms.torque_3[:] = turn_3 * arm.kp_6[3:] + -twist_6[3:] * arm.kd_6[3:]

    mass_inverse = np.linalg.inv(mass_77)
    inverse_66 = np.dot(np.dot(jac_67, mass_inverse), jac_transposed_76)
    position_33 = np.dot(np.dot(jac_position_37, mass_inverse), jac_position_37.T)
    rotation_33 = np.dot(np.dot(jac_rotation_37, mass_inverse), jac_rotation_37.T)
    lambda_66 = np.linalg.pinv(inverse_66)
    terms.lambda_position_33[:] = np.linalg.pinv(position_33)
    terms.lambda_rotation_33[:] = np.linalg.pinv(rotation_33)

    # The null space: I - Jbar J, with Jbar = M^-1 J^T lambda.
    jbar_76 = np.dot(np.dot(mass_inverse, jac_transposed_76), lambda_66)
    null_77 = np.eye(len(mass_77)) - np.dot(jbar_76, jac_67)
    away_7 = arm.posture_rad_7 - live.qpos[arm.qpos_index_7]
    pull_7 = NULL_GAIN * away_7 - np.sqrt(NULL_GAIN) * 2.0 * live.qvel[arm.dofs_7]
    terms.posture_7[:] = np.dot(null_77.T, np.dot(mass_77, pull_7))


@numba.njit(cache=True)
def _actuate(
    ctrl: np.ndarray,
    motors: Motors,
    bias: np.ndarray,
    dofs_7: np.ndarray,
    torque_7: np.ndarray,
    posture_7: np.ndarray,
    grip_2: np.ndarray,
    direction: float,
) -> None:
    """Writes `ctrl` and moves `grip_2`.

    Arm: torque + gravity + posture, clipped.  Fingers: position targets along the ramp.
    """
    for i in range(len(dofs_7)):
        torque = (torque_7[i] + bias[dofs_7[i]]) + posture_7[i]
        ctrl[motors.arm_7[i]] = min(max(torque, motors.low_7[i]), motors.high_7[i])
    for i in range(2):
        # the two fingers move against each other
        towards = -motors.speed if i == 0 else motors.speed
        grip_2[i] = min(max(grip_2[i] + towards * direction, -1.0), 1.0)
        ctrl[motors.fingers_2[i]] = motors.middle_m_2[i] + motors.half_m_2[i] * grip_2[i]
