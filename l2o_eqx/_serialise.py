"""One file format for trained optimizers and for checkpoints: safetensors, with the tree described
in JSON. A file cannot make us run code: no pickle, no constructors, no imports but those below."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import itertools
import json
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from ._renamed import REMOVED, RENAMED
from .files import replacing
from .hub import local_path

StrPath = str | os.PathLike[str]
Metadata = Mapping[str, Any]
FORMAT = 1
PACKAGES = ("l2o_eqx", "equinox", "optax")  # whose classes a file may name
# The modules whose functions a file may name. Not all of `jax` and `l2o_eqx`: a forged file would
# take their callbacks, or `save`, for an activation.
HOMES = ("jax.nn", "jax.nn.initializers", "jax.numpy", "jax.lax", "optax")
OPEN_FILES = ("jax.numpy:load", "jax.numpy:fromfile")
MLP_DEFAULT = "equinox.nn._mlp:_identity"  # has no name of its own
OWN_PARTS = ("objectives", "optimizers", "preprocessors", "strategies", "weightings")
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class FileFormatError(ValueError):
    """The file is damaged, was not written by `save`, or was written by a newer version."""


def save(path: StrPath, tree: PyTree, *, metadata: Metadata | None = None, structure: bool = True) -> Path:
    """Writes a tree to one file, whole or not at all: a reader sees the old file or the new one.

    It is an ordinary safetensors file; other tools read its arrays by name (`cells.0.weight_ih`).
    The same tree and metadata give the same bytes.

    **Arguments:**

    - `path`: used as it is; the folder must exist.
    - `tree`: Equinox modules, tuples, named tuples, lists, dicts with string keys, None, numbers,
        strings, dtypes, arrays, PRNG keys, and functions that can be imported from `jax.nn`,
        `jax.numpy`, `jax.lax`, `optax` or the parts of this package.
    - `metadata`: what JSON can hold; `load_metadata` returns it.
    - `structure`: if `False`, only the arrays are stored, and `load` needs `like`.

    **Returns:** the path.

    **Raises:** `TypeError`, before the disk is touched, naming what cannot be stored and its place.
    """
    path, arrays, kinds = Path(path), {}, {}
    used = (sys.modules["l2o_eqx"], eqx, jax)
    versions = {module.__name__: getattr(module, "__version__", None) for module in used}
    header: dict[str, Any] = {"format": FORMAT, "versions": versions, "kinds": kinds}
    header["metadata"] = dict(metadata or {})
    if structure:
        header["structure"] = _encode(tree, (), arrays, kinds)
    else:
        for keys, leaf in filter(lambda item: _is_array(item[1]), jtu.tree_leaves_with_path(tree)):
            _add(leaf, _name(keys), arrays, kinds)
    header = json.loads(dumps(header))  # The sha256 is of what `load` will see.
    header["sha256"] = _digest(header, arrays)
    # One metadata key: safetensors writes several in random order.
    content = to_safetensors(arrays, metadata={"l2o_eqx": dumps(header)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def load(path: StrPath, *, like: PyTree = None, classes: Sequence[type] = ()) -> PyTree:
    """Reads what `save` wrote, bit for bit. Modules are rebuilt field by field, not constructed.

    **Arguments:**

    - `path`: the file, or `hf://owner/name` of the Hugging Face hub, with `@revision` and `/file` if it is
        not the newest `optimizer.safetensors` there (extra `hub`).
    - `like`: a tree, e.g. from `eqx.filter_eval_shape`, whose arrays are replaced by those of the
        same name in the file; all else is kept. For files saved with `structure=False`, and for
        classes that have changed since.
    - `classes`: your own module or named tuple classes that the file may use, found by module and
        name. Those of `l2o_eqx`, `equinox` and `optax` are known.

    **Returns:** the tree.

    **Raises:** `FileNotFoundError`; `FileFormatError` for damaged, foreign and too new files;
    `ModuleNotFoundError` for the hub without its extra; `ValueError` for classes that are not allowed or
    have other fields, and for a wrong `like`.
    """
    known = {f"{c.__module__}:{c.__qualname__}": c for c in classes}
    known |= {_import_name(c): c for c in classes}
    header, arrays = _read(path)
    try:
        if like is not None:
            return _fill(like, arrays, header["kinds"])
        if "structure" not in header:
            raise ValueError("only the arrays were saved; use `load(path, like=...)`")
        arrays = {name: _restore(x, name, header["kinds"][name]) for name, x in arrays.items()}
        return _build(header["structure"], arrays, known)
    except (LookupError, TypeError, AttributeError, RecursionError) as e:
        raise FileFormatError(f"{path}: the description of the tree is wrong: {e!r}.") from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}.") from e


def load_metadata(path: StrPath) -> dict[str, Any]:
    """The `metadata` that `save` was given; the whole file is checked, as in `load`.

    **Arguments:**

    - `path`: the file.

    **Returns:** the metadata; empty if there was none.

    **Raises:** `FileNotFoundError`, `FileFormatError`.
    """
    return _read(path)[0]["metadata"]


def load_header(path: StrPath) -> dict[str, Any]:
    """What a file of `save` says of itself, without its classes; the whole file is checked, as in `load`.

    **Arguments:**

    - `path`: the file.

    **Returns:** `format`, the version of the file's format; `versions` of the packages that wrote it;
    `metadata`; `structure`, the tree as `save` describes it, `None` if only the arrays were saved; `arrays`,
    by name the `shape` and the `dtype` of each.

    **Raises:** `FileNotFoundError`, `FileFormatError`.
    """
    header, arrays = _read(path)
    kept = {name: header[name] for name in ("format", "versions", "metadata")}
    shapes = {name: {"shape": [*x.shape], "dtype": x.dtype.name} for name, x in arrays.items()}
    return {**kept, "structure": header.get("structure"), "arrays": shapes}


def _encode(x: Any, path: tuple[str, ...], arrays: dict, kinds: dict, static: bool = False) -> Any:
    if x is None or type(x) in (bool, int, float, str):
        return x
    if _is_array(x):
        # `load(like=...)` must not ask for arrays that are no leaves. No other name begins so.
        return {"array": _add(x, "~static." * static + _name(path), arrays, kinds)}
    frozen: list[str] = []
    if isinstance(x, eqx.Module):
        items = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
        frozen = [f.name for f in dataclasses.fields(x) if f.metadata.get("static")]
    elif _is_namedtuple(type(x)):
        items = x._asdict()
    elif type(x) in (list, tuple):
        items = {str(i): v for i, v in enumerate(x)}
    elif type(x) is dict and all(type(k) is str for k in x):
        items = x
    elif isinstance(x, np.dtype) and x.name in DTYPES.split() and x.isnative:
        return {"dtype": x.name}
    else:
        with contextlib.suppress(ValueError):
            if _import(name := _import_name(x), function=True) is x:
                return {"function": name}
        raise TypeError(
            f"`save` cannot store `{_name(path) or 'tree'}`, the {type(x).__name__} {x!r:.60}: it "
            f"is neither data nor importable from {', '.join(HOMES)} or a part of l2o_eqx. To "
            "store only the arrays, use `save(..., structure=False)` and `load(..., like=...)`."
        )
    node = {}
    for k, v in items.items():
        node[k] = _encode(v, (*path, k), arrays, kinds, static or k in frozen)
    if type(x) in (list, tuple):
        return {type(x).__name__: [*node.values()]}
    return {"dict": node} if type(x) is dict else {"class": [_import_name(type(x)), node]}


def _build(node: Any, arrays: dict[str, Any], classes: dict[str, type]) -> Any:
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag in ("list", "tuple"):
        items = [_build(v, arrays, classes) for v in value]
        return items if tag == "list" else tuple(items)
    if tag == "dict":
        return {k: _build(v, arrays, classes) for k, v in value.items()}
    if tag != "class":
        make = {"array": arrays.__getitem__, "dtype": jnp.dtype}
        return _import(value, function=True) if tag == "function" else make[tag](value)
    name, nodes = value
    cls: Any = classes.get(name) or _import(name, function=False)
    if _is_namedtuple(cls):
        fields = cls._fields
    elif isinstance(cls, type) and issubclass(cls, eqx.Module):
        fields = [f.name for f in dataclasses.fields(cls)]
    else:
        raise ValueError(f"`{name}` is neither an Equinox module nor a named tuple")
    defaults = _defaults(cls)
    missing, unexpected = sorted({*fields} - {*nodes} - {*defaults}), sorted({*nodes} - {*fields})
    if missing or unexpected:
        raise ValueError(
            f"the class `{name}` has changed: fields missing from the file {missing}, unexpected "
            f"fields {unexpected}; if the arrays are the same, use `load(path, like=...)`"
        )
    values = {k: _build(nodes[k], arrays, classes) if k in nodes else defaults[k]() for k in fields}
    if issubclass(cls, tuple):
        return tuple.__new__(cls, values.values())
    module = object.__new__(cls)  # As Equinox unflattens: no `__init__`, no `__check_init__`.
    for k, v in values.items():
        object.__setattr__(module, k, v)
    return module


def _defaults(cls: Any) -> dict[str, Callable[[], Any]]:
    # What a field has in files that are older than it. An optimizer keeps its numbers only if the default
    # is what the class did before it had the field.
    if not dataclasses.is_dataclass(cls):
        return {}
    found = {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            found[f.name] = lambda value=f.default: value
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = f.default_factory
    return found


def _fill(like: PyTree, arrays: dict[str, Any], kinds: dict[str, str]) -> PyTree:
    leaves, treedef = jtu.tree_flatten_with_path(like)
    new = {_name(keys): leaf for keys, leaf in leaves}
    for k in [k for k, kind in kinds.items() if kind not in ("jax", "numpy", "scalar")]:
        arrays[k] = _restore(arrays[k], k, kinds[k])  # PRNG keys
    wanted = {k: f"{x.dtype}{[*x.shape]}" for k, x in new.items() if _is_array(x)}
    found = {k: f"{x.dtype}{[*x.shape]}" for k, x in arrays.items() if not k.startswith("~static.")}
    pairs = {k: (found.get(k, "missing"), wanted.get(k, "absent")) for k in {*wanted, *found}}
    wrong = [f"`{k}` is {a}, in `like` {b}" for k, (a, b) in sorted(pairs.items()) if a != b]
    if wrong:
        raise ValueError(f"the file does not fit `like`: {'; '.join(wrong)}")
    for k in wanted:
        x = arrays[k]
        new[k] = x if isinstance(x, jax.Array) else _restore(x, k, _kind(new[k]))
    return treedef.unflatten(new.values())


def _add(x: Any, name: str, arrays: dict[str, np.ndarray], kinds: dict[str, Any]) -> str:
    kind = _kind(x)
    if kind == "jax" and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, kind = jax.random.key_data(x), jax.random.key_impl(x)
    x = np.asarray(x, order="C")  # safetensors writes the memory as it lies
    if x.dtype.name not in DTYPES.split() or not x.dtype.isnative or name in arrays:
        why = "is there twice" if name in arrays else f"is {x.dtype}, not one of {DTYPES}"
        raise TypeError(f"`save` cannot store the array `{name}`: it {why}.")
    arrays[name], kinds[name] = x, kind
    return name


def _restore(x: np.ndarray, name: str, kind: str) -> Any:
    if kind in ("numpy", "scalar"):
        return x if kind == "numpy" else x[()]
    array = jnp.asarray(x)
    if array.dtype != x.dtype:
        fix = 'jax.config.update("jax_enable_x64", True)'
        raise ValueError(f"`{name}` is {x.dtype}, for which JAX needs `{fix}`")
    return array if kind == "jax" else jax.random.wrap_key_data(array, impl=kind)


def _read(path: StrPath) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    path = local_path(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not the file of an optimizer", str(path))
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["l2o_eqx"])
            if header["format"] > FORMAT:
                raise FileFormatError(f"{path}: format {header['format']} needs a newer l2o_eqx.")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if header.pop("sha256") != _digest(header, arrays):
            raise FileFormatError(f"{path} is damaged: the content does not match its sha256.")
    except OSError as e:
        if e.filename is not None or str(path) in str(e):
            raise
        raise OSError(e.errno, e.strerror or str(e), str(path)) from e
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as e:
        if isinstance(e, FileFormatError):
            raise
        raise FileFormatError(f"{path} is damaged or not from `l2o_eqx.save`: {e!r}.") from e
    return header, arrays


def _digest(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(dumps(header).encode())
    for name, x in sorted(arrays.items()):
        digest.update(dumps([name, x.dtype.name, x.shape]).encode() + x.tobytes())
    return digest.hexdigest()


def _import(name: str, *, function: bool) -> Any:
    name = RENAMED.get(name, name)
    if name in REMOVED:
        raise ValueError(f"it holds a `{name}`, which is no more. {REMOVED[name]}")
    module, _, qualname = name.partition(":")
    allowed = module.split(".")[0] in PACKAGES
    if function:
        own = module.startswith(tuple(f"l2o_eqx.{part}" for part in OWN_PARTS))
        allowed = (own or module in HOMES) and "." not in qualname and name not in OPEN_FILES
        allowed = allowed or name == MLP_DEFAULT
    if allowed and "__" not in module:
        with contextlib.suppress(ImportError, AttributeError):
            found = operator.attrgetter(qualname)(importlib.import_module(module))
            # Not what the module itself imported from elsewhere.
            if found.__module__.split(".")[0] == module.split(".")[0]:
                return found
    raise ValueError(
        f"the file asks for `{name}`; only classes of {', '.join(PACKAGES)}, as installed here, "
        "and some functions are imported for a file. If it is a class that you trust, use "
        f"`load(path, classes=[{qualname}])`; if it is gone, `load(path, like=...)`"
    )


def _import_name(x: Any) -> str:
    # The public place, where there is one: a file then survives a move of the private module.
    module = str(getattr(x, "__module__", None))
    name = str(getattr(x, "__qualname__", None) or getattr(x, "__name__", None))
    public = list(itertools.takewhile(lambda part: part[:1] != "_", module.split(".")))
    above = [".".join(public[:end]) for end in range(len(public), 0, -1)]
    homes = [f"{home}:{name}" for home in (above if isinstance(x, type) else (*HOMES, *above))]
    for candidate in (*homes, MLP_DEFAULT):
        home, _, attribute = candidate.partition(":")
        with contextlib.suppress(KeyError, AttributeError):
            if operator.attrgetter(attribute)(sys.modules[home]) is x:
                return candidate
    return f"{module}:{name}"


def _kind(x: Any) -> str:
    return "scalar" if isinstance(x, np.generic) else "numpy" if type(x) is np.ndarray else "jax"


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.generic | jax.ShapeDtypeStruct) or type(x) is np.ndarray


def _is_namedtuple(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def _name(path: Iterable[Any]) -> str:
    parts = (k if isinstance(k, str) else jtu.keystr((k,), simple=True) for k in path)
    # A dot inside a dict key must not look like one more level; `__metadata__` is safetensors' own.
    name = ".".join(part.replace("~", "~0").replace(".", "~1") for part in parts)
    return "~2" if name == "__metadata__" else name
