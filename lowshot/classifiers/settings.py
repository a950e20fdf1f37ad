"""Which classifiers and few-shot methods there are, and the settings of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Gt, Le

from lowshot.core.choices import Registry
from lowshot.core.settings import Momentum, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass
class SGDOptions:
    lr: PositiveFloat = 0.1
    """Learning rate, constant."""
    weight_decay: NonNegativeFloat = 0.001
    """L2 strength on weights and bias."""
    momentum: Momentum = 0.9
    """Momentum and dampening: the update direction is a moving average of the gradients."""
    n_steps: PositiveInt = 10_000
    """Steps of SGD."""
    batch_size: PositiveInt = 1000
    """Rows of a batch, base and novel together."""


@dataclass
class LogisticOptions:
    weight_decay: PositiveFloat = 0.001
    """L2 strength on weights and bias, as in linear_sgd."""
    tolerance: PositiveFloat = 1e-6
    """The solver ends when no entry of the gradient is larger."""
    max_iter: PositiveInt = 2000
    """Most iterations of L-BFGS; scikit-learn warns if they do not suffice."""


@dataclass
class MLPOptions:
    lr: PositiveFloat = 1e-6
    """Learning rate of Adam (the published value; 1e-4 needs far fewer epochs)."""
    weight_decay: NonNegativeFloat = 0.001
    """L2 strength on the matrices and the last bias, coupled as in Adam's gradient."""
    batch_size: PositiveInt = 64
    """Rows of a batch."""
    hidden: PositiveInt = 512
    """Width of both hidden layers."""
    max_epochs: PositiveInt = 500
    """Most epochs."""
    patience: PositiveInt = 10
    """Epochs without a lower validation loss after which a run stops."""


@dataclass
class NearestMeanOptions:
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Compare the query with class means by squared Euclidean distance, or by the cosine of the angle."""


@dataclass
class SupportLogisticOptions:
    C: PositiveFloat = 1.0
    """Inverse of the L2 strength, as scikit-learn counts it: on the sum of the losses, the bias free."""
    max_iter: PositiveInt = 1000
    """Most iterations of L-BFGS."""


@dataclass
class CosineOptions:
    scale: PositiveFloat = 10.0
    """Multiplies cosines before the softmax; fixed."""
    lr: PositiveFloat = 0.01
    """Learning rate of SGD, constant. A class's gradient falls with the number of classes: many ways want more."""
    n_steps: NonNegativeInt = 100
    """Steps of SGD; 0 leaves the class means."""
    batch_size: PositiveInt = 1000
    """A larger support is drawn from in batches of this size, classes evenly; a smaller one is taken whole."""


@dataclass
class LaplacianShotOptions:
    transductive: ClassVar[bool] = True

    smoothing: NonNegativeFloat = 0.7
    """The paper's lambda: weight of the neighbours' assignments; the paper chooses it on validation classes."""
    n_neighbours: PositiveInt = 2
    """Other queries that a query is joined to (the paper's k = 3 counts the query itself)."""
    rectify: bool = True
    """Shift the queries onto the support and re-estimate the prototypes with them first."""
    n_steps: PositiveInt = 20
    """Updates of the assignments."""


@dataclass
class RefinementOptions:
    transductive: ClassVar[bool] = True

    n_steps: PositiveInt = 1
    """Steps of soft k-means; the paper takes one."""
    scale: PositiveFloat = 1.0
    """Multiplies squared distances before the softmax; the paper trains features for 1, unit-length ones want more."""


Rate = Annotated[float, Gt(0), Le(1)]


@dataclass
class PTMapOptions:
    transductive: ClassVar[bool] = True

    scale: PositiveFloat = 10.0
    """The paper's lambda: multiplies squared distances; high means hard assignments."""
    rate: Rate = 0.2
    """The paper's alpha: how far a centre moves towards its new estimate in a step."""
    n_steps: PositiveInt = 20
    """Updates of the centres."""


@dataclass
class OwnHead:
    extractor: Path
    """Folder of the extractor whose features these are."""


# Base and novel classes jointly: the runs of the low-shot benchmark.
CLASSIFIERS = Registry(
    "classifier",
    {"linear_sgd": SGDOptions, "logistic_regression": LogisticOptions, "mlp": MLPOptions, "own_head": OwnHead},
    "fit(problem, seed, device)",
)
_INDUCTIVE = {
    "nearest_mean": NearestMeanOptions,
    "logistic_regression": SupportLogisticOptions,
    "cosine": CosineOptions,
}
# The classes of few-shot tasks; methods that classify each query alone first.
METHODS = Registry(
    "few-shot method",
    {
        **_INDUCTIVE,
        "laplacian_shot": LaplacianShotOptions,
        "prototype_refinement": RefinementOptions,
        "pt_map": PTMapOptions,
    },
    "score(tasks, seed)",
)
INDUCTIVE_METHODS = Registry(METHODS.kind, _INDUCTIVE, METHODS.method)
# What the benchmark runs: its own classifiers, and few-shot methods, each run as one task.
BENCHMARK_CLASSIFIERS = Registry(
    "classifier",
    {**CLASSIFIERS.classes, **{name: one for name, one in METHODS.classes.items() if name not in CLASSIFIERS.classes}},
    f"{CLASSIFIERS.method} or {METHODS.method}",
)


def is_transductive(method: Any) -> bool:
    """Whether the score of a query depends on the other queries of its task."""
    return getattr(method, "transductive", False)


@dataclass
class FeatureTransform:
    """SimpleShot (Wang et al., 2019, section 3) centres on the base classes, then normalises; PT-MAP (Hu et al., ICANN
    2021, section 3.2) takes the power 0.5 first."""

    power: NonNegativeFloat = 0.0
    """Raise every entry (size plus 1e-6; the sign is kept) to this power, then divide by the length; 0 leaves features
    as they are."""
    centre: bool = False
    """Subtract the mean of the base classes' training features."""
    normalise: bool = False
    """Divide every feature by its Euclidean length."""

    @property
    def steps(self) -> list[str]:
        """What is done, in words for the tables; CL2N and L2N are SimpleShot's names."""
        names = {(True, True): ["CL2N"], (False, True): ["L2N"], (True, False): ["centred"], (False, False): []}
        return ([f"power {self.power:g}"] if self.power else []) + names[self.centre, self.normalise]


class Recommended(NamedTuple):
    """The settings of a few-shot method, and what is done to features first, as in configs/few_shot/episodes-NAME.yaml,
    which say where they come from."""

    method: Any
    transform: FeatureTransform = FeatureTransform()


_L2N, _CL2N = FeatureTransform(normalise=True), FeatureTransform(centre=True, normalise=True)
RECOMMENDED = {
    "nearest_mean": Recommended(NearestMeanOptions()),
    "logistic_regression": Recommended(SupportLogisticOptions(), _L2N),
    "cosine": Recommended(CosineOptions()),
    "laplacian_shot": Recommended(LaplacianShotOptions(), _CL2N),
    "prototype_refinement": Recommended(RefinementOptions(scale=10), _CL2N),
    "pt_map": Recommended(PTMapOptions(), FeatureTransform(power=0.5)),
}
