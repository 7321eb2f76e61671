"""Command lines that cannot be meant, of every command: each ends in one sentence and exit code 2.

The sentence names what was given and the way out, comes within a time limit, and nothing is left
behind.  What needs another user, another disk or a closed stream runs at the end, in processes of
its own.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import types

import jax
import pytest

from pirl_jax import __main__ as pirl
from pirl_jax import (
    absent,
    compare,
    convert,
    diagnose,
    doctor,
    download,
    evaluate,
    from_rlinf,
    report,
    serve,
    train,
)
from pirl_jax.bench import __main__ as bench
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import supervisor
from pirl_jax.weights import transfer

ROOT = pathlib.Path(__file__).parents[1]
LIMIT_S = 30
PROBE = "--config=probe"
QUICKSTART = "--config=quickstart"
NO_CACHE = "--config.run.compilation_cache="
LONG = "a" * 300
BYTES = "b\udcff"  # a name that is no UTF-8, as Python hands it over

RECIPES = {
    "syntax.py": "def get_config(:\n",
    "nothing.py": "x = 1\n",
    "zero.py": "1 / 0\n",
    "dict.py": "def get_config():\n    return {}\n",
    "exit.py": "import sys\n\nsys.exit(0)\n",
    "absent.py": "import a_package_that_is_not_there\n",
    "again.py": "def get_config():\n    return get_config()\n",
    "old.py": "from configs import base\n",
    "waits.py": "def get_config():\n    return input()\n",
    "file.py": "def get_config():\n    return open('a_file_that_is_not_there')\n",
    "nul.py": "x = '\0'\n",
    "deep.py": f"x = {'(' * 3000}\n",
    "field.py": "from pirl_jax.recipes import base\n\n\ndef get_config():\n"
    "    page = base.get_config()\n    page.optim.learning_rate = 3\n    return page\n",
    "kind.py": "from pirl_jax.recipes import base\n\n\ndef get_config():\n"
    "    page = base.get_config()\n    page.optim.lr = 'fast'\n    return page\n",
}
YAML = {  # of RLinf
    "broken.yaml": "actor: [1\n",
    "list.yaml": "- actor\n",
    "words.yaml": "some notes\n",
    "maniskill.yaml": "env: {train: {env_type: maniskill}}\n",
    "openvla.yaml": "actor: {model: {model_type: openvla}}\n",
    "sac.yaml": "algorithm: {loss_type: embodied_sac}\n",
    "fast.yaml": "actor: {optim: {lr: fast}}\n",
    "odd.yaml": "algorithm: {group_size: 3}\nactor: {seed: 1}\n",
    "good.yaml": "actor: {seed: 1}\n",
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory with files where folders are meant, and the like; the home beside it."""
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "home").mkdir()
    for name, text in (RECIPES | YAML).items():
        (here / name).write_text(text)
    (here / "binary.py").write_bytes(bytes(range(256)))
    (here / "folder.py").mkdir()
    (here / "file.txt").write_text("notes\n")
    (here / "folder").mkdir()
    (here / "full").mkdir()
    (here / "full" / "file").write_text("")
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PIRL_API_KEY", raising=False)
    monkeypatch.setattr(transfer, "WAIT_S", 0.001)
    # A user's machine, not the eight virtual devices of the tests.
    make = meshes.make_mesh
    one = jax.devices()[:1]
    monkeypatch.setattr(
        meshes, "make_mesh", lambda data=-1, fsdp=1, devices=None: make(data, fsdp, one)
    )
    return here


@contextlib.contextmanager
def time_limit(seconds):
    """A command that waits without end fails here."""

    def over(number, frame):
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder):
    return sorted(str(path) for path in folder.parent.rglob("*"))


def refused(main, arguments, places, capsys):
    """What the command says, after everything that holds of every refusal."""
    before = contents(places)
    capsys.readouterr()
    with time_limit(LIMIT_S), pytest.raises(SystemExit) as exit_:
        main(["pirl", *arguments])
    said = capsys.readouterr()
    assert exit_.value.code == 2, said
    lines = [line for line in said.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), said.err
    assert "Traceback" not in said.out + said.err
    assert contents(places) == before
    return lines[0]


def check(main, arguments, said, places, capsys):
    line = refused(main, arguments, places, capsys)
    for part in [said] if isinstance(said, str) else said:
        assert part in line, line


# ---- recipes: of every command that takes one --------------------------------------------------

WRONG_RECIPES = [
    ("", "--config is missing; give a recipe"),
    ("nowhere", ("--config nowhere is no file and no recipe", "quickstart")),
    ("nowhere.py", ("--config nowhere.py does not exist", "syntax.py")),
    ("folder", "--config folder is no file and no recipe"),
    ("folder.py", "--config folder.py is no file; give a Python file"),
    ("file.txt", "--config file.txt is no file and no recipe"),
    ("loop", "--config loop is no file and no recipe"),
    ("syntax.py", ("syntax.py is no Python: invalid syntax", "line 1", "mend it")),
    ("nothing.py", "nothing.py does not fit the page: it has no get_config(); write one"),
    ("zero.py", "zero.py:1 raises ZeroDivisionError: division by zero; mend it"),
    ("dict.py", "dict.py gives no page; get_config() must return base.get_config()"),
    ("exit.py", "exit.py:3 raises SystemExit: 0; mend it"),
    ("absent.py", "absent.py:1 raises ModuleNotFoundError: No module named"),
    ("again.py", "again.py:2 raises RecursionError"),
    ("old.py", "old.py:1 imports configs, which is now pirl_jax.recipes; write"),
    ("waits.py", "waits.py:2 raises"),
    ("file.py", ("file.py:2 raises FileNotFoundError", "a_file_that_is_not_there", "mend it")),
    ("nul.py", "nul.py is no Python: source code string cannot contain null bytes; mend it"),
    ("binary.py", "binary.py is no Python"),
    ("deep.py", "deep.py is no Python: too many nested parentheses"),
    ("field.py", ("field.py:6 does not fit the page", "learning_rate")),
    ("kind.py", ("kind.py:6 does not fit the page", "lr")),
    (f"{LONG}.py", f"{LONG[:60]}... is longer than a path may be; write a shorter one"),
    ("~nobody_of_this_name/x.py", "~nobody_of_this_name/x.py names a user that is not known"),
    ("nul\0.py", r"'nul\x00.py' has characters that cannot be printed; rename it"),
    (f"{BYTES}.py", "has characters that cannot be printed; rename it"),
    ("nowhere.yaml", "nowhere.yaml is no file; give the YAML that RLinf is started with"),
    ("broken.yaml", ("broken.yaml is no YAML", "give the YAML that RLinf is started with")),
    ("maniskill.yaml", "env.train.env_type='maniskill' is another environment; translated is"),
    ("sac.yaml", "algorithm.loss_type='embodied_sac' is another algorithm; translated is"),
    (f"{BYTES}.yaml", "has characters that cannot be printed; rename it"),
]
WITH_RECIPES = {
    "train": train.main,
    "evaluate": evaluate.main,
    "serve": serve.main,
}


@pytest.mark.parametrize("command", WITH_RECIPES)
@pytest.mark.parametrize("recipe, said", WRONG_RECIPES, ids=[r[:12] for r, _ in WRONG_RECIPES])
def test_recipes_that_are_none(command, recipe, said, places, capsys):
    if recipe.endswith("yaml"):
        pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    check(WITH_RECIPES[command], [f"--config={recipe}"], said, places, capsys)


# ---- train -------------------------------------------------------------------------------------

WRONG_FIELDS = [
    ("optim.lr=abc", "optim.lr=abc must be a number"),
    ("optim.lr=nan", "optim.lr=nan must be finite"),
    ("optim.lr=inf", "optim.lr=inf must be finite"),
    ("optim.lr=-1", "optim.lr=-1.0 must be at least 0"),
    ("optim.lr=", "optim.lr= must be a number"),
    ("num_iterations=-5", "num_iterations=-5 must be at least 0"),
    ("num_iterations=1.5", "num_iterations=1.5 must be a whole number"),
    ("seed=-1", "seed=-1 must be at least 0"),
    ("env.suite=libero", "env.suite='libero' does not exist; choose one of"),
    ("env.tasks=a", "env.tasks"),
    ("env.tasks=-1,", "env.tasks=(-1,) must hold task indices"),
    ("env.tasks=7,", "env.tasks has 7; suite 'probe_conditioned' has tasks 0 to 0"),
    ("run.wandb=maybe", "run.wandb=maybe must be True or False"),
    ("nothing=1", "--config.nothing is no field of the configuration; it has"),
    ("optim.rate=1", "--config.optim.rate is no field of the configuration"),
    ("optim=1", "--config.optim is no field of the configuration"),
    ("optim.lr.x=1", "--config.optim.lr.x is no field of the configuration"),
    ("run.directory=", "run.directory='' must be text and not empty"),
    ("run.directory=/proc/pirl/run", ("run.directory=/proc/pirl/run cannot be", "choose another")),
    ("run.directory=file.txt", ("file.txt cannot be written (Not a directory", "choose another")),
    ("run.directory=file.txt/run", ("file.txt/run cannot be written (Not a", "choose another")),
    ("run.directory=loop", ("loop cannot be written (Too many levels", "choose another")),
    ("run.directory=dangling", ("dangling cannot be written", "choose another")),
    (f"run.directory={LONG}", "run.directory: aaa"),
    ("run.directory=~nobody_of_this_name/x", "run.directory: ~nobody_of_this_name/x names a user"),
    ("run.directory=a\0b", "run.directory: 'a\\x00b' has characters that cannot be printed"),
    (f"run.directory={BYTES}", "run.directory: 'b\\udcff' has characters that cannot be"),
    ("run.directory=a\nb", "run.directory: 'a\\nb' has characters that cannot be printed"),
    ("run.compilation_cache=file.txt", "run.compilation_cache="),
    ("run.compilation_cache=/proc/pirl", "run.compilation_cache=/proc/pirl cannot be written"),
    ("model.checkpoint=nowhere", "nowhere; give a run directory, or a checkpoint"),
    ("model.checkpoint=folder", "folder"),
    ("model.checkpoint=file.txt", "file.txt"),
    ("model.norm_stats=nowhere", "nowhere; give the norm_stats.json"),
    (
        "model.norm_stats=folder",
        "folder is a folder and should be a file; give the norm_stats.json",
    ),
    ("model.norm_stats=", "needs model.norm_stats"),
    ("model.tokenizer=nowhere", "nowhere; put PaliGemma's"),
    ("model.tokenizer=folder", "folder is a folder and should be a file; put PaliGemma's"),
    ("model.tokenizer=", "model.tokenizer is empty; set it to the path"),
    ("model.max_token_len=5", "set model.max_token_len to at least 17"),
    ("model.image_size_px=17", "model.image_size_px=17 must be a multiple of the patch of 8 px"),
    ("model.preset=pi05_libero", "model.preset='pi05_libero' has model.pi05=True, "),
    ("model.noise_level=1e-30", ("model.noise_level=1e-30 explores nothing", "at least 1e-06")),
    ("model.noise_method=flow_ode", "explores nothing, so there is nothing to learn; use flow_sde"),
    ("algorithm.critic_warmup_iterations=40", "=40 leaves no iteration of num_iterations=40"),
    ("mesh.fsdp=3", "mesh.fsdp=3 does not divide the 1 devices; choose a divisor"),
    ("mesh.data=2", "mesh.data=2 x mesh.fsdp=1 needs 2 devices but there are 1; set mesh.data=1"),
    ("rollout.num_envs=33", "rollout.num_envs=33 must be a multiple of rollout.num_groups=2"),
    ("eval.episodes_per_task=3", "eval.episodes_per_task=3 exceeds the 2 start states"),
    ("algorithm.adv_type=grpo", "set model.add_value_head=False"),
    ("model.action_chunk=6", "model.action_chunk=6 exceeds model.action_horizon=5"),
]


@pytest.mark.parametrize("field, said", WRONG_FIELDS, ids=[f[:40] for f, _ in WRONG_FIELDS])
def test_fields_of_a_recipe(field, said, places, capsys):
    cache = [] if "compilation_cache" in field else [NO_CACHE]
    check(train.main, [PROBE, f"--config.{field}", *cache], said, places, capsys)


TOGETHER = [
    ("algorithm.clip_ratio_low=0 algorithm.clip_ratio_high=0", "set one of them above 0"),
    ("model.noise_anneal=True model.noise_method=flow_noise", "model.noise_anneal=True has no"),
    (
        "model.noise_anneal=True model.noise_params=0.5,1e-9,10",
        "model.noise_params=1e-09 explores nothing",
    ),
    ("num_iterations=2 algorithm.critic_warmup_iterations=2", "set num_iterations to more"),
    ("model.paligemma_variant=small model.action_expert_variant=dummy", "must agree; it is"),
    ("optim.schedule=cosine optim.warmup_steps=5", "must exceed optim.warmup_steps=5"),
]


@pytest.mark.parametrize("fields, said", TOGETHER, ids=[f for f, _ in TOGETHER])
def test_fields_that_contradict_each_other(fields, said, places, capsys):
    arguments = [f"--config.{field}" for field in fields.split()]
    check(train.main, [PROBE, *arguments, NO_CACHE], said, places, capsys)


TRAIN = [
    (["--resume=maybe"], "invalid choice: 'maybe'"),
    (["--resume=never", "--resume=auto"], "--resume is given twice, with different values"),
    (["--config", "quickstart"], "--config is given twice, with different values; give it once"),
    (["--hosts=nonsense"], "--hosts=nonsense is no address; give ADDRESS:PORT,COUNT,INDEX"),
    (["--hosts=a:1,2,5"], "--hosts=a:1,2,5 is no address"),
    (["--hosts=localhost:99999,2,0"], "--hosts=localhost:99999,2,0 cannot be used (a port is at"),
    (["--nothing"], "--nothing is no option; pirl train --help lists the arguments"),
    (["--resme=auto"], "--resme is no option, did you mean --resume?"),
    (["stray"], "argument 'stray' belongs to no option, write --name=value"),
    (["--resume"], "argument --resume: expected one argument"),
    (["--config.optim.lr"], "optim.lr"),
    (["--plan-only", "--target=cuda:h100:1", "--output=full"], "full is a folder; give the path"),
]


@pytest.mark.parametrize("arguments, said", TRAIN, ids=[" ".join(a) for a, _ in TRAIN])
def test_flags_of_train(arguments, said, places, capsys):
    check(train.main, [PROBE, NO_CACHE, *arguments], said, places, capsys)


# ---- evaluate and serve ------------------------------------------------------------------------

EVALUATE = [
    ([], "--checkpoint is missing; give the directory of a run"),
    (["--checkpoint="], "an empty path names nothing; write one, or leave it out"),
    (["--checkpoint=nowhere"], "nowhere; give a run directory"),
    (["--checkpoint=file.txt"], "file.txt"),
    (["--checkpoint=folder"], "folder"),
    (["--checkpoint=loop"], "loop"),
    (["--checkpoint=a", "--checkpoint=b"], "--checkpoint is given twice, with different values"),
    (["--policy=nope"], "--policy='nope' does not exist; choose one of: checkpoint, random"),
    (["--policy="], "--policy='' does not exist; choose one of"),
    (["--policy=expert"], "has no scripted expert; evaluate --policy=random"),
    (["--policy=ws://127.0.0.1:1"], "--policy=ws://127.0.0.1:1 cannot be reached"),
    (["--policy=ws://nobody.invalid:8000"], "--policy=ws://nobody.invalid:8000 cannot be reached"),
    (["--policy=ws://"], "--policy=ws://"),
    (["--policy=ws://127.0.0.1:port"], "--policy=ws://127.0.0.1:port"),
    (["--policy=ws://u:hush@127.0.0.1:1"], "--policy=ws://127.0.0.1:1 cannot be reached"),
    (["--policy=random", "--iteration=-5"], "'-5' must be a whole number and at least -1"),
    (["--policy=random", "--iteration=new"], "'new' must be a whole number and at least -1"),
    (["--policy=random", "--iteration=1.5"], "'1.5' must be a whole number"),
    (["--policy=random", "--output=file.txt"], "file.txt cannot be written (Not a directory"),
    (["--policy=random", "--output=/proc/x"], "--output=/proc/x cannot be written"),
    (["--policy=random", "--output="], "argument --output: an empty path"),
    (["--policy=random", "--videos=some"], "--videos=some is no choice of episodes; give all"),
    (["--policy=random", "--videos="], "argument --videos: '' is no text"),
    (["--policy=random", "--api-key="], "argument --api-key: a key has printable ASCII"),
    (["--policy=random", "--api-key=a b"], "argument --api-key: a key has printable ASCII"),
    (["--policy=random", "--api-key", "a\r\nHost: b"], "argument --api-key: a key has printable"),
    (["--policy=random", "--config.eval.num_envs=-1"], "eval.num_envs=-1 must be at least 0"),
]


@pytest.mark.parametrize("arguments, said", EVALUATE, ids=[" ".join(a)[:60] for a, _ in EVALUATE])
def test_flags_of_evaluate(arguments, said, places, capsys):
    check(evaluate.main, [PROBE, NO_CACHE, *arguments], said, places, capsys)


def test_the_place_of_results_is_looked_at_before_anything_is_loaded(places, capsys, monkeypatch):
    """By default it lies in the run; a stand-in that is called would not know its arguments."""
    monkeypatch.setattr(evaluate, "_network", None)
    run = places / "run"
    (run / "checkpoints" / "1" / "state").mkdir(parents=True)
    (run / "checkpoints" / "1" / "state" / "_METADATA").touch()
    (run / "evaluation").write_text("")
    said = "run/evaluation cannot be written (Not a directory"
    check(evaluate.main, [PROBE, "--checkpoint=run"], said, places, capsys)


SERVE = [
    ([], "--checkpoint is missing; give the directory of a run"),
    (["--port=-1"], "--port=-1 must lie between 0 and 65535"),
    (["--port=70000"], "--port=70000 must lie between 0 and 65535"),
    (["--port=http"], "argument --port: invalid int value: 'http'"),
    (["--port=TAKEN"], ("cannot be used", "choose others, or --port=0 for any free one")),
    (["--host=nobody.invalid"], ("--host=nobody.invalid --port=8000 cannot be used", "choose")),
    (["--host=192.0.2.1"], ("--host=192.0.2.1 --port=8000 cannot be used", "choose others")),
    (["--host="], "argument --host: '' is no text"),
    (["--max-batch=0"], "--max-batch=0 must be at least 1"),
    (["--max-batch=1000000000"], "--max-batch=1000000000 must be at least 1 and at most 4096"),
    (["--max-batch=x"], "argument --max-batch: invalid int value: 'x'"),
    (["--window-ms=-1"], "--window-ms=-1.0 must be a time of at least 0"),
    (["--window-ms=nan"], "--window-ms=nan must be a time of at least 0"),
    (["--window-ms=1e30"], "--window-ms=1e+30 must be a time of at least 0 and at most 60000"),
    (["--api-key="], "argument --api-key: a key has printable ASCII"),
    (["--iteration=-5"], "'-5' must be a whole number and at least -1"),
    (["--checkpoint=nowhere"], "nowhere; give a run directory"),
    (["--checkpoint=file.txt"], "file.txt"),
    (["--checkpoint=folder"], "folder"),
]


@pytest.mark.parametrize("arguments, said", SERVE, ids=[" ".join(a) for a, _ in SERVE])
def test_flags_of_serve(arguments, said, places, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [argument.replace("TAKEN", str(port)) for argument in arguments]
        free = [] if any("--port" in argument for argument in arguments) else ["--port=0"]
        if any("--host" in argument for argument in arguments):
            free = []
        check(serve.main, [PROBE, NO_CACHE, *free, *arguments], said, places, capsys)


# ---- convert, download, doctor, compare --------------------------------------------------------

CONVERT = [
    ([], "the following arguments are required: SRC, DST, --to"),
    (["nowhere", "--to=pirl"], "the following arguments are required: DST"),
    (["nowhere", "out"], "the following arguments are required: --to"),
    (["nowhere", "out", "--to=onnx"], "invalid choice: 'onnx'"),
    (["nowhere", "out", "--to=pirl"], "nowhere; give a run directory"),
    (["file.txt", "out", "--to=pirl"], "file.txt"),
    (["folder", "out", "--to=pirl"], "folder"),
    (["", "out", "--to=pirl"], "argument SRC: an empty path names nothing"),
    (["folder", "", "--to=pirl"], "argument DST: an empty path names nothing"),
    (["folder", "a\0b", "--to=pirl"], "argument DST: 'a\\x00b' has characters"),
    (["folder", LONG, "--to=pirl"], "argument DST: aaa"),
    (["folder", "out", "--to=pirl", "--dtype=float16"], "invalid choice: 'float16'"),
    (["folder", "out", "--to=pirl", "--lora-scale=0"], "'0' must be a number and at least"),
    (["folder", "out", "--to=pirl", "--lora-scale=nan"], "'nan' must be a number and at least"),
    (["folder", "out", "--to=pirl", "--lora-scale=x"], "'x' must be a number and at least"),
    (["folder", "out", "--to=pirl", "--asset-id="], "argument --asset-id: '' is no text"),
    (["folder", "out", "more", "--to=pirl"], "argument 'more' belongs to no option"),
]
CONVERT_TO = [  # with a source that would do
    ("file.txt", "file.txt is a file; give a new folder"),
    ("full", "full is not empty; give a new folder"),
    ("/proc/x", "DST=/proc/x cannot be written (No such file or directory: /proc); choose another"),
    ("file.txt/out", "file.txt/out cannot be written (Not a directory: "),
    ("loop", "loop cannot be written (Too many levels of symbolic links: "),
]


@pytest.mark.parametrize("arguments, said", CONVERT, ids=[" ".join(a)[:60] for a, _ in CONVERT])
def test_flags_of_convert(arguments, said, places, capsys):
    check(convert.main, arguments, said, places, capsys)


@pytest.mark.parametrize("to, said", CONVERT_TO, ids=[to for to, _ in CONVERT_TO])
def test_where_convert_writes(to, said, places, capsys, monkeypatch):
    source = types.SimpleNamespace(cfg=None)
    monkeypatch.setattr(convert, "prepare", lambda *_: source)
    check(convert.main, ["folder", to, "--to=pirl"], said, places, capsys)


DOWNLOAD = [
    ([], "the following arguments are required: name"),
    ([""], "invalid choice: ''"),
    (["pi1_base"], "invalid choice: 'pi1_base'"),
    (["pi0_base", "--hub=nowhere"], "invalid choice: 'nowhere'"),
    (["pi0_base", "--hub=modelscope"], "pi0_base is not on modelscope; it is on google"),
    (["assets", "--hub=google"], "assets is not on google; it is on huggingface"),
    (["pi0_base", "--to="], "argument --to: an empty path names nothing"),
    (["pi0_base", "--to=file.txt"], "file.txt cannot be written (Not a directory"),
    (["pi0_base", "--to=/proc/x"], "--to=/proc/x cannot be written"),
    (["assets", "--to=file.txt"], "file.txt cannot be written (Not a directory"),
    (["paligemma_tokenizer", "--to=folder"], ("downloading paligemma_tokenizer failed", "again")),
    (["RLinf-Pi05-LIBERO-SFT", "--hub=modelscope", "--to=folder"], "run it again to continue"),
]


@pytest.mark.parametrize("arguments, said", DOWNLOAD, ids=[" ".join(a) for a, _ in DOWNLOAD])
def test_flags_of_download(arguments, said, places, capsys, monkeypatch):
    """Where a server is asked, nobody answers."""
    nobody = "http://127.0.0.1:1"
    for name in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, nobody)
    monkeypatch.delenv("PIRL_LIBERO_ASSETS", raising=False)
    if arguments[:1] == ["assets"]:
        pytest.importorskip("libero", reason="libero is not installed")
    check(download.main, arguments, said, places, capsys)


DOCTOR = [
    (["--num-envs=-4"], "argument --num-envs: '-4' must be a whole number and at least 1"),
    (["--num-envs=0"], "argument --num-envs: '0' must be a whole number and at least 1"),
    (["--num-envs=1.5"], "argument --num-envs: '1.5' must be a whole number"),
    (["--num-envs=nan"], "argument --num-envs: 'nan' must be a whole number"),
    (["--num-workers=-1"], "argument --num-workers: '-1' must be a whole number"),
    (["--image-size-px=0"], "argument --image-size-px: '0' must be a whole number"),
    (["--assets="], "argument --assets: an empty path names nothing"),
    (["--full=yes"], "argument --full: ignored explicit argument 'yes'"),
    (["stray"], "argument 'stray' belongs to no option"),
    (["--num-envs=2", "--num-envs=3"], "--num-envs is given twice"),
    (["--config=absent"], "--config absent is no file and no recipe of this package"),
    (["--config=probe", "--config.env.x=1"], "--config.env.x is no field of the configuration"),
    (["--config.seed=1"], "--config is missing; give a recipe"),
]


@pytest.mark.parametrize("arguments, said", DOCTOR, ids=[" ".join(a) for a, _ in DOCTOR])
def test_flags_of_doctor(arguments, said, places, capsys):
    check(doctor.main, arguments, said, places, capsys)


COMPARE = [
    ([], "the following arguments are required: runs, --output"),
    (["folder"], "the following arguments are required: --output"),
    (["--output=out"], "the following arguments are required: runs"),
    (["nowhere", "--output=out"], "nowhere holds no evaluation/after; give directories of"),
    (["folder", "--output=out"], "folder holds no evaluation/after; give directories of"),
    (["file.txt", "--output=out"], "file.txt holds no evaluation/after; give directories of"),
    (["", "--output=out"], "argument runs: an empty path names nothing"),
    (["folder", "--output="], "argument --output: an empty path names nothing"),
    (["folder", "--output=file.txt/x"], "--output="),
    (["folder", "--output=/proc/x/y"], "--output=/proc/x cannot be written"),
]


@pytest.mark.parametrize("arguments, said", COMPARE, ids=[" ".join(a) for a, _ in COMPARE])
def test_flags_of_compare(arguments, said, places, capsys):
    check(compare.main, arguments, said, places, capsys)


DIAGNOSE = [
    ([], "the following arguments are required: run"),
    (["nowhere"], "nowhere is no file; give the directory of a run"),
    (["folder"], "metrics.jsonl is no file; give the directory of a run"),
    (["", "--output=out"], "argument run: an empty path names nothing"),
    (["folder", "--output="], "argument --output: an empty path names nothing"),
    (["folder", "--output=/proc/x/y"], "--output=/proc/x cannot be written"),
    (["folder", "--output=full"], "full is a folder; give the path of a file"),
]


@pytest.mark.parametrize("arguments, said", DIAGNOSE, ids=[" ".join(a) for a, _ in DIAGNOSE])
def test_flags_of_diagnose(arguments, said, places, capsys):
    check(diagnose.main, arguments, said, places, capsys)


REPORT = [
    ([], "the following arguments are required: RUN|EVALUATION, --output"),
    (["folder"], "the following arguments are required: --output"),
    (["nowhere", "--output=out.html"], "nowhere holds neither a run nor an evaluation; give"),
    (["folder", "--output=out.html"], "folder holds neither a run nor an evaluation; give"),
    (["file.txt", "--output=out.html"], "file.txt holds neither a run nor an evaluation; give"),
    (["loop", "--output=out.html"], "loop holds neither a run nor an evaluation; give"),
    (["", "--output=out.html"], "argument RUN|EVALUATION: an empty path names nothing"),
    (["folder", "--output="], "argument --output: an empty path names nothing"),
    (["folder", "--output=full"], "full is a folder; give the path of a file"),
    (["folder", "--output=/proc/x/y"], "--output=/proc/x cannot be written"),
    (["folder", "--output=x", "--video-mb=-1"], "argument --video-mb: '-1' must be a whole number"),
]


@pytest.mark.parametrize("arguments, said", REPORT, ids=[" ".join(a) for a, _ in REPORT])
def test_flags_of_report(arguments, said, places, capsys):
    check(report.main, arguments, said, places, capsys)


FROM_RLINF = [
    ([], "the following arguments are required: config"),
    (["nowhere.yaml"], "nowhere.yaml is no file; give the YAML that RLinf is started with"),
    (["full"], "full is a folder and should be a file; give the YAML"),
    ([""], "argument config: an empty path names nothing"),
    (["binary.py", "--output=x.py"], "binary.py is no UTF-8 text"),
    (["broken.yaml"], "broken.yaml is no YAML (while parsing a flow sequence"),
    (["list.yaml"], "list.yaml is YAML of a list and should have sections"),
    (["words.yaml"], "words.yaml has none of the sections actor, algorithm, cluster"),
    (["maniskill.yaml"], "env.train.env_type='maniskill' is another environment; translated is"),
    (["openvla.yaml"], "actor.model.model_type='openvla' is another model; translated is: openpi"),
    (["sac.yaml"], "algorithm.loss_type='embodied_sac' is another algorithm; translated is"),
    (["fast.yaml"], "actor.optim.lr='fast' fits no field: optim.lr='fast' must be a number"),
    (["odd.yaml"], ("odd.yaml: rollout.episodes_per_iteration=512 must be", "group_size=3")),
    (["good.yaml", "--output="], "argument --output: an empty path names nothing"),
    (["good.yaml", "--output=x.txt"], "x.txt is no recipe; give a name that ends in .py"),
    (["good.yaml", "--output=folder.py"], "folder.py is a folder; give the path of a file"),
    (["good.yaml", "--output=zero.py"], "zero.py holds something else; choose another name"),
    (["good.yaml", "--output=file.txt/x.py"], "file.txt cannot be written (Not a directory"),
    (["good.yaml", "--output=/proc/x/y.py"], "--output=/proc/x cannot be written"),
]


@pytest.mark.parametrize("arguments, said", FROM_RLINF, ids=[" ".join(a) for a, _ in FROM_RLINF])
def test_flags_of_from_rlinf(arguments, said, places, capsys):
    pytest.importorskip("omegaconf", reason="omegaconf is not installed")
    check(from_rlinf.main, arguments, said, places, capsys)


# ---- bench and pirl ----------------------------------------------------------------------------

BENCH = [
    ([], "the following arguments are required: benchmark"),
    (["sleep"], "invalid choice: 'sleep'"),
    (["env", "--tasks=lift"], "--tasks has 'lift'; write suite:task"),
    (["env", "--tasks=libero_object:99"], "--tasks has 'libero_object:99'; write suite:task"),
    (["env", "--tasks="], "--tasks has ''; write suite:task"),
    (["env", "--workers=two"], "--workers=two has 'two'; write numbers from 1"),
    (["env", "--workers=-1"], "--workers=-1 has '-1'; write numbers from 1"),
    (["env", "--workers=0"], "--workers=0 has '0'; write numbers from 1"),
    (["env", "--workers=1000000"], "--workers=1000000 has '1000000'; write numbers from 1"),
    (["env", "--image-size=0"], "argument --image-size: '0' must be a whole number"),
    (["env", "--assets=nowhere"], "nowhere (needed: "),
    (["env", "--repeats=0"], "argument --repeats: '0' must be a whole number and at least 1"),
    (["plan", "--repeats=-3"], "argument --repeats: '-3' must be a whole number and at least 1"),
    (["plan", "--recipes=nowhere"], "--recipes nowhere is no file and no recipe"),
    (["plan", "--recipes="], "--recipes is missing; give a recipe"),
    (["plan", "--recipes=probe"], "--recipes has probe, whose env.suite='probe_conditioned'"),
    (["plan", "--recipes=zero.py"], "zero.py:1 raises ZeroDivisionError"),
    (["plan", "--limit-gb=nan"], "argument --limit-gb: 'nan' must be a number"),
    (["plan", "--limit-gb=inf"], "argument --limit-gb: 'inf' must be a number"),
    (["plan", "--limit-gb=-1"], "argument --limit-gb: '-1' must be a number"),
    (["plan", "--prompt-tokens=0"], "argument --prompt-tokens: '0' must be a whole number"),
    (["plan", "--output=folder"], "folder is a folder; give the path of a file"),
    (["plan", "--output=file.txt/x.json"], "file.txt cannot be written (Not a directory"),
    (["plan", "--output=/proc/x/y.json"], "--output=/proc/x cannot be written"),
    (["plan", "--output="], "argument --output: an empty path names nothing"),
    (["targets"], "--output is missing; rows are written there one by one"),
    (["targets", "--output=x.json", "--targets=tpu:v9:1"], "--target='tpu:v9:1' does not exist"),
    (["targets", "--output=x.json", "--recipes=nowhere"], "--recipes nowhere is no file and no"),
    (["targets", "--output=file.txt", "--resume"], "file.txt is no JSON"),
    (["update", "--batch=0"], "argument --batch: '0' must be a whole number and at least 1"),
    (["rollout", "--batch=-1"], "argument --batch: '-1' must be a whole number and at least 1"),
    (["latency", "--size=huge"], "invalid choice: 'huge'"),
    (["latency", "--recipes=nowhere"], "--recipes nowhere is no file and no recipe"),
    (["end2end", "--iterations=1"], "argument --iterations: '1' must be a whole number"),
    (["end2end", "--recipe=nowhere"], "--recipe nowhere is no file and no recipe"),
    (["end2end", "--set=nothing=1"], "--config.nothing is no field of the configuration"),
    (["end2end", "--set=optim.lr=x"], "optim.lr=x must be a number"),
]


@pytest.mark.parametrize("arguments, said", BENCH, ids=[" ".join(a) for a, _ in BENCH])
def test_flags_of_bench(arguments, said, places, capsys):
    if arguments == ["env", "--assets=nowhere"]:
        pytest.importorskip("libero", reason="libero is not installed")
    check(bench.main, arguments, said, places, capsys)


@pytest.mark.parametrize("name", ["trian", "", "--version", "train ", "TRAIN"])
def test_commands_that_are_none(name, places, capsys):
    check(pirl.main, [name], f"{name!r} is no command; pirl has: train, ", places, capsys)


def test_a_python_without_the_packages_is_a_sentence(places, capsys, monkeypatch):
    def absent(module):
        raise ModuleNotFoundError("No module named 'absl'", name="absl.flags")

    monkeypatch.setattr(pirl.importlib, "import_module", absent)
    said = f"the package 'absl' is not installed for {sys.executable}"
    check(pirl.main, ["doctor"], said, places, capsys)

    def broken(module):
        raise ModuleNotFoundError("No module named 'pirl_jax.x'", name="pirl_jax.x")

    monkeypatch.setattr(pirl.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):  # ours: a bug keeps its traceback
        pirl.main(["pirl", "doctor"])


# What people start; those of envs/ answer their parent.
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
    for path in (ROOT / "pirl_jax").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and "envs" not in path.parts
)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_that_is_started_without_the_packages_has_a_traceback(module, tmp_path):
    """-S: no package but the standard library's."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", module, "train"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    said = done.stderr
    assert said.startswith("error: the package '") and said.endswith(f"{absent.REMEDY}\n")
    assert said.count("\n") == 1


# ---- while a command works -----------------------------------------------------------------------


def _working(monkeypatch, command, raised):
    """A command whose preparations are over, and whose work raises."""

    def work(*args, **kwargs):
        raise raised

    if command is train:
        monkeypatch.setattr(train.training, "prepare", lambda *args: None)
        monkeypatch.setattr(train.divergence, "Guard", lambda run: None)
        monkeypatch.setattr(train, "learn", work)
    else:
        monkeypatch.setattr(evaluate, "prepare", lambda *args: None)
        monkeypatch.setattr(evaluate, "measure", work)


@pytest.mark.parametrize("command", [train, evaluate])
def test_a_full_disk_at_work_is_a_sentence(command, places, capsys, monkeypatch):
    _working(monkeypatch, command, OSError(28, "No space left on device", "/runs/x/metrics.jsonl"))
    said = "/runs/x/metrics.jsonl: No space left on device; make space or choose another place"
    check(command.main, [PROBE, NO_CACHE], said, places, capsys)


@pytest.mark.parametrize("command", [train, evaluate])
def test_simulators_that_fail_are_a_sentence_below_their_stack(command, capsys, monkeypatch):
    what = "died without a word (signal 11, SIGSEGV)\n  a stack\nfirst of 4 failures"
    _working(monkeypatch, command, supervisor.EnvError(3, 1, 7, what))
    with pytest.raises(SystemExit) as exit_:
        command.main(["pirl", PROBE, NO_CACHE])
    *details, last = capsys.readouterr().err.rstrip().splitlines()
    assert exit_.value.code == 2 and details == ["  a stack", "first of 4 failures"]
    assert last.startswith("error: env 3 (task 1, init state 7) died without a word (signal 11")
    assert last.endswith("or raise env.restarts_per_hour")


@pytest.mark.parametrize("command", [train, evaluate])
@pytest.mark.parametrize("bug", [RuntimeError, ValueError, KeyError, AssertionError])
def test_a_bug_at_work_keeps_its_traceback(command, bug, places, monkeypatch):
    _working(monkeypatch, command, bug("a mistake of ours"))
    with pytest.raises(bug, match="a mistake of ours"):
        command.main(["pirl", PROBE, NO_CACHE])


# ---- in processes of their own -------------------------------------------------------------------


def process(arguments, where, before=(), **options):
    """What a command says as a process; it may be started by another, such as unshare."""
    argv = [*before, sys.executable, "-m", "pirl_jax", *arguments]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    variables.pop("XLA_FLAGS", None)
    done = subprocess.run(
        argv,
        cwd=where,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.slow
def test_nobody_answers_on_a_closed_terminal(places):
    """A recipe that asks a question; standard input and output are closed."""
    closed = ["bash", "-c", 'exec "$0" "$@" <&- >&-']
    said = process(["train", "--config=waits.py"], places, closed)
    assert "waits.py:2 raises" in said and "mend it" in said


@pytest.mark.slow
def test_a_name_that_is_no_text(places):
    name = os.fsdecode(b"r\xff.py")
    (places / name).write_text("x = 1\n")
    assert "has characters that cannot be printed" in process(["train", f"--config={name}"], places)


IN_PLACE = {
    "train": ["train", PROBE, NO_CACHE, "--config.run.directory=here/run"],
    "the cache": ["train", PROBE, "--config.run.compilation_cache=here/cache"],
    "evaluate": ["evaluate", PROBE, NO_CACHE, "--policy=random", "--output=here/out"],
    "compare": ["compare", "run", "--output=here/sheet"],
    "diagnose": ["diagnose", "run", "--output=here/diagnosis.json"],
    "report": ["report", "run", "--output=here/page.html"],
    "bench": ["bench", "plan", "--output=here/plan.json"],
    "download": ["download", "pi0_base", "--to=here/weights"],
    "from-rlinf": ["from-rlinf", "config.yaml", "--output=here/recipe.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_no_command_begins_where_it_cannot_write(arguments, disk, tmp_path):
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    (tmp_path / "here").mkdir()
    mounts = {
        "read-only": "mount --bind here here && mount -o remount,ro,bind here",
        "full": "mount -t tmpfs -o size=64k tmpfs here; cat /dev/zero >here/fill 2>/dev/null; true",
    }
    may = ["unshare", "-m", "bash", "-c", mounts[disk]]
    if subprocess.run(may, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    mounted = ["unshare", "-m", "bash", "-c", f'{{ {mounts[disk]}; }} && exec "$0" "$@"']
    reason = {"read-only": "Read-only file system", "full": "No space left on device"}[disk]
    said = process(arguments, tmp_path, mounted)
    assert f"cannot be written ({reason}: {tmp_path / 'here'}); choose another place" in said


@pytest.mark.slow
def test_a_port_that_only_root_may_take(places):
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("being somebody else needs root and setpriv")
    taking = "import pirl_jax, socket; socket.create_server(('127.0.0.1', 80)).close()"
    may = [*other, sys.executable, "-c", taking]
    done = subprocess.run(may, cwd=ROOT, capture_output=True, text=True, check=False)
    if "Permission denied" not in done.stderr or "socket" not in done.stderr:
        pytest.skip("here everybody may take port 80, or another user cannot read this checkout")
    said = process(["serve", PROBE, "--port=80"], "/", other)
    assert "--port=80 cannot be used ([Errno 13] Permission denied); choose others" in said


def test_there_are_as_many_as_an_audit_of_them_had():
    tables = (WRONG_FIELDS, TOGETHER, TRAIN, EVALUATE, SERVE, CONVERT, CONVERT_TO, DOWNLOAD)
    tables = (
        *tables,
        DOCTOR,
        COMPARE,
        DIAGNOSE,
        FROM_RLINF,
        BENCH,
        WRONG_RECIPES,
        WRONG_RECIPES,
        WRONG_RECIPES,
    )
    assert sum(map(len, tables)) >= 115
