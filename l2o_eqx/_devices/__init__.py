"""Everything about devices and about restarts: what is shared out over a mesh, and how.

Whoever is outside of this folder asks for work to be done over restarts, objectives or draws, or to leave
arrays where they are, and knows no mesh. Nothing in here knows an optimizer or an objective.
"""

from ._mesh import chunk_size as chunk_size
from ._mesh import evenly as evenly
from ._mesh import num_devices as num_devices
from ._mesh import replicate as replicate
from ._mesh import sharded_over_devices as sharded_over_devices
from ._mesh import side_by_side as side_by_side
from ._mesh import use_cores as use_cores
from ._placement import Placement as Placement
from ._placement import place as place
from ._processes import any_process as any_process
from ._processes import from_first_process as from_first_process
from ._processes import is_first_process as is_first_process
from ._restarts import Restarts as Restarts
from ._spread import is_spread as is_spread
from ._spread import keep_spread as keep_spread
from ._spread import spread_out as spread_out
