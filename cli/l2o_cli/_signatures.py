"""Signatures and docstrings: of the library read from its sources, not imported; of plug-ins, live."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._types import BOOL, FLOAT, INT, TEXT, UNKNOWN, Type, type_of

# The abstract class of every kind of plug-in, by the library's folder.
GROUPS = {
    "objectives": "AbstractObjectiveFamily",
    "optimizers": "AbstractOptimizer",
    "preprocessors": "AbstractPreprocessor",
    "outputs": "AbstractOutput",
    "estimators": "AbstractEstimator",
    "strategies": "AbstractUpdateStrategy",
    "weightings": "AbstractWeighting",
}
_GROUP_OF = {abstract: group for group, abstract in GROUPS.items()}
REQUIRED = inspect.Parameter.empty


class Reference(NamedTuple):
    """A default that is no plain value: its text in the source."""

    text: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor or a verb; `help` is what its docstring says of it."""

    name: str
    type: Type
    default: Any = REQUIRED
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Signature:
    """How something is made. `summary` is the first line of its docstring."""

    parameters: dict[str, Parameter]
    summary: str

    @property
    def is_complete(self) -> bool:
        """Whether the command line can give all that must be given."""
        given = self.parameters.values()
        return all(p.type.name != "unknown" or p.default is not REQUIRED for p in given)


def read_arguments(doc: str) -> dict[str, str]:
    """What a docstring's **Arguments:** say, by name, as one line of plain text each."""
    _, _, rest = inspect.cleandoc(doc).partition("**Arguments:**")
    section = re.split(r"\n\*\*", rest)[0]
    found = {}
    for entry in re.split(r"\n- ", section)[1:]:
        names, _, text = entry.partition(":")
        text = " ".join(re.split(r"\n\n|\n(?! )", text)[0].split())
        found |= {name.strip("` "): text for name in re.split(r", | and ", names)}
    return found


# Live signatures.


def live_signature(target: Any) -> Signature:
    """Of a class, made by its classmethod `make` if it has one, or of a function.

    **Raises:** `ValueError` or `TypeError` where Python knows none.
    """
    made_by = getattr(target, "make", target) if inspect.isclass(target) else target
    try:
        parameters = inspect.signature(made_by, eval_str=True).parameters
    except NameError:
        parameters = inspect.signature(made_by).parameters
    docs = read_arguments(inspect.getdoc(target) or "") | read_arguments(inspect.getdoc(made_by) or "")
    found = {}
    for name, p in parameters.items():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        kind = type_of(p.annotation, _GROUP_OF)
        if kind == UNKNOWN and inspect.isclass(target):
            # Equinox hides the annotations of fields that are converted.
            fields = [vars(c).get("__annotations__", {}).get(name) for c in target.__mro__]
            kind = type_of(next(filter(None, fields), None), _GROUP_OF)
        kind = _type_of_value(p.default) if kind == UNKNOWN else kind
        default = p.default if _is_plain(p.default) else Reference(_written(p.default))
        found[name] = Parameter(name, _of_context(name, kind), default, _help(docs.get(name)))
    return Signature(found, (inspect.getdoc(target) or "").partition("\n")[0])


def _of_context(name: str, kind: Type) -> Type:
    # A key and the params of the objective are the command line's own to give, under these names.
    if name == "key":
        return Type("key")
    return UNKNOWN if kind.name == "params" and name != "params" else kind


def _written(value: Any) -> str:
    # A plug-in with nothing but defaults is written as its constructor.
    return f"{type(value).__name__}()" if type(value).__module__ != "builtins" else repr(value)


def _type_of_value(value: Any) -> Type:
    plain = {bool: BOOL, int: INT, float: FLOAT, str: TEXT}
    return plain.get(type(value), UNKNOWN)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or value is REQUIRED or isinstance(value, bool | int | float | str)


def _help(text: str | None) -> str:
    # The first sentence, without markup.
    text = str(re.split(r"(?<=[a-z0-9)`\"]{2})\.(?= [A-Z`(])", text or "")[0]).rstrip(".")
    text = re.sub(r"`\"?([^`\"]*)\"?`", r"\1", text.replace("[`", "`").replace("`][]", "`"))
    # A symbol at the beginning stays as it is.
    is_word = text[:2].isascii() and (text[:2].isalpha() or text[:2] == "a ")
    return f"{text[:1].upper() if is_word else text[:1]}{text[1:]}." if text else ""


# Signatures from sources.


class _Anything(type):
    # Stands for whatever a source speaks of that is not known here.
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stub(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls


def _stub(name: str) -> Any:
    return _Anything(name, (), {})


class Module:
    """The source of a module, and those it imports from in its package."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self.is_package = path.name == "__init__.py"
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined: dict[str, Any] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        # Also what is imported for type checkers alone, as names are that a package loads when they are used.
        inner = [n for node in self.tree.body if isinstance(node, ast.If) for n in node.body]
        for node in [*inner, *self.tree.body]:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.defined[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom) and node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + self.is_package]
                home = ".".join([*above, *([node.module] if node.module else [])])
                self.imported |= {a.asname or a.name: (home, a.name) for a in node.names}

    def find(self, name: str) -> "tuple[Module, Any] | None":
        """Where a name is defined, and its node."""
        if name in self.defined:
            return self, self.defined[name]
        home, original = self.imported.get(name, ("", ""))
        module = find_module(home) if home else None
        return module.find(original) if module else None

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression; what is unknown is a stub."""
        code = compile(ast.fix_missing_locations(ast.Expression(node)), str(self.path), "eval")
        return eval(code, {"__builtins__": {}}, _Names(self))


class _Names(Mapping[str, Any]):
    _KNOWN: typing.ClassVar[dict[str, Any]] = {
        t.__name__: t for t in (int, float, bool, str, tuple, list, set, frozenset, dict)
    } | {name: getattr(typing, name) for name in ("Literal", "Callable", "Sequence")}

    def __init__(self, module: Module):
        self.module = module

    def __getitem__(self, name: str) -> Any:
        if name in self._KNOWN:
            return self._KNOWN[name]
        found = self.module.find(name)
        if found is None or not isinstance(found[1], ast.expr):
            return _stub(name)
        try:
            return found[0].evaluate(found[1])
        except Exception:
            return _stub(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@functools.cache
def find_module(name: str) -> Module | None:
    """A module's source, without importing the module; `None` if there is none."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if rest:
        base = path.parent.joinpath(*rest)
        candidates = (base.with_name(base.name + ".py"), base / "__init__.py")
        path = next((p for p in candidates if p.is_file()), base)
    return Module(name, path) if path.is_file() and path.suffix == ".py" else None


def exported(module: Module) -> list[str]:
    """The public names that a package's `__init__` imports from its modules."""
    return [name for name in module.imported if not name.startswith("_")]


def static_signature(module: Module, name: str) -> Signature:
    """As `live_signature`, from the source."""
    found = module.find(name)
    assert found is not None, name
    home, node = found
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        functions = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
        maker = functions.get("make") or functions.get("__init__")
        raw = list(_of_function(home, maker))[1:] if maker else list(_of_fields(home, node))
        own = read_arguments(ast.get_docstring(maker) or "") if maker else {}
    else:
        raw, own = list(_of_function(home, node)), {}
    docs = read_arguments(doc)
    found_parameters = {}
    for parameter, annotation, default in raw:
        text = own.get(parameter) or ""
        text = docs.get(parameter, "") if text.startswith("as above") or not text else text
        text = _follow(text, parameter, home)
        kind = UNKNOWN if annotation is None else type_of(home.evaluate(annotation), _GROUP_OF)
        found_parameters[parameter] = _parameter(module, parameter, kind, home, default, _help(text))
    return Signature(found_parameters, doc.partition("\n")[0])


def _parameter(
    module: Module, name: str, kind: Type, home: Module, default: ast.expr | None, text: str
) -> Parameter:
    kind = _of_context(name, kind)
    if default is None:
        return Parameter(name, kind, help=text)
    value = home.evaluate(default)
    if not _is_plain(value):
        value = Reference(ast.unparse(default))
        prefix, _, first = value.text.partition("_")
        functions = [n for n in exported(module) if n.startswith(f"{prefix}_")]
        if value.text in functions:
            choices = tuple(n.removeprefix(f"{prefix}_") for n in functions)
            kind, value = Type("function", choices, prefix=f"{prefix}_"), first
    return Parameter(name, kind, value, text)


def _of_function(home: Module, node: Any) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    missing: list[Any] = [None] * (len(arguments) - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults, *node.args.kw_defaults]
    for argument, default in zip([*arguments, *node.args.kwonlyargs], defaults, strict=True):
        yield argument.arg, argument.annotation, default


def _of_fields(home: Module, node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    for base in node.bases:
        above = home.find(base.id) if isinstance(base, ast.Name) else None
        if above and isinstance(above[1], ast.ClassDef):
            yield from _of_fields(*above)
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if re.search("ClassVar|Abstract(Class)?Var", ast.unparse(field.annotation)):
                continue
            default: Any = field.value
            if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
                given = {k.arg: k.value for k in default.keywords}
                factory = given.get("default_factory")
                default = ast.Call(factory, [], []) if factory else given.get("default")
                if ast.unparse(given.get("init", ast.Constant(True))) == "False":
                    continue
            yield field.target.id, field.annotation, default


def _follow(text: str, name: str, home: Module) -> str:
    # "as in `X`", "see `l2o_eqx.x`": what is said there, if that is of the same parameter.
    found = re.search(r"(?:as in|see) `(?:l2o_eqx\.)?(\w+)`", text)
    other = None
    if found:
        package = find_module(home.name if home.is_package else home.name.rpartition(".")[0])
        library = find_module(f"l2o_eqx._{found[1]}")
        other = next((m.find(found[1]) for m in (package, library) if m and m.find(found[1])), None)
    if other is None:
        return text
    return read_arguments(ast.get_docstring(other[1]) or "").get(name, text)


def is_plugin(module: Module, name: str, abstract: str) -> bool:
    """Whether an exported name is a final class of a kind, or a function that says it returns one."""
    found = module.find(name)
    if found is None or name == abstract:
        return False
    home, node = found
    if isinstance(node, ast.FunctionDef):
        returned = node.returns
        # `as_optimizer` and its like convert what is there already.
        return (
            not name.startswith("as_")
            and isinstance(returned, ast.Name)
            and _derives(home, returned.id, abstract)
        )
    is_final = isinstance(node, ast.ClassDef) and not name.startswith("Abstract")
    return is_final and _derives(module, name, abstract)


def _derives(module: Module, name: str, abstract: str) -> bool:
    if name == abstract:
        return True
    found = module.find(name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return False
    bases = [ast.unparse(base).partition("[")[0] for base in found[1].bases]
    return any(_derives(found[0], base, abstract) for base in bases)
