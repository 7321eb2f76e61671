"""The servo law on a hand without physics: follows the legs, starts again when one failed."""

import dataclasses

import numpy as np

from pirl_jax.envs import panda, servo
from pirl_jax.envs.tabletop import control

DOWN = np.diag([1.0, -1.0, -1.0])


class Hand:
    """Moves half of the way it is told; fingers down."""

    def __init__(self):
        self.position = np.zeros(3)
        self.rotation = DOWN.copy()

    def pose(self):
        return self.position, self.rotation

    def move(self, action_a):
        self.position = self.position + 0.5 * action_a[:3] * panda.MAX_DELTA[:3]
        turn = control.rotation(0.5 * action_a[3:6] * panda.MAX_DELTA[3:])
        self.rotation = turn @ self.rotation


def play(hand, script, steps):
    act = servo.Follower(hand.pose, script)
    actions = []
    for _ in range(steps):
        actions.append(act())
        hand.move(actions[-1])
    return np.array(actions)


def test_goes_where_the_leg_says_and_turns():
    hand = Hand()
    goal = np.array([0.2, -0.1, 0.05])

    def yaw(rotation):
        return servo.wrapped(1.0 - servo.heading(rotation[:, 0]), np.pi)

    actions = play(hand, lambda: [servo.Leg("go", lambda: goal, servo.OPEN, yaw, steps=1000)], 60)
    np.testing.assert_allclose(hand.position, goal, atol=1e-4)
    np.testing.assert_allclose(servo.heading(hand.rotation[:, 0]), 1.0, atol=1e-3)
    np.testing.assert_allclose(hand.rotation[:, 2], [0, 0, -1], atol=1e-3)
    np.testing.assert_array_equal(actions[0, :2], [1.0, -1.0])  # capped
    np.testing.assert_allclose(actions[0, 5], 1.0)  # 1 rad; 0.5 is a full delta
    assert np.abs(actions).max() <= 1.0 and (actions[:, 6] == servo.OPEN).all()


def test_tilt_is_corrected():
    hand = Hand()
    hand.rotation = control.rotation(np.array([0.3, -0.2, 0.0])) @ DOWN
    play(hand, lambda: [servo.Leg("stay", lambda: np.zeros(3), servo.CLOSE, steps=1000)], 40)
    np.testing.assert_allclose(hand.rotation[:, 2], [0, 0, -1], atol=1e-3)


def test_a_leg_can_wish_another_rotation_than_fingers_down():
    """A quarter turn, after which the fingers point along y; the leg ends when it is done."""
    hand = Hand()
    level = control.rotation(np.array([np.pi / 2, 0.0, 0.0])) @ DOWN
    there = np.array([0.1, 0.0, 0.0])
    legs = [
        servo.Leg("level", lambda: there, servo.OPEN, tolerance_m=0.01, rotation=level),
        servo.Leg("stay", lambda: there, servo.CLOSE, steps=1000, rotation=level),
    ]
    actions = play(hand, lambda: list(legs), 60)
    np.testing.assert_allclose(hand.rotation, level, atol=1e-3)
    np.testing.assert_allclose(abs(hand.rotation[1, 2]), 1.0, atol=1e-3)
    ends = np.flatnonzero(actions[:, 6] == servo.CLOSE)[0]
    way = play(Hand(), lambda: [dataclasses.replace(legs[0], rotation=None), legs[1]], 60)
    assert ends > np.flatnonzero(way[:, 6] == servo.CLOSE)[0], "the turn takes longer than the way"


def test_legs_end_by_distance_or_by_steps():
    there = np.array([0.1, 0.0, 0.0])
    legs = [
        servo.Leg("near", lambda: there, servo.OPEN, tolerance_m=0.02),
        servo.Leg("grip", lambda: there, servo.CLOSE, steps=3),
        servo.Leg("rest", lambda: there, servo.OPEN, steps=1000),
    ]
    gripper = play(Hand(), lambda: legs, 12)[:, 6].tolist()
    first = gripper.index(servo.CLOSE)
    assert gripper == [servo.OPEN] * first + [servo.CLOSE] * 3 + [servo.OPEN] * (9 - first)
    # 0.1 m at 0.025 m a step, then half of the rest a step: within 0.02 m after 4 moves
    assert first == 5


def test_an_unsuccessful_leg_starts_the_script_again():
    tries = []

    def script():
        tries.append(len(tries))
        target = np.array([0.0, 0.0, 0.01 * len(tries)])

        def third_time():
            return len(tries) == 3

        return [
            servo.Leg("close", lambda: target, servo.CLOSE, steps=2, succeeded=third_time),
            servo.Leg("done", lambda: target, servo.OPEN, steps=1000),
        ]

    gripper = play(Hand(), script, 8)[:, 6].tolist()
    assert tries == [0, 1, 2] and gripper == [servo.CLOSE] * 6 + [servo.OPEN] * 2


def test_the_shortest_turn():
    turned = servo.wrapped(np.array([0.1, 3.0, -3.0, 1.6]), np.pi)
    np.testing.assert_allclose(turned, [0.1, 3.0 - np.pi, np.pi - 3.0, 1.6 - np.pi])
    np.testing.assert_allclose(servo.wrapped(0.8, np.pi / 2), 0.8 - np.pi / 2)
