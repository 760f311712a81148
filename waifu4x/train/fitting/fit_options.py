"""How networks are fitted: what ``[fit]`` of a recipe may say, for A+ and for ScSR."""

from __future__ import annotations

from dataclasses import dataclass

from waifu4x.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AplusFit:
    """``[fit]`` of A+.

    The paper has 91 small photographs, all their windows in 12 sizes, and 2048 neighbours. Among
    photographs and drawings nearer neighbours are worse ones, because drawings are sharper: on Set5
    at x3 4096 among 1.4 million gave 32.50 dB, and 2048 among 3.9 million 32.25.
    """

    samples: int = 1_500_000
    """Windows to choose neighbours among; 600 bytes of memory each."""
    pictures: int = 300
    """At most; none gives more windows than another may. Large ones are cut, to 2 GB in all."""
    levels: int = 12
    shrink: float = 0.92
    """A picture is shrunk by a power of `shrink` below `levels`, drawn for each."""
    weakest: float = 0.1
    """Windows whose features are shorter are left out: of those noise is what is learned."""
    energy: float = 0.999
    """The principal components keep this share of the features' energy."""
    dictionary_samples: int = 50_000
    """Windows to learn anchors from; as many as anchors or more."""
    sparsity: int = 3
    rounds: int = 10
    """Of K-SVD, whose atoms are the anchors."""
    neighbours: int = 4096
    ridge: float = 0.1

    def __post_init__(self) -> None:
        counts = (self.samples, self.pictures, self.levels, self.dictionary_samples)
        if min(*counts, self.sparsity, self.neighbours) < 1 or self.rounds < 0:
            raise UsageError("counts must be 1 or more, rounds 0 or more")
        if not (0.0 < self.shrink <= 1.0 and 0.0 < self.energy <= 1.0):
            raise UsageError("shrink and energy lie in 0 < x <= 1")
        if not (self.ridge > 0.0 and self.weakest >= 0.0):
            raise UsageError("ridge must be above 0, weakest 0 or more")


@dataclass(frozen=True, kw_only=True)
class ScSRFit:
    """``[fit]`` of ScSR. The defaults are the paper's, but for how the dictionary is learned."""

    samples: int = 100_000
    """Pairs of patches."""
    pictures: int = 400
    levels: int = 12
    shrink: float = 0.92
    """As those of A+."""
    variance: float = 10.0
    """Sharp patches of less, in grey levels squared, are left out."""
    penalty: float = 0.15
    steps: int = 30
    rounds: int = 3
    batch: int = 1024
    """Of online dictionary learning."""

    def __post_init__(self) -> None:
        counts = (self.samples, self.pictures, self.levels, self.steps, self.rounds, self.batch)
        if min(counts) < 1:
            raise UsageError("counts must be 1 or more")
        if not (0.0 < self.shrink <= 1.0 and self.penalty > 0.0 and self.variance >= 0.0):
            raise UsageError("shrink lies in 0 < x <= 1, penalty above 0, variance 0 or more")
