"""What the metrics of an update's minibatches come to.  Refuses to know what was learned."""

import jax
import numpy as np

from pirl_jax.core import page
from pirl_jax.rl import losses
from pirl_jax.rl import nft as nft_losses


def of_update(history: list[dict], cfg: page.Algorithm) -> dict[str, float]:
    """Means over the minibatches, with four exceptions.

    These are the largest ratio_max_dev, or delta_v of NFT, and the first one (rounding noise if
    sampling and learning agree), the numbers of skipped updates and of those whose gradient was not
    finite, and one explained variance of all rows.
    """
    metrics = {}
    for name in history[0]:
        metrics[name] = np.stack([row[name] for row in history])
    variance_sums = metrics.pop("variance_sums").astype(np.float64).sum(0)
    skipped = metrics.pop("skipped")
    means = {name: float(x.mean()) for name, x in metrics.items()}
    if "delta_v" in metrics:
        means = nft_losses.over_parts(means)
    summary = {f"actor/{name}": x for name, x in means.items()}
    if cfg.uses_critic:
        summary["critic/explained_variance"] = losses.explained_variance(variance_sums)
    for name in ("ratio_max_dev", "delta_v"):
        if name in metrics:
            summary[f"actor/{name}"] = float(metrics[name].max())
            summary[f"actor/first_{name}"] = float(metrics[name][0])
    return summary | {
        "actor/skipped_updates": float(skipped.sum()),
        "actor/nonfinite_updates": float((~np.isfinite(metrics["grad_norm"])).sum()),
        "actor/updates": float(len(history)),
    }


def mean_kl(history: list[dict]) -> float:
    """Of approx_kl3: on a finite batch k1 can be negative at any distance."""
    return np.mean(jax.device_get([metrics["approx_kl3"] for metrics in history]))
