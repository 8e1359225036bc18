import functools
import math
from itertools import pairwise
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._errors import ArgumentError, check
from .._misc import wide_dtype_of
from .._types import Params, Scalar, State, StepNumber
from ._base import AbstractOptimizer
from ._celo2_direction import ADAM, NUM_FEATURES, Moments, direct, no_moments
from ._decay import Decay, check_decay, decay_factor

_NUM_OUTPUTS = 3
# With its floor under the root, which has no derivative at zero.
_ADAM_OF_VECTORS: Any = optax.scale_by_adam(b1=0.9, b2=0.95, eps=0.0, eps_root=1e-16)

Start = Literal["adam", "random"]


class _Celo2State(eqx.Module):
    # Lists over all leaves, with `None` for those that are of the other kind.
    step: Int[Array, ""]
    horizon: Float[Array, ""]
    matrices: list[Moments | None]
    vectors: State


class Celo2(AbstractOptimizer):
    """Celo2: a network of 347 weights per coordinate that finds a direction; how far to go is the user's.

    For a tensor of two axes or more, with running means m_b of the gradient g at b = 0.9, 0.99, 0.999 and v
    of g² at 0.95, and for the same b running means R_b and C_b of g² over rows and over columns (averages
    over the largest axis, and over the second largest, the first one of equals), all starting at zero and
    not corrected for that,

        i = 1/√(v + 1e-8),   F_b = 1/√(R_b/mean(R_b)) · 1/√C_b   (mean over the rows; floors of 1e-9),

    the network, ReLU, sees 30 features:

        g, g within ±0.1, θ, m_b (3), v, m_b·i (3), i, g·F_b (3), g·i,
        R_b (3), C_b (3), 1/√(R_b + 1e-8) (3), 1/√(C_b + 1e-8) (3), m_b·F_b (3),

    each divided by its root mean square over the tensor, √(1e-9 + mean). Of its three outputs the first is
    the direction, the second the logarithm of a magnitude, in units of `magnitude`, and the third nothing:

        D = o₀·exp(magnitude·o₁),   update = −α·D/rms(D) − α·λ·θ

    with the rms over the tensor, the rate α and the weight decay λ. Tensors of fewer axes get AdamW with b1
    0.9 and b2 0.95, at the rate `vector_rate`·α and with λ. Moments are kept in at least float32.

    All 30 features, their order, decays and constants are those of the published code, whose weights the
    layers here can hold. Ours are: the root mean square of a feature is over the whole tensor where the
    code's is over the last two axes, which is the same for matrices; `orthogonalize` takes all axes but the
    first together; D is divided by its root mean square without a floor, so that a zero one stays zero; and
    `start`.

    Constants are absolute. So the update does not change with the scale of f as long as all gradients are
    between about 1 and 1000, where they are cut; smaller ones lose some features. The published training has
    all scales in it for that reason.

    **Arguments:**

    - `hidden_sizes`: widths of the network's hidden layers.
    - `learning_rate`: α, a number or an optax schedule. `l2o_eqx.save` cannot store a schedule.
    - `weight_decay`: λ.
    - `vector_rate`: the rate of tensors with fewer than two axes, in units of α; 20 in their training.
    - `magnitude`: how much the second output counts; in the paper not at all.
    - `orthogonalize`: whether to bring the singular values of D near one first, by five Newton-Schulz steps.
        The paper's Celo2 does, its Celo2-base does not.
    - `decay`: `"cosine"` multiplies α by (1 + cos πs)/2 + 1/100 with s the share of the steps that are done.
    - `num_steps`: how many there are where `init` is not told.
    - `start`: what it does before it is trained. `"adam"`: two units of every layer hand on m_0.9·i, and the
        other weights of the outputs are zero, so that it starts as Adam. `"random"`, as in the paper: it
        moves anywhere, with weights from a normal distribution of deviation 1/√inputs, cut at two of these.
    - `key`: draws the weights.

    **Raises:** `ValueError` for no layers or sizes below 1 (2 to start as Adam), no steps, a negative weight
    decay, rate of vectors or magnitude, an unknown `decay` or `start`, or an `update` without params.

    Reference: Moudgil, Knyazev & Belilovsky 2026, "Celo2: Towards learned optimization free lunch"
    (arXiv:2602.19142), and the code published with it (github.com/amoudgl/celo2); features after Metz et al.
    2022, "VeLO" (arXiv:2211.09760), and Shazeer & Stern 2018, "Adafactor" (arXiv:1804.04235).
    """

    layers: tuple[eqx.nn.Linear, ...]
    learning_rate: float | optax.Schedule = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    vector_rate: float = eqx.field(static=True)
    magnitude: float = eqx.field(static=True)
    orthogonalize: bool = eqx.field(static=True)
    decay: Decay = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        hidden_sizes: tuple[int, ...] = (8, 8),
        learning_rate: float | optax.Schedule = 1e-3,
        *,
        weight_decay: float = 0.0,
        vector_rate: float = 20.0,
        magnitude: float = 0.0,
        orthogonalize: bool = False,
        decay: Decay = "none",
        num_steps: int = 100,
        start: Start = "adam",
        key: PRNGKeyArray,
    ):
        if start not in ("adam", "random"):
            raise ArgumentError(
                f"`Celo2(start={start!r})`: it starts as 'adam' or 'random'.",
                argument="start",
                given=start,
                possible=("adam", "random"),
            )
        least = 2 if start == "adam" else 1
        check(
            f"`Celo2(start={start!r})` needs at least one hidden layer of at least {least} units, a step, "
            f"and nothing negative. Got hidden_sizes={hidden_sizes}, num_steps={num_steps}, "
            f"weight_decay={weight_decay}, vector_rate={vector_rate}, magnitude={magnitude}.",
            hidden_sizes=(hidden_sizes, min(hidden_sizes, default=0) >= least),
            num_steps=(num_steps, num_steps >= 1),
            weight_decay=(weight_decay, weight_decay >= 0),
            vector_rate=(vector_rate, vector_rate >= 0),
            magnitude=(magnitude, magnitude >= 0),
        )
        check_decay("Celo2", decay)
        sizes = (NUM_FEATURES, *hidden_sizes, _NUM_OUTPUTS)
        keys = jr.split(key, len(sizes) - 1)
        layers = [_random_layer(*pair, key=k) for pair, k in zip(pairwise(sizes), keys, strict=True)]
        self.layers = tuple(_starting_as_adam(layers) if start == "adam" else layers)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.vector_rate = vector_rate
        self.magnitude = magnitude
        self.orthogonalize = orthogonalize
        self.decay = decay
        self.num_steps = num_steps

    def init(self, params: Params, num_steps: StepNumber | None = None) -> State:
        """The state before the first of `num_steps` steps, by default as many as the constructor was told."""
        horizon = jnp.asarray(self.num_steps if num_steps is None else num_steps, jnp.result_type(float))
        leaves = jax.tree.leaves(params)
        matrices = [no_moments(x) if _is_matrix(x) else None for x in leaves]
        return _Celo2State(
            jnp.zeros((), jnp.int32), horizon, matrices, _ADAM_OF_VECTORS.init(_vectors(leaves))
        )

    def init_for(self, params: Params, num_steps: StepNumber) -> State:
        return self.init(params, num_steps)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None,
        *,
        value: Scalar | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if params is None:
            raise ArgumentError("`Celo2` looks at the params: hand them to `update`.", argument="params")
        leaves, treedef = jax.tree.flatten(grads)
        points = jax.tree.leaves(params)
        rate = self.learning_rate(state.step) if callable(self.learning_rate) else self.learning_rate
        rate *= decay_factor(self.decay, state.step, state.horizon)
        directions, vectors = _ADAM_OF_VECTORS.update(_vectors(leaves), state.vectors)
        # Of a step only gradients and moments are kept for the reverse pass.
        find = jax.checkpoint(functools.partial(direct, self.magnitude, self.orthogonalize))
        updates, matrices = [], []
        for grad, param, moments, direction in zip(leaves, points, state.matrices, directions, strict=True):
            own_rate = self.vector_rate * rate
            if moments is not None:
                direction, moments = find(self.layers, grad, param, moments)
                own_rate = rate
            step = direction + self.weight_decay * param.astype(direction.dtype)
            updates.append((-own_rate.astype(step.dtype) * step).astype(param.dtype))
            matrices.append(moments)
        return treedef.unflatten(updates), _Celo2State(state.step + 1, state.horizon, matrices, vectors)


def _is_matrix(leaf: Array) -> bool:
    return leaf.ndim > 1 and leaf.size > 0


def _vectors(leaves: list[Array]) -> list[Array | None]:
    return [None if _is_matrix(x) else x.astype(wide_dtype_of(x.dtype)) for x in leaves]


def _random_layer(num_inputs: int, num_outputs: int, *, key: PRNGKeyArray) -> eqx.nn.Linear:
    layer = eqx.filter_eval_shape(eqx.nn.Linear, num_inputs, num_outputs, key=key)
    weight = jr.truncated_normal(key, -2, 2, (num_outputs, num_inputs)) / math.sqrt(num_inputs)
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (weight, jnp.zeros(num_outputs)))


def _starting_as_adam(layers: list[eqx.nn.Linear]) -> list[eqx.nn.Linear]:
    # The positive and the negative part of a feature, handed on as they are, and their difference.
    first, *others, last = layers
    rows = jnp.zeros((2, first.weight.shape[1])).at[:, ADAM].set(jnp.array([1.0, -1.0]))
    weights = [first.weight.at[:2].set(rows)]
    weights += [x.weight.at[:2].set(jnp.eye(2, x.weight.shape[1])) for x in others]
    weights.append(jnp.zeros_like(last.weight).at[0, :2].set(jnp.array([1.0, -1.0])))
    return [eqx.tree_at(lambda x: x.weight, x, w) for x, w in zip(layers, weights, strict=True)]
