"""Cloud Workflows, as much of the language as templates/workflow.yaml uses, and a stand-in for what
it calls.

Stricter than the service where its documentation leaves a question open: `and` and `or` evaluate
both sides, a step's name is used once in a workflow, lists and maps cannot be written inside
expressions, an unknown field is an error. Whether assigning a map copies it is one such question,
so either can be had.
"""

from __future__ import annotations

import ast
import copy
import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

STEP_FIELDS = {
    "call",
    "args",
    "result",
    "assign",
    "switch",
    "for",
    "try",
    "retry",
    "except",
    "raise",
    "return",
    "next",
    "steps",
}
CASE_FIELDS = {"condition", "next", "return", "raise", "steps"}
# The longest expression that a workflow may have.
EXPRESSION_LIMIT = 400


class Raised(Exception):
    """What a workflow raises: a map, as errors are there."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class _Jump(Exception):
    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def http_error(code: int) -> Raised:
    return Raised(
        {
            "code": code,
            "message": f"HTTP server responded with error code {code}",
            "tags": ["HttpError"],
        }
    )


def connection_error() -> Raised:
    return Raised({"message": "connection broken", "tags": ["ConnectionError"]})


def _retried(error: Any) -> bool:
    """`http.default_retry_predicate`."""
    return error.get("code") in (429, 502, 503, 504) or bool(
        {"ConnectionError", "TimeoutError"} & set(error.get("tags", ()))
    )


def _instant(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


class Workflow:
    """A definition, run against functions for what it calls.

    Attributes:
        calls: a connector's methods, by name, each given its arguments.
        now: seconds since the epoch; sleeping adds to it.
        visited: the steps that were carried out, as (workflow, step).
        copies: whether assigning a map copies it.
    """

    def __init__(
        self, text: str, calls: dict[str, Callable[..., Any]], now: str, copies: bool = True
    ) -> None:
        self.workflows: dict[str, Any] = yaml.safe_load(text)
        self.calls = calls
        self.now = float(_instant(now))
        self.copies = copies
        self.visited: set[tuple[str, str]] = set()

    def run(self, argument: dict[str, Any]) -> Any:
        """Runs `main`.

        Raises:
            Raised: it ended in an error.
        """
        return self._call("main", {"args": argument})

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        workflow = self.workflows[name]
        assert set(arguments) == set(workflow["params"]), (
            name,
            set(arguments) ^ set(workflow["params"]),
        )
        try:
            self._steps(name, workflow["steps"], dict(arguments))
        except _Return as returned:
            return returned.value
        raise AssertionError(f"{name} ends without a return")

    def _steps(self, workflow: str, steps: list[dict[str, Any]], scope: dict[str, Any]) -> None:
        names = [next(iter(step)) for step in steps]
        place = 0
        while place < len(steps):
            try:
                self.visited.add((workflow, names[place]))
                self._step(workflow, steps[place][names[place]], scope)
                place += 1
            except _Jump as jump:
                if jump.target not in names:
                    raise
                place = names.index(jump.target)

    def _step(self, workflow: str, step: dict[str, Any], scope: dict[str, Any]) -> None:
        assert set(step) <= STEP_FIELDS, step
        if "call" in step:
            arguments = self._value(step.get("args", {}), scope)
            result = self._function(step["call"], arguments)
            if "result" in step:
                scope[step["result"]] = result
        for assignment in step.get("assign", ()):
            ((target, value),) = assignment.items()
            result = self._value(value, scope)
            *way, last = target.split(".")
            where = scope
            for part in way:
                where = where[part]
            where[last] = copy.deepcopy(result) if self.copies else result
        for case in step.get("switch", ()):
            assert set(case) <= CASE_FIELDS, case
            condition = self._value(case["condition"], scope)
            assert isinstance(condition, bool), case
            if condition:
                self._end(workflow, case, scope)
                break
        if "for" in step:
            self._loop(workflow, step["for"], scope)
        if "try" in step:
            self._try(workflow, step, scope)
        self._end(workflow, step, scope)

    def _end(self, workflow: str, step: dict[str, Any], scope: dict[str, Any]) -> None:
        if "steps" in step:
            self._steps(workflow, step["steps"], scope)
        if "raise" in step:
            raise Raised(self._value(step["raise"], scope))
        if "return" in step:
            raise _Return(self._value(step["return"], scope))
        if "next" in step:
            raise _Jump(step["next"])

    def _loop(self, workflow: str, loop: dict[str, Any], scope: dict[str, Any]) -> None:
        assert set(loop) <= {"value", "in", "range", "steps"}
        if "range" in loop:
            first, last = self._value(loop["range"], scope)
            assert first <= last, "what the service does with an empty range is not documented"
            values = list(range(first, last + 1))
        else:
            values = self._value(loop["in"], scope)
        for value in values:
            # What a loop assigns first is gone after it.
            inner = _Scope(scope, {loop["value"]: value})
            try:
                self._steps(workflow, loop["steps"], inner)
            except _Jump as jump:
                if jump.target == "break":
                    break
                if jump.target != "continue":
                    raise

    def _try(self, workflow: str, step: dict[str, Any], scope: dict[str, Any]) -> None:
        retry = step.get("retry")
        delay, left = (retry["backoff"]["initial_delay"], retry["max_retries"]) if retry else (0, 0)
        while True:
            try:
                self._step(workflow, step["try"], scope)
                return
            except Raised as error:
                if retry:
                    assert retry["predicate"] == "${http.default_retry_predicate}"
                if retry and left and _retried(error.value):
                    left -= 1
                    self.now += delay
                    delay = min(
                        delay * retry["backoff"]["multiplier"], retry["backoff"]["max_delay"]
                    )
                    continue
                if "except" not in step:
                    raise
                inner = _Scope(scope, {step["except"]["as"]: error.value})
                self._steps(workflow, step["except"]["steps"], inner)
                return

    def _function(self, name: str, arguments: dict[str, Any]) -> Any:
        if name in self.workflows:
            return self._call(name, arguments)
        if name == "sys.sleep":
            self.now += arguments["seconds"]
            return None
        return copy.deepcopy(self.calls[name](**copy.deepcopy(arguments)))

    # Expressions

    def _value(self, value: Any, scope: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: self._value(one, scope) for key, one in value.items()}
        if isinstance(value, list):
            return [self._value(one, scope) for one in value]
        if isinstance(value, str) and value.startswith("${"):
            return self._evaluate(parse(value), scope)
        return value

    def _evaluate(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            constants = {"true": True, "false": False, "null": None}
            return constants[node.id] if node.id in constants else scope[node.id]
        if isinstance(node, ast.Attribute):
            return self._evaluate(node.value, scope)[node.attr]
        if isinstance(node, ast.Subscript):
            return self._evaluate(node.value, scope)[self._evaluate(node.slice, scope)]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._truth(node.operand, scope)
        if isinstance(node, ast.BoolOp):
            both = [self._truth(one, scope) for one in node.values]
            return all(both) if isinstance(node.op, ast.And) else any(both)
        if isinstance(node, ast.Compare):
            (right,) = (self._evaluate(one, scope) for one in node.comparators)
            return _compare(node.ops[0], self._evaluate(node.left, scope), right)
        if isinstance(node, ast.BinOp):
            return _compute(
                node.op, self._evaluate(node.left, scope), self._evaluate(node.right, scope)
            )
        if isinstance(node, ast.Call):
            arguments = [self._evaluate(one, scope) for one in node.args]
            return self._standard(ast.unparse(node.func), *arguments)
        raise AssertionError(f"not in the language: {ast.unparse(node)}")

    def _truth(self, node: ast.expr, scope: dict[str, Any]) -> bool:
        truth = self._evaluate(node, scope)
        assert isinstance(truth, bool), ast.unparse(node)
        return truth

    def _standard(self, name: str, *arguments: Any) -> Any:
        environment = {
            "GOOGLE_CLOUD_PROJECT_ID": "some-project",
            "GOOGLE_CLOUD_LOCATION": "europe-west1",
        }
        functions: dict[str, Callable[..., Any]] = {
            "default": lambda value, other: other if value is None else value,
            "len": len,
            "map.get": lambda mapping, key: mapping.get(key),
            "map.merge": lambda first, second: {**first, **second},
            "string": lambda value: str(value) if isinstance(value, int) else _refuse(value),
            "sys.get_env": lambda key: environment[key],
            "sys.now": lambda: self.now,
            "text.match_regex": lambda text, regex: re.search(regex, text) is not None,
            "text.replace_all": lambda text, old, new: text.replace(old, new),
            "text.substring": lambda text, start, end: text[start:end],
            "time.format": lambda at: datetime.datetime.fromtimestamp(
                at, datetime.timezone.utc
            ).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "time.parse": _instant,
        }
        return functions[name](*arguments)


class _Scope(dict[str, Any]):
    """Variables of a loop or a handler over those around it: what is there outside is changed
    there.
    """

    def __init__(self, outer: dict[str, Any], own: dict[str, Any]) -> None:
        super().__init__(own)
        self._outer = outer

    def __missing__(self, key: str) -> Any:
        return self._outer[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not self.keys() & {key} and _known(self._outer, key):
            self._outer[key] = value
        else:
            super().__setitem__(key, value)


def _known(scope: dict[str, Any], key: str) -> bool:
    return key in scope or (isinstance(scope, _Scope) and _known(scope._outer, key))


def _refuse(value: Any) -> Any:
    raise TypeError(value)


def _compare(operator: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(operator, ast.Eq):
        return bool(left == right)
    if isinstance(operator, ast.NotEq):
        return bool(left != right)
    if isinstance(operator, ast.In):
        assert isinstance(right, (list, dict))
        return left in right
    assert not isinstance(left, str) and not isinstance(right, str), (
        "texts have no order that is documented"
    )
    assert isinstance(operator, ast.Lt)
    return bool(left < right)


def _compute(operator: ast.operator, left: Any, right: Any) -> Any:
    assert isinstance(left, str) == isinstance(right, str), (left, right)
    operations: dict[type, Callable[[Any, Any], Any]] = {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
    }
    return operations[type(operator)](left, right)


def parse(expression: str) -> ast.expr:
    """The tree of `${…}`, whose syntax is near enough to Python's."""
    assert expression.startswith("${") and expression.endswith("}"), expression
    assert len(expression) <= EXPRESSION_LIMIT, expression
    return ast.parse(expression[2:-1].strip(), mode="eval").body


def steps(workflow: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every step below a list of steps or anything that holds some, with its name."""
    if isinstance(workflow, list):
        for one in workflow:
            yield from steps(one)
    elif isinstance(workflow, dict):
        for key, value in workflow.items():
            if key == "steps":
                for step in value:
                    ((name, content),) = step.items()
                    yield name, content
                    yield from steps(content)
            elif key in ("switch", "for", "try", "except"):
                yield from steps(value)


def expressions(value: Any) -> Iterator[str]:
    """Every expression of a definition."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from expressions(one)
    elif isinstance(value, str) and "${" in value:
        yield value
