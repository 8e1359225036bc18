"""What the processes of a `jax.distributed` tell each other; one process alone talks to nobody."""

import jax
import numpy as np


def is_first_process() -> bool:
    """Whether this one is the process that writes, if there are several."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether a flag is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag, np.int32))))


def from_first_process(content: bytes) -> bytes:
    """What the first process has; all of them must ask, and what others have is ignored."""
    if jax.process_count() == 1:
        return content
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content), np.int32)))
    own = np.frombuffer(content, np.uint8) if is_first_process() else np.zeros(length, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own), np.uint8).tobytes()
