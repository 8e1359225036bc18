"""Where the thesis's text and the author's released code differ, or leave something open."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Difference:
    """One such point.

    **Fields:**

    - `topic`: what it is about.
    - `text`, `code`: what the thesis says, and what the released code does.
    - `default`: what this package does.
    - `other`: how to get what is not the default: options of `l2o train`, of `l2o reproduce` where it says
        so, and their names in Python.
    """

    topic: str
    text: str
    code: str
    default: str
    other: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "Backpropagation through the LSTM's state",
        "through the whole window (fig. 4)",
        "none: the state is a constant at every step",
        "the text",
        '`--detach-state`, `Auto(FIRST_ORDER | {"state"})`; `l2o reproduce --as code`',
    ),
    Difference(
        "The quadratic",
        "‖Wθ − y‖², θ₁ with σ = 1 (eq. 5.1)",
        "‖Wθ − y‖, θ₁ with σ = 0.05; the figures show this one",
        "`l2o train`: the text; `l2o reproduce`: the code, to compare with the figures",
        "`--no-squared --theta-std 0.05`, `Quadratic(squared=False, theta_std=0.05)`; `l2o reproduce --as "
        "text`",
    ),
    Difference(
        "Output of the networks",
        "sigmoid in both layers, unless stated otherwise",
        "softmax in effect: Keras takes the numbers before the sigmoid",
        "softmax",
        '`--network-output sigmoid`, `MNIST(output="sigmoid")`; `l2o reproduce output-layer`',
    ),
    Difference(
        "The preprocessing ρ",
        "one number (eq. 5.2), ascribed to Andrychowicz et al., who have two",
        "as the text",
        "the text",
        "`--preprocessor two-feature`, `TwoFeature()`",
    ),
    Difference(
        "Meta-gradients of norm one",
        "“each gradient vector”",
        "each weight tensor for itself, divided by at least 1e-6",
        "each weight tensor for itself; zero stays zero",
        "`--norm-floor 1e-6`, or `l2o reproduce --as code`; `--normalization block` or `global`",
    ),
    Difference(
        "Adam for the meta-parameters",
        "no settings",
        "learning rate 1e-3, ε 1e-7; one object for all restarts, so that its step count goes on",
        "the code's settings, but each restart begins anew",
        "`l2o reproduce --as code`, `Experiment(shared_adam=True)`",
    ),
    Difference(
        "Adam with one optimizer per layer",
        "not mentioned",
        "its step count advances once per layer",
        "once per meta-update",
        "none",
    ),
    Difference(
        "Losses of a window",
        "f(θ₁) to f(θ_T), so that the last update is not trained (eq. 3.5)",
        "as the text; DeepMind's code adds f(θ_{T+1})",
        "the text; T = 1 is refused, for its loss does not depend on the update",
        "`--include-final-loss`, `EveryWindow(include_final_loss=True)`",
    ),
    Difference(
        "Steps after the last full window",
        "not mentioned",
        "taken, not trained on: 7 of 375 with T = 16, 23 with T = 32",
        "the code",
        '`--remainder train`, `EveryWindow(remainder="train")`',
    ),
    Difference(
        "Linear weights w_t = βt + 1",
        "t from 1: 2 to T + 1 in a window",
        "1 to T",
        "the text",
        "`--first 0`, `Linear(first=0)`; `l2o reproduce --as code`; `--counting super_epoch` counts on",
    ),
    Difference(
        "A meta-update at every step",
        "on the last T losses",
        "backpropagates to the first step, over meta-parameters of the past",
        "the text: the window is run again as the optimizer is now",
        "`--gradient recorded`, `EveryStep(estimator=Recorded())`, takes its steps as they were",
    ),
    Difference(
        "Number of super epochs, size of the pretraining",
        "not given",
        "25 or 10 super epochs, 5 of 160 steps for histograms; 200,000 inputs",
        "the code",
        "`--super-epochs`, `--num-steps`, `--pretrain --pretrain-samples`",
    ),
    Difference(
        "State of the LSTM in the pretraining",
        "not mentioned",
        "never reset, carried over to inputs that have nothing to do with it",
        "every coordinate sees 16 inputs from a state of zero",
        "`--pretrain --pretrain-steps 1 --pretrain-carry-state`; `l2o reproduce --as code`",
    ),
    Difference(
        "Order of the digits",
        "shuffled every epoch",
        "through a buffer of 1,024, so that the last minibatch is always of the end of the file",
        "the text",
        "none",
    ),
    Difference(
        "Starting points of a test",
        "the same for all curves of a panel",
        "not so for networks",
        "the text: all restarts and all series see the same objectives, starting points and minibatches",
        "none",
    ),
    Difference(
        "What is reported",
        "the best of several attempts on networks",
        "the best of ten by the loss of its last minibatch, or a single run",
        "all restarts: median, quartiles, shares",
        "the tables `*-finals.csv` have every restart",
    ),
    Difference(
        "Unequal trainings",
        "T = 8, 16, 32 and super epochs of 320 and 3200 steps compared as they are",
        "so that they make 1000, 500, 250 and 500, 5000 meta-updates",
        "as the text, and next to it with equally many meta-updates (18c; third curve of 7a and 8a)",
        "",
    ),
    Difference(
        "“Near 2.3”",
        "a bin from 2 to 2.5",
        "as the text",
        "the bins, and those whose last 20 losses have a mean within 0.02 of ln 10 and outputs an entropy so",
        "",
    ),
)
"""In the order of the thesis's method."""
