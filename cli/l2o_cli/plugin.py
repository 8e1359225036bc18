"""What a command of another package is written with, so that it behaves like those that are here.

Such a command is an entry point of the group `l2o.commands`: a function as Typer takes it.
"""

from ._errors import UsageError as UsageError
from ._errors import suggestion as suggestion
from ._folder import check_free as check_free
from ._folder import make_folder as make_folder
from ._interrupt import interrupted as interrupted
from ._interrupt import run_interruptibly as run_interruptibly
from ._options import OUTPUT as OUTPUT
from ._options import AsJson as AsJson
from ._options import Cache as Cache
from ._options import Cores as Cores
from ._options import Quiet as Quiet
from ._options import folder_option as folder_option
from ._output import Output as Output
from ._start import start as start
