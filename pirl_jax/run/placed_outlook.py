"""What a placement changes of a plan that was made with all devices of a target in every role.

Nothing more is compiled.  A device that learns has the microbatch that it had; one that plays has
the rows of those that do not, and what its programs need grows at most in proportion.  Refuses to
know compilers and devices.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from pirl_jax.core import page, placement
from pirl_jax.run import config, shares

GB = 1e9
RESTS_ON = (
    "programs are compiled for all devices in every role; of this placement nothing is compiled: on"
    " fewer devices each has more rows, which is taken in proportion"
)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Bytes of parameters that are not split."""

    frozen: int
    learned: int


def differs(raw: page.Page) -> bool:
    """Whether rollout and learner have other devices than each other."""
    return raw.placement.rollout != raw.placement.actor


def placed(raw: page.Page, count: int, hosts: int = 1) -> placement.Placement:
    """On so many devices of each host.

    Raises:
      ValueError: they are not there, or batches do not divide over them.
    """
    section = raw.placement
    found = placement.of_page(section.env, section.rollout, section.actor, count)
    fsdp = raw.mesh.fsdp
    if len(found.actor) % fsdp:
        raise ValueError(
            f"mesh.fsdp={fsdp} does not divide the {len(found.actor)} devices of"
            f" placement.actor={section.actor}; choose a divisor of it"
        )
    config.check_batches(raw, len(found.actor) * hosts, hosts, len(found.rollout))
    return found


def memory(
    raw: page.Page, planned: Mapping[str, Any] | None, whole: Whole, count: int, hosts: int = 1
) -> dict[str, Any]:
    """{"mode", "devices": [{"numbers", "roles", "resident", "total"}], "remarks"}, bytes of one of
    these devices.

    Args:
      planned: fields of a plan of all devices in every role; None: nobody has made one.
      whole: what a device takes that plays with a copy.
      count: devices of a host.
    """
    where = placed(raw, count, hosts)
    found = {"mode": where.mode, "devices": [], "remarks": [*where.remarks(count, _in_turns(raw))]}
    if planned is None:
        found["remarks"].append("what its devices need is unknown: nothing fits in every role")
        return found
    more = count / len(where.rollout)
    resident = _scaled(planned["resident"], (shares.KEPT,), more)
    resident.pop(shares.PUBLISHED, None)
    if published := _published(raw, where, whole):
        resident[shares.PUBLISHED] = published
    work = _scaled(planned["work"], shares.PLAYING, more)
    at_once = not _in_turns(raw)
    for share in shares.of(where, resident, work, planned["away"], at_once):
        row = {
            "numbers": share.devices or placement.shown(where.computing),
            "roles": share.roles,
            "resident": sum(share.resident.values()),
            "total": share.total,
        }
        found["devices"].append(row)
        if share.total > planned["limit"]:
            found["remarks"].append(
                f"devices {row['numbers']} need at most {share.total / GB:.2f} GB, and have"
                f" {planned['limit'] / GB:.2f}"
            )
    return found


def _in_turns(raw: page.Page) -> bool:
    return not raw.rollout.max_staleness


def _scaled(sizes: Mapping[str, int], names: tuple[str, ...], factor: float) -> dict[str, int]:
    """Those names so much larger."""
    return {name: int(size * (factor if name in names else 1)) for name, size in sizes.items()}


def _published(raw: page.Page, where: placement.Placement, whole: Whole) -> int:
    """Bytes of a device that plays with copies (learner/publish.py)."""
    fsdp = raw.mesh.fsdp
    playing = set(where.rollout)
    rows = [set(where.actor[at : at + fsdp]) for at in range(0, len(where.actor), fsdp)]
    is_inside = playing <= set(where.actor)
    if is_inside and all(row <= playing or not row & playing for row in rows):
        return 0 if _in_turns(raw) else whole.learned // fsdp
    is_there = is_inside and fsdp == 1
    return whole.learned + (0 if is_there else whole.frozen)


def as_text(found: Mapping[str, Any]) -> str:
    """A line per kind of device, and what somebody may want to change."""
    lines = [f"placement: {found['mode']}; GB of one device"]
    for row in found["devices"]:
        lines.append(
            f"  {row['roles']} ({row['numbers']}): {row['resident'] / GB:.2f} stays,"
            f" {row['total'] / GB:.2f} at most"
        )
    lines.append(RESTS_ON)
    return "\n".join([*lines, *(f"warning: {remark}" for remark in found["remarks"])])
