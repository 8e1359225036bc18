"""Functions that are written out, with a known minimum; one a file."""

from ._ackley import Ackley as Ackley
from ._base import AbstractFunction as AbstractFunction
from ._base import FunctionObjective as FunctionObjective
from ._beale import Beale as Beale
from ._booth import Booth as Booth
from ._branin import Branin as Branin
from ._dependency_chain import DependencyChain as DependencyChain
from ._goldstein_price import GoldsteinPrice as GoldsteinPrice
from ._hartmann import Hartmann as Hartmann
from ._matyas import Matyas as Matyas
from ._michalewicz import Michalewicz as Michalewicz
from ._min_max_well import MinMaxWell as MinMaxWell
from ._rastrigin import Rastrigin as Rastrigin
from ._rosenbrock import Rosenbrock as Rosenbrock
from ._styblinski_tang import StyblinskiTang as StyblinskiTang
