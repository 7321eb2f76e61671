"""What is trained as evidence, as data: cells in the order in which they are played.

A cell is one training under several seeds, from a policy that demonstrations taught (`Start`) or,
without one, from what its recipe teaches itself.  Settings are differences from the recipe.
Refuses to know how anything is run and where it lies.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

Settings = Mapping[str, Any]
MOST_EPISODES = 8000  # of a cell, unless it is a recipe as it stands
MOST_S = 150 * 60.0  # wall time of a cell's training, all its starts together
# Pictures as stock LIBERO draws them, from all start states that are published.
PUBLISHED = {
    "env.render_quality": "exact",
    "env.split": "published",
    "eval.episodes_per_task": 0,
    "eval.num_videos": 0,
}
# Start states that a recipe trains on: of LIBERO's 50, and of tabletop's as many as are enough.
TRAINED_ON = {"env.split": "published", "eval.num_videos": 0}


@dataclasses.dataclass(frozen=True)
class Start:
    """A policy to begin with: of several teachings the one that succeeds as often as wanted."""

    name: str
    recipe: str
    settings: Settings
    ladder: tuple[Settings, ...]  # teachings, each better than the one before
    band: tuple[float, float]  # success that is wanted
    trial: Settings  # how a teaching is tried: never on start states that are held out


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training; its name with a seed is that of its folder and of its results."""

    row: str  # of ROWS
    name: str
    recipe: str
    settings: Settings
    start: str = ""  # of STARTS; "": the recipe teaches its own
    seeds: tuple[int, ...] = (0,)
    goals: Settings = dataclasses.field(default_factory=dict)  # {line of goals.GOALS: its value}
    final: Settings = dataclasses.field(default_factory=dict)  # another evaluation than the run's
    # Settings of which those are added whose cell, by its name, has the highest mean.
    best_of: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    perturbed: bool = False  # evaluated in LIBERO-PRO's and LIBERO-Plus's tasks at the end
    most_episodes: int = MOST_EPISODES
    most_s: float = MOST_S


@dataclasses.dataclass(frozen=True)
class Table:
    """Everything that is played."""

    starts: Mapping[str, Start]
    cells: tuple[Cell, ...]

    def cell(self, name: str) -> Cell:
        """By its name."""
        return next(cell for cell in self.cells if cell.name == name)


ROWS = {
    "a": "the quickstart; goal: 90 %, intervals disjoint in each seed",
    "b": "five algorithms on tabletop; goal: every RL cell's mean above filtered cloning",
    "c": "libero_object/0, published time limit; goal: 90 % on the published start states",
    "d": "libero_spatial/2, published time limit; goal: 90 % on the published start states",
    "e": "the best critic-free algorithm of b on c and d; goal: within 5 points of PPO or better",
    "f": "three tasks of libero_spatial in one policy; goal: mean 85 %, no task below its start",
    "g": "c with LoRA, and with batches of an older policy; goal: within the interval of c",
    "h": "LIBERO-PRO and LIBERO-Plus for the trained tasks: before and after",
}


# ---- starts ------------------------------------------------------------------------------------


def _demonstrations(*counts: int) -> tuple[Settings, ...]:
    return tuple({"sft.demonstrations": count} for count in counts)


PI05 = {"model.pi05": True}
# Where a policy never succeeds, no algorithm learns: docs/results.md, "Which start states fail".
COVERED = {"sft.starts": "covering", "sft.augment": True}
# All 50 start states evaluate in the end, of which training has seen 40.
LIBERO_SPLIT = {
    "env.split": "held_out",
    "env.max_episode_steps": 240,
    "eval.episodes_per_task": 10,
}
OBJECT = LIBERO_SPLIT | {"env.suite": "libero_object", "env.tasks": (0,)}
SPATIAL = LIBERO_SPLIT | {"env.suite": "libero_spatial", "env.tasks": (2,)}
THREE = SPATIAL | {"env.tasks": (0, 2, 5), "env.cached_tasks": 3}
OF_LIBERO = {
    "ladder": _demonstrations(4, 6, 9, 13, 19, 28, 40),
    "band": (0.3, 0.6),
    "trial": TRAINED_ON | {"eval.episodes_per_task": 40},
}
OF_TABLETOP = {
    "ladder": _demonstrations(7, 8, 9, 10, 12, 14, 19),
    "band": (0.4, 0.6),
    "trial": TRAINED_ON | {"eval.episodes_per_task": 150},
}
TAUGHT = (
    Start("tabletop_pi0_start", "tabletop_small", COVERED, **OF_TABLETOP),
    Start("tabletop_pi05_start", "tabletop_small", COVERED | PI05, **OF_TABLETOP),
    Start("object_pi0_start", "libero_small", COVERED | OBJECT, **OF_LIBERO),
    Start("object_pi05_start", "libero_small", COVERED | OBJECT | PI05, **OF_LIBERO),
    Start("spatial_pi0_start", "libero_small", COVERED | SPATIAL, **OF_LIBERO),
    Start("spatial_pi05_start", "libero_small", COVERED | SPATIAL | PI05, **OF_LIBERO),
    Start("three_pi0_start", "libero_small", COVERED | THREE, **OF_LIBERO),
)


# ---- cells -------------------------------------------------------------------------------------

# At one learning rate samplers and losses differ several times in how far an update moves a policy.
BOUNDED = {"algorithm.target_kl": 0.06}
NO_CRITIC = {"model.add_value_head": False, "algorithm.critic_warmup_iterations": 0}
GROUPED = BOUNDED | NO_CRITIC | {"algorithm.group_size": 8}
GRPO = GROUPED | {"algorithm.adv_type": "grpo"}
NFT = GROUPED | {"algorithm.loss": "nft", "algorithm.adv_type": "rloo"}
ALGORITHMS = {
    "ppo_sde": BOUNDED,
    "ppo_noise": BOUNDED
    | {
        "model.noise_method": "flow_noise",
        "model.noise_steps": "last",
        "model.noise_logvar_range": (0.2, 0.6),
    },
    "grpo": GRPO,
    "nft": NFT,
    "clone": NO_CRITIC | {"algorithm.loss": "clone", "algorithm.adv_type": "raw"},
}
EVALUATED = {"eval.every": 10, "eval.episodes_during_training": 50}
ON_TABLETOP = EVALUATED | {"num_iterations": 31}  # of 256 episodes
# Of 128 episodes; what the run itself evaluates on is ten start states that were held out.
ON_LIBERO = {
    "num_iterations": 62,
    "rollout.episodes_per_iteration": 128,
    "algorithm.minibatch_size": 512,
    "eval.every": 10,
    "eval.episodes_during_training": 10,
}
LORA = {"model.is_lora": True, "model.train_expert_only": False}
STALE = {"rollout.max_staleness": 1}
CRITIC_FREE = {"tabletop_pi0_grpo": GRPO, "tabletop_pi0_nft": NFT}


def _tabletop(model: str, settings: Settings, seeds: tuple[int, ...]) -> list[Cell]:
    cells = []
    for name, algorithm in ALGORITHMS.items():
        goals = {} if name == "clone" else {"above": f"tabletop_{model}_clone"}
        cell = Cell(
            "b",
            f"tabletop_{model}_{name}",
            "tabletop_small",
            ON_TABLETOP | settings | algorithm,
            start=f"tabletop_{model}_start",
            seeds=seeds,
            goals=goals,
        )
        cells.append(cell)
    return cells


def _libero(row: str, name: str, start: str, settings: Settings, **more: Any) -> Cell:
    return Cell(
        row,
        name,
        "libero_small",
        ON_LIBERO | settings,
        start=start,
        final=PUBLISHED,
        **more,
    )


OF_D = {"goals": {"least": 0.9}, "perturbed": True}
OF_C = OF_D | {"seeds": (0, 1, 2)}
OF_G = {"goals": {"in_interval": "object_pi0_ppo_sde"}}


def _critic_free(task: str, settings: Settings) -> Cell:
    return _libero(
        "e",
        f"{task}_pi0_critic_free",
        f"{task}_pi0_start",
        settings,
        best_of=CRITIC_FREE,
        goals={"near": (f"{task}_pi0_ppo_sde", 0.05)},
    )


PLAYED = (
    Cell(
        "a",
        "quickstart",
        "quickstart",
        {},
        seeds=(0, 1, 2),
        goals={"least": 0.9, "disjoint": True},
        most_episodes=85 * 256,  # the recipe as it stands
    ),
    *_tabletop("pi0", {}, (0, 1, 2)),
    *_tabletop("pi05", PI05, (0,)),
    _libero("c", "object_pi0_ppo_sde", "object_pi0_start", OBJECT | BOUNDED, **OF_C),
    _libero("c", "object_pi05_ppo_sde", "object_pi05_start", OBJECT | PI05 | BOUNDED, **OF_C),
    _libero("d", "spatial_pi0_ppo_sde", "spatial_pi0_start", SPATIAL | BOUNDED, **OF_D),
    _libero("d", "spatial_pi05_ppo_sde", "spatial_pi05_start", SPATIAL | PI05 | BOUNDED, **OF_D),
    _critic_free("object", OBJECT),
    _critic_free("spatial", SPATIAL),
    _libero(
        "f",
        "three_pi0_ppo_sde",
        "three_pi0_start",
        THREE | BOUNDED,
        goals={"least": 0.85, "no_task_falls": True},
        perturbed=True,
    ),
    _libero("g", "object_pi0_lora", "object_pi0_start", OBJECT | BOUNDED | LORA, **OF_G),
    _libero("g", "object_pi0_stale", "object_pi0_start", OBJECT | BOUNDED | STALE, **OF_G),
)
# In the order of the rows; the other seeds of a row come after its first.
TABLE = Table({start.name: start for start in TAUGHT}, PLAYED)
