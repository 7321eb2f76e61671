"""Cuts tests/golden out of the full reference vectors: leaves cases and arrays out.

    python tests/golden/cut.py VECTORS [FOLDER]

Same layout and file names as the full folder.  The tables below are the rule; README.md says why.
"""

import json
import pathlib
import re
import shutil
import sys

import numpy as np

# ---- npz files: the names that stay, as a pattern for the whole name ---------------------------

# The first path component is the case in the files of rlinf/.
CASES = {
    "rlinf/a_gae.npz": r"c0[01]\d|c06\d|c08\d|edge_.*|raw_.*",
    "rlinf/b_grpo.npz": r"c0[01][02468]|c0(01|07|09|13|25)|ignore_term.*|raw_.*",
    "rlinf/c_ppo_loss.npz": (
        r"c(00[0-7]|03[2-5]|07[0-3]|11[6-9])|libero_ppo_cfg_0|ratio_one.*|decoupled_[03]|agg_.*"
        r"|reductions|masked_mean.*|huber|kl_penalty|explained_.*|micro_(0[0-7]|1[0-3])|reshape_.*"
    ),
    "rlinf/d_flow.npz": r"timesteps|.*_N3|mixed_.*|logprob_.*|gaussian_.*|noise_level_.*",
    "rlinf/d_heads.npz": (
        r"value_head_.*|noise_net_.*|value_from_suffix_.*|value_from_prefix_.*|default_.*"
        r"|value_from_vlm_pi0_libero_(mean|first|last)_token_2img"
    ),
    "rlinf/d_sampler.npz": (
        r"(sde|sde_ignore_last|sde_joint|cps|noise_joint|noise_single|ode)_N3"
        r"|sde_(anneal|chunkcritic_detach|vlm|novalue|eval)_N3|noise_eval_N3"
    ),
    "rlinf/e_rollout.npz": (
        r"loss_mask_0[0-5]|merge_.*|torch_randperm_8|ppo_pre_(00|01|02|08|09|12)"
        r"|bootstrap_[0-3][0-5]|pipeline_.*|async_.*|preprocess_.*|evaluate_.*"
    ),
    "rlinf/f_libero.npz": r".*",
    "rlinf/f_reset_ids.npz": r"train_.*_proc0|train_02_proc1|train_not_fixed|eval_0[0-4]_proc0|"
    r"interleaved_helper|eval_run_0",
    "rlinf/g_optim.npz": (r"default|const_warm|openpi_cosine|critic_warmup|nonfinite|lr_.*"),
    # Metrics of one micro-batch, gradients of the first step: those that are compared.
    "rlinf/h_e2e.npz": r"ppo_pi0_sde/(?!.*(mb[1-9]\.|step[1-9]\.grad\.))",
    "rlinf2/nft.npz": r"paper_dpo/0|mse_clip/0|tau",
    "rlinf2/nft_original.npz": r"published/0",
}
# Whole names in the files of openpi/.
NAMES = {
    "openpi/data_augment.npz": r".*",
    "openpi/data_discretize.npz": r".*",
    "openpi/data_images.npz": (
        r"resize/[269]/(in_u8|to_64x96/.*)"
        r"|convert_.*|parse_.*|from_dict/.*"
    ),
    "openpi/data_libero.npz": (
        r"(in|stats)/.*|[^/]*/(?!model_in/image/(base|left)).*|pi0_libero/model_in/image/left.*"
    ),
    "openpi/data_norm.npz": r".*",
    "openpi/data_small.npz": r"(?!posemb_sincos/.*_1024|rope/256).*",
    "openpi/model_pi0_gqa2.npz": r".*",
    # Gradients of the vision tower and the language model are in pi0_gqa2.
    "openpi/model_pi05_lora_expert_only.npz": (
        r"(?!grads/PaliGemma).*|grads/.*(norm_1/Dense_0/(kernel|bias)|lora_[ab])"
    ),
    # Parameters in bfloat16 are all that its out_bf16params need.
    "openpi/model_pi0_bf16.npz": (
        r"config_json|(params|in)/.*"
        r"|out_bf16params/(suffix|train/(v_t|loss)|compute_loss|decode|sample|siglip)(/.*)?"
    ),
    "openpi/train_pi0_tiny.npz": r".*",
    "openpi/pi0_torch_tiny/expected.npz": (
        r"config_json|in/(?!images).*|.*_out/(?!siglip/).*"
        r"|params/(?!.*(embedd|mlp/|attn/(q|attn_vec)_einsum/w)).*"
    ),
}
# Parameters rounded to bfloat16 (in float32 the low half is zero and costs nothing when packed).
ROUNDED = ("openpi/model_pi0_bf16.npz", "openpi/pi0_torch_tiny/expected.npz")
EMBEDDINGS = "params/PaliGemma/llm/embedder/input_embedding"
PIXEL_ROWS = 16  # of an augmented image, every so many-th is kept

# ---- other files: copied as they are, or cut by a function below -------------------------------

COPIED = (
    "openpi/libero_prompts.json",
    "openpi/norm_stats.json",
    "openpi/tiny_spm.model",
    "openpi/wire",
    "openpi/pi0_torch_tiny_bf16/model.safetensors",
    "openpi/orbax_pi0_tiny/3",
    "openpi/orbax_pi0_tiny/pure_bfloat16",
    "openpi/orbax_pi0_tiny/expected_params.npz",
    "openpi/orbax_pi0_tiny/tree.json",
    "openpi/orbax_pi0_lora_tiny/3",
    "openpi/orbax_pi0_lora_tiny/expected_params.npz",
    "openpi/orbax_pi0_lora_tiny/tree.json",
    "openpi/orbax_pi05_tiny/3/_CHECKPOINT_METADATA",
    "openpi/orbax_pi05_tiny/3/assets",
    "openpi/orbax_pi05_tiny/3/params",
)


def cases_json(content: dict) -> dict:
    """Of the models that stay."""
    kept = [name for name in content if f"openpi/model_{name}.npz" in NAMES]
    return {name: content[name] for name in kept}


def tokenizer_json(content: dict) -> dict:
    """Every eighth case."""
    return content | {"cases": content["cases"][::8]}


def keymap_pi0_json(content: dict) -> dict:
    """Without the tensor by tensor list, which pi0.5 has."""
    return {name: x for name, x in content.items() if name != "entries"}


def whole_json(content: dict) -> dict:
    return content


def sharding_json(content: dict) -> dict:
    """Every tenth decision."""
    return {name: _every(x, 10) for name, x in content.items()}


def _every(x, step):
    if isinstance(x, list) and len(x) > step:
        return x[::step]
    if isinstance(x, dict) and len(x) > step:
        return dict(list(x.items())[::step])
    return {name: _every(y, step) for name, y in x.items()} if isinstance(x, dict) else x


JSON = {
    "openpi/cases.json": cases_json,
    "openpi/tokenizer.json": tokenizer_json,
    "openpi/keymap_pi0.json": keymap_pi0_json,
    "openpi/keymap_pi05.json": whole_json,
    "openpi/sharding.json": sharding_json,
}

# ---- the cut -----------------------------------------------------------------------------------


def arrays(vectors: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    """What stays of one npz file."""
    with np.load(vectors / name) as file:
        if name in CASES:
            return _of_cases(file, re.compile(rf"(?:{CASES[name]})/?.*"))
        kept = [key for key in file.files if re.fullmatch(NAMES[name], key)]
        return {key: _smaller(name, key, file[key], file) for key in kept}


def _of_cases(file, pattern) -> dict[str, np.ndarray]:
    kept = {key: file[key] for key in file.files if pattern.fullmatch(key)}
    if "__cases__" in file.files:
        names = file["__cases__"].tolist()
        there = [any(key.startswith(f"{name}/") for key in kept) for name in names]
        kept["__cases__"] = file["__cases__"][there]
    if "meta" in file.files:  # rlinf2: the settings of all cases in one text
        settings = json.loads(str(file["meta"]))
        used = {key.split("/")[0] for key in kept}
        some = {name: x for name, x in settings.items() if name.split("/")[0] in used}
        kept["meta"] = np.array(json.dumps(some))
    return kept


def _smaller(name, key, x, file):
    if name in ROUNDED and key.startswith("params/"):
        x = _round_to_bfloat16(x)
    if key == EMBEDDINGS and "model_" in name:
        return _of_the_prompts(x, file["in/tokenized_prompt"])
    if name == "openpi/data_augment.npz" and key == "in_u8":
        return x * np.array([1, 0, 0], np.uint8)[:, None, None, None]
    if name == "openpi/data_augment.npz" and key.startswith("out/"):
        sparse = np.full_like(x, np.nan)
        sparse[0, ::PIXEL_ROWS] = x[0, ::PIXEL_ROWS]
        return sparse
    if name == "openpi/data_images.npz" and key.startswith("resize/") and x.ndim == 4:
        return x[:1]
    return x


def _of_the_prompts(embedding_VD, tokens):
    """Rows of other tokens, which the network never looks up, are 0."""
    kept = np.zeros_like(embedding_VD)
    used = np.unique(tokens)
    kept[used] = embedding_VD[used]
    return kept


def _round_to_bfloat16(x):
    """To the nearest, ties to even; stays float32."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def cut(vectors: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the whole subset into a folder."""
    for name in (*CASES, *NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays(vectors, name))
    for name, smaller in JSON.items():
        content = smaller(json.loads((vectors / name).read_text()))
        (folder / name).write_text(json.dumps(content, separators=(",", ":")))
    for name in COPIED:
        if (vectors / name).is_dir():
            shutil.copytree(vectors / name, folder / name, dirs_exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(vectors / name, folder / name)


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    cut(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else here)
