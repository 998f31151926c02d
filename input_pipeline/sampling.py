"""Which image comes when: uniform epochs, class-balanced runs as released, rare-class draws, or CBST's mining.

The positions of a stream are cut into runs; the order of each is a function of its key and number alone, so that a
stream starts anywhere without replaying what came before.
"""

from __future__ import annotations

import numpy as np

from fada_jax.errors import UserError

KINDS = ("uniform", "balanced", "rare", "mined")
# Images of a run that is no epoch: the released code forgets the frequencies so far after as many.
RUN = 3_000
# CBST's mining (Zou et al., ECCV 2018): of so many rarest classes, with this chance.
MINED_CLASSES, MINED_CHANCE = 3, 0.8


def run_length(kind: str, count: int) -> int:
    """Images of one run of a split of ``count`` images."""
    return count if kind == "uniform" else RUN


def uniform_run(count: int, key: list[int]) -> np.ndarray:
    """Every image once, int64 [count]."""
    return np.random.default_rng(key).permutation(count)


def balanced_run(class_counts: np.ndarray, key: list[int]) -> np.ndarray:
    """Class-balanced draws as in the released code.

    A class is drawn with weight 1 / log(1.01 + its share among the classes of the images drawn so far in the run), then
    the next image that holds it from a random order of those.

    Args:
      class_counts: int64 [N, K], pixels per image and class.
      key: seeds the draws; its last number is the run.

    Returns:
      image numbers, int64 [RUN].

    Raises:
      UserError: no image holds any class.
    """
    random = np.random.default_rng(key)
    holds = class_counts > 0
    members = _members(holds)
    queues = [random.permutation(images) for images in members]
    places = [0] * len(members)
    present = np.array([len(images) > 0 for images in members])
    drawn = np.zeros(len(members))
    draws = random.random(RUN)
    order = np.zeros(RUN, np.int64)
    for i in range(RUN):
        weights = present / np.log(1.01 + drawn / max(drawn.sum(), 1.0))
        bounds = np.cumsum(weights)
        k = int(np.searchsorted(bounds, draws[i] * bounds[-1], side="right"))
        if places[k] == len(queues[k]):
            queues[k], places[k] = random.permutation(members[k]), 0
        order[i] = queues[k][places[k]]
        places[k] += 1
        drawn += holds[order[i]]
    return order


def rare_run(class_counts: np.ndarray, key: list[int], temperature: float) -> np.ndarray:
    """Rare-class draws as in DAFormer (Hoyer et al., CVPR 2022).

    A class is drawn from softmax((1 - f) / temperature), f being its share of the labelled pixels, then any image that
    holds it.

    Args and result as ``balanced_run``.
    """
    random = np.random.default_rng(key)
    members = _members(class_counts > 0)
    totals = class_counts.sum(0)
    scores = np.where(totals > 0, (1.0 - totals / totals.sum()) / temperature, -np.inf)
    weights = np.exp(scores - scores.max())
    chosen = random.choice(len(members), RUN, p=weights / weights.sum())
    draws = random.random(RUN)
    return np.array([members[k][int(u * len(members[k]))] for k, u in zip(chosen, draws, strict=True)], np.int64)


def mined_run(class_counts: np.ndarray, key: list[int]) -> np.ndarray:
    """Rare-class mining: with a chance any image that holds one of the rarest classes, otherwise any image.

    CBST's release draws the crop likewise, around a pixel of such a class; here it is drawn anywhere.

    Args and result as ``balanced_run``; classes without any pixel are no rare ones.
    """
    random = np.random.default_rng(key)
    totals = class_counts.sum(0)
    _members(class_counts > 0)
    present = np.flatnonzero(totals > 0)
    rarest = present[np.argsort(totals[present], kind="stable")[:MINED_CLASSES]]
    mined = np.flatnonzero((class_counts[:, rarest] > 0).any(1))
    chances, draws = random.random(RUN), random.random(RUN)
    of_mined = mined[(draws * len(mined)).astype(np.int64)]
    return np.where(chances < MINED_CHANCE, of_mined, (draws * len(class_counts)).astype(np.int64))


def _members(holds: np.ndarray) -> list[np.ndarray]:
    """Images that hold each class."""
    if not holds.any():
        raise UserError("no image holds a class of the class set: nothing to balance")
    return [np.flatnonzero(column) for column in holds.T]
