from ._bowl import Bowl
from ._choice import Choice
from ._functions import (
    Ackley,
    Beale,
    Booth,
    Branin,
    DependencyChain,
    Matyas,
    Michalewicz,
    MinMaxWell,
    Rastrigin,
    Rosenbrock,
    StyblinskiTang,
)
from ._log import Log
from ._logistic_regression import LogisticRegression
from ._mixture import Mixture
from ._noisy import Noisy
from ._norm import Norm
from ._outward_snake import OutwardSnake
from ._projection import Projection
from ._quadratic import Quadratic
from ._scaled import Scaled
from ._sparse_gradients import SparseGradients
from ._spectral_quadratic import SpectralQuadratic
from ._sum import Sum
from ._synthetic_classification import SyntheticClassification


def Wichrowska() -> Mixture:
    """Two dozen kinds of function to train one optimizer on: small, cheap, and each hard in its own way.

    Functions of two coordinates, of ten, softmax regression, networks with one hidden layer, and sums. What
    has params of the same shapes is one program (`Choice`). Which pathologies there are follows the paper;
    sizes are smaller, and the dimension is not drawn.

    Reference: Wichrowska et al. 2017, "Learned optimizers that scale and generalize" (arXiv:1703.04813),
    sec. 4 and appendix.
    """
    families = {
        "two-dimensional": Choice(_of_two_coordinates()),
        "ten-dimensional": Choice(_of_ten_coordinates()),
        "softmax": SyntheticClassification((), batch_size=20),
        "network": SyntheticClassification((10,), batch_size=20, activation=("sigmoid", "tanh")),
        "sum": Sum(Quadratic(6), Rosenbrock(4)),
    }
    counts = (11.0, 14.0, 4.0, 6.0, 2.0)
    return Mixture(families, dict(zip(families, counts, strict=True)))


def WichrowskaHeldOut() -> Mixture:
    """What an optimizer that is trained on `Wichrowska` is validated on: other sizes, and a deeper network.

    Reference: as of `Wichrowska`.
    """
    return Mixture(
        {
            "quadratic": SpectralQuadratic(24),
            "valley": Rosenbrock(5),
            "network": SyntheticClassification((8, 8), 4, activation="leaky_relu", batch_size=20),
        }
    )


def _of_two_coordinates():
    return {
        "ackley": Ackley(2),
        "beale": Beale(),
        "booth": Booth(),
        "bowl": Bowl(),
        "branin": Branin(),
        "log-rosenbrock": Log(Rosenbrock(2)),
        "matyas": Matyas(),
        "michalewicz": Michalewicz(2),
        "rastrigin": Rastrigin(2),
        "rosenbrock": Rosenbrock(2),
        "styblinski-tang": StyblinskiTang(2),
    }


def _of_ten_coordinates():
    return {
        "dependency-chain": DependencyChain(10),
        "log-quadratic": Log(Quadratic(10)),
        "logistic-regression": LogisticRegression(9),
        "min-max-well": MinMaxWell(10),
        "noisy": Noisy(Quadratic(10)),
        "norm": Norm(10),
        "outward-snake": OutwardSnake(10),
        "pointwise": Scaled(Quadratic(10), 1.0, 1.0, pointwise=(1e-2, 1e2)),
        "projection": Projection(10),
        "quadratic": Quadratic(10),
        "rosenbrock": Rosenbrock(10),
        "scaled": Scaled(Quadratic(10)),
        "sparse": SparseGradients(Quadratic(10)),
        "spectral-quadratic": SpectralQuadratic(10),
    }
