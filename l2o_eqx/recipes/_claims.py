"""What the thesis claims, sentence by sentence, each with the numbers that its own figures give."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ThesisClaim:
    """One claim of the thesis.

    **Fields:**

    - `number`: 1 to 37, in the order of the text.
    - `section`: where the thesis makes it.
    - `statement`: what it says, in one sentence.
    - `numbers`: what the thesis's own figures show; "no figure" where there is none.
    """

    number: int
    section: str
    statement: str
    numbers: str


_NO_FIGURE = "no figure"

_ALL = (
    # The method and its settings
    ThesisClaim(
        1,
        "5, 5.4",
        "On MNIST networks, the initial meta-parameters decide between good and useless optimizers.",
        "plot: figure 13, sigmoid: 48 of 100 runs end below 1.0, 35 between 2.0 and 2.5",
    ),
    ThesisClaim(
        2,
        "5, footnote 4",
        "With a trainable dense read-out that has a bias, the optimizer learns nothing.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        3,
        "5.1.1, 5.1.2",
        "Small learning rates, 0.001 on the quadratic and 0.01 on MNIST, give much better results.",
        _NO_FIGURE,
    ),
    ThesisClaim(4, "5.1.2", "With smaller minibatches the loss fluctuates a lot.", _NO_FIGURE),
    ThesisClaim(
        5,
        "5.2",
        "An optimizer trained on a long super epoch is slower in the early steps.",
        "plot, long / short: 3.355 / 1.818 at step 80 (7a); 1.056 / 0.755 at step 93 (7b)",
    ),
    ThesisClaim(6, "5.2", "It is slower because it has learned to take smaller steps.", _NO_FIGURE),
    ThesisClaim(
        7,
        "5.2",
        "On long runs the optimizer trained on a long super epoch ends lower.",
        "plot, long / short: 1.360 / 2.041 (8a); mean of the last 20 steps 0.124 / 0.158 (8b)",
    ),
    ThesisClaim(
        8,
        "5.2",
        "On the quadratic, the optimizer trained on 320 steps raises the objective beyond them.",
        "plot: 1.531 at step 277, 1.595 at step 320, 2.041 at step 3200 (8a)",
    ),
    # Preprocessing and normalization
    ThesisClaim(
        9,
        "5.3.1",
        "With the preprocessing ρ, the optimizer fails on the quadratic.",
        "plot, end / start: 5.015 / 4.884 = 1.03 (10a)",
    ),
    ThesisClaim(
        10,
        "5.3.1",
        "It fails because too many gradients there exceed 1 in size, where ρ is not one to one.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        11,
        "5.3.1",
        "Without ρ, the MNIST network ends at a loss of 2.3: all digits equally probable.",
        "plot: 2.302, flat from about step 50 on (10b)",
    ),
    ThesisClaim(
        12,
        "5.3.1",
        "Biases of the output layer have much larger gradients than the other weights, and gradients "
        "shrink toward the input.",
        _NO_FIGURE,
    ),
    ThesisClaim(13, "5.3.1", "In networks, gradients below e^-10 in size are rare.", _NO_FIGURE),
    ThesisClaim(14, "5.3.2", "Meta-gradients are very small, those of networks above all.", _NO_FIGURE),
    ThesisClaim(
        15,
        "5.3.2",
        "Without normalized meta-gradients, training on the quadratic does not work well.",
        "plot, end / start: 0.84 without, 0.092 with (11a)",
    ),
    ThesisClaim(
        16,
        "5.3.2",
        "On MNIST it makes no difference whether meta-gradients are normalized.",
        "plot, without / with: 0.227 / 0.245 (11b)",
    ),
    # Activations, layers, vanishing gradients, pretraining
    ThesisClaim(
        17,
        "5.4.1",
        "In the best case, networks with any of the four activations can be trained.",
        "plot: sigmoid 0.244, tanh 0.216 (12a); ReLU 0.214, leaky ReLU 0.109, and 0.212 as the mean of its "
        "last 20 steps (12b)",
    ),
    ThesisClaim(
        18,
        "5.4.1",
        "tanh always beats guessing; sigmoid mostly, with a spike at 2.3; ReLU often ends at 2.3 and "
        "sometimes above; leaky ReLU never ends near 2.3 but sometimes above.",
        "plot, of 100 runs below 2.0 / 2.0 to 2.5 / above: tanh 100 / 0 / 0, sigmoid 65 / 35 / 0 (13a); "
        "ReLU 37 / 59 / 4, leaky ReLU 78 / 0 / 22 (13b)",
    ),
    ThesisClaim(
        19,
        "5.4.1",
        "Only sigmoid and ReLU end near 2.3, and only ReLU and leaky ReLU above it.",
        "plot: true in 13, false in 15a: 18 of 100 runs of sigmoid with one optimizer per layer end "
        "at 2.5 or above",
    ),
    ThesisClaim(
        20,
        "5.4.1",
        "ReLU networks that end at 2.3 have hidden units which random early steps have killed.",
        _NO_FIGURE,
    ),
    ThesisClaim(21, "5.4.1", "Losses above 2.3 come from unbounded activations that grow.", _NO_FIGURE),
    ThesisClaim(
        22,
        "5.4.1",
        "Different activations in the two layers do harm.",
        "no figure; in the released code the two networks compared are the same function",
    ),
    ThesisClaim(
        23,
        "5.4.2",
        "One optimizer per layer does about as well with ReLU and slightly worse with sigmoid, ends at about "
        "the same loss, and is slower.",
        "plot, per layer / one: 0.213 / 0.254, mean of the last 20 steps 0.283 / 0.267 (14a); 0.290 / 0.238 "
        "(14b); of 100 runs below 2.0: sigmoid 37 / 65 (15a), ReLU 41 / 37 (15b)",
    ),
    ThesisClaim(
        24,
        "5.4.3",
        "With one optimizer per layer, meta-gradients are smaller for layers nearer to the input.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        25,
        "5.4.3",
        "In a network of two convolutions and a dense layer, the meta-gradient of the first layer's "
        "optimizer rounds to zero.",
        _NO_FIGURE,
    ),
    ThesisClaim(26, "5.4.3", "That network still learns, slowly, through its last two layers.", _NO_FIGURE),
    ThesisClaim(
        27,
        "5.4.4",
        "The sign-weighted loss (eq. 5.11) pretrains much better than the squared error, which learns "
        "magnitudes rather than signs.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        28,
        "5.4.4",
        "Pretraining helps with ReLU and does harm with sigmoid.",
        "plot, of 100 runs without -> with: below 2.0 sigmoid 65 -> 51, ReLU 37 -> 71; below 1.0 sigmoid "
        "48 -> 5, ReLU 34 -> 70 (17)",
    ),
    # How the meta-parameters are updated
    ThesisClaim(
        29,
        "5.5.1",
        "One window as long as the super epoch runs out of memory when that is long.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        30,
        "5.5.2",
        "On the quadratic, T = 8 is worse than 16, and 16 about as good as 32.",
        "plot, T = 8 / 16 / 32: 2.852 / 1.963 / 1.872 (18a)",
    ),
    ThesisClaim(
        31,
        "5.5.2",
        "On MNIST, T = 8, 16 and 32 do about as well.",
        "plot, T = 8 / 16 / 32: 0.259 / 0.235 / 0.211, mean of the last 20 steps 0.258 / 0.242 / 0.282 (18b)",
    ),
    ThesisClaim(32, "5.5.2", "Running time grows very fast with T.", _NO_FIGURE),
    ThesisClaim(
        33,
        "5.5.3",
        "Updating the meta-parameters at every step learns faster per super epoch but comes no further.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        34,
        "5.6",
        "Weights that grow linearly make no difference when the meta-parameters are updated every T steps.",
        "plot, constant / linear: 1.313 / 1.406 (19a)",
    ),
    ThesisClaim(
        35,
        "5.6",
        "They are very slightly better with one update per super epoch.",
        "plot, constant / linear: 2.293 / 2.219 (19b)",
    ),
    ThesisClaim(
        36,
        "5, 6",
        "Learned optimizers work very well on quadratics and worse the more complex the objective; standard "
        "optimizers are beaten only in the best case.",
        _NO_FIGURE,
    ),
    ThesisClaim(
        37,
        "3.3.2",
        "A coordinatewise optimizer carries over to other numbers of parameters.",
        _NO_FIGURE,
    ),
)

CLAIMS: dict[int, ThesisClaim] = {claim.number: claim for claim in _ALL}
"""The claims by number."""
