"""The available classifiers and few-shot methods, and their settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt

from lowshot.core.choices import Registry
from lowshot.core.settings import Momentum, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass
class SGDOptions:
    lr: PositiveFloat = 0.1
    """Learning rate (constant)."""
    weight_decay: NonNegativeFloat = 0.001
    """L2 penalty of weights and bias."""
    momentum: Momentum = 0.9
    """Momentum. PyTorch's `dampening` has the same value."""
    n_steps: PositiveInt = 10_000
    """Number of SGD steps."""
    batch_size: PositiveInt = 1000
    """Batch size, base and novel rows together."""


@dataclass
class BalancedSGDOptions:
    lr: PositiveFloat = 0.001
    """Learning rate (constant)."""
    weight_decay: NonNegativeFloat = 0.01
    """L2 penalty of weights and bias."""
    n_steps: PositiveInt = 29_500
    """Number of SGD steps. The defaults are the published values for n = 2."""
    batch_size: PositiveInt = 128
    """Batch size. Every row is of a class drawn uniformly."""


@dataclass
class LogisticOptions:
    weight_decay: PositiveFloat = 0.001
    """L2 penalty of weights and bias, as in linear_sgd."""
    tolerance: PositiveFloat = 1e-6
    """Stop when no entry of the gradient is larger in absolute value."""
    max_iter: PositiveInt = 2000
    """Maximum number of L-BFGS iterations. scikit-learn warns if it is reached."""


@dataclass
class MLPOptions:
    lr: PositiveFloat = 1e-6
    """Learning rate of Adam. The default is the published value; 1e-4 needs far fewer epochs."""
    weight_decay: NonNegativeFloat = 0.001
    """L2 penalty of the weight matrices and the last bias, added to the gradient (not decoupled as in AdamW)."""
    batch_size: PositiveInt = 64
    """Batch size."""
    hidden: PositiveInt = 512
    """Width of both hidden layers."""
    max_epochs: PositiveInt = 500
    """Maximum number of epochs."""
    patience: PositiveInt = 10
    """Number of epochs without a lower validation loss after which a run stops."""


@dataclass
class NearestMeanOptions:
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Similarity of a query and a class mean: squared Euclidean distance or cosine."""


@dataclass
class SupportLogisticOptions:
    C: PositiveFloat = 1.0
    """Inverse of the L2 penalty, as in scikit-learn. The bias is not penalised."""
    max_iter: PositiveInt = 1000
    """Maximum number of L-BFGS iterations."""


@dataclass
class CosineOptions:
    scale: PositiveFloat = 10.0
    """Factor of the cosines in the softmax (not trained)."""
    lr: PositiveFloat = 0.01
    """Learning rate of SGD (constant). Increase it for many classes: the gradient of each class becomes smaller."""
    n_steps: NonNegativeInt = 100
    """Number of SGD steps. 0 uses the class means."""
    batch_size: PositiveInt = 1000
    """Batch size, drawn evenly over classes. A support set that is not larger is used whole in every step."""


@dataclass
class ImprintingOptions(CosineOptions):
    lr: PositiveFloat = 0.1
    """Learning rate of SGD (constant), for the weights of base classes."""
    n_steps: NonNegativeInt = 500
    """Number of SGD steps, for the weights of base classes. 0 uses the class means."""
    extractor: Path | None = None
    """Folder of the extractor of the features, whose cosine head gives weights of base classes and scale. Default: the
    weights are trained on the base rows, with the settings above."""


Dropout = Annotated[float, Ge(0), Lt(1)]


@dataclass
class AttentionOptions:
    n_fake_novel: PositiveInt = 5
    """Number of base classes that play novel classes in an episode; at most half of the base classes do."""
    dropout: Dropout = 0.5
    """Fraction of the feature values that are set to zero in training (second stage)."""
    scale: PositiveFloat = 10.0
    """Initial factor of the cosines in the softmax over classes (trained)."""
    attention_scale: PositiveFloat = 10.0
    """Initial factor of the cosines in the softmax over base classes (trained). In the paper 10, and 30 for hundreds of
    base classes."""
    n_steps: PositiveInt = 1000
    """Number of SGD steps of each stage: first the base weights, then the generator of weights."""
    lr: PositiveFloat = 0.1
    """Learning rate of SGD at the start."""
    batch_size: PositiveInt = 256
    """Number of rows in a step of the first stage."""
    n_episodes: PositiveInt = 8
    """Number of episodes in a step of the second stage."""


@dataclass
class LogitAdjustedOptions:
    tau: NonNegativeFloat = 1.0
    """Factor of the adjustment, log(share of a class among the rows). 1 is the balanced softmax; with few shots, larger
    values can be better."""
    weight_decay: PositiveFloat = 1e-5
    """L2 penalty of the weights, relative to the mean loss of all rows. Biases are not penalised."""
    tolerance: PositiveFloat = 1e-6
    """Stop when no entry of the gradient is larger in absolute value."""
    max_iter: PositiveInt = 2000
    """Maximum number of L-BFGS iterations. scikit-learn warns if it is reached."""


@dataclass
class LaplacianShotOptions:
    transductive: ClassVar[bool] = True

    smoothing: NonNegativeFloat = 0.7
    """Weight of the neighbours' assignments (lambda in the paper, which chooses it on validation classes)."""
    n_neighbours: PositiveInt = 2
    """Number of neighbours of a query (the paper's k = 3 includes the query itself)."""
    rectification: Literal["none", "published", "bounded"] = "bounded"
    """How the prototypes are first re-estimated with the queries. published: as in the authors' experiments, where
    prototypes shrink and shots may change their class; bounded: weighted means, in which shots keep their class."""
    shift: bool = False
    """First shift the queries to the mean of the prototypes. The published rectification includes it. It costs much
    accuracy if the classes have different numbers of queries."""
    n_steps: PositiveInt = 20
    """Number of updates of the assignments."""


@dataclass
class BDCSPNOptions:
    transductive: ClassVar[bool] = True

    shift: bool = True
    """First shift the queries to the mean of the prototypes. It costs much accuracy if the classes have different
    numbers of queries."""


@dataclass
class RefinementOptions:
    transductive: ClassVar[bool] = True

    n_steps: PositiveInt = 1
    """Number of soft k-means steps (1 in the paper)."""
    scale: PositiveFloat = 1.0
    """Factor of the squared distances in the softmax (1 in the paper). Unit-length features need more."""


Rate = Annotated[float, Gt(0), Le(1)]


@dataclass
class PTMapOptions:
    transductive: ClassVar[bool] = True

    scale: PositiveFloat = 10.0
    """Factor of the squared distances (lambda in the paper). High values give hard assignments."""
    rate: Rate = 0.2
    """Fraction of the way that a centre moves to its new estimate in a step (alpha in the paper)."""
    n_steps: PositiveInt = 20
    """Number of updates of the centres."""


@dataclass
class AdaptiveTransportOptions:
    transductive: ClassVar[bool] = True

    equality: NonNegativeFloat = 12.0
    """Weight of the assumption that all classes have the same number of queries. 0 assumes nothing."""
    scale: PositiveFloat = 10.0
    """Factor of the squared distances in the softmax, while proportions are estimated."""
    transport_scale: PositiveFloat = 7.0
    """The same for the assignment with given proportions."""
    rate: Rate = 0.3
    """Fraction of the way that a centre moves to its new estimate in a step."""
    n_steps: PositiveInt = 20
    """Number of updates of the centres, in each of the two passes."""


@dataclass
class TIMOptions:
    transductive: ClassVar[bool] = True

    scale: PositiveFloat = 15.0
    """Factor of half the squared distances in the softmax (tau in the paper)."""
    support_weight: NonNegativeFloat = 0.1
    """Weight of the cross-entropy of the shots."""
    marginal_weight: NonNegativeFloat = 1.0
    """Weight of the entropy of the mean prediction. High values favour equal numbers of queries per class."""
    conditional_weight: NonNegativeFloat = 0.1
    """Weight of the mean entropy of a prediction. High values give hard predictions."""
    lr: PositiveFloat = 1e-4
    """Learning rate of Adam (constant)."""
    n_steps: NonNegativeInt = 1000
    """Number of Adam steps. 0 uses the class means."""


@dataclass
class AlphaTIMOptions(TIMOptions):
    support_weight: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the shots."""
    conditional_weight: NonNegativeFloat = 1.0
    """Weight of the mean alpha-entropy of a prediction. High values give hard predictions."""
    alpha: Annotated[float, Ge(1)] | None = None
    """Order of the entropies; 1 is Shannon's. Higher values favour equal numbers of queries per class less. Default: as
    published, 2 for one shot, 5 for two to four, 7 for more (of the class with the fewest)."""


@dataclass
class OwnHead:
    extractor: Path
    """Folder of the extractor that computed the features."""


# Classifiers of base and novel classes together, for the runs of the low-shot benchmark.
CLASSIFIERS = Registry(
    "classifier",
    {
        "linear_sgd": SGDOptions,
        "balanced_sgd": BalancedSGDOptions,
        "logistic_regression": LogisticOptions,
        "mlp": MLPOptions,
        "logit_adjusted": LogitAdjustedOptions,
        "imprinting": ImprintingOptions,
        "attention": AttentionOptions,
        "own_head": OwnHead,
    },
    "fit(problem, seed, device)",
)
_INDUCTIVE = {
    "nearest_mean": NearestMeanOptions,
    "logistic_regression": SupportLogisticOptions,
    "cosine": CosineOptions,
}
# Methods for few-shot tasks. Methods that classify each query independently come first.
METHODS = Registry(
    "few-shot method",
    {
        **_INDUCTIVE,
        "laplacian_shot": LaplacianShotOptions,
        "prototype_refinement": RefinementOptions,
        "pt_map": PTMapOptions,
        "bd_cspn": BDCSPNOptions,
        "tim": TIMOptions,
        "alpha_tim": AlphaTIMOptions,
        "adaptive_transport": AdaptiveTransportOptions,
    },
    "score(tasks, seed)",
)
INDUCTIVE_METHODS = Registry("inductive method", _INDUCTIVE, METHODS.method)
# The benchmark runs its own classifiers, and few-shot methods with each run as one task.
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
    """Transform of features: power, then centring, then normalisation.

    SimpleShot (Wang et al., 2019, section 3) centres on the base classes and normalises. PT-MAP (Hu et al., ICANN 2021,
    section 3.2) first takes the power 0.5.
    """

    power: NonNegativeFloat = 0.0
    """Raise the magnitude (plus 1e-6) of every entry to this power, keep its sign, then normalise. 0 (default): no
    power, and no such normalisation."""
    centre: bool = False
    """Subtract the mean training feature of the base classes."""
    normalise: bool = False
    """Divide every feature vector by its Euclidean length."""

    @property
    def steps(self) -> list[str]:
        """Names of the steps for the tables. CL2N and L2N are the names of the SimpleShot paper."""
        names = {(True, True): ["CL2N"], (False, True): ["L2N"], (True, False): ["centred"], (False, False): []}
        return ([f"power {self.power:g}"] if self.power else []) + names[self.centre, self.normalise]


class Recommended(NamedTuple):
    """Recommended settings and transform of a few-shot method.

    They equal those of configs/few_shot/episodes-NAME.yaml, which cites the source.
    """

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
    "bd_cspn": Recommended(BDCSPNOptions(), _CL2N),
    "tim": Recommended(TIMOptions(), _L2N),
    "alpha_tim": Recommended(AlphaTIMOptions(), _L2N),
    "adaptive_transport": Recommended(
        AdaptiveTransportOptions(), FeatureTransform(power=0.5, centre=True, normalise=True)
    ),
}


# The transform of each method and classifier that has one. Imprinting and attention compare directions, and features
# that follow a ReLU share one: centring removes it.
_TRANSFORMS = {type(one.method): one.transform for one in RECOMMENDED.values()}
_TRANSFORMS |= {ImprintingOptions: _CL2N, AttentionOptions: _CL2N}


def head_of(classifier: Any) -> Path | None:
    """Return the extractor whose own head gives the classifier its weights, None if it learns them all."""
    return classifier.extractor if isinstance(classifier, OwnHead | ImprintingOptions) else None


def transform_of(classifier: Any, given: FeatureTransform | None) -> FeatureTransform:
    """Return the transform that is `given`, or that of the classifier.

    Imprinting and attention have CL2N, a few-shot method the one that it was published with. Other classifiers of the
    benchmark and methods of the user's own have none. Weights of an extractor are for features without a transform.
    """
    if given is not None:
        return given
    return FeatureTransform() if head_of(classifier) else _TRANSFORMS.get(type(classifier), FeatureTransform())
