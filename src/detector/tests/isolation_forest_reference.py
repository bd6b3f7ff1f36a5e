"""Makes the figures in the tests of isolation_forest.rs: scikit-learn's IsolationForest on a set that both sides generate.

    python3 -m pip install scikit-learn==1.7.2 && python3 isolation_forest_reference.py

Prints, per set, the mean AUC of the raw score over ten seeds with the defaults (100 trees of 256 rows).
"""
import math
import numpy
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

MASK = (1 << 64) - 1


class Random:
    """SplitMix64, as in random.rs."""

    def __init__(self, seed):
        self.state = seed

    def unit(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return ((z ^ (z >> 31)) >> 11) / (1 << 53)

    def normal(self):
        u, v = self.unit(), self.unit()
        return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


def row(random, kind, odd):
    if kind == "blob":  # odd rows lie in a wide cube around a Gaussian
        return [6 * random.unit() - 3 if odd else random.normal() for _ in range(4)]
    if kind == "clusters":  # two clusters, odd rows between them
        centre = 0 if odd else (4 if random.unit() < 0.5 else -4)
        return [centre + random.normal() for _ in range(3)]
    # correlated: odd rows break the correlation
    first = random.normal()
    second = random.normal() if odd else first
    return [2 * first, 2 * second + 0.3 * random.normal(), random.normal()]


def auc(kind):
    random = Random(7)
    train = numpy.array([row(random, kind, False) for _ in range(512)])
    test = [(row(random, kind, index % 10 == 0), index % 10 == 0) for index in range(5000)]
    values = numpy.array([value for value, _ in test])
    labels = [label for _, label in test]
    areas = [
        roc_auc_score(labels, -IsolationForest(random_state=seed).fit(train).score_samples(values))
        for seed in range(10)
    ]
    return sum(areas) / len(areas)


for kind in ["blob", "clusters", "correlated"]:
    print(f"{kind} {auc(kind):.4f}")
