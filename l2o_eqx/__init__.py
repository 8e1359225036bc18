"""Learned optimizers in JAX and Equinox: meta-train them, compare them, use them in any optax loop.

Names are imported when they are first used, so that `import l2o_eqx` alone does not start JAX.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

__version__ = importlib.metadata.version("l2o-eqx")

if TYPE_CHECKING:
    from . import callbacks as callbacks
    from . import control as control
    from . import data as data
    from . import estimators as estimators
    from . import files as files
    from . import gallery as gallery
    from . import hub as hub
    from . import meta_optimizers as meta_optimizers
    from . import numpy_runtime as numpy_runtime
    from . import objectives as objectives
    from . import optimizers as optimizers
    from . import outputs as outputs
    from . import plots as plots
    from . import preprocessors as preprocessors
    from . import strategies as strategies
    from . import transforms as transforms
    from . import weightings as weightings
    from ._adapt import adapt as adapt
    from ._as_optax import LearnedTransformation as LearnedTransformation
    from ._as_optax import as_optax as as_optax
    from ._as_optax import scale_by_learned as scale_by_learned
    from ._baselines import BASELINES as BASELINES
    from ._baselines import LEARNING_RATES as LEARNING_RATES
    from ._baselines import SCHEDULES as SCHEDULES
    from ._baselines import Baseline as Baseline
    from ._baselines import LineSearch as LineSearch
    from ._baselines import baselines_for as baselines_for
    from ._card import Card as Card
    from ._card import CardRow as CardRow
    from ._compare import ComparisonProgress as ComparisonProgress
    from ._compare import compare as compare
    from ._comparison import Comparison as Comparison
    from ._comparison import Share as Share
    from ._curriculum import Curriculum as Curriculum
    from ._curriculum import CurriculumSolution as CurriculumSolution
    from ._curriculum import Stage as Stage
    from ._curriculum import train_curriculum as train_curriculum
    from ._devices import use_cores as use_cores
    from ._distill import Distillation as Distillation
    from ._distill import Fit as Fit
    from ._distill import FittedEquation as FittedEquation
    from ._distill import distill as distill
    from ._environment import environment as environment
    from ._errors import ArgumentError as ArgumentError
    from ._errors import NanWarning as NanWarning
    from ._errors import SkippedUpdatesWarning as SkippedUpdatesWarning
    from ._errors import UntrainedNumberWarning as UntrainedNumberWarning
    from ._errors import ZeroGradientWarning as ZeroGradientWarning
    from ._evaluate import EvaluationProgress as EvaluationProgress
    from ._evaluate import Trajectories as Trajectories
    from ._evaluate import evaluate as evaluate
    from ._find_nan import NanPlace as NanPlace
    from ._generalization import CardProgress as CardProgress
    from ._generalization import generalization_card as generalization_card
    from ._imitate import ImitationSolution as ImitationSolution
    from ._imitate import imitate as imitate
    from ._meta_gradient import MetaGradient as MetaGradient
    from ._meta_gradient import meta_gradient as meta_gradient
    from ._meta_gradient import recorded_meta_gradient as recorded_meta_gradient
    from ._meta_step import MetaState as MetaState
    from ._meta_step import init_meta_state as init_meta_state
    from ._meta_step import meta_step as meta_step
    from ._meta_train import FailedObjective as FailedObjective
    from ._meta_train import MetaSolution as MetaSolution
    from ._meta_train import Progress as Progress
    from ._meta_train import count_meta_parameters as count_meta_parameters
    from ._meta_train import meta_train as meta_train
    from ._meta_train import select_restart as select_restart
    from ._policy_search import policy_search as policy_search
    from ._pretrain import PretrainProgress as PretrainProgress
    from ._pretrain import PretrainSolution as PretrainSolution
    from ._pretrain import PretrainState as PretrainState
    from ._pretrain import pretrain as pretrain
    from ._pretrain_step import sign_weighted_loss as sign_weighted_loss
    from ._pretraining_report import PretrainReport as PretrainReport
    from ._pretraining_report import pretraining_report as pretraining_report
    from ._probe_updates import UpdateProbes as UpdateProbes
    from ._probe_updates import probe_updates as probe_updates
    from ._random_search import RandomSearch as RandomSearch
    from ._record_answers import AnswerRecord as AnswerRecord
    from ._record_answers import record_answers as record_answers
    from ._serialise import FileFormatError as FileFormatError
    from ._serialise import load as load
    from ._serialise import load_header as load_header
    from ._serialise import load_metadata as load_metadata
    from ._serialise import save as save
    from ._snapshots import Average as Average
    from ._snapshots import Snapshot as Snapshot
    from ._snapshots import Validation as Validation
    from ._space import Box as Box
    from ._space import Space as Space
    from ._unroll import Unroll as Unroll
    from ._unroll import unroll as unroll
    from ._variations import Variation as Variation
    from ._variations import variations as variations
    from .callbacks import StopTraining as StopTraining
    from .gallery import pretrained as pretrained
    from .meta_optimizers import default_meta_optimizer as default_meta_optimizer
    from .objectives import count_coordinates as count_coordinates

_NAMESPACES = [
    "callbacks",
    "control",
    "data",
    "estimators",
    "files",
    "gallery",
    "hub",
    "meta_optimizers",
    "numpy_runtime",
    "objectives",
    "optimizers",
    "outputs",
    "plots",
    "preprocessors",
    "strategies",
    "transforms",
    "weightings",
]
_NAMES = {
    name: module
    for module, names in {
        "_adapt": "adapt",
        "_as_optax": "LearnedTransformation as_optax scale_by_learned",
        "_baselines": "BASELINES LEARNING_RATES SCHEDULES Baseline LineSearch baselines_for",
        "_card": "Card CardRow",
        "_compare": "ComparisonProgress compare",
        "_comparison": "Comparison Share",
        "_curriculum": "Curriculum CurriculumSolution Stage train_curriculum",
        "_devices": "use_cores",
        "_distill": "Distillation Fit FittedEquation distill",
        "_environment": "environment",
        "_errors": "ArgumentError NanWarning SkippedUpdatesWarning "
        "UntrainedNumberWarning ZeroGradientWarning",
        "_evaluate": "EvaluationProgress Trajectories evaluate",
        "_find_nan": "NanPlace",
        "_generalization": "CardProgress generalization_card",
        "_imitate": "ImitationSolution imitate",
        "_meta_gradient": "MetaGradient meta_gradient recorded_meta_gradient",
        "_meta_step": "MetaState init_meta_state meta_step",
        "_meta_train": "FailedObjective MetaSolution Progress count_meta_parameters meta_train "
        "select_restart",
        "_policy_search": "policy_search",
        "_pretrain": "PretrainProgress PretrainSolution PretrainState pretrain",
        "_pretrain_step": "sign_weighted_loss",
        "_pretraining_report": "PretrainReport pretraining_report",
        "_probe_updates": "UpdateProbes probe_updates",
        "_random_search": "RandomSearch",
        "_record_answers": "AnswerRecord record_answers",
        "_serialise": "FileFormatError load load_header load_metadata save",
        "_snapshots": "Average Snapshot Validation",
        "_space": "Box Space",
        "_unroll": "Unroll unroll",
        "_variations": "Variation variations",
        "callbacks": "StopTraining",
        "gallery": "pretrained",
        "meta_optimizers": "default_meta_optimizer",
        "objectives": "count_coordinates",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_NAMESPACES, *_NAMES])
