"""The configuration of a run, typed once: options, TOML and checks all follow from these models."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Sizes = Annotated[tuple[Positive, ...], Field(min_length=1)]
Order = Literal["first", "second"]
Counting = Literal["window", "super_epoch"]
Ascending = AfterValidator(lambda rates: tuple(sorted(set(rates))))
LearningRates = Annotated[tuple[PositiveFloat, ...], Field(min_length=1), Ascending]


class OptionName:
    """Names a field's option where the field's own name would be taken twice or say too little."""

    def __init__(self, name: str):
        self.name = name


class Table(BaseModel):
    """A table of the TOML file. A `kind` tells apart the tables that may stand in one place."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quadratic(Table):
    kind: Literal["quadratic"] = "quadratic"
    dim: Positive = Field(16, description="Number of coordinates.")
    squared: bool = Field(True, description="Square the norm, as eq. 5.1 does.")
    theta_std: float = Field(1.0, ge=0, description="Standard deviation of the starting point.")


class Mnist(Table):
    kind: Literal["mnist"] = "mnist"
    hidden_sizes: Annotated[tuple[Positive, ...], OptionName("--network-sizes")] = Field(
        (32,), description="Widths of the hidden dense layers of the network that is optimized; '' for none."
    )
    conv_channels: tuple[Positive, ...] = Field(
        (), description="Channels of the convolutions before its dense layers; none if not given."
    )
    activation: Literal["sigmoid", "tanh", "relu", "leaky_relu", "mixed"] = Field(
        "sigmoid", description="Activation of its hidden layers; 'mixed' draws one per objective."
    )
    output: Annotated[Literal["softmax", "sigmoid"], OptionName("--network-output")] = Field(
        "softmax", description="Its output, of which the loss is the cross-entropy."
    )
    batch_size: Positive = Field(128, description="Digits per minibatch.")
    num_examples: Positive = Field(48_000, description="Use at most this many training digits.")
    data: Literal["auto", "embedded", "tfds"] = Field(
        "auto", description="Which MNIST: 'auto' takes the full set if it is there."
    )
    data_dir: str | None = Field(None, description="Folder of the full set; else the variable TFDS_DATA_DIR.")
    data_sha256: str | None = Field(
        None, description="Refuse other digits than these; a run's config.toml has its own."
    )


class Identity(Table):
    kind: Literal["identity"] = "identity"


class LogSign(Table):
    kind: Literal["log-sign"] = "log-sign"
    p: float = Field(10.0, gt=0, lt=88, description="Entries below exp(-p) pass linearly.")


class TwoFeature(Table):
    kind: Literal["two-feature"] = "two-feature"
    p: float = Field(10.0, gt=0, lt=88, description="Entries below exp(-p) pass linearly.")


class AdamLike(Table):
    kind: Literal["adam-like"] = "adam-like"
    b1: Decay = Field(0.9, description="Decay rate of the running mean.")
    b2: Decay = Field(0.999, description="Decay rate of the running mean square.")
    eps: PositiveFloat = Field(1e-8, description="Added to the root of the mean square.")


Preprocessor = Annotated[
    Identity | LogSign | TwoFeature | AdamLike,
    Field(discriminator="kind", description="What the network sees of a gradient."),
]


class SumOutput(Table):
    kind: Literal["sum"] = "sum"


class _MomentumOutput(Table):
    momentum: Annotated[float, OptionName("--output-momentum")] = Field(
        0.9, gt=0, lt=1, description="Momentum that the network corrects, at first."
    )


class MomentumOutput(_MomentumOutput):
    kind: Literal["momentum"] = "momentum"
    rate: Annotated[PositiveFloat, OptionName("--output-rate")] = Field(
        0.0178,
        description="Rate that the network corrects, at first; 0.0178 for momentum, 0.3 for curvature, 0.01 "
        "for adam if not given.",
    )


class CurvatureOutput(_MomentumOutput):
    kind: Literal["curvature"] = "curvature"
    rate: Annotated[PositiveFloat, OptionName("--output-rate")] = Field(
        0.3, description="Rate that the network corrects, at first."
    )
    first_step: Annotated[PositiveFloat, OptionName("--output-first-step")] = Field(
        0.01, description="First step, before the curvature is known."
    )


class AdamOutput(Table):
    kind: Literal["adam"] = "adam"
    rate: Annotated[PositiveFloat, OptionName("--output-rate")] = Field(
        0.01, description="Rate that the network corrects, at first."
    )
    decays: Annotated[tuple[Decay, ...], OptionName("--output-decays")] = Field(
        (0.5, 0.9, 0.97),
        min_length=1,
        description="Decay rates of the running means that it mixes; 0.9 among them.",
    )
    b2: Annotated[Decay, OptionName("--output-b2")] = Field(
        0.99, description="Decay rate of the running mean square."
    )
    eps: Annotated[PositiveFloat, OptionName("--output-eps")] = Field(
        1e-12, description="Added to the root of the mean square."
    )


Output = Annotated[
    SumOutput | MomentumOutput | CurvatureOutput | AdamOutput,
    Field(
        discriminator="kind",
        description="What makes the update: the sum of the hidden state, or corrections to momentum, to "
        "momentum relative to the curvature, or to Adam; these have rates of their own.",
    ),
]


class _LSTM(Table):
    hidden_sizes: Sizes = Field((20, 20), description="Widths of the optimizer's LSTM layers.")
    learning_rate: PositiveFloat = Field(description="Factor of the learned updates.")
    linear_readout: bool = Field(False, description="Trained linear read-out instead of the sum.")
    preprocessor: Preprocessor
    # Presets and files of versions that did not have it take the sum.
    output: Output = SumOutput()


class CoordinatewiseLSTM(_LSTM):
    kind: Literal["coordinatewise-lstm"] = "coordinatewise-lstm"


class PerLayer(_LSTM):
    kind: Literal["per-layer"] = "per-layer"
    groups: Literal["layer", "leaf", "rank", "shape", "kind"] = Field(
        "layer",
        description="What has an LSTM of its own: each layer, array, number of axes, shape, or kind of "
        "layer (convolutions, dense layers).",
    )


class Hierarchical(Table):
    kind: Literal["hierarchical"] = "hierarchical"
    coordinate_size: Positive = Field(20, description="Width of the coordinates' LSTM.")
    tensor_size: Positive = Field(20, description="Width of the tensors' LSTM.")
    global_size: Positive = Field(20, description="Width of the global LSTM.")
    learning_rate: PositiveFloat = Field(description="Factor of the learned updates.")
    preprocessor: Preprocessor
    output: Output = SumOutput()


class AdamMLP(Table):
    kind: Literal["adam-mlp"] = "adam-mlp"
    mlp_sizes: Sizes = Field((8, 8), description="Widths of the hidden layers of the Adam-MLP.")
    start_rate: PositiveFloat = Field(0.01, description="The Adam-MLP's rate before it is trained.")
    matrices: bool = Field(False, description="Whether it starts as AdaMuon where there are matrices.")
    decay: Annotated[Literal["none", "cosine"], OptionName("--start-decay")] = Field(
        "none", description="How the Adam-MLP's rate decays before it is trained."
    )


class _TensorLevel(Table):
    per: Literal["tensor", "layer", "tree"] = Field(
        "tensor", description="Whether its network runs once per tensor, per layer or for all of them."
    )
    first_move: PositiveFloat = Field(1e-3, description="Root mean square of its first move, at first.")
    first_step: Literal["absolute", "relative"] = Field(
        "absolute", description="Whether that is relative to the root mean square of the params."
    )


class LearnedMomentum(_TensorLevel):
    kind: Literal["learned-momentum"] = "learned-momentum"
    momentum_size: Positive = Field(16, description="Units of the network of learned-momentum.")


class SubspaceRNN(_TensorLevel):
    kind: Literal["subspace-rnn"] = "subspace-rnn"
    subspace_size: Positive = Field(24, description="Units of the network of subspace-rnn.")


class _Strategy(Table):
    order: Order = Field("first", description="Order of the meta-gradient.")
    detach_state: bool = Field(
        False, description="No derivatives through the LSTM's state, as in the thesis's released code."
    )
    activations: Literal["auto", "keep", "recompute"] = Field(
        "auto", description="Keep the optimizer's activations for the reverse pass or compute them again."
    )
    objective_clip: PositiveFloat | None = Field(
        None, description="Largest norm of one objective's meta-gradient; larger ones are scaled down."
    )


class EveryWindow(_Strategy):
    kind: Literal["every-window"] = "every-window"
    window: int = Field(ge=1, description="Inner steps that one meta-gradient sees.")
    include_final_loss: bool = Field(False, description="Count the loss after the window's last update, too.")
    remainder: Literal["skip", "train"] = Field(
        "skip", description="Whether steps after the last full window make a shorter one."
    )


class OncePerSuperEpoch(_Strategy):
    kind: Literal["once-per-super-epoch"] = "once-per-super-epoch"
    include_final_loss: bool = Field(False, description="Count the loss after the window's last update, too.")


class EveryStep(_Strategy):
    kind: Literal["every-step"] = "every-step"
    window: int = Field(ge=1, description="Inner steps that one meta-gradient sees.")
    gradient: Literal["replayed", "recorded"] = Field(
        "replayed", description="Run the window again as the optimizer is now, or take it as it was run."
    )


class Constant(Table):
    kind: Literal["constant"] = "constant"


class Linear(Table):
    kind: Literal["linear"] = "linear"
    beta: float = Field(1.0, ge=0, description="Weights are beta*t + 1.")
    counting: Counting = Field("window", description="Where t begins, or which last step counts.")
    first: int = Field(1, description="First value of t.")


class Exponential(Table):
    kind: Literal["exponential"] = "exponential"
    gamma: PositiveFloat = Field(1.1, description="Weights are gamma**t.")
    counting: Counting = Field("window", description="Where t begins, or which last step counts.")
    first: int = Field(1, description="First value of t.")


class FinalOnly(Table):
    kind: Literal["final-only"] = "final-only"
    counting: Counting = Field("window", description="Where t begins, or which last step counts.")


class LogMean(Table):
    kind: Literal["log-mean"] = "log-mean"
    eps: Annotated[float, OptionName("--log-eps")] = Field(
        0.0, ge=0, description="Added to the loss in the logarithm."
    )
    relative: Annotated[bool, OptionName("--relative-loss")] = Field(
        False, description="Logarithm of the loss divided by the first one of the super epoch."
    )
    power: Annotated[float, OptionName("--log-power")] = Field(
        0.0, ge=0, description="Weights are ((t + 1) / super epoch)**power."
    )


class Meta(Table):
    learning_rate: Annotated[PositiveFloat, OptionName("--meta-learning-rate")] = Field(
        1e-3, description="Adam's, for the meta-parameters."
    )
    normalization: Literal["tensor", "block", "global", "clip", "none"] = Field(
        "tensor",
        description="Scale meta-gradients to norm one, per tensor, per block of the optimizer or all "
        "together; or clip their norm.",
    )
    norm_floor: float = Field(
        0.0, ge=0, description="Smallest norm to divide by; 1e-6 in the thesis's released code."
    )
    clip_norm: PositiveFloat = Field(1.0, description="Largest norm that 'clip' lets through.")
    drop_norm: PositiveFloat | None = Field(
        None, description="Meta-gradients of at least this norm are spikes and count as zero."
    )
    b1: Annotated[Decay, OptionName("--meta-b1")] = Field(0.9, description="Adam's, of the running mean.")
    b2: Annotated[Decay, OptionName("--meta-b2")] = Field(
        0.999, description="Adam's, of the running mean square."
    )
    eps: Annotated[PositiveFloat, OptionName("--meta-eps")] = Field(
        1e-7, description="Adam's, added to the root of the mean square."
    )
    warmup_updates: Annotated[int, OptionName("--meta-warmup")] = Field(
        0, ge=0, description="Meta-updates in which the learning rate rises to its value."
    )
    decay: Annotated[Literal["none", "cosine"], OptionName("--meta-decay")] = Field(
        "none", description="How it falls from there to the end of the training."
    )
    final_share: Annotated[float, OptionName("--meta-final-share")] = Field(
        0.0, ge=0, le=1, description="Share of the learning rate that 'cosine' ends at."
    )
    average: Annotated[float | None, Field(gt=0, le=1)] = Field(
        None, description="Share of the super epochs, the last ones, whose optimizers are averaged."
    )
    num_steps: Positive = Field(description="Inner steps of a super epoch.")
    num_epochs: Positive | None = Field(
        None, description="Length of a super epoch in epochs of the data instead of steps (mnist only)."
    )
    super_epochs: Positive = Field(description="Inner optimizations one after the other.")
    num_objectives: Positive = Field(description="Inner optimizations side by side.")
    restarts: Positive = Field(1, description="Independent trainings from other initial weights.")


class Validation(Table):
    every: Annotated[int, OptionName("--validate-every")] = Field(
        0,
        ge=0,
        description="Super epochs between two validations, by which the best optimizer is kept; with 0 there "
        "are none, and the last one is.",
    )
    num_objectives: Annotated[Positive, OptionName("--validation-objectives")] = Field(
        16, description="Unseen objectives that are tried each time."
    )
    num_steps: Annotated[Positive | None, OptionName("--validation-steps")] = Field(
        None, description="Inner steps on each; as in training if not given."
    )
    last: Annotated[Positive, OptionName("--validation-last")] = Field(
        1, description="Last losses whose mean counts; more than one for minibatches."
    )


class Pretraining(Table):
    enabled: Annotated[bool, OptionName("--pretrain")] = Field(
        False, description="Pretrain the optimizer to start as gradient descent."
    )
    loss: Annotated[Literal["sign-weighted", "squared"], OptionName("--pretrain-loss")] = Field(
        "sign-weighted", description="How far its updates are from those of gradient descent."
    )
    omega: Annotated[float, OptionName("--pretrain-omega")] = Field(
        2.0, ge=0, description="How much signs matter to the sign-weighted loss."
    )
    input_std: Annotated[PositiveFloat, OptionName("--pretrain-input-std")] = Field(
        1e-3, description="Standard deviation of the random inputs."
    )
    num_steps: Annotated[Positive, OptionName("--pretrain-steps")] = Field(
        16, description="Inputs that a coordinate is given one after the other."
    )
    batch_size: Annotated[Positive, OptionName("--pretrain-batch-size")] = Field(
        128, description="Coordinates per update."
    )
    num_samples: Annotated[Positive, OptionName("--pretrain-samples")] = Field(
        200_000, description="Coordinates in all."
    )
    carry_state: Annotated[bool, OptionName("--pretrain-carry-state")] = Field(
        False, description="Let the optimizer's state go on from batch to batch."
    )
    learning_rate: Annotated[PositiveFloat, OptionName("--pretrain-learning-rate")] = Field(
        1e-3, description="Adam's, for the pretraining."
    )
    eps: Annotated[PositiveFloat, OptionName("--pretrain-eps")] = Field(
        1e-7, description="Adam's ε, for the pretraining; smaller for small learning rates of the optimizer."
    )


class Evaluation(Table):
    num_objectives: Annotated[Positive, OptionName("--eval-objectives")] = Field(
        description="Unseen objectives that all optimizers are compared on."
    )
    num_tuning_objectives: Annotated[Positive, OptionName("--tuning-objectives")] = Field(
        description="Further ones, to tune the hand-designed optimizers on."
    )
    num_steps: Annotated[Positive | None, OptionName("--eval-steps")] = Field(
        None, description="Inner steps of the comparison; as in training if not given."
    )
    learning_rates: LearningRates | None = Field(
        None, description="To tune over; by default 25 from 1e-4 to 100."
    )
    tuning: Literal["auto", "full", "staged"] = Field("auto", description="All their settings, or in stages.")
    last: Annotated[Positive, OptionName("--last-steps")] = Field(description="Steps whose mean loss counts.")


class RunConfig(Table):
    """Everything that decides what a training computes."""

    format: Literal[1] = Field(1, description="Version of this file's layout.")
    preset: Literal["best", "thesis", "andrychowicz"] = Field(
        "best", description="What all other settings are if not given."
    )
    seed: int = Field(0, ge=0, le=2**31 - 2, description="Same seed, same numbers.")
    objective: Annotated[Quadratic | Mnist, Field(discriminator="kind", description="What is minimized.")]
    optimizer: Annotated[
        CoordinatewiseLSTM | PerLayer | Hierarchical | AdamMLP | LearnedMomentum | SubspaceRNN,
        Field(discriminator="kind", description="What is trained."),
    ]
    strategy: Annotated[
        EveryWindow | OncePerSuperEpoch | EveryStep,
        Field(discriminator="kind", description="When it is trained, and on which losses."),
    ]
    weighting: Annotated[
        Constant | Linear | Exponential | FinalOnly | LogMean,
        Field(discriminator="kind", description="How losses make the meta-loss."),
    ]
    meta: Meta
    # Files of versions that did not have them are read as without.
    pretraining: Pretraining = Pretraining.model_validate({})
    validation: Validation = Validation.model_validate({})
    evaluation: Evaluation
