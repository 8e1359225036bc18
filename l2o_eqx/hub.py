"""Files of the Hugging Face hub, named `hf://owner/name`; needs the extra `hub`, and nothing else does."""

import errno
import os
import re

StrPath = str | os.PathLike[str]
PREFIX = "hf://"
# What `l2o export` writes, and what is read where no file is named.
OPTIMIZER = "optimizer.safetensors"
# A path of pathlib has one slash.
_PATTERN = re.compile(r"hf://?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?")


def is_on_hub(path: StrPath) -> bool:
    """Whether a path names a file of the hub."""
    return str(path).startswith(("hf://", "hf:/"))


def local_path(path: StrPath) -> StrPath:
    """A file of the hub, downloaded once into the hub's own cache; the optimizer in a folder; or the path.

    **Arguments:**

    - `path`: `hf://owner/name`, with `@revision` and `/file` if it is not the newest `optimizer.safetensors`;
        or a folder of `l2o export` or a run, of which that file is meant; or any other path.

    **Returns:** the path on the disk.

    **Raises:** `ModuleNotFoundError` without `huggingface_hub`; `FileNotFoundError` if there is no such
    repository, revision or file; other `OSError`s if it is out of reach; `ValueError` for another form.
    """
    if not is_on_hub(path):
        inside = os.path.join(path, OPTIMIZER)
        return inside if os.path.isfile(inside) else path
    found = _PATTERN.fullmatch(str(path))
    if found is None:
        raise ValueError(
            f"{path}: a file of the hub is named hf://owner/name, hf://owner/name@revision/file."
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"{path}: for the hub, `pip install 'l2o-eqx[hub]'`.", name=e.name
        ) from None
    try:
        return huggingface_hub.hf_hub_download(
            found["repo"],
            found["file"] or OPTIMIZER,
            revision=found["revision"],
            # The hub's own variables, which its package reads once, when it is imported.
            endpoint=os.environ.get("HF_ENDPOINT"),
            cache_dir=os.environ.get("HF_HUB_CACHE"),
        )
    except errors.LocalEntryNotFoundError as e:
        raise ConnectionError(errno.EHOSTUNREACH, "the hub is out of reach", str(path)) from e
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as e:
        raise FileNotFoundError(errno.ENOENT, "there is no such file on the hub", str(path)) from e
