"""A trainer among troubles: whatever happens to it and its workers, the same command goes on until
all iterations are done, and its rows and weights are those of an undisturbed run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pirl_jax.monitor import log
from tests import test_train

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.chaos]

# What counts the troubles themselves; every other number must be that of an undisturbed run.
COUNTERS = {"env/restarts", "env/lost_episodes", "env/recycled"}
COMMON = {
    "rollout.lockstep": True,
    "env.num_workers": 2,
    "env.timeout_s": 15,  # a stopped worker is replaced after so long
    "run.save_every": 2,
    "run.backends": "jsonl",
}
PROBE = {
    "env.suite": "probe_delayed",
    "num_iterations": 120,
    "rollout.num_envs": 8,
    "rollout.num_groups": 2,
    "rollout.episodes_per_iteration": 12,
    "algorithm.minibatch_size": 8,
    "algorithm.microbatch_size": 4,
    "eval.every": 5,
}
LIBERO = {
    "num_iterations": 24,
    "env.max_episode_steps": 20,
    "env.timeout_s": 60,  # a simulator takes long to build on a busy machine
    "env.render_quality": "light",
    "eval.every": 0,
}
PATIENCE_S = 300.0  # until something that is waited for has happened
# No file may be larger than 195 kB: rows fit, checkpoints do not.  Not by preexec_fn, which forks
# this process, and JAX warns of that where it has threads.
LIMITED = ("bash", "-c", 'ulimit -f 195 && exec "$@"', "limited")


class Trainer:
    """One start of the command; several make a run."""

    def __init__(self, recipe, directory, fields, file_limit=False):
        self.directory = directory
        self.said = directory.with_suffix(".log")
        self.starts_before = self.num_starts()
        fields = COMMON | fields | {"run.directory": directory}
        command = [sys.executable, "-m", "pirl_jax.train", "--config", f"configs/{recipe}.py"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        # Nothing is measured here that optimised code would change.
        flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        with self.said.open("w") as output:
            self.process = subprocess.Popen(
                [*(LIMITED if file_limit else ()), *command, "--resume", "auto"],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE if file_limit else output,  # a log would be full, too
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def wait(self):
        """-> exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    def wait_for_rows(self, more):
        """Until so many more iterations are done; False where the run ended before."""
        wanted = None
        deadline_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            if self.num_starts() > self.starts_before:
                # This start notes itself, and then cuts rows off: the least counts.
                reached = self.num_rows() + more
                wanted = reached if wanted is None else min(wanted, reached)
                if self.num_rows() >= wanted:
                    return True
            assert time.monotonic() < deadline_s, self.said.read_text()
            time.sleep(0.02)
        return False

    def num_rows(self):
        """Of iterations."""
        metrics = self.directory / "metrics.jsonl"
        return metrics.read_text().count("actor/loss") if metrics.exists() else 0

    def num_starts(self):
        path = self.directory / "environment.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    def workers(self):
        """Their process numbers."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if "worker.main" in " ".join(child.cmdline())]


# ---- troubles: what they do to a trainer; whether it lives on -----------------------------------


def kill_a_worker(trainer, chance):
    os.kill(chance.choice(trainer.workers()), signal.SIGKILL)
    return True


def stop_a_worker(trainer, chance):
    os.kill(chance.choice(trainer.workers()), signal.SIGSTOP)
    return True


def kill_the_trainer(trainer, chance):
    trainer.process.kill()
    assert trainer.wait() == -signal.SIGKILL
    return False


def ask_the_group(trainer, chance):
    os.killpg(trainer.process.pid, chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]))
    assert trainer.wait() == 75, trainer.said.read_text()
    assert trainer.said.read_text().count("; to go on, in ") == 1
    return False


def damage_the_newest_checkpoint(trainer, chance):
    kill_the_trainer(trainer, chance)
    saved = {path for path in trainer.directory.glob("checkpoints/*") if path.name.isdigit()}
    newest = max(saved, key=lambda path: int(path.name))
    if len(saved) > 1:
        file = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    return False


def fill_the_disk(trainer, chance):
    """The next start cannot save, and says so."""
    kill_the_trainer(trainer, chance)
    recipe, fields = trainer.run
    full = Trainer(recipe, trainer.directory, fields, file_limit=True)
    said, _ = full.process.communicate(timeout=PATIENCE_S)
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    assert full.process.returncode == 2 and len(sentences) == 1, said[-3000:]
    assert "File too large" in sentences[0]
    return False


TROUBLES = (
    kill_a_worker,
    stop_a_worker,
    kill_the_trainer,
    ask_the_group,
    damage_the_newest_checkpoint,
    fill_the_disk,
)


def endure(recipe, directory, fields, troubles, chance):
    """Start the command again and again, with a trouble now and then, until it has finished."""
    waiting = list(troubles)
    while True:
        trainer = Trainer(recipe, directory, fields)
        trainer.run = recipe, fields
        # An episode that is lost twice stays lost: a trouble of a worker has iterations of its own.
        while waiting and trainer.wait_for_rows(chance.choice([2, 3])):
            time.sleep(chance.uniform(0.0, 0.3))
            if not waiting.pop(0)(trainer, chance):
                break
        else:
            assert trainer.wait() == 0, trainer.said.read_text()
            assert not waiting, f"finished before {waiting}"
            return


def rows(directory):
    """Every number but times and the counters of troubles."""
    found = []
    for row in log.read(directory, timing=False):
        found.append({name: value for name, value in row.items() if name not in COUNTERS})
    return found


def check(recipe, folder, fields):
    chance = random.Random(0)
    troubles = chance.sample(TROUBLES, len(TROUBLES))
    assert Trainer(recipe, folder / "undisturbed", fields).wait() == 0
    endure(recipe, folder / "disturbed", fields, troubles, chance)
    starts = json.loads((folder / "disturbed" / "environment.json").read_text())
    assert len(starts) > 4
    disturbed = rows(folder / "disturbed")
    for row, expected in zip(disturbed, rows(folder / "undisturbed"), strict=True):
        assert row == expected
    last = fields["num_iterations"]
    states = [test_train.saved(folder / name, last) for name in ("undisturbed", "disturbed")]
    test_train.assert_equal_states(*states)


def test_a_probe_among_troubles(tmp_path):
    fields = PROBE | {"run.compilation_cache": tmp_path / "compiled"}
    check("probe", tmp_path, fields)


def test_libero_among_troubles(tmp_path, libero_assets):
    fields = LIBERO | {"run.compilation_cache": tmp_path / "compiled", "env.assets": libero_assets}
    check("libero_spatial_ppo_pi0_tiny", tmp_path, fields)
