"""The thesis's figures as recipes: experiments composed of this package's parts, and what they decide.

`FIGURES` has a function `(Setup) -> Figure` for every figure and for sections without one; `reproduce` runs
them. Each of these functions is meant to be read and copied.
"""

from collections.abc import Callable

from ._claims import CLAIMS as CLAIMS
from ._claims import ThesisClaim as ThesisClaim
from ._experiment import Experiment as Experiment
from ._experiment import Pretraining as Pretraining
from ._experiment import Results as Results
from ._experiment import run as run
from ._fig_gradients import fig9, fig10, fig11
from ._fig_networks import fig12, fig13, fig14, fig15, fig17
from ._fig_training import every_step, fig7, fig8, fig18, fig19
from ._figure import Figure as Figure
from ._figure import Panel as Panel
from ._kept import Outlook as Outlook
from ._report import write_report as write_report
from ._reproduce import Reproduction as Reproduction
from ._reproduce import Request as Request
from ._reproduce import reproduce as reproduce
from ._runner import num_processes as num_processes
from ._sec_baselines import baselines
from ._sec_conv import conv
from ._sec_gradients import gradients
from ._sec_output import output_layer
from ._sec_pretraining import pretraining_loss
from ._sec_settings import batch_size, learning_rate, readout, transfer
from ._sec_windows import windows
from ._setup import Setup as Setup
from ._thesis import BIN_EDGES as BIN_EDGES
from ._thesis import CURVES as CURVES
from ._thesis import HISTOGRAMS as HISTOGRAMS
from ._thesis import ReferenceCurve as ReferenceCurve
from ._verdicts import Verdict as Verdict

FIGURES: dict[str, Callable[[Setup], Figure]] = {
    "fig7": fig7,
    "fig8": fig8,
    "fig9": fig9,
    "fig10": fig10,
    "fig11": fig11,
    "fig12": fig12,
    "fig13": fig13,
    "fig14": fig14,
    "fig15": fig15,
    "fig17": fig17,
    "fig18": fig18,
    "fig19": fig19,
    "every-step": every_step,
    "readout": readout,
    "learning-rate": learning_rate,
    "batch-size": batch_size,
    "gradients": gradients,
    "output-layer": output_layer,
    "conv": conv,
    "pretraining-loss": pretraining_loss,
    "windows": windows,
    "transfer": transfer,
    "baselines": baselines,
}
"""The figures by name. Figure 16 is a diagram and has no numbers."""
