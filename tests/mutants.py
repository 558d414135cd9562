"""`make mutants`: change one thing at a time in the code that everything rests on, and see that a test fails.

Each mutant has a process of its own, in which it takes its module's place before any test is read. It is tried against
the unit tests that are named with its module. Whatever survives needs a reason in `_EQUIVALENT`.
"""

import argparse
import ast
import inspect
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from rich.progress import track

ROOT = Path(__file__).parents[1]
TESTS = {
    "crm_relay.signing": "tests/unit/test_signing.py",
    "crm_relay.brackets": "tests/unit/test_brackets.py",
    "crm_relay.delivery.ledger": "tests/unit/test_ledger.py",
    "crm_relay.delivery.inbox": "tests/unit/test_inbox.py",
    "crm_relay.delivery.budget": "tests/unit/test_budget.py",
}
"""Each module with the tests that must notice what is changed in it."""
_LONG_ENOUGH = "a day more or less: what is promised is that it outlives the longest replay window, 90 days"
_ROOM = "an item holds 400 KB, so there is room on either side"
_FOR_PEOPLE = "what stands there until the call is queued is written for people: no code reads it"
_EQUIVALENT: dict[str, dict[str, str]] = {
    "crm_relay.brackets": {
        "_path: return []  →  return None": "who asks for the path asks only whether there is one",
        "Tree: 'Tree'  →  'Treex'": "a name in a type, which nothing evaluates",
        "decode: b'&'  →  b'&x'": "a letter more in the first name makes no level",
    },
    "crm_relay.delivery.ledger": {
        "_KEPT: 400  →  401": _LONG_ENOUGH,
        "_KEPT: 86400  →  86401": _LONG_ENOUGH,
        "Effect: True  →  False": "frozen and slotted against ourselves: mypy notices who writes to an effect",
        "Ledger._claim: effect.owner and effect.lease_until > now  →  effect.lease_until > now": (
            "without an owner a lease is 0"
        ),
    },
    "crm_relay.delivery.inbox": {
        "_MOST_KEPT: 350000  →  350001": _ROOM,
        "quarantine: len(kept) > _MOST_KEPT  →  len(kept) >= _MOST_KEPT": _ROOM,
        "quarantine.kept: 2  →  3": "how much of the beginning is kept of what fits nowhere; a third tells the same",
        "accept.received: 'sha256'  →  'sha256x'": _FOR_PEOPLE,
        "accept.received: 'RECEIVED'  →  'RECEIVEDx'": _FOR_PEOPLE,
    },
    "crm_relay.delivery.budget": {
        "_KEPT: 3600  →  3601": "an hour, more or less: the item must outlive the longest wait, 5 s",
        "_next_free: 0.0  →  1.0": "a second later is 1970 as well",
        "Budget.take: break  →  continue": "the loop then goes round without doing anything",
        "Budget._forget_what_is_over: "
        "self._slots[0] + LATE < self._ports.clock.time()  →  self._slots[0] + LATE <= self._ports.clock.time()": (
            "a slot that is late by its margin to the very bit may be used or not: either keeps the distance"
        ),
    },
}
"""By module and by what `Mutant.says`: why no test can, or need, notice it."""
_ENOUGH = 0.9
_SECONDS = 30
"""A test that runs for longer is one that never ends, which is noticed."""
_PRELOADED = ["pytest", "hypothesis.stateful", "tests.conftest"]
"""What the tests of all mutants import."""

_PAIRS: tuple[tuple[type[ast.AST], type[ast.AST]], ...] = (
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.And, ast.Or),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.FloorDiv),
    (ast.Break, ast.Continue),
)
_OPPOSITES = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])} | {ast.Div: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """A module with one change; `says` names what was changed, what stood in its `line`, and what stands there now."""

    module: str
    line: int
    says: str
    code: str


def mutants(module: str, code: str) -> Iterator[Mutant]:
    """Yield every module that differs from this one in one place: an operator, a constant, a condition, a call."""
    tree = ast.parse(code)
    _without_annotations(tree)
    names, owners = set(_values_of_enums(tree)), dict(_owners(tree))
    for place, node in enumerate(ast.walk(tree)):
        if node in names:
            continue
        for way, _ in enumerate(_changed(deepcopy(node))):
            whole = deepcopy(tree)
            victim = next(each for number, each in enumerate(ast.walk(whole)) if number == place)
            replacement = _changed(victim)[way]
            changed = _Replace(victim, replacement).visit(whole)
            line = getattr(node, "lineno", 0)
            change = f"{ast.unparse(node).splitlines()[0]}  →  {ast.unparse(replacement).splitlines()[0]}"
            says = f"{owners.get(node, '')}: {change}"
            yield Mutant(module, line, says, ast.unparse(ast.fix_missing_locations(changed)))


def _owners(node: ast.AST, owner: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield what is below a node, each with the qualified name of the function, class or variable that it is in."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.TypeAlias(name=ast.Name(id=name)):
                inner = f"{owner}.{name}"
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                inner = f"{owner}.{name}"
            case _:
                inner = owner
        yield child, inner.removeprefix(".")
        yield from _owners(child, inner.removeprefix("."))


class _Replace(ast.NodeTransformer):
    def __init__(self, victim: ast.AST, replacement: ast.AST) -> None:
        self._victim, self._replacement = victim, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        return self._replacement if node is self._victim else super().generic_visit(node)


def _without_annotations(tree: ast.AST) -> None:
    """Forget docstrings and annotations: what is no code cannot be wrong."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                argument.annotation = None


def _values_of_enums(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the values of plain enums, which nobody reads; those of a StrEnum stand in the table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id == "Enum" for base in node.bases
        ):
            yield from (each.value for each in node.body if isinstance(each, ast.Assign))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _changed(node: ast.AST) -> list[ast.AST]:  # noqa: C901, PLR0912 (a table, not a course of things)
    """Return what may stand in a node's place."""
    match node:
        case ast.Compare(ops=[operator, *rest]) if type(operator) in _OPPOSITES:
            return [ast.Compare(node.left, [_opposite(operator), *rest], node.comparators)]
        case ast.BoolOp(values=values):
            return [ast.BoolOp(_opposite(node.op), values), *values]
        case ast.BinOp(op=operator) if type(operator) in _OPPOSITES:
            return [ast.BinOp(node.left, _opposite(operator), node.right)]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return [operand]
        case ast.IfExp(body=body, orelse=orelse):
            return [body, orelse]
        case ast.Constant(value=bool(value)):
            return [ast.Constant(not value)]
        case ast.Constant(value=int(value) | float(value)):
            return [ast.Constant(value + 1)]
        case ast.Constant(value=str(value)) if value:
            return [ast.Constant(value + "x")]
        case ast.Constant(value=bytes(value)) if value:
            return [ast.Constant(value + b"x")]
        case ast.Break() | ast.Continue():
            return [_opposite(node)]
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            return [ast.Return(ast.Constant(None))]
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            return [ast.Pass()]
        case ast.If(test=test):
            return [ast.If(ast.UnaryOp(ast.Not(), test), node.body, node.orelse)]
        case _:
            return []


def _opposite(operator: ast.AST) -> Any:
    return _OPPOSITES[type(operator)]()


def survives(mutant: Mutant) -> bool:
    """Tell whether no test notices a mutant. The process that this is called in is of no use afterwards."""
    module = import_module(mutant.module)
    try:
        exec(compile(mutant.code, str(module.__file__), "exec"), module.__dict__)  # noqa: S102 (it is our own code)
    except Exception:  # noqa: BLE001 (what cannot be imported is noticed)
        return False
    os.chdir(ROOT)
    # No test's failure need be made small, nor any mutant be tried with hundreds of examples.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", derandomize=True, deadline=None, phases=phases, max_examples=20)
    options = (
        "-x",
        "-p",
        "no:cacheprovider",
        "--assert=plain",
        "--hypothesis-profile=mutants",
        f"--timeout={_SECONDS}",
    )
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return pytest.main([*options, TESTS[mutant.module]]) == pytest.ExitCode.OK


def main() -> int:
    """Try all mutants; return 1 if fewer than nine of ten are killed in a module, or one survives without a reason."""
    parser = argparse.ArgumentParser(prog="make mutants", description="Is every line of the core under test?")
    parser.add_argument("--only", default="", help="part of a module's name")
    only, began, good = parser.parse_args().only, time.monotonic(), True
    if not any(only in module for module in TESTS):
        parser.error(f"no module of {', '.join(TESTS)} has {only} in its name")
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fresh, max_tasks_per_child=1) as pool:
        for module in (module for module in TESTS if only in module):
            code = inspect.getsource(import_module(module))
            if not pool.submit(survives, Mutant(module, 0, "", code)).result():
                print(f"{TESTS[module]} fails without any change")
                return 1
            several = list(mutants(module, code))
            alive = track(pool.map(survives, several), module, len(several))
            left = [mutant for mutant, is_alive in zip(several, alive, strict=True) if is_alive]
            killed = 1 - len(left) / len(several)
            print(f"{module}: {len(several) - len(left)} of {len(several)} killed, {killed:.1%}", flush=True)
            reasons = dict(_EQUIVALENT.get(module, {}))
            for mutant in left:
                reason = reasons.get(mutant.says, "NO REASON")
                good = good and mutant.says in reasons
                print(f"    line {mutant.line}: {mutant.says}\n        {reason}", flush=True)
            for says in reasons.keys() - {mutant.says for mutant in left}:
                good = False
                print(f"    KILLED, or gone, is what has a reason to survive: {says}")
            good = good and killed >= _ENOUGH
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
